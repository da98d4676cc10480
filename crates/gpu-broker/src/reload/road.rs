//! The road itself: read, compile, plan, gate, switch. What one reload leaves for the next is here too.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use gpu_lease::{
    At, BootMs, Event, Fate, Fence, LeaseId, Plan, Planned, Policy, PolicySource, Switch,
};
use gpu_policy::{SourceFile, compile};
use gpu_store::{ApiOverride, BreakerRow, RejectedFiles, Settings};

use super::gate::Asked;
use super::hash::{files_hash, plan_hash};
use super::result::{Phases, ReloadOptions, ReloadOutcome, ReloadResult, Trigger, WatchTiming};
use super::rollback::{Kept, Probation};
use super::{Reloader, breaker};
use crate::handle::Unavailable;
use crate::inbox::Reload;

/// This many failures make files rejected.
const ATTEMPTS_MAX: u32 = 3;
/// So often a switch is planned again because leases came that nobody confirmed to drain.
const SWITCH_TRIES_MAX: usize = 16;

/// What one reload leaves for the next.
pub(super) struct Road {
    /// As they are now, and as they were last stored.
    pub(super) settings: Settings,
    pub(super) stored: Settings,
    /// Failures since the last good save.
    pub(super) attempts: u32,
    /// The last set that was refused or waits for a confirmation: the same bytes are not looked at again.
    pub(super) known: Option<(String, Arc<ReloadResult>)>,
    /// The bytes that were last seen on disk, by hash.
    pub(super) on_disk: String,
    /// Policies that were live, oldest first; the last of them is.
    pub(super) kept: VecDeque<Kept>,
    /// The live policy can still be taken back because its rules fail.
    pub(super) probation: Option<Probation>,
    /// Since when the next save is on trial and none came.
    pub(super) trial_since: Option<BootMs>,
    /// Overrides whose time is over stay because their end must be confirmed: what was asked.
    pub(super) end_asked: Option<Arc<ReloadResult>>,
    /// Plans that somebody was asked to confirm.
    pub(super) asked: VecDeque<Asked>,
}

/// Who wants what.
pub(super) struct Wanted<'a> {
    pub(super) trigger: Trigger,
    pub(super) by: &'a str,
    pub(super) options: &'a ReloadOptions,
    pub(super) timing: WatchTiming,
    /// The API overrides that go with it, instead of the present ones.
    pub(super) overrides: Option<Vec<ApiOverride>>,
    /// What is on disk is not to be tried again before it changes.
    pub(super) rejects: Option<RejectedFiles>,
    /// The rules of the live policy failed so: it is withdrawn, and nobody is asked to go because of it.
    pub(super) withdraws: Option<String>,
    /// It was decided before, as the end of an override was: its rules cannot take it back.
    pub(super) is_due: bool,
    /// The hash that the bytes had, where they are not those of the disk.
    pub(super) set: Option<String>,
}

/// A result on its way.
pub(super) struct Draft {
    pub(super) id: u64,
    pub(super) at: At,
    began: Instant,
    phases: Phases,
    files: Vec<String>,
    /// The hash of the bytes, where they could be read.
    set: String,
    pub(super) before: Arc<Policy>,
    pub(super) hash_after: Option<String>,
    changes: Vec<String>,
    plan: Option<Plan>,
    pub(super) plan_hash: Option<String>,
    /// Holders with a process, when it began.
    watched: Vec<(LeaseId, Fence)>,
    stale: Vec<LeaseId>,
    /// What led to the outcome, for the audit; stored with the switch, if there is one.
    pub(super) notes: Vec<Event>,
}

impl Road {
    pub(super) fn new(settings: Settings, kept: VecDeque<Kept>, on_disk: String) -> Self {
        Self {
            stored: settings.clone(),
            settings,
            attempts: 0,
            known: None,
            on_disk,
            kept,
            probation: None,
            trial_since: None,
            end_asked: None,
            asked: VecDeque::new(),
        }
    }

    fn live_set(&self) -> Option<&str> {
        self.kept.back().map(|kept| kept.set.as_str())
    }
}

impl<'a> Wanted<'a> {
    pub(super) fn new(trigger: Trigger, by: &'a str, options: &'a ReloadOptions) -> Self {
        Self {
            trigger,
            by,
            options,
            timing: WatchTiming::default(),
            overrides: None,
            rejects: None,
            withdraws: None,
            is_due: false,
            set: None,
        }
    }

    /// Whether it is about what is on disk.
    pub(super) fn is_about_disk(&self) -> bool {
        match self.trigger {
            Trigger::Api | Trigger::File | Trigger::Signal => true,
            Trigger::Override | Trigger::Rollback => false,
        }
    }

    /// Whether a person wants it, so that what went back and forth is forgiven.
    fn is_by_hand(&self) -> bool {
        match self.trigger {
            Trigger::Api | Trigger::Signal => true,
            Trigger::Rollback => self.withdraws.is_none(),
            Trigger::File | Trigger::Override => false,
        }
    }
}

impl Reloader {
    /// The road, for files that were read or could not be. Where the same bytes were looked at before
    /// and a watcher brings them again, the answer is the one of then.
    pub(super) fn run(
        &self,
        road: &mut Road,
        wanted: Wanted<'_>,
        read: impl FnOnce() -> Result<Vec<SourceFile>, String>,
    ) -> Arc<ReloadResult> {
        let mut draft = self.begin(&wanted);
        let began = Instant::now();
        let files = read();
        draft.phases.read = wanted.timing.read.or_else(|| Some(began.elapsed()));
        draft.set = match (&files, &wanted.set) {
            (_, Some(set)) => set.clone(),
            (Ok(files), None) => files_hash(files),
            (Err(_), None) => String::new(),
        };
        let before = self.looked_at_before(road, &wanted, &draft);
        if let Some(known) = before {
            return known;
        }
        draft.id = wanted.options.id.unwrap_or_else(|| self.new_id());
        if wanted.is_about_disk() && files.is_ok() {
            road.on_disk.clone_from(&draft.set);
        }
        let outcome = match files {
            Ok(files) => self.decide(road, &wanted, &mut draft, &files),
            Err(why) => {
                draft.note_begun(&wanted);
                ReloadOutcome::Unreadable(why)
            }
        };
        draft.stale = self.gone(&draft.watched);
        for note in mem::take(&mut draft.notes) {
            self.handle.note(note);
        }
        let result = Arc::new(draft.into_result(self.handle.now(), &wanted, outcome));
        self.settle(road, &wanted, &result);
        result
    }

    fn begin(&self, wanted: &Wanted<'_>) -> Draft {
        Draft {
            // Given once it is known that it is no repetition.
            id: 0,
            at: self.handle.now(),
            began: Instant::now(),
            phases: Phases {
                settle: wanted.timing.settle,
                path: wanted.timing.path.clone(),
                ..Phases::default()
            },
            files: Vec::new(),
            set: String::new(),
            before: self.handle.snapshot().policy.clone(),
            hash_after: None,
            changes: Vec::new(),
            plan: None,
            plan_hash: None,
            watched: self.handle.grants_with_process(),
            stale: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A save of bytes that were refused, or that wait for a confirmation, is no news.
    fn looked_at_before(
        &self,
        road: &Road,
        wanted: &Wanted<'_>,
        draft: &Draft,
    ) -> Option<Arc<ReloadResult>> {
        let known = road.known.as_ref();
        let (_, result) = known.filter(|(set, _)| *set == draft.set)?;
        (wanted.trigger == Trigger::File).then(|| {
            self.stand_as_candidate(road, result);
            result.clone()
        })
    }

    fn decide(
        &self,
        road: &mut Road,
        wanted: &Wanted<'_>,
        draft: &mut Draft,
        files: &[SourceFile],
    ) -> ReloadOutcome {
        draft.files = files.iter().map(|file| file.name.clone()).collect();
        let rejected = road.settings.rejected.as_ref();
        let rejected = rejected.filter(|rejected| rejected.hash == draft.set);
        if let (Trigger::File, Some(rejected)) = (wanted.trigger, rejected) {
            return ReloadOutcome::Rejected {
                why: rejected.why.clone(),
            };
        }
        let live = draft.before.source.hash.clone();
        if wanted.overrides.is_none() && road.live_set() == Some(&draft.set) {
            self.end_the_gone(&draft.watched);
            draft.hash_after = Some(live.clone());
            return match moved(wanted, &live) {
                Some(moved) => moved,
                None => ReloadOutcome::Unchanged,
            };
        }
        let present = &road.settings.overrides;
        let overrides = wanted.overrides.as_ref().unwrap_or(present);
        let began = Instant::now();
        let compiled = compile(files, &self.layers(overrides));
        draft.phases.compile = began.elapsed();
        self.end_the_gone(&draft.watched);
        match compiled {
            Ok(policy) => {
                draft.hash_after = Some(policy.source.hash.clone());
                draft.changes = self.changes((&draft.before, present), (&policy, overrides));
                self.judge(road, wanted, draft, Arc::new(policy))
            }
            Err(diagnostics) => {
                draft.note_begun(wanted);
                let attempt = match wanted.is_about_disk() {
                    true => road.attempts + 1,
                    false => 0,
                };
                ReloadOutcome::Refused {
                    diagnostics,
                    attempt,
                    rejected: attempt >= ATTEMPTS_MAX,
                }
            }
        }
    }

    /// What becomes of a good policy.
    fn judge(
        &self,
        road: &mut Road,
        wanted: &Wanted<'_>,
        draft: &mut Draft,
        policy: Arc<Policy>,
    ) -> ReloadOutcome {
        let live = draft.before.source.hash.clone();
        if let Some(moved) = moved(wanted, &live) {
            return moved;
        }
        if policy.source.hash == live {
            if let Some(overrides) = &wanted.overrides {
                road.settings.overrides.clone_from(overrides);
            }
            return ReloadOutcome::Unchanged;
        }
        draft.note_begun(wanted);
        if wanted.trigger == Trigger::File {
            let row = &mut road.settings.breaker;
            let path = wanted.timing.path.as_deref();
            if let Err(until) = breaker::admit(row, &policy.source.hash, path, draft.at) {
                return ReloadOutcome::Resting { until: until.wall };
            }
        }
        self.switch(road, wanted, draft, &policy)
            .unwrap_or_else(ReloadOutcome::Stopped)
    }

    /// Plans, asks the gate, and switches. Leases that came between the plan and the switch are planned
    /// by the switch itself; if they would be asked to go and nobody confirmed that, all is planned again.
    fn switch(
        &self,
        road: &mut Road,
        wanted: &Wanted<'_>,
        draft: &mut Draft,
        policy: &Arc<Policy>,
    ) -> Result<ReloadOutcome, Unavailable> {
        for round in 0..SWITCH_TRIES_MAX {
            let planned = self.planned(wanted, draft, policy);
            if round == 0 {
                draft.note_planned(wanted, &planned.plan);
            }
            let expect = match self.expectation(road, wanted, draft, policy, &planned) {
                Ok(expect) => expect,
                Err(outcome) => return Ok(outcome),
            };
            let switch = Switch {
                policy: policy.clone(),
                changes: draft.changes.join("; "),
                planned: Some(planned),
                expect,
            };
            let settings = after_switch(road, wanted, draft, policy);
            let began = Instant::now();
            let switched = self.handle.switch_blocking(Reload {
                id: draft.id,
                switch,
                notes: draft.notes.clone(),
                settings: settings.clone(),
            })?;
            draft.phases.apply += began.elapsed();
            match switched {
                Ok(Some(switched)) => {
                    draft.notes.clear();
                    draft.plan_hash = Some(plan_hash(&policy.source.hash, &switched.plan));
                    draft.plan = Some(switched.plan);
                    self.went_live(road, wanted, draft, policy, switched.generation);
                    road.settings = settings.clone();
                    road.stored = settings;
                    return Ok(applied(wanted, switched.generation));
                }
                Ok(None) => return Ok(ReloadOutcome::Unchanged),
                Err(_unexpected) => {}
            }
        }
        Ok(ReloadOutcome::Moved {
            live: draft.before.source.hash.clone(),
        })
    }

    fn planned(
        &self,
        wanted: &Wanted<'_>,
        draft: &mut Draft,
        policy: &Arc<Policy>,
    ) -> Arc<Planned> {
        let began = Instant::now();
        let mut planned = self.handle.plan(policy);
        if wanted.withdraws.is_some() {
            spare(&mut planned.plan);
        }
        draft.phases.plan += began.elapsed();
        draft.plan_hash = Some(plan_hash(&policy.source.hash, &planned.plan));
        draft.plan = Some(planned.plan.clone());
        Arc::new(planned)
    }

    fn went_live(
        &self,
        road: &mut Road,
        wanted: &Wanted<'_>,
        draft: &Draft,
        policy: &Arc<Policy>,
        generation: u64,
    ) {
        road.probation = Probation::begin(road, wanted, policy, self.handle.now());
        road.keep(Kept {
            generation,
            source: policy.source.clone(),
            set: match wanted.trigger {
                // The bytes below are the same.
                Trigger::Override => road.live_set().unwrap_or_default().to_owned(),
                _ => draft.set.clone(),
            },
        });
    }
}

impl Draft {
    fn into_result(self, now: At, wanted: &Wanted<'_>, outcome: ReloadOutcome) -> ReloadResult {
        tracing::debug!(reload = self.id, took = ?self.began.elapsed(), "{}", outcome.as_str());
        ReloadResult {
            id: self.id,
            trigger: wanted.trigger,
            by: wanted.by.to_owned(),
            at: self.at.wall,
            took: now.boot - self.at.boot,
            phases: self.phases,
            files: self.files,
            hash_before: self.before.source.hash.clone(),
            hash_after: self.hash_after,
            changes: self.changes,
            plan: self.plan,
            plan_hash: self.plan_hash,
            stale: self.stale,
            outcome,
        }
    }
}

fn moved(wanted: &Wanted<'_>, live: &str) -> Option<ReloadOutcome> {
    let expected = wanted.options.expect_live.as_ref();
    let moved = expected.is_some_and(|expected| expected != live);
    moved.then(|| ReloadOutcome::Moved {
        live: live.to_owned(),
    })
}

fn applied(wanted: &Wanted<'_>, generation: u64) -> ReloadOutcome {
    match &wanted.withdraws {
        Some(why) => ReloadOutcome::RolledBack {
            generation,
            why: why.clone(),
        },
        None => ReloadOutcome::Applied { generation },
    }
}

/// The settings once `policy` is live; they are stored with it.
fn after_switch(road: &Road, wanted: &Wanted<'_>, draft: &Draft, policy: &Policy) -> Settings {
    let settings = road.settings.clone();
    let overrides = wanted.overrides.clone();
    Settings {
        overrides: overrides.unwrap_or(settings.overrides),
        rejected: match wanted.trigger {
            Trigger::Override if wanted.rejects.is_none() => settings.rejected,
            _ => wanted.rejects.clone(),
        },
        breaker: breaker_after(settings.breaker, wanted, draft, policy),
        ..settings
    }
}

fn breaker_after(
    mut row: BreakerRow,
    wanted: &Wanted<'_>,
    draft: &Draft,
    policy: &Policy,
) -> BreakerRow {
    let before = &draft.before.source.hash;
    match wanted.trigger {
        Trigger::File => {
            breaker::saved_file_is_live(&mut row, before, &policy.source.hash, draft.at);
        }
        _ => breaker::retire(&mut row, before, draft.at),
    }
    if wanted.is_by_hand() {
        breaker::close(&mut row);
    }
    row
}

/// Nobody goes because a policy was withdrawn: what was granted meanwhile stays.
fn spare(plan: &mut Plan) {
    for held in &mut plan.held {
        held.shorten = None;
        held.fate = match held.fate {
            Fate::Drain(_) | Fate::Force | Fate::Shorten(_) => Fate::Keep,
            Fate::Keep | Fate::Withdraw => held.fate,
        };
    }
}

/// The files that a policy is made of.
pub(super) fn sources(source: &PolicySource) -> Vec<SourceFile> {
    let file = |(name, text): &(String, String)| SourceFile::new(name.clone(), text.clone());
    source.files.iter().map(file).collect()
}
