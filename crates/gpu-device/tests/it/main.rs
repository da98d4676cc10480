//! The probe as the broker uses it: through the real child process.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails where the probe does not do what it should"
)]

mod children;
mod nvml;
mod support;
