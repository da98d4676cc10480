//! Somebody who reads the events as they come, and after every end of the broker goes on behind the last one that
//! was read: all of them, each once, in their order.

use std::sync::Arc;

use gpu_broker::{EVENTS_PER_PAGE_MAX, EventPosition, Handle, StoredEvent};

use super::oracle::require;

type Checked = Result<(), String>;
type Live = Box<dyn FnMut() -> Option<Arc<StoredEvent>>>;

/// The reader.
#[derive(Default)]
pub(super) struct Reader {
    live: Option<Live>,
    /// How many were read.
    read: usize,
}

impl Reader {
    /// The broker is gone.
    pub(super) fn lose(&mut self) {
        self.live = None;
    }

    /// Another one is there: what was missed is read, and it is what was written meanwhile. `log` are all events
    /// that are durable.
    pub(super) fn connect(&mut self, handle: &Handle, log: &[Arc<StoredEvent>]) -> Checked {
        let mut live = handle.live_events();
        let mut last = self.read.checked_sub(1).map(|place| log[place].position);
        loop {
            let page = handle.events_after(last, EVENTS_PER_PAGE_MAX);
            let page = page.map_err(|error| error.to_string())?;
            require(!page.reset, || {
                format!("{last:?} is said to be of no history")
            })?;
            let Some(event) = page.events.last() else {
                break;
            };
            last = Some(event.position);
            page.events
                .iter()
                .try_for_each(|event| self.take(event, log))?;
        }
        require(self.read == log.len(), || {
            format!("history ends at {last:?}, and there is more")
        })?;
        self.live = Some(Box::new(move || live.try_recv().ok()));
        after_the_last(handle, last)
    }

    /// What was told since it last asked. `rests`: all that is durable was told.
    pub(super) fn hear(&mut self, log: &[Arc<StoredEvent>], rests: bool) -> Checked {
        while let Some(event) = self.live.as_mut().and_then(|live| live()) {
            self.take(&event, log)?;
        }
        require(!rests || self.read == log.len(), || {
            format!("durable, and nobody hears of it: {:?}", log[self.read])
        })
    }

    fn take(&mut self, event: &StoredEvent, log: &[Arc<StoredEvent>]) -> Checked {
        let next = log.get(self.read);
        let same = next.is_some_and(|next| **next == *event);
        require(same, || {
            format!("told of {event:?}, where {next:?} comes next")
        })?;
        self.read += 1;
        Ok(())
    }
}

/// Who says it has read more than there is hears that this is not so.
fn after_the_last(handle: &Handle, last: Option<EventPosition>) -> Checked {
    let revision = handle.snapshot().counters.revision + 1;
    let beyond = EventPosition { revision, n: 0 };
    let page = handle.events_after(Some(beyond), 1);
    let page = page.map_err(|error| error.to_string())?;
    require(page.reset, || {
        format!("{beyond:?} is taken for known after {last:?}")
    })
}
