//! What can happen to the books, and what they answer.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::device::{Device, Reading};
use crate::ids::{DeviceKey, Fence, LeaseId, Process};
use crate::lease::{Deadline, EndReason, Lease};
use crate::plan::{Plan, Planned};
use crate::policy::{Policy, PolicySource, RuleHit, Share, TenantKey};
use crate::request::Request;
use crate::time::{BootMs, Ms, WallMs};
use crate::why::Why;

/// Everything that can happen to the books.
#[derive(Clone, Debug)]
pub enum Command {
    /// The connection of `id` is gone before its answer arrived.
    Abandon {
        /// The lease that nobody waits for.
        id: LeaseId,
    },
    /// A request, under an id that was never used.
    Acquire {
        /// Its name from here on.
        id: LeaseId,
        /// What is asked for.
        request: Box<Request>,
    },
    /// An administrator vouches that what was quarantined on `device` is gone.
    ClearQuarantine {
        /// The device.
        device: DeviceKey,
        /// Who vouches.
        by: String,
    },
    /// No new grants on `device`.
    Cordon {
        /// The device.
        device: DeviceKey,
        /// Why, by whom, until when.
        cordon: Cordon,
    },
    /// Cordons `device` and asks every holder there to go.
    DrainDevice {
        /// The device.
        device: DeviceKey,
        /// How long they have and why.
        notice: DrainNotice,
    },
    /// Asks the holder of `id` to go.
    DrainLease {
        /// The lease.
        id: LeaseId,
        /// How long it has and why.
        notice: DrainNotice,
    },
    /// Ends leases at once.
    Emergency(Emergency),
    /// What would become of a request if it came now, or at another time of the day. Changes nothing.
    Explain {
        /// The request, as [`Command::Acquire`] takes it.
        request: Box<Request>,
        /// The civil time for rules; `None` is now.
        wall: Option<WallMs>,
    },
    /// Time passed.
    Expire,
    /// Nothing held, and no queued request for want of a renewal, ends by time before `until`: nobody
    /// could reach the broker.
    Grace {
        /// The end of the window.
        until: BootMs,
    },
    /// The rows are of an earlier boot: none of their holders can live.
    HostRebooted,
    /// All devices of the host, as discovery sees them.
    Inventory(Vec<Device>),
    /// Something that happened outside the books and belongs into the audit.
    Note(Event),
    /// The process of a holder is proven gone.
    ProcessGone {
        /// The lease it was registered for.
        id: LeaseId,
        /// The grant it was registered for; another one is stale.
        fence: Fence,
    },
    /// The holder has loaded.
    Ready {
        /// The lease.
        id: LeaseId,
    },
    /// The holder gives back what it holds, or leaves the queue.
    Release {
        /// The lease.
        id: LeaseId,
    },
    /// A heartbeat.
    Renew {
        /// The lease.
        id: LeaseId,
    },
    /// An operator takes `id` back now.
    Revoke {
        /// The lease.
        id: LeaseId,
        /// Why.
        reason: String,
        /// Who.
        by: String,
    },
    /// Another policy, checked and compiled.
    SetPolicy(Box<Switch>),
    /// A signal could not be sent, because the process could not be proven to be the registered one
    /// or the broker may not.
    SignalRefused {
        /// The lease being reclaimed.
        id: LeaseId,
        /// The grant; another one is stale.
        fence: Fence,
        /// The attempt; another one is stale.
        attempt: u32,
        /// For the operator.
        why: String,
    },
    /// What was read of devices.
    Telemetry(Vec<Reading>),
    /// New grants on `device` again; holders asked to go because of the device may stay.
    Uncordon {
        /// The device.
        device: DeviceKey,
        /// Who.
        by: String,
    },
}

/// From one policy to another.
#[derive(Clone, Debug)]
pub struct Switch {
    /// The policy that goes live.
    pub policy: Arc<Policy>,
    /// What differs from the one before, for the audit.
    pub changes: String,
    /// The plan that was made of it outside the loop; what changed since is planned again.
    pub planned: Option<Arc<Planned>>,
    /// What must be true when it goes live; otherwise nothing changes.
    pub expect: Expect,
}

/// What must be true when a policy goes live.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// The hash of the policy that is live.
    pub live: Option<String>,
    /// Nothing is drained or ended that this plan does not drain or end.
    pub within: Option<Arc<Plan>>,
    /// The plan is this one, deadlines apart.
    pub exactly: Option<Arc<Plan>>,
}

/// Why a device takes no new leases, as an operator said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cordon {
    /// For everybody who waits for it.
    pub reason: String,
    /// Who said so.
    pub by: String,
    /// When it lifts by itself.
    pub until: Option<Deadline>,
}

/// A request to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainNotice {
    /// Time to go; the policy's where it is not said.
    pub grace: Option<Ms>,
    /// For the holder.
    pub reason: String,
    /// Who asks.
    pub by: String,
}

/// An emergency release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emergency {
    /// What is ended.
    pub targets: Targets,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// Signal registered processes, whatever the policy says.
    pub kill: bool,
    /// Cordon every device that is named, and every one that held something of what ends.
    pub cordon: bool,
    /// Free the memory without any proof that its holder is gone.
    pub force_unsafe: bool,
}

/// What an emergency release ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Every lease and every waiter.
    All,
    /// What is on these devices.
    Devices(Vec<DeviceKey>),
    /// These.
    Leases(Vec<LeaseId>),
    /// What is stuck or quarantined.
    Stuck,
}

/// What a command did. Rows are made durable before anybody sees the answer.
#[derive(Debug)]
pub struct Outcome {
    /// For the one who asked.
    pub answer: Answer,
    /// What to store and publish.
    pub changes: Changes,
    /// For the audit and the event stream.
    pub events: Vec<Event>,
    /// Slow work to start once the rows are durable.
    pub effects: Vec<Effect>,
}

/// What a command answers.
#[derive(Debug)]
pub enum Answer {
    /// To `Acquire`.
    Acquire(Result<Lease, Denial>),
    /// To what is about one device.
    Device(Result<(), UnknownDevice>),
    /// To `Emergency`: the leases it ended, waiters among them.
    Emergency(Vec<LeaseId>),
    /// To what is about one lease.
    Lease(Result<Lease, LeaseError>),
    /// To what nobody waits for.
    Nothing,
    /// To `Explain`.
    Explain(Box<Explanation>),
    /// To `SetPolicy`: what became of held leases; `None` if the policy is the one that is live.
    Policy(Result<Option<Switched>, Unexpected>),
}

/// A policy went live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// Its generation.
    pub generation: u64,
    /// What it meant for held leases and waiters.
    pub plan: Plan,
}

/// A policy did not go live, because something else is true than was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexpected {
    /// The hash of the policy that is live.
    pub live: String,
    /// What the switch would do now.
    pub plan: Plan,
}

/// What would become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The request as the rules shape it.
    pub request: Request,
    /// The priority of its class, or that a rule set.
    pub priority: i64,
    /// The tenant that it belongs to.
    pub tenant: Option<TenantKey>,
    /// The rules that apply, in order.
    pub hits: Vec<RuleHit>,
    /// The devices that it would be granted.
    pub outcome: Result<Vec<DeviceKey>, Denial>,
}

/// How a tenant stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantStanding {
    /// The tenant.
    pub key: TenantKey,
    /// Its weight.
    pub weight: u32,
    /// What it holds.
    pub held: Share,
    /// How many requests of it wait.
    pub waiting: u32,
    /// What it had of late, in byte-seconds; an hour ago counts half where the half-life is an hour.
    pub used: u64,
}

/// The rows that a command changed, each as it is afterwards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Leases, durable or not; see [`Lease::is_durable`].
    pub leases: Vec<Lease>,
    /// Leases whose 24 hours after the end are over.
    pub pruned: Vec<LeaseId>,
    /// Cordons set and lifted.
    pub cordons: Vec<(DeviceKey, Option<Cordon>)>,
    /// The policy that went live.
    pub policy: Option<Arc<PolicySource>>,
}

/// The counters of the books; part of every durable write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Rises with every command that changed something.
    pub revision: u64,
    /// The fence of the next grant.
    pub next_fence: Fence,
    /// The generation of the live policy.
    pub generation: u64,
}

/// Everything that is stored of the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The counters.
    pub counters: Counters,
    /// All durable leases.
    pub leases: Vec<Lease>,
    /// All cordons that operators set.
    pub cordons: Vec<(DeviceKey, Cordon)>,
}

/// Something that people and audits want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What sort of thing happened.
    pub kind: EventKind,
    /// The lease it is about.
    pub lease: Option<LeaseId>,
    /// The device it is about.
    pub device: Option<DeviceKey>,
    /// Who did it, if a person did.
    pub by: Option<String>,
    /// One line for people.
    pub text: String,
}

/// What sort of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// A broker began to run on these rows.
    BrokerStarted,
    /// It ended in order.
    BrokerStopped,
    /// A device takes no new leases.
    DeviceCordoned,
    /// A device was found.
    DeviceFound,
    /// A device is no longer there.
    DeviceLost,
    /// More is used on a device than it has beside what was granted.
    DeviceOvercommitted,
    /// A device takes leases again.
    DeviceUncordoned,
    /// An emergency release.
    EmergencyRelease,
    /// A holder was asked to go.
    LeaseDraining,
    /// A lease is over and its memory free.
    LeaseEnded,
    /// A request was granted.
    LeaseGranted,
    /// Memory of a forced end stays out of use.
    LeaseQuarantined,
    /// A holder loaded.
    LeaseReady,
    /// A forced end; the memory is on its way back.
    LeaseReclaiming,
    /// A holder lives and may not be signalled.
    LeaseStuck,
    /// A heartbeat was missed by a holder that lives.
    LeaseUnresponsive,
    /// A request waits.
    LeaseWaiting,
    /// A cause to go was withdrawn.
    LeaseWithdrawn,
    /// The plan of a saved policy waits for a confirmation.
    PolicyPending,
    /// What a policy would mean was planned.
    PolicyPlanned,
    /// A policy was refused.
    PolicyRefused,
    /// A policy was taken back.
    PolicyRolledBack,
    /// A policy went live.
    PolicySwitched,
    /// Policy files were read, because they changed or somebody asked.
    ReloadBegun,
    /// Reloads by saved files rest, or go on.
    ReloadBreaker,
}

impl EventKind {
    /// The word for it in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BrokerStarted => "broker_started",
            Self::BrokerStopped => "broker_stopped",
            Self::DeviceCordoned => "device_cordoned",
            Self::DeviceFound => "device_found",
            Self::DeviceLost => "device_lost",
            Self::DeviceOvercommitted => "device_overcommitted",
            Self::DeviceUncordoned => "device_uncordoned",
            Self::EmergencyRelease => "emergency_release",
            Self::LeaseDraining => "lease_draining",
            Self::LeaseEnded => "lease_ended",
            Self::LeaseGranted => "lease_granted",
            Self::LeaseQuarantined => "lease_quarantined",
            Self::LeaseReady => "lease_ready",
            Self::LeaseReclaiming => "lease_reclaiming",
            Self::LeaseStuck => "lease_stuck",
            Self::LeaseUnresponsive => "lease_unresponsive",
            Self::LeaseWaiting => "lease_waiting",
            Self::LeaseWithdrawn => "lease_withdrawn",
            Self::PolicyPending => "policy_pending",
            Self::PolicyPlanned => "policy_planned",
            Self::PolicyRefused => "policy_refused",
            Self::PolicyRolledBack => "policy_rolled_back",
            Self::PolicySwitched => "policy_switched",
            Self::ReloadBegun => "reload_begun",
            Self::ReloadBreaker => "reload_breaker",
        }
    }
}

/// Slow work. Whatever comes back cites the lease and its fence, so that a late result is known as such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read the devices now: somebody waits for fresh numbers.
    Read,
    /// Send a signal, if it is the registered process beyond doubt.
    Signal {
        /// The lease.
        id: LeaseId,
        /// The grant.
        fence: Fence,
        /// To be cited by a refusal.
        attempt: u32,
        /// Whom.
        process: Process,
        /// What.
        signal: Signal,
    },
    /// Say when the process is gone.
    Watch {
        /// The lease.
        id: LeaseId,
        /// The grant.
        fence: Fence,
        /// Whom.
        process: Process,
    },
}

/// A signal to a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Term,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A rule refuses it.
    ByPolicy {
        /// The rule.
        rule: String,
        /// For the one who asked.
        reason: String,
    },
    /// Not now, and the request does not wait.
    DoesNotFit(Why),
    /// The same idempotency key was used for another request.
    IdempotencyMismatch,
    /// Not even on idle devices.
    NeverFits(String),
    /// As many wait as may.
    QueueFull {
        /// The limit.
        max_waiting: usize,
    },
    /// No inventory yet, and the request does not wait.
    Recovering,
}

/// Why a lease could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseError {
    /// Its fence is no longer current.
    Ended(EndReason),
    /// No such lease, or ended over a day ago.
    NotFound,
    /// It waits, so there is nothing to do this to.
    NotGranted,
}

/// No such device in the inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDevice(pub DeviceKey);

impl fmt::Display for UnknownDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device `{}` is not in the inventory", self.0)
    }
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(reason) => write!(f, "the lease has ended: {reason}"),
            Self::NotFound => f.write_str("no such lease"),
            Self::NotGranted => f.write_str("the lease is waiting and holds nothing"),
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPolicy { rule, reason } => write!(f, "denied by `{rule}`: {reason}"),
            Self::DoesNotFit(why) => fmt::Display::fmt(why, f),
            Self::IdempotencyMismatch => {
                f.write_str("this idempotency key was used for another request")
            }
            Self::NeverFits(reason) => f.write_str(reason),
            Self::QueueFull { max_waiting } => {
                write!(f, "the queue is full: {max_waiting} requests wait")
            }
            Self::Recovering => f.write_str("devices are still being discovered"),
        }
    }
}

impl core::error::Error for Denial {}
impl core::error::Error for LeaseError {}
impl core::error::Error for UnknownDevice {}
