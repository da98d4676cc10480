//! What a device has left, by the books and by the card.

use gpu_lease::EventKind;

use crate::world::{memory, whole, world, world_by};

#[test]
fn free_is_the_total_without_reserve_leases_and_strangers() {
    world_by(|edit| edit.policy.placement.reserve = 2 << 30)
        .device("gpu-0", 24)
        .free("gpu-0", 22)
        .foreign_mib("gpu-0", 3 << 10)
        .free("gpu-0", 19)
        .ask(memory("a", 8))
        .uses("a", "gpu-0", 5)
        .foreign_is_mib("gpu-0", 3 << 10)
        .free("gpu-0", 11);
}

#[test]
fn a_lease_is_charged_for_the_larger_of_granted_and_observed() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 8))
        .uses("a", "gpu-0", 3)
        .free("gpu-0", 16)
        .uses("a", "gpu-0", 12)
        .free("gpu-0", 12)
        .foreign_is_mib("gpu-0", 0);
}

#[test]
fn what_leases_use_without_a_known_process_is_not_charged_twice() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 8))
        .unattributed("gpu-0", 6)
        .foreign_is_mib("gpu-0", 0)
        .free("gpu-0", 16)
        .unattributed("gpu-0", 11)
        .foreign_is_mib("gpu-0", 3 << 10)
        .free("gpu-0", 13);
}

#[test]
fn a_process_of_unknown_size_is_attributed_and_the_rest_is_foreign() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 8))
        .uses_unknown("a", "gpu-0")
        .foreign_mib("gpu-0", 6 << 10)
        .foreign_is_mib("gpu-0", 6 << 10)
        .free("gpu-0", 10);
}

#[test]
fn nothing_is_granted_that_strangers_use() {
    world()
        .device("gpu-0", 24)
        .foreign_mib("gpu-0", 20 << 10)
        .ask(memory("a", 8).waits(60))
        .waits_because(
            "a",
            "needs 8 GiB on one device; gpu-0 has 4 GiB free, 20 GiB in use by processes without a lease",
        )
        .waits_by("a", "capacity")
        .foreign_mib("gpu-0", 16 << 10)
        .is("a", "active on gpu-0");
}

#[test]
fn what_a_released_lease_left_behind_is_foreign_until_a_later_reading() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .uses("a", "gpu-0", 18)
        .release("a")
        .foreign_is_mib("gpu-0", 18 << 10)
        .ask(memory("b", 20).waits(60))
        .is("b", "waiting")
        .leaves("a", "gpu-0")
        .is("b", "active on gpu-0");
}

#[test]
fn a_whole_device_is_granted_again_only_after_a_later_reading() {
    world()
        .device("gpu-0", 24)
        .ask(whole("a"))
        .uses("a", "gpu-0", 18)
        .without_polls()
        .at(1)
        .leaves("a", "gpu-0")
        .release("a")
        // The last reading shows 18 GiB and is older than the release: it is asked for, not believed.
        .asked_to_read(false)
        .ask(whole("b"))
        .asked_to_read(true)
        .is("b", "waiting")
        .read()
        .is("b", "waiting")
        .clock(1_001)
        .read()
        .is("b", "active on gpu-0");
}

#[test]
fn an_old_reading_refuses_nobody() {
    world()
        .device("gpu-0", 24)
        .foreign_mib("gpu-0", 20 << 10)
        .without_polls()
        .clock(3_001)
        .ask(memory("a", 8))
        .ask(whole("b").waits(60))
        .asked_to_read(true)
        .waits_by("a", "awaiting_reading")
        .foreign_mib("gpu-0", 0)
        .read()
        .is("a", "active on gpu-0")
        .waits_because("b", "needs one whole device; gpu-0 is held by a (8 GiB)");
}

#[test]
fn grants_alone_refuse_also_by_an_old_reading() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .without_polls()
        .clock(10_000)
        .ask(memory("b", 8))
        .is(
            "b",
            "refused: needs 8 GiB on one device; gpu-0 has 4 GiB free, held by a (20 GiB)",
        )
        .asked_to_read(false);
}

#[test]
fn a_reading_is_fresh_for_three_seconds() {
    for (ms, expected) in [(3_000, "active on gpu-0"), (3_001, "waiting")] {
        world()
            .device("gpu-0", 24)
            .without_polls()
            .clock(ms)
            .ask(memory("a", 1))
            .is("a", expected);
    }
}

#[test]
fn a_device_that_was_never_read_grants_nothing() {
    world()
        .without_polls()
        .device("gpu-0", 24)
        .ask(memory("a", 1).waits(60))
        .waits_by("a", "awaiting_reading")
        .read()
        .is("a", "active on gpu-0");
}

#[test]
fn a_device_that_cannot_be_read_is_granted_by_the_books_alone() {
    world()
        .without_polls()
        .unreadable("gpu-0", 24)
        .clock(3_600_000)
        .ask(whole("a"))
        .is("a", "active on gpu-0")
        .release("a")
        .ask(memory("b", 20))
        .is("b", "active on gpu-0");
}

#[test]
fn a_whole_device_tolerates_a_compositor_but_no_job() {
    for (mib, expected) in [
        (0, "active on gpu-0"),
        (512, "active on gpu-0"),
        (
            513,
            "refused: needs one whole device; gpu-0 has 23.4 GiB free, 513 MiB in use by processes \
             without a lease",
        ),
    ] {
        world()
            .device("gpu-0", 24)
            .foreign_mib("gpu-0", mib)
            .ask(whole("a"))
            .is("a", expected);
    }
}

#[test]
fn foreign_use_that_grows_after_the_grant_is_said_once_and_grants_nothing_more() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 16))
        .uses("a", "gpu-0", 16)
        .foreign_mib("gpu-0", 4 << 10)
        .overcommitted("gpu-0", false)
        .foreign_mib("gpu-0", 12 << 10)
        .overcommitted("gpu-0", true)
        .foreign_mib("gpu-0", 13 << 10)
        .heard(
            EventKind::DeviceOvercommitted,
            &["gpu-0 28 GiB are taken of 24 GiB"],
        )
        .ask(memory("b", 1).waits(60))
        .are(&[("a", "active on gpu-0"), ("b", "waiting")])
        .foreign_mib("gpu-0", 0)
        .overcommitted("gpu-0", false)
        .is("b", "active on gpu-0");
}

#[test]
fn only_a_shared_device_with_leases_is_overcommitted() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .foreign_mib("gpu-0", 30 << 10)
        .overcommitted("gpu-0", false)
        .ask(whole("a"))
        .is("a", "active on gpu-1")
        // A compositor beside a whole device is tolerated.
        .foreign_mib("gpu-1", 300)
        .overcommitted("gpu-1", false);
}

#[test]
fn hostile_numbers_of_a_driver_break_nothing() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 8))
        .uses("a", "gpu-0", 1 << 33)
        .foreign_mib("gpu-0", 1 << 43)
        .free("gpu-0", 0)
        .ask(memory("b", 1).waits(60))
        .is("b", "waiting")
        .foreign_mib("gpu-0", 0)
        .leaves("a", "gpu-0")
        .are(&[("a", "active on gpu-0"), ("b", "active on gpu-0")]);
}
