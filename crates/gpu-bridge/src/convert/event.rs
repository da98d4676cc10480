//! Events as lines of the stream.

use gpu_api as wire;
use gpu_broker::{EventPosition, Handle, StoredEvent};

use super::time::rfc3339;

/// One thing that happened.
pub(crate) fn event(handle: &Handle, stored: &StoredEvent) -> wire::Event {
    let happened = &stored.event;
    wire::Event {
        id: event_id(handle, stored.position),
        at: rfc3339(stored.wall),
        name: happened.kind.as_str().to_owned(),
        lease: happened.lease.map(|lease| lease.to_string()),
        device: happened.device.as_ref().map(|device| device.id.to_string()),
        by: happened.by.clone(),
        text: happened.text.clone(),
        generation: stored.generation,
    }
}

/// What a reader is told whose place in the history is gone.
pub(crate) fn reset(handle: &Handle, at: EventPosition) -> wire::Event {
    wire::Event {
        id: event_id(handle, at),
        at: rfc3339(handle.now().wall),
        name: wire::EVENT_RESET.to_owned(),
        lease: None,
        device: None,
        by: None,
        text: "history before this point is gone: read everything anew".to_owned(),
        generation: handle.snapshot().counters.generation,
    }
}

fn event_id(handle: &Handle, position: EventPosition) -> String {
    format!("{}-{}-{}", handle.store_id(), position.revision, position.n)
}
