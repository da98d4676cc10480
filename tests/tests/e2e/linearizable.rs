//! Sixteen clients that ask the real broker at once, and brokers that are killed under them: what they were told is
//! explained by one order of things, device by device.
//!
//! `EVIDENCE_HISTORIES` histories of each story are made, from `EVIDENCE_SEED` on.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

mod clients;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use gpu_manager_tests::{
    Calls, Dice, History, Host, LeaseTable, Op, Ret, SOON, evidence, gib, linearize,
    number_from_env,
};

use clients::{Client, Scene};

const CLIENTS: usize = 16;
const OPERATIONS: u64 = 1_000;
const CARDS: usize = 3;
const CARD_BYTES: u64 = gib(24);

/// What is taken back by force stays out of use until somebody frees it: no story takes an hour.
const PATIENT: &str = "schema = 1\n[placement]\nreserve = \"0B\"\n[reclaim]\ndelay = \"1h\"\nquarantine_after = \"1h\"\n";

/// What clients were told of each card in one run of a broker that is killed `kills` times meanwhile.
fn record(seed: u64, kills: u64) -> Vec<History> {
    let host = Host::with_cards(CARDS)
        .policy(PATIENT)
        .flags(&["--no-reload"]);
    // In every history of one life something runs out; over a kill it is enough that nothing does.
    let is_quiet = kills == 0 || (kills == 1 && seed.is_multiple_of(2));
    // Waits that a kill left open are what makes an order hard to find.
    let scene = Scene::of(&host, is_quiet, 3 * (1 + kills));
    let mut broker = host.start();
    let mut dice = Dice::new(seed);
    let mut cards = vec![History::default(); CARDS];
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
            broker = scene.change_lives(|| broker.kill(), || host.start());
        }
        let mut calls: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect();
        calls.push(Client::new(CLIENTS, &scene, seed).look_at_all());
        for (card, call) in calls.into_iter().flatten() {
            cards[card].calls.push(call);
        }
    });
    for card in &mut cards {
        card.lives = scene.lives();
    }
    cards
}

fn wait_for(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + 4 * SOON;
    while !is_so() {
        assert!(Instant::now() < end, "the clients make no progress");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Fences of all cards are one row of numbers.
fn no_fence_is_used_twice(cards: &[History]) {
    let mut leases: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
    for call in cards.iter().flat_map(|card| &card.calls) {
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

/// What there was to explain.
#[derive(Default)]
struct Tally {
    operations: usize,
    open: usize,
    served: usize,
    given_up: usize,
    expired: usize,
    most: Duration,
    checking: Duration,
}

impl Tally {
    fn add(&mut self, history: &History, steps: &Calls<LeaseTable>) {
        self.operations += history.calls.len();
        let answers = history.calls.iter().map(|call| &call.answer);
        self.open += answers.filter(|answer| answer.is_none()).count();
        for step in steps.iter().filter(|step| step.answer.is_some()) {
            match step.op {
                Op::Serve { .. } => self.served += 1,
                Op::GiveUp(_) => self.given_up += 1,
                Op::Expire(_) => self.expired += 1,
                _ => {}
            }
        }
    }

    /// Finds an order for what clients were told of one card.
    fn explain(&mut self, name: &str, history: &History) {
        let (began, steps) = (Instant::now(), history.steps());
        let empty = LeaseTable::new(CARD_BYTES);
        if let Err(refuted) = linearize(&empty, &steps, Op::is_best_at_once, Op::is_prompt) {
            let path = write_down(name, &steps, &refuted.to_string());
            panic!("{name}: {refuted}\nall of it: {}", path.display());
        }
        self.most = self.most.max(began.elapsed());
        self.checking += began.elapsed();
        self.add(history, &steps);
    }
}

/// Makes histories, and refutes none of them.
fn check(story: &str, kills: u64) -> Tally {
    let histories = number_from_env("EVIDENCE_HISTORIES", 12);
    let first = evidence::first_seed();
    let (mut tally, began) = (Tally::default(), Instant::now());
    for seed in first..first + histories {
        let cards = record(seed, kills);
        no_fence_is_used_twice(&cards);
        for (card, history) in cards.iter().enumerate() {
            tally.explain(&format!("history-{story}-{seed}-sim-{card}.txt"), history);
        }
    }
    let Tally {
        operations,
        open,
        served,
        given_up,
        expired,
        most,
        checking,
    } = tally;
    eprintln!(
        "linearizability, {story}: seeds {first}..{}, {histories} histories, {operations} operations, {open} without an \
         answer, {served} served after a wait, {given_up} waits in vain, {expired} leases expired, {} lives, {:.1?}, of \
         that {checking:.1?} to check them, at most {most:.1?} for one card",
        first + histories,
        histories * (kills + 1),
        began.elapsed(),
    );
    let layer = format!("histories-{}", story.replace(' ', "-"));
    let at_least = [
        ("histories", histories),
        ("operations", histories * OPERATIONS),
    ];
    evidence::record(&layer, &at_least);
    tally
}

#[test]
fn histories_of_one_life_are_linearizable() {
    let tally = check("one life", 0);
    assert!(tally.served > 0 && tally.given_up > 0, "clients waited");
    assert!(tally.expired > 0, "leases expired");
}

#[test]
fn histories_over_a_kill_are_linearizable() {
    let tally = check("over a kill", 1);
    assert!(tally.served > 0 && tally.given_up > 0, "clients waited");
}

#[test]
fn histories_over_three_kills_are_linearizable() {
    check("over three kills", 3);
}
