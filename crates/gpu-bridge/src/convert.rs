//! Core types to wire types and back, as plain functions: nothing is decided here.

mod denial;
mod device;
mod emergency;
mod event;
mod explain;
mod lease;
mod plan;
mod policy;
mod records;
mod reload;
mod request;
mod time;

pub(crate) use denial::{
    acquire_refused, device_refused, lease_refused, no_such_device, no_such_lease, over,
    override_refused, policy_files_refused, rollback_refused, unavailable,
};
pub use emergency::stored_emergency;
pub(crate) use emergency::{EmergencyReport, targets};
pub(crate) use event::{assets_changed, event, reset};
pub(crate) use explain::{explained_at, explanation};
pub(crate) use lease::state;
pub(crate) use plan::policy_plan;
pub(crate) use policy::policy;
pub use policy::policy_check;
pub(crate) use records::{Place, place};
pub use records::{UsageTable, event_filter, history};
pub(crate) use reload::{Held, Reloads, counts, unquote};
pub(crate) use request::{idempotency, request};
pub(crate) use time::deadline;
pub use time::rfc3339;

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_broker::{Handle, Occupied, Snapshot};
use gpu_lease::{At, Lease, LeaseId, Policy, Rows};

/// What is looked at when something of the core is shown: one moment, and everything that was published.
pub(crate) struct Scene<'a> {
    /// `None` where only a store is looked at.
    handle: Option<&'a Handle>,
    pub(crate) now: At,
    pub(crate) snapshot: Arc<Snapshot>,
    /// Leases of the moment of the snapshot, where that matters; others are looked up as they are now.
    occupants: BTreeMap<LeaseId, Arc<Lease>>,
    /// Why the broker started safe, if it did.
    safe_start: Option<&'a str>,
}

impl<'a> Scene<'a> {
    pub(crate) fn of(handle: &'a Handle, safe_start: Option<&'a str>) -> Self {
        Self {
            handle: Some(handle),
            now: handle.now(),
            snapshot: handle.snapshot(),
            occupants: BTreeMap::new(),
            safe_start,
        }
    }

    /// For showing devices: what they have granted, and to whom, is of one moment.
    pub(crate) fn of_devices(handle: &'a Handle) -> Self {
        let Occupied {
            snapshot,
            occupants,
        } = handle.occupied();
        Self {
            handle: Some(handle),
            now: handle.now(),
            snapshot,
            occupants,
            safe_start: None,
        }
    }

    /// How the tenants of the policy stand.
    pub(crate) fn tenants(&self) -> Vec<gpu_api::TenantStanding> {
        self.snapshot.tenants.iter().map(policy::tenant).collect()
    }

    pub(crate) fn find(&self, id: LeaseId) -> Option<Arc<Lease>> {
        let then = self.occupants.get(&id).cloned();
        then.or_else(|| self.handle?.find(id))
    }
}

/// The leases of a store that no broker runs on, by id, as the API would show them: without devices and
/// reasons, which are not stored.
pub fn stored_leases(rows: &Rows, now: At) -> Vec<gpu_api::Lease> {
    let scene = Scene {
        handle: None,
        now,
        snapshot: Arc::new(Snapshot {
            counters: rows.counters,
            recovering: true,
            devices: Vec::new(),
            tenants: Vec::new(),
            waiting: Arc::default(),
            policy: Arc::new(Policy::built_in()),
        }),
        occupants: BTreeMap::new(),
        safe_start: None,
    };
    rows.leases.iter().map(|lease| scene.lease(lease)).collect()
}
