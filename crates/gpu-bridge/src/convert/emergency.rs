//! An emergency release: what it is aimed at, and what is really free afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpu_api as wire;
use gpu_api::{ErrorCode, Problem};
use gpu_broker::Handle;
use gpu_lease::{Bytes, DeviceKey, DeviceState, Lease, LeaseId, Targets};

use super::Scene;
use super::denial::no_such_device;
use super::device::processes;

/// What the books are asked to end, one command each.
///
/// # Errors
/// Nothing is selected, or something that is not there.
pub(crate) fn targets(
    asked: &wire::EmergencyRequest,
    scene: &Scene<'_>,
) -> Result<Vec<Targets>, Problem> {
    let selection = asked.selection();
    let (stuck, devices, leases) =
        match selection.map_err(|why| Problem::new(ErrorCode::InvalidRequest, why))? {
            wire::Selection::All => return Ok(vec![Targets::All]),
            wire::Selection::Some {
                stuck,
                devices,
                leases,
            } => (stuck, devices, leases),
        };
    let mut targets = Vec::new();
    if stuck {
        targets.push(Targets::Stuck);
    }
    if !devices.is_empty() {
        targets.push(Targets::Devices(known_devices(&devices, scene)?));
    }
    if !leases.is_empty() {
        targets.push(Targets::Leases(known_leases(&leases, scene)?));
    }
    Ok(targets)
}

/// What is remembered of the time before the release, to tell what it did.
pub(crate) struct EmergencyReport {
    leases: BTreeMap<LeaseId, Arc<Lease>>,
    devices: BTreeSet<DeviceKey>,
}

impl EmergencyReport {
    /// Looks at everything that a release can end.
    pub(crate) fn before(targets: &[Targets], scene: &Scene<'_>) -> Self {
        let held = scene
            .snapshot
            .devices
            .iter()
            .flat_map(|device| device.occupants.iter().copied());
        let waiting = scene.snapshot.waiting.iter().map(|(id, _)| *id);
        let leases = held
            .chain(waiting)
            .filter_map(|id| Some((id, scene.find(id)?)));
        let named = targets.iter().flat_map(|targets| match targets {
            Targets::Devices(devices) => devices.clone(),
            Targets::All | Targets::Leases(_) | Targets::Stuck => Vec::new(),
        });
        Self {
            leases: leases.collect(),
            devices: named.collect(),
        }
    }

    /// What was done and what is free, once `ended` has ended.
    pub(crate) fn after(mut self, ended: &[LeaseId], scene: &Scene<'_>) -> wire::EmergencyResult {
        let (mut released, mut cancelled) = (Vec::new(), Vec::new());
        for id in ended {
            // It may have been granted since the first look; who waited on a connection is known from there alone.
            let before = self.leases.get(id).cloned();
            let lease = scene.find(*id).or(before);
            let grant = lease.as_ref().and_then(|lease| lease.grant());
            let devices: Vec<DeviceKey> = grant.map_or_else(Vec::new, |grant| {
                grant
                    .allocations
                    .iter()
                    .map(|part| part.device.clone())
                    .collect()
            });
            let entry = wire::EndedLease {
                id: id.to_string(),
                holder: lease
                    .as_ref()
                    .map_or_else(String::new, |lease| lease.request.holder.name.clone()),
                devices: devices.iter().map(|key| key.id.to_string()).collect(),
            };
            match devices.is_empty() {
                true => cancelled.push(entry),
                false => released.push(entry),
            }
            self.devices.extend(devices);
        }
        let mut devices: Vec<&DeviceState> = self
            .devices
            .iter()
            .filter_map(|key| scene.device_state(key))
            .collect();
        devices.sort_by_key(|state| state.device.index);
        wire::EmergencyResult {
            summary: summary(released.len(), cancelled.len(), &devices),
            released,
            cancelled,
            devices: devices.into_iter().map(device_free).collect(),
        }
    }
}

/// What a release did to the books of a broker that has no devices: `before` are its leases until then.
pub fn stored_emergency(
    before: Vec<Arc<Lease>>,
    ended: &[LeaseId],
    handle: &Handle,
) -> wire::EmergencyResult {
    let before = before.into_iter().map(|lease| (lease.id, lease));
    let report = EmergencyReport {
        leases: before.collect(),
        devices: BTreeSet::new(),
    };
    report.after(ended, &Scene::of(handle, None))
}

fn known_devices(ids: &[String], scene: &Scene<'_>) -> Result<Vec<DeviceKey>, Problem> {
    let known = |id: &String| {
        let key = DeviceKey::local(id);
        match scene.knows(&key) {
            true => Ok(key),
            false => Err(no_such_device(id)),
        }
    };
    ids.iter().map(known).collect()
}

fn known_leases(ids: &[String], scene: &Scene<'_>) -> Result<Vec<LeaseId>, Problem> {
    let known = |text: &String| {
        let id = text.parse().ok().filter(|id| scene.find(*id).is_some());
        id.ok_or_else(|| Problem::new(ErrorCode::NotFound, format!("no lease `{text}`")))
    };
    ids.iter().map(known).collect()
}

fn device_free(known: &DeviceState) -> wire::DeviceFree {
    wire::DeviceFree {
        id: known.device.key.id.to_string(),
        index: known.device.index,
        total: known.device.memory_total,
        free: known.free(),
        reclaiming: known.usage.reclaiming,
        processes: processes(known),
        cordoned: known.cordoned().is_some(),
    }
}

/// `released 2; GPU-1 still has 20.1 GiB by pid 4242, not granted until gone`
fn summary(released: usize, cancelled: usize, devices: &[&DeviceState]) -> String {
    let mut parts = vec![match cancelled {
        0 => format!("released {released}"),
        1 => format!("released {released}, cancelled 1 waiter"),
        n => format!("released {released}, cancelled {n} waiters"),
    }];
    parts.extend(devices.iter().map(|state| device_summary(state)));
    parts.join("; ")
}

fn device_summary(known: &DeviceState) -> String {
    let id = &known.device.key.id;
    let there = known
        .reading
        .as_ref()
        .map_or(&[][..], |reading| &reading.processes);
    let in_use = there
        .iter()
        .filter_map(|process| process.memory)
        .fold(0, u64::saturating_add);
    let pids: Vec<String> = there
        .iter()
        .map(|process| process.pid.to_string())
        .collect();
    match (known.usage.reclaiming, pids.is_empty()) {
        (0, _) => format!("{id} has {} free", Bytes(known.free())),
        (_, false) => format!(
            "{id} still has {} by pid {}, not granted until gone",
            Bytes(in_use),
            pids.join(", ")
        ),
        (held_back, true) => format!(
            "{id} holds {} back until the holder is proven gone",
            Bytes(held_back)
        ),
    }
}

#[cfg(test)]
mod tests {
    use gpu_lease::{
        BootMs, Device, DeviceKind, DeviceProcess, DeviceSettings, Reading, Telemetry, Usage,
        Vendor,
    };

    use super::*;

    fn device(id: &str, reclaiming: u64, pids: &[u32]) -> DeviceState {
        let key = DeviceKey::local(id);
        let process = |&pid: &u32| DeviceProcess {
            pid,
            memory: Some(10 << 30),
            lease: None,
        };
        DeviceState {
            device: Device {
                key: key.clone(),
                name: "a card".into(),
                index: 0,
                vendor: Vendor::Nvidia,
                kind: DeviceKind::Discrete,
                pci_bus_id: None,
                nvml_uuid: None,
                driver: None,
                memory_total: 24 << 30,
                telemetry: Telemetry::Supported,
                leasable: true,
                found_by: vec![],
            },
            settings: DeviceSettings {
                reserve: 0,
                load_slots: 1,
                labels: vec![],
                cordon: None,
            },
            cordon: None,
            reading: Some(Reading {
                device: key,
                taken: BootMs(0),
                memory_used: 0,
                processes: pids.iter().map(process).collect(),
                utilisation_percent: None,
                temperature_c: None,
                power_mw: None,
            }),
            lost_since: None,
            read_after: None,
            occupants: BTreeSet::new(),
            peaks: std::collections::BTreeMap::new(),
            usage: Usage {
                charged: reclaiming,
                reclaiming,
                ..Usage::default()
            },
        }
    }

    #[test]
    fn the_summary_says_what_is_really_free() {
        let free = device("GPU-0", 0, &[]);
        let busy = device("GPU-1", 20 << 30, &[4242, 4243]);
        let unseen = device("sim-0", 8 << 30, &[]);
        for (released, cancelled, devices, expected) in [
            (0, 0, vec![], "released 0"),
            (
                1,
                1,
                vec![&free],
                "released 1, cancelled 1 waiter; GPU-0 has 24 GiB free",
            ),
            (
                2,
                0,
                vec![&busy],
                "released 2; GPU-1 still has 20 GiB by pid 4242, 4243, not granted until gone",
            ),
            (
                1,
                3,
                vec![&unseen],
                "released 1, cancelled 3 waiters; sim-0 holds 8 GiB back until the holder is proven gone",
            ),
        ] {
            assert_eq!(summary(released, cancelled, &devices), expected);
        }
    }
}
