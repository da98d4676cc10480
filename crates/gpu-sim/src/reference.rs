//! What the design says, put into code without any cleverness.
//!
//! Lists and full scans, nothing derived is kept, nothing is indexed: slow, and hard to get wrong. It
//! shares the types of the books and none of their code. Revisions are left out; a checker has them.

mod capacity;
mod holding;
mod plan;
mod policy;
mod queue;
mod shares;

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_lease::{
    Answer, At, BootMs, Command, Cordon, Deadline, Denial, Device, DeviceKey, Effect, Explanation,
    Fence, Grant, Lease, LeaseError, LeaseId, Ms, Phase, Policy, Reading, Request, Standing,
    TenantKey, UnknownDevice, Verdict, Wait, WallMs,
};

/// A device as the reference knows it.
#[derive(Clone, Debug)]
pub struct Card {
    /// What discovery says.
    pub device: Device,
    /// What was last read.
    pub reading: Option<Reading>,
    /// Since when it is missing.
    pub lost_since: Option<At>,
    /// A reading must be later than this to tell anything.
    pub read_after: Option<BootMs>,
}

/// The whole state.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The live policy.
    pub policy: Arc<Policy>,
    /// The fence of the next grant.
    pub next_fence: u64,
    /// The generation of the policy.
    pub generation: u64,
    /// Every lease, in the order in which they came.
    pub leases: Vec<Lease>,
    /// What operators cordoned.
    pub cordons: Vec<(DeviceKey, Cordon)>,
    /// The devices by key; `None` before the first inventory.
    pub cards: Option<Vec<Card>>,
    /// No time runs out for holders before this.
    pub grace_until: BootMs,
    /// Waits of the last command that ended without a trace.
    pub dropped: Vec<Lease>,
    /// What every tenant had of late. The books say it, because their rounding decides; that it is near the
    /// formula is checked apart.
    pub used: BTreeMap<TenantKey, u64>,
    /// Leases on devices that no switch saw yet, and the policy from before.
    unseen: Option<(Arc<Policy>, Vec<LeaseId>)>,
}

/// What a command did beside changing the state.
#[derive(Debug)]
pub struct Did {
    /// For the one who asked.
    pub answer: Answer,
    /// Slow work.
    pub effects: Vec<Effect>,
}

impl Reference {
    /// Nothing is known and nothing held.
    pub fn new(policy: Arc<Policy>, first_fence: Fence) -> Self {
        Self {
            policy,
            next_fence: first_fence.0,
            generation: 1,
            leases: Vec::new(),
            cordons: Vec::new(),
            cards: None,
            grace_until: BootMs(0),
            dropped: Vec::new(),
            used: BTreeMap::new(),
            unseen: None,
        }
    }

    /// What is left after the broker died and came back on the same boot.
    pub fn restart(&mut self) {
        self.leases.retain(survives_a_restart);
        self.cards = None;
        self.unseen = None;
        self.grace_until = BootMs(0);
    }

    /// Does what `command` says, then serves who waits.
    pub fn apply(&mut self, at: At, command: Command) -> Did {
        let mut effects = Vec::new();
        self.dropped.clear();
        let answer = match command {
            Command::Acquire { id, request } => {
                Answer::Acquire(self.acquire(at, id, *request, &mut effects))
            }
            Command::Explain { request, wall } => {
                Answer::Explain(Box::new(self.explain(at, *request, wall)))
            }
            Command::Note(_) => Answer::Nothing,
            other => {
                let answer = self.dispatch(at, other, &mut effects);
                self.serve(at, &mut effects);
                answer
            }
        };
        Did {
            answer: self.refreshed(answer),
            effects,
        }
    }

    /// Why each waiter waits, in the order of service.
    pub fn waiting(&self, at: At) -> Vec<(LeaseId, gpu_lease::Why)> {
        self.reasons(at)
    }

    /// When something happens by time alone.
    pub fn next_deadline(&self) -> Option<BootMs> {
        let mut all: Vec<BootMs> = self.leases.iter().filter_map(|l| self.due(l)).collect();
        for lease in &self.leases {
            if let Phase::Ended(ending) = &lease.phase {
                all.push(ending.at.boot + gpu_lease::ENDED_KEPT_MS);
            }
        }
        for (_, cordon) in &self.cordons {
            all.extend(cordon.until.map(|until| until.boot));
        }
        for card in self.cards.iter().flatten() {
            let gone = card.lost_since.map(|since| since.boot + LOST_AFTER);
            all.extend(gone.map(|gone| gone.max(self.grace_until)));
        }
        all.into_iter().min()
    }

    fn dispatch(&mut self, at: At, command: Command, effects: &mut Vec<Effect>) -> Answer {
        match command {
            Command::Acquire { .. } | Command::Explain { .. } | Command::Note(_) => {
                unreachable!("handled apart")
            }
            Command::Abandon { id } => self.abandon(at, id),
            Command::Expire => self.expire(at, effects),
            Command::Grace { until } => self.grace_until = self.grace_until.max(until),
            Command::HostRebooted => self.host_rebooted(at),
            Command::Inventory(devices) => {
                self.inventory(at, devices, effects);
                self.judge_unseen(at, effects);
            }
            Command::Telemetry(readings) => self.telemetry(readings),
            Command::ProcessGone { id, fence } => self.process_gone(at, id, fence),
            Command::SignalRefused {
                id,
                fence,
                attempt,
                why,
            } => self.signal_refused(id, fence, attempt, why),
            Command::Emergency(emergency) => {
                return Answer::Emergency(self.emergency(at, &emergency, effects));
            }
            Command::SetPolicy(switch) => {
                return Answer::Policy(self.switch(at, switch.policy, &switch.expect, effects));
            }
            Command::Ready { id } => return Answer::Lease(self.ready(id)),
            Command::Renew { id } => return Answer::Lease(self.renew(at, id)),
            Command::Release { id } => return Answer::Lease(self.release(at, id)),
            Command::DrainLease { id, notice } => {
                return Answer::Lease(self.drain_lease(at, id, &notice));
            }
            Command::Revoke { id, .. } => return Answer::Lease(self.revoke(at, id, effects)),
            Command::Cordon { device, cordon } => {
                return Answer::Device(self.on_device(&device, |all| all.cordon(&device, cordon)));
            }
            Command::Uncordon { device, .. } => {
                return Answer::Device(self.on_device(&device, |all| all.uncordon(&device)));
            }
            Command::DrainDevice { device, notice } => {
                let drain = |all: &mut Self| all.drain_device(at, &device, &notice);
                return Answer::Device(self.on_device(&device, drain));
            }
            Command::ClearQuarantine { device, .. } => {
                let clear = |all: &mut Self| all.clear_quarantine(at, &device);
                return Answer::Device(self.on_device(&device, clear));
            }
        }
        Answer::Nothing
    }

    fn on_device(
        &mut self,
        device: &DeviceKey,
        act: impl FnOnce(&mut Self),
    ) -> Result<(), UnknownDevice> {
        if self.card(device).is_none() {
            return Err(UnknownDevice(device.clone()));
        }
        act(self);
        Ok(())
    }

    fn acquire(
        &mut self,
        at: At,
        id: LeaseId,
        request: Request,
        effects: &mut Vec<Effect>,
    ) -> Result<Lease, Denial> {
        if let Some(known) = self.with_key_of(&request) {
            let first = known.request.idempotency.as_ref().map(|i| &i.body_hash);
            let again = request.idempotency.as_ref().map(|i| &i.body_hash);
            return match first == again {
                true => Ok(known.clone()),
                false => Err(Denial::IdempotencyMismatch),
            };
        }
        let lease = self.newcomer(at, id, request);
        self.refuse(at, &lease)?;
        if self.is_full() {
            self.serve(at, effects);
        }
        if self.is_full() && self.would_stay(at, &lease) {
            let max_waiting = self.policy.queue.max_waiting;
            return Err(Denial::QueueFull { max_waiting });
        }
        self.leases.push(lease.clone());
        self.serve(at, effects);
        match self.find(id) {
            Some(known) => Ok(known.clone()),
            None if self.cards.is_none() => Err(Denial::Recovering),
            None => Err(Denial::DoesNotFit(self.why_not(at, lease))),
        }
    }

    /// Refuses what no waiting can help.
    fn refuse(&self, at: At, lease: &Lease) -> Result<(), Denial> {
        let verdict = self.verdict(at, &lease.request, None);
        if let Verdict::Deny { rule, reason, .. } = verdict {
            return Err(Denial::ByPolicy { rule, reason });
        }
        if let Some(refusal) = self.too_much_alone(&lease.request) {
            return Err(Denial::ByPolicy {
                rule: refusal.rule,
                reason: refusal.reason,
            });
        }
        match self.can_never_fit(&lease.request) {
            true => Err(Denial::NeverFits(String::new())),
            false => Ok(()),
        }
    }

    /// Rules that look at the books have no say before the devices are known.
    fn verdict(&self, at: At, request: &Request, lease: Option<&Lease>) -> Verdict {
        let known = self.policy.classes.contains_key(&request.class)
            && shares::member(&self.policy, request).is_ok();
        if self.policy.rules.reads_standing() && self.cards.is_none() && known {
            return Verdict::Allow;
        }
        let standing = self.seen_by_rules(request, lease);
        policy::verdict(&self.policy, request, &standing, at)
    }

    /// The books, if any rule looks at them.
    fn seen_by_rules(&self, request: &Request, lease: Option<&Lease>) -> Standing {
        match self.policy.rules.reads_standing() {
            true => self.standing(request, lease),
            false => Standing::default(),
        }
    }

    fn explain(&self, at: At, request: Request, wall: Option<WallMs>) -> Explanation {
        let at = At {
            boot: at.boot,
            wall: wall.unwrap_or(at.wall),
        };
        let seen = shares::with_tenant(&self.policy, &request);
        let standing = self.seen_by_rules(&seen, None);
        let hits = self.policy.rules.hits(&seen, &standing, at.wall);
        let lease = self.newcomer(at, LeaseId::from_bits(u64::MAX), request);
        Explanation {
            tenant: shares::member(&self.policy, &lease.request).ok().flatten(),
            priority: lease.priority,
            outcome: self.outlook(at, &lease),
            request: lease.request,
            hits,
        }
    }

    fn outlook(&self, at: At, lease: &Lease) -> Result<Vec<DeviceKey>, Denial> {
        self.refuse(at, lease)?;
        let decided = self.decide_in_place(at, lease);
        let stays = |cause| queue::stays(&lease.request, cause);
        if self.is_full() && decided.as_ref().is_err_and(stays) {
            let max_waiting = self.policy.queue.max_waiting;
            return Err(Denial::QueueFull { max_waiting });
        }
        match decided {
            _ if self.cards.is_none() => Err(Denial::Recovering),
            Ok(devices) => Ok(devices),
            Err(_) => Err(Denial::DoesNotFit(self.why_not(at, lease.clone()))),
        }
    }

    /// By trying it.
    fn would_stay(&self, at: At, lease: &Lease) -> bool {
        let mut trial = self.clone();
        trial.leases.push(lease.clone());
        trial.serve(at, &mut Vec::new());
        trial.find(lease.id).is_some_and(is_waiting)
    }

    fn is_full(&self) -> bool {
        self.leases.iter().filter(|l| is_waiting(l)).count() >= self.policy.queue.max_waiting
    }

    fn with_key_of(&self, request: &Request) -> Option<&Lease> {
        let wanted = &request.idempotency.as_ref()?.key;
        let has_key = |lease: &&Lease| {
            let mine = lease.request.idempotency.as_ref().map(|i| &i.key);
            mine == Some(wanted)
        };
        self.leases.iter().find(has_key)
    }

    fn newcomer(&self, at: At, id: LeaseId, mut request: Request) -> Lease {
        request = shares::with_tenant(&self.policy, &request);
        let standing = self.seen_by_rules(&request, None);
        let sets = self.policy.rules.shape(&request, &standing, at.wall);
        if let Some(class) = sets.class {
            request.class = class;
        }
        if let Some(ttl) = sets.ttl {
            request.ttl = ttl;
        }
        if let Some(hold) = sets.max_hold {
            request.max_hold = Some(request.max_hold.map_or(hold, |asked| asked.min(hold)));
        }
        request.select.filters.extend(sets.filters);
        request = shares::with_tenant(&self.policy, &request);
        let places = self.leases.iter().filter_map(|lease| lease.waiting());
        let seq = places.map(|wait| wait.seq + 1).max().unwrap_or(0);
        let until = match (request.wait, request.queue) {
            (Ms(0), true) => None,
            (Ms(0), false) => Some(at.boot + Ms::from_secs(2)),
            (wait, _) => Some(at.boot + wait),
        };
        let renew_by = request.queue.then(|| at.boot + request.ttl);
        let class = self.policy.classes.get(&request.class);
        Lease {
            id,
            revision: 0,
            priority: sets
                .priority
                .unwrap_or(class.map_or(0, |class| class.priority)),
            created: at,
            phase: Phase::Waiting(Wait {
                seq,
                until,
                renew_by,
            }),
            request,
        }
    }

    /// The answer is the lease as it is when everything is done.
    fn refreshed(&self, mut answer: Answer) -> Answer {
        if let Answer::Acquire(Ok(lease)) | Answer::Lease(Ok(lease)) = &mut answer {
            let dropped = self.dropped.iter().find(|dropped| dropped.id == lease.id);
            if let Some(known) = self.find(lease.id).or(dropped) {
                *lease = known.clone();
            }
        }
        answer
    }

    /// The lease by that id.
    pub fn find(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.id == id)
    }

    fn find_mut(&mut self, id: LeaseId) -> Option<&mut Lease> {
        self.leases.iter_mut().find(|lease| lease.id == id)
    }

    /// A lease that nobody ended yet.
    fn live(&mut self, id: LeaseId) -> Result<&mut Lease, LeaseError> {
        let lease = self.find_mut(id).ok_or(LeaseError::NotFound)?;
        match &lease.phase {
            Phase::Waiting(_) | Phase::Held(_) => Ok(lease),
            Phase::Reclaiming(_, reclaim) => Err(LeaseError::Ended(reclaim.reason)),
            Phase::Ended(ending) => Err(LeaseError::Ended(ending.reason)),
        }
    }

    fn card(&self, key: &DeviceKey) -> Option<&Card> {
        self.cards.iter().flatten().find(|c| c.device.key == *key)
    }
}

/// How long a device may be missing.
const LOST_AFTER: Ms = Ms::from_secs(60);

fn is_waiting(lease: &Lease) -> bool {
    matches!(lease.phase, Phase::Waiting(_))
}

/// What a lease holds of devices, also while it is being taken back.
fn occupied(lease: &Lease) -> Option<&Grant> {
    match &lease.phase {
        Phase::Held(grant) | Phase::Reclaiming(grant, _) => Some(grant),
        Phase::Waiting(_) | Phase::Ended(_) => None,
    }
}

fn is_on(lease: &Lease, device: &DeviceKey) -> bool {
    let parts = occupied(lease).map(|grant| &grant.allocations);
    parts.is_some_and(|parts| parts.iter().any(|part| part.device == *device))
}

fn survives_a_restart(lease: &Lease) -> bool {
    match &lease.phase {
        Phase::Waiting(_) => lease.request.queue,
        Phase::Held(_) | Phase::Reclaiming(..) => true,
        Phase::Ended(ending) => lease.request.queue || ending.grant.is_some(),
    }
}

fn deadline(at: At, length: Ms) -> Deadline {
    Deadline {
        boot: BootMs(at.boot.0 + length.0),
        wall: WallMs(at.wall.0 + length.0),
    }
}
