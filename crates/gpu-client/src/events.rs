//! The event stream: server-sent events, resumed where they broke off.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use gpu_api::{Event, paths};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use tokio::time::timeout;

use crate::client::{get, read_answer};
use crate::connection::Connections;
use crate::error::ClientError;

/// A broker that has nothing to tell still sends a comment well within this time.
const SILENCE_SECS_MAX: u64 = 60;
const LINE_BYTES_MAX: usize = 1 << 20;

/// What happens in a broker, in order. After an error the next call connects again and resumes.
#[derive(Debug)]
pub struct EventStream {
    connections: Arc<Connections>,
    last_id: Option<String>,
    open: Option<Open>,
}

impl EventStream {
    pub(crate) fn new(connections: Arc<Connections>, after: Option<String>) -> Self {
        Self {
            connections,
            last_id: after,
            open: None,
        }
    }

    /// The next event; waits for it as long as it takes. An event named `reset` says that events were lost.
    ///
    /// # Errors
    /// See [`ClientError`]. Calling again resumes behind the last event, so a caller that goes on should
    /// pause a little.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        if self.open.is_none() {
            self.open = Some(self.connect().await?);
        }
        let open = self.open.as_mut().expect("it was opened above");
        match open.next(&self.connections).await {
            Ok(event) => {
                self.last_id = Some(event.id.clone());
                Ok(event)
            }
            Err(error) => {
                self.open = None;
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Open, ClientError> {
        let mut call = get(paths::EVENTS.to_owned());
        call.headers.push((
            header::ACCEPT.as_str(),
            HeaderValue::from_static("text/event-stream"),
        ));
        if let Some(id) = self
            .last_id
            .as_deref()
            .and_then(|id| HeaderValue::from_str(id).ok())
        {
            call.headers.push(("last-event-id", id));
        }
        let (response, sender) = match timeout(call.patience, self.connections.send(&call)).await {
            Ok(sent) => sent?,
            Err(_) => return Err(self.connections.timed_out(call.patience)),
        };
        if !response.status().is_success() {
            let answer = self.connections.read(response).await?;
            return Err(read_answer::<Event>(&self.connections, &answer)
                .err()
                .unwrap_or_else(|| self.connections.not_a_broker("an error that is an event")));
        }
        Ok(Open {
            response,
            _sender: sender,
            buffer: BytesMut::new(),
            data: String::new(),
        })
    }
}

/// One open connection with what was read of it.
#[derive(Debug)]
struct Open {
    response: Response<Incoming>,
    // hyper closes the connection when its sender is gone and the body is idle.
    _sender: hyper::client::conn::http1::SendRequest<http_body_util::Full<bytes::Bytes>>,
    buffer: BytesMut,
    data: String,
}

impl Open {
    async fn next(&mut self, connections: &Connections) -> Result<Event, ClientError> {
        loop {
            while let Some(line) = take_line(&mut self.buffer) {
                if let Some(data) = fold_line(&mut self.data, &line) {
                    return serde_json::from_str(&data).map_err(|error| {
                        connections.not_a_broker(format!("an event is not understood ({error})"))
                    });
                }
            }
            if self.buffer.len() > LINE_BYTES_MAX || self.data.len() > LINE_BYTES_MAX {
                return Err(connections.not_a_broker("an event is longer than 1 MiB"));
            }
            self.fill(connections).await?;
        }
    }

    async fn fill(&mut self, connections: &Connections) -> Result<(), ClientError> {
        let silence = Duration::from_secs(SILENCE_SECS_MAX);
        let frame = match timeout(silence, self.response.body_mut().frame()).await {
            Ok(Some(frame)) => frame.map_err(|error| connections.lost(error))?,
            Ok(None) => return Err(connections.lost("the event stream ended")),
            Err(_) => return Err(connections.lost("the event stream is silent")),
        };
        if let Some(bytes) = frame.data_ref() {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }
}

/// The first whole line of `buffer`, without its end.
fn take_line(buffer: &mut BytesMut) -> Option<String> {
    let end = buffer.iter().position(|&byte| byte == b'\n')?;
    let line = buffer.split_to(end + 1);
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Some(String::from_utf8_lossy(line).into_owned())
}

/// Adds `line` to the `data` of the event that is being read; an empty line ends it.
fn fold_line(data: &mut String, line: &str) -> Option<String> {
    if line.is_empty() {
        return (!data.is_empty()).then(|| std::mem::take(data));
    }
    // The id and the name are within the data too, and comments begin with a colon.
    if let Some(text) = line.strip_prefix("data:") {
        if !data.is_empty() {
            data.push('\n');
        }
        data.push_str(text.strip_prefix(' ').unwrap_or(text));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_from_any_pieces() {
        let text = ": hello\n\nid: s-1-0\nevent: a\ndata: {\"x\":\ndata: 1}\n\ndata:2\r\n\r\n";
        for size in [1, 2, 3, 7, 100] {
            let mut buffer = BytesMut::new();
            let mut data = String::new();
            let mut events = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                buffer.extend_from_slice(piece);
                while let Some(line) = take_line(&mut buffer) {
                    events.extend(fold_line(&mut data, &line));
                }
            }
            assert_eq!(events, ["{\"x\":\n1}", "2"], "in pieces of {size}");
        }
    }
}
