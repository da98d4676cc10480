//! `gpu-manager probe`: the process that talks to the drivers.

use std::process::ExitCode;

/// Answers the broker that started it, until its pipe closes.
pub(crate) fn run(args: &[String]) -> ExitCode {
    eprintln!("gpu-manager: this build has no probe ({args:?})");
    ExitCode::FAILURE
}
