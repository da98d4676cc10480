//! Who is served next, on which devices, and why the others are not.
//!
//! The head of the queue is the first waiter that devices alone keep waiting. It nominates the devices
//! that can serve it soonest; others may use those only if they are sure to be gone before it starts.
//! The nomination is derived anew each time: what is held back can only get closer to what the head
//! needs, so the head is never starved.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::shares::{Allowance, Used};
use super::{Books, Turn};
use crate::capacity::DeviceState;
use crate::command::{Effect, EventKind};
use crate::ids::{DeviceKey, Fence, LeaseId};
use crate::lease::{Allocation, EndReason, Grant, Lease, Phase};
use crate::policy::{QueueOrder, Strategy, TenantKey, Verdict};
use crate::request::{Amount, Request};
use crate::size::Bytes;
use crate::time::{At, BootMs, Ms};
use crate::why::{Blocker, Cause, DeviceObstacle, Obstacle, Why};

/// How long a request that does not wait still waits for a reading that was asked for.
pub(super) const SETTLE_MS: Ms = Ms::from_secs(2);

/// The devices that the head of the queue is going to get.
#[derive(Clone, Debug)]
struct Nomination {
    head: LeaseId,
    devices: Vec<DeviceKey>,
    /// When it starts at the latest; `None` if the ends of what is in the way are not known.
    start: Option<BootMs>,
}

/// Who is in the way, made once for all who wait for the same.
#[derive(Default)]
struct Named {
    by_device: BTreeMap<DeviceKey, Arc<[Blocker]>>,
    by_tenant: BTreeMap<TenantKey, Arc<[Blocker]>>,
}

/// What orders the waiters at one moment.
struct Ranks<'a> {
    books: &'a Books,
    at: At,
    used: Cow<'a, Used>,
}

/// The smaller, the sooner served.
type Rank = (Reverse<i64>, (u128, u128), u64);

impl Ranks<'_> {
    /// What has no place in the queue comes after its equals there.
    fn of(&self, lease: &Lease) -> Rank {
        let policy = &self.books.policy;
        let priority = match policy.queue.order {
            QueueOrder::Fifo => 0,
            QueueOrder::FairShare | QueueOrder::Priority => {
                policy.effective_priority(lease, self.at.boot)
            }
        };
        let share = match self.books.is_fair() {
            true => self.books.fair_rank(lease, &self.used),
            false => (0, 0),
        };
        let seq = lease.waiting().map_or(u64::MAX, |wait| wait.seq);
        (Reverse(priority), share, seq)
    }
}

/// One walk over the queue in the order in which it is served.
#[derive(Default)]
struct Walk {
    nomination: Option<Nomination>,
    /// The first waiter that could not be served, when others may not pass it.
    barrier: Option<LeaseId>,
}

impl Books {
    /// Why each waiter waits, in the order in which they are served.
    pub fn waiting(&self, at: At) -> Vec<(LeaseId, Why)> {
        let mut walk = Walk::default();
        let mut reasons = Vec::new();
        let mut named = Named::default();
        for (place, id) in self.service_order(at).into_iter().enumerate() {
            let lease = &self.leases[&id];
            if let Err(cause) = self.decide(&mut walk, lease, at) {
                let position = u32::try_from(place + 1).unwrap_or(u32::MAX);
                reasons.push((
                    id,
                    walk.why(lease, self.with_holders(cause, &mut named), position),
                ));
            }
        }
        reasons
    }

    /// Why a request that is not in the queue cannot be served at the place that it would have there.
    pub(super) fn why_alone(&self, lease: &Lease, at: At) -> Why {
        let (mut walk, ahead) = self.walk_to(lease, at);
        let cause = self.decide(&mut walk, lease, at).err();
        if walk.nomination.is_none()
            && let Ok(allowance) = self.allowance(lease)
        {
            walk.nomination = self.nominate(lease, allowance, at);
        }
        let position = u32::try_from(ahead + 1).unwrap_or(u32::MAX);
        let cause = cause.map_or(Cause::Devices(Vec::new()), |cause| {
            self.with_holders(cause, &mut Named::default())
        });
        walk.why(lease, cause, position)
    }

    /// The devices that a request would get that is not in the queue, at the place that it would have there.
    pub(super) fn devices_for(&self, lease: &Lease, at: At) -> Result<Vec<DeviceKey>, Cause> {
        let (mut walk, _) = self.walk_to(lease, at);
        self.decide(&mut walk, lease, at)
    }

    /// Whether a request that is not in the queue would have to stay there.
    pub(super) fn would_wait(&self, lease: &Lease, at: At) -> bool {
        let decided = self.devices_for(lease, at);
        decided.is_err_and(|cause| !answers_now(lease, &cause))
    }

    /// What is known of the head after all that are served before `lease`, and how many they are.
    fn walk_to(&self, lease: &Lease, at: At) -> (Walk, usize) {
        let mut walk = Walk::default();
        let ranks = self.ranks(at);
        let mine = ranks.of(lease);
        let order = self.service_order(at).into_iter();
        let ahead = order.take_while(|id| ranks.of(&self.leases[id]) < mine);
        let count = ahead
            .map(|id| drop(self.decide(&mut walk, &self.leases[&id], at)))
            .count();
        (walk, count)
    }

    /// Grants what can be granted, in order, and ends the waits that are over at once.
    pub(super) fn serve_queue(&mut self, turn: &mut Turn) {
        if self.queue.is_empty() {
            return;
        }
        self.end_overdue_waits(turn);
        self.look(turn.at);
        // Where a grant moves others in the order, or a rule looks at who is there, everybody is asked again.
        let is_restless = self.is_fair() || self.shares.is_read();
        while self.serve_in_order(turn) && is_restless {}
    }

    /// One walk over the queue, in a fair share up to the first grant; true if anybody left the queue.
    fn serve_in_order(&mut self, turn: &mut Turn) -> bool {
        let before = self.queue.len();
        let mut walk = Walk::default();
        for id in self.service_order(turn.at) {
            match self.decide(&mut walk, &self.leases[&id], turn.at) {
                Ok(devices) => {
                    self.grant(turn, id, &devices);
                    if self.is_fair() {
                        break;
                    }
                }
                Err(cause) => self.keep_waiting(turn, id, &cause),
            }
        }
        self.queue.len() < before
    }

    fn keep_waiting(&mut self, turn: &mut Turn, id: LeaseId, cause: &Cause) {
        if awaits_reading(cause) {
            turn.effect_once(Effect::Read);
        }
        let lease = &self.leases[&id];
        let is_refused = match cause {
            Cause::Rule { .. } => self.refusal(lease, turn.at).is_some(),
            Cause::Quota { .. } => self.hopeless_quota(lease).is_some(),
            Cause::Behind(_) | Cause::Devices(_) | Cause::Recovering => false,
        };
        if is_refused {
            self.end(turn, lease.clone(), EndReason::Denied);
        } else if answers_now(lease, cause) {
            self.end(turn, lease.clone(), EndReason::WaitTimeout);
        }
    }

    /// The waiters by effective priority (class priority plus one step per `aging` waited), in a fair share
    /// then by what their tenants had and hold, then by arrival.
    fn service_order(&self, at: At) -> Vec<LeaseId> {
        let ranks = self.ranks(at);
        let waiters = self.queue.values();
        let mut order: Vec<_> = waiters
            .map(|&id| (ranks.of(&self.leases[&id]), id))
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    fn ranks(&self, at: At) -> Ranks<'_> {
        Ranks {
            books: self,
            at,
            used: match self.is_fair() {
                true => self.used(at),
                false => Cow::default(),
            },
        }
    }

    /// The devices that serve `lease` now, or what keeps it. What has to wait for devices becomes the head.
    fn decide(&self, walk: &mut Walk, lease: &Lease, at: At) -> Result<Vec<DeviceKey>, Cause> {
        match self.verdict(lease, at) {
            Verdict::Allow => {}
            Verdict::Deny { rule, reason, .. } => {
                return Err(Cause::Rule {
                    rule,
                    reason,
                    until: None,
                });
            }
            Verdict::Hold {
                rule,
                reason,
                until,
            } => {
                return Err(Cause::Rule {
                    rule,
                    reason,
                    until,
                });
            }
        }
        let allowance = self.allowance(lease)?;
        if let Some(head) = walk.barrier {
            return Err(Cause::Behind(head));
        }
        let decided = self.place(lease, allowance, walk.nomination.as_ref(), at);
        if let Err(cause) = &decided
            && !answers_now(lease, cause)
            && !matches!(cause, Cause::Quota { .. })
        {
            self.block(walk, lease, allowance, at);
        }
        decided
    }

    fn block(&self, walk: &mut Walk, lease: &Lease, allowance: Allowance, at: At) {
        if !self.policy.queue.backfill {
            walk.barrier = Some(lease.id);
        }
        if walk.nomination.is_none() {
            walk.nomination = self.nominate(lease, allowance, at);
        }
    }

    /// The best devices for `lease` by the policy's strategy.
    fn place(
        &self,
        lease: &Lease,
        allowance: Allowance,
        nomination: Option<&Nomination>,
        at: At,
    ) -> Result<Vec<DeviceKey>, Cause> {
        if self.devices.is_none() {
            return Err(Cause::Recovering);
        }
        let (mut fitting, mut obstacles) = (Vec::new(), Vec::new());
        for state in self.serving(lease, allowance) {
            match self.obstacle(state, lease, nomination, at) {
                None => fitting.push(state),
                Some(obstacle) => obstacles.push(state.obstructed(obstacle)),
            }
        }
        let wanted = lease.request.devices as usize;
        if fitting.len() < wanted {
            return Err(Cause::Devices(obstacles));
        }
        self.sort_by_preference(&mut fitting, lease, at);
        let chosen = self.chosen(&mut fitting, lease, allowance);
        chosen.ok_or_else(|| {
            let quota = self.out_of_memory(lease);
            quota.unwrap_or(Cause::Devices(obstacles))
        })
    }

    /// The devices that may serve `lease`, each within what its quota leaves.
    fn serving(&self, lease: &Lease, allowance: Allowance) -> impl Iterator<Item = &DeviceState> {
        let is_within = move |state: &&DeviceState| match lease.request.amount {
            Amount::Exclusive => state.grantable() <= allowance.each,
            Amount::Memory(_) => true,
        };
        self.devices()
            .filter(|state| self.may_serve(state, &lease.request))
            .filter(is_within)
    }

    fn sort_by_preference(&self, fitting: &mut Vec<&DeviceState>, lease: &Lease, at: At) {
        let strategy = self.policy.placement.strategy;
        if strategy != Strategy::Score {
            fitting.sort_by_key(|state| preference(strategy, state));
            return;
        }
        let standing = self.standing(lease, &self.membership(lease));
        let rules = &self.policy.rules;
        let scores = rules.scores(&lease.request, fitting, &standing, at.wall);
        // A device without a score is taken last.
        let scores = scores.into_iter().chain(core::iter::repeat(i64::MIN));
        let mut scored: Vec<_> = fitting.drain(..).zip(scores).collect();
        scored.sort_by_key(|(state, score)| (Reverse(*score), preference(strategy, state)));
        fitting.extend(scored.into_iter().map(|(state, _)| state));
    }

    /// The first of `fitting`; the smallest, if the quota leaves too little for those.
    fn chosen(
        &self,
        fitting: &mut Vec<&DeviceState>,
        lease: &Lease,
        allowance: Allowance,
    ) -> Option<Vec<DeviceKey>> {
        let wanted = lease.request.devices as usize;
        let is_within = |states: &[&DeviceState]| {
            let all = states.iter().take(wanted).map(|state| state.grantable());
            let whole = lease.request.amount == Amount::Exclusive;
            !whole || all.fold(0, u64::saturating_add) <= allowance.all
        };
        if !is_within(fitting) {
            fitting.sort_by_key(|state| (state.grantable(), state.device.index));
        }
        is_within(fitting).then(|| {
            let chosen = fitting.iter().take(wanted);
            chosen.map(|state| state.device.key.clone()).collect()
        })
    }

    /// What keeps `lease` off one device, the first thing that does.
    fn obstacle(
        &self,
        state: &DeviceState,
        lease: &Lease,
        nomination: Option<&Nomination>,
        at: At,
    ) -> Option<Obstacle> {
        if state.lost_since.is_some() {
            return Some(Obstacle::Lost);
        }
        if let Some(reason) = state.cordoned() {
            return Some(Obstacle::Cordoned(reason.clone()));
        }
        if let Some(head) = self.held_back(state, lease, nomination, at) {
            return Some(Obstacle::HeldBack(head));
        }
        let awaits_reading = state.awaits_reading(at);
        let by_reading = awaits_reading && state.fits_by_grants(lease.request.amount);
        if let Some(obstacle) = self.short_of(state, lease.request.amount)
            && !by_reading
        {
            return Some(obstacle);
        }
        if lease.request.load && state.usage.loading >= state.settings.load_slots {
            return Some(Obstacle::Loading);
        }
        awaits_reading.then_some(Obstacle::AwaitingReading)
    }

    /// The head that `state` is held for, if using it could delay that head.
    fn held_back(
        &self,
        state: &DeviceState,
        lease: &Lease,
        nomination: Option<&Nomination>,
        at: At,
    ) -> Option<LeaseId> {
        let nomination = nomination?;
        if !nomination.devices.contains(&state.device.key) {
            return None;
        }
        let gone_by = self
            .policy
            .max_hold_for(&lease.request)
            .map(|hold| at.boot + hold);
        let in_time = gone_by
            .zip(nomination.start)
            .is_some_and(|(end, start)| end <= start);
        (!in_time).then_some(nomination.head)
    }

    fn short_of(&self, state: &DeviceState, amount: Amount) -> Option<Obstacle> {
        match amount {
            _ if state.usage.exclusive => Some(Obstacle::InUse),
            Amount::Memory(bytes) if state.free() >= bytes => None,
            Amount::Memory(bytes) if state.free_but_for_foreign() >= bytes => {
                Some(Obstacle::Foreign(state.usage.foreign))
            }
            Amount::Memory(_) => Some(Obstacle::Short),
            Amount::Exclusive if !state.occupants.is_empty() => Some(Obstacle::InUse),
            Amount::Exclusive if state.usage.foreign > self.policy.foreign_ignore_below => {
                Some(Obstacle::Foreign(state.usage.foreign))
            }
            Amount::Exclusive => None,
        }
    }

    /// Adds to what keeps a request who holds the devices that it could use, or what its tenant may hold.
    fn with_holders(&self, mut cause: Cause, named: &mut Named) -> Cause {
        if let Cause::Quota {
            tenant, holders, ..
        } = &mut cause
        {
            let known = named.by_tenant.entry((**tenant).clone());
            *holders = known.or_insert_with(|| self.holders_of(tenant)).clone();
        }
        let (Cause::Devices(obstacles), Some(devices)) = (&mut cause, &self.devices) else {
            return cause;
        };
        for obstacle in obstacles {
            if let Some(state) = devices.get(&obstacle.device) {
                let holders = named.by_device.entry(obstacle.device.clone());
                obstacle.holders = holders.or_insert_with(|| self.holders(state)).clone();
            }
        }
        cause
    }

    fn holders(&self, state: &DeviceState) -> Arc<[Blocker]> {
        let occupants = state.occupants.iter().map(|id| &self.leases[id]);
        let mut holders: Vec<Blocker> = occupants
            .map(|lease| Blocker {
                lease: lease.id,
                holder: lease.request.holder.name.clone(),
                memory: charge_on(state, lease),
                until: known_end(lease).map(|deadline| deadline.wall),
            })
            .collect();
        holders.sort_by_key(|holder| (Reverse(holder.memory), holder.lease));
        holders.into()
    }

    /// The devices that can serve `lease` soonest, each with all that is known of when.
    fn nominate(&self, lease: &Lease, allowance: Allowance, at: At) -> Option<Nomination> {
        let usable = self
            .serving(lease, allowance)
            .filter(|state| state.lost_since.is_none() && state.cordoned().is_none());
        let mut soonest: Vec<_> = usable
            .filter_map(|state| Some((self.opening(state, lease.request.amount, at)?, state)))
            .collect();
        soonest.sort_by_key(|(opening, state)| (*opening, state.device.index, &state.device.key));
        soonest.truncate(lease.request.devices as usize);
        if soonest.len() < lease.request.devices as usize {
            return None;
        }
        let starts = soonest.iter().map(|(opening, _)| opening.start);
        Some(Nomination {
            head: lease.id,
            start: starts
                .collect::<Option<Vec<_>>>()
                .and_then(|starts| starts.into_iter().max()),
            devices: soonest
                .iter()
                .map(|(_, state)| state.device.key.clone())
                .collect(),
        })
    }

    /// When `amount` is free on a device if every lease there stays as long as it may.
    fn opening(&self, state: &DeviceState, amount: Amount, at: At) -> Option<Opening> {
        let needed = match amount {
            Amount::Exclusive => state.grantable(),
            Amount::Memory(bytes) => bytes,
        };
        let foreign = match amount {
            Amount::Exclusive if state.usage.foreign <= self.policy.foreign_ignore_below => 0,
            Amount::Exclusive | Amount::Memory(_) => state.usage.foreign,
        };
        if state.grantable() < needed {
            return None;
        }
        let mut ends: Vec<(Option<BootMs>, u64)> = Vec::new();
        for id in &state.occupants {
            let lease = &self.leases[id];
            // Whoever is there alone takes all of it, also of what the policy added since.
            let alone = if state.usage.exclusive {
                state.grantable()
            } else {
                0
            };
            let charge = charge_on(state, lease).max(alone);
            ends.push((known_end(lease).map(|end| end.boot), charge));
        }
        ends.sort_by_key(|(end, _)| end.unwrap_or(BootMs(u64::MAX)));
        let charges = ends.iter().map(|(_, charge)| *charge);
        let taken = charges.fold(foreign, u64::saturating_add);
        Some(Opening::after(ends, taken, state.grantable() - needed, at))
    }

    fn grant(&mut self, turn: &mut Turn, id: LeaseId, devices: &[DeviceKey]) {
        let mut lease = self.leases[&id].clone();
        let allocations = self.allocate(&lease.request, devices);
        let hold = self.policy.max_hold_for(&lease.request);
        let fence = self.counters.next_fence;
        self.counters.next_fence = Fence(fence.0 + 1);
        let grant = Grant {
            fence,
            at: turn.at,
            generation: self.counters.generation,
            allocations,
            expires: turn.at.after(lease.request.ttl),
            hold_until: hold.map(|hold| turn.at.after(hold)),
            renewed: false,
            loading: lease.request.load,
            unresponsive: false,
            drains: BTreeMap::new(),
        };
        let text = grant_text(&grant);
        lease.phase = Phase::Held(grant);
        turn.event(EventKind::LeaseGranted, &lease, text);
        turn.effects.extend(Self::watch_effect(&lease));
        self.put(turn, lease);
    }

    fn allocate(&self, request: &Request, devices: &[DeviceKey]) -> Vec<Allocation> {
        let mut parts: Vec<Allocation> = devices
            .iter()
            .filter_map(|key| self.devices.as_ref()?.get(key))
            .map(|state| state.part_for(request.amount))
            .collect();
        parts.sort_by(|a, b| a.device.cmp(&b.device));
        parts
    }
}

impl Walk {
    fn why(&self, lease: &Lease, cause: Cause, position: u32) -> Why {
        let mine = self
            .nomination
            .as_ref()
            .filter(|nomination| nomination.head == lease.id);
        Why {
            devices: lease.request.devices,
            amount: lease.request.amount,
            position,
            start: mine.and_then(|nomination| nomination.start),
            cause,
        }
    }
}

impl DeviceState {
    fn obstructed(&self, obstacle: Obstacle) -> DeviceObstacle {
        DeviceObstacle {
            device: self.device.key.clone(),
            free: if self.usage.exclusive { 0 } else { self.free() },
            obstacle,
            holders: Arc::default(),
        }
    }

    fn part_for(&self, amount: Amount) -> Allocation {
        let (memory, exclusive) = match amount {
            Amount::Exclusive => (self.grantable(), true),
            Amount::Memory(bytes) => (bytes, false),
        };
        Allocation {
            device: self.device.key.clone(),
            memory,
            exclusive,
        }
    }

    fn free_but_for_foreign(&self) -> u64 {
        self.grantable().saturating_sub(self.usage.charged)
    }

    /// Whether `amount` is left of what was granted, whatever was read.
    fn fits_by_grants(&self, amount: Amount) -> bool {
        match amount {
            _ if self.usage.exclusive => false,
            Amount::Exclusive => self.occupants.is_empty(),
            Amount::Memory(bytes) => self.grantable().saturating_sub(self.usage.granted) >= bytes,
        }
    }
}

/// When and how nearly a device can serve; the smallest is the best to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Opening {
    at: BootMs,
    /// Bytes still missing when everything of known end is over.
    missing: u64,
    start: Option<BootMs>,
}

impl Opening {
    /// Walks over `ends` in order until no more than `most_taken` of `taken` is left.
    fn after(ends: Vec<(Option<BootMs>, u64)>, mut taken: u64, most_taken: u64, at: At) -> Self {
        let mut now = at.boot;
        for (end, charge) in ends {
            let (true, Some(end)) = (taken > most_taken, end) else {
                break;
            };
            taken = taken.saturating_sub(charge);
            now = now.max(end);
        }
        let missing = taken.saturating_sub(most_taken);
        Self {
            at: if missing == 0 { now } else { BootMs(u64::MAX) },
            missing,
            start: (missing == 0).then_some(now),
        }
    }
}

/// Bytes that `lease` is charged for on a device.
fn charge_on(state: &DeviceState, lease: &Lease) -> u64 {
    let granted = lease
        .occupying()
        .and_then(|grant| grant.on(&state.device.key));
    let granted = granted.map_or(0, |part| part.memory);
    granted.max(state.observed(lease.id).unwrap_or(0))
}

/// When a lease must be over. While memory is being reclaimed, nobody knows.
fn known_end(lease: &Lease) -> Option<crate::lease::Deadline> {
    lease.held().and_then(Grant::known_end)
}

/// The smaller, the sooner taken; the index decides among equals.
fn preference(strategy: Strategy, state: &DeviceState) -> (u64, u64, u32, DeviceKey) {
    let free = state.free();
    let leases = state.occupants.len() as u64;
    let (first, second) = match strategy {
        Strategy::BestFit => (free, 0),
        Strategy::FirstFit | Strategy::Score => (0, 0),
        Strategy::Pack => (u64::MAX - leases, free),
        Strategy::Spread => (leases, u64::MAX - free),
        Strategy::WorstFit => (u64::MAX - free, 0),
    };
    (first, second, state.device.index, state.device.key.clone())
}

/// Whether `lease` is not for waiting, and no reading can help it.
fn answers_now(lease: &Lease, cause: &Cause) -> bool {
    let waits = lease.request.wait > Ms(0) || lease.request.queue;
    !waits && !awaits_reading(cause)
}

fn awaits_reading(cause: &Cause) -> bool {
    let Cause::Devices(devices) = cause else {
        return false;
    };
    devices
        .iter()
        .any(|device| device.obstacle == Obstacle::AwaitingReading)
}

fn grant_text(grant: &Grant) -> String {
    use core::fmt::Write;
    let mut text = String::from("is granted");
    for (place, part) in grant.allocations.iter().enumerate() {
        let comma = if place == 0 { " " } else { ", " };
        let amount = Bytes(part.memory);
        // Writing to a string cannot fail.
        let _ = match part.exclusive {
            true => write!(text, "{comma}all of {}", part.device),
            false => write!(text, "{comma}{amount} of {}", part.device),
        };
    }
    text
}
