//! Policies that are taken back: by hand, or because their rules fail.

use gpu_broker::{CandidateState, ReloadOptions, ReloadOutcome, RollbackError, Trigger};
use gpu_lease::{EventKind, Ms, Request};

use crate::reload::{Reloads, applied, end_of_events, kinds_after, max_waiting};
use crate::world::{Setup, World, patient, request};

/// Fails on every request that has no label `team`, and lets it pass.
const FAILING: &str = "[queue]\nmax_waiting = 9\n[reload]\nrollback_errors = 3\n\
    rollback_within = \"60s\"\n[[rule]]\nname = \"teams\"\n\
    when = \"request.labels['team'] == 'x'\"\ndeny = \"not for x\"\non_error = \"skip\"\n";

fn text(n: usize) -> String {
    format!("[queue]\nmax_waiting = {n}\n")
}

/// A decision that the rule fails on.
fn decide(world: &World, n: usize) -> Request {
    let asked = Request {
        labels: [("n".to_owned(), n.to_string())].into(),
        ..request(1)
    };
    world.acquire(asked.clone());
    asked
}

#[test]
fn a_policy_whose_rules_fail_is_taken_back_and_its_file_is_not_tried_again() {
    let world = World::with(Setup::policy(&text(4)));
    let reloads = Reloads::gated(&world);
    assert_eq!(applied(&reloads.offer(FAILING)), 2);
    let lease = world.acquire(request(1));
    reloads.reloader.tick();
    assert_eq!(max_waiting(&world), 9, "one failure is not enough");
    decide(&world, 1);
    decide(&world, 2);
    let end = end_of_events(&world);
    let rows = world.lease(lease.id);
    reloads.reloader.tick();

    let state = reloads.reloader.state();
    let last = state.last.unwrap();
    assert!(
        matches!(&last.outcome, ReloadOutcome::RolledBack { generation: 3, why } if why.contains("failed")),
        "{last:?}"
    );
    assert_eq!(last.trigger, Trigger::Rollback);
    assert_eq!(max_waiting(&world), 4);
    assert_eq!(
        world.lease(lease.id),
        rows,
        "what was granted meanwhile stays"
    );
    let kinds = kinds_after(&world, end);
    assert!(kinds.contains(&EventKind::PolicyRolledBack), "{kinds:?}");
    assert_eq!(reloads.candidate(), Some(CandidateState::RolledBack));

    reloads.offer(FAILING);
    assert_eq!(max_waiting(&world), 4, "the same bytes");
    assert_eq!(applied(&reloads.reload()), 4, "somebody asks");
    assert!(reloads.candidate().is_none());
}

#[test]
fn errors_after_the_time_of_probation_take_nothing_back() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    reloads.offer(FAILING);
    world.pass(Ms::from_secs(61));
    reloads.reloader.tick();
    for n in 0..5 {
        decide(&world, n);
    }
    reloads.reloader.tick();
    assert_eq!(max_waiting(&world), 9);
    let erring = reloads.reloader.state().erring;
    assert_eq!((erring[0].rule.as_str(), erring.len()), ("teams", 1));
}

#[test]
fn a_start_does_not_try_a_withdrawn_file_before_it_changes() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    reloads.offer(FAILING);
    for n in 0..3 {
        decide(&world, n);
    }
    reloads.reloader.tick();
    drop(reloads);
    let world = world.restart(|setup| setup.policy = FAILING.to_owned());
    assert_eq!(max_waiting(&world), 1024);
    assert!(world.started.degraded.is_none(), "they have no errors");
    let reloads = Reloads::of(&world);
    assert_eq!(reloads.candidate(), Some(CandidateState::RolledBack));
    let shown = reloads.reloader.state().candidate.unwrap();
    assert!(
        matches!(&shown.result.outcome, ReloadOutcome::Rejected { why } if why.contains("failed")),
        "{shown:?}"
    );
    assert_eq!(max_waiting(&world), 1024);
    drop(reloads);
    let world = world.restart(|setup| setup.policy = text(5));
    assert_eq!(max_waiting(&world), 5);
    assert!(world.started.degraded.is_none());
}

#[test]
fn whoever_asks_goes_back_to_any_of_the_last_generations() {
    let world = World::with(Setup::policy(&text(1)));
    let reloads = Reloads::of(&world);
    for n in 2..=12 {
        reloads.offer(&text(n));
    }
    let options = ReloadOptions::default();
    let back = |to| reloads.reloader.rollback("ann", to, &options);
    applied(&back(None).unwrap());
    assert_eq!(max_waiting(&world), 11);
    assert_eq!(reloads.candidate(), Some(CandidateState::RolledBack));
    reloads.offer(&text(12));
    assert_eq!(max_waiting(&world), 11, "the file that was taken back");
    applied(&back(Some(6)).unwrap());
    assert_eq!(max_waiting(&world), 6);
    let gone = back(Some(1)).unwrap_err();
    assert!(
        matches!(&gone, RollbackError::NotKept { generation: 1, kept } if kept.len() == 9),
        "{gone}"
    );
    applied(&reloads.offer(&text(20)));
    assert!(reloads.candidate().is_none());
}

#[test]
fn the_policy_before_the_start_can_be_gone_back_to() {
    let world = World::with(Setup::policy(&text(1)));
    let options = ReloadOptions::default();
    let reloads = Reloads::of(&world);
    let nothing = reloads.reloader.rollback("ann", None, &options);
    assert_eq!(nothing.unwrap_err(), RollbackError::NothingBefore);
    drop(reloads);
    let world = world.restart(|setup| setup.policy = text(2));
    let reloads = Reloads::of(&world);
    let result = reloads.reloader.rollback("ann", None, &options).unwrap();
    applied(&result);
    assert_eq!(max_waiting(&world), 1);
}

#[test]
fn a_rollback_that_would_drain_is_asked_about_too() {
    let world = World::new();
    let reloads = Reloads::gated(&world);
    applied(&reloads.offer("[[class]]\nname = \"batch\"\n"));
    world.acquire(Request {
        class: "batch".to_owned(),
        ..patient(10)
    });
    let options = ReloadOptions::default();
    let result = reloads.reloader.rollback("ann", None, &options).unwrap();
    assert!(matches!(result.outcome, ReloadOutcome::NeedsConfirmation));
    let confirm = ReloadOptions {
        confirm: result.plan_hash.clone(),
        ..options
    };
    let result = reloads.reloader.rollback("ann", None, &confirm).unwrap();
    applied(&result);
}

#[test]
fn a_rollback_goes_back_to_other_files_whatever_was_set_over_them() {
    let world = World::with(Setup::policy(&text(1)));
    let reloads = Reloads::of(&world);
    let options = ReloadOptions::default();
    let back = || reloads.reloader.rollback("ann", None, &options);
    let set = |value: &str| {
        let settings = [("placement.strategy".to_owned(), value.to_owned())];
        let hour = Ms::from_secs(3600);
        let set = reloads
            .reloader
            .set_overrides(&settings, hour, "ann", &options);
        applied(&set.unwrap());
    };
    set("spread");
    assert_eq!(back().unwrap_err(), RollbackError::NothingBefore);
    applied(&reloads.offer(&text(2)));
    set("pack");
    set("spread");
    applied(&back().unwrap());
    assert_eq!(max_waiting(&world), 1);
}
