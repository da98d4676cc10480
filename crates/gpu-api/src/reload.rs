//! Reloading the policy: trigger, result, switch.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::policy::Diagnostic;
use crate::text::Text;

/// Body of `POST /v1/hot-reload`. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadRequest {
    /// Hash of the plan that is confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm: Option<Text<128>>,
}

/// Answer of `POST /v1/hot-reload`, the same whatever triggered it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadResult {
    /// What came of it.
    pub outcome: ReloadOutcome,
    /// What came of it, in one line.
    pub summary: String,
    /// What asked for it.
    pub trigger: ReloadTrigger,
    /// When it was asked for.
    pub at: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The policy in force afterwards.
    pub generation: u64,
    /// The policy in force before.
    pub previous_generation: u64,
    /// Hash of the source that was read; empty if it does not compile.
    pub hash: String,
    /// The files that were read.
    pub files: Vec<String>,
    /// What differs, one setting a line.
    pub changes: Vec<String>,
    /// What becomes of the leases that the new policy no longer allows.
    pub leases: Vec<LeaseFate>,
    /// Leases whose registered process was found gone.
    pub stale: Vec<String>,
    /// Hash of the plan, to confirm it.
    pub plan: Option<String>,
    /// Distinct saves and triggers that failed since the last good one.
    pub attempt: u32,
    /// All that is wrong with the files.
    pub diagnostics: Vec<Diagnostic>,
}

/// What came of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReloadOutcome {
    /// The new policy is in force.
    Applied,
    /// The files do not compile; the old policy stays.
    Failed,
    /// The plan would drain or end leases, and waits for a confirmation.
    NeedsConfirmation,
    /// The files do not compile, and are not tried again until they change.
    Rejected,
    /// The policy in force is what the files say.
    Unchanged,
}

/// What asked for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReloadTrigger {
    /// `POST /v1/hot-reload`.
    Api,
    /// A file changed.
    File,
    /// SIGHUP.
    Signal,
    /// The broker started.
    Start,
}

/// What becomes of one lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseFate {
    /// The lease.
    pub lease: String,
    /// Its holder's name.
    pub holder: String,
    /// What becomes of it.
    pub fate: Fate,
    /// The rule that says so.
    pub reason: String,
    /// When a drain ends by force.
    pub deadline_at: Option<String>,
}

/// What becomes of a lease that the new policy no longer allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It has until a deadline.
    Drain,
    /// It ended.
    Force,
    /// It stays.
    Keep,
}

/// Answer of `GET` and `PUT /v1/hot-reload`: the policy watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadState {
    /// A saved file is loaded by itself.
    pub enabled: bool,
    /// Who decided that: a flag, the configuration, the listener, or a switch at run time.
    pub why: String,
    /// The paths that are watched.
    pub watching: Vec<String>,
    /// Too many switches to and fro: file triggers rest until this time.
    pub breaker_until: Option<String>,
    /// The last one.
    pub last: Option<ReloadResult>,
    /// How the watch is doing; `null` where there are no policy files to watch.
    pub watch: Option<WatchState>,
}

/// How the watch of the policy files is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchState {
    /// `inotify`: events of the file system, and a poll; `poll`: the poll alone.
    pub backend: String,
    /// Why it is the poll alone, if that was not asked for.
    pub warning: Option<String>,
    /// The directories that the file system reports on.
    pub paths: Vec<String>,
    /// What is in the way of a complete set of files.
    pub troubles: Vec<String>,
    /// When the last event of the file system came that can mean a change.
    pub last_event_at: Option<String>,
    /// What that event was about, where it says.
    pub last_event_path: Option<String>,
    /// Sets of files that were read because they had changed, since the start.
    pub changed: u64,
    /// Events of the file system that cannot mean a change, and saves of the same content.
    pub ignored: u64,
}

/// Body of `PUT /v1/hot-reload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReloadSwitch {
    /// Whether a saved file is to be loaded by itself.
    pub enabled: bool,
}
