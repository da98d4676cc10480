//! Events as they are kept: their positions, their ids, and pages of them.

use std::fmt;
use std::str::FromStr;

use gpu_lease::{DeviceKey, Event, WallMs};

/// How many of the latest events are kept at least.
pub const EVENTS_KEPT: usize = 100_000;

/// How many events beyond [`EVENTS_KEPT`] gather before they are removed, all in one commit.
pub const EVENTS_PER_TRIM: usize = 1024;

/// How many events one page has at most.
pub const EVENTS_PER_PAGE_MAX: usize = 1000;

/// The name of a store, made once from random bits; written as sixteen hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(u64);

/// Where an event stands in the history of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventPosition {
    /// The revision of the books that the event belongs to.
    pub revision: u64,
    /// Which of that revision's events, from 0.
    pub n: u32,
}

/// The name of an event, written as `<store id>-<revision>-<n>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId {
    /// The store that keeps it.
    pub store: StoreId,
    /// Where in it.
    pub position: EventPosition,
}

/// An event with when and under which policy it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its place in the history.
    pub position: EventPosition,
    /// When.
    pub wall: WallMs,
    /// The generation of the policy that was live.
    pub generation: u64,
    /// What.
    pub event: Event,
    /// The verified user of the holder of its lease, if it is about one.
    pub user: Option<String>,
    /// What its lease holds beside the device of the event.
    pub also_on: Vec<DeviceKey>,
}

/// Some of the history, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventPage {
    /// The events.
    pub events: Vec<StoredEvent>,
    /// The reader's position is not in this history: events after it were already removed, or it is
    /// later than any. The page then starts at the oldest event kept.
    pub reset: bool,
}

/// The text is no event id, or no store id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an event id: expected `<store id>-<revision>-<n>`")]
pub struct ParseEventIdError;

impl StoreId {
    /// The name made of these bits.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EventPosition { revision, n } = self.position;
        write!(f, "{}-{revision}-{n}", self.store)
    }
}

impl FromStr for StoreId {
    type Err = ParseEventIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 16 || !text.bytes().all(is_digit) {
            return Err(ParseEventIdError);
        }
        let bits = u64::from_str_radix(text, 16).map_err(|_| ParseEventIdError)?;
        Ok(Self(bits))
    }
}

impl FromStr for EventId {
    type Err = ParseEventIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (store, position) = text.split_once('-').ok_or(ParseEventIdError)?;
        let (revision, n) = position.split_once('-').ok_or(ParseEventIdError)?;
        Ok(Self {
            store: store.parse()?,
            position: EventPosition {
                revision: decimal(revision)?,
                n: decimal(n)?,
            },
        })
    }
}

/// The trimming that a history of `len` events is due for.
pub(crate) fn excess(len: usize) -> usize {
    if len >= EVENTS_KEPT + EVENTS_PER_TRIM {
        len - EVENTS_KEPT
    } else {
        0
    }
}

/// Whether a reader at `after` missed something in a history that ends at `last_revision` and has lost
/// what is not later than `trimmed`.
pub(crate) fn is_reset(
    after: EventPosition,
    trimmed: Option<EventPosition>,
    last_revision: u64,
) -> bool {
    trimmed.is_some_and(|trimmed| after < trimmed) || after.revision > last_revision
}

/// Digits only: the standard parser would take a sign.
fn decimal<N: FromStr>(text: &str) -> Result<N, ParseEventIdError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseEventIdError);
    }
    text.parse().map_err(|_| ParseEventIdError)
}

#[cfg(test)]
mod tests {
    use super::{EventId, EventPosition, ParseEventIdError, StoreId};

    #[test]
    fn an_event_id_reads_back_as_it_was_written() {
        let cases = [
            (0, 0, 0, "0000000000000000-0-0"),
            (0xbeef, 17, 3, "000000000000beef-17-3"),
            (
                u64::MAX,
                u64::MAX,
                u32::MAX,
                "ffffffffffffffff-18446744073709551615-4294967295",
            ),
        ];
        for (bits, revision, n, text) in cases {
            let id = EventId {
                store: StoreId::from_bits(bits),
                position: EventPosition { revision, n },
            };
            assert_eq!(id.to_string(), text);
            assert_eq!(text.parse(), Ok(id));
        }
    }

    #[test]
    fn what_is_no_event_id_is_refused() {
        for text in [
            "",
            "-",
            "--",
            "000000000000beef",
            "000000000000beef-1",
            "000000000000beef--1",
            "000000000000beef-1-",
            "000000000000beef-+1-1",
            "000000000000beef-1-1-1",
            "000000000000beef-18446744073709551616-0",
            "000000000000beef-1-4294967296",
            "000000000000BEEF-1-1",
            "+00000000000beef-1-1",
            "beef-1-1",
            "00000000000beéf-1-1",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(ParseEventIdError), "{text}");
        }
    }
}
