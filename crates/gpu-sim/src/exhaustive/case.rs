//! Who lives, on what, and how much misfortune there is.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use gpu_lease::{
    Amount, Device, DeviceKey, DeviceKind, Holder, HolderKind, Ms, Policy, Process, Request,
    Select, SignalRule, Telemetry, Vendor,
};

/// All times are multiples of this; longer than a reading is fresh.
pub(super) const UNIT_MS: Ms = Ms(4_000);
/// Units between heartbeats.
pub(super) const TTL: u64 = 2;
/// Units that a connection waits.
const WAIT: u64 = 2;
/// Units after a crash in which nothing expires.
pub(super) const GRACE: u64 = 1;
/// Units from being asked to go to being ended.
pub(super) const DRAIN: u64 = 1;
/// Units until memory is free of a holder that cannot be observed.
pub(super) const DELAY: u64 = 1;
/// Units until memory of a process that does not go is quarantined.
const QUARANTINE_AFTER: u64 = 2;
/// What is asked for is a multiple of this.
pub(super) const PART: u64 = 1 << 30;
/// Parts of each device.
const PARTS: u64 = 2;

/// A few clients on a few devices, and how often what goes wrong does.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is called.
    pub name: &'static str,
    /// How many threads walk. With one, what is found is found in as few steps as can be.
    pub threads: usize,
    /// Ends after about so many steps, if it is too large to be walked through.
    pub steps_max: Option<usize>,
    pub(super) clients: Vec<Client>,
    pub(super) devices: Vec<Device>,
    pub(super) misfortune: Misfortune,
    pub(super) scopes: &'static [Scope],
    pub(super) policy: Arc<Policy>,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Misfortune {
    pub(super) crashes: u8,
    /// Time passes beyond the next heartbeat of somebody.
    pub(super) expiries: u8,
    pub(super) emergencies: u8,
    /// An operator asks somebody to go.
    pub(super) drains: u8,
}

/// What an emergency ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    /// Everything, and processes are signalled.
    AllBySignal,
    /// What is on the first device.
    First,
}

/// Somebody who asks for one lease after the other, always the same.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) request: Request,
}

impl Case {
    /// A device and two clients, for every day.
    pub fn small() -> Self {
        Self::of(
            "1 device, 2 clients, 1 crash, 1 expiry, 1 emergency",
            &[Client::notebook, Client::training],
            1,
            Misfortune::ONCE,
        )
    }

    /// A device and two clients, one of which an operator asks to go.
    pub fn drain() -> Self {
        Self::of(
            "1 device, 2 clients, 1 crash, 1 drain",
            &[Client::notebook, Client::training],
            1,
            Misfortune {
                crashes: 1,
                drains: 1,
                ..Misfortune::NONE
            },
        )
    }

    /// Two devices and three clients; an emergency ends everything. It takes about 3 GiB of memory.
    pub fn full() -> Self {
        let case = Self::of(
            "2 devices, 3 clients, 1 crash, 1 expiry, 1 emergency",
            &[Client::notebook, Client::training, Client::server],
            2,
            Misfortune::ONCE,
        );
        Self {
            scopes: &[Scope::All],
            ..case.with_threads()
        }
    }

    /// Three devices, four clients and two crashes: the lives of few steps, until about `steps_max` steps are
    /// taken, which need about 1 GiB of memory for every 4 million.
    pub fn large(steps_max: usize) -> Self {
        let case = Self::of(
            "3 devices, 4 clients, 2 crashes, 2 expiries, 1 emergency, 1 drain",
            &[
                Client::notebook,
                Client::training,
                Client::server,
                Client::sweep,
            ],
            3,
            Misfortune {
                crashes: 2,
                expiries: 2,
                emergencies: 1,
                drains: 1,
            },
        );
        Self {
            steps_max: Some(steps_max),
            ..case.with_threads()
        }
    }

    fn of(
        name: &'static str,
        clients: &[fn() -> Client],
        devices: usize,
        misfortune: Misfortune,
    ) -> Self {
        Self {
            name,
            threads: 1,
            steps_max: None,
            clients: clients.iter().map(|client| client()).collect(),
            devices: (0..devices).map(device).collect(),
            misfortune,
            scopes: &[Scope::AllBySignal, Scope::First],
            policy: Arc::new(policy()),
        }
    }

    fn with_threads(self) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { threads, ..self }
    }
}

impl Case {
    pub(super) fn has_expiries(&self) -> bool {
        self.misfortune.expiries > 0
    }

    pub(super) fn has_emergencies(&self) -> bool {
        self.misfortune.emergencies > 0
    }

    /// Whether a process is ever told to go.
    pub(super) fn has_signals(&self) -> bool {
        let by_emergency = self.scopes.contains(&Scope::AllBySignal);
        self.misfortune.drains > 0 || by_emergency && self.has_emergencies()
    }
}

impl Misfortune {
    pub(super) const NONE: Self = Self {
        crashes: 0,
        expiries: 0,
        emergencies: 0,
        drains: 0,
    };

    const ONCE: Self = Self {
        crashes: 1,
        expiries: 1,
        emergencies: 1,
        drains: 0,
    };
}

impl Client {
    /// Half of a device, for whoever waits on a connection.
    fn notebook() -> Self {
        let request = Request {
            wait: units(WAIT),
            ..request("notebook", Amount::Memory(PART))
        };
        Self { request }
    }

    /// A device alone, for a process that keeps its place in the queue.
    fn training() -> Self {
        let mut request = request("training", Amount::Exclusive);
        request.queue = true;
        request.holder.kind = HolderKind::Process(process());
        Self { request }
    }

    /// All memory of a device, for somebody elsewhere who keeps its place in the queue.
    fn server() -> Self {
        let request = Request {
            queue: true,
            ..request("server", Amount::Memory(PARTS * PART))
        };
        Self { request }
    }

    /// Half of a device, for somebody who keeps its place in the queue.
    fn sweep() -> Self {
        let request = Request {
            queue: true,
            ..request("sweep", Amount::Memory(PART))
        };
        Self { request }
    }

    pub(super) fn name(&self) -> &str {
        &self.request.holder.name
    }

    /// Whether it waits, and learns what becomes of it, on one connection.
    pub(super) fn is_connected(&self) -> bool {
        !self.request.queue
    }
}

/// So many units.
pub(super) const fn units(count: u64) -> Ms {
    Ms(count * UNIT_MS.0)
}

fn request(name: &str, amount: Amount) -> Request {
    Request {
        holder: Holder {
            name: name.to_owned(),
            kind: HolderKind::Remote,
            tenant: None,
            tenant_found: false,
            user: String::new(),
            pid: None,
        },
        class: gpu_lease::STANDARD_CLASS.to_owned(),
        devices: 1,
        amount,
        select: Select::default(),
        ttl: units(TTL),
        wait: Ms(0),
        max_hold: None,
        drain_grace: None,
        load: false,
        queue: false,
        idempotency: None,
        labels: std::collections::BTreeMap::new(),
    }
}

fn process() -> Process {
    Process {
        pid: 4242,
        start_ticks: 1,
        boot_id: String::new(),
        uid: 1000,
        supervised: true,
    }
}

/// The first can be read, the others cannot.
fn device(place: usize) -> Device {
    Device {
        key: DeviceKey::local(&format!("gpu-{place}")),
        name: String::new(),
        index: u32::try_from(place).expect("a handful of devices"),
        vendor: Vendor::Nvidia,
        kind: DeviceKind::Discrete,
        pci_bus_id: None,
        nvml_uuid: None,
        driver: None,
        memory_total: PARTS * PART,
        telemetry: match place {
            0 => Telemetry::Supported,
            _ => Telemetry::Unsupported,
        },
        leasable: true,
        found_by: Vec::new(),
    }
}

fn policy() -> Policy {
    let mut policy = Policy {
        foreign_ignore_below: 0,
        ..Policy::built_in()
    };
    policy.queue.aging = Ms(0);
    policy.reclaim.delay = units(DELAY);
    policy.reclaim.quarantine_after = units(QUARANTINE_AFTER);
    policy.reclaim.signal = SignalRule::Always;
    policy
}
