//! Every life of two clients. `gpu-manager-sim exhaustive` walks through those of three.

use gpu_sim::exhaustive::{Case, check};

#[test]
fn every_life_of_two_clients_is_sound() {
    let report = check(Case::small());
    println!("{report}");
    assert!(report.is_good() && report.whole, "{report}");
}

#[test]
fn every_life_with_a_drain_is_sound() {
    let report = check(Case::drain());
    println!("{report}");
    assert!(report.is_good() && report.whole, "{report}");
}

#[test]
fn what_is_too_large_is_walked_through_in_part() {
    let report = check(Case::large(20_000));
    println!("{report}");
    assert!(report.is_good() && !report.whole, "{report}");
}
