//! What a policy would mean for the leases now held. The same function plans and applies.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use crate::ids::LeaseId;
use crate::lease::{Deadline, DrainSource, Grant, Lease};
use crate::policy::{Confirm, Held, Policy, ReloadScope, Standing, Verdict};
use crate::time::{At, Ms};

/// What a policy would mean for what is held and what waits. Leases that are not named are not touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Held leases, by id.
    pub held: Vec<LeaseFate>,
    /// Waiters that the policy refuses, by id, with the rule and the reason.
    pub denied: Vec<(LeaseId, Refusal)>,
}

/// A plan that was made outside the loop.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The policy that was live, by its hash.
    pub live: String,
    /// The revision of the rows that it was made on.
    pub revision: u64,
    /// What it says.
    pub plan: Plan,
}

/// What a policy means for one held lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseFate {
    /// The lease.
    pub id: LeaseId,
    /// Its holder's name.
    pub holder: String,
    /// What happens to it.
    pub fate: Fate,
    /// Why.
    pub because: Refusal,
    /// Nothing may make its holder go: its memory stays charged until it does.
    pub unenforceable: bool,
}

impl Plan {
    /// Whether a policy that asks for confirmation of `confirm` has to be confirmed.
    pub fn needs(&self, confirm: Confirm) -> bool {
        self.held.iter().any(|held| match held.fate {
            Fate::Drain(_) | Fate::Shorten(_) => confirm >= Confirm::Drain,
            Fate::Force => confirm >= Confirm::Force,
            Fate::Keep | Fate::Withdraw => false,
        })
    }

    /// Whether nothing is drained or ended here that `other` does not drain or end, as hard or harder.
    pub fn is_within(&self, other: &Self) -> bool {
        let harm = |plan: &Self, id| {
            let fate = plan.held.iter().find(|held| held.id == id);
            fate.map_or(0, |held| held.fate.harm())
        };
        let held = self
            .held
            .iter()
            .all(|held| held.fate.harm() <= harm(other, held.id));
        let denies = |id| other.denied.iter().any(|(denied, _)| *denied == id);
        held && self.denied.iter().all(|(id, _)| denies(*id))
    }

    /// Whether both say the same of the same leases, deadlines apart.
    pub fn is_like(&self, other: &Self) -> bool {
        let fates = |plan: &Self| -> Vec<_> {
            let fate =
                |held: &LeaseFate| (held.id, mem::discriminant(&held.fate), held.because.clone());
            plan.held.iter().map(fate).collect()
        };
        fates(self) == fates(other) && self.denied == other.denied
    }
}

impl Fate {
    /// How hard it is on the holder.
    fn harm(self) -> u8 {
        match self {
            Self::Keep | Self::Withdraw => 0,
            Self::Shorten(_) => 1,
            Self::Drain(_) => 2,
            Self::Force => 3,
        }
    }
}

/// The rule that refuses something, and its words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The rule.
    pub rule: String,
    /// For people.
    pub reason: String,
}

/// What happens to a held lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is asked to go by then.
    Drain(Deadline),
    /// It ends now.
    Force,
    /// The policy no longer allows it and lets it stay.
    Keep,
    /// Its longest time to be held now ends then.
    Shorten(Deadline),
    /// An earlier policy asked it to go; this one lets it stay.
    Withdraw,
}

impl Policy {
    /// What this policy says of a request, its class included.
    pub(crate) fn verdict(&self, lease: &Lease, at: At) -> Verdict {
        let request = &lease.request;
        match self.rules.admit(request, &Standing::default(), at.wall) {
            Verdict::Allow | Verdict::Hold { .. } if !self.classes.contains_key(&request.class) => {
                Verdict::Deny {
                    rule: String::from("class"),
                    reason: alloc::format!("class `{}` is not defined", request.class),
                    erred: false,
                }
            }
            verdict => verdict,
        }
    }

    /// The rule that refuses `lease`, if one does. A lease that only has to wait is not refused.
    pub(crate) fn refusal(&self, lease: &Lease, at: At) -> Option<Refusal> {
        match self.verdict(lease, at) {
            Verdict::Deny {
                rule,
                reason,
                erred: false,
            } => Some(Refusal { rule, reason }),
            Verdict::Allow | Verdict::Hold { .. } | Verdict::Deny { erred: true, .. } => None,
        }
    }
}

/// What switching from `old` to `new` means for one held lease; `None` does not touch it.
pub(crate) fn fate(
    old: &Policy,
    new: &Policy,
    lease: &Lease,
    grant: &Grant,
    at: At,
) -> Option<LeaseFate> {
    let refusal = new.refusal(lease, at);
    let newly_refused = refusal.is_some() && old.refusal(lease, at).is_none();
    let in_scope = newly_refused || new.reload.scope == ReloadScope::All;
    let fate = if in_scope {
        Some(fate_in_scope(old, new, lease, grant, at))
    } else if refusal.is_none() && grant.drains.contains_key(&DrainSource::Policy) {
        Some(Fate::Withdraw)
    } else {
        shortened(old, new, lease, grant, at).map(Fate::Shorten)
    };
    Some(LeaseFate {
        id: lease.id,
        holder: lease.request.holder.name.clone(),
        fate: fate?,
        because: refusal.unwrap_or_default(),
        unenforceable: false,
    })
}

/// An earlier drain by a policy is never moved by a later one, and withdrawn by one that keeps.
fn fate_in_scope(old: &Policy, new: &Policy, lease: &Lease, grant: &Grant, at: At) -> Fate {
    match (new.reload.held, grant.drains.get(&DrainSource::Policy)) {
        (Held::Force, _) => Fate::Force,
        (Held::Keep, None) => Fate::Keep,
        (Held::Keep, Some(_)) => Fate::Withdraw,
        (Held::Drain, Some(drain)) => Fate::Drain(drain.deadline),
        (Held::Drain, None) => Fate::Drain(at.after(grace_of_switch(old, new, lease))),
    }
}

/// A lease whose class is gone still has the grace that its class had when it was granted.
fn grace_of_switch(old: &Policy, new: &Policy, lease: &Lease) -> Ms {
    let longest = old
        .grace_for(&lease.request)
        .max(new.grace_for(&lease.request));
    longest.min(new.reload.grace_max)
}

/// The new end of a hold whose limit was cut: never sooner than the grace from now.
fn shortened(old: &Policy, new: &Policy, lease: &Lease, grant: &Grant, at: At) -> Option<Deadline> {
    let limit = new.max_hold_for(&lease.request)?;
    if old
        .max_hold_for(&lease.request)
        .is_some_and(|was| was <= limit)
    {
        return None;
    }
    let from_grant = grant.at.after(limit);
    let from_now = at.after(grace_of_switch(old, new, lease));
    let end = from_grant.max(from_now);
    grant
        .hold_until
        .is_none_or(|until| end < until)
        .then_some(end)
}
