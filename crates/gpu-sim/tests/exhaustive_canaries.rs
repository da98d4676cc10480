//! The bugs that are planted in the books are found by walking through every life. Those that need a batch, a wall
//! clock or a policy switch are for the simulation of the loop.
#![cfg(feature = "canaries")]

use gpu_lease::canary::{Canary, plant};
use gpu_sim::exhaustive::{Case, Rule, check};

/// One test, because a bug is planted in the whole process.
#[test]
fn bugs_in_the_books_are_found() {
    let bugs = [
        (Canary::FenceNotStored, Rule::Rows, Case::small()),
        (Canary::FreeBeforeVerify, Rule::Verified, Case::small()),
        (Canary::RenewAfterExpiry, Rule::Over, Case::small()),
        (Canary::LostWakeUp, Rule::Served, Case::small()),
        (Canary::WaiterBoundToDeadClient, Rule::Over, Case::small()),
        (Canary::RestartForgetsDraining, Rule::Rows, Case::drain()),
        (
            Canary::EmergencyForgetsFence,
            Rule::Emergency,
            Case::small(),
        ),
        (
            Canary::RecoveryDropsUnknownDevice,
            Rule::Causes,
            Case::small(),
        ),
    ];
    for (canary, rule, case) in bugs {
        plant(Some(canary));
        let report = check(case);
        plant(None);
        println!("{canary:?}: {report}");
        let broken = report.broken.map(|broken| broken.rule);
        assert_eq!(broken, Some(rule), "{canary:?}");
    }
}
