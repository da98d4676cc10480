//! What can be asked about reloads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use gpu_lease::{RuleErrors, WallMs};
use gpu_policy::SourceFile;
use gpu_store::{ApiOverride, LastGood, Settings, SwitchedBy};

use super::result::{ReloadResult, Trigger};

/// Results that are kept for those who ask.
const HISTORY_MAX: usize = 32;

/// What reloads begin with.
#[derive(Clone, Debug, Default)]
pub struct ReloadStart {
    /// Whether saved files are applied.
    pub watching: bool,
    /// Dev mode: nothing waits for a confirmation.
    pub dev: bool,
    /// What was stored beside the rows; see [`crate::Started::reload_start`].
    pub settings: Settings,
    /// Why the last good policy is live instead of the files.
    pub degraded: Option<String>,
    /// The policy that was live when the broker ended, if the start replaced it.
    pub previous: Option<LastGood>,
    /// Good files that did not go live by the start: somebody must confirm them, or they were withdrawn.
    pub waiting: Option<Vec<SourceFile>>,
    /// The hash of the bytes of the files that the start read.
    pub files_hash: String,
}

/// What can be asked about reloads.
#[derive(Clone, Debug, Default)]
pub struct ReloadState {
    /// Whether saved files are applied.
    pub watching: bool,
    /// Who switched that and when, if anybody did.
    pub switched_by: Option<SwitchedBy>,
    /// The last reload that changed something, was refused, or ended a refusal.
    pub last: Option<Arc<ReloadResult>>,
    /// What is on disk, if it is not what is live.
    pub candidate: Option<Candidate>,
    /// Why the last good policy is live instead of the files, since the start.
    pub degraded: Option<String>,
    /// Whether saved files rest because they went back and forth.
    pub breaker: Breaker,
    /// The last reloads, newest first.
    pub history: VecDeque<Arc<ReloadResult>>,
    /// How many reloads there were, by trigger and [`crate::ReloadOutcome::as_str`].
    pub counts: BTreeMap<(Trigger, &'static str), u64>,
    /// When a reload was last applied or found nothing to do.
    pub last_success: Option<WallMs>,
    /// The settings that callers of the API set above all others.
    pub overrides: Vec<ApiOverride>,
    /// The rules of the live policy that failed.
    pub erring: Vec<RuleErrors>,
}

/// What is on disk and is not live.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What became of it.
    pub result: Arc<ReloadResult>,
    /// Why it is not live.
    pub state: CandidateState,
    /// How many failures there were since the last good save.
    pub attempt: u32,
    /// Since when disk and live differ.
    pub since: WallMs,
}

/// Why what is on disk is not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandidateState {
    /// It has errors.
    Failing,
    /// Its plan waits for a confirmation.
    NeedsConfirmation,
    /// It cannot be read, or the broker did not take it.
    NotLoaded,
    /// It failed so often that it is not looked at again before it changes or somebody asks.
    Rejected,
    /// Saved files rest.
    Resting,
    /// It was live and was withdrawn.
    RolledBack,
}

impl CandidateState {
    /// The word for it in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::NeedsConfirmation => "needs_confirmation",
            Self::NotLoaded => "not_loaded",
            Self::Rejected => "rejected",
            Self::Resting => "resting",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// Whether saved files are applied, as far as their going back and forth decides that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Breaker {
    /// They are.
    #[default]
    Closed,
    /// The next one is on trial.
    HalfOpen,
    /// They rest.
    Open {
        /// Until then.
        until: WallMs,
        /// The file that changed first, the last time.
        culprit: Option<String>,
    },
}

impl ReloadState {
    /// Keeps a result for those who ask.
    pub(super) fn remember(&mut self, result: &Arc<ReloadResult>) {
        let word = result.outcome.as_str();
        *self.counts.entry((result.trigger, word)).or_default() += 1;
        if result.outcome.is_good() {
            self.last_success = Some(result.at);
        }
        self.history.push_front(result.clone());
        self.history.truncate(HISTORY_MAX);
    }
}
