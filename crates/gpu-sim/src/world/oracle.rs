//! What must hold of everything that becomes durable, whoever asked for it: each row is held against the one
//! before it and against the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpu_broker::{Clock, Processes};
use gpu_lease::{
    Amount, At, BootMs, Command, Deadline, Device, DeviceKey, DrainSource, EndReason, Fence, Grant,
    Lease, LeaseId, Ms, Phase, Reading, Targets,
};
use gpu_store::Batch;

use super::audit;
use super::law::Law;
use super::ledger::Ledger;
use super::machine::{HostClock, Machine};
use super::rows::Rows;

/// An ended lease can be asked for so long.
pub(super) const KEPT: Ms = Ms(24 * 3_600_000);
/// Unless there are more rows than this.
const KEPT_MAX: usize = 50_000;
/// A device that is missing keeps its leases so long.
const LOST_GRACE: Ms = Ms(60_000);

/// Watches the rows. What it finds wrong it keeps until it is asked.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) machine: Option<(Machine, Arc<HostClock>)>,
    highest_fence: Option<Fence>,
    /// Which policy each generation is, by hash.
    generations: BTreeMap<u64, String>,
    /// What the live policy says.
    pub(super) law: Arc<Law>,
    pub(super) ledger: Ledger,
    /// Until when each lease was promised to its holder.
    pub(super) promised: BTreeMap<LeaseId, BootMs>,
    /// Leases that somebody vouched for: nothing has to be proven of them.
    pub(super) vouched: BTreeSet<LeaseId>,
    /// The devices that this life of the broker was told of, and since when one of them is missing.
    devices: BTreeMap<DeviceKey, Option<BootMs>>,
    /// Those of them that were there and open when it was last told.
    open: BTreeSet<DeviceKey>,
    /// What was last read of each, and when somebody last had it alone.
    readings: BTreeMap<DeviceKey, Reading>,
    left_alone: BTreeMap<DeviceKey, BootMs>,
    /// What was asked for since the loop last rested.
    pub(super) acts: Acts,
    /// Leases that their client gave back, cancelled, or is not there for any more.
    pub(super) let_go: BTreeSet<LeaseId>,
    /// The boot that the broker of now, or of before the crash, runs in.
    pub(super) boot: String,
    /// The boot in which each lease was first seen.
    pub(super) boots: BTreeMap<LeaseId, String>,
    /// How leases ended, by reason.
    pub(super) ends: BTreeMap<EndReason, u64>,
    /// What was told of, by kind.
    pub(super) events: BTreeMap<&'static str, u64>,
    /// The first thing that does not hold.
    wrong: Option<String>,
    /// New grants that nobody has looked at; see [`Oracle::take_grants`].
    grants: Vec<LeaseId>,
    pub(super) granted: u64,
}

/// What people did that can end leases before their time.
#[derive(Clone, Debug, Default)]
pub(super) struct Acts {
    /// What operators ordered: each excuses what becomes of the leases that it names, and of no others.
    orders: Vec<Command>,
    /// A policy was switched to, or what an earlier one meant became clear with the devices.
    pub(super) policy: bool,
}

impl Acts {
    pub(super) fn order(&mut self, command: &Command) {
        self.orders.push(command.clone());
    }

    fn revoke(&self, lease: LeaseId) -> bool {
        let mut orders = self.orders.iter();
        orders.any(|order| matches!(order, Command::Revoke { id, .. } if *id == lease))
    }

    fn drain(&self, lease: LeaseId) -> bool {
        let mut orders = self.orders.iter();
        orders.any(|order| matches!(order, Command::DrainLease { id, .. } if *id == lease))
    }

    /// Whether a device of it was drained.
    fn drain_around(&self, grant: &Grant) -> bool {
        self.orders.iter().any(|order| match order {
            Command::DrainDevice { device, .. } => grant.on(device).is_some(),
            _ => false,
        })
    }

    fn emergency(&self, lease: &Lease) -> bool {
        self.orders.iter().any(|order| match order {
            Command::Emergency(emergency) => is_meant(lease, &emergency.targets),
            _ => false,
        })
    }
}

/// Whether an emergency ends this lease, which had not ended before.
fn is_meant(lease: &Lease, targets: &Targets) -> bool {
    match targets {
        Targets::All => true,
        Targets::Devices(keys) => {
            let grant = lease.grant();
            grant.is_some_and(|grant| keys.iter().any(|key| grant.on(key).is_some()))
        }
        Targets::Leases(ids) => ids.contains(&lease.id),
        // What is stuck is over already.
        Targets::Stuck => false,
    }
}

type Checked = Result<(), String>;

impl Oracle {
    /// One durable write, begun at `at`; `rows` are those before it.
    pub(super) fn see(&mut self, batch: &Batch<'_>, rows: &Rows, at: At) {
        if let Err(wrong) = self.judge(batch, rows, at) {
            self.wrong.get_or_insert(wrong);
        }
    }

    /// Whether nothing was found wrong so far.
    pub(super) fn is_content(&mut self) -> Checked {
        self.wrong.take().map_or(Ok(()), Err)
    }

    /// What the clocks say.
    pub(super) fn now(&self) -> At {
        let machine = self.machine.as_ref();
        machine.map(|(_, clock)| clock.now()).unwrap_or_default()
    }

    /// A broker starts in this boot: boot times of an earlier one promise nothing.
    pub(super) fn begin(&mut self, boot: String) {
        if self.boot != boot {
            self.promised.clear();
            self.boot = boot;
        }
        // The files may be others, and a start is a switch to them.
        self.acts = Acts {
            policy: true,
            ..Acts::default()
        };
    }

    /// Somebody was told that a lease lasts so long.
    pub(super) fn promise(&mut self, id: LeaseId, until: BootMs) {
        let promised = self.promised.entry(id).or_insert(until);
        *promised = until.max(*promised);
    }

    /// The broker is told of devices.
    pub(super) fn tell_devices(&mut self, found: &[Device], now: BootMs) {
        for missing_since in self.devices.values_mut() {
            missing_since.get_or_insert(now);
        }
        let open = found.iter().filter(|device| device.leasable);
        self.open = open.map(|device| device.key.clone()).collect();
        let found = found.iter().map(|device| (device.key.clone(), None));
        self.devices.extend(found);
        let devices = &self.devices;
        self.readings
            .retain(|key, _| devices.get(key) == Some(&None));
    }

    /// The broker is told what is used.
    pub(super) fn tell_readings(&mut self, readings: &[Reading]) {
        let there = |reading: &&Reading| self.devices.get(&reading.device) == Some(&None);
        let there = readings.iter().filter(there);
        let readings = there.map(|reading| (reading.device.clone(), reading.clone()));
        self.readings.extend(readings);
    }

    /// Another broker starts, which was told of no device.
    pub(super) fn forget_devices(&mut self) {
        self.devices.clear();
        self.readings.clear();
        self.left_alone.clear();
    }

    /// What the broker knows of a device since somebody last had it alone.
    pub(super) fn reading(&self, device: &DeviceKey) -> Option<&Reading> {
        let reading = self.readings.get(device);
        reading.filter(|reading| self.is_of_now(reading))
    }

    /// Whether nobody who had its device alone has left since.
    pub(super) fn is_of_now(&self, reading: &Reading) -> bool {
        let left = self.left_alone.get(&reading.device);
        // Within a millisecond nobody can tell which came first, nor did a broker that was not told of the device yet.
        left.is_none_or(|left| *left <= reading.taken)
    }

    pub(super) fn is_told_of(&self, device: &DeviceKey) -> bool {
        self.devices.contains_key(device)
    }

    pub(super) fn is_lost(&self, device: &DeviceKey, now: BootMs) -> bool {
        let since = self.devices.get(device).copied().flatten();
        since.is_some_and(|since| since + LOST_GRACE <= now)
    }

    /// The loop rests: what was asked for is done, or is not going to be.
    pub(super) fn rest(&mut self) {
        self.acts = Acts::default();
        self.vouched.clear();
    }

    /// The leases that were granted since this was last asked.
    pub(super) fn take_grants(&mut self) -> Vec<LeaseId> {
        std::mem::take(&mut self.grants)
    }

    fn judge(&mut self, batch: &Batch<'_>, rows: &Rows, at: At) -> Checked {
        let (machine, _) = self.machine.clone().ok_or("nobody told of the machine")?;
        counters_rise(batch, rows)?;
        let law = self.switch(batch)?;
        audit::tells_all(batch, rows, at)?;
        self.count_events(batch);
        let mut granted: Vec<(Fence, LeaseId)> = Vec::new();
        for lease in &batch.leases {
            let before = rows.leases.get(&lease.id);
            one_way(before, lease)?;
            if let Some(grant) = new_grant(before, lease) {
                granted.push((grant.fence, lease.id));
                self.grants_rightly(lease, grant, batch, &law)?;
            }
            if let Some(grant) = lease.held() {
                self.promise(lease.id, grant.expires.boot);
            }
            let boot = || self.boot.clone();
            self.boots.entry(lease.id).or_insert_with(boot);
            if let Some(before) = before {
                self.ends_rightly(before, lease, at, &machine, &law)?;
                self.frees_rightly(before, lease, at, &machine, (&law, &self.law))?;
                self.drains_stay(before, lease)?;
                self.leave(before, lease, at);
            }
        }
        granted.sort_unstable();
        self.fences_rise(&granted, batch)?;
        forgets_rightly(batch, rows, at)?;
        self.granted += granted.len() as u64;
        self.grants.extend(granted.into_iter().map(|(_, id)| id));
        self.ledger.see(batch, rows, at, (&law, &self.law))
    }

    /// Answers what the policy said that was live before.
    fn switch(&mut self, batch: &Batch<'_>) -> Result<Arc<Law>, String> {
        let before = self.law.clone();
        if let Some(policy) = &batch.policy {
            let (generation, hash) = (policy.generation, &policy.source.hash);
            let known = self.generations.entry(generation).or_insert(hash.clone());
            require(known == hash, || {
                format!("generation {generation} was {known} and is {hash}")
            })?;
            self.law = Arc::new(Law::of(&policy.source.files));
        }
        Ok(before)
    }

    fn count_events(&mut self, batch: &Batch<'_>) {
        for stored in &batch.events {
            *self.events.entry(stored.event.kind.as_str()).or_default() += 1;
        }
    }

    /// By the generation that it says, which is live or was when this write began.
    fn grants_rightly(
        &self,
        lease: &Lease,
        grant: &Grant,
        batch: &Batch<'_>,
        before: &Law,
    ) -> Checked {
        let law = match grant.generation == batch.counters.generation {
            true => &self.law,
            false => before,
        };
        let told = batch
            .events
            .iter()
            .filter(|stored| stored.event.lease == Some(lease.id));
        let mut told = told.map(|stored| stored.generation);
        let fine = law.admits(lease) && told.any(|told| told == grant.generation);
        require(fine, || format!("{law:?} was live and granted {lease:?}"))
    }

    /// A cause to go comes, moves and goes with whoever it is of, and with nobody else.
    fn drains_stay(&self, before: &Lease, after: &Lease) -> Checked {
        let (Some(before), Some(held)) = (before.held(), after.held()) else {
            return Ok(());
        };
        let by_policy = before.drains.get(&DrainSource::Policy)
            == held.drains.get(&DrainSource::Policy)
            && before.hold_until == held.hold_until;
        let by_operator =
            before.drains.get(&DrainSource::Operator) == held.drains.get(&DrainSource::Operator);
        // A cordon that ends takes its drain with it, whoever set it.
        let device = [before, held].map(|grant| grant.drains.get(&DrainSource::Device));
        let by_device = device[0] == device[1] || device[1].is_none();
        let acts = &self.acts;
        let fine = (by_policy || acts.policy)
            && (by_operator || acts.drain(after.id))
            && (by_device || acts.drain_around(held));
        require(fine, || {
            format!("nobody moved a deadline: {before:?}\n  {after:?}")
        })
    }

    /// Notes who leaves a device that was theirs alone.
    fn leave(&mut self, before: &Lease, after: &Lease, at: At) {
        let (Some(grant), None) = (before.occupying(), after.occupying()) else {
            return;
        };
        let alone = grant.allocations.iter().filter(|part| part.exclusive);
        let left = alone.map(|part| (part.device.clone(), at.boot));
        self.left_alone.extend(left);
    }

    fn fences_rise(&mut self, granted: &[(Fence, LeaseId)], batch: &Batch<'_>) -> Checked {
        for (fence, id) in granted {
            let rises = self.highest_fence.is_none_or(|highest| highest < *fence);
            require(rises, || {
                format!("{id} got fence {fence}, which was given before")
            })?;
            self.highest_fence = Some(*fence);
        }
        let next = batch.counters.next_fence;
        let rises = self.highest_fence.is_none_or(|highest| highest < next);
        require(rises, || format!("fence {next} would be given again"))
    }

    /// Nothing ends before its time, and nobody is called dead who lives.
    fn ends_rightly(
        &mut self,
        before: &Lease,
        after: &Lease,
        at: At,
        machine: &Machine,
        law: &Law,
    ) -> Checked {
        let (None, Some(reason)) = (before.end_reason(), after.end_reason()) else {
            return Ok(());
        };
        *self.ends.entry(reason).or_default() += 1;
        match reason {
            EndReason::Expired | EndReason::WaitTimeout => self.ends_in_time(before, reason, at),
            EndReason::ProcessGone | EndReason::DeviceLost | EndReason::HostRebooted => {
                self.ends_with_its_host(before, reason, at, machine)
            }
            EndReason::Cancelled
            | EndReason::Denied
            | EndReason::Emergency
            | EndReason::MaxHold
            | EndReason::Policy
            | EndReason::Preempted
            | EndReason::Released
            | EndReason::Revoked => self.ends_as_asked((before, after), reason, at, law),
        }
    }

    fn ends_in_time(&self, before: &Lease, reason: EndReason, at: At) -> Checked {
        let (id, wait) = (before.id, before.waiting());
        let due = match reason {
            EndReason::WaitTimeout => wait.and_then(|wait| wait.until),
            _ => {
                let promised = self.promised.get(&id).copied();
                promised.or(wait.and_then(|wait| wait.renew_by))
            }
        };
        require(due.is_some_and(|due| due <= at.boot), || {
            format!("{id} had until {due:?} and ended at {at:?}: {reason}")
        })?;
        let process = before.held().and(before.process());
        require(process.is_none(), || {
            format!("{id} expired, but its process is registered: {before:?}")
        })
    }

    fn ends_with_its_host(
        &self,
        before: &Lease,
        reason: EndReason,
        at: At,
        machine: &Machine,
    ) -> Checked {
        let id = before.id;
        let fine = match reason {
            EndReason::ProcessGone => {
                let process = before.process();
                process.is_some_and(|process| machine.is_gone(process))
            }
            EndReason::HostRebooted => self.boots.get(&id) != Some(&self.boot),
            _ => {
                let parts = before.occupying().map(|grant| grant.allocations.as_slice());
                let mut parts = parts.unwrap_or_default().iter();
                parts.any(|part| self.is_lost(&part.device, at.boot))
            }
        };
        require(fine, || format!("{reason} is not so: {before:?}"))
    }

    /// By the policy that is live or was when this write began, or because it leaves too few devices.
    fn may_deny(&self, waiter: &Lease, before: &Law) -> bool {
        self.law.denies(waiter) || before.denies(waiter) || self.are_too_few(waiter)
    }

    /// Whether some of what was asked for is not there, as the live policy counts it. What is closed or missing is
    /// not looked at more closely.
    fn are_too_few(&self, waiter: &Lease) -> bool {
        let serves = |key: &&DeviceKey| {
            let total = self
                .machine
                .as_ref()
                .map_or(0, |(machine, _)| machine.total(key));
            let grantable = total.saturating_sub(self.law.reserve);
            self.open.contains(*key)
                && match waiter.request.amount {
                    Amount::Exclusive => true,
                    Amount::Memory(bytes) => bytes <= grantable,
                }
        };
        let serving = self.devices.keys().filter(serves).count();
        serving < waiter.request.devices as usize
    }

    /// Somebody did something that ends it, or its known end has come.
    fn ends_as_asked(
        &self,
        (before, after): (&Lease, &Lease),
        reason: EndReason,
        at: At,
        law: &Law,
    ) -> Checked {
        let passed = |until: Option<Deadline>| until.is_some_and(|until| until.boot <= at.boot);
        let (id, held, acts) = (before.id, before.held(), &self.acts);
        let drain = |source| {
            let drain = held.and_then(|grant| grant.drains.get(&source));
            drain.map(|drain| drain.deadline)
        };
        let fine = match reason {
            EndReason::Released => self.let_go.contains(&id),
            EndReason::Cancelled => self.let_go.contains(&id) || acts.revoke(id),
            EndReason::MaxHold => acts.policy || passed(held.and_then(|grant| grant.hold_until)),
            EndReason::Policy => acts.policy || passed(drain(DrainSource::Policy)),
            EndReason::Denied => before.waiting().is_some() && self.may_deny(before, law),
            EndReason::Emergency => acts.emergency(after),
            EndReason::Revoked => {
                acts.revoke(id)
                    || acts.drain(id)
                    || after.grant().is_some_and(|grant| acts.drain_around(grant))
                    || passed(drain(DrainSource::Operator))
                    || passed(drain(DrainSource::Device))
            }
            // Nothing preempts yet.
            _ => false,
        };
        require(fine, || format!("{reason} for no reason: {before:?}"))
    }
}

fn counters_rise(batch: &Batch<'_>, rows: &Rows) -> Checked {
    let Some(before) = rows.counters else {
        return Ok(());
    };
    let now = batch.counters;
    let rises = before.revision <= now.revision
        && before.next_fence <= now.next_fence
        && before.generation <= now.generation;
    require(rises, || {
        format!("counters went from {before:?} to {now:?}")
    })
}

/// What ended can be asked for long enough.
fn forgets_rightly(batch: &Batch<'_>, rows: &Rows, at: At) -> Checked {
    for id in &batch.pruned {
        let row = rows.leases.get(id);
        let old = row.is_none_or(|row| match &row.phase {
            Phase::Ended(ending) => {
                ending.at.boot + KEPT <= at.boot || rows.leases.len() > KEPT_MAX
            }
            Phase::Waiting(_) | Phase::Held(_) | Phase::Reclaiming(..) => false,
        });
        require(old, || format!("{id} is forgotten too early: {row:?}"))?;
    }
    Ok(())
}

/// Waiting, held, reclaiming, ended: never back; a grant stays what it is, an end keeps its reason.
fn one_way(before: Option<&Lease>, after: &Lease) -> Checked {
    let Some(before) = before else {
        return Ok(());
    };
    let rank = |lease: &Lease| match lease.phase {
        Phase::Waiting(_) => 0,
        Phase::Held(_) => 1,
        Phase::Reclaiming(..) => 2,
        Phase::Ended(_) => 3,
    };
    let same_grant = match (before.grant(), after.grant()) {
        (Some(a), Some(b)) => is_same(a, b),
        (Some(_), None) => false,
        (None, _) => true,
    };
    let reason = before.end_reason();
    let fine = rank(before) <= rank(after)
        && same_grant
        && before.revision <= after.revision
        && before.request.idempotency == after.request.idempotency
        && reason.is_none_or(|reason| after.end_reason() == Some(reason));
    require(fine, || format!("from {before:?} to {after:?}"))
}

/// When its holder must be gone at the latest, heartbeats or not.
pub(super) fn last_end(grant: &Grant) -> Option<Deadline> {
    let drains = grant.drains.values().map(|drain| drain.deadline);
    drains.chain(grant.hold_until).min()
}

fn is_same(a: &Grant, b: &Grant) -> bool {
    (a.fence, a.at, a.generation, &a.allocations) == (b.fence, b.at, b.generation, &b.allocations)
}

pub(super) fn new_grant<'a>(before: Option<&Lease>, after: &'a Lease) -> Option<&'a Grant> {
    let was_granted = before.is_some_and(|before| before.grant().is_some());
    after.grant().filter(|_| !was_granted)
}

pub(super) fn require(holds: bool, what: impl FnOnce() -> String) -> Checked {
    match holds {
        true => Ok(()),
        false => Err(what()),
    }
}
