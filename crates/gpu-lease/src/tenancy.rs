//! Who belongs to which tenant, what tenants and users hold together, and what quotas leave them.
//!
//! What is being reclaimed counts as held: its memory is not free yet.

use alloc::borrow::Cow;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use core::fmt;

use crate::ids::LeaseId;
use crate::lease::{Grant, Lease, Phase};
use crate::plan::Refusal;
use crate::policy::{Policy, Share, Standing, Tenant, TenantKey};
use crate::request::{Amount, Request};
use crate::size::Bytes;

/// The tenant of a request, or why it cannot have the one that it claims.
pub(crate) type Membership = Result<Option<TenantKey>, Refusal>;

impl Policy {
    /// The tenant that `request` belongs to under this policy.
    pub(crate) fn membership(&self, request: &Request) -> Membership {
        if self.tenants.is_empty() {
            return Ok(None);
        }
        let place = match request.holder.tenant_found {
            true => self.rules.tenant(&unclaimed(request))?,
            false => self.rules.tenant(request)?,
        };
        let tenant = place.and_then(|place| self.tenants.get(place));
        Ok(tenant.map(|tenant| tenant.key_of(&request.holder.user)))
    }

    /// Writes down the tenant of a request that claims none.
    pub(crate) fn find_tenant(&self, request: &mut Request) {
        let membership = self.membership(request);
        if let Cow::Owned(found) = as_member(request, &membership) {
            *request = found;
        }
    }

    /// The tenant behind `key`; a user without a tenant has none.
    pub(crate) fn tenant_of(&self, key: &TenantKey) -> Option<&Tenant> {
        self.tenants.iter().find(|tenant| tenant.name == key.name)
    }

    /// Who a lease counted as when it was granted, by what it says alone: arrival wrote its tenant down.
    pub(crate) fn sharer_on_record(&self, request: &Request) -> TenantKey {
        let user = &request.holder.user;
        let claimed = request.holder.tenant.as_ref();
        let tenant = claimed.and_then(|name| self.tenants.iter().find(|t| t.name == *name));
        tenant.map_or_else(|| by_user(user), |tenant| tenant.key_of(user))
    }

    /// The limit that `request` exceeds on an idle host, if one does. `smallest` is as [`least_share`] takes it.
    pub(crate) fn hopeless_quota(
        &self,
        membership: &Membership,
        request: &Request,
        smallest: &[u64],
    ) -> Option<Refusal> {
        let key = membership.as_ref().ok()?.as_ref()?;
        let least = least_share(request, smallest);
        let limit = self.tenant_of(key)?.limit_on(Share::default(), least)?;
        Some(Refusal {
            rule: format!("tenant {}", key.name),
            reason: format!("{limit}; this request alone needs {}", limit.of(least)),
        })
    }
}

/// `request` as the rules of a policy see it where it has this membership: with the tenant found for it, if it
/// claims none.
pub(crate) fn as_member<'r>(request: &'r Request, membership: &Membership) -> Cow<'r, Request> {
    let holder = &request.holder;
    let claims = holder.tenant.is_some() && !holder.tenant_found;
    let found = membership.as_ref().ok().and_then(Option::as_ref);
    let found = found.map(|key| &key.name);
    if claims || found == holder.tenant.as_ref() {
        return Cow::Borrowed(request);
    }
    let mut seen = request.clone();
    seen.holder.tenant_found = found.is_some();
    seen.holder.tenant = found.cloned();
    Cow::Owned(seen)
}

fn unclaimed(request: &Request) -> Request {
    let mut request = request.clone();
    request.holder.tenant = None;
    request.holder.tenant_found = false;
    request
}

/// Who a request counts as in a fair share.
pub(crate) fn sharer(membership: &Membership, user: &str) -> TenantKey {
    match membership {
        Ok(Some(key)) => key.clone(),
        Ok(None) | Err(_) => by_user(user),
    }
}

fn by_user(user: &str) -> TenantKey {
    TenantKey {
        name: String::new(),
        user: Some(user.into()),
    }
}

/// The least that `request` takes. A whole device counts with what can be granted of it; `smallest` is that
/// of each device that may serve the request, smallest first, and read for whole devices only.
pub(crate) fn least_share(request: &Request, smallest: &[u64]) -> Share {
    let memory = match request.amount {
        Amount::Memory(bytes) => bytes.saturating_mul(request.devices.into()),
        Amount::Exclusive => sum(smallest.iter().take(request.devices as usize)),
    };
    Share {
        leases: 1,
        devices: request.devices,
        memory,
    }
}

pub(crate) fn sum<'a>(amounts: impl Iterator<Item = &'a u64>) -> u64 {
    amounts.fold(0, |sum, amount| sum.saturating_add(*amount))
}

/// A limit of a tenant; shown as `may hold 2 devices`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Devices(u32),
    Leases(u32),
    Memory(u64),
}

impl Limit {
    /// What of `share` it is about, beside a sentence that says of what: `2`, `12 GiB`.
    pub(crate) fn amount_of(self, share: Share) -> String {
        match self {
            Self::Devices(_) => format!("{}", share.devices),
            Self::Leases(_) => format!("{}", share.leases),
            Self::Memory(_) => self.of(share),
        }
    }

    /// What of `share` it is about, in words.
    pub(crate) fn of(self, share: Share) -> String {
        match self {
            Self::Devices(_) => count(share.devices, "device"),
            Self::Leases(_) => count(share.leases, "lease"),
            Self::Memory(_) => format!("{}", Bytes(share.memory)),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = match *self {
            Self::Devices(most) => count(most, "device"),
            Self::Leases(most) => count(most, "lease"),
            Self::Memory(most) => format!("{}", Bytes(most)),
        };
        write!(f, "may hold {most}")
    }
}

fn count(number: u32, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

impl Tenant {
    pub(crate) fn key_of(&self, user: &str) -> TenantKey {
        TenantKey {
            name: self.name.clone(),
            user: self.per_user.then(|| user.into()),
        }
    }

    /// The limit that does not leave `wanted` beside `held`, if one does not.
    pub(crate) fn limit_on(&self, held: Share, wanted: Share) -> Option<Limit> {
        let both = held.plus(wanted);
        let devices = self.max_devices.filter(|most| both.devices > *most);
        let memory = self.max_memory.filter(|most| both.memory > *most);
        let leases = self.max_leases.filter(|most| both.leases > *most);
        devices
            .map(Limit::Devices)
            .or(memory.map(Limit::Memory))
            .or(leases.map(Limit::Leases))
    }

    /// The limit that `held` exceeds, if one is exceeded.
    pub(crate) fn exceeded(&self, held: Share) -> Option<Limit> {
        self.limit_on(held, Share::default())
    }
}

impl Share {
    /// What `grant` takes.
    pub(crate) fn of(grant: &Grant) -> Self {
        Self {
            leases: 1,
            devices: u32::try_from(grant.allocations.len()).unwrap_or(u32::MAX),
            memory: grant.memory(),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            leases: self.leases.saturating_add(other.leases),
            devices: self.devices.saturating_add(other.devices),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            leases: self.leases.saturating_sub(other.leases),
            devices: self.devices.saturating_sub(other.devices),
            memory: self.memory.saturating_sub(other.memory),
        }
    }
}

/// What is held and who waits, by user and by who counts as one in a fair share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census {
    all: Share,
    waiting: u32,
    users: BTreeMap<String, Share>,
    sharers: BTreeMap<TenantKey, Tally>,
}

/// What one tenant has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) held: Share,
    pub(crate) waiting: u32,
    /// Those that hold something.
    pub(crate) holders: BTreeSet<LeaseId>,
}

impl Census {
    pub(crate) fn add(&mut self, lease: &Lease, sharer: &TenantKey) {
        if let Phase::Waiting(_) = &lease.phase {
            self.waiting += 1;
            self.sharers.entry(sharer.clone()).or_default().waiting += 1;
        }
        let Some(grant) = lease.occupying() else {
            return;
        };
        let share = Share::of(grant);
        self.all = self.all.plus(share);
        let user = lease.request.holder.user.clone();
        let of_user = self.users.entry(user).or_default();
        *of_user = of_user.plus(share);
        let tally = self.sharers.entry(sharer.clone()).or_default();
        tally.held = tally.held.plus(share);
        tally.holders.insert(lease.id);
    }

    pub(crate) fn remove(&mut self, lease: &Lease, sharer: &TenantKey) {
        let tally = self.sharers.entry(sharer.clone()).or_default();
        if let Phase::Waiting(_) = &lease.phase {
            self.waiting = self.waiting.saturating_sub(1);
            tally.waiting = tally.waiting.saturating_sub(1);
        }
        if let Some(grant) = lease.occupying() {
            let share = Share::of(grant);
            tally.held = tally.held.minus(share);
            tally.holders.remove(&lease.id);
            self.all = self.all.minus(share);
            self.leave(&lease.request.holder.user, share);
        }
        if self.tally(sharer).is_some_and(Tally::is_empty) {
            self.sharers.remove(sharer);
        }
    }

    fn leave(&mut self, user: &str, share: Share) {
        if let Some(of_user) = self.users.get_mut(user) {
            *of_user = of_user.minus(share);
            if of_user.leases == 0 {
                self.users.remove(user);
            }
        }
    }

    pub(crate) fn tally(&self, sharer: &TenantKey) -> Option<&Tally> {
        self.sharers.get(sharer)
    }

    pub(crate) fn held(&self, sharer: &TenantKey) -> Share {
        self.tally(sharer)
            .map(|tally| tally.held)
            .unwrap_or_default()
    }

    pub(crate) fn sharers(&self) -> impl Iterator<Item = &TenantKey> {
        self.sharers.keys()
    }

    /// What a rule sees of the books that decides about `lease`, which is among them.
    pub(crate) fn standing_without(
        &self,
        lease: &Lease,
        membership: &Membership,
        grantable: u64,
    ) -> Standing {
        let mine = lease.occupying().map(Share::of).unwrap_or_default();
        let waits = u32::from(lease.waiting().is_some());
        let all = self.standing(&lease.request.holder.user, membership, grantable);
        Standing {
            held: all.held.minus(mine),
            waiting: all.waiting.saturating_sub(waits),
            user: all.user.minus(mine),
            tenant: all.tenant.minus(mine),
            grantable,
        }
    }

    /// The same for a request of `user` that is not among them.
    pub(crate) fn standing(&self, user: &str, membership: &Membership, grantable: u64) -> Standing {
        let user = self.users.get(user).copied().unwrap_or_default();
        Standing {
            held: self.all,
            grantable,
            waiting: self.waiting,
            user,
            tenant: match membership {
                Ok(Some(key)) => self.held(key),
                Ok(None) | Err(_) => user,
            },
        }
    }
}

impl Tally {
    fn is_empty(&self) -> bool {
        self.waiting == 0 && self.holders.is_empty()
    }
}
