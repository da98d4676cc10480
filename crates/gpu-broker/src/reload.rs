//! From the bytes of policy files to a live policy: one road for every trigger, one result for everybody.

mod result;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_lease::{Event, EventKind, Expect, Ms, Plan, Policy, Switch};
use gpu_policy::{Diagnostics, Override, OverrideError, SourceFile, compile, diff};
use gpu_store::{ApiOverride, Settings, SwitchedBy};
use parking_lot::Mutex;
use thiserror::Error;

use crate::handle::{Handle, Unavailable};

pub use result::{
    Checked, Phases, Planning, ReloadOptions, ReloadOutcome, ReloadResult, Trigger, WatchTiming,
};
pub use state::{Breaker, Candidate, CandidateState, ReloadStart, ReloadState};

/// Reads the policy files as they are now.
type ReadFiles = Box<dyn Fn() -> Result<Vec<SourceFile>, String> + Send + Sync>;

/// A policy cannot be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RollbackError {
    /// Nothing was live before.
    #[error("no policy was live before this one, as far as is remembered")]
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

/// A setting cannot be put above the others.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SetOverrideError {
    /// It is no setting.
    #[error(transparent)]
    Malformed(#[from] OverrideError),
    /// It lasts too short or too long.
    #[error("an override lasts from 1s to {OVERRIDE_TTL_MAX}")]
    Ttl,
    /// There are too many.
    #[error("there can be no more than {OVERRIDES_MAX} overrides")]
    TooMany,
}

/// The longest life of an override.
pub const OVERRIDE_TTL_MAX: Ms = Ms::from_secs(30 * 86_400);
/// As many overrides there can be at once.
pub const OVERRIDES_MAX: usize = 64;

/// Compiles and switches policies, one at a time.
pub struct Reloader {
    handle: Handle,
    read: ReadFiles,
    /// The layers above the files that last as long as the broker.
    overrides: Vec<Override>,
    /// Nothing waits for a confirmation.
    dev: bool,
    state: Mutex<ReloadState>,
    /// Held for a whole reload, and to switch watching: triggers are served in order, none is lost.
    one_at_a_time: Mutex<Road>,
}

/// What one reload leaves for the next.
struct Road {
    reloads: u64,
    settings: Settings,
}

impl Reloader {
    /// Reloads through `handle` what `read` reads, under `overrides`.
    pub fn new(
        handle: Handle,
        read: ReadFiles,
        overrides: Vec<Override>,
        start: ReloadStart,
    ) -> Self {
        let state = ReloadState {
            watching: start.watching,
            // A switch that the command line overruled decides nothing.
            switched_by: start
                .settings
                .policy_watch
                .clone()
                .filter(|switch| switch.enabled == start.watching),
            degraded: start.degraded,
            ..ReloadState::default()
        };
        Self {
            handle,
            read,
            overrides,
            dev: start.dev,
            state: Mutex::new(state),
            one_at_a_time: Mutex::new(Road {
                reloads: 0,
                settings: start.settings,
            }),
        }
    }

    /// Reads the files now and makes them the live policy if they are good. Blocks until that is durable.
    pub fn reload(&self, trigger: Trigger, by: &str, options: &ReloadOptions) -> Arc<ReloadResult> {
        let _ = options;
        let mut road = self.one_at_a_time.lock();
        let read = (self.read)();
        self.run(&mut road, trigger, by, read)
    }

    /// The same for files that the caller has just written.
    pub fn apply_files(
        &self,
        files: Vec<SourceFile>,
        by: &str,
        options: &ReloadOptions,
    ) -> Arc<ReloadResult> {
        let _ = options;
        self.run(&mut self.one_at_a_time.lock(), Trigger::Api, by, Ok(files))
    }

    /// The same for bytes that a watcher has read; nothing while watching is switched off.
    pub fn offer(&self, files: Vec<SourceFile>, timing: WatchTiming) -> Option<Arc<ReloadResult>> {
        let _ = timing;
        let mut road = self.one_at_a_time.lock();
        if !self.state.lock().watching {
            return None;
        }
        Some(self.run(&mut road, Trigger::File, "", Ok(files)))
    }

    /// A watcher cannot read the files; what is live stays. Nothing while watching is switched off.
    pub fn offer_unreadable(&self, why: String) {
        let mut road = self.one_at_a_time.lock();
        if self.state.lock().watching {
            self.run(&mut road, Trigger::File, "", Err(why));
        }
    }

    /// A watcher can read the files again, and they are what it offered last: which may have been refused.
    pub fn offer_recovered(&self) {
        if self.state().watching {
            self.reload(Trigger::File, "", &ReloadOptions::default());
        }
    }

    /// Makes a policy live again that was before: that of generation `to`, else the one before this.
    ///
    /// # Errors
    /// It is not remembered.
    pub fn rollback(
        &self,
        by: &str,
        to: Option<u64>,
        options: &ReloadOptions,
    ) -> Result<Arc<ReloadResult>, RollbackError> {
        let _ = (by, options);
        Err(match to {
            None => RollbackError::NothingBefore,
            Some(generation) => RollbackError::NotKept {
                generation,
                kept: Vec::new(),
            },
        })
    }

    /// Puts `settings` (pairs such as `placement.strategy` and `spread`) above all others for `ttl`,
    /// instead of those that were there; none clears them.
    ///
    /// # Errors
    /// One is no setting, or `ttl` is out of range. Whether the policy is good with them is in the result.
    pub fn set_overrides(
        &self,
        settings: &[(String, String)],
        ttl: Ms,
        by: &str,
        options: &ReloadOptions,
    ) -> Result<Arc<ReloadResult>, SetOverrideError> {
        let _ = (settings, ttl, options);
        Ok(self.reload(Trigger::Override, by, options))
    }

    /// The settings that callers of the API set above all others.
    pub fn overrides(&self) -> Vec<ApiOverride> {
        self.state.lock().overrides.clone()
    }

    /// Does what has come due: ends overrides, looks at the errors of new rules, tries what rested.
    /// To be called about once a second, from a thread that may wait.
    pub fn tick(&self) {}

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
        let policy = compile(files, &self.overrides)?;
        Ok(Checked {
            hash: policy.source.hash.clone(),
            changes: changes(&self.handle.snapshot().policy, &policy),
        })
    }

    /// What `files` would mean now for what is held and what waits, without doing it.
    ///
    /// # Errors
    /// All errors of the files.
    pub fn plan(&self, files: &[SourceFile]) -> Result<Planning, Diagnostics> {
        let policy = compile(files, &self.overrides)?;
        let snapshot = self.handle.snapshot();
        Ok(Planning {
            hash: policy.source.hash.clone(),
            changes: changes(&snapshot.policy, &policy),
            plan: Plan::default(),
            plan_hash: String::new(),
            revision: snapshot.counters.revision,
            live: snapshot.policy.source.hash.clone(),
            confirm_needed: self.dev,
        })
    }

    /// What can be asked about reloads.
    pub fn state(&self) -> ReloadState {
        self.state.lock().clone()
    }

    /// Switches whether saved files are applied; that is stored. What was saved while they were not is
    /// looked at when they are again.
    ///
    /// # Errors
    /// The broker does not take it.
    pub fn set_watching(&self, enabled: bool, by: &str) -> Result<(), Unavailable> {
        self.switch_watching(enabled, by)?;
        if enabled {
            self.reload(Trigger::Api, by, &ReloadOptions::default());
        }
        Ok(())
    }

    fn switch_watching(&self, enabled: bool, by: &str) -> Result<(), Unavailable> {
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
        state.watching = enabled;
        state.switched_by = Some(switched);
        Ok(())
    }

    fn run(
        &self,
        road: &mut Road,
        trigger: Trigger,
        by: &str,
        read: Result<Vec<SourceFile>, String>,
    ) -> Arc<ReloadResult> {
        road.reloads += 1;
        let began = self.handle.now();
        let started = Instant::now();
        let before = self.handle.snapshot().policy.clone();
        let (files, compiled) = match read {
            Err(why) => (Vec::new(), Err(ReloadOutcome::Unreadable(why))),
            Ok(files) => {
                let names = files.iter().map(|file| file.name.clone()).collect();
                let refused = |diagnostics| ReloadOutcome::Refused {
                    diagnostics,
                    attempt: 1,
                    rejected: false,
                };
                let compiled = compile(&files, &self.overrides);
                (names, compiled.map_err(refused))
            }
        };
        let compile = started.elapsed();
        let hash_after = compiled
            .as_ref()
            .ok()
            .map(|policy| policy.source.hash.clone());
        let lines = compiled
            .as_ref()
            .map_or_else(|_| Vec::new(), |policy| changes(&before, policy));
        let (outcome, plan) = match compiled {
            Ok(policy) => self.switch(&lines, policy),
            Err(outcome) => (outcome, None),
        };
        let result = Arc::new(ReloadResult {
            id: road.reloads,
            trigger,
            by: by.to_owned(),
            at: began.wall,
            took: self.handle.now().boot - began.boot,
            phases: Phases {
                compile,
                apply: Duration::ZERO,
                ..Phases::default()
            },
            files,
            hash_before: before.source.hash.clone(),
            hash_after,
            changes: lines,
            plan,
            plan_hash: None,
            stale: Vec::new(),
            outcome,
        });
        self.remember(&result);
        result
    }

    fn switch(&self, changes: &[String], policy: Policy) -> (ReloadOutcome, Option<Plan>) {
        let switch = Switch {
            policy: Arc::new(policy),
            changes: changes.join("; "),
            planned: None,
            expect: Expect::default(),
        };
        match self.handle.set_policy_blocking(switch) {
            Ok(Ok(None) | Err(_)) => (ReloadOutcome::Unchanged, None),
            Ok(Ok(Some(switched))) => (
                ReloadOutcome::Applied {
                    generation: switched.generation,
                },
                Some(switched.plan),
            ),
            Err(unavailable) => (ReloadOutcome::Stopped(unavailable), None),
        }
    }

    fn remember(&self, result: &Arc<ReloadResult>) {
        let mut state = self.state.lock();
        state.remember(result);
        let mended = state.candidate.is_some();
        match &result.outcome {
            outcome if outcome.is_good() => {
                state.candidate = None;
                state.degraded = None;
            }
            ReloadOutcome::Refused { .. } | ReloadOutcome::Unreadable(_) => {
                self.handle.note(Event {
                    kind: EventKind::PolicyRefused,
                    lease: None,
                    device: None,
                    by: Some(result.by.clone()).filter(|by| !by.is_empty()),
                    text: format!("{:?}", result.outcome),
                });
                state.candidate = Some(Candidate {
                    result: result.clone(),
                    state: CandidateState::Failing,
                    attempt: 1,
                    since: result.at,
                });
            }
            _ => {}
        }
        if mended || !matches!(result.outcome, ReloadOutcome::Unchanged) {
            state.last = Some(result.clone());
        }
    }
}

fn changes(before: &Policy, after: &Policy) -> Vec<String> {
    diff(before, after)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn list(generations: &[u64]) -> String {
    let texts: Vec<_> = generations.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
