//! What a device has left: the formula, and what of it is in the way of a request.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use core::mem;

use crate::canary::{Canary, is_planted};
use crate::command::Cordon;
use crate::device::{Device, Reading, Telemetry};
use crate::ids::LeaseId;
use crate::policy::DeviceSettings;
use crate::request::{Amount, Request};
use crate::size::Bytes;
use crate::time::{At, BootMs, Ms};

/// A reading older than this is stale: three polls of one second.
pub const FRESH_MS: Ms = Ms::from_secs(3);

/// A device with everything that the books know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// What discovery says.
    pub device: Device,
    /// What the policy says.
    pub settings: DeviceSettings,
    /// What an operator says.
    pub cordon: Option<Cordon>,
    /// What was last read.
    pub reading: Option<Reading>,
    /// Since when discovery no longer sees it.
    pub lost_since: Option<At>,
    /// An exclusive lease ended here then: only a later reading tells what it left behind.
    pub read_after: Option<BootMs>,
    /// The leases that hold something here, those being reclaimed included.
    pub occupants: BTreeSet<LeaseId>,
    /// The most that each of them was ever seen to use here; what was never seen has none.
    pub peaks: BTreeMap<LeaseId, u64>,
    /// What they and others take.
    pub usage: Usage,
}

/// What is taken of a device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Granted to leases.
    pub granted: u64,
    /// What leases are charged for: the larger of granted and observed, each.
    pub charged: u64,
    /// In use by nobody's lease.
    pub foreign: u64,
    /// Held back from the leases that are being reclaimed.
    pub reclaiming: u64,
    /// Whether somebody is there alone.
    pub exclusive: bool,
    /// Load slots taken.
    pub loading: u32,
}

/// What one lease takes of one device, as the formula sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) granted: u64,
    /// `None` if no process on the device is attributed to the lease.
    pub(crate) observed: Option<u64>,
    pub(crate) exclusive: bool,
    pub(crate) loading: bool,
    pub(crate) reclaiming: bool,
}

impl DeviceState {
    /// A device that was just found.
    pub(crate) fn new(device: Device, settings: DeviceSettings, cordon: Option<Cordon>) -> Self {
        Self {
            device,
            settings,
            cordon,
            reading: None,
            lost_since: None,
            read_after: None,
            occupants: BTreeSet::new(),
            peaks: BTreeMap::new(),
            usage: Usage::default(),
        }
    }

    /// Bytes that can be granted on the idle device.
    pub fn grantable(&self) -> u64 {
        self.device
            .memory_total
            .saturating_sub(self.settings.reserve)
    }

    /// Bytes that can be granted now: total - reserve - the charge of every lease - foreign use.
    pub fn free(&self) -> u64 {
        if is_planted(Canary::GrantedTwice) {
            return self.grantable();
        }
        let taken = self.usage.charged.saturating_add(self.usage.foreign);
        self.grantable().saturating_sub(taken)
    }

    /// Whether more is used than was left beside what was granted.
    pub fn overcommitted(&self) -> bool {
        let taken = self.usage.charged.saturating_add(self.usage.foreign);
        !self.occupants.is_empty() && !self.usage.exclusive && taken > self.grantable()
    }

    /// Why it takes no new leases, whoever said so.
    pub fn cordoned(&self) -> Option<&String> {
        let by_operator = self.cordon.as_ref().map(|cordon| &cordon.reason);
        by_operator.or(self.settings.cordon.as_ref())
    }

    /// What a process of `lease` was last seen to use here.
    pub fn observed(&self, lease: LeaseId) -> Option<u64> {
        let processes = &self.reading.as_ref()?.processes;
        let mine = processes
            .iter()
            .filter(|process| process.lease == Some(lease));
        mine.map(|process| process.memory.unwrap_or(0))
            .reduce(u64::saturating_add)
    }

    /// Whether a grant would have to rest on numbers that are too old.
    pub fn awaits_reading(&self, at: At) -> bool {
        if self.device.telemetry == Telemetry::Unsupported {
            return false;
        }
        let Some(reading) = &self.reading else {
            return true;
        };
        at.boot - reading.taken > FRESH_MS
            || self.read_after.is_some_and(|after| reading.taken <= after)
    }

    /// Takes a reading, and remembers the most that each occupant was seen to use.
    pub(crate) fn take_reading(&mut self, reading: Reading) {
        self.reading = Some(reading);
        let before = mem::take(&mut self.peaks);
        for &lease in &self.occupants {
            let seen = [before.get(&lease).copied(), self.observed(lease)];
            if let Some(peak) = seen.into_iter().flatten().max() {
                self.peaks.insert(lease, peak);
            }
        }
    }

    /// Computes the usage anew from the shares of its occupants.
    pub(crate) fn charge(&mut self, shares: impl Iterator<Item = Share>) {
        let mut usage = Usage::default();
        let (mut attributed, mut unseen) = (0_u64, 0_u64);
        for share in shares {
            usage.add(share);
            match share.observed {
                Some(observed) => attributed = attributed.saturating_add(observed),
                None => unseen = unseen.saturating_add(share.granted),
            }
        }
        let used = self
            .reading
            .as_ref()
            .map_or(0, |reading| reading.memory_used);
        usage.foreign = used.saturating_sub(attributed).saturating_sub(unseen);
        self.usage = usage;
    }
}

impl Usage {
    fn add(&mut self, share: Share) {
        let charge = share.granted.max(share.observed.unwrap_or(0));
        self.granted = self.granted.saturating_add(share.granted);
        self.charged = self.charged.saturating_add(charge);
        self.exclusive |= share.exclusive;
        self.loading += u32::from(share.loading);
        if share.reclaiming {
            self.reclaiming = self.reclaiming.saturating_add(charge);
        }
    }
}

/// Why `request` could not even be served by idle devices, or `None` if it could. `serving` is what can be
/// granted of each device that may serve it, smallest first.
pub(crate) fn never_fits(request: &Request, serving: &[u64]) -> Option<String> {
    let wanted = request.devices as usize;
    if serving.len() < wanted {
        let count = serving.len();
        let devices = if wanted == 1 { "device" } else { "devices" };
        return Some(alloc::format!(
            "asks for {wanted} {devices}; {count} of the inventory can serve it"
        ));
    }
    let Amount::Memory(bytes) = request.amount else {
        return None;
    };
    let big_enough = serving.iter().filter(|grantable| **grantable >= bytes);
    let largest = serving.last().copied().unwrap_or(0);
    (big_enough.count() < wanted).then(|| {
        let (bytes, largest) = (Bytes(bytes), Bytes(largest));
        let devices = match wanted {
            1 => "one device".into(),
            several => alloc::format!("each of {several} devices"),
        };
        alloc::format!(
            "asks for {bytes} on {devices}; the largest that can serve it grants {largest}"
        )
    })
}
