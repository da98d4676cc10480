//! A lease and its life: `waiting -> held (active or draining) -> reclaiming -> ended`.
//!
//! Each phase carries exactly what that phase needs; what can be derived is a method.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::ids::{DeviceKey, Fence, LeaseId, Process};
use crate::request::Request;
use crate::time::{At, BootMs, Ms, WallMs};

/// A request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// The revision of the books at its last change.
    pub revision: u64,
    /// What was asked for.
    pub request: Request,
    /// The priority of its class when it arrived; a later policy does not move it.
    pub priority: i64,
    /// When the request arrived.
    pub created: At,
    /// Where it is in its life.
    pub phase: Phase,
}

/// Where a lease is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In the queue, bound to no device.
    Waiting(Wait),
    /// Granted: active, or draining while it has a cause to.
    Held(Grant),
    /// Its fence is no longer current, its memory not yet free.
    Reclaiming(Grant, Reclaim),
    /// Over.
    Ended(Ending),
}

/// A place in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Order of arrival.
    pub seq: u64,
    /// When the wait is over without a grant.
    pub until: Option<BootMs>,
    /// When a queued request is given up unless it is renewed; `None` is bound to its connection.
    pub renew_by: Option<BootMs>,
}

/// What was granted, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The number of this grant; higher than that of every grant before.
    pub fence: Fence,
    /// When it was made.
    pub at: At,
    /// The policy generation that it was decided by.
    pub generation: u64,
    /// What of which device, in the order of the devices' keys.
    pub allocations: Vec<Allocation>,
    /// The next heartbeat is due by then.
    pub expires: Deadline,
    /// The end of its longest time to be held.
    pub hold_until: Option<Deadline>,
    /// Whether any heartbeat has come.
    pub renewed: bool,
    /// Whether it takes its devices' load slots.
    pub loading: bool,
    /// A heartbeat was missed by a holder whose process is known to live.
    pub unresponsive: bool,
    /// Why and by when it should go, by source.
    pub drains: BTreeMap<DrainSource, Drain>,
}

/// A share of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The device.
    pub device: DeviceKey,
    /// Bytes granted; the whole device when exclusive.
    pub memory: u64,
    /// Whether nobody else may be there.
    pub exclusive: bool,
}

/// A point in time that decides (`boot`) with the civil time it was shown as (`wall`), stamped once
/// so that what people see does not jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    /// What is compared.
    pub boot: BootMs,
    /// What is shown.
    pub wall: WallMs,
}

/// Who asks a holder to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainSource {
    /// Its device is being drained.
    Device,
    /// An operator named the lease.
    Operator,
    /// A policy that no longer allows it.
    Policy,
    /// A request of a class that may preempt it.
    Preemption,
}

/// A cause to go, with its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// When it is ended by force.
    pub deadline: Deadline,
    /// For the holder.
    pub reason: String,
    /// Who asked.
    pub by: String,
    /// When it was first asked; a later policy with another grace counts from here.
    pub since: At,
}

/// Memory on its way back after a forced end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// Why the lease ended.
    pub reason: EndReason,
    /// Since when.
    pub since: At,
    /// How far it got.
    pub stage: ReclaimStage,
    /// Whether the holder's process may be signalled.
    pub signal: bool,
    /// How many signals were asked for; a result that cites another attempt is stale.
    pub attempt: u32,
}

/// How far reclaiming got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReclaimStage {
    /// Waiting for the proof that the holder is gone, or for the delay.
    Verifying,
    /// The holder may live and is not signalled, for the reason given.
    Stuck(String),
    /// The proof did not come in time; the capacity stays out of use.
    Quarantined,
}

/// The end of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// When it was over.
    pub at: At,
    /// Why.
    pub reason: EndReason,
    /// What it held; `None` if it was never granted.
    pub grant: Option<Grant>,
}

/// Why a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndReason {
    /// Its holder left the queue.
    Cancelled,
    /// A policy refuses it.
    Denied,
    /// A device of it was lost.
    DeviceLost,
    /// An emergency release.
    Emergency,
    /// No heartbeat.
    Expired,
    /// Another boot.
    HostRebooted,
    /// Its longest time was over.
    MaxHold,
    /// A policy that no longer allows it.
    Policy,
    /// A request that may preempt it.
    Preempted,
    /// Its process is gone.
    ProcessGone,
    /// Its holder gave it back.
    Released,
    /// An operator took it.
    Revoked,
    /// Its wait was over.
    WaitTimeout,
}

impl EndReason {
    /// The word for it in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Denied => "denied",
            Self::DeviceLost => "device_lost",
            Self::Emergency => "emergency",
            Self::Expired => "expired",
            Self::HostRebooted => "host_rebooted",
            Self::MaxHold => "max_hold",
            Self::Policy => "policy",
            Self::Preempted => "preempted",
            Self::ProcessGone => "process_gone",
            Self::Released => "released",
            Self::Revoked => "revoked",
            Self::WaitTimeout => "wait_timeout",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl DrainSource {
    /// The word for it in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Operator => "operator",
            Self::Policy => "policy",
            Self::Preemption => "preemption",
        }
    }

    /// How a lease ends whose deadline of this source has passed.
    pub(crate) fn end_reason(self) -> EndReason {
        match self {
            Self::Device | Self::Operator => EndReason::Revoked,
            Self::Policy => EndReason::Policy,
            Self::Preemption => EndReason::Preempted,
        }
    }
}

impl At {
    /// The deadline `length` from here.
    pub fn after(self, length: Ms) -> Deadline {
        Deadline {
            boot: self.boot + length,
            wall: WallMs(self.wall.0.saturating_add(length.0)),
        }
    }
}

impl Grant {
    /// The drain cause that rules: the one with the earliest deadline.
    pub fn drain(&self) -> Option<(DrainSource, &Drain)> {
        let causes = self.drains.iter().map(|(&source, drain)| (source, drain));
        causes.min_by_key(|(source, drain)| (drain.deadline, *source))
    }

    /// How long it lasts unless it is renewed, and never longer than it may: what people are shown.
    pub fn lasts_until(&self) -> Deadline {
        let end = self.known_end();
        end.map_or(self.expires, |end| end.min(self.expires))
    }

    /// What it holds of `device`.
    pub fn on(&self, device: &DeviceKey) -> Option<&Allocation> {
        self.allocations.iter().find(|part| part.device == *device)
    }

    /// Bytes granted on all devices together.
    pub fn memory(&self) -> u64 {
        self.allocations.iter().map(|part| part.memory).sum()
    }

    /// When it must be over at the latest, where that is known: the end of its hold or of its drain.
    pub fn known_end(&self) -> Option<Deadline> {
        let drain = self.drain().map(|(_, drain)| drain.deadline);
        [self.hold_until, drain].into_iter().flatten().min()
    }
}

impl Lease {
    /// What is held of devices: by a holder, or until it is reclaimed.
    pub fn occupying(&self) -> Option<&Grant> {
        match &self.phase {
            Phase::Held(grant) | Phase::Reclaiming(grant, _) => Some(grant),
            Phase::Waiting(_) | Phase::Ended(_) => None,
        }
    }

    /// The grant whose fence is current.
    pub fn held(&self) -> Option<&Grant> {
        match &self.phase {
            Phase::Held(grant) => Some(grant),
            Phase::Waiting(_) | Phase::Reclaiming(..) | Phase::Ended(_) => None,
        }
    }

    /// The grant, current or past.
    pub fn grant(&self) -> Option<&Grant> {
        match &self.phase {
            Phase::Held(grant) | Phase::Reclaiming(grant, _) => Some(grant),
            Phase::Ended(ending) => ending.grant.as_ref(),
            Phase::Waiting(_) => None,
        }
    }

    /// The place in the queue, if it is there.
    pub fn waiting(&self) -> Option<&Wait> {
        match &self.phase {
            Phase::Waiting(wait) => Some(wait),
            Phase::Held(_) | Phase::Reclaiming(..) | Phase::Ended(_) => None,
        }
    }

    /// Why it ended; set from where its fence is no longer current.
    pub fn end_reason(&self) -> Option<EndReason> {
        match &self.phase {
            Phase::Reclaiming(_, reclaim) => Some(reclaim.reason),
            Phase::Ended(ending) => Some(ending.reason),
            Phase::Waiting(_) | Phase::Held(_) => None,
        }
    }

    /// The registered process of the holder.
    pub fn process(&self) -> Option<&Process> {
        self.request.holder.process()
    }

    /// Whether it is a row that outlives the broker. A waiter on a connection dies with it, and so
    /// leaves nothing behind when it ends ungranted.
    pub fn is_durable(&self) -> bool {
        match &self.phase {
            Phase::Waiting(_) => self.request.queue,
            Phase::Held(_) | Phase::Reclaiming(..) => true,
            Phase::Ended(ending) => ending.grant.is_some() || self.request.queue,
        }
    }
}
