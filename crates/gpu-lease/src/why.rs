//! Why a request waits, in types for programs and one sentence for people.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::ids::{DeviceKey, LeaseId};
use crate::policy::TenantKey;
use crate::request::Amount;
use crate::size::Bytes;
use crate::time::{BootMs, WallMs};

/// Devices and holders named in the sentence; the lists themselves are whole.
const NAMED_MAX: usize = 4;

/// Why a request is not granted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// How many devices it needs.
    pub devices: u32,
    /// How much of each.
    pub amount: Amount,
    /// Its place in the queue, from 1.
    pub position: u32,
    /// What keeps it.
    pub cause: Cause,
    /// When it starts at the latest, as far as the ends of what blocks it are known.
    pub start: Option<BootMs>,
}

/// What keeps a request in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An earlier request goes first, and the policy does not let others pass.
    Behind(LeaseId),
    /// Too few devices can serve it.
    Devices(Vec<DeviceObstacle>),
    /// Its tenant holds as much as it may.
    Quota {
        /// The tenant.
        tenant: Box<TenantKey>,
        /// In words: `may hold 2 devices and holds 2`.
        limit: String,
        /// Who holds it, largest first; one list for all who wait for the tenant.
        holders: Arc<[Blocker]>,
    },
    /// No inventory yet.
    Recovering,
    /// A rule of the policy.
    Rule {
        /// The rule.
        rule: String,
        /// For the one who waits.
        reason: String,
        /// When the rule will look different.
        until: Option<WallMs>,
    },
}

/// Why one device cannot serve a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceObstacle {
    /// The device.
    pub device: DeviceKey,
    /// Bytes that could be granted there now.
    pub free: u64,
    /// What is in the way.
    pub obstacle: Obstacle,
    /// Who holds it, largest first; one list for all who wait for the device.
    pub holders: Arc<[Blocker]>,
}

/// What is in the way on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its memory use is not known freshly enough.
    AwaitingReading,
    /// It takes no new leases.
    Cordoned(String),
    /// Processes without a lease use memory there.
    Foreign(u64),
    /// It is held for an earlier request.
    HeldBack(LeaseId),
    /// Somebody is there who, or for whom the request, must be alone.
    InUse,
    /// Its load slots are taken.
    Loading,
    /// It is no longer there.
    Lost,
    /// Less is free than asked for.
    Short,
}

/// A lease in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The lease.
    pub lease: LeaseId,
    /// Its holder's name.
    pub holder: String,
    /// Bytes that it is charged for there; for a quota, bytes that it was granted.
    pub memory: u64,
    /// When it must be over at the latest, where that is known.
    pub until: Option<WallMs>,
}

impl Why {
    /// One word for programs.
    pub fn code(&self) -> &'static str {
        match &self.cause {
            Cause::Behind(_) => "behind_head",
            Cause::Devices(devices) => devices_code(devices),
            Cause::Quota { .. } => "quota",
            Cause::Recovering => "recovering",
            Cause::Rule { .. } => "held_by_rule",
        }
    }

    /// The leases in the way, over all devices; those of a quota are on no device in particular.
    pub fn blockers(&self) -> impl Iterator<Item = (&DeviceKey, &Blocker)> {
        let devices = match &self.cause {
            Cause::Devices(devices) => devices.as_slice(),
            Cause::Behind(_) | Cause::Quota { .. } | Cause::Recovering | Cause::Rule { .. } => &[],
        };
        devices
            .iter()
            .flat_map(|device| device.holders.iter().map(|holder| (&device.device, holder)))
    }

    /// The leases that fill the quota of its tenant, if that keeps it.
    pub fn quota_holders(&self) -> &[Blocker] {
        match &self.cause {
            Cause::Quota { holders, .. } => holders,
            Cause::Behind(_) | Cause::Devices(_) | Cause::Recovering | Cause::Rule { .. } => &[],
        }
    }

    /// When a rule lets it go, where that is known.
    pub fn eligible_at(&self) -> Option<WallMs> {
        match &self.cause {
            Cause::Rule { until, .. } => *until,
            Cause::Behind(_) | Cause::Devices(_) | Cause::Quota { .. } | Cause::Recovering => None,
        }
    }
}

/// The obstacle that is hardest to wait out speaks for all.
fn devices_code(devices: &[DeviceObstacle]) -> &'static str {
    let rank = |obstacle: &Obstacle| match obstacle {
        Obstacle::Short | Obstacle::InUse | Obstacle::Foreign(_) => (0, "capacity"),
        Obstacle::HeldBack(_) => (1, "held_for_head"),
        Obstacle::Loading => (2, "load_slot"),
        Obstacle::AwaitingReading => (3, "awaiting_reading"),
        Obstacle::Cordoned(_) => (4, "cordoned"),
        Obstacle::Lost => (5, "device_lost"),
    };
    let ranks = devices.iter().map(|device| rank(&device.obstacle));
    ranks.min().map_or("no_device", |(_, code)| code)
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Behind(head) => write!(f, "{head} goes first"),
            Cause::Devices(devices) => {
                write_need(f, self.devices, self.amount)?;
                write_devices(f, devices)
            }
            Cause::Quota {
                tenant,
                limit,
                holders,
            } => {
                write!(f, "tenant {tenant} {limit}")?;
                write_names(f, ": ", holders)
            }
            Cause::Recovering => f.write_str("devices are still being discovered"),
            Cause::Rule {
                rule,
                reason,
                until,
            } => {
                write!(f, "held by `{rule}`: {reason}")?;
                until.map_or(Ok(()), |until| write!(f, " (until {})", Clock(until)))
            }
        }
    }
}

fn write_need(f: &mut fmt::Formatter<'_>, devices: u32, amount: Amount) -> fmt::Result {
    match (amount, devices) {
        (Amount::Exclusive, 1) => f.write_str("needs one whole device"),
        (Amount::Exclusive, n) => write!(f, "needs {n} whole devices"),
        (Amount::Memory(bytes), 1) => write!(f, "needs {} on one device", Bytes(bytes)),
        (Amount::Memory(bytes), n) => write!(f, "needs {} on each of {n} devices", Bytes(bytes)),
    }
}

fn write_devices(f: &mut fmt::Formatter<'_>, devices: &[DeviceObstacle]) -> fmt::Result {
    if devices.is_empty() {
        return f.write_str("; no device can serve it");
    }
    for device in devices.iter().take(NAMED_MAX) {
        write!(f, "; {device}")?;
    }
    match devices.len().saturating_sub(NAMED_MAX) {
        0 => Ok(()),
        more => write!(f, "; and {more} more devices"),
    }
}

impl fmt::Display for DeviceObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.device)?;
        match &self.obstacle {
            Obstacle::AwaitingReading => f.write_str("waits for a fresh reading of its memory"),
            Obstacle::Cordoned(reason) => write!(f, "is cordoned: {reason}"),
            Obstacle::Foreign(bytes) => {
                let (free, foreign) = (Bytes(self.free), Bytes(*bytes));
                write!(
                    f,
                    "has {free} free, {foreign} in use by processes without a lease"
                )?;
                write_holders(f, ",", &self.holders)
            }
            Obstacle::HeldBack(head) => write!(f, "is held for {head}, which goes first"),
            Obstacle::InUse => write_holders(f, "is", &self.holders),
            Obstacle::Loading => write_holders(f, "is loading,", &self.holders),
            Obstacle::Lost => f.write_str("is lost"),
            Obstacle::Short => {
                write!(f, "has {} free", Bytes(self.free))?;
                write_holders(f, ",", &self.holders)
            }
        }
    }
}

fn write_holders(f: &mut fmt::Formatter<'_>, verb: &str, holders: &[Blocker]) -> fmt::Result {
    if holders.is_empty() {
        return Ok(());
    }
    f.write_str(verb)?;
    write_names(f, " held by ", holders)
}

fn write_names(f: &mut fmt::Formatter<'_>, before: &str, holders: &[Blocker]) -> fmt::Result {
    if holders.is_empty() {
        return Ok(());
    }
    f.write_str(before)?;
    for (place, holder) in holders.iter().take(NAMED_MAX).enumerate() {
        let comma = if place == 0 { "" } else { ", " };
        write!(f, "{comma}{holder}")?;
    }
    match holders.len().saturating_sub(NAMED_MAX) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.holder, Bytes(self.memory))?;
        match self.until {
            Some(until) => write!(f, ", until {})", Clock(until)),
            None => f.write_str(")"),
        }
    }
}

/// The time of day in UTC: `14:05:09Z`.
struct Clock(WallMs);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.0 / 1000 % 86_400;
        let (hours, minutes) = (secs / 3600, secs / 60 % 60);
        write!(f, "{hours:02}:{minutes:02}:{:02}Z", secs % 60)
    }
}
