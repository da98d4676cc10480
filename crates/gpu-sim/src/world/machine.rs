//! The host under the broker: its clocks, its cards, and the processes that use their memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gpu_broker::{Clock, Processes, Stat};
use gpu_lease::{
    At, BootMs, Device, DeviceKey, DeviceKind, DeviceProcess, Ms, Process, Reading, Telemetry,
    Vendor, WallMs,
};
use parking_lot::Mutex;

use crate::dice::Dice;

/// One GiB in bytes.
pub(super) const GIB: u64 = 1 << 30;
/// Id, memory in GiB, whether used memory can be read.
const CARDS: [(&str, u64, bool); 3] = [
    ("gpu-0", 24, true),
    ("gpu-1", 16, true),
    ("gpu-2", 8, false),
];
/// Pids are given again soon, as on a busy host.
const FIRST_PID: u32 = 5_000_000;
const PIDS: u32 = 70;
/// More processes are not started.
const CROWD: usize = 30;
/// Who the holders' processes run as.
const UID: u32 = 1000;

/// Both clocks of the host. Time passes when the world says so.
#[derive(Debug, Default)]
pub(super) struct HostClock {
    boot: AtomicU64,
    wall: AtomicU64,
}

impl HostClock {
    pub(super) fn pass(&self, length: Ms) {
        self.boot.fetch_add(length.0, Ordering::Relaxed);
        self.wall.fetch_add(length.0, Ordering::Relaxed);
    }

    /// Somebody sets the civil clock, forwards or back.
    pub(super) fn set_wall(&self, wall: WallMs) {
        self.wall.store(wall.0, Ordering::Relaxed);
    }

    /// Another boot, which counts from the beginning.
    pub(super) fn reboot(&self, took: Ms) {
        self.boot.store(20_000, Ordering::Relaxed);
        self.wall.fetch_add(took.0, Ordering::Relaxed);
    }
}

impl Clock for HostClock {
    fn now(&self) -> At {
        At {
            boot: BootMs(self.boot.load(Ordering::Relaxed)),
            wall: WallMs(self.wall.load(Ordering::Relaxed)),
        }
    }
}

/// Cards and processes. Clones are the same machine.
#[derive(Clone, Debug)]
pub(super) struct Machine(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    boots: u64,
    cards: Vec<Card>,
    processes: BTreeMap<u32, Running>,
    started: u64,
    /// The probe answers.
    probe: bool,
}

#[derive(Clone, Debug)]
struct Card {
    key: DeviceKey,
    total: u64,
    readable: bool,
    present: bool,
    leasable: bool,
}

/// A process of a holder, or of a stranger.
#[derive(Clone, Debug)]
struct Running {
    start_ticks: u64,
    /// Bytes by place of the card.
    uses: BTreeMap<usize, u64>,
    ignores_term: bool,
    /// In the middle of a driver call that does not return.
    unkillable: bool,
    /// The process that started it, whose group it is in for ever.
    leader: Option<Name>,
}

/// Pid and start of a process within a boot.
pub(super) type Name = (u32, u64);

impl Machine {
    pub(super) fn new(dice: &mut Dice) -> Self {
        let count = dice.pick(&[1, 2, 3, 3]);
        let card = |(id, gib, readable): &(&str, u64, bool)| Card {
            key: DeviceKey::local(id),
            total: gib * GIB,
            readable: *readable,
            present: true,
            leasable: true,
        };
        Self(Arc::new(Mutex::new(State {
            boots: 1,
            cards: CARDS.iter().take(count).map(card).collect(),
            processes: BTreeMap::new(),
            started: 0,
            probe: true,
        })))
    }

    pub(super) fn boot_id(&self) -> String {
        format!("boot-{}", self.0.lock().boots)
    }

    /// Every process ends, and every card is as new.
    pub(super) fn reboot(&self) {
        let mut state = self.0.lock();
        state.boots += 1;
        state.processes.clear();
    }

    pub(super) fn keys(&self) -> Vec<DeviceKey> {
        let state = self.0.lock();
        state.cards.iter().map(|card| card.key.clone()).collect()
    }

    /// Bytes that the card has at all; zero for one that was never there.
    pub(super) fn total(&self, key: &DeviceKey) -> u64 {
        let state = self.0.lock();
        let card = state.cards.iter().find(|card| card.key == *key);
        card.map_or(0, |card| card.total)
    }

    /// Whether used memory can be read.
    pub(super) fn is_readable(&self, key: &DeviceKey) -> bool {
        let state = self.0.lock();
        let card = state.cards.iter().find(|card| card.key == *key);
        card.is_some_and(|card| card.readable)
    }

    /// A new process, registered as the broker registers one.
    pub(super) fn start(&self, dice: &mut Dice) -> Process {
        let mut state = self.0.lock();
        let (ignores_term, unkillable) = (dice.chance(20), dice.chance(5));
        let (pid, start_ticks) = state.spawn(dice, |running| {
            running.ignores_term = ignores_term;
            running.unkillable = unkillable;
        });
        Process {
            pid,
            start_ticks,
            boot_id: format!("boot-{}", state.boots),
            uid: UID,
            supervised: dice.chance(50),
        }
    }

    /// A process starts another, which uses so much of a card: it outlives who started it.
    pub(super) fn load_by_child(
        &self,
        dice: &mut Dice,
        process: &Process,
        key: &DeviceKey,
        bytes: u64,
    ) {
        let mut state = self.0.lock();
        let Some(place) = state.cards.iter().position(|card| card.key == *key) else {
            return;
        };
        if state.running(process).is_some() && state.processes.len() < CROWD {
            let leader = Some((process.pid, process.start_ticks));
            state.spawn(dice, |running| {
                running.leader = leader;
                running.uses.insert(place, bytes);
            });
        }
    }

    /// The process that a registered one may be, which `pid` is or was started by. `None` if it is not there.
    pub(super) fn leader(&self, pid: u32) -> Option<Name> {
        let state = self.0.lock();
        let running = state.processes.get(&pid)?;
        running.leader.or(Some((pid, running.start_ticks)))
    }

    /// Whether the very process lives.
    pub(super) fn is_there(&self, name: Name) -> bool {
        self.0.lock().is_there(name)
    }

    /// Whether there is room for another process.
    pub(super) fn has_room(&self) -> bool {
        self.0.lock().processes.len() < CROWD
    }

    /// The process uses so much of a card from here on.
    pub(super) fn load(&self, process: &Process, key: &DeviceKey, bytes: u64) {
        let mut state = self.0.lock();
        let Some(place) = state.cards.iter().position(|card| card.key == *key) else {
            return;
        };
        if let Some(running) = state.running(process) {
            running.uses.insert(place, bytes);
        }
    }

    /// The process ends by itself.
    pub(super) fn exit(&self, process: &Process) {
        let mut state = self.0.lock();
        if state.running(process).is_some() {
            state.processes.remove(&process.pid);
        }
    }

    /// Some process ends, whosever it is.
    pub(super) fn some_exit(&self, dice: &mut Dice) {
        let mut state = self.0.lock();
        let pids: Vec<u32> = state.processes.keys().copied().collect();
        if !pids.is_empty() {
            state.processes.remove(&dice.pick(&pids));
        }
    }

    /// The very process ends, unless it ignores that.
    pub(super) fn signal(&self, process: &Process, kill: bool) {
        let mut state = self.0.lock();
        let running = state.running(process);
        let ends =
            running.is_some_and(|running| !running.unkillable && (kill || !running.ignores_term));
        if ends {
            state.processes.remove(&process.pid);
        }
    }

    pub(super) fn is_alive(&self, process: &Process) -> bool {
        self.0.lock().running(process).is_some()
    }

    /// A card falls off the bus, comes back, or is closed and opened for leases.
    pub(super) fn shake(&self, dice: &mut Dice) {
        let mut state = self.0.lock();
        let place = dice.below(state.cards.len() as u64) as usize;
        let card = &mut state.cards[place];
        match dice.chance(75) {
            true => card.present = !card.present,
            false => card.leasable = !card.leasable,
        }
    }

    /// The probe hangs, or answers again.
    pub(super) fn toggle_probe(&self) {
        let mut state = self.0.lock();
        state.probe = !state.probe;
    }

    /// Everything works again, and nobody ignores anything.
    pub(super) fn heal(&self) {
        let mut state = self.0.lock();
        state.probe = true;
        for card in &mut state.cards {
            card.present = true;
            card.leasable = true;
        }
        state.processes.clear();
    }

    /// What discovery finds.
    pub(super) fn devices(&self) -> Vec<Device> {
        let state = self.0.lock();
        let cards = state.cards.iter().enumerate();
        let found = cards.filter(|(_, card)| card.present);
        found.map(|(place, card)| device(place, card)).collect()
    }

    /// What the probe reads, if it answers.
    pub(super) fn readings(&self, at: At) -> Option<Vec<Reading>> {
        let state = self.0.lock();
        let cards = state.cards.iter().enumerate();
        let readable = cards.filter(|(_, card)| card.present && card.readable);
        let readings = readable.map(|(place, card)| state.reading(place, card, at));
        state.probe.then(|| readings.collect())
    }
}

impl State {
    fn spawn(&mut self, dice: &mut Dice, with: impl FnOnce(&mut Running)) -> Name {
        self.started += 1;
        let pid = loop {
            let pid = FIRST_PID + (dice.below(u64::from(PIDS)) as u32);
            if self.is_free(pid) {
                break pid;
            }
        };
        let mut running = Running {
            start_ticks: self.started,
            uses: BTreeMap::new(),
            ignores_term: false,
            unkillable: false,
            leader: None,
        };
        with(&mut running);
        self.processes.insert(pid, running);
        (pid, self.started)
    }

    /// The kernel gives no pid again that is the name of a group.
    fn is_free(&self, pid: u32) -> bool {
        let mut leaders = self.processes.values().filter_map(|running| running.leader);
        !self.processes.contains_key(&pid) && leaders.all(|(leader, _)| leader != pid)
    }

    fn is_there(&self, (pid, start_ticks): Name) -> bool {
        let running = self.processes.get(&pid);
        running.is_some_and(|running| running.start_ticks == start_ticks)
    }

    /// The very process, not one that was given its pid later.
    fn running(&mut self, process: &Process) -> Option<&mut Running> {
        let same_boot = process.boot_id == format!("boot-{}", self.boots);
        let running = self.processes.get_mut(&process.pid)?;
        (same_boot && running.start_ticks == process.start_ticks).then_some(running)
    }

    fn reading(&self, place: usize, card: &Card, at: At) -> Reading {
        let users = self.processes.iter();
        let users = users.filter_map(|(pid, running)| Some((*pid, *running.uses.get(&place)?)));
        let processes: Vec<DeviceProcess> = users
            .map(|(pid, bytes)| DeviceProcess {
                pid,
                memory: Some(bytes),
                lease: None,
            })
            .collect();
        Reading {
            device: card.key.clone(),
            taken: at.boot,
            memory_used: processes.iter().filter_map(|process| process.memory).sum(),
            processes,
            utilisation_percent: None,
            temperature_c: None,
            power_mw: None,
        }
    }
}

impl Processes for Machine {
    fn stat(&self, pid: u32) -> Option<Stat> {
        let state = self.0.lock();
        let running = state.processes.get(&pid)?;
        let parent = running.leader.filter(|leader| state.is_there(*leader));
        Some(Stat {
            parent: parent.map_or(1, |(pid, _)| pid),
            group: running.leader.map_or(pid, |(pid, _)| pid),
            start_ticks: running.start_ticks,
        })
    }

    fn is_gone(&self, process: &Process) -> bool {
        !self.is_alive(process)
    }
}

fn device(place: usize, card: &Card) -> Device {
    Device {
        key: card.key.clone(),
        name: format!("Card {}", card.key.id),
        index: u32::try_from(place).expect("a handful of cards"),
        vendor: Vendor::Nvidia,
        kind: DeviceKind::Discrete,
        pci_bus_id: None,
        nvml_uuid: None,
        driver: None,
        memory_total: card.total,
        telemetry: match card.readable {
            true => Telemetry::Supported,
            false => Telemetry::Unsupported,
        },
        leasable: card.leasable,
        found_by: Vec::new(),
    }
}
