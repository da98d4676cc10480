//! Sixteen clients that ask the real broker at once, and brokers that are killed under them: what they were told is
//! explained by one order of things, device by device.
//!
//! `EVIDENCE_HISTORIES` histories of each story are made, from `EVIDENCE_SEED` on.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gpu_api::{DeviceList, EmergencyResult, EndReason, FenceAnswer, Lease, LeaseState, paths};
use gpu_manager_tests::Request;
use gpu_manager_tests::{
    Address, Amount, Answer, Attempt, Call, Calls, Dice, End, Grant, Host, LeaseTable, Op, Phase,
    Ret, SOON, Seen, evidence, gib, linearize, number_from_env,
};
use serde_json::json;

const CLIENTS: usize = 16;
const OPERATIONS: u64 = 1_000;
const CARDS: usize = 3;
const CARD_BYTES: u64 = gib(24);

/// What is taken back by force stays out of use until somebody frees it: no story takes an hour.
const PATIENT: &str = "schema = 1\n[placement]\nreserve = \"0B\"\n[reclaim]\ndelay = \"1h\"\nquarantine_after = \"1h\"\n";

/// What all clients of one history share.
struct Scene {
    broker: Address,
    clock: AtomicU64,
    answered: AtomicU64,
    next_key: AtomicU64,
    /// Leases by their numbers.
    names: Mutex<Vec<String>>,
    /// What anybody was ever granted.
    granted: Mutex<Vec<Known>>,
    life: Mutex<u64>,
    born: Condvar,
}

/// A lease that some client was told of.
#[derive(Clone, Debug)]
struct Known {
    key: u32,
    card: usize,
    amount: Amount,
    fence: u64,
    id: String,
    secret: String,
}

/// One client, and what it saw of each card.
struct Client<'a> {
    number: usize,
    scene: &'a Scene,
    dice: Dice,
    holds: Vec<Known>,
    calls: Vec<(usize, Call<Op, Ret>)>,
}

impl Scene {
    fn of(host: &Host) -> Self {
        Self {
            broker: Address::Unix(host.socket()),
            clock: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            next_key: AtomicU64::new(0),
            names: Mutex::default(),
            granted: Mutex::default(),
            life: Mutex::new(0),
            born: Condvar::new(),
        }
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn number_of(&self, id: &str) -> u32 {
        let mut names = self.names.lock().unwrap();
        let place = names.iter().position(|name| name == id);
        let place = place.unwrap_or_else(|| {
            names.push(id.to_owned());
            names.len() - 1
        });
        u32::try_from(place).unwrap()
    }

    fn present_life(&self) -> u64 {
        *self.life.lock().unwrap()
    }

    fn begin_life(&self) {
        *self.life.lock().unwrap() += 1;
        self.born.notify_all();
    }

    /// Waits for a broker that was started after `life`.
    fn outlive(&self, life: u64) {
        let present = self.life.lock().unwrap();
        let waited = self
            .born
            .wait_timeout_while(present, SOON, |now| *now <= life);
        assert!(
            !waited.unwrap().1.timed_out(),
            "no broker after life {life}"
        );
    }
}

impl<'a> Client<'a> {
    fn new(number: usize, scene: &'a Scene, seed: u64) -> Self {
        Self {
            number,
            scene,
            dice: Dice::new(seed ^ ((number as u64 + 1) << 32)),
            holds: Vec::new(),
            calls: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<(usize, Call<Op, Ret>)> {
        while self.scene.answered.load(Ordering::Relaxed) < OPERATIONS {
            self.do_something();
        }
        self.calls
    }

    /// How everything ended.
    fn look_at_all(mut self) -> Vec<(usize, Call<Op, Ret>)> {
        let granted = self.scene.granted.lock().unwrap().clone();
        for lease in granted {
            let ret = self.look(&lease);
            assert!(ret.is_some(), "nobody kills it any more");
        }
        self.calls
    }

    fn do_something(&mut self) {
        let roll = self.dice.below(100);
        let mine = (!self.holds.is_empty()).then(|| self.dice.pick(&self.holds).clone());
        let theirs = self.anybodys();
        match (roll, mine, theirs) {
            (0..22, Some(lease), _) => drop(self.release(&lease)),
            (22..34, Some(lease), _) => drop(self.renew(&lease)),
            (34..40, Some(lease), _) => {
                self.acquire_until_told(lease.key, lease.card, lease.amount)
            }
            (40..48, _, Some(lease)) => drop(self.look(&lease)),
            (48..58, _, Some(lease)) => drop(self.check(&lease)),
            (58..62, _, Some(lease)) => drop(self.renew(&lease)),
            (62..65, _, Some(lease)) => self.revoke(&lease),
            (65..68, _, _) => self.emergency(false),
            (68..73, _, _) => self.emergency(true),
            (73..80, _, _) => self.look_at_card(),
            _ => self.acquire_anew(),
        }
    }

    fn anybodys(&mut self) -> Option<Known> {
        let granted = self.scene.granted.lock().unwrap();
        // Of late ones something is still to be learnt.
        let late = &granted[granted.len().saturating_sub(12)..];
        (!late.is_empty()).then(|| self.dice.pick(late).clone())
    }

    /// Asks, and writes down what came of it; what was not even sent never was.
    fn call(
        &mut self,
        card: usize,
        op: Op,
        request: &Request,
        read: impl Fn(&Scene, &Answer) -> Ret,
    ) -> Option<Ret> {
        let life = self.scene.present_life();
        let begun = self.scene.now();
        let attempt = request.attempt(&self.scene.broker);
        let answer = match &attempt {
            Attempt::Answered(answer) if answer.status == 503 => {
                thread::yield_now();
                return None;
            }
            Attempt::Answered(answer) => Some(read(self.scene, answer)),
            Attempt::Lost => None,
            Attempt::Unsent => {
                self.scene.outlive(life);
                return None;
            }
        };
        let at = self.scene.now();
        self.calls.push((
            card,
            Call {
                client: self.number,
                begun,
                op,
                answer: answer.clone().map(|ret| (at, ret)),
            },
        ));
        match &answer {
            Some(_) => drop(self.scene.answered.fetch_add(1, Ordering::Relaxed)),
            None => self.scene.outlive(life),
        }
        answer
    }

    fn acquire_anew(&mut self) {
        let key = self.scene.next_key.fetch_add(1, Ordering::Relaxed);
        let card = self.dice.below(CARDS as u64) as usize;
        let amount = match self.dice.below(8) {
            0 => Amount::Exclusive,
            n => Amount::Memory(gib(4 + 2 * n)),
        };
        self.acquire_until_told(u32::try_from(key).unwrap(), card, amount);
    }

    /// Asks again under the same key until there is an answer.
    fn acquire_until_told(&mut self, key: u32, card: usize, amount: Amount) {
        let select = format!("device.id == 'sim-{card}'");
        let mut body = json!({"select": select, "ttl": "1h"});
        match amount {
            Amount::Exclusive => body["exclusive"] = json!(true),
            Amount::Memory(bytes) => body["memory"] = json!(bytes),
        }
        let request = Request::post(paths::LEASES, &body);
        let request = request.header("idempotency-key", &format!("k{key}"));
        let op = Op::Acquire {
            key,
            amount,
            told: None,
        };
        let told = Mutex::new(None);
        loop {
            let answer = self.call(card, op, &request, |scene, answer| {
                let ret = read_lease(scene, answer);
                if let Ret::Lease(_) = ret {
                    *told.lock().unwrap() = Some(answer.lease());
                }
                ret
            });
            match answer {
                Some(Ret::Lease(seen)) if seen.phase == Phase::Held => break,
                Some(_) => return,
                None => {}
            }
        }
        let lease = told.into_inner().unwrap().expect("a lease was read");
        let known = Known {
            key,
            card,
            amount,
            fence: lease.fence.unwrap(),
            secret: lease.secret.expect("whoever asks is told the secret"),
            id: lease.id,
        };
        if !self.holds.iter().any(|held| held.key == key) {
            self.holds.push(known.clone());
            self.scene.granted.lock().unwrap().push(known);
        }
    }

    fn renew(&mut self, lease: &Known) -> Option<Ret> {
        let path = paths::with_id(paths::LEASE_RENEW, &lease.id);
        let request = Request::new("POST", &path).header("x-lease-secret", &lease.secret);
        self.call(lease.card, Op::Renew(lease.key), &request, read_lease)
    }

    fn release(&mut self, lease: &Known) -> Option<Ret> {
        self.holds.retain(|held| held.key != lease.key);
        let path = paths::with_id(paths::LEASE, &lease.id);
        let request = Request::new("DELETE", &path).header("x-lease-secret", &lease.secret);
        self.call(lease.card, Op::Release(lease.key), &request, read_lease)
    }

    fn look(&mut self, lease: &Known) -> Option<Ret> {
        let request = Request::get(&paths::with_id(paths::LEASE, &lease.id));
        self.call(lease.card, Op::Look(lease.key), &request, read_lease)
    }

    fn revoke(&mut self, lease: &Known) {
        let path = paths::with_id(paths::LEASE_REVOKE, &lease.id);
        let request = Request::post(&path, &json!({}));
        self.call(lease.card, Op::Revoke(lease.key), &request, read_lease);
    }

    fn check(&mut self, lease: &Known) -> Option<Ret> {
        let device = format!("sim-{}", lease.card);
        let body = json!({"device": device, "fence": lease.fence});
        let request = Request::post(paths::FENCES_CHECK, &body);
        self.call(lease.card, Op::Check(lease.fence), &request, |_, answer| {
            Ret::Current(answer.read::<FenceAnswer>().current)
        })
    }

    fn emergency(&mut self, frees: bool) {
        let card = self.dice.below(CARDS as u64) as usize;
        let device = format!("sim-{card}");
        let body = json!({"devices": [device], "reason": "a story", "force_unsafe": frees});
        let request = Request::post(paths::EMERGENCY_RELEASE, &body);
        let op = if frees { Op::Free } else { Op::Stop };
        self.call(card, op, &request, |scene, answer| {
            let EmergencyResult {
                released,
                cancelled,
                ..
            } = answer.read();
            match cancelled.is_empty() {
                true => Ret::Ended(
                    released
                        .iter()
                        .map(|lease| scene.number_of(&lease.id))
                        .collect(),
                ),
                false => Ret::Unknown, // Nobody waits in this story.
            }
        });
    }

    fn look_at_card(&mut self) {
        let card = self.dice.below(CARDS as u64) as usize;
        let id = format!("sim-{card}");
        let request = Request::get(paths::DEVICES);
        self.call(card, Op::Taken, &request, |scene, answer| {
            let DeviceList { devices } = answer.read();
            let device = devices.into_iter().find(|device| device.id == id).unwrap();
            let leases = device.leases.iter();
            let leases = leases.map(|lease| scene.number_of(&lease.id)).collect();
            Ret::Taken(device.memory.granted, leases)
        });
    }
}

fn read_lease(scene: &Scene, answer: &Answer) -> Ret {
    match answer.status {
        200 | 201 => match seen(scene, &answer.lease()) {
            Some(seen) => Ret::Lease(seen),
            None => Ret::Unknown,
        },
        409 => Ret::Refused,
        410 => Ret::Gone,
        404 => Ret::Unknown,
        other => panic!("{other}: {}", answer.text()),
    }
}

fn seen(scene: &Scene, lease: &Lease) -> Option<Seen> {
    let end = match lease.end_reason {
        Some(EndReason::Emergency) => Some(End::Emergency),
        Some(EndReason::Released) => Some(End::Released),
        Some(EndReason::Revoked) => Some(End::Revoked),
        Some(_) => return None,
        None => None,
    };
    let phase = match (lease.state, end) {
        (LeaseState::Active, None) => Phase::Held,
        (LeaseState::Reclaiming, Some(end)) => Phase::Reclaiming(end),
        (LeaseState::Ended, Some(end)) => Phase::Ended(end),
        _ => return None,
    };
    Some(Seen {
        lease: scene.number_of(&lease.id),
        fence: lease.fence?,
        phase,
    })
}

/// What clients were told of each card in one run of a broker that is killed `kills` times meanwhile.
fn record(seed: u64, kills: u64) -> Vec<Calls<LeaseTable>> {
    let host = Host::with_cards(CARDS)
        .policy(PATIENT)
        .flags(&["--no-reload"]);
    let scene = Scene::of(&host);
    let mut broker = host.start();
    let mut dice = Dice::new(seed);
    let mut cards = vec![Vec::new(); CARDS];
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = Client::new(number, &scene, seed);
                scope.spawn(|| client.run())
            })
            .collect();
        for kill in 1..=kills {
            let at = OPERATIONS * kill / (kills + 1) + dice.below(100);
            wait_for(|| scene.answered.load(Ordering::Relaxed) >= at);
            broker.kill();
            broker = host.start();
            scene.begin_life();
        }
        let mut calls: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect();
        calls.push(Client::new(CLIENTS, &scene, seed).look_at_all());
        for (card, call) in calls.into_iter().flatten() {
            cards[card].push(call);
        }
    });
    cards.into_iter().map(with_what_was_told).collect()
}

fn wait_for(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + 4 * SOON;
    while !is_so() {
        assert!(Instant::now() < end, "the clients make no progress");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Answers that were lost are known from those that came later. Looks that were not answered tell nothing.
fn with_what_was_told(mut calls: Calls<LeaseTable>) -> Calls<LeaseTable> {
    let grants = grants(&calls);
    calls.retain(|call| call.answer.is_some() || !call.op.only_looks());
    for call in &mut calls {
        if let Op::Acquire { key, told, .. } = &mut call.op {
            *told = grants.get(key).copied();
        }
    }
    calls
}

/// By keys.
fn grants(calls: &Calls<LeaseTable>) -> BTreeMap<u32, Grant> {
    let (mut by_fence, mut ends) = (BTreeMap::new(), BTreeMap::new());
    for call in calls {
        let Some((_, Ret::Lease(seen))) = &call.answer else {
            continue;
        };
        if let Op::Acquire { key, .. } = call.op {
            by_fence.insert(seen.fence, (key, seen.lease));
        }
        let (Phase::Reclaiming(end) | Phase::Ended(end)) = seen.phase else {
            continue;
        };
        ends.insert(seen.lease, end);
    }
    let before = std::iter::once(0).chain(by_fence.keys().copied());
    let grant = |((&fence, &(key, lease)), before)| {
        let end = Some(ends.get(&lease).copied());
        (
            key,
            Grant {
                lease,
                fence,
                before,
                end,
            },
        )
    };
    by_fence.iter().zip(before).map(grant).collect()
}

/// Fences of all cards are one row of numbers.
fn no_fence_is_used_twice(cards: &[Calls<LeaseTable>]) {
    let mut leases: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    for call in cards.iter().flatten() {
        if let Some((_, Ret::Lease(seen))) = &call.answer {
            leases.entry(seen.fence).or_default().insert(seen.lease);
        }
    }
    let twice: Vec<_> = leases
        .iter()
        .filter(|(_, leases)| leases.len() > 1)
        .collect();
    assert!(twice.is_empty(), "{twice:?}");
}

fn write_down(name: &str, calls: &Calls<LeaseTable>, why: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut sorted: Vec<_> = calls.iter().collect();
    sorted.sort_by_key(|call| call.begun);
    let mut text = format!("{why}\n\n");
    for call in sorted {
        let _ = writeln!(text, "{call:?}");
    }
    fs::write(&path, text).unwrap();
    path
}

/// Makes histories, and refutes none of them.
fn check(story: &str, kills: u64) {
    let histories = number_from_env("EVIDENCE_HISTORIES", 12);
    let first = number_from_env("EVIDENCE_SEED", 1);
    let (mut operations, mut open, mut most) = (0, 0, Duration::ZERO);
    let began = Instant::now();
    for seed in first..first + histories {
        let cards = record(seed, kills);
        no_fence_is_used_twice(&cards);
        for (card, calls) in cards.iter().enumerate() {
            let checked = Instant::now();
            if let Err(refuted) = linearize(&LeaseTable::new(CARD_BYTES), calls, Op::only_looks) {
                let name = format!("history-{story}-{seed}-sim-{card}.txt");
                let path = write_down(&name, calls, &refuted.to_string());
                panic!(
                    "{story}, seed {seed}, sim-{card}: {refuted}\nall of it: {}",
                    path.display()
                );
            }
            most = most.max(checked.elapsed());
            operations += calls.len();
            open += calls.iter().filter(|call| call.answer.is_none()).count();
        }
    }
    let (took, lives) = (began.elapsed(), histories * (kills + 1));
    eprintln!(
        "linearizability, {story}: seeds {first}..{}, {histories} histories, {operations} operations, {open} without an \
         answer, {lives} lives, {took:.1?}, of that at most {most:.1?} to check one card",
        first + histories
    );
    let layer = format!("histories-{}", story.replace(' ', "-"));
    let at_least = [
        ("histories", histories),
        ("operations", histories * OPERATIONS),
    ];
    evidence::record(&layer, &at_least);
}

#[test]
fn histories_of_one_life_are_linearizable() {
    check("one life", 0);
}

#[test]
fn histories_over_a_kill_are_linearizable() {
    check("over a kill", 1);
}

#[test]
fn histories_over_three_kills_are_linearizable() {
    check("over three kills", 3);
}
