//! Questions to what was, and the answers: of a broker, or of a store that no broker runs on.

use std::collections::BTreeMap;

use gpu_api::{
    ErrorCode, History, HistoryQuery, Problem, Since, UsageBy, UsageQuery, UsageReport, UsageSum,
};
use gpu_broker::{
    EventFilter, EventId, EventPosition, FoundEvents, Hour, StoreId, Usage, UsageRow,
};
use gpu_lease::{DeviceId, WallMs};
use jiff::Timestamp;

use super::event::event;
use super::time::rfc3339;

const HOUR_MS: u64 = 3_600_000;
/// What is looked at where nobody says since when.
const USAGE_DAYS: u64 = 30;

/// Which events a caller asks for.
///
/// # Errors
/// Something of the query is none of what it should be.
pub fn event_filter(query: &HistoryQuery, now: WallMs) -> Result<EventFilter, Problem> {
    let lease = query.lease.as_ref().map(|lease| lease.parse());
    let lease = lease
        .transpose()
        .map_err(|error| invalid(format!("`lease`: {error}")))?;
    let since = query.since.as_ref().map(|since| past(since, now));
    Ok(EventFilter {
        lease,
        device: query.device.as_ref().map(|id| DeviceId::new(id)),
        user: query.user.as_ref().map(ToString::to_string),
        since: since.transpose()?,
    })
}

/// Where a caller goes on; `None` where it begins. A place in another store's history is none here.
pub(crate) fn place(query: &HistoryQuery, store: StoreId) -> Result<Place, Problem> {
    let Some(after) = &query.after else {
        return Ok(Place::Beginning);
    };
    let id: EventId = after
        .parse()
        .map_err(|error| invalid(format!("`after`: {error}")))?;
    Ok(match id.store == store {
        true => Place::After(id.position),
        false => Place::Lost,
    })
}

/// Where a reader of the history begins.
pub(crate) enum Place {
    Beginning,
    After(EventPosition),
    Lost,
}

/// A page of the history of `store`.
pub fn history(store: StoreId, found: &FoundEvents) -> History {
    let events = found.events.iter();
    let next = found.next.map(|position| EventId { store, position });
    History {
        events: events.map(|stored| event(store, stored)).collect(),
        next: next.map(|id| id.to_string()),
        reset: found.reset,
    }
}

/// Rows of usage on their way into an answer.
#[derive(Clone, Debug)]
pub struct UsageTable {
    from: Hour,
    until: WallMs,
    by: UsageBy,
    sums: BTreeMap<[Option<String>; 3], Usage>,
}

impl UsageTable {
    /// Of nothing yet.
    ///
    /// # Errors
    /// Something of the query is none of what it should be.
    pub fn new(query: &UsageQuery, now: WallMs) -> Result<Self, Problem> {
        let default = WallMs(now.0.saturating_sub(USAGE_DAYS * 24 * HOUR_MS));
        let since = query.since.as_ref().map(|since| past(since, now));
        let since = since.transpose()?.unwrap_or(default);
        Ok(Self {
            from: Hour::of(since).max(Hour::of(now).oldest_kept()),
            until: now,
            by: query.by.unwrap_or_default(),
            sums: BTreeMap::new(),
        })
    }

    /// The first hour that counts.
    pub fn from(&self) -> Hour {
        self.from
    }

    /// Counts a row; one of an earlier hour is left out.
    pub fn add(&mut self, row: UsageRow) {
        let key = row.key;
        if key.hour < self.from {
            return;
        }
        let device = self.by.device.then(|| key.device.id.to_string());
        let user = self.by.user.then_some(key.user);
        let tenant = key.tenant.filter(|_| self.by.tenant);
        *self.sums.entry([user, tenant, device]).or_default() += row.usage;
    }

    /// The answer.
    pub fn report(self) -> UsageReport {
        let sums = self.sums.into_iter();
        let mut rows: Vec<_> = sums
            .map(|([user, tenant, device], usage)| UsageSum {
                user,
                tenant,
                device,
                held_ms: usage.held_ms,
                byte_hours: u64::try_from(usage.byte_ms / u128::from(HOUR_MS)).unwrap_or(u64::MAX),
            })
            .collect();
        // Of the same length, in the order of names.
        rows.sort_by_key(|row| std::cmp::Reverse(row.held_ms));
        UsageReport {
            since: rfc3339(self.from.start()),
            until: rfc3339(self.until),
            by: self.by,
            rows,
        }
    }
}

/// The point in time that a caller means.
fn past(since: &Since, now: WallMs) -> Result<WallMs, Problem> {
    let text = match since {
        Since::Ago(span) => return Ok(WallMs(now.0.saturating_sub(span.as_ms()))),
        Since::At(text) => text,
    };
    let timestamp: Timestamp = text.parse().map_err(|_| {
        invalid(format!("`since`: `{text}` is no RFC 3339 time"))
            .with_hint("write `2h`, or `2026-01-31T18:00:00Z`")
    })?;
    let wall = u64::try_from(timestamp.as_millisecond()).unwrap_or_default();
    match wall <= now.0 {
        true => Ok(WallMs(wall)),
        false => Err(invalid(format!("`since`: {text} is still to come"))),
    }
}

fn invalid(detail: String) -> Problem {
    Problem::new(ErrorCode::BadRequest, detail)
}
