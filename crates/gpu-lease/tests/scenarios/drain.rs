//! Who is asked to go, until when, and who may stay after all.

use gpu_lease::EventKind;

use crate::world::{memory, whole, world, world_by};

#[test]
fn an_operator_asks_a_holder_to_go_by_a_deadline() {
    world()
        .device("gpu-0", 24)
        .ask(memory("vllm", 20))
        .drain("vllm", Some(45))
        .is("vllm", "draining on gpu-0 until 45s by operator")
        .heard(
            EventKind::LeaseDraining,
            &["vllm is asked to go within 45s: maintenance"],
        )
        .renew("vllm")
        .is("vllm", "draining on gpu-0 until 45s by operator")
        .at(45)
        .is("vllm", "reclaiming after revoked, verifying");
}

#[test]
fn the_usual_grace_is_the_longest_of_policy_class_and_request_and_capped() {
    let cases = [
        (30, 0, 0, 3600, "30s"),
        (30, 120, 0, 3600, "2m"),
        (30, 120, 300, 3600, "5m"),
        (30, 120, 300, 60, "1m"),
    ];
    for (policy, class, request, cap, expected) in cases {
        world_by(|edit| {
            edit.policy.reload.grace = gpu_lease::Ms::from_secs(policy);
            edit.policy.reload.grace_max = gpu_lease::Ms::from_secs(cap);
            let standard = edit.policy.classes.get_mut("standard");
            standard.expect("it is built in").drain_grace = gpu_lease::Ms::from_secs(class);
        })
        .device("gpu-0", 24)
        .ask(memory("vllm", 20).drain_grace(request))
        .drain("vllm", None)
        .is(
            "vllm",
            &format!("draining on gpu-0 until {expected} by operator"),
        );
    }
}

#[test]
fn the_earliest_deadline_rules_and_each_source_withdraws_its_own() {
    world()
        .device("gpu-0", 24)
        .ask(memory("vllm", 20))
        .drain("vllm", Some(60))
        .is("vllm", "draining on gpu-0 until 1m by operator")
        .drain_device("gpu-0", Some(30))
        .is("vllm", "draining on gpu-0 until 30s by device")
        .switch(|edit| edit.deny("standard"))
        .is("vllm", "draining on gpu-0 until 30s by device")
        .uncordon("gpu-0")
        .is("vllm", "draining on gpu-0 until 30s by policy")
        .switch(|_| {})
        .is("vllm", "draining on gpu-0 until 1m by operator")
        .heard(
            EventKind::LeaseWithdrawn,
            &[
                "vllm may stay: the device no longer asks it to go",
                "vllm may stay: the policy no longer asks it to go",
            ],
        )
        .at(60)
        .is("vllm", "reclaiming after revoked, verifying");
}

#[test]
fn a_drained_device_takes_nobody_new_and_asks_all_that_are_there() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("a", 4).on(&["gpu-0"]))
        .ask(memory("b", 4).on(&["gpu-0"]))
        .ask(memory("c", 4).on(&["gpu-1"]))
        .ask(memory("gone", 4).on(&["gpu-0"]))
        .revoke("gone")
        .drain_device("gpu-0", Some(60))
        .ask(memory("d", 4))
        .are(&[
            ("a", "draining on gpu-0 until 1m by device"),
            ("b", "draining on gpu-0 until 1m by device"),
            ("c", "active on gpu-1"),
            ("d", "active on gpu-1"),
            ("gone", "reclaiming after revoked, verifying"),
        ])
        .cordoned("gpu-0", Some("maintenance"))
        .uncordon("gpu-0")
        .are(&[("a", "active on gpu-0"), ("b", "active on gpu-0")])
        .cordoned("gpu-0", None);
}

#[test]
fn a_cordon_lifts_by_itself_and_lets_stay_who_was_asked_to_go() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 4))
        .drain_device("gpu-0", Some(600))
        .cordon("gpu-0", Some(60))
        .ask(memory("b", 4).waits(600))
        .waits_because(
            "b",
            "needs 4 GiB on one device; gpu-0 is cordoned: new driver",
        )
        .waits_by("b", "cordoned")
        .at(59)
        .is("a", "draining on gpu-0 until 10m by device")
        .at(60)
        .are(&[("a", "active on gpu-0"), ("b", "active on gpu-0")])
        .cordoned("gpu-0", None);
}

#[test]
fn a_cordon_that_ends_before_its_device_is_seen_again_lets_stay_as_well() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 4))
        .drain_device("gpu-0", Some(600))
        .cordon("gpu-0", Some(60))
        .restart()
        .at(60)
        .discover()
        .is("a", "active on gpu-0");
}

#[test]
fn revoking_takes_back_at_once_and_ends_a_wait() {
    world()
        .device("gpu-0", 24)
        .ask(whole("a"))
        .ask(whole("b").waits(600))
        .ask(whole("c").waits(600).queued())
        .revoke("b")
        .revoke("c")
        .revoke("a")
        .are(&[
            ("a", "reclaiming after revoked, verifying"),
            ("b", "ended: cancelled"),
            ("c", "ended: cancelled"),
        ])
        .heard(
            EventKind::LeaseReclaiming,
            &["a is ended (revoked): needed for the demo"],
        )
        .revoke("a")
        .was_refused("the lease has ended: revoked");
}

#[test]
fn who_waits_cannot_be_drained() {
    world()
        .device("gpu-0", 24)
        .ask(whole("a"))
        .ask(whole("b").waits(600))
        .drain("b", None)
        .was_refused("the lease is waiting and holds nothing");
}

#[test]
fn a_device_that_nobody_knows_cannot_be_cordoned() {
    world()
        .device("gpu-0", 24)
        .cordon("gpu-7", None)
        .was_refused("device `gpu-7` is not in the inventory");
}

#[test]
fn an_operator_lifts_no_cordon_of_a_file() {
    world_by(|edit| {
        let rule = gpu_lease::DeviceRule {
            cordon: Some("kept for the demo".into()),
            ..Default::default()
        };
        edit.device("gpu-0", rule);
    })
    .device("gpu-0", 24)
    .cordoned("gpu-0", Some("kept for the demo"))
    .cordon("gpu-0", None)
    .cordoned("gpu-0", Some("new driver"))
    .uncordon("gpu-0")
    .cordoned("gpu-0", Some("kept for the demo"))
    .switch(|_| {})
    .cordoned("gpu-0", None);
}

#[test]
fn an_operators_cordon_survives_reload_and_restart() {
    world()
        .device("gpu-0", 24)
        .cordon("gpu-0", None)
        .switch(|_| {})
        .cordoned("gpu-0", Some("new driver"))
        .restart()
        .discover()
        .cordoned("gpu-0", Some("new driver"))
        .lose("gpu-0")
        .at(60)
        .devices_are(&[])
        .find_again("gpu-0")
        .cordoned("gpu-0", Some("new driver"));
}
