//! From the bytes of policy files to a live policy: one road for every trigger, one result for everybody.

use std::collections::VecDeque;
use std::sync::Arc;

use gpu_lease::{Event, EventKind, Expect, Ms, Plan, Policy, Switch, WallMs};
use gpu_policy::{Diagnostics, Override, SourceFile, compile, diff};
use gpu_store::{Settings, SwitchedBy};
use parking_lot::Mutex;

use crate::handle::{Handle, Unavailable};

/// Results that are kept for those who ask.
const HISTORY_MAX: usize = 32;

/// Reads the policy files as they are now.
type ReadFiles = Box<dyn Fn() -> Result<Vec<SourceFile>, String> + Send + Sync>;

/// Who wanted a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A caller of the HTTP API.
    Api,
    /// A command line.
    CommandLine,
    /// A saved file.
    File,
    /// SIGHUP.
    Signal,
    /// The start of the broker.
    Start,
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
    /// The files that were read.
    pub files: Vec<String>,
    /// The policy before.
    pub hash_before: String,
    /// The policy that the files say, if they say one.
    pub hash_after: Option<String>,
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
        /// What differs from the one before, a line each.
        changes: Vec<String>,
        /// What it meant for leases and waiters.
        plan: Plan,
    },
    /// The files have errors; the policy before stays.
    Refused {
        /// All of them.
        diagnostics: Diagnostics,
        /// How many failures there were since the last good save; a save that fails like the one before
        /// is no other.
        attempt: u32,
    },
    /// The broker did not take it.
    Stopped(Unavailable),
    /// The files say what is live.
    Unchanged,
    /// The files cannot be read, for the reason given; the policy before stays.
    Unreadable(String),
}

/// What a good set of files says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Its hash.
    pub hash: String,
    /// What differs from the live policy, a line each.
    pub changes: Vec<String>,
}

/// What can be asked about reloads.
#[derive(Clone, Debug, Default)]
pub struct ReloadState {
    /// Whether saved files are applied.
    pub watching: bool,
    /// Who switched that, if anybody did.
    pub switched_by: Option<String>,
    /// The last reload that changed something, was refused, or ended a refusal.
    pub last: Option<Arc<ReloadResult>>,
    /// The last reload, if the files on disk are refused or cannot be read.
    pub refused: Option<Arc<ReloadResult>>,
    /// Why the last good policy is live instead of the files, since the start.
    pub degraded: Option<String>,
    /// The last reloads, newest first.
    pub history: VecDeque<Arc<ReloadResult>>,
}

/// Compiles and switches policies, one at a time.
pub struct Reloader {
    handle: Handle,
    read: ReadFiles,
    overrides: Vec<Override>,
    state: Mutex<ReloadState>,
    /// Held for a whole reload, and to switch watching: triggers are served in order, none is lost.
    one_at_a_time: Mutex<Count>,
}

/// What is counted of reloads.
#[derive(Default)]
struct Count {
    /// All of them.
    reloads: u64,
    /// The refused ones since the last good save.
    attempts: u32,
    /// What the last of them said.
    complaint: String,
}

impl Reloader {
    /// Reloads through `handle` what `read` reads, under `overrides`.
    pub fn new(
        handle: Handle,
        read: ReadFiles,
        overrides: Vec<Override>,
        state: ReloadState,
    ) -> Self {
        Self {
            handle,
            read,
            overrides,
            state: Mutex::new(state),
            one_at_a_time: Mutex::default(),
        }
    }

    /// Reads the files now and makes them the live policy if they are good. Blocks until that is durable.
    pub fn reload(&self, trigger: Trigger, by: &str) -> Arc<ReloadResult> {
        let mut count = self.one_at_a_time.lock();
        match (self.read)() {
            Ok(files) => self.apply(&mut count, trigger, by, files),
            Err(why) => self.unread(&mut count, trigger, by, why),
        }
    }

    /// The same for bytes that a watcher has read; nothing while watching is switched off.
    pub fn offer(&self, files: Vec<SourceFile>) -> Option<Arc<ReloadResult>> {
        let mut count = self.one_at_a_time.lock();
        if !self.state.lock().watching {
            return None;
        }
        Some(self.apply(&mut count, Trigger::File, "", files))
    }

    /// A watcher cannot read the files; what is live stays. Nothing while watching is switched off.
    pub fn offer_unreadable(&self, why: String) {
        let mut count = self.one_at_a_time.lock();
        if self.state.lock().watching {
            self.unread(&mut count, Trigger::File, "", why);
        }
    }

    /// A watcher can read the files again, and they are what it offered last: which may have been refused.
    pub fn offer_recovered(&self) {
        if self.state().watching {
            self.reload(Trigger::File, "");
        }
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
        let policy = compile(files, &self.overrides)?;
        Ok(Checked {
            hash: policy.source.hash.clone(),
            changes: changes(&self.handle.snapshot().policy, &policy),
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
            self.reload(Trigger::Api, by);
        }
        Ok(())
    }

    fn switch_watching(&self, enabled: bool, by: &str) -> Result<(), Unavailable> {
        // What is stored last must be what is switched last.
        let _count = self.one_at_a_time.lock();
        self.handle.store_settings_blocking(Settings {
            policy_watch: Some(SwitchedBy {
                enabled,
                by: by.to_owned(),
                at: self.handle.now().wall,
            }),
        })?;
        let mut state = self.state.lock();
        state.watching = enabled;
        state.switched_by = Some(by.to_owned());
        Ok(())
    }

    fn apply(
        &self,
        count: &mut Count,
        trigger: Trigger,
        by: &str,
        files: Vec<SourceFile>,
    ) -> Arc<ReloadResult> {
        let began = self.handle.now();
        let before = self.handle.snapshot().policy.clone();
        let names = files.iter().map(|file| file.name.clone()).collect();
        let compiled = compile(&files, &self.overrides);
        let hash_after = compiled
            .as_ref()
            .ok()
            .map(|policy| policy.source.hash.clone());
        let result = Arc::new(ReloadResult {
            id: count.next(),
            trigger,
            by: by.to_owned(),
            at: began.wall,
            files: names,
            hash_before: before.source.hash.clone(),
            hash_after,
            outcome: match compiled {
                Ok(policy) => {
                    count.good();
                    self.switch(&before, policy)
                }
                Err(diagnostics) => ReloadOutcome::Refused {
                    attempt: count.bad(trigger, &diagnostics),
                    diagnostics,
                },
            },
            took: self.handle.now().boot - began.boot,
        });
        self.remember(&result);
        result
    }

    fn unread(
        &self,
        count: &mut Count,
        trigger: Trigger,
        by: &str,
        why: String,
    ) -> Arc<ReloadResult> {
        let result = Arc::new(ReloadResult {
            id: count.next(),
            trigger,
            by: by.to_owned(),
            at: self.handle.now().wall,
            took: Ms(0),
            files: Vec::new(),
            hash_before: self.handle.snapshot().policy.source.hash.clone(),
            hash_after: None,
            outcome: ReloadOutcome::Unreadable(why),
        });
        self.remember(&result);
        result
    }

    fn switch(&self, before: &Policy, policy: Policy) -> ReloadOutcome {
        let changes = changes(before, &policy);
        let switch = Switch {
            policy: Arc::new(policy),
            changes: changes.join("; "),
            planned: None,
            expect: Expect::default(),
        };
        match self.handle.set_policy_blocking(switch) {
            Ok(Ok(None) | Err(_)) => ReloadOutcome::Unchanged,
            Ok(Ok(Some(switched))) => ReloadOutcome::Applied {
                generation: switched.generation,
                changes,
                plan: switched.plan,
            },
            Err(unavailable) => ReloadOutcome::Stopped(unavailable),
        }
    }

    fn remember(&self, result: &Arc<ReloadResult>) {
        self.report(result);
        let mut state = self.state.lock();
        let mended = state.refused.is_some();
        match &result.outcome {
            ReloadOutcome::Applied { .. } | ReloadOutcome::Unchanged => {
                state.refused = None;
                state.degraded = None;
            }
            ReloadOutcome::Refused { .. } | ReloadOutcome::Unreadable(_) => {
                state.refused = Some(result.clone());
            }
            ReloadOutcome::Stopped(_) => {}
        }
        let told = !matches!(result.outcome, ReloadOutcome::Unchanged);
        if told || mended {
            state.last = Some(result.clone());
        }
        state.history.push_front(result.clone());
        state.history.truncate(HISTORY_MAX);
    }

    /// The log says it all; the event stream says what the switch itself did not.
    fn report(&self, result: &ReloadResult) {
        match &result.outcome {
            ReloadOutcome::Applied {
                generation,
                changes,
                ..
            } => {
                tracing::info!(generation, took = %result.took, "policy is live: {}", changes.join("; "));
            }
            ReloadOutcome::Refused {
                diagnostics,
                attempt,
            } => {
                tracing::error!(
                    attempt,
                    "policy is refused, the one before stays live\n{diagnostics}"
                );
                self.note_refusal(result, diagnostics.to_string());
            }
            ReloadOutcome::Stopped(why) => tracing::warn!("policy is not applied: {why}"),
            ReloadOutcome::Unchanged => tracing::info!("policy files say what is live already"),
            ReloadOutcome::Unreadable(why) => {
                tracing::error!("policy files cannot be read, the policy before stays live: {why}");
                self.note_refusal(result, why.clone());
            }
        }
    }

    fn note_refusal(&self, result: &ReloadResult, text: String) {
        self.handle.note(Event {
            kind: EventKind::PolicyRefused,
            lease: None,
            device: None,
            by: Some(result.by.clone()).filter(|by| !by.is_empty()),
            text,
        });
    }
}

impl Count {
    fn next(&mut self) -> u64 {
        self.reloads += 1;
        self.reloads
    }

    fn good(&mut self) {
        self.attempts = 0;
        self.complaint.clear();
    }

    /// Which attempt this is. Whoever asks makes one; a save only if it fails in another way.
    fn bad(&mut self, trigger: Trigger, diagnostics: &Diagnostics) -> u32 {
        let complaint = diagnostics.to_string();
        let is_another = trigger != Trigger::File || complaint != self.complaint;
        self.attempts += u32::from(is_another);
        self.complaint = complaint;
        self.attempts
    }
}

fn changes(before: &Policy, after: &Policy) -> Vec<String> {
    diff(before, after)
        .iter()
        .map(ToString::to_string)
        .collect()
}
