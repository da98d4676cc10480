//! Saved files that go back and forth between two policies.

use gpu_broker::{Breaker, CandidateState, ReloadOutcome};
use gpu_lease::{EventKind, Ms};

use crate::reload::{Reloads, applied, end_of_events, kinds_after, max_waiting};
use crate::world::World;

const A: &str = "[queue]\nmax_waiting = 1\n";
const B: &str = "[queue]\nmax_waiting = 2\n";

/// Saves one after the other every second until files rest; how many saves went live.
fn flap(world: &World, reloads: &Reloads) -> usize {
    let saves = [A, B].into_iter().cycle().take(20);
    let live = saves.take_while(|text| {
        world.clock.jump(Ms::from_secs(1));
        world.nudge();
        let result = reloads.offer(text);
        matches!(result.outcome, ReloadOutcome::Applied { .. })
    });
    live.count()
}

fn breaker(reloads: &Reloads) -> Breaker {
    reloads.reloader.state().breaker
}

/// Time passes as the thread that ticks sees it.
fn pass(world: &World, reloads: &Reloads, time: Ms) {
    world.pass(time);
    reloads.reloader.tick();
}

#[test]
fn files_that_flap_rest_and_the_last_save_is_tried_after_the_rest() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let end = end_of_events(&world);
    assert_eq!(
        flap(&world, &reloads),
        7,
        "the first of each, and five back"
    );
    let Breaker::Open { culprit, until } = breaker(&reloads) else {
        panic!("it is open");
    };
    assert_eq!(culprit.as_deref(), Some("default.toml"));
    assert_eq!(until.0, world.handle.now().wall.0 + 60_000);
    assert_eq!(reloads.candidate(), Some(CandidateState::Resting));
    assert_eq!(max_waiting(&world), 1);
    assert!(kinds_after(&world, end).contains(&EventKind::ReloadBreaker));

    pass(&world, &reloads, Ms::from_secs(59));
    assert!(matches!(breaker(&reloads), Breaker::Open { .. }));
    pass(&world, &reloads, Ms::from_secs(2));
    assert_eq!(breaker(&reloads), Breaker::HalfOpen);
    assert_eq!(max_waiting(&world), 2, "the last save is on trial");
    pass(&world, &reloads, Ms::from_secs(61));
    assert_eq!(breaker(&reloads), Breaker::Closed);
}

#[test]
fn a_trial_that_flaps_again_rests_twice_as_long() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    flap(&world, &reloads);
    let mut rest = 60;
    for _ in 0..5 {
        pass(&world, &reloads, Ms::from_secs(rest + 1));
        assert_eq!(breaker(&reloads), Breaker::HalfOpen);
        let live = max_waiting(&world);
        let other = if live == 1 { B } else { A };
        assert!(matches!(
            reloads.offer(other).outcome,
            ReloadOutcome::Resting { .. }
        ));
        rest = (rest * 2).min(600);
        let now = world.handle.now().wall.0;
        assert!(
            matches!(breaker(&reloads), Breaker::Open { until, .. } if until.0 == now + rest * 1000)
        );
    }
}

#[test]
fn a_rest_or_a_trial_without_anything_to_try_ends_closed() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    flap(&world, &reloads);
    reloads.reloader.set_watching(false, "root").unwrap();
    pass(&world, &reloads, Ms::from_secs(61));
    assert_eq!(breaker(&reloads), Breaker::Closed, "nobody saves");

    reloads.reloader.set_watching(true, "root").unwrap();
    flap(&world, &reloads);
    assert!(matches!(breaker(&reloads), Breaker::Open { .. }));
    reloads.save("[queu]\n");
    pass(&world, &reloads, Ms::from_secs(61));
    assert_eq!(breaker(&reloads), Breaker::HalfOpen, "a bad file is no try");
    reloads.reloader.tick();
    pass(&world, &reloads, Ms::from_secs(60));
    assert_eq!(breaker(&reloads), Breaker::Closed);
}

#[test]
fn who_asks_by_hand_is_served_and_closes_it() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    flap(&world, &reloads);
    assert_eq!(applied(&reloads.reload()), 9);
    assert_eq!(max_waiting(&world), 2);
    assert_eq!(breaker(&reloads), Breaker::Closed);
    assert!(reloads.candidate().is_none());
    assert_eq!(applied(&reloads.offer(A)), 10);
}

#[test]
fn going_back_slowly_or_by_hand_is_no_flapping() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    for text in [A, B].into_iter().cycle().take(20) {
        pass(&world, &reloads, Ms::from_secs(61));
        applied(&reloads.offer(text));
    }
    for text in [A, B].into_iter().cycle().take(20) {
        reloads.save(text);
        applied(&reloads.reload());
    }
    assert_eq!(breaker(&reloads), Breaker::Closed);
}

#[test]
fn a_restart_remembers_the_rest_and_another_boot_does_not() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    flap(&world, &reloads);
    let before = breaker(&reloads);
    drop(reloads);
    let world = world.restart(|setup| setup.policy = A.to_owned());
    let reloads = Reloads::of(&world);
    assert_eq!(breaker(&reloads), before);
    assert!(matches!(
        reloads.offer(B).outcome,
        ReloadOutcome::Resting { .. }
    ));
    drop(reloads);
    let world = world.restart(|setup| setup.boot_id = "another boot".to_owned());
    let reloads = Reloads::of(&world);
    assert_eq!(breaker(&reloads), Breaker::Closed);
}
