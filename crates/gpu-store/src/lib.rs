//! Durable rows behind one trait: a redb file, and memory for what need not last.
//!
//! Owns how rows are laid out, their format version, the history of events and what happens to a
//! file that cannot be trusted: it is refused, never read as empty. One suite of tests,
//! `tests/store/conformance.rs`, holds for every [`Store`].
//! Must never know why a lease was granted.

mod check;
#[cfg(feature = "crash-disk")]
mod crash_disk;
mod event;
mod history;
mod memory;
mod redb_store;
mod store;
mod stored;
mod usage;

pub use check::{CheckReport, Fault};
#[cfg(feature = "crash-disk")]
pub use crash_disk::CrashDisk;
pub use event::{
    EVENTS_KEPT, EVENTS_PER_PAGE_MAX, EVENTS_PER_TRIM, EventId, EventPage, EventPosition,
    ParseEventIdError, StoreId, StoredEvent,
};
pub use history::{EVENTS_PER_LOOK_MAX, EventFilter, FoundEvents};
pub use memory::MemoryStore;
pub use redb_store::{
    AsOf, Compacted, FORMAT, OpenError, RedbStore, Remains, RemainsReport, StoreSnapshot,
    TableRemains,
};
pub use store::{
    ApiOverride, Batch, BreakerRow, CommitError, LastGood, ReadError, RejectedFiles, Settings,
    StorageFault, Store, Stored, SwitchedBy,
};
pub use usage::{
    Hour, USAGE_KEPT_HOURS, USAGE_OTHER, USAGE_ROWS_PER_HOUR_MAX, USAGE_ROWS_PER_TRIM,
    USAGE_ROWS_PER_USER_MAX, Usage, UsageKey, UsageRow,
};
