//! What leases held, hour by hour.
//!
//! It is counted up to an end by the commit that ends the lease, and of leases that are still held once an hour,
//! by a commit that also says until when that is. So whatever happens nothing is counted twice or left out, and
//! an end touches an hour or two however long the lease was held.

use std::collections::BTreeMap;

use gpu_lease::{At, EndReason, Grant, Lease, Phase, Policy, WallMs};
use gpu_store::{Hour, Usage, UsageKey, UsageRow};

/// What usage is counted by.
#[derive(Clone, Copy, Debug)]
pub struct UsageBasis<'a> {
    /// What was held until then is in the rows of the store.
    pub counted: Option<At>,
    /// The host was not booted since.
    pub same_boot: bool,
    /// Tenants are those that it knows: what else a request called its tenant, nobody verified.
    pub policy: Option<&'a Policy>,
}

/// Usage that adds up.
#[derive(Clone, Debug, Default)]
pub(crate) struct UsageSums(BTreeMap<UsageKey, Usage>);

impl UsageSums {
    /// Counts what `lease` held, if it does so no longer and, as it was `before`, still did.
    pub(crate) fn count_end(
        &mut self,
        before: Option<&Lease>,
        lease: &Lease,
        basis: &UsageBasis<'_>,
    ) {
        let (Some((end, reason)), Some(grant)) = (end(lease), lease.grant()) else {
            return;
        };
        if before.is_some_and(|before| before.end_reason().is_some()) {
            return;
        }
        let basis = UsageBasis {
            same_boot: reason != EndReason::HostRebooted,
            ..*basis
        };
        self.add(rows(lease, grant, end, &basis));
    }

    /// Counts what `lease` holds until `now`.
    pub(crate) fn count_held(&mut self, lease: &Lease, now: At, basis: &UsageBasis<'_>) {
        self.add(usage_so_far(lease, now, basis));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, rows: Vec<UsageRow>) {
        for row in rows {
            *self.0.entry(row.key).or_default() += row.usage;
        }
    }

    /// The rows, in the order of their keys.
    pub(crate) fn into_rows(self) -> Vec<UsageRow> {
        let rows = self.0.into_iter();
        rows.map(|(key, usage)| UsageRow { key, usage }).collect()
    }
}

/// What `lease` holds and has held until `now` that the store does not have yet. Nothing if it holds nothing.
pub fn usage_so_far(lease: &Lease, now: At, basis: &UsageBasis<'_>) -> Vec<UsageRow> {
    let grant = lease.held();
    grant.map_or_else(Vec::new, |grant| rows(lease, grant, now, basis))
}

/// When its holder had it no longer, and why: what is being reclaimed is nobody's.
fn end(lease: &Lease) -> Option<(At, EndReason)> {
    match &lease.phase {
        Phase::Reclaiming(_, reclaim) => Some((reclaim.since, reclaim.reason)),
        Phase::Ended(ending) => Some((ending.at, ending.reason)),
        Phase::Waiting(_) | Phase::Held(_) => None,
    }
}

fn rows(lease: &Lease, grant: &Grant, end: At, basis: &UsageBasis<'_>) -> Vec<UsageRow> {
    let (from, to) = interval(grant, end, basis);
    let holder = &lease.request.holder;
    let tenant = holder.tenant.as_ref();
    let tenant = tenant.filter(|name| basis.policy.is_some_and(|policy| knows(policy, name)));
    let mut rows = Vec::new();
    for (hour, held_ms) in hours(from, to) {
        rows.extend(grant.allocations.iter().map(|part| UsageRow {
            key: UsageKey {
                hour,
                user: holder.user.clone(),
                tenant: tenant.cloned(),
                device: part.device.clone(),
            },
            usage: Usage {
                held_ms,
                byte_ms: u128::from(part.memory) * u128::from(held_ms),
            },
        }));
    }
    rows
}

fn knows(policy: &Policy, tenant: &str) -> bool {
    policy.tenants.iter().any(|known| known.name == tenant)
}

/// Within a boot its length is known, whatever the civil clock did meanwhile, and placed before its end. A
/// boot ends what was held at a time that nobody saw: not after the last deadline of the lease.
fn interval(grant: &Grant, end: At, basis: &UsageBasis<'_>) -> (WallMs, WallMs) {
    // In the millisecond of the grant the civil clock may have been set: the later time never counts too much.
    let counted = basis
        .counted
        .filter(|counted| (counted.boot, counted.wall) > (grant.at.boot, grant.at.wall));
    let from = counted.unwrap_or(grant.at);
    match basis.same_boot {
        true => {
            let length = end.boot - from.boot;
            (WallMs(end.wall.0.saturating_sub(length.0)), end.wall)
        }
        false => (from.wall, end.wall.min(grant.lasts_until().wall)),
    }
}

/// The hours from `from` to `to` that are kept, with how much of each.
fn hours(from: WallMs, to: WallMs) -> impl Iterator<Item = (Hour, u64)> {
    let first = Hour::of(from).max(Hour::of(to).oldest_kept());
    let hours = std::iter::successors(Some(first), |hour| Some(hour.next()));
    hours
        .take_while(move |hour| hour.start() < to)
        .map(move |hour| (hour, overlap(hour, from, to)))
        .filter(|(_, held_ms)| *held_ms > 0)
}

fn overlap(hour: Hour, from: WallMs, to: WallMs) -> u64 {
    let (begin, end) = (hour.start().max(from), hour.next().start().min(to));
    end.0.saturating_sub(begin.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gpu_lease::{At, BootMs, Deadline, Fence, Grant, WallMs};
    use gpu_store::{Hour, USAGE_KEPT_HOURS};

    use super::{UsageBasis, hours, interval};

    const HOUR: u64 = 3_600_000;

    fn parts(from: u64, to: u64) -> Vec<(u64, u64)> {
        let parts = hours(WallMs(from), WallMs(to));
        parts.map(|(Hour(hour), held_ms)| (hour, held_ms)).collect()
    }

    fn at(boot: u64, wall: u64) -> At {
        At {
            boot: BootMs(boot),
            wall: WallMs(wall),
        }
    }

    /// Held from 100 on by both clocks, for as long as it is not renewed until 1000 by the civil one.
    fn grant() -> Grant {
        Grant {
            fence: Fence(1),
            at: at(100, 100),
            generation: 1,
            allocations: Vec::new(),
            expires: Deadline {
                boot: BootMs(1000),
                wall: WallMs(9000),
            },
            hold_until: None,
            renewed: false,
            loading: false,
            unresponsive: false,
            drains: BTreeMap::new(),
        }
    }

    #[test]
    fn what_another_boot_ended_counts_from_where_it_was_counted_last() {
        for (counted, from) in [
            (None, 100),
            (Some(at(50, 50)), 100),
            (Some(at(500, 500)), 500),
            // The civil clock was set within the millisecond of the grant.
            (Some(at(100, 8000)), 8000),
            (Some(at(100, 20)), 100),
        ] {
            let basis = UsageBasis {
                counted,
                same_boot: false,
                policy: None,
            };
            let counts = interval(&grant(), at(7, 50_000), &basis);
            assert_eq!(counts, (WallMs(from), WallMs(9000)), "{counted:?}");
        }
    }

    #[test]
    fn a_time_is_split_at_the_hours() {
        assert_eq!(parts(5, 5), []);
        assert_eq!(parts(9, 5), [], "a clock that was set back");
        assert_eq!(parts(HOUR - 1, HOUR + 2), [(0, 1), (1, 2)]);
        assert_eq!(parts(HOUR, 2 * HOUR), [(1, HOUR)]);
        assert_eq!(
            parts(HOUR / 2, 3 * HOUR),
            [(0, HOUR / 2), (1, HOUR), (2, HOUR)]
        );
    }

    #[test]
    fn what_is_too_old_is_not_counted() {
        let all = parts(0, 10_000 * HOUR + 7);
        assert_eq!(all.len() as u64, USAGE_KEPT_HOURS);
        assert_eq!(all.last(), Some(&(10_000, 7)));
        assert_eq!(
            parts(0, u64::MAX).len() as u64,
            USAGE_KEPT_HOURS,
            "a clock that is mad"
        );
    }
}
