//! Taking memory back after a forced end.

use gpu_lease::{Effect, EventKind, Ms, Signal, SignalRule};

use crate::world::{Edit, memory, whole, world, world_by};

fn signals(rule: SignalRule) -> impl Fn(&mut Edit) {
    move |edit| edit.policy.reclaim.signal = rule
}

#[test]
fn a_clean_release_frees_at_once() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .ask(memory("b", 20).waits(60))
        .release("a")
        .are(&[("a", "ended: released"), ("b", "active on gpu-0")]);
}

#[test]
fn memory_of_a_forced_end_comes_back_after_the_delay() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 20).ttl(10))
        .ask(memory("b", 20).waits(60))
        .at(14)
        .are(&[
            ("a", "reclaiming after expired, verifying"),
            ("b", "waiting"),
        ])
        .at(15)
        .are(&[("a", "ended: expired"), ("b", "active on gpu-0")]);
}

#[test]
fn a_supervised_process_is_asked_then_killed_then_its_memory_is_quarantined() {
    world()
        .device("gpu-0", 24)
        .ask(memory("run", 20).supervised().max_hold(10))
        .at(10)
        .is("run", "reclaiming after max_hold, verifying")
        .signalled(&["TERM run #1"])
        .at(14)
        .signalled(&[])
        .at(15)
        .signalled(&["KILL run #2"])
        .at(69)
        .is("run", "reclaiming after max_hold, verifying")
        .at(70)
        .is("run", "reclaiming after max_hold, quarantined")
        .heard(
            EventKind::LeaseQuarantined,
            &["run ended (max_hold), but process 4242 still lives"],
        )
        .at(7200)
        .is("run", "reclaiming after max_hold, quarantined")
        .free("gpu-0", 4)
        .clear_quarantine("gpu-0")
        .is("run", "ended: max_hold")
        .free("gpu-0", 24)
        .signalled(&[]);
}

#[test]
fn a_process_that_goes_frees_its_memory_at_once() {
    for (secs, signalled) in [
        (11, &["TERM run #1"][..]),
        (30, &["TERM run #1", "KILL run #2"]),
    ] {
        world()
            .device("gpu-0", 24)
            .ask(memory("run", 20).supervised().max_hold(10))
            .at(secs)
            .signalled(signalled)
            .process_gone("run")
            .is("run", "ended: max_hold")
            .free("gpu-0", 24);
    }
}

#[test]
fn the_policy_says_who_may_be_signalled() {
    for (rule, run, bare) in [
        (SignalRule::Always, true, true),
        (SignalRule::Supervised, true, false),
        (SignalRule::Never, false, false),
    ] {
        let expected = |signalled: bool| if signalled { &["TERM job #1"][..] } else { &[] };
        world_by(signals(rule))
            .device("gpu-0", 24)
            .ask(memory("job", 20).supervised())
            .revoke("job")
            .signalled(expected(run));
        world_by(signals(rule))
            .device("gpu-0", 24)
            .ask(memory("job", 20).process())
            .revoke("job")
            .signalled(expected(bare));
    }
}

#[test]
fn a_process_that_may_not_be_signalled_is_waited_for() {
    world()
        .device("gpu-0", 24)
        .ask(memory("train", 20).process())
        .revoke("train")
        .at(59)
        .is("train", "reclaiming after revoked, verifying")
        .at(60)
        .is("train", "reclaiming after revoked, quarantined")
        .process_gone("train")
        .is("train", "ended: revoked")
        .signalled(&[]);
}

#[test]
fn a_signal_that_could_not_be_sent_leaves_it_stuck_then_quarantined() {
    world()
        .device("gpu-0", 24)
        .ask(memory("run", 20).supervised())
        .revoke("run")
        .signal_refused("run", 1)
        .is(
            "run",
            "reclaiming after revoked, stuck: pid 4242 is somebody else",
        )
        .heard(
            EventKind::LeaseStuck,
            &["run is stuck: pid 4242 is somebody else"],
        )
        .clear_quarantine("gpu-0")
        .is(
            "run",
            "reclaiming after revoked, stuck: pid 4242 is somebody else",
        )
        .at(60)
        .is("run", "reclaiming after revoked, quarantined")
        .signalled(&["TERM run #1"]);
}

#[test]
fn a_late_refusal_changes_nothing() {
    world()
        .device("gpu-0", 24)
        .ask(memory("run", 20).supervised())
        .revoke("run")
        .signal_refused("run", 0)
        .signal_refused("run", 2)
        .is("run", "reclaiming after revoked, verifying")
        .at(5)
        .signal_refused("run", 1)
        .is("run", "reclaiming after revoked, verifying")
        .at(60)
        .signal_refused("run", 2)
        .is("run", "reclaiming after revoked, quarantined");
}

#[test]
fn without_verification_memory_is_free_at_once() {
    world_by(|edit| edit.policy.reclaim.verify = false)
        .device("gpu-0", 24)
        .ask(memory("run", 20).supervised())
        .ask(memory("next", 20).waits(60))
        .revoke("run")
        .are(&[("run", "ended: revoked"), ("next", "active on gpu-0")])
        .signalled(&["TERM run #1"]);
}

#[test]
fn what_is_being_reclaimed_still_keeps_a_whole_device() {
    world()
        .device("gpu-0", 24)
        .ask(whole("a"))
        .revoke("a")
        .ask(memory("b", 1).waits(60))
        .waits_because(
            "b",
            "needs 1 GiB on one device; gpu-0 is held by a (24 GiB)",
        )
        .at(6)
        .is("b", "active on gpu-0");
}

#[test]
fn a_restart_starts_again_what_the_rows_call_for() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .ask(memory("runs", 1).process())
        .ask(memory("asked", 1).supervised())
        .ask(memory("killed", 1).supervised())
        .ask(memory("stuck", 1).supervised())
        .ask(memory("remote", 1))
        .revoke("killed")
        .at(5)
        .revoke("asked")
        .revoke("stuck")
        .signal_refused("stuck", 1)
        .revoke("remote")
        .restart();
    let mut standing = Vec::new();
    for effect in world.books().standing_effects() {
        let (id, word) = match effect {
            Effect::Watch { id, .. } => (id, "watch".to_string()),
            Effect::Signal {
                id,
                attempt,
                signal,
                ..
            } => (id, format!("{signal:?} #{attempt}")),
            Effect::Read => panic!("rows do not ask for readings"),
        };
        let lease = world.books().lease(id).expect("it is known");
        standing.push(format!("{word} {}", lease.request.holder.name));
    }
    let term = Signal::Term;
    assert_eq!(
        standing,
        [
            "watch runs".to_string(),
            "watch asked".to_string(),
            format!("{term:?} #1 asked"),
            "watch killed".to_string(),
            "Kill #2 killed".to_string(),
            "watch stuck".to_string(),
        ]
    );
}

#[test]
fn a_policy_that_reclaims_sooner_rules_what_is_being_reclaimed() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .revoke("a")
        .at(2)
        .is("a", "reclaiming after revoked, verifying")
        .switch(|edit| edit.policy.reclaim.delay = Ms(1_000))
        .at(3)
        .is("a", "ended: revoked");
}

#[test]
fn nobody_is_killed_within_a_grace_window() {
    world()
        .device("gpu-0", 24)
        .ask(memory("train", 20).supervised())
        .revoke("train")
        .signalled(&["TERM train #1"])
        .grace_until(40)
        .at(39)
        .signalled(&[])
        .is("train", "reclaiming after revoked, verifying")
        .at(40)
        .signalled(&["KILL train #2"]);
}
