//! Rows out of the file. A row that is not understood is an error that names it.

use std::fmt;
use std::ops::Bound;
use std::thread;

use gpu_lease::{Cordon, Counters, DeviceId, DeviceKey, HostId, Lease, LeaseId, Rows};
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, TableError};
use serde::Deserialize;

use super::tables::{
    CORDONS, EVENTS, LEASES, META, META_BOOT_ID, META_COUNTERS, META_EVENTS_TRIMMED, META_SETTINGS,
    META_STORE_ID, META_USAGE_COUNTED, POLICIES, POLICY_LAST_GOOD, USAGE, UsageRowKey, event_key,
    position, start_of, usage_of,
};
use crate::event::{self, EVENTS_PER_PAGE_MAX, EventPage, EventPosition, StoreId, StoredEvent};
use crate::store::{LastGood, ReadError, Stored};
use crate::stored;
use crate::usage::{Hour, UsageRow};

/// Fewer leases than this are read by one thread.
const ROWS_SHARED_MIN: u64 = 4096;
/// So many threads read leases at most.
const READERS_MAX: usize = 8;
/// One more than the bits of the last id there can be.
const LEASE_IDS: u64 = 1 << 60;

type MetaTable = ReadOnlyTable<&'static str, &'static [u8]>;

pub(super) fn load(txn: &ReadTransaction) -> Result<Stored, ReadError> {
    let meta = txn.open_table(META).map_err(storage_error)?;
    let counters = counters(&meta)?;
    let settings: Option<stored::Settings> = meta_row(&meta, META_SETTINGS)?;
    let counted: Option<stored::UsageCounted> = meta_row(&meta, META_USAGE_COUNTED)?;
    Ok(Stored {
        store_id: store_id(&meta)?,
        boot_id: meta_row(&meta, META_BOOT_ID)?,
        rows: counters.map(|counters| rows(txn, counters)).transpose()?,
        policy: last_good(txn)?,
        settings: settings.map(Into::into).unwrap_or_default(),
        usage_counted: counted.map(Into::into),
    })
}

pub(super) fn events(
    txn: &ReadTransaction,
    after: Option<EventPosition>,
    limit: usize,
) -> Result<EventPage, ReadError> {
    let reset = match after {
        Some(after) => is_reset(txn, after)?,
        None => false,
    };
    let start = match after {
        Some(after) if !reset => Bound::Excluded(event_key(after)),
        _ => Bound::Unbounded,
    };
    let table = txn.open_table(EVENTS).map_err(storage_error)?;
    let range = table
        .range::<super::tables::EventKey>((start, Bound::Unbounded))
        .map_err(storage_error)?;
    let events = range.take(limit.min(EVENTS_PER_PAGE_MAX)).map(|entry| {
        let (key, row) = entry.map_err(storage_error)?;
        event(position(key.value()), row.value())
    });
    Ok(EventPage {
        events: events.collect::<Result<_, _>>()?,
        reset,
    })
}

pub(super) fn usage(
    txn: &ReadTransaction,
    from: Hour,
    each: &mut dyn FnMut(UsageRow),
) -> Result<(), ReadError> {
    let Some(table) = usage_table(txn)? else {
        return Ok(());
    };
    for entry in table.range(start_of(from)..).map_err(storage_error)? {
        let (key, row) = entry.map_err(storage_error)?;
        let usage: stored::Usage = decode("usage", || usage_name(key.value()), row.value())?;
        each(UsageRow {
            key: usage_of(key.value()),
            usage: usage.into(),
        });
    }
    Ok(())
}

/// Not there in a file of an earlier version, or where no lease ever ended.
fn usage_table(
    txn: &ReadTransaction,
) -> Result<Option<ReadOnlyTable<UsageRowKey, &'static [u8]>>, ReadError> {
    match txn.open_table(USAGE) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(storage_error(error)),
    }
}

/// What the storage below said.
pub(super) fn storage_error(error: impl Into<redb::Error>) -> ReadError {
    ReadError::Storage {
        detail: error.into().to_string(),
    }
}

/// The row of `key` in the meta table, if there is one.
fn meta_row<T>(meta: &MetaTable, key: &str) -> Result<Option<T>, ReadError>
where
    T: for<'de> Deserialize<'de>,
{
    let Some(row) = meta.get(key).map_err(storage_error)? else {
        return Ok(None);
    };
    decode("meta", || key, row.value()).map(Some)
}

fn store_id(meta: &MetaTable) -> Result<StoreId, ReadError> {
    let wrong = |detail: &str| ReadError::Row {
        table: "meta",
        key: META_STORE_ID.to_owned(),
        detail: detail.to_owned(),
    };
    let text: Option<String> = meta_row(meta, META_STORE_ID)?;
    let text = text.ok_or_else(|| wrong("it is missing"))?;
    text.parse()
        .map_err(|_| wrong("expected sixteen hexadecimal digits"))
}

fn counters(meta: &MetaTable) -> Result<Option<Counters>, ReadError> {
    let counters: Option<stored::Counters> = meta_row(meta, META_COUNTERS)?;
    Ok(counters.map(Into::into))
}

fn rows(txn: &ReadTransaction, counters: Counters) -> Result<Rows, ReadError> {
    Ok(Rows {
        counters,
        leases: leases(txn)?,
        cordons: cordons(txn)?,
    })
}

/// Understanding rows is most of the work of a start, so it is shared by as many threads as there are
/// processors where there are many rows. Ids are random, so each has as much to do.
fn leases(txn: &ReadTransaction) -> Result<Vec<Lease>, ReadError> {
    let table = txn.open_table(LEASES).map_err(storage_error)?;
    let threads = match table.len().map_err(storage_error)? {
        0..ROWS_SHARED_MIN => 1,
        _ => thread::available_parallelism().map_or(1, |found| found.get().min(READERS_MAX)),
    };
    if threads == 1 {
        return leases_between(&table, (Bound::Unbounded, Bound::Unbounded));
    }
    let part = LEASE_IDS / threads as u64;
    let read = |n: usize| {
        let from = Bound::Included(n as u64 * part);
        let to = match n + 1 < threads {
            true => Bound::Excluded((n as u64 + 1) * part),
            false => Bound::Unbounded,
        };
        leases_between(&table, (from, to))
    };
    let read = &read;
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|n| scope.spawn(move || read(n))).collect();
        let mut leases = read(0)?;
        for other in others {
            match other.join() {
                Ok(part) => leases.extend(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(leases)
    })
}

fn leases_between(
    table: &ReadOnlyTable<u64, &'static [u8]>,
    ids: (Bound<u64>, Bound<u64>),
) -> Result<Vec<Lease>, ReadError> {
    let entries = table.range(ids).map_err(storage_error)?;
    let lease = |entry: Result<_, _>| {
        let (key, row): (redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8]>) =
            entry.map_err(storage_error)?;
        let id = LeaseId::from_bits(key.value());
        let lease: stored::Lease = decode("leases", || id, row.value())?;
        Ok(lease.into_core(id))
    };
    entries.map(lease).collect()
}

fn cordons(txn: &ReadTransaction) -> Result<Vec<(DeviceKey, Cordon)>, ReadError> {
    let table = txn.open_table(CORDONS).map_err(storage_error)?;
    let mut cordons = Vec::new();
    for entry in table.iter().map_err(storage_error)? {
        let (key, row) = entry.map_err(storage_error)?;
        let (host, id) = key.value();
        let device = DeviceKey {
            host: HostId::new(host),
            id: DeviceId::new(id),
        };
        let cordon: stored::Cordon = decode("cordons", || &device, row.value())?;
        cordons.push((device, cordon.into()));
    }
    Ok(cordons)
}

fn last_good(txn: &ReadTransaction) -> Result<Option<LastGood>, ReadError> {
    let table = txn.open_table(POLICIES).map_err(storage_error)?;
    let Some(row) = table.get(POLICY_LAST_GOOD).map_err(storage_error)? else {
        return Ok(None);
    };
    let policy: stored::LastGood = decode("policies", || POLICY_LAST_GOOD, row.value())?;
    Ok(Some(policy.into()))
}

fn is_reset(txn: &ReadTransaction, after: EventPosition) -> Result<bool, ReadError> {
    let meta = txn.open_table(META).map_err(storage_error)?;
    let trimmed: Option<stored::Position> = meta_row(&meta, META_EVENTS_TRIMMED)?;
    let last_revision = counters(&meta)?.map_or(0, |counters| counters.revision);
    Ok(event::is_reset(
        after,
        trimmed.map(Into::into),
        last_revision,
    ))
}

fn event(position: EventPosition, row: &[u8]) -> Result<StoredEvent, ReadError> {
    let name = || format!("{}-{}", position.revision, position.n);
    let event: stored::Event = decode("events", name, row)?;
    Ok(event.into_core(position))
}

fn decode<T, K>(table: &'static str, key: impl FnOnce() -> K, row: &[u8]) -> Result<T, ReadError>
where
    T: for<'de> Deserialize<'de>,
    K: fmt::Display,
{
    serde_json::from_slice(row).map_err(|error| ReadError::Row {
        table,
        key: key().to_string(),
        detail: error.to_string(),
    })
}

/// `2026-01-31T18Z` would need a calendar: the hour is counted, as in the key.
pub(super) fn usage_name((hour, user, tenant, host, id): (u64, &str, &str, &str, &str)) -> String {
    format!("{hour} {user} {tenant} {host}/{id}")
}
