//! Rows into the file, one transaction for each batch.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use redb::{Database, ReadableTable, ReadableTableMetadata, Table, WriteTransaction};
use serde::Serialize;

use super::tables::{
    CORDONS, EVENTS, EventKey, FORMAT, LEASES, META, META_BOOT_ID, META_COUNTERS,
    META_EVENTS_TRIMMED, META_FORMAT, META_SETTINGS, META_STORE_ID, META_USAGE_COUNTED, POLICIES,
    POLICY_LAST_GOOD, USAGE, UsageRowKey, event_key, position, start_of, usage_key,
};
use crate::event::{self, EventPosition, StoreId, StoredEvent};
use crate::store::Batch;
use crate::stored;
use crate::usage::{
    self, Hour, USAGE_ROWS_PER_HOUR_MAX, USAGE_ROWS_PER_TRIM, USAGE_ROWS_PER_USER_MAX, Usage,
    UsageKey, UsageRow,
};

/// All of `batch`, synced, or nothing.
pub(super) fn commit(
    database: &Database,
    batch: &Batch<'_>,
    two_phase: bool,
) -> Result<(), redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_two_phase_commit(two_phase);
    let mut row = Row::default();
    put_leases(&txn, batch, &mut row)?;
    put_cordons(&txn, batch, &mut row)?;
    if let Some(policy) = &batch.policy {
        let row = row.of(&stored::LastGood::from(policy));
        txn.open_table(POLICIES)?.insert(POLICY_LAST_GOOD, row)?;
    }
    let trimmed = put_events(&txn, &batch.events, &mut row)?;
    put_usage(&txn, &batch.usage, &mut row)?;
    put_meta(&txn, batch, trimmed, &mut row)?;
    txn.commit()?;
    Ok(())
}

/// The tables of a new store, empty but for its format and its name.
pub(super) fn create_tables(database: &Database, store_id: StoreId) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    txn.open_table(LEASES)?;
    txn.open_table(CORDONS)?;
    txn.open_table(POLICIES)?;
    txn.open_table(EVENTS)?;
    let mut row = Row::default();
    {
        let mut meta = txn.open_table(META)?;
        meta.insert(META_FORMAT, row.of(&FORMAT))?;
        meta.insert(META_STORE_ID, row.of(&store_id.to_string()))?;
    }
    txn.commit()?;
    Ok(())
}

/// A buffer that every row of a batch is written into in its turn.
#[derive(Default)]
struct Row(Vec<u8>);

impl Row {
    fn of<T: Serialize>(&mut self, value: &T) -> &[u8] {
        self.0.clear();
        serde_json::to_writer(&mut self.0, value)
            .expect("rows have text for keys and are written to memory, so nothing can fail");
        &self.0
    }
}

fn put_leases(txn: &WriteTransaction, batch: &Batch<'_>, row: &mut Row) -> Result<(), redb::Error> {
    if batch.leases.is_empty() && batch.pruned.is_empty() {
        return Ok(());
    }
    let mut table = txn.open_table(LEASES)?;
    for lease in &batch.leases {
        table.insert(lease.id.bits(), row.of(&stored::Lease::from(*lease)))?;
    }
    for id in &batch.pruned {
        table.remove(id.bits())?;
    }
    Ok(())
}

fn put_cordons(
    txn: &WriteTransaction,
    batch: &Batch<'_>,
    row: &mut Row,
) -> Result<(), redb::Error> {
    if batch.cordons.is_empty() {
        return Ok(());
    }
    let mut table = txn.open_table(CORDONS)?;
    for (device, cordon) in &batch.cordons {
        let key = (device.host.as_str(), device.id.as_str());
        match cordon {
            Some(cordon) => table.insert(key, row.of(&stored::Cordon::from(cordon)))?,
            None => table.remove(key)?,
        };
    }
    Ok(())
}

fn put_meta(
    txn: &WriteTransaction,
    batch: &Batch<'_>,
    trimmed: Option<EventPosition>,
    row: &mut Row,
) -> Result<(), redb::Error> {
    let mut table = txn.open_table(META)?;
    table.insert(
        META_COUNTERS,
        row.of(&stored::Counters::from(batch.counters)),
    )?;
    if let Some(boot_id) = &batch.boot_id {
        table.insert(META_BOOT_ID, row.of(boot_id))?;
    }
    if let Some(settings) = &batch.settings {
        table.insert(META_SETTINGS, row.of(&stored::Settings::from(settings)))?;
    }
    if let Some(counted) = batch.usage_counted {
        let row = row.of(&stored::UsageCounted::from(counted));
        table.insert(META_USAGE_COUNTED, row)?;
    }
    if let Some(trimmed) = trimmed {
        table.insert(
            META_EVENTS_TRIMMED,
            row.of(&stored::Position::from(trimmed)),
        )?;
    }
    Ok(())
}

/// Answers the last position that was removed, if any was.
fn put_events(
    txn: &WriteTransaction,
    events: &[StoredEvent],
    row: &mut Row,
) -> Result<Option<EventPosition>, redb::Error> {
    if events.is_empty() {
        return Ok(None);
    }
    let mut table = txn.open_table(EVENTS)?;
    for event in events {
        let key = event_key(event.position);
        table.insert(key, row.of(&stored::Event::from(event)))?;
    }
    trim(&mut table)
}

/// The number of events is part of the table's root, so most commits read nothing here.
fn trim(table: &mut Table<'_, EventKey, &[u8]>) -> Result<Option<EventPosition>, redb::Error> {
    let len = usize::try_from(table.len()?).unwrap_or(usize::MAX);
    let mut last = None;
    for _ in 0..event::excess(len) {
        let oldest = table.pop_first()?;
        last = oldest.map(|(key, _)| position(key.value())).or(last);
    }
    Ok(last)
}

fn put_usage(txn: &WriteTransaction, usage: &[UsageRow], row: &mut Row) -> Result<(), redb::Error> {
    let Some(newest) = usage::newest(usage) else {
        return Ok(());
    };
    let mut table = txn.open_table(USAGE)?;
    let mut room = Room::default();
    for added in usage {
        let (key, mut sum) = usage_to_add_to(&table, &mut room, &added.key)?;
        sum += added.usage;
        table.insert(usage_key(&key), row.of(&stored::Usage::from(sum)))?;
    }
    trim_usage(&mut table, newest.oldest_kept())
}

/// The row that takes what is of `key`, with what is in it.
fn usage_to_add_to(
    table: &UsageTable<'_>,
    room: &mut Room,
    key: &UsageKey,
) -> Result<(UsageKey, Usage), redb::Error> {
    if let Some(sum) = usage_at(table, key)? {
        return Ok((key.clone(), sum));
    }
    let rows = room.rows_of(table, key)?;
    if *rows.in_hour < USAGE_ROWS_PER_HOUR_MAX && *rows.of_user < USAGE_ROWS_PER_USER_MAX {
        *rows.in_hour += 1;
        *rows.of_user += 1;
        return Ok((key.clone(), Usage::default()));
    }
    let other = key.other();
    let sum = usage_at(table, &other)?;
    if sum.is_none() {
        *rows.in_hour += 1;
    }
    Ok((other, sum.unwrap_or_default()))
}

/// How many rows there are, each counted once for a batch and kept up to date by it.
#[derive(Default)]
struct Room {
    hours: BTreeMap<Hour, usize>,
    users: BTreeMap<(Hour, String), usize>,
}

struct RowsOf<'a> {
    in_hour: &'a mut usize,
    of_user: &'a mut usize,
}

impl Room {
    fn rows_of(
        &mut self,
        table: &UsageTable<'_>,
        key: &UsageKey,
    ) -> Result<RowsOf<'_>, redb::Error> {
        let in_hour = match self.hours.entry(key.hour) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let rows = table.range(start_of(key.hour)..start_of(key.hour.next()))?;
                unknown.insert(rows.count())
            }
        };
        let of_user = match self.users.entry((key.hour, key.user.clone())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let user = key.user.as_str();
                // Nothing sorts between a name and the same with this at its end.
                let next = format!("{user}\0");
                let hour = key.hour.0;
                let rows = table.range((hour, user, "", "", "")..(hour, &next, "", "", ""))?;
                unknown.insert(rows.count())
            }
        };
        Ok(RowsOf { in_hour, of_user })
    }
}

fn usage_at(table: &UsageTable<'_>, key: &UsageKey) -> Result<Option<Usage>, redb::Error> {
    let Some(row) = table.get(usage_key(key))? else {
        return Ok(None);
    };
    let usage: Result<stored::Usage, _> = serde_json::from_slice(row.value());
    // Not to be written over: it is of a later version.
    let usage = usage.map_err(|error| redb::Error::Corrupted(format!("table `usage`: {error}")))?;
    Ok(Some(usage.into()))
}

fn trim_usage(table: &mut UsageTable<'_>, oldest_kept: Hour) -> Result<(), redb::Error> {
    for _ in 0..USAGE_ROWS_PER_TRIM {
        let oldest = table.first()?.map(|(key, _)| Hour(key.value().0));
        if oldest.is_none_or(|oldest| oldest >= oldest_kept) {
            return Ok(());
        }
        table.pop_first()?;
    }
    Ok(())
}

type UsageTable<'txn> = Table<'txn, UsageRowKey, &'static [u8]>;
