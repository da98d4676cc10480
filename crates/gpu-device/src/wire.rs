//! What parent and child say to each other: one JSON value on a line.
//!
//! The first line to a serving child is [`Settings`]; each line after it is an [`Ask`], and each is
//! answered by one line: what every source of the child said.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::source::SourceName;

/// What the child has to know before the first question.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Absent where NVML is switched off.
    pub(crate) nvml_library: Option<PathBuf>,
    pub(crate) sysfs: PathBuf,
}

/// A question, with a number that the answer repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) number: u64,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    Discover,
    Read,
}

/// The answer to an [`Ask`]: `T` is [`Discovery`](crate::source::Discovery) or
/// [`Readings`](crate::source::Readings).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer<T> {
    pub(crate) number: u64,
    pub(crate) sources: Vec<Said<T>>,
}

/// What one source said: an answer, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Said<T> {
    pub(crate) source: SourceName,
    pub(crate) result: Result<T, String>,
}
