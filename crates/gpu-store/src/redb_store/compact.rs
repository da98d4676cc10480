//! Making a file as small as its rows.

use std::fs;
use std::path::Path;

use redb::{
    Database, Key, ReadTransaction, ReadableDatabase, ReadableTableMetadata, TableDefinition,
    TableError,
};

use super::RedbStore;
use super::open::{OpenError, is_there, open_locked};
use super::tables::{EVENTS, LEASES, USAGE};

/// A smaller file is not worth the while.
const COMPACT_BYTES_MIN: u64 = 64 << 20;
/// A file pays that is so many times as large as its rows. Then most of it is empty, and little has to be moved,
/// so that it is quick. While a broker works its file is about twice as large as its rows.
const COMPACT_TIMES_MIN: u64 = 4;
/// Rows of common sizes, in bytes.
const LEASE_BYTES: u64 = 1024;
const EVENT_BYTES: u64 = 512;
const USAGE_BYTES: u64 = 256;

/// What compacting a file did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Its size before, in bytes.
    pub before_bytes: u64,
    /// Its size after, in bytes.
    pub after_bytes: u64,
}

impl RedbStore {
    /// Makes the file `path`, which no broker has open, as small as its rows. It is sound at every moment:
    /// whenever the process ends, what was committed is there.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::InUse`] while a broker lives, [`OpenError::Compact`] if the disk fails.
    pub fn compact(path: &Path) -> Result<Compacted, OpenError> {
        if !is_there(path)? {
            return Err(OpenError::Missing {
                path: path.to_owned(),
            });
        }
        let before_bytes = size(path)?;
        let mut database = open_locked(path)?;
        compact(&mut database, path)?;
        database.close().map_err(|error| failed(path, &error))?;
        Ok(Compacted {
            before_bytes,
            after_bytes: size(path)?,
        })
    }
}

/// Makes the file of `database` small if most of it is empty, and says so.
pub(super) fn compact_if_it_pays(
    database: &mut Database,
    path: &Path,
) -> Result<Option<Compacted>, OpenError> {
    let before_bytes = size(path)?;
    let seems_to = |rows_bytes: u64| rows_bytes.saturating_mul(COMPACT_TIMES_MIN) < before_bytes;
    // The number of rows is known at once; how large they are only when all of them are looked at.
    let pays = before_bytes >= COMPACT_BYTES_MIN
        && seems_to(rows_bytes_about(database, path)?)
        && seems_to(rows_bytes(database, path)?);
    if !pays {
        return Ok(None);
    }
    compact(database, path)?;
    let after_bytes = size(path)?;
    Ok(Some(Compacted {
        before_bytes,
        after_bytes,
    }))
}

fn rows_bytes_about(database: &Database, path: &Path) -> Result<u64, OpenError> {
    let count = || -> Result<u64, redb::Error> {
        let txn = database.begin_read()?;
        let leases = rows(&txn, LEASES)?.saturating_mul(LEASE_BYTES);
        let events = rows(&txn, EVENTS)?.saturating_mul(EVENT_BYTES);
        let usage = rows(&txn, USAGE)?.saturating_mul(USAGE_BYTES);
        Ok(leases.saturating_add(events).saturating_add(usage))
    };
    count().map_err(|error| failed(path, &error))
}

fn rows<K: Key + 'static>(
    txn: &ReadTransaction,
    table: TableDefinition<'_, K, &'static [u8]>,
) -> Result<u64, redb::Error> {
    match txn.open_table(table) {
        Ok(table) => Ok(table.len()?),
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn rows_bytes(database: &Database, path: &Path) -> Result<u64, OpenError> {
    let txn = database
        .begin_write()
        .map_err(|error| failed(path, &error))?;
    let stats = txn.stats().map_err(|error| failed(path, &error))?;
    txn.abort().map_err(|error| failed(path, &error))?;
    Ok(stats.stored_bytes().saturating_add(stats.metadata_bytes()))
}

pub(super) fn compact(database: &mut Database, path: &Path) -> Result<(), OpenError> {
    let compacted = database.compact().map(drop);
    compacted.map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &impl ToString) -> OpenError {
    OpenError::Compact {
        path: path.to_owned(),
        detail: error.to_string(),
    }
}

fn size(path: &Path) -> Result<u64, OpenError> {
    let found = fs::metadata(path).map_err(|source| OpenError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    Ok(found.len())
}
