//! Who belongs to which tenant, what quotas keep, and who is served first in a fair share.

use gpu_lease::{Cause, Ms, QueueOrder, Tenant};

use crate::world::{Edit, World, memory, whole, world_by};

const GIB: u64 = 1 << 30;

fn lab(limit: impl Fn(&mut Tenant)) -> impl Fn(&mut Edit) {
    move |edit| edit.tenant("lab", &["ann", "cy"], &limit)
}

fn two_devices(edit: impl Fn(&mut Edit)) -> World {
    let mut world = world_by(edit);
    world.device("gpu-0", 24).device("gpu-1", 24);
    world
}

#[test]
fn who_claims_nothing_belongs_to_the_first_tenant_that_matches() {
    two_devices(|edit| {
        edit.tenant("claimed", &[], |_| {});
        edit.tenant("lab", &["ann"], |_| {});
        edit.tenant("each", &[], |tenant| tenant.per_user = true);
    })
    .ask(memory("a", 1).user("ann"))
    .ask(memory("b", 2).user("bo"))
    .ask(memory("c", 3).user("bo").claims("claimed"))
    .tenants_are(&[
        "claimed holds 1 devices, 3 GiB; 0 wait",
        "each (bo) holds 1 devices, 2 GiB; 0 wait",
        "lab holds 1 devices, 1 GiB; 0 wait",
    ]);
}

#[test]
fn the_tenant_is_written_down_at_arrival() {
    let mut world = two_devices(lab(|_| {}));
    world.ask(memory("a", 1).user("ann")).ask(memory("b", 1));
    let tenant = |name| world.lease(name).request.holder.tenant.clone();
    assert_eq!(tenant("a"), Some("lab".into()));
    assert_eq!(tenant("b"), None);
}

#[test]
fn a_claim_must_be_true_where_there_are_tenants() {
    two_devices(lab(|_| {}))
        .ask(memory("bo", 1).user("bo").claims("lab"))
        .is(
            "bo",
            "refused: denied by `tenant lab`: bo is not a member of it",
        )
        .ask(memory("who", 1).claims("nobody"))
        .is(
            "who",
            "refused: denied by `tenant nobody`: bo is not a member of it",
        );
    two_devices(|_| {})
        .ask(memory("free", 1).claims("any word"))
        .is("free", "active on gpu-0");
}

#[test]
fn a_quota_keeps_its_tenant_waiting_and_says_who_holds_it() {
    two_devices(lab(|tenant| tenant.max_devices = Some(2)))
        .ask(memory("train-a", 12).user("ann"))
        .ask(memory("train-b", 4).user("cy").max_hold(60))
        .ask(memory("more", 1).user("ann").waits(600))
        .waits_by("more", "quota")
        .waits_because(
            "more",
            "tenant lab may hold 2 devices and holds 2: train-a (12 GiB), \
             train-b (4 GiB, until 00:01:00Z)",
        )
        .release("train-b")
        .is("more", "active on gpu-0");
}

#[test]
fn who_is_over_quota_is_in_nobodys_way() {
    let mut world = two_devices(|edit| {
        lab(|tenant| tenant.max_leases = Some(1))(edit);
        edit.policy.queue.backfill = false;
    });
    world
        .ask(memory("holds", 1).user("ann"))
        .ask(whole("waits").user("ann").waits(600))
        .ask(memory("other", 20).user("bo"))
        .are(&[("waits", "waiting"), ("other", "active on gpu-0")])
        .waits_by("waits", "quota");
    assert!(world.why("waits").start.is_none());
    assert_eq!(world.why("waits").quota_holders().len(), 1);
}

#[test]
fn a_request_that_exceeds_a_quota_alone_is_refused() {
    for (limit, job, why) in [
        (
            (|tenant| tenant.max_devices = Some(1)) as fn(&mut Tenant),
            memory("a", 1).devices(2),
            "may hold 1 device; this request alone needs 2 devices",
        ),
        (
            |tenant| tenant.max_memory = Some(8 * GIB),
            memory("a", 5).devices(2),
            "may hold 8 GiB; this request alone needs 10 GiB",
        ),
        (
            |tenant| tenant.max_memory = Some(20 * GIB),
            whole("a"),
            "may hold 20 GiB; this request alone needs 24 GiB",
        ),
        (
            |tenant| tenant.max_leases = Some(0),
            memory("a", 1),
            "may hold 0 leases; this request alone needs 1 lease",
        ),
    ] {
        two_devices(lab(limit))
            .ask(job.user("ann").waits(60))
            .is("a", &format!("refused: denied by `tenant lab`: {why}"));
    }
}

#[test]
fn a_tenant_of_each_user_limits_each_by_itself() {
    two_devices(|edit| {
        edit.tenant("each", &[], |tenant| {
            tenant.per_user = true;
            tenant.max_memory = Some(10 * GIB);
        });
    })
    .ask(memory("a", 10).user("ann"))
    .ask(memory("a2", 1).user("ann").waits(60))
    .ask(memory("b", 10).user("bo"))
    .are(&[("a2", "waiting"), ("b", "active on gpu-0")])
    .waits_because(
        "a2",
        "tenant each (ann) may hold 10 GiB and holds 10 GiB: a (10 GiB)",
    );
}

#[test]
fn a_whole_device_counts_with_what_is_granted_of_it() {
    let mut world = world_by(lab(|tenant| tenant.max_memory = Some(30 * GIB)));
    world
        .device("gpu-0", 24)
        .device("gpu-1", 16)
        .ask(memory("a", 10).user("ann").on(&["gpu-1"]))
        .ask(whole("b").user("ann").on(&["gpu-0"]).waits(60))
        .waits_because(
            "b",
            "tenant lab may hold 30 GiB and holds 10 GiB: a (10 GiB)",
        )
        .release("a")
        // Of both only the smaller one is left within the quota.
        .is("b", "active on gpu-0")
        .release("b")
        .ask(memory("c", 10).user("ann").on(&["gpu-0"]))
        .ask(whole("d").user("ann"))
        .is("d", "active on gpu-1");
}

#[test]
fn what_is_being_taken_back_counts_until_it_is_free() {
    two_devices(lab(|tenant| tenant.max_leases = Some(1)))
        .ask(memory("a", 1).user("ann").process())
        .revoke("a")
        .ask(memory("b", 1).user("ann").waits(60))
        .waits_by("b", "quota")
        .process_gone("a")
        .is("b", "active on gpu-0");
}

fn fair(edit: &mut Edit) {
    edit.policy.queue.order = QueueOrder::FairShare;
    edit.policy.queue.aging = Ms(0);
}

#[test]
fn in_a_fair_share_who_had_less_of_late_goes_first() {
    let mut world = world_by(fair);
    world
        .device("gpu-0", 24)
        .ask(whole("first").user("ann"))
        .at(120)
        .release("first")
        .at(121)
        .ask(whole("now").user("cy"))
        .ask(whole("ann").user("ann").waits(3600))
        .ask(whole("bo").user("bo").waits(3600))
        .queue_is(&["bo", "ann"]);
    assert!(matches!(world.why("ann").cause, Cause::Devices(_)));
    world
        .at(130)
        .release("now")
        .at(131)
        .is("bo", "active on gpu-0");
}

#[test]
fn a_fair_share_counts_by_weight() {
    let mut world = world_by(|edit| {
        fair(edit);
        edit.tenant("heavy", &["ann"], |tenant| tenant.weight = 4);
        edit.tenant("light", &["bo"], |_| {});
    });
    world
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("a", 24).user("ann"))
        .ask(memory("b", 12).user("bo"))
        .ask(whole("b-next").user("bo").waits(3600))
        .ask(whole("a-next").user("ann").waits(3600))
        .at(180)
        // Twice the memory by four times the weight.
        .queue_is(&["a-next", "b-next"]);
}

#[test]
fn within_one_turn_a_grant_moves_its_tenant_back() {
    let mut world = world_by(fair);
    world
        .device("gpu-0", 24)
        .ask(whole("all").user("cy"))
        .ask(memory("a1", 12).user("ann").waits(60))
        .ask(memory("a2", 12).user("ann").waits(60))
        .ask(memory("b1", 12).user("bo").waits(60))
        .at(1)
        .release("all")
        .at(2)
        .are(&[
            ("a1", "active on gpu-0"),
            ("b1", "active on gpu-0"),
            ("a2", "waiting"),
        ]);
}

#[test]
fn priority_goes_before_a_fair_share() {
    let mut world = world_by(|edit| {
        fair(edit);
        edit.class("urgent", 10);
    });
    world
        .device("gpu-0", 24)
        .ask(whole("holds").user("ann"))
        .ask(whole("bo").user("bo").waits(600))
        .ask(whole("ann").user("ann").class("urgent").waits(600))
        .queue_is(&["ann", "bo"]);
}

#[test]
fn what_was_had_counts_half_after_a_half_life() {
    let mut world = world_by(|edit| {
        fair(edit);
        edit.policy.queue.half_life = Ms::from_secs(3600);
        edit.tenant("lab", &["ann"], |_| {});
    });
    world
        .device("gpu-0", 24)
        .ask(memory("a", 10).user("ann").ttl(3600))
        .at(600)
        .release("a");
    // 10 GiB for 600 seconds, by the formula of the decay.
    let fresh = world.had_of_late("lab");
    assert!((5_660..5_672).contains(&fresh), "{fresh} GiB-seconds");
    let half = world.at(4200).had_of_late("lab");
    assert!((2_829..2_837).contains(&half), "{half} GiB-seconds");
    assert_eq!(world.at(25 * 3600).had_of_late("lab"), 0);
}

#[test]
fn nothing_is_counted_where_nobody_looks() {
    two_devices(|_| {})
        .ask(memory("a", 1).claims("any"))
        .tenants_are(&[]);
}
