//! What readers see: the rows last made durable, and the state of devices and queue beside them.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use gpu_lease::{
    At, Books, Cause, Counters, DeviceState, Lease, LeaseId, Phase, Policy, TenantStanding, Why,
};
use gpu_store::StoredEvent;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{broadcast, watch};

/// Events that a slow subscriber may be behind before it must read the store.
const LIVE_EVENTS_MAX: usize = 4096;

/// The books at one moment, apart from the leases.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The counters.
    pub counters: Counters,
    /// Nothing is granted yet: devices are still being discovered.
    pub recovering: bool,
    /// Every device, by key.
    pub devices: Vec<DeviceState>,
    /// Who waits and why, in the order in which they are served.
    pub waiting: Arc<[(LeaseId, Why)]>,
    /// The tenants that hold something, wait, or had something of late.
    pub tenants: Vec<TenantStanding>,
    /// The live policy.
    pub policy: Arc<Policy>,
}

/// The books at one moment, with the leases that occupy devices.
#[derive(Clone, Debug)]
pub struct Occupied {
    /// The books.
    pub snapshot: Arc<Snapshot>,
    /// Every lease that holds a part of a device, those being reclaimed included.
    pub occupants: BTreeMap<LeaseId, Arc<Lease>>,
}

/// What the loop publishes.
pub(crate) struct View {
    leases: RwLock<BTreeMap<LeaseId, Arc<Lease>>>,
    snapshot: RwLock<Arc<Snapshot>>,
    /// Until when the store has counted what is held. Locked from before a commit until what it stored is seen
    /// here.
    counted: RwLock<Option<At>>,
    followers: Mutex<BTreeMap<LeaseId, watch::Sender<Option<Arc<Lease>>>>>,
    events: broadcast::Sender<Arc<StoredEvent>>,
}

impl Snapshot {
    /// The books as they are, with what is known of why waiters wait.
    pub(crate) fn of(books: &Books, waiting: Arc<[(LeaseId, Why)]>, at: At) -> Self {
        Self {
            counters: books.counters(),
            recovering: books.is_recovering(),
            devices: books.devices().cloned().collect(),
            waiting,
            tenants: books.tenants(at),
            policy: books.policy().clone(),
        }
    }

    /// What most of the work of a long queue goes into: each waiter, and each holder named to it.
    pub(crate) fn holders_named(&self) -> usize {
        let named = |why: &Why| match &why.cause {
            Cause::Devices(devices) => devices.iter().map(|device| device.holders.len()).sum(),
            Cause::Quota { holders, .. } => holders.len(),
            Cause::Behind(_) | Cause::Recovering | Cause::Rule { .. } => 0,
        };
        let waiting = self.waiting.iter();
        waiting.map(|(_, why)| 1 + named(why)).sum()
    }
}

impl View {
    /// `counted`: until then the store has counted what is held.
    pub(crate) fn of(books: &Books, counted: Option<At>, at: At) -> Self {
        let leases = books
            .leases()
            .map(|lease| (lease.id, Arc::new(lease.clone())));
        Self {
            leases: RwLock::new(leases.collect()),
            snapshot: RwLock::new(Arc::new(Snapshot::of(books, books.waiting(at).into(), at))),
            counted: RwLock::new(counted),
            followers: Mutex::default(),
            events: broadcast::Sender::new(LIVE_EVENTS_MAX),
        }
    }

    pub(crate) fn find(&self, id: LeaseId) -> Option<Arc<Lease>> {
        self.leases.read().get(&id).cloned()
    }

    pub(crate) fn find_by(&self, wanted: impl Fn(&Lease) -> bool) -> Option<Arc<Lease>> {
        let leases = self.leases.read();
        leases.values().find(|lease| wanted(lease)).cloned()
    }

    /// The first `limit` leases whose ids are greater than `after`.
    pub(crate) fn page(&self, after: Option<LeaseId>, limit: usize) -> Vec<Arc<Lease>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = after.map_or(Unbounded, Excluded);
        let leases = self.leases.read();
        let page = leases.range((start, Unbounded)).take(limit);
        page.map(|(_, lease)| lease.clone()).collect()
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.read().clone()
    }

    /// The books with everybody who holds a part of a device, of one moment.
    pub(crate) fn occupied(&self) -> Occupied {
        let leases = self.leases.read();
        let snapshot = self.snapshot();
        let occupants = snapshot.devices.iter().flat_map(|device| &device.occupants);
        let known = occupants.filter_map(|id| Some((*id, leases.get(id)?.clone())));
        Occupied {
            occupants: known.collect(),
            snapshot,
        }
    }

    /// Until when the store has counted what is held. While this is kept, nothing is committed, and what is seen
    /// here is what is stored.
    pub(crate) fn settled(&self) -> RwLockReadGuard<'_, Option<At>> {
        self.counted.read()
    }

    /// To be kept from before a commit until what it stored is published.
    pub(crate) fn unsettle(&self) -> RwLockWriteGuard<'_, Option<At>> {
        self.counted.write()
    }

    pub(crate) fn live_events(&self) -> broadcast::Receiver<Arc<StoredEvent>> {
        self.events.subscribe()
    }

    pub(crate) fn follow(&self, id: LeaseId) -> watch::Receiver<Option<Arc<Lease>>> {
        let mut followers = self.followers.lock();
        let sender = followers
            .entry(id)
            .or_insert_with(|| watch::Sender::new(None));
        sender.subscribe()
    }

    /// Forgets who followed `id` once nobody does.
    pub(crate) fn unfollow(&self, id: LeaseId) {
        let mut followers = self.followers.lock();
        if followers
            .get(&id)
            .is_some_and(|sender| sender.receiver_count() == 0)
        {
            followers.remove(&id);
        }
    }

    /// Makes one durable batch visible, all of it at once, before anybody hears of it.
    pub(crate) fn publish(
        &self,
        leases: &[Arc<Lease>],
        pruned: &[LeaseId],
        snapshot: Option<Snapshot>,
    ) {
        let mut known = self.leases.write();
        put(&mut known, leases, pruned);
        let before =
            snapshot.map(|snapshot| mem::replace(&mut *self.snapshot.write(), snapshot.into()));
        drop(known);
        drop(before);
        self.tell_followers(leases);
    }

    pub(crate) fn announce(&self, events: Vec<StoredEvent>) {
        for event in events {
            // Nobody listening is no failure.
            drop(self.events.send(Arc::new(event)));
        }
    }

    fn tell_followers(&self, leases: &[Arc<Lease>]) {
        let followers = self.followers.lock();
        if followers.is_empty() {
            return;
        }
        for lease in leases {
            if let Some(sender) = followers.get(&lease.id) {
                sender.send_replace(Some(lease.clone()));
            }
        }
    }
}

fn put(known: &mut BTreeMap<LeaseId, Arc<Lease>>, leases: &[Arc<Lease>], pruned: &[LeaseId]) {
    for lease in leases {
        // Who waited on a connection and got nothing leaves nothing behind.
        let forgotten = matches!(lease.phase, Phase::Ended(_)) && !lease.is_durable();
        match forgotten {
            true => drop(known.remove(&lease.id)),
            false => drop(known.insert(lease.id, lease.clone())),
        }
    }
    for id in pruned {
        known.remove(id);
    }
}
