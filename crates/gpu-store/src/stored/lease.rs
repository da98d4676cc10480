//! A lease as it is written; its id is the key of its row.

use std::collections::BTreeMap;

use gpu_lease::{BootMs, Fence, LeaseId};
use serde::{Deserialize, Serialize};

use super::request::Request;
use super::words::{DrainSource, EndReason};
use super::{DeviceKey, Moment};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lease {
    revision: u64,
    request: Request,
    priority: i64,
    created: Moment,
    phase: Phase,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Phase {
    Waiting(Wait),
    Held(Grant),
    Reclaiming { grant: Grant, reclaim: Reclaim },
    Ended(Ending),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    seq: u64,
    until_boot_ms: Option<u64>,
    renew_by_boot_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    fence: u64,
    at: Moment,
    generation: u64,
    allocations: Vec<Allocation>,
    expires: Moment,
    hold_until: Option<Moment>,
    renewed: bool,
    loading: bool,
    unresponsive: bool,
    drains: BTreeMap<DrainSource, Drain>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allocation {
    device: DeviceKey,
    memory: u64,
    exclusive: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    deadline: Moment,
    reason: String,
    by: String,
    /// Left out where it is the deadline, as earlier versions did always: then nothing is ever cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Moment>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reclaim {
    reason: EndReason,
    since: Moment,
    stage: ReclaimStage,
    signal: bool,
    attempt: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum ReclaimStage {
    Verifying,
    Stuck(String),
    Quarantined,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ending {
    at: Moment,
    reason: EndReason,
    grant: Option<Grant>,
}

impl Lease {
    /// The lease in the row of `id`.
    pub(crate) fn into_core(self, id: LeaseId) -> gpu_lease::Lease {
        gpu_lease::Lease {
            id,
            revision: self.revision,
            request: self.request.into(),
            priority: self.priority,
            created: self.created.into(),
            phase: self.phase.into(),
        }
    }
}

impl From<&gpu_lease::Lease> for Lease {
    fn from(lease: &gpu_lease::Lease) -> Self {
        Self {
            revision: lease.revision,
            request: Request::from(&lease.request),
            priority: lease.priority,
            created: lease.created.into(),
            phase: Phase::from(&lease.phase),
        }
    }
}

impl From<&gpu_lease::Phase> for Phase {
    fn from(phase: &gpu_lease::Phase) -> Self {
        match phase {
            gpu_lease::Phase::Waiting(wait) => Self::Waiting(Wait::from(wait)),
            gpu_lease::Phase::Held(grant) => Self::Held(Grant::from(grant)),
            gpu_lease::Phase::Reclaiming(grant, reclaim) => Self::Reclaiming {
                grant: Grant::from(grant),
                reclaim: Reclaim::from(reclaim),
            },
            gpu_lease::Phase::Ended(ending) => Self::Ended(Ending::from(ending)),
        }
    }
}

impl From<Phase> for gpu_lease::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Waiting(wait) => Self::Waiting(wait.into()),
            Phase::Held(grant) => Self::Held(grant.into()),
            Phase::Reclaiming { grant, reclaim } => Self::Reclaiming(grant.into(), reclaim.into()),
            Phase::Ended(ending) => Self::Ended(ending.into()),
        }
    }
}

impl From<&gpu_lease::Wait> for Wait {
    fn from(wait: &gpu_lease::Wait) -> Self {
        Self {
            seq: wait.seq,
            until_boot_ms: wait.until.map(|at| at.0),
            renew_by_boot_ms: wait.renew_by.map(|at| at.0),
        }
    }
}

impl From<Wait> for gpu_lease::Wait {
    fn from(wait: Wait) -> Self {
        Self {
            seq: wait.seq,
            until: wait.until_boot_ms.map(BootMs),
            renew_by: wait.renew_by_boot_ms.map(BootMs),
        }
    }
}

impl From<&gpu_lease::Grant> for Grant {
    fn from(grant: &gpu_lease::Grant) -> Self {
        let drains = grant.drains.iter();
        Self {
            fence: grant.fence.0,
            at: grant.at.into(),
            generation: grant.generation,
            allocations: grant.allocations.iter().map(Allocation::from).collect(),
            expires: grant.expires.into(),
            hold_until: grant.hold_until.map(Into::into),
            renewed: grant.renewed,
            loading: grant.loading,
            unresponsive: grant.unresponsive,
            drains: drains
                .map(|(&source, drain)| (source.into(), Drain::from(drain)))
                .collect(),
        }
    }
}

impl From<Grant> for gpu_lease::Grant {
    fn from(grant: Grant) -> Self {
        let drains = grant.drains.into_iter();
        Self {
            fence: Fence(grant.fence),
            at: grant.at.into(),
            generation: grant.generation,
            allocations: grant.allocations.into_iter().map(Into::into).collect(),
            expires: grant.expires.into(),
            hold_until: grant.hold_until.map(Into::into),
            renewed: grant.renewed,
            loading: grant.loading,
            unresponsive: grant.unresponsive,
            drains: drains
                .map(|(source, drain)| (source.into(), drain.into()))
                .collect(),
        }
    }
}

impl From<&gpu_lease::Allocation> for Allocation {
    fn from(part: &gpu_lease::Allocation) -> Self {
        Self {
            device: DeviceKey::from(&part.device),
            memory: part.memory,
            exclusive: part.exclusive,
        }
    }
}

impl From<Allocation> for gpu_lease::Allocation {
    fn from(part: Allocation) -> Self {
        Self {
            device: part.device.into(),
            memory: part.memory,
            exclusive: part.exclusive,
        }
    }
}

impl From<&gpu_lease::Drain> for Drain {
    fn from(drain: &gpu_lease::Drain) -> Self {
        Self {
            deadline: drain.deadline.into(),
            reason: drain.reason.clone(),
            by: drain.by.clone(),
            since: (drain.since != moment_of(drain.deadline)).then(|| drain.since.into()),
        }
    }
}

impl From<Drain> for gpu_lease::Drain {
    fn from(drain: Drain) -> Self {
        let deadline: gpu_lease::Deadline = drain.deadline.into();
        let at_deadline = moment_of(deadline);
        Self {
            deadline,
            reason: drain.reason,
            by: drain.by,
            since: drain.since.map_or(at_deadline, Into::into),
        }
    }
}

fn moment_of(deadline: gpu_lease::Deadline) -> gpu_lease::At {
    gpu_lease::At {
        boot: deadline.boot,
        wall: deadline.wall,
    }
}

impl From<&gpu_lease::Reclaim> for Reclaim {
    fn from(reclaim: &gpu_lease::Reclaim) -> Self {
        Self {
            reason: reclaim.reason.into(),
            since: reclaim.since.into(),
            stage: ReclaimStage::from(&reclaim.stage),
            signal: reclaim.signal,
            attempt: reclaim.attempt,
        }
    }
}

impl From<Reclaim> for gpu_lease::Reclaim {
    fn from(reclaim: Reclaim) -> Self {
        Self {
            reason: reclaim.reason.into(),
            since: reclaim.since.into(),
            stage: reclaim.stage.into(),
            signal: reclaim.signal,
            attempt: reclaim.attempt,
        }
    }
}

impl From<&gpu_lease::ReclaimStage> for ReclaimStage {
    fn from(stage: &gpu_lease::ReclaimStage) -> Self {
        match stage {
            gpu_lease::ReclaimStage::Verifying => Self::Verifying,
            gpu_lease::ReclaimStage::Stuck(why) => Self::Stuck(why.clone()),
            gpu_lease::ReclaimStage::Quarantined => Self::Quarantined,
        }
    }
}

impl From<ReclaimStage> for gpu_lease::ReclaimStage {
    fn from(stage: ReclaimStage) -> Self {
        match stage {
            ReclaimStage::Verifying => Self::Verifying,
            ReclaimStage::Stuck(why) => Self::Stuck(why),
            ReclaimStage::Quarantined => Self::Quarantined,
        }
    }
}

impl From<&gpu_lease::Ending> for Ending {
    fn from(ending: &gpu_lease::Ending) -> Self {
        Self {
            at: ending.at.into(),
            reason: ending.reason.into(),
            grant: ending.grant.as_ref().map(Grant::from),
        }
    }
}

impl From<Ending> for gpu_lease::Ending {
    fn from(ending: Ending) -> Self {
        Self {
            at: ending.at.into(),
            reason: ending.reason.into(),
            grant: ending.grant.map(Into::into),
        }
    }
}
