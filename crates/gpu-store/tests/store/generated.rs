//! Any lease and any settings there can be come back from the file as they were.

use std::collections::BTreeMap;

use gpu_lease::{
    Allocation, Amount, At, BootMs, Deadline, DeviceId, DeviceKey, Drain, DrainSource, EndReason,
    Ending, Fence, Grant, Holder, HolderKind, HostId, Idempotency, Lease, LeaseId, Ms, Phase,
    Process, Reclaim, ReclaimStage, Request, Select, Wait, WallMs,
};
use gpu_store::{
    ApiOverride, Batch, BreakerRow, Hour, MemoryStore, RedbStore, RejectedFiles, Settings, Store,
    SwitchedBy, Usage, UsageKey, UsageRow,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::examples::{END_REASONS, counters, store_id};

#[test]
fn any_lease_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&directory.path().join("store.redb"), store_id()).unwrap();
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(leases in vec(lease(), 1..8))| {
        let leases: BTreeMap<_, _> = leases.into_iter().map(|lease| (lease.id, lease)).collect();
        let mut batch = Batch::new(counters(1));
        batch.leases = leases.values().collect();
        store.commit(&batch).unwrap();
        let rows = store.load().unwrap().rows.unwrap();
        prop_assert!(rows.leases.iter().eq(leases.values()));

        let mut batch = Batch::new(counters(2));
        batch.pruned = leases.keys().copied().collect();
        store.commit(&batch).unwrap();
    });
}

#[test]
fn any_settings_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&directory.path().join("store.redb"), store_id()).unwrap();
    let config = ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(settings in settings())| {
        let mut batch = Batch::new(counters(1));
        batch.settings = Some(settings.clone());
        store.commit(&batch).unwrap();
        prop_assert_eq!(store.load().unwrap().settings, settings);
    });
}

/// Whatever is added in whatever order and split, the file and the memory agree, also over a restart.
#[test]
fn any_usage_adds_up_alike() {
    let config = ProptestConfig {
        cases: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(batches in vec(vec(usage(), 0..12), 1..6))| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let memory = MemoryStore::new(store_id());
        for (revision, rows) in (1..).zip(batches) {
            let store = RedbStore::open(&path, store_id()).unwrap();
            let mut batch = Batch::new(counters(revision));
            batch.usage = rows;
            store.commit(&batch).unwrap();
            memory.commit(&batch).unwrap();
            prop_assert_eq!(usage_rows(&store), usage_rows(&memory));
        }
    });
}

fn usage_rows(store: &dyn Store) -> Vec<UsageRow> {
    let mut rows = Vec::new();
    store.usage(Hour(0), &mut |row| rows.push(row)).unwrap();
    rows
}

fn usage() -> impl Strategy<Value = UsageRow> {
    // Few of each, so that rows meet; hours so far apart that some are too old.
    let hour = select(vec![1_u64, 2, 839, 840, 841, 842, 1700]);
    let word = || prop_oneof![Just("ann".to_owned()), text()];
    let tenant = option::of(word().prop_filter("a tenant has a name", |name| !name.is_empty()));
    (hour, word(), tenant, word(), any::<u64>(), any::<u128>()).prop_map(
        |(hour, user, tenant, id, held_ms, byte_ms)| UsageRow {
            key: UsageKey {
                hour: Hour(hour),
                user,
                tenant,
                device: DeviceKey {
                    host: HostId::new("host"),
                    id: DeviceId::new(&id),
                },
            },
            usage: Usage { held_ms, byte_ms },
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let switch = (any::<bool>(), text(), wall()).prop_map(|(enabled, by, at)| SwitchedBy {
        enabled,
        by,
        at,
    });
    let set = (text(), text(), wall(), deadline()).prop_map(|(text, by, at, until)| ApiOverride {
        text,
        by,
        at,
        until,
    });
    let rejected =
        (text(), any::<u32>(), text(), wall()).prop_map(|(hash, attempt, why, at)| RejectedFiles {
            hash,
            attempt,
            why,
            at,
        });
    let layers = (option::of(switch), vec(set, 0..4), option::of(rejected));
    (layers, breaker()).prop_map(|((policy_watch, overrides, rejected), breaker)| Settings {
        policy_watch,
        overrides,
        rejected,
        breaker,
    })
}

fn breaker() -> impl Strategy<Value = BreakerRow> {
    let boot = || any::<u64>().prop_map(BootMs);
    let rest = (
        option::of(deadline()),
        any::<u64>(),
        any::<bool>(),
        option::of(boot()),
    );
    let past = (
        option::of(text()),
        vec(boot(), 0..4),
        vec((text(), boot()), 0..4),
    );
    (rest, past).prop_map(
        |((open_until, rest, on_trial, tried), (culprit, back, recent))| BreakerRow {
            open_until,
            rest: Ms(rest),
            on_trial,
            tried,
            culprit,
            back,
            recent,
        },
    )
}

fn wall() -> impl Strategy<Value = WallMs> {
    any::<u64>().prop_map(WallMs)
}

fn lease() -> impl Strategy<Value = Lease> {
    let fields = (
        any::<u64>(),
        any::<u64>(),
        request(),
        any::<i64>(),
        at(),
        phase(),
    );
    fields.prop_map(
        |(bits, revision, request, priority, created, phase)| Lease {
            id: LeaseId::from_bits(bits),
            revision,
            request,
            priority,
            created,
            phase,
        },
    )
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        wait().prop_map(Phase::Waiting),
        grant().prop_map(Phase::Held),
        (grant(), reclaim()).prop_map(|(grant, reclaim)| Phase::Reclaiming(grant, reclaim)),
        (at(), reason(), option::of(grant()))
            .prop_map(|(at, reason, grant)| Phase::Ended(Ending { at, reason, grant })),
    ]
}

fn wait() -> impl Strategy<Value = Wait> {
    let boot = || option::of(any::<u64>().prop_map(BootMs));
    (any::<u64>(), boot(), boot()).prop_map(|(seq, until, renew_by)| Wait {
        seq,
        until,
        renew_by,
    })
}

fn grant() -> impl Strategy<Value = Grant> {
    let source = select(vec![
        DrainSource::Device,
        DrainSource::Operator,
        DrainSource::Policy,
        DrainSource::Preemption,
    ]);
    let drain =
        (deadline(), text(), text(), at()).prop_map(|(deadline, reason, by, since)| Drain {
            deadline,
            reason,
            by,
            since,
        });
    let numbers = (any::<u64>(), at(), any::<u64>());
    let times = (deadline(), option::of(deadline()));
    let flags = any::<[bool; 3]>();
    let parts = vec(allocation(), 0..4);
    (numbers, parts, times, flags, btree_map(source, drain, 0..4)).prop_map(
        |((fence, at, generation), allocations, (expires, hold_until), flags, drains)| Grant {
            fence: Fence(fence),
            at,
            generation,
            allocations,
            expires,
            hold_until,
            renewed: flags[0],
            loading: flags[1],
            unresponsive: flags[2],
            drains,
        },
    )
}

fn allocation() -> impl Strategy<Value = Allocation> {
    (text(), text(), any::<u64>(), any::<bool>()).prop_map(|(host, id, memory, exclusive)| {
        Allocation {
            device: DeviceKey {
                host: HostId::new(&host),
                id: DeviceId::new(&id),
            },
            memory,
            exclusive,
        }
    })
}

fn reclaim() -> impl Strategy<Value = Reclaim> {
    let stage = prop_oneof![
        Just(ReclaimStage::Verifying),
        text().prop_map(ReclaimStage::Stuck),
        Just(ReclaimStage::Quarantined),
    ];
    (reason(), at(), stage, any::<bool>(), any::<u32>()).prop_map(
        |(reason, since, stage, signal, attempt)| Reclaim {
            reason,
            since,
            stage,
            signal,
            attempt,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let ms = || any::<u64>().prop_map(Ms);
    let amount = prop_oneof![
        Just(Amount::Exclusive),
        any::<u64>().prop_map(Amount::Memory)
    ];
    let devices = prop_oneof![
        Just(Select::default()),
        vec(text().prop_map(|id| DeviceId::new(&id)), 0..4).prop_map(Select::ids),
    ];
    let what = (text(), any::<u32>(), amount, devices);
    let times = (ms(), ms(), option::of(ms()), option::of(ms()));
    let labels = btree_map(text(), text(), 0..4);
    let words = (any::<[bool; 2]>(), option::of(idempotency()), labels);
    (holder(), what, times, words).prop_map(
        |(
            holder,
            (class, devices, amount, select),
            (ttl, wait, max_hold, drain_grace),
            ([load, queue], idempotency, labels),
        )| Request {
            holder,
            class,
            devices,
            amount,
            select,
            ttl,
            wait,
            max_hold,
            drain_grace,
            load,
            queue,
            idempotency,
            labels,
        },
    )
}

fn holder() -> impl Strategy<Value = Holder> {
    let process = (
        any::<u32>(),
        any::<u64>(),
        text(),
        any::<u32>(),
        any::<bool>(),
    )
        .prop_map(|(pid, start_ticks, boot_id, uid, supervised)| Process {
            pid,
            start_ticks,
            boot_id,
            uid,
            supervised,
        });
    let kind = prop_oneof![
        Just(HolderKind::Page),
        process.prop_map(HolderKind::Process),
        Just(HolderKind::Remote),
    ];
    let pid = option::of(any::<u32>());
    (text(), kind, option::of(text()), text(), pid).prop_map(|(name, kind, tenant, user, pid)| {
        Holder {
            name,
            kind,
            tenant,
            user,
            tenant_found: false,
            pid,
        }
    })
}

fn idempotency() -> impl Strategy<Value = Idempotency> {
    (text(), text(), text()).prop_map(|(caller, key, body_hash)| Idempotency {
        key: (caller, key),
        body_hash,
    })
}

fn reason() -> impl Strategy<Value = EndReason> {
    select(END_REASONS.to_vec())
}

fn at() -> impl Strategy<Value = At> {
    any::<(u64, u64)>().prop_map(|(boot, wall)| At {
        boot: BootMs(boot),
        wall: WallMs(wall),
    })
}

fn deadline() -> impl Strategy<Value = Deadline> {
    any::<(u64, u64)>().prop_map(|(boot, wall)| Deadline {
        boot: BootMs(boot),
        wall: WallMs(wall),
    })
}

/// Any characters, among them quotes, line ends, NUL and what takes four bytes.
fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..12).prop_map(String::from_iter)
}
