//! One plan in the making.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Fate, LeaseFate, Plan, Planned, Refusal, SCOPE_IS_ALL, shrink};
use crate::capacity::{DeviceState, never_fits};
use crate::device::Device;
use crate::ids::{DeviceKey, LeaseId};
use crate::lease::{Deadline, Drain, DrainSource, Grant, Lease, Phase};
use crate::policy::{Held, OnShrink, Policy, ReloadScope, SignalRule};
use crate::request::Request;
use crate::tenancy::{Census, Membership, as_member, sharer};
use crate::time::{At, Ms};

/// Rules of refusals that follow from devices and shares, and so are found anew by every plan.
const DEVICE: &str = "device ";
pub(super) const QUOTA: &str = "quota of tenant ";
pub(super) const RESERVE: &str = "reserve of ";
const CAPACITY: &str = "capacity";

/// What a plan is made of.
pub(crate) struct Planner<'a> {
    pub(super) from: &'a Policy,
    pub(super) to: &'a Policy,
    at: At,
    pub(super) leases: Vec<Member<'a>>,
    pub(super) cards: BTreeMap<&'a DeviceKey, Card<'a>>,
    /// By the tenants of the new policy; empty if no rule looks at it.
    census: Census,
    grantable: u64,
    reads_standing: bool,
}

/// A lease and the tenant that it has under the new policy.
pub(super) struct Member<'a> {
    pub(super) lease: &'a Lease,
    pub(super) membership: Membership,
}

/// A device under both policies.
pub(super) struct Card<'a> {
    state: &'a DeviceState,
    labels: Vec<String>,
    /// Bytes that can be granted on it when it is idle.
    pub(super) grantable: u64,
    /// The same as the old policy says.
    pub(super) grantable_before: u64,
    /// Why the new policy no longer allows what is held there.
    drain: Option<&'a String>,
}

/// What the new policy says of a held lease, shares apart.
pub(super) struct Judged<'a> {
    pub(super) member: &'a Member<'a>,
    pub(super) grant: &'a Grant,
    pub(super) refusal: Option<Refusal>,
    pub(super) in_scope: bool,
    /// It goes on draining, whatever else: a device of it is not known, so that nobody can say what there is
    /// against it, or it was asked for the scope alone.
    pub(super) keeps_drain: bool,
}

/// Which filters the devices pass under one policy, so that each is looked at once.
type Passed = BTreeMap<String, BTreeSet<DeviceKey>>;

impl<'a> Planner<'a> {
    pub(crate) fn new(
        from: &'a Policy,
        to: &'a Policy,
        leases: &[&'a Lease],
        devices: Vec<&'a DeviceState>,
        at: At,
    ) -> Self {
        let open = leases.iter().filter(|lease| !is_over(lease));
        let mut leases: Vec<Member> = open.map(|lease| Member::new(lease, to)).collect();
        leases.sort_by_key(|member| member.lease.id);
        let reads_standing = from.rules.reads_standing() || to.rules.reads_standing();
        let mut census = Census::default();
        if reads_standing {
            for member in &leases {
                census.add(member.lease, &member.sharer());
            }
        }
        let cards: BTreeMap<_, _> = devices
            .into_iter()
            .map(|state| (&state.device.key, Card::new(state, from, to)))
            .collect();
        let leasable = cards.values().filter(|card| card.state.device.leasable);
        Self {
            grantable: leasable.fold(0, |sum, card| sum.saturating_add(card.grantable)),
            reads_standing,
            from,
            to,
            at,
            leases,
            cards,
            census,
        }
    }

    /// The plan. Of `planned` what the rules said of leases that did not change since is taken over.
    pub(crate) fn plan(&self, planned: Option<&Planned>) -> Plan {
        let earlier = planned.map(Earlier::new);
        Plan {
            held: self.held(earlier.as_ref()),
            denied: self.denied(earlier.as_ref()),
        }
    }

    fn held(&self, earlier: Option<&Earlier>) -> Vec<LeaseFate> {
        let members = self.leases.iter();
        let judged = members.filter_map(|member| self.judge(member, earlier));
        let judged: Vec<Judged> = judged.collect();
        let surplus = shrink::surplus(self, &judged);
        judged
            .iter()
            .filter_map(|judged| {
                let surplus = surplus.get(&judged.member.lease.id);
                self.fate(judged, surplus)
            })
            .collect()
    }

    fn judge<'j>(&self, member: &'j Member<'a>, earlier: Option<&Earlier>) -> Option<Judged<'j>> {
        let grant = member.lease.held()?;
        let all = self.to.reload.scope == ReloadScope::All;
        let taken_over = earlier
            .filter(|_| !grant.drains.contains_key(&DrainSource::Policy))
            .and_then(|earlier| earlier.of_held(member.lease));
        let by_device = |card: fn(&Card) -> bool| self.drained(grant, card);
        let of_device = by_device(|card| card.drain.is_some());
        let (refusal, newly) = match taken_over {
            // The earlier plan found nothing that the rules have against it, or just this.
            Some(refusal) => {
                let newly = refusal.is_some() || of_device.is_some() && self.was_allowed(member);
                (refusal.or(of_device), newly)
            }
            None => {
                let by_rules = self.refusal(self.to, member, &member.membership);
                let refusal = by_rules.or(of_device);
                let newly = refusal.is_some() && self.was_allowed(member);
                (refusal, newly)
            }
        };
        let drain = grant.drains.get(&DrainSource::Policy);
        let is_unseen = drain.is_some() && !self.sees(grant);
        let by_scope = drain.is_some_and(|drain| drain.reason == SCOPE_IS_ALL);
        Some(Judged {
            member,
            grant,
            refusal,
            // What it was asked to go for may be what cannot be seen.
            in_scope: newly && !is_unseen || all,
            keeps_drain: is_unseen || by_scope,
        })
    }

    /// Whether every device of a grant is known.
    fn sees(&self, grant: &Grant) -> bool {
        let mut parts = grant.allocations.iter();
        parts.all(|part| self.cards.contains_key(&part.device))
    }

    /// Whether the old policy allows a lease that is held.
    pub(super) fn was_allowed(&self, member: &Member) -> bool {
        let was_drained = |grant| {
            self.drained(grant, |card| card.was_drained(self.from))
                .is_some()
        };
        let membership = self.from.membership(&member.lease.request);
        !member.lease.held().is_some_and(was_drained)
            && self.refusal(self.from, member, &membership).is_none()
    }

    fn drained(&self, grant: &Grant, is_drained: impl Fn(&Card) -> bool) -> Option<Refusal> {
        let parts = grant.allocations.iter();
        let mut cards = parts.filter_map(|part| self.cards.get(&part.device));
        let card = cards.find(|card| is_drained(card))?;
        Some(Refusal {
            rule: format!("{DEVICE}{}", card.state.device.key),
            reason: card.drain.cloned().unwrap_or_default(),
        })
    }

    /// What `policy` has against a lease, with the books as the new policy counts them.
    fn refusal(
        &self,
        policy: &Policy,
        member: &Member,
        membership: &Membership,
    ) -> Option<Refusal> {
        let lease = member.lease;
        let is_blind = self.reads_standing && self.cards.is_empty();
        if is_blind && policy.knows(&lease.request, membership) {
            // Before the devices are known, rules that look at the books would see too little of them.
            return None;
        }
        let standing = self.reads_standing.then(|| {
            self.census
                .standing_without(lease, &member.membership, self.grantable)
        });
        let standing = standing.unwrap_or_default();
        policy
            .verdict(
                &as_member(&lease.request, membership),
                membership,
                &standing,
                self.at.wall,
            )
            .refusal()
    }

    fn fate(&self, judged: &Judged, surplus: Option<&Refusal>) -> Option<LeaseFate> {
        let lease = judged.member.lease;
        let drain = judged.grant.drains.get(&DrainSource::Policy);
        let stays_refused = judged.refusal.is_some() || surplus.is_some() || judged.keeps_drain;
        let cause = judged.refusal.as_ref().or(surplus);
        let cut = self.shortened(lease, judged.grant);
        let (fate, because) = match drain {
            _ if judged.in_scope => (self.fate_in_scope(judged, drain), judged.refusal.as_ref()),
            Some(_) if !stays_refused => (Fate::Withdraw, None),
            Some(drain) if self.is_news(lease, drain, cause) => {
                (Fate::Drain(self.moved(lease, drain)), cause)
            }
            None if surplus.is_some() => (Fate::Drain(self.deadline(lease)), surplus),
            Some(_) | None => (Fate::Shorten(cut?), judged.refusal.as_ref()),
        };
        let shorten = match fate {
            Fate::Shorten(_) | Fate::Force => None,
            Fate::Drain(_) | Fate::Keep | Fate::Withdraw => cut,
        };
        Some(LeaseFate {
            id: lease.id,
            holder: lease.request.holder.name.clone(),
            fate,
            because: because.cloned().unwrap_or_default(),
            shorten,
            unenforceable: (fate.ends() || shorten.is_some()) && !self.can_enforce(lease),
        })
    }

    fn fate_in_scope(&self, judged: &Judged, drain: Option<&Drain>) -> Fate {
        let lease = judged.member.lease;
        match (self.to.reload.held, drain) {
            (Held::Force, _) => Fate::Force,
            (Held::Keep, None) => Fate::Keep,
            (Held::Keep, Some(_)) => Fate::Withdraw,
            (Held::Drain, Some(drain)) => Fate::Drain(self.moved(lease, drain)),
            (Held::Drain, None) => Fate::Drain(self.deadline(lease)),
        }
    }

    /// Whether a drain by an earlier policy now has another deadline or another cause.
    fn is_news(&self, lease: &Lease, drain: &Drain, cause: Option<&Refusal>) -> bool {
        self.moved(lease, drain) != drain.deadline
            || cause.is_some_and(|cause| cause.words() != drain.reason)
    }

    /// The deadline of a drain by an earlier policy. It moves only if the grace does, by the time of the
    /// first drain: a longer grace never brings it nearer, and a shorter one ends nobody before now.
    fn moved(&self, lease: &Lease, drain: &Drain) -> Deadline {
        let was = self.from.grace_for(&lease.request);
        let is = self.to.grace_for(&lease.request);
        let counted = drain.since.after(is);
        match is.cmp(&was) {
            core::cmp::Ordering::Equal => drain.deadline,
            core::cmp::Ordering::Greater => counted.max(drain.deadline),
            core::cmp::Ordering::Less => {
                let now = self.at.after(Ms(0));
                counted.max(now).min(drain.deadline)
            }
        }
    }

    fn deadline(&self, lease: &Lease) -> Deadline {
        self.at.after(self.grace(lease))
    }

    /// A lease whose class is gone still has the grace that its class had when it was granted.
    fn grace(&self, lease: &Lease) -> Ms {
        let was = self.from.grace_for(&lease.request);
        let longest = was.max(self.to.grace_for(&lease.request));
        longest.min(self.to.reload.grace_max)
    }

    /// The new end of a hold whose limit was cut: never sooner than the grace from now.
    fn shortened(&self, lease: &Lease, grant: &Grant) -> Option<Deadline> {
        let limit = self.to.max_hold_for(&lease.request)?;
        let was = self.from.max_hold_for(&lease.request);
        if was.is_some_and(|was| was <= limit) {
            return None;
        }
        let end = grant.at.after(limit).max(self.deadline(lease));
        grant
            .hold_until
            .is_none_or(|until| end < until)
            .then_some(end)
    }

    /// Whether the holder can be made to go, where its going has to be proven.
    fn can_enforce(&self, lease: &Lease) -> bool {
        let Some(process) = lease.process().filter(|_| self.to.reclaim.verify) else {
            return true;
        };
        match self.to.reclaim.signal {
            SignalRule::Always => true,
            SignalRule::Never => false,
            SignalRule::Supervised => process.supervised,
        }
    }

    fn denied(&self, earlier: Option<&Earlier>) -> Vec<(LeaseId, Refusal)> {
        let (mut before, mut after) = (Passed::new(), Passed::new());
        let waiters = self.leases.iter();
        let waiters = waiters.filter(|member| member.lease.waiting().is_some());
        let denial = |member: &Member| {
            let taken_over = earlier.and_then(|earlier| earlier.of_waiter(member.lease));
            let refused = match taken_over {
                Some(refusal) => refusal,
                None => self.refusal(self.to, member, &member.membership),
            };
            let refused = refused.or_else(|| self.hopeless(member, &mut before, &mut after));
            Some((member.lease.id, refused?))
        };
        waiters.filter_map(denial).collect()
    }

    /// Why a waiter can never be served under the new policy, if it could under the old.
    fn hopeless(
        &self,
        member: &Member,
        before: &mut Passed,
        after: &mut Passed,
    ) -> Option<Refusal> {
        let request = &member.lease.request;
        let serving = self.serving(self.to, request, after, |card| card.grantable, card_labels);
        let by_quota = self
            .to
            .hopeless_quota(&member.membership, request, &serving);
        if by_quota.is_some() || self.cards.is_empty() {
            return by_quota;
        }
        let reason = never_fits(request, &serving)?;
        let old = |card: &Card| card.grantable_before;
        let served = self.serving(self.from, request, before, old, |card| {
            &card.state.settings.labels
        });
        never_fits(request, &served).is_none().then(|| Refusal {
            rule: String::from(CAPACITY),
            reason,
        })
    }

    /// What can be granted of each device that may serve `request`, smallest first.
    fn serving(
        &self,
        policy: &Policy,
        request: &Request,
        passed: &mut Passed,
        grantable: impl Fn(&Card) -> u64,
        labels: for<'c> fn(&'c Card) -> &'c Vec<String>,
    ) -> Vec<u64> {
        for filter in &request.select.filters {
            if !passed.contains_key(filter) {
                let selects = |card: &&Card| {
                    let device: &Device = &card.state.device;
                    policy.rules.selects(filter, device, labels(card))
                };
                let cards = self.cards.values().filter(selects);
                let keys = cards.map(|card| card.state.device.key.clone()).collect();
                passed.insert(filter.clone(), keys);
            }
        }
        let passes = |card: &&Card| {
            let key = &card.state.device.key;
            let mut filters = request.select.filters.iter();
            card.state.device.leasable
                && request.select.names(&key.id)
                && filters.all(|filter| passed[filter].contains(key))
        };
        let mut serving: Vec<u64> = self.cards.values().filter(passes).map(grantable).collect();
        serving.sort_unstable();
        serving
    }

    /// Whether a lease may be asked to go for the sake of shares.
    pub(super) fn shrinks(&self) -> bool {
        self.to.reload.on_shrink == OnShrink::Drain
    }
}

impl<'a> Member<'a> {
    fn new(lease: &'a Lease, to: &Policy) -> Self {
        Self {
            lease,
            membership: to.membership(&lease.request),
        }
    }

    pub(super) fn sharer(&self) -> crate::policy::TenantKey {
        sharer(&self.membership, &self.lease.request.holder.user)
    }
}

impl<'a> Card<'a> {
    fn new(state: &'a DeviceState, from: &Policy, to: &'a Policy) -> Self {
        let settings = to.device_settings(&state.device);
        let before = from.device_settings(&state.device);
        Self {
            state,
            grantable_before: state.device.memory_total.saturating_sub(before.reserve),
            grantable: state.device.memory_total.saturating_sub(settings.reserve),
            labels: settings.labels,
            drain: to.drain_of(&state.device),
        }
    }

    /// Whether the old policy drained it as well.
    fn was_drained(&self, from: &Policy) -> bool {
        from.drain_of(&self.state.device).is_some()
    }
}

fn card_labels<'c>(card: &'c Card) -> &'c Vec<String> {
    &card.labels
}

impl Fate {
    /// Whether the lease is over by it at some time.
    fn ends(self) -> bool {
        match self {
            Self::Drain(_) | Self::Force | Self::Shorten(_) => true,
            Self::Keep | Self::Withdraw => false,
        }
    }
}

/// What an earlier plan said, by lease.
struct Earlier<'p> {
    revision: u64,
    held: BTreeMap<LeaseId, &'p LeaseFate>,
    denied: BTreeMap<LeaseId, &'p Refusal>,
}

impl<'p> Earlier<'p> {
    fn new(planned: &'p Planned) -> Self {
        let held = planned.plan.held.iter().map(|fate| (fate.id, fate));
        let denied = planned.plan.denied.iter().map(|(id, why)| (*id, why));
        Self {
            revision: planned.revision,
            held: held.collect(),
            denied: denied.collect(),
        }
    }

    /// What the rules have newly against a lease that did not change since; `None` if that has to be found.
    fn of_held(&self, lease: &Lease) -> Option<Option<Refusal>> {
        self.knows(lease)?;
        match self.held.get(&lease.id) {
            // It is refused as it was before, and so not by this plan.
            Some(fate)
                if matches!(fate.fate, Fate::Shorten(_)) && !fate.because.rule.is_empty() =>
            {
                None
            }
            fate => taken_over(fate.map(|fate| &fate.because)),
        }
    }

    fn of_waiter(&self, lease: &Lease) -> Option<Option<Refusal>> {
        self.knows(lease)?;
        taken_over(self.denied.get(&lease.id).copied())
    }

    fn knows(&self, lease: &Lease) -> Option<()> {
        (lease.revision <= self.revision).then_some(())
    }
}

/// A refusal by rules as it was found; what follows from devices and shares is found anew.
fn taken_over(refusal: Option<&Refusal>) -> Option<Option<Refusal>> {
    let derived = |rule: &str| {
        rule == CAPACITY
            || [DEVICE, QUOTA, RESERVE]
                .iter()
                .any(|word| rule.starts_with(word))
    };
    match refusal {
        Some(refusal) if derived(&refusal.rule) => None,
        Some(refusal) if refusal.rule.is_empty() => Some(None),
        refusal => Some(refusal.cloned()),
    }
}

fn is_over(lease: &Lease) -> bool {
    matches!(lease.phase, Phase::Ended(_))
}
