//! Devices that come and go, and what is particular to one.

use gpu_lease::{DeviceRule, EventKind};

use crate::world::{memory, world, world_by};

#[test]
fn a_lost_device_keeps_its_leases_for_a_minute() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 8))
        .at(10)
        .lose("gpu-0")
        .ask(memory("b", 1).waits(600))
        .waits_because("b", "needs 1 GiB on one device; gpu-0 is lost")
        .waits_by("b", "device_lost")
        .heard(
            EventKind::DeviceLost,
            &["gpu-0 is lost; its leases end in 1m unless it comes back"],
        )
        .at(69)
        .is("a", "active on gpu-0")
        .at(70)
        .is("a", "ended: device_lost")
        .devices_are(&[])
        .waits_because("b", "needs 1 GiB on one device; no device can serve it")
        .waits_by("b", "no_device");
}

#[test]
fn a_device_that_comes_back_in_time_has_its_leases() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 8))
        .lose("gpu-0")
        .at(59)
        .find_again("gpu-0")
        .at(600)
        .is("a", "active on gpu-0")
        .free("gpu-0", 16);
}

#[test]
fn a_device_that_was_not_seen_yet_is_not_lost() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("a", 8).on(&["gpu-0"]))
        .restart()
        .lose("gpu-0")
        .devices_are(&["gpu-1"])
        .at(600)
        .is("a", "active on gpu-0")
        .find_again("gpu-0")
        .free("gpu-0", 16);
}

#[test]
fn within_a_grace_window_no_device_is_given_up() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 8))
        .lose("gpu-0")
        .grace_until(90)
        .at(89)
        .is("a", "active on gpu-0")
        .at(90)
        .is("a", "ended: device_lost");
}

#[test]
fn a_gang_that_loses_a_device_is_taken_back_on_the_others() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("gang", 8).devices(2).supervised())
        .lose("gpu-0")
        .at(60)
        .is("gang", "reclaiming after device_lost, verifying")
        .free("gpu-1", 16)
        .signalled(&["TERM gang #1"])
        .process_gone("gang")
        .is("gang", "ended: device_lost")
        .free("gpu-1", 24);
}

#[test]
fn a_gang_that_loses_all_its_devices_is_over() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("gang", 8).devices(2).supervised())
        .lose("gpu-0")
        .lose("gpu-1")
        .at(60)
        .is("gang", "ended: device_lost")
        .signalled(&[])
        .heard(EventKind::LeaseEnded, &["gang is over: device_lost"]);
}

#[test]
fn what_ended_before_its_device_was_lost_keeps_its_reason() {
    world()
        .device("gpu-0", 24)
        .ask(memory("train", 8).process())
        .revoke("train")
        .lose("gpu-0")
        .at(60)
        .is("train", "ended: revoked");
}

#[test]
fn an_engine_that_loads_has_the_slot_until_it_is_ready() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 4).loads())
        .ask(memory("b", 4).loads().waits(60))
        .ask(memory("c", 4).waits(60))
        .are(&[
            ("a", "active on gpu-0, loading"),
            ("b", "waiting"),
            ("c", "waiting"),
        ])
        .waits_because(
            "b",
            "needs 4 GiB on one device; gpu-0 is loading, held by a (4 GiB)",
        )
        .waits_by("b", "load_slot")
        .ready("a")
        .are(&[
            ("a", "active on gpu-0"),
            ("b", "active on gpu-0, loading"),
            ("c", "active on gpu-0"),
        ])
        .ready("a")
        .heard(EventKind::LeaseReady, &["a has loaded"]);
}

#[test]
fn an_end_frees_the_load_slot() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 4).loads())
        .ask(memory("b", 4).loads().waits(60))
        .revoke("a")
        .are(&[
            ("a", "reclaiming after revoked, verifying"),
            ("b", "active on gpu-0, loading"),
        ]);
}

#[test]
fn a_file_says_how_many_load_at_once_and_what_is_kept_free() {
    world_by(|edit| {
        let rule = DeviceRule {
            reserve: Some(4 << 30),
            load_slots: Some(2),
            ..Default::default()
        };
        edit.device("gpu-1", rule);
    })
    .device("gpu-0", 24)
    .device("gpu-1", 24)
    .free("gpu-0", 24)
    .free("gpu-1", 20)
    .ask(memory("a", 4).loads().on(&["gpu-1"]))
    .ask(memory("b", 4).loads().on(&["gpu-1"]))
    .ask(memory("c", 4).loads().on(&["gpu-1"]).waits(60))
    .are(&[
        ("a", "active on gpu-1, loading"),
        ("b", "active on gpu-1, loading"),
        ("c", "waiting"),
    ]);
}

#[test]
fn of_two_settings_for_a_device_the_later_one_rules() {
    let rule = |cordon: &str, reserve: u64| DeviceRule {
        cordon: Some(cordon.into()),
        reserve: Some(reserve << 30),
        ..Default::default()
    };
    world_by(|edit| {
        edit.device("gpu-0", rule("kept for the demo", 8));
        edit.device("gpu-0", rule("broken fan", 2));
        edit.device("gpu-0", DeviceRule::default());
    })
    .device("gpu-0", 24)
    .cordoned("gpu-0", Some("broken fan"))
    .free("gpu-0", 22);
}

#[test]
fn who_waits_has_nothing_to_be_ready_for() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .ask(memory("b", 20).waits(60))
        .ready("b")
        .was_refused("the lease is waiting and holds nothing");
}
