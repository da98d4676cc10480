//! A device as the API shows it.

use gpu_api as wire;
use gpu_lease::{
    Allocation, Deadline, DeviceKind, DeviceState, DrainSource, Lease, Phase, ReclaimStage,
    Telemetry, Vendor,
};

use super::Scene;
use super::lease::{holder_kind, state};
use super::time::rfc3339;

impl Scene<'_> {
    /// Every device, by index.
    pub(crate) fn devices(&self) -> Vec<wire::Device> {
        let mut devices: Vec<wire::Device> = self
            .snapshot
            .devices
            .iter()
            .map(|state| self.device(state))
            .collect();
        devices.sort_by(|a, b| (a.index, &a.id).cmp(&(b.index, &b.id)));
        devices
    }

    /// One device with everybody who holds a part of it.
    pub(crate) fn device(&self, known: &DeviceState) -> wire::Device {
        let device = &known.device;
        let reading = known.reading.as_ref();
        let occupants: Vec<_> = known
            .occupants
            .iter()
            .filter_map(|id| self.find(*id))
            .collect();
        let leases = occupants
            .iter()
            .filter_map(|lease| device_lease(lease, known));
        wire::Device {
            id: device.key.id.to_string(),
            index: device.index,
            name: device.name.clone(),
            vendor: vendor(device.vendor),
            kind: kind(device.kind),
            pci_bus_id: device.pci_bus_id.clone(),
            driver: device.driver.clone(),
            found_by: device.found_by.clone(),
            simulated: device.kind == DeviceKind::Simulated,
            leasable: device.leasable,
            memory: memory(known),
            utilisation_percent: reading.and_then(|reading| reading.utilisation_percent),
            temperature_c: reading.and_then(|reading| reading.temperature_c),
            power_mw: reading.and_then(|reading| reading.power_mw),
            telemetry: self.freshness(known),
            read_at: reading.map(|reading| rfc3339(self.now.wall_at(reading.taken))),
            overcommitted: known.overcommitted(),
            lost: known.lost_since.is_some(),
            quarantined: occupants.iter().any(|lease| is_quarantined(lease)),
            cordon: cordon(known),
            drain: drain(&occupants, known),
            labels: known.settings.labels.clone(),
            leases: leases.collect(),
            processes: processes(known),
        }
    }

    fn freshness(&self, known: &DeviceState) -> wire::Freshness {
        match known.device.telemetry {
            Telemetry::Unsupported => wire::Freshness::Unsupported,
            Telemetry::Supported if known.awaits_reading(self.now) => wire::Freshness::Stale,
            Telemetry::Supported => wire::Freshness::Fresh,
        }
    }
}

/// The processes that the driver reports. What they were called with is nobody else's business.
pub(super) fn processes(known: &DeviceState) -> Vec<wire::DeviceProcess> {
    let processes = known
        .reading
        .as_ref()
        .map_or(&[][..], |reading| &reading.processes);
    let shown = processes.iter().map(|process| wire::DeviceProcess {
        pid: process.pid,
        memory: process.memory,
        lease: process.lease.map(|lease| lease.to_string()),
        command: None,
    });
    shown.collect()
}

fn memory(known: &DeviceState) -> wire::DeviceMemory {
    wire::DeviceMemory {
        total: known.device.memory_total,
        reserve: known.settings.reserve,
        granted: known.usage.granted,
        used: known.reading.as_ref().map(|reading| reading.memory_used),
        foreign: known.usage.foreign,
        free: known.free(),
    }
}

fn device_lease(lease: &Lease, known: &DeviceState) -> Option<wire::DeviceLease> {
    let part: &Allocation = lease.occupying()?.on(&known.device.key)?;
    Some(wire::DeviceLease {
        id: lease.id.to_string(),
        holder: lease.request.holder.name.clone(),
        kind: holder_kind(&lease.request.holder.kind),
        state: state(lease),
        memory: part.memory,
        exclusive: part.exclusive,
    })
}

fn is_quarantined(lease: &Lease) -> bool {
    matches!(&lease.phase, Phase::Reclaiming(_, reclaim) if reclaim.stage == ReclaimStage::Quarantined)
}

/// What an operator said goes before what the policy says.
fn cordon(known: &DeviceState) -> Option<wire::Cordon> {
    let by_operator = known.cordon.as_ref().map(|cordon| wire::Cordon {
        reason: Some(cordon.reason.clone()),
        by: cordon.by.clone(),
        until: cordon.until.map(|until| rfc3339(until.wall)),
    });
    let by_policy = || {
        known.settings.cordon.as_ref().map(|reason| wire::Cordon {
            reason: Some(reason.clone()),
            by: "policy".to_owned(),
            until: None,
        })
    };
    by_operator.or_else(by_policy)
}

fn drain(occupants: &[std::sync::Arc<Lease>], known: &DeviceState) -> Option<wire::DeviceDrain> {
    let drains = occupants.iter().filter_map(|lease| {
        let grant = lease.held()?;
        grant.on(&known.device.key)?;
        grant
            .drains
            .get(&DrainSource::Device)
            .map(|drain| drain.deadline)
    });
    let deadlines: Vec<Deadline> = drains.collect();
    let last = deadlines.iter().max()?;
    Some(wire::DeviceDrain {
        leases: u32::try_from(deadlines.len()).unwrap_or(u32::MAX),
        deadline_at: rfc3339(last.wall),
    })
}

fn vendor(vendor: Vendor) -> wire::Vendor {
    match vendor {
        Vendor::Amd => wire::Vendor::Amd,
        Vendor::Intel => wire::Vendor::Intel,
        Vendor::Nvidia => wire::Vendor::Nvidia,
        Vendor::Other => wire::Vendor::Other,
    }
}

fn kind(kind: DeviceKind) -> wire::DeviceKind {
    match kind {
        DeviceKind::Cpu => wire::DeviceKind::Cpu,
        DeviceKind::Discrete => wire::DeviceKind::Discrete,
        DeviceKind::Integrated => wire::DeviceKind::Integrated,
        DeviceKind::Simulated => wire::DeviceKind::Simulated,
        DeviceKind::Virtual => wire::DeviceKind::Virtual,
    }
}
