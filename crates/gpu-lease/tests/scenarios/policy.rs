//! From one policy to another: what becomes of those who hold and those who wait.

use gpu_lease::{EventKind, Fate, Held, Lease, Ms, ReloadScope, Strategy};

use crate::world::{Edit, World, memory, whole, world, world_by};

fn deny_batch(held: Held) -> impl Fn(&mut Edit) {
    move |edit| {
        edit.class("batch", 0);
        edit.deny("batch");
        edit.policy.reload.held = held;
    }
}

/// A lease of class batch and one of class standard.
fn two_classes() -> World {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(memory("batch", 4).class("batch"))
        .ask(memory("other", 4));
    world
}

#[test]
fn a_lease_that_is_newly_refused_meets_the_fate_that_the_policy_says() {
    for (held, expected) in [
        (Held::Keep, "active on gpu-0"),
        (Held::Drain, "draining on gpu-0 until 30s by policy"),
        (Held::Force, "reclaiming after policy, verifying"),
    ] {
        two_classes()
            .switch(deny_batch(held))
            .are(&[("batch", expected), ("other", "active on gpu-0")])
            .generation_is(2);
    }
}

#[test]
fn a_drain_by_policy_ends_at_its_deadline() {
    two_classes()
        .switch(deny_batch(Held::Drain))
        .heard(
            EventKind::LeaseDraining,
            &["batch is asked to go within 30s: `no such work`: class `batch` is not for this host"],
        )
        .heard(
            EventKind::PolicySwitched,
            &[
                "policy generation 2 is live: an edit (1 lease drains)",
            ],
        )
        .at(30)
        .is("batch", "reclaiming after policy, verifying");
}

#[test]
fn scope_all_reaches_those_that_are_allowed_as_well() {
    two_classes()
        .switch(|edit| {
            edit.class("batch", 0);
            edit.policy.reload.scope = ReloadScope::All;
        })
        .are(&[
            ("batch", "draining on gpu-0 until 30s by policy"),
            ("other", "draining on gpu-0 until 30s by policy"),
        ])
        .at(10)
        // A longer grace counts from when they were first asked.
        .switch(|edit| {
            edit.class("batch", 0);
            edit.policy.reload.scope = ReloadScope::All;
            edit.policy.reload.grace = Ms::from_secs(600);
        })
        .is("other", "draining on gpu-0 until 10m by policy")
        // A policy that looks at violations only has no word about them: the drain goes on.
        .switch(|edit| {
            edit.class("batch", 0);
            edit.policy.reload.grace = Ms::from_secs(600);
        })
        .is("other", "draining on gpu-0 until 10m by policy")
        // One that keeps everybody has.
        .switch(|edit| {
            edit.class("batch", 0);
            edit.policy.reload.held = Held::Keep;
            edit.policy.reload.scope = ReloadScope::All;
        })
        .are(&[("batch", "active on gpu-0"), ("other", "active on gpu-0")]);
}

#[test]
fn a_policy_that_allows_it_again_lets_it_stay() {
    two_classes()
        .switch(deny_batch(Held::Drain))
        .at(20)
        .switch(|edit| edit.class("batch", 0))
        .is("batch", "active on gpu-0")
        .at(60)
        .is("batch", "active on gpu-0");
}

#[test]
fn a_policy_that_keeps_everybody_withdraws_earlier_drains() {
    two_classes()
        .switch(deny_batch(Held::Drain))
        .switch(|edit| {
            deny_batch(Held::Keep)(edit);
            edit.policy.reload.scope = ReloadScope::All;
        })
        .at(60)
        .are(&[("batch", "active on gpu-0"), ("other", "active on gpu-0")]);
}

#[test]
fn what_the_old_policy_refused_as_well_is_not_touched() {
    two_classes()
        .switch(deny_batch(Held::Keep))
        .switch(deny_batch(Held::Force))
        .is("batch", "active on gpu-0");
}

#[test]
fn a_class_that_is_gone_is_refused_to_holders_and_waiters() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(whole("holds").class("batch"))
        .ask(whole("waits").class("batch").waits(60))
        .ask(whole("queued").class("batch").waits(60).queued());
    let plan = world.plan(|_| {});
    assert_eq!(plan.held.len(), 1);
    assert_eq!(plan.denied.len(), 2);
    assert_eq!(plan.held[0].holder, "holds");
    assert_eq!(plan.held[0].because.reason, "class `batch` is not defined");
    world
        .switch(|_| {})
        .are(&[
            ("holds", "draining on gpu-0 until 30s by policy"),
            ("waits", "ended: denied"),
            ("queued", "ended: denied"),
        ])
        .ask(memory("new", 1).class("batch"))
        .is(
            "new",
            "refused: denied by `class`: class `batch` is not defined",
        );
}

#[test]
fn a_shorter_hold_is_cut_but_never_below_the_grace() {
    let cut = |edit: &mut Edit| {
        let standard = edit.policy.classes.get_mut("standard").expect("built in");
        standard.max_hold = Some(Ms::from_secs(100));
    };
    // Granted at 0 and cut at 10: until 100. Cut at 90: the grace of 30 seconds from there.
    for (secs, until) in [(10, 100), (90, 120)] {
        let mut world = world();
        world.device("gpu-0", 24).ask(memory("a", 4)).at(secs);
        let fate = world.plan(cut).held[0].fate;
        assert!(matches!(fate, Fate::Shorten(_)), "{fate:?}");
        world
            .switch(cut)
            .at(until - 1)
            .is("a", "active on gpu-0")
            .at(until)
            .is("a", "reclaiming after max_hold, verifying");
    }
}

#[test]
fn a_longer_hold_and_what_asked_for_less_are_not_touched() {
    let limit = |secs| {
        move |edit: &mut Edit| {
            let standard = edit.policy.classes.get_mut("standard").expect("built in");
            standard.max_hold = Some(Ms::from_secs(secs));
        }
    };
    let mut world = world_by(limit(200));
    world
        .device("gpu-0", 24)
        .ask(memory("modest", 1).max_hold(50))
        .ask(memory("usual", 1));
    assert_eq!(world.plan(limit(400)).held, []);
    assert_eq!(world.plan(limit(100)).held.len(), 1);
    world
        .switch(limit(400))
        .at(200)
        .is("usual", "reclaiming after max_hold, verifying");
}

#[test]
fn a_larger_reserve_ends_nobody_and_grants_nothing_more() {
    world()
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .switch(|edit| edit.policy.placement.reserve = 8 << 30)
        .ask(memory("b", 1).waits(60))
        .are(&[("a", "active on gpu-0"), ("b", "waiting")])
        .free("gpu-0", 0)
        .release("a")
        .is("b", "active on gpu-0");
}

#[test]
fn a_policy_that_is_the_live_one_makes_no_generation() {
    let mut world = two_classes();
    let before = world.books().counters();
    world.switch_to_the_same();
    assert_eq!(world.books().counters(), before);
    assert!(world.last().changes.policy.is_none());
}

#[test]
fn who_is_not_touched_stays_as_it_was_in_every_byte() {
    let mut world = world_by(|edit| {
        edit.class("batch", 0);
        edit.class("low", 1);
    });
    world
        .device("gpu-0", 24)
        .ask(memory("holds", 20).class("low").max_hold(600).ttl(60))
        .ask(memory("first", 20).class("low").waits(600).queued())
        .ask(memory("second", 20).class("low").waits(600))
        .ask(memory("batch", 1).class("batch"))
        .at(7);
    let of = |world: &World| -> Vec<Lease> {
        let names = ["holds", "first", "second"];
        names.map(|name| world.lease(name).clone()).to_vec()
    };
    let before = of(&world);
    world.switch(|edit| {
        edit.class("low", -50);
        edit.deny("batch");
        edit.policy.defaults.ttl = Ms::from_secs(1);
        edit.policy.placement.strategy = Strategy::Spread;
        edit.policy.reload.held = Held::Force;
    });
    assert_eq!(of(&world), before);
    world.queue_is(&["first", "second"]);
}

#[test]
fn a_new_strategy_decides_the_next_request() {
    world()
        .device("gpu-0", 24)
        .device("gpu-1", 16)
        .ask(memory("a", 1))
        .switch(|edit| edit.policy.placement.strategy = Strategy::WorstFit)
        .ask(memory("b", 1))
        .are(&[("a", "active on gpu-1"), ("b", "active on gpu-0")]);
}

#[test]
fn who_gave_more_time_to_drain_has_it() {
    let mut world = two_classes();
    world.ask(memory("slow", 1).class("batch").drain_grace(300));
    world
        .switch(deny_batch(Held::Drain))
        .is("slow", "draining on gpu-0 until 5m by policy");
}

#[test]
fn a_wider_policy_serves_who_waited_for_it() {
    world_by(|edit| edit.policy.placement.reserve = 8 << 30)
        .device("gpu-0", 24)
        .ask(memory("a", 10))
        .ask(memory("b", 10).waits(60))
        .is("b", "waiting")
        .switch(|_| {})
        .is("b", "active on gpu-0");
}
