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
    let text = "history before this point is gone: read everything anew";
    aside(handle, at, wire::EVENT_RESET, text)
}

/// What a page is told whose files somebody works on.
pub(crate) fn assets_changed(handle: &Handle, at: EventPosition) -> wire::Event {
    let text = "the files of this page changed: load it anew";
    aside(handle, at, wire::EVENT_ASSETS_CHANGED, text)
}

/// An event that is no part of the history; whoever resumes behind it resumes behind `at`.
fn aside(handle: &Handle, at: EventPosition, name: &str, text: &str) -> wire::Event {
    wire::Event {
        id: event_id(handle, at),
        at: rfc3339(handle.now().wall),
        name: name.to_owned(),
        lease: None,
        device: None,
        by: None,
        text: text.to_owned(),
        generation: handle.snapshot().counters.generation,
    }
}

fn event_id(handle: &Handle, position: EventPosition) -> String {
    format!("{}-{}-{}", handle.store_id(), position.revision, position.n)
}
