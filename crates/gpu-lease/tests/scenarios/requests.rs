//! Retries, and callers that go away.

use crate::world::{memory, whole, world, world_by};

#[test]
fn the_same_key_gets_the_same_lease_as_it_is() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .ask(memory("first", 20).keyed("k", "body"))
        .at(1)
        .renew("first")
        .ask(memory("again", 20).keyed("k", "body"));
    assert_eq!(world.lease("again"), world.lease("first"));
    world
        .free("gpu-0", 4)
        .release("first")
        .ask(memory("late", 20).keyed("k", "body"))
        .is("late", "ended: released");
}

#[test]
fn the_same_key_with_another_body_is_a_mistake() {
    world()
        .device("gpu-0", 24)
        .ask(memory("first", 20).keyed("k", "body"))
        .ask(memory("other", 4).keyed("k", "another"))
        .is(
            "other",
            "refused: this idempotency key was used for another request",
        );
}

#[test]
fn a_denial_and_a_forgotten_wait_leave_the_key_free() {
    world()
        .device("gpu-0", 24)
        .ask(memory("now", 20))
        .ask(memory("denied", 8).keyed("k", "body"))
        .ask(memory("waits", 8).keyed("k", "another").waits(10))
        .at(10)
        .is("waits", "ended: wait_timeout")
        .release("now")
        .ask(memory("third", 8).keyed("k", "one more"))
        .is("third", "active on gpu-0");
}

#[test]
fn a_key_is_known_for_a_day_after_the_end_and_over_restarts() {
    let day = 24 * 3600;
    world()
        .device("gpu-0", 24)
        .ask(memory("first", 20).keyed("k", "body"))
        .release("first")
        .restart()
        .discover()
        .ask(memory("again", 20).keyed("k", "body"))
        .is("again", "ended: released")
        .at(day)
        .ask(memory("new", 20).keyed("k", "body"))
        .is("new", "active on gpu-0");
}

#[test]
fn who_does_not_hear_the_answer_gets_nothing() {
    world()
        .device("gpu-0", 24)
        .ask(memory("granted", 4))
        .ask(memory("renewed", 4))
        .ask(memory("keyed", 4).keyed("k", "body"))
        .ask(whole("waits").waits(60))
        .ask(whole("queued").waits(60).queued())
        .renew("renewed")
        .abandon("granted")
        .abandon("renewed")
        .abandon("keyed")
        .abandon("waits")
        .abandon("queued")
        .abandon("nobody")
        .are(&[
            ("granted", "ended: released"),
            ("renewed", "active on gpu-0"),
            ("keyed", "active on gpu-0"),
            ("waits", "ended: cancelled"),
            ("queued", "waiting"),
        ]);
}

#[test]
fn a_wait_that_was_left_is_never_granted() {
    world()
        .device("gpu-0", 24)
        .ask(whole("now"))
        .ask(whole("left").waits(60))
        .ask(whole("next").waits(60))
        .release("left")
        .release("now")
        .at(1)
        .are(&[("left", "ended: cancelled"), ("next", "active on gpu-0")]);
}

#[test]
fn what_nobody_knows_is_not_found() {
    let mut world = world();
    world.device("gpu-0", 24);
    world.renew("nobody").was_refused("no such lease");
    world.release("nobody").was_refused("no such lease");
    world.ready("nobody").was_refused("no such lease");
    world.revoke("nobody").was_refused("no such lease");
}

#[test]
fn a_release_may_be_repeated() {
    let mut world = world();
    world.device("gpu-0", 24).ask(memory("a", 4)).release("a");
    let ended = world.lease("a").clone();
    world.at(5).release("a");
    assert_eq!(*world.lease("a"), ended);
}

#[test]
fn a_denied_class_is_told_the_rule() {
    world_by(|edit| edit.deny("standard"))
        .device("gpu-0", 24)
        .ask(memory("a", 1).waits(60))
        .is(
            "a",
            "refused: denied by `no such work`: class `standard` is not for this host",
        );
}
