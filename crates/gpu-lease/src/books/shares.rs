//! What tenants and users have, derived from the leases and kept exact with them.
//!
//! Nothing of it is kept where the policy neither has tenants nor rules that look at the books nor a fair
//! share.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::{Books, ENDED_KEPT_MS};
use crate::command::TenantStanding;
use crate::fair::{LOOK_MS, decayed, last_look};
use crate::ids::LeaseId;
use crate::lease::{Grant, Lease, Phase};
use crate::plan::Refusal;
use crate::policy::{Policy, QueueOrder, Share, Standing, TenantKey, Verdict};
use crate::request::{Amount, Request};
use crate::tenancy::{Census, Limit, Membership, least_share, sharer, sum};
use crate::time::{At, BootMs, Ms};
use crate::why::{Blocker, Cause};

/// What each tenant had of late, in byte-seconds.
pub(super) type Used = BTreeMap<TenantKey, u64>;

/// The index.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    is_kept: bool,
    is_read: bool,
    census: Census,
    members: BTreeMap<LeaseId, Membership>,
    /// What was had at the last look; a function of the leases, so it may be made again at any time.
    looked: Option<(BootMs, Used)>,
}

/// What a quota leaves to a request for whole devices, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Of any one device.
    pub(super) each: u64,
    /// Of all of them.
    pub(super) all: u64,
}

impl Allowance {
    pub(super) const UNLIMITED: Self = Self {
        each: u64::MAX,
        all: u64::MAX,
    };
}

impl Shares {
    pub(super) fn of(policy: &Policy) -> Self {
        let is_read = policy.rules.reads_standing();
        let is_fair = policy.queue.order == QueueOrder::FairShare;
        Self {
            is_kept: is_read || is_fair || !policy.tenants.is_empty(),
            is_read,
            ..Self::default()
        }
    }

    /// Whether what is granted or refused to one can change what another is told.
    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    pub(super) fn add(&mut self, policy: &Policy, lease: &Lease) {
        if !self.is_kept {
            return;
        }
        if let Phase::Ended(_) = &lease.phase {
            self.members.remove(&lease.id);
            return;
        }
        let membership = self.members.entry(lease.id);
        let membership = membership.or_insert_with(|| policy.membership(&lease.request));
        self.census
            .add(lease, &sharer(membership, &lease.request.holder.user));
    }

    pub(super) fn take(&mut self, lease: &Lease) {
        if let Some(membership) = self.members.get(&lease.id) {
            let sharer = sharer(membership, &lease.request.holder.user);
            self.census.remove(lease, &sharer);
        }
    }

    pub(super) fn forget(&mut self, id: LeaseId) {
        self.members.remove(&id);
    }

    /// Forgets what was had of late: the times of leases were moved.
    pub(super) fn look_again(&mut self) {
        self.looked = None;
    }
}

impl Books {
    /// How every tenant stands: those of the policy, the users of a tenant that is one of each user, and
    /// in a fair share the users without a tenant.
    pub fn tenants(&self, at: At) -> Vec<TenantStanding> {
        if !self.shares.is_kept {
            return Vec::new();
        }
        let used = self.used(at);
        let is_fair = self.is_fair();
        let declared = self.policy.tenants.iter().filter(|tenant| !tenant.per_user);
        let mut keys: Vec<TenantKey> = declared.map(|tenant| tenant.key_of("")).collect();
        keys.extend(self.shares.census.sharers().chain(used.keys()).cloned());
        keys.retain(|key| is_fair || self.policy.tenant_of(key).is_some());
        keys.sort_unstable();
        keys.dedup();
        let standing = |key| self.tenant_standing(key, &used);
        keys.into_iter().map(standing).collect()
    }

    fn tenant_standing(&self, key: TenantKey, used: &Used) -> TenantStanding {
        let tally = self.shares.census.tally(&key);
        TenantStanding {
            weight: self.weight(&key),
            held: self.shares.census.held(&key),
            waiting: tally.map_or(0, |tally| tally.waiting),
            used: used.get(&key).copied().unwrap_or(0),
            key,
        }
    }

    fn weight(&self, key: &TenantKey) -> u32 {
        self.policy
            .tenant_of(key)
            .map_or(1, |tenant| tenant.weight.max(1))
    }

    pub(super) fn is_fair(&self) -> bool {
        self.policy.queue.order == QueueOrder::FairShare
    }

    /// Computes the index anew, after something changed that it depends on beside the leases.
    pub(super) fn recount(&mut self) {
        let mut shares = Shares::of(&self.policy);
        for lease in self.leases.values() {
            shares.add(&self.policy, lease);
        }
        self.shares = shares;
    }

    /// What everybody had of late, at the last look.
    pub(super) fn used(&self, at: At) -> Cow<'_, Used> {
        let look = last_look(at.boot);
        match &self.shares.looked {
            Some((looked, used)) if *looked == look => Cow::Borrowed(used),
            _ => Cow::Owned(self.used_until(look)),
        }
    }

    /// Looks at what everybody had of late, if that is due and anybody asks.
    pub(super) fn look(&mut self, at: At) {
        let look = last_look(at.boot);
        let is_due = self
            .shares
            .looked
            .as_ref()
            .is_none_or(|(looked, _)| *looked != look);
        if self.is_fair() && is_due {
            self.shares.looked = Some((look, self.used_until(look)));
        }
    }

    /// By the leases that are not forgotten before the next look.
    fn used_until(&self, look: BootMs) -> Used {
        let mut used: BTreeMap<TenantKey, u128> = BTreeMap::new();
        for lease in self.leases.values() {
            let Some(grant) = lease.grant() else { continue };
            let end = match &lease.phase {
                Phase::Ended(ending) => ending.at.boot,
                Phase::Waiting(_) | Phase::Held(_) | Phase::Reclaiming(..) => look,
            };
            let half_life = self.policy.queue.half_life;
            let had = decayed(grant.memory(), grant.at.boot, end, look, half_life);
            let is_recent = end + ENDED_KEPT_MS > look + Ms(LOOK_MS);
            if is_recent && had > 0 {
                let key = self.policy.sharer_on_record(&lease.request);
                let sum = used.entry(key).or_default();
                *sum = sum.saturating_add(had);
            }
        }
        let seconds = |had: u128| u64::try_from(had / 1000).unwrap_or(u64::MAX);
        used.into_iter()
            .map(|(key, had)| (key, seconds(had)))
            .collect()
    }

    /// Where `lease` stands in a fair share: what its tenant had of late and holds, each by its weight. The
    /// smaller, the sooner served.
    pub(super) fn fair_rank(&self, lease: &Lease, used: &Used) -> (u128, u128) {
        let key = sharer(&self.membership(lease), &lease.request.holder.user);
        let weight = u128::from(self.weight(&key));
        let by_weight = |amount: u64| (u128::from(amount) << 32) / weight;
        let used = used.get(&key).copied().unwrap_or(0);
        let held = self.shares.census.held(&key).memory;
        (by_weight(used), by_weight(held))
    }

    pub(super) fn membership(&self, lease: &Lease) -> Cow<'_, Membership> {
        match self.shares.members.get(&lease.id) {
            Some(known) => Cow::Borrowed(known),
            None => Cow::Owned(self.policy.membership(&lease.request)),
        }
    }

    /// What the policy says of `lease`, in view of everything else in the books.
    pub(super) fn verdict(&self, lease: &Lease, at: At) -> Verdict {
        let membership = self.membership(lease);
        let is_blind = self.shares.is_read && self.is_recovering();
        if is_blind && self.policy.knows(&lease.request, &membership) {
            // It waits anyway until the devices are known, and rules would see too little of the books.
            return Verdict::Allow;
        }
        let standing = self.standing(lease, &membership);
        self.policy
            .verdict(&lease.request, &membership, &standing, at.wall)
    }

    /// The rule that refuses `lease`, if one does. A lease that only has to wait is not refused.
    pub(super) fn refusal(&self, lease: &Lease, at: At) -> Option<Refusal> {
        self.verdict(lease, at).refusal()
    }

    /// The books without `lease`, as far as rules look at them.
    pub(super) fn standing(&self, lease: &Lease, membership: &Membership) -> Standing {
        if !self.leases.contains_key(&lease.id) {
            return self.standing_of_newcomer(&lease.request, membership);
        }
        let census = self.shares.is_read.then_some(&self.shares.census);
        let standing =
            census.map(|census| census.standing_without(lease, membership, self.grantable()));
        standing.unwrap_or_default()
    }

    /// The books as rules look at them that decide about a request which is not there yet.
    pub(super) fn standing_of_newcomer(
        &self,
        request: &Request,
        membership: &Membership,
    ) -> Standing {
        let user = &request.holder.user;
        let census = self.shares.is_read.then_some(&self.shares.census);
        let standing = census.map(|census| census.standing(user, membership, self.grantable()));
        standing.unwrap_or_default()
    }

    fn grantable(&self) -> u64 {
        let leasable = self.devices().filter(|state| state.device.leasable);
        leasable.fold(0, |sum, state| sum.saturating_add(state.grantable()))
    }

    /// What the quota of its tenant leaves to `lease`, or that it leaves too little.
    pub(super) fn allowance(&self, lease: &Lease) -> Result<Allowance, Cause> {
        let membership = self.membership(lease);
        let Ok(Some(key)) = &*membership else {
            return Ok(Allowance::UNLIMITED);
        };
        let Some(tenant) = self.policy.tenant_of(key) else {
            return Ok(Allowance::UNLIMITED);
        };
        let held = self.shares.census.held(key);
        let smallest = self.smallest(&lease.request);
        let least = least_share(&lease.request, &smallest);
        if let Some(limit) = tenant.limit_on(held, least) {
            return Err(quota(key, limit, held));
        }
        Ok(match (lease.request.amount, tenant.max_memory) {
            (Amount::Exclusive, Some(most)) => {
                let left = most.saturating_sub(held.memory);
                Allowance::within(left, lease.request.devices, &smallest)
            }
            (Amount::Exclusive | Amount::Memory(_), _) => Allowance::UNLIMITED,
        })
    }

    /// That the quota of its tenant has no memory left for the devices that `lease` could have.
    pub(super) fn out_of_memory(&self, lease: &Lease) -> Option<Cause> {
        let membership = self.membership(lease);
        let key = membership.as_ref().as_ref().ok()?.as_ref()?;
        let most = self.policy.tenant_of(key)?.max_memory?;
        let held = self.shares.census.held(key);
        Some(quota(key, Limit::Memory(most), held))
    }

    /// The rule by which `lease` exceeds a quota even alone.
    pub(super) fn hopeless_quota(&self, lease: &Lease) -> Option<Refusal> {
        let membership = self.membership(lease);
        let smallest = match &*membership {
            Ok(Some(_)) => self.smallest(&lease.request),
            Ok(None) | Err(_) => return None,
        };
        self.policy
            .hopeless_quota(&membership, &lease.request, &smallest)
    }

    /// What can be granted of each device that may serve a request for whole ones, smallest first.
    fn smallest(&self, request: &Request) -> Vec<u64> {
        if request.amount != Amount::Exclusive {
            return Vec::new();
        }
        let serving = self
            .devices()
            .filter(|state| self.may_serve(state, request));
        let mut smallest: Vec<u64> = serving.map(|state| state.grantable()).collect();
        smallest.sort_unstable();
        smallest
    }

    /// Who holds what `tenant` holds.
    pub(super) fn holders_of(&self, tenant: &TenantKey) -> Arc<[Blocker]> {
        let tally = self.shares.census.tally(tenant);
        let ids = tally.map(|tally| tally.holders.iter());
        let leases = ids.into_iter().flatten().map(|id| &self.leases[id]);
        let mut holders: Vec<Blocker> = leases
            .map(|lease| Blocker {
                lease: lease.id,
                holder: lease.request.holder.name.clone(),
                memory: lease.occupying().map_or(0, Grant::memory),
                until: lease.held().and_then(Grant::known_end).map(|end| end.wall),
            })
            .collect();
        holders.sort_by_key(|holder| (Reverse(holder.memory), holder.lease));
        holders.into()
    }
}

/// Who holds it is added where somebody asks.
fn quota(tenant: &TenantKey, limit: Limit, held: Share) -> Cause {
    Cause::Quota {
        tenant: Box::new(tenant.clone()),
        limit: format!("{limit} and holds {}", limit.amount_of(held)),
        holders: Arc::default(),
    }
}

impl Allowance {
    /// What `left` bytes leave for each of so many devices, if the others are the smallest ones.
    fn within(left: u64, devices: u32, smallest: &[u64]) -> Self {
        let others = smallest.iter().take((devices as usize).saturating_sub(1));
        Self {
            each: left.saturating_sub(sum(others)),
            all: left,
        }
    }
}
