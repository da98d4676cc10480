//! What must hold whenever the loop rests: the books are what is stored, nobody has what another has, and
//! nobody is late.

use std::collections::BTreeSet;
use std::mem;

use gpu_broker::Clock;
use gpu_lease::{At, Books, BootMs, DeviceState, Lease, LeaseId, Phase};

use super::oracle::{Acts, require};
use super::rows::{Rows, Watch};
use super::{Checked, World};
use crate::checkers;

impl World {
    pub(super) fn check(&mut self) -> Checked {
        let at = self.clock.now();
        let turbulent = mem::take(&mut self.turbulent);
        let gone = mem::take(&mut self.gone);
        let mut watch = self.watch.lock();
        watch.oracle.acts = Acts::default();
        if let Some(wrong) = watch.oracle.wrong.take() {
            return Err(wrong);
        }
        let granted = watch.oracle.take_grants();
        let Watch { rows, .. } = &*watch;
        let books = self.life.as_ref().ok_or("no life")?.books();
        for id in &rows.occupying {
            let (row, lease) = (rows.leases.get(id), books.lease(*id));
            require(row.is_some() && row == lease, || {
                format!("not as it is stored: {lease:?}\n  {row:?}")
            })?;
            is_not_late(&rows.leases[id], at.boot, self.grace_until)?;
        }
        for state in books.devices() {
            self.device_adds_up(state, rows)?;
        }
        settings_are_stored(books, rows)?;
        nothing_is_due(books, at)?;
        // What changed a device may have come after what was granted of it.
        let granted = granted.iter().filter(|_| !turbulent);
        for lease in granted.filter_map(|id| books.lease(*id)) {
            is_on_open_devices(lease, books)?;
        }
        for id in gone {
            is_given_up(id, books.lease(id))?;
        }
        match self.handle().snapshot().waiting.is_empty() {
            true => Ok(()),
            false => checkers::head_is_served(at, books),
        }
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

/// A holder that nothing but heartbeats proves alive is gone when its time and every grace are over.
fn is_not_late(lease: &Lease, now: BootMs, grace_until: BootMs) -> Checked {
    let due = lease
        .held()
        .map(|grant| grant.expires.boot.max(grace_until));
    let overdue = lease.process().is_none() && due.is_some_and(|due| due < now);
    require(!overdue, || format!("at {now:?} still held: {lease:?}"))
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
