//! Questions to the history: which events, and pages of those.

use gpu_lease::{DeviceId, LeaseId, WallMs};

use crate::event::{EVENTS_PER_PAGE_MAX, EventPage, EventPosition, StoredEvent};
use crate::store::ReadError;

/// How many events one page of answers looks at; a rare answer takes more than one page to find.
pub const EVENTS_PER_LOOK_MAX: usize = 10_000;

/// Which events are asked for; what is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// About this lease.
    pub lease: Option<LeaseId>,
    /// About this device, or a lease that holds something of it, on any host.
    pub device: Option<DeviceId>,
    /// About a lease whose holder is of this user, or done by it.
    pub user: Option<String>,
    /// Not before this.
    pub since: Option<WallMs>,
}

/// The events that were found, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundEvents {
    /// The events.
    pub events: Vec<StoredEvent>,
    /// Where to go on; `None` at the end of the history.
    pub next: Option<EventPosition>,
    /// As in [`EventPage::reset`].
    pub reset: bool,
}

impl EventFilter {
    /// Whether `stored` is asked for.
    pub fn takes(&self, stored: &StoredEvent) -> bool {
        let event = &stored.event;
        let lease = self.lease.is_none_or(|lease| event.lease == Some(lease));
        let since = self.since.is_none_or(|since| stored.wall >= since);
        let device = self.device.as_ref().is_none_or(|device| {
            let mut devices = event.device.iter().chain(&stored.also_on);
            devices.any(|key| key.id == *device)
        });
        let user = self.user.is_none() || stored.user == self.user || event.by == self.user;
        lease && since && device && user
    }

    /// At most `limit` events later than `after`, from a history that is read page by page.
    ///
    /// # Errors
    /// As `read`.
    pub fn find(
        &self,
        read: impl Fn(Option<EventPosition>, usize) -> Result<EventPage, ReadError>,
        after: Option<EventPosition>,
        limit: usize,
    ) -> Result<FoundEvents, ReadError> {
        let mut found = FoundEvents {
            next: after,
            ..FoundEvents::default()
        };
        for _ in 0..EVENTS_PER_LOOK_MAX / EVENTS_PER_PAGE_MAX {
            let page = read(found.next, EVENTS_PER_PAGE_MAX)?;
            found.reset |= page.reset;
            let is_last = page.events.len() < EVENTS_PER_PAGE_MAX;
            for stored in page.events {
                if found.events.len() == limit {
                    return Ok(found);
                }
                found.next = Some(stored.position);
                found.events.extend(Some(stored).filter(|e| self.takes(e)));
            }
            if is_last {
                found.next = None;
                return Ok(found);
            }
        }
        Ok(found)
    }
}
