//! Every row of a file, for those who want to know what is in it and whether it is sound.

use std::fmt::Display;

use gpu_lease::{LeaseId, Rows};
use redb::{AccessGuard, Key, ReadTransaction, ReadableTable, TableDefinition, TableError};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::read::storage_error;
use super::tables::{
    CORDONS, EVENTS, LEASES, META, META_BOOT_ID, META_COUNTERS, META_EVENTS_TRIMMED, META_FORMAT,
    META_SETTINGS, META_STORE_ID, META_USAGE_COUNTED, POLICIES, POLICY_LAST_GOOD, USAGE, position,
};
use crate::check::{self, CheckReport, Fault};
use crate::event::EventPosition;
use crate::store::ReadError;
use crate::stored;

/// Every row, each understood by itself, then all of them together.
pub(super) fn check(txn: &ReadTransaction) -> Result<CheckReport, ReadError> {
    let mut look = Look::default();
    walk(txn, |table, key, row| {
        look.at(table, key, row);
        Ok::<_, ReadError>(())
    })?;
    look.at_events();
    let faults = &mut look.report.faults;
    // Of rows that are not all understood nothing can be said together.
    if faults.is_empty()
        && let Some(rows) = super::read::load(txn)?.rows
    {
        faults.extend(check::faults(&rows));
        faults.extend(look.newest_event.and_then(|event| too_late(event, &rows)));
    }
    Ok(look.report)
}

pub(super) fn dump<E: From<ReadError>>(
    txn: &ReadTransaction,
    mut each: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    walk(txn, |table, key, row| {
        each(&row_line(table, key, "row", row))
    })
}

/// A row as it is written, so that nothing is lost on the way; `name` says what it is.
pub(super) fn row_line(table: &str, key: &RowKey, name: &str, row: &[u8]) -> String {
    let (table, key, name) = (json!(table), json!(key.to_string()), json!(name));
    let text = std::str::from_utf8(row).ok();
    match text.filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok()) {
        Some(row) => format!(r#"{{"table":{table},"key":{key},{name}:{row}}}"#),
        None => {
            let row = json!(String::from_utf8_lossy(row));
            format!(r#"{{"table":{table},"key":{key},"unreadable":{row}}}"#)
        }
    }
}

/// What is known of the rows seen so far.
#[derive(Default)]
pub(super) struct Look {
    report: CheckReport,
    meta: Vec<String>,
    trimmed: Option<EventPosition>,
    oldest_event: Option<EventPosition>,
    newest_event: Option<EventPosition>,
}

impl Look {
    pub(super) fn at(&mut self, table: &'static str, key: &RowKey, row: &[u8]) {
        self.count(table);
        let understood = match (table, key) {
            ("leases", _) => read::<stored::Lease>(row),
            ("cordons", _) => read::<stored::Cordon>(row),
            ("policies", RowKey::Name(name)) if name == POLICY_LAST_GOOD => {
                read::<stored::LastGood>(row)
            }
            ("events", RowKey::Event(at)) => {
                self.oldest_event.get_or_insert(*at);
                self.newest_event = Some(*at);
                read::<stored::Event>(row)
            }
            ("usage", _) => read::<stored::Usage>(row),
            ("meta", RowKey::Name(name)) => self.at_meta(&name.clone(), row),
            _ => Err("nothing is known of such a row".to_owned()),
        };
        if let Err(detail) = understood {
            self.report.faults.push(Fault::new(table, key, detail));
        }
    }

    fn at_meta(&mut self, name: &str, row: &[u8]) -> Result<(), String> {
        self.meta.push(name.to_owned());
        match name {
            META_FORMAT => read::<u32>(row),
            META_STORE_ID | META_BOOT_ID => read::<String>(row),
            META_COUNTERS => read::<stored::Counters>(row),
            META_SETTINGS => read::<stored::Settings>(row),
            META_USAGE_COUNTED => read::<stored::UsageCounted>(row),
            META_EVENTS_TRIMMED => {
                let trimmed: stored::Position = understand(row)?;
                self.trimmed = Some(trimmed.into());
                Ok(())
            }
            _ => Err("nothing is known of such a row".to_owned()),
        }
    }

    pub(super) fn take_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.report.faults)
    }

    fn count(&mut self, table: &'static str) {
        match self.report.rows.last_mut() {
            Some((last, count)) if *last == table => *count += 1,
            _ => self.report.rows.push((table, 1)),
        }
    }

    /// The history has a beginning, and rows a counter that says which come next.
    fn at_events(&mut self) {
        let has_counters = self.meta.iter().any(|name| name == META_COUNTERS);
        let is_empty = self.report.rows.iter().all(|(table, _)| *table == "meta");
        if !has_counters && !is_empty {
            let fault = Fault::new("meta", META_COUNTERS, "it is missing, and there are rows");
            self.report.faults.push(fault);
        }
        if let (Some(trimmed), Some(oldest)) = (self.trimmed, self.oldest_event)
            && oldest <= trimmed
        {
            let key = RowKey::Event(oldest);
            let fault = Fault::new("events", key, "it is of what was removed");
            self.report.faults.push(fault);
        }
    }
}

fn too_late(event: EventPosition, rows: &Rows) -> Option<Fault> {
    let last = rows.counters.revision;
    (event.revision > last).then(|| {
        let detail = format!("it is later than revision {last}, the last");
        Fault::new("events", RowKey::Event(event), detail)
    })
}

fn read<T: for<'de> Deserialize<'de>>(row: &[u8]) -> Result<(), String> {
    understand::<T>(row).map(drop)
}

fn understand<T: for<'de> Deserialize<'de>>(row: &[u8]) -> Result<T, String> {
    serde_json::from_slice(row).map_err(|error| error.to_string())
}

/// Which row, as people write it.
pub(super) enum RowKey {
    Name(String),
    Lease(LeaseId),
    Event(EventPosition),
}

impl Display for RowKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Lease(id) => id.fmt(f),
            Self::Event(at) => write!(f, "{}-{}", at.revision, at.n),
        }
    }
}

/// Every row of every table that is there, in the order of keys.
fn walk<E: From<ReadError>>(
    txn: &ReadTransaction,
    mut each: impl FnMut(&'static str, &RowKey, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let named = |name: &str| RowKey::Name(name.to_owned());
    let mut table = |name, key: RowKey, row: &[u8]| each(name, &key, row);
    walk_table(txn, META, |key, row| table("meta", named(key), row))?;
    walk_table(txn, LEASES, |id, row| {
        table("leases", RowKey::Lease(LeaseId::from_bits(id)), row)
    })?;
    walk_table(txn, CORDONS, |(host, id), row| {
        table("cordons", named(&format!("{host}/{id}")), row)
    })?;
    walk_table(txn, POLICIES, |key, row| table("policies", named(key), row))?;
    walk_table(txn, EVENTS, |key, row| {
        table("events", RowKey::Event(position(key)), row)
    })?;
    walk_table(txn, USAGE, |key, row| {
        table("usage", named(&super::read::usage_name(key)), row)
    })
}

fn walk_table<K: Key + 'static, E: From<ReadError>>(
    txn: &ReadTransaction,
    table: TableDefinition<'_, K, &'static [u8]>,
    mut each: impl FnMut(K::SelfType<'_>, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let table = match txn.open_table(table) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(storage_error(error).into()),
    };
    for entry in table.iter().map_err(storage_error)? {
        let (key, row): (AccessGuard<'_, K>, AccessGuard<'_, &[u8]>) =
            entry.map_err(storage_error)?;
        each(key.value(), row.value())?;
    }
    Ok(())
}
