//! Which lease a process on a device belongs to: that of the nearest ancestor, or of the process
//! group, that a lease registered or declared.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_lease::{Lease, LeaseId, Reading};

use crate::process::Stat;

/// Generations of ancestors that are looked at.
const ANCESTORS_MAX: usize = 64;

/// Fills in [`gpu_lease::DeviceProcess::lease`] of every process in `readings`.
pub(crate) fn attribute(readings: &mut [Reading], leases: &[Arc<Lease>]) {
    let registered = Registered::by(leases);
    if registered.pids.is_empty() {
        return;
    }
    let processes = readings
        .iter_mut()
        .flat_map(|reading| &mut reading.processes);
    for process in processes {
        process.lease = registered.lease_of(process.pid);
    }
}

/// The pids that occupying leases speak for, with the start time where it is proven.
struct Registered {
    pids: BTreeMap<u32, (Option<u64>, LeaseId)>,
}

impl Registered {
    fn by(leases: &[Arc<Lease>]) -> Self {
        let mut pids = BTreeMap::new();
        for lease in leases.iter().filter(|lease| lease.occupying().is_some()) {
            match (lease.process(), lease.request.holder.pid) {
                (Some(process), _) => {
                    pids.insert(process.pid, (Some(process.start_ticks), lease.id));
                }
                // Only declared: a proven registration of the same pid goes before it.
                (None, Some(pid)) => {
                    pids.entry(pid).or_insert((None, lease.id));
                }
                (None, None) => {}
            }
        }
        Self { pids }
    }

    fn lease_of(&self, pid: u32) -> Option<LeaseId> {
        let mut pid = pid;
        for _ in 0..ANCESTORS_MAX {
            let stat = Stat::of(pid).ok();
            let found = self.owner(pid, stat.map(|stat| stat.start_ticks));
            let found = found.or_else(|| self.owner_of_group(stat?.group));
            match (found, stat) {
                (Some(lease), _) => return Some(lease),
                (None, Some(stat)) if stat.parent > 1 => pid = stat.parent,
                (None, _) => return None,
            }
        }
        None
    }

    fn owner(&self, pid: u32, start_ticks: Option<u64>) -> Option<LeaseId> {
        let (proven, lease) = self.pids.get(&pid)?;
        let same = proven.is_none() || *proven == start_ticks;
        same.then_some(*lease)
    }

    /// A child that outlived its registered parent is still in its process group.
    fn owner_of_group(&self, group: u32) -> Option<LeaseId> {
        let start_ticks = Stat::of(group).ok().map(|stat| stat.start_ticks);
        self.owner(group, start_ticks)
    }
}
