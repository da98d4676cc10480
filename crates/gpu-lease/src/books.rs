//! The books themselves: one value that every command goes through.
//!
//! Leases, cordons and counters are rows and outlive the broker; devices, readings and indices are
//! derived or told again after a start. `put` is the only way a lease changes, so that the indices
//! and the charges of its devices never differ from it.

mod arrival;
mod devices;
mod filters;
mod holding;
mod queue;
mod shares;
mod switch;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::canary::{Canary, is_planted};
use crate::capacity::DeviceState;
use crate::command::{
    Answer, Changes, Command, Cordon, Counters, Effect, Event, EventKind, LeaseError, Outcome, Rows,
};
use crate::ids::{DeviceKey, Fence, LeaseId};
use crate::lease::{Lease, Phase, ReclaimStage};
use crate::policy::Policy;
use crate::time::{At, BootMs, Ms};

use filters::Filters;
use shares::Shares;

/// How long an ended lease can be asked for.
pub const ENDED_KEPT_MS: Ms = Ms::from_secs(24 * 3600);
/// More ended leases than this are forgotten early, oldest first, so that memory is bounded.
pub const ENDED_KEPT_MAX: usize = 50_000;

/// All leases and devices of one broker, and the policy that decides about them.
#[derive(Clone, Debug)]
pub struct Books {
    policy: Arc<Policy>,
    counters: Counters,
    leases: BTreeMap<LeaseId, Lease>,
    cordons: BTreeMap<DeviceKey, Cordon>,
    /// `None` until the first inventory.
    devices: Option<BTreeMap<DeviceKey, DeviceState>>,
    /// Deadlines of what is held do not count before this.
    grace_until: BootMs,
    queue: BTreeMap<u64, LeaseId>,
    deadlines: BTreeSet<(BootMs, LeaseId)>,
    ended: BTreeSet<(BootMs, LeaseId)>,
    keys: BTreeMap<(String, String), LeaseId>,
    shares: Shares,
    filters: Filters,
    /// Devices to charge when all changes are made; `None` charges with each change.
    uncharged: Option<BTreeSet<DeviceKey>>,
    /// The leases that no switch could judge yet for want of their devices, with the policy from before those
    /// switches.
    unseen: Option<(Arc<Policy>, BTreeSet<LeaseId>)>,
}

/// What one command has done so far.
struct Turn {
    at: At,
    changed: BTreeSet<LeaseId>,
    /// Waiters on a connection that ended: their listeners hear of it, the books forget them.
    dropped: Vec<Lease>,
    pruned: Vec<LeaseId>,
    cordons: BTreeMap<DeviceKey, Option<Cordon>>,
    switched: bool,
    events: Vec<Event>,
    effects: Vec<Effect>,
}

impl Books {
    /// Empty books. `first_fence` must exceed every fence that an earlier, deleted store can have given.
    pub fn new(policy: Arc<Policy>, first_fence: Fence) -> Self {
        let counters = Counters {
            revision: 0,
            next_fence: first_fence,
            generation: 1,
        };
        let rows = Rows {
            counters,
            leases: Vec::new(),
            cordons: Vec::new(),
        };
        Self::from_rows(policy, rows)
    }

    /// The books that wrote `rows`, without devices: they are told again.
    pub fn from_rows(policy: Arc<Policy>, rows: Rows) -> Self {
        let mut books = Self {
            shares: Shares::of(&policy),
            filters: Filters::default(),
            uncharged: None,
            unseen: None,
            policy,
            counters: rows.counters,
            leases: BTreeMap::new(),
            cordons: rows.cordons.into_iter().collect(),
            devices: None,
            grace_until: BootMs(0),
            queue: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ended: BTreeSet::new(),
            keys: BTreeMap::new(),
        };
        for mut lease in rows.leases {
            if is_planted(Canary::RestartForgetsDraining)
                && let Phase::Held(grant) = &mut lease.phase
            {
                grant.drains.clear();
            }
            books.index(&lease);
            books.leases.insert(lease.id, lease);
        }
        if is_planted(Canary::FenceNotStored) {
            let grants = books.leases.values().filter_map(Lease::occupying);
            if let Some(Fence(highest)) = grants.map(|grant| grant.fence).max() {
                books.counters.next_fence = Fence(highest + 1);
            }
        }
        books
    }

    /// Everything that is stored of the books.
    pub fn rows(&self) -> Rows {
        let durable = self.leases.values().filter(|lease| lease.is_durable());
        let cordons = self.cordons.iter();
        Rows {
            counters: self.counters,
            leases: durable.cloned().collect(),
            cordons: cordons
                .map(|(key, cordon)| (key.clone(), cordon.clone()))
                .collect(),
        }
    }

    /// The live policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// A lease that is known.
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// Every lease that is known, by id.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// Every device of the inventory, by key; none before the first inventory.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceState> {
        self.devices.iter().flat_map(BTreeMap::values)
    }

    /// A device of the inventory.
    pub fn device(&self, key: &DeviceKey) -> Option<&DeviceState> {
        self.devices.as_ref()?.get(key)
    }

    /// Whether nothing is granted because the devices are not known yet.
    pub fn is_recovering(&self) -> bool {
        self.devices.is_none()
    }

    /// When [`Command::Expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<BootMs> {
        let lease = self.deadlines.first().map(|(due, _)| *due);
        let ended = self.ended.first().map(|(at, _)| *at + ENDED_KEPT_MS);
        [lease, ended, self.next_device_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The effects that the rows call for: what to start again after a restart.
    pub fn standing_effects(&self) -> Vec<Effect> {
        let occupying = self
            .leases
            .values()
            .filter(|lease| lease.occupying().is_some());
        occupying
            .flat_map(|lease| [Self::watch_effect(lease), Self::signal_effect(lease)])
            .flatten()
            .collect()
    }

    /// Does what `command` says, then serves the queue if it says anything. Time never goes back between calls.
    pub fn apply(&mut self, at: At, command: Command) -> Outcome {
        let mut turn = Turn::new(at);
        let answer = match command {
            Command::Acquire { id, request } => {
                Answer::Acquire(self.acquire(&mut turn, id, *request))
            }
            Command::Explain { request, wall } => {
                Answer::Explain(Box::new(self.explain(at, *request, wall)))
            }
            Command::Note(event) => {
                turn.events.push(event);
                Answer::Nothing
            }
            other => {
                let is_release = matches!(other, Command::Release { .. });
                let answer = self.dispatch(&mut turn, other);
                if !(is_release && is_planted(Canary::LostWakeUp)) {
                    self.serve_queue(&mut turn);
                }
                answer
            }
        };
        self.finish(turn, answer)
    }

    fn dispatch(&mut self, turn: &mut Turn, command: Command) -> Answer {
        match command {
            Command::Abandon { id } => self.abandon(turn, id),
            Command::Acquire { .. } | Command::Explain { .. } | Command::Note(_) => {
                unreachable!("`apply` takes these itself")
            }
            Command::ClearQuarantine { device, by } => {
                return Answer::Device(self.clear_quarantine(turn, &device, &by));
            }
            Command::Cordon { device, cordon } => {
                return Answer::Device(self.cordon(turn, &device, cordon));
            }
            Command::DrainDevice { device, notice } => {
                return Answer::Device(self.drain_device(turn, &device, &notice));
            }
            Command::DrainLease { id, notice } => {
                return Answer::Lease(self.drain_lease(turn, id, &notice));
            }
            Command::Emergency(emergency) => {
                return Answer::Emergency(self.emergency(turn, &emergency));
            }
            Command::Expire => self.expire(turn),
            Command::Grace { until } => self.grace(until),
            Command::HostRebooted => self.host_rebooted(turn),
            Command::Inventory(devices) => self.inventory(turn, devices),
            Command::ProcessGone { id, fence } => self.process_gone(turn, id, fence),
            Command::Ready { id } => return Answer::Lease(self.ready(turn, id)),
            Command::Release { id } => return Answer::Lease(self.release(turn, id)),
            Command::Renew { id } => return Answer::Lease(self.renew(turn, id)),
            Command::Revoke { id, reason, by } => {
                return Answer::Lease(self.revoke(turn, id, &reason, &by));
            }
            Command::SetPolicy(switch) => return Answer::Policy(self.switch(turn, *switch)),
            Command::SignalRefused {
                id,
                fence,
                attempt,
                why,
            } => self.signal_refused(turn, id, (fence, attempt), why),
            Command::Telemetry(readings) => self.telemetry(turn, readings),
            Command::Uncordon { device, by } => {
                return Answer::Device(self.uncordon(turn, &device, &by));
            }
        }
        Answer::Nothing
    }

    /// Stamps what changed with the next revision; nothing changed, nothing is stamped.
    fn finish(&mut self, turn: Turn, mut answer: Answer) -> Outcome {
        let changed_nothing = turn.changed.is_empty()
            && turn.dropped.is_empty()
            && turn.pruned.is_empty()
            && turn.cordons.is_empty()
            && turn.events.is_empty()
            && !turn.switched;
        if !changed_nothing {
            self.counters.revision += 1;
        }
        let revision = self.counters.revision;
        let mut leases = turn.dropped;
        for lease in &mut leases {
            lease.revision = revision;
        }
        for id in turn.changed {
            if let Some(lease) = self.leases.get_mut(&id) {
                lease.revision = revision;
                leases.push(lease.clone());
            }
        }
        if let Answer::Acquire(Ok(lease)) | Answer::Lease(Ok(lease)) = &mut answer {
            // The answer was made before the stamp, and before the queue was served.
            if let Some(current) = leases.iter().find(|changed| changed.id == lease.id) {
                lease.clone_from(current);
            }
        }
        Outcome {
            answer,
            changes: Changes {
                leases,
                pruned: turn.pruned,
                cordons: turn.cordons.into_iter().collect(),
                policy: turn.switched.then(|| self.policy.source.clone()),
            },
            events: turn.events,
            effects: turn.effects,
        }
    }

    /// Writes `lease` back, the only way a lease changes.
    fn put(&mut self, turn: &mut Turn, lease: Lease) {
        let id = lease.id;
        if let Some(before) = self.leases.remove(&id) {
            self.unindex(&before);
        }
        self.index(&lease);
        let devices = lease.grant().map(|grant| grant.allocations.clone());
        self.leases.insert(id, lease);
        for part in devices.unwrap_or_default() {
            match &mut self.uncharged {
                Some(later) => drop(later.insert(part.device)),
                None => self.charge(&part.device),
            }
        }
        turn.changed.insert(id);
    }

    /// Changes many leases, and charges each of their devices once, after the last of them.
    fn in_bulk(&mut self, change: impl FnOnce(&mut Self)) {
        self.uncharged = Some(BTreeSet::new());
        change(self);
        for device in self.uncharged.take().unwrap_or_default() {
            self.charge(&device);
        }
    }

    fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        self.unindex(&lease);
        self.shares.forget(id);
        Some(lease)
    }

    fn index(&mut self, lease: &Lease) {
        let id = lease.id;
        if let Some(due) = self.due(lease) {
            self.deadlines.insert((due, id));
        }
        if let Some(idempotency) = &lease.request.idempotency {
            self.keys.insert(idempotency.key.clone(), id);
        }
        match &lease.phase {
            Phase::Waiting(wait) => drop(self.queue.insert(wait.seq, id)),
            Phase::Ended(ending) => drop(self.ended.insert((ending.at.boot, id))),
            Phase::Held(_) | Phase::Reclaiming(..) => {}
        }
        self.shares.add(&self.policy, lease);
        self.occupy(lease);
    }

    fn unindex(&mut self, lease: &Lease) {
        let id = lease.id;
        if let Some(due) = self.due(lease) {
            self.deadlines.remove(&(due, id));
        }
        if let Some(idempotency) = &lease.request.idempotency {
            self.keys.remove(&idempotency.key);
        }
        match &lease.phase {
            Phase::Waiting(wait) => drop(self.queue.remove(&wait.seq)),
            Phase::Ended(ending) => drop(self.ended.remove(&(ending.at.boot, id))),
            Phase::Held(_) | Phase::Reclaiming(..) => {}
        }
        self.shares.take(lease);
        self.vacate(lease);
    }

    /// Computes every deadline anew, after something changed that deadlines depend on beside their lease.
    fn reindex_deadlines(&mut self) {
        let due = |lease: &Lease| self.due(lease).map(|due| (due, lease.id));
        self.deadlines = self.leases.values().filter_map(due).collect();
    }

    fn find(&self, id: LeaseId) -> Result<&Lease, LeaseError> {
        self.leases.get(&id).ok_or(LeaseError::NotFound)
    }

    /// A lease whose fence is still current.
    fn find_live(&self, id: LeaseId) -> Result<&Lease, LeaseError> {
        let lease = self.find(id)?;
        match lease.end_reason() {
            Some(reason) => Err(LeaseError::Ended(reason)),
            None => Ok(lease),
        }
    }

    fn stuck(&self) -> impl Iterator<Item = &Lease> {
        let is_stuck = |lease: &&Lease| match &lease.phase {
            Phase::Reclaiming(_, reclaim) => reclaim.stage != ReclaimStage::Verifying,
            Phase::Waiting(_) | Phase::Held(_) | Phase::Ended(_) => false,
        };
        self.leases.values().filter(is_stuck)
    }
}

impl Turn {
    fn new(at: At) -> Self {
        Self {
            at,
            changed: BTreeSet::new(),
            dropped: Vec::new(),
            pruned: Vec::new(),
            cordons: BTreeMap::new(),
            switched: false,
            events: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// Says something about a lease, and about its first device if it has any.
    fn event(&mut self, kind: EventKind, lease: &Lease, text: String) {
        let device = lease.grant().and_then(|grant| grant.allocations.first());
        self.events.push(Event {
            kind,
            lease: Some(lease.id),
            device: device.map(|part| part.device.clone()),
            by: None,
            text: alloc::format!("{} {text}", lease.request.holder.name),
        });
    }

    /// Names who did the last thing that was said.
    fn by(&mut self, by: &str) {
        if let Some(event) = self.events.last_mut() {
            event.by = Some(by.into());
        }
    }

    fn take_dropped(&mut self, id: LeaseId) -> Option<Lease> {
        let place = self.dropped.iter().position(|lease| lease.id == id)?;
        Some(self.dropped.swap_remove(place))
    }

    fn effect_once(&mut self, effect: Effect) {
        if !self.effects.contains(&effect) {
            self.effects.push(effect);
        }
    }
}

/// The ids of `leases`, for walking over them while the books change.
fn ids<'a>(leases: impl Iterator<Item = &'a Lease>) -> Vec<LeaseId> {
    leases.map(|lease| lease.id).collect()
}
