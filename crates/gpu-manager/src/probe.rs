//! `gpu-manager probe`: the process that talks to the drivers.

use std::process::ExitCode;

use gpu_device::child;

/// Answers the broker that started it, until its pipe closes.
pub(crate) fn run(args: &[String]) -> ExitCode {
    let enumerate = args.iter().any(|arg| arg == child::ENUMERATE_FLAG);
    let result = if enumerate {
        child::enumerate()
    } else {
        child::serve()
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu-manager probe: {error}");
            ExitCode::FAILURE
        }
    }
}
