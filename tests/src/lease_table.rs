//! What the leases of one device are allowed to look like from outside, as if everybody asked in turn: the fenced
//! lease table.
//!
//! It knows no time: leases in it do not expire, and what was taken back by force stays out of use until somebody
//! frees it. Every request is made under a key of its own, so the key is the name of its lease here.

use std::collections::{BTreeMap, BTreeSet};

use stateright::semantics::SequentialSpec;

/// The leases that one device ever had.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseTable {
    total: u64,
    last_fence: u64,
    leases: BTreeMap<u32, Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Entry {
    seen: Seen,
    amount: Amount,
    /// How it ends, if that is known.
    end: Option<Option<End>>,
}

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Amount {
    /// The device alone.
    Exclusive,
    /// So many bytes.
    Memory(u64),
}

/// A lease as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Which of all leases.
    pub lease: u32,
    /// The number of its grant.
    pub fence: u64,
    /// Where it stands.
    pub phase: Phase,
}

/// Where a lease stands that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its fence is current.
    Held,
    /// Over, but its memory is not known to be free.
    Reclaiming(End),
    /// Over.
    Ended(End),
}

/// Why a lease is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// In an emergency.
    Emergency,
    /// Its holder gave it back.
    Released,
    /// An operator took it back.
    Revoked,
}

/// What is known of a grant from all answers together; it spares much of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    /// Which of all leases.
    pub lease: u32,
    /// Its number.
    pub fence: u64,
    /// The number of the grant that went before it on this device, 0 if none did.
    pub before: u64,
    /// How it ends, or that it does not, if that is known.
    pub end: Option<Option<End>>,
}

/// What can be asked. Leases are named by their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Asks for a lease without waiting, or asks again.
    Acquire {
        /// The idempotency key.
        key: u32,
        /// How much.
        amount: Amount,
        /// The grant that any answer under this key ever told: what an answer that was lost would have said.
        told: Option<Grant>,
    },
    /// A heartbeat.
    Renew(u32),
    /// Gives back.
    Release(u32),
    /// Looks at a lease.
    Look(u32),
    /// Whether a fence is current.
    Check(u64),
    /// An operator takes a lease back.
    Revoke(u32),
    /// An emergency: everything that is held is over.
    Stop,
    /// An emergency without a check: everything is over and free.
    Free,
    /// Looks at the device.
    Taken,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ret {
    /// A lease.
    Lease(Seen),
    /// It does not fit now.
    Refused,
    /// The lease is over.
    Gone,
    /// Whether a fence is current.
    Current(bool),
    /// The leases that an emergency concerned.
    Ended(BTreeSet<u32>),
    /// Bytes that are taken, and by which leases.
    Taken(u64, BTreeSet<u32>),
    /// Nobody ever heard of it: an answer that is never right.
    Unknown,
}

impl Op {
    /// Whether it never changes anything.
    pub fn only_looks(&self) -> bool {
        match self {
            Self::Renew(_) | Self::Look(_) | Self::Check(_) | Self::Taken => true,
            Self::Acquire { .. } | Self::Release(_) | Self::Revoke(_) | Self::Stop | Self::Free => {
                false
            }
        }
    }
}

impl LeaseTable {
    /// An empty device of so many bytes.
    pub fn new(total: u64) -> Self {
        Self {
            total,
            last_fence: 0,
            leases: BTreeMap::new(),
        }
    }

    fn occupants(&self) -> impl Iterator<Item = &Entry> {
        let leases = self.leases.values();
        leases.filter(|entry| !matches!(entry.seen.phase, Phase::Ended(_)))
    }

    fn taken(&self) -> u64 {
        self.occupants().map(|entry| self.bytes(entry.amount)).sum()
    }

    fn bytes(&self, amount: Amount) -> u64 {
        match amount {
            Amount::Exclusive => self.total,
            Amount::Memory(bytes) => bytes,
        }
    }

    /// Whoever is there alone takes all, and nobody is alone who is not there first.
    fn fits(&self, amount: Amount) -> bool {
        self.taken() + self.bytes(amount) <= self.total
    }

    fn acquire(&mut self, key: u32, amount: Amount, grant: Option<Grant>) -> Ret {
        if let Some(entry) = self.leases.get(&key) {
            return Ret::Lease(entry.seen);
        }
        match grant {
            Some(grant) if self.fits(amount) => self.grant(key, amount, grant),
            _ => Ret::Refused,
        }
    }

    fn grant(&mut self, key: u32, amount: Amount, grant: Grant) -> Ret {
        let Grant {
            lease,
            fence,
            before,
            end,
        } = grant;
        let is_new = |entry: &Entry| entry.seen.lease != lease;
        let rises = fence > before && before == self.last_fence;
        if !rises || !self.leases.values().all(is_new) {
            return Ret::Unknown;
        }
        let seen = Seen {
            lease,
            fence,
            phase: Phase::Held,
        };
        self.last_fence = fence;
        self.leases.insert(key, Entry { seen, amount, end });
        Ret::Lease(seen)
    }

    /// What is asked of a lease that must not be over.
    fn of_held(&mut self, key: u32, then: Phase) -> Ret {
        match self.leases.get_mut(&key) {
            Some(entry) if entry.seen.phase != Phase::Held => Ret::Gone,
            Some(entry) if entry.can_be(then) => {
                entry.seen.phase = then;
                Ret::Lease(entry.seen)
            }
            Some(_) | None => Ret::Unknown,
        }
    }

    fn release(&mut self, key: u32) -> Ret {
        match self.of_held(key, Phase::Ended(End::Released)) {
            Ret::Gone => self.look(key),
            other => other,
        }
    }

    fn look(&self, key: u32) -> Ret {
        let entry = self.leases.get(&key);
        entry.map_or(Ret::Unknown, |entry| Ret::Lease(entry.seen))
    }

    fn check(&self, fence: u64) -> bool {
        let held = |entry: &&Entry| entry.seen.phase == Phase::Held;
        let mut held = self.leases.values().filter(held);
        held.any(|entry| entry.seen.fence == fence)
    }

    fn emergency(&mut self, frees: bool) -> Ret {
        let held = self.leases.values();
        let mut held = held.filter(|entry| entry.seen.phase == Phase::Held);
        if !held.all(|entry| entry.can_be(Phase::Ended(End::Emergency))) {
            return Ret::Unknown;
        }
        let mut ended = BTreeSet::new();
        for entry in self.leases.values_mut() {
            let then = match (entry.seen.phase, frees) {
                (Phase::Held, false) => Phase::Reclaiming(End::Emergency),
                (Phase::Held, true) => Phase::Ended(End::Emergency),
                (Phase::Reclaiming(end), true) => Phase::Ended(end),
                (Phase::Reclaiming(_), false) | (Phase::Ended(_), _) => continue,
            };
            entry.seen.phase = then;
            ended.insert(entry.seen.lease);
        }
        Ret::Ended(ended)
    }

    fn do_as(&mut self, op: &Op, grant: Option<Grant>) -> Ret {
        match *op {
            Op::Acquire { key, amount, told } => self.acquire(key, amount, told.or(grant)),
            Op::Renew(key) => self.of_held(key, Phase::Held),
            Op::Release(key) => self.release(key),
            Op::Look(key) => self.look(key),
            Op::Check(fence) => Ret::Current(self.check(fence)),
            Op::Revoke(key) => self.of_held(key, Phase::Reclaiming(End::Revoked)),
            Op::Stop => self.emergency(false),
            Op::Free => self.emergency(true),
            Op::Taken => {
                let leases = self.occupants().map(|entry| entry.seen.lease);
                Ret::Taken(self.taken(), leases.collect())
            }
        }
    }
}

impl Entry {
    fn can_be(&self, phase: Phase) -> bool {
        let end = match phase {
            Phase::Held => return true,
            Phase::Reclaiming(end) | Phase::Ended(end) => Some(end),
        };
        self.end.is_none_or(|known| known == end)
    }
}

impl SequentialSpec for LeaseTable {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        self.do_as(op, None)
    }

    /// The broker chooses the name of a lease and its fence; all else follows.
    fn is_valid_step(&mut self, op: &Op, ret: &Ret) -> bool {
        if let (Op::Acquire { key, amount, .. }, Ret::Refused) = (op, ret) {
            return !self.leases.contains_key(key) && !self.fits(*amount);
        }
        let grant = match ret {
            Ret::Lease(seen) => Some(Grant {
                lease: seen.lease,
                fence: seen.fence,
                before: self.last_fence,
                end: None,
            }),
            _ => None,
        };
        *ret != Ret::Unknown && self.do_as(op, grant) == *ret
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{Call, Calls, linearize};

    const TOTAL: u64 = 24;

    fn seen(lease: u32, fence: u64, phase: Phase) -> Ret {
        Ret::Lease(Seen {
            lease,
            fence,
            phase,
        })
    }

    fn held(lease: u32, fence: u64) -> Ret {
        seen(lease, fence, Phase::Held)
    }

    fn acquire(key: u32, bytes: u64) -> Op {
        Op::Acquire {
            key,
            amount: Amount::Memory(bytes),
            told: None,
        }
    }

    fn alone(key: u32) -> Op {
        Op::Acquire {
            key,
            amount: Amount::Exclusive,
            told: None,
        }
    }

    fn leases<const N: usize>(leases: [u32; N]) -> BTreeSet<u32> {
        BTreeSet::from(leases)
    }

    /// One after the other.
    fn story(steps: &[(Op, Ret)]) -> Calls<LeaseTable> {
        let steps = steps.iter().cloned().zip(0..);
        let call = |((op, ret), n): ((Op, Ret), u64)| Call {
            client: 0,
            begun: 2 * n,
            op,
            answer: Some((2 * n + 1, ret)),
        };
        steps.map(call).collect()
    }

    fn is_linear(calls: &Calls<LeaseTable>) -> bool {
        linearize(&LeaseTable::new(TOTAL), calls, Op::only_looks).is_ok()
    }

    fn is_explained(steps: &[(Op, Ret)]) -> bool {
        is_linear(&story(steps))
    }

    #[test]
    fn a_life_of_every_kind_is_explained() {
        let revoked = Phase::Reclaiming(End::Revoked);
        let story = [
            (acquire(1, 16), held(1, 10)),
            (acquire(2, 16), Ret::Refused),
            (acquire(2, 8), held(2, 11)),
            (acquire(1, 16), held(1, 10)),
            (alone(3), Ret::Refused),
            (Op::Taken, Ret::Taken(24, leases([1, 2]))),
            (Op::Renew(1), held(1, 10)),
            (Op::Check(10), Ret::Current(true)),
            (Op::Check(12), Ret::Current(false)),
            (Op::Release(1), seen(1, 10, Phase::Ended(End::Released))),
            (Op::Release(1), seen(1, 10, Phase::Ended(End::Released))),
            (Op::Renew(1), Ret::Gone),
            (Op::Revoke(2), seen(2, 11, revoked)),
            (Op::Look(2), seen(2, 11, revoked)),
            (Op::Release(2), seen(2, 11, revoked)),
            (Op::Check(11), Ret::Current(false)),
            (alone(3), Ret::Refused),
            (Op::Stop, Ret::Ended(leases([]))),
            (Op::Free, Ret::Ended(leases([2]))),
            (alone(3), held(7, 40)),
            (Op::Stop, Ret::Ended(leases([7]))),
            (alone(3), seen(7, 40, Phase::Reclaiming(End::Emergency))),
        ];
        assert!(is_explained(&story));
    }

    #[test]
    fn what_a_broken_broker_would_say_is_refused() {
        let over = Phase::Ended(End::Released);
        let released = [
            (acquire(1, 16), held(1, 10)),
            (Op::Release(1), seen(1, 10, over)),
        ];
        let check = |what: &str, before: &[(Op, Ret)], last: (Op, Ret)| {
            assert!(is_explained(before), "{what}: what went before is fine");
            assert!(!is_explained(&[before, &[last]].concat()), "{what}");
        };
        let holds = [(acquire(1, 16), held(1, 10))];
        check("more than there is", &holds, (acquire(2, 16), held(2, 11)));
        check(
            "two alone",
            &[(alone(1), held(1, 10))],
            (alone(2), held(2, 11)),
        );
        check("alone beside another", &holds, (alone(2), held(2, 11)));
        check("refused for nothing", &released, (alone(2), Ret::Refused));
        check("a fence again", &released, (alone(2), held(2, 10)));
        check("an older fence", &released, (alone(2), held(2, 9)));
        check("a lease again", &released, (alone(2), held(1, 11)));
        check(
            "risen from the dead",
            &released,
            (Op::Renew(1), held(1, 10)),
        );
        check("stale look", &released, (Op::Look(1), held(1, 10)));
        check(
            "stale check",
            &released,
            (Op::Check(10), Ret::Current(true)),
        );
        check(
            "stale device",
            &released,
            (Op::Taken, Ret::Taken(16, leases([1]))),
        );
        check("lost", &holds, (Op::Look(1), Ret::Unknown));
        check("ended by nobody", &holds, (Op::Renew(1), Ret::Gone));
        check(
            "a second lease for a key",
            &holds,
            (acquire(1, 16), held(2, 11)),
        );
        check(
            "another fence for a key",
            &holds,
            (acquire(1, 16), held(1, 11)),
        );
        let revoked = [
            (acquire(1, 16), held(1, 10)),
            (Op::Revoke(1), seen(1, 10, Phase::Reclaiming(End::Revoked))),
        ];
        check(
            "granted before it is free",
            &revoked,
            (acquire(2, 16), held(2, 11)),
        );
        check(
            "current after the end",
            &revoked,
            (Op::Check(10), Ret::Current(true)),
        );
        check(
            "an emergency that spares",
            &holds,
            (Op::Stop, Ret::Ended(leases([]))),
        );
    }

    fn open(client: usize, begun: u64, op: Op) -> Call<Op, Ret> {
        Call {
            client,
            begun,
            op,
            answer: None,
        }
    }

    #[test]
    fn a_request_that_a_crash_left_open_was_done_or_not_and_a_retry_tells() {
        let amount = Amount::Memory(16);
        let told = |before| {
            Some(Grant {
                lease: 5,
                fence: 30,
                before,
                end: None,
            })
        };
        let asked = |before| Op::Acquire {
            key: 1,
            amount,
            told: told(before),
        };
        let check = |before, steps: &[(Op, Ret)], expected: bool| {
            let mut calls = story(steps);
            calls.push(open(9, 0, asked(before)));
            calls.extend(retried(asked(before), 2 * steps.len() as u64));
            assert_eq!(is_linear(&calls), expected, "{steps:?}");
        };
        check(0, &[(alone(2), Ret::Refused)], true);
        let over = seen(2, 20, Phase::Ended(End::Released));
        let between = [(alone(2), held(2, 20)), (Op::Release(2), over)];
        check(20, &between, true);
        check(0, &between, false);
        let over = seen(2, 40, Phase::Ended(End::Released));
        let higher = [(alone(2), held(2, 40)), (Op::Release(2), over)];
        check(0, &higher, false);
        check(40, &higher, false);
    }

    fn retried(op: Op, begun: u64) -> Calls<LeaseTable> {
        let answer = Some((begun + 1, held(5, 30)));
        vec![Call {
            client: 0,
            begun,
            op,
            answer,
        }]
    }

    #[test]
    fn a_release_that_a_crash_left_open_is_not_taken_back() {
        let check = |steps: &[(Op, Ret)], expected: bool| {
            let mut calls = story(steps);
            calls.push(open(9, 2, Op::Release(1)));
            assert_eq!(is_linear(&calls), expected, "{steps:?}");
        };
        let granted = (alone(1), held(1, 10));
        let holds = (Op::Renew(1), held(1, 10));
        check(
            &[granted.clone(), holds.clone(), (alone(2), held(2, 11))],
            true,
        );
        check(&[granted.clone(), holds.clone(), holds.clone()], true);
        check(&[granted, (alone(2), held(2, 11)), holds], false);
    }
}
