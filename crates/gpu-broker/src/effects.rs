//! Slow work beside the loop: watching holders' processes by pidfd, signalling them, asking for readings.
//!
//! One thread waits for all processes at once. Every result comes back as a command that cites the
//! lease and its fence; the books drop what is stale.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;

use gpu_lease::{Command, Effect, Fence, LeaseId, Process, Signal};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::pidfd_send_signal;

use crate::inbox::{Inbox, Message};
use crate::process;

/// Asks whoever reads the devices to do so now.
pub(crate) type ReadNow = Box<dyn Fn() + Send + Sync>;

/// Hands effects to the thread that does them.
pub(crate) struct Effects {
    jobs: Sender<Effect>,
    wake: Arc<OwnedFd>,
    read_now: ReadNow,
}

impl Effects {
    /// Starts the thread; it ends when this is dropped.
    ///
    /// # Errors
    /// The kernel has no more threads or descriptors.
    pub(crate) fn start(inbox: Arc<Inbox>, boot_id: String, read_now: ReadNow) -> io::Result<Self> {
        let (jobs, inbound) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let watcher = Watcher {
            jobs: inbound,
            wake: wake.clone(),
            watched: BTreeMap::new(),
            inbox,
            boot_id,
        };
        thread::Builder::new()
            .name("processes".into())
            .spawn(move || watcher.run())?;
        Ok(Self {
            jobs,
            wake,
            read_now,
        })
    }

    pub(crate) fn perform(&self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Read => (self.read_now)(),
                Effect::Signal { .. } | Effect::Watch { .. } => drop(self.jobs.send(effect)),
            }
        }
        self.wake();
    }

    fn wake(&self) {
        // A full counter has woken the thread already.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Effects {
    fn drop(&mut self) {
        // The thread sees the closed channel when it wakes.
        self.jobs = channel().0;
        self.wake();
    }
}

struct Watcher {
    jobs: Receiver<Effect>,
    wake: Arc<OwnedFd>,
    watched: BTreeMap<(LeaseId, Fence), OwnedFd>,
    inbox: Arc<Inbox>,
    boot_id: String,
}

impl Watcher {
    fn run(mut self) {
        loop {
            if self.take_jobs().is_err() {
                return;
            }
            for (id, fence) in self.wait() {
                self.watched.remove(&(id, fence));
                self.report(Command::ProcessGone { id, fence });
            }
        }
    }

    /// Does what was asked since; an error once nobody will ask again.
    fn take_jobs(&mut self) -> Result<(), ()> {
        loop {
            match self.jobs.try_recv() {
                Ok(Effect::Watch { id, fence, process }) => self.watch((id, fence), &process),
                Ok(Effect::Signal {
                    id,
                    fence,
                    attempt,
                    process,
                    signal,
                }) => {
                    if let Err(why) = self.signal(&process, signal) {
                        self.report(Command::SignalRefused {
                            id,
                            fence,
                            attempt,
                            why,
                        });
                    }
                }
                Ok(Effect::Read) => {}
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(()),
            }
        }
    }

    fn watch(&mut self, (id, fence): (LeaseId, Fence), process: &Process) {
        match process::open(process, &self.boot_id) {
            Ok(Some(fd)) => drop(self.watched.insert((id, fence), fd)),
            Ok(None) => self.report(Command::ProcessGone { id, fence }),
            Err(error) => {
                tracing::warn!(lease = %id, pid = process.pid, %error, "cannot watch the process");
            }
        }
    }

    /// Waits until a process ends or a job arrives, and says whose processes have ended.
    fn wait(&self) -> Vec<(LeaseId, Fence)> {
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(
            self.watched
                .values()
                .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)),
        );
        if let Err(error) = poll(&mut fds, None) {
            tracing::warn!(%error, "cannot wait for processes");
            return Vec::new();
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        // Nothing to read means that a process woke it.
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
        let ended = self.watched.keys().zip(&ready[1..]);
        ended
            .filter(|(_, ended)| **ended)
            .map(|(key, _)| *key)
            .collect()
    }

    /// Signals through a handle on the very process that was registered. One that is gone needs none.
    fn signal(&self, process: &Process, signal: Signal) -> Result<(), String> {
        let pid = process.pid;
        let handle = process::open(process, &self.boot_id)
            .map_err(|error| format!("process {pid} cannot be identified: {error}"))?;
        let Some(handle) = handle else {
            return Ok(());
        };
        let signal = match signal {
            Signal::Kill => rustix::process::Signal::KILL,
            Signal::Term => rustix::process::Signal::TERM,
        };
        match pidfd_send_signal(&handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(format!("process {pid} cannot be signalled: {error}")),
        }
    }

    fn report(&self, command: Command) {
        // A full lane is drained by the loop in no time; what is not told now is told by the next watch.
        if self
            .inbox
            .push_control(Message::Apply(command, None))
            .is_err()
        {
            tracing::warn!("the control lane is full; the result of an effect is lost");
        }
    }
}
