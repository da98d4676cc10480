//! What a reload is asked and what it answers: one result object for every trigger.

use std::fmt;
use std::time::Duration;

use gpu_lease::{LeaseId, Ms, Plan, WallMs};
use gpu_policy::{Diagnostic, Diagnostics};

use crate::handle::Unavailable;

/// Who wanted a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trigger {
    /// A caller of the HTTP API, the command line among them.
    Api,
    /// A saved file.
    File,
    /// A setting from above the files was set, cleared, or its time was over.
    Override,
    /// A policy was taken back, by hand or because its rules failed.
    Rollback,
    /// SIGHUP.
    Signal,
}

impl Trigger {
    /// The word for it in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::File => "file",
            Self::Override => "override",
            Self::Rollback => "rollback",
            Self::Signal => "signal",
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long the parts of a reload took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// From the first sign of a change until it was quiet; for a saved file only.
    pub settle: Option<Duration>,
    /// Reading the files; not where the caller brought them.
    pub read: Option<Duration>,
    /// Text to policy.
    pub compile: Duration,
    /// What it means for what is held and waits.
    pub plan: Duration,
    /// Until it was live and durable.
    pub apply: Duration,
    /// What changed first, where a watcher saw that.
    pub path: Option<String>,
}

/// What a watcher knows of a change before anybody looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchTiming {
    /// From the first sign of a change until it was quiet.
    pub settle: Option<Duration>,
    /// Reading the files.
    pub read: Option<Duration>,
    /// What changed first.
    pub path: Option<String>,
}

/// What whoever wants a reload expects of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReloadOptions {
    /// The hash of the plan that is confirmed: see [`ReloadResult::plan_hash`].
    pub confirm: Option<String>,
    /// The hash of the policy that must be live.
    pub expect_live: Option<String>,
    /// The hash of the plan that it must be; that confirms it too.
    pub expect_plan: Option<String>,
    /// The id that its result is to have, from [`crate::Reloader::new_id`]; another one if it is not said.
    pub id: Option<u64>,
}

/// What became of one reload.
#[derive(Debug)]
pub struct ReloadResult {
    /// Counts the reloads of this broker's life, from 1.
    pub id: u64,
    /// Who wanted it.
    pub trigger: Trigger,
    /// The caller, where there is one.
    pub by: String,
    /// When it began.
    pub at: WallMs,
    /// How long it took.
    pub took: Ms,
    /// How long its parts took.
    pub phases: Phases,
    /// The files that it is made of.
    pub files: Vec<String>,
    /// The policy before.
    pub hash_before: String,
    /// The policy that the files say, if they say one.
    pub hash_after: Option<String>,
    /// What differs from the policy before, a line each.
    pub changes: Vec<String>,
    /// What it means for leases and waiters: what was done if it was applied, what would be if not.
    pub plan: Option<Plan>,
    /// Names the plan and the policy that it is of.
    pub plan_hash: Option<String>,
    /// Leases that ended meanwhile because their process is proven gone.
    pub stale: Vec<LeaseId>,
    /// What happened.
    pub outcome: ReloadOutcome,
}

/// What a reload did.
#[derive(Debug)]
pub enum ReloadOutcome {
    /// Another policy is live.
    Applied {
        /// Its generation.
        generation: u64,
    },
    /// Something else is true than was expected; nothing changed.
    Moved {
        /// The hash of the policy that is live.
        live: String,
    },
    /// The plan asks so much of what is held that somebody must confirm it, by its hash.
    NeedsConfirmation,
    /// The files have errors; the policy before stays.
    Refused {
        /// All of them.
        diagnostics: Diagnostics,
        /// How many failures there were since the last good save; a save of the same bytes is no other.
        attempt: u32,
        /// So many that the files are not looked at again before they change or somebody asks.
        rejected: bool,
    },
    /// These files were rejected before, for the reason given, and have not changed since.
    Rejected {
        /// What was wrong with them.
        why: String,
    },
    /// Saved files went back and forth; they are not applied for a while. Somebody may ask.
    Resting {
        /// When saved files are applied again.
        until: WallMs,
    },
    /// A policy was withdrawn because its rules failed; the one before is live again.
    RolledBack {
        /// The generation that the one before is now.
        generation: u64,
        /// Why.
        why: String,
    },
    /// The broker did not take it.
    Stopped(Unavailable),
    /// The files say what is live.
    Unchanged,
    /// The files cannot be read, for the reason given; the policy before stays.
    Unreadable(String),
}

impl ReloadOutcome {
    /// The word for it in every interface.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Applied { .. } => "applied",
            Self::Moved { .. } => "moved",
            Self::NeedsConfirmation => "needs_confirmation",
            Self::Refused {
                rejected: false, ..
            } => "refused",
            Self::Refused { rejected: true, .. } | Self::Rejected { .. } => "rejected",
            Self::Resting { .. } => "resting",
            Self::RolledBack { .. } => "rolled_back",
            Self::Stopped(_) => "stopped",
            Self::Unchanged => "unchanged",
            Self::Unreadable(_) => "unreadable",
        }
    }

    /// Whether what was asked for is live, or was before.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Applied { .. } | Self::Unchanged)
    }
}

/// What a good set of files says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its hash.
    pub hash: String,
    /// What differs from the live policy, a line each.
    pub changes: Vec<String>,
    /// What is odd about them.
    pub warnings: Vec<Diagnostic>,
}

/// What a good set of files would mean now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planning {
    /// The hash of its policy.
    pub hash: String,
    /// What differs from the live policy, a line each.
    pub changes: Vec<String>,
    /// What it would mean for leases and waiters.
    pub plan: Plan,
    /// Names the plan and the policy that it is of.
    pub plan_hash: String,
    /// The revision of the rows that it was made on.
    pub revision: u64,
    /// The hash of the policy that is live.
    pub live: String,
    /// Whether a saved file that says this waits for a confirmation.
    pub confirm_needed: bool,
}
