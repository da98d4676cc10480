//! What a policy says of a request and of what is held.

use std::sync::Arc;

use gpu_lease::{
    At, Device, DeviceSettings, Drain, DrainSource, Effect, EndReason, Fate, Grant, Held, Lease,
    LeaseFate, Ms, Phase, Plan, Policy, Refusal, ReloadScope, Request, Standing, Switched, Verdict,
};

use super::{Reference, deadline, is_waiting};

impl Reference {
    /// What switching to `policy` would mean now.
    pub fn plan(&self, at: At, policy: &Policy) -> Plan {
        let mut plan = Plan::default();
        if policy.source.hash == self.policy.source.hash {
            return plan;
        }
        let mut leases: Vec<&Lease> = self.leases.iter().collect();
        leases.sort_by_key(|lease| lease.id);
        for lease in leases {
            if let Phase::Held(grant) = &lease.phase {
                plan.held
                    .extend(fate(&self.policy, policy, lease, grant, at));
            }
            if let (true, Some(refusal)) = (is_waiting(lease), refusal(policy, lease, at)) {
                plan.denied.push((lease.id, refusal));
            }
        }
        plan
    }

    pub(super) fn switch(
        &mut self,
        at: At,
        policy: Arc<Policy>,
        effects: &mut Vec<Effect>,
    ) -> Option<Switched> {
        if policy.source.hash == self.policy.source.hash {
            return None;
        }
        let plan = self.plan(at, &policy);
        self.policy = policy;
        self.generation += 1;
        for fate in &plan.held {
            self.meet(at, fate, effects);
        }
        for (id, _) in &plan.denied {
            self.end(at, *id, EndReason::Denied);
        }
        Some(Switched {
            generation: self.generation,
            plan,
        })
    }

    fn meet(&mut self, at: At, fate: &LeaseFate, effects: &mut Vec<Effect>) {
        if fate.fate == Fate::Force {
            self.end_by_force(at, fate.id, EndReason::Policy, effects);
            return;
        }
        let by = format!("policy generation {}", self.generation);
        let Some(Lease {
            phase: Phase::Held(grant),
            ..
        }) = self.find_mut(fate.id)
        else {
            return;
        };
        match fate.fate {
            Fate::Keep | Fate::Force => {}
            Fate::Withdraw => drop(grant.drains.remove(&DrainSource::Policy)),
            Fate::Shorten(until) => grant.hold_until = Some(until),
            Fate::Drain(deadline) => {
                let drain = Drain {
                    deadline,
                    reason: words(&fate.because),
                    by,
                };
                grant.drains.entry(DrainSource::Policy).or_insert(drain);
            }
        }
    }
}

/// What the rules say, and that a class must exist.
pub(super) fn verdict(policy: &Policy, request: &Request, at: At) -> Verdict {
    let by_rule = policy.rules.admit(request, &Standing::default(), at.wall);
    let is_denied = matches!(by_rule, Verdict::Deny { .. });
    if is_denied || policy.classes.contains_key(&request.class) {
        return by_rule;
    }
    Verdict::Deny {
        rule: "class".to_string(),
        reason: format!("class `{}` is not defined", request.class),
        erred: false,
    }
}

pub(super) fn refusal(policy: &Policy, lease: &Lease, at: At) -> Option<Refusal> {
    match verdict(policy, &lease.request, at) {
        Verdict::Deny { rule, reason, .. } => Some(Refusal { rule, reason }),
        _ => None,
    }
}

/// The shorter of what was asked for and what the class allows.
pub(super) fn max_hold(policy: &Policy, request: &Request) -> Option<Ms> {
    let of_class = policy.classes.get(&request.class).and_then(|c| c.max_hold);
    match (request.max_hold, of_class) {
        (Some(asked), Some(allowed)) => Some(asked.min(allowed)),
        (asked, allowed) => asked.or(allowed),
    }
}

/// The longest of the policy's, the class's and the request's, capped.
pub(super) fn grace(policy: &Policy, request: &Request) -> Ms {
    let mut grace = policy.reload.grace;
    if let Some(class) = policy.classes.get(&request.class) {
        grace = grace.max(class.drain_grace);
    }
    grace = grace.max(request.drain_grace.unwrap_or_default());
    grace.min(policy.reload.grace_max)
}

pub(super) fn device_settings(policy: &Policy, device: &Device) -> DeviceSettings {
    let mut settings = DeviceSettings {
        reserve: policy.placement.reserve,
        load_slots: policy.placement.load_slots,
        labels: Vec::new(),
        cordon: None,
    };
    for (place, rule) in policy.devices.iter().enumerate() {
        if !policy.rules.device_matches(place, device) {
            continue;
        }
        settings.labels.extend(rule.labels.clone());
        settings.reserve = rule.reserve.unwrap_or(settings.reserve);
        settings.load_slots = rule.load_slots.unwrap_or(settings.load_slots);
        if rule.cordon.is_some() {
            settings.cordon.clone_from(&rule.cordon);
        }
    }
    settings
}

fn fate(old: &Policy, new: &Policy, lease: &Lease, grant: &Grant, at: At) -> Option<LeaseFate> {
    let refused = refusal(new, lease, at);
    let newly = refused.is_some() && refusal(old, lease, at).is_none();
    let switch_grace = grace(old, &lease.request).max(grace(new, &lease.request));
    let switch_grace = switch_grace.min(new.reload.grace_max);
    let draining = grant.drains.get(&DrainSource::Policy);
    let fate = if newly || new.reload.scope == ReloadScope::All {
        match new.reload.held {
            Held::Force => Fate::Force,
            Held::Keep if draining.is_some() => Fate::Withdraw,
            Held::Keep => Fate::Keep,
            Held::Drain => {
                let fresh = deadline(at, switch_grace);
                Fate::Drain(draining.map_or(fresh, |drain| drain.deadline))
            }
        }
    } else if refused.is_none() && draining.is_some() {
        Fate::Withdraw
    } else {
        let limit = max_hold(new, &lease.request)?;
        if max_hold(old, &lease.request).is_some_and(|old| old <= limit) {
            return None;
        }
        let cut = deadline(grant.at, limit).max(deadline(at, switch_grace));
        if grant.hold_until.is_some_and(|until| until <= cut) {
            return None;
        }
        Fate::Shorten(cut)
    };
    Some(LeaseFate {
        id: lease.id,
        holder: lease.request.holder.name.clone(),
        fate,
        because: refused.unwrap_or_default(),
        unenforceable: false,
    })
}

fn words(because: &Refusal) -> String {
    match because.rule.is_empty() {
        true => "the policy changed and its scope is all".to_string(),
        false => format!("`{}`: {}", because.rule, because.reason),
    }
}
