//! Errors on the wire: RFC 9457 problem details with a code that a program can act on.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::lease::Waiting;

/// Body of every error, as `application/problem+json`; what follows from the code is added when it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ProblemBody", into = "ProblemBody")]
pub struct Problem {
    /// What a program acts on.
    pub code: ErrorCode,
    /// What happened this time.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// When to try again, in milliseconds; also in `Retry-After`.
    pub retry_after_ms: Option<u64>,
    /// The lease concerned.
    pub lease: Option<String>,
    /// Why it does not fit, with who is in the way.
    pub waiting: Option<Box<Waiting>>,
}

/// What went wrong, as one word.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body is no JSON.
    BadJson,
    /// The path or the query is not understood.
    BadRequest,
    /// The body is larger than allowed.
    BodyTooLarge,
    /// Policy refuses the request.
    Denied,
    /// No device has room, and the caller does not wait.
    DoesNotFit,
    /// The lease is over.
    Ended,
    /// The caller may not do this.
    Forbidden,
    /// The Host header names another server.
    HostRefused,
    /// The key was used for another request.
    IdempotencyMismatch,
    /// A fault of the broker.
    Internal,
    /// The body is JSON, but no valid request.
    InvalidRequest,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// No device of this host could ever serve the request.
    NeverFits,
    /// No such path, lease or device.
    NotFound,
    /// The Origin header names a page that is not allowed.
    OriginRefused,
    /// Too much to do.
    Overloaded,
    /// The policy is not the one that the caller expected.
    PolicyChanged,
    /// The broker may not write the policy files.
    PolicyReadOnly,
    /// Too many wait.
    QueueFull,
    /// The broker has not seen its devices yet.
    Recovering,
    /// The request did not arrive in time.
    RequestTimeout,
    /// The broker started safe, after crashes, and grants nothing until it is started again.
    SafeStart,
    /// The broker is on its way out.
    ShuttingDown,
    /// Too many reloads wait for their turn.
    TooManyReloads,
    /// No token, or a wrong one.
    Unauthorized,
    /// The body is not `application/json`.
    UnsupportedMediaType,
    /// The wait ended without a grant.
    WaitOver,
    /// The lease is not in a state for this.
    WrongState,
}

/// What is always true of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The HTTP status.
    pub status: u16,
    /// The same request can succeed later.
    pub retryable: bool,
    /// The code in words.
    pub title: &'static str,
}

impl ErrorCode {
    /// Every code, in alphabetical order.
    pub const ALL: [Self; 28] = [
        Self::BadJson,
        Self::BadRequest,
        Self::BodyTooLarge,
        Self::Denied,
        Self::DoesNotFit,
        Self::Ended,
        Self::Forbidden,
        Self::HostRefused,
        Self::IdempotencyMismatch,
        Self::Internal,
        Self::InvalidRequest,
        Self::MethodNotAllowed,
        Self::NeverFits,
        Self::NotFound,
        Self::OriginRefused,
        Self::Overloaded,
        Self::PolicyChanged,
        Self::PolicyReadOnly,
        Self::QueueFull,
        Self::Recovering,
        Self::RequestTimeout,
        Self::SafeStart,
        Self::ShuttingDown,
        Self::TooManyReloads,
        Self::Unauthorized,
        Self::UnsupportedMediaType,
        Self::WaitOver,
        Self::WrongState,
    ];

    /// The one table of what codes mean to HTTP.
    pub const fn facts(self) -> Facts {
        let (status, retryable, title) = match self {
            Self::BadJson => (400, false, "the body is no JSON"),
            Self::BadRequest => (400, false, "the request is not understood"),
            Self::BodyTooLarge => (413, false, "the body is too large"),
            Self::Denied => (403, false, "policy refuses the request"),
            Self::DoesNotFit => (409, true, "no device has room now"),
            Self::Ended => (410, false, "the lease is over"),
            Self::Forbidden => (403, false, "the caller may not do this"),
            Self::HostRefused => (421, false, "the Host header names another server"),
            Self::IdempotencyMismatch => {
                (422, false, "the idempotency key belongs to another request")
            }
            Self::Internal => (500, true, "the broker failed"),
            Self::InvalidRequest => (422, false, "the request is not valid"),
            Self::MethodNotAllowed => (405, false, "the path has no such method"),
            Self::NeverFits => (
                422,
                false,
                "no device of this host could ever serve the request",
            ),
            Self::NotFound => (404, false, "there is no such thing"),
            Self::OriginRefused => (403, false, "the page's origin is not allowed"),
            Self::Overloaded => (503, true, "the broker has too much to do"),
            Self::PolicyChanged => (412, false, "the policy is not the expected one"),
            Self::PolicyReadOnly => (
                403,
                false,
                "the policy files cannot be written by the broker",
            ),
            Self::QueueFull => (429, true, "too many wait"),
            Self::Recovering => (503, true, "the broker has not seen its devices yet"),
            Self::RequestTimeout => (408, true, "the request did not arrive in time"),
            Self::SafeStart => (503, true, "the broker started safe and grants nothing"),
            Self::ShuttingDown => (503, true, "the broker is stopping"),
            Self::TooManyReloads => (429, true, "too many reloads wait"),
            Self::Unauthorized => (401, false, "a token is needed"),
            Self::UnsupportedMediaType => (415, false, "the body must be application/json"),
            Self::WaitOver => (408, true, "the wait ended without a grant"),
            Self::WrongState => (409, false, "it is not in a state for this"),
        };
        Facts {
            status,
            retryable,
            title,
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        self.facts().status
    }

    /// Whether the same request can succeed later.
    pub const fn is_retryable(self) -> bool {
        self.facts().retryable
    }

    /// The code as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadJson => "bad_json",
            Self::BadRequest => "bad_request",
            Self::BodyTooLarge => "body_too_large",
            Self::Denied => "denied",
            Self::DoesNotFit => "does_not_fit",
            Self::Ended => "ended",
            Self::Forbidden => "forbidden",
            Self::HostRefused => "host_refused",
            Self::IdempotencyMismatch => "idempotency_mismatch",
            Self::Internal => "internal",
            Self::InvalidRequest => "invalid_request",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::NeverFits => "never_fits",
            Self::NotFound => "not_found",
            Self::OriginRefused => "origin_refused",
            Self::Overloaded => "overloaded",
            Self::PolicyChanged => "policy_changed",
            Self::PolicyReadOnly => "policy_read_only",
            Self::QueueFull => "queue_full",
            Self::Recovering => "recovering",
            Self::RequestTimeout => "request_timeout",
            Self::SafeStart => "safe_start",
            Self::ShuttingDown => "shutting_down",
            Self::TooManyReloads => "too_many_reloads",
            Self::Unauthorized => "unauthorized",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::WaitOver => "wait_over",
            Self::WrongState => "wrong_state",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Problem {
    /// The problem of `code` with what happened this time.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            hint: None,
            retry_after_ms: None,
            lease: None,
            waiting: None,
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With when to try again, in milliseconds.
    #[must_use]
    pub fn with_retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Problem {}

impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        ProblemBody::schema()
    }
}

impl ToSchema for Problem {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ProblemBody::schemas(schemas);
    }
}

/// RFC 9457 problem details.
#[derive(Serialize, Deserialize, ToSchema)]
struct ProblemBody {
    /// `urn:gpu-manager:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The code in words; the same for every occurrence.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What a program acts on.
    code: ErrorCode,
    /// What happened this time.
    detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// The same request can succeed later.
    retryable: bool,
    /// When to try again, in milliseconds; also in `Retry-After`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// The lease concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    /// Why it does not fit, with who is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waiting: Option<Box<Waiting>>,
}

impl From<Problem> for ProblemBody {
    fn from(problem: Problem) -> Self {
        let Facts {
            status,
            retryable,
            title,
        } = problem.code.facts();
        Self {
            kind: format!("urn:gpu-manager:{}", problem.code),
            title: title.to_owned(),
            status,
            code: problem.code,
            detail: problem.detail,
            hint: problem.hint,
            retryable,
            retry_after_ms: problem.retry_after_ms,
            lease: problem.lease,
            waiting: problem.waiting,
        }
    }
}

impl From<ProblemBody> for Problem {
    fn from(body: ProblemBody) -> Self {
        Self {
            code: body.code,
            detail: body.detail,
            hint: body.hint,
            retry_after_ms: body.retry_after_ms,
            lease: body.lease,
            waiting: body.waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_they_are_serialised_and_in_order() {
        for pair in ErrorCode::ALL.windows(2) {
            assert!(
                pair[0].as_str() < pair[1].as_str(),
                "{} before {}",
                pair[0],
                pair[1]
            );
        }
        for code in ErrorCode::ALL {
            let json = serde_json::to_string(&code).expect("a string");
            assert_eq!(json, format!("\"{code}\""));
            assert!((400..600).contains(&code.status()), "{code}");
        }
    }

    #[test]
    fn a_problem_has_the_members_of_rfc_9457() {
        let problem =
            Problem::new(ErrorCode::DoesNotFit, "needs 12.0 GiB").with_hint("wait with `wait`");
        let json = serde_json::to_value(&problem).expect("plain data");
        for (member, value) in [
            ("type", serde_json::json!("urn:gpu-manager:does_not_fit")),
            ("status", serde_json::json!(409)),
            ("code", serde_json::json!("does_not_fit")),
            ("retryable", serde_json::json!(true)),
            ("detail", serde_json::json!("needs 12.0 GiB")),
        ] {
            assert_eq!(json[member], value, "{member}");
        }
        assert_eq!(
            serde_json::from_value::<Problem>(json).expect("its own text"),
            problem
        );
    }
}
