//! When two moments are the same: if nothing that can happen from here on could tell them apart.
//!
//! Ids, revisions and fences are compared with each other by the books, never with anything else, so that ranks
//! say it all; of times only the distance from now counts, and of what has come due only that it has.

use std::hash::{Hash, Hasher};

use gpu_lease::{
    BootMs, DeviceState, Fence, Grant, Lease, LeaseId, Phase, Reclaim, ReclaimStage, Telemetry,
};

use super::case::UNIT_MS;
use super::model::CLIENT_BITS;
use super::moment::{Known, Moment, at};

/// Not there.
const NONE: i64 = -1;

impl Hash for Moment {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.canon().hash(state);
    }
}

impl PartialEq for Moment {
    fn eq(&self, other: &Self) -> bool {
        self.canon() == other.canon()
    }
}

/// Numbers that say everything that the future depends on.
struct Canon<'a> {
    moment: &'a Moment,
    open: Vec<&'a Lease>,
    said: Vec<i64>,
}

impl Moment {
    fn canon(&self) -> Vec<i64> {
        let mut open: Vec<&Lease> = self.open().collect();
        open.sort_by_key(|lease| (client_of(lease.id), lease.id));
        let mut canon = Canon {
            moment: self,
            open,
            said: Vec::with_capacity(64),
        };
        canon.say_all();
        canon.said
    }
}

impl Canon<'_> {
    fn say_all(&mut self) {
        let moment = self.moment;
        let left = moment.left;
        let next = moment.books.counters().next_fence.0 as i64;
        let highest = moment.highest.map_or(next - 1, |fence| fence.0 as i64);
        self.say([
            left.crashes.into(),
            left.expiries.into(),
            left.emergencies.into(),
            left.drains.into(),
            moment.books.is_recovering().into(),
            self.until(Some(at(moment.grace).boot)),
            next - highest,
            moment
                .broken
                .as_ref()
                .map_or(NONE, |broken| broken.rule as i64),
        ]);
        for known in &moment.known {
            self.say([self.place_of(known)]);
        }
        self.say([self.open.len() as i64]);
        for lease in self.open.clone() {
            self.say_lease(lease);
        }
        for state in moment.books.devices() {
            self.say_device(state);
        }
    }

    fn say<const N: usize>(&mut self, numbers: [i64; N]) {
        self.said.extend(numbers);
    }

    /// Which of the open leases a client knows; one that is over is one that it has not heard the end of.
    fn place_of(&self, known: &Known) -> i64 {
        let Some(id) = known.lease else {
            return NONE;
        };
        let place = self.open.iter().position(|lease| lease.id == id);
        place.map_or(self.open.len() as i64, |place| place as i64)
    }

    fn say_lease(&mut self, lease: &Lease) {
        self.say([client_of(lease.id)]);
        match &lease.phase {
            Phase::Waiting(wait) => {
                let waiters = self.open.iter().filter_map(|lease| lease.waiting());
                let ahead = waiters.filter(|other| other.seq < wait.seq).count();
                let (until, renew_by) = (self.until(wait.until), self.until(wait.renew_by));
                self.say([0, ahead as i64, until, renew_by]);
            }
            Phase::Held(grant) => {
                self.say_grant(grant);
                let expires = match grant.unresponsive {
                    true => NONE,
                    false => self.until(Some(grant.expires.boot)),
                };
                // Only a connection that breaks asks whether any heartbeat has come.
                let renewed = grant.renewed || lease.request.queue;
                let drain = grant.drain().map(|(_, drain)| drain.deadline.boot);
                self.say([1, expires, renewed.into(), self.until(drain)]);
            }
            Phase::Reclaiming(grant, reclaim) => {
                self.say_grant(grant);
                self.say_reclaim(reclaim);
            }
            Phase::Ended(_) => {}
        }
    }

    fn say_grant(&mut self, grant: &Grant) {
        for part in &grant.allocations {
            let devices = part.device.id.as_str().bytes();
            self.say([devices.last().map_or(NONE, i64::from)]);
        }
        let fences = self.open.iter().filter_map(|lease| lease.occupying());
        let above = |fence: &Fence| *fence > grant.fence;
        let rank = fences.map(|other| other.fence).filter(above).count();
        let last = self.moment.highest == Some(grant.fence);
        self.say([rank as i64, last.into()]);
    }

    fn say_reclaim(&mut self, reclaim: &Reclaim) {
        let since = self.moment.at().boot - reclaim.since.boot;
        let (stage, age) = match reclaim.stage {
            ReclaimStage::Verifying => (2, (since.0 / UNIT_MS.0) as i64),
            ReclaimStage::Stuck(_) => (3, (since.0 / UNIT_MS.0) as i64),
            ReclaimStage::Quarantined => (4, NONE),
        };
        let attempt = reclaim.attempt.into();
        self.say([
            stage,
            age,
            reclaim.reason as i64,
            attempt,
            reclaim.signal.into(),
        ]);
    }

    fn say_device(&mut self, state: &DeviceState) {
        if state.device.telemetry == Telemetry::Unsupported {
            self.say([NONE]);
            return;
        }
        let Some(reading) = &state.reading else {
            self.say([NONE, NONE]);
            return;
        };
        let is_old = self.moment.at().boot - reading.taken >= UNIT_MS;
        let awaits_later = state.read_after.is_some_and(|after| reading.taken <= after);
        let user = reading.processes.first();
        let place = |id: LeaseId| self.open.iter().position(|lease| lease.id == id);
        let user = user.map_or(NONE, |process| {
            let place = process.lease.and_then(place);
            place.map_or(self.open.len() as i64, |place| place as i64)
        });
        self.say([is_old.into(), awaits_later.into(), user]);
    }

    /// Units from now.
    fn until(&self, due: Option<BootMs>) -> i64 {
        due.map_or(NONE, |due| {
            let left = due - self.moment.at().boot;
            (left.0 / UNIT_MS.0) as i64
        })
    }
}

fn client_of(id: LeaseId) -> i64 {
    (id.bits() & ((1 << CLIENT_BITS) - 1)) as i64
}

#[cfg(test)]
mod tests {
    use std::collections::btree_map::Entry;
    use std::collections::{BTreeMap, VecDeque};

    use stateright::Model;

    use super::super::case::Case;
    use super::super::model::{Lives, Step};
    use super::Moment;

    /// Moments that are compared.
    const MOMENTS: usize = 4_000;
    /// Of so many that are said to be another, one is looked at.
    const ONE_OF: usize = 5;

    /// What is left out does not matter: moments that are one have the same steps, to moments that are one.
    #[test]
    fn moments_that_are_one_have_one_future() {
        let lives = Lives::new(Case::small());
        let mut known: BTreeMap<Vec<i64>, Moment> = BTreeMap::new();
        let mut pending = VecDeque::from(lives.init_states());
        let mut met = 0;
        while let Some(moment) = pending.pop_front()
            && known.len() < MOMENTS
        {
            for next in lives.next_states(&moment) {
                match known.entry(next.canon()) {
                    Entry::Vacant(place) => {
                        place.insert(next.clone());
                        pending.push_back(next);
                    }
                    Entry::Occupied(same) => {
                        met += 1;
                        if met % ONE_OF == 0 {
                            assert_eq!(future(&lives, same.get()), future(&lives, &next));
                        }
                    }
                }
            }
        }
        assert!(met > MOMENTS, "{met} moments are one of {MOMENTS}");
    }

    fn future(lives: &Lives, moment: &Moment) -> Vec<(Step, Vec<i64>)> {
        let steps = lives.next_steps(moment).into_iter();
        steps.map(|(step, next)| (step, next.canon())).collect()
    }
}
