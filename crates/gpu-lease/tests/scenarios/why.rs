//! The sentences that people read while they wait.

use gpu_lease::BootMs;

use crate::world::{memory, whole, world, world_by};

#[test]
fn who_holds_it_and_until_when() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("vllm-a", 8).on(&["gpu-1"]).max_hold(3661))
        .ask(memory("notebook", 6).on(&["gpu-1"]))
        .ask(memory("train", 20).on(&["gpu-0"]))
        .ask(memory("next", 12).waits(600))
        .waits_because(
            "next",
            "needs 12 GiB on one device; gpu-0 has 4 GiB free, held by train (20 GiB); \
             gpu-1 has 10 GiB free, held by vllm-a (8 GiB, until 01:01:01Z), notebook (6 GiB)",
        )
        .waits_by("next", "capacity");
}

#[test]
fn a_drain_is_an_end_that_is_known() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 20).max_hold(600))
        .drain("a", Some(90))
        .ask(whole("b").waits(600))
        .waits_because(
            "b",
            "needs one whole device; gpu-0 is held by a (20 GiB, until 00:01:30Z)",
        );
}

#[test]
fn the_head_knows_when_it_starts_at_the_latest() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .ask(memory("a", 12).max_hold(100))
        .ask(memory("b", 8).max_hold(50))
        .ask(memory("small", 10).waits(600))
        .ask(memory("large", 20).waits(600));
    assert_eq!(world.why("small").start, Some(BootMs(50_000)));
    assert_eq!(world.why("small").position, 1);
    assert_eq!(world.why("large").start, None);
    assert_eq!(world.why("large").position, 2);
}

#[test]
fn a_whole_device_that_the_policy_made_larger_opens_when_its_holder_leaves() {
    let mut world = world_by(|edit| edit.policy.placement.reserve = 4 << 30);
    world
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(whole("a").on(&["gpu-0"]).max_hold(500))
        .ask(memory("b", 20).on(&["gpu-1"]).max_hold(100))
        .switch(|_| {})
        .ask(memory("c", 4).on(&["gpu-1"]).max_hold(100))
        .ask(memory("next", 2).waits(600));
    assert_eq!(world.why("next").start, Some(BootMs(100_000)));
}

#[test]
fn somebody_else_goes_first() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .ask(memory("head", 8).waits(600))
        .ask(memory("next", 1).waits(600))
        .waits_because(
            "next",
            "needs 1 GiB on one device; gpu-0 is held for l-000000000002, which goes first",
        )
        .waits_by("next", "held_for_head");
}

#[test]
fn a_rule_says_its_reason_and_its_hour() {
    world_by(|edit| {
        edit.rules.held.insert("standard".into());
        edit.rules.held_until = Some(64_800);
    })
    .device("gpu-0", 24)
    .ask(memory("a", 1).waits(600))
    .waits_because(
        "a",
        "held by `hours`: class `standard` runs at night (until 18:00:00Z)",
    )
    .waits_by("a", "held_by_rule");
}

#[test]
fn more_devices_and_holders_than_fit_a_line_are_counted() {
    let mut world = world();
    for n in 0..6 {
        let id = format!("gpu-{n}");
        world.device(&id, 24);
        world.ask(whole(&format!("job-{n}")).on(&[&id]));
    }
    world.ask(whole("next").waits(600)).waits_because(
        "next",
        "needs one whole device; gpu-0 is held by job-0 (24 GiB); gpu-1 is held by job-1 (24 GiB); \
         gpu-2 is held by job-2 (24 GiB); gpu-3 is held by job-3 (24 GiB); and 2 more devices",
    );
    let mut crowd = crate::world::world();
    crowd.device("gpu-0", 24);
    for n in 0..6 {
        crowd.ask(memory(&format!("job-{n}"), 1));
    }
    crowd.ask(whole("next").waits(600)).waits_because(
        "next",
        "needs one whole device; gpu-0 is held by job-0 (1 GiB), job-1 (1 GiB), job-2 (1 GiB), \
         job-3 (1 GiB) and 2 more",
    );
    assert_eq!(crowd.why("next").blockers().count(), 6);
}

#[test]
fn foreign_use_is_named_beside_the_holders() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 8))
        .uses("a", "gpu-0", 8)
        .foreign_mib("gpu-0", 10 << 10)
        .ask(memory("b", 12).waits(60))
        .waits_because(
            "b",
            "needs 12 GiB on one device; gpu-0 has 6 GiB free, 10 GiB in use by processes without \
             a lease, held by a (8 GiB)",
        );
}
