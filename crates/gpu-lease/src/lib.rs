//! The books: which lease holds what on which device, who waits, and why.
//!
//! Owns ids, devices, requests, leases, policies as typed data, placement, queue order, drain and
//! reclaiming, as one state machine: [`Books::apply`] takes a stamped command and answers what changed.
//! Must never know a clock, randomness, async, files, HTTP, NVML or TOML; `no_std` proves it.
#![no_std]

extern crate alloc;

mod books;
pub mod canary;
mod capacity;
mod command;
mod device;
mod fair;
mod ids;
mod lease;
mod ledger;
mod plan;
mod policy;
mod request;
mod size;
mod tenancy;
mod time;
mod why;

pub use books::{Books, ENDED_KEPT_MAX, ENDED_KEPT_MS};
pub use capacity::{DeviceState, FRESH_MS, Usage};
pub use command::{
    Answer, Changes, Command, Cordon, Counters, Denial, DrainNotice, Effect, Emergency, Event,
    EventKind, Expect, Explanation, LeaseError, Outcome, Rows, Signal, Switch, Switched, Targets,
    TenantStanding, Unexpected, UnknownDevice,
};
pub use device::{Device, DeviceKind, DeviceProcess, Reading, Telemetry, Vendor};
pub use ids::{DeviceId, DeviceKey, Fence, HostId, LeaseId, ParseLeaseIdError, Process};
pub use lease::{
    Allocation, Deadline, Drain, DrainSource, EndReason, Ending, Grant, Lease, Phase, Reclaim,
    ReclaimStage, Wait,
};
pub use ledger::{Breach, Change, Ledger};
pub use plan::{Fate, LeaseFate, Plan, Planned, Refusal, plan};
pub use policy::{
    Class, Confirm, Defaults, DeviceRule, DeviceSettings, Held, NoRules, OnShrink, Placement,
    Policy, PolicySource, QueueOrder, QueueSettings, ReclaimSettings, ReloadScope, ReloadSettings,
    RuleErrors, RuleHit, Rules, STANDARD_CLASS, Sets, Share, SignalRule, Standing, Strategy,
    Tenant, TenantKey, Verdict,
};
pub use request::{Amount, Holder, HolderKind, Idempotency, Request, Select};
pub use size::Bytes;
pub use time::{At, BootMs, Ms, WallMs};
pub use why::{Blocker, Cause, DeviceObstacle, Obstacle, Why};
