//! Reloading the policy: trigger, result, history, switch.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::plan::{DeniedWaiter, LeaseFate};
use crate::policy::{Candidate, Diagnostic, RuleErrors};
use crate::span::Span;
use crate::text::Text;

/// Body of `POST /v1/hot-reload`. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadRequest {
    /// Hash of the plan that is confirmed: it is applied unless it has grown since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm: Option<Text<128>>,
    /// Hash of the plan that is expected: with another one nothing changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_plan: Option<Text<128>>,
}

/// Query of whatever loads a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ReloadQuery {
    /// How long to wait for the result, such as `30s`; it goes on when that is over.
    #[param(value_type = Option<String>)]
    pub timeout: Option<Span>,
}

/// Answer of whatever loads a policy, the same whatever triggered it. Its status is [`ReloadOutcome::status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadResult {
    /// Names this reload in the history and the log.
    pub id: String,
    /// What came of it.
    pub outcome: ReloadOutcome,
    /// What came of it, in one line.
    pub summary: String,
    /// What asked for it.
    pub trigger: ReloadTrigger,
    /// Who asked for it; empty where nobody did.
    pub by: String,
    /// When it was asked for.
    pub at: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How long each part of it took.
    pub phases: ReloadPhases,
    /// The policy in force afterwards.
    pub generation: u64,
    /// The policy in force before.
    pub previous_generation: u64,
    /// Hash of the policy in force before.
    pub hash_before: String,
    /// Hash of the source that was read; empty if it does not compile.
    pub hash: String,
    /// The files that were read.
    pub files: Vec<String>,
    /// What differs, one setting a line.
    pub changes: Vec<String>,
    /// What becomes of held leases, by id. Leases that are not named are not touched.
    pub leases: Vec<LeaseFate>,
    /// Waiters that the new policy refuses, by id.
    pub denied: Vec<DeniedWaiter>,
    /// Leases whose registered process was found gone.
    pub stale: Vec<String>,
    /// Hash of the plan, to confirm it.
    pub plan: Option<String>,
    /// Distinct saves and triggers that failed since the last good one.
    pub attempt: u32,
    /// All that is wrong with the files.
    pub diagnostics: Vec<Diagnostic>,
}

/// How long the parts of a reload took, in microseconds. A part that there was none of is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadPhases {
    /// From the first sign of a change until the files were quiet.
    pub settle_us: Option<u64>,
    /// Reading the files.
    pub read_us: Option<u64>,
    /// Compiling them.
    pub compile_us: u64,
    /// Planning.
    pub plan_us: u64,
    /// Switching, until it was durable.
    pub apply_us: u64,
    /// What changed first.
    pub path: Option<String>,
}

/// What came of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReloadOutcome {
    /// The new policy is in force.
    Applied,
    /// The files do not compile, or cannot be read; the old policy stays.
    Failed,
    /// Something else is true than the caller expected; nothing changed.
    Moved,
    /// The plan would drain or end leases, and waits for a confirmation.
    NeedsConfirmation,
    /// The files do not compile, and are not tried again until they change.
    Rejected,
    /// Saved files switched to and fro too often, and rest.
    Resting,
    /// A policy that was in force was withdrawn.
    RolledBack,
    /// It goes on; the history says later what came of it.
    Running,
    /// The policy in force is what the files say.
    Unchanged,
}

/// What asked for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReloadTrigger {
    /// A call of the API.
    Api,
    /// A file changed.
    File,
    /// An override was set, was cleared, or is over.
    Override,
    /// A rollback was asked for, or errors of rules forced it.
    Rollback,
    /// SIGHUP.
    Signal,
}

/// Answer of `GET` and `PUT /v1/hot-reload`: the policy watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadState {
    /// A saved file is loaded by itself.
    pub enabled: bool,
    /// Who decided that: a flag, the configuration, the listener, or a switch at run time.
    pub why: String,
    /// The switch at run time that decides it.
    pub switched: Option<Switched>,
    /// The broker is in development mode: plans are never confirmed.
    pub dev: bool,
    /// The paths that are watched.
    pub watching: Vec<String>,
    /// What is on disk is not what is in force.
    pub on_disk_differs: bool,
    /// Since when it is not.
    pub error_since: Option<String>,
    /// What is on disk, if it is not what is in force.
    pub candidate: Option<Candidate>,
    /// Whether saved files rest because they switched to and fro.
    pub breaker: Breaker,
    /// The last reload.
    pub last: Option<ReloadResult>,
    /// The last reloads, the newest first.
    pub history: Vec<ReloadResult>,
    /// How many there were since the start, by trigger and outcome.
    pub counts: Vec<ReloadCount>,
    /// Generations that are not in force any more and whose leases are still draining, the oldest first.
    pub draining_generations: Vec<DrainingGeneration>,
    /// The rules of the policy in force that failed.
    pub erring: Vec<RuleErrors>,
    /// How the watch is doing; `null` where there are no policy files to watch.
    pub watch: Option<WatchState>,
}

/// Who switched the policy watch, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Switched {
    /// Who.
    pub by: String,
    /// When.
    pub at: String,
}

/// Whether saved files rest because they switched the policy to and fro.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Breaker {
    /// How it stands.
    pub state: BreakerState,
    /// Until when files rest.
    pub until: Option<String>,
    /// What changed first, the last time.
    pub culprit: Option<String>,
}

/// How a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Saved files are loaded.
    Closed,
    /// The next saved file decides.
    HalfOpen,
    /// Saved files rest.
    Open,
}

/// How many reloads of one trigger had one outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadCount {
    /// What asked for them.
    pub trigger: ReloadTrigger,
    /// What came of them.
    pub outcome: ReloadOutcome,
    /// How many.
    pub count: u64,
}

/// A generation that is not in force any more, with leases that it granted and that a policy asked to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainingGeneration {
    /// The generation.
    pub generation: u64,
    /// The leases.
    pub leases: Vec<String>,
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
    /// Every path that is looked at.
    pub files: Vec<WatchedPath>,
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

/// One path that is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchedPath {
    /// The path.
    pub path: String,
    /// `inotify` or `poll`.
    pub backend: String,
    /// When something was last seen there.
    pub last_event_at: Option<String>,
    /// What was seen, as one word or two.
    pub last_event: Option<String>,
}

/// Body of `PUT /v1/hot-reload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReloadSwitch {
    /// Whether a saved file is to be loaded by itself.
    pub enabled: bool,
}

impl ReloadOutcome {
    /// Every outcome, in alphabetical order.
    pub const ALL: [Self; 9] = [
        Self::Applied,
        Self::Failed,
        Self::Moved,
        Self::NeedsConfirmation,
        Self::Rejected,
        Self::Resting,
        Self::RolledBack,
        Self::Running,
        Self::Unchanged,
    ];

    /// The HTTP status of a [`ReloadResult`] with this outcome.
    pub const fn status(self) -> u16 {
        match self {
            Self::Applied | Self::RolledBack | Self::Unchanged => 200,
            Self::Running => 202,
            Self::NeedsConfirmation | Self::Resting => 409,
            Self::Moved => 412,
            Self::Failed | Self::Rejected => 422,
        }
    }

    /// The outcome as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Failed => "failed",
            Self::Moved => "moved",
            Self::NeedsConfirmation => "needs_confirmation",
            Self::Rejected => "rejected",
            Self::Resting => "resting",
            Self::RolledBack => "rolled_back",
            Self::Running => "running",
            Self::Unchanged => "unchanged",
        }
    }
}

impl ReloadTrigger {
    /// Every trigger, in alphabetical order.
    pub const ALL: [Self; 5] = [
        Self::Api,
        Self::File,
        Self::Override,
        Self::Rollback,
        Self::Signal,
    ];

    /// The trigger as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::File => "file",
            Self::Override => "override",
            Self::Rollback => "rollback",
            Self::Signal => "signal",
        }
    }
}

impl Breaker {
    /// Saved files are loaded.
    pub fn closed() -> Self {
        Self {
            state: BreakerState::Closed,
            until: None,
            culprit: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_written_as_they_are_serialised() {
        let json = |word: &str| format!("\"{word}\"");
        for outcome in ReloadOutcome::ALL {
            let text = serde_json::to_string(&outcome).expect("a string");
            assert_eq!(text, json(outcome.as_str()));
        }
        for trigger in ReloadTrigger::ALL {
            let text = serde_json::to_string(&trigger).expect("a string");
            assert_eq!(text, json(trigger.as_str()));
        }
    }
}
