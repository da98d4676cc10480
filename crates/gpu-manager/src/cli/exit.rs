//! Exit codes, and the failure that leads to one.

use std::process::ExitCode;

use gpu_api::{ErrorCode, ReloadOutcome};
use gpu_client::ClientError;

/// Done as asked.
pub(crate) const OK: u8 = 0;
/// The broker says no, or what was checked has errors.
pub(crate) const REFUSED: u8 = 1;
/// The arguments are not understood. `run` says [`OWN_FAILURE`] instead.
pub(crate) const USAGE: u8 = 2;
/// No broker answers, or it is on its way up or out. `run` says [`OWN_FAILURE`] instead.
pub(crate) const NO_BROKER: u8 = 3;
/// `gpu-manager --hot-reload` found no broker, started one, and that one stopped well.
pub(crate) const STARTED: u8 = 4;
/// A policy waits for a confirmation: it would touch held leases.
pub(crate) const NEEDS_CONFIRMATION: u8 = 5;
/// The policy or the plan is not the one that was expected: nothing changed.
pub(crate) const MOVED: u8 = 6;
/// `release --emergency`: a broker lives and does not answer; what was done is said.
pub(crate) const HUNG: u8 = 7;
/// `serve`, at its start, and `release --emergency`: the store cannot be opened, read or written.
pub(crate) const STORE_UNUSABLE: u8 = 8;
/// `serve`: another broker has the store, the socket or a device, or somebody has the port.
pub(crate) const IN_USE: u8 = 9;
/// `serve`: the store failed while the broker ran. What was answered before is stored.
pub(crate) const STORE_FAILED: u8 = 10;
/// `serve`: the books contradicted themselves. Nothing of that was stored or answered.
pub(crate) const BOOKS_BROKEN: u8 = 11;
/// `run` and `acquire`: the wait ended without a grant. `policy explain`: it would have to wait.
pub(crate) const WAIT_OVER: u8 = 124;
/// `run`: gpu-manager itself failed. Any code that is not listed here is the child's.
pub(crate) const OWN_FAILURE: u8 = 125;
/// `run`: the command cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// `run`: the command is not found.
pub(crate) const NOT_FOUND: u8 = 127;
/// A process that a signal ended exits with this plus the signal's number.
pub(crate) const SIGNAL_BASE: u8 = 128;

/// What the help of the program says about exit codes.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done as asked
  1    the broker says no, what was checked has errors, or `policy diff` found a difference
  2    the arguments are not understood
  3    no broker answers, or it is on its way up or out
  4    --hot-reload started a broker, and that one stopped well
  5    a policy waits for a confirmation: it would touch held leases
  6    the policy or the plan is not the one that was expected: nothing changed
  7    release --emergency: a broker lives and does not answer; what was done is said
  8    serve, at its start, and release --emergency: the store cannot be opened, read or written
  9    serve: another broker has the store, the socket or a device, or somebody has the port
  10   serve: the store failed while the broker ran; what was answered before is stored
  11   serve: the books contradicted themselves; nothing of that was stored or answered
  124  run, acquire: the wait ended without a grant; policy explain: the request would have to wait
  125  run: gpu-manager itself failed
  126  run: the command cannot be executed
  127  run: the command is not found
  else run: the command's own code, or 128 and the number of the signal that ended it";

/// What the help of the verbs that load policies says about exit codes.
pub(crate) const LOADING_HELP: &str = "\
Exit codes:
  0  the policy is in force, or was before
  1  refused: it does not compile, rests, or somebody said no
  5  it waits for a confirmation: it would touch held leases
  6  moved: the policy or the plan is not the one that was expected, and nothing changed";

/// What the help of `policy explain` says about exit codes.
pub(crate) const EXPLAIN_HELP: &str = "\
Exit codes, as those of an `acquire` that does not wait:
  0    it would be granted now
  1    it would be refused
  3    no broker answers, or it has not seen its devices yet
  124  it would have to wait";

/// Why a verb failed, for a person, and the code that says so to a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// One of the constants of this module.
    pub(crate) code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure with a code of this module.
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The broker says no, or what was checked has errors.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(REFUSED, message)
    }

    /// The arguments contradict each other, or the world.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// gpu-manager itself failed.
    pub(crate) fn own(message: impl Into<String>) -> Self {
        Self::new(OWN_FAILURE, message)
    }

    /// With what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With one more thing that is so.
    #[must_use]
    pub(crate) fn and(mut self, also: &str) -> Self {
        self.message = format!("{}; {also}", self.message);
        self
    }

    /// The same failure at the end of a wait that somebody limited.
    #[must_use]
    pub(crate) fn of_wait(mut self) -> Self {
        self.code = WAIT_OVER;
        self.message = format!("the wait is over without a grant: {}", self.message);
        self
    }

    /// The same failure of a supervisor, whose codes below 124 are the child's.
    #[must_use]
    pub(crate) fn of_supervisor(mut self) -> Self {
        if self.code < WAIT_OVER {
            self.code = OWN_FAILURE;
        }
        self
    }

    /// Says it on standard error.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("gpu-manager: {}", self.message);
        }
        if let Some(hint) = &self.hint {
            eprintln!("  hint: {hint}");
        }
        ExitCode::from(self.code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::Unreachable { .. } => Self::new(NO_BROKER, error.to_string()).hint(
                "start one with `gpu-manager serve`, or say where it is with GPU_MANAGER_URL (`http://HOST:PORT` or `unix:/PATH`)",
            ),
            ClientError::NotABroker { .. } => Self::new(NO_BROKER, error.to_string())
                .hint("another program has this port: say where the broker is with GPU_MANAGER_URL"),
            ClientError::TimedOut { .. } => Self::new(NO_BROKER, error.to_string()).hint(
                "see what it does (its log, `ps`), it may yet do what it was asked; `gpu-manager release --emergency --takeover` ends it and frees what is stuck, on its host; where its address is given, `--state-dir DIR` must say where its state is",
            ),
            ClientError::Lost { .. } => Self::new(NO_BROKER, error.to_string()),
            ClientError::Problem(problem) => {
                let failure = Self::new(code_of(problem.code), problem.detail.clone());
                match hint_of(problem.code).or(problem.hint.as_deref()) {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                }
            }
        }
    }
}

/// What to do at a command line, where that differs from what a program does.
fn hint_of(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::DoesNotFit => {
            Some("wait for it with `--wait-timeout 5m`; `gpu-manager leases` shows who holds what")
        }
        ErrorCode::NeverFits => Some("ask for less; `gpu-manager devices` shows what there is"),
        ErrorCode::Unauthorized => {
            Some("set GPU_MANAGER_TOKEN to what `gpu-manager token show` says on the broker's host")
        }
        _ => None,
    }
}

/// What a broker that says no for this reason makes the program exit with.
pub(crate) fn code_of(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::DoesNotFit | ErrorCode::WaitOver => WAIT_OVER,
        ErrorCode::PolicyChanged => MOVED,
        ErrorCode::Recovering | ErrorCode::ShuttingDown => NO_BROKER,
        ErrorCode::BadJson
        | ErrorCode::BadRequest
        | ErrorCode::BodyTooLarge
        | ErrorCode::Denied
        | ErrorCode::Ended
        | ErrorCode::Forbidden
        | ErrorCode::HostRefused
        | ErrorCode::IdempotencyMismatch
        | ErrorCode::Internal
        | ErrorCode::InvalidRequest
        | ErrorCode::MethodNotAllowed
        | ErrorCode::NeverFits
        | ErrorCode::NotFound
        | ErrorCode::OriginRefused
        | ErrorCode::Overloaded
        | ErrorCode::PolicyReadOnly
        | ErrorCode::QueueFull
        | ErrorCode::RequestTimeout
        // It answers, and says no until a person has looked after it.
        | ErrorCode::SafeStart
        | ErrorCode::TooManyReloads
        | ErrorCode::Unauthorized
        | ErrorCode::UnsupportedMediaType
        | ErrorCode::WrongState => REFUSED,
    }
}

/// What the outcome of loading a policy exits with.
pub(crate) fn code_of_outcome(outcome: ReloadOutcome) -> u8 {
    match outcome {
        ReloadOutcome::Applied
        | ReloadOutcome::RolledBack
        | ReloadOutcome::Running
        | ReloadOutcome::Unchanged => OK,
        ReloadOutcome::Failed | ReloadOutcome::Rejected | ReloadOutcome::Resting => REFUSED,
        ReloadOutcome::Moved => MOVED,
        ReloadOutcome::NeedsConfirmation => NEEDS_CONFIRMATION,
    }
}

#[cfg(test)]
mod tests {
    use gpu_api::Problem;

    use super::*;

    #[test]
    fn problems_lead_to_documented_codes() {
        let table = [
            (ErrorCode::WaitOver, WAIT_OVER, WAIT_OVER),
            (ErrorCode::DoesNotFit, WAIT_OVER, WAIT_OVER),
            (ErrorCode::Denied, REFUSED, OWN_FAILURE),
            (ErrorCode::PolicyChanged, MOVED, OWN_FAILURE),
            (ErrorCode::Recovering, NO_BROKER, OWN_FAILURE),
            (ErrorCode::SafeStart, REFUSED, OWN_FAILURE),
        ];
        for (code, alone, supervising) in table {
            let failure = Failure::from(ClientError::Problem(Box::new(Problem::new(code, "x"))));
            assert_eq!(failure.code, alone, "{code}");
            assert_eq!(failure.of_supervisor().code, supervising, "{code}");
        }
    }

    #[test]
    fn the_way_out_of_a_broker_that_hangs_works_with_an_address_too() {
        let at = gpu_client::Endpoint::Unix("/run/x.sock".into());
        let failure = Failure::from(ClientError::TimedOut {
            endpoint: at,
            after: std::time::Duration::from_secs(5),
        });
        let hint = failure.hint.unwrap_or_default();
        for part in ["--emergency --takeover", "--state-dir DIR"] {
            assert!(hint.contains(part), "{hint}");
        }
    }

    #[test]
    fn the_help_says_that_an_emergency_may_find_a_store_that_cannot_be_opened() {
        let line = HELP.lines().find(|line| line.starts_with("  8 "));
        assert!(line.is_some_and(|line| line.contains("release --emergency")));
    }
}
