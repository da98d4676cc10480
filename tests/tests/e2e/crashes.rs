//! Brokers that are killed at any time and at every named moment while real clients work, and a ledger of what those
//! clients were told, which every next broker is held to.
//!
//! `EVIDENCE_LIVES` makes the stories longer, `EVIDENCE_SEED` makes them others.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gpu_api::{DeviceList, EmergencyResult, Lease, LeaseList, LeaseState, Policy, paths};
use gpu_manager_tests::{
    Address, Answer, Attempt, Dice, Host, POLICY, Process, Request, SOON, evidence, gib,
    number_from_env,
};
use serde_json::{Value, json};

const CLIENTS: usize = 6;
const CARDS: u64 = 3;
/// One client has no more requests open than this.
const OPEN_MAX: usize = 4;
/// A life in which the moment that is waited for does not come is ended after this.
const LONG_LIFE: Duration = Duration::from_secs(8);
const FAIL_POINT: &str = "GPU_MANAGER_FAIL_POINT";

/// What is known of one request: what its client was told, and what was asked and not answered.
#[derive(Clone, Debug)]
struct Claim {
    body: Value,
    belief: Belief,
    /// When it was first asked for.
    asked_at: u64,
    /// When its grant was told.
    told_at: Option<u64>,
    lease: Option<Lease>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belief {
    /// Asked for, without an answer.
    Asked,
    /// It was refused, or its wait was over.
    Refused,
    /// It is in the queue.
    Waiting,
    /// It was granted.
    Held,
    /// It was given back or cancelled, without an answer.
    Leaving,
    /// It was told to be over.
    Over,
}

/// An emergency release of one card.
#[derive(Clone, Debug)]
struct Stop {
    card: String,
    begun: u64,
    /// When it was told to be done, or the broker that was to do it was gone.
    over: Option<u64>,
}

/// What clients were told in all lives.
#[derive(Default)]
struct Ledger {
    claims: BTreeMap<String, Claim>,
    /// Fences that were ever seen, and whose they are.
    fences: BTreeMap<u64, String>,
    /// No grant that was asked for since this moment is at or below this fence.
    fence_floor: (u64, u64),
    stops: Vec<Stop>,
    /// Leases that an emergency is known to have ended.
    condemned: BTreeSet<String>,
    /// The policies that may be live, the one that was told last first.
    policies: Vec<u64>,
    generation: u64,
    told: u64,
    uncertain: u64,
}

struct World {
    host: Host,
    broker: Address,
    clock: AtomicU64,
    keys: AtomicU64,
    switches: AtomicU64,
    ledger: Mutex<Ledger>,
}

/// The broker ended while it was asked.
struct Gone;

/// How a life is to end.
#[derive(Clone, Debug)]
enum Death {
    /// By a signal after so long.
    After(Duration),
    /// By itself when it gets to a named moment the n-th time.
    At(&'static str, u64),
}

fn policy(n: u64) -> String {
    format!("{POLICY}[queue]\nmax_waiting = {}\n", 100 + n)
}

impl Stop {
    /// Whether what was asked for at `since` can have been there when it was done.
    fn can_concern(&self, since: u64) -> bool {
        self.over.is_none_or(|over| over > since)
    }
}

impl Ledger {
    /// A fence that a client was told or that was found.
    fn saw_fence(&mut self, lease: &Lease, is_new: bool) {
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

    fn learn(&mut self, key: &str, belief: Belief, lease: Lease, now: u64) {
        let is_new = self.claims[key].asked_at > self.fence_floor.0;
        self.saw_fence(&lease, is_new);
        let claim = self.claims.get_mut(key).unwrap();
        if let Some(known) = &claim.lease {
            assert_eq!(known.id, lease.id, "{key} is another lease");
            let same = known.fence.is_none() || lease.fence == known.fence;
            assert!(same, "{key} has another fence: {known:?}, now {lease:?}");
        }
        claim.belief = belief;
        if lease.fence.is_some() {
            claim.told_at.get_or_insert(now);
        }
        // The secret is told once.
        let secret = claim.lease.take().and_then(|known| known.secret);
        claim.lease = Some(Lease {
            secret: lease.secret.clone().or(secret),
            ..lease
        });
    }

    /// Whether some emergency can have ended a lease on `card` that was asked for at `since`.
    fn may_be_stopped(&self, lease: &Lease, since: u64) -> bool {
        let on = |card: &str| lease.allocations.iter().any(|part| part.device == card);
        let mut stops = self.stops.iter();
        stops
            .any(|stop| stop.can_concern(since) && (on(&stop.card) || lease.allocations.is_empty()))
    }
}

impl World {
    fn new() -> Self {
        let host = Host::with_cards(CARDS as usize)
            .policy(&policy(0))
            .flags(&["--no-reload"]);
        Self {
            broker: Address::Unix(host.socket()),
            host,
            clock: AtomicU64::new(1),
            keys: AtomicU64::new(0),
            switches: AtomicU64::new(0),
            ledger: Mutex::new(Ledger {
                policies: vec![0],
                ..Ledger::default()
            }),
        }
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn ask(&self, request: &Request) -> Result<Answer, Gone> {
        match request.attempt(&self.broker) {
            Attempt::Answered(answer) => {
                self.ledger.lock().unwrap().told += 1;
                Ok(answer)
            }
            Attempt::Lost => {
                self.ledger.lock().unwrap().uncertain += 1;
                Err(Gone)
            }
            Attempt::Unsent => Err(Gone),
        }
    }

    fn update(&self, key: &str, belief: Belief) {
        self.ledger
            .lock()
            .unwrap()
            .claims
            .get_mut(key)
            .unwrap()
            .belief = belief;
    }

    fn claim(&self, key: &str) -> Claim {
        self.ledger.lock().unwrap().claims[key].clone()
    }

    /// What a whole answer says of a lease.
    fn told(&self, key: &str, answer: &Answer) {
        let now = self.now();
        let mut ledger = self.ledger.lock().unwrap();
        match answer.status {
            200..=202 => {
                let lease = answer.lease();
                let belief = match lease.state {
                    LeaseState::Waiting => Belief::Waiting,
                    LeaseState::Active | LeaseState::Draining => Belief::Held,
                    LeaseState::Reclaiming | LeaseState::Ended => Belief::Over,
                };
                let claim = &ledger.claims[key];
                let may_end = claim.belief == Belief::Leaving || belief != Belief::Over;
                let stopped = may_end || ledger.may_be_stopped(&lease, claim.asked_at);
                assert!(stopped, "{key} ended by nobody: {lease:?}");
                ledger.learn(key, belief, lease, now);
            }
            410 => {
                let claim = &ledger.claims[key];
                let since = claim.asked_at;
                let stopped = match &claim.lease {
                    Some(lease) => ledger.may_be_stopped(lease, since),
                    // Granted at last, and ended before that was told.
                    None => ledger.stops.iter().any(|stop| stop.can_concern(since)),
                };
                let is_expected = stopped || claim.belief == Belief::Leaving;
                assert!(is_expected, "{key} ended by nobody: {claim:?}");
                ledger.claims.get_mut(key).unwrap().belief = Belief::Over;
            }
            408 | 409 | 429 => {
                let claim = ledger.claims.get_mut(key).unwrap();
                assert!(
                    claim.lease.is_none(),
                    "{key} was a lease: {claim:?}, now {}",
                    answer.text()
                );
                claim.belief = Belief::Refused;
            }
            other => panic!("{key}: {other}: {}", answer.text()),
        }
    }

    fn acquire(&self, key: &str) -> Result<(), Gone> {
        let body = self.claim(key).body;
        let request = Request::post(paths::LEASES, &body).header("idempotency-key", key);
        let answer = self.ask(&request)?;
        self.told(key, &answer);
        Ok(())
    }

    /// A request that is not sent yet.
    fn new_claim(&self, dice: &mut Dice) -> String {
        let key = format!("k{}", self.keys.fetch_add(1, Ordering::Relaxed));
        let mut body = json!({"holder": {"name": key}, "ttl": "1h"});
        match dice.below(10) {
            0 => body["exclusive"] = json!(true),
            n => body["memory"] = json!(gib(2 * n)),
        }
        match dice.below(4) {
            0 => (body["queue"], body["wait"]) = (json!(true), json!("1h")),
            1 => body["wait"] = json!("30ms"),
            _ => {}
        }
        let claim = Claim {
            body,
            belief: Belief::Asked,
            asked_at: self.now(),
            told_at: None,
            lease: None,
        };
        self.ledger
            .lock()
            .unwrap()
            .claims
            .insert(key.clone(), claim);
        key
    }

    fn of_lease(&self, key: &str, method: &str, path: &str) -> Request {
        let lease = self.claim(key).lease.expect("it is known by its id");
        let secret = lease.secret.expect("whoever asked was told");
        Request::new(method, &paths::with_id(path, &lease.id)).header("x-lease-secret", &secret)
    }

    fn renew(&self, key: &str) -> Result<(), Gone> {
        let answer = self.ask(&self.of_lease(key, "POST", paths::LEASE_RENEW))?;
        self.told(key, &answer);
        Ok(())
    }

    fn release(&self, key: &str) -> Result<(), Gone> {
        self.update(key, Belief::Leaving);
        let answer = self.ask(&self.of_lease(key, "DELETE", paths::LEASE))?;
        self.told(key, &answer);
        Ok(())
    }

    fn stop_card(&self, dice: &mut Dice) -> Result<(), Gone> {
        let card = format!("sim-{}", dice.below(CARDS));
        let place = {
            let begun = self.now();
            let mut ledger = self.ledger.lock().unwrap();
            ledger.stops.push(Stop {
                card: card.clone(),
                begun,
                over: None,
            });
            ledger.stops.len() - 1
        };
        let body =
            json!({"devices": [card], "reason": "a story", "force_unsafe": dice.chance(1, 2)});
        let answer = self.ask(&Request::post(paths::EMERGENCY_RELEASE, &body))?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let result: EmergencyResult = answer.read();
        let now = self.now();
        let mut ledger = self.ledger.lock().unwrap();
        ledger.stops[place].over = Some(now);
        ledger
            .condemned
            .extend(result.released.into_iter().map(|lease| lease.id));
        Ok(())
    }

    fn switch_policy(&self) -> Result<(), Gone> {
        let n = 1 + self.switches.fetch_add(1, Ordering::Relaxed);
        self.host.rename_policy(&policy(n));
        self.ledger.lock().unwrap().policies.push(n);
        let answer = self.ask(&Request::post(paths::HOT_RELOAD, &json!({})))?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.ledger.lock().unwrap().policies = vec![n];
        Ok(())
    }

    /// One client for one life: what was left open first, then anything.
    fn work(&self, mine: &mut Vec<String>, dice: &mut Dice) -> Result<(), Gone> {
        for key in mine.clone() {
            match self.claim(&key).belief {
                Belief::Asked => self.acquire(&key)?,
                Belief::Leaving => self.release(&key)?,
                _ => {}
            }
        }
        loop {
            mine.retain(|key| !matches!(self.claim(key).belief, Belief::Refused | Belief::Over));
            let roll = dice.below(10);
            if mine.len() < OPEN_MAX && (mine.is_empty() || roll < 4) {
                let key = self.new_claim(dice);
                mine.push(key.clone());
                self.acquire(&key)?;
                continue;
            }
            let key = dice.pick(mine).clone();
            match roll {
                0..2 => self.acquire(&key)?,
                2..6 => self.renew(&key)?,
                _ => self.release(&key)?,
            }
        }
    }
}

/// A broker of the story, or that it ended before it granted.
enum Birth {
    Up(Process),
    Stillborn,
}

impl World {
    fn give_birth(&self, death: &Death) -> Birth {
        // A start in the middle of an edit: what was last good is live.
        if self.switches.load(Ordering::Relaxed) > 0 {
            self.host.write_policy("not a policy");
        }
        let armed;
        let environment: &[_] = match death {
            Death::After(_) => &[],
            Death::At(point, n) => {
                armed = [(FAIL_POINT, format!("{point}:{n}"))];
                &armed
                    .each_ref()
                    .map(|(name, value)| (*name, value.as_str()))
            }
        };
        let mut process = self.host.serve_in(environment, &[]);
        let end = Instant::now() + SOON;
        loop {
            if let Some(ran) = process.ended() {
                assert_eq!(ran.code, 137, "it was not killed: {}", ran.stderr);
                return Birth::Stillborn;
            }
            match Request::get(paths::READYZ).attempt(&self.broker) {
                Attempt::Answered(answer) if answer.status == 200 => return Birth::Up(process),
                _ => thread::sleep(Duration::from_millis(3)),
            }
            assert!(
                Instant::now() < end,
                "it never grants: {}",
                process.stderr()
            );
        }
    }

    /// One broker from its start to its end, under all clients; whether it ended as it was to.
    fn live(&self, clients: &mut [(Vec<String>, Dice)], death: &Death) -> bool {
        let mut process = match self.give_birth(death) {
            Birth::Up(process) => process,
            Birth::Stillborn => return true,
        };
        if self.hold_to_its_word().is_err() {
            return matches!(process.wait().code, 137);
        }
        let mut dice = clients[0].1.clone();
        thread::scope(|scope| {
            for (mine, dice) in clients.iter_mut() {
                scope.spawn(|| drop(self.work(mine, dice)));
            }
            let mut other = Dice::new(dice.below(u64::MAX));
            scope.spawn(move || {
                loop {
                    thread::sleep(Duration::from_millis(other.below(60)));
                    if self.stop_card(&mut other).is_err() {
                        return;
                    }
                }
            });
            scope.spawn(|| while self.switch_policy().is_ok() {});
            match death {
                Death::After(length) => {
                    thread::sleep(*length);
                    process.kill();
                    true
                }
                Death::At(..) => {
                    let end = Instant::now() + LONG_LIFE;
                    while process.ended().is_none() && Instant::now() < end {
                        thread::sleep(Duration::from_millis(2));
                    }
                    let by_itself = process.ended().is_some();
                    process.kill();
                    by_itself
                }
            }
        })
    }

    /// Compares what this broker says with what clients were told by those before it.
    fn hold_to_its_word(&self) -> Result<(), Gone> {
        let live = self.live_leases()?;
        let devices: DeviceList = self.look(paths::DEVICES)?;
        let policy: Policy = self.look(paths::POLICY)?;
        let mut ledger = self.ledger.lock().unwrap();
        ledger.holds_leases(&live);
        ledger.holds_emergencies(&live);
        ledger.note_ended(&live);
        nothing_is_granted_twice(&live, &devices);
        ledger.holds_policy(&policy);
        let now = self.now();
        ledger.begin_life(now);
        let over = ledger.sample_of_over(now);
        drop(ledger);
        self.over_stays_over(&over)
    }

    fn look<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Gone> {
        match Request::get(path).attempt(&self.broker) {
            Attempt::Answered(answer) => Ok(answer.read()),
            Attempt::Lost | Attempt::Unsent => Err(Gone),
        }
    }

    /// By the names of their holders, which are their keys.
    fn live_leases(&self) -> Result<BTreeMap<String, Lease>, Gone> {
        let path = format!("{}?live=true&limit=1000", paths::LEASES);
        let LeaseList { leases, next } = self.look(&path)?;
        assert_eq!(next, None, "so many cannot be open");
        let mut live = BTreeMap::new();
        for lease in leases {
            let name = lease.holder.name.clone();
            let twice = live.insert(name, lease);
            assert!(twice.is_none(), "two leases of one key: {twice:?}");
        }
        Ok(live)
    }

    fn over_stays_over(&self, over: &[Lease]) -> Result<(), Gone> {
        for lease in over {
            let found: Lease = self.look(&paths::with_id(paths::LEASE, &lease.id))?;
            assert!(found.is_over() && found.fence == lease.fence, "{found:?}");
            if let Some(reason) = lease.end_reason {
                assert_eq!(found.end_reason, Some(reason), "{found:?}");
            }
            let renew = Request::new("POST", &paths::with_id(paths::LEASE_RENEW, &lease.id));
            match renew.attempt(&self.broker) {
                Attempt::Answered(answer) => assert_eq!(answer.status, 410, "{}", answer.text()),
                Attempt::Lost | Attempt::Unsent => return Err(Gone),
            }
        }
        Ok(())
    }
}

impl Ledger {
    fn holds_leases(&mut self, live: &BTreeMap<String, Lease>) {
        for (key, lease) in live {
            assert!(self.claims.contains_key(key), "nobody asked for {lease:?}");
            self.saw_fence(lease, false);
        }
        for (key, claim) in &self.claims {
            let found = live.get(key);
            let (known, granted) = (claim.lease.as_ref(), found.is_some_and(Lease::is_granted));
            if let (Some(known), Some(found)) = (known, found) {
                let same = known.fence.is_none() || known.fence == found.fence;
                assert!(
                    known.id == found.id && same,
                    "{key}: {known:?}, now {found:?}"
                );
            }
            match claim.belief {
                Belief::Asked | Belief::Leaving => {}
                Belief::Refused => assert!(found.is_none(), "{key} was refused: {found:?}"),
                Belief::Waiting => {
                    let lease = known.expect("it was told");
                    let stopped = self.may_be_stopped(lease, claim.asked_at);
                    assert!(
                        found.is_some() || stopped,
                        "{key} lost its place: {claim:?}"
                    );
                }
                Belief::Held => {
                    let lease = known.expect("it was told");
                    // An emergency that was over before the grant was told has said so if it ended it.
                    let since = claim.told_at.unwrap_or(claim.asked_at);
                    let stopped =
                        self.condemned.contains(&lease.id) || self.may_be_stopped(lease, since);
                    assert!(
                        granted || stopped,
                        "{key} was lost: {claim:?}, now {found:?}"
                    );
                }
                Belief::Over => {
                    let is_over = found.is_none_or(Lease::is_over);
                    assert!(is_over, "{key} has risen: {claim:?}, now {found:?}");
                }
            }
        }
    }

    /// What an emergency is known to have ended has ended, and one that nobody was told of did all or nothing.
    fn holds_emergencies(&self, live: &BTreeMap<String, Lease>) {
        let granted = |claim: &&Claim| {
            let lease = claim.lease.as_ref().unwrap();
            live.get(&lease.holder.name).is_some_and(Lease::is_granted)
        };
        let mut known = self.claims.values().filter(|claim| claim.lease.is_some());
        let risen = known.find(|claim| {
            let id = &claim.lease.as_ref().unwrap().id;
            self.condemned.contains(id) && granted(claim)
        });
        assert!(risen.is_none(), "an emergency had ended it: {risen:?}");
        for stop in self.stops.iter().filter(|stop| stop.over.is_none()) {
            let concerned = self.concerned_by(stop);
            let spared = concerned.iter().filter(|claim| granted(claim)).count();
            let is_whole = spared == 0 || spared == concerned.len();
            assert!(is_whole, "{stop:?} spared {spared} of {concerned:#?}");
        }
    }

    /// What was held on the card for sure when an emergency came, and still was to its holder.
    fn concerned_by(&self, stop: &Stop) -> Vec<&Claim> {
        let is_concerned = |claim: &&Claim| {
            let Some(lease) = &claim.lease else {
                return false;
            };
            let before = claim.told_at.is_some_and(|told| told < stop.begun);
            let on = lease
                .allocations
                .iter()
                .any(|part| part.device == stop.card);
            claim.belief == Belief::Held && before && on && !self.condemned.contains(&lease.id)
        };
        self.claims.values().filter(is_concerned).collect()
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
    fn sample_of_over(&self, seed: u64) -> Vec<Lease> {
        let over = self
            .claims
            .values()
            .filter(|claim| claim.belief == Belief::Over);
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

/// A world of clients, and how it went.
struct Story {
    name: &'static str,
    seed: u64,
    world: World,
    clients: Vec<(Vec<String>, Dice)>,
    dice: Dice,
    lives: u64,
    hits: BTreeMap<&'static str, u64>,
    began: Instant,
}

impl Story {
    fn new(name: &'static str, number: u64) -> Self {
        let seed = number_from_env("EVIDENCE_SEED", 1) + number;
        let client = |n: usize| (Vec::new(), Dice::new((seed << 8) | (n as u64 + 1)));
        Self {
            name,
            seed,
            world: World::new(),
            clients: (0..CLIENTS).map(client).collect(),
            dice: Dice::new(seed),
            lives: 0,
            hits: BTreeMap::new(),
            began: Instant::now(),
        }
    }

    fn live(&mut self, death: &Death) {
        self.lives += 1;
        let ended = self.world.live(&mut self.clients, death);
        if let (Death::At(point, _), true) = (death, ended) {
            *self.hits.entry(point).or_default() += 1;
        }
    }

    fn live_a_while(&mut self) {
        let length = Duration::from_micros(self.dice.below(250_000));
        self.live(&Death::After(length));
    }

    fn live_until(&mut self, point: &'static str, most: u64) {
        let n = 1 + self.dice.below(most);
        self.live(&Death::At(point, n));
    }

    /// Ends with a broker that is held to everything once more.
    fn end(mut self, hits_wanted: &[(&'static str, u64)]) {
        self.live(&Death::After(Duration::from_millis(100)));
        let ledger = self.world.ledger.lock().unwrap();
        let granted = ledger.fences.len();
        eprintln!(
            "kill -9, {}: seed {}, {} lives, {} answers, {} without one, {} requests, {granted} grants, {} emergencies, \
             {} switches, hits {:?}, {:.1?}",
            self.name,
            self.seed,
            self.lives,
            ledger.told,
            ledger.uncertain,
            ledger.claims.len(),
            ledger.stops.len(),
            self.world.switches.load(Ordering::Relaxed),
            self.hits,
            self.began.elapsed()
        );
        assert!(
            ledger.told > self.lives && ledger.uncertain > 0 && granted > 0,
            "clients worked"
        );
        for (point, wanted) in hits_wanted {
            let hits = self.hits.get(point).copied().unwrap_or(0);
            assert!(
                hits >= *wanted,
                "`{point}` came {hits} times: was the program built with the feature `fail-points`? It is if all of \
                 the workspace is built, or `-p gpu-manager -p gpu-manager-tests`"
            );
        }
        let layer = format!("kills-{}", self.name.replace(' ', "-"));
        evidence::record(&layer, &[("lives", self.lives)]);
    }
}

fn lives(default: u64) -> u64 {
    number_from_env("EVIDENCE_LIVES", default)
}

#[test]
fn killed_at_any_time_a_broker_keeps_its_word() {
    let mut story = Story::new("at any time", 0);
    for _ in 0..lives(120) {
        story.live_a_while();
    }
    story.end(&[]);
}

#[test]
fn killed_at_every_moment_of_a_batch_a_broker_keeps_its_word() {
    let points = [
        "before_commit",
        "after_commit",
        "before_reply",
        "before_effects",
    ];
    let mut story = Story::new("in a batch", 1000);
    let each = lives(16);
    for _ in 0..each {
        for point in points {
            story.live_until(point, 60);
        }
    }
    story.end(&points.map(|point| (point, each)));
}

#[test]
fn killed_in_a_reload_or_an_emergency_a_broker_did_all_of_it_or_nothing() {
    let points = ["reload_switched", "emergency_applied"];
    let mut story = Story::new("in a reload or an emergency", 2000);
    let each = lives(20);
    for _ in 0..each {
        for point in points {
            story.live_until(point, 4);
        }
    }
    story.end(&points.map(|point| (point, each)));
}

#[test]
fn killed_again_while_it_recovers_a_broker_keeps_its_word() {
    let points = ["opening", "opened"];
    let mut story = Story::new("in recovery", 3000);
    let each = lives(20);
    for _ in 0..each {
        for point in points {
            story.live_a_while();
            story.live(&Death::At(point, 1));
        }
    }
    story.end(&points.map(|point| (point, each)));
}

/// A disk from a backup: what was told since is not true any more, and the ledger says so.
#[test]
fn a_broker_that_forgot_a_second_of_its_life_is_found_out() {
    let mut story = Story::new("of a backup", 4000);
    let length = Duration::from_millis(400);
    story.live(&Death::After(length));
    let store = story.world.host.state_dir().join("store.redb");
    let backup = std::fs::read(&store).unwrap();
    story.live(&Death::After(length));
    std::fs::write(&store, backup).unwrap();
    let Birth::Up(_process) = story.world.give_birth(&Death::After(length)) else {
        panic!("nobody killed it");
    };
    let held = std::panic::catch_unwind(AssertUnwindSafe(|| story.world.hold_to_its_word()));
    assert!(held.is_err(), "the ledger believed it");
}
