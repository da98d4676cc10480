//! A host with fake cards, and the real probe program.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use gpu_device::{Config, Limits, Probe, ProbeCommand};
use tempfile::TempDir;

/// How long anything that must come about may take.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A directory with the file that the fake library reads.
pub(crate) struct Host {
    directory: TempDir,
}

impl Host {
    pub(crate) fn new(nvml: &str) -> Self {
        let host = Self {
            directory: TempDir::new().expect("a temporary directory can be made"),
        };
        host.write(nvml);
        host
    }

    /// What the fake library says from now on.
    pub(crate) fn write(&self, nvml: &str) {
        let draft = self.directory.path().join("draft");
        fs::write(&draft, nvml).expect("the directory is writable");
        fs::rename(draft, self.nvml_toml()).expect("both are in one directory");
    }

    /// The probe program with the fake library's file in its environment.
    pub(crate) fn command(&self) -> ProbeCommand {
        let file = format!("FAKE_NVML_CONFIG={}", self.nvml_toml().display());
        let program = env!("CARGO_BIN_EXE_gpu-device-probe").to_owned();
        // Of what a child says only the end is kept, which should not be a backtrace.
        let brief = "RUST_BACKTRACE=0".to_owned();
        ProbeCommand::new("/usr/bin/env", [file, brief, program])
    }

    pub(crate) fn probe(&self) -> Probe {
        Probe::with_limits(self.config(), self.command(), limits())
    }

    /// NVML from the fake library, and nothing else.
    pub(crate) fn config(&self) -> Config {
        Config {
            nvml_library: fake_nvml::built_library(),
            wgpu: false,
            sysfs: self.directory.path().to_owned(),
            ..Config::default()
        }
    }

    pub(crate) fn nvml_toml(&self) -> PathBuf {
        self.directory.path().join("nvml.toml")
    }
}

/// Short, so that tests are.
pub(crate) fn limits() -> Limits {
    Limits {
        read: Duration::from_millis(300),
        discover: Duration::from_secs(20),
        first_rest: Duration::from_millis(100),
        longest_rest: Duration::from_secs(1),
    }
}

/// Asks until there is an answer, at most [`SOON`].
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: not within {SOON:?}");
        thread::sleep(Duration::from_millis(10));
    }
}
