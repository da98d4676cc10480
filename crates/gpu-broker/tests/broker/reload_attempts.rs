//! Files that fail: how often they are looked at, what is counted, and what a restart makes of them.

use std::sync::Arc;

use gpu_broker::{CandidateState, ReloadOutcome, StartError};
use gpu_store::Store;

use crate::reload::{Reloads, applied, attempt, end_of_events, kinds_after, max_waiting};
use crate::world::{Setup, World};

const GOOD: &str = "[queue]\nmax_waiting = 3\n";
const BAD: &str = "[queu]\n";

fn bad(n: u32) -> String {
    format!("[queu]\n# {n}\n")
}

#[test]
fn the_same_bad_bytes_are_looked_at_once() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let end = end_of_events(&world);
    let first = reloads.offer(BAD);
    for _ in 0..100 {
        assert!(Arc::ptr_eq(&first, &reloads.offer(BAD)));
    }
    assert_eq!(reloads.reloader.state().history.len(), 1);
    assert_eq!(kinds_after(&world, end).len(), 2, "begun and refused");
}

#[test]
fn good_bad_and_the_same_good_again_is_as_if_nothing_was() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    assert_eq!(applied(&reloads.offer(GOOD)), 2);
    assert_eq!(attempt(&reloads.offer(BAD)), 1);
    let good = reloads.offer(GOOD);
    assert!(matches!(good.outcome, ReloadOutcome::Unchanged));
    assert!(reloads.candidate().is_none());
    assert_eq!(attempt(&reloads.offer(BAD)), 1);
    assert_eq!(max_waiting(&world), 3);
}

#[test]
fn the_third_failure_is_a_rejection_that_a_restart_knows() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let states = (1..=3).map(|n| {
        assert_eq!(attempt(&reloads.offer(&bad(n))), n);
        reloads.candidate().unwrap()
    });
    let expected = [
        CandidateState::Failing,
        CandidateState::Failing,
        CandidateState::Rejected,
    ];
    assert_eq!(states.collect::<Vec<_>>(), expected);
    assert_eq!(attempt(&reloads.reload()), 4, "somebody asks");
    drop(reloads);

    let world = world.restart(|setup| setup.policy = bad(3));
    assert!(world.started.degraded.is_some(), "the last good one serves");
    let reloads = Reloads::of(&world);
    let again = reloads.offer(&bad(3));
    assert!(matches!(again.outcome, ReloadOutcome::Rejected { .. }));
    assert_eq!(reloads.candidate(), Some(CandidateState::Rejected));
    assert!(Arc::ptr_eq(&again, &reloads.offer(&bad(3))));
    assert_eq!(applied(&reloads.offer(GOOD)), 2);
    assert!(reloads.candidate().is_none());
    assert!(reloads.reloader.state().degraded.is_none());
    let stored = world.store.load().unwrap().settings;
    assert!(stored.rejected.is_none(), "{stored:?}");
}

#[test]
fn files_that_can_be_read_again_are_what_they_were() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    reloads.offer(BAD);
    reloads.reloader.offer_unreadable("a directory".to_owned());
    assert_eq!(reloads.candidate(), Some(CandidateState::NotLoaded));
    reloads.reloader.offer_recovered();
    assert_eq!(reloads.candidate(), Some(CandidateState::Failing));
    assert_eq!(reloads.reloader.state().history.len(), 2);
}

#[test]
fn a_failure_leaves_all_as_it_was() {
    let world = World::with(Setup::policy(GOOD));
    let reloads = Reloads::of(&world);
    let lease = world.acquire(crate::world::request(10));
    let before = (world.handle.snapshot().counters.generation, lease.clone());
    reloads.offer(BAD);
    *reloads.disk.lock() = Err("gone".to_owned());
    reloads.reload();
    let after = (
        world.handle.snapshot().counters.generation,
        (*world.lease(lease.id)).clone(),
    );
    assert_eq!(before, after);
    assert_eq!(max_waiting(&world), 3);
}

#[test]
fn a_last_good_policy_that_went_bad_stops_a_start_only_if_the_files_are_bad_too() {
    let world = World::with(Setup::policy(GOOD));
    let mut setup = world.stop();
    setup.overrides = vec![gpu_broker::Override::parse("--set", "queue.backfil=true").unwrap()];
    let error = setup.start_on(setup.rows.open()).err().unwrap();
    assert!(matches!(error, StartError::LastGood { .. }), "{error}");
    setup.overrides.clear();
    let world = World::with(setup);
    assert!(world.started.degraded.is_none());
}

#[test]
fn results_are_counted_and_the_last_are_kept() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    for n in 1..=40 {
        reloads.offer(&format!("[queue]\nmax_waiting = {n}\n"));
    }
    reloads.offer(BAD);
    reloads.reload();
    let state = reloads.reloader.state();
    assert_eq!(state.history.len(), 32);
    assert_eq!(state.history[0].id, 42);
    let counts: Vec<_> = state.counts.into_iter().collect();
    let (api, file) = (gpu_broker::Trigger::Api, gpu_broker::Trigger::File);
    let expected = [
        ((api, "refused"), 1),
        ((file, "applied"), 40),
        ((file, "refused"), 1),
    ];
    assert_eq!(counts, expected);
    assert_eq!(state.last_success, Some(state.history[2].at));
}
