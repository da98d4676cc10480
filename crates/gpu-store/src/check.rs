//! Whether rows add up: what no books that work would ever have written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use gpu_lease::{Allocation, Counters, DeviceKey, Fence, Grant, Lease, LeaseId, Rows};

/// What was looked at, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// How many rows each table has.
    pub rows: Vec<(&'static str, u64)>,
    /// What is wrong; empty in a store that is sound.
    pub faults: Vec<Fault>,
}

/// Something that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The table.
    pub table: &'static str,
    /// The row in it.
    pub key: String,
    /// What is wrong with it.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, key, detail } = self;
        write!(f, "row `{key}` of table `{table}`: {detail}")
    }
}

impl Fault {
    pub(crate) fn new(table: &'static str, key: impl ToString, detail: impl Into<String>) -> Self {
        Self {
            table,
            key: key.to_string(),
            detail: detail.into(),
        }
    }
}

/// What is wrong with `rows` taken together, each of which is sound by itself.
pub(crate) fn faults(rows: &Rows) -> Vec<Fault> {
    let mut look = Look {
        counters: rows.counters,
        fences: BTreeMap::new(),
        places: BTreeMap::new(),
        keys: BTreeMap::new(),
        devices: BTreeMap::new(),
        faults: Vec::new(),
    };
    for lease in &rows.leases {
        look.at(lease);
    }
    look.at_devices();
    look.faults
}

/// The rows that were looked at.
struct Look<'a> {
    counters: Counters,
    fences: BTreeMap<Fence, LeaseId>,
    places: BTreeMap<u64, LeaseId>,
    keys: BTreeMap<&'a (String, String), LeaseId>,
    devices: BTreeMap<&'a DeviceKey, Vec<(LeaseId, &'a Allocation)>>,
    faults: Vec<Fault>,
}

impl<'a> Look<'a> {
    fn at(&mut self, lease: &'a Lease) {
        let id = lease.id;
        if lease.revision > self.counters.revision {
            let (revision, last) = (lease.revision, self.counters.revision);
            self.fault(
                id,
                format!("revision {revision} is later than {last}, the last"),
            );
        }
        if !lease.is_durable() {
            self.fault(id, "it waits on a connection, which is no row");
        }
        if let Some(wait) = lease.waiting()
            && let Some(other) = self.places.insert(wait.seq, id)
        {
            self.fault(
                id,
                format!("its place in the queue is also that of {other}"),
            );
        }
        if let Some(idempotency) = &lease.request.idempotency
            && let Some(other) = self.keys.insert(&idempotency.key, id)
        {
            self.fault(id, format!("its idempotency key is also that of {other}"));
        }
        if let Some(grant) = lease.grant() {
            self.at_grant(id, grant);
        }
        for part in lease
            .occupying()
            .iter()
            .flat_map(|grant| &grant.allocations)
        {
            self.devices
                .entry(&part.device)
                .or_default()
                .push((id, part));
        }
    }

    fn at_grant(&mut self, id: LeaseId, grant: &Grant) {
        let (fence, next) = (grant.fence, self.counters.next_fence);
        if fence >= next {
            self.fault(
                id,
                format!("fence {} is not below {}, the next", fence.0, next.0),
            );
        }
        if let Some(other) = self.fences.insert(fence, id) {
            self.fault(id, format!("fence {} is also that of {other}", fence.0));
        }
        if grant.generation > self.counters.generation {
            let (generation, last) = (grant.generation, self.counters.generation);
            let detail = format!("policy generation {generation} is later than {last}, the last");
            self.fault(id, detail);
        }
        let devices: BTreeSet<_> = grant.allocations.iter().map(|part| &part.device).collect();
        if devices.is_empty() || devices.len() < grant.allocations.len() {
            self.fault(id, "it holds no device, or one of them twice");
        }
    }

    fn at_devices(&mut self) {
        for (device, parts) in std::mem::take(&mut self.devices) {
            let alone = parts.iter().find(|(_, part)| part.exclusive);
            let Some(&(id, _)) = alone.filter(|_| parts.len() > 1) else {
                continue;
            };
            let others = parts.iter().filter(|(other, _)| *other != id);
            let others: Vec<_> = others.map(|(other, _)| other.to_string()).collect();
            let others = others.join(", ");
            let detail = format!("it holds `{device}` alone, and so do or share it {others}");
            self.fault(id, detail);
        }
    }

    fn fault(&mut self, id: LeaseId, detail: impl Into<String>) {
        self.faults.push(Fault::new("leases", id, detail));
    }
}
