//! What a policy would mean for the leases now held. The same code plans and applies.
//!
//! A lease is touched only if, on the same inputs, the old policy allows it and the new one does not; both
//! see the books as the new policy counts them. What a smaller quota or a larger reserve has no room for is
//! found after that, newest first, among those that are not going anyway.

mod planner;
mod shrink;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::{fmt, mem};

use crate::capacity::DeviceState;
use crate::ids::LeaseId;
use crate::lease::{Deadline, Lease};
use crate::policy::{Confirm, Policy, Standing, Verdict};
use crate::request::Request;
use crate::tenancy::Membership;
use crate::time::{At, WallMs};

pub(crate) use planner::Planner;

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
    /// The policy that it is a plan of, by its hash; it is of no use for another.
    pub to: String,
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
    /// Beside that, its longest time to be held now ends then.
    pub shorten: Option<Deadline>,
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
            Fate::Keep | Fate::Withdraw => held.shorten.is_some() && confirm >= Confirm::Drain,
        })
    }

    /// Whether nothing is drained or ended here that `other` does not drain or end, as hard or harder.
    /// Waiters that are refused hold nothing that they could lose.
    pub fn is_within(&self, other: &Self) -> bool {
        let harms = other.held.iter().map(|held| (held.id, held.harm()));
        let harms: BTreeMap<LeaseId, u8> = harms.collect();
        let harm = |id| harms.get(&id).copied().unwrap_or(0);
        let mut fates = self.held.iter();
        fates.all(|held| held.harm() <= harm(held.id))
    }

    /// Whether both say the same of the same leases, deadlines apart.
    pub fn is_like(&self, other: &Self) -> bool {
        let fates = |plan: &Self| -> Vec<_> {
            let fate = |held: &LeaseFate| {
                let words = (mem::discriminant(&held.fate), held.shorten.is_some());
                (held.id, words, held.because.clone())
            };
            plan.held.iter().map(fate).collect()
        };
        fates(self) == fates(other) && self.denied == other.denied
    }
}

impl fmt::Display for Plan {
    /// One line for people: `1 lease ends at once, 2 leases drain`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of =
            |wanted: fn(&LeaseFate) -> bool| self.held.iter().filter(|held| wanted(held)).count();
        let parts = [
            (
                of(|held| held.fate == Fate::Force),
                "lease ends at once",
                "leases end at once",
            ),
            (
                of(|held| matches!(held.fate, Fate::Drain(_))),
                "lease drains",
                "leases drain",
            ),
            (
                of(LeaseFate::is_shortened),
                "lease is held shorter",
                "leases are held shorter",
            ),
            (
                of(|held| held.fate == Fate::Keep),
                "lease stays although it is no longer allowed",
                "leases stay although they are no longer allowed",
            ),
            (
                of(|held| held.fate == Fate::Withdraw),
                "lease may stay again",
                "leases may stay again",
            ),
            (
                self.denied.len(),
                "waiter is refused",
                "waiters are refused",
            ),
            (
                of(|held| held.unenforceable),
                "holder cannot be made to go",
                "holders cannot be made to go",
            ),
        ];
        let mut said = parts
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .peekable();
        if said.peek().is_none() {
            return f.write_str("no lease is touched");
        }
        for (place, (count, one, several)) in said.enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            let words = if count == 1 { one } else { several };
            write!(f, "{comma}{count} {words}")?;
        }
        Ok(())
    }
}

impl LeaseFate {
    /// Whether its hold ends sooner, whatever else becomes of it.
    fn is_shortened(&self) -> bool {
        self.shorten.is_some() || matches!(self.fate, Fate::Shorten(_))
    }

    /// How hard it is on the holder.
    fn harm(&self) -> u8 {
        self.fate.harm().max(u8::from(self.shorten.is_some()))
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

/// The words of a drain that has no other cause than a scope of `all`.
pub(crate) const SCOPE_IS_ALL: &str = "the policy changed and its scope is all";

impl Refusal {
    /// In one line, for the one who has to go.
    pub(crate) fn words(&self) -> String {
        match self.rule.as_str() {
            "" => SCOPE_IS_ALL.into(),
            rule => alloc::format!("`{rule}`: {}", self.reason),
        }
    }
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
    /// An earlier policy asked it to go; this one lets it stay. Who was asked only because the scope was `all`
    /// goes on draining when the scope is set back: nothing that the rules say has changed for it.
    Withdraw,
}

/// What switching from `from` to `to` would mean for `leases` on `devices`, as [`crate::Books::plan`] says it of
/// its own. An empty list of devices are devices that are not known yet.
pub fn plan(
    from: &Policy,
    to: &Policy,
    leases: &[&Lease],
    devices: &[DeviceState],
    at: At,
) -> Plan {
    if from == to {
        return Plan::default();
    }
    let devices = devices.iter().collect();
    Planner::new(from, to, leases, devices, at).plan(None)
}

impl Policy {
    /// What this policy says of a request: its class, its tenant, then the rules.
    pub(crate) fn verdict(
        &self,
        request: &Request,
        membership: &Membership,
        standing: &Standing,
        now: WallMs,
    ) -> Verdict {
        if !self.classes.contains_key(&request.class) {
            return self.no_such_class(request, standing, now);
        }
        match membership {
            Err(Refusal { rule, reason }) => Verdict::Deny {
                rule: rule.clone(),
                reason: reason.clone(),
                erred: false,
            },
            Ok(_) => self.rules.admit(request, standing, now),
        }
    }

    /// Whether only rules can have anything against a request.
    pub(crate) fn knows(&self, request: &Request, membership: &Membership) -> bool {
        self.classes.contains_key(&request.class) && membership.is_ok()
    }

    /// In the words of the rules, which know what it may have been meant to be.
    fn no_such_class(&self, request: &Request, standing: &Standing, now: WallMs) -> Verdict {
        match self.rules.admit(request, standing, now) {
            Verdict::Deny {
                rule,
                reason,
                erred: false,
            } => Verdict::Deny {
                rule,
                reason,
                erred: false,
            },
            Verdict::Allow | Verdict::Hold { .. } | Verdict::Deny { erred: true, .. } => {
                Verdict::Deny {
                    rule: String::from("class"),
                    reason: alloc::format!("class `{}` is not defined", request.class),
                    erred: false,
                }
            }
        }
    }
}

impl Verdict {
    /// The rule that refuses, if one does. A rule that failed refuses nobody who is there already.
    pub(crate) fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Deny {
                rule,
                reason,
                erred: false,
            } => Some(Refusal { rule, reason }),
            Self::Allow | Self::Hold { .. } | Self::Deny { erred: true, .. } => None,
        }
    }
}
