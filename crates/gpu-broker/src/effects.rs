//! Slow work beside the loop: watching holders' processes by pidfd, signalling them, asking for readings.
//!
//! One thread waits for all processes at once. Every result comes back as a command that cites the
//! lease and its fence; the books drop what is stale.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use gpu_lease::{Command, Effect, Fence, LeaseId, Process, Signal};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::pidfd_send_signal;

use crate::handle::{Shared, Unavailable};
use crate::inbox::{Inbox, Message};
use crate::process;
use crate::view::View;

/// A process that could not be watched, for want of descriptors say, is tried again after so long.
const WATCH_AGAIN_SECS: i64 = 5;
/// A result that the inbox has no room for is offered again after so long.
const REPORT_AGAIN_MS: u64 = 10;

/// Asks whoever reads the devices to do so now.
pub type ReadNow = Box<dyn Fn() + Send + Sync>;

/// What is done where the books want a process signalled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Signals {
    /// It is signalled.
    #[default]
    Send,
    /// It is not, and the lease is stuck for this reason.
    Refuse(String),
    /// Nothing now: the next start finds it in the rows and does it.
    Leave,
}

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
    pub(crate) fn start(shared: &Shared, read_now: ReadNow, signals: Signals) -> io::Result<Self> {
        let (jobs, inbound) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let watcher = Watcher {
            jobs: inbound,
            wake: wake.clone(),
            watched: BTreeMap::new(),
            missed: Vec::new(),
            inbox: shared.inbox.clone(),
            view: shared.view.clone(),
            boot_id: shared.boot_id.clone(),
            signals,
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
        let mut sent = false;
        for effect in effects {
            match effect {
                Effect::Read => (self.read_now)(),
                Effect::Signal { .. } | Effect::Watch { .. } => {
                    sent |= self.jobs.send(effect).is_ok();
                }
            }
        }
        if sent {
            self.wake();
        }
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
    /// Processes that should be watched and could not be yet.
    missed: Vec<((LeaseId, Fence), Process)>,
    inbox: Arc<Inbox>,
    view: Arc<View>,
    boot_id: String,
    signals: Signals,
}

impl Watcher {
    fn run(mut self) {
        while self.take_jobs().is_ok() {
            self.forget_what_is_over();
            for (id, fence) in self.wait() {
                self.watched.remove(&(id, fence));
                self.report(Command::ProcessGone { id, fence });
            }
            for (key, process) in mem::take(&mut self.missed) {
                self.watch(key, process);
            }
        }
    }

    /// A process can outlive its leases, and each watch holds a descriptor.
    fn forget_what_is_over(&mut self) {
        let view = &self.view;
        let occupies = |(id, fence): &(LeaseId, Fence)| {
            let lease = view.find(*id);
            lease.is_some_and(|lease| lease.occupying().is_some_and(|grant| grant.fence == *fence))
        };
        self.watched.retain(|key, _| occupies(key));
        self.missed.retain(|(key, _)| occupies(key));
    }

    /// Does what was asked since; an error once nobody will ask again.
    fn take_jobs(&mut self) -> Result<(), ()> {
        loop {
            match self.jobs.try_recv() {
                Ok(Effect::Watch { id, fence, process }) => self.watch((id, fence), process),
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

    fn watch(&mut self, (id, fence): (LeaseId, Fence), process: Process) {
        match process::open(&process, &self.boot_id) {
            Ok(Some(fd)) => drop(self.watched.insert((id, fence), fd)),
            Ok(None) => self.report(Command::ProcessGone { id, fence }),
            Err(error) => {
                tracing::warn!(lease = %id, pid = process.pid, %error, "cannot watch the process");
                self.missed.push(((id, fence), process));
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
        let again = Timespec {
            tv_sec: WATCH_AGAIN_SECS,
            tv_nsec: 0,
        };
        let timeout = (!self.missed.is_empty()).then_some(&again);
        if let Err(error) = poll(&mut fds, timeout) {
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
        match &self.signals {
            Signals::Send => {}
            Signals::Refuse(why) => return Err(why.clone()),
            Signals::Leave => return Ok(()),
        }
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

    /// The loop drains a full lane in no time. What it is not told, nobody tells it later.
    fn report(&self, command: Command) {
        loop {
            let message = Message::Apply(command.clone(), None);
            match self.inbox.push_control(message) {
                Ok(()) | Err(Unavailable::Recovering | Unavailable::Stopping) => return,
                Err(Unavailable::Overloaded) => {
                    thread::sleep(Duration::from_millis(REPORT_AGAIN_MS));
                }
            }
        }
    }
}
