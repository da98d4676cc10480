//! Rows to store: one of every kind, every field of them set to something of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_lease::{
    Allocation, Amount, At, BootMs, Cordon, Counters, Deadline, DeviceId, DeviceKey, Drain,
    DrainSource, EndReason, Ending, Event, EventKind, Fence, Grant, Holder, HolderKind, HostId,
    Idempotency, Lease, LeaseId, Ms, Phase, PolicySource, Process, Reclaim, ReclaimStage, Request,
    Select, Wait, WallMs,
};
use gpu_store::{
    ApiOverride, Batch, BreakerRow, EventPosition, Hour, LastGood, RejectedFiles, Settings,
    StoreId, StoredEvent, SwitchedBy, Usage, UsageKey, UsageRow,
};

pub(crate) const STORE: u64 = 0x00c0_ffee_0000_0001;

pub(crate) const END_REASONS: [EndReason; 13] = [
    EndReason::Cancelled,
    EndReason::Denied,
    EndReason::DeviceLost,
    EndReason::Emergency,
    EndReason::Expired,
    EndReason::HostRebooted,
    EndReason::MaxHold,
    EndReason::Policy,
    EndReason::Preempted,
    EndReason::ProcessGone,
    EndReason::Released,
    EndReason::Revoked,
    EndReason::WaitTimeout,
];

pub(crate) const EVENT_KINDS: [EventKind; 18] = [
    EventKind::DeviceCordoned,
    EventKind::DeviceFound,
    EventKind::DeviceLost,
    EventKind::DeviceOvercommitted,
    EventKind::DeviceUncordoned,
    EventKind::EmergencyRelease,
    EventKind::LeaseDraining,
    EventKind::LeaseEnded,
    EventKind::LeaseGranted,
    EventKind::LeaseQuarantined,
    EventKind::LeaseReady,
    EventKind::LeaseReclaiming,
    EventKind::LeaseStuck,
    EventKind::LeaseUnresponsive,
    EventKind::LeaseWaiting,
    EventKind::LeaseWithdrawn,
    EventKind::PolicyRefused,
    EventKind::PolicySwitched,
];

/// The kinds that came with live policy.
pub(crate) const LIVE_EVENT_KINDS: [EventKind; 5] = [
    EventKind::PolicyPending,
    EventKind::PolicyPlanned,
    EventKind::PolicyRolledBack,
    EventKind::ReloadBegun,
    EventKind::ReloadBreaker,
];

pub(crate) fn store_id() -> StoreId {
    StoreId::from_bits(STORE)
}

pub(crate) fn counters(revision: u64) -> Counters {
    Counters {
        revision,
        next_fence: Fence(1_800_000_000 << 20),
        generation: 4,
    }
}

pub(crate) fn position(revision: u64, n: u32) -> EventPosition {
    EventPosition { revision, n }
}

/// An active lease.
pub(crate) fn lease(bits: u64) -> Lease {
    in_phase(bits, Phase::Held(grant()))
}

pub(crate) fn in_phase(bits: u64, phase: Phase) -> Lease {
    Lease {
        id: LeaseId::from_bits(bits),
        revision: 17,
        request: request(),
        priority: -3,
        created: at(1_000),
        phase,
    }
}

pub(crate) fn event(revision: u64, n: u32) -> StoredEvent {
    StoredEvent {
        position: position(revision, n),
        wall: WallMs(1_700_000_000_000 + revision),
        generation: 4,
        event: Event {
            kind: EventKind::LeaseGranted,
            lease: Some(LeaseId::from_bits(revision)),
            device: Some(DeviceKey::local("GPU-1")),
            by: Some("ann".to_owned()),
            text: format!("event {revision}.{n}"),
        },
        user: None,
        also_on: Vec::new(),
    }
}

pub(crate) fn cordon(reason: &str) -> Cordon {
    Cordon {
        reason: reason.to_owned(),
        by: "ann".to_owned(),
        until: Some(deadline(9_000)),
    }
}

pub(crate) fn policy(generation: u64) -> LastGood {
    let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    LastGood {
        generation,
        source: Arc::new(PolicySource {
            hash: format!("ab{generation:02}"),
            files: vec![
                file("default.toml", "schema = 1\n"),
                file("10-batch.toml", "[[class]]\nname = \"batch\"\n"),
            ],
        }),
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        policy_watch: Some(SwitchedBy {
            enabled: false,
            by: "root".to_owned(),
            at: WallMs(1_700_000_000_777),
        }),
        ..Settings::default()
    }
}

/// What may be stored beside the switch of the watch, all of it.
pub(crate) fn live_settings() -> Settings {
    Settings {
        overrides: vec![ApiOverride {
            text: "placement.strategy=spread".to_owned(),
            by: "ann".to_owned(),
            at: WallMs(1_700_000_000_778),
            until: deadline(9_000),
        }],
        rejected: Some(RejectedFiles {
            hash: "2c26b46b".to_owned(),
            attempt: 3,
            why: "they failed 3 times".to_owned(),
            at: WallMs(1_700_000_000_779),
        }),
        breaker: BreakerRow {
            open_until: Some(deadline(8_000)),
            rest: Ms(60_000),
            on_trial: true,
            tried: Some(BootMs(7_000)),
            culprit: Some("default.toml".to_owned()),
            back: vec![BootMs(5_000), BootMs(6_000)],
            recent: vec![("fcde2b2e".to_owned(), BootMs(4_000))],
        },
        ..settings()
    }
}

/// Leases that between them use every variant and every field there is.
pub(crate) fn all_leases() -> Vec<Lease> {
    let mut leases = vec![
        waiting(),
        lease(2),
        in_phase(3, Phase::Held(draining())),
        reclaiming(4, ReclaimStage::Verifying),
        reclaiming(
            5,
            ReclaimStage::Stuck("pid 42 is another process".to_owned()),
        ),
        reclaiming(6, ReclaimStage::Quarantined),
    ];
    for (bits, reason) in (7..).zip(END_REASONS) {
        let grant = (bits % 2 == 0).then(grant);
        let at = at(5_000);
        leases.push(in_phase(bits, Phase::Ended(Ending { at, reason, grant })));
    }
    leases
}

/// One event of every kind that format 1 began with, with and without what it is about.
pub(crate) fn all_events() -> Vec<StoredEvent> {
    events_of(&EVENT_KINDS)
}

/// The same of given kinds.
pub(crate) fn events_of(kinds: &[EventKind]) -> Vec<StoredEvent> {
    let of_kind = |(n, kind): (u32, EventKind)| {
        let mut stored = event(17, n);
        stored.event.kind = kind;
        if n % 2 == 0 {
            (stored.event.lease, stored.event.device, stored.event.by) = (None, None, None);
        }
        stored
    };
    (0..).zip(kinds.iter().copied()).map(of_kind).collect()
}

/// Everything that a batch can carry; `leases` are those of [`all_leases`].
pub(crate) fn full_batch(leases: &[Lease]) -> Batch<'_> {
    Batch {
        counters: counters(17),
        boot_id: Some("boot-a".to_owned()),
        leases: leases.iter().collect(),
        pruned: Vec::new(),
        cordons: cordons()
            .into_iter()
            .map(|(key, c)| (key, Some(c)))
            .collect(),
        policy: Some(policy(4)),
        settings: Some(settings()),
        events: all_events(),
        usage: Vec::new(),
        usage_counted: None,
    }
}

/// What `user` held of GPU-1 in an hour.
pub(crate) fn usage(hour: u64, user: &str, held_ms: u64) -> UsageRow {
    UsageRow {
        key: UsageKey {
            hour: Hour(hour),
            user: user.to_owned(),
            tenant: None,
            device: DeviceKey::local("GPU-1"),
        },
        usage: Usage {
            held_ms,
            byte_ms: u128::from(held_ms) << 30,
        },
    }
}

/// In the order of their keys.
pub(crate) fn all_usage() -> Vec<UsageRow> {
    let mut of_tenant = usage(491_000, "ann", 60_000);
    of_tenant.key.tenant = Some("research".to_owned());
    let mut elsewhere = usage(491_001, "bo", 7);
    elsewhere.key.device = DeviceKey {
        host: HostId::new("host-b"),
        id: DeviceId::new("GPU-0"),
    };
    vec![usage(491_000, "ann", 3_600_000), of_tenant, elsewhere]
}

/// In the order of their keys.
pub(crate) fn cordons() -> Vec<(DeviceKey, Cordon)> {
    let elsewhere = DeviceKey {
        host: HostId::new("host-b"),
        id: DeviceId::new("GPU-0"),
    };
    let unlimited = Cordon {
        until: None,
        ..cordon("fan")
    };
    vec![
        (elsewhere, unlimited),
        (DeviceKey::local("GPU-1"), cordon("new driver")),
    ]
}

fn waiting() -> Lease {
    let wait = Wait {
        seq: 12,
        until: Some(BootMs(7_000)),
        renew_by: Some(BootMs(8_000)),
    };
    let mut lease = in_phase(1, Phase::Waiting(wait));
    lease.request = Request {
        holder: Holder {
            name: "notebook".to_owned(),
            kind: HolderKind::Page,
            tenant: None,
            user: "anonymous".to_owned(),
            tenant_found: false,
            pid: None,
        },
        amount: Amount::Exclusive,
        select: Select::default(),
        max_hold: None,
        drain_grace: None,
        queue: true,
        idempotency: None,
        labels: BTreeMap::new(),
        ..request()
    };
    lease
}

fn reclaiming(bits: u64, stage: ReclaimStage) -> Lease {
    let reclaim = Reclaim {
        reason: EndReason::Emergency,
        since: at(4_000),
        stage,
        signal: true,
        attempt: 2,
    };
    let mut lease = in_phase(bits, Phase::Reclaiming(grant(), reclaim));
    lease.request.holder.kind = HolderKind::Remote;
    lease
}

fn request() -> Request {
    Request {
        holder: Holder {
            name: "vllm-a".to_owned(),
            kind: HolderKind::Process(Process {
                pid: 42,
                start_ticks: 987_654,
                boot_id: "boot-a".to_owned(),
                uid: 1000,
                supervised: true,
            }),
            tenant: Some("research".to_owned()),
            user: "ann".to_owned(),
            tenant_found: false,
            pid: Some(42),
        },
        class: "batch".to_owned(),
        devices: 2,
        amount: Amount::Memory(12 << 30),
        select: Select::ids(vec![DeviceId::new("GPU-1"), DeviceId::new("GPU-2")]),
        ttl: Ms(60_000),
        wait: Ms(5_000),
        max_hold: Some(Ms(3_600_000)),
        drain_grace: Some(Ms(30_000)),
        load: true,
        queue: false,
        idempotency: Some(Idempotency {
            key: ("uid:1000".to_owned(), "job-7".to_owned()),
            body_hash: "9f86d081".to_owned(),
        }),
        labels: BTreeMap::from([("run".to_owned(), "7".to_owned())]),
    }
}

fn grant() -> Grant {
    Grant {
        fence: Fence((1_800_000_000 << 20) - 1),
        at: at(2_000),
        generation: 3,
        allocations: vec![part("GPU-1", false), part("GPU-2", true)],
        expires: deadline(62_000),
        hold_until: Some(deadline(3_602_000)),
        renewed: true,
        loading: false,
        unresponsive: false,
        drains: BTreeMap::new(),
    }
}

fn draining() -> Grant {
    let sources = [
        DrainSource::Device,
        DrainSource::Operator,
        DrainSource::Policy,
        DrainSource::Preemption,
    ];
    let drain = |source: DrainSource| Drain {
        deadline: deadline(30_000),
        reason: format!("asked by {}", source.as_str()),
        by: "ann".to_owned(),
        // As in files of earlier versions, which did not know it.
        since: at(30_000),
    };
    Grant {
        hold_until: None,
        renewed: false,
        loading: true,
        unresponsive: true,
        drains: sources.map(|source| (source, drain(source))).into(),
        ..grant()
    }
}

fn part(id: &str, exclusive: bool) -> Allocation {
    Allocation {
        device: DeviceKey::local(id),
        memory: 12 << 30,
        exclusive,
    }
}

fn at(boot: u64) -> At {
    At {
        boot: BootMs(boot),
        wall: WallMs(1_700_000_000_000 + boot),
    }
}

fn deadline(boot: u64) -> Deadline {
    Deadline {
        boot: BootMs(boot),
        wall: WallMs(1_700_000_000_000 + boot),
    }
}
