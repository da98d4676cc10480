//! What happens to one lease: heartbeats, drains, ends, and taking its memory back.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem;

use super::{Books, ENDED_KEPT_MAX, ENDED_KEPT_MS, Turn, ids};
use crate::canary::{Canary, is_planted};
use crate::command::{
    Cordon, DrainNotice, Effect, Emergency, Event, EventKind, LeaseError, Signal, Targets,
};
use crate::ids::{DeviceKey, Fence, LeaseId};
use crate::lease::{
    Drain, DrainSource, EndReason, Ending, Grant, Lease, Phase, Reclaim, ReclaimStage, Wait,
};
use crate::policy::SignalRule;
use crate::time::{At, BootMs};

/// The attempt at which a holder that ignored SIGTERM gets SIGKILL.
const KILL_ATTEMPT: u32 = 2;

impl Books {
    pub(super) fn renew(&mut self, turn: &mut Turn, id: LeaseId) -> Result<Lease, LeaseError> {
        let mut lease = match is_planted(Canary::RenewAfterExpiry) {
            true => self.find_or_revive(id)?,
            false => self.find_live(id)?.clone(),
        };
        let ttl = lease.request.ttl;
        match &mut lease.phase {
            Phase::Waiting(wait) if lease.request.queue => wait.renew_by = Some(turn.at.boot + ttl),
            Phase::Held(grant) => {
                grant.expires = turn.at.after(ttl);
                grant.renewed = true;
                grant.unresponsive = false;
            }
            Phase::Waiting(_) | Phase::Reclaiming(..) | Phase::Ended(_) => return Ok(lease),
        }
        self.put(turn, lease.clone());
        Ok(lease)
    }

    /// The bug of [`Canary::RenewAfterExpiry`].
    fn find_or_revive(&self, id: LeaseId) -> Result<Lease, LeaseError> {
        let mut lease = self.find(id)?.clone();
        match lease.phase {
            Phase::Reclaiming(grant, reclaim) if reclaim.reason == EndReason::Expired => {
                lease.phase = Phase::Held(grant);
                Ok(lease)
            }
            _ => self.find_live(id).cloned(),
        }
    }

    pub(super) fn ready(&mut self, turn: &mut Turn, id: LeaseId) -> Result<Lease, LeaseError> {
        let mut lease = self.find_live(id)?.clone();
        let Phase::Held(grant) = &mut lease.phase else {
            return Err(LeaseError::NotGranted);
        };
        if mem::take(&mut grant.loading) {
            turn.event(EventKind::LeaseReady, &lease, "has loaded".into());
            self.put(turn, lease.clone());
        }
        Ok(lease)
    }

    /// Gives back or leaves the queue; a lease that has ended is answered as it is.
    pub(super) fn release(&mut self, turn: &mut Turn, id: LeaseId) -> Result<Lease, LeaseError> {
        let lease = self.find(id)?.clone();
        match lease.phase {
            Phase::Waiting(_) => Ok(self.end(turn, lease, EndReason::Cancelled)),
            Phase::Held(_) => Ok(self.end(turn, lease, EndReason::Released)),
            Phase::Reclaiming(..) | Phase::Ended(_) => Ok(lease),
        }
    }

    /// Nobody hears the answer: a waiter leaves, and a grant that nobody can know of is given back.
    pub(super) fn abandon(&mut self, turn: &mut Turn, id: LeaseId) {
        let Some(lease) = self.leases.get(&id).cloned() else {
            return;
        };
        let knows_key = lease.request.idempotency.is_some();
        let outlives = lease.request.queue || is_planted(Canary::WaiterBoundToDeadClient);
        match &lease.phase {
            Phase::Waiting(_) if !outlives => {
                self.end(turn, lease, EndReason::Cancelled);
            }
            Phase::Held(grant) if !grant.renewed && !knows_key => {
                self.end(turn, lease, EndReason::Released);
            }
            Phase::Waiting(_) | Phase::Held(_) | Phase::Reclaiming(..) | Phase::Ended(_) => {}
        }
    }

    pub(super) fn revoke(
        &mut self,
        turn: &mut Turn,
        id: LeaseId,
        reason: &str,
        by: &str,
    ) -> Result<Lease, LeaseError> {
        let lease = self.find_live(id)?.clone();
        if lease.waiting().is_some() {
            return Ok(self.end(turn, lease, EndReason::Cancelled));
        }
        let lease = self.end_by_force(turn, lease, EndReason::Revoked, reason);
        turn.by(by);
        Ok(lease)
    }

    pub(super) fn drain_lease(
        &mut self,
        turn: &mut Turn,
        id: LeaseId,
        notice: &DrainNotice,
    ) -> Result<Lease, LeaseError> {
        let lease = self.find_live(id)?.clone();
        if lease.held().is_none() {
            return Err(LeaseError::NotGranted);
        }
        Ok(self.ask_to_go(turn, lease, DrainSource::Operator, notice))
    }

    pub(super) fn ask_to_go(
        &mut self,
        turn: &mut Turn,
        mut lease: Lease,
        source: DrainSource,
        notice: &DrainNotice,
    ) -> Lease {
        let grace = notice
            .grace
            .unwrap_or_else(|| self.policy.grace_for(&lease.request));
        let drain = Drain {
            deadline: turn.at.after(grace),
            reason: notice.reason.clone(),
            by: notice.by.clone(),
            since: turn.at,
        };
        self.add_drain(turn, &mut lease, source, drain);
        lease
    }

    pub(super) fn add_drain(
        &mut self,
        turn: &mut Turn,
        lease: &mut Lease,
        source: DrainSource,
        drain: Drain,
    ) {
        let Phase::Held(grant) = &mut lease.phase else {
            return;
        };
        let left = drain.deadline.boot - turn.at.boot;
        let text = format!("is asked to go within {left}: {}", drain.reason);
        let by = drain.by.clone();
        grant.drains.insert(source, drain);
        turn.event(EventKind::LeaseDraining, lease, text);
        turn.by(&by);
        self.put(turn, lease.clone());
    }

    /// Withdraws a cause to go; other causes stay.
    pub(super) fn withdraw(&mut self, turn: &mut Turn, id: LeaseId, source: DrainSource) {
        let Some(mut lease) = self.leases.get(&id).cloned() else {
            return;
        };
        let Phase::Held(grant) = &mut lease.phase else {
            return;
        };
        if grant.drains.remove(&source).is_some() {
            let text = format!("may stay: the {} no longer asks it to go", source.as_str());
            turn.event(EventKind::LeaseWithdrawn, &lease, text);
            self.put(turn, lease);
        }
    }

    pub(super) fn emergency(&mut self, turn: &mut Turn, emergency: &Emergency) -> Vec<LeaseId> {
        let mut targets = self.targets(&emergency.targets);
        targets.retain(|id| emergency.concerns(&self.leases[id]));
        let devices = self.devices_to_cordon(emergency, &targets);
        for &id in &targets {
            self.end_in_emergency(turn, id, emergency);
        }
        if emergency.cordon {
            for device in devices {
                let cordon = Cordon {
                    reason: emergency.reason.clone(),
                    by: emergency.by.clone(),
                    until: None,
                };
                self.set_cordon(turn, &device, Some(cordon));
            }
        }
        turn.events.push(Event {
            kind: EventKind::EmergencyRelease,
            lease: None,
            device: None,
            by: Some(emergency.by.clone()),
            text: emergency_text(emergency, targets.len()),
        });
        targets
    }

    fn targets(&self, targets: &Targets) -> Vec<LeaseId> {
        let open = self.leases.values().filter(|lease| !is_over(lease));
        match targets {
            Targets::All => ids(open),
            Targets::Devices(keys) => ids(open.filter(|lease| {
                let parts = lease.occupying().map(|grant| grant.allocations.as_slice());
                parts
                    .unwrap_or(&[])
                    .iter()
                    .any(|part| keys.contains(&part.device))
            })),
            Targets::Leases(wanted) => ids(open.filter(|lease| wanted.contains(&lease.id))),
            Targets::Stuck => ids(self.stuck()),
        }
    }

    /// Every device that is named, and those that held something of what ends.
    fn devices_to_cordon(&self, emergency: &Emergency, ended: &[LeaseId]) -> BTreeSet<DeviceKey> {
        let named = match &emergency.targets {
            Targets::Devices(named) => named.as_slice(),
            Targets::All | Targets::Leases(_) | Targets::Stuck => &[],
        };
        let known = named.iter().filter(|device| self.is_known(device));
        let grants = ended.iter().filter_map(|id| self.leases[id].occupying());
        let held = grants.flat_map(|grant| &grant.allocations);
        let held = held.map(|part| &part.device);
        known.chain(held).cloned().collect()
    }

    fn end_in_emergency(&mut self, turn: &mut Turn, id: LeaseId, emergency: &Emergency) {
        let lease = self.leases[&id].clone();
        if is_planted(Canary::EmergencyForgetsFence) && lease.held().is_some() {
            let notice = DrainNotice {
                grace: None,
                reason: emergency.reason.clone(),
                by: emergency.by.clone(),
            };
            self.ask_to_go(turn, lease, DrainSource::Operator, &notice);
            return;
        }
        let verify = self.verifies() || emergency.kill;
        if lease.occupying().is_some() && verify && !emergency.force_unsafe {
            let reason = EndReason::Emergency;
            self.reclaim(turn, lease, reason, emergency.kill, &emergency.reason);
            return;
        }
        if emergency.kill {
            // Nothing is going to look again, so the one signal has to be final.
            turn.effects.extend(signal_to(&lease, KILL_ATTEMPT));
        }
        self.end(turn, lease, EndReason::Emergency);
    }

    /// A proven death. What it held is free at once; what it leaves behind is seen by the next reading.
    pub(super) fn process_gone(&mut self, turn: &mut Turn, id: LeaseId, fence: Fence) {
        let Some(lease) = self.leases.get(&id).cloned() else {
            return;
        };
        if lease.occupying().is_none_or(|grant| grant.fence != fence) {
            return;
        }
        self.end(turn, lease, EndReason::ProcessGone);
    }

    pub(super) fn signal_refused(
        &mut self,
        turn: &mut Turn,
        id: LeaseId,
        (fence, attempt): (Fence, u32),
        why: String,
    ) {
        let Some(mut lease) = self.leases.get(&id).cloned() else {
            return;
        };
        let Phase::Reclaiming(grant, reclaim) = &mut lease.phase else {
            return;
        };
        let cited = grant.fence == fence && reclaim.attempt == attempt;
        if !cited || reclaim.stage != ReclaimStage::Verifying {
            return;
        }
        reclaim.signal = false;
        reclaim.stage = ReclaimStage::Stuck(why.clone());
        turn.event(EventKind::LeaseStuck, &lease, format!("is stuck: {why}"));
        self.put(turn, lease);
    }

    pub(super) fn clear_quarantined(&mut self, turn: &mut Turn, id: LeaseId, by: &str) {
        let lease = self.leases[&id].clone();
        let Some(reason) = lease.end_reason() else {
            return;
        };
        self.end(turn, lease, reason);
        turn.by(by);
    }

    pub(super) fn host_rebooted(&mut self, turn: &mut Turn) {
        for id in ids(self.leases.values()) {
            let mut lease = self.leases[&id].clone();
            match &mut lease.phase {
                // Boot times of an earlier boot say nothing; the day after the end counts from here.
                Phase::Ended(ending) => {
                    ending.at.boot = turn.at.boot;
                    self.put(turn, lease);
                }
                Phase::Waiting(_) | Phase::Held(_) | Phase::Reclaiming(..) => {
                    self.end(turn, lease, EndReason::HostRebooted);
                }
            }
        }
        self.shares.look_again();
        for device in self.cordons.keys().cloned().collect::<Vec<_>>() {
            self.rebase_cordon(turn, &device);
        }
    }

    pub(super) fn grace(&mut self, until: BootMs) {
        self.grace_until = self.grace_until.max(until);
        self.reindex_deadlines();
    }

    pub(super) fn expire(&mut self, turn: &mut Turn) {
        if is_planted(Canary::ExpiryByWallClock) {
            self.expire_by_wall_clock(turn);
        }
        self.in_bulk(|books| {
            while let Some(&(due, id)) = books.deadlines.first()
                && due <= turn.at.boot
            {
                books.fall_due(turn, id);
            }
        });
        self.expire_devices(turn);
        self.prune(turn);
    }

    /// The bug of [`Canary::ExpiryByWallClock`].
    fn expire_by_wall_clock(&mut self, turn: &mut Turn) {
        let is_over = |lease: &&Lease| {
            let grant = lease.held().filter(|grant| !grant.unresponsive);
            grant.is_some_and(|grant| grant.expires.wall <= turn.at.wall)
        };
        if self.grace_until <= turn.at.boot {
            for id in ids(self.leases.values().filter(is_over)) {
                self.fall_due(turn, id);
            }
        }
    }

    fn prune(&mut self, turn: &mut Turn) {
        while let Some(&(at, id)) = self.ended.first()
            && (at + ENDED_KEPT_MS <= turn.at.boot || self.ended.len() > ENDED_KEPT_MAX)
        {
            self.remove(id);
            turn.changed.remove(&id);
            turn.pruned.push(id);
        }
    }

    /// When something happens to `lease` by time alone.
    pub(super) fn due(&self, lease: &Lease) -> Option<BootMs> {
        match &lease.phase {
            Phase::Waiting(wait) => {
                let due = [wait.until, self.renewal_due(wait)];
                due.into_iter().flatten().min()
            }
            Phase::Held(grant) => held_due(grant).map(|due| due.max(self.grace_until)),
            Phase::Reclaiming(_, reclaim) => {
                let due = self.reclaim_due(lease, reclaim);
                due.map(|due| due.max(self.grace_until))
            }
            Phase::Ended(_) => None,
        }
    }

    /// When a queued request is given up. Within a grace window it could not have been renewed.
    fn renewal_due(&self, wait: &Wait) -> Option<BootMs> {
        wait.renew_by.map(|due| due.max(self.grace_until))
    }

    fn reclaim_due(&self, lease: &Lease, reclaim: &Reclaim) -> Option<BootMs> {
        let settings = &self.policy.reclaim;
        let since = reclaim.since.boot;
        let observable = lease.process().is_some();
        match reclaim.stage {
            ReclaimStage::Quarantined => None,
            ReclaimStage::Verifying if !observable => Some(since + settings.delay),
            ReclaimStage::Verifying if reclaim.signal && reclaim.attempt < KILL_ATTEMPT => {
                Some(since + settings.delay.min(settings.quarantine_after))
            }
            ReclaimStage::Stuck(_) | ReclaimStage::Verifying => {
                Some(since + settings.quarantine_after)
            }
        }
    }

    /// A wait that is over is never granted, even if nobody has said yet that time passed. A heartbeat that
    /// is missing may still be on its way behind the command that is done now.
    pub(super) fn end_overdue_waits(&mut self, turn: &mut Turn) {
        let now = turn.at.boot;
        let due = self.deadlines.iter();
        let due = due.take_while(|(due, _)| *due <= now);
        let leases = due.map(|(_, id)| &self.leases[id]);
        let is_over = |lease: &&Lease| {
            let until = lease.waiting().and_then(|wait| wait.until);
            until.is_some_and(|until| until <= now)
        };
        for id in ids(leases.filter(is_over)) {
            self.fall_due(turn, id);
        }
    }

    fn fall_due(&mut self, turn: &mut Turn, id: LeaseId) {
        let lease = self.leases[&id].clone();
        let passed = |due: Option<BootMs>| due.is_some_and(|due| due <= turn.at.boot);
        match &lease.phase {
            Phase::Waiting(wait) if passed(self.renewal_due(wait)) => {
                self.end(turn, lease, EndReason::Expired);
            }
            Phase::Waiting(_) => drop(self.end(turn, lease, EndReason::WaitTimeout)),
            Phase::Held(grant) => match held_end(grant, turn.at) {
                Some((reason, text)) => drop(self.end_by_force(turn, lease, reason, &text)),
                None => self.miss_heartbeat(turn, lease),
            },
            Phase::Reclaiming(..) => self.reclaim_further(turn, lease),
            Phase::Ended(_) => unreachable!("an ended lease has no deadline"),
        }
    }

    /// A process that is proven alive is never ended for a missed heartbeat.
    fn miss_heartbeat(&mut self, turn: &mut Turn, mut lease: Lease) {
        if lease.process().is_none() {
            let text = format!("sent no heartbeat for {}", lease.request.ttl);
            self.end_by_force(turn, lease, EndReason::Expired, &text);
            return;
        }
        if let Phase::Held(grant) = &mut lease.phase {
            grant.unresponsive = true;
        }
        let text = "missed a heartbeat; its process lives, so it keeps the lease";
        turn.event(EventKind::LeaseUnresponsive, &lease, text.into());
        self.put(turn, lease);
    }

    fn reclaim_further(&mut self, turn: &mut Turn, mut lease: Lease) {
        let Phase::Reclaiming(_, reclaim) = &mut lease.phase else {
            return;
        };
        let reason = reclaim.reason;
        let Some(pid) = lease.request.holder.process().map(|process| process.pid) else {
            self.end(turn, lease, reason);
            return;
        };
        let verifying = reclaim.stage == ReclaimStage::Verifying;
        if verifying && reclaim.signal && reclaim.attempt < KILL_ATTEMPT {
            reclaim.attempt = KILL_ATTEMPT;
            turn.effects.extend(Self::signal_effect(&lease));
        } else {
            reclaim.stage = ReclaimStage::Quarantined;
            let text = format!("ended ({reason}), but process {pid} still lives");
            turn.event(EventKind::LeaseQuarantined, &lease, text);
        }
        self.put(turn, lease);
    }

    /// Ends what is held without its holder's doing.
    pub(super) fn end_by_force(
        &mut self,
        turn: &mut Turn,
        lease: Lease,
        reason: EndReason,
        text: &str,
    ) -> Lease {
        let signal = match self.policy.reclaim.signal {
            SignalRule::Always => true,
            SignalRule::Never => false,
            SignalRule::Supervised => lease.process().is_some_and(|process| process.supervised),
        };
        if self.verifies() {
            return self.reclaim(turn, lease, reason, signal, text);
        }
        if signal {
            turn.effects.extend(signal_to(&lease, 1));
        }
        self.end(turn, lease, reason)
    }

    /// Whether memory of a forced end waits for the proof that its holder is gone.
    fn verifies(&self) -> bool {
        self.policy.reclaim.verify && !is_planted(Canary::FreeBeforeVerify)
    }

    /// Why it ended stays what it first was; attempts go on counting, so that late results are known as such.
    fn reclaim(
        &mut self,
        turn: &mut Turn,
        mut lease: Lease,
        reason: EndReason,
        signal: bool,
        text: &str,
    ) -> Lease {
        let signal = signal && lease.process().is_some();
        let reason = lease.end_reason().unwrap_or(reason);
        let (grant, attempts) = match lease.phase {
            Phase::Held(grant) => (grant, 0),
            Phase::Reclaiming(grant, before) => (grant, before.attempt),
            Phase::Waiting(_) | Phase::Ended(_) => return self.end(turn, lease, reason),
        };
        lease.phase = Phase::Reclaiming(
            grant,
            Reclaim {
                reason,
                since: turn.at,
                stage: ReclaimStage::Verifying,
                signal,
                attempt: attempts + u32::from(signal),
            },
        );
        turn.event(
            EventKind::LeaseReclaiming,
            &lease,
            format!("is ended ({reason}): {text}"),
        );
        turn.effects.extend(Self::signal_effect(&lease));
        self.put(turn, lease.clone());
        lease
    }

    /// The end, for the reason for which it was reclaimed if it was. Whoever waits on a connection and
    /// was never granted anything is forgotten.
    pub(super) fn end(&mut self, turn: &mut Turn, mut lease: Lease, reason: EndReason) -> Lease {
        let reason = lease.end_reason().unwrap_or(reason);
        let grant = match lease.phase {
            Phase::Held(grant) | Phase::Reclaiming(grant, _) => Some(grant),
            Phase::Waiting(_) | Phase::Ended(_) => None,
        };
        if let Some(grant) = &grant {
            self.await_reading(grant, turn.at);
        }
        lease.phase = Phase::Ended(Ending {
            at: turn.at,
            reason,
            grant,
        });
        turn.event(EventKind::LeaseEnded, &lease, format!("is over: {reason}"));
        if lease.is_durable() {
            self.put(turn, lease.clone());
        } else {
            self.remove(lease.id);
            turn.changed.remove(&lease.id);
            turn.dropped.push(lease.clone());
        }
        lease
    }

    pub(super) fn watch_effect(lease: &Lease) -> Option<Effect> {
        Some(Effect::Watch {
            id: lease.id,
            fence: lease.occupying()?.fence,
            process: lease.process()?.clone(),
        })
    }

    /// The signal that reclaiming `lease` last asked for.
    pub(super) fn signal_effect(lease: &Lease) -> Option<Effect> {
        match &lease.phase {
            Phase::Reclaiming(_, reclaim)
                if reclaim.signal && reclaim.stage == ReclaimStage::Verifying =>
            {
                signal_to(lease, reclaim.attempt)
            }
            Phase::Waiting(_) | Phase::Held(_) | Phase::Reclaiming(..) | Phase::Ended(_) => None,
        }
    }
}

impl Emergency {
    /// Whether there is anything to do to `lease`: one that is being reclaimed anyway only hears of more force.
    fn concerns(&self, lease: &Lease) -> bool {
        match lease.phase {
            Phase::Waiting(_) | Phase::Held(_) => true,
            Phase::Reclaiming(..) => self.force_unsafe || self.kill && lease.process().is_some(),
            Phase::Ended(_) => false,
        }
    }
}

/// A signal to the registered process of a lease that occupies devices: the first attempt asks, later ones kill.
fn signal_to(lease: &Lease, attempt: u32) -> Option<Effect> {
    Some(Effect::Signal {
        id: lease.id,
        fence: lease.occupying()?.fence,
        attempt,
        process: lease.process()?.clone(),
        signal: match attempt < KILL_ATTEMPT {
            true => Signal::Term,
            false => Signal::Kill,
        },
    })
}

fn is_over(lease: &Lease) -> bool {
    matches!(lease.phase, Phase::Ended(_))
}

/// The first deadline of a grant. A holder that is known to live is not asked for heartbeats again.
fn held_due(grant: &Grant) -> Option<BootMs> {
    let heartbeat = (!grant.unresponsive).then_some(grant.expires);
    let due = [heartbeat, grant.known_end()].into_iter().flatten().min();
    due.map(|deadline| deadline.boot)
}

/// How a grant ends whose drain or hold is over; `None` if only a heartbeat is missing.
fn held_end(grant: &Grant, at: At) -> Option<(EndReason, String)> {
    if let Some((source, drain)) = grant.drain()
        && drain.deadline.boot <= at.boot
    {
        return Some((source.end_reason(), drain.reason.clone()));
    }
    let over = grant.hold_until.is_some_and(|until| until.boot <= at.boot);
    over.then(|| {
        (
            EndReason::MaxHold,
            "held for as long as it may be".to_string(),
        )
    })
}

fn emergency_text(emergency: &Emergency, count: usize) -> String {
    let mode = match (emergency.force_unsafe, emergency.kill) {
        (true, _) => " without any check that holders are gone",
        (false, true) => " and their processes are signalled",
        (false, false) => "",
    };
    let leases = match count {
        0 => return format!("no lease is ended: {}", emergency.reason),
        1 => String::from("1 lease is ended"),
        count => format!("{count} leases are ended"),
    };
    format!("{leases}{mode}: {}", emergency.reason)
}
