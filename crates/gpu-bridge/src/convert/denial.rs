//! Every way in which the broker says no, as a problem. One function per operation, no wildcard: what the
//! core learns to refuse must find its words here.

use gpu_api::{ErrorCode, Problem, Waiting};
use gpu_broker::{
    AcquireError, DeviceCommandError, LeaseCommandError, RollbackError, SetOverrideError,
    Unavailable,
};
use gpu_lease::{At, Denial, EndReason, LeaseError, LeaseId, Ms, Why};

use super::Scene;
use crate::app::{PolicyFilesError, safe_start_problem};
use crate::shown::shown;

const RETRY_SOON_MS: u64 = 1000;
const RETRY_LATE_MS: u64 = 60_000;

/// The broker does not take a command.
pub(crate) fn unavailable(why: Unavailable) -> Problem {
    let code = match why {
        Unavailable::Overloaded => ErrorCode::Overloaded,
        Unavailable::Recovering => ErrorCode::Recovering,
        Unavailable::Stopping => ErrorCode::ShuttingDown,
    };
    Problem::new(code, why.to_string()).with_retry_after_ms(RETRY_SOON_MS)
}

/// A request was not taken.
pub(crate) fn acquire_refused(error: &AcquireError, scene: &Scene<'_>) -> Problem {
    match error {
        AcquireError::Denied(denial) => denied(denial, scene),
        AcquireError::Unavailable(Unavailable::Overloaded) => Problem::new(
            ErrorCode::QueueFull,
            "too many requests for leases are on their way",
        )
        .with_retry_after_ms(RETRY_SOON_MS),
        AcquireError::Unavailable(why @ (Unavailable::Recovering | Unavailable::Stopping)) => {
            unavailable(*why)
        }
    }
}

/// A command about a lease was not done.
pub(crate) fn lease_refused(error: &LeaseCommandError, id: LeaseId) -> Problem {
    match error {
        LeaseCommandError::Refused(LeaseError::Ended(reason)) => {
            let mut problem = Problem::new(
                ErrorCode::Ended,
                format!("lease `{id}` has ended: {reason}"),
            );
            problem.lease = Some(id.to_string());
            problem.with_hint("ask for another lease")
        }
        LeaseCommandError::Refused(LeaseError::NotFound) => no_such_lease(id),
        LeaseCommandError::Refused(LeaseError::NotGranted) => Problem::new(
            ErrorCode::WrongState,
            format!("lease `{id}` waits and holds nothing"),
        ),
        LeaseCommandError::Unavailable(why) => unavailable(*why),
    }
}

/// A command about a device was not done.
pub(crate) fn device_refused(error: &DeviceCommandError) -> Problem {
    match error {
        DeviceCommandError::Unavailable(why) => unavailable(*why),
        DeviceCommandError::Unknown(unknown) => no_such_device(unknown.0.id.as_str()),
    }
}

pub(crate) fn no_such_lease(id: LeaseId) -> Problem {
    Problem::new(ErrorCode::NotFound, format!("no lease `{id}`"))
        .with_hint("leases are forgotten 24 hours after their end")
}

pub(crate) fn no_such_device(id: &str) -> Problem {
    Problem::new(ErrorCode::NotFound, format!("no device `{}`", shown(id)))
        .with_hint("`GET /v1/devices` lists them")
}

/// A policy was not taken back.
pub(crate) fn rollback_refused(error: &RollbackError) -> Problem {
    let code = match error {
        RollbackError::NothingBefore => ErrorCode::WrongState,
        RollbackError::NotKept { .. } => ErrorCode::NotFound,
    };
    Problem::new(code, error.to_string())
}

/// Settings were not put above the others.
pub(crate) fn override_refused(error: &SetOverrideError) -> Problem {
    match error {
        SetOverrideError::Malformed(_) | SetOverrideError::Ttl | SetOverrideError::TooMany => {
            Problem::new(ErrorCode::InvalidRequest, error.to_string())
        }
    }
}

/// Policy files were not written.
pub(crate) fn policy_files_refused(error: &PolicyFilesError) -> Problem {
    let code = match error {
        PolicyFilesError::Failed(_) => ErrorCode::Internal,
        PolicyFilesError::Name { .. } => ErrorCode::InvalidRequest,
        PolicyFilesError::ReadOnly(_) => ErrorCode::PolicyReadOnly,
    };
    let problem = Problem::new(code, error.to_string());
    match error {
        PolicyFilesError::ReadOnly(_) => {
            problem.with_hint("edit them where they come from; a reload reads them")
        }
        PolicyFilesError::Failed(_) | PolicyFilesError::Name { .. } => problem,
    }
}

/// A wait on a connection ended without a grant.
pub(crate) fn over(reason: EndReason, waited: Ms, last: Option<Waiting>) -> Problem {
    let sentence = last.as_ref().map(|waiting| waiting.reason.clone());
    let mut problem = match reason {
        EndReason::WaitTimeout if waited == Ms(0) => {
            does_not_fit(sentence.unwrap_or_else(|| "no device has room now".to_owned()))
        }
        EndReason::WaitTimeout => wait_over(waited, sentence),
        EndReason::Denied => Problem::new(ErrorCode::Denied, "a new policy refuses the request"),
        EndReason::Cancelled
        | EndReason::DeviceLost
        | EndReason::Emergency
        | EndReason::Expired
        | EndReason::HostRebooted
        | EndReason::MaxHold
        | EndReason::Policy
        | EndReason::Preempted
        | EndReason::ProcessGone
        | EndReason::Released
        | EndReason::Revoked => {
            Problem::new(ErrorCode::Ended, format!("the request was ended: {reason}"))
        }
    };
    problem.waiting = last.map(Box::new);
    problem
}

/// The books refuse a request.
pub(super) fn denied(denial: &Denial, scene: &Scene<'_>) -> Problem {
    let plain = |code| Problem::new(code, denial.to_string());
    match denial {
        Denial::ByPolicy { rule, .. } => plain(ErrorCode::Denied).with_hint(format!(
            "`{rule}` of the policy refuses it; `GET /v1/policy` shows the files"
        )),
        Denial::DoesNotFit(why) => {
            let mut problem =
                does_not_fit(why.to_string()).with_retry_after_ms(retry_after_ms(why, scene.now));
            problem.waiting = Some(Box::new(scene.reason(why)));
            problem
        }
        Denial::IdempotencyMismatch => {
            plain(ErrorCode::IdempotencyMismatch).with_hint("take a fresh key for another request")
        }
        Denial::NeverFits(_) => plain(ErrorCode::NeverFits)
            .with_hint("ask for less; `GET /v1/devices` shows what there is"),
        Denial::QueueFull { .. } => plain(ErrorCode::QueueFull).with_retry_after_ms(RETRY_SOON_MS),
        Denial::Recovering => scene.safe_start.map_or_else(
            || plain(ErrorCode::Recovering).with_retry_after_ms(RETRY_SOON_MS),
            safe_start_problem,
        ),
    }
}

fn does_not_fit(sentence: String) -> Problem {
    Problem::new(ErrorCode::DoesNotFit, sentence)
        .with_hint("wait with `\"wait\": \"5m\"`, or queue with `\"queue\": true`")
}

fn wait_over(waited: Ms, sentence: Option<String>) -> Problem {
    let detail = match sentence {
        Some(sentence) => format!("no grant within {waited}: {sentence}"),
        None => format!("no grant within {waited}"),
    };
    Problem::new(ErrorCode::WaitOver, detail)
}

/// When the request can start, if that is known; not sooner than a second, not later than a minute.
fn retry_after_ms(why: &Why, now: At) -> u64 {
    let known = why.start.map(|start| (start - now.boot).0);
    known.map_or(RETRY_SOON_MS, |ms| ms.clamp(RETRY_SOON_MS, RETRY_LATE_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_waits_have_their_status() {
        for (reason, waited, code) in [
            (EndReason::WaitTimeout, Ms(0), ErrorCode::DoesNotFit),
            (EndReason::WaitTimeout, Ms(5), ErrorCode::WaitOver),
            (EndReason::Denied, Ms(5), ErrorCode::Denied),
            (EndReason::Emergency, Ms(5), ErrorCode::Ended),
            (EndReason::Cancelled, Ms(5), ErrorCode::Ended),
        ] {
            assert_eq!(
                over(reason, waited, None).code,
                code,
                "{reason} after {waited}"
            );
        }
    }

    #[test]
    fn refusals_of_commands_have_their_status() {
        let id = LeaseId::from_bits(1);
        for (error, code) in [
            (
                LeaseCommandError::Refused(LeaseError::Ended(EndReason::Expired)),
                ErrorCode::Ended,
            ),
            (
                LeaseCommandError::Refused(LeaseError::NotFound),
                ErrorCode::NotFound,
            ),
            (
                LeaseCommandError::Refused(LeaseError::NotGranted),
                ErrorCode::WrongState,
            ),
            (
                LeaseCommandError::Unavailable(Unavailable::Overloaded),
                ErrorCode::Overloaded,
            ),
            (
                LeaseCommandError::Unavailable(Unavailable::Stopping),
                ErrorCode::ShuttingDown,
            ),
        ] {
            assert_eq!(lease_refused(&error, id).code, code, "{error}");
        }
    }
}
