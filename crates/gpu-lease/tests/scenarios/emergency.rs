//! Ending what is stuck, now.

use gpu_lease::{DeviceKey, EventKind, Targets};

use crate::world::{memory, whole, world, world_by};

#[test]
fn all_means_holders_and_waiters() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 4))
        .ask(whole("b").waits(60))
        .ask(whole("c").waits(60).queued())
        .emergency(Targets::All, |_| {})
        .ended_are(&["a", "b", "c"])
        .are(&[
            ("a", "reclaiming after emergency, verifying"),
            ("b", "ended: emergency"),
            ("c", "ended: emergency"),
        ])
        .heard(EventKind::EmergencyRelease, &["3 leases are ended: fire"])
        .at(5)
        .is("a", "ended: emergency");
}

#[test]
fn an_emergency_counts_as_people_do() {
    world()
        .device("gpu-0", 24)
        .emergency(Targets::All, |_| {})
        .ask(whole("a"))
        .emergency(Targets::All, |_| {})
        .heard(
            EventKind::EmergencyRelease,
            &["no lease is ended: fire", "1 lease is ended: fire"],
        );
}

#[test]
fn devices_and_leases_can_be_named() {
    let mut named = world();
    named
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("a", 4).on(&["gpu-0"]))
        .ask(memory("b", 4).on(&["gpu-1"]))
        .ask(memory("gang", 4).devices(2))
        .emergency(Targets::Devices(vec![DeviceKey::local("gpu-0")]), |_| {})
        .ended_are(&["a", "gang"])
        .is("b", "active on gpu-1");
    let targets = Targets::Leases(vec![named.lease("b").id, named.lease("a").id]);
    named
        .emergency(targets, |_| {})
        .ended_are(&["b"])
        .is("b", "reclaiming after emergency, verifying");
}

#[test]
fn the_devices_can_be_cordoned_in_the_same_breath() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("a", 4).on(&["gpu-0"]))
        .ask(memory("next", 24).on(&["gpu-0"]).waits(600))
        .emergency(Targets::Devices(vec![DeviceKey::local("gpu-0")]), |how| {
            how.cordon = true;
            how.force_unsafe = true;
        })
        .cordoned("gpu-0", Some("fire"))
        .cordoned("gpu-1", None)
        .are(&[("a", "ended: emergency"), ("next", "waiting")]);
}

#[test]
fn a_device_that_is_named_is_cordoned_though_nobody_is_there() {
    let named = ["gpu-1", "gpu-9"].map(DeviceKey::local);
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .emergency(Targets::Devices(named.into()), |how| how.cordon = true)
        .ended_are(&[])
        .cordoned("gpu-0", None)
        .cordoned("gpu-1", Some("fire"));
}

#[test]
fn force_unsafe_frees_without_a_check_and_says_so() {
    world()
        .device("gpu-0", 24)
        .ask(memory("train", 20).process())
        .ask(memory("next", 20).waits(60))
        .emergency(Targets::All, |how| how.force_unsafe = true)
        .is("train", "ended: emergency")
        .free("gpu-0", 24)
        .signalled(&[])
        .heard(
            EventKind::EmergencyRelease,
            &["2 leases are ended without any check that holders are gone: fire"],
        );
}

#[test]
fn kill_signals_whatever_the_policy_says() {
    for verify in [true, false] {
        world_by(|edit| {
            edit.policy.reclaim.signal = gpu_lease::SignalRule::Never;
            edit.policy.reclaim.verify = verify;
        })
        .device("gpu-0", 24)
        .ask(memory("train", 20).process())
        .emergency(Targets::All, |how| how.kill = true)
        .is("train", "reclaiming after emergency, verifying")
        .signalled(&["TERM train #1"])
        .at(5)
        .signalled(&["KILL train #2"])
        .process_gone("train")
        .is("train", "ended: emergency");
    }
}

#[test]
fn kill_without_a_check_kills_at_once() {
    world()
        .device("gpu-0", 24)
        .ask(memory("train", 20).process())
        .ask(memory("remote", 1))
        .emergency(Targets::All, |how| {
            how.kill = true;
            how.force_unsafe = true;
        })
        .is("train", "ended: emergency")
        .signalled(&["KILL train #2"]);
}

#[test]
fn without_kill_nobody_is_signalled() {
    world()
        .device("gpu-0", 24)
        .ask(memory("run", 20).supervised())
        .emergency(Targets::All, |_| {})
        .signalled(&[])
        .at(60)
        .is("run", "reclaiming after emergency, quarantined")
        .signalled(&[]);
}

#[test]
fn what_is_stuck_can_be_killed_again_or_freed() {
    let mut stuck = world();
    stuck
        .device("gpu-0", 24)
        .ask(memory("run", 20).supervised())
        .ask(memory("fine", 1))
        .revoke("run")
        .signalled(&["TERM run #1"])
        .signal_refused("run", 1)
        .is(
            "run",
            "reclaiming after revoked, stuck: pid 4242 is somebody else",
        )
        .emergency(Targets::Stuck, |_| {})
        .ended_are(&[])
        .emergency(Targets::Stuck, |how| how.kill = true)
        .ended_are(&["run"])
        .is("run", "reclaiming after revoked, verifying")
        .signalled(&["KILL run #2"])
        // The refusal of the first attempt says nothing about the second.
        .signal_refused("run", 1)
        .is("run", "reclaiming after revoked, verifying")
        .at(60)
        .is("run", "reclaiming after revoked, quarantined")
        .emergency(Targets::Stuck, |how| how.force_unsafe = true)
        .are(&[("run", "ended: revoked"), ("fine", "active on gpu-0")]);
}

#[test]
fn an_emergency_does_not_hold_up_what_is_on_its_way() {
    world()
        .device("gpu-0", 24)
        .ask(memory("remote", 20))
        .revoke("remote")
        .at(4)
        .emergency(Targets::All, |how| how.kill = true)
        .ended_are(&[])
        .at(5)
        .is("remote", "ended: revoked");
}

#[test]
fn fences_rise_over_emergencies() {
    let mut world = world();
    world.device("gpu-0", 24).ask(memory("a", 1));
    let first = world.fence_of("a");
    world
        .emergency(Targets::All, |how| how.force_unsafe = true)
        .restart()
        .discover()
        .ask(memory("b", 1));
    assert!(world.fence_of("b") > first);
    assert_eq!(world.lease("a").held(), None);
}
