//! Starting from what is stored, running the loop on its own thread, and stopping in order.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gpu_lease::{At, Books, BootMs, Command, Confirm, Expect, Fence, Ms, Phase, Policy, Switch};
use gpu_policy::{Diagnostics, Override, SourceFile, compile};
use gpu_store::{BreakerRow, LastGood, ReadError, RejectedFiles, Settings, Store, Stored};
use thiserror::Error;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::effects::{Effects, ReadNow};
use crate::handle::{Handle, Shared};
use crate::inbox::{self, Inbox, Message};
use crate::reload::{ReloadStart, api_layers, depends_on_devices, files_hash, unexpired};
use crate::turn::{Fatal, Turn};
use crate::view::View;

/// After a start holders have this long to send the heartbeats that nobody took.
const START_GRACE_MS: Ms = Ms::from_secs(30);
/// The same after a pause of the loop.
const PAUSE_GRACE_MS: Ms = Ms::from_secs(5);
/// The loop was paused (suspend, SIGSTOP) if it wakes this much later than it wanted to.
const PAUSE_MS: Ms = Ms::from_secs(1);
/// The loop looks at the clock this often while anything has a deadline, so that it notices a pause.
const TICK_MS: Ms = Ms(500);

/// What a broker is made of.
pub struct Config {
    /// Where rows live.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The present boot.
    pub boot_id: String,
    /// The policy to start with.
    pub policy: StartPolicy,
    /// Asks for a reading of the devices now.
    pub read_now: ReadNow,
}

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

/// A broker that runs, and how its start went.
pub struct Started {
    /// To stop it.
    pub broker: Broker,
    /// To ask it.
    pub handle: Handle,
    /// Why it runs on the last good policy and not on the files, if it does.
    pub degraded: Option<String>,
    /// Leases that were held when the broker ended and still are.
    pub kept: usize,
    /// Whether the host was booted since, so that every lease of before has ended.
    pub rebooted: bool,
    /// What was stored beside the rows, without what ended meanwhile.
    pub settings: Settings,
    /// The policy that was live when the broker ended, if this start replaced it.
    previous: Option<LastGood>,
    /// The files, if they are good and may not go live by a start alone.
    waiting: Option<Vec<SourceFile>>,
    files_hash: String,
    dev: bool,
}

impl Started {
    /// What reloads begin with: what was stored of them, and how the start went. Whether files are
    /// watched is what was switched last, else it is not.
    pub fn reload_start(&self) -> ReloadStart {
        let switched = self.settings.policy_watch.as_ref();
        ReloadStart {
            watching: switched.is_some_and(|switch| switch.enabled),
            settings: self.settings.clone(),
            degraded: self.degraded.clone(),
            previous: self.previous.clone(),
            waiting: self.waiting.clone(),
            files_hash: self.files_hash.clone(),
            dev: self.dev,
        }
    }
}

/// The running loop.
pub struct Broker {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), Fatal>>,
}

impl Broker {
    /// Recovers what is stored and starts the loop.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn start(config: Config) -> Result<Started, StartError> {
        let stored = config.store.load()?;
        let at = config.clock.now();
        let rebooted = stored
            .boot_id
            .as_ref()
            .is_some_and(|boot| *boot != config.boot_id);
        let mut settings = still_true(&stored.settings, rebooted, at);
        let start = Start::of(&config.policy, &settings);
        let mut chosen = start.choose_policy(stored.policy.as_ref())?;
        // What another boot held has ended and cannot be asked to go.
        if !rebooted && let Some(safe) = start.gate(&chosen, &stored, at) {
            // Also overrides that ended meanwhile stay until their end is confirmed.
            settings = stored.settings.clone();
            chosen = safe;
        }
        let start = Start::of(&config.policy, &settings);
        let Chosen {
            policy,
            degraded,
            waiting,
        } = chosen;
        let previous = stored.policy.clone();
        let previous = previous.filter(|last| last.source.hash != policy.source.hash);
        let books = recover(&stored, &policy, &start.layers, at);
        // Before anything is decided, so that what is decided now is not begun twice.
        let standing = books.standing_effects();
        let grace = grace_at_start(&books, at);
        let view = Arc::new(View::of(&books, at));
        let inbox = Arc::new(Inbox::default());
        let mut turn = Turn::new(books, config.store.clone(), view.clone(), at);
        let opened = turn.open(
            at,
            config.boot_id.clone(),
            (settings != stored.settings).then(|| settings.clone()),
            opening_commands(rebooted, grace, policy),
        )?;
        let kept = turn
            .books()
            .leases()
            .filter(|lease| lease.held().is_some())
            .count();
        let effects = Effects::start(
            inbox.clone(),
            view.clone(),
            config.boot_id.clone(),
            config.read_now,
        )?;
        effects.perform(standing);
        effects.perform(opened);
        let shared = Arc::new(Shared {
            inbox,
            view,
            store: config.store,
            clock: config.clock,
            boot_id: config.boot_id,
            store_id: stored.store_id,
            stopping: watch::Sender::new(false),
        });
        let looping = Loop {
            turn,
            shared: shared.clone(),
            effects,
            turned: at.boot,
        };
        let thread = thread::Builder::new()
            .name("broker".into())
            .spawn(move || looping.run())?;
        Ok(Started {
            broker: Self {
                shared: shared.clone(),
                thread,
            },
            handle: Handle::new(shared),
            degraded,
            kept,
            rebooted,
            files_hash: start.files_hash,
            dev: config.policy.dev,
            previous,
            waiting,
            settings,
        })
    }

    /// Takes no more requests and tells those who wait; what is held stays held.
    pub fn begin_stop(&self) {
        self.shared.stopping.send_replace(true);
    }

    /// Ends the loop after what is in its inbox.
    ///
    /// # Errors
    /// The store had failed.
    pub fn stop(self) -> Result<(), Fatal> {
        self.begin_stop();
        self.shared.inbox.close();
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
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
struct Chosen {
    policy: Arc<Policy>,
    /// Why it is not that of the files, where they are bad.
    degraded: Option<String>,
    /// The files, where they are good and something else is live.
    waiting: Option<Vec<SourceFile>>,
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
    fn gate(&self, chosen: &Chosen, stored: &Stored, at: At) -> Option<Chosen> {
        let good = stored.policy.as_ref()?;
        if self.dev || chosen.degraded.is_some() || chosen.waiting.is_some() {
            return None;
        }
        let books = recover(stored, &chosen.policy, &self.layers, at);
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
fn recover(stored: &Stored, policy: &Arc<Policy>, overrides: &[Override], at: At) -> Books {
    let Some(rows) = &stored.rows else {
        return Books::new(policy.clone(), first_fence(at));
    };
    let last = stored.policy.as_ref();
    let last = last.map(|good| decided_by(good, policy, overrides));
    Books::from_rows(last.unwrap_or_else(|| policy.clone()), rows.clone())
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

fn opening_commands(rebooted: bool, grace: Option<Command>, policy: Arc<Policy>) -> Vec<Command> {
    let reboot = rebooted.then_some(Command::HostRebooted);
    let switch = Command::SetPolicy(Box::new(Switch {
        policy,
        changes: "the files changed while no broker ran".to_owned(),
        planned: None,
        expect: Expect::default(),
    }));
    reboot.into_iter().chain(grace).chain([switch]).collect()
}

struct Loop {
    turn: Turn,
    shared: Arc<Shared>,
    effects: Effects,
    /// When the last turn began.
    turned: BootMs,
}

impl Loop {
    fn run(mut self) -> Result<(), Fatal> {
        loop {
            let wake_at = self.wake_at();
            let patience = wake_at - self.shared.clock.now().boot;
            let Some(batch) = self.shared.inbox.take(Duration::from_millis(patience.0)) else {
                return Ok(());
            };
            let at = self.shared.clock.now();
            // What was due before the last turn was not late because of a pause after it.
            let batch = with_grace_after_pause(batch, wake_at.max(self.turned), at);
            self.turned = at.boot;
            let effects = self.turn.run(at, batch)?;
            self.effects.perform(effects);
        }
    }

    fn wake_at(&self) -> BootMs {
        let tick = self.shared.clock.now().boot + TICK_MS;
        match self.turn.books().next_deadline() {
            Some(_) => self.turn.wake_at().min(tick),
            None => self.turn.wake_at(),
        }
    }
}

impl Drop for Loop {
    /// However the loop ends, also by a panic, nobody waits for an answer that cannot come: dropping the
    /// messages closes every channel.
    fn drop(&mut self) {
        self.shared.stopping.send_replace(true);
        self.shared.inbox.close();
        while self.shared.inbox.take(Duration::ZERO).is_some() {}
    }
}

/// Holders could not reach a loop that was paused; their heartbeats come first.
fn with_grace_after_pause(mut batch: inbox::Batch, wake_at: BootMs, at: At) -> inbox::Batch {
    if at.boot - wake_at > PAUSE_MS {
        let until = at.boot + PAUSE_GRACE_MS;
        tracing::warn!(late = %(at.boot - wake_at), "the loop was paused; nothing expires for {PAUSE_GRACE_MS}");
        batch
            .control
            .insert(0, Message::Apply(Command::Grace { until }, None));
    }
    batch
}
