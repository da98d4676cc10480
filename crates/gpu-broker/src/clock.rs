//! The two clocks of the host, read together.

use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use gpu_lease::{At, BootMs, WallMs};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Where the loop gets its time from; a test brings its own.
pub trait Clock: Send + Sync {
    /// Both clocks, now.
    fn now(&self) -> At;
}

/// CLOCK_BOOTTIME, which goes on through a suspend, and the wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> At {
        At {
            boot: BootMs(millis(clock_gettime(ClockId::Boottime))),
            wall: WallMs(civil_millis()),
        }
    }
}

/// Names the present boot of the kernel: boot times of another one mean nothing.
///
/// # Errors
/// `/proc` cannot be read.
pub fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

/// Read through libc, so that a test can turn the clock of one process. A clock before 1970 counts as at 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "this is where civil time comes from"
)]
fn civil_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.map_or(0, |since| since.as_millis());
    u64::try_from(millis).unwrap_or(u64::MAX)
}

/// A clock before its epoch counts as at its epoch.
fn millis(time: Timespec) -> u64 {
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    secs.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}
