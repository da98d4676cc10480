//! The program says who it is.
//!
//! This file has a second reason to be there: cargo builds a package's program for `cargo test --workspace`
//! only if the package has an integration test, and the end-to-end tests in `tests/` start that program.

use std::process::Command;

fn output(args: &[&str]) -> (Option<i32>, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_gpu-manager"));
    let output = program
        .args(args)
        .output()
        .expect("the program can be started");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

#[test]
fn it_knows_its_version_and_its_exit_codes() {
    let version = format!("gpu-manager {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(output(&["--version"]), (Some(0), version));
    let (code, help) = output(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(help.contains("Exit codes:"), "{help}");
}
