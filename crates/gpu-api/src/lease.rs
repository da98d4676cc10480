//! A lease as the API shows it, and the lists of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::span::Span;
use crate::text::Text;

/// Most leases of one answer of `GET /v1/leases`.
pub const LEASES_PER_PAGE_MAX: u32 = 1000;

/// One request for devices, from its arrival to 24 hours after its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// `l-` and twelve characters.
    pub id: String,
    /// Rises with every change; what `after` is compared with.
    pub revision: u64,
    /// Where it stands.
    pub state: LeaseState,
    /// Why it ended; set from `reclaiming` on.
    pub end_reason: Option<EndReason>,
    /// The number of the grant, rising for ever; absent before the grant.
    pub fence: Option<u64>,
    /// Its process lives but its heartbeats stopped.
    pub unresponsive: bool,
    /// How taking the memory back stands, after the end.
    pub reclaim: Option<Reclaim>,
    /// Who holds it.
    pub holder: Holder,
    /// The class of policy.
    pub class: String,
    /// Effective priority; higher runs first.
    pub priority: i64,
    /// What was asked for.
    pub wanted: Wanted,
    /// What is held; empty before the grant.
    pub allocations: Vec<Allocation>,
    /// Ready to export by the job; empty before the grant.
    pub env: BTreeMap<String, String>,
    /// Why it waits, while it does.
    pub waiting: Option<Waiting>,
    /// The holder has not said that it is ready.
    pub loading: bool,
    /// The policy in force when it was granted, or asked for.
    pub policy_generation: u64,
    /// When it was asked for.
    pub created_at: String,
    /// When it was granted.
    pub granted_at: Option<String>,
    /// When it expires without a heartbeat.
    pub expires_at: Option<String>,
    /// Milliseconds until then.
    pub remaining_ms: Option<u64>,
    /// Longest time between heartbeats, in milliseconds.
    pub ttl_ms: u64,
    /// When it ends whatever the heartbeats, if it has a longest hold.
    pub hold_until: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
    /// Who wants it back, and by when.
    pub drain: Option<Drain>,
    /// What was read on its devices.
    pub observed: Option<Observed>,
    /// How far the grant is more than a promise.
    pub enforcement: Enforcement,
    /// Free words of the holder.
    pub labels: BTreeMap<String, String>,
    /// Only in the answer that created it: what renew, ready and release need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// Where a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Not granted yet.
    Waiting,
    /// Granted.
    Active,
    /// Granted, and asked to stop by a deadline.
    Draining,
    /// Ended; its memory is not proven free.
    Reclaiming,
    /// Over.
    Ended,
}

/// Why a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Nobody waited for it any more.
    Cancelled,
    /// Policy refused it.
    Denied,
    /// A device of it is gone.
    DeviceLost,
    /// An emergency release.
    Emergency,
    /// No heartbeat.
    Expired,
    /// The host started anew.
    HostRebooted,
    /// Its longest hold is over.
    MaxHold,
    /// A new policy does not allow it.
    Policy,
    /// A request of higher priority took its place.
    Preempted,
    /// Its registered process is proven gone.
    ProcessGone,
    /// Its holder gave it back.
    Released,
    /// An admin ended it.
    Revoked,
    /// It was not granted in time.
    WaitTimeout,
}

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// A name for people.
    pub name: String,
    /// How the broker knows that it lives.
    pub kind: HolderKind,
    /// The tenant it belongs to.
    pub tenant: Option<String>,
    /// The user as the broker verified it, or `anonymous`.
    pub user: String,
    /// Its process id, as declared.
    pub pid: Option<u32>,
}

/// How the broker knows that a holder lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HolderKind {
    /// A browser: heartbeats only, never signalled.
    Page,
    /// A process of the broker's host, owned by the verified caller.
    Process,
    /// Anything else: heartbeats only.
    #[default]
    Remote,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Wanted {
    /// How many devices.
    pub devices: u32,
    /// Bytes of each; absent for whole devices.
    pub memory: Option<u64>,
    /// Whole devices.
    pub exclusive: bool,
    /// Which devices may serve.
    pub select: Option<String>,
    /// Longest hold, in milliseconds.
    pub max_hold_ms: Option<u64>,
}

/// What a lease holds of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Allocation {
    /// The device's id.
    pub device: String,
    /// The device's product name; empty while the broker does not know the device.
    pub name: String,
    /// The device's place in PCI order; 0 while the broker does not know the device.
    pub index: u32,
    /// Bytes granted.
    pub memory: u64,
    /// The device is the lease's alone.
    pub exclusive: bool,
    /// Thousandths of its compute.
    pub compute: Option<u32>,
}

/// Why a lease waits, in the words that every front end shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waiting {
    /// Place in the queue, from 1.
    pub position: u32,
    /// The reason as one word: `awaiting_reading`, `behind_head`, `capacity`, `cordoned`, `device_lost`,
    /// `held_by_rule`, `held_for_head`, `load_slot`, `no_device`, `quota`, `recovering` or
    /// `safe_start`.
    pub reason_code: String,
    /// The reason as a sentence.
    pub reason: String,
    /// Who is in the way.
    pub blockers: Vec<Blocker>,
    /// When a rule that holds it back will look different.
    pub eligible_at: Option<String>,
    /// Milliseconds until a grant is expected, where that can be said.
    pub eta_ms: Option<u64>,
}

/// Somebody or something that holds what a waiter needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Blocker {
    /// The lease in the way; absent for a foreign process.
    pub lease: Option<String>,
    /// Its holder's name, or the process.
    pub holder: String,
    /// The device it is on.
    pub device: Option<String>,
    /// Bytes it holds there.
    pub memory: Option<u64>,
    /// When it ends at the latest, where that is known.
    pub until: Option<String>,
}

/// Who wants a lease back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// Each on its own; the earliest deadline rules.
    pub causes: Vec<Cause>,
}

/// One wish to have a lease back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cause {
    /// What kind of wish.
    pub source: CauseSource,
    /// For the holder.
    pub reason: String,
    /// The user, rule or lease that wishes it.
    pub by: Option<String>,
    /// When the lease is ended by force.
    pub deadline_at: String,
    /// Milliseconds until then.
    pub remaining_ms: u64,
}

/// What kind of wish drains a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CauseSource {
    /// Its device goes.
    Device,
    /// An admin.
    Operator,
    /// A new policy.
    Policy,
    /// A request of higher priority.
    Preemption,
}

/// What was read on the devices of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Observed {
    /// Bytes in use by the holder at the last reading.
    pub memory: u64,
    /// Most bytes ever read; absent where no record is kept.
    pub peak: Option<u64>,
}

/// How far a grant is more than a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// Nothing is read: it rests on the books alone.
    Advisory,
    /// The card keeps the holder within its grant.
    Enforced,
    /// Use is read and charged.
    Observed,
}

/// How taking memory back stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reclaim {
    /// How far it is.
    pub phase: ReclaimPhase,
    /// Why it is not done.
    pub reason: String,
    /// Since when it is in this phase.
    pub since: String,
}

/// How far taking memory back is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReclaimPhase {
    /// Not believed free until an admin says so or readings show it.
    Quarantined,
    /// The holder does not go, or may not be signalled.
    Stuck,
    /// Waiting for proof.
    Verifying,
}

/// Answer of `GET /v1/leases`, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseList {
    /// Up to a page of leases.
    pub leases: Vec<Lease>,
    /// What to send as `after` for the next page; absent on the last.
    pub next: Option<String>,
}

/// Query of `GET /v1/leases`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct LeaseListQuery {
    /// Leases of this answer: 1 to 1000, and 1000 if absent.
    pub limit: Option<u32>,
    /// The `next` of the page before.
    #[param(value_type = Option<String>)]
    pub after: Option<Text<64>>,
    /// Leave out those that have ended.
    pub live: bool,
}

/// Query of `GET /v1/leases/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct LeaseQuery {
    /// How long to wait for a change, such as `30s`.
    #[param(value_type = Option<String>)]
    pub wait: Option<Span>,
    /// The revision that the caller has seen: a newer one is answered at once.
    pub after: Option<u64>,
}

/// Answer of `GET /v1/queue`, in the order of service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Queue {
    /// The first waiters, each with its reason; up to 1000.
    pub waiters: Vec<Lease>,
    /// How many wait in all.
    pub total: u64,
}

impl Lease {
    /// Whether it holds devices by right: its fence is current.
    pub fn is_granted(&self) -> bool {
        matches!(self.state, LeaseState::Active | LeaseState::Draining)
    }

    /// Whether its fence is no longer current, and never will be.
    pub fn is_over(&self) -> bool {
        matches!(self.state, LeaseState::Reclaiming | LeaseState::Ended)
    }
}

impl Drain {
    /// The cause whose deadline rules.
    pub fn first(&self) -> Option<&Cause> {
        self.causes.iter().min_by_key(|cause| cause.remaining_ms)
    }
}
