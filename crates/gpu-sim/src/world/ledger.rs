//! What the rows of usage must say: every millisecond that somebody held a part of a device is counted, once, by
//! the commit that ends it or, of what is still held, by one that says until when that is.
//!
//! The rules are said here again, by what is known of each lease, not of all of them together.

use std::collections::BTreeMap;

use gpu_lease::{At, EndReason, Grant, Lease, LeaseId, Phase, WallMs};
use gpu_store::{Batch, Hour, Usage, UsageKey, UsageRow};

use super::law::Law;
use super::oracle::{last_end, require};
use super::rows::Rows;

/// An hour in ms.
const HOUR: u64 = 3_600_000;
/// Older hours are forgotten.
const KEPT_HOURS: u64 = 35 * 24;

type Checked = Result<(), String>;
type Sums = BTreeMap<UsageKey, Usage>;

/// The usage, row by row.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    sums: Sums,
    /// Everybody who holds something, and from when on that is not counted yet.
    since: BTreeMap<LeaseId, At>,
}

impl Ledger {
    /// One write, made at `at`, under the policy `before` it and the one `after` it; `rows` are those before it.
    pub(super) fn see(
        &mut self,
        batch: &Batch<'_>,
        rows: &Rows,
        at: At,
        (before, after): (&Law, &Law),
    ) -> Checked {
        let mut expected = Sums::new();
        for lease in &batch.leases {
            let row = rows.leases.get(&lease.id);
            let Some((end, reason)) = self.ends(row, lease, at)? else {
                continue;
            };
            let since = self.since.remove(&lease.id).ok_or("held and not known")?;
            let (law, span) = match (reason, lease.grant()) {
                // That a host was booted is found out before anything is switched.
                (EndReason::HostRebooted, Some(grant)) => (before, across_boots(since, end, grant)),
                _ => (after, within_a_boot(since, end)),
            };
            add(&mut expected, lease, span, law);
        }
        if let Some(counted) = batch.usage_counted {
            self.count_held(&mut expected, batch, rows, (at, counted), after)?;
        }
        self.take(batch, expected)
    }

    /// When and why this write ends what the holder of `lease` had.
    fn ends(
        &mut self,
        before: Option<&Lease>,
        lease: &Lease,
        at: At,
    ) -> Result<Option<(At, EndReason)>, String> {
        if before.is_none_or(|before| before.grant().is_none())
            && let Some(grant) = lease.grant()
        {
            let now = grant.at == at;
            require(now, || {
                format!("granted at another time than {at:?}: {lease:?}")
            })?;
            self.since.insert(lease.id, at);
        }
        let ended = match &lease.phase {
            Phase::Reclaiming(_, reclaim) => Some((reclaim.since, reclaim.reason)),
            Phase::Ended(ending) => Some((ending.at, ending.reason)),
            Phase::Waiting(_) | Phase::Held(_) => None,
        };
        let Some((end, _)) = ended.filter(|_| self.since.contains_key(&lease.id)) else {
            return Ok(None);
        };
        require(end == at, || {
            format!("ended at another time than {at:?}: {lease:?}")
        })?;
        Ok(ended)
    }

    /// What is still held is counted until now.
    fn count_held(
        &mut self,
        expected: &mut Sums,
        batch: &Batch<'_>,
        rows: &Rows,
        (at, counted): (At, At),
        law: &Law,
    ) -> Checked {
        require(counted == at, || {
            format!("usage is counted until {counted:?} at {at:?}")
        })?;
        let changed: BTreeMap<_, _> = batch
            .leases
            .iter()
            .map(|lease| (lease.id, *lease))
            .collect();
        for (id, since) in &mut self.since {
            let lease = changed.get(id).copied().or_else(|| rows.leases.get(id));
            let lease = lease.ok_or_else(|| format!("{id} holds something and is no row"))?;
            add(expected, lease, within_a_boot(*since, at), law);
            // The civil clock may be set within the millisecond of a grant: then the later time is what matters to
            // a boot that follows.
            let later = |grant: &Grant| (grant.at.boot, grant.at.wall) < (at.boot, at.wall);
            if lease.grant().is_some_and(later) {
                *since = at;
            }
        }
        Ok(())
    }

    fn take(&mut self, batch: &Batch<'_>, expected: Sums) -> Checked {
        let rows = batch.usage.iter();
        require(rows.map(|row| (&row.key, &row.usage)).eq(&expected), || {
            format!(
                "usage to add is {:?}\n  and it adds {:?}",
                expected, batch.usage
            )
        })?;
        let newest = expected.keys().map(|key| key.hour).max();
        for (key, usage) in expected {
            *self.sums.entry(key).or_default() += usage;
        }
        if let Some(Hour(newest)) = newest {
            self.sums.retain(|key, _| key.hour.0 + KEPT_HOURS > newest);
        }
        Ok(())
    }

    /// Whether these rows, in order, are what was ever counted.
    pub(super) fn is(&self, rows: &[UsageRow]) -> Checked {
        let found = rows.iter().map(|row| (&row.key, &row.usage));
        require(found.eq(&self.sums), || {
            format!(
                "other usage than was counted: {rows:?}\n  counted {:?}",
                self.sums
            )
        })
    }

    /// Whether these rows, in whatever order, are what was counted and what is held until `now`.
    pub(super) fn is_with_held(
        &self,
        found: Vec<UsageRow>,
        rows: &Rows,
        now: At,
        law: &Law,
    ) -> Checked {
        let mut expected = self.sums.clone();
        for (id, since) in &self.since {
            add(
                &mut expected,
                &rows.leases[id],
                within_a_boot(*since, now),
                law,
            );
        }
        let mut sums = Sums::new();
        for row in found {
            *sums.entry(row.key).or_default() += row.usage;
        }
        require(sums == expected, || {
            format!("a report of usage says {sums:?}\n  and it is {expected:?}")
        })
    }
}

/// How long it was is what the clock says that nobody sets; when it was is told from its end.
fn within_a_boot(since: At, end: At) -> (WallMs, WallMs) {
    let length = end.boot - since.boot;
    (WallMs(end.wall.0.saturating_sub(length.0)), end.wall)
}

/// Nobody saw when the host went down: what was held lasted until then, and not beyond its last deadline.
fn across_boots(since: At, end: At, grant: &Grant) -> (WallMs, WallMs) {
    let last = last_end(grant).map_or(grant.expires, |last| last.min(grant.expires));
    (since.wall, end.wall.min(last.wall))
}

/// Adds what `lease` holds, from and to a moment, hour by hour.
fn add(sums: &mut Sums, lease: &Lease, (from, to): (WallMs, WallMs), law: &Law) {
    let (from, to) = (from.0, to.0);
    let oldest = (to / HOUR + 1).saturating_sub(KEPT_HOURS);
    let mut start = from.max(oldest * HOUR);
    while start < to {
        let hour = start / HOUR;
        let end = to.min((hour + 1) * HOUR);
        add_hour(sums, lease, Hour(hour), end - start, law);
        start = end;
    }
}

fn add_hour(sums: &mut Sums, lease: &Lease, hour: Hour, held_ms: u64, law: &Law) {
    let holder = &lease.request.holder;
    let tenant = holder.tenant.clone().filter(|tenant| law.knows(tenant));
    for part in lease.grant().iter().flat_map(|grant| &grant.allocations) {
        let key = UsageKey {
            hour,
            user: holder.user.clone(),
            tenant: tenant.clone(),
            device: part.device.clone(),
        };
        *sums.entry(key).or_default() += Usage {
            held_ms,
            byte_ms: u128::from(part.memory) * u128::from(held_ms),
        };
    }
}
