//! From the bytes of policy files to a live policy: one road for every trigger, one result for everybody.

mod breaker;
mod gate;
mod hash;
mod overrides;
mod result;
mod road;
mod rollback;
mod settle;
mod state;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gpu_lease::Policy;
use gpu_policy::{
    Diagnostics, Layers, Override, SourceFile, compile, compile_with_warnings, diff_sources,
};
use gpu_store::{ApiOverride, LastGood, Settings, SwitchedBy};
use parking_lot::Mutex;

use crate::handle::{Handle, Unavailable};
use hash::plan_hash;
use road::{Road, Wanted};
use rollback::Kept;

pub(crate) use gate::depends_on_devices;
pub(crate) use hash::files_hash;
pub use overrides::{OVERRIDE_TTL_MAX, OVERRIDES_MAX, SetOverrideError};
pub(crate) use overrides::{api_layers, unexpired};
pub use result::{
    Checked, Phases, Planning, ReloadOptions, ReloadOutcome, ReloadResult, Trigger, WatchTiming,
};
pub use rollback::RollbackError;
pub use state::{Breaker, Candidate, CandidateState, ReloadStart, ReloadState};

/// Reads the policy files as they are now.
type ReadFiles = Box<dyn Fn() -> Result<Vec<SourceFile>, String> + Send + Sync>;

/// Compiles and switches policies, one at a time.
pub struct Reloader {
    handle: Handle,
    read: ReadFiles,
    /// The layers above the files that last as long as the broker.
    overrides: Vec<Override>,
    /// Nothing waits for a confirmation.
    dev: bool,
    state: Mutex<ReloadState>,
    /// Ids that were given away.
    ids: AtomicU64,
    /// Held for a whole reload, and to switch watching: triggers are served in order, none is lost.
    one_at_a_time: Mutex<Road>,
}

impl Reloader {
    /// Reloads through `handle` what `read` reads, under `overrides`. Blocks where the start left files
    /// waiting: what they stand for is found out like that of a saved file.
    pub fn new(
        handle: Handle,
        read: ReadFiles,
        overrides: Vec<Override>,
        start: ReloadStart,
    ) -> Self {
        let snapshot = handle.snapshot();
        let live = Kept::from(&LastGood {
            generation: snapshot.counters.generation,
            source: snapshot.policy.source.clone(),
        });
        let live = match start.degraded.is_some() || start.waiting.is_some() {
            true => live,
            false => Kept {
                set: start.files_hash.clone(),
                ..live
            },
        };
        let kept = start.previous.as_ref().map(Kept::from);
        let kept = kept.into_iter().chain([live]).collect();
        // A switch that the command line overruled decides nothing.
        let switch = start.settings.policy_watch.clone();
        let switched_by = switch.filter(|switch| switch.enabled == start.watching);
        let state = ReloadState {
            watching: start.watching,
            switched_by,
            degraded: start.degraded,
            breaker: breaker::shown(&start.settings.breaker),
            overrides: start.settings.overrides.clone(),
            ..ReloadState::default()
        };
        let reloader = Self {
            handle,
            read,
            overrides,
            dev: start.dev,
            state: Mutex::new(state),
            ids: AtomicU64::new(0),
            one_at_a_time: Mutex::new(Road::new(start.settings, kept, start.files_hash)),
        };
        if let Some(files) = start.waiting {
            let options = ReloadOptions::default();
            let wanted = Wanted::new(Trigger::File, "", &options);
            reloader.run(&mut reloader.one_at_a_time.lock(), wanted, || Ok(files));
        }
        reloader
    }

    /// An id for a reload, for whoever has to name it before it is over.
    pub fn new_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Reads the files now and makes them the live policy if they are good. Blocks until that is durable.
    /// Where `options` confirm the end of overrides, it is only about that.
    pub fn reload(&self, trigger: Trigger, by: &str, options: &ReloadOptions) -> Arc<ReloadResult> {
        let mut road = self.one_at_a_time.lock();
        if let Some(ended) = self.confirm_end(&mut road, by, options) {
            return ended;
        }
        let wanted = Wanted::new(trigger, by, options);
        self.run(&mut road, wanted, || (self.read)())
    }

    /// The same for files that the caller has just written.
    pub fn apply_files(
        &self,
        files: Vec<SourceFile>,
        by: &str,
        options: &ReloadOptions,
    ) -> Arc<ReloadResult> {
        let mut road = self.one_at_a_time.lock();
        let wanted = Wanted::new(Trigger::Api, by, options);
        self.run(&mut road, wanted, || Ok(files))
    }

    /// The same for bytes that a watcher has read; nothing while watching is switched off.
    pub fn offer(&self, files: Vec<SourceFile>, timing: WatchTiming) -> Option<Arc<ReloadResult>> {
        self.offered(timing, Ok(files))
    }

    /// A watcher cannot read the files; what is live stays. Nothing while watching is switched off.
    pub fn offer_unreadable(&self, why: String) {
        self.offered(WatchTiming::default(), Err(why));
    }

    /// A watcher can read the files again, and they are what it offered last: which may have been refused.
    pub fn offer_recovered(&self) {
        if self.state.lock().watching {
            self.reload(Trigger::File, "", &ReloadOptions::default());
        }
    }

    fn offered(
        &self,
        timing: WatchTiming,
        files: Result<Vec<SourceFile>, String>,
    ) -> Option<Arc<ReloadResult>> {
        let mut road = self.one_at_a_time.lock();
        if !self.state.lock().watching {
            return None;
        }
        let options = ReloadOptions::default();
        let wanted = Wanted {
            timing,
            ..Wanted::new(Trigger::File, "", &options)
        };
        Some(self.run(&mut road, wanted, || files))
    }

    /// Does what has come due: takes a policy back whose rules fail, ends overrides, tries what rested
    /// or was not taken.
    /// To be called about once a second, from a thread that may wait.
    pub fn tick(&self) {
        let mut road = self.one_at_a_time.lock();
        let now = self.handle.now();
        self.withdraw_if_failing(&mut road, now);
        self.end_overrides(&mut road, now);
        self.end_rest(&mut road, now);
        self.retry_save(&mut road);
        self.store(&mut road);
        self.publish(&road, None);
    }

    /// The policy files as they are now.
    ///
    /// # Errors
    /// They cannot be read, for the reason given.
    pub fn read(&self) -> Result<Vec<SourceFile>, String> {
        (self.read)()
    }

    /// What `files` would change, without changing it.
    ///
    /// # Errors
    /// All errors of the files.
    pub fn check(&self, files: &[SourceFile]) -> Result<Checked, Diagnostics> {
        let set = self.overrides();
        let compiled = compile_with_warnings(files, &self.layers(&set))?;
        let live = self.handle.snapshot().policy.clone();
        Ok(Checked {
            hash: compiled.policy.source.hash.clone(),
            changes: self.changes((&live, &set), (&compiled.policy, &set)),
            warnings: compiled.warnings,
        })
    }

    /// What `files` would mean now for what is held and what waits, without doing it.
    ///
    /// # Errors
    /// All errors of the files.
    pub fn plan(&self, files: &[SourceFile]) -> Result<Planning, Diagnostics> {
        let set = self.overrides();
        let policy = compile(files, &self.layers(&set))?;
        let snapshot = self.handle.snapshot();
        let planned = self.handle.plan(&policy);
        let confirm = self.confirm(&snapshot.policy, &policy);
        Ok(Planning {
            hash: policy.source.hash.clone(),
            changes: self.changes((&snapshot.policy, &set), (&policy, &set)),
            plan_hash: plan_hash(&policy.source.hash, &planned.plan),
            revision: planned.revision,
            live: planned.live,
            confirm_needed: planned.plan.needs(confirm),
            plan: planned.plan,
        })
    }

    /// What can be asked about reloads.
    pub fn state(&self) -> ReloadState {
        ReloadState {
            erring: self.handle.snapshot().policy.rules.errors(),
            ..self.state.lock().clone()
        }
    }

    /// Switches whether saved files are applied; that is stored. What was saved while they were not is
    /// looked at when they are again, as if it were saved then: what was withdrawn or rejected stays so.
    ///
    /// # Errors
    /// The broker does not take it.
    pub fn set_watching(&self, enabled: bool, by: &str) -> Result<(), Unavailable> {
        let was_enabled = self.switch_watching(enabled, by)?;
        if enabled && !was_enabled {
            self.reload(Trigger::File, by, &ReloadOptions::default());
        }
        Ok(())
    }

    /// Answers what it was before.
    fn switch_watching(&self, enabled: bool, by: &str) -> Result<bool, Unavailable> {
        // What is stored last must be what is switched last.
        let mut road = self.one_at_a_time.lock();
        let switched = SwitchedBy {
            enabled,
            by: by.to_owned(),
            at: self.handle.now().wall,
        };
        let settings = Settings {
            policy_watch: Some(switched.clone()),
            ..road.settings.clone()
        };
        self.handle.store_settings_blocking(settings.clone())?;
        road.settings = settings;
        let mut state = self.state.lock();
        state.switched_by = Some(switched);
        Ok(mem::replace(&mut state.watching, enabled))
    }

    /// All that lies above the files, the lowest first.
    fn layers(&self, set: &[ApiOverride]) -> Vec<Override> {
        let base = self.overrides.iter().cloned();
        base.chain(api_layers(set)).collect()
    }

    /// What differs between two policies, each under its API overrides, a line each; also what the
    /// files say anew and a layer above them hides.
    fn changes(
        &self,
        (live, below): (&Policy, &[ApiOverride]),
        (policy, set): (&Policy, &[ApiOverride]),
    ) -> Vec<String> {
        let before = Layers {
            files: &live.source.files,
            overrides: &self.layers(below),
        };
        let after = Layers {
            files: &policy.source.files,
            overrides: &self.layers(set),
        };
        let changes = diff_sources(before, after);
        changes.iter().map(ToString::to_string).collect()
    }
}
