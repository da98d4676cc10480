//! The HTTP API as types: every body, path, header and error code that goes over the wire.
//!
//! Owns the words of the API, how sizes and durations are written, and which status an error has.
//! Must never know the core (`gpu-lease`) or the web framework: the server and the client convert at
//! their own edges. Timestamps in answers are RFC 3339 UTC strings, bytes are integers, lengths of time
//! are integers named `_ms`; requests take `"12GiB"` and `"30s"`.

mod bytes;
mod decode;
mod device;
mod event;
mod explain;
mod lease;
mod operator;
pub mod paths;
mod plan;
mod policy;
mod problem;
mod records;
mod reload;
mod request;
pub mod select;
mod span;
mod status;
mod text;

pub use bytes::{Bytes, ParseBytesError};
pub use decode::decode;
pub use device::{
    Cordon, Device, DeviceDrain, DeviceKind, DeviceLease, DeviceList, DeviceMemory, DeviceProcess,
    Freshness, Vendor,
};
pub use event::{EVENT_ASSETS_CHANGED, EVENT_RESET, Event};
pub use explain::{ExplainAt, ExplainOutcome, ExplainRequest, Explanation, RuleEffect};
pub use lease::{
    Allocation, Blocker, Cause, CauseSource, Drain, EndReason, Enforcement, Holder, HolderKind,
    LEASES_PER_PAGE_MAX, Lease, LeaseList, LeaseListQuery, LeaseQuery, LeaseState, Observed, Queue,
    Reclaim, ReclaimPhase, Waiting, Wanted,
};
pub use operator::{
    CordonRequest, DeviceDrainResult, DeviceFree, DrainRequest, EmergencyRequest, EmergencyResult,
    EndedLease, FenceAnswer, FenceCheck, Selection, Until,
};
pub use plan::{DeniedWaiter, Fate, LeaseFate, PolicyPlan, PolicyPlanRequest};
pub use policy::{
    Candidate, CandidateState, Diagnostic, ErrorState, OVERRIDES_MAX, OverridesRequest,
    POLICY_FILES_MAX, Policy, PolicyCheck, PolicyCheckRequest, PolicyFile, PolicyOverride,
    PolicyPut, PolicyRollbackRequest, PolicyText, RolledBack, RuleErrors, Settings, Severity,
};
pub use problem::{ErrorCode, Facts, Problem};
pub use records::{
    EVENTS_PER_ANSWER_MAX, History, HistoryQuery, Since, UsageBy, UsageQuery, UsageReport, UsageSum,
};
pub use reload::{
    Breaker, BreakerState, DrainingGeneration, ReloadCount, ReloadOutcome, ReloadPhases,
    ReloadQuery, ReloadRequest, ReloadResult, ReloadState, ReloadSwitch, ReloadTrigger, Switched,
    WatchState, WatchedPath,
};
pub use request::{AcquireRequest, ComputeMilli, Demand, DeviceCount, HolderRequest, Labels, Ttl};
pub use span::{ParseSpanError, Span};
pub use status::{
    BrokerState, DiskState, Health, LeaseCounts, PolicyStatus, SERVICE, Share, Status,
    TenantStanding,
};
pub use text::{Text, TextError};

/// Header that carries a lease's secret on renew, ready and release.
pub const LEASE_SECRET_HEADER: &str = "x-lease-secret";
/// Header that makes a repeated acquire answer the same lease.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
/// Longest `Idempotency-Key`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// Largest body of any request, in bytes: a policy check, which carries whole files.
pub const BODY_BYTES_MAX: usize = 2 << 20;
/// Largest body of a request that carries no files, in bytes.
pub const PLAIN_BODY_BYTES_MAX: usize = 64 << 10;

/// Environment variable with the id of the lease that a job runs under.
pub const ENV_LEASE: &str = "GPU_MANAGER_LEASE";
/// Environment variable with the fence of the lease that a job runs under.
pub const ENV_FENCE: &str = "GPU_MANAGER_FENCE";
