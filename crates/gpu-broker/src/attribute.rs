//! Which lease a process on a device belongs to: that of the nearest ancestor, or of the process
//! group, that a lease registered or declared. Of several, one that holds something on that device.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_lease::{DeviceKey, Lease, LeaseId, Reading};

use crate::process::Processes;

/// Generations of ancestors that are looked at.
const ANCESTORS_MAX: usize = 64;

/// Fills in [`gpu_lease::DeviceProcess::lease`] of every process in `readings`.
pub(crate) fn attribute(
    readings: &mut [Reading],
    leases: &[Arc<Lease>],
    processes: &dyn Processes,
) {
    let registered = Registered::by(leases, processes);
    if registered.claims.is_empty() {
        return;
    }
    for reading in readings {
        for process in &mut reading.processes {
            process.lease = registered.lease_of(process.pid, &reading.device);
        }
    }
}

/// The pids that occupying leases speak for.
struct Registered<'a> {
    claims: BTreeMap<u32, Vec<Claim<'a>>>,
    processes: &'a dyn Processes,
}

struct Claim<'a> {
    lease: &'a Lease,
    /// When the process started, where that is proven and not only declared.
    start_ticks: Option<u64>,
}

impl<'a> Registered<'a> {
    fn by(leases: &'a [Arc<Lease>], processes: &'a dyn Processes) -> Self {
        let mut claims: BTreeMap<u32, Vec<Claim<'a>>> = BTreeMap::new();
        for lease in leases.iter().filter(|lease| lease.occupying().is_some()) {
            let process = lease.process();
            let pid = process.map(|process| process.pid);
            if let Some(pid) = pid.or(lease.request.holder.pid) {
                claims.entry(pid).or_default().push(Claim {
                    lease,
                    start_ticks: process.map(|process| process.start_ticks),
                });
            }
        }
        Self { claims, processes }
    }

    fn lease_of(&self, pid: u32, device: &DeviceKey) -> Option<LeaseId> {
        let mut pid = pid;
        for _ in 0..ANCESTORS_MAX {
            let stat = self.processes.stat(pid);
            let found = self.owner(pid, stat.map(|stat| stat.start_ticks), device);
            let found = found.or_else(|| self.owner_of_group(stat?.group, device));
            match (found, stat) {
                (Some(lease), _) => return Some(lease),
                (None, Some(stat)) if stat.parent > 1 => pid = stat.parent,
                (None, _) => return None,
            }
        }
        None
    }

    fn owner(&self, pid: u32, start_ticks: Option<u64>, device: &DeviceKey) -> Option<LeaseId> {
        let claims = self.claims.get(&pid)?.iter();
        let same =
            claims.filter(|claim| claim.start_ticks.is_none_or(|at| Some(at) == start_ticks));
        let best = same.max_by_key(|claim| (claim.is_on(device), claim.start_ticks.is_some()))?;
        Some(best.lease.id)
    }

    /// A child that outlived its registered parent is still in its process group.
    fn owner_of_group(&self, group: u32, device: &DeviceKey) -> Option<LeaseId> {
        if !self.claims.contains_key(&group) {
            return None;
        }
        let stat = self.processes.stat(group);
        let start_ticks = stat.map(|stat| stat.start_ticks);
        self.owner(group, start_ticks, device)
    }
}

impl Claim<'_> {
    fn is_on(&self, device: &DeviceKey) -> bool {
        let grant = self.lease.occupying();
        grant.is_some_and(|grant| grant.on(device).is_some())
    }
}
