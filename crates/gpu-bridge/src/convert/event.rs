//! Events as lines of the stream.

use gpu_api as wire;
use gpu_broker::{EventId, EventPosition, Handle, StoreId, StoredEvent};

use super::time::rfc3339;

/// One thing that happened, in the history of `store`.
pub(crate) fn event(store: StoreId, stored: &StoredEvent) -> wire::Event {
    let happened = &stored.event;
    let others = stored.also_on.iter();
    wire::Event {
        id: event_id(store, stored.position),
        at: rfc3339(stored.wall),
        name: happened.kind.as_str().to_owned(),
        lease: happened.lease.map(|lease| lease.to_string()),
        user: stored.user.clone(),
        device: happened.device.as_ref().map(|device| device.id.to_string()),
        other_devices: others.map(|device| device.id.to_string()).collect(),
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
        id: event_id(handle.store_id(), at),
        at: rfc3339(handle.now().wall),
        name: name.to_owned(),
        lease: None,
        user: None,
        device: None,
        other_devices: Vec::new(),
        by: None,
        text: text.to_owned(),
        generation: handle.snapshot().counters.generation,
    }
}

fn event_id(store: StoreId, position: EventPosition) -> String {
    EventId { store, position }.to_string()
}
