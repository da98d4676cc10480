//! Why the broker does not start, or does not go on: a message with a hint, and the exit code that says so to a
//! supervisor.

use std::process::ExitCode;

use gpu_broker::{Fatal, StartError};
use gpu_store::OpenError;

use crate::cli::exit;

/// The end of a broker that nobody asked for.
#[derive(Debug)]
pub(super) struct Trouble {
    code: u8,
    text: String,
}

impl Trouble {
    /// Another broker has what this one needs.
    pub(super) fn in_use(text: impl Into<String>) -> Self {
        Self::new(exit::IN_USE, text)
    }

    /// The state directory, and the store in it, cannot be used.
    pub(super) fn store_unusable(text: impl Into<String>) -> Self {
        Self::new(exit::STORE_UNUSABLE, text)
    }

    /// Whether this is no accident of the host, but a fault of the broker, like a crash.
    pub(super) fn is_own_fault(&self) -> bool {
        self.code == exit::BOOKS_BROKEN
    }

    fn new(code: u8, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// Its first line.
    pub(super) fn summary(&self) -> &str {
        let text = self.text.strip_prefix("error: ").unwrap_or(&self.text);
        text.lines().next().unwrap_or_default()
    }

    /// Says it on standard error.
    pub(super) fn report(&self) -> ExitCode {
        // Diagnostics of a policy say themselves that they are errors.
        let text = self.text.strip_prefix("error: ").unwrap_or(&self.text);
        eprintln!("error: {text}");
        ExitCode::from(self.code)
    }
}

/// What is wrong with configuration, policy or the host.
impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Self::new(exit::REFUSED, text)
    }
}

impl From<OpenError> for Trouble {
    fn from(error: OpenError) -> Self {
        let text = with_hint(&error, error.hint());
        match error {
            OpenError::InUse { .. } => Self::in_use(text),
            OpenError::Compact { .. }
            | OpenError::Corrupt { .. }
            | OpenError::Create { .. }
            | OpenError::Empty { .. }
            | OpenError::Foreign { .. }
            | OpenError::Missing { .. }
            | OpenError::Newer { .. }
            | OpenError::NotAFile { .. }
            | OpenError::Unreadable { .. } => Self::store_unusable(text),
        }
    }
}

/// Of a broker that had started.
impl From<&Fatal> for Trouble {
    fn from(fatal: &Fatal) -> Self {
        let code = match fatal {
            Fatal::Books(_) => exit::BOOKS_BROKEN,
            Fatal::Store(_) => exit::STORE_FAILED,
        };
        Self::new(code, with_hint(fatal, fatal.hint()))
    }
}

impl From<StartError> for Trouble {
    fn from(error: StartError) -> Self {
        match &error {
            StartError::Read(why) => Self::store_unusable(with_hint(why, why.hint())),
            StartError::Write(fatal @ Fatal::Store(_)) => {
                Self::store_unusable(with_hint(fatal, fatal.hint()))
            }
            StartError::Write(fatal @ Fatal::Books(_)) => Self::from(fatal),
            StartError::LastGood { .. } | StartError::Policy(_) | StartError::Thread(_) => {
                Self::from(error.to_string())
            }
        }
    }
}

fn with_hint(error: &dyn std::error::Error, hint: &str) -> String {
    format!("{error}\nhint: {hint}")
}
