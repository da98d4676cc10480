//! What the leases of one device are allowed to look like from outside, as if everybody asked in turn: the fenced
//! lease table.
//!
//! It knows no clock: that a lease expires or a broker dies is a step like any other, and the history says when such a
//! step may have come. What was taken back by force stays out of use until somebody frees it. Every request is made
//! under a key of its own, so the key is the name of its lease here.

use std::collections::{BTreeMap, BTreeSet};

use stateright::semantics::SequentialSpec;

/// The leases that one device ever had.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseTable {
    total: u64,
    last_fence: u64,
    leases: BTreeMap<u32, Entry>,
    /// Keys and amounts of those who wait, by arrival.
    waiters: Vec<(u32, Amount)>,
    /// Somebody may wait of whom nothing was heard again: nobody knows what is kept for whom.
    is_blurred: bool,
    /// How many brokers died.
    deaths: u64,
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
    /// Without a heartbeat.
    Expired,
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
    /// Begins to wait on its connection, unless it has a lease.
    Join {
        /// The idempotency key.
        key: u32,
        /// How much.
        amount: Amount,
        /// How many brokers died before it was sent, at least and at most: with its connection the request is gone.
        deaths: (u64, u64),
    },
    /// A waiter is served.
    Serve {
        /// The idempotency key.
        key: u32,
        /// What it gets.
        grant: Grant,
    },
    /// Somebody may begin to wait who is neither served nor gives up before the broker dies.
    Blur,
    /// A wait is over.
    GiveUp(u32),
    /// A lease runs out.
    Expire(u32),
    /// The broker dies, and who waits on a connection with it.
    Die,
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
    /// What has no answer is done.
    Done,
    /// Nobody ever heard of it: an answer that is never right.
    Unknown,
}

impl Op {
    /// Whether it never changes anything.
    pub fn only_looks(&self) -> bool {
        match self {
            Self::Renew(_) | Self::Look(_) | Self::Check(_) | Self::Taken => true,
            Self::Acquire { .. }
            | Self::Release(_)
            | Self::Revoke(_)
            | Self::Stop
            | Self::Free
            | Self::Join { .. }
            | Self::Serve { .. }
            | Self::Blur
            | Self::GiveUp(_)
            | Self::Expire(_)
            | Self::Die => false,
        }
    }

    /// Whether nothing is lost if it is done as soon as it can be explained: it changes nothing, or only allows more.
    pub fn is_best_at_once(&self) -> bool {
        self.only_looks() || matches!(self, Self::Blur)
    }

    /// Whether it is done as soon as it may be.
    pub fn is_prompt(&self) -> bool {
        matches!(
            self,
            Self::Join { .. } | Self::Blur | Self::GiveUp(_) | Self::Expire(_)
        )
    }
}

impl LeaseTable {
    /// An empty device of so many bytes.
    pub fn new(total: u64) -> Self {
        Self {
            total,
            last_fence: 0,
            leases: BTreeMap::new(),
            waiters: Vec::new(),
            is_blurred: false,
            deaths: 0,
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

    /// Nobody passes whoever came before and fits.
    fn may_get(&self, amount: Amount, ahead: &[(u32, Amount)]) -> bool {
        let is_passed = ahead.iter().any(|(_, amount)| self.fits(*amount));
        self.fits(amount) && !is_passed
    }

    /// Whoever waits longest and fits: nothing else happens before it is served.
    fn is_due(&self) -> Option<u32> {
        let (key, amount) = self.waiters.first()?;
        (self.fits(*amount) && !self.is_blurred).then_some(*key)
    }

    fn acquire(&mut self, key: u32, amount: Amount, grant: Option<Grant>) -> Ret {
        if let Some(entry) = self.leases.get(&key) {
            return Ret::Lease(entry.seen);
        }
        match grant {
            Some(grant) if self.may_get(amount, &self.waiters) => self.grant(key, amount, grant),
            _ => Ret::Refused,
        }
    }

    /// What is free may be kept for somebody who waits and does not fit yet.
    fn may_refuse(&self, key: u32, amount: Amount) -> bool {
        let is_free = self.fits(amount) && self.waiters.is_empty() && !self.is_blurred;
        !self.leases.contains_key(&key) && !is_free
    }

    fn place_of(&self, key: u32) -> Option<usize> {
        self.waiters.iter().position(|(waiter, _)| *waiter == key)
    }

    fn join(&mut self, key: u32, amount: Amount, deaths: (u64, u64)) -> Ret {
        if !(deaths.0..=deaths.1).contains(&self.deaths) {
            return Ret::Unknown;
        }
        if !self.leases.contains_key(&key) && self.place_of(key).is_none() {
            self.waiters.push((key, amount));
        }
        Ret::Done
    }

    fn serve(&mut self, key: u32, grant: Grant) -> Ret {
        if self.leases.contains_key(&key) {
            return Ret::Done;
        }
        let Some(place) = self.place_of(key) else {
            return Ret::Unknown;
        };
        let (_, amount) = self.waiters[place];
        if !self.may_get(amount, &self.waiters[..place]) {
            return Ret::Unknown;
        }
        match self.grant(key, amount, grant) {
            Ret::Lease(_) => {
                self.waiters.remove(place);
                Ret::Done
            }
            other => other,
        }
    }

    fn give_up(&mut self, key: u32) -> Ret {
        let Some(place) = self.place_of(key) else {
            return Ret::Unknown;
        };
        self.waiters.remove(place);
        Ret::Done
    }

    fn expire(&mut self, key: u32) -> Ret {
        match self.of_held(key, Phase::Reclaiming(End::Expired)) {
            Ret::Lease(_) => Ret::Done,
            other => other,
        }
    }

    fn die(&mut self) -> Ret {
        self.waiters.clear();
        self.is_blurred = false;
        self.deaths += 1;
        Ret::Done
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
        let is_served = |due| matches!(op, Op::Serve { key, .. } if *key == due);
        if !self.is_due().is_none_or(is_served) {
            return Ret::Unknown;
        }
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
            Op::Join {
                key,
                amount,
                deaths,
            } => self.join(key, amount, deaths),
            Op::Serve { key, grant } => self.serve(key, grant),
            Op::Blur => {
                self.is_blurred = true;
                Ret::Done
            }
            Op::GiveUp(key) => self.give_up(key),
            Op::Expire(key) => self.expire(key),
            Op::Die => self.die(),
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
            return self.is_due().is_none() && self.may_refuse(*key, *amount);
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
mod tests;
