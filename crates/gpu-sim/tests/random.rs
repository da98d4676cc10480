//! The books against the reference, over random transitions.
//!
//! `GPU_SIM_SEED` and `GPU_SIM_STEPS` say where to start and how far to go; a failure prints the seed.

use gpu_sim::{Failure, Run, Simulation, run};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

/// The seed when nothing else is said.
const SEED: u64 = 0x5eed;
/// Transitions of each part when nothing else is said.
const STEPS: u64 = 60_000;

#[test]
fn the_books_agree_with_the_reference_first_part() {
    agree(1);
}

#[test]
fn the_books_agree_with_the_reference_second_part() {
    agree(2);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| run(seed, 1_000, true).expect("nothing fails").trace;
    assert_eq!(trace(42), trace(42));
    assert_ne!(trace(42), trace(43));
}

proptest! {
    #![proptest_config(short_lives())]

    /// The same once more with a generator that shrinks: each number decides one step.
    #[test]
    fn short_lives_agree(world in any::<u64>(), steps in prop::collection::vec(any::<u64>(), 1..100)) {
        let mut life = Simulation::new(world, false);
        for bits in steps {
            life.step(bits).map_err(TestCaseError::fail)?;
        }
    }
}

fn short_lives() -> Config {
    Config {
        cases: 64,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed()),
        ..Config::default()
    }
}

fn agree(part: u64) {
    let seed = seed().wrapping_mul(part);
    let steps = number("GPU_SIM_STEPS").unwrap_or(STEPS);
    let run = run(seed, steps, false).unwrap_or_else(|failure| panic!("{}", again(failure)));
    println!("seed {seed}, {} transitions\n{}", run.steps, run.coverage);
    // Which seed reaches everything in how many steps is luck; the usual one does.
    if seed == SEED.wrapping_mul(part) && steps >= STEPS {
        reaches_everything(&run);
    }
}

fn seed() -> u64 {
    number("GPU_SIM_SEED").unwrap_or(SEED)
}

/// The same run with a trace, to show what led to the failure.
fn again(failure: Failure) -> Failure {
    run(failure.seed, failure.steps, true)
        .err()
        .unwrap_or(failure)
}

fn reaches_everything(run: &Run) {
    let missing: Vec<&&str> = WANTED
        .iter()
        .filter(|word| !run.coverage.has(word))
        .collect();
    assert!(missing.is_empty(), "never reached: {missing:?}");
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: `{text}`")),
    )
}

/// What a run must reach. `preempted` is not among it: nothing preempts yet.
const WANTED: &[&str] = &[
    "acquire -> active",
    "acquire -> denied by policy",
    "acquire -> does not fit",
    "acquire -> idempotency mismatch",
    "acquire -> never fits",
    "acquire -> queue full",
    "acquire -> recovering",
    "acquire -> waiting",
    "cordon -> unknown device",
    "drain_lease -> draining",
    "drain_lease -> not granted",
    "effect kill",
    "effect read",
    "effect term",
    "effect watch",
    "emergency -> some ended",
    "end cancelled",
    "end denied",
    "end device_lost",
    "end emergency",
    "end expired",
    "end host_rebooted",
    "end max_hold",
    "end policy",
    "end process_gone",
    "end released",
    "end revoked",
    "end wait_timeout",
    "event device_overcommitted",
    "event lease_quarantined",
    "event lease_ready",
    "event lease_stuck",
    "event lease_unresponsive",
    "event lease_withdrawn",
    "explain -> denied by policy",
    "explain -> does not fit",
    "explain -> never fits",
    "explain -> queue full",
    "explain -> recovering",
    "explain -> would be granted",
    "fate denied by capacity",
    "fate denied by class",
    "fate denied by rule",
    "fate denied by tenant",
    "fate drain by class",
    "fate drain by device",
    "fate drain by nothing",
    "fate drain by quota of tenant",
    "fate drain by reserve of",
    "fate drain by rule",
    "fate drain by tenant",
    "fate force",
    "fate keep",
    "fate shorten",
    "fate unenforceable",
    "fate withdraw",
    "rebuilt from rows",
    "renew -> draining",
    "renew -> has ended",
    "renew -> waiting",
    "restart",
    "revoke -> reclaiming",
    "set_policy -> the same policy",
    "set_policy -> unexpected",
    "stage quarantined",
    "stage stuck",
    "stage verifying",
    "switch by an earlier plan",
    "waits awaiting_reading",
    "waits behind_head",
    "waits capacity",
    "waits cordoned",
    "waits device_lost",
    "waits held_by_rule",
    "waits held_for_head",
    "waits load_slot",
    "waits no_device",
    "waits quota",
    "waits recovering",
];
