//! The whole broker under a few seeds. `gpu-manager-sim run` tells ten thousand lives; here it is made sure
//! that they can be told at all, and that they are always the same.

use gpu_sim::{fails, tell, tell_all};

/// Lives that once did not go well, with how long each was. What was wrong is held by tests of its own, and a
/// seed tells another life whenever the simulation learns something: these go on being told all the same.
const ONCE_FAILED: [(u64, u64); 6] = [
    (333, 2000),
    (1208, 2000),
    (2262, 2000),
    (3384, 2000),
    (4751, 2000),
    (4860, 2000),
];

#[test]
fn a_few_lives_go_well() {
    let stats = tell_all(0..8, 600).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{stats}");
    assert_eq!((stats.seeds, stats.steps), (8, 8 * 600));
    assert!(stats.crashes > 0 && stats.switches > 0 && stats.granted > 0);
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for seed in [3, 4, 5] {
        let [first, second] = [(); 2].map(|()| tell(seed, 500, true).expect("it goes well"));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(first.disk, second.disk, "seed {seed}");
        assert_eq!(first.stats, second.stats, "seed {seed}");
    }
    let [one, other] = [3, 4].map(|seed| tell(seed, 500, true).expect("it goes well"));
    assert_ne!(one.disk, other.disk);
}

#[test]
fn lives_that_once_failed_go_well() {
    for (seed, steps) in ONCE_FAILED {
        assert_eq!(fails(seed, steps), None, "seed {seed}, {steps} steps");
    }
}
