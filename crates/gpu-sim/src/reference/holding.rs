//! The life of a lease: heartbeats, drains, ends, and the memory on its way back.

use gpu_lease::{
    At, BootMs, Cordon, Drain, DrainNotice, DrainSource, ENDED_KEPT_MS, Effect, Emergency,
    EndReason, Ending, Fence, Lease, LeaseError, LeaseId, Phase, Process, Reclaim, ReclaimStage,
    Signal, SignalRule, Targets,
};

use super::{Reference, deadline, is_on, occupied, policy, survives_a_restart};

impl Reference {
    pub(super) fn renew(&mut self, at: At, id: LeaseId) -> Result<Lease, LeaseError> {
        let lease = self.live(id)?;
        let ttl = lease.request.ttl;
        match &mut lease.phase {
            Phase::Held(grant) => {
                grant.expires = deadline(at, ttl);
                grant.renewed = true;
                grant.unresponsive = false;
            }
            Phase::Waiting(wait) if lease.request.queue => wait.renew_by = Some(at.boot + ttl),
            _ => {}
        }
        Ok(lease.clone())
    }

    pub(super) fn ready(&mut self, id: LeaseId) -> Result<Lease, LeaseError> {
        let lease = self.live(id)?;
        let Phase::Held(grant) = &mut lease.phase else {
            return Err(LeaseError::NotGranted);
        };
        grant.loading = false;
        Ok(lease.clone())
    }

    pub(super) fn release(&mut self, at: At, id: LeaseId) -> Result<Lease, LeaseError> {
        let lease = self.find(id).ok_or(LeaseError::NotFound)?.clone();
        Ok(match lease.phase {
            Phase::Waiting(_) => self.ended(at, id, EndReason::Cancelled),
            Phase::Held(_) => self.ended(at, id, EndReason::Released),
            Phase::Reclaiming(..) | Phase::Ended(_) => lease,
        })
    }

    pub(super) fn abandon(&mut self, at: At, id: LeaseId) {
        let Some(lease) = self.find(id).cloned() else {
            return;
        };
        match &lease.phase {
            Phase::Waiting(_) if !lease.request.queue => self.end(at, id, EndReason::Cancelled),
            Phase::Held(grant) if !grant.renewed && lease.request.idempotency.is_none() => {
                self.end(at, id, EndReason::Released);
            }
            _ => {}
        }
    }

    pub(super) fn revoke(
        &mut self,
        at: At,
        id: LeaseId,
        effects: &mut Vec<Effect>,
    ) -> Result<Lease, LeaseError> {
        let lease = self.live(id)?.clone();
        if super::is_waiting(&lease) {
            return Ok(self.ended(at, id, EndReason::Cancelled));
        }
        self.end_by_force(at, id, EndReason::Revoked, effects);
        Ok(self.find(id).expect("a granted lease is kept").clone())
    }

    pub(super) fn drain_lease(
        &mut self,
        at: At,
        id: LeaseId,
        notice: &DrainNotice,
    ) -> Result<Lease, LeaseError> {
        let lease = self.live(id)?;
        if super::is_waiting(lease) {
            return Err(LeaseError::NotGranted);
        }
        self.ask_to_go(at, id, DrainSource::Operator, notice);
        Ok(self.find(id).expect("it was just there").clone())
    }

    pub(super) fn ask_to_go(&mut self, at: At, id: LeaseId, by: DrainSource, notice: &DrainNotice) {
        let policy = self.policy.clone();
        let Some(lease) = self.find_mut(id) else {
            return;
        };
        let usual = policy::grace(&policy, &lease.request);
        if let Phase::Held(grant) = &mut lease.phase {
            let drain = Drain {
                deadline: deadline(at, notice.grace.unwrap_or(usual)),
                reason: notice.reason.clone(),
                by: notice.by.clone(),
                since: at,
            };
            grant.drains.insert(by, drain);
        }
    }

    pub(super) fn process_gone(&mut self, at: At, id: LeaseId, fence: Fence) {
        let lease = self.find(id);
        if lease.and_then(occupied).map(|grant| grant.fence) == Some(fence) {
            self.end(at, id, EndReason::ProcessGone);
        }
    }

    pub(super) fn signal_refused(&mut self, id: LeaseId, fence: Fence, attempt: u32, why: String) {
        let Some(lease) = self.find_mut(id) else {
            return;
        };
        if let Phase::Reclaiming(grant, reclaim) = &mut lease.phase
            && (grant.fence, reclaim.attempt) == (fence, attempt)
            && reclaim.stage == ReclaimStage::Verifying
        {
            reclaim.stage = ReclaimStage::Stuck(why);
            reclaim.signal = false;
        }
    }

    pub(super) fn emergency(
        &mut self,
        at: At,
        emergency: &Emergency,
        effects: &mut Vec<Effect>,
    ) -> Vec<LeaseId> {
        let targets = self.ids(|lease| is_targeted(lease, emergency));
        let mut devices = match &emergency.targets {
            Targets::Devices(named) => named.clone(),
            _ => Vec::new(),
        };
        devices.retain(|device| self.card(device).is_some());
        for &id in &targets {
            let lease = self.find(id).expect("it was just listed").clone();
            for part in occupied(&lease).into_iter().flat_map(|g| &g.allocations) {
                devices.push(part.device.clone());
            }
            self.end_in_emergency(at, &lease, emergency, effects);
        }
        for device in devices.into_iter().filter(|_| emergency.cordon) {
            let cordon = Cordon {
                reason: emergency.reason.clone(),
                by: emergency.by.clone(),
                until: None,
            };
            self.cordon(&device, cordon);
        }
        targets
    }

    /// Memory is taken back with a check, unless nobody wants one.
    fn end_in_emergency(
        &mut self,
        at: At,
        lease: &Lease,
        emergency: &Emergency,
        effects: &mut Vec<Effect>,
    ) {
        let unchecked = !self.policy.reclaim.verify && !emergency.kill;
        if occupied(lease).is_none() || emergency.force_unsafe || unchecked {
            if emergency.kill {
                effects.extend(signal(lease, 2));
            }
            self.end(at, lease.id, EndReason::Emergency);
        } else {
            self.reclaim(at, lease.id, EndReason::Emergency, emergency.kill, effects);
        }
    }

    pub(super) fn host_rebooted(&mut self, at: At) {
        for id in self.ids(|_| true) {
            match &mut self.find_mut(id).expect("it was just listed").phase {
                Phase::Ended(ending) => ending.at.boot = at.boot,
                _ => self.end(at, id, EndReason::HostRebooted),
            }
        }
        for (_, cordon) in &mut self.cordons {
            if let Some(until) = &mut cordon.until {
                until.boot = BootMs(at.boot.0 + until.wall.0.saturating_sub(at.wall.0));
            }
        }
    }

    /// Lets everything happen whose time has come, until nothing is left to happen.
    pub(super) fn expire(&mut self, at: At, effects: &mut Vec<Effect>) {
        loop {
            let is_due = |lease: &Lease| self.due(lease).is_some_and(|due| due <= at.boot);
            let Some(id) = self.ids(is_due).first().copied() else {
                break;
            };
            self.fall_due(at, id, effects);
        }
        self.expire_devices(at, effects);
        self.leases.retain(|lease| match &lease.phase {
            Phase::Ended(ending) => at.boot < ending.at.boot + ENDED_KEPT_MS,
            _ => true,
        });
    }

    /// The first moment at which something happens to `lease` by time alone.
    pub(super) fn due(&self, lease: &Lease) -> Option<BootMs> {
        let mut all = Vec::new();
        match &lease.phase {
            Phase::Waiting(wait) => {
                all.extend(wait.until);
                all.extend(wait.renew_by.map(|due| due.max(self.grace_until)));
            }
            Phase::Held(grant) => {
                if !grant.unresponsive {
                    all.push(grant.expires.boot.max(self.grace_until));
                }
                for drain in grant.drains.values() {
                    all.push(drain.deadline.boot.max(self.grace_until));
                }
                let hold = grant.hold_until.map(|until| until.boot);
                all.extend(hold.map(|due| due.max(self.grace_until)));
            }
            Phase::Reclaiming(_, reclaim) => {
                let due = self.reclaim_due(lease, reclaim);
                all.extend(due.map(|due| due.max(self.grace_until)));
            }
            Phase::Ended(_) => {}
        }
        all.into_iter().min()
    }

    fn reclaim_due(&self, lease: &Lease, reclaim: &Reclaim) -> Option<BootMs> {
        let soon = reclaim.since.boot + self.policy.reclaim.delay;
        let late = reclaim.since.boot + self.policy.reclaim.quarantine_after;
        let can_kill = reclaim.signal && reclaim.attempt == 1;
        match (&reclaim.stage, lease.process().is_some()) {
            (ReclaimStage::Quarantined, _) => None,
            (ReclaimStage::Stuck(_), _) => Some(late),
            (ReclaimStage::Verifying, false) => Some(soon),
            (ReclaimStage::Verifying, true) if can_kill => Some(soon.min(late)),
            (ReclaimStage::Verifying, true) => Some(late),
        }
    }

    pub(super) fn fall_due(&mut self, at: At, id: LeaseId, effects: &mut Vec<Effect>) {
        let grace_until = self.grace_until;
        let has_process = self.find(id).is_some_and(|lease| lease.process().is_some());
        let Some(lease) = self.find_mut(id) else {
            return;
        };
        match &mut lease.phase {
            Phase::Waiting(wait) => {
                let renewal = wait.renew_by.map(|due| due.max(grace_until));
                let forgotten = renewal.is_some_and(|due| due <= at.boot);
                self.end(
                    at,
                    id,
                    match forgotten {
                        true => EndReason::Expired,
                        false => EndReason::WaitTimeout,
                    },
                );
            }
            Phase::Held(grant) => {
                let drains = grant.drains.iter();
                let first = drains.min_by_key(|(by, drain)| (drain.deadline.boot, **by));
                let over = first.filter(|(_, drain)| drain.deadline.boot <= at.boot);
                let by_drain = over.map(|(by, _)| match by {
                    DrainSource::Device | DrainSource::Operator => EndReason::Revoked,
                    DrainSource::Policy => EndReason::Policy,
                    DrainSource::Preemption => EndReason::Preempted,
                });
                let held_long = grant.hold_until.is_some_and(|until| until.boot <= at.boot);
                let by_hold = held_long.then_some(EndReason::MaxHold);
                match by_drain.or(by_hold) {
                    Some(reason) => self.end_by_force(at, id, reason, effects),
                    None if has_process => grant.unresponsive = true,
                    None => self.end_by_force(at, id, EndReason::Expired, effects),
                }
            }
            Phase::Reclaiming(..) if !has_process => self.end(at, id, EndReason::Expired),
            Phase::Reclaiming(_, reclaim) => {
                let verifying = reclaim.stage == ReclaimStage::Verifying;
                if verifying && reclaim.signal && reclaim.attempt == 1 {
                    reclaim.attempt = 2;
                    effects.extend(signal(lease, 2));
                } else {
                    reclaim.stage = ReclaimStage::Quarantined;
                }
            }
            Phase::Ended(_) => unreachable!("nothing happens to what is over"),
        }
    }

    pub(super) fn end_by_force(
        &mut self,
        at: At,
        id: LeaseId,
        reason: EndReason,
        effects: &mut Vec<Effect>,
    ) {
        let lease = self.find(id).expect("only what is there is ended").clone();
        let may_signal = lease
            .process()
            .is_some_and(|process| self.may_signal(process));
        if self.policy.reclaim.verify {
            self.reclaim(at, id, reason, may_signal, effects);
            return;
        }
        if may_signal {
            effects.extend(signal(&lease, 1));
        }
        self.end(at, id, reason);
    }

    fn may_signal(&self, process: &Process) -> bool {
        match self.policy.reclaim.signal {
            SignalRule::Always => true,
            SignalRule::Never => false,
            SignalRule::Supervised => process.supervised,
        }
    }

    fn reclaim(
        &mut self,
        at: At,
        id: LeaseId,
        reason: EndReason,
        may_signal: bool,
        effects: &mut Vec<Effect>,
    ) {
        let lease = self.find_mut(id).expect("only what is there is reclaimed");
        let asks = may_signal && lease.process().is_some();
        let (grant, first_reason, asked) = match &lease.phase {
            Phase::Held(grant) => (grant.clone(), reason, 0),
            Phase::Reclaiming(grant, before) => (grant.clone(), before.reason, before.attempt),
            _ => unreachable!("only what occupies devices is reclaimed"),
        };
        let attempt = asked + u32::from(asks);
        lease.phase = Phase::Reclaiming(
            grant,
            Reclaim {
                reason: first_reason,
                since: at,
                stage: ReclaimStage::Verifying,
                signal: asks,
                attempt,
            },
        );
        if asks {
            effects.extend(signal(lease, attempt));
        }
    }

    pub(super) fn end(&mut self, at: At, id: LeaseId, reason: EndReason) {
        self.ended(at, id, reason);
    }

    /// The end. Nothing is kept of a connection that waited in vain.
    fn ended(&mut self, at: At, id: LeaseId, reason: EndReason) -> Lease {
        let before = self.find(id).expect("only what is there ends").clone();
        self.wait_for_reading(at, &before);
        let lease = self.find_mut(id).expect("it was just there");
        let reason = match &lease.phase {
            Phase::Reclaiming(_, reclaim) => reclaim.reason,
            _ => reason,
        };
        let grant = occupied(&before).cloned();
        lease.phase = Phase::Ended(Ending { at, reason, grant });
        let lease = lease.clone();
        if !survives_a_restart(&lease) {
            self.leases.retain(|lease| lease.id != id);
            self.dropped.push(lease.clone());
        }
        lease
    }

    /// The ids of the leases that are `wanted`, in their order.
    pub(super) fn ids(&self, wanted: impl Fn(&Lease) -> bool) -> Vec<LeaseId> {
        let leases = self.leases.iter().filter(|lease| wanted(lease));
        let mut ids: Vec<LeaseId> = leases.map(|lease| lease.id).collect();
        ids.sort_unstable();
        ids
    }
}

fn is_targeted(lease: &Lease, emergency: &Emergency) -> bool {
    let named = match &emergency.targets {
        Targets::All => true,
        Targets::Devices(devices) => devices.iter().any(|device| is_on(lease, device)),
        Targets::Leases(ids) => ids.contains(&lease.id),
        Targets::Stuck => match &lease.phase {
            Phase::Reclaiming(_, reclaim) => reclaim.stage != ReclaimStage::Verifying,
            _ => false,
        },
    };
    let more_force = emergency.force_unsafe || (emergency.kill && lease.process().is_some());
    named
        && match lease.phase {
            Phase::Waiting(_) | Phase::Held(_) => true,
            Phase::Reclaiming(..) => more_force,
            Phase::Ended(_) => false,
        }
}

fn signal(lease: &Lease, attempt: u32) -> Option<Effect> {
    Some(Effect::Signal {
        id: lease.id,
        fence: occupied(lease)?.fence,
        attempt,
        process: lease.process()?.clone(),
        signal: if attempt == 1 {
            Signal::Term
        } else {
            Signal::Kill
        },
    })
}
