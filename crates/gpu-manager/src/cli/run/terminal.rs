//! The terminal's foreground: it is the child's while the child runs, so that keys reach the child.

use rustix::process::{Pid, Signal, getpgrp, kill_current_process_group};
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp};

/// The terminal on standard input, which controls this process.
#[derive(Debug)]
pub(crate) struct Terminal {
    modes: Termios,
}

impl Terminal {
    /// `None` if standard input is no terminal, or another session's, or somebody else's at the moment:
    /// its modes are not this process's to put back then.
    pub(crate) fn of_stdin() -> Option<Self> {
        let modes = tcgetattr(stdin()).ok()?;
        if tcgetpgrp(stdin()).ok()? != getpgrp() {
            return None;
        }
        ignore_background_writes();
        Some(Self { modes })
    }

    /// Gives the foreground to `group`, if it is this process's to give.
    pub(crate) fn give_to(&self, group: Pid) {
        if tcgetpgrp(stdin()) == Ok(getpgrp()) {
            let _ = tcsetpgrp(stdin(), group);
        }
    }

    /// Takes the foreground back from `group`; `false` if somebody else has it.
    pub(crate) fn take_from(&self, group: Pid) -> bool {
        let was_there = tcgetpgrp(stdin()) == Ok(group);
        if was_there {
            let _ = tcsetpgrp(stdin(), getpgrp());
        }
        was_there
    }

    /// Puts the modes back that a killed child may have left in disorder.
    pub(crate) fn restore_modes(&self) {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.modes);
    }

    /// Stops this process as its child was stopped, for the shell to see, and returns when it is continued.
    pub(crate) fn suspend_with(&self, group: Pid) {
        self.take_from(group);
        // The signal reaches this thread before the call returns; an orphaned group is not stopped at all.
        let _ = kill_current_process_group(Signal::TSTP);
        self.give_to(group);
    }
}

/// Changing the foreground from the background, as taking it back is, must not stop this process.
#[expect(unsafe_code, reason = "there is no safe way to ignore a signal")]
fn ignore_background_writes() {
    // SAFETY: SIG_IGN runs no code of ours, and no other thread handles this signal.
    unsafe {
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
    }
}
