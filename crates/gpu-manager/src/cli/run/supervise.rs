//! From the grant to the child's end: heartbeats, signals, drains, and giving the lease back.

use std::time::Duration;

use gpu_api::{EndReason, Lease, LeaseState};
use gpu_client::{Gone, Heartbeat, Pulse};
use rustix::process::Signal;
use tokio::time::{Instant, sleep_until};

use crate::cli::args::OnLost;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::grant::{self, Granted};
use crate::cli::output::note;
use crate::cli::run::child::{Change, Child, Exit};
use crate::cli::run::terminal::Terminal;
use crate::cli::show;
use crate::cli::signals::Signals;

/// A child whose lease was ended by force has this long between SIGTERM and SIGKILL.
const FORCE_GRACE: Duration = Duration::from_secs(10);

/// One child under one lease.
#[derive(Debug)]
pub(crate) struct Supervisor<'a> {
    context: &'a Context,
    child: Child,
    lease: Lease,
    heartbeat: Heartbeat,
    signals: Signals,
    terminal: Option<Terminal>,
    on_lost: OnLost,
    /// The child was asked to stop.
    asked: bool,
    /// When it is killed if it has not.
    kill_at: Option<Instant>,
    /// The broker does not answer.
    away: bool,
    /// The lease is no longer this child's.
    over: bool,
}

impl<'a> Supervisor<'a> {
    /// A supervisor of `child`, which has just been started under `granted`.
    pub(crate) fn new(
        context: &'a Context,
        child: Child,
        granted: Granted,
        signals: Signals,
        terminal: Option<Terminal>,
        on_lost: OnLost,
    ) -> Self {
        let Granted { lease, heartbeat } = granted;
        Self {
            context,
            child,
            lease,
            heartbeat,
            signals,
            terminal,
            on_lost,
            asked: false,
            kill_at: None,
            away: false,
            over: false,
        }
    }

    /// Goes on until the child has ended; answers its exit code.
    pub(crate) async fn run(mut self) -> Result<u8, Failure> {
        self.heed(&self.lease.clone());
        loop {
            let kill_at = self.kill_at.unwrap_or_else(Instant::now);
            tokio::select! {
                change = self.child.change() => match change {
                    Change::Exited(exit) => return self.finish(exit).await,
                    Change::Stopped => self.stopped(),
                },
                signal = self.signals.next() => self.child.signal(signal),
                pulse = self.heartbeat.next(), if !self.over => self.beat(pulse),
                () = sleep_until(kill_at), if self.kill_at.is_some() => self.kill(),
            }
        }
    }

    fn beat(&mut self, pulse: Option<Pulse>) {
        match pulse {
            Some(Pulse::Away(error)) => {
                self.away = true;
                note(&format!("{error}; the command runs on"));
            }
            Some(Pulse::Lease(lease)) => {
                if std::mem::take(&mut self.away) {
                    note(&format!(
                        "the broker is back, and {} is still held",
                        lease.id
                    ));
                }
                self.heed(&lease);
            }
            Some(Pulse::Gone(gone)) => self.gone(&gone),
            None => self.gone(&Gone::Unknown),
        }
    }

    /// Does what the state of the lease asks for.
    fn heed(&mut self, lease: &Lease) {
        match (lease.state, &lease.drain) {
            (LeaseState::Draining, Some(drain)) => {
                let left = drain.first().map_or(0, |cause| cause.remaining_ms);
                note(&format!(
                    "{}; the command is asked to stop now",
                    show::drain_line(drain)
                ));
                self.ask_to_stop(Duration::from_millis(left));
            }
            _ if self.kill_at.is_some() => {
                note("the drain is withdrawn; the command is not killed");
                self.kill_at = None;
                self.asked = false;
            }
            _ => {}
        }
    }

    fn gone(&mut self, gone: &Gone) {
        self.over = true;
        let (id, why, forced) = match gone {
            Gone::Ended(lease) => (
                lease.id.as_str(),
                show::end_reason(lease.end_reason),
                is_forced(lease.end_reason),
            ),
            Gone::Unknown => (
                self.lease.id.as_str(),
                "the broker does not know it any more",
                false,
            ),
        };
        let stop = forced || self.on_lost == OnLost::Stop;
        match stop {
            // Who was asked to stop before has had its time.
            true if self.asked => {
                note(&format!("{id}: {why}"));
                self.kill();
            }
            true => {
                note(&format!(
                    "{id}: {why}; the command is asked to stop, and killed in {} s",
                    FORCE_GRACE.as_secs()
                ));
                self.ask_to_stop(FORCE_GRACE);
            }
            false => note(&format!("{id}: {why}; the command runs on without a lease")),
        }
    }

    fn ask_to_stop(&mut self, grace: Duration) {
        if !self.asked {
            self.asked = true;
            self.child.terminate();
        }
        self.kill_at = Some(Instant::now() + grace);
    }

    fn kill(&mut self) {
        note("the command did not stop in time and is killed");
        self.child.signal(Signal::KILL);
        self.kill_at = None;
    }

    fn stopped(&self) {
        // Without a terminal nobody but whoever stopped the child can continue it, and that is theirs to do.
        if let Some(terminal) = &self.terminal {
            terminal.suspend_with(self.child.pid());
            self.child.signal(Signal::CONT);
        }
    }

    async fn finish(self, exit: Exit) -> Result<u8, Failure> {
        if self.asked {
            // What the command left behind in its group would hold memory that is somebody else's soon.
            self.child.signal(Signal::KILL);
        }
        if let Some(terminal) = &self.terminal {
            let ours = terminal.take_from(self.child.pid());
            if ours && matches!(exit, Exit::Signal(_)) {
                terminal.restore_modes();
            }
        }
        self.child.reap();
        drop(self.heartbeat);
        if !self.over
            && let Err(failure) =
                grant::give_back(self.context, &self.lease.id, self.lease.secret.as_deref()).await
        {
            failure.report();
        }
        Ok(exit.code())
    }
}

/// Whether somebody wanted the lease back, or it was merely lost.
fn is_forced(reason: Option<EndReason>) -> bool {
    match reason {
        Some(
            EndReason::Cancelled
            | EndReason::Denied
            | EndReason::DeviceLost
            | EndReason::Emergency
            | EndReason::MaxHold
            | EndReason::Policy
            | EndReason::Preempted
            | EndReason::Released
            | EndReason::Revoked
            | EndReason::WaitTimeout,
        ) => true,
        Some(EndReason::Expired | EndReason::HostRebooted | EndReason::ProcessGone) | None => false,
    }
}
