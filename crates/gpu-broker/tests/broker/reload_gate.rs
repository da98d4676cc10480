//! What a plan asks of people before it is done, and that what was planned is what is done.

use std::sync::Arc;

use gpu_broker::{CandidateState, ReloadOptions, ReloadOutcome, ReloadResult, Trigger};
use gpu_lease::{DrainSource, EventKind, Fate, Lease, Ms, Request};

use crate::reload::{Reloads, applied, end_of_events, kinds_after, max_waiting};
use crate::world::{Setup, World, files, patient, request};

const WITH_BATCH: &str = "[[class]]\nname = \"batch\"\n";
const WITHOUT: &str = "";

fn batch(request: Request) -> Request {
    Request {
        class: "batch".to_owned(),
        ..request
    }
}

/// A broker with a class that a held lease is of.
fn with_batch() -> (World, Reloads, Lease) {
    let world = World::with(Setup::policy(WITH_BATCH));
    let held = world.acquire(batch(request(20)));
    let reloads = Reloads::gated(&world);
    (world, reloads, held)
}

fn is_asked_to_go(world: &World, lease: &Lease) -> bool {
    let lease = world.lease(lease.id);
    lease
        .held()
        .is_some_and(|grant| grant.drains.contains_key(&DrainSource::Policy))
}

fn waits(result: &Arc<ReloadResult>) -> String {
    assert!(
        matches!(result.outcome, ReloadOutcome::NeedsConfirmation),
        "{result:?}"
    );
    result.plan_hash.clone().unwrap()
}

#[test]
fn a_save_that_would_drain_waits_until_its_plan_is_confirmed() {
    let (world, reloads, held) = with_batch();
    let end = end_of_events(&world);
    let asked = reloads.offer(WITHOUT);
    let hash = waits(&asked);
    assert_eq!(asked.plan.as_ref().unwrap().held[0].id, held.id);
    assert_eq!(reloads.candidate(), Some(CandidateState::NeedsConfirmation));
    assert_eq!(
        kinds_after(&world, end),
        [
            EventKind::ReloadBegun,
            EventKind::PolicyPlanned,
            EventKind::PolicyPending
        ]
    );
    assert_eq!(waits(&reloads.reload()), hash, "by hand too");
    assert_eq!(waits(&reloads.confirm("another")), hash);
    assert_eq!(world.handle.snapshot().counters.generation, 1);
    assert!(!is_asked_to_go(&world, &held));

    assert_eq!(applied(&reloads.confirm(&hash)), 2);
    assert!(is_asked_to_go(&world, &held));
    assert!(reloads.candidate().is_none());
}

#[test]
fn every_trigger_is_asked_and_none_is_in_dev_mode() {
    let (world, reloads, _) = with_batch();
    reloads.save(WITHOUT);
    let options = ReloadOptions::default();
    for trigger in [Trigger::Api, Trigger::File, Trigger::Signal] {
        waits(&reloads.reloader.reload(trigger, "", &options));
    }
    waits(
        &reloads
            .reloader
            .apply_files(files(WITHOUT), "ann", &options),
    );
    assert_eq!(applied(&Reloads::of(&world).offer(WITHOUT)), 2);
}

#[test]
fn the_stricter_policy_decides_what_is_confirmed() {
    let never = "[reload]\nconfirm = \"never\"\n";
    let force = "[reload]\nconfirm = \"force\"\n";
    let cases = [
        ("", "", true),
        (never, "", true),
        ("", never, true),
        (force, never, false),
        (never, never, false),
    ];
    for (active, new, confirmed) in cases {
        let world = World::with(Setup::policy(&format!("{active}{WITH_BATCH}")));
        world.acquire(batch(request(20)));
        let result = Reloads::gated(&world).offer(new);
        let asks = matches!(result.outcome, ReloadOutcome::NeedsConfirmation);
        assert_eq!(asks, confirmed, "{active:?} -> {new:?}");
    }
}

#[test]
fn a_plan_that_grew_is_asked_again_and_one_that_shrank_is_not() {
    let (world, reloads, first) = with_batch();
    let hash = waits(&reloads.offer(WITHOUT));
    let second = world.acquire(batch(request(20)));
    let grown = waits(&reloads.confirm(&hash));
    assert_ne!(grown, hash);
    assert!(!is_asked_to_go(&world, &first));
    world.release(first.id);
    assert_eq!(applied(&reloads.confirm(&grown)), 2);
    assert!(is_asked_to_go(&world, &second));
}

#[test]
fn another_save_replaces_what_waits_and_the_live_one_clears_it() {
    let (world, reloads, _) = with_batch();
    let first = waits(&reloads.offer(WITHOUT));
    let second = waits(&reloads.offer("[queue]\nmax_waiting = 3\n"));
    assert_ne!(first, second);
    assert_eq!(
        waits(&reloads.confirm(&first)),
        second,
        "that was of other files"
    );
    let same = reloads.offer(WITH_BATCH);
    assert!(matches!(same.outcome, ReloadOutcome::Unchanged));
    assert!(reloads.candidate().is_none());
    assert_eq!(max_waiting(&world), 1024);
}

#[test]
fn the_same_save_is_asked_about_once() {
    let (world, reloads, _) = with_batch();
    let end = end_of_events(&world);
    let first = reloads.offer(WITHOUT);
    for _ in 0..100 {
        assert!(Arc::ptr_eq(&first, &reloads.offer(WITHOUT)));
    }
    assert_eq!(reloads.reloader.state().history.len(), 1);
    assert_eq!(kinds_after(&world, end).len(), 3);
}

#[test]
fn a_plan_changes_nothing_and_is_what_is_done() {
    let (world, reloads, held) = with_batch();
    let waiting = world.acquire(batch(patient(70)));
    let before = (world.handle.page(None, 100), end_of_events(&world));
    let planning = reloads.reloader.plan(&files(WITHOUT)).unwrap();
    assert!(planning.confirm_needed);
    assert_eq!(planning.plan.held[0].id, held.id);
    assert_eq!(planning.plan.denied[0].0, waiting.id);
    assert_eq!(planning.changes, ["class batch: removed"]);
    let after = (world.handle.page(None, 100), end_of_events(&world));
    assert_eq!(before, after);

    let options = ReloadOptions {
        expect_plan: Some(planning.plan_hash.clone()),
        expect_live: Some(planning.live),
        ..ReloadOptions::default()
    };
    let result = reloads
        .reloader
        .apply_files(files(WITHOUT), "ann", &options);
    assert_eq!(applied(&result), 2);
    assert_eq!(result.plan_hash, Some(planning.plan_hash));
    assert!(result.plan.as_ref().unwrap().is_like(&planning.plan));
}

#[test]
fn what_is_not_as_expected_changes_nothing() {
    let (world, reloads, _) = with_batch();
    let planning = reloads.reloader.plan(&files(WITHOUT)).unwrap();
    world.acquire(batch(request(20)));
    reloads.save(WITHOUT);
    let live = world.handle.snapshot().policy.source.hash.clone();
    let outgrown = ReloadOptions {
        expect_plan: Some(planning.plan_hash),
        ..ReloadOptions::default()
    };
    let stale = ReloadOptions {
        expect_live: Some("another".to_owned()),
        ..ReloadOptions::default()
    };
    let rows = world.handle.page(None, 100);
    for options in [outgrown, stale] {
        let result = reloads.reload_with(&options);
        assert!(
            matches!(&result.outcome, ReloadOutcome::Moved { live: is } if *is == live),
            "{result:?}"
        );
    }
    assert_eq!(world.handle.page(None, 100), rows);
    assert_eq!(world.handle.snapshot().counters.generation, 1);
}

#[test]
fn a_reload_is_over_at_once_though_its_drain_takes_an_hour() {
    let text = "[reload]\ngrace = \"1h\"\n";
    let (_world, reloads, held) = with_batch();
    let hash = waits(&reloads.offer(text));
    let result = reloads.confirm(&hash);
    assert_eq!(result.took, Ms(0), "no time of the broker passed");
    let fate = result.plan.as_ref().unwrap().held[0].fate;
    let Fate::Drain(deadline) = fate else {
        panic!("it drains: {fate:?}");
    };
    assert_eq!(deadline.boot - held.created.boot, Ms::from_secs(3600));
}

#[test]
fn the_events_of_a_reload_come_in_order_and_name_it() {
    let (world, reloads, _) = with_batch();
    let hash = waits(&reloads.offer(WITHOUT));
    let end = end_of_events(&world);
    reloads.confirm(&hash);
    world.nudge();
    let events = world.events_after(Some(end));
    let kinds: Vec<_> = events.iter().map(|event| event.event.kind).collect();
    assert_eq!(
        kinds,
        [
            EventKind::ReloadBegun,
            EventKind::PolicyPlanned,
            EventKind::PolicySwitched,
            EventKind::LeaseDraining
        ]
    );
    for event in events {
        let text = event.event.text;
        assert!(text.starts_with("reload 2: "), "{text}");
    }
}

#[test]
fn a_restart_is_no_way_around_a_confirmation() {
    let (world, reloads, held) = with_batch();
    drop(reloads);
    let world = world.restart(|setup| setup.policy = WITHOUT.to_owned());
    assert_eq!(world.handle.snapshot().counters.generation, 1);
    let reloads = Reloads::gated(&world);
    assert!(!is_asked_to_go(&world, &held));
    assert_eq!(reloads.candidate(), Some(CandidateState::NeedsConfirmation));
    let asked = reloads.reloader.state().candidate.unwrap().result;
    let hash = waits(&asked);
    assert_eq!(asked.plan.as_ref().unwrap().held[0].id, held.id);
    assert_eq!(waits(&reloads.reload()), hash);
    assert_eq!(applied(&reloads.confirm(&hash)), 2);
    assert!(is_asked_to_go(&world, &held));
    assert!(reloads.candidate().is_none());
}

#[test]
fn a_restart_in_dev_mode_or_to_what_harms_nobody_goes_live_at_once() {
    let (world, reloads, held) = with_batch();
    drop(reloads);
    let text = format!("{WITH_BATCH}[queue]\nmax_waiting = 3\n");
    let world = world.restart(|setup| setup.policy = text);
    assert_eq!(max_waiting(&world), 3);
    let world = world.restart(|setup| {
        setup.policy = WITHOUT.to_owned();
        setup.dev = true;
    });
    assert!(is_asked_to_go(&world, &held));
}
