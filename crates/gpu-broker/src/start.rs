//! What a life of the broker starts from: which policy, which books, and what the start itself does to them.

use std::io;
use std::sync::Arc;

use gpu_lease::canary::{Canary, is_planted};
use gpu_lease::{
    At, Books, Command, Confirm, Event, EventKind, Expect, Fence, Ms, Phase, Policy, Rows, Switch,
};
use gpu_policy::{Diagnostics, Override, SourceFile, compile};
use gpu_store::{
    BreakerRow, EventPosition, LastGood, ReadError, RejectedFiles, Settings, Store, Stored,
};
use thiserror::Error;

use crate::broker::Config;
use crate::reload::{api_layers, depends_on_devices, files_hash, unexpired};
use crate::turn::{Fatal, Opening};

/// After a start holders have this long to send the heartbeats that nobody took.
const START_GRACE_MS: Ms = Ms::from_secs(30);

/// The policy to start with: the files as they are now, with what goes over them.
pub struct StartPolicy {
    /// The files, in the order in which they apply, or why they cannot be read.
    pub files: Result<Vec<SourceFile>, String>,
    /// The layers above the files.
    pub overrides: Vec<Override>,
    /// Dev mode: nothing waits for a confirmation.
    pub dev: bool,
}

/// A broker cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The policy has errors or cannot be read, and no earlier one is stored.
    #[error("the policy has errors and no last good one is stored\n{0}")]
    Policy(String),
    /// The policy has errors or cannot be read, and the last good one has errors too.
    #[error(
        "the policy has errors, and so has the last good one that is stored\n{files}\nthe last good one:\n{last_good}"
    )]
    LastGood {
        /// What is wrong with the files.
        files: String,
        /// Of the last good ones, as this version reads them under the settings above them.
        last_good: Diagnostics,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store cannot be written.
    #[error(transparent)]
    Write(#[from] Fatal),
    /// No thread.
    #[error("the broker's threads cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// Which policy a life begins under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Under {
    /// That of the files.
    Files,
    /// The one that was live when the last life ended.
    LastGood,
}

/// What a life begins with: found in the store, decided, and not durable yet.
pub(crate) struct Beginning {
    /// As they were found, under the policy that they decided by.
    pub(crate) books: Books,
    pub(crate) chosen: Chosen,
    /// What is stored beside the rows, without what ended meanwhile.
    pub(crate) settings: Settings,
    pub(crate) rebooted: bool,
    pub(crate) files_hash: String,
    /// Whether the life before, if there was one, wrote down that it ends.
    in_order: bool,
}

/// What to start with, all layers known.
struct Start<'a> {
    files: Result<&'a [SourceFile], &'a String>,
    files_hash: String,
    /// The layers above the files that last as long as the broker.
    base: &'a [Override],
    /// All of them.
    layers: Vec<Override>,
    rejected: Option<&'a RejectedFiles>,
    dev: bool,
}

/// The policy to start with.
pub(crate) struct Chosen {
    pub(crate) policy: Arc<Policy>,
    /// Why it is not that of the files, where they are bad.
    pub(crate) degraded: Option<String>,
    /// The files, where they are good and something else is live.
    pub(crate) waiting: Option<Vec<SourceFile>>,
}

impl Beginning {
    /// Takes the rows out of `stored`.
    pub(crate) fn of(
        stored: &mut Stored,
        config: &Config,
        under: Under,
        at: At,
    ) -> Result<Self, StartError> {
        let rows = stored.rows.take();
        let in_order = stopped_in_order(&*config.store, rows.as_ref())?;
        let rebooted = is_rebooted(stored, &config.boot_id);
        let mut settings = still_true(&stored.settings, rebooted, at);
        let start = Start::of(&config.policy, &settings);
        let mut chosen = start.choose(under, stored.policy.as_ref())?;
        let mut books = recover(stored, rows, &chosen.policy, &start.layers, at);
        // What another boot held has ended and cannot be asked to go.
        if under == Under::Files
            && !rebooted
            && let Some(safe) = start.gate(&chosen, stored, &books, at)
        {
            // Also overrides that ended meanwhile stay until their end is confirmed.
            settings = stored.settings.clone();
            chosen = safe;
            let layers = Start::of(&config.policy, &settings).layers;
            books = recover(stored, Some(books.rows()), &chosen.policy, &layers, at);
        }
        Ok(Self {
            files_hash: Start::of(&config.policy, &settings).files_hash,
            books,
            chosen,
            settings,
            rebooted,
            in_order,
        })
    }

    /// What is to be made durable first of all.
    pub(crate) fn opening(&self, stored: &Stored, config: &Config, at: At) -> Opening {
        let settings = &self.settings;
        Opening {
            boot_id: config.boot_id.clone(),
            settings: (*settings != stored.settings).then(|| settings.clone()),
            commands: self.commands(&config.introduction, at),
        }
    }

    fn commands(&self, introduction: &str, at: At) -> Vec<Command> {
        let started = Command::Note(self.introduce(introduction));
        let reboot = self.rebooted.then_some(Command::HostRebooted);
        let grace = grace_at_start(&self.books, at);
        let switch = Command::SetPolicy(Box::new(Switch {
            policy: self.chosen.policy.clone(),
            changes: "the files changed while no broker ran".to_owned(),
            planned: None,
            expect: Expect::default(),
        }));
        let commands = [Some(started), reboot, grace, Some(switch)];
        commands.into_iter().flatten().collect()
    }

    fn introduce(&self, introduction: &str) -> Event {
        let how = match (self.rebooted, self.in_order) {
            (true, _) => "the host was booted since, so what was held has ended".to_owned(),
            (false, true) => held(&self.books),
            (false, false) => format!(
                "{}; the one before did not stop in order",
                held(&self.books)
            ),
        };
        Event {
            kind: EventKind::BrokerStarted,
            lease: None,
            device: None,
            by: None,
            text: format!("{introduction} started: {how}"),
        }
    }
}

/// That nothing more comes of this life.
pub(crate) fn farewell(books: &Books) -> Event {
    Event {
        kind: EventKind::BrokerStopped,
        lease: None,
        device: None,
        by: None,
        text: format!("stopped in order: {}", held(books)),
    }
}

fn held(books: &Books) -> String {
    let held = books.leases().filter(|lease| lease.held().is_some());
    match held.count() {
        1 => "1 lease held".to_owned(),
        held => format!("{held} leases held"),
    }
}

fn is_rebooted(stored: &Stored, boot_id: &str) -> bool {
    let boot = stored.boot_id.as_deref();
    boot.is_some_and(|boot| boot != boot_id || is_planted(Canary::RestartTakenForReboot))
}

/// Whether the last thing that was written with `rows` is that the broker stopped.
fn stopped_in_order(store: &dyn Store, rows: Option<&Rows>) -> Result<bool, ReadError> {
    let Some(rows) = rows else {
        return Ok(true);
    };
    let before = EventPosition {
        revision: rows.counters.revision.saturating_sub(1),
        n: u32::MAX,
    };
    let page = store.events(Some(before), 1)?;
    let last = page.events.first().filter(|_| !page.reset);
    Ok(last.is_some_and(|last| last.event.kind == EventKind::BrokerStopped))
}

impl<'a> Start<'a> {
    fn of(policy: &'a StartPolicy, settings: &'a Settings) -> Self {
        let base = policy.overrides.iter().cloned();
        let files = policy.files.as_deref();
        Self {
            files,
            files_hash: files.map_or_else(|_| String::new(), files_hash),
            base: &policy.overrides,
            layers: base.chain(api_layers(&settings.overrides)).collect(),
            rejected: settings.rejected.as_ref(),
            dev: policy.dev,
        }
    }

    fn choose(&self, under: Under, last_good: Option<&LastGood>) -> Result<Chosen, StartError> {
        match under {
            Under::Files => self.choose_policy(last_good),
            Under::LastGood => self.keep_policy(last_good),
        }
    }

    /// The files if they compile and were not taken back, else what was last good.
    fn choose_policy(&self, last_good: Option<&LastGood>) -> Result<Chosen, StartError> {
        match self.compiled() {
            Ok(policy) => {
                let taken_back = last_good.filter(|_| self.is_taken_back());
                let good = taken_back.and_then(|good| recompile(good, &self.layers).ok());
                Ok(Chosen {
                    waiting: good.as_ref().and(self.waiting()),
                    policy: good.unwrap_or_else(|| Arc::new(policy)),
                    degraded: None,
                })
            }
            Err(files) => {
                let Some(good) = last_good else {
                    return Err(StartError::Policy(files));
                };
                match self.recompile_last(good) {
                    Ok(policy) => Ok(Chosen {
                        policy,
                        degraded: Some(files),
                        waiting: None,
                    }),
                    Err(last_good) => Err(StartError::LastGood { files, last_good }),
                }
            }
        }
    }

    /// What was last good, said to be the very same whatever lies over it now. One that this version does not
    /// understand leaves its name to what is given: what is held is kept under any policy.
    fn keep_policy(&self, last_good: Option<&LastGood>) -> Result<Chosen, StartError> {
        let given = || self.compiled().map_err(StartError::Policy);
        let policy = match last_good {
            None => Arc::new(given()?),
            Some(good) => {
                let kept = match self.recompile_last(good) {
                    Ok(policy) => Policy::clone(&policy),
                    Err(_) => given()?,
                };
                let source = good.source.clone();
                Arc::new(Policy { source, ..kept })
            }
        };
        Ok(Chosen {
            policy,
            degraded: None,
            waiting: None,
        })
    }

    fn compiled(&self) -> Result<Policy, String> {
        let files = self.files.map_err(Clone::clone)?;
        compile(files, &self.layers).map_err(|errors| errors.to_string())
    }

    fn waiting(&self) -> Option<Vec<SourceFile>> {
        self.files.ok().map(<[SourceFile]>::to_vec)
    }

    /// What to start with instead, if a reload to `chosen` had to be confirmed: a restart is no way around
    /// that. Devices are not known yet: a policy of which the plan depends on them is planned once they are.
    /// Settings of the command line are not held back: whoever starts the broker sets them.
    /// `books` are those that were found.
    fn gate(&self, chosen: &Chosen, stored: &Stored, books: &Books, at: At) -> Option<Chosen> {
        let good = stored.policy.as_ref()?;
        if self.dev || chosen.degraded.is_some() || chosen.waiting.is_some() {
            return None;
        }
        let confirm = (books.policy().reload.confirm).max(chosen.policy.reload.confirm);
        let holds = books.leases().any(|lease| lease.held().is_some());
        let is_blind = holds
            && confirm != Confirm::Never
            && *books.policy() != chosen.policy
            && depends_on_devices(&chosen.policy);
        if !is_blind && !books.plan(at, &chosen.policy).needs(confirm) {
            return None;
        }
        let before = self.base.iter().cloned();
        let before: Vec<_> = before
            .chain(api_layers(&stored.settings.overrides))
            .collect();
        Some(Chosen {
            policy: recompile(good, &before).ok()?,
            degraded: None,
            waiting: self.waiting(),
        })
    }

    /// Whether these very files were live and are to be no more; those that only failed may be good by now.
    fn is_taken_back(&self) -> bool {
        self.rejected
            .is_some_and(|rejected| rejected.hash == self.files_hash && rejected.attempt == 0)
    }

    /// With the API overrides, or without them if they do not fit.
    fn recompile_last(&self, good: &LastGood) -> Result<Arc<Policy>, Diagnostics> {
        recompile(good, &self.layers).or_else(|errors| {
            let bare = recompile(good, self.base);
            bare.map_err(|_| errors)
        })
    }
}

/// What is stored of settings, without what ended with its boot or by its time.
fn still_true(stored: &Settings, rebooted: bool, at: At) -> Settings {
    match rebooted {
        true => Settings {
            overrides: Vec::new(),
            breaker: BreakerRow::default(),
            ..stored.clone()
        },
        false => Settings {
            overrides: unexpired(&stored.overrides, at),
            ..stored.clone()
        },
    }
}

fn recompile(good: &LastGood, overrides: &[Override]) -> Result<Arc<Policy>, Diagnostics> {
    let files = good.source.files.iter();
    let file = |(name, text): &(String, String)| SourceFile::new(name.clone(), text.clone());
    let files: Vec<SourceFile> = files.map(file).collect();
    compile(&files, overrides).map(Arc::new)
}

/// The books that wrote the rows, under the policy that they decided by, so that a policy which changed
/// while no broker ran is switched to like any other.
fn recover(
    stored: &Stored,
    rows: Option<Rows>,
    policy: &Arc<Policy>,
    overrides: &[Override],
    at: At,
) -> Books {
    let Some(rows) = rows else {
        return Books::new(policy.clone(), first_fence(at));
    };
    let last = stored.policy.as_ref();
    let last = last.map(|good| decided_by(good, policy, overrides));
    Books::from_rows(last.unwrap_or_else(|| policy.clone()), rows)
}

/// The policy of before. What lay over its files is not stored: if neither the present overrides nor none
/// make it what it was, it is at least known to be another one than `policy`.
fn decided_by(good: &LastGood, policy: &Arc<Policy>, overrides: &[Override]) -> Arc<Policy> {
    let bare = recompile(good, &[]).ok();
    let bare = bare.filter(|bare| bare.source.hash == good.source.hash);
    let last = bare.map_or_else(|| recompile(good, overrides), Ok);
    let last = last.inspect_err(|why| {
        tracing::warn!("the policy of before cannot be read any more and is ignored\n{why}");
    });
    Arc::new(Policy {
        source: good.source.clone(),
        ..Policy::clone(&last.unwrap_or_else(|_| policy.clone()))
    })
}

/// Higher than every fence that a deleted store can have given.
fn first_fence(at: At) -> Fence {
    let (seconds, millis) = (at.wall.0 / 1000, at.wall.0 % 1000);
    // Two stores of one second are told apart too: 1000 << 10 is still less than 1 << 20.
    Fence((seconds << 20) + (millis << 10))
}

/// For holders and waiters of before, who could not send heartbeats. Where there are none, nothing is late.
fn grace_at_start(books: &Books, at: At) -> Option<Command> {
    let mut leases = books.leases();
    let waited_for = leases.any(|lease| !matches!(lease.phase, Phase::Ended(_)));
    waited_for.then_some(Command::Grace {
        until: at.boot + START_GRACE_MS,
    })
}
