//! What must hold whenever the loop rests: the books are what is stored, nobody has what another has, and
//! nobody is late.

use std::collections::BTreeSet;
use std::mem;

use gpu_broker::{Clock, Hour};
use gpu_lease::{
    Allocation, At, Books, BootMs, DeviceKey, DeviceState, Grant, Lease, LeaseId, Ms, Phase,
    Reading,
};

use super::free::reclaim_due;
use super::law::Law;
use super::machine::Name;
use super::oracle::{Oracle, last_end, require};
use super::rows::{Rows, Watch};
use super::{Checked, World};
use crate::checkers;

/// A reading that is older is nothing to grant by.
const FRESH: Ms = Ms(3_000);
/// So much foreign use is in nobody's way who has a device alone.
const IGNORED_BYTES: u64 = 512 << 20;

impl World {
    pub(super) fn check(&mut self) -> Checked {
        let at = self.clock.now();
        let turbulent = mem::take(&mut self.turbulent);
        let was_read = mem::take(&mut self.was_read);
        let gone = mem::take(&mut self.gone);
        let mut watch = self.watch.lock();
        watch.oracle.rest();
        watch.oracle.is_content()?;
        let granted = watch.oracle.take_grants();
        let Watch { rows, oracle, .. } = &*watch;
        let books = self.life.as_ref().ok_or("no life")?.books();
        for id in &rows.occupying {
            let (row, lease) = (rows.leases.get(id), books.lease(*id));
            require(row.is_some() && row == lease, || {
                format!("not as it is stored: {lease:?}\n  {row:?}")
            })?;
            is_not_late(&rows.leases[id], at.boot, self.grace_until, &oracle.law)?;
        }
        for state in books.devices() {
            self.device_adds_up(state, rows)?;
            if was_read {
                self.belongs_to_its_lease(state, rows)?;
            }
        }
        settings_are_stored(books, rows)?;
        nothing_is_due(books, at)?;
        // What changed a device may have come after what was granted of it.
        let granted = granted.iter().filter(|_| !turbulent);
        let mut checked = 0;
        for lease in granted.filter_map(|id| books.lease(*id)) {
            is_on_open_devices(lease, books)?;
            checked += self.has_room(lease, books, &watch, (was_read, at))?;
        }
        for id in gone {
            is_given_up(id, books.lease(id))?;
        }
        let waiting = self.handle().snapshot().waiting.clone();
        for lease in waiting.iter().filter_map(|(id, _)| books.lease(*id)) {
            waits_not_too_long(lease, at.boot, self.grace_until)?;
        }
        if !waiting.is_empty() {
            checkers::head_is_served(at, books)?;
        }
        drop(watch);
        self.stats.rooms += checked;
        self.remember_readings();
        Ok(())
    }

    /// What the next turn may decide by, until it is told of another reading.
    fn remember_readings(&mut self) {
        let Some(life) = &self.life else {
            return;
        };
        for state in life.books().devices() {
            let (key, is) = (&state.device.key, state.reading.as_ref());
            let taken = |reading: &Reading| reading.taken;
            if self.last_readings.get(key).map(taken) == is.map(taken) {
                continue;
            }
            match is {
                Some(is) => drop(self.last_readings.insert(key.clone(), is.clone())),
                None => drop(self.last_readings.remove(key)),
            }
        }
    }

    /// A report of usage is what was counted, and what is held until now.
    pub(super) fn usage_adds_up(&self) -> Checked {
        let mut found = Vec::new();
        let read = self.handle().usage(Hour(0), &mut |row| found.push(row));
        read.map_err(|error| error.to_string())?;
        let Watch { rows, oracle, .. } = &*self.watch.lock();
        let now = self.clock.now();
        oracle.ledger.is_with_held(found, rows, now, &oracle.law)
    }

    /// What was just granted was there to be granted, by what was last read of each device, or, where that came within
    /// this turn, by what was read before. Answers how many grants it has looked at.
    fn has_room(
        &self,
        lease: &Lease,
        books: &Books,
        watch: &Watch,
        (was_read, at): (bool, At),
    ) -> Result<u64, String> {
        let Some(grant) = lease.held() else {
            return Ok(0);
        };
        for part in &grant.allocations {
            let key = &part.device;
            let mut states = books.devices();
            let state = states.find(|state| state.device.key == *key);
            let state = state.ok_or_else(|| format!("no such device: {part:?}"))?;
            let by_the_last = self
                .last_read(state, &watch.oracle, at)
                .and_then(|reading| self.fits(part, grant, reading, watch));
            let before = self.last_readings.get(key).filter(|_| was_read);
            let before = before
                .filter(|before| at.boot - before.taken <= FRESH && watch.oracle.is_of_now(before));
            let by_the_one_before =
                before.is_some_and(|_| self.fits(part, grant, before, watch).is_ok());
            if !by_the_one_before {
                by_the_last.map_err(|why| format!("{why}: no room for {lease:?} on {state:?}"))?;
            }
        }
        Ok(1)
    }

    /// Whether there is room for `part` beside what was granted before, by this reading.
    fn fits(
        &self,
        part: &Allocation,
        grant: &Grant,
        reading: Option<&Reading>,
        watch: &Watch,
    ) -> Checked {
        let key = &part.device;
        let used = reading.map_or(0, |reading| reading.memory_used);
        let taken = Taken::before(grant, key, reading, &watch.rows);
        let foreign = used.saturating_sub(taken.accounted);
        let total = self.machine.total(key);
        let grantable = total.saturating_sub(watch.oracle.law.reserve);
        let fits = match part.exclusive {
            true => foreign <= IGNORED_BYTES && taken.charged == 0,
            false => part.memory + taken.charged + foreign <= grantable,
        };
        require(fits, || {
            format!("{foreign} bytes are foreign of {grantable}, {taken:?}")
        })
    }

    /// What is in use is charged to the lease whose process uses it or started who does, and to no other.
    fn belongs_to_its_lease(&self, state: &DeviceState, rows: &Rows) -> Checked {
        let Some(reading) = &state.reading else {
            return Ok(());
        };
        for process in &reading.processes {
            let Some(leader) = self.machine.leader(process.pid) else {
                continue;
            };
            let right = match process.lease {
                Some(id) => rows.leases.get(&id).and_then(registered) == Some(leader),
                None => {
                    let occupying = rows.occupying.iter().map(|id| &rows.leases[id]);
                    let was_there = |lease: &&Lease| {
                        let grant = lease.occupying();
                        grant.is_some_and(|grant| grant.at.boot < reading.taken)
                    };
                    let mut mine = occupying.filter(was_there).filter_map(registered);
                    !self.machine.is_there(leader) || mine.all(|name| name != leader)
                }
            };
            require(right, || {
                let lease = process.lease.and_then(|id| rows.leases.get(&id));
                format!(
                    "{process:?} was started by {leader:?}, and is charged to {lease:?}: {state:?}"
                )
            })?;
        }
        Ok(())
    }

    /// The reading of now, if it is new enough to grant by; none where nothing can be read.
    fn last_read<'a>(
        &self,
        state: &'a DeviceState,
        oracle: &Oracle,
        at: At,
    ) -> Result<Option<&'a Reading>, String> {
        let key = &state.device.key;
        if !self.machine.is_readable(key) {
            return Ok(None);
        }
        let told = oracle
            .reading(key)
            .filter(|told| at.boot - told.taken <= FRESH);
        let taken = |reading: &Reading| (reading.taken, reading.memory_used);
        require(
            told.is_some() && told.map(taken) == state.reading.as_ref().map(taken),
            || format!("granted by an old reading, told was {told:?}"),
        )?;
        Ok(state.reading.as_ref())
    }

    /// Who holds something there is whom the books know there; together they have no more than there is, and
    /// one alone is alone.
    fn device_adds_up(&self, state: &DeviceState, rows: &Rows) -> Checked {
        let key = &state.device.key;
        let (mut holders, mut memory, mut alone) = (BTreeSet::new(), 0, false);
        for id in &rows.occupying {
            let grant = rows.leases[id].occupying();
            if let Some(part) = grant.and_then(|grant| grant.on(key)) {
                holders.insert(*id);
                memory += part.memory;
                alone |= part.exclusive;
            }
        }
        let total = self.machine.total(key);
        require(memory <= total && (!alone || holders.len() == 1), || {
            format!("{key} is held by {holders:?}, {memory} bytes of {total}")
        })?;
        require(holders == state.occupants, || {
            format!(
                "{key} is held by {holders:?}, and says {:?}",
                state.occupants
            )
        })
    }
}

fn settings_are_stored(books: &Books, rows: &Rows) -> Checked {
    let (counters, stored) = (books.counters(), rows.counters);
    require(stored == Some(counters), || {
        format!("counters are {counters:?}, and stored {stored:?}")
    })?;
    let hash = &books.policy().source.hash;
    let stored = rows.policy.as_ref().map(|policy| &policy.source.hash);
    require(stored == Some(hash), || {
        format!("{hash} is live, and {stored:?} is stored")
    })
}

fn nothing_is_due(books: &Books, at: At) -> Checked {
    let due = books.next_deadline();
    require(due.is_none_or(|due| due > at.boot), || {
        format!("{due:?} is due after a turn at {at:?}")
    })
}

/// The process of its holder, as the machine knows it.
fn registered(lease: &Lease) -> Option<Name> {
    let process = lease.process()?;
    Some((process.pid, process.start_ticks))
}

/// What those take of a device who were granted something there before.
#[derive(Debug, Default)]
struct Taken {
    /// The larger of granted and observed, each.
    charged: u64,
    /// Of what is in use, what is theirs.
    accounted: u64,
}

impl Taken {
    fn before(grant: &Grant, key: &DeviceKey, reading: Option<&Reading>, rows: &Rows) -> Self {
        let mut taken = Self::default();
        for id in &rows.occupying {
            let other = rows.leases[id]
                .occupying()
                .filter(|other| other.fence < grant.fence);
            if let Some(part) = other.and_then(|other| other.on(key)) {
                let observed = reading.and_then(|reading| observed(reading, *id));
                taken.charged += part.memory.max(observed.unwrap_or(0));
                taken.accounted += observed.unwrap_or(part.memory);
            }
        }
        taken
    }
}

/// What processes of a lease were seen to use, if any were.
fn observed(reading: &Reading, id: LeaseId) -> Option<u64> {
    let mine = reading.processes.iter();
    let mine = mine.filter(|process| process.lease == Some(id));
    let bytes = mine.map(|process| process.memory.unwrap_or(0));
    bytes.reduce(u64::saturating_add)
}

/// A holder that nothing but heartbeats proves alive is gone when its time and every grace are over, any holder
/// when its drain or its longest time is; and what is being reclaimed does not stay for ever.
fn is_not_late(lease: &Lease, now: BootMs, grace_until: BootMs, law: &Law) -> Checked {
    let heartbeat = |grant: &Grant| lease.process().is_none().then_some(grant.expires);
    let ends = |grant: &Grant| {
        [heartbeat(grant), last_end(grant)]
            .into_iter()
            .flatten()
            .min()
    };
    let due = lease.held().and_then(ends).map(|due| due.boot);
    let due = due.or_else(|| reclaim_due(lease, law));
    let overdue = due.is_some_and(|due| due.max(grace_until) < now);
    require(!overdue, || format!("at {now:?} still there: {lease:?}"))
}

/// A wait ends when it is over, and a queued request when nobody renews it.
fn waits_not_too_long(lease: &Lease, now: BootMs, grace_until: BootMs) -> Checked {
    let over = lease.waiting().is_some_and(|wait| {
        let unheard = wait.renew_by.map(|due| due.max(grace_until));
        [wait.until, unheard]
            .into_iter()
            .flatten()
            .any(|due| due < now)
    });
    require(!over, || format!("at {now:?} still waiting: {lease:?}"))
}

/// What was just granted is on devices that may be granted.
fn is_on_open_devices(lease: &Lease, books: &Books) -> Checked {
    let parts = lease.held().map(|grant| grant.allocations.as_slice());
    for part in parts.unwrap_or_default() {
        let mut devices = books.devices();
        let state = devices.find(|state| state.device.key == part.device);
        let open = state.is_some_and(|state| {
            state.device.leasable && state.lost_since.is_none() && state.cordoned().is_none()
        });
        require(open, || format!("{state:?} was granted to {lease:?}"))?;
    }
    Ok(())
}

/// A request whose client is gone does not wait, and what it got is given back. One that is a row outlives its
/// connection, and ends for want of heartbeats.
fn is_given_up(id: LeaseId, lease: Option<&Lease>) -> Checked {
    let bound = lease.filter(|lease| !lease.request.queue);
    let open = bound.is_some_and(|lease| match &lease.phase {
        Phase::Waiting(_) => true,
        Phase::Held(grant) => !grant.renewed && lease.request.idempotency.is_none(),
        Phase::Reclaiming(..) | Phase::Ended(_) => false,
    });
    require(!open, || {
        format!("nobody waits for {id}, and it is {lease:?}")
    })
}
