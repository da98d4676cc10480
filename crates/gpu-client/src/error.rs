//! What can go wrong between a client and its broker.

use std::io;
use std::time::Duration;

use gpu_api::{ErrorCode, Problem};

use crate::endpoint::Endpoint;

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection broke before the whole answer was there.
    #[error("the connection to {endpoint} broke: {source}")]
    Lost {
        /// Where the broker was.
        endpoint: Endpoint,
        /// How it broke.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Somebody answers who is no gpu-manager, or another version of it.
    #[error("what answers at {endpoint} is no gpu-manager: {detail}")]
    NotABroker {
        /// Where it answers.
        endpoint: Endpoint,
        /// What gives it away.
        detail: String,
    },
    /// The broker says no.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The broker took the call and was silent.
    #[error("the broker at {endpoint} lives, but does not answer within {} s", after.as_secs())]
    TimedOut {
        /// Where the broker is.
        endpoint: Endpoint,
        /// How long it was waited for.
        after: Duration,
    },
    /// Nobody listens there.
    #[error("no broker answers at {endpoint}: {source}")]
    Unreachable {
        /// Where nobody listens.
        endpoint: Endpoint,
        /// What the system said.
        source: io::Error,
    },
}

impl ClientError {
    /// The code of the broker's answer, if it answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            Self::Lost { .. }
            | Self::NotABroker { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. } => None,
        }
    }

    /// Whether the broker is down, on its way up, or on its way out: the same call can succeed later.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::TimedOut { .. } | Self::Unreachable { .. } => true,
            Self::NotABroker { .. } => false,
            Self::Problem(problem) => problem.code.status() == 503,
        }
    }
}
