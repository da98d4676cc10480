//! The tables of a store file. Names, keys and the words in [`META`] are part of the format.

use redb::TableDefinition;

use gpu_lease::{DeviceId, DeviceKey, HostId};

use crate::event::EventPosition;
use crate::usage::{Hour, UsageKey};

/// The version of everything in the file: tables, keys and rows. A file of a later one is refused.
///
/// Format 1 grew until the first release: the table of usage, the row that says how far that is counted, and the
/// users and further devices of events came without a new number. This version reads every file of format 1; a
/// version from before them, none of which was released, refuses single rows instead of the file. From the first
/// release on, what an earlier version would not understand is a new format.
pub const FORMAT: u32 = 1;

/// One row for each of the keys below.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Leases by the bits of their id.
pub(super) const LEASES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leases");
/// Cordons by host and device id.
pub(super) const CORDONS: TableDefinition<'_, (&str, &str), &[u8]> =
    TableDefinition::new("cordons");
/// Policies by what they are kept for; apart from [`META`], whose page is written by every commit.
pub(super) const POLICIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("policies");
/// Events by revision and number.
pub(super) const EVENTS: TableDefinition<'_, EventKey, &[u8]> = TableDefinition::new("events");

/// Usage by hour, user, tenant (empty: none), host and device id. Files from before usage have no such table.
pub(super) const USAGE: TableDefinition<'_, UsageRowKey, &[u8]> = TableDefinition::new("usage");

/// Every table by its name.
pub(super) const TABLES: [&str; 6] = ["meta", "leases", "cordons", "policies", "events", "usage"];

pub(super) const META_FORMAT: &str = "format";
pub(super) const META_STORE_ID: &str = "store_id";
pub(super) const META_BOOT_ID: &str = "boot_id";
pub(super) const META_COUNTERS: &str = "counters";
pub(super) const META_SETTINGS: &str = "settings";
/// The last position that was removed from the events.
pub(super) const META_EVENTS_TRIMMED: &str = "events_trimmed";
/// Until when what was held is counted in the usage.
pub(super) const META_USAGE_COUNTED: &str = "usage_counted";
pub(super) const POLICY_LAST_GOOD: &str = "last_good";

pub(super) type EventKey = (u64, u32);

pub(super) type UsageRowKey = (u64, &'static str, &'static str, &'static str, &'static str);

pub(super) fn event_key(position: EventPosition) -> EventKey {
    (position.revision, position.n)
}

pub(super) fn position((revision, n): EventKey) -> EventPosition {
    EventPosition { revision, n }
}

pub(super) fn usage_key(key: &UsageKey) -> (u64, &str, &str, &str, &str) {
    let tenant = key.tenant.as_deref().unwrap_or_default();
    let device = &key.device;
    let (host, id) = (device.host.as_str(), device.id.as_str());
    (key.hour.0, &key.user, tenant, host, id)
}

pub(super) fn usage_of((hour, user, tenant, host, id): (u64, &str, &str, &str, &str)) -> UsageKey {
    UsageKey {
        hour: Hour(hour),
        user: user.to_owned(),
        tenant: (!tenant.is_empty()).then(|| tenant.to_owned()),
        device: DeviceKey {
            host: HostId::new(host),
            id: DeviceId::new(id),
        },
    }
}

/// Sorts before every row of the hour.
pub(super) fn start_of(
    hour: Hour,
) -> (u64, &'static str, &'static str, &'static str, &'static str) {
    (hour.0, "", "", "", "")
}
