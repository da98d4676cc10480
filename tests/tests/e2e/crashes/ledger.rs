//! What clients and operators were told in all lives, and what they asked and were not answered.

use std::collections::{BTreeMap, BTreeSet};

use gpu_api::{EndReason, Lease, LeaseState};
use gpu_manager_tests::Answer;
use serde_json::Value;

/// What is known of one request: what its client was told, and what was asked and not answered.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) body: Value,
    /// It is sent again under its key until it is answered; otherwise it is sent once.
    pub(super) is_keyed: bool,
    pub(super) belief: Belief,
    /// When it was first asked for.
    pub(super) asked_at: u64,
    /// When its place in the queue was told.
    pub(super) placed_at: Option<u64>,
    /// When its grant was told.
    pub(super) told_at: Option<u64>,
    pub(super) lease: Option<Lease>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belief {
    /// Asked for, without an answer.
    Asked,
    /// It was refused, or its wait was over.
    Refused,
    /// It is in the queue.
    Waiting,
    /// It was granted.
    Held,
    /// It was given back or cancelled, or its process was ended, without an answer.
    Leaving,
    /// It was told to be over.
    Over,
}

/// An emergency release of one card.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) card: String,
    /// It believes that the memory is free without looking.
    pub(super) frees: bool,
    pub(super) begun: u64,
    /// When it was told to be done, or the broker that was to do it was gone.
    pub(super) over: Option<u64>,
}

/// What is known of the cordon of one card.
#[derive(Clone, Debug)]
pub(super) struct Cordoned {
    /// The reasons that may stand there, one of them for sure; `None` is no cordon.
    pub(super) may_be: Vec<Option<String>>,
    /// Since when only one of them can.
    pub(super) since: u64,
}

/// What was told in all lives.
#[derive(Clone, Default)]
pub(super) struct Ledger {
    pub(super) claims: BTreeMap<String, Claim>,
    /// Fences that were ever seen, and whose they are.
    pub(super) fences: BTreeMap<u64, String>,
    /// No grant that was asked for since this moment is at or below this fence.
    pub(super) fence_floor: (u64, u64),
    pub(super) stops: Vec<Stop>,
    /// Leases that an emergency is known to have ended.
    pub(super) condemned: BTreeSet<String>,
    pub(super) cordons: BTreeMap<String, Cordoned>,
    /// The policies that may be live, the one that was told last first.
    pub(super) policies: Vec<u64>,
    pub(super) generation: u64,
    pub(super) told: u64,
    pub(super) uncertain: u64,
}

impl Claim {
    /// One that is not sent yet.
    pub(super) fn new(body: Value, is_keyed: bool, now: u64) -> Self {
        Self {
            body,
            is_keyed,
            belief: Belief::Asked,
            asked_at: now,
            placed_at: None,
            told_at: None,
            lease: None,
        }
    }

    /// It waits as a row and not on its connection.
    pub(super) fn queues(&self) -> bool {
        self.body["queue"] == true
    }

    /// Its lease lives as long as a process.
    pub(super) fn has_process(&self) -> bool {
        self.body["holder"]["kind"] == "process"
    }

    pub(super) fn class(&self) -> &str {
        self.body["class"].as_str().unwrap_or("standard")
    }

    fn count(&self) -> u64 {
        self.body["devices"].as_u64().unwrap_or(1)
    }

    /// Whether `lease` is what was asked for: all of it or, as long as it is not granted, nothing.
    fn fits(&self, lease: &Lease) -> bool {
        let asked = &self.body["holder"];
        let holder = &lease.holder;
        let is_its_holder = asked["name"] == *holder.name
            && asked["tenant"].as_str() == holder.tenant.as_deref()
            && asked["pid"].as_u64() == holder.pid.map(u64::from);
        let devices: BTreeSet<_> = lease.allocations.iter().map(|part| &part.device).collect();
        let is_whole = lease.fence.is_none() || devices.len() as u64 == self.count();
        let mut parts = lease.allocations.iter();
        let memory = self.body["memory"].as_u64();
        let amounts = parts.all(|part| memory.is_none_or(|memory| part.memory == memory));
        is_its_holder && is_whole && amounts && lease.class == self.class()
    }
}

impl Stop {
    /// Whether what was asked for at `since` can have been there when it was done.
    pub(super) fn can_concern(&self, since: u64) -> bool {
        self.over.is_none_or(|over| over > since)
    }
}

impl Ledger {
    /// A claim is the same lease in all lives.
    pub(super) fn recognise(&self, key: &str, lease: &Lease) {
        let claim = &self.claims[key];
        assert!(
            claim.fits(lease),
            "{key} is not what was asked for: {claim:?}, now {lease:?}"
        );
        if let Some(known) = &claim.lease {
            assert_eq!(known.id, lease.id, "{key} is another lease");
            let same = known.fence.is_none() || lease.fence == known.fence;
            assert!(same, "{key} has another fence: {known:?}, now {lease:?}");
        }
    }

    /// A fence that a client was told or that was found.
    pub(super) fn saw_fence(&mut self, lease: &Lease, is_new: bool) {
        let Some(fence) = lease.fence else {
            return;
        };
        let id = self.fences.entry(fence).or_insert_with(|| lease.id.clone());
        assert_eq!(*id, lease.id, "fence {fence} was given twice");
        let floor = self.fence_floor.1;
        assert!(
            !is_new || fence > floor,
            "fence {fence} does not exceed {floor}"
        );
    }

    pub(super) fn learn(&mut self, key: &str, belief: Belief, lease: Lease, now: u64) {
        let is_new = self.claims[key].asked_at > self.fence_floor.0;
        self.saw_fence(&lease, is_new);
        self.recognise(key, &lease);
        let claim = self.claims.get_mut(key).expect("it was recognised");
        claim.belief = belief;
        let told = match lease.fence {
            Some(_) => &mut claim.told_at,
            None => &mut claim.placed_at,
        };
        told.get_or_insert(now);
        // The secret is told once.
        let secret = claim.lease.take().and_then(|known| known.secret);
        claim.lease = Some(Lease {
            secret: lease.secret.clone().or(secret),
            ..lease
        });
    }

    /// How often each kind of story came to its point.
    pub(super) fn census(&self) -> BTreeMap<&'static str, usize> {
        let count = |is_one: &dyn Fn(&Claim) -> bool| {
            let claims = self.claims.values();
            claims.filter(|claim| is_one(claim)).count()
        };
        let was_granted = |claim: &Claim| claim.told_at.is_some();
        let is_over = |claim: &Claim| claim.belief == Belief::Over;
        let has_class = |claim: &Claim| claim.class() != "standard";
        let was_of_lab =
            |claim: &Claim| was_granted(claim) && !claim.body["holder"]["tenant"].is_null();
        BTreeMap::from([
            (
                "of two devices",
                count(&|claim| was_granted(claim) && claim.count() == 2),
            ),
            ("of a tenant", count(&was_of_lab)),
            (
                "of a class",
                count(&|claim| was_granted(claim) && has_class(claim)),
            ),
            (
                "told a place in the queue",
                count(&|claim| claim.placed_at.is_some()),
            ),
            (
                "granted after that",
                count(&|claim| claim.placed_at.is_some() && was_granted(claim)),
            ),
            (
                "ended with a process",
                count(&|claim| claim.has_process() && is_over(claim)),
            ),
            (
                "died with a connection",
                count(&|claim| !claim.is_keyed && !was_granted(claim)),
            ),
        ])
    }

    /// What a whole answer says of a lease.
    pub(super) fn hear(&mut self, key: &str, answer: &Answer, now: u64) {
        match answer.status {
            200..=202 => self.hear_lease(key, answer.lease(), now),
            410 => self.hear_end(key),
            408 | 409 | 429 => self.hear_refusal(key, answer),
            other => panic!("{key}: {other}: {}", answer.text()),
        }
    }

    fn hear_lease(&mut self, key: &str, lease: Lease, now: u64) {
        let claim = &self.claims[key];
        let belief = match lease.state {
            LeaseState::Waiting => Belief::Waiting,
            LeaseState::Active | LeaseState::Draining => Belief::Held,
            LeaseState::Reclaiming | LeaseState::Ended => Belief::Over,
        };
        match lease.end_reason {
            None => self.stands_on_open_cards(claim, &lease),
            Some(reason) => assert!(
                self.explains_end(claim, &lease, reason),
                "{key} ended by nobody: {claim:?}, now {lease:?}"
            ),
        }
        self.learn(key, belief, lease, now);
    }

    fn hear_end(&mut self, key: &str) {
        let claim = &self.claims[key];
        let since = claim.asked_at;
        let stopped = match &claim.lease {
            Some(lease) => self.may_be_stopped(lease, since),
            // Granted at last, and ended before that was told.
            None => self.stops.iter().any(|stop| stop.can_concern(since)),
        };
        let is_expected = stopped || claim.belief == Belief::Leaving;
        assert!(is_expected, "{key} ended by nobody: {claim:?}");
        self.believe(key, Belief::Over);
    }

    fn hear_refusal(&mut self, key: &str, answer: &Answer) {
        let claim = &self.claims[key];
        assert!(
            claim.lease.is_none(),
            "{key} was a lease: {claim:?}, now {}",
            answer.text()
        );
        self.believe(key, Belief::Refused);
    }

    /// The claims that are believed to hold or to wait, with their leases.
    pub(super) fn believed(&self) -> Vec<(String, String)> {
        let claims = self.claims.iter();
        let believed =
            claims.filter(|(_, claim)| matches!(claim.belief, Belief::Held | Belief::Waiting));
        believed
            .filter_map(|(key, claim)| Some((key.clone(), claim.lease.as_ref()?.id.clone())))
            .collect()
    }

    pub(super) fn believe(&mut self, key: &str, belief: Belief) {
        let claim = self.claims.get_mut(key).expect("it was asked for");
        claim.belief = belief;
    }

    /// Nothing runs out here, so that whatever ended was ended by its holder, with its process, or in an emergency.
    fn explains_end(&self, claim: &Claim, lease: &Lease, reason: EndReason) -> bool {
        let is_leaving = matches!(claim.belief, Belief::Leaving | Belief::Over);
        match reason {
            EndReason::Cancelled | EndReason::Released => is_leaving,
            EndReason::ProcessGone => is_leaving && claim.has_process(),
            EndReason::Emergency => self.may_be_stopped(lease, claim.asked_at),
            _ => false,
        }
    }

    /// Whether some emergency can have ended `lease` that was asked for at `since`.
    pub(super) fn may_be_stopped(&self, lease: &Lease, since: u64) -> bool {
        let on = |card: &str| lease.allocations.iter().any(|part| part.device == card);
        let mut stops = self.stops.iter();
        stops
            .any(|stop| stop.can_concern(since) && (on(&stop.card) || lease.allocations.is_empty()))
    }

    /// Whether some emergency can have freed its memory although nobody knows that its process is gone.
    pub(super) fn may_be_freed(&self, lease: &Lease, since: u64) -> bool {
        let on = |card: &str| lease.allocations.iter().any(|part| part.device == card);
        let mut stops = self.stops.iter().filter(|stop| stop.frees);
        stops.any(|stop| stop.can_concern(since) && on(&stop.card))
    }

    /// What is asked for while a card is cordoned is not granted there.
    fn stands_on_open_cards(&self, claim: &Claim, lease: &Lease) {
        let closed = lease.allocations.iter().find(|part| {
            let cordoned = self.cordons.get(&part.device);
            cordoned.is_some_and(|cordoned| cordoned.is_closed_since(claim.asked_at))
        });
        assert!(closed.is_none(), "{closed:?} is cordoned: {lease:?}");
    }
}

impl Cordoned {
    /// Whether there is a cordon that was there at `moment` too.
    fn is_closed_since(&self, moment: u64) -> bool {
        matches!(&*self.may_be, [Some(_)]) && self.since < moment
    }
}
