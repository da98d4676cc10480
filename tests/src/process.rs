//! A process of a test: what it says goes to files, and it ends with the value.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use crate::patience::eventually;

/// A running program, or one that ended and was not asked yet.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// What came of a program.
#[derive(Clone, Debug)]
pub struct Ran {
    /// As a shell says it: the exit code, or 128 and the signal.
    pub code: i32,
    /// What it wrote on standard output.
    pub stdout: String,
    /// What it wrote on standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `command`; its output goes to files in `dir`, so that no reader of a pipe has to wait for
    /// grandchildren.
    pub fn start(mut command: Command, dir: &Path) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| dir.join(format!("process-{number}.{kind}"));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        let create = |path: &PathBuf| File::create(path).expect("the directory is writable");
        let child = command
            .stdin(Stdio::null())
            .stdout(create(&stdout))
            .stderr(create(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written on standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has written on standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(pid_of(self.pid()), signal).expect("it was not reaped yet");
    }

    /// Kills it, as a power cut would, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// What came of it, if it has ended.
    pub fn ended(&mut self) -> Option<Ran> {
        let status = self.child.try_wait().expect("it is our child")?;
        Some(Ran {
            code: code_of(status),
            stdout: self.stdout(),
            stderr: self.stderr(),
        })
    }

    /// What comes of it.
    pub fn wait(mut self) -> Ran {
        let mut shown = None;
        eventually("the process ends", || {
            shown = self.ended();
            shown.is_some().then_some(())
        });
        shown.expect("it has ended")
    }

    /// Waits until it has said `text` on standard error.
    pub fn until_stderr(&self, text: &str) {
        eventually(&format!("`{text}` on stderr"), || {
            self.stderr().contains(text).then_some(())
        });
    }

    /// Waits until it has said `text` on standard output.
    pub fn until_stdout(&self, text: &str) {
        eventually(&format!("`{text}` on stdout"), || {
            self.stdout().contains(text).then_some(())
        });
    }

    fn end(&mut self) {
        // One that ended by itself needs no signal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("--- process {} said:\n{}", self.pid(), self.stderr());
        }
    }
}

/// Whether the process exists and has not ended: one that only waits to be reaped has.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().map(str::trim_start);
    state.is_some_and(|state| !state.is_empty() && !state.starts_with(['Z', 'X']))
}

/// The process id as the kernel takes it.
pub(crate) fn pid_of(pid: u32) -> Pid {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    raw.expect("a process id is positive and small")
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn code_of(status: ExitStatus) -> i32 {
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).expect("it has ended")
}
