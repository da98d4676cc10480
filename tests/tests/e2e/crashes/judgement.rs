//! What a broker says at its start, compared with what was told by those before it.

use std::collections::{BTreeMap, BTreeSet};

use gpu_api::{DeviceList, EndReason, Lease, LeaseState, Policy, Queue};
use gpu_manager_tests::Dice;
use jiff::Timestamp;

use super::ledger::{Belief, Claim, Cordoned, Ledger, Stop};
use super::world::{CARDS, LAB, LAB_DEVICES, LAB_MEMORY, policy};

/// What a broker says at its start.
#[derive(Clone)]
pub(super) struct Found {
    /// By the names of their holders, which are the names of their claims.
    pub(super) live: BTreeMap<String, Lease>,
    /// Those that clients believe in, and that are not live.
    pub(super) over: BTreeMap<String, Lease>,
    pub(super) devices: DeviceList,
    pub(super) queue: Queue,
    pub(super) policy: Policy,
}

/// What the test itself knows of the world at that moment.
pub(super) struct Scene {
    pub(super) now: u64,
    /// When the last broker that anybody asked was gone, by the civil clock.
    pub(super) died_at: Timestamp,
    /// The claims whose processes live.
    pub(super) children: BTreeSet<String>,
}

impl Ledger {
    /// Holds a broker to everything that those before it said.
    pub(super) fn judge(&mut self, found: &Found, scene: &Scene) {
        let live = &found.live;
        self.holds_leases(live, &found.over);
        self.holds_what_nobody_asks_again(live, scene);
        self.holds_children(live, scene);
        self.holds_emergencies(live);
        self.note_ended(live);
        self.holds_places(&found.queue);
        nothing_is_granted_twice(live, &found.devices);
        quotas_hold(live);
        self.holds_cordons(&found.devices, scene.now);
        self.holds_policy(&found.policy);
        self.begin_life(scene.now);
    }

    fn holds_leases(&mut self, live: &BTreeMap<String, Lease>, over: &BTreeMap<String, Lease>) {
        for (key, lease) in live.iter().chain(over) {
            assert!(self.claims.contains_key(key), "nobody asked for {lease:?}");
            self.recognise(key, lease);
            self.saw_fence(lease, false);
            let is_row = lease.state != LeaseState::Waiting || self.claims[key].queues();
            assert!(is_row, "{key} waited on a connection: {lease:?}");
        }
        for (key, claim) in &self.claims {
            self.holds(key, claim, live.get(key).or(over.get(key)));
        }
    }

    fn holds(&self, key: &str, claim: &Claim, found: Option<&Lease>) {
        match claim.belief {
            Belief::Asked | Belief::Leaving => {}
            Belief::Refused => assert!(found.is_none(), "{key} was refused: {found:?}"),
            Belief::Waiting => {
                let kept = found.is_some_and(|lease| !lease.is_over());
                let kept = kept || self.was_stopped(found, claim.asked_at);
                assert!(kept, "{key} lost its place: {claim:?}, now {found:?}");
            }
            Belief::Held => {
                // An emergency that was over before the grant was told has said so if it ended it.
                let since = claim.told_at.unwrap_or(claim.asked_at);
                let kept = found.is_some_and(Lease::is_granted) || self.was_stopped(found, since);
                assert!(kept, "{key} was lost: {claim:?}, now {found:?}");
            }
            Belief::Over => {
                let is_over = found.is_none_or(Lease::is_over);
                assert!(is_over, "{key} has risen: {claim:?}, now {found:?}");
            }
        }
    }

    /// Whether it was ended by an emergency that can have come since then.
    fn was_stopped(&self, found: Option<&Lease>, since: u64) -> bool {
        found.is_some_and(|lease| {
            let known = self.condemned.contains(&lease.id) || self.may_be_stopped(lease, since);
            known && lease.end_reason == Some(EndReason::Emergency)
        })
    }

    /// A request that died with its broker and is not sent again was granted before that, or never is.
    fn holds_what_nobody_asks_again(&mut self, live: &BTreeMap<String, Lease>, scene: &Scene) {
        let is_open = |claim: &&Claim| !claim.is_keyed && claim.belief == Belief::Asked;
        let open = self.claims.iter().filter(|(_, claim)| is_open(claim));
        let open: Vec<String> = open.map(|(key, _)| key.clone()).collect();
        for key in open {
            match live.get(&key).filter(|lease| lease.is_granted()) {
                Some(lease) => {
                    let granted: Option<Timestamp> =
                        lease.granted_at.as_ref().and_then(|at| at.parse().ok());
                    let in_time = granted.is_some_and(|granted| granted <= scene.died_at);
                    assert!(in_time, "granted to nobody: {lease:?}, {}", scene.died_at);
                    self.learn(&key, Belief::Held, lease.clone(), scene.now);
                }
                None => self.believe(&key, Belief::Refused),
            }
        }
    }

    /// What was ended under a living process is not free before that is gone, but by an emergency that does not look.
    fn holds_children(&self, live: &BTreeMap<String, Lease>, scene: &Scene) {
        for key in &scene.children {
            let claim = &self.claims[key];
            let Some(lease) = claim.lease.as_ref().filter(|lease| lease.fence.is_some()) else {
                continue;
            };
            let freed = self.may_be_freed(lease, claim.asked_at);
            let found = live.contains_key(key);
            assert!(found || freed, "{key} is free under its process: {claim:?}");
        }
    }

    /// What an emergency is known to have ended has ended, and one that nobody was told of did all or nothing.
    fn holds_emergencies(&self, live: &BTreeMap<String, Lease>) {
        let granted = |key: &&String| live.get(*key).is_some_and(Lease::is_granted);
        let is_condemned = |claim: &Claim| {
            let lease = claim.lease.as_ref();
            lease.is_some_and(|lease| self.condemned.contains(&lease.id))
        };
        let condemned = self.claims.iter().filter(|(_, claim)| is_condemned(claim));
        let risen = condemned.map(|(key, _)| key).find(granted);
        assert!(risen.is_none(), "an emergency had ended it: {risen:?}");
        for stop in self.stops.iter().filter(|stop| stop.over.is_none()) {
            let concerned = self.concerned_by(stop);
            let spared = concerned.iter().copied().filter(granted).count();
            let is_whole = spared == 0 || spared == concerned.len();
            assert!(is_whole, "{stop:?} spared {spared} of {concerned:?}");
        }
    }

    /// What was held on the card for sure when an emergency came, and still was to its holder.
    fn concerned_by(&self, stop: &Stop) -> Vec<&String> {
        let is_concerned = |claim: &Claim| {
            let Some(lease) = &claim.lease else {
                return false;
            };
            let before = claim.told_at.is_some_and(|told| told < stop.begun);
            let mut parts = lease.allocations.iter();
            let on = parts.any(|part| part.device == stop.card);
            claim.belief == Belief::Held && before && on && !self.condemned.contains(&lease.id)
        };
        let claims = self.claims.iter();
        let concerned = claims.filter(|(_, claim)| is_concerned(claim));
        concerned.map(|(key, _)| key).collect()
    }

    /// What is found to be over needs no emergency to come to explain it.
    fn note_ended(&mut self, live: &BTreeMap<String, Lease>) {
        for (key, claim) in &self.claims {
            let is_granted = live.get(key).is_some_and(Lease::is_granted);
            if let (Belief::Held, Some(lease), false) = (claim.belief, &claim.lease, is_granted) {
                self.condemned.insert(lease.id.clone());
            }
        }
    }

    /// Whoever was told of a place in the queue goes before everybody of its class who came after that.
    fn holds_places(&self, queue: &Queue) {
        let names = queue.waiters.iter().map(|lease| &lease.holder.name);
        let waiters: Vec<_> = names.map(|name| (name, &self.claims[name])).collect();
        for (place, (later, claim)) in waiters.iter().enumerate() {
            let passed = waiters[..place].iter().find(|(_, ahead)| {
                let same_class = ahead.class() == claim.class();
                let came_after = claim.placed_at.is_some_and(|at| at < ahead.asked_at);
                same_class && came_after
            });
            assert!(passed.is_none(), "{later} was passed by {passed:?}");
        }
    }

    fn holds_cordons(&mut self, devices: &DeviceList, now: u64) {
        for device in &devices.devices {
            let cordon = device.cordon.as_ref();
            let found = cordon.map(|cordon| cordon.reason.clone().unwrap_or_default());
            let Some(known) = self.cordons.get_mut(&device.id) else {
                assert_eq!(found, None, "nobody cordoned {}", device.id);
                continue;
            };
            let is_known = known.may_be.contains(&found);
            assert!(
                is_known,
                "{} has another cordon: {known:?}, now {found:?}",
                device.id
            );
            if known.may_be.len() > 1 {
                *known = Cordoned {
                    may_be: vec![found],
                    since: now,
                };
            }
        }
    }

    fn holds_policy(&mut self, found: &Policy) {
        let text = &found.files[0].text;
        let live = self.policies.iter().copied().find(|n| *text == policy(*n));
        let live = live.unwrap_or_else(|| panic!("neither of {:?}: {text}", self.policies));
        assert!(
            found.generation >= self.generation,
            "a generation again: {found:?}"
        );
        self.generation = found.generation;
        self.policies = vec![live];
    }

    fn begin_life(&mut self, now: u64) {
        let highest = self.fences.last_key_value().map_or(0, |(fence, _)| *fence);
        self.fence_floor = (now, highest);
        for stop in &mut self.stops {
            stop.over.get_or_insert(now);
        }
    }

    /// Some of those that were told to be over.
    pub(super) fn sample_of_over(&self, seed: u64) -> Vec<Lease> {
        let is_over = |claim: &&Claim| claim.belief == Belief::Over;
        let over = self.claims.values().filter(is_over);
        let over: Vec<&Lease> = over
            .filter_map(|claim| claim.lease.as_ref())
            .filter(|lease| lease.is_over())
            .collect();
        let mut dice = Dice::new(seed);
        let count = over.len().min(4);
        (0..count)
            .map(|_| Lease::clone(dice.pick::<&Lease>(&over)))
            .collect()
    }
}

fn nothing_is_granted_twice(live: &BTreeMap<String, Lease>, devices: &DeviceList) {
    assert_eq!(devices.devices.len() as u64, CARDS);
    for device in &devices.devices {
        let parts = live.values().flat_map(|lease| &lease.allocations);
        let parts: Vec<_> = parts.filter(|part| part.device == device.id).collect();
        let granted: u64 = parts.iter().map(|part| part.memory).sum();
        let alone = parts.iter().filter(|part| part.exclusive).count();
        assert!(granted <= device.memory.total, "{granted} on {device:?}");
        assert!(
            alone == 0 || parts.len() == 1,
            "alone beside others: {device:?}"
        );
        assert_eq!(granted, device.memory.granted, "{device:?}");
    }
}

fn quotas_hold(live: &BTreeMap<String, Lease>) {
    let of_lab = |lease: &&Lease| lease.holder.tenant.as_deref() == Some(LAB);
    let leases = live.values().filter(of_lab);
    let parts: Vec<_> = leases.flat_map(|lease| &lease.allocations).collect();
    assert!(parts.len() as u64 <= LAB_DEVICES, "{parts:#?}");
    let memory: u64 = parts.iter().map(|part| part.memory).sum();
    assert!(memory <= LAB_MEMORY, "{parts:#?}");
}
