//! What time does, and what a pause of the loop must not do.

use std::time::Duration;

use gpu_broker::LeaseCommandError;
use gpu_lease::{
    Cause, Command, Cordon, DeviceKey, EndReason, LeaseError, Ms, Phase, Reading, ReclaimStage,
    Request, Telemetry,
};

use crate::world::{Setup, World, device, patient, reading, request, until};

const NIGHT: &str =
    "[defaults]\ntimezone = \"UTC\"\n[[class]]\nname = \"night\"\nhours = \"18:00-09:00\"\n";

fn secs(secs: u64) -> Ms {
    Ms::from_secs(secs)
}

fn with_ttl(ttl: Ms) -> Request {
    Request { ttl, ..request(1) }
}

fn at_night(request: Request) -> Request {
    Request {
        class: "night".to_owned(),
        ..request
    }
}

#[test]
fn a_missed_heartbeat_ends_a_lease_and_the_delay_frees_its_memory() {
    let world = World::new();
    let silent = world.acquire(with_ttl(secs(10)));
    let alive = world.acquire(with_ttl(secs(10)));
    // Nobody held anything before this start, so nobody is owed any grace.
    for _ in 0..2 {
        world.pass(secs(5));
        world.renew(alive.id).unwrap();
    }
    assert_eq!(world.end_reason(silent.id), Some(EndReason::Expired));
    let lease = world.lease(silent.id);
    assert!(
        matches!(&lease.phase, Phase::Reclaiming(_, reclaim) if reclaim.stage == ReclaimStage::Verifying)
    );
    world.pass(secs(5));
    assert!(matches!(world.lease(silent.id).phase, Phase::Ended(_)));
    assert!(world.is_held(alive.id));
}

#[test]
fn the_loop_wakes_for_a_deadline_by_itself() {
    let world = World::new();
    world.acquire(request(80));
    let waiter = world.acquire(Request {
        wait: secs(3),
        ..request(1)
    });
    let mut follower = world.handle.follow(waiter.id);
    world.clock.jump(secs(3));
    let ended = world.wait(follower.changed()).unwrap();
    assert_eq!(ended.end_reason(), Some(EndReason::WaitTimeout));
}

#[test]
fn nothing_expires_by_a_pause_of_the_loop() {
    let world = World::new();
    world.pass(secs(30));
    let late = world.acquire(with_ttl(secs(5)));
    let silent = world.acquire(with_ttl(secs(5)));
    world.clock.jump(secs(3600));
    world.nudge();
    assert!(world.is_held(late.id) && world.is_held(silent.id));
    world.renew(late.id).expect("a late heartbeat is taken");
    world.pass(Ms(4500));
    assert!(world.is_held(silent.id), "within the grace");
    world.pass(secs(1));
    assert_eq!(world.end_reason(silent.id), Some(EndReason::Expired));
    let refused = world.renew(silent.id);
    assert!(matches!(
        refused,
        Err(LeaseCommandError::Refused(LeaseError::Ended(
            EndReason::Expired
        )))
    ));
    assert_eq!(
        world.end_reason(late.id),
        Some(EndReason::Expired),
        "after the pause heartbeats count as before"
    );
}

#[test]
fn a_heartbeat_that_is_here_goes_before_an_expiry() {
    let world = World::new();
    world.pass(secs(30));
    let lease = world.acquire(with_ttl(Ms(900)));
    world.clock.jump(Ms(900));
    world.renew(lease.id).expect("it came in the same turn");
    assert!(world.is_held(lease.id));
}

#[test]
fn rules_by_the_hour_take_effect_without_anybody_saying_anything() {
    let world = World::with(Setup::policy(NIGHT));
    let waiter = world.acquire(at_night(patient(1)));
    assert!(waiter.waiting().is_some());
    let mut follower = world.handle.follow(waiter.id);
    world.clock.jump(secs(20));
    let granted = world.wait(follower.changed()).unwrap();
    assert!(granted.held().is_some());
}

#[test]
fn the_reasons_of_waiters_are_looked_at_again_as_time_passes() {
    let world = World::with(Setup::policy(NIGHT));
    world.acquire(request(80));
    world.acquire(at_night(patient(1)));
    let cause = || world.handle.snapshot().waiting[0].1.cause.clone();
    assert!(matches!(cause(), Cause::Rule { .. }));
    world.clock.jump(secs(20));
    until("the evening has come and the device is in its way", || {
        matches!(cause(), Cause::Devices(_))
    });
}

#[test]
fn a_request_that_meets_old_numbers_asks_for_new_ones() {
    let world = Setup::default().run();
    let mut readable = device("gpu-0", 80);
    readable.telemetry = Telemetry::Supported;
    world.inventory(&[readable]);
    let before = world.reads();
    let waiter = world.acquire(request(1));
    assert!(waiter.waiting().is_some());
    until("a reading is asked for", || world.reads() > before);
    world.telemetry(Reading {
        memory_used: 0,
        ..reading("gpu-0", world.handle.now().boot)
    });
    assert!(world.is_held(waiter.id));
}

#[test]
fn a_loop_with_nothing_to_do_rests() {
    type Evening = fn(&World);
    let evenings: [(&str, Evening); 7] = [
        ("nothing is held", |_| ()),
        ("a lease is held", |world| {
            world.acquire(request(1));
        }),
        ("a lease has expired and is reclaimed", |world| {
            world.acquire(with_ttl(secs(1)));
            world.pass(secs(10));
        }),
        ("a wait is over", |world| {
            world.acquire(request(80));
            world.acquire(Request {
                wait: secs(1),
                ..request(1)
            });
            world.pass(secs(2));
        }),
        ("a device is lost for good", |world| {
            world.acquire(request(1));
            world.inventory(&[]);
            world.pass(secs(61));
        }),
        ("a cordon is over", |world| {
            let until = world.handle.now().after(secs(1));
            let cordoned = world.handle.device(Command::Cordon {
                device: DeviceKey::local("gpu-0"),
                cordon: Cordon {
                    reason: "fan".to_owned(),
                    by: "root".to_owned(),
                    until: Some(until),
                },
            });
            world.wait(cordoned).unwrap();
            world.pass(secs(2));
        }),
        ("a long queue waits to be explained", |world| {
            (0..80).for_each(|_| drop(world.acquire(request(1))));
            (0..100).for_each(|_| drop(world.acquire(patient(1))));
        }),
    ];
    for (evening, begin) in evenings {
        let world = World::new();
        begin(&world);
        let before = world.clock.looked_at();
        std::thread::sleep(Duration::from_millis(100));
        let looked = world.clock.looked_at() - before;
        assert!(looked < 30, "{evening}: {looked} looks at the clock");
    }
}
