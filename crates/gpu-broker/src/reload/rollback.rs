//! Policies that were live and can be again: by hand, or because the rules of a new one fail.

use std::sync::Arc;

use gpu_lease::{At, BootMs, Ms, Policy, PolicySource};
use gpu_store::{ApiOverride, LastGood, RejectedFiles};
use thiserror::Error;

use super::Reloader;
use super::hash::files_hash;
use super::result::{ReloadOptions, ReloadOutcome, ReloadResult, Trigger};
use super::road::{Road, Wanted, sources};
use crate::handle::Unavailable;

/// So many policies can be taken back to, the live one among them.
const KEPT_MAX: usize = 10;

/// A policy cannot be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RollbackError {
    /// Nothing was live before.
    #[error("no other policy files were live before these, as far as is remembered")]
    NothingBefore,
    /// That generation is not kept.
    #[error("generation {generation} is not kept (kept: {})", list(kept))]
    NotKept {
        /// The one asked for.
        generation: u64,
        /// Those that can be asked for, oldest first.
        kept: Vec<u64>,
    },
}

/// A policy that was live, or is.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) generation: u64,
    pub(super) source: Arc<PolicySource>,
    /// The hash of the bytes that it was compiled from.
    pub(super) set: String,
}

/// The live policy, for as long as errors of its rules take it back.
pub(super) struct Probation {
    generation: u64,
    since: BootMs,
    within: Ms,
    /// Errors when it went live, and how many more are too many.
    errors: u64,
    errors_max: u64,
    before: Kept,
    /// The API overrides of before, if setting others made it live.
    overrides: Option<Vec<ApiOverride>>,
}

impl From<&LastGood> for Kept {
    fn from(good: &LastGood) -> Self {
        Self {
            generation: good.generation,
            set: files_hash(&sources(&good.source)),
            source: good.source.clone(),
        }
    }
}

impl Probation {
    /// For `policy`, which has just gone live instead of the last kept one. What ended by its time, or
    /// was a step back itself, is not taken back.
    pub(super) fn begin(
        road: &Road,
        wanted: &Wanted<'_>,
        policy: &Policy,
        now: At,
    ) -> Option<Self> {
        let sets = wanted.overrides.is_some() && !wanted.is_due;
        let errors_max = policy.reload.rollback_errors;
        if !(wanted.is_about_disk() || sets) || errors_max == 0 {
            return None;
        }
        let before = road.kept.back()?.clone();
        Some(Self {
            generation: before.generation + 1,
            since: now.boot,
            within: policy.reload.rollback_within,
            errors: errors_of(policy),
            errors_max,
            before,
            overrides: sets.then(|| road.settings.overrides.clone()),
        })
    }

    fn is_over(&self, now: At) -> bool {
        now.boot - self.since > self.within
    }
}

impl Road {
    /// One for every set of files: the same ones under other overrides are nothing to go back to.
    pub(super) fn keep(&mut self, kept: Kept) {
        self.kept.retain(|other| other.set != kept.set);
        self.kept.push_back(kept);
        let surplus = self.kept.len().saturating_sub(KEPT_MAX);
        self.kept.drain(..surplus);
    }

    fn kept_as(&self, to: Option<u64>) -> Result<Kept, RollbackError> {
        let mut before = self.before_live();
        let Some(generation) = to else {
            let last = before.next_back();
            return last.cloned().ok_or(RollbackError::NothingBefore);
        };
        let found = before.find(|kept| kept.generation == generation);
        found.cloned().ok_or_else(|| RollbackError::NotKept {
            generation,
            kept: self.before_live().map(|kept| kept.generation).collect(),
        })
    }

    /// Those whose files are not live.
    fn before_live(&self) -> impl DoubleEndedIterator<Item = &Kept> {
        let live = self.kept.back().map(|live| live.set.as_str());
        let others = self.kept.iter();
        others.filter(move |kept| Some(kept.set.as_str()) != live)
    }
}

impl Reloader {
    /// Makes a policy live again that was before: that of generation `to`, else the one before this. It
    /// is compiled under the overrides of now. What is on disk is not applied before it changes, or
    /// somebody asks.
    ///
    /// # Errors
    /// It is not remembered.
    pub fn rollback(
        &self,
        by: &str,
        to: Option<u64>,
        options: &ReloadOptions,
    ) -> Result<Arc<ReloadResult>, RollbackError> {
        let mut road = self.one_at_a_time.lock();
        let kept = road.kept_as(to)?;
        let rejected = RejectedFiles {
            hash: road.on_disk.clone(),
            attempt: 0,
            why: format!("rolled back by {by} to generation {}", kept.generation),
            at: self.handle.now().wall,
        };
        let wanted = Wanted {
            rejects: Some(rejected).filter(|rejected| rejected.hash != kept.set),
            set: Some(kept.set.clone()),
            ..Wanted::new(Trigger::Rollback, by, options)
        };
        Ok(self.run(&mut road, wanted, || Ok(sources(&kept.source))))
    }

    /// Takes the live policy back if its rules failed too often since it went live.
    pub(super) fn withdraw_if_failing(&self, road: &mut Road, now: At) {
        let snapshot = self.handle.snapshot();
        let live = snapshot.counters.generation;
        let probation = road.probation.take();
        let probation = probation.filter(|it| !it.is_over(now) && it.generation == live);
        let Some(probation) = probation else {
            return;
        };
        let errors = errors_of(&snapshot.policy).saturating_sub(probation.errors);
        if errors < probation.errors_max {
            road.probation = Some(probation);
            return;
        }
        self.withdraw(road, probation, errors, now);
    }

    fn withdraw(&self, road: &mut Road, probation: Probation, errors: u64, now: At) {
        let Probation {
            generation, before, ..
        } = &probation;
        let overrides = probation.overrides.clone();
        let why = format!("rules of generation {generation} failed {errors} times");
        let failed = road.kept.back().map(|kept| kept.set.clone());
        let rejected = RejectedFiles {
            hash: failed.unwrap_or_default(),
            attempt: 0,
            why: why.clone(),
            at: now.wall,
        };
        let options = ReloadOptions::default();
        let wanted = Wanted {
            rejects: overrides.is_none().then_some(rejected),
            overrides,
            withdraws: Some(why),
            set: Some(before.set.clone()),
            ..Wanted::new(Trigger::Rollback, "", &options)
        };
        let result = self.run(road, wanted, || Ok(sources(&before.source)));
        if let ReloadOutcome::Moved { .. } | ReloadOutcome::Stopped(Unavailable::Overloaded) =
            result.outcome
        {
            // Leases came faster than they could be spared, or too much else: it is tried again.
            road.probation = Some(probation);
        }
    }
}

fn errors_of(policy: &Policy) -> u64 {
    let errors = policy.rules.errors();
    errors.iter().map(|rule| rule.count).sum()
}

fn list(generations: &[u64]) -> String {
    let texts: Vec<_> = generations.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
