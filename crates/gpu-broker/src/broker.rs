//! The loop on its own thread, with the effects beside it: starting and stopping in order.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use gpu_lease::Effect;
use gpu_policy::SourceFile;
use gpu_store::{LastGood, Settings, Store};

use crate::clock::Clock;
use crate::effects::{Effects, ReadNow, Signals};
use crate::handle::{Handle, Shared};
use crate::life::Life;
use crate::process::Processes;
use crate::reload::ReloadStart;
use crate::start::{StartError, StartPolicy};
use crate::turn::Fatal;

/// What a broker is made of.
pub struct Config {
    /// Where rows live.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The processes of the host.
    pub processes: Arc<dyn Processes>,
    /// The present boot.
    pub boot_id: String,
    /// The policy to start with.
    pub policy: StartPolicy,
    /// Who runs it, as the history tells it, such as `gpu-manager 0.1.0`.
    pub introduction: String,
}

/// A broker that runs, and how its start went.
pub struct Started<B = Broker> {
    /// To stop it, or to turn it by hand.
    pub broker: B,
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
    pub(crate) previous: Option<LastGood>,
    /// The files, if they are good and may not go live by a start alone.
    pub(crate) waiting: Option<Vec<SourceFile>>,
    pub(crate) files_hash: String,
    pub(crate) dev: bool,
}

impl<B> Started<B> {
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

    /// The same start with something else made of the broker.
    fn with<C, E>(self, make: impl FnOnce(B) -> Result<C, E>) -> Result<Started<C>, E> {
        Ok(Started {
            broker: make(self.broker)?,
            handle: self.handle,
            degraded: self.degraded,
            kept: self.kept,
            rebooted: self.rebooted,
            settings: self.settings,
            previous: self.previous,
            waiting: self.waiting,
            files_hash: self.files_hash,
            dev: self.dev,
        })
    }
}

/// The running loop.
pub struct Broker {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), Fatal>>,
}

impl Broker {
    /// Recovers what is stored and starts the loop. `read_now` asks for a reading of the devices.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn start(config: Config, read_now: ReadNow) -> Result<Started, StartError> {
        Self::spawn(Life::begin(config)?, read_now, Signals::Send)
    }

    /// Recovers what is stored under the policy that was last good, as it was: see [`Life::resume`]. For one
    /// that looks after what is held and nothing else; without an inventory it grants nothing.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn resume(config: Config, signals: Signals) -> Result<Started, StartError> {
        Self::spawn(Life::resume(config)?, Box::new(|| {}), signals)
    }

    fn spawn(
        (started, standing): (Started<Life>, Vec<Effect>),
        read_now: ReadNow,
        signals: Signals,
    ) -> Result<Started, StartError> {
        let shared = started.broker.shared.clone();
        let effects = Effects::start(&shared, read_now, signals)?;
        effects.perform(standing);
        let started =
            started.with(|life| spawn(life, effects).map(|thread| Self { shared, thread }));
        Ok(started?)
    }

    /// Takes no more requests and tells those who wait; what is held stays held.
    pub fn begin_stop(&self) {
        self.shared.stopping.send_replace(true);
    }

    /// The same as [`Broker::stop`] where nobody asked for it: the history says why.
    ///
    /// # Errors
    /// As for [`Broker::stop`].
    pub fn stop_because(self, why: String) -> Result<(), Fatal> {
        // Who stopped it first has said why.
        let _ = self.shared.stopped_by.set(why);
        self.stop()
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

fn spawn(mut life: Life, effects: Effects) -> io::Result<JoinHandle<Result<(), Fatal>>> {
    let looping = move || {
        while let Some(wanted) = life.turn(life.patience())? {
            effects.perform(wanted);
        }
        Ok(())
    };
    thread::Builder::new().name("broker".into()).spawn(looping)
}
