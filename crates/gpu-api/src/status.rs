//! The broker at a glance.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What [`Status::service`] says; tells this broker from another server on its port.
pub const SERVICE: &str = "gpu-manager";

/// Answer of `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Always [`SERVICE`].
    pub service: String,
    /// The version of the broker.
    pub version: String,
    /// Whether it grants.
    pub state: BrokerState,
    /// Why it started safe, if it did.
    #[serde(default)]
    pub safe_start: Option<String>,
    /// Loopback callers may do everything, and edits apply at once.
    pub dev: bool,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started_at: String,
    /// How long it runs, in milliseconds.
    pub uptime_ms: u64,
    /// Where it listens: `http://` and `unix:` addresses.
    pub listen: Vec<String>,
    /// Where its state is; absent for one that keeps none.
    pub state_dir: Option<String>,
    /// The caller as the broker verified it, or `anonymous`.
    pub caller: String,
    /// The caller may use operator verbs.
    pub admin: bool,
    /// The policy in force.
    pub policy: PolicyStatus,
    /// Devices known.
    pub devices: u32,
    /// Devices that can be granted: leasable, not lost, not cordoned.
    pub devices_open: u32,
    /// Leases by state.
    pub leases: LeaseCounts,
    /// How the tenants of the policy stand, by name and user.
    pub tenants: Vec<TenantStanding>,
    /// What an operator should know, one line each.
    pub warnings: Vec<String>,
}

/// Whether a broker grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BrokerState {
    /// Waits for the first inventory: reads and renewals only.
    Recovering,
    /// Started safe, after crashes: reads, renewals and releases only, until it is started again.
    Safe,
    /// Grants.
    Serving,
    /// On its way out: no new grants.
    Stopping,
}

/// The policy in force, briefly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyStatus {
    /// Rises with every switch.
    pub generation: u64,
    /// Hash of its source.
    pub hash: String,
    /// Where its files are.
    pub dirs: Vec<String>,
    /// A saved file is loaded by itself.
    pub watched: bool,
    /// How the files on disk compare.
    pub disk: DiskState,
    /// Why disk and live differ, in one line.
    pub error_state: Option<String>,
    /// Hash of the plan that waits for a confirmation.
    pub pending: Option<String>,
}

/// How a tenant stands, or one user of it where each is a tenant of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantStanding {
    /// Its name.
    pub name: String,
    /// The user, where each is a tenant of its own.
    pub user: Option<String>,
    /// Its part of a fair share, relative to the others.
    pub weight: u32,
    /// What it holds.
    pub held: Share,
    /// How many requests of it wait.
    pub waiting: u32,
    /// What it had of late, in byte-seconds; what is a half-life ago counts half.
    pub used: u64,
}

/// What is held by some leases together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Share {
    /// How many leases.
    pub leases: u32,
    /// On how many devices, each counted as often as it is granted.
    pub devices: u32,
    /// Bytes granted.
    pub memory: u64,
}

/// How the policy files on disk compare with the policy in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// They are something else that was not loaded.
    Differs,
    /// They do not compile.
    Failing,
    /// They compile; what they would do to held leases waits for a confirmation.
    Pending,
    /// They are what is in force.
    Same,
    /// They have not been read since the start.
    Unknown,
}

/// Leases by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseCounts {
    /// Not granted yet.
    pub waiting: u64,
    /// Granted.
    pub active: u64,
    /// Granted, and asked to stop.
    pub draining: u64,
    /// Ended; memory not proven free.
    pub reclaiming: u64,
    /// Over, and still remembered.
    pub ended: u64,
}

/// Answer of `GET /healthz` and `GET /readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Whether the broker grants.
    pub status: BrokerState,
}
