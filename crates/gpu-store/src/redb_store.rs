//! Rows in one redb file.

mod open;
mod read;
mod tables;
mod write;

use redb::{Database, ReadableDatabase, ReadTransaction};

use crate::event::{EventPage, EventPosition};
use crate::store::{Batch, CommitError, ReadError, Store, Stored};

pub use open::OpenError;
pub use tables::FORMAT;

/// The broker's store: a file that is this process's alone while it is open.
///
/// A commit is synced to the disk before it returns. Dropping the store without more ado loses
/// nothing, and neither does the end of the process at any point.
pub struct RedbStore {
    database: Database,
    two_phase: bool,
}

/// The rows of a store file at one moment, for reading where no broker lives. The file is not changed,
/// and not locked any longer.
pub struct StoreSnapshot {
    database: Database,
}

impl RedbStore {
    /// Syncs twice for each commit, so that even a file prepared by somebody who can choose checksums
    /// cannot undo the last commit. Off unless asked for: it doubles the time of a commit.
    #[must_use]
    pub fn with_two_phase_commits(self) -> Self {
        Self {
            two_phase: true,
            ..self
        }
    }
}

impl Store for RedbStore {
    fn load(&self) -> Result<Stored, ReadError> {
        read::load(&reader(&self.database)?)
    }

    fn commit(&self, batch: &Batch<'_>) -> Result<(), CommitError> {
        write::commit(&self.database, batch, self.two_phase).map_err(|error| CommitError {
            detail: error.to_string(),
        })
    }

    fn events(&self, after: Option<EventPosition>, limit: usize) -> Result<EventPage, ReadError> {
        read::events(&reader(&self.database)?, after, limit)
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
}

fn reader(database: &Database) -> Result<ReadTransaction, ReadError> {
    database.begin_read().map_err(read::storage_error)
}
