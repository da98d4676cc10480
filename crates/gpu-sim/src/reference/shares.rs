//! Tenants, what they hold, and what their quotas leave, counted anew whenever somebody asks.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use gpu_lease::{
    Amount, At, Blocker, BootMs, Cause, ENDED_KEPT_MS, Lease, Ms, Phase, Policy, QueueOrder,
    Refusal, Request, Share, Standing, Tenant, TenantKey, TenantStanding,
};

use super::{Card, Reference, is_waiting, occupied};

/// What a request for whole devices may take: of one device, of all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    pub(super) each: u64,
    pub(super) all: u64,
}

impl Reference {
    /// How every tenant stands.
    pub fn tenants(&self, at: At) -> Vec<TenantStanding> {
        let policy = &self.policy;
        let is_fair = policy.queue.order == QueueOrder::FairShare;
        if !is_fair && policy.tenants.is_empty() {
            return Vec::new();
        }
        let mut all: BTreeMap<TenantKey, TenantStanding> = BTreeMap::new();
        for tenant in policy.tenants.iter().filter(|tenant| !tenant.per_user) {
            let key = key(tenant, "");
            all.insert(key.clone(), nobody(policy, key));
        }
        for lease in self.leases.iter().filter(|lease| !is_over(lease)) {
            let key = counts_as(policy, &lease.request);
            let entry = all.entry(key.clone()).or_insert(nobody(policy, key));
            entry.waiting += u32::from(is_waiting(lease));
            entry.held = add(entry.held, taken(lease));
        }
        for (key, had) in self.had_of_late(at) {
            let entry = all.entry(key.clone()).or_insert(nobody(policy, key));
            entry.used = had as u64;
        }
        let mut all: Vec<TenantStanding> = all.into_values().collect();
        // A trace of less than a byte-second is none.
        all.retain(|one| {
            let declared = policy.tenants.iter().find(|t| t.name == one.key.name);
            let is_idle = one.used == 0 && one.waiting == 0 && one.held == Share::default();
            let always = declared.is_some_and(|tenant| !tenant.per_user);
            (is_fair || declared.is_some()) && (always || !is_idle)
        });
        all
    }

    /// Byte-seconds by the formula, in floating point.
    pub(super) fn had_of_late(&self, at: At) -> BTreeMap<TenantKey, f64> {
        let look = at.boot.0 / 60_000 * 60_000;
        let half_life = self.policy.queue.half_life.0 as f64;
        let mut had = BTreeMap::new();
        for lease in &self.leases {
            let (grant, end) = match &lease.phase {
                Phase::Waiting(_) => continue,
                Phase::Held(grant) | Phase::Reclaiming(grant, _) => (grant, BootMs(look)),
                Phase::Ended(ending) => match &ending.grant {
                    Some(grant) => (grant, ending.at.boot),
                    None => continue,
                },
            };
            if end + ENDED_KEPT_MS <= BootMs(look) + Ms(60_000) {
                continue;
            }
            let (start, end) = (grant.at.boot.0, end.0.min(look));
            if start >= end {
                continue;
            }
            let ln_2 = std::f64::consts::LN_2;
            let length = -(-ln_2 * (end - start) as f64 / half_life).exp_m1();
            let since = (-ln_2 * (look - end) as f64 / half_life).exp();
            let memory: u64 = grant.allocations.iter().map(|part| part.memory).sum();
            let amount = memory as f64 * half_life / ln_2 * length * since / 1000.0;
            *had.entry(on_record(&self.policy, &lease.request))
                .or_insert(0.0) += amount;
        }
        had
    }

    /// Who of two goes first in a fair share, their priorities and arrival apart.
    pub(super) fn fairer(&self, a: &Lease, b: &Lease) -> Ordering {
        if self.policy.queue.order != QueueOrder::FairShare {
            return Ordering::Equal;
        }
        let [a, b] = [a, b].map(|lease| counts_as(&self.policy, &lease.request));
        let used = |key: &TenantKey| self.used.get(key).copied().unwrap_or(0);
        let held = |key: &TenantKey| self.share_of(key).memory;
        let weight = |key: &TenantKey| u128::from(weight(&self.policy, key));
        let by = |of: &dyn Fn(&TenantKey) -> u64| {
            let (left, right) = (u128::from(of(&a)), u128::from(of(&b)));
            (left * weight(&b)).cmp(&(right * weight(&a)))
        };
        by(&used).then(by(&held))
    }

    /// The books as a rule sees them that decides about a request, which may be there already.
    pub(super) fn standing(&self, request: &Request, lease: Option<&Lease>) -> Standing {
        self.standing_by(&self.policy, request, lease)
    }

    /// The same as `policy` counts tenants and reserves, wherever a rule looks.
    pub(super) fn standing_by(
        &self,
        policy: &Policy,
        request: &Request,
        lease: Option<&Lease>,
    ) -> Standing {
        let others = || {
            let is_other = |other: &&Lease| lease.is_none_or(|lease| lease.id != other.id);
            self.leases.iter().filter(is_other)
        };
        let sum = |wanted: &dyn Fn(&Lease) -> bool| {
            let mine = others().filter(|lease| wanted(lease)).map(taken);
            mine.fold(Share::default(), add)
        };
        let same_user = |other: &Lease| other.request.holder.user == request.holder.user;
        let mine = member(policy, request).ok().flatten();
        let same_tenant = |other: &Lease| match &mine {
            Some(key) => counts_as(policy, &other.request) == *key,
            None => same_user(other),
        };
        let cards = self.cards.iter().flatten();
        let grantable = cards
            .filter(|card| card.device.leasable)
            .map(|card| super::policy::grantable(policy, card));
        Standing {
            held: sum(&|_| true),
            grantable: grantable.sum(),
            waiting: u32::try_from(others().filter(|l| is_waiting(l)).count()).expect("few"),
            user: sum(&same_user),
            tenant: sum(&same_tenant),
        }
    }

    pub(super) fn share_of(&self, key: &TenantKey) -> Share {
        share_by(&self.policy, &self.leases, key)
    }

    /// What the quota leaves, or that it leaves too little.
    pub(super) fn allowance(&self, lease: &Lease) -> Result<Allowance, Cause> {
        let open = Allowance {
            each: u64::MAX,
            all: u64::MAX,
        };
        let Ok(Some(key)) = member(&self.policy, &lease.request) else {
            return Ok(open);
        };
        let Some(tenant) = tenant(&self.policy, &key) else {
            return Ok(open);
        };
        let held = self.share_of(&key);
        let sizes = self.sizes(&lease.request);
        let least = least(&lease.request, &sizes);
        if let Some((most, has)) = broken(tenant, add(held, least), held) {
            return Err(self.quota(&key, &most, &has));
        }
        match (lease.request.amount, tenant.max_memory) {
            (Amount::Exclusive, Some(most)) => {
                let left = most - held.memory;
                let others = lease.request.devices as usize - 1;
                let others: u64 = sizes.iter().take(others).sum();
                Ok(Allowance {
                    each: left.saturating_sub(others),
                    all: left,
                })
            }
            _ => Ok(open),
        }
    }

    pub(super) fn quota(&self, key: &TenantKey, most: &str, has: &str) -> Cause {
        let mut holders: Vec<Blocker> = Vec::new();
        for lease in &self.leases {
            if taken(lease).leases == 1 && counts_as(&self.policy, &lease.request) == *key {
                holders.push(Blocker {
                    lease: lease.id,
                    holder: lease.request.holder.name.clone(),
                    memory: taken(lease).memory,
                    until: self.known_end(lease).map(|(_, wall)| wall),
                });
            }
        }
        // Of what is said once.
        let has = match most.ends_with('B') {
            true => has,
            false => has.split(' ').next().expect("a number"),
        };
        holders.sort_by_key(|holder| (std::cmp::Reverse(holder.memory), holder.lease));
        Cause::Quota {
            tenant: Box::new(key.clone()),
            limit: format!("may hold {most} and holds {has}"),
            holders: holders.into(),
        }
    }

    /// What fits on each device that may serve a request, smallest first.
    pub(super) fn sizes(&self, request: &Request) -> Vec<u64> {
        let cards = self.cards.iter().flatten();
        let serving = cards.filter(|card| self.may_serve(card, request));
        let mut sizes: Vec<u64> = serving.map(|card| self.grantable(card)).collect();
        sizes.sort();
        sizes
    }

    pub(super) fn may_serve(&self, card: &Card, request: &Request) -> bool {
        super::policy::may_serve(&self.policy, card, request)
    }

    /// Refused because even an idle host has no room under the quota.
    pub(super) fn too_much_alone(&self, request: &Request) -> Option<Refusal> {
        too_much_alone(&self.policy, request, &self.sizes(request))
    }
}

pub(super) fn too_much_alone(policy: &Policy, request: &Request, sizes: &[u64]) -> Option<Refusal> {
    let key = member(policy, request).ok()??;
    let least = least(request, sizes);
    let (most, has) = broken(tenant(policy, &key)?, least, least)?;
    Some(Refusal {
        rule: format!("tenant {}", key.name),
        reason: format!("may hold {most}; this request alone needs {has}"),
    })
}

/// The tenant of a request under a policy.
pub(super) fn member(policy: &Policy, request: &Request) -> Result<Option<TenantKey>, Refusal> {
    if policy.tenants.is_empty() {
        return Ok(None);
    }
    let mut asked = request.clone();
    if request.holder.tenant_found {
        asked.holder.tenant = None;
        asked.holder.tenant_found = false;
    }
    let place = policy.rules.tenant(&asked)?;
    Ok(place.map(|place| key(&policy.tenants[place], &request.holder.user)))
}

/// The request with the tenant that a policy finds for it, where it claims none.
pub(super) fn with_tenant(policy: &Policy, request: &Request) -> Request {
    let mut request = request.clone();
    if request.holder.tenant.is_none() || request.holder.tenant_found {
        let found = member(policy, &request).ok().flatten();
        request.holder.tenant_found = found.is_some();
        request.holder.tenant = found.map(|key| key.name);
    }
    request
}

pub(super) fn counts_as(policy: &Policy, request: &Request) -> TenantKey {
    let of_user = TenantKey {
        name: String::new(),
        user: Some(request.holder.user.clone()),
    };
    member(policy, request).ok().flatten().unwrap_or(of_user)
}

/// By the name that arrival wrote down.
fn on_record(policy: &Policy, request: &Request) -> TenantKey {
    for tenant in &policy.tenants {
        if request.holder.tenant.as_ref() == Some(&tenant.name) {
            return key(tenant, &request.holder.user);
        }
    }
    TenantKey {
        name: String::new(),
        user: Some(request.holder.user.clone()),
    }
}

pub(super) fn tenant<'p>(policy: &'p Policy, key: &TenantKey) -> Option<&'p Tenant> {
    policy.tenants.iter().find(|tenant| tenant.name == key.name)
}

fn weight(policy: &Policy, key: &TenantKey) -> u32 {
    tenant(policy, key).map_or(1, |tenant| tenant.weight)
}

pub(super) fn share_by(policy: &Policy, leases: &[Lease], key: &TenantKey) -> Share {
    let mine = leases
        .iter()
        .filter(|lease| counts_as(policy, &lease.request) == *key);
    mine.map(taken).fold(Share::default(), add)
}

/// The limit that is broken by `both`, in words, and what `told` has of it.
pub(super) fn broken(tenant: &Tenant, both: Share, told: Share) -> Option<(String, String)> {
    let many = |count: u32, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let bytes = |amount: u64| gpu_lease::Bytes(amount).to_string();
    match (tenant.max_devices, tenant.max_memory, tenant.max_leases) {
        (Some(most), ..) if both.devices > most => {
            Some((many(most, "device"), many(told.devices, "device")))
        }
        (_, Some(most), _) if both.memory > most => Some((bytes(most), bytes(told.memory))),
        (.., Some(most)) if both.leases > most => {
            Some((many(most, "lease"), many(told.leases, "lease")))
        }
        _ => None,
    }
}

fn least(request: &Request, sizes: &[u64]) -> Share {
    let memory = match request.amount {
        Amount::Memory(bytes) => bytes * u64::from(request.devices),
        Amount::Exclusive => sizes.iter().take(request.devices as usize).sum(),
    };
    Share {
        leases: 1,
        devices: request.devices,
        memory,
    }
}

fn key(tenant: &Tenant, user: &str) -> TenantKey {
    TenantKey {
        name: tenant.name.clone(),
        user: tenant.per_user.then(|| user.to_string()),
    }
}

fn nobody(policy: &Policy, key: TenantKey) -> TenantStanding {
    TenantStanding {
        weight: weight(policy, &key),
        key,
        held: Share::default(),
        waiting: 0,
        used: 0,
    }
}

/// What a lease takes while it holds anything.
pub(super) fn taken(lease: &Lease) -> Share {
    let Some(grant) = occupied(lease) else {
        return Share::default();
    };
    Share {
        leases: 1,
        devices: u32::try_from(grant.allocations.len()).expect("few devices"),
        memory: grant.allocations.iter().map(|part| part.memory).sum(),
    }
}

pub(super) fn add(a: Share, b: Share) -> Share {
    Share {
        leases: a.leases + b.leases,
        devices: a.devices + b.devices,
        memory: a.memory + b.memory,
    }
}

fn is_over(lease: &Lease) -> bool {
    matches!(lease.phase, Phase::Ended(_))
}
