//! The command's process: what becomes of it, and signals to its group.

use std::thread;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::mpsc;

use crate::cli::exit::{Failure, SIGNAL_BASE};

const CHANGES_MAX: usize = 4;

/// A child that leads a process group.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    changes: mpsc::Receiver<Change>,
}

/// What becomes of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It ended; it is not reaped yet, so its process id and group are still its own.
    Exited(Exit),
    /// A signal stopped it.
    Stopped,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal of this number.
    Signal(i32),
}

impl Exit {
    /// As a shell says it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Code(code) => (code & 0xff) as u8,
            Self::Signal(signal) => {
                SIGNAL_BASE.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX))
            }
        }
    }
}

impl Child {
    /// Watches a child of this process that leads its group.
    pub(crate) fn watch(pid: Pid) -> Result<Self, Failure> {
        let (sender, changes) = mpsc::channel(CHANGES_MAX);
        thread::Builder::new()
            .name("child".to_owned())
            .spawn(move || report(pid, &sender))
            .map_err(|error| Failure::own(format!("failed to watch the child: {error}")))?;
        Ok(Self { pid, changes })
    }

    /// Its process id, and its group.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The next thing that becomes of it.
    pub(crate) async fn change(&mut self) -> Change {
        // The watcher ends without an exit only if there is no such child, which then has no code either.
        self.changes
            .recv()
            .await
            .unwrap_or(Change::Exited(Exit::Code(i32::from(
                crate::cli::exit::OWN_FAILURE,
            ))))
    }

    /// Sends `signal` to its group; one that is gone needs none.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Asks its group to stop, also what is suspended.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    /// Lets its process id go; to be called after [`Change::Exited`].
    pub(crate) fn reap(self) {
        let _ = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED);
    }
}

/// Tells of every change until the child ends or nobody listens.
fn report(pid: Pid, changes: &mpsc::Sender<Change>) {
    loop {
        // Looking without taking keeps the ended child's process id from being used again.
        let look = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        let change = match waitid(WaitId::Pid(pid), look) {
            Ok(Some(status)) if status.stopped() => {
                let _ = waitid(
                    WaitId::Pid(pid),
                    WaitIdOptions::STOPPED | WaitIdOptions::NOHANG,
                );
                Change::Stopped
            }
            Ok(Some(status)) => Change::Exited(match status.terminating_signal() {
                Some(signal) => Exit::Signal(signal),
                None => Exit::Code(status.exit_status().unwrap_or_default()),
            }),
            Ok(None) | Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        if changes.blocking_send(change).is_err() || matches!(change, Change::Exited(_)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[expect(clippy::zombie_processes, reason = "what is tested reaps it")]
    fn start(script: &str) -> Child {
        let child = Command::new("sh")
            .args(["-c", script])
            .process_group(0)
            .spawn()
            .expect("a shell");
        Child::watch(Pid::from_child(&child)).expect("a thread")
    }

    async fn next(child: &mut Child) -> Change {
        timeout(Duration::from_secs(10), child.change())
            .await
            .expect("a change within ten seconds")
    }

    #[tokio::test]
    async fn exits_and_signals_become_codes() {
        for (script, exit, code) in [
            ("exit 0", Exit::Code(0), 0),
            ("exit 7", Exit::Code(7), 7),
            ("kill -9 $$", Exit::Signal(9), 137),
            ("kill -15 $$", Exit::Signal(15), 143),
        ] {
            let mut child = start(script);
            assert_eq!(next(&mut child).await, Change::Exited(exit), "{script}");
            assert_eq!(exit.code(), code, "{script}");
            child.reap();
        }
    }

    #[tokio::test]
    async fn a_stop_is_told_and_a_suspended_child_can_be_ended() {
        let mut child = start("kill -STOP $$; exit 3");
        assert_eq!(next(&mut child).await, Change::Stopped);
        child.terminate();
        assert_eq!(next(&mut child).await, Change::Exited(Exit::Signal(15)));
        child.reap();
    }
}
