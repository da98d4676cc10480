//! What every store does: give everything back at start, write a batch whole, read the history.

use std::io;
use std::sync::Arc;

use gpu_lease::{
    At, BootMs, Cordon, Counters, Deadline, DeviceKey, Lease, LeaseId, Ms, PolicySource, Rows,
    WallMs,
};

use crate::event::{EventPage, EventPosition, StoreId, StoredEvent};
use crate::usage::{Hour, UsageRow};

/// "Input/output error" of Linux, for which the standard library has no kind.
const EIO: i32 = 5;

/// Rows that outlive the broker. One writer; readers may run beside it and see whole batches only.
pub trait Store: Send + Sync {
    /// Everything that recovery needs, as of the last commit.
    ///
    /// # Errors
    /// [`ReadError`] if the storage fails, or holds a row that this version does not understand.
    fn load(&self) -> Result<Stored, ReadError>;

    /// One durable write: when it returns, all of the batch is stored; when it fails, none of it is.
    ///
    /// # Errors
    /// [`CommitError`] if the storage fails. No later commit can be trusted to work.
    fn commit(&self, batch: &Batch<'_>) -> Result<(), CommitError>;

    /// At most `limit` events later than `after`, oldest first; without `after`, from the oldest kept.
    /// No page is longer than [`EVENTS_PER_PAGE_MAX`](crate::EVENTS_PER_PAGE_MAX).
    ///
    /// # Errors
    /// [`ReadError`] as for [`Store::load`].
    fn events(&self, after: Option<EventPosition>, limit: usize) -> Result<EventPage, ReadError>;

    /// Every row of usage from the hour `from` on, in the order of their keys.
    ///
    /// # Errors
    /// [`ReadError`] as for [`Store::load`].
    fn usage(&self, from: Hour, each: &mut dyn FnMut(UsageRow)) -> Result<(), ReadError>;
}

/// What a store holds besides its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The name of this store, for ever.
    pub store_id: StoreId,
    /// The boot that the deadlines in `rows` belong to.
    pub boot_id: Option<String>,
    /// The books; `None` in a store that nothing was ever committed to.
    pub rows: Option<Rows>,
    /// The policy that was live last.
    pub policy: Option<LastGood>,
    /// What was switched at run time.
    pub settings: Settings,
    /// What was held until then is in the rows of usage, that of leases still held too; in the boot of
    /// `boot_id`. `None`: only of leases that have ended.
    pub usage_counted: Option<At>,
}

/// One durable write.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// The counters after all commands of the batch.
    pub counters: Counters,
    /// The boot that deadlines belong to from here on, if it changed.
    pub boot_id: Option<String>,
    /// Durable leases that changed, in order; the last of the same id counts.
    pub leases: Vec<&'a Lease>,
    /// Leases to forget, also when they are among `leases`.
    pub pruned: Vec<LeaseId>,
    /// Cordons set and lifted, in order.
    pub cordons: Vec<(DeviceKey, Option<Cordon>)>,
    /// The policy that went live.
    pub policy: Option<LastGood>,
    /// All settings, if one changed.
    pub settings: Option<Settings>,
    /// What happened, in order of position.
    pub events: Vec<StoredEvent>,
    /// What is added to the usage of hours. What is too old, seen from the latest of them, is removed.
    pub usage: Vec<UsageRow>,
    /// With `usage`, all that was held until then is counted.
    pub usage_counted: Option<At>,
}

impl Batch<'_> {
    /// A batch that writes the counters and nothing else.
    pub fn new(counters: Counters) -> Self {
        Self {
            counters,
            boot_id: None,
            leases: Vec::new(),
            pruned: Vec::new(),
            cordons: Vec::new(),
            policy: None,
            settings: None,
            events: Vec::new(),
            usage: Vec::new(),
            usage_counted: None,
        }
    }
}

/// A policy that was live, to start with when the files on disk are bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastGood {
    /// Its generation.
    pub generation: u64,
    /// What it is compiled from.
    pub source: Arc<PolicySource>,
}

/// What people switch at run time and expect to find so after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether policy files are watched; `None` leaves it to the configuration.
    pub policy_watch: Option<SwitchedBy>,
    /// Policy settings above all others, each for a while.
    pub overrides: Vec<ApiOverride>,
    /// Policy files that are not tried again before they change.
    pub rejected: Option<RejectedFiles>,
    /// What is remembered of saved files that go back and forth.
    pub breaker: BreakerRow,
}

/// A policy setting that a caller of the API put above all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiOverride {
    /// The setting, such as `placement.strategy=spread`.
    pub text: String,
    /// Who.
    pub by: String,
    /// When it was set.
    pub at: WallMs,
    /// When it ends; it does not outlive the boot.
    pub until: Deadline,
}

/// Policy files that failed too often, or were live and were withdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedFiles {
    /// The hash of their bytes.
    pub hash: String,
    /// How many failures there were.
    pub attempt: u32,
    /// For people.
    pub why: String,
    /// When.
    pub at: WallMs,
}

/// Saved files that go back and forth; all times are of the present boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BreakerRow {
    /// Saved files rest until then.
    pub open_until: Option<Deadline>,
    /// How long they rest, or did the last time; zero if they never had to.
    pub rest: Ms,
    /// They rested, and what comes next is on trial.
    pub on_trial: bool,
    /// When the one on trial was applied.
    pub tried: Option<BootMs>,
    /// The file that changed first, the last time.
    pub culprit: Option<String>,
    /// When one switched back to a policy that was live shortly before.
    pub back: Vec<BootMs>,
    /// Policies that were live shortly before, by hash, each until then.
    pub recent: Vec<(String, BootMs)>,
}

/// A switch with who set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchedBy {
    /// On or off.
    pub enabled: bool,
    /// Who.
    pub by: String,
    /// When.
    pub at: WallMs,
}

/// The store cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A row that this version does not understand.
    #[error("row `{key}` of table `{table}` cannot be understood: {detail}")]
    Row {
        /// The table.
        table: &'static str,
        /// The row in it.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The storage below failed.
    #[error("the store cannot be read: {detail}")]
    Storage {
        /// What it said.
        detail: String,
    },
}

impl ReadError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Row { .. } => {
                "it is damaged or of a newer version: start the version that wrote it, or restore a copy"
            }
            Self::Storage { .. } => "check the disk, or restore a copy of the state directory",
        }
    }
}

/// A batch was not stored. Whoever wrote it must stop answering.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be written: {detail}")]
pub struct CommitError {
    /// What the storage below said.
    pub detail: String,
    /// What that comes to.
    pub cause: StorageFault,
}

/// What is wrong with the storage, as far as it matters to whoever has to put it right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageFault {
    /// No space is left, or the quota is used up.
    Full,
    /// The device does not do what it is told.
    Io,
    /// Something else.
    Other,
    /// The file system takes no writes.
    ReadOnly,
}

impl StorageFault {
    /// What the kernel's error comes to.
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::Full,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            // EIO has no kind of its own.
            _ if error.raw_os_error() == Some(EIO) => Self::Io,
            _ => Self::Other,
        }
    }

    /// What to do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Full => {
                "make room on the file system of the state directory, then start again; every lease that was answered is stored"
            }
            Self::Io => {
                "the disk fails: see `dmesg`; copy the state directory to a good one and start again with `--state-dir DIR`; every lease that was answered is stored as far as the disk still reads"
            }
            Self::ReadOnly => {
                "the file system of the state directory takes no writes, often because its disk failed: see `dmesg`, mount it for writing, then start again; every lease that was answered is stored"
            }
            Self::Other => {
                "check the disk of the state directory, then start again; every lease that was answered is stored"
            }
        }
    }
}

impl CommitError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        self.cause.hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errors_that_disks_have_are_told_apart() {
        for (errno, fault) in [
            (28, StorageFault::Full),
            (122, StorageFault::Full),
            (30, StorageFault::ReadOnly),
            (5, StorageFault::Io),
            (13, StorageFault::Other),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(StorageFault::of(&error), fault, "{error}");
        }
    }
}
