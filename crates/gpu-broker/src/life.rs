//! One life of the loop, from recovery on, turned by whoever has a thread for it.
//!
//! The broker turns it on a thread of its own; a simulation turns it by hand, under a clock of its own.

use std::sync::Arc;
use std::time::Duration;

use gpu_lease::{At, Books, BootMs, Command, Effect, Ms};
use gpu_store::Store;

use crate::broker::{Config, Started};
use crate::fail_point::{FailPoint, reach};
use crate::handle::{Handle, Shared, Unavailable};
use crate::inbox::{self, Message};
use crate::start::{Beginning, StartError, Under};
use crate::turn::{Fatal, Opening, Turn};
use crate::view::View;

/// After a pause of the loop holders have this long to send the heartbeats that nobody took.
const PAUSE_GRACE_MS: Ms = Ms::from_secs(5);
/// The loop was paused (suspend, SIGSTOP) if it wakes this much later than it wanted to.
const PAUSE_MS: Ms = Ms::from_secs(1);
/// The loop looks at the clock this often while anything has a deadline, so that it notices a pause.
const TICK_MS: Ms = Ms(500);

/// How a life ends that was asked to.
const IN_ORDER: &str = "stopped in order";

/// The loop without a thread: books, store and inbox, and when it wants to be turned.
pub struct Life {
    turn: Turn,
    pub(crate) shared: Arc<Shared>,
    /// When the last turn began.
    turned: BootMs,
    wake_at: BootMs,
}

impl Life {
    /// Recovers what is stored, and makes durable what that means. Beside it the effects that are to be
    /// started: those that the rows call for, and those of the start.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn begin(config: Config) -> Result<(Started<Self>, Vec<Effect>), StartError> {
        Self::begin_under(config, Under::Files)
    }

    /// The same under the policy that was last good, as it was then: nothing is switched, whatever lies over
    /// the files now. The policy of `config` is for a store that nothing was ever committed to.
    ///
    /// # Errors
    /// As for [`Life::begin`].
    pub fn resume(config: Config) -> Result<(Started<Self>, Vec<Effect>), StartError> {
        Self::begin_under(config, Under::LastGood)
    }

    fn begin_under(
        config: Config,
        under: Under,
    ) -> Result<(Started<Self>, Vec<Effect>), StartError> {
        let mut stored = config.store.load()?;
        let at = config.clock.now();
        let beginning = Beginning::of(&mut stored, &config, under, at)?;
        let opening = beginning.opening(&stored, &config, at);
        let counted = stored.usage_counted;
        let (turn, view, effects) = open(beginning.books, counted, &config.store, opening, at)?;
        let life = Self::new(turn, Arc::new(Shared::of(&config, view, stored.store_id)));
        let held = life.books().leases().filter(|lease| lease.held().is_some());
        let chosen = beginning.chosen;
        let live = &chosen.policy.source.hash;
        let started = Started {
            handle: Handle::new(life.shared.clone()),
            kept: held.count(),
            previous: stored.policy.filter(|last| last.source.hash != *live),
            broker: life,
            degraded: chosen.degraded,
            rebooted: beginning.rebooted,
            files_hash: beginning.files_hash,
            dev: config.policy.dev,
            waiting: chosen.waiting,
            settings: beginning.settings,
        };
        Ok((started, effects))
    }

    /// The loop at rest. Recovery may have taken a while: that is no pause of the loop.
    fn new(turn: Turn, shared: Arc<Shared>) -> Self {
        let now = shared.clock.now().boot;
        let mut life = Self {
            turn,
            shared,
            turned: now,
            wake_at: now,
        };
        life.rest(now);
        life
    }

    /// Waits for messages, at most for `patience`, and does one turn with them and with what has come due.
    /// The effects are to be started now; `None` once the broker is stopped and everything is answered.
    ///
    /// # Errors
    /// The store failed: nothing of this turn was answered, and nothing may be any more.
    pub fn turn(&mut self, patience: Duration) -> Result<Option<Vec<Effect>>, Fatal> {
        let batch = self.shared.inbox.take(patience);
        let at = self.shared.clock.now();
        let Some(batch) = batch else {
            let why = self
                .shared
                .stopped_by
                .get()
                .map_or(IN_ORDER, String::as_str);
            self.turn.close(at, why)?;
            return Ok(None);
        };
        // What was due before the last turn was not late because of a pause after it.
        let batch = with_grace_after_pause(batch, self.wake_at.max(self.turned), at);
        self.turned = at.boot;
        let effects = self.turn.run(at, batch)?;
        self.rest(self.shared.clock.now().boot);
        reach(FailPoint::BeforeEffects);
        Ok(Some(effects))
    }

    /// When the next turn is due although nobody says anything.
    pub fn wake_at(&self) -> BootMs {
        self.wake_at
    }

    /// How long the loop may wait from now on for somebody to say something.
    pub(crate) fn patience(&self) -> Duration {
        let patience = self.wake_at - self.shared.clock.now().boot;
        Duration::from_millis(patience.0)
    }

    /// Says something to the loop that nobody waits for the answer of: what effects and drivers say.
    ///
    /// # Errors
    /// The inbox is full, or closed.
    pub fn tell(&self, command: Command) -> Result<(), Unavailable> {
        let message = Message::Apply(command, None);
        self.shared.inbox.push_control(message)
    }

    /// Whether somebody waits for an answer of the next turn.
    pub fn is_awaited(&self) -> bool {
        self.shared.inbox.is_awaited()
    }

    /// The books after the last turn.
    pub fn books(&self) -> &Books {
        self.turn.books()
    }

    fn rest(&mut self, now: BootMs) {
        let due = self.turn.wake_at();
        self.wake_at = match self.turn.books().next_deadline() {
            Some(_) => due.min(now + TICK_MS),
            None => due,
        };
    }
}

/// Makes durable what the start means. Beside it what readers see from there on, and the effects: those that
/// the rows call for, and those of the start.
fn open(
    books: Books,
    counted: Option<At>,
    store: &Arc<dyn Store>,
    opening: Opening,
    at: At,
) -> Result<(Turn, Arc<View>, Vec<Effect>), Fatal> {
    // Before anything is decided, so that what is decided now is not begun twice.
    let mut effects = books.standing_effects();
    let view = Arc::new(View::of(&books, counted, at));
    let mut turn = Turn::new(books, store.clone(), view.clone(), counted, at);
    reach(FailPoint::Opening);
    effects.extend(turn.open(at, opening)?);
    reach(FailPoint::Opened);
    Ok((turn, view, effects))
}

impl Drop for Life {
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
