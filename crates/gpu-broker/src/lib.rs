//! The one loop that owns the books: clock, bounded inbox, durable commits, effects, and what readers see.
//!
//! Every change goes through [`Handle`], is stamped with the time of one clock, made durable in a batch
//! and only then answered and published. Readers look at what was last published and never enter the loop.
//! Must never know HTTP, the grammar of policies, drivers, or how files are watched.

mod attribute;
mod broker;
mod clock;
mod effects;
mod fail_point;
mod handle;
mod inbox;
mod life;
mod process;
mod reload;
mod start;
mod turn;
mod usage;
mod view;

pub use broker::{Broker, Config, Started};
pub use clock::{BootClock, Clock, boot_id};
pub use effects::{ReadNow, Signals};
pub use gpu_policy::{
    Diagnostic, Diagnostics, Override, SelectError, Severity, SourceFile, parse_select,
};
pub use gpu_store::{
    ApiOverride, EVENTS_PER_PAGE_MAX, EventFilter, EventId, EventPage, EventPosition, FoundEvents,
    Hour, ParseEventIdError, ReadError, Settings, StoreId, StoredEvent, SwitchedBy,
    USAGE_KEPT_HOURS, Usage, UsageKey, UsageRow,
};
pub use handle::{
    AbandonGuard, AcquireError, DeviceCommandError, Follower, Handle, LeaseCommandError,
    Unavailable,
};
pub use life::Life;
pub use process::{HostProcesses, ProcessHandle, Processes, RegisterError, Stat, register_process};
pub use reload::{
    Breaker, Candidate, CandidateState, Checked, OVERRIDE_TTL_MAX, OVERRIDES_MAX, Phases, Planning,
    ReloadOptions, ReloadOutcome, ReloadResult, ReloadStart, ReloadState, Reloader, RollbackError,
    SetOverrideError, Trigger, WatchTiming,
};
pub use start::{StartError, StartPolicy};
pub use turn::Fatal;
pub use usage::{UsageBasis, usage_so_far};
pub use view::{Occupied, Snapshot};
