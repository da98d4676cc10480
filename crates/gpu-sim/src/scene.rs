//! What can happen next: commands as hostile and as ordinary as people, cards and clocks make them.

mod cards;
mod policies;
mod rules;

use gpu_lease::{
    Amount, At, Books, BootMs, Command, Cordon, DrainNotice, Emergency, EndReason, Event,
    EventKind, Expect, Fence, Holder, HolderKind, Idempotency, Lease, LeaseId, Ms, Phase, Process,
    Request, Select, Switch, Targets, WallMs,
};

use crate::dice::Dice;

pub(crate) use policies::BY_THE_CLOCK;
pub use policies::policy;

const GIB: u64 = 1 << 30;
/// Policies that a scene switches between.
pub(crate) const POLICIES: u64 = 64;

/// Something that happens to a broker.
#[derive(Clone, Debug)]
pub enum Transition {
    /// A command arrives.
    Command(Command),
    /// The broker dies, and another starts on the same rows and the same boot.
    Restart,
}

/// A source of things that happen.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Only what is stored waits here, so that nothing is lost by a restart.
    durable_only: bool,
    /// How many devices there are: with few of them, many wait.
    cards: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Abandon,
    Acquire,
    ClearQuarantine,
    Cordon,
    DrainDevice,
    DrainLease,
    Emergency,
    Expire,
    Explain,
    Grace,
    HostRebooted,
    Inventory,
    Note,
    ProcessGone,
    Ready,
    Release,
    Renew,
    Restart,
    Revoke,
    SetPolicy,
    SignalRefused,
    Telemetry,
    Uncordon,
}

const KINDS: [(u64, Kind); 23] = [
    (20, Kind::Abandon),
    (200, Kind::Acquire),
    (10, Kind::ClearQuarantine),
    (8, Kind::Cordon),
    (10, Kind::DrainDevice),
    (20, Kind::DrainLease),
    (12, Kind::Emergency),
    (100, Kind::Expire),
    (25, Kind::Explain),
    (8, Kind::Grace),
    (1, Kind::HostRebooted),
    (20, Kind::Inventory),
    (3, Kind::Note),
    (30, Kind::ProcessGone),
    (40, Kind::Ready),
    (80, Kind::Release),
    (120, Kind::Renew),
    (4, Kind::Restart),
    (20, Kind::Revoke),
    (40, Kind::SetPolicy),
    (30, Kind::SignalRefused),
    (230, Kind::Telemetry),
    (35, Kind::Uncordon),
];

impl Scene {
    /// A scene in one of a few moods.
    pub fn new(dice: &mut Dice) -> Self {
        Self {
            durable_only: dice.chance(30),
            cards: dice.pick(&[1, 1, 2, 2, 3, 5]),
        }
    }

    /// The next moment: often the same one, sometimes the very next deadline, rarely a day later.
    pub fn later(&self, dice: &mut Dice, at: At, books: &Books) -> At {
        let due = books.next_deadline().map_or(1, |due| (due - at.boot).0);
        let by_deadline = [due, due + 1, due.saturating_sub(1)];
        let step = match dice.below(1000) {
            0..350 => 0,
            350..800 => dice.below(600),
            800..880 => dice.below(4_000),
            880..970 => dice.pick(&by_deadline).min(120_000),
            970..995 => dice.below(70_000),
            995..999 => dice.below(3_600_000),
            _ => 25 * 3_600_000,
        };
        At {
            boot: BootMs(at.boot.0 + step),
            wall: WallMs(at.wall.0 + step),
        }
    }

    /// What happens next.
    pub fn next(&self, dice: &mut Dice, at: At, books: &Books) -> Transition {
        let command = match dice.weighted(&KINDS) {
            Kind::Restart => return Transition::Restart,
            Kind::Abandon => Command::Abandon {
                id: some_lease(dice, books, |_| true),
            },
            Kind::Acquire => Command::Acquire {
                id: LeaseId::from_bits(dice.bits()),
                request: self.request(dice).into(),
            },
            Kind::ClearQuarantine => Command::ClearQuarantine {
                device: cards::some_key(dice),
                by: "ann".to_string(),
            },
            Kind::Cordon => Command::Cordon {
                device: cards::some_key(dice),
                cordon: cordon(dice, at),
            },
            Kind::DrainDevice => Command::DrainDevice {
                device: cards::some_key(dice),
                notice: notice(dice),
            },
            Kind::DrainLease => Command::DrainLease {
                id: some_lease(dice, books, is_held),
                notice: notice(dice),
            },
            Kind::Emergency => Command::Emergency(emergency(dice, books)),
            Kind::Expire => Command::Expire,
            Kind::Explain => Command::Explain {
                request: self.request(dice).into(),
                wall: dice.maybe(50, &[WallMs(at.wall.0 + 20_000), WallMs(0)]),
            },
            Kind::Grace => Command::Grace {
                until: at.boot + Ms(dice.pick(&[1, 5_000, 30_000])),
            },
            Kind::HostRebooted => Command::HostRebooted,
            Kind::Inventory => Command::Inventory(cards::inventory(dice, self.cards)),
            Kind::Note => Command::Note(note()),
            Kind::ProcessGone => process_gone(dice, books),
            Kind::Ready => Command::Ready {
                id: some_lease(dice, books, is_held),
            },
            Kind::Release => Command::Release {
                id: some_lease(dice, books, |lease| !is_over(lease)),
            },
            Kind::Renew => Command::Renew {
                id: some_lease(dice, books, |lease| !is_over(lease)),
            },
            Kind::Revoke => Command::Revoke {
                id: some_lease(dice, books, |_| true),
                reason: "needed elsewhere".to_string(),
                by: "ann".to_string(),
            },
            Kind::SetPolicy => Command::SetPolicy(Box::new(switch(dice, at, books))),
            Kind::SignalRefused => signal_refused(dice, books),
            Kind::Telemetry => Command::Telemetry(cards::readings(dice, at, books)),
            Kind::Uncordon => Command::Uncordon {
                device: cards::some_key(dice),
                by: "ann".to_string(),
            },
        };
        Transition::Command(command)
    }

    /// A life begins with devices and a reading of them, mostly.
    pub fn opening(&self, dice: &mut Dice, at: At) -> Vec<Command> {
        match dice.below(10) {
            0 => Vec::new(),
            1 => vec![Command::Inventory(cards::inventory(dice, self.cards))],
            _ => vec![
                Command::Inventory(cards::all(self.cards)),
                Command::Telemetry(cards::idle(at)),
            ],
        }
    }

    fn request(&self, dice: &mut Dice) -> Request {
        let queue = self.durable_only || dice.chance(30);
        Request {
            holder: Holder {
                name: dice.pick(&["vllm", "train", "notebook", "ci"]).to_string(),
                kind: holder_kind(dice),
                tenant: dice.maybe(20, &rules::TENANTS).map(|name| name.to_string()),
                user: dice.pick(&["ann", "bo"]).to_string(),
                tenant_found: false,
                pid: None,
            },
            class: dice
                .weighted(&[
                    (50, "standard"),
                    (25, "batch"),
                    (20, "interactive"),
                    (10, "hourly"),
                    (1, "unheard-of"),
                ])
                .to_string(),
            devices: dice.weighted(&[(75, 1), (18, 2), (6, 3), (1, 9)]),
            amount: amount(dice),
            select: select(dice),
            ttl: Ms(dice.pick(&[1_000, 5_000, 20_000, 60_000])),
            wait: Ms(dice.weighted(&[
                (35, 0),
                (10, 1_000),
                (25, 10_000),
                (20, 60_000),
                (10, 600_000),
            ])),
            max_hold: dice.maybe(50, &[Ms(3_000), Ms(20_000), Ms(120_000)]),
            drain_grace: dice.maybe(20, &[Ms(0), Ms(10_000), Ms(90_000)]),
            load: dice.chance(25),
            queue,
            idempotency: dice.chance(15).then(|| idempotency(dice)),
            labels: Default::default(),
        }
    }
}

fn holder_kind(dice: &mut Dice) -> HolderKind {
    match dice.below(10) {
        0..4 => HolderKind::Remote,
        4..6 => HolderKind::Page,
        _ => HolderKind::Process(Process {
            pid: dice.pick(&[4_242, 5_000, 6_001]),
            start_ticks: dice.below(1_000_000),
            boot_id: "boot".to_string(),
            uid: 1_000,
            supervised: dice.chance(50),
        }),
    }
}

fn amount(dice: &mut Dice) -> Amount {
    match dice.below(10) {
        0..2 => Amount::Exclusive,
        2 => Amount::Memory(1 + dice.below(30 * GIB)),
        _ => Amount::Memory(dice.pick(&[1, 2, 4, 6, 8, 12, 16, 20, 24]) * GIB),
    }
}

fn select(dice: &mut Dice) -> Select {
    let mut select = Select::default();
    if dice.chance(20) {
        let keys = (0..=dice.below(3)).map(|_| cards::some_key(dice).id);
        select.ids = Some(keys.collect());
    }
    if dice.chance(20) {
        let filters = (0..=dice.below(2)).map(|_| dice.pick(&rules::FILTERS).to_string());
        select.filters = filters.collect();
    }
    select
}

/// A policy, sometimes with an expectation that may be wrong.
fn switch(dice: &mut Dice, at: At, books: &Books) -> Switch {
    let policy = policy(dice.below(POLICIES));
    let other = self::policy(dice.below(POLICIES));
    let expect = match dice.below(10) {
        0 => Expect {
            live: Some(dice.pick(&[books.policy().source.hash.clone(), "another".to_string()])),
            ..Expect::default()
        },
        1 => Expect {
            within: Some(books.plan(at, dice.pick(&[&policy, &other])).into()),
            ..Expect::default()
        },
        2 => Expect {
            exactly: Some(books.plan(at, dice.pick(&[&policy, &other])).into()),
            ..Expect::default()
        },
        _ => Expect::default(),
    };
    Switch {
        policy: policy.into(),
        changes: "an edit".to_string(),
        planned: None,
        expect,
    }
}

fn idempotency(dice: &mut Dice) -> Idempotency {
    Idempotency {
        key: (
            "ann".to_string(),
            dice.pick(&["a", "b", "c", "d"]).to_string(),
        ),
        body_hash: dice.weighted(&[(4, "same"), (1, "other")]).to_string(),
    }
}

fn cordon(dice: &mut Dice, at: At) -> Cordon {
    let length = dice.maybe(60, &[Ms(2_000), Ms(30_000)]);
    Cordon {
        reason: dice.pick(&["new driver", "hot"]).to_string(),
        by: "ann".to_string(),
        until: length.map(|length| at.after(length)),
    }
}

fn notice(dice: &mut Dice) -> DrainNotice {
    DrainNotice {
        grace: dice.maybe(60, &[Ms(0), Ms(2_000), Ms(30_000)]),
        reason: "maintenance".to_string(),
        by: "ann".to_string(),
    }
}

fn emergency(dice: &mut Dice, books: &Books) -> Emergency {
    let targets = match dice.below(10) {
        0 => Targets::All,
        1..4 => Targets::Devices(vec![cards::some_key(dice)]),
        4..7 => Targets::Leases(vec![
            some_lease(dice, books, |_| true),
            some_lease(dice, books, |lease| !is_over(lease)),
        ]),
        _ => Targets::Stuck,
    };
    Emergency {
        targets,
        reason: "fire".to_string(),
        by: "ann".to_string(),
        kill: dice.chance(50),
        cordon: dice.chance(20),
        force_unsafe: dice.chance(30),
    }
}

fn note() -> Event {
    Event {
        kind: EventKind::PolicyRefused,
        lease: None,
        device: None,
        by: None,
        text: "a file did not parse".to_string(),
    }
}

fn process_gone(dice: &mut Dice, books: &Books) -> Command {
    let has_process = |lease: &Lease| lease.process().is_some() && lease.occupying().is_some();
    let id = some_lease(dice, books, has_process);
    Command::ProcessGone {
        id,
        fence: some_fence(dice, books, id),
    }
}

fn signal_refused(dice: &mut Dice, books: &Books) -> Command {
    let reclaiming = |lease: &Lease| matches!(lease.phase, Phase::Reclaiming(..));
    let id = some_lease(dice, books, reclaiming);
    Command::SignalRefused {
        id,
        fence: some_fence(dice, books, id),
        attempt: dice.weighted(&[(1, 0), (6, 1), (3, 2), (1, 3)]),
        why: "process 4242 belongs to somebody else".to_string(),
    }
}

/// The fence of the lease, or in a few cases one that is not current.
fn some_fence(dice: &mut Dice, books: &Books, id: LeaseId) -> Fence {
    let grant = books.lease(id).and_then(Lease::grant);
    let fence = grant.map_or(1, |grant| grant.fence.0);
    Fence(if dice.chance(85) { fence } else { fence - 1 })
}

/// A lease that is `wanted`, mostly; else any, or one that nobody knows.
fn some_lease(dice: &mut Dice, books: &Books, wanted: impl Fn(&Lease) -> bool) -> LeaseId {
    let of = |wanted: &dyn Fn(&Lease) -> bool| -> Vec<LeaseId> {
        let leases = books.leases().filter(|lease| wanted(lease));
        leases.map(|lease| lease.id).collect()
    };
    let mut candidates = match dice.below(100) {
        0..92 => of(&wanted),
        _ => Vec::new(),
    };
    if candidates.is_empty() && dice.chance(80) {
        candidates = of(&|lease| lease.waiting().is_some() || lease.occupying().is_some());
    }
    if candidates.is_empty() && dice.chance(80) {
        candidates = of(&|_| true);
    }
    match candidates.is_empty() {
        true => LeaseId::from_bits(dice.bits()),
        false => dice.pick(&candidates),
    }
}

fn is_held(lease: &Lease) -> bool {
    lease.held().is_some()
}

/// Whether nothing can happen to it but being forgotten.
fn is_over(lease: &Lease) -> bool {
    let reason: Option<EndReason> = lease.end_reason();
    reason.is_some() && lease.occupying().is_none()
}
