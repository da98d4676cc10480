//! Settings that the API puts above all others for a while.

use std::sync::Arc;

use gpu_broker::{
    CandidateState, Override, ReloadOptions, ReloadOutcome, ReloadResult, SetOverrideError, Trigger,
};
use gpu_lease::{Lease, Ms, Request, Strategy};

use crate::reload::{Reloads, applied, max_waiting};
use crate::world::{Setup, World, request};

const HOUR: Ms = Ms::from_secs(3600);

fn set(reloads: &Reloads, setting: &str, value: &str, ttl: Ms) -> Arc<ReloadResult> {
    let settings = [(setting.to_owned(), value.to_owned())];
    let options = ReloadOptions::default();
    let result = reloads
        .reloader
        .set_overrides(&settings, ttl, "ann", &options);
    result.unwrap()
}

fn clear(reloads: &Reloads) -> Arc<ReloadResult> {
    let options = ReloadOptions::default();
    let result = reloads.reloader.set_overrides(&[], HOUR, "ann", &options);
    result.unwrap()
}

fn strategy(world: &World) -> Strategy {
    world.handle.snapshot().policy.placement.strategy
}

#[test]
fn an_override_survives_reloads_and_ends_on_time() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    applied(&set(&reloads, "placement.strategy", "spread", HOUR));
    assert_eq!(strategy(&world), Strategy::Spread);
    for n in 1..=10 {
        reloads.offer(&format!("[queue]\nmax_waiting = {n}\n"));
        assert_eq!(strategy(&world), Strategy::Spread);
        assert_eq!(max_waiting(&world), n);
    }
    let shown = reloads.reloader.overrides();
    assert_eq!(shown[0].text, "placement.strategy=spread");
    assert_eq!(shown[0].by, "ann");

    world.pass(Ms(HOUR.0 - 1000));
    reloads.reloader.tick();
    assert_eq!(strategy(&world), Strategy::Spread);
    world.pass(Ms::from_secs(1));
    reloads.reloader.tick();
    assert_eq!(strategy(&world), Strategy::BestFit);
    assert_eq!(max_waiting(&world), 10, "the files last applied");
    assert!(reloads.reloader.overrides().is_empty());
}

#[test]
fn a_cleared_override_gives_back_what_the_files_say_without_reading_them() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    reloads.offer("[placement]\nstrategy = \"pack\"\n");
    set(&reloads, "placement.strategy", "spread", HOUR);
    reloads.save("[queu]\n");
    applied(&clear(&reloads));
    assert_eq!(strategy(&world), Strategy::Pack);
    assert!(reloads.candidate().is_none(), "nobody looked at the disk");
}

#[test]
fn the_api_is_above_the_command_line_also_after_a_restart() {
    let set_by_hand = Override::parse("--set", "placement.strategy=pack").unwrap();
    let world = World::with(Setup {
        overrides: vec![set_by_hand.clone()],
        ..Setup::policy("[placement]\nstrategy = \"worst-fit\"\n")
    });
    let reloads = Reloads::under(&world, vec![set_by_hand]);
    assert_eq!(strategy(&world), Strategy::Pack);
    set(&reloads, "placement.strategy", "spread", HOUR);
    assert_eq!(strategy(&world), Strategy::Spread);
    drop(reloads);
    let world = world.restart(|_| ());
    assert_eq!(strategy(&world), Strategy::Spread);
    assert_eq!(world.handle.snapshot().counters.generation, 2, "no other");
    let world = world.restart(|setup| setup.boot_id = "another boot".to_owned());
    assert_eq!(strategy(&world), Strategy::Pack);
    assert!(world.started.settings.overrides.is_empty());
}

#[test]
fn an_override_that_ended_while_no_broker_ran_is_not_there_at_the_start() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    set(&reloads, "placement.strategy", "spread", HOUR);
    drop(reloads);
    let world = world.restart(|setup| setup.clock.jump(HOUR));
    assert_eq!(strategy(&world), Strategy::BestFit);
    assert!(world.started.settings.overrides.is_empty());
}

#[test]
fn a_bad_override_is_refused_and_nothing_is_set() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    set(&reloads, "placement.strategy", "spread", HOUR);
    let refused = set(&reloads, "placement.strateg", "pack", HOUR);
    let ReloadOutcome::Refused { diagnostics, .. } = &refused.outcome else {
        panic!("it is refused: {refused:?}");
    };
    assert_eq!(diagnostics.items()[0].file, "override");
    assert_eq!(strategy(&world), Strategy::Spread);
    assert_eq!(reloads.reloader.overrides().len(), 1);
    assert!(reloads.candidate().is_none(), "the files are not to blame");
    let reloader = &reloads.reloader;
    let put = |setting: &str, ttl| {
        let settings = [(setting.to_owned(), "1".to_owned())];
        reloader.set_overrides(&settings, ttl, "ann", &ReloadOptions::default())
    };
    let ttl = put("queue.max_waiting", Ms(0)).unwrap_err();
    assert_eq!(ttl, SetOverrideError::Ttl);
    let malformed = put("queue", HOUR).unwrap_err();
    assert!(matches!(malformed, SetOverrideError::Malformed(_)));
}

#[test]
fn files_that_an_override_makes_bad_are_refused_naming_it() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let text = "[[class]]\nname = \"batch\"\n[defaults]\nclass = \"batch\"\n";
    applied(&reloads.offer(text));
    set(&reloads, "defaults.class", "batch", HOUR);
    let refused = reloads.offer("");
    let ReloadOutcome::Refused { diagnostics, .. } = &refused.outcome else {
        panic!("it is refused: {refused:?}");
    };
    assert!(
        diagnostics.to_string().contains("override"),
        "{diagnostics}"
    );
    assert_eq!(reloads.candidate(), Some(CandidateState::Failing));
}

#[test]
fn an_override_that_would_drain_waits_for_its_plan_to_be_confirmed() {
    let text = "[defaults]\nclass = \"standard\"\n[[class]]\nname = \"batch\"\n";
    let world = World::with(Setup::policy(text));
    let reloads = Reloads::gated(&world);
    world.acquire(Request {
        max_hold: Some(HOUR),
        ..request(10)
    });
    // The whole scope: every lease is asked to go.
    let settings = [("reload.scope".to_owned(), "all".to_owned())];
    let put = |options: &ReloadOptions| {
        let put = reloads
            .reloader
            .set_overrides(&settings, HOUR, "ann", options);
        put.unwrap()
    };
    let asked = put(&ReloadOptions::default());
    assert!(matches!(asked.outcome, ReloadOutcome::NeedsConfirmation));
    assert!(reloads.reloader.overrides().is_empty());
    assert!(reloads.candidate().is_none());
    let confirmed = put(&ReloadOptions {
        confirm: asked.plan_hash.clone(),
        ..ReloadOptions::default()
    });
    applied(&confirmed);
    assert_eq!(reloads.reloader.overrides().len(), 1);
}

#[test]
fn what_an_override_hides_is_said() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    set(&reloads, "queue.max_waiting", "7", HOUR);
    let result = reloads.offer("[queue]\nmax_waiting = 3\n");
    assert!(matches!(result.outcome, ReloadOutcome::Unchanged));
    assert_eq!(result.changes.len(), 1);
    assert!(
        result.changes[0].contains("shadowed by override"),
        "{:?}",
        result.changes
    );
}

/// A policy whose every change asks all holders to go, under an override that lets them stay.
fn spared() -> (World, Reloads, Lease) {
    let world = World::with(Setup::policy("[reload]\nscope = \"all\"\n"));
    let reloads = Reloads::gated(&world);
    applied(&set(&reloads, "reload.scope", "violating", HOUR));
    let held = world.acquire(Request {
        ttl: Ms(2 * HOUR.0),
        ..request(10)
    });
    (world, reloads, held)
}

fn is_asked_to_go(world: &World, lease: &Lease) -> bool {
    let lease = world.lease(lease.id);
    lease.held().is_some_and(|grant| grant.drain().is_some())
}

/// The plan of the end of the override, which is not done.
fn asked_about_the_end(world: &World, reloads: &Reloads, held: &Lease) -> String {
    reloads.reloader.tick();
    assert_eq!(reloads.candidate(), Some(CandidateState::NeedsConfirmation));
    assert_eq!(reloads.reloader.overrides().len(), 1);
    assert!(!is_asked_to_go(world, held));
    let asked = reloads.reloader.state().candidate.unwrap().result;
    assert_eq!(asked.trigger, Trigger::Override);
    asked.plan_hash.clone().unwrap()
}

#[test]
fn an_override_whose_end_would_drain_stays_until_that_is_confirmed() {
    let (world, reloads, held) = spared();
    world.pass(HOUR);
    let hash = asked_about_the_end(&world, &reloads, &held);
    let asked = reloads.reloader.state().history.len();
    assert_eq!(asked_about_the_end(&world, &reloads, &held), hash);
    assert_eq!(
        reloads.reloader.state().history.len(),
        asked,
        "it is asked once"
    );
    // What is on disk is another question.
    assert!(matches!(reloads.reload().outcome, ReloadOutcome::Unchanged));
    asked_about_the_end(&world, &reloads, &held);
    applied(&reloads.confirm(&hash));
    assert!(is_asked_to_go(&world, &held));
    assert!(reloads.reloader.overrides().is_empty());
    assert!(reloads.candidate().is_none());
}

#[test]
fn an_override_whose_end_harms_nobody_any_more_ends() {
    let (world, reloads, held) = spared();
    world.pass(HOUR);
    asked_about_the_end(&world, &reloads, &held);
    world.release(held.id);
    reloads.reloader.tick();
    assert!(reloads.reloader.overrides().is_empty());
    assert!(reloads.candidate().is_none());
    assert_eq!(world.handle.snapshot().counters.generation, 3);
}

#[test]
fn a_restart_after_its_time_does_not_end_such_an_override_either() {
    let (world, reloads, held) = spared();
    drop(reloads);
    let world = world.restart(|setup| setup.clock.jump(HOUR));
    assert_eq!(world.handle.snapshot().counters.generation, 2);
    let reloads = Reloads::gated(&world);
    let hash = asked_about_the_end(&world, &reloads, &held);
    applied(&reloads.confirm(&hash));
    assert!(is_asked_to_go(&world, &held));
}
