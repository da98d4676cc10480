//! Saved files that go back and forth between policies are not followed for ever.
//!
//! Only switches by saved files count, and only those back to a policy that was live in the last minute.
//! After a rest the next file is on trial; whoever asks by hand closes the breaker.

use gpu_lease::{At, BootMs, Deadline, Ms};
use gpu_store::BreakerRow;

use super::state::Breaker;

/// A policy that was live so lately is one that is gone back to; so long a trial lasts.
pub(super) const WINDOW_MS: Ms = Ms::from_secs(60);
/// The so manieth switch back within [`WINDOW_MS`] is not made.
const BACK_MAX: usize = 6;
/// The first rest; each further one is twice as long.
const REST_MS: Ms = Ms::from_secs(60);
const REST_MAX_MS: Ms = Ms::from_secs(600);
/// So many policies of the last minute are remembered.
const RECENT_MAX: usize = 32;

/// Whether a saved file may go live that says the policy of `hash`. One that may not makes files rest.
///
/// # Errors
/// They rest, until then.
pub(super) fn admit(
    row: &mut BreakerRow,
    hash: &str,
    path: Option<&str>,
    at: At,
) -> Result<(), Deadline> {
    pass(row, at);
    if let Some(until) = row.open_until {
        return Err(until);
    }
    if !goes_back(row, hash, at) {
        return Ok(());
    }
    let failed_trial = row.on_trial && row.tried.is_some();
    if failed_trial || row.back.len() + 1 >= BACK_MAX {
        return Err(open(row, path, at));
    }
    Ok(())
}

/// A saved file made the policy of `hash` live, instead of that of `before`.
pub(super) fn saved_file_is_live(row: &mut BreakerRow, before: &str, hash: &str, at: At) {
    if goes_back(row, hash, at) {
        row.back.push(at.boot);
    }
    if row.on_trial && row.tried.is_none() {
        row.tried = Some(at.boot);
    }
    retire(row, before, at);
}

/// The policy of `hash` is no longer live.
pub(super) fn retire(row: &mut BreakerRow, hash: &str, at: At) {
    row.recent.push((hash.to_owned(), at.boot));
    if row.recent.len() > RECENT_MAX {
        row.recent.remove(0);
    }
}

/// Somebody asked: what went back and forth is forgiven.
pub(super) fn close(row: &mut BreakerRow) {
    *row = BreakerRow {
        recent: std::mem::take(&mut row.recent),
        ..BreakerRow::default()
    };
}

/// Time passed: a rest is over, or a trial went well. Whether anything changed for files.
pub(super) fn pass(row: &mut BreakerRow, at: At) -> bool {
    let fresh = |then: &BootMs| *then + WINDOW_MS > at.boot;
    row.recent.retain(|(_, until)| fresh(until));
    row.back.retain(fresh);
    if row.open_until.is_some_and(|until| until.boot <= at.boot) {
        row.open_until = None;
        row.on_trial = true;
        return true;
    }
    if row.tried.is_some_and(|tried| !fresh(&tried)) {
        close(row);
        return true;
    }
    false
}

/// For those who ask.
pub(super) fn shown(row: &BreakerRow) -> Breaker {
    match row.open_until {
        Some(until) => Breaker::Open {
            until: until.wall,
            culprit: row.culprit.clone(),
        },
        None if row.on_trial => Breaker::HalfOpen,
        None => Breaker::Closed,
    }
}

fn goes_back(row: &BreakerRow, hash: &str, at: At) -> bool {
    let lately = |until: BootMs| until + WINDOW_MS > at.boot;
    row.recent
        .iter()
        .any(|(recent, until)| recent == hash && lately(*until))
}

fn open(row: &mut BreakerRow, path: Option<&str>, at: At) -> Deadline {
    let twice = Ms(row.rest.0.saturating_mul(2));
    row.rest = twice.clamp(REST_MS, REST_MAX_MS);
    let until = at.after(row.rest);
    row.open_until = Some(until);
    row.on_trial = false;
    row.tried = None;
    row.back.clear();
    row.culprit = path.map(str::to_owned).or(row.culprit.take());
    until
}
