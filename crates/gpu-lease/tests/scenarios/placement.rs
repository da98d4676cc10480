//! Which devices a grant is placed on.

use gpu_lease::Strategy;

use crate::world::{World, memory, whole, world, world_by};

/// gpu-0: 24 GiB, 20 free, one lease. gpu-1: 16 GiB, idle. gpu-2: 24 GiB, 22 free, two leases.
/// gpu-3: 12 GiB, 10 free, one lease.
fn mixed(strategy: Strategy) -> World {
    let mut world = world_by(|edit| edit.policy.placement.strategy = strategy);
    world
        .device("gpu-0", 24)
        .device("gpu-1", 16)
        .device("gpu-2", 24)
        .device("gpu-3", 12)
        .ask(memory("a", 4).on(&["gpu-0"]))
        .ask(memory("b", 1).on(&["gpu-2"]))
        .ask(memory("c", 1).on(&["gpu-2"]))
        .ask(memory("d", 2).on(&["gpu-3"]));
    world
}

#[test]
fn each_strategy_has_its_own_taste() {
    for (strategy, one, two) in [
        (Strategy::FirstFit, "gpu-0", "gpu-0 gpu-1"),
        (Strategy::BestFit, "gpu-3", "gpu-1 gpu-3"),
        (Strategy::WorstFit, "gpu-2", "gpu-0 gpu-2"),
        (Strategy::Spread, "gpu-1", "gpu-0 gpu-1"),
        (Strategy::Pack, "gpu-2", "gpu-2 gpu-3"),
    ] {
        mixed(strategy)
            .ask(memory("one", 4))
            .is("one", &format!("active on {one}"));
        mixed(strategy)
            .ask(memory("two", 4).devices(2))
            .is("two", &format!("active on {two}"));
    }
}

#[test]
fn a_device_that_is_too_full_is_passed_over() {
    for (strategy, expected) in [
        (Strategy::BestFit, "active on gpu-0"),
        (Strategy::Pack, "active on gpu-2"),
        (Strategy::Spread, "active on gpu-0"),
    ] {
        mixed(strategy).ask(memory("big", 18)).is("big", expected);
    }
}

#[test]
fn the_index_decides_among_equals() {
    for strategy in [
        Strategy::BestFit,
        Strategy::FirstFit,
        Strategy::Pack,
        Strategy::Spread,
        Strategy::WorstFit,
    ] {
        world_by(|edit| edit.policy.placement.strategy = strategy)
            .device("gpu-b", 24)
            .device("gpu-a", 24)
            .ask(memory("vllm", 4))
            .is("vllm", "active on gpu-b");
    }
}

#[test]
fn pack_leaves_whole_devices_free() {
    world_by(|edit| edit.policy.placement.strategy = Strategy::Pack)
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("a", 4))
        .ask(memory("b", 4))
        .ask(memory("c", 4))
        .ask(whole("train"))
        .are(&[
            ("a", "active on gpu-0"),
            ("b", "active on gpu-0"),
            ("c", "active on gpu-0"),
            ("train", "active on gpu-1"),
        ]);
}

#[test]
fn a_whole_device_is_shared_with_nobody() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("small", 1).on(&["gpu-0"]))
        .ask(whole("train"))
        .ask(memory("other", 1).on(&["gpu-1"]))
        .ask(whole("second"))
        .are(&[
            ("small", "active on gpu-0"),
            ("train", "active on gpu-1"),
            (
                "other",
                "refused: needs 1 GiB on one device; gpu-1 is held by train (24 GiB)",
            ),
            (
                "second",
                "refused: needs one whole device; gpu-0 is held by small (1 GiB); \
                 gpu-1 is held by train (24 GiB)",
            ),
        ])
        .free("gpu-1", 0);
}

#[test]
fn a_whole_device_is_what_the_reserve_leaves_of_it() {
    let mut world = world_by(|edit| edit.policy.placement.reserve = 2 << 30);
    world.device("gpu-0", 24).ask(whole("train"));
    let grant = world.lease("train").held().expect("it is granted");
    assert_eq!(grant.memory(), 22 << 30);
}

#[test]
fn only_selected_and_leasable_devices_serve() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .unleasable("cpu-0", 64)
        .ask(memory("picky", 1).on(&["gpu-1"]))
        .ask(memory("greedy", 40))
        .are(&[
            ("picky", "active on gpu-1"),
            (
                "greedy",
                "refused: asks for 40 GiB on one device; the largest that can serve it grants 24 GiB",
            ),
        ]);
}
