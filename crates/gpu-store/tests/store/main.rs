//! Stores from outside: what all of them do, and what a file survives.
#![expect(clippy::unwrap_used, reason = "a test fails where its own steps fail")]

mod conformance;
mod examples;
mod files;
mod format;
mod generated;
mod history;
mod inspect;
mod plateau;
#[cfg(feature = "crash-disk")]
mod power_cuts;
mod remains;
