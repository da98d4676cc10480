//! What a switch means for each lease: the table of fates, one row after the other.

use std::sync::Arc;

use gpu_lease::{
    At, Deadline, Drain, DrainSource, Effect, EndReason, Expect, Fate, Grant, Held, Lease,
    LeaseFate, LeaseId, Ms, OnShrink, Phase, Plan, Policy, Refusal, ReloadScope, Share, SignalRule,
    Switched, TenantKey, Unexpected, Verdict,
};

use super::policy::{grace, grantable, max_hold, may_serve, verdict};
use super::shares::{
    add, broken, counts_as, member, share_by, taken, tenant, too_much_alone, with_tenant,
};
use super::{Reference, deadline, is_waiting};

/// What the new policy has against a lease, and whether the old one let it be.
struct Case<'a> {
    lease: &'a Lease,
    grant: &'a Grant,
    against: Option<Refusal>,
    in_scope: bool,
    /// It goes on draining whatever the rules say: for want of its device, or asked for the scope alone.
    keeps: bool,
}

impl Reference {
    /// What switching to `policy` would mean now.
    pub fn plan(&self, at: At, policy: &Policy) -> Plan {
        if policy.source.hash == self.policy.source.hash {
            return Plan::default();
        }
        self.plan_anew(at, policy)
    }

    fn plan_anew(&self, at: At, policy: &Policy) -> Plan {
        let mut leases: Vec<&Lease> = self.leases.iter().collect();
        leases.sort_by_key(|lease| lease.id);
        let cases: Vec<Case> = leases
            .iter()
            .filter_map(|lease| self.case(policy, lease, at))
            .collect();
        let surplus = self.surplus(policy, &cases, at);
        let waiting = leases.iter().filter(|lease| is_waiting(lease));
        Plan {
            held: cases
                .iter()
                .filter_map(|case| self.fate(policy, case, &surplus, at))
                .collect(),
            denied: waiting
                .filter_map(|lease| Some((lease.id, self.denial(policy, lease, at)?)))
                .collect(),
        }
    }

    pub(super) fn switch(
        &mut self,
        at: At,
        policy: Arc<Policy>,
        expect: &Expect,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<Switched>, Unexpected> {
        let plan = self.plan(at, &policy);
        if !self.is_expected(expect, &plan) {
            let live = self.policy.source.hash.clone();
            return Err(Unexpected { live, plan });
        }
        if policy.source.hash == self.policy.source.hash {
            return Ok(None);
        }
        let unseen: Vec<LeaseId> = self.ids(|lease| self.is_unseen(lease));
        let before = std::mem::replace(&mut self.policy, policy);
        if !unseen.is_empty() {
            let noted = self.unseen.get_or_insert((before, Vec::new()));
            noted.1.extend(unseen);
        }
        self.generation += 1;
        for lease in &mut self.leases {
            if !matches!(lease.phase, Phase::Ended(_)) {
                lease.request = with_tenant(&self.policy, &lease.request);
            }
        }
        for fate in &plan.held {
            self.meet(at, fate, effects);
        }
        for (id, _) in &plan.denied {
            self.end(at, *id, EndReason::Denied);
        }
        Ok(Some(Switched {
            generation: self.generation,
            plan,
        }))
    }

    /// A device of what it holds is not known.
    fn is_unseen(&self, lease: &Lease) -> bool {
        let Phase::Held(grant) = &lease.phase else {
            return false;
        };
        let mut parts = grant.allocations.iter();
        parts.any(|part| self.card(&part.device).is_none())
    }

    /// What no switch could judge is judged when its devices are known.
    pub(super) fn judge_unseen(&mut self, at: At, effects: &mut Vec<Effect>) {
        let Some((before, noted)) = self.unseen.take() else {
            return;
        };
        let held = self.ids(|lease| matches!(lease.phase, Phase::Held(_)));
        let noted: Vec<LeaseId> = held.into_iter().filter(|id| noted.contains(id)).collect();
        let still = |id: &LeaseId| self.find(*id).is_some_and(|lease| self.is_unseen(lease));
        let (later, now): (Vec<_>, Vec<_>) = noted.into_iter().partition(still);
        let mut then = self.clone();
        then.policy = before.clone();
        let plan = then.plan_anew(at, &self.policy);
        for fate in plan.held.iter().filter(|fate| now.contains(&fate.id)) {
            let fate = &LeaseFate {
                shorten: None,
                ..fate.clone()
            };
            let asked = match self.find(fate.id).map(|lease| &lease.phase) {
                Some(Phase::Held(grant)) => grant.drains.contains_key(&DrainSource::Policy),
                _ => false,
            };
            match fate.fate {
                Fate::Withdraw => self.meet(at, fate, effects),
                Fate::Drain(_) | Fate::Force if !asked => self.meet(at, fate, effects),
                _ => {}
            }
        }
        if !later.is_empty() {
            self.unseen = Some((before, later));
        }
    }

    fn is_expected(&self, expect: &Expect, plan: &Plan) -> bool {
        if expect
            .live
            .as_ref()
            .is_some_and(|live| *live != self.policy.source.hash)
        {
            return false;
        }
        if let Some(most) = &expect.within {
            let most_harm = |plan: &Plan, id: LeaseId| {
                let fates = plan.held.iter().filter(|fate| fate.id == id);
                fates.map(harm_of).max().unwrap_or(0)
            };
            for fate in &plan.held {
                if most_harm(plan, fate.id) > most_harm(most, fate.id) {
                    return false;
                }
            }
        }
        let Some(same) = &expect.exactly else {
            return true;
        };
        let words = |plan: &Plan| -> Vec<String> {
            let held = plan.held.iter();
            held.map(|fate| {
                let cut = fate.shorten.is_some();
                format!("{} {} {cut} {:?}", fate.id, word(fate.fate), fate.because)
            })
            .collect()
        };
        words(plan) == words(same) && plan.denied == same.denied
    }

    fn meet(&mut self, at: At, fate: &LeaseFate, effects: &mut Vec<Effect>) {
        if fate.fate == Fate::Force {
            self.end_by_force(at, fate.id, EndReason::Policy, effects);
            return;
        }
        let by = format!("policy generation {}", self.generation);
        let scope_is_all = self.policy.reload.scope == ReloadScope::All;
        let Some(Lease {
            phase: Phase::Held(grant),
            ..
        }) = self.find_mut(fate.id)
        else {
            return;
        };
        grant.hold_until = fate.shorten.or(grant.hold_until);
        match fate.fate {
            Fate::Keep | Fate::Force => {}
            Fate::Withdraw => drop(grant.drains.remove(&DrainSource::Policy)),
            Fate::Shorten(until) => grant.hold_until = Some(until),
            Fate::Drain(deadline) => {
                let before = grant.drains.get(&DrainSource::Policy);
                let reason = match before {
                    Some(drain) if fate.because.rule.is_empty() && !scope_is_all => {
                        drain.reason.clone()
                    }
                    _ => words(&fate.because),
                };
                let is_same = |drain: &Drain| drain.deadline == deadline && drain.reason == reason;
                if before.is_some_and(is_same) {
                    return;
                }
                let drain = Drain {
                    deadline,
                    since: before.map_or(at, |drain| drain.since),
                    reason,
                    by,
                };
                grant.drains.insert(DrainSource::Policy, drain);
            }
        }
    }

    /// What a policy has against what is held, with the books as the new policy counts them.
    fn against(&self, new: &Policy, policy: &Policy, lease: &Lease, at: At) -> Option<Refusal> {
        let standing = self.standing_by(new, &lease.request, Some(lease));
        let reads = self.policy.rules.reads_standing() || new.rules.reads_standing();
        let standing = if reads { standing } else { Default::default() };
        let known = policy.classes.contains_key(&lease.request.class)
            && member(policy, &lease.request).is_ok();
        if reads && known && self.cards.as_ref().is_none_or(Vec::is_empty) {
            return None;
        }
        let seen = with_tenant(policy, &lease.request);
        match verdict(policy, &seen, &standing, at) {
            Verdict::Deny {
                rule,
                reason,
                erred: false,
            } => Some(Refusal { rule, reason }),
            _ => None,
        }
    }

    fn against_on_devices(
        &self,
        new: &Policy,
        policy: &Policy,
        lease: &Lease,
        at: At,
    ) -> Option<Refusal> {
        if let Some(refusal) = self.against(new, policy, lease, at) {
            return Some(refusal);
        }
        let Phase::Held(grant) = &lease.phase else {
            return None;
        };
        for part in &grant.allocations {
            let card = self.card(&part.device);
            if let Some(reason) = card.and_then(|card| drain_of(policy, card)) {
                return Some(Refusal {
                    rule: format!("device {}", part.device),
                    reason,
                });
            }
        }
        None
    }

    fn case<'a>(&self, new: &Policy, lease: &'a Lease, at: At) -> Option<Case<'a>> {
        let Phase::Held(grant) = &lease.phase else {
            return None;
        };
        let against = self.against_on_devices(new, new, lease, at);
        let unseen = self.is_unseen(lease);
        let drain = grant.drains.get(&DrainSource::Policy);
        let for_scope = drain.is_some_and(|drain| drain.reason == words(&Refusal::default()));
        let newly =
            !(unseen && drain.is_some()) && against.is_some() && self.was_allowed(new, lease, at);
        Some(Case {
            lease,
            grant,
            against,
            keeps: drain.is_some() && (unseen || for_scope),
            in_scope: newly || new.reload.scope == ReloadScope::All,
        })
    }

    fn was_allowed(&self, new: &Policy, lease: &Lease, at: At) -> bool {
        self.against_on_devices(new, &self.policy, lease, at)
            .is_none()
    }

    /// Newest first, until the rest fits: first the quotas by tenant, then the devices.
    fn surplus(&self, new: &Policy, cases: &[Case], at: At) -> Vec<(LeaseId, Refusal)> {
        let mut stay: Vec<&Case> = cases.iter().filter(|case| !goes(new, case)).collect();
        stay.sort_by_key(|case| std::cmp::Reverse(case.grant.fence));
        let mut surplus: Vec<(LeaseId, Refusal)> = Vec::new();
        let mut keys: Vec<TenantKey> = stay
            .iter()
            .filter_map(|case| member(new, &case.lease.request).ok().flatten())
            .collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let is_mine = |case: &&&Case| counts_as(new, &case.lease.request) == key;
            let mine: Vec<&Case> = stay.iter().filter(is_mine).copied().collect();
            let Some(limits) = tenant(new, &key) else {
                continue;
            };
            for case in &mine {
                let rest = mine.iter().filter(|other| !has(&surplus, other.lease.id));
                let rest = rest.map(|other| taken(other.lease));
                let rest = rest.fold(Share::default(), add);
                let Some((most, _)) = broken(limits, rest, rest) else {
                    break;
                };
                if self.may_go(new, case, at, self.fitted_quota(case.lease)) {
                    let rule = format!("quota of tenant {key}");
                    let reason = format!("it may hold {most}; the newest go first");
                    surplus.push((case.lease.id, Refusal { rule, reason }));
                }
            }
        }
        for card in self.cards.iter().flatten() {
            let device = &card.device.key;
            let on = |lease: &Lease| -> u64 {
                let parts = super::occupied(lease)
                    .into_iter()
                    .flat_map(|g| &g.allocations);
                let shared = parts.filter(|part| part.device == *device && !part.exclusive);
                shared.map(|part| part.memory).sum()
            };
            let room = grantable(new, card);
            let all: u64 = self.leases.iter().map(on).sum();
            let fitted = all <= grantable(&self.policy, card);
            for case in stay.iter().filter(|case| on(case.lease) > 0) {
                let rest = stay.iter().filter(|other| !has(&surplus, other.lease.id));
                let rest: u64 = rest.map(|other| on(other.lease)).sum();
                if rest <= room {
                    break;
                }
                if !has(&surplus, case.lease.id) && self.may_go(new, case, at, fitted) {
                    let rule = format!("reserve of {device}");
                    let left = gpu_lease::Bytes(room);
                    let reason = format!("{left} are left to grant; the newest go first");
                    surplus.push((case.lease.id, Refusal { rule, reason }));
                }
            }
        }
        surplus
    }

    fn fitted_quota(&self, lease: &Lease) -> bool {
        let Ok(Some(key)) = member(&self.policy, &lease.request) else {
            return true;
        };
        let held = share_by(&self.policy, &self.leases, &key);
        let limits = tenant(&self.policy, &key).expect("it is a member of it");
        broken(limits, held, held).is_none()
    }

    fn may_go(&self, new: &Policy, case: &Case, at: At, fitted: bool) -> bool {
        if case.in_scope {
            return false;
        }
        match case.grant.drains.contains_key(&DrainSource::Policy) {
            true => self.was_allowed(new, case.lease, at),
            false => fitted && new.reload.on_shrink == OnShrink::Drain,
        }
    }

    fn fate(
        &self,
        new: &Policy,
        case: &Case,
        surplus: &[(LeaseId, Refusal)],
        at: At,
    ) -> Option<LeaseFate> {
        let lease = case.lease;
        let draining = case.grant.drains.get(&DrainSource::Policy);
        let no_room = surplus.iter().find(|(id, _)| *id == lease.id);
        let no_room = no_room.map(|(_, refusal)| refusal.clone());
        let old_grace = grace(&self.policy, &lease.request);
        let new_grace = grace(new, &lease.request);
        let patience = old_grace.max(new_grace).min(new.reload.grace_max);
        let moved = |drain: &Drain| moved(drain, old_grace, new_grace, at);
        let cut = self.cut(new, case, patience, at);
        let (fate, because) = if case.in_scope {
            let fate = match (new.reload.held, draining) {
                (Held::Force, _) => Fate::Force,
                (Held::Keep, Some(_)) => Fate::Withdraw,
                (Held::Keep, None) => Fate::Keep,
                (Held::Drain, Some(drain)) => Fate::Drain(moved(drain)),
                (Held::Drain, None) => Fate::Drain(deadline(at, patience)),
            };
            (fate, case.against.clone())
        } else if draining.is_some() && case.against.is_none() && no_room.is_none() && !case.keeps {
            (Fate::Withdraw, None)
        } else if let Some(drain) = draining.filter(|drain| {
            let cause = case.against.as_ref().or(no_room.as_ref());
            let other_words = cause.is_some_and(|cause| words(cause) != drain.reason);
            other_words || moved(drain) != drain.deadline
        }) {
            (Fate::Drain(moved(drain)), case.against.clone().or(no_room))
        } else if draining.is_none() && no_room.is_some() {
            (Fate::Drain(deadline(at, patience)), no_room)
        } else {
            (Fate::Shorten(cut?), case.against.clone())
        };
        let beside = !matches!(fate, Fate::Shorten(_) | Fate::Force);
        let shorten = cut.filter(|_| beside);
        Some(LeaseFate {
            id: lease.id,
            holder: lease.request.holder.name.clone(),
            fate,
            because: because.unwrap_or_default(),
            shorten,
            unenforceable: (harm(fate) > 0 || shorten.is_some()) && cannot_be_ended(new, lease),
        })
    }

    fn cut(&self, new: &Policy, case: &Case, patience: Ms, at: At) -> Option<Deadline> {
        let limit = max_hold(new, &case.lease.request)?;
        let before = max_hold(&self.policy, &case.lease.request);
        let cut = deadline(case.grant.at, limit).max(deadline(at, patience));
        let is_shorter = before.is_none_or(|before| limit < before);
        let bites = case.grant.hold_until.is_none_or(|until| cut < until);
        (is_shorter && bites).then_some(cut)
    }

    fn denial(&self, new: &Policy, lease: &Lease, at: At) -> Option<Refusal> {
        if let Some(refusal) = self.against(new, new, lease, at) {
            return Some(refusal);
        }
        let sizes = |policy: &Policy| -> Vec<u64> {
            let cards = self.cards.iter().flatten();
            let serving = cards.filter(|card| may_serve(policy, card, &lease.request));
            let mut sizes: Vec<u64> = serving.map(|card| grantable(policy, card)).collect();
            sizes.sort();
            sizes
        };
        if let Some(refusal) = too_much_alone(new, &lease.request, &sizes(new)) {
            return Some(refusal);
        }
        let fits = |sizes: Vec<u64>| {
            let enough = sizes.iter().filter(|size| match lease.request.amount {
                gpu_lease::Amount::Memory(bytes) => **size >= bytes,
                gpu_lease::Amount::Exclusive => true,
            });
            enough.count() >= lease.request.devices as usize
        };
        if fits(sizes(new)) || !fits(sizes(&self.policy)) {
            return None;
        }
        let (wanted, serving) = (lease.request.devices, sizes(new));
        let reason = match (serving.len() < wanted as usize, lease.request.amount) {
            (false, gpu_lease::Amount::Memory(bytes)) => format!(
                "asks for {} on {}; the largest that can serve it grants {}",
                gpu_lease::Bytes(bytes),
                match wanted {
                    1 => "one device".to_string(),
                    _ => format!("each of {wanted} devices"),
                },
                gpu_lease::Bytes(*serving.last().expect("enough devices"))
            ),
            _ => {
                let count = serving.len();
                let devices = if wanted == 1 { "device" } else { "devices" };
                format!("asks for {wanted} {devices}; {count} of the inventory can serve it")
            }
        };
        Some(Refusal {
            rule: "capacity".to_string(),
            reason,
        })
    }
}

fn has(surplus: &[(LeaseId, Refusal)], id: LeaseId) -> bool {
    surplus.iter().any(|(other, _)| *other == id)
}

/// Whether it leaves whatever the shares are.
fn goes(new: &Policy, case: &Case) -> bool {
    let by_policy = case.grant.drains.contains_key(&DrainSource::Policy);
    let mut sources = case.grant.drains.keys();
    let asked = sources.any(|source| *source != DrainSource::Policy);
    match case.in_scope {
        _ if asked => true,
        true => new.reload.held != Held::Keep,
        false => by_policy && (case.against.is_some() || case.keeps),
    }
}

/// A drain by policy moves with the grace, counted from when it began.
fn moved(drain: &Drain, old: Ms, new: Ms, at: At) -> Deadline {
    let counted = deadline(drain.since, new);
    if new > old {
        drain.deadline.max(counted)
    } else if new < old {
        let soonest = counted.max(deadline(at, Ms(0)));
        drain.deadline.min(soonest)
    } else {
        drain.deadline
    }
}

fn drain_of(policy: &Policy, card: &super::Card) -> Option<String> {
    let mut drain = None;
    for (place, rule) in policy.devices.iter().enumerate() {
        if rule.drain.is_some() && policy.rules.device_matches(place, &card.device) {
            drain.clone_from(&rule.drain);
        }
    }
    drain
}

/// A process that nobody may signal stays as long as it likes.
fn cannot_be_ended(policy: &Policy, lease: &Lease) -> bool {
    let may_signal = |supervised| match policy.reclaim.signal {
        SignalRule::Always => true,
        SignalRule::Never => false,
        SignalRule::Supervised => supervised,
    };
    let process = lease.process();
    policy.reclaim.verify && process.is_some_and(|process| !may_signal(process.supervised))
}

fn harm_of(fate: &LeaseFate) -> u8 {
    harm(fate.fate).max(u8::from(fate.shorten.is_some()))
}

fn harm(fate: Fate) -> u8 {
    match fate {
        Fate::Force => 3,
        Fate::Drain(_) => 2,
        Fate::Shorten(_) => 1,
        Fate::Keep | Fate::Withdraw => 0,
    }
}

fn word(fate: Fate) -> &'static str {
    match fate {
        Fate::Force => "force",
        Fate::Drain(_) => "drain",
        Fate::Shorten(_) => "shorten",
        Fate::Keep => "keep",
        Fate::Withdraw => "withdraw",
    }
}

fn words(because: &Refusal) -> String {
    match because.rule.is_empty() {
        true => "the policy changed and its scope is all".to_string(),
        false => format!("`{}`: {}", because.rule, because.reason),
    }
}
