//! What a broker finds when it starts again: its rows, its boot, its policy, or an error.

use std::sync::Arc;

use gpu_broker::{AcquireError, Override, StartError};
use gpu_lease::{
    Command, Cordon, Denial, DeviceKey, DrainNotice, DrainSource, EndReason, EventKind, Lease,
    LeaseId, Ms, Phase, Request,
};
use gpu_store::Store;

use crate::store::{TestStore, Unreadable};
use crate::world::{Rows, Setup, World, device, on_every_store, patient, queued, request, until};

const BATCH: &str = "[[class]]\nname = \"batch\"\n";
const DRAINS_FOR_A_MINUTE: &str =
    "[reload]\nheld = \"drain\"\ngrace = \"60s\"\nconfirm = \"never\"\n";

fn batch_job() -> Request {
    Request {
        class: "batch".to_owned(),
        ..request(1)
    }
}

fn secs(secs: u64) -> Ms {
    Ms::from_secs(secs)
}

#[test]
fn leases_fences_and_deadlines_outlive_the_broker() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let held = world.acquire(request(10));
        let drained = world.acquire(request(10));
        let notice = DrainNotice {
            grace: None,
            reason: "maintenance".to_owned(),
            by: "root".to_owned(),
        };
        let drained = world
            .command(Command::DrainLease {
                id: drained.id,
                notice,
            })
            .unwrap();
        let waiting = world.acquire(queued(70));
        let on_connection = world.acquire(patient(70));
        let next_fence = world.handle.snapshot().counters.next_fence;

        let world = world.restart(|setup| setup.clock.jump(secs(5)));
        assert_eq!(world.started.kept, 2);
        assert!(!world.started.rebooted);
        assert!(world.handle.snapshot().recovering);
        assert_eq!(*world.lease(held.id), held);
        assert_eq!(*world.lease(drained.id), drained);
        assert_eq!(*world.lease(waiting.id), waiting);
        assert!(world.handle.find(on_connection.id).is_none());

        let early = world.try_acquire(request(1)).unwrap_err();
        assert!(matches!(early, AcquireError::Denied(Denial::Recovering)));
        world.renew(held.id).expect("renewals are taken meanwhile");
        world.inventory(&[device("gpu-0", 80)]);
        assert!(
            world.lease(waiting.id).waiting().is_some(),
            "20 GiB are held"
        );
        world.release(held.id);
        let granted = world.lease(waiting.id);
        assert!(granted.held().unwrap().fence >= next_fence);
    });
}

#[test]
fn after_a_start_holders_have_time_to_be_heard() {
    let world = World::new();
    let late = world.acquire(request(1));
    let silent = world.acquire(request(1));
    let world = world.restart(|setup| setup.clock.jump(secs(3600)));
    world.pass(secs(29));
    assert!(world.is_held(late.id) && world.is_held(silent.id));
    world.renew(late.id).expect("a late heartbeat is taken");
    world.pass(secs(2));
    assert!(world.is_held(late.id));
    assert_eq!(world.end_reason(silent.id), Some(EndReason::Expired));
}

#[test]
fn what_was_due_before_the_start_is_no_pause_of_the_loop() {
    let world = World::new();
    let lease = world.acquire(request(1));
    world.release(lease.id);
    let world = world.restart(|setup| setup.clock.jump(secs(25 * 3600)));
    until("it is forgotten", || world.handle.find(lease.id).is_none());
    world.inventory(&[device("gpu-0", 80)]);
    let silent = world.acquire(Request {
        ttl: secs(1),
        ..request(1)
    });
    world.pass(secs(1));
    assert_eq!(world.end_reason(silent.id), Some(EndReason::Expired));
}

#[test]
fn a_start_that_takes_long_is_no_pause_of_the_loop() {
    let world = World::with(Setup {
        opening_takes: secs(60),
        ..Setup::default()
    });
    let silent = world.acquire(Request {
        ttl: secs(1),
        ..request(1)
    });
    world.pass(secs(1));
    assert_eq!(world.end_reason(silent.id), Some(EndReason::Expired));
}

#[test]
fn another_boot_ends_what_was_held_and_that_is_durable() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let held = world.acquire(request(10));
        let waiting = world.acquire(queued(80));
        let cordon = Cordon {
            reason: "fan".to_owned(),
            by: "root".to_owned(),
            until: None,
        };
        let cordoned = world.handle.device(Command::Cordon {
            device: DeviceKey::local("gpu-0"),
            cordon,
        });
        world.wait(cordoned).unwrap();
        let fence = held.held().unwrap().fence;
        let is_rebooted = |world: &World, id| world.end_reason(id) == Some(EndReason::HostRebooted);

        let world = world.restart(|setup| setup.boot_id = "another boot".to_owned());
        assert!(world.started.rebooted);
        assert_eq!(world.started.kept, 0);
        assert!(is_rebooted(&world, held.id) && is_rebooted(&world, waiting.id));

        let world = world.restart(|_| ());
        assert!(!world.started.rebooted, "it is the same boot as before");
        assert!(is_rebooted(&world, held.id) && is_rebooted(&world, waiting.id));
        world.inventory(&[device("gpu-0", 80), device("gpu-1", 80)]);
        assert!(world.handle.snapshot().devices[0].cordon.is_some());
        let next = world.acquire(request(80));
        assert!(next.held().unwrap().fence > fence);
    });
}

#[test]
fn a_crash_while_starting_in_another_boot_loses_nothing() {
    let world = World::new();
    let held = world.acquire(request(10));
    let mut setup = world.stop();
    setup.boot_id = "another boot".to_owned();
    let Rows::Memory(rows) = setup.rows.clone() else {
        panic!("rows are in memory");
    };
    let before = rows.load().unwrap();
    let broken = TestStore::around(rows.clone());
    broken.fail();
    let error = setup.start_on(Arc::new(broken)).err().unwrap();
    assert!(matches!(error, StartError::Write(_)), "{error}");
    assert_eq!(rows.load().unwrap(), before, "half a start is no start");

    let world = setup.run();
    assert!(world.started.rebooted);
    assert_eq!(world.end_reason(held.id), Some(EndReason::HostRebooted));
}

#[test]
fn a_policy_that_changed_meanwhile_is_switched_to_with_fates() {
    on_every_store(|setup| {
        let policy = |text: &str| format!("{DRAINS_FOR_A_MINUTE}{text}");
        let world = World::with(Setup {
            policy: policy(BATCH),
            ..setup
        });
        let batch = world.acquire(batch_job());
        let standard = world.acquire(request(1));
        let before = world.handle.snapshot().counters.generation;
        let last = world.events_after(None).last().unwrap().position;

        let world = world.restart(|setup| setup.policy = policy(""));
        let generation = world.handle.snapshot().counters.generation;
        assert_eq!(generation, before + 1);
        let asked_to_go = |world: &World, id: LeaseId| {
            let lease = world.lease(id);
            lease
                .held()
                .unwrap()
                .drains
                .contains_key(&DrainSource::Policy)
        };
        assert!(asked_to_go(&world, batch.id));
        assert!(!asked_to_go(&world, standard.id));
        let events = world.events_after(Some(last));
        let kinds: Vec<EventKind> = events.iter().map(|event| event.event.kind).collect();
        assert_eq!(
            kinds[2..],
            [EventKind::PolicySwitched, EventKind::LeaseDraining]
        );
        world.pass(secs(30));
        world.renew(batch.id).unwrap();
        world.pass(secs(31));
        assert_eq!(world.end_reason(batch.id), Some(EndReason::Policy));

        let world = world.restart(|_| ());
        assert_eq!(world.handle.snapshot().counters.generation, generation);
    });
}

#[test]
fn the_same_policy_is_no_new_generation_whatever_lies_over_the_files() {
    let over = |text| vec![Override::parse("--set", text).unwrap()];
    let world = World::with(Setup {
        policy: BATCH.to_owned(),
        overrides: over("placement.strategy=spread"),
        ..Setup::default()
    });
    let generation = |world: &World| world.handle.snapshot().counters.generation;
    let first = generation(&world);
    let switches = |world: &World| {
        let events = world.events_after(None);
        let kinds = events.iter().map(|event| event.event.kind);
        kinds
            .filter(|kind| *kind == EventKind::PolicySwitched)
            .count()
    };
    let before = switches(&world);

    let world = world.restart(|_| ());
    assert_eq!(generation(&world), first, "nothing changed");
    assert_eq!(switches(&world), before);

    let world = world.restart(|setup| setup.overrides = over("placement.strategy=pack"));
    assert_eq!(generation(&world), first + 1, "another setting");

    let world = world.restart(|setup| setup.overrides.clear());
    assert_eq!(generation(&world), first + 2, "no setting any more");
    let world = world.restart(|_| ());
    assert_eq!(generation(&world), first + 2);
}

#[test]
fn bad_files_are_answered_with_the_last_good_policy() {
    on_every_store(|setup| {
        let world = World::with(Setup {
            policy: BATCH.to_owned(),
            ..setup
        });
        assert!(world.started.degraded.is_none());
        let lease = world.acquire(batch_job());
        let hash = world.handle.snapshot().policy.source.hash.clone();

        let world = world.restart(|setup| setup.policy = "[queu]\n".to_owned());
        let degraded = world.started.degraded.as_ref().expect("it says so");
        assert!(degraded.to_string().contains("queu"), "{degraded}");
        assert_eq!(world.handle.snapshot().policy.source.hash, hash);
        assert!(world.is_held(lease.id));
        world.inventory(&[device("gpu-0", 80)]);
        world.acquire(batch_job());

        let world = world.restart(|setup| setup.policy = BATCH.to_owned());
        assert!(world.started.degraded.is_none());
        assert_eq!(world.handle.snapshot().counters.generation, 1);
    });
}

#[test]
fn a_start_without_a_good_policy_is_refused_and_leaves_no_trace() {
    let setup = Setup::policy("[queu]\n");
    let Rows::Memory(rows) = setup.rows.clone() else {
        panic!("rows are in memory");
    };
    let before = rows.load().unwrap();
    let error = setup.start_on(rows.clone()).err().unwrap();
    assert!(matches!(error, StartError::Policy(_)), "{error}");
    assert!(error.to_string().contains("queu"), "{error}");
    assert_eq!(rows.load().unwrap(), before);
}

#[test]
fn files_that_cannot_be_read_are_answered_with_the_last_good_policy() {
    let unreadable = |setup: &mut Setup| setup.unreadable = Some("permission denied".to_owned());
    let world = World::with(Setup::policy(BATCH));
    let hash = world.handle.snapshot().policy.source.hash.clone();
    let world = world.restart(unreadable);
    assert_eq!(world.started.degraded.as_deref(), Some("permission denied"));
    assert_eq!(world.handle.snapshot().policy.source.hash, hash);

    let mut setup = Setup::default();
    unreadable(&mut setup);
    let error = setup.start_on(setup.rows.open()).err().unwrap();
    assert!(error.to_string().contains("permission denied"), "{error}");
}

#[test]
fn a_store_that_cannot_be_read_is_no_empty_store() {
    let error = Setup::default().start_on(Arc::new(Unreadable)).err();
    assert!(matches!(error, Some(StartError::Read(_))));
}

#[test]
fn ended_leases_can_be_asked_for_after_a_restart_for_a_day() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let lease: Lease = world.acquire(request(1));
        world.release(lease.id);
        let world = world.restart(|setup| setup.clock.jump(secs(23 * 3600)));
        world.nudge();
        assert!(matches!(world.lease(lease.id).phase, Phase::Ended(_)));
        let world = world.restart(|setup| setup.clock.jump(secs(3600)));
        until("the day is over", || world.handle.find(lease.id).is_none());
        let world = world.restart(|_| ());
        assert!(world.handle.find(lease.id).is_none(), "that is durable");
    });
}

#[test]
fn a_new_store_begins_with_fences_that_a_deleted_one_cannot_have_given() {
    let world = World::new();
    let fence = world.acquire(request(1)).held().unwrap().fence;
    let unix_secs = world.handle.now().wall.0 / 1000;
    assert_eq!(fence.0, unix_secs << 20);
}
