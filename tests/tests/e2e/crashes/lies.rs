//! Lies about what a broker kept, each of which the ledger has to find out.

use std::panic::AssertUnwindSafe;

use gpu_api::{Lease, LeaseState};
use jiff::ToSpan;

use super::judgement::{Found, Scene};
use super::ledger::{Belief, Claim, Ledger};

/// One way to lie.
pub(super) struct Lie {
    /// What the ledger says of it.
    pub(super) is_told: &'static str,
    /// Makes a lie of the truth, if there is anything to lie about.
    tell: fn(&mut Found, &Ledger, &Scene) -> Option<()>,
}

pub(super) const ALL: [Lie; 10] = [
    Lie {
        is_told: "was lost",
        tell: |found, ledger, _| {
            let is_kept = |claim: &Claim| claim.belief == Belief::Held;
            take(found, ledger, is_kept)
        },
    },
    Lie {
        is_told: "lost its place",
        tell: |found, ledger, _| {
            let waits = |claim: &Claim| claim.belief == Belief::Waiting;
            take(found, ledger, waits)
        },
    },
    Lie {
        is_told: "is not what was asked for",
        tell: |found, _, _| {
            let mut leases = found.live.values_mut();
            let two = leases.find(|lease| lease.allocations.len() == 2)?;
            two.allocations.pop().map(drop)
        },
    },
    Lie {
        is_told: "is another lease",
        tell: |found, ledger, _| {
            let is_known = |claim: &Claim| claim.lease.is_some();
            let key = known_names(ledger, is_known).find(|key| found.live.contains_key(*key))?;
            found.live.get_mut(key)?.id.push('x');
            Some(())
        },
    },
    Lie {
        is_told: "was passed by",
        tell: |found, ledger, _| {
            let claim = |lease: &Lease| &ledger.claims[&lease.holder.name];
            let waiters = &found.queue.waiters;
            let second = waiters.iter().position(|lease| {
                let late = claim(lease);
                let came_before = |other: &Lease| {
                    let placed = claim(other).placed_at.is_some_and(|at| at < late.asked_at);
                    placed && claim(other).class() == late.class()
                };
                waiters.iter().any(came_before)
            })?;
            let last = found.queue.waiters.remove(second);
            found.queue.waiters.insert(0, last);
            Some(())
        },
    },
    Lie {
        is_told: "granted to nobody",
        tell: |found, ledger, scene| {
            let ghost = ghost(found, ledger)?;
            let later = scene.died_at.checked_add(1.second()).ok()?;
            let granted_at = Some(later.to_string());
            let risen = Lease {
                granted_at,
                ..ghost
            };
            found.live.insert(risen.holder.name.clone(), risen);
            Some(())
        },
    },
    Lie {
        is_told: "waited on a connection",
        tell: |found, ledger, _| {
            let waits = Lease {
                state: LeaseState::Waiting,
                fence: None,
                allocations: Vec::new(),
                ..ghost(found, ledger)?
            };
            found.live.insert(waits.holder.name.clone(), waits);
            Some(())
        },
    },
    Lie {
        is_told: "is free under its process",
        tell: |found, ledger, scene| {
            let is_stuck = |claim: &Claim| {
                let mut leases = claim.lease.iter();
                let held_to = |lease: &Lease| !ledger.may_be_freed(lease, claim.asked_at);
                claim.belief == Belief::Over && leases.any(held_to)
            };
            let mut stuck = known_names(ledger, is_stuck);
            let key = stuck.find(|key| scene.children.contains(*key))?;
            found.live.remove(key).map(drop)
        },
    },
    Lie {
        is_told: "has another cordon",
        tell: |found, _, _| {
            let mut devices = found.devices.devices.iter_mut();
            let cordon = devices.find_map(|device| device.cordon.as_mut())?;
            cordon.reason = Some("of nobody".to_owned());
            Some(())
        },
    },
    Lie {
        is_told: "alone beside others",
        tell: |found, _, _| {
            let mut leases = found.live.values_mut();
            let shares = |lease: &&mut Lease| {
                let of_device = |card: &str| {
                    let devices = found.devices.devices.iter();
                    devices
                        .filter(|device| device.id == card)
                        .any(|device| device.leases.len() > 1)
                };
                let mut parts = lease.allocations.iter();
                parts.any(|part| of_device(&part.device))
            };
            for part in &mut leases.find(shares)?.allocations {
                part.exclusive = true;
            }
            Some(())
        },
    },
];

impl Lie {
    /// Whether there was anything to lie about; if so, it was found out.
    pub(super) fn is_found_out(&self, found: &Found, ledger: &Ledger, scene: &Scene) -> bool {
        let (mut found, mut ledger) = (found.clone(), ledger.clone());
        if (self.tell)(&mut found, &ledger, scene).is_none() {
            return false;
        }
        let judged = std::panic::catch_unwind(AssertUnwindSafe(|| ledger.judge(&found, scene)));
        let why = judged.expect_err(self.is_told);
        let why = why.downcast_ref::<String>().expect("it says why");
        assert!(why.contains(self.is_told), "`{}`: {why}", self.is_told);
        true
    }
}

fn known_names<'a>(
    ledger: &'a Ledger,
    is_one: impl Fn(&Claim) -> bool + 'a,
) -> impl Iterator<Item = &'a String> {
    let claims = ledger.claims.iter();
    claims
        .filter(move |(_, claim)| is_one(claim))
        .map(|(key, _)| key)
}

/// Denies one that is live.
fn take(found: &mut Found, ledger: &Ledger, is_one: impl Fn(&Claim) -> bool) -> Option<()> {
    known_names(ledger, is_one).find_map(|key| found.live.remove(key).map(drop))
}

/// A lease for a request that died with its broker.
fn ghost(found: &Found, ledger: &Ledger) -> Option<Lease> {
    let is_open = |claim: &Claim| !claim.is_keyed && claim.belief == Belief::Asked;
    let mut open = known_names(ledger, is_open);
    let key = open.find(|key| !found.live.contains_key(*key))?;
    let claim = &ledger.claims[key];
    let mut leases = found.live.values();
    let mut lease = leases
        .find(|lease| lease.state == LeaseState::Active && lease.allocations.len() == 1)?
        .clone();
    lease.id = format!("l-{key}");
    lease.holder.name.clone_from(key);
    (lease.holder.tenant, lease.holder.pid) = (None, None);
    lease.class = claim.class().to_owned();
    lease.allocations[0].memory = claim.body["memory"].as_u64()?;
    lease.fence = ledger
        .fences
        .last_key_value()
        .map(|(fence, _)| fence + 1000);
    Some(lease)
}
