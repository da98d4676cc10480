//! Usage as it is kept: for each hour, who held what of which device for how long.

use std::ops::AddAssign;

use gpu_lease::{DeviceKey, WallMs};

/// How many hours of usage are kept: 35 days.
pub const USAGE_KEPT_HOURS: u64 = 35 * 24;

/// So many rows one hour has at most, but for one for each device that takes what there is no row for.
pub const USAGE_ROWS_PER_HOUR_MAX: usize = 512;

/// So many of them are of one user at most, so that none takes the rows of all others.
pub const USAGE_ROWS_PER_USER_MAX: usize = 128;

/// How many rows that are too old are removed in one commit at most.
pub const USAGE_ROWS_PER_TRIM: usize = 4096;

/// The user and the tenant of rows that take what there is no row for.
pub const USAGE_OTHER: &str = "(other)";

const HOUR_MS: u64 = 3_600_000;

/// An hour of civil time: how many began since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(pub u64);

/// Whose usage, of what, when.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsageKey {
    /// When.
    pub hour: Hour,
    /// The verified user of the holder.
    pub user: String,
    /// Its tenant; one without a name is none.
    pub tenant: Option<String>,
    /// The device.
    pub device: DeviceKey,
}

/// How much was held, added up over leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How long, in milliseconds; two leases side by side count twice.
    pub held_ms: u64,
    /// Bytes granted, times milliseconds.
    pub byte_ms: u128,
}

/// A row, or what is to be added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// Which.
    pub key: UsageKey,
    /// How much.
    pub usage: Usage,
}

impl Hour {
    /// The hour that `wall` is in.
    pub fn of(wall: WallMs) -> Self {
        Self(wall.0 / HOUR_MS)
    }

    /// Its beginning.
    pub fn start(self) -> WallMs {
        WallMs(self.0.saturating_mul(HOUR_MS))
    }

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The oldest one that is kept when this is the present one.
    #[must_use]
    pub fn oldest_kept(self) -> Self {
        Self((self.0 + 1).saturating_sub(USAGE_KEPT_HOURS))
    }
}

impl UsageKey {
    /// The row of the same hour and device that takes what there is no row for.
    #[must_use]
    pub(crate) fn other(&self) -> Self {
        Self {
            user: USAGE_OTHER.to_owned(),
            tenant: Some(USAGE_OTHER.to_owned()),
            ..self.clone()
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.held_ms = self.held_ms.saturating_add(more.held_ms);
        self.byte_ms = self.byte_ms.saturating_add(more.byte_ms);
    }
}

/// The latest hour that `rows` add to: what is too old is counted from there.
pub(crate) fn newest(rows: &[UsageRow]) -> Option<Hour> {
    rows.iter().map(|row| row.key.hour).max()
}
