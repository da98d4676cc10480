//! What a result leaves behind: what is remembered, stored, shown, logged and told.

use std::collections::BTreeSet;
use std::sync::Arc;

use gpu_lease::{
    At, Command, DrainSource, Event, EventKind, Fate, Fence, Lease, LeaseId, Plan, WallMs,
};
use gpu_store::RejectedFiles;

use super::result::{ReloadOptions, ReloadOutcome, ReloadResult, Trigger};
use super::road::{Draft, Road, Wanted};
use super::state::{Candidate, CandidateState};
use super::{Reloader, breaker};

/// Leases of so many generations may be draining because of policies. Their deadlines end them anyway;
/// beyond this, those of the oldest end at once.
const DRAINING_GENERATIONS_MAX: usize = 8;

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
            self.bound_draining();
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
        let (watching, rests) = {
            let state = self.state.lock();
            let rests = |it: &Candidate| it.state == CandidateState::Resting;
            (state.watching, state.candidate.as_ref().is_some_and(rests))
        };
        if watching && rests {
            let options = ReloadOptions::default();
            self.run(road, Wanted::new(Trigger::File, "", &options), || {
                (self.read)()
            });
        }
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

    fn bound_draining(&self) {
        let leases = self.handle.page(None, usize::MAX);
        let draining = leases.iter().filter_map(|lease| {
            let grant = lease.held()?;
            let asked = grant.drains.contains_key(&DrainSource::Policy);
            asked.then_some((grant.generation, lease.id))
        });
        let draining: Vec<_> = draining.collect();
        let generations: BTreeSet<u64> =
            draining.iter().map(|(generation, _)| *generation).collect();
        let surplus = generations.len().saturating_sub(DRAINING_GENERATIONS_MAX);
        let over: BTreeSet<_> = generations.into_iter().take(surplus).collect();
        for (generation, id) in draining {
            if over.contains(&generation) {
                self.handle.tell_blocking(Command::Revoke {
                    id,
                    reason: format!(
                        "leases of more than {DRAINING_GENERATIONS_MAX} policy generations drain, and generation {generation} is the oldest"
                    ),
                    by: "policy".to_owned(),
                });
            }
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
                let plan = result.plan.as_ref().map(summary).unwrap_or_default();
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
                (EventKind::PolicyRefused, diagnostics.to_string())
            }
            ReloadOutcome::Unreadable(why) => {
                tracing::error!(
                    reload = id,
                    "policy files cannot be read, the policy before stays live: {why}"
                );
                (EventKind::PolicyRefused, why.clone())
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
        let text = format!("reload {}: planned: {}", self.id, summary(plan));
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

fn resting(result: &ReloadResult, until: WallMs, now: At) -> String {
    let left = gpu_lease::Ms(until.0.saturating_sub(now.wall.0));
    let path = result.phases.path.as_deref().unwrap_or("a file");
    format!(
        "saved files go back and forth ({path}) and rest for {left}; asking by hand still works"
    )
}

fn summary(plan: &Plan) -> String {
    let count = |wanted: fn(&Fate) -> bool| {
        let held = plan.held.iter().filter(|held| wanted(&held.fate));
        held.count()
    };
    format!(
        "{} kept, {} to drain, {} to end, {} shortened, {} allowed to stay, {} waiters refused",
        count(|fate| matches!(fate, Fate::Keep)),
        count(|fate| matches!(fate, Fate::Drain(_))),
        count(|fate| matches!(fate, Fate::Force)),
        count(|fate| matches!(fate, Fate::Shorten(_))),
        count(|fate| matches!(fate, Fate::Withdraw)),
        plan.denied.len()
    )
}
