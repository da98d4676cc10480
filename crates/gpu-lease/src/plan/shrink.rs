//! Whom a smaller quota or a larger reserve has no room for.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::Refusal;
use super::planner::{Judged, Member, Planner, QUOTA, RESERVE};
use crate::ids::{DeviceKey, LeaseId};
use crate::lease::{DrainSource, Lease};
use crate::policy::{Held, Policy, Share, TenantKey};
use crate::size::Bytes;
use crate::tenancy::{Census, sharer};

/// The leases that have to go, each with the reason.
type Surplus = BTreeMap<LeaseId, Refusal>;

/// The newest leases that may be asked to go, until what is left fits: by tenant first, then by device.
/// Whoever is going anyway does not count.
pub(super) fn surplus(planner: &Planner, judged: &[Judged]) -> Surplus {
    let stay = judged.iter().filter(|judged| !is_going(planner, judged));
    let mut stay: Vec<&Judged> = stay.collect();
    stay.sort_by_key(|judged| Reverse(judged.grant.fence));
    let mut surplus = Surplus::new();
    let mut before = Before::new(planner);
    over_quota(planner, &stay, &mut before, &mut surplus);
    over_reserve(planner, &stay, &mut surplus);
    surplus
}

/// Whether a lease goes whatever the shares are: it is refused and has to go, or others ask it to.
fn is_going(planner: &Planner, judged: &Judged) -> bool {
    let by_policy = judged.grant.drains.contains_key(&DrainSource::Policy);
    let asked_by_others = judged.grant.drains.len() > usize::from(by_policy);
    let by_scope = judged.in_scope && planner.to.reload.held != Held::Keep;
    let stays_asked = judged.refusal.is_some() || judged.keeps_drain;
    asked_by_others || by_scope || stays_asked && by_policy && !judged.in_scope
}

fn over_quota(planner: &Planner, stay: &[&Judged], before: &mut Before, surplus: &mut Surplus) {
    let mut groups: BTreeMap<&TenantKey, Vec<&Judged>> = BTreeMap::new();
    for judged in stay {
        if let Ok(Some(key)) = &judged.member.membership {
            groups.entry(key).or_default().push(judged);
        }
    }
    for (key, group) in groups {
        let Some(tenant) = planner.to.tenant_of(key) else {
            continue;
        };
        let shares = group.iter().map(|judged| Share::of(judged.grant));
        let mut left = shares.fold(Share::default(), Share::plus);
        for judged in group {
            let Some(limit) = tenant.exceeded(left) else {
                break;
            };
            if may_go(planner, judged, || before.fitted(judged.member.lease)) {
                left = left.minus(Share::of(judged.grant));
                let refusal = Refusal {
                    rule: format!("{QUOTA}{key}"),
                    reason: format!("it {limit}; the newest go first"),
                };
                surplus.insert(judged.member.lease.id, refusal);
            }
        }
    }
}

fn over_reserve(planner: &Planner, stay: &[&Judged], surplus: &mut Surplus) {
    let mut groups: BTreeMap<&DeviceKey, Vec<(&Judged, u64)>> = BTreeMap::new();
    let rest = stay.iter();
    for judged in rest.filter(|judged| !surplus.contains_key(&judged.member.lease.id)) {
        // Whoever is alone has all there is.
        for part in judged
            .grant
            .allocations
            .iter()
            .filter(|part| !part.exclusive)
        {
            let group = groups.entry(&part.device).or_default();
            group.push((judged, part.memory));
        }
    }
    let granted = granted(planner);
    for (key, group) in groups {
        let Some(card) = planner.cards.get(key) else {
            continue;
        };
        let granted = granted.get(key).copied().unwrap_or(0);
        let fitted = granted <= card.grantable_before;
        let stays = |(judged, _): &&(&Judged, u64)| !surplus.contains_key(&judged.member.lease.id);
        let group: Vec<_> = group.iter().filter(stays).copied().collect();
        let memory = group.iter().map(|(_, memory)| *memory);
        let mut left = memory.fold(0, u64::saturating_add);
        for (judged, memory) in group {
            if left <= card.grantable {
                break;
            }
            if may_go(planner, judged, || fitted) {
                left = left.saturating_sub(memory);
                let refusal = Refusal {
                    rule: format!("{RESERVE}{key}"),
                    reason: format!(
                        "{} are left to grant; the newest go first",
                        Bytes(card.grantable)
                    ),
                };
                surplus.insert(judged.member.lease.id, refusal);
            }
        }
    }
}

/// Whether a lease may be asked to go, or is asked already, because there is no room for it.
fn may_go(planner: &Planner, judged: &Judged, fitted: impl FnOnce() -> bool) -> bool {
    match judged.grant.drains.contains_key(&DrainSource::Policy) {
        // What the rules say of it is its fate.
        _ if judged.in_scope => false,
        // A drain for want of room goes on; one by a rule that is gone is withdrawn.
        true => planner.was_allowed(judged.member),
        false => planner.shrinks() && fitted(),
    }
}

/// Bytes granted to leases that share each device.
fn granted<'a>(planner: &Planner<'a>) -> BTreeMap<&'a DeviceKey, u64> {
    let mut granted: BTreeMap<&DeviceKey, u64> = BTreeMap::new();
    for member in &planner.leases {
        let lease: &'a Lease = member.lease;
        let parts = lease.occupying().map(|grant| grant.allocations.as_slice());
        for part in parts.unwrap_or(&[]).iter().filter(|part| !part.exclusive) {
            let sum = granted.entry(&part.device).or_default();
            *sum = sum.saturating_add(part.memory);
        }
    }
    granted
}

/// Who was within the quotas of the old policy; counted when somebody asks.
struct Before<'p> {
    from: &'p Policy,
    leases: &'p [Member<'p>],
    census: Option<Census>,
}

impl<'p> Before<'p> {
    fn new<'a: 'p>(planner: &'p Planner<'a>) -> Self {
        Self {
            from: planner.from,
            leases: &planner.leases,
            census: None,
        }
    }

    fn fitted(&mut self, lease: &Lease) -> bool {
        let membership = self.from.membership(&lease.request);
        let Ok(Some(key)) = membership else {
            return true;
        };
        let census = self
            .census
            .get_or_insert_with(|| count(self.from, self.leases));
        let tenant = self.from.tenant_of(&key);
        tenant.is_none_or(|tenant| tenant.exceeded(census.held(&key)).is_none())
    }
}

fn count(policy: &Policy, leases: &[Member]) -> Census {
    let mut census = Census::default();
    for member in leases {
        let request = &member.lease.request;
        let sharer = sharer(&policy.membership(request), &request.holder.user);
        census.add(member.lease, &sharer);
    }
    census
}
