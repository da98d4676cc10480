//! Time as an argument: boot-time milliseconds decide, wall-clock milliseconds are shown.

use core::fmt;
use core::ops::{Add, Sub};

/// A point on CLOCK_BOOTTIME in milliseconds. Comparable only within one boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootMs(pub u64);

/// A point of civil time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallMs(pub u64);

/// A length of time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ms(pub u64);

/// When a command was stamped by the loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// What deadlines are compared with.
    pub boot: BootMs,
    /// What people and rules see.
    pub wall: WallMs,
}

impl Ms {
    /// This many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }
}

impl At {
    /// The wall time at which `boot` is reached if neither clock is stepped.
    pub fn wall_at(self, boot: BootMs) -> WallMs {
        WallMs((self.wall.0 + boot.0).saturating_sub(self.boot.0))
    }
}

impl Add<Ms> for BootMs {
    type Output = BootMs;

    fn add(self, length: Ms) -> BootMs {
        BootMs(self.0.saturating_add(length.0))
    }
}

impl Sub for BootMs {
    type Output = Ms;

    /// The time from `earlier` to here; zero if `earlier` is later.
    fn sub(self, earlier: BootMs) -> Ms {
        Ms(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Ms {
    /// One or two units: `450ms`, `42s`, `12m`, `1h 5m`, `3d 2h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0 / 1000;
        let (minutes, hours, days) = (secs / 60, secs / 3600, secs / 86_400);
        let pair = |f: &mut fmt::Formatter<'_>, whole, unit, rest, small| match rest {
            0 => write!(f, "{whole}{unit}"),
            rest => write!(f, "{whole}{unit} {rest}{small}"),
        };
        match self.0 {
            0..1000 => write!(f, "{}ms", self.0),
            1000..60_000 => write!(f, "{secs}s"),
            60_000..3_600_000 => pair(f, minutes, "m", secs % 60, "s"),
            3_600_000..86_400_000 => pair(f, hours, "h", minutes % 60, "m"),
            _ => pair(f, days, "d", hours % 24, "h"),
        }
    }
}
