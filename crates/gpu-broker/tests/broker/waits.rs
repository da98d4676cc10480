//! Waiters: followed to their grant, given up with their connection, told when the broker stops.

use gpu_broker::{AcquireError, Unavailable};
use gpu_lease::{Cause, Command, Denial, EndReason, Idempotency, LeaseId, Phase, Request};
use gpu_store::Store;

use crate::world::{World, patient, queued, request};

#[test]
fn a_waiter_is_followed_to_its_grant() {
    let world = World::new();
    let holder = world.acquire(request(80));
    let id = world.handle.new_lease_id();
    let mut follower = world.handle.follow(id);
    let waiter = world.wait(world.handle.acquire(id, patient(40))).unwrap();
    assert!(waiter.waiting().is_some(), "it is answered at once");
    assert_eq!(
        world.wait(follower.changed()).as_deref(),
        Some(&waiter),
        "whoever subscribed before hears of the wait first"
    );
    let (first, why) = world.handle.snapshot().waiting[0].clone();
    assert_eq!((first, why.position), (id, 1));
    assert!(matches!(why.cause, Cause::Devices(_)));

    world.release(holder.id);
    let granted = world.wait(follower.changed()).unwrap();
    assert!(granted.held().is_some());
    assert_eq!(*granted, *world.lease(id));
    assert!(world.handle.snapshot().waiting.is_empty());
}

#[test]
fn changes_that_come_fast_are_heard_as_the_last_of_them() {
    let world = World::new();
    let lease = world.acquire(request(1));
    let mut follower = world.handle.follow(lease.id);
    let mut other = world.handle.follow(lease.id);
    for _ in 0..3 {
        world.renew(lease.id).unwrap();
    }
    let released = world.release(lease.id);
    assert_eq!(world.wait(follower.changed()).as_deref(), Some(&released));
    drop(follower);
    assert_eq!(
        world.wait(other.changed()).as_deref(),
        Some(&released),
        "one follower less is nothing to the others"
    );
}

#[test]
fn a_waiter_whose_connection_is_gone_gets_nothing() {
    let world = World::new();
    let holder = world.acquire(request(80));
    let waiter = world.acquire(patient(40));
    drop(world.handle.abandon_on_drop(waiter.id));
    world.nudge();
    assert!(world.handle.find(waiter.id).is_none(), "it leaves no row");
    world.release(holder.id);
    assert!(world.handle.find(waiter.id).is_none());
    assert!(world.handle.snapshot().waiting.is_empty());
}

#[test]
fn a_grant_that_nobody_can_know_of_is_given_back() {
    let keyed = Request {
        idempotency: Some(Idempotency {
            key: ("ann".to_owned(), "key".to_owned()),
            body_hash: "1".to_owned(),
        }),
        ..request(1)
    };
    type Meanwhile = fn(&World, LeaseId);
    let nothing: Meanwhile = |_, _| ();
    let renewed: Meanwhile = |world, id| drop(world.renew(id).unwrap());
    let cases = [
        ("never seen", request(1), nothing, true, false),
        ("handed over", request(1), nothing, false, true),
        ("renewed", request(1), renewed, true, true),
        ("can be asked for by its key", keyed, nothing, true, true),
    ];
    for (case, request, meanwhile, is_dropped, is_kept) in cases {
        let world = World::new();
        let lease = world.acquire(request);
        let guard = world.handle.abandon_on_drop(lease.id);
        meanwhile(&world, lease.id);
        match is_dropped {
            true => drop(guard),
            false => guard.disarm(),
        }
        world.nudge();
        assert_eq!(world.is_held(lease.id), is_kept, "{case}");
        let expected = (!is_kept).then_some(EndReason::Released);
        assert_eq!(world.end_reason(lease.id), expected, "{case}");
    }
}

/// The last of more requests than one turn takes is given up while it waits in the inbox.
#[test]
fn a_request_given_up_before_it_was_looked_at_is_given_up_after_it() {
    let world = World::new();
    world.inventory(&[crate::world::device("gpu-0", 1000)]);
    world.store.hold();
    let (_, first) = world.ask(request(1));
    world.store.until_held();
    let mut asked: Vec<_> = (0..700).map(|_| world.ask(request(1))).collect();
    let (given_up, connection) = asked.pop().unwrap();
    let guard = world.handle.abandon_on_drop(given_up);
    drop((connection, guard));
    world.store.open();
    world.wait(first).unwrap();
    for (_, answer) in asked {
        world.wait(answer).unwrap();
    }
    crate::world::until("it was looked at and given up", || {
        let lease = world.handle.find(given_up);
        lease.is_some_and(|lease| matches!(lease.phase, Phase::Ended(_)))
    });
    assert_eq!(world.end_reason(given_up), Some(EndReason::Released));
}

#[test]
fn a_queued_request_outlives_its_connection() {
    let world = World::new();
    let holder = world.acquire(request(80));
    let waiter = world.acquire(queued(40));
    drop(world.handle.abandon_on_drop(waiter.id));
    world.nudge();
    assert!(world.lease(waiter.id).waiting().is_some());
    world.release(holder.id);
    assert!(world.is_held(waiter.id));
}

#[test]
fn who_gives_back_goes_before_who_asks() {
    let world = World::new();
    let holder = world.acquire(request(80));
    world.store.hold();
    let (_, first) = world.ask(patient(80));
    world.store.until_held();
    let (_, second) = world.ask(request(40));
    let released = world.say(Command::Release { id: holder.id });
    world.store.open();
    assert!(world.wait(first).unwrap().waiting().is_some());
    world.wait(released).unwrap();
    let refused = world.wait(second).unwrap_err();
    assert!(
        matches!(refused, AcquireError::Denied(Denial::DoesNotFit(_))),
        "the release served the waiter first: {refused}"
    );
}

#[test]
fn requests_of_one_turn_are_served_and_answered_in_order() {
    let world = World::new();
    world.store.hold();
    let (_, first) = world.ask(request(1));
    world.store.until_held();
    let asked: Vec<_> = (0..10).map(|_| world.ask(request(1)).1).collect();
    world.store.open();
    let mut last = world.wait(first).unwrap().held().unwrap().fence;
    for answer in asked {
        let fence = world.wait(answer).unwrap().held().unwrap().fence;
        assert!(fence > last, "{fence} comes after {last}");
        last = fence;
    }
}

#[test]
fn pages_go_on_after_an_id() {
    let world = World::new();
    let mut ids: Vec<LeaseId> = (0..7).map(|_| world.acquire(request(1)).id).collect();
    ids.sort_unstable();
    let page = |after, limit| -> Vec<LeaseId> {
        let page = world.handle.page(after, limit);
        page.iter().map(|lease| lease.id).collect()
    };
    assert_eq!(page(None, 3), ids[..3]);
    assert_eq!(page(Some(ids[2]), 3), ids[3..6]);
    assert_eq!(page(Some(ids[5]), 3), ids[6..]);
    assert!(page(Some(ids[6]), 3).is_empty());
    assert_eq!(page(Some(LeaseId::from_bits(0)), 100), ids);
}

#[test]
fn waiters_are_told_of_the_stop() {
    let world = World::new();
    world.acquire(request(80));
    let waiter = world.acquire(patient(40));
    let mut follower = world.handle.follow(waiter.id);
    let handle = world.handle.clone();
    let told = world.spawn(async move {
        tokio::select! {
            _ = follower.changed() => false,
            () = handle.stopped() => true,
        }
    });
    world.started.broker.begin_stop();
    assert!(world.wait(told).unwrap(), "the waiter hears of the stop");
    let refused = world.try_acquire(request(1));
    assert!(matches!(
        refused,
        Err(AcquireError::Unavailable(Unavailable::Stopping))
    ));
    world.nudge();
    let store = world.store.clone();
    drop(world.stop());
    let stored = store.load().unwrap().rows.unwrap();
    assert_eq!(stored.leases.len(), 1, "the waiter was no row");
}
