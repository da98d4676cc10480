//! A lease as the API shows it.

use std::collections::BTreeMap;

use gpu_api as wire;
use gpu_lease::{
    Allocation, Amount, At, Blocker, Cause, DeviceKey, DeviceState, DrainSource, EndReason, Grant,
    HolderKind, Lease, LeaseId, Obstacle, Phase, QueueOrder, Reclaim, ReclaimStage, Telemetry,
    Vendor, Why,
};

use super::Scene;
use super::time::rfc3339;
use crate::app::safe_start_reason;

impl Scene<'_> {
    /// A lease, without its secret.
    pub(crate) fn lease(&self, lease: &Lease) -> wire::Lease {
        let grant = lease.grant();
        let current = lease.held();
        wire::Lease {
            id: lease.id.to_string(),
            revision: lease.revision,
            state: state(lease),
            end_reason: lease.end_reason().map(end_reason),
            fence: grant.map(|grant| grant.fence.0),
            unresponsive: current.is_some_and(|grant| grant.unresponsive),
            reclaim: reclaiming(lease).map(reclaim),
            holder: holder(lease),
            class: lease.request.class.clone(),
            priority: self.priority(lease),
            wanted: wanted(lease),
            allocations: grant.map_or_else(Vec::new, |grant| self.allocations(grant)),
            env: current.map_or_else(BTreeMap::new, |grant| self.env(lease.id, grant)),
            waiting: lease.waiting().and_then(|_| self.waiting(lease.id)),
            loading: current.is_some_and(|grant| grant.loading),
            policy_generation: grant
                .map_or(self.snapshot.counters.generation, |grant| grant.generation),
            created_at: rfc3339(lease.created.wall),
            granted_at: grant.map(|grant| rfc3339(grant.at.wall)),
            expires_at: current.map(|grant| rfc3339(grant.lasts_until().wall)),
            remaining_ms: current.map(|grant| (grant.lasts_until().boot - self.now.boot).0),
            ttl_ms: lease.request.ttl.0,
            hold_until: current
                .and_then(|grant| grant.hold_until)
                .map(|until| rfc3339(until.wall)),
            ended_at: ended(lease).map(|at| rfc3339(at.wall)),
            drain: current.and_then(|grant| drain(grant, self.now)),
            observed: lease
                .occupying()
                .and_then(|grant| self.observed(lease.id, grant)),
            enforcement: self.enforcement(lease),
            labels: lease.request.labels.clone(),
            secret: None,
        }
    }

    /// Why `id` waits, if it does.
    pub(crate) fn waiting(&self, id: LeaseId) -> Option<wire::Waiting> {
        self.why(id).map(|why| self.reason(why))
    }

    /// Why `id` waits, as the books say it.
    pub(crate) fn why(&self, id: LeaseId) -> Option<&Why> {
        let mut waiting = self.snapshot.waiting.iter();
        waiting
            .find(|(waiter, _)| *waiter == id)
            .map(|(_, why)| why)
    }

    /// A reason to wait in the words of the API.
    pub(crate) fn reason(&self, why: &Why) -> wire::Waiting {
        let leases = why
            .blockers()
            .map(|(device, blocker)| blocker_of(Some(device), blocker));
        let of_quota = why.quota_holders().iter();
        let leases = leases.chain(of_quota.map(|blocker| blocker_of(None, blocker)));
        let (reason_code, reason) = self.safe_reason(why).unwrap_or_else(|| {
            let code = why.code().to_owned();
            (code, why.to_string())
        });
        wire::Waiting {
            position: why.position,
            reason_code,
            reason,
            blockers: leases.chain(foreign_blockers(why)).collect(),
            eligible_at: why.eligible_at().map(rfc3339),
            eta_ms: why.start.map(|start| (start - self.now.boot).0),
        }
    }

    /// A broker that started safe does not discover devices later.
    fn safe_reason(&self, why: &Why) -> Option<(String, String)> {
        let safe = self.safe_start.filter(|_| why.cause == Cause::Recovering)?;
        let code = wire::ErrorCode::SafeStart.as_str().to_owned();
        Some((code, safe_start_reason(safe)))
    }

    /// Whether the device is there, or something is held on it though nobody has found it yet.
    pub(crate) fn knows(&self, key: &DeviceKey) -> bool {
        let holds = |lease: &Lease| {
            lease
                .occupying()
                .is_some_and(|grant| grant.on(key).is_some())
        };
        self.device_state(key).is_some()
            || self
                .handle
                .is_some_and(|handle| handle.find_by(holds).is_some())
    }

    pub(crate) fn device_state(&self, key: &DeviceKey) -> Option<&DeviceState> {
        self.snapshot
            .devices
            .iter()
            .find(|state| state.device.key == *key)
    }

    /// A waiter's priority rises while it waits.
    fn priority(&self, lease: &Lease) -> i64 {
        let policy = &self.snapshot.policy;
        match policy.queue.order {
            QueueOrder::FairShare | QueueOrder::Priority if lease.waiting().is_some() => {
                policy.effective_priority(lease, self.now.boot)
            }
            QueueOrder::FairShare | QueueOrder::Fifo | QueueOrder::Priority => lease.priority,
        }
    }

    fn allocations(&self, grant: &Grant) -> Vec<wire::Allocation> {
        let shown = |part: &Allocation| {
            let device = self.device_state(&part.device).map(|state| &state.device);
            wire::Allocation {
                device: part.device.id.to_string(),
                name: device.map_or_else(String::new, |device| device.name.clone()),
                index: device.map_or(0, |device| device.index),
                memory: part.memory,
                exclusive: part.exclusive,
                compute: None,
            }
        };
        grant.allocations.iter().map(shown).collect()
    }

    /// The environment that shows a job its devices and no others.
    fn env(&self, id: LeaseId, grant: &Grant) -> BTreeMap<String, String> {
        let held: Vec<&DeviceState> = grant
            .allocations
            .iter()
            .filter_map(|part| self.device_state(&part.device))
            .collect();
        let mut env = BTreeMap::from([
            (wire::ENV_LEASE.to_owned(), id.to_string()),
            (wire::ENV_FENCE.to_owned(), grant.fence.to_string()),
        ]);
        let mut set = |name: &str, values: Vec<String>| {
            if !values.is_empty() {
                env.insert(name.to_owned(), values.join(","));
            }
        };
        let ids = grant
            .allocations
            .iter()
            .map(|part| part.device.id.to_string());
        set("GPU_MANAGER_DEVICES", ids.collect());
        let uuids: Vec<String> = held
            .iter()
            .filter_map(|state| state.device.nvml_uuid.clone())
            .collect();
        let ordered = if uuids.is_empty() {
            Vec::new()
        } else {
            vec!["PCI_BUS_ID".to_owned()]
        };
        set("CUDA_DEVICE_ORDER", ordered);
        set("CUDA_VISIBLE_DEVICES", uuids.clone());
        set("NVIDIA_VISIBLE_DEVICES", uuids);
        let amd: Vec<String> = held
            .iter()
            .filter_map(|state| self.amd_index(state))
            .collect();
        // HIP counts among the devices that ROCR lets through.
        set(
            "HIP_VISIBLE_DEVICES",
            (0..amd.len()).map(|place| place.to_string()).collect(),
        );
        set("ROCR_VISIBLE_DEVICES", amd);
        env
    }

    /// The place of an AMD device among the host's AMD devices, as ROCr counts.
    fn amd_index(&self, state: &DeviceState) -> Option<String> {
        let is_amd = |state: &DeviceState| {
            state.device.vendor == Vendor::Amd && state.device.pci_bus_id.is_some()
        };
        let before =
            |other: &&DeviceState| is_amd(other) && other.device.index < state.device.index;
        is_amd(state).then(|| {
            self.snapshot
                .devices
                .iter()
                .filter(before)
                .count()
                .to_string()
        })
    }

    /// The peak is of each device; on several devices their sum is the most that can have been.
    fn observed(&self, id: LeaseId, grant: &Grant) -> Option<wire::Observed> {
        let parts = grant.allocations.iter();
        let states: Vec<_> = parts
            .filter_map(|part| self.device_state(&part.device))
            .collect();
        let readings = states.iter().filter_map(|state| state.observed(id));
        let peaks = states
            .iter()
            .filter_map(|state| state.peaks.get(&id).copied());
        Some(wire::Observed {
            memory: readings.reduce(u64::saturating_add)?,
            peak: peaks.reduce(u64::saturating_add),
        })
    }

    /// Observed only if every device of the grant can be read; nothing here holds a holder to its grant.
    fn enforcement(&self, lease: &Lease) -> wire::Enforcement {
        let parts = lease.grant().map_or(&[][..], |grant| &grant.allocations);
        let read = |part: &Allocation| {
            let state = self.device_state(&part.device);
            state.is_some_and(|state| state.device.telemetry == Telemetry::Supported)
        };
        match !parts.is_empty() && parts.iter().all(read) {
            true => wire::Enforcement::Observed,
            false => wire::Enforcement::Advisory,
        }
    }
}

/// Where a lease stands.
pub(crate) fn state(lease: &Lease) -> wire::LeaseState {
    match &lease.phase {
        Phase::Waiting(_) => wire::LeaseState::Waiting,
        Phase::Held(grant) if grant.drains.is_empty() => wire::LeaseState::Active,
        Phase::Held(_) => wire::LeaseState::Draining,
        Phase::Reclaiming(..) => wire::LeaseState::Reclaiming,
        Phase::Ended(_) => wire::LeaseState::Ended,
    }
}

pub(super) fn holder_kind(kind: &HolderKind) -> wire::HolderKind {
    match kind {
        HolderKind::Page => wire::HolderKind::Page,
        HolderKind::Process(_) => wire::HolderKind::Process,
        HolderKind::Remote => wire::HolderKind::Remote,
    }
}

fn end_reason(reason: EndReason) -> wire::EndReason {
    match reason {
        EndReason::Cancelled => wire::EndReason::Cancelled,
        EndReason::Denied => wire::EndReason::Denied,
        EndReason::DeviceLost => wire::EndReason::DeviceLost,
        EndReason::Emergency => wire::EndReason::Emergency,
        EndReason::Expired => wire::EndReason::Expired,
        EndReason::HostRebooted => wire::EndReason::HostRebooted,
        EndReason::MaxHold => wire::EndReason::MaxHold,
        EndReason::Policy => wire::EndReason::Policy,
        EndReason::Preempted => wire::EndReason::Preempted,
        EndReason::ProcessGone => wire::EndReason::ProcessGone,
        EndReason::Released => wire::EndReason::Released,
        EndReason::Revoked => wire::EndReason::Revoked,
        EndReason::WaitTimeout => wire::EndReason::WaitTimeout,
    }
}

fn reclaiming(lease: &Lease) -> Option<&Reclaim> {
    match &lease.phase {
        Phase::Reclaiming(_, reclaim) => Some(reclaim),
        Phase::Waiting(_) | Phase::Held(_) | Phase::Ended(_) => None,
    }
}

fn reclaim(reclaim: &Reclaim) -> wire::Reclaim {
    let (phase, reason) = match &reclaim.stage {
        ReclaimStage::Verifying => (
            wire::ReclaimPhase::Verifying,
            "waits for the proof that its holder is gone",
        ),
        ReclaimStage::Stuck(why) => (wire::ReclaimPhase::Stuck, why.as_str()),
        ReclaimStage::Quarantined => (
            wire::ReclaimPhase::Quarantined,
            "the proof that its holder is gone did not come in time",
        ),
    };
    wire::Reclaim {
        phase,
        reason: reason.to_owned(),
        since: rfc3339(reclaim.since.wall),
    }
}

fn ended(lease: &Lease) -> Option<At> {
    match &lease.phase {
        Phase::Ended(ending) => Some(ending.at),
        Phase::Waiting(_) | Phase::Held(_) | Phase::Reclaiming(..) => None,
    }
}

fn holder(lease: &Lease) -> wire::Holder {
    let holder = &lease.request.holder;
    wire::Holder {
        name: holder.name.clone(),
        kind: holder_kind(&holder.kind),
        tenant: holder.tenant.clone(),
        user: holder.user.clone(),
        pid: lease.process().map(|process| process.pid).or(holder.pid),
    }
}

fn wanted(lease: &Lease) -> wire::Wanted {
    let request = &lease.request;
    let memory = match request.amount {
        Amount::Exclusive => None,
        Amount::Memory(bytes) => Some(bytes),
    };
    let named = request.select.ids.as_ref().map(|ids| {
        let ids: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
        wire::select::of_ids(&ids)
    });
    let terms: Vec<String> = named
        .into_iter()
        .chain(request.select.filters.iter().cloned())
        .collect();
    let select = match terms.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => Some(format!("({})", several.join(") && ("))),
    };
    wire::Wanted {
        devices: request.devices,
        memory,
        exclusive: memory.is_none(),
        select,
        max_hold_ms: request.max_hold.map(|hold| hold.0),
    }
}

fn drain(grant: &Grant, now: At) -> Option<wire::Drain> {
    let mut drains: Vec<_> = grant.drains.iter().collect();
    drains.sort_by_key(|(_, drain)| drain.deadline);
    let cause = |(source, drain): (&DrainSource, &gpu_lease::Drain)| wire::Cause {
        source: cause_source(*source),
        reason: drain.reason.clone(),
        by: Some(drain.by.clone()).filter(|by| !by.is_empty()),
        deadline_at: rfc3339(drain.deadline.wall),
        remaining_ms: (drain.deadline.boot - now.boot).0,
    };
    let causes: Vec<wire::Cause> = drains.into_iter().map(cause).collect();
    (!causes.is_empty()).then_some(wire::Drain { causes })
}

fn cause_source(source: DrainSource) -> wire::CauseSource {
    match source {
        DrainSource::Device => wire::CauseSource::Device,
        DrainSource::Operator => wire::CauseSource::Operator,
        DrainSource::Policy => wire::CauseSource::Policy,
        DrainSource::Preemption => wire::CauseSource::Preemption,
    }
}

/// Who holds a quota is in the way on no device in particular.
fn blocker_of(device: Option<&DeviceKey>, blocker: &Blocker) -> wire::Blocker {
    wire::Blocker {
        lease: Some(blocker.lease.to_string()),
        holder: blocker.holder.clone(),
        device: device.map(|device| device.id.to_string()),
        memory: Some(blocker.memory),
        until: blocker.until.map(rfc3339),
    }
}

/// Processes without a lease that are in the way.
fn foreign_blockers(why: &Why) -> impl Iterator<Item = wire::Blocker> {
    let devices = match &why.cause {
        Cause::Devices(devices) => devices.as_slice(),
        Cause::Behind(_) | Cause::Quota { .. } | Cause::Recovering | Cause::Rule { .. } => &[],
    };
    devices.iter().filter_map(|device| match device.obstacle {
        Obstacle::Foreign(bytes) => Some(wire::Blocker {
            lease: None,
            holder: "processes without a lease".to_owned(),
            device: Some(device.device.id.to_string()),
            memory: Some(bytes),
            until: None,
        }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use gpu_broker::Snapshot;
    use gpu_lease::{Amount, At, Cause, Counters, Fence, LeaseId, Policy, Why};

    use crate::convert::Scene;

    fn scene(safe_start: Option<&str>) -> Scene<'_> {
        Scene {
            handle: None,
            now: At::default(),
            snapshot: Arc::new(Snapshot {
                counters: Counters {
                    revision: 1,
                    next_fence: Fence(1),
                    generation: 1,
                },
                recovering: true,
                devices: Vec::new(),
                tenants: Vec::new(),
                waiting: Arc::default(),
                policy: Arc::new(Policy::built_in()),
            }),
            occupants: BTreeMap::new(),
            safe_start,
        }
    }

    fn shown(safe_start: Option<&str>, cause: Cause) -> (String, String) {
        let waiting = scene(safe_start).reason(&Why {
            devices: 1,
            amount: Amount::Exclusive,
            position: 1,
            cause,
            start: None,
        });
        (waiting.reason_code, waiting.reason)
    }

    #[test]
    fn a_waiter_of_a_broker_that_started_safe_is_told_so() {
        let (code, reason) = shown(None, Cause::Recovering);
        assert_eq!(code, "recovering");
        assert!(reason.contains("discovered"), "{reason}");
        let (code, reason) = shown(Some("3 starts"), Cause::Recovering);
        assert_eq!(code, "safe_start");
        assert!(
            reason.contains("started safe") && reason.contains("3 starts"),
            "{reason}"
        );
        let (code, _) = shown(Some("3 starts"), Cause::Behind(LeaseId::from_bits(1)));
        assert_eq!(code, "behind_head", "what is true anyway");
    }
}
