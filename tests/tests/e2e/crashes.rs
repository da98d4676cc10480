//! Brokers that are killed at any time and at every named moment while real clients work, and a ledger of what those
//! clients were told, which every next broker is held to.
//!
//! `EVIDENCE_LIVES` makes the stories longer, `EVIDENCE_SEED` makes them others.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

mod clients;
mod judgement;
mod ledger;
mod lies;
mod operators;
mod world;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gpu_manager_tests::{Dice, evidence, number_from_env};

use clients::{Client, Part};
use world::{Birth, Death, World};

const CAST: [Part; 8] = [
    Part::Borrower,
    Part::Borrower,
    Part::Borrower,
    Part::Borrower,
    Part::Borrower,
    Part::Borrower,
    Part::Keeper,
    Part::Ghost,
];

/// So many lives together see every kind of request come to its point.
const LIVES_THAT_SEE_ALL: u64 = 60;

/// Within so many lives there is something to lie about, of every kind.
const LIES_WITHIN: usize = 60;

/// A world of clients, and how it went.
struct Story {
    name: &'static str,
    seed: u64,
    world: World,
    clients: Vec<Client>,
    dice: Dice,
    lives: u64,
    /// Lives beyond those that were planned, because a moment did not come in time.
    more: u64,
    hits: BTreeMap<&'static str, u64>,
    began: Instant,
}

impl Story {
    fn new(name: &'static str, number: u64) -> Self {
        let seed = evidence::first_seed() + number;
        let client = |(part, n)| Client::new(part, (seed << 8) | n);
        Self {
            name,
            seed,
            world: World::new(),
            clients: CAST.into_iter().zip(1..).map(client).collect(),
            dice: Dice::new(seed),
            lives: 0,
            more: 0,
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

    /// On a slow machine a moment may not come as often as a life was planned to reach it.
    fn make_up_for(&mut self, point: &'static str, each: u64) {
        while self.hits.get(point).copied().unwrap_or(0) < each && self.more < each {
            self.more += 1;
            self.live_until(point, 1);
        }
    }

    /// Ends with a broker that is held to everything once more.
    fn end(mut self, hits_wanted: &[(&'static str, u64)]) {
        self.live(&Death::After(Duration::from_millis(100)));
        let ledger = self.world.ledger.lock().unwrap();
        let granted = ledger.fences.len();
        eprintln!(
            "kill -9, {}: seed {}, {} lives, {} answers, {} without one, {} requests, {granted} grants, {} emergencies, \
             {} cordons, {} switches, hits {:?}, {:.1?}",
            self.name,
            self.seed,
            self.lives,
            ledger.told,
            ledger.uncertain,
            ledger.claims.len(),
            ledger.stops.len(),
            self.world.cordons.load(Ordering::Relaxed),
            self.world.switches.load(Ordering::Relaxed),
            self.hits,
            self.began.elapsed()
        );
        assert!(
            ledger.told > self.lives && ledger.uncertain > 0 && granted > 0,
            "clients worked"
        );
        let census = ledger.census();
        eprintln!("of those, {census:?}");
        let missing = census.iter().find(|(_, count)| **count == 0);
        let is_long = self.lives >= LIVES_THAT_SEE_ALL;
        assert!(
            missing.is_none() || !is_long,
            "this never came: {missing:?}"
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
        evidence::record(&layer, &[("lives", self.lives - self.more)]);
    }
}

fn lives(default: u64) -> u64 {
    number_from_env("EVIDENCE_LIVES", default)
}

/// Kills at each of these moments so often, each time that it comes the n-th time, for n up to `most`.
fn killed_at<const N: usize>(
    mut story: Story,
    points: [&'static str; N],
    each: u64,
    before: impl Fn(&mut Story),
    most: u64,
) {
    for _ in 0..each {
        for point in points {
            before(&mut story);
            story.live_until(point, most);
        }
    }
    for point in points {
        story.make_up_for(point, each);
    }
    story.end(&points.map(|point| (point, each)));
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
    let story = Story::new("in a batch", 1000);
    killed_at(story, points, lives(16), |_| {}, 60);
}

#[test]
fn killed_in_a_reload_or_an_emergency_a_broker_did_all_of_it_or_nothing() {
    let points = ["reload_switched", "emergency_applied"];
    let story = Story::new("in a reload or an emergency", 2000);
    killed_at(story, points, lives(20), |_| {}, 4);
}

#[test]
fn killed_again_while_it_recovers_a_broker_keeps_its_word() {
    let points = ["opening", "opened"];
    let story = Story::new("in recovery", 3000);
    killed_at(story, points, lives(20), Story::live_a_while, 1);
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

/// Whatever the ledger is there to see: a broker that says otherwise is found out.
#[test]
fn a_broker_that_lies_about_what_it_kept_is_found_out() {
    let mut story = Story::new("of lies", 5000);
    let mut lies = Vec::from(lies::ALL);
    for _ in 0..LIES_WITHIN {
        story.live(&Death::After(Duration::from_millis(250)));
        let Birth::Up(_process) = story.world.give_birth(&Death::After(Duration::ZERO)) else {
            panic!("nobody killed it");
        };
        let found = story.world.find().ok().expect("nobody kills it");
        let scene = story.world.scene();
        let ledger = story.world.ledger.lock().unwrap();
        ledger.clone().judge(&found, &scene);
        lies.retain(|lie| !lie.is_found_out(&found, &ledger, &scene));
        if lies.is_empty() {
            return;
        }
    }
    let open: Vec<_> = lies.iter().map(|lie| lie.is_told).collect();
    panic!("there was nothing to say this of: {open:?}");
}
