//! Rows as they are written: JSON whose every word is frozen by `tests/fixtures/format-1.json`.
//!
//! Each type here mirrors one of the core and is converted by plain functions, so that the core may be
//! renamed and reshaped while old files stay readable. A change of what is written needs another
//! [`FORMAT`](crate::FORMAT), and an unknown field or word is an error: what this version does not
//! understand it must not drop.

mod event;
mod lease;
mod meta;
mod request;
mod usage;
mod words;

use serde::{Deserialize, Serialize};

pub(crate) use event::Event;
pub(crate) use lease::Lease;
pub(crate) use meta::{Cordon, Counters, LastGood, Position, Settings, UsageCounted};
pub(crate) use usage::Usage;

/// A device and its host.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceKey {
    host: String,
    id: String,
}

/// A point in time on both clocks.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Moment {
    boot_ms: u64,
    wall_ms: u64,
}

impl From<&gpu_lease::DeviceKey> for DeviceKey {
    fn from(key: &gpu_lease::DeviceKey) -> Self {
        Self {
            host: key.host.as_str().to_owned(),
            id: key.id.as_str().to_owned(),
        }
    }
}

impl From<DeviceKey> for gpu_lease::DeviceKey {
    fn from(key: DeviceKey) -> Self {
        Self {
            host: gpu_lease::HostId::new(&key.host),
            id: gpu_lease::DeviceId::new(&key.id),
        }
    }
}

impl From<gpu_lease::At> for Moment {
    fn from(at: gpu_lease::At) -> Self {
        Self {
            boot_ms: at.boot.0,
            wall_ms: at.wall.0,
        }
    }
}

impl From<Moment> for gpu_lease::At {
    fn from(moment: Moment) -> Self {
        Self {
            boot: gpu_lease::BootMs(moment.boot_ms),
            wall: gpu_lease::WallMs(moment.wall_ms),
        }
    }
}

impl From<gpu_lease::Deadline> for Moment {
    fn from(deadline: gpu_lease::Deadline) -> Self {
        Self {
            boot_ms: deadline.boot.0,
            wall_ms: deadline.wall.0,
        }
    }
}

impl From<Moment> for gpu_lease::Deadline {
    fn from(moment: Moment) -> Self {
        Self {
            boot: gpu_lease::BootMs(moment.boot_ms),
            wall: gpu_lease::WallMs(moment.wall_ms),
        }
    }
}
