//! Rows in one redb file.

mod compact;
mod held_back;
mod inspect;
mod open;
mod read;
mod remains;
mod tables;
mod write;

use redb::{Database, ReadTransaction, ReadableDatabase};

use crate::check::CheckReport;
use crate::event::{EventPage, EventPosition};
use crate::store::{Batch, CommitError, ReadError, StorageFault, Store, Stored};
use crate::usage::{Hour, UsageRow};

pub use compact::Compacted;
pub use open::OpenError;
pub use remains::{AsOf, Remains, RemainsReport, TableRemains};
pub use tables::FORMAT;

/// The broker's store: a file that is this process's alone while it is open.
///
/// A commit is synced to the disk before it returns. Dropping the store without more ado loses
/// nothing, and neither does the end of the process at any point.
pub struct RedbStore {
    database: Database,
    two_phase: bool,
    compacted: Option<Compacted>,
}

/// The rows of a store file at one moment, for reading where no broker lives. The file is not changed,
/// and not locked any longer.
pub struct StoreSnapshot {
    database: Database,
}

impl RedbStore {
    /// Syncs each commit before it is made the current one and once more after, instead of leaving it to
    /// checksums to find the last whole commit after a crash. It takes about twice as long.
    #[must_use]
    pub fn with_two_phase_commits(self) -> Self {
        Self {
            two_phase: true,
            ..self
        }
    }

    /// What opening it made of a file that was much larger than its rows.
    pub fn compacted(&self) -> Option<Compacted> {
        self.compacted
    }
}

impl Store for RedbStore {
    fn load(&self) -> Result<Stored, ReadError> {
        read::load(&reader(&self.database)?)
    }

    fn commit(&self, batch: &Batch<'_>) -> Result<(), CommitError> {
        write::commit(&self.database, batch, self.two_phase).map_err(|error| CommitError {
            cause: fault(&error),
            detail: error.to_string(),
        })
    }

    fn events(&self, after: Option<EventPosition>, limit: usize) -> Result<EventPage, ReadError> {
        read::events(&reader(&self.database)?, after, limit)
    }

    fn usage(&self, from: Hour, each: &mut dyn FnMut(UsageRow)) -> Result<(), ReadError> {
        read::usage(&reader(&self.database)?, from, each)
    }
}

impl StoreSnapshot {
    /// Everything but the events.
    ///
    /// # Errors
    /// As for [`Store::load`].
    pub fn load(&self) -> Result<Stored, ReadError> {
        read::load(&reader(&self.database)?)
    }

    /// Some of the events.
    ///
    /// # Errors
    /// As for [`Store::events`].
    pub fn events(
        &self,
        after: Option<EventPosition>,
        limit: usize,
    ) -> Result<EventPage, ReadError> {
        read::events(&reader(&self.database)?, after, limit)
    }

    /// The usage from the hour `from` on.
    ///
    /// # Errors
    /// As for [`Store::usage`].
    pub fn usage(&self, from: Hour, each: &mut dyn FnMut(UsageRow)) -> Result<(), ReadError> {
        read::usage(&reader(&self.database)?, from, each)
    }

    /// Whether every row is understood, and the rows add up.
    ///
    /// # Errors
    /// The storage fails; a row that is not understood is a fault in the report.
    pub fn check(&self) -> Result<CheckReport, ReadError> {
        inspect::check(&reader(&self.database)?)
    }

    /// Every row as a line of JSON without its end: `{"table":"leases","key":"l-...","row":{...}}`. Bytes that
    /// are no JSON are text named `unreadable` in place of `row`.
    ///
    /// # Errors
    /// The storage fails, or `each` says so.
    pub fn dump<E: From<ReadError>>(
        &self,
        each: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        inspect::dump(&reader(&self.database)?, each)
    }
}

fn fault(error: &redb::Error) -> StorageFault {
    match error {
        redb::Error::Io(error) => StorageFault::of(error),
        _ => StorageFault::Other,
    }
}

fn reader(database: &Database) -> Result<ReadTransaction, ReadError> {
    database.begin_read().map_err(read::storage_error)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use gpu_lease::{Counters, Fence};
    use redb::backends::InMemoryBackend;
    use redb::{Builder, StorageBackend};

    use super::{RedbStore, Store, write};
    use crate::event::StoreId;
    use crate::store::Batch;

    /// A disk that fails for good after so many writes and syncs.
    #[derive(Clone, Debug)]
    struct FailingDisk {
        disk: Arc<InMemoryBackend>,
        budget: Arc<AtomicI64>,
    }

    impl FailingDisk {
        fn spend(&self) -> io::Result<()> {
            match self.budget.fetch_sub(1, Ordering::Relaxed) {
                left if left > 0 => Ok(()),
                _ => Err(io::ErrorKind::StorageFull.into()),
            }
        }

        fn set_budget(&self, budget: i64) {
            self.budget.store(budget, Ordering::Relaxed);
        }

        fn store(&self) -> RedbStore {
            let database = Builder::new().create_with_backend(self.clone());
            RedbStore {
                database: database.expect("the disk works"),
                two_phase: false,
                compacted: None,
            }
        }
    }

    impl StorageBackend for FailingDisk {
        fn len(&self) -> io::Result<u64> {
            self.disk.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.disk.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.disk.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.spend()?;
            self.disk.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.spend()?;
            self.disk.write(offset, data)
        }
    }

    /// Wherever in a commit the disk gives up, the commit says so or is there afterwards, later ones are
    /// refused, and the batch before it is whole.
    #[test]
    fn a_disk_that_fails_stops_the_store() {
        for budget in 0..40 {
            let disk = FailingDisk {
                disk: Arc::new(InMemoryBackend::new()),
                budget: Arc::new(AtomicI64::new(i64::MAX)),
            };
            let store = disk.store();
            write::create_tables(&store.database, StoreId::from_bits(1)).expect("the disk works");
            store.commit(&batch(1)).expect("the disk works");

            disk.set_budget(budget);
            let second = store.commit(&batch(2));
            disk.set_budget(0);
            let third = store.commit(&batch(3)).expect_err("the disk is broken");
            assert!(
                third
                    .to_string()
                    .starts_with("the store cannot be written: ")
            );
            drop(store);

            disk.set_budget(i64::MAX);
            let stored = disk.store().load().expect("the disk works again");
            let revision = stored.rows.map(|rows| rows.counters.revision);
            match second {
                Ok(()) => assert_eq!(revision, Some(2), "after {budget} writes"),
                Err(_) => assert!(matches!(revision, Some(1 | 2)), "after {budget} writes"),
            }
        }
    }

    fn batch(revision: u64) -> Batch<'static> {
        Batch::new(Counters {
            revision,
            next_fence: Fence(revision),
            generation: 1,
        })
    }
}
