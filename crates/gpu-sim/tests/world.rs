//! The whole broker under a few seeds. `gpu-manager-sim run` tells ten thousand lives; here it is made sure
//! that they can be told at all, and that they are always the same.

use gpu_sim::{tell, tell_all};

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
