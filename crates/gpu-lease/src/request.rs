//! What is asked for: who, how much, on which devices, for how long.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::{DeviceId, Process};
use crate::time::Ms;

/// A request with every default filled in: nothing about it depends on a later policy but its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub holder: Holder,
    /// The class that orders it in the queue.
    pub class: String,
    /// How many devices, all or nothing; at least one.
    pub devices: u32,
    /// How much of each device.
    pub amount: Amount,
    /// Which devices may serve it.
    pub select: Select,
    /// Longest time between heartbeats.
    pub ttl: Ms,
    /// How long to wait for a grant; zero asks for an answer now.
    pub wait: Ms,
    /// Longest time to hold the grant, from the grant.
    pub max_hold: Option<Ms>,
    /// Time that the holder asks for to drain.
    pub drain_grace: Option<Ms>,
    /// Takes the load slot of each device until it says that it is ready.
    pub load: bool,
    /// Waits as a stored row that lives by renewals, not as a connection.
    pub queue: bool,
    /// The caller's own key for this request, if it wants retries to be answered by the same lease.
    pub idempotency: Option<Idempotency>,
    /// Free words of the holder.
    pub labels: BTreeMap<String, String>,
}

/// Who asks for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// A name for people.
    pub name: String,
    /// How the broker knows that it lives.
    pub kind: HolderKind,
    /// The tenant that it says it belongs to, or that was found for it.
    pub tenant: Option<String>,
    /// It claimed none: the live policy found its tenant, and the next one looks again.
    pub tenant_found: bool,
    /// The caller as the broker verified it; `anonymous` where it could not.
    pub user: String,
    /// A process id that the holder declared, for attribution only.
    pub pid: Option<u32>,
}

/// How the broker knows that a holder lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HolderKind {
    /// A browser: heartbeats only, never signalled.
    Page,
    /// A process of this host: lives as long as it is proven alive, whatever its heartbeats do.
    Process(Process),
    /// Anything else: heartbeats only.
    Remote,
}

/// How much of each device is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// The whole device, alone.
    Exclusive,
    /// This many bytes of it.
    Memory(u64),
}

/// Which devices may serve a request: those that are named, if any are, and that pass every filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    /// Only these; `None` is every one.
    pub ids: Option<Vec<DeviceId>>,
    /// Expressions over a device that [`crate::Rules::selects`] evaluates.
    pub filters: Vec<String>,
}

impl Holder {
    /// The registered process, if the holder is one.
    pub fn process(&self) -> Option<&Process> {
        match &self.kind {
            HolderKind::Process(process) => Some(process),
            HolderKind::Page | HolderKind::Remote => None,
        }
    }
}

impl Select {
    /// Only the devices named.
    pub fn ids(ids: Vec<DeviceId>) -> Self {
        Self {
            ids: Some(ids),
            filters: Vec::new(),
        }
    }

    /// Whether `id` is among the devices named.
    pub fn names(&self, id: &DeviceId) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(id))
    }
}

/// A caller's key for a request, and what it was first used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The verified caller and its key; one scope never sees the keys of another.
    pub key: (String, String),
    /// Hash of the request's body: the same key with another body is a mistake.
    pub body_hash: String,
}
