//! What would become of a request, which changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gpu_lease::{Denial, DeviceKey};

use crate::world::{memory, whole, world, world_by};

#[test]
fn an_explanation_says_where_a_request_would_go() {
    let mut world = world_by(|edit| {
        edit.class("urgent", 9);
        edit.tenant("lab", &["ann"], |_| {});
    });
    world
        .device("gpu-0", 16)
        .device("gpu-1", 24)
        .ask(whole("a").on(&["gpu-0"]));
    let told = world.explain(memory("b", 1).class("urgent").user("ann"), None);
    assert_eq!(told.outcome, Ok(vec![DeviceKey::local("gpu-1")]));
    assert_eq!(told.priority, 9);
    assert_eq!(told.tenant.map(|key| key.to_string()), Some("lab".into()));
    assert_eq!(told.request.holder.tenant, Some("lab".into()));
}

#[test]
fn an_explanation_says_why_it_would_wait_and_for_whom() {
    let mut world = world();
    world.device("gpu-0", 24).ask(memory("a", 20).max_hold(60));
    let Err(Denial::DoesNotFit(why)) = world.explain(memory("b", 10), None).outcome else {
        panic!("there is no room");
    };
    assert_eq!(
        why.to_string(),
        "needs 10 GiB on one device; gpu-0 has 4 GiB free, held by a (20 GiB, until 00:01:00Z)"
    );
    assert_eq!(why.position, 1);
}

#[test]
fn an_explanation_names_the_rules_that_apply() {
    let mut world = world_by(|edit| edit.deny("standard"));
    world.device("gpu-0", 24);
    let told = world.explain(memory("a", 1), None);
    assert_eq!(told.hits[0].rule, "no such work");
    assert!(matches!(told.outcome, Err(Denial::ByPolicy { rule, .. }) if rule == "no such work"));
}

/// Errors of rules take a policy back: who only asks must not make them more.
#[test]
fn errors_of_rules_count_for_new_requests_alone() {
    let came = Arc::new(AtomicUsize::new(0));
    let mut world = world_by(|edit| edit.rules.came = Arc::clone(&came));
    world.device("gpu-0", 24);
    world.explain(memory("a", 1), None);
    assert_eq!(came.load(Ordering::Relaxed), 0);
    world.ask(whole("a")).ask(whole("b"));
    assert_eq!(came.load(Ordering::Relaxed), 2);
    world.explain(memory("a", 1), None);
    assert_eq!(came.load(Ordering::Relaxed), 2);
}

#[test]
fn another_time_of_the_day_can_be_asked_about() {
    let mut world = world_by(|edit| {
        edit.class("batch", 0);
        edit.rules.held.insert("batch".into());
        edit.rules.held_until = Some(500);
    });
    world.device("gpu-0", 24);
    let job = || memory("a", 1).class("batch");
    let Err(Denial::DoesNotFit(why)) = world.explain(job(), None).outcome else {
        panic!("it is too early");
    };
    assert_eq!(why.code(), "held_by_rule");
    let later = world.explain(job(), Some(500)).outcome;
    assert_eq!(later, Ok(vec![DeviceKey::local("gpu-0")]));
}

#[test]
fn what_can_never_be_is_said_as_a_request_is_told() {
    let mut world = world_by(|edit| edit.policy.queue.max_waiting = 1);
    let recovering = world.explain(memory("a", 1), None).outcome;
    assert_eq!(recovering, Err(Denial::Recovering));
    world.device("gpu-0", 24);
    let too_big = world.explain(memory("a", 100), None).outcome;
    assert!(matches!(too_big, Err(Denial::NeverFits(_))));
    world.ask(whole("holds")).ask(whole("waits").waits(60));
    let full = world.explain(whole("a").waits(60), None).outcome;
    assert_eq!(full, Err(Denial::QueueFull { max_waiting: 1 }));
}
