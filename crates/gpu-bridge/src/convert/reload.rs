//! Reloads: results, and how the files on disk stand to what is live.

use std::collections::BTreeMap;

use gpu_api as wire;
use gpu_broker::{
    Breaker, Candidate, CandidateState, Planning, ReloadOutcome, ReloadResult, ReloadState,
    SwitchedBy, Trigger,
};
use gpu_lease::{DrainSource, LeaseId, WallMs};

use super::Scene;
use super::policy::{diagnostics, rule_errors};
use super::time::rfc3339;
use crate::app::{Bridge, Config, PolicyFiles};

/// Leases and diagnostics that are shown of one reload of the history; its summary counts all of them.
const HISTORY_ITEMS_MAX: usize = 50;
/// As much of a hash as people are shown.
const SHORT_HASH_CHARS: usize = 12;

/// What is looked at when reloads are shown.
pub(crate) struct Reloads<'a> {
    pub(crate) scene: Scene<'a>,
    pub(crate) state: ReloadState,
    files: &'a dyn PolicyFiles,
    config: &'a Config,
    /// Since when the broker runs.
    pub(super) started: WallMs,
}

/// What a caller asked for and did not get, because it would not have got what it expects.
pub(crate) struct Held {
    /// What became of it.
    pub(crate) outcome: wire::ReloadOutcome,
    /// Why, in one line.
    pub(crate) why: String,
}

impl<'a> Reloads<'a> {
    pub(crate) fn of(bridge: &'a Bridge) -> Self {
        Self {
            scene: bridge.scene(),
            state: bridge.reloader.state(),
            files: &*bridge.policy_files,
            config: &bridge.config,
            started: bridge.started.wall,
        }
    }

    /// What became of a reload just now.
    pub(crate) fn result(&self, result: &ReloadResult) -> wire::ReloadResult {
        self.result_at(result, self.live(), usize::MAX)
    }

    /// A reload that nobody began: the plan was looked at, and is not what the caller expects or confirms.
    pub(crate) fn held(
        &self,
        planning: &Planning,
        held: Held,
        files: Vec<String>,
        by: &str,
    ) -> wire::ReloadResult {
        wire::ReloadResult {
            summary: held.why,
            hash: planning.hash.clone(),
            changes: planning.changes.clone(),
            leases: self.scene.fates(&planning.plan, usize::MAX),
            denied: self.scene.denied(&planning.plan, usize::MAX),
            plan: Some(planning.plan_hash.clone()),
            files,
            ..self.blank(held.outcome, by)
        }
    }

    /// A reload that has no result: it was not begun, or goes on.
    pub(crate) fn blank(&self, outcome: wire::ReloadOutcome, by: &str) -> wire::ReloadResult {
        wire::ReloadResult {
            id: String::new(),
            outcome,
            summary: String::new(),
            trigger: wire::ReloadTrigger::Api,
            by: by.to_owned(),
            at: rfc3339(self.scene.now.wall),
            took_ms: 0,
            phases: wire::ReloadPhases::default(),
            generation: self.live(),
            previous_generation: self.live(),
            hash_before: self.scene.snapshot.policy.source.hash.clone(),
            hash: String::new(),
            files: Vec::new(),
            changes: Vec::new(),
            leases: Vec::new(),
            denied: Vec::new(),
            stale: Vec::new(),
            plan: None,
            attempt: 0,
            diagnostics: Vec::new(),
        }
    }

    /// The policy watch, with the last reloads.
    pub(crate) fn shown(&self, watch: Option<wire::WatchState>) -> wire::ReloadState {
        let state = &self.state;
        let config = self.config;
        let paths = config.policy_paths.iter();
        wire::ReloadState {
            enabled: state.watching,
            why: self.watch_reason(),
            switched: state.switched_by.as_ref().map(switched),
            dev: config.dev,
            watching: paths.map(|path| path.display().to_string()).collect(),
            on_disk_differs: self.differs(),
            error_since: self.error_since().map(rfc3339),
            candidate: self.candidate(),
            breaker: breaker(&state.breaker),
            last: state.last.as_deref().map(|last| self.remembered(last)),
            history: self.history(),
            counts: counts(state),
            draining_generations: self.draining_generations(),
            erring: state.erring.iter().map(rule_errors).collect(),
            watch,
        }
    }

    /// Why policy files are watched, or are not.
    fn watch_reason(&self) -> String {
        match (&self.config.safe_start, &self.state.switched_by) {
            // Whatever was asked for, files are not read then.
            (Some(_), _) => "safe start".to_owned(),
            (None, Some(switch)) => switch_reason(switch),
            (None, None) => self.config.watch_reason.clone(),
        }
    }

    /// How the files on disk compare with what is live, as far as anybody has looked.
    pub(crate) fn disk(&self) -> wire::DiskState {
        let candidate = self.state.candidate.as_ref();
        match (
            candidate.map(|candidate| candidate.state),
            self.state.watching,
        ) {
            (Some(CandidateState::Failing | CandidateState::Rejected), _) => {
                wire::DiskState::Failing
            }
            (Some(CandidateState::NeedsConfirmation), _) => wire::DiskState::Pending,
            (
                Some(
                    CandidateState::NotLoaded
                    | CandidateState::Resting
                    | CandidateState::RolledBack,
                ),
                _,
            ) => wire::DiskState::Differs,
            (None, _) if self.state.degraded.is_some() => wire::DiskState::Failing,
            (None, true) => wire::DiskState::Same,
            (None, false) => wire::DiskState::Unknown,
        }
    }

    /// Why disk and live differ, in one line.
    pub(crate) fn error_line(&self) -> Option<String> {
        let candidate = self.state.candidate.as_ref();
        let refused = candidate.map(|candidate| self.why(candidate));
        refused.or_else(|| self.state.degraded.as_deref().map(one_line))
    }

    /// Why what is on disk is not live, and since when.
    pub(super) fn error_state(&self) -> Option<wire::ErrorState> {
        let candidate = self.state.candidate.as_ref();
        Some(wire::ErrorState {
            summary: self.error_line()?,
            since: rfc3339(self.error_since()?),
            attempt: candidate.map_or(0, |candidate| candidate.attempt),
        })
    }

    /// The plan that waits for a confirmation, by its hash.
    pub(crate) fn pending(&self) -> Option<String> {
        pending_plan(self.state.candidate.as_ref()?)
    }

    /// What is on disk and is not live.
    pub(super) fn candidate(&self) -> Option<wire::Candidate> {
        let candidate = self.state.candidate.as_ref()?;
        let result = &candidate.result;
        Some(wire::Candidate {
            hash: result.hash_after.clone().unwrap_or_default(),
            summary: self.why(candidate),
            plan: pending_plan(candidate),
            seen_at: rfc3339(result.at),
            state: candidate_state(candidate.state),
            attempt: candidate.attempt,
            diagnostics: self.found(&result.outcome),
        })
    }

    /// The policy that was live and was withdrawn, if the one now live took its place for that.
    pub(super) fn rolled_back(&self) -> Option<wire::RolledBack> {
        let switch = self.switch_to_live()?;
        let why = match &switch.outcome {
            ReloadOutcome::RolledBack { why, .. } => why.clone(),
            _ if switch.trigger == Trigger::Rollback && switch.by.is_empty() => {
                "it was taken back".to_owned()
            }
            _ if switch.trigger == Trigger::Rollback => format!("taken back by {}", switch.by),
            _ => return None,
        };
        Some(wire::RolledBack {
            hash: switch.hash_before.clone(),
            at: rfc3339(switch.at),
            why,
        })
    }

    /// The reload that made the policy live that is, if it is remembered.
    pub(super) fn switch_to_live(&self) -> Option<&ReloadResult> {
        let live = self.live();
        let mut history = self.state.history.iter();
        history
            .find(|result| switched_to(&result.outcome) == Some(live))
            .map(|result| &**result)
    }

    /// The held leases that a policy asked to go, with the generations that granted them.
    pub(crate) fn draining(&self) -> BTreeMap<LeaseId, u64> {
        let occupants = self.scene.snapshot.devices.iter();
        let ids = occupants.flat_map(|device| &device.occupants);
        let asked = ids.filter_map(|id| {
            let lease = self.scene.find(*id)?;
            let grant = lease.held()?;
            let asked = grant.drains.contains_key(&DrainSource::Policy);
            asked.then_some((lease.id, grant.generation))
        });
        asked.collect()
    }

    fn draining_generations(&self) -> Vec<wire::DrainingGeneration> {
        let mut generations: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (id, generation) in self.draining() {
            let leases = generations.entry(generation).or_default();
            leases.push(id.to_string());
        }
        generations.remove(&self.live());
        let shown = |(generation, leases)| wire::DrainingGeneration { generation, leases };
        generations.into_iter().map(shown).collect()
    }

    fn live(&self) -> u64 {
        self.scene.snapshot.counters.generation
    }

    /// Whether what is on disk is something else than what is live.
    pub(crate) fn differs(&self) -> bool {
        match self.disk() {
            wire::DiskState::Differs | wire::DiskState::Failing | wire::DiskState::Pending => true,
            wire::DiskState::Same | wire::DiskState::Unknown => false,
        }
    }

    fn error_since(&self) -> Option<WallMs> {
        let candidate = self.state.candidate.as_ref();
        let degraded = self.state.degraded.as_ref().map(|_| self.started);
        candidate.map(|candidate| candidate.since).or(degraded)
    }

    /// The last reloads, each with the generation that was live after it.
    fn history(&self) -> Vec<wire::ReloadResult> {
        let mut live = self.live();
        let mut shown = Vec::with_capacity(self.state.history.len());
        for result in &self.state.history {
            let mut entry = self.result_at(result, live, HISTORY_ITEMS_MAX);
            entry.diagnostics.truncate(HISTORY_ITEMS_MAX);
            live = entry.previous_generation;
            shown.push(entry);
        }
        shown
    }

    /// A result of the history as it was then.
    fn remembered(&self, result: &ReloadResult) -> wire::ReloadResult {
        let mut live = self.live();
        for newer in &self.state.history {
            if newer.id == result.id {
                break;
            }
            live = switched_to(&newer.outcome).map_or(live, |generation| generation - 1);
        }
        self.result_at(result, live, usize::MAX)
    }

    /// `live` is the generation that was in force afterwards, for a reload that changed nothing. Of leases
    /// and of waiters there are `most`.
    fn result_at(&self, result: &ReloadResult, live: u64, most: usize) -> wire::ReloadResult {
        let switched = switched_to(&result.outcome);
        let generation = switched.unwrap_or(live);
        let plan = result.plan.as_ref();
        wire::ReloadResult {
            id: result.id.to_string(),
            outcome: outcome(&result.outcome),
            summary: self.summary(result),
            trigger: trigger(result.trigger),
            by: result.by.clone(),
            at: rfc3339(result.at),
            took_ms: result.took.0,
            phases: phases(result),
            generation,
            previous_generation: generation.saturating_sub(u64::from(switched.is_some())),
            hash_before: result.hash_before.clone(),
            hash: result.hash_after.clone().unwrap_or_default(),
            files: result.files.clone(),
            changes: result.changes.clone(),
            leases: plan.map_or_else(Vec::new, |plan| self.scene.fates(plan, most)),
            denied: plan.map_or_else(Vec::new, |plan| self.scene.denied(plan, most)),
            stale: result.stale.iter().map(ToString::to_string).collect(),
            plan: result.plan_hash.clone(),
            attempt: attempt(&result.outcome),
            diagnostics: self.found(&result.outcome),
        }
    }

    /// What came of it, in one line.
    fn summary(&self, result: &ReloadResult) -> String {
        let plan = result.plan.as_ref();
        match &result.outcome {
            ReloadOutcome::Applied { generation } => {
                let live = format!("generation {generation} is live");
                match result.changes.as_slice() {
                    [] => live,
                    [one] => format!("{live}: {one}"),
                    [first, more @ ..] => format!("{live}: {first}, and {} more", more.len()),
                }
            }
            ReloadOutcome::Moved { live } => format!(
                "not applied: something else is true than was expected; live is {}",
                short(live)
            ),
            ReloadOutcome::NeedsConfirmation => {
                let means = plan.map_or_else(String::new, |plan| format!(": {plan}"));
                format!("not applied before somebody confirms what it means{means}")
            }
            ReloadOutcome::Refused { attempt, .. } => format!(
                "refused (attempt {attempt}), the policy before stays: {}",
                self.first_error(&result.outcome)
            ),
            ReloadOutcome::Rejected { why } => {
                format!("rejected before and not changed since: {}", one_line(why))
            }
            ReloadOutcome::Resting { until } => format!(
                "not applied: saved files went back and forth and rest until {}",
                rfc3339(*until)
            ),
            ReloadOutcome::RolledBack { generation, why } => {
                format!("rolled back, generation {generation} is live: {why}")
            }
            ReloadOutcome::Stopped(why) => format!("not applied: {why}"),
            ReloadOutcome::Unchanged if result.trigger == Trigger::Rollback => {
                "there is nothing to go back to: those files are live already".to_owned()
            }
            ReloadOutcome::Unchanged => "the files say what is live already".to_owned(),
            ReloadOutcome::Unreadable(why) => {
                format!("the files cannot be read, the policy before stays: {why}")
            }
        }
    }

    /// Why what is on disk is not live, in one line; what to do about it follows from its state.
    fn why(&self, candidate: &Candidate) -> String {
        let result = &candidate.result;
        match candidate.state {
            CandidateState::Failing => match &result.outcome {
                ReloadOutcome::Refused { .. } => {
                    format!(
                        "attempt {}: {}",
                        candidate.attempt,
                        self.first_error(&result.outcome)
                    )
                }
                _ => self.summary(result),
            },
            CandidateState::Rejected => match &result.outcome {
                ReloadOutcome::Refused { .. } => format!(
                    "not tried again before it changes, after {} attempts: {}",
                    candidate.attempt,
                    self.first_error(&result.outcome)
                ),
                _ => self.summary(result),
            },
            CandidateState::RolledBack => format!(
                "it was live and was taken back, and is not tried again before it changes: {}",
                self.summary(result)
            ),
            CandidateState::NeedsConfirmation => result
                .plan
                .as_ref()
                .map_or_else(|| self.summary(result), ToString::to_string),
            CandidateState::NotLoaded | CandidateState::Resting => self.summary(result),
        }
    }

    fn first_error(&self, outcome: &ReloadOutcome) -> String {
        let ReloadOutcome::Refused { diagnostics, .. } = outcome else {
            return String::new();
        };
        let found = self.found(outcome);
        let first = found.first().map_or_else(String::new, |item| {
            format!(
                "{}:{}:{}: {}",
                item.file, item.line, item.column, item.message
            )
        });
        match diagnostics.total().saturating_sub(1) {
            0 => first,
            more => format!("{first}, and {more} more"),
        }
    }

    fn found(&self, outcome: &ReloadOutcome) -> Vec<wire::Diagnostic> {
        let ReloadOutcome::Refused {
            diagnostics: found, ..
        } = outcome
        else {
            return Vec::new();
        };
        let mut shown = diagnostics(found);
        unquote(&mut shown, self.files);
        shown
    }
}

/// Takes out of diagnostics what files say that are outside of the policy directories: a link leads there.
pub(crate) fn unquote(found: &mut [wire::Diagnostic], files: &dyn PolicyFiles) {
    for item in found.iter_mut().filter(|item| !files.quotes(&item.file)) {
        "an error; the file is outside of the policy directories and is not quoted"
            .clone_into(&mut item.message);
        item.hint = Some("the broker's log says which".to_owned());
        item.source_line = None;
        item.width = 1;
    }
}

/// The word of the API for an outcome, by the word of the broker for it.
pub(crate) fn outcome_of_word(word: &str) -> wire::ReloadOutcome {
    let found = wire::ReloadOutcome::ALL.into_iter();
    // What the API knows no word of its own for is a failure: refused, stopped, unreadable.
    found
        .into_iter()
        .find(|outcome| outcome.as_str() == word)
        .unwrap_or(wire::ReloadOutcome::Failed)
}

pub(crate) fn trigger(trigger: Trigger) -> wire::ReloadTrigger {
    match trigger {
        Trigger::Api => wire::ReloadTrigger::Api,
        Trigger::File => wire::ReloadTrigger::File,
        Trigger::Override => wire::ReloadTrigger::Override,
        Trigger::Rollback => wire::ReloadTrigger::Rollback,
        Trigger::Signal => wire::ReloadTrigger::Signal,
    }
}

/// How many reloads there were, by the words of the API.
pub(crate) fn counts(state: &ReloadState) -> Vec<wire::ReloadCount> {
    let mut counts: BTreeMap<_, u64> = BTreeMap::new();
    for ((by, word), count) in &state.counts {
        *counts
            .entry((trigger(*by), outcome_of_word(word)))
            .or_default() += count;
    }
    let shown = |((trigger, outcome), count)| wire::ReloadCount {
        trigger,
        outcome,
        count,
    };
    counts.into_iter().map(shown).collect()
}

pub(crate) fn short(hash: &str) -> &str {
    hash.get(..SHORT_HASH_CHARS).unwrap_or(hash)
}

fn outcome(outcome: &ReloadOutcome) -> wire::ReloadOutcome {
    outcome_of_word(outcome.as_str())
}

fn switched_to(outcome: &ReloadOutcome) -> Option<u64> {
    match outcome {
        ReloadOutcome::Applied { generation } | ReloadOutcome::RolledBack { generation, .. } => {
            Some(*generation)
        }
        ReloadOutcome::Moved { .. }
        | ReloadOutcome::NeedsConfirmation
        | ReloadOutcome::Refused { .. }
        | ReloadOutcome::Rejected { .. }
        | ReloadOutcome::Resting { .. }
        | ReloadOutcome::Stopped(_)
        | ReloadOutcome::Unchanged
        | ReloadOutcome::Unreadable(_) => None,
    }
}

fn attempt(outcome: &ReloadOutcome) -> u32 {
    match outcome {
        ReloadOutcome::Refused { attempt, .. } => *attempt,
        _ => 0,
    }
}

fn phases(result: &ReloadResult) -> wire::ReloadPhases {
    let us =
        |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let phases = &result.phases;
    wire::ReloadPhases {
        settle_us: phases.settle.map(us),
        read_us: phases.read.map(us),
        compile_us: us(phases.compile),
        plan_us: us(phases.plan),
        apply_us: us(phases.apply),
        path: phases.path.clone(),
    }
}

fn pending_plan(candidate: &Candidate) -> Option<String> {
    let waits = candidate.state == CandidateState::NeedsConfirmation;
    candidate.result.plan_hash.clone().filter(|_| waits)
}

fn candidate_state(state: CandidateState) -> wire::CandidateState {
    match state {
        CandidateState::Failing => wire::CandidateState::Failing,
        CandidateState::NeedsConfirmation => wire::CandidateState::NeedsConfirmation,
        CandidateState::NotLoaded => wire::CandidateState::NotLoaded,
        CandidateState::Rejected => wire::CandidateState::Rejected,
        CandidateState::Resting => wire::CandidateState::Resting,
        CandidateState::RolledBack => wire::CandidateState::RolledBack,
    }
}

fn breaker(breaker: &Breaker) -> wire::Breaker {
    match breaker {
        Breaker::Closed => wire::Breaker::closed(),
        Breaker::HalfOpen => wire::Breaker {
            state: wire::BreakerState::HalfOpen,
            ..wire::Breaker::closed()
        },
        Breaker::Open { until, culprit } => wire::Breaker {
            state: wire::BreakerState::Open,
            until: Some(rfc3339(*until)),
            culprit: culprit.clone(),
        },
    }
}

fn switch_reason(switch: &SwitchedBy) -> String {
    format!("switched by {}", switch.by)
}

fn switched(switch: &SwitchedBy) -> wire::Switched {
    wire::Switched {
        by: switch.by.clone(),
        at: rfc3339(switch.at),
    }
}

fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(2).collect::<Vec<_>>().join(" ")
}
