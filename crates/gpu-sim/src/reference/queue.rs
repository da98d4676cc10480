//! Who is served, in which order, where, and what keeps the others.

use std::cmp::{Ordering, Reverse};

use gpu_lease::{
    Allocation, Amount, At, Blocker, BootMs, Bytes, Cause, DeviceKey, DeviceObstacle, DeviceState,
    Effect, EndReason, Fence, Grant, Lease, LeaseId, Ms, Obstacle, Phase, QueueOrder, Request,
    Strategy, Verdict, WallMs, Why,
};

use super::capacity::{charge, is_alone, once};
use super::shares::{self, Allowance};
use super::{Card, Reference, deadline, is_waiting, policy};

/// What the first waiter that devices keep waiting is going to get.
#[derive(Clone, Debug)]
struct Head {
    id: LeaseId,
    devices: Vec<DeviceKey>,
    start: Option<BootMs>,
}

/// What is known of those who come first.
#[derive(Clone, Debug, Default)]
struct Before {
    head: Option<Head>,
    barrier: Option<LeaseId>,
}

impl Reference {
    pub(super) fn serve(&mut self, at: At, effects: &mut Vec<Effect>) {
        let is_over = |lease: &Lease| {
            let until = lease.waiting().and_then(|wait| wait.until);
            until.is_some_and(|until| until <= at.boot)
        };
        for id in self.ids(is_over) {
            self.fall_due(at, id, effects);
        }
        let is_fair = self.policy.queue.order == QueueOrder::FairShare;
        let asks_again = is_fair || self.policy.rules.reads_standing();
        loop {
            let waiters = self.order(at);
            let mut before = Before::default();
            for lease in &waiters {
                match self.decide(&mut before, lease, at) {
                    Ok(devices) => {
                        self.grant(at, lease, &devices, effects);
                        if is_fair {
                            break;
                        }
                    }
                    Err(cause) => self.keep_waiting(at, lease, &cause, effects),
                }
            }
            if !asks_again || self.order(at).len() == waiters.len() {
                break;
            }
        }
    }

    pub(super) fn reasons(&self, at: At) -> Vec<(LeaseId, Why)> {
        let mut before = Before::default();
        let mut reasons = Vec::new();
        for (place, lease) in self.order(at).into_iter().enumerate() {
            if let Err(cause) = self.decide(&mut before, &lease, at) {
                let head = before.head.as_ref().filter(|head| head.id == lease.id);
                let start = head.and_then(|head| head.start);
                reasons.push((lease.id, why(&lease, place, cause, start)));
            }
        }
        reasons
    }

    /// Why a request that did not wait was not served.
    pub(super) fn why_not(&self, at: At, lease: Lease) -> Why {
        let (mut before, ahead) = self.in_place(at, &lease);
        let cause = self.decide(&mut before, &lease, at).err();
        let cause = cause.unwrap_or(Cause::Devices(Vec::new()));
        let start = match (before.head, self.allowance(&lease)) {
            (None, Ok(allowance)) => {
                let head = self.nominate(&lease, allowance, at);
                head.and_then(|head| head.start)
            }
            (Some(head), _) if head.id == lease.id => head.start,
            _ => None,
        };
        why(&lease, ahead, cause, start)
    }

    /// What a request would get at the place that it would have.
    pub(super) fn decide_in_place(&self, at: At, lease: &Lease) -> Result<Vec<DeviceKey>, Cause> {
        let (mut before, _) = self.in_place(at, lease);
        self.decide(&mut before, lease, at)
    }

    /// The request behind everybody else of its rank, and what is known of those ahead of it.
    fn in_place(&self, at: At, lease: &Lease) -> (Before, usize) {
        let mut before = Before::default();
        let mut ahead = self.order(at);
        ahead.retain(|other| self.compare(other, lease, at) == Ordering::Less);
        for other in &ahead {
            drop(self.decide(&mut before, other, at));
        }
        (before, ahead.len())
    }

    /// Whether not even idle devices could serve it.
    pub(super) fn can_never_fit(&self, request: &Request) -> bool {
        let Some(cards) = &self.cards else {
            return false;
        };
        let serves = |card: &&Card| {
            let enough = match request.amount {
                Amount::Exclusive => true,
                Amount::Memory(bytes) => self.grantable(card) >= bytes,
            };
            self.may_serve(card, request) && enough
        };
        cards.iter().filter(serves).count() < request.devices as usize
    }

    fn order(&self, at: At) -> Vec<Lease> {
        let waiters = self.leases.iter().filter(|lease| is_waiting(lease));
        let mut waiters: Vec<Lease> = waiters.cloned().collect();
        waiters.sort_by(|a, b| self.compare(a, b, at));
        waiters
    }

    /// Who of two is served first.
    fn compare(&self, a: &Lease, b: &Lease, at: At) -> Ordering {
        let seq = |lease: &Lease| lease.waiting().map_or(u64::MAX, |wait| wait.seq);
        let priority = |lease: &Lease| self.priority(lease, at);
        priority(b)
            .cmp(&priority(a))
            .then(self.fairer(a, b))
            .then(seq(a).cmp(&seq(b)))
    }

    fn priority(&self, lease: &Lease, at: At) -> i64 {
        let aging = self.policy.queue.aging.0;
        let waited = at.boot.0 - lease.created.boot.0;
        let steps = waited.checked_div(aging).unwrap_or(0);
        let steps = i64::try_from(steps).expect("nobody waits that long");
        match self.policy.queue.order {
            QueueOrder::Fifo => 0,
            QueueOrder::FairShare | QueueOrder::Priority => lease.priority + steps,
        }
    }

    fn keep_waiting(&mut self, at: At, lease: &Lease, cause: &Cause, effects: &mut Vec<Effect>) {
        if waits_for_reading(cause) {
            once(effects, Effect::Read);
        }
        let verdict = self.verdict(at, &lease.request, Some(lease));
        let refused = matches!(verdict, Verdict::Deny { erred: false, .. });
        let allowed = verdict == Verdict::Allow;
        if refused || allowed && self.too_much_alone(&lease.request).is_some() {
            self.end(at, lease.id, EndReason::Denied);
        } else if !stays(&lease.request, cause) {
            self.end(at, lease.id, EndReason::WaitTimeout);
        }
    }

    /// Rules first, then the queue's discipline, then devices.
    fn decide(&self, before: &mut Before, lease: &Lease, at: At) -> Result<Vec<DeviceKey>, Cause> {
        match self.verdict(at, &lease.request, Some(lease)) {
            Verdict::Allow => {}
            Verdict::Deny { rule, reason, .. } => return Err(by_rule(rule, reason, None)),
            Verdict::Hold {
                rule,
                reason,
                until,
            } => return Err(by_rule(rule, reason, until)),
        }
        let allowance = self.allowance(lease)?;
        if let Some(first) = before.barrier {
            return Err(Cause::Behind(first));
        }
        let placed = self.place(before.head.as_ref(), lease, allowance, at);
        if let Err(cause) = &placed
            && stays(&lease.request, cause)
            && !matches!(cause, Cause::Quota { .. })
        {
            if before.head.is_none() {
                before.head = self.nominate(lease, allowance, at);
            }
            if !self.policy.queue.backfill {
                before.barrier = Some(lease.id);
            }
        }
        placed
    }

    fn place(
        &self,
        head: Option<&Head>,
        lease: &Lease,
        allowance: Allowance,
        at: At,
    ) -> Result<Vec<DeviceKey>, Cause> {
        if self.cards.is_none() {
            return Err(Cause::Recovering);
        }
        let mut fitting = Vec::new();
        let mut obstacles = Vec::new();
        for card in self.candidates(lease, allowance) {
            match self.obstacle(head, card, lease, at) {
                None => fitting.push(card),
                Some(obstacle) => obstacles.push(self.obstructed(card, obstacle)),
            }
        }
        let wanted = lease.request.devices as usize;
        if fitting.len() < wanted {
            return Err(Cause::Devices(obstacles));
        }
        let scores = self.scores(&fitting, lease, at);
        let mut best: Vec<usize> = (0..fitting.len()).collect();
        best.sort_by_key(|&place| (Reverse(scores[place]), self.taste(fitting[place])));
        let mut smallest: Vec<usize> = (0..fitting.len()).collect();
        smallest.sort_by_key(|&place| {
            let card = fitting[place];
            (self.grantable(card), card.device.index)
        });
        for order in [best, smallest] {
            let chosen: Vec<&Card> = order.iter().take(wanted).map(|&p| fitting[p]).collect();
            let all: u64 = chosen.iter().map(|card| self.grantable(card)).sum();
            if lease.request.amount != Amount::Exclusive || all <= allowance.all {
                return Ok(chosen.iter().map(|card| card.device.key.clone()).collect());
            }
        }
        let key = shares::counts_as(&self.policy, &lease.request);
        let most = shares::tenant(&self.policy, &key).and_then(|tenant| tenant.max_memory);
        let most = Bytes(most.expect("something limits it")).to_string();
        let has = Bytes(self.share_of(&key).memory).to_string();
        Err(self.quota(&key, &most, &has))
    }

    /// The devices that a lease may have, within what its quota leaves for one.
    fn candidates(&self, lease: &Lease, allowance: Allowance) -> Vec<&Card> {
        let whole = lease.request.amount == Amount::Exclusive;
        let mut cards: Vec<&Card> = self.cards.iter().flatten().collect();
        cards.retain(|card| self.may_serve(card, &lease.request));
        cards.retain(|card| !whole || self.grantable(card) <= allowance.each);
        cards
    }

    /// By the rules, if the policy leaves it to them.
    fn scores(&self, fitting: &[&Card], lease: &Lease, at: At) -> Vec<i64> {
        if self.policy.placement.strategy != Strategy::Score {
            return fitting.iter().map(|_| 0).collect();
        }
        let states: Vec<DeviceState> = fitting.iter().map(|card| self.state(card)).collect();
        let states: Vec<&DeviceState> = states.iter().collect();
        let standing = self.seen_by_rules(&lease.request, Some(lease));
        let rules = &self.policy.rules;
        rules.scores(&lease.request, &states, &standing, at.wall)
    }

    fn state(&self, card: &Card) -> DeviceState {
        DeviceState {
            device: card.device.clone(),
            settings: self.settings(&card.device),
            cordon: None,
            reading: card.reading.clone(),
            lost_since: card.lost_since,
            read_after: card.read_after,
            occupants: self.occupants(card).iter().map(|lease| lease.id).collect(),
            peaks: Default::default(),
            usage: self.usage(card),
        }
    }

    /// The smaller, the better by the policy's strategy; the index decides among equals.
    fn taste(&self, card: &Card) -> (i128, i128, u32, DeviceKey) {
        let free = i128::from(self.free(card));
        let leases = self.occupants(card).len() as i128;
        let (first, second) = match self.policy.placement.strategy {
            Strategy::FirstFit | Strategy::Score => (0, 0),
            Strategy::BestFit => (free, 0),
            Strategy::WorstFit => (-free, 0),
            Strategy::Pack => (-leases, free),
            Strategy::Spread => (leases, -free),
        };
        (first, second, card.device.index, card.device.key.clone())
    }

    fn obstacle(
        &self,
        head: Option<&Head>,
        card: &Card,
        lease: &Lease,
        at: At,
    ) -> Option<Obstacle> {
        if card.lost_since.is_some() {
            return Some(Obstacle::Lost);
        }
        if let Some(reason) = self.cordon_of(card) {
            return Some(Obstacle::Cordoned(reason));
        }
        if let Some(head) = head
            && head.devices.contains(&card.device.key)
            && !self.is_gone_before(head, lease, at)
        {
            return Some(Obstacle::HeldBack(head.id));
        }
        let stale = self.is_stale(card, at);
        let missing = self.missing(card, lease.request.amount);
        if missing.is_some() && !(stale && self.fits_by_grants(card, lease.request.amount)) {
            return missing;
        }
        let slots = self.settings(&card.device).load_slots;
        if lease.request.load && self.usage(card).loading >= slots {
            return Some(Obstacle::Loading);
        }
        stale.then_some(Obstacle::AwaitingReading)
    }

    fn is_gone_before(&self, head: &Head, lease: &Lease, at: At) -> bool {
        let hold = policy::max_hold(&self.policy, &lease.request);
        match (hold, head.start) {
            (Some(hold), Some(start)) => at.boot + hold <= start,
            _ => false,
        }
    }

    fn missing(&self, card: &Card, amount: Amount) -> Option<Obstacle> {
        let usage = self.usage(card);
        if usage.exclusive {
            return Some(Obstacle::InUse);
        }
        match amount {
            Amount::Exclusive if !self.occupants(card).is_empty() => Some(Obstacle::InUse),
            Amount::Exclusive => {
                let tolerable = usage.foreign <= self.policy.foreign_ignore_below;
                (!tolerable).then_some(Obstacle::Foreign(usage.foreign))
            }
            Amount::Memory(bytes) if bytes <= self.free(card) => None,
            Amount::Memory(bytes) if usage.charged + bytes <= self.grantable(card) => {
                Some(Obstacle::Foreign(usage.foreign))
            }
            Amount::Memory(_) => Some(Obstacle::Short),
        }
    }

    /// Whether it would fit if nothing but grants were known.
    fn fits_by_grants(&self, card: &Card, amount: Amount) -> bool {
        let usage = self.usage(card);
        match amount {
            Amount::Exclusive => self.occupants(card).is_empty(),
            Amount::Memory(bytes) => {
                !usage.exclusive && usage.granted + bytes <= self.grantable(card)
            }
        }
    }

    fn obstructed(&self, card: &Card, obstacle: Obstacle) -> DeviceObstacle {
        let mut holders: Vec<Blocker> = Vec::new();
        for lease in self.occupants(card) {
            holders.push(Blocker {
                lease: lease.id,
                holder: lease.request.holder.name.clone(),
                memory: charge(lease, card),
                until: self.known_end(lease).map(|(_, wall)| wall),
            });
        }
        holders.sort_by_key(|holder| (Reverse(holder.memory), holder.lease));
        let alone = self.usage(card).exclusive;
        DeviceObstacle {
            device: card.device.key.clone(),
            free: if alone { 0 } else { self.free(card) },
            obstacle,
            holders: holders.into(),
        }
    }

    /// When a lease is over at the latest; nobody knows while it is being taken back.
    pub(super) fn known_end(&self, lease: &Lease) -> Option<(BootMs, WallMs)> {
        let Phase::Held(grant) = &lease.phase else {
            return None;
        };
        let drains = grant.drains.values().map(|drain| drain.deadline);
        let ends = drains.chain(grant.hold_until);
        ends.map(|end| (end.boot, end.wall)).min()
    }

    /// The devices that can serve it soonest.
    fn nominate(&self, lease: &Lease, allowance: Allowance, at: At) -> Option<Head> {
        self.cards.as_ref()?;
        let mut candidates = Vec::new();
        for card in self.candidates(lease, allowance) {
            let usable = card.lost_since.is_none() && self.cordon_of(card).is_none();
            if !usable {
                continue;
            }
            let Some((start, missing)) = self.opening(card, lease.request.amount, at) else {
                continue;
            };
            let when = start.unwrap_or(BootMs(u64::MAX));
            let key = card.device.key.clone();
            candidates.push((when, missing, card.device.index, key, start));
        }
        candidates.sort();
        let wanted = lease.request.devices as usize;
        if candidates.len() < wanted {
            return None;
        }
        candidates.truncate(wanted);
        let mut start = Some(BootMs(0));
        for (.., opens) in &candidates {
            start = match (start, *opens) {
                (Some(latest), Some(opens)) => Some(latest.max(opens)),
                _ => None,
            };
        }
        Some(Head {
            id: lease.id,
            start,
            devices: candidates
                .into_iter()
                .map(|(_, _, _, key, _)| key)
                .collect(),
        })
    }

    /// When there is room, trying every moment at which somebody leaves; and what stays missing after
    /// the last of them. `None`: never.
    fn opening(&self, card: &Card, amount: Amount, at: At) -> Option<(Option<BootMs>, u64)> {
        let usage = self.usage(card);
        let wanted = match amount {
            Amount::Exclusive => self.grantable(card),
            Amount::Memory(bytes) => bytes,
        };
        let tolerated =
            amount == Amount::Exclusive && usage.foreign <= self.policy.foreign_ignore_below;
        let foreign = if tolerated { 0 } else { usage.foreign };
        let room = self.grantable(card).checked_sub(wanted)?;
        let mut moments = vec![at.boot];
        for lease in self.occupants(card) {
            moments.extend(self.known_end(lease).map(|(end, _)| end.max(at.boot)));
        }
        moments.sort();
        let taken_at = |moment: Option<BootMs>| {
            let mut taken = foreign;
            for lease in self.occupants(card) {
                let end = self.known_end(lease).map(|(end, _)| end);
                let is_there = match (end, moment) {
                    (Some(end), Some(moment)) => end > moment,
                    (end, _) => end.is_none(),
                };
                if is_there {
                    taken += match is_alone(lease, card) {
                        true => charge(lease, card).max(self.grantable(card)),
                        false => charge(lease, card),
                    };
                }
            }
            taken
        };
        let opens = moments.into_iter().find(|m| taken_at(Some(*m)) <= room);
        Some((opens, taken_at(None).saturating_sub(room)))
    }

    fn grant(&mut self, at: At, lease: &Lease, devices: &[DeviceKey], effects: &mut Vec<Effect>) {
        let request = &lease.request;
        let mut allocations: Vec<Allocation> = Vec::new();
        for device in devices {
            let card = self.card(device).expect("it was just chosen");
            allocations.push(Allocation {
                device: device.clone(),
                memory: match request.amount {
                    Amount::Exclusive => self.grantable(card),
                    Amount::Memory(bytes) => bytes,
                },
                exclusive: request.amount == Amount::Exclusive,
            });
        }
        allocations.sort_by(|a, b| a.device.cmp(&b.device));
        let grant = Grant {
            fence: Fence(self.next_fence),
            at,
            generation: self.generation,
            allocations,
            expires: deadline(at, request.ttl),
            hold_until: policy::max_hold(&self.policy, request).map(|hold| deadline(at, hold)),
            renewed: false,
            loading: request.load,
            unresponsive: false,
            drains: Default::default(),
        };
        self.next_fence += 1;
        if let Some(process) = lease.process() {
            effects.push(Effect::Watch {
                id: lease.id,
                fence: grant.fence,
                process: process.clone(),
            });
        }
        self.find_mut(lease.id).expect("it waits").phase = Phase::Held(grant);
    }
}

/// Whether it is for waiting, or for the two seconds that a reading may take.
pub(super) fn stays(request: &Request, cause: &Cause) -> bool {
    request.queue || request.wait > Ms(0) || waits_for_reading(cause)
}

fn waits_for_reading(cause: &Cause) -> bool {
    let Cause::Devices(devices) = cause else {
        return false;
    };
    devices
        .iter()
        .any(|device| device.obstacle == Obstacle::AwaitingReading)
}

fn by_rule(rule: String, reason: String, until: Option<WallMs>) -> Cause {
    Cause::Rule {
        rule,
        reason,
        until,
    }
}

fn why(lease: &Lease, ahead: usize, cause: Cause, start: Option<BootMs>) -> Why {
    Why {
        devices: lease.request.devices,
        amount: lease.request.amount,
        position: u32::try_from(ahead + 1).expect("the queue is short"),
        cause,
        start,
    }
}
