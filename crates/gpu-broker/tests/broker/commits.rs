//! Nothing is answered or seen before it is durable, and nothing at all once the store has failed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use gpu_broker::{AcquireError, Fatal, LeaseCommandError, Unavailable};
use gpu_lease::{BootMs, Breach, Command, Fence, LeaseId, Phase, Request};
use gpu_store::{Batch, Store};
use tokio::sync::broadcast::error::TryRecvError;

use crate::world::{World, device, reading, request, rest, until};

#[test]
fn a_grant_is_seen_by_nobody_before_it_is_durable() {
    let world = World::new();
    let mut live = world.handle.live_events();
    let (events, revision) = (world.events_after(None), revision(&world));
    world.store.hold();
    let id = world.handle.new_lease_id();
    let mut follower = world.handle.follow(id);
    let handle = world.handle.clone();
    let asked = world.spawn(async move { handle.acquire(id, request(1)).await });
    let heard = world.spawn(async move { follower.changed().await });
    world.store.until_held();
    rest();
    assert!(!asked.is_finished(), "it is not answered");
    assert!(!heard.is_finished(), "nobody who follows it hears of it");
    assert!(world.handle.find(id).is_none(), "it cannot be found");
    assert!(world.handle.page(None, 10).is_empty());
    assert_eq!(revision, self::revision(&world));
    assert_eq!(live.try_recv().err(), Some(TryRecvError::Empty));
    assert_eq!(world.events_after(None), events);

    world.store.open();
    let lease = world.wait(asked).unwrap().unwrap();
    assert_eq!(*world.lease(id), lease, "it can be found by then");
    assert_eq!(world.wait(heard).unwrap().as_deref(), Some(&lease));
    assert!(self::revision(&world) > revision);
    assert!(live.try_recv().is_ok());
    assert!(world.events_after(None).len() > events.len());
}

#[test]
fn what_holders_say_is_answered_once_it_is_durable() {
    type Verb = fn(LeaseId) -> Command;
    let verbs: [(&str, Verb); 3] = [
        ("renew", |id| Command::Renew { id }),
        ("ready", |id| Command::Ready { id }),
        ("release", |id| Command::Release { id }),
    ];
    let world = World::new();
    let lease = world.acquire(Request {
        load: true,
        ..request(1)
    });
    for (name, verb) in verbs {
        let before = world.lease(lease.id);
        world.store.hold();
        let handle = world.handle.clone();
        let asked = world.spawn(async move { handle.lease(verb(lease.id)).await });
        world.store.until_held();
        rest();
        assert!(!asked.is_finished(), "{name} is not answered");
        assert_eq!(world.lease(lease.id), before, "{name} is not seen");
        world.store.open();
        let after = world.wait(asked).unwrap().unwrap();
        assert_eq!(*world.lease(lease.id), after, "{name} is seen");
        let stored = world.store.load().unwrap().rows.unwrap();
        assert_eq!(stored.leases, [after], "{name} is stored");
    }
}

#[test]
fn what_waits_while_the_disk_is_slow_is_one_commit() {
    let world = World::new();
    world.store.hold();
    let (_, first) = world.ask(request(1));
    world.store.until_held();
    let others: Vec<_> = (0..20).map(|_| world.ask(request(1)).1).collect();
    let before = world.store.commits();
    world.store.open();
    world.wait(first).unwrap();
    for other in others {
        world.wait(other).unwrap();
    }
    assert_eq!(world.store.commits() - before, 2);
}

#[test]
fn what_changes_no_row_is_no_commit() {
    let world = World::new();
    let lease = world.acquire(request(1));
    let before = world.store.commits();
    for second in 0..10 {
        world.telemetry(reading("gpu-0", BootMs(second)));
    }
    assert_eq!(world.store.commits(), before, "readings are not stored");
    let devices = &world.handle.snapshot().devices;
    assert_eq!(devices[0].reading.as_ref().unwrap().taken, BootMs(9));
    world.renew(lease.id).unwrap();
    assert_eq!(world.store.commits(), before + 1);
}

#[test]
fn a_failed_commit_is_the_end() {
    let world = World::new();
    let held = world.acquire(request(40));
    let handle = world.handle.clone();
    let stopped = world.spawn(async move { handle.stopped().await });
    world.store.hold();
    let (granted, first) = world.ask(request(1));
    world.store.until_held();
    let (_, second) = world.ask(request(1));
    world.store.fail();

    let is_over = |answer| {
        matches!(
            answer,
            Err(AcquireError::Unavailable(Unavailable::Stopping))
        )
    };
    assert!(is_over(world.wait(first)), "it may not be durable");
    assert!(is_over(world.wait(second)), "the loop takes no more");
    assert!(is_over(world.try_acquire(request(1))));
    world.wait(stopped).unwrap();
    assert!(world.handle.is_stopping());
    assert!(world.handle.find(granted).is_none());
    assert!(world.is_held(held.id), "what was durable can still be read");

    world.store.open();
    let late = world.command(Command::Release { id: held.id });
    assert!(matches!(
        late,
        Err(LeaseCommandError::Unavailable(Unavailable::Stopping))
    ));
    let stored = world.store.load().unwrap().rows.unwrap();
    assert_eq!(stored.leases, [held], "nothing was granted or freed after");
    let error = world.started.broker.stop().unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
}

#[test]
fn what_contradicts_the_rows_is_neither_stored_nor_answered() {
    let world = World::new();
    let held = world.acquire(request(1));
    let setup = world.stop();
    // Rows that contradict each other: a fence that the counter has not come to.
    let store = setup.rows.open();
    let stored = store.load().unwrap().rows.unwrap();
    let mut forged = held.clone();
    let Phase::Held(grant) = &mut forged.phase else {
        panic!("it is held: {forged:?}");
    };
    grant.fence = Fence(1 << 62);
    let mut batch = Batch::new(stored.counters);
    batch.leases.push(&forged);
    store.commit(&batch).unwrap();

    let world = World::with(setup);
    world.inventory(&[device("gpu-0", 80)]);
    let before = world.store.load().unwrap();
    assert!(world.renew(held.id).is_ok(), "what is held stays held");
    let asked = world.try_acquire(request(1));
    assert!(
        matches!(asked, Err(AcquireError::Unavailable(Unavailable::Stopping))),
        "{asked:?}"
    );
    let after = world.store.load().unwrap().rows.unwrap();
    assert_eq!(
        after.counters.next_fence,
        before.rows.unwrap().counters.next_fence
    );
    assert_eq!(after.leases.len(), 1);
    let error = world.started.broker.stop().unwrap_err();
    assert!(
        matches!(error, Fatal::Books(Breach::Fence { .. })),
        "{error}"
    );
    assert!(error.to_string().ends_with("which is not new"), "{error}");
}

#[test]
fn a_loop_that_breaks_leaves_nobody_waiting() {
    let world = World::new();
    world.store.panic();
    let asked = world.try_acquire(request(1));
    let is_over = |answer| {
        matches!(
            answer,
            Err(AcquireError::Unavailable(Unavailable::Stopping))
        )
    };
    assert!(is_over(asked));
    until("the loop is over", || world.handle.is_stopping());
    assert!(world.renew(LeaseId::from_bits(1)).is_err());
    world.wait(world.handle.stopped());
    let stopped = catch_unwind(AssertUnwindSafe(|| world.started.broker.stop()));
    assert!(stopped.is_err(), "the panic is not swept under the carpet");
}

#[test]
fn after_the_stop_everything_is_refused_and_nothing_hangs() {
    let world = World::new();
    let lease = world.acquire(request(1));
    let handle = world.handle.clone();
    let store = world.store.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    drop(world.stop());
    let stopped = Unavailable::Stopping;
    // On a thread of its own: a command that is never answered must fail the test, not hang it.
    let asked = thread::spawn(move || {
        let renewed = runtime.block_on(handle.lease(Command::Renew { id: lease.id }));
        let acquired = runtime.block_on(handle.acquire(handle.new_lease_id(), request(1)));
        drop(handle.abandon_on_drop(lease.id));
        (renewed, acquired)
    });
    until("it is answered", || asked.is_finished());
    let (renewed, acquired) = asked.join().unwrap();
    assert!(matches!(renewed, Err(LeaseCommandError::Unavailable(why)) if why == stopped));
    assert!(matches!(acquired, Err(AcquireError::Unavailable(why)) if why == stopped));
    let stored = store.load().unwrap().rows.unwrap();
    assert_eq!(stored.leases.len(), 1, "what is held stays held");
    assert!(stored.leases[0].held().is_some());
}

fn revision(world: &World) -> u64 {
    world.handle.snapshot().counters.revision
}
