//! The fate of held leases by kind of change, one test for each row of the table, and switches that were
//! planned before or expect something.

use gpu_lease::{
    BootMs, Deadline, DeviceRule, EventKind, Expect, Fate, Held, LeaseFate, LeaseId, Ms, OnShrink,
    Plan, Refusal, ReloadScope, SignalRule, Tenant, WallMs,
};

use crate::world::{Edit, World, memory, whole, world, world_by};

const GIB: u64 = 1 << 30;

fn lab(edit: &mut Edit, limit: impl FnOnce(&mut Tenant)) {
    edit.tenant("lab", &["ann"], limit);
}

fn drained(edit: &mut Edit, id: &str) {
    let drain = Some("goes back to the shop".into());
    edit.device(
        id,
        DeviceRule {
            drain,
            ..DeviceRule::default()
        },
    );
}

fn batch_denied(edit: &mut Edit) {
    edit.class("batch", 0);
    edit.deny("batch");
}

/// Three leases of a tenant, from the oldest to the newest, and one of somebody else.
fn three_of_a_tenant() -> World {
    let mut world = world_by(|edit| lab(edit, |_| {}));
    world
        .device("gpu-0", 24)
        .ask(memory("old", 4).user("ann"))
        .ask(memory("mid", 4).user("ann"))
        .ask(memory("new", 4).user("ann"))
        .ask(memory("other", 4).user("bo"));
    world
}

fn fates(plan: &Plan) -> Vec<(&str, &str)> {
    let word = |fate: &Fate| match fate {
        Fate::Drain(_) => "drain",
        Fate::Force => "force",
        Fate::Keep => "keep",
        Fate::Shorten(_) => "shorten",
        Fate::Withdraw => "withdraw",
    };
    let held = plan.held.iter();
    held.map(|held| (held.holder.as_str(), word(&held.fate)))
        .collect()
}

#[test]
fn a_tenant_that_is_gone_or_no_longer_the_holders_is_a_refusal() {
    for (held, fate) in [
        (Held::Keep, "active on gpu-0"),
        (Held::Drain, "draining on gpu-0 until 30s by policy"),
        (Held::Force, "reclaiming after policy, verifying"),
    ] {
        for members in [vec![], vec!["bo"]] {
            let mut world = world_by(|edit| lab(edit, |_| {}));
            world
                .device("gpu-0", 24)
                .ask(memory("old", 4).user("ann").claims("lab"))
                .ask(memory("new", 4).user("ann").claims("lab"))
                .ask(memory("other", 4).user("bo"));
            world
                .switch(|edit| {
                    edit.policy.reload.held = held;
                    if !members.is_empty() {
                        edit.tenant("lab", &members, |_| {});
                    } else {
                        edit.tenant("others", &["cy"], |_| {});
                    }
                })
                .are(&[("old", fate), ("new", fate), ("other", "active on gpu-0")]);
        }
    }
}

#[test]
fn a_smaller_quota_keeps_what_is_held_and_grants_nothing_new() {
    three_of_a_tenant()
        .switch(|edit| lab(edit, |tenant| tenant.max_leases = Some(1)))
        .are(&[("old", "active on gpu-0"), ("new", "active on gpu-0")])
        .ask(memory("next", 1).user("ann").waits(600))
        .waits_by("next", "quota")
        .release("new")
        .release("mid")
        .is("next", "waiting")
        .release("old")
        .is("next", "active on gpu-0");
}

#[test]
fn a_smaller_quota_drains_the_newest_until_the_rest_fits_if_the_policy_says_so() {
    let limits: [fn(&mut Tenant); 3] = [
        |tenant| tenant.max_leases = Some(1),
        |tenant| tenant.max_devices = Some(1),
        |tenant| tenant.max_memory = Some(7 * GIB),
    ];
    for limit in limits {
        let mut world = three_of_a_tenant();
        let cut = |edit: &mut Edit| {
            lab(edit, limit);
            edit.policy.reload.on_shrink = OnShrink::Drain;
        };
        let plan = world.plan(cut);
        assert_eq!(fates(&plan), [("mid", "drain"), ("new", "drain")]);
        assert_eq!(plan.held[0].because.rule, "quota of tenant lab");
        world
            .switch(cut)
            .are(&[
                ("old", "active on gpu-0"),
                ("mid", "draining on gpu-0 until 30s by policy"),
                ("new", "draining on gpu-0 until 30s by policy"),
                ("other", "active on gpu-0"),
            ])
            .at(10)
            // Nothing about it changed: they go on draining, by the same deadline.
            .switch(|edit| {
                cut(edit);
                edit.policy.defaults.ttl = Ms::from_secs(9);
            })
            .is("new", "draining on gpu-0 until 30s by policy")
            // There is room again.
            .switch(|edit| lab(edit, |_| {}))
            .are(&[("mid", "active on gpu-0"), ("new", "active on gpu-0")]);
    }
}

#[test]
fn who_goes_anyway_makes_room_for_the_others() {
    let mut world = three_of_a_tenant();
    world.drain("old", Some(60)).switch(|edit| {
        lab(edit, |tenant| tenant.max_leases = Some(2));
        edit.policy.reload.on_shrink = OnShrink::Drain;
    });
    world.are(&[
        ("old", "draining on gpu-0 until 1m by operator"),
        ("mid", "active on gpu-0"),
        ("new", "active on gpu-0"),
    ]);
}

#[test]
fn what_was_over_the_old_quota_as_well_is_not_touched() {
    let cut = |on_shrink| {
        move |edit: &mut Edit| {
            lab(edit, |tenant| tenant.max_leases = Some(1));
            edit.policy.reload.on_shrink = on_shrink;
        }
    };
    three_of_a_tenant()
        .switch(cut(OnShrink::Keep))
        .switch(cut(OnShrink::Drain))
        .are(&[("mid", "active on gpu-0"), ("new", "active on gpu-0")]);
}

#[test]
fn a_larger_reserve_drains_the_newest_of_a_device_if_the_policy_says_so() {
    let larger = |edit: &mut Edit| {
        edit.policy.placement.reserve = 12 * GIB;
        edit.policy.reload.on_shrink = OnShrink::Drain;
    };
    let mut world = world();
    world
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("old", 8).on(&["gpu-0"]))
        .ask(memory("mid", 3).on(&["gpu-0"]))
        .ask(memory("new", 8).on(&["gpu-0"]))
        .ask(whole("alone").on(&["gpu-1"]));
    assert_eq!(world.plan(larger).held[0].because.rule, "reserve of gpu-0");
    world.switch(larger).are(&[
        ("old", "active on gpu-0"),
        ("mid", "active on gpu-0"),
        ("new", "draining on gpu-0 until 30s by policy"),
        ("alone", "active on gpu-1"),
    ]);
}

#[test]
fn fewer_load_slots_touch_nobody() {
    let mut world = world_by(|edit| edit.policy.placement.load_slots = 2);
    world
        .device("gpu-0", 24)
        .ask(memory("a", 1).loads())
        .ask(memory("b", 1).loads());
    assert_eq!(
        world.plan(|edit| edit.policy.placement.load_slots = 0).held,
        []
    );
}

#[test]
fn a_device_that_the_policy_drains_is_left_by_all_and_waiters_are_told() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("a", 20).on(&["gpu-0"]))
        .ask(memory("gang", 4).devices(2))
        .ask(memory("b", 20).on(&["gpu-1"]))
        .ask(memory("bound", 20).on(&["gpu-0"]).waits(600))
        .ask(memory("free", 20).waits(600));
    let plan = world.plan(|edit| drained(edit, "gpu-0"));
    assert_eq!(fates(&plan), [("a", "drain"), ("gang", "drain")]);
    assert_eq!(plan.held[0].because.rule, "device gpu-0");
    world
        .switch(|edit| drained(edit, "gpu-0"))
        .are(&[
            ("a", "draining on gpu-0 until 30s by policy"),
            ("gang", "draining on gpu-0 gpu-1 until 30s by policy"),
            ("b", "active on gpu-1"),
        ])
        .cordoned("gpu-0", Some("goes back to the shop"))
        .waits_because(
            "bound",
            "needs 20 GiB on one device; gpu-0 is cordoned: goes back to the shop",
        )
        .release("a")
        .is("bound", "waiting")
        .release("b")
        .release("gang")
        // Whoever may go elsewhere does.
        .is("free", "active on gpu-1")
        .switch(|_| {})
        .is("bound", "active on gpu-0");
}

#[test]
fn a_drain_of_a_device_that_is_taken_back_leaves_its_leases_as_they_were() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .ask(memory("a", 20).max_hold(900).ttl(60));
    let before = world.lease("a").phase.clone();
    world.switch(|edit| drained(edit, "gpu-0")).at(20);
    world.switch(|_| {});
    assert_eq!(world.lease("a").phase, before);
    world.heard(
        EventKind::LeaseWithdrawn,
        &["a may stay: the policy no longer asks it to go"],
    );
}

#[test]
fn a_cordon_the_end_of_hours_a_priority_and_a_strategy_touch_nobody() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world.device("gpu-0", 24).ask(memory("a", 1).class("batch"));
    let harmless = |edit: &mut Edit| {
        edit.class("batch", 50);
        edit.rules.held.insert("batch".into());
        let cordon = Some("kept for the demo".into());
        edit.device(
            "gpu-0",
            DeviceRule {
                cordon,
                ..DeviceRule::default()
            },
        );
        edit.policy.reload.held = Held::Force;
        edit.policy.placement.strategy = gpu_lease::Strategy::Pack;
        edit.policy.defaults.ttl = Ms::from_secs(1);
    };
    assert_eq!(world.plan(harmless), Plan::default());
    let before = world.lease("a").clone();
    world.switch(harmless);
    assert_eq!(*world.lease("a"), before);
}

#[test]
fn waiters_that_can_never_be_served_any_more_are_told_now() {
    let mut world = world_by(|edit| lab(edit, |_| {}));
    world
        .device("gpu-0", 24)
        .ask(whole("holds"))
        .ask(memory("large", 20).waits(600))
        .ask(memory("much", 10).user("ann").waits(600))
        .ask(memory("fits", 4).waits(600));
    let tighter = |edit: &mut Edit| {
        edit.policy.placement.reserve = 8 * GIB;
        lab(edit, |tenant| tenant.max_memory = Some(5 * GIB));
    };
    let denied = world.plan(tighter).denied;
    let rules: Vec<&str> = denied.iter().map(|(_, why)| why.rule.as_str()).collect();
    assert_eq!(rules, ["capacity", "tenant lab"]);
    world.switch(tighter).are(&[
        ("large", "ended: denied"),
        ("much", "ended: denied"),
        ("fits", "waiting"),
    ]);
}

#[test]
fn a_drain_that_nothing_can_enforce_is_named() {
    for (signal, verify, job, unenforceable) in [
        (SignalRule::Never, true, memory("a", 1).supervised(), true),
        (SignalRule::Never, false, memory("a", 1).supervised(), false),
        (SignalRule::Never, true, memory("a", 1), false),
        (SignalRule::Supervised, true, memory("a", 1).process(), true),
        (
            SignalRule::Supervised,
            true,
            memory("a", 1).supervised(),
            false,
        ),
        (SignalRule::Always, true, memory("a", 1).process(), false),
    ] {
        let mut world = world_by(|edit| edit.class("batch", 0));
        world.device("gpu-0", 24).ask(job.class("batch"));
        let plan = world.plan(|edit| {
            batch_denied(edit);
            edit.policy.reclaim.signal = signal;
            edit.policy.reclaim.verify = verify;
        });
        assert_eq!(
            plan.held[0].unenforceable, unenforceable,
            "{signal:?} {verify}"
        );
    }
}

#[test]
fn a_drain_moves_with_the_grace_counted_from_when_it_began() {
    let denied = |grace| {
        move |edit: &mut Edit| {
            batch_denied(edit);
            edit.policy.reload.grace = Ms::from_secs(grace);
        }
    };
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(memory("a", 1).class("batch"))
        .at(100)
        .switch(denied(60))
        .is("a", "draining on gpu-0 until 2m 40s by policy")
        .at(110)
        .switch(denied(300))
        .is("a", "draining on gpu-0 until 6m 40s by policy")
        .at(120)
        .switch(denied(50))
        .is("a", "draining on gpu-0 until 2m 30s by policy")
        // Never before now.
        .at(140)
        .switch(denied(10))
        .is("a", "draining on gpu-0 until 2m 20s by policy")
        .at(141)
        .is("a", "reclaiming after policy, verifying");
}

#[test]
fn a_renewal_never_carries_a_lease_beyond_its_drain() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(memory("a", 1).class("batch").ttl(60))
        .switch(batch_denied)
        .at(20)
        .renew("a");
    let grant = world.lease("a").held().expect("it drains").clone();
    assert_eq!(grant.lasts_until().boot.0, 30_000);
    world.at(29).renew("a").at(30);
    world
        .is("a", "reclaiming after policy, verifying")
        .renew("a");
    world.was_refused("the lease has ended: policy");
}

#[test]
fn a_holder_that_goes_early_is_done_at_once() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(whole("a").class("batch"))
        .ask(whole("next").waits(600))
        .switch(batch_denied)
        .at(3)
        .release("a")
        .at(4)
        .are(&[("a", "ended: released"), ("next", "active on gpu-0")]);
}

#[test]
fn who_holds_next_is_safe_from_the_fence_before() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(whole("a").class("batch").process())
        .ask(whole("next").waits(600))
        .switch(|edit| {
            batch_denied(edit);
            edit.policy.reload.held = Held::Force;
        })
        .process_gone("a")
        .at(1)
        .is("next", "active on gpu-0")
        .renew("a")
        .was_refused("the lease has ended: policy")
        .release("a")
        .process_gone("a")
        .is("next", "active on gpu-0");
}

#[test]
fn a_plan_made_before_is_what_the_switch_does_for_all_that_did_not_change() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(memory("stays", 1).class("batch"))
        .ask(memory("goes", 1).class("batch"))
        .ask(memory("other", 1));
    let draft = world.draft(batch_denied);
    world
        .at(5)
        .release("goes")
        .ask(memory("late", 1).class("batch"))
        .renew("other");
    let plan = world.switch_by(draft);
    assert_eq!(fates(&plan), [("stays", "drain"), ("late", "drain")]);
    // The deadlines count from the switch, not from the plan.
    world.are(&[
        ("stays", "draining on gpu-0 until 35s by policy"),
        ("late", "draining on gpu-0 until 35s by policy"),
        ("other", "active on gpu-0"),
    ]);
}

#[test]
fn a_switch_asks_the_rules_only_about_what_changed_since_its_plan() {
    let mut world = world();
    world.device("gpu-0", 24);
    for number in 0..200 {
        world.ask(memory(&format!("job-{number}"), 0));
    }
    let asked = std::sync::Arc::default();
    let draft = world.draft(|edit| edit.rules.asked = std::sync::Arc::clone(&asked));
    let count = || asked.swap(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(count(), 200);
    world.renew("job-7").renew("job-8");
    assert_eq!(fates(&world.switch_by(draft)), []);
    // `switch_by` plans once without the earlier plan, to compare.
    assert_eq!(count(), 200 + 2);
}

#[test]
fn a_plan_against_another_policy_is_made_again() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world.device("gpu-0", 24).ask(memory("a", 1).class("batch"));
    let draft = world.draft(|edit| edit.class("batch", 1));
    world.switch(batch_denied);
    let plan = world.switch_by(draft);
    assert_eq!(fates(&plan), [("a", "withdraw")]);
}

#[test]
fn a_plan_of_another_policy_is_made_again() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world.device("gpu-0", 24).ask(memory("a", 1).class("batch"));
    let other = world.draft(|edit| edit.class("batch", 1));
    let mut draft = world.draft(batch_denied);
    draft.planned = other.planned;
    let plan = world.switch_by(draft);
    assert_eq!(fates(&plan), [("a", "drain")]);
}

#[test]
fn a_switch_may_expect_what_is_live_and_what_it_will_do() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world.device("gpu-0", 24).ask(memory("a", 1).class("batch"));
    let live = world.books().policy().source.hash.clone();
    let plan = world.plan(batch_denied);
    world.ask(memory("b", 1).class("batch"));
    let (within, exactly) = (Some(plan.clone().into()), Some(plan.into()));
    for expect in [
        Expect {
            live: Some("another".into()),
            ..Expect::default()
        },
        Expect {
            within,
            ..Expect::default()
        },
        Expect {
            exactly,
            ..Expect::default()
        },
    ] {
        let before = world.books().rows();
        let refused = world.switch_if(expect, batch_denied).expect_err("it grew");
        assert_eq!(refused.live, live);
        assert_eq!(fates(&refused.plan), [("a", "drain"), ("b", "drain")]);
        assert_eq!(world.books().rows(), before);
    }
    let exactly = Some(world.plan(batch_denied).into());
    let expect = Expect {
        live: Some(live),
        exactly,
        ..Expect::default()
    };
    let done = world
        .switch_if(expect, batch_denied)
        .expect("it is as expected");
    assert!(done.is_some());
}

#[test]
fn a_smaller_plan_is_within_a_larger_one() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(memory("a", 1).class("batch"))
        .ask(memory("b", 1).class("batch"));
    let within = Some(world.plan(batch_denied).into());
    world.release("a");
    let expect = Expect {
        within,
        ..Expect::default()
    };
    let done = world.switch_if(expect, batch_denied).expect("less is done");
    assert_eq!(
        fates(&done.expect("it is another policy").plan),
        [("b", "drain")]
    );
}

#[test]
fn an_expectation_is_answered_even_by_the_policy_that_is_live() {
    let mut world = world();
    let policy = world.books().policy().clone();
    let again = |edit: &mut Edit| edit.policy.source = policy.source.clone();
    let live = Some("another".into());
    let expect = Expect {
        live,
        ..Expect::default()
    };
    let draft = world.draft(again);
    assert_ne!(draft.policy.source.hash, "another");
    assert!(world.switch_if(expect, again).is_err());
}

#[test]
fn a_drain_is_not_withdrawn_for_want_of_its_device() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .switch(|edit| drained(edit, "gpu-0"))
        .restart()
        // Something else changed, and nobody sees the device yet.
        .switch(|edit| {
            drained(edit, "gpu-0");
            edit.policy.defaults.ttl = Ms::from_secs(9);
        })
        .is("a", "draining on gpu-0 until 30s by policy")
        .discover()
        .is("a", "draining on gpu-0 until 30s by policy");
}

#[test]
fn what_a_switch_could_not_see_is_judged_when_the_devices_are_known() {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .restart()
        .switch(|edit| drained(edit, "gpu-0"))
        .is("a", "active on gpu-0")
        .discover()
        .is("a", "draining on gpu-0 until 30s by policy")
        .restart()
        .switch(|_| {})
        .is("a", "draining on gpu-0 until 30s by policy")
        .discover()
        .is("a", "active on gpu-0");
}

#[test]
fn what_was_allowed_to_stay_stays_whenever_its_device_is_found() {
    let mut world = world();
    let keep = |edit: &mut Edit| {
        drained(edit, "gpu-0");
        edit.policy.reload.held = Held::Keep;
    };
    world
        .device("gpu-0", 24)
        .ask(memory("a", 20))
        .switch(keep)
        .restart()
        .switch(|edit| drained(edit, "gpu-0"))
        .discover()
        .is("a", "active on gpu-0");
}

#[test]
fn a_shorter_hold_counts_whatever_else_happens_to_the_lease() {
    for held in [Held::Keep, Held::Drain] {
        let mut world = world_by(|edit| edit.class("batch", 0));
        let cut = |edit: &mut Edit| {
            batch_denied(edit);
            edit.policy.reload.held = held;
            edit.policy
                .classes
                .get_mut("batch")
                .expect("it is")
                .max_hold = Some(Ms::from_secs(100));
        };
        world
            .device("gpu-0", 24)
            .ask(memory("a", 1).class("batch").max_hold(900));
        let plan = world.plan(cut);
        assert!(plan.held[0].shorten.is_some(), "{plan:?}");
        world.switch(cut);
        let hold = world.lease("a").held().and_then(|grant| grant.hold_until);
        assert_eq!(hold, plan.held[0].shorten);
    }
}

#[test]
fn who_was_asked_for_the_scope_alone_goes_on_draining_when_it_is_set_back() {
    let all = |edit: &mut Edit| edit.policy.reload.scope = ReloadScope::All;
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(memory("a", 1))
        .ask(memory("b", 1).class("batch"))
        .switch(|edit| {
            all(edit);
            batch_denied(edit);
        })
        .at(10)
        .switch(|edit| edit.class("batch", 0))
        .are(&[
            ("a", "draining on gpu-0 until 30s by policy"),
            ("b", "active on gpu-0"),
        ]);
}

#[test]
fn a_drain_says_the_cause_that_it_has_now() {
    let mut world = world_by(|edit| edit.class("batch", 0));
    world
        .device("gpu-0", 24)
        .ask(memory("a", 1).class("batch"))
        .switch(batch_denied);
    let drain = |world: &World| {
        let grant = world.lease("a").held().cloned().expect("it is held");
        grant.drains.values().next().cloned().expect("it drains")
    };
    let before = drain(&world);
    world.at(10).switch(|edit| {
        edit.class("batch", 0);
        drained(edit, "gpu-0");
    });
    let after = drain(&world);
    assert_eq!(after.reason, "`device gpu-0`: goes back to the shop");
    assert_eq!(
        (after.since, after.deadline),
        (before.since, before.deadline)
    );
}

#[test]
fn who_claims_no_tenant_moves_with_the_policy_and_who_claims_one_does_not() {
    let mut world = world_by(|edit| edit.tenant("research", &["ann"], |_| {}));
    world
        .device("gpu-0", 24)
        .ask(memory("found", 1).user("ann"))
        .ask(memory("claimed", 1).user("ann").claims("research"))
        .switch(|edit| {
            edit.tenant("research", &["bo"], |_| {});
            edit.tenant("students", &["ann"], |_| {});
        })
        .are(&[
            ("found", "active on gpu-0"),
            ("claimed", "draining on gpu-0 until 30s by policy"),
        ]);
    let tenant = &world.lease("found").request.holder.tenant;
    assert_eq!(tenant.as_deref(), Some("students"));
}

#[test]
fn a_plan_is_one_line() {
    let deadline = Deadline {
        boot: BootMs(1),
        wall: WallMs(1),
    };
    let held = |fate, shorten| LeaseFate {
        id: LeaseId::from_bits(1),
        holder: "ann".into(),
        fate,
        shorten,
        because: Refusal::default(),
        unenforceable: shorten.is_some(),
    };
    let drains = held(Fate::Drain(deadline), None);
    let plan = Plan {
        held: vec![
            held(Fate::Force, None),
            drains.clone(),
            drains,
            held(Fate::Keep, Some(deadline)),
        ],
        denied: vec![(LeaseId::from_bits(2), Refusal::default())],
    };
    assert_eq!(
        plan.to_string(),
        "1 lease ends at once, 2 leases drain, 1 lease is held shorter, \
         1 lease stays although it is no longer allowed, 1 waiter is refused, \
         1 holder cannot be made to go"
    );
    assert_eq!(Plan::default().to_string(), "no lease is touched");
}
