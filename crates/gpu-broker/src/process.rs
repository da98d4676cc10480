//! Who a process is: a pid alone is never trusted.

use std::fs;
use std::io;
use std::time::Duration;

use gpu_lease::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use thiserror::Error;

use crate::clock;

/// A pid cannot be registered for a caller.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// It belongs to somebody else.
    #[error("process {pid} belongs to uid {owner}, not to uid {caller}")]
    NotYours {
        /// The process.
        pid: u32,
        /// Whose it is.
        owner: u32,
        /// Who asked.
        caller: u32,
    },
    /// It is not there, or cannot be looked at.
    #[error("process {pid} cannot be seen from here")]
    Unseen {
        /// The process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Proves that `pid` lives and belongs to `caller`, an administrator apart.
///
/// # Errors
/// It does not, or it cannot be seen.
pub fn register_process(
    pid: u32,
    caller: u32,
    caller_is_admin: bool,
    supervised: bool,
) -> Result<Process, RegisterError> {
    let unseen = |source| RegisterError::Unseen { pid, source };
    let stat = Stat::of(pid).map_err(unseen)?;
    let owner = owner(pid).map_err(unseen)?;
    if owner != caller && !caller_is_admin {
        return Err(RegisterError::NotYours { pid, owner, caller });
    }
    Ok(Process {
        pid,
        start_ticks: stat.start_ticks,
        boot_id: clock::boot_id().map_err(unseen)?,
        uid: owner,
        supervised,
    })
}

/// A handle on one process, whatever becomes of its pid.
#[derive(Debug)]
pub struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    /// The very process that was registered in this boot; `None` if it has ended, reaped or not.
    ///
    /// # Errors
    /// The kernel would not say.
    pub fn of(process: &Process) -> io::Result<Option<Self>> {
        let Some(fd) = open(process, &clock::boot_id()?)? else {
            return Ok(None);
        };
        let handle = Self(fd);
        Ok((!handle.ends_within(Duration::ZERO)?).then_some(handle))
    }

    /// Kills it.
    ///
    /// # Errors
    /// It belongs to another user.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.0, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended `patience` from now.
    ///
    /// # Errors
    /// The kernel would not say.
    pub fn ends_within(&self, patience: Duration) -> io::Result<bool> {
        let patience = Timespec::try_from(patience).unwrap_or_default();
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&patience))? > 0)
    }
}

/// What the broker asks about the processes of the host, apart from the handles that it watches; a
/// simulation brings its own.
pub trait Processes: Send + Sync {
    /// What the process of this pid is, if there is one.
    fn stat(&self, pid: u32) -> Option<Stat>;

    /// Whether the very process that was registered is proven gone, reaped or not; in doubt it is not.
    fn is_gone(&self, process: &Process) -> bool;
}

/// The processes that this kernel runs.
#[derive(Clone, Debug)]
pub struct HostProcesses {
    boot_id: String,
}

impl HostProcesses {
    /// Those of the present boot, of which this is the name.
    pub fn of_boot(boot_id: String) -> Self {
        Self { boot_id }
    }
}

impl Processes for HostProcesses {
    fn stat(&self, pid: u32) -> Option<Stat> {
        Stat::of(pid).ok()
    }

    fn is_gone(&self, process: &Process) -> bool {
        is_gone(process, &self.boot_id).unwrap_or(false)
    }
}

/// A handle on the very process that was registered, or `None` if it is gone.
///
/// # Errors
/// The kernel would not say.
pub(crate) fn open(process: &Process, boot_id: &str) -> io::Result<Option<OwnedFd>> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid.filter(|_| process.boot_id == boot_id) else {
        return Ok(None);
    };
    let fd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // The pid may have been taken over before the handle was opened; after it, it cannot be.
    match Stat::of(process.pid) {
        Ok(stat) => Ok((stat.start_ticks == process.start_ticks).then_some(fd)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the very process that was registered has ended, reaped or not.
///
/// # Errors
/// The kernel would not say.
fn is_gone(process: &Process, boot_id: &str) -> io::Result<bool> {
    match open(process, boot_id)? {
        Some(fd) => ProcessHandle(fd).ends_within(Duration::ZERO),
        None => Ok(true),
    }
}

/// What `/proc/<pid>/stat` says that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The pid of its parent.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// When it started, in clock ticks since the boot.
    pub start_ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// The name in field 2 may hold spaces and brackets, so fields are counted from the last bracket.
    fn parse(text: &str) -> Option<Self> {
        let after_name = &text[text.rfind(')')? + 1..];
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

fn owner(pid: u32) -> io::Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(format!("/proc/{pid}"))?.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let text = "42 (a) b (c)) S 7 9 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1";
        let expected = Stat {
            parent: 7,
            group: 9,
            start_ticks: 12345,
        };
        assert_eq!(Stat::parse(text), Some(expected));
    }

    #[test]
    fn this_process_can_be_registered_and_opened_and_a_later_one_with_its_pid_cannot() {
        let pid = std::process::id();
        let uid = owner(pid).expect("this process can be seen");
        let process = register_process(pid, uid, false, false).expect("this process is ours");
        let boot = clock::boot_id().expect("there is a /proc");
        assert!(open(&process, &boot).expect("pidfds work").is_some());
        let later = Process {
            start_ticks: process.start_ticks + 1,
            ..process.clone()
        };
        assert!(open(&later, &boot).expect("pidfds work").is_none());
        assert!(
            open(&process, "another boot")
                .expect("nothing is asked")
                .is_none()
        );
    }

    #[test]
    fn the_process_of_another_user_is_refused() {
        let refused = register_process(1, 12345, false, false);
        assert!(matches!(
            refused,
            Err(RegisterError::NotYours { owner: 0, .. })
        ));
    }
}
