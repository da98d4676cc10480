//! What rules make of requests and see of the books, and the devices that filters and scores choose.

use gpu_lease::{Ms, Sets, Strategy};

use crate::world::{memory, whole, world_by};

#[test]
fn a_request_is_shaped_once_when_it_arrives() {
    let mut world = world_by(|edit| {
        edit.class("batch", -5);
        edit.label("gpu-1", "slow");
        let sets = Sets {
            class: Some("batch".into()),
            priority: Some(3),
            ttl: Some(Ms::from_secs(7)),
            max_hold: Some(Ms::from_secs(100)),
            filters: vec!["slow".into()],
        };
        edit.rules.sets.insert("standard".into(), sets);
    });
    world
        .device("gpu-0", 16)
        .device("gpu-1", 24)
        .ask(memory("a", 1).max_hold(300))
        .is("a", "active on gpu-1");
    let lease = world.lease("a").clone();
    assert_eq!((lease.request.class.as_str(), lease.priority), ("batch", 3));
    assert_eq!(lease.request.max_hold, Some(Ms::from_secs(100)));
    assert_eq!(lease.request.ttl, Ms::from_secs(7));
    // Neither a renewal nor another policy shapes it again.
    world.renew("a").switch(|edit| edit.class("batch", 9));
    assert_eq!(world.lease("a").request, lease.request);
    assert_eq!(world.lease("a").priority, 3);
}

#[test]
fn what_rules_ask_for_never_lengthens_a_hold() {
    let mut world = world_by(|edit| {
        let max_hold = Some(Ms::from_secs(500));
        let sets = Sets {
            max_hold,
            ..Sets::default()
        };
        edit.rules.sets.insert("standard".into(), sets);
    });
    world.device("gpu-0", 24).ask(memory("a", 1).max_hold(50));
    assert_eq!(world.lease("a").request.max_hold, Some(Ms::from_secs(50)));
}

#[test]
fn filters_choose_devices_and_follow_the_labels() {
    let mut world = world_by(|edit| edit.label("gpu-1", "fast"));
    world
        .device("gpu-0", 8)
        .device("gpu-1", 24)
        .ask(memory("a", 1).filter("fast"))
        .is("a", "active on gpu-1")
        .ask(memory("b", 1).filter("purple"))
        .is(
            "b",
            "refused: asks for 1 device; 0 of the inventory can serve it",
        )
        .ask(whole("c").filter("fast").waits(600))
        .switch(|edit| {
            edit.label("gpu-0", "fast");
            edit.label("gpu-1", "fast");
        })
        .is("c", "active on gpu-0");
}

#[test]
fn scores_choose_the_device() {
    let mut world = world_by(|edit| {
        edit.policy.placement.strategy = Strategy::Score;
        edit.rules.scores = [("gpu-0", 1), ("gpu-1", 5), ("gpu-2", 5)]
            .map(|(id, score)| (id.to_string(), score))
            .into();
    });
    world
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .device("gpu-2", 24)
        .ask(whole("a").devices(2))
        .is("a", "active on gpu-1 gpu-2")
        .ask(memory("b", 1))
        .is("b", "active on gpu-0");
}

#[test]
fn rules_see_the_books_without_the_lease_itself() {
    let mut world = world_by(|edit| edit.rules.busy_at = Some(1));
    world
        .device("gpu-0", 24)
        .ask(memory("a", 1))
        .ask(memory("b", 1).waits(60))
        .waits_because("b", "held by `busy`: 1 devices are taken")
        .release("a")
        .is("b", "active on gpu-0");
    // The same rule in another policy has nothing against the one that is there.
    assert_eq!(world.plan(|edit| edit.rules.busy_at = Some(1)).held, []);
}

#[test]
fn rules_that_look_at_the_books_wait_for_the_devices() {
    let mut world = world_by(|edit| edit.rules.busy_at = Some(0));
    world
        .ask(memory("a", 1).queued().waits(60))
        .waits_because("a", "devices are still being discovered")
        .device("gpu-0", 24)
        .waits_by("a", "held_by_rule");
}

#[test]
fn a_rule_that_fails_refuses_the_new_and_touches_nobody() {
    world_by(|edit| edit.class("batch", 0))
        .device("gpu-0", 24)
        .ask(memory("holds", 20).class("batch"))
        .ask(memory("waits", 20).class("batch").waits(600))
        .switch(|edit| {
            edit.class("batch", 0);
            edit.rules.erring.insert("batch".into());
        })
        .are(&[("holds", "active on gpu-0"), ("waits", "waiting")])
        .ask(memory("new", 1).class("batch"))
        .is("new", "refused: denied by `fragile`: the rule failed");
}
