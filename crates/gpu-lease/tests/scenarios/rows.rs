//! What is stored, what is told of changes, and what a start makes of it.

use gpu_lease::{Answer, Books, Fence, Phase, Rows};

use crate::world::{FIRST_FENCE, World, memory, whole, world};

/// One of everything that can be stored.
fn full_world() -> World {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(
            memory("holds", 4)
                .keyed("k", "body")
                .max_hold(600)
                .on(&["gpu-0"]),
        )
        .ask(memory("drains", 4).on(&["gpu-0"]))
        .ask(memory("run", 4).supervised().on(&["gpu-0"]))
        .ask(memory("done", 4))
        .ask(whole("queued").devices(2).waits(600).queued())
        .ask(whole("waits").devices(2).waits(600))
        .at(5)
        .drain("drains", Some(60))
        .revoke("run")
        .release("done")
        .cordon("gpu-1", Some(90));
    world
}

fn again(world: &World) -> Books {
    Books::from_rows(world.books().policy().clone(), world.books().rows())
}

#[test]
fn books_made_of_rows_write_the_same_rows() {
    let world = full_world();
    let rows = world.books().rows();
    assert_eq!(again(&world).rows(), rows);
    assert_eq!(rows.leases.len(), 5, "all but who waits on a connection");
    assert_eq!(rows.cordons.len(), 1);
    assert_eq!(rows.counters.next_fence, Fence(FIRST_FENCE + 4));
}

#[test]
fn a_start_on_the_same_boot_keeps_leases_deadlines_and_places() {
    let mut world = full_world();
    let deadline = world.books().next_deadline();
    world.restart().are(&[
        ("holds", "active on gpu-0"),
        ("drains", "draining on gpu-0 until 1m 5s by operator"),
        ("run", "reclaiming after revoked, verifying"),
        ("done", "ended: released"),
        ("queued", "waiting"),
        ("waits", "unknown"),
    ]);
    assert_eq!(world.books().next_deadline(), deadline);
    world
        .renew("holds")
        .is("holds", "active on gpu-0")
        .ask(memory("new", 1))
        .is("new", "refused: devices are still being discovered")
        .discover()
        .free("gpu-0", 12)
        .ask(whole("later").devices(2).waits(60))
        .queue_is(&["queued", "later"]);
}

#[test]
fn another_boot_ends_everything_and_keeps_the_reasons_that_were_there() {
    let mut world = full_world();
    let fence = world.books().counters().next_fence;
    world.reboot().are(&[
        ("holds", "ended: host_rebooted"),
        ("drains", "ended: host_rebooted"),
        ("run", "ended: revoked"),
        ("done", "ended: released"),
        ("queued", "ended: host_rebooted"),
    ]);
    assert_eq!(world.books().counters().next_fence, fence);
    // The cordon ends at the same time of the day: 85 seconds were left.
    world
        .discover()
        .cordoned("gpu-1", Some("new driver"))
        .at(84)
        .cordoned("gpu-1", Some("new driver"))
        .at(85)
        .cordoned("gpu-1", None)
        .at(24 * 3600)
        .are(&[("holds", "unknown"), ("done", "unknown")]);
}

#[test]
fn every_change_is_told_with_its_revision() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .ask(whole("now"))
        .ask(whole("waits").waits(60));
    let waiting = world.lease("waits").clone();
    assert!(matches!(waiting.phase, Phase::Waiting(_)));
    world.release("waits");
    let told = &world.last().changes.leases;
    assert_eq!(told.len(), 1);
    // Who listens for something newer than the wait hears of its end.
    assert!(told[0].revision > waiting.revision);
    assert_eq!(told[0].revision, world.books().counters().revision);
    let Answer::Lease(Ok(answer)) = &world.last().answer else {
        panic!("a release is answered by the lease");
    };
    assert_eq!(*answer, told[0]);
}

#[test]
fn nothing_changed_is_nothing_stamped() {
    let mut world = full_world();
    let before = world.books().counters().revision;
    world.expire().read().grace_until(1).release("done");
    assert_eq!(world.books().counters().revision, before);
}

#[test]
fn the_answer_is_the_lease_after_the_queue_was_served() {
    let mut world = world();
    world.device("gpu-0", 24).ask(memory("a", 4));
    let Answer::Acquire(Ok(answer)) = &world.last().answer else {
        panic!("a request is answered by a lease");
    };
    assert_eq!(answer, world.lease("a"));
    assert!(answer.held().is_some());
}

#[test]
fn a_new_store_starts_above_the_fence_that_it_is_given() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .ask(memory("a", 1))
        .ask(memory("b", 1));
    assert_eq!(world.fence_of("a"), Fence(FIRST_FENCE));
    assert_eq!(world.fence_of("b"), Fence(FIRST_FENCE + 1));
}

#[test]
fn empty_rows_are_empty_books() {
    let world = world();
    let rows: Rows = world.books().rows();
    assert_eq!((rows.leases.len(), rows.cordons.len()), (0, 0));
    assert_eq!(world.books().next_deadline(), None);
    assert!(world.books().is_recovering());
    assert_eq!(world.books().waiting(world.now()), []);
}
