//! Waiting for what must come about, and for what must not.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything that must come about may take.
pub const SOON: Duration = Duration::from_secs(15);

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Asks until there is an answer.
///
/// # Panics
/// If there is none within [`SOON`].
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {SOON:?}: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// Looks for all of `length` whether it holds: for stories in which time itself has to pass.
///
/// # Panics
/// As soon as it does not hold.
pub fn for_as_long(length: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + length;
    while Instant::now() < end {
        assert!(holds(), "no longer: {what}");
        thread::sleep(LOOK_EVERY);
    }
}
