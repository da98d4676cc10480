//! What a result leaves behind: what is remembered, stored, shown, logged and told.

use std::collections::BTreeSet;
use std::sync::Arc;

use gpu_lease::{At, Command, DrainSource, Event, EventKind, Fence, Lease, LeaseId, Plan, WallMs};
use gpu_policy::Diagnostics;
use gpu_store::RejectedFiles;

use super::result::{ReloadOptions, ReloadOutcome, ReloadResult, Trigger};
use super::road::{Draft, Road, Wanted};
use super::state::{Candidate, CandidateState};
use super::{Reloader, breaker};
use crate::handle::Unavailable;

/// When leases of more generations drain because of policies, the log says so after every switch. Nothing
/// is ended for that: every drain has its deadline, so deadlines bound how many generations there are, and
/// an end before it would be one that nobody planned or confirmed.
const DRAINING_GENERATIONS_WARNED: usize = 8;

/// Words from outside make an event no longer than this.
const EVENT_CHARS_MAX: usize = 512;

impl Reloader {
    pub(super) fn settle(&self, road: &mut Road, wanted: &Wanted<'_>, result: &Arc<ReloadResult>) {
        match wanted.is_about_disk() {
            true => self.settle_disk(road, result),
            false => self.settle_above(road, wanted, result),
        }
        self.store(road);
        self.publish(road, Some(result));
        self.report(wanted, result);
        if let ReloadOutcome::Applied { .. } = result.outcome {
            self.warn_of_draining();
        }
    }

    /// For a result that says how the files on disk stand.
    fn settle_disk(&self, road: &mut Road, result: &Arc<ReloadResult>) {
        let set = road.on_disk.clone();
        match &result.outcome {
            ReloadOutcome::Applied { .. } | ReloadOutcome::Unchanged => {
                road.forgive();
                if let Some(live) = road.kept.back_mut() {
                    live.set = set;
                }
                let mut state = self.state.lock();
                if state.candidate.take().is_some()
                    || result.hash_after.as_ref() != Some(&result.hash_before)
                {
                    state.last = Some(result.clone());
                }
                state.degraded = None;
                return;
            }
            ReloadOutcome::Refused {
                attempt, rejected, ..
            } => {
                road.attempts = *attempt;
                road.settings.rejected = rejected.then(|| RejectedFiles {
                    hash: set.clone(),
                    attempt: *attempt,
                    why: format!("they failed {attempt} times"),
                    at: result.at,
                });
                road.known = Some((set, result.clone()));
            }
            ReloadOutcome::NeedsConfirmation => {
                road.forgive();
                road.known = Some((set, result.clone()));
            }
            ReloadOutcome::Resting { .. } => road.forgive(),
            ReloadOutcome::Rejected { .. } => road.known = Some((set, result.clone())),
            ReloadOutcome::Unreadable(_) => {}
            // Nobody hears the answer to a save: it stands until it is tried again.
            ReloadOutcome::Moved { .. } | ReloadOutcome::Stopped(_)
                if result.trigger == Trigger::File => {}
            ReloadOutcome::Moved { .. }
            | ReloadOutcome::RolledBack { .. }
            | ReloadOutcome::Stopped(_) => return,
        }
        self.stand_as_candidate(road, result);
    }

    /// For a result of a rollback or an override. A rollback leaves behind what is on disk.
    fn settle_above(&self, road: &mut Road, wanted: &Wanted<'_>, result: &Arc<ReloadResult>) {
        let (ReloadOutcome::Applied { .. } | ReloadOutcome::RolledBack { .. }) = result.outcome
        else {
            return;
        };
        match &wanted.rejects {
            Some(rejected) => {
                road.known = Some((rejected.hash.clone(), result.clone()));
                if rejected.hash == road.on_disk {
                    self.stand_as_candidate(road, result);
                }
            }
            None if wanted.trigger == Trigger::Rollback && wanted.overrides.is_none() => {
                road.forgive();
                self.state.lock().candidate = None;
            }
            None => {}
        }
        self.state.lock().last = Some(result.clone());
    }

    /// Shows `result` as what is on disk and not live.
    pub(super) fn stand_as_candidate(&self, road: &Road, result: &Arc<ReloadResult>) {
        let mut state = self.state.lock();
        let since = state.candidate.as_ref().map_or(result.at, |it| it.since);
        state.candidate = Some(Candidate {
            result: result.clone(),
            state: state_of(&result.outcome, road),
            attempt: road.attempts,
            since,
        });
        state.last = Some(result.clone());
    }

    /// What changed of the settings and was not stored with a switch.
    pub(super) fn store(&self, road: &mut Road) {
        if road.settings == road.stored {
            return;
        }
        match self.handle.store_settings_blocking(road.settings.clone()) {
            Ok(()) => road.stored = road.settings.clone(),
            Err(why) => tracing::warn!("what is remembered of reloads is not stored: {why}"),
        }
    }

    pub(super) fn publish(&self, road: &Road, result: Option<&Arc<ReloadResult>>) {
        let mut state = self.state.lock();
        state.breaker = breaker::shown(&road.settings.breaker);
        state.overrides.clone_from(&road.settings.overrides);
        if let Some(result) = result {
            state.remember(result);
        }
    }

    /// Goes on with what rested, once the rest is over: the last save is not lost.
    pub(super) fn end_rest(&self, road: &mut Road, now: At) {
        self.end_untried_trial(road, now);
        let changed = breaker::pass(&mut road.settings.breaker, now);
        if !changed {
            // What merely became old is not worth a write.
            road.stored.breaker = road.settings.breaker.clone();
            return;
        }
        if !road.settings.breaker.on_trial {
            return;
        }
        self.note(
            EventKind::ReloadBreaker,
            "",
            "saved files are tried again".to_owned(),
        );
        match self.is_watched_and(|it| it.state == CandidateState::Resting) {
            true => self.read_again(road),
            // Nothing is there to be on trial.
            false => breaker::close(&mut road.settings.breaker),
        }
    }

    /// A trial to which nothing came in time is over.
    fn end_untried_trial(&self, road: &mut Road, now: At) {
        let row = &mut road.settings.breaker;
        if !row.on_trial || row.tried.is_some() {
            road.trial_since = None;
            return;
        }
        let since = *road.trial_since.get_or_insert(now.boot);
        if now.boot - since >= breaker::WINDOW_MS {
            breaker::close(row);
        }
    }

    /// Tries a save again that the broker did not take.
    pub(super) fn retry_save(&self, road: &mut Road) {
        let was_not_taken = |it: &Candidate| {
            matches!(
                it.result.outcome,
                ReloadOutcome::Moved { .. } | ReloadOutcome::Stopped(Unavailable::Overloaded)
            )
        };
        if self.is_watched_and(was_not_taken) || self.was_too_early() {
            self.read_again(road);
        }
    }

    /// Whether files that were there at the start wait for the devices, which are known by now.
    fn was_too_early(&self) -> bool {
        let state = self.state.lock();
        let waits = state.candidate.as_ref().is_some_and(|it| {
            let outcome = &it.result.outcome;
            matches!(outcome, ReloadOutcome::Stopped(Unavailable::Recovering))
        });
        waits && !self.handle.snapshot().recovering
    }

    fn is_watched_and(&self, candidate_is: impl Fn(&Candidate) -> bool) -> bool {
        let state = self.state.lock();
        state.watching && state.candidate.as_ref().is_some_and(candidate_is)
    }

    fn read_again(&self, road: &mut Road) {
        let options = ReloadOptions::default();
        let wanted = Wanted::new(Trigger::File, "", &options);
        self.run(road, wanted, || (self.read)());
    }

    /// Ends leases whose process is proven gone; a watch by pidfd was usually faster.
    pub(super) fn end_the_gone(&self, watched: &[(LeaseId, Fence)]) {
        for &(id, fence) in watched {
            let lease = self.handle.find(id).filter(|lease| holds(lease, fence));
            if lease.is_some_and(|lease| self.handle.is_process_gone(&lease)) {
                self.handle
                    .tell_blocking(Command::ProcessGone { id, fence });
            }
        }
    }

    /// Which of `watched` have ended because their process is gone.
    pub(super) fn gone(&self, watched: &[(LeaseId, Fence)]) -> Vec<LeaseId> {
        let is_gone = |&&(id, fence): &&(LeaseId, Fence)| {
            let lease = self.handle.find(id);
            lease.is_some_and(|lease| {
                !holds(&lease, fence)
                    && lease.end_reason() == Some(gpu_lease::EndReason::ProcessGone)
            })
        };
        watched.iter().filter(is_gone).map(|(id, _)| *id).collect()
    }

    fn warn_of_draining(&self) {
        let leases = self.handle.page(None, usize::MAX);
        let draining = leases.iter().filter_map(|lease| {
            let grant = lease.held()?;
            let asked = grant.drains.contains_key(&DrainSource::Policy);
            asked.then_some(grant.generation)
        });
        let generations: BTreeSet<u64> = draining.collect();
        if generations.len() > DRAINING_GENERATIONS_WARNED {
            let (count, oldest) = (generations.len(), generations.first());
            tracing::warn!(
                count,
                oldest,
                "leases of many policy generations are draining; they end by their deadlines"
            );
        }
    }

    /// The log says it all; the event stream says what the switch itself did not.
    fn report(&self, wanted: &Wanted<'_>, result: &ReloadResult) {
        let id = result.id;
        let (kind, text) = match &result.outcome {
            ReloadOutcome::Applied { generation } => {
                let changes = result.changes.join("; ");
                tracing::info!(reload = id, generation, took = %result.took, "policy is live: {changes}");
                if wanted.trigger != Trigger::Rollback {
                    return;
                }
                let text = format!("rolled back, generation {generation} is live");
                (EventKind::PolicyRolledBack, text)
            }
            ReloadOutcome::RolledBack { generation, why } => {
                tracing::error!(reload = id, generation, "policy is rolled back: {why}");
                let text = format!("{why}; rolled back, generation {generation} is live");
                (EventKind::PolicyRolledBack, text)
            }
            ReloadOutcome::NeedsConfirmation => {
                let hash = result.plan_hash.as_deref().unwrap_or_default();
                let plan = result
                    .plan
                    .as_ref()
                    .map(Plan::to_string)
                    .unwrap_or_default();
                tracing::warn!(
                    reload = id,
                    plan = hash,
                    "policy waits for a confirmation: {plan}"
                );
                let text = format!("waits for a confirmation of plan {hash}: {plan}");
                (EventKind::PolicyPending, text)
            }
            ReloadOutcome::Refused {
                diagnostics,
                attempt,
                ..
            } => {
                tracing::error!(
                    reload = id,
                    attempt,
                    "policy is refused, the one before stays live\n{diagnostics}"
                );
                (EventKind::PolicyRefused, first_of(diagnostics))
            }
            ReloadOutcome::Unreadable(why) => {
                tracing::error!(
                    reload = id,
                    "policy files cannot be read, the policy before stays live: {why}"
                );
                (EventKind::PolicyRefused, shortened(why))
            }
            ReloadOutcome::Moved { live } => {
                let text = format!("something else is true than was expected; {live} is live");
                tracing::warn!(reload = id, "policy is not applied: {text}");
                (EventKind::PolicyRefused, text)
            }
            ReloadOutcome::Resting { until } => {
                let text = resting(result, *until, self.handle.now());
                tracing::warn!(reload = id, "{text}");
                (EventKind::ReloadBreaker, text)
            }
            ReloadOutcome::Rejected { why } => {
                return tracing::warn!(
                    reload = id,
                    "policy files were rejected and have not changed: {why}"
                );
            }
            ReloadOutcome::Stopped(why) => {
                return tracing::warn!(reload = id, "policy is not applied: {why}");
            }
            ReloadOutcome::Unchanged => {
                return tracing::info!(reload = id, "policy files say what is live already");
            }
        };
        self.note(kind, wanted.by, format!("reload {id}: {text}"));
    }

    fn note(&self, kind: EventKind, by: &str, text: String) {
        self.handle.note(event(kind, by, text));
    }
}

impl Draft {
    pub(super) fn note_begun(&mut self, wanted: &Wanted<'_>) {
        let path = wanted.timing.path.as_deref();
        let who = [wanted.by, path.unwrap_or_default()].join(" ");
        let who = format!("{} {}", wanted.trigger, who.trim());
        let text = format!("reload {}: begun ({})", self.id, who.trim());
        self.notes
            .push(event(EventKind::ReloadBegun, wanted.by, text));
    }

    pub(super) fn note_planned(&mut self, wanted: &Wanted<'_>, plan: &Plan) {
        let text = format!("reload {}: planned: {plan}", self.id);
        self.notes
            .push(event(EventKind::PolicyPlanned, wanted.by, text));
    }
}

fn event(kind: EventKind, by: &str, text: String) -> Event {
    Event {
        kind,
        lease: None,
        device: None,
        by: Some(by.to_owned()).filter(|by| !by.is_empty()),
        text,
    }
}

impl Road {
    /// What is on disk is good.
    fn forgive(&mut self) {
        self.attempts = 0;
        self.known = None;
        self.settings.rejected = None;
    }
}

fn state_of(outcome: &ReloadOutcome, road: &Road) -> CandidateState {
    let failed = |rejected: &RejectedFiles| rejected.attempt > 0;
    match outcome {
        ReloadOutcome::Refused {
            rejected: false, ..
        } => CandidateState::Failing,
        ReloadOutcome::Refused { rejected: true, .. } => CandidateState::Rejected,
        ReloadOutcome::Rejected { .. } => match road.settings.rejected.as_ref().is_some_and(failed)
        {
            true => CandidateState::Rejected,
            false => CandidateState::RolledBack,
        },
        ReloadOutcome::NeedsConfirmation => CandidateState::NeedsConfirmation,
        ReloadOutcome::Resting { .. } => CandidateState::Resting,
        ReloadOutcome::Applied { .. } | ReloadOutcome::RolledBack { .. } => {
            CandidateState::RolledBack
        }
        ReloadOutcome::Moved { .. }
        | ReloadOutcome::Stopped(_)
        | ReloadOutcome::Unchanged
        | ReloadOutcome::Unreadable(_) => CandidateState::NotLoaded,
    }
}

fn holds(lease: &Lease, fence: Fence) -> bool {
    lease.held().is_some_and(|grant| grant.fence == fence)
}

/// The first error and how many there are: events are kept and shown to many, files are not theirs to see.
fn first_of(diagnostics: &Diagnostics) -> String {
    let first = diagnostics.items().first().map(|first| {
        let (file, line, column) = (&first.file, first.line, first.column);
        shortened(&format!("{file}:{line}:{column}: {}", first.message))
    });
    let first = first.unwrap_or_default();
    match diagnostics.total().saturating_sub(1) {
        0 => first,
        1 => format!("{first} (and 1 more error)"),
        more => format!("{first} (and {more} more errors)"),
    }
}

fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(EVENT_CHARS_MAX).collect()
}

fn resting(result: &ReloadResult, until: WallMs, now: At) -> String {
    let left = gpu_lease::Ms(until.0.saturating_sub(now.wall.0));
    let path = result.phases.path.as_deref().unwrap_or("a file");
    format!(
        "saved files go back and forth ({path}) and rest for {left}; asking by hand still works"
    )
}
