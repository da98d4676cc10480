//! The event stream: history from where the reader left off, then what happens, in order and without a gap.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, Response};
use futures_util::Stream;
use gpu_api::Event;
use gpu_broker::{EVENTS_PER_PAGE_MAX, EventId, EventPosition, StoredEvent};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Answer, Shared};
use crate::app::{Assets, Bridge};
use crate::convert::{assets_changed, event, reset};
use crate::identity::Caller;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Pieces that are ready for a reader who is slower than events; then the stream waits for it.
const PIECES_AHEAD_MAX: usize = 16;
/// A reader that takes nothing for this long is dropped; it can resume.
const SLOW_READER_SECS_MAX: u64 = 30;
/// What a browser waits before it connects again.
const RECONNECT_MS: u64 = 1000;

pub(super) async fn stream(
    State(bridge): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
) -> Answer {
    let room = bridge.event_stream()?;
    let live = bridge.handle.live_events();
    let (pieces, body) = mpsc::channel(PIECES_AHEAD_MAX);
    let mut teller = Teller {
        last: None,
        bridge,
        caller,
        pieces,
    };
    let start = start(&teller.bridge, &headers);
    tokio::spawn(async move {
        // Whatever ends it, the reader connects again and resumes.
        drop(teller.tell(start, live).await);
        drop(room);
    });
    let mut response = Response::new(Body::from_stream(Pieces(body)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

/// Where a reader begins.
enum Start {
    /// With what happens from here on.
    Live,
    /// Behind what it has.
    After(EventPosition),
    /// What it has is of no history that is known here.
    Lost,
}

fn start(bridge: &Bridge, headers: &HeaderMap) -> Start {
    let Some(id) = headers.get(LAST_EVENT_ID) else {
        return Start::Live;
    };
    let id = id.to_str().ok().and_then(|id| id.parse::<EventId>().ok());
    match id {
        Some(id) if id.store == bridge.handle.store_id() => Start::After(id.position),
        _ => Start::Lost,
    }
}

/// The stream is over: the reader is gone or too slow, the token is not the token any more, the broker stops.
struct Over;

/// Tells one reader what happens.
struct Teller {
    bridge: Shared,
    caller: Caller,
    pieces: mpsc::Sender<Bytes>,
    /// The last event that was told.
    last: Option<EventPosition>,
}

impl Teller {
    async fn tell(
        &mut self,
        start: Start,
        mut live: Receiver<Arc<StoredEvent>>,
    ) -> Result<(), Over> {
        self.send(format!(": gpu-manager\nretry: {RECONNECT_MS}\n\n"))
            .await?;
        match start {
            Start::Live => {}
            Start::Lost => self.reset().await?,
            Start::After(position) => {
                self.last = Some(position);
                self.catch_up().await?;
            }
        }
        let mut assets = self.bridge.config.assets.clone();
        loop {
            let silence = Instant::now() + self.bridge.config.limits.event_silence;
            let happened = tokio::select! {
                happened = live.recv() => happened,
                () = sleep_until(silence) => {
                    self.sign_of_life().await?;
                    continue;
                }
                () = save_of(&mut assets) => {
                    let at = self.last.unwrap_or_else(|| self.before_now());
                    self.send(framed(&assets_changed(&self.bridge.handle, at)))
                        .await?;
                    continue;
                }
                () = self.bridge.handle.stopped() => return Err(Over),
                () = self.pieces.closed() => return Err(Over),
            };
            match happened {
                Ok(happened) => self.tell_once(&happened).await?,
                Err(RecvError::Lagged(_)) => self.catch_up().await?,
                Err(RecvError::Closed) => return Err(Over),
            }
        }
    }

    /// Reads from the store what is later than the last event.
    async fn catch_up(&mut self) -> Result<(), Over> {
        let Some(mut after) = self.last else {
            return self.reset().await;
        };
        loop {
            let handle = self.bridge.handle.clone();
            let read = move || handle.events_after(Some(after), EVENTS_PER_PAGE_MAX);
            let page = tokio::task::spawn_blocking(read)
                .await
                .map_err(|_broke_off| Over)?;
            let page = page.map_err(|error| {
                tracing::error!("events cannot be read: {error}");
                Over
            })?;
            if page.reset {
                return self.reset().await;
            }
            let Some(last) = page.events.last().map(|event| event.position) else {
                return Ok(());
            };
            for event in &page.events {
                self.tell_once(event).await?;
            }
            after = last;
        }
    }

    /// Tells the reader that it missed something, and goes on from the present.
    async fn reset(&mut self) -> Result<(), Over> {
        let position = self.before_now();
        let text = framed(&reset(&self.bridge.handle, position));
        self.last = Some(position);
        self.send(text).await
    }

    /// Before the present revision, of which everything may still be on its way.
    fn before_now(&self) -> EventPosition {
        let revision = self.bridge.handle.snapshot().counters.revision;
        EventPosition {
            revision: revision.saturating_sub(1),
            n: u32::MAX,
        }
    }

    async fn tell_once(&mut self, stored: &StoredEvent) -> Result<(), Over> {
        if self.last.is_some_and(|last| stored.position <= last) {
            return Ok(());
        }
        self.last = Some(stored.position);
        self.send(framed(&event(self.bridge.handle.store_id(), stored)))
            .await
    }

    async fn sign_of_life(&mut self) -> Result<(), Over> {
        match self.caller.is_still_valid(&self.bridge.config.secrets) {
            true => self.send(": still here\n\n".to_owned()).await,
            false => Err(Over),
        }
    }

    async fn send(&mut self, text: String) -> Result<(), Over> {
        let patience = Duration::from_secs(SLOW_READER_SECS_MAX);
        match timeout(patience, self.pieces.send(text.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Over),
        }
    }
}

/// Waits until a file of the page is saved; for ever where nobody works on it.
async fn save_of(assets: &mut Option<Assets>) {
    let changed = match assets {
        Some(assets) => assets.changed.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// One event as the lines of its kind. The data is one line: JSON has no line breaks.
fn framed(event: &Event) -> String {
    let data = serde_json::to_string(event).expect("events are plain data");
    format!("id: {}\nevent: {}\ndata: {data}\n\n", event.id, event.name)
}

/// What the teller says, as a body.
struct Pieces(mpsc::Receiver<Bytes>);

impl Stream for Pieces {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|piece| piece.map(Ok))
    }
}
