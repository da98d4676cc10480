//! The event stream, read line by line.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use gpu_api::{Event, paths};

use crate::http::Address;
use crate::patience::SOON;

/// An open event stream.
#[derive(Debug)]
pub struct Events {
    lines: BufReader<TcpStream>,
}

impl Events {
    /// Listens from here on, or from behind the event of this id. What happens after this returns is told.
    ///
    /// # Panics
    /// If the broker does not open a stream.
    pub(crate) fn listen(address: &Address, after: Option<&str>) -> Self {
        let Address::Tcp(address) = address else {
            panic!("streams are read over a port here");
        };
        let mut stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_read_timeout(Some(SOON)).expect("not zero");
        let after = after
            .map(|id| format!("last-event-id: {id}\r\n"))
            .unwrap_or_default();
        // The version before 1.1 has no chunks to be told apart from lines.
        let path = paths::EVENTS;
        let request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n{after}\r\n");
        stream
            .write_all(request.as_bytes())
            .expect("the broker reads");
        let mut events = Self {
            lines: BufReader::new(stream),
        };
        let status = events.line();
        assert!(status.contains(" 200 "), "{status}");
        while events.line() != ": gpu-manager" {}
        events
    }

    /// The next event.
    pub fn next_event(&mut self) -> Event {
        loop {
            if let Some(data) = self.line().strip_prefix("data: ") {
                return serde_json::from_str(data).expect("an event");
            }
        }
    }

    /// The next event of this name; others are skipped.
    pub fn next_of(&mut self, name: &str) -> Event {
        loop {
            let event = self.next_event();
            if event.name == name {
                return event;
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self
            .lines
            .read_line(&mut line)
            .expect("something happens soon");
        assert!(read > 0, "the stream ended");
        line.trim_end().to_owned()
    }
}
