//! The whole broker but its threads, under a clock, a disk and a host that do what a seed says.
//!
//! The real books, loop, store and reloads run here; only clocks, cards, processes and the disk below redb
//! are made up. Every step is a function of 64 bits, so that a life that fails can be shortened step by step.

mod acts;
mod audit;
mod check;
mod client;
mod crash;
mod files;
mod free;
mod heal;
mod law;
mod ledger;
mod machine;
mod oracle;
mod reader;
mod reload;
mod rows;
mod stats;
mod story;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use gpu_broker::{Clock, Fatal, Handle, Life, Reloader, SourceFile};
use gpu_lease::{
    BootMs, Command, DeviceKey, Effect, Fence, LeaseId, Ms, Process, Reading, Signal, WallMs,
};
use gpu_store::CrashDisk;
use parking_lot::Mutex;

use crate::dice::Dice;
use client::{Call, Client, Told};
use machine::{HostClock, Machine};
use oracle::require;
use reader::Reader;
use rows::Watch;

pub use stats::Stats;
pub use story::{Story, StoryFailure, fails, tell, tell_all};

/// Who asks for leases.
const CLIENTS: [&str; 6] = ["vllm", "train", "notebook", "comfy", "ci", "page"];
/// 2026-06-01T12:00:00Z.
const START_WALL: WallMs = WallMs(1_780_315_200_000);
/// Readings come so often.
const POLL: Ms = Ms(1_000);
/// After a start nothing expires for so long.
const START_GRACE: Ms = Ms(30_000);
/// A loop that comes so late was paused, and nothing expires for a while.
const PAUSE: Ms = Ms(1_000);
const PAUSE_GRACE: Ms = Ms(5_000);

type Checked = Result<(), String>;

/// A host with a broker on it.
pub struct World {
    clock: Arc<HostClock>,
    machine: Machine,
    disk: CrashDisk,
    watch: Arc<Mutex<Watch>>,
    /// The policy files as they are on disk.
    files: Arc<Mutex<Vec<SourceFile>>>,
    life: Option<Life>,
    handle: Option<Handle>,
    reloader: Option<Arc<Reloader>>,
    clients: Vec<Client>,
    told: BTreeMap<LeaseId, Told>,
    keys: BTreeMap<(String, String), LeaseId>,
    /// Requests that were given up and whose end the loop has not seen yet.
    gone: Vec<LeaseId>,
    operators: Vec<(Vec<LeaseId>, Call)>,
    watched: BTreeMap<(LeaseId, Fence), Process>,
    reports: VecDeque<Command>,
    reader: Reader,
    read_at: BootMs,
    /// Nothing has to expire before: the broker just started, or its loop did not run.
    grace_until: BootMs,
    turned: BootMs,
    /// Devices changed within this turn: what was granted may have been so before.
    turbulent: bool,
    /// The broker ended within this turn: who waits for an answer hears that none comes.
    failed: bool,
    /// What the books had read of each device when they last rested.
    last_readings: BTreeMap<DeviceKey, Reading>,
    /// Devices were read within this turn.
    was_read: bool,
    stats: Stats,
    trace: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Act,
    Crash,
    Emergency,
    Flow,
    Look,
    Operate,
    Pause,
    ProcessEnds,
    Probe,
    Reload,
    Report,
    Shake,
    Turn,
    WallStep,
}

/// How often each thing happens, in so many of all.
const KINDS: [(u64, Kind); 14] = [
    (5_000, Kind::Act),
    (22, Kind::Crash),
    (25, Kind::Emergency),
    (1_400, Kind::Flow),
    (15, Kind::Look),
    (150, Kind::Operate),
    (30, Kind::Pause),
    (120, Kind::ProcessEnds),
    (15, Kind::Probe),
    (12, Kind::Reload),
    (400, Kind::Report),
    (60, Kind::Shake),
    (2_750, Kind::Turn),
    (18, Kind::WallStep),
];

impl World {
    /// A host on which a broker starts for the first time.
    ///
    /// # Errors
    /// Something does not hold.
    pub fn new(seed: u64, traced: bool) -> Result<Self, String> {
        let dice = &mut Dice::new(seed);
        let clock = Arc::new(HostClock::default());
        clock.pass(Ms(1 + dice.below(10_000_000)));
        clock.set_wall(START_WALL);
        let machine = Machine::new(dice);
        let watch: Arc<Mutex<Watch>> = Arc::default();
        watch.lock().oracle.machine = Some((machine.clone(), clock.clone()));
        let mut world = Self {
            clock,
            machine,
            disk: CrashDisk::new(),
            watch,
            files: Arc::new(Mutex::new(files::first())),
            life: None,
            handle: None,
            reloader: None,
            clients: CLIENTS.map(Client::new).into(),
            told: BTreeMap::new(),
            keys: BTreeMap::new(),
            gone: Vec::new(),
            operators: Vec::new(),
            watched: BTreeMap::new(),
            reports: VecDeque::new(),
            reader: Reader::default(),
            read_at: BootMs(0),
            grace_until: BootMs(0),
            turned: BootMs(0),
            turbulent: true,
            failed: false,
            last_readings: BTreeMap::new(),
            was_read: false,
            stats: Stats::default(),
            trace: traced.then(String::new),
        };
        world.begin(dice)?;
        world.look_at_devices()?;
        Ok(world)
    }

    /// Lets `bits` decide what happens next.
    ///
    /// # Errors
    /// Something does not hold.
    pub fn step(&mut self, bits: u64) -> Checked {
        let dice = &mut Dice::new(bits);
        self.stats.steps += 1;
        let kind = dice.weighted(&KINDS);
        self.say(|| format!("{kind:?}"));
        match kind {
            Kind::Act => self.act(dice),
            Kind::Crash => self.crash(dice),
            Kind::Emergency => self.emergency(dice),
            Kind::Flow => {
                let length = dice.pick(&[Ms(10), Ms(500), Ms(500), Ms(2_000)]);
                self.flow(dice, length)
            }
            Kind::Look => self.usage_adds_up(),
            Kind::Operate => self.operate(dice),
            Kind::Pause => self.pause(dice),
            Kind::ProcessEnds => {
                self.machine.some_exit(dice);
                Ok(())
            }
            Kind::Probe => {
                self.machine.toggle_probe();
                Ok(())
            }
            Kind::Reload => self.reload(dice),
            Kind::Report => self.report(),
            Kind::Shake => {
                self.machine.shake(dice);
                self.look_at_devices()
            }
            Kind::Turn => self.turn(dice),
            Kind::WallStep => {
                self.set_wall(dice);
                Ok(())
            }
        }
    }

    /// What it came to so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    fn life(&mut self) -> &mut Life {
        self.life
            .as_mut()
            .expect("a world without a broker recovers before anything else")
    }

    fn handle(&self) -> &Handle {
        self.handle
            .as_ref()
            .expect("there is a handle where there is a life")
    }

    /// A line of the trace, with the time.
    fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            // Writing to a string cannot fail.
            let _ = writeln!(trace, "{} {}", self.clock.now().boot.0, line());
        }
    }

    /// The loop takes what is there. Then everybody hears what there is to hear, and everything must hold.
    fn turn(&mut self, dice: &mut Dice) -> Checked {
        self.stats.turns += 1;
        self.note_pause();
        match self.life().turn(Duration::ZERO) {
            Ok(Some(effects)) => {
                self.disk.fail_after(None);
                self.say_what_is_durable();
                self.perform(dice, effects)?;
                self.reader.hear(&self.watch.lock().rows.log, true)?;
                self.listen()?;
                self.all_are_answered()?;
                self.check()
            }
            Ok(None) => Err("the loop ended, and nobody asked it to".to_owned()),
            Err(fatal @ Fatal::Books(_)) => Err(fatal.to_string()),
            Err(fatal @ Fatal::Store(_)) => {
                self.say(|| fatal.to_string());
                // Whoever was answered or told all the same has heard it.
                self.reader.hear(&self.watch.lock().rows.log, false)?;
                self.failed = true;
                self.listen()?;
                self.recover(dice)
            }
        }
    }

    /// What two lives that are the same have in common after every turn.
    fn say_what_is_durable(&mut self) {
        if self.trace.is_some() {
            let counters = self.watch.lock().rows.counters;
            let disk = self.disk.operations();
            self.say(|| format!("{counters:?}, {disk} operations of the disk"));
        }
    }

    /// A loop that did not run owes its holders some time; see [`PAUSE`].
    fn note_pause(&mut self) {
        let now = self.clock.now().boot;
        let wanted = self.life().wake_at().max(self.turned);
        if now - wanted > PAUSE {
            self.grace_until = self.grace_until.max(now + PAUSE_GRACE);
        }
        self.turned = now;
    }

    /// Time goes on as it does for a healthy broker: it wakes when it wants to, and readings come.
    fn flow(&mut self, dice: &mut Dice, length: Ms) -> Checked {
        let end = self.clock.now().boot + length;
        let crashes = self.stats.crashes;
        loop {
            let now = self.clock.now().boot;
            let wake = self.life().wake_at();
            let next = end.min(BootMs(wake.0.max(now.0 + 1)));
            self.clock.pass(next - now);
            self.read_when_due()?;
            self.notice_ends();
            while let Some(report) = self.reports.pop_front() {
                self.life()
                    .tell(report)
                    .map_err(|error| error.to_string())?;
            }
            self.turn(dice)?;
            let crashed = self.stats.crashes != crashes;
            if crashed || self.clock.now().boot >= end {
                return Ok(());
            }
        }
    }

    fn read_when_due(&mut self) -> Checked {
        let at = self.clock.now();
        if at.boot - self.read_at < POLL {
            return Ok(());
        }
        self.read_at = at.boot;
        if self.handle().snapshot().recovering {
            self.look_at_devices()?;
        }
        if let Some(readings) = self.machine.readings(at) {
            self.was_read = true;
            self.watch.lock().oracle.tell_readings(&readings);
            self.handle().telemetry(readings);
        }
        Ok(())
    }

    /// Discovery runs, and says what it found.
    fn look_at_devices(&mut self) -> Checked {
        let devices = self.machine.devices();
        self.turbulent = true;
        let now = self.clock.now().boot;
        {
            let oracle = &mut self.watch.lock().oracle;
            oracle.tell_devices(&devices, now);
            // What a switch means for leases whose devices were not known is found out with them.
            oracle.acts.policy = true;
        }
        let told = self.life().tell(Command::Inventory(devices));
        told.map_err(|error| error.to_string())
    }

    /// The loop does not run for a while: a suspend, a SIGSTOP, a busy host.
    fn pause(&mut self, dice: &mut Dice) -> Checked {
        let length = dice.pick(&[
            Ms(400),
            Ms(1_200),
            Ms(6_000),
            Ms(70_000),
            Ms(3_600_000),
            Ms(90_000_000),
        ]);
        self.stats.pauses += 1;
        self.clock.pass(length);
        self.say(|| format!("paused for {length}"));
        Ok(())
    }

    fn set_wall(&mut self, dice: &mut Dice) {
        let now = self.clock.now().wall.0;
        let (hour, year) = (3_600_000, 365 * 86_400_000);
        let then = match dice.below(4) {
            0 => now - hour,
            1 => now + hour,
            2 => now + dice.below(2 * year),
            _ => START_WALL.0 + dice.below(hour),
        };
        self.stats.wall_steps += 1;
        self.clock.set_wall(WallMs(then));
    }

    /// What the loop wants done beside it.
    fn perform(&mut self, dice: &mut Dice, effects: Vec<Effect>) -> Checked {
        for effect in effects {
            match effect {
                Effect::Read => self.read_at = BootMs(0),
                Effect::Watch { id, fence, process } => {
                    self.watched.insert((id, fence), process);
                }
                Effect::Signal {
                    id,
                    fence,
                    attempt,
                    process,
                    signal,
                } => {
                    self.may_signal(id)?;
                    self.stats.signals += 1;
                    match dice.chance(10) {
                        true => self.reports.push_back(Command::SignalRefused {
                            id,
                            fence,
                            attempt,
                            why: "it belongs to somebody else".to_owned(),
                        }),
                        false => self.machine.signal(&process, signal == Signal::Kill),
                    }
                }
            }
        }
        Ok(())
    }

    /// Nobody is signalled who holds what he may hold.
    fn may_signal(&self, id: LeaseId) -> Checked {
        let lease = self.handle().find(id);
        let held = lease.as_ref().is_some_and(|lease| lease.held().is_some());
        require(!held, || format!("a signal for {lease:?}"))
    }

    /// Watches see which processes have ended.
    fn notice_ends(&mut self) {
        let machine = &self.machine;
        let ended = self
            .watched
            .extract_if(.., |_, process| !machine.is_alive(process));
        let reports = ended.map(|((id, fence), _)| Command::ProcessGone { id, fence });
        self.reports.extend(reports);
    }

    fn report(&mut self) -> Checked {
        self.notice_ends();
        match self.reports.pop_front() {
            Some(report) => self.life().tell(report).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

/// One of the keys, or one that was never there.
fn some_key(dice: &mut Dice, machine: &Machine) -> DeviceKey {
    match dice.chance(5) {
        true => DeviceKey::local("gpu-9"),
        false => dice.pick(&machine.keys()),
    }
}
