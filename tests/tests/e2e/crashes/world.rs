//! One host, its brokers one after the other, and everybody who asks them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gpu_api::{Lease, LeaseList, paths};
use gpu_manager_tests::{
    Address, Answer, Attempt, Dice, Host, POLICY, Process, Request, SOON, gib, is_alive,
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::clients::Client;
use super::judgement::{Found, Scene};
use super::ledger::{Belief, Claim, Ledger};
use super::operators;

pub(super) const CARDS: u64 = 3;
/// The one tenant that has a quota, and what that is.
pub(super) const LAB: &str = "lab";
pub(super) const LAB_DEVICES: u64 = 3;
pub(super) const LAB_MEMORY: u64 = gib(48);
/// Also the names of two classes of the policy; the third is built in.
pub(super) const CLASSES: [&str; 3] = ["standard", "batch", "interactive"];
/// A life in which the moment that is waited for does not come is ended after this.
const LONG_LIFE: Duration = Duration::from_secs(8);
/// Longer than any life, and much shorter than a story: whoever was told something in one life would be found
/// to have expired in a later one, did a broker not give everybody time to come back.
pub(super) const SHORT_TTL: &str = "10s";
const FAIL_POINT: &str = "GPU_MANAGER_FAIL_POINT";

pub(super) struct World {
    pub(super) host: Host,
    broker: Address,
    clock: AtomicU64,
    pub(super) keys: AtomicU64,
    pub(super) switches: AtomicU64,
    pub(super) cordons: AtomicU64,
    pub(super) ledger: Mutex<Ledger>,
    /// By the names of the claims that live as long as they do.
    pub(super) children: Mutex<BTreeMap<String, Process>>,
    /// When the last broker that anybody asked was gone, by the civil clock.
    died_at: Mutex<Timestamp>,
}

/// The broker ended while it was asked.
pub(super) struct Gone;

/// How a life is to end.
#[derive(Clone, Debug)]
pub(super) enum Death {
    /// By a signal after so long.
    After(Duration),
    /// By itself when it gets to a named moment the n-th time.
    At(&'static str, u64),
}

/// A broker of the story, or that it ended before it granted.
pub(super) enum Birth {
    Up(Process),
    Stillborn,
}

pub(super) fn policy(n: u64) -> String {
    format!(
        "{POLICY}\
        [queue]\nmax_waiting = {}\n\
        [[class]]\nname = 'batch'\npriority = 1\n\
        [[class]]\nname = 'interactive'\npriority = 100\n\
        [[tenant]]\nname = '{LAB}'\nmax_devices = {LAB_DEVICES}\nmax_memory = {LAB_MEMORY}\n",
        100 + n
    )
}

impl World {
    pub(super) fn new() -> Self {
        let host = Host::with_cards(CARDS as usize)
            .policy(&policy(0))
            .flags(&["--no-reload"]);
        Self {
            broker: Address::Unix(host.socket()),
            host,
            clock: AtomicU64::new(1),
            keys: AtomicU64::new(0),
            switches: AtomicU64::new(0),
            cordons: AtomicU64::new(0),
            ledger: Mutex::new(Ledger {
                policies: vec![0],
                ..Ledger::default()
            }),
            children: Mutex::default(),
            died_at: Mutex::new(Timestamp::now()),
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub(super) fn ask(&self, request: &Request) -> Result<Answer, Gone> {
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

    /// Asks for something that is always answered the same way.
    pub(super) fn must(&self, request: &Request) -> Result<Answer, Gone> {
        let answer = self.ask(request)?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Ok(answer)
    }

    pub(super) fn claim(&self, key: &str) -> Claim {
        self.ledger.lock().unwrap().claims[key].clone()
    }

    pub(super) fn belief(&self, key: &str) -> Belief {
        self.ledger.lock().unwrap().claims[key].belief
    }

    pub(super) fn believe(&self, key: &str, belief: Belief) {
        self.ledger.lock().unwrap().believe(key, belief);
    }

    /// What a whole answer says of a lease.
    pub(super) fn told(&self, key: &str, answer: &Answer) {
        let now = self.now();
        self.ledger.lock().unwrap().hear(key, answer, now);
    }

    pub(super) fn give_birth(&self, death: &Death) -> Birth {
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
    pub(super) fn live(&self, clients: &mut [Client], death: &Death) -> bool {
        let as_meant = self.live_and_die(clients, death);
        self.children_live();
        as_meant
    }

    fn live_and_die(&self, clients: &mut [Client], death: &Death) -> bool {
        let process = match self.give_birth(death) {
            Birth::Up(process) => process,
            Birth::Stillborn => return true,
        };
        if self.hold_to_its_word().is_err() {
            return process.wait().code == 137;
        }
        let mut dice = clients[0].dice.clone();
        let as_meant = thread::scope(|scope| {
            for client in clients.iter_mut() {
                scope.spawn(|| client.work(self));
            }
            for operator in operators::ALL {
                let mut dice = Dice::new(dice.below(u64::MAX));
                scope.spawn(move || while operator(self, &mut dice).is_ok() {});
            }
            end(process, death)
        });
        *self.died_at.lock().unwrap() = Timestamp::now();
        as_meant
    }

    /// No broker ends what it did not start, and no end of a broker does.
    fn children_live(&self) {
        for (key, child) in &*self.children.lock().unwrap() {
            assert!(is_alive(child.pid()), "the process of {key} is gone");
        }
    }

    /// Compares what this broker says with what clients were told by those before it.
    pub(super) fn hold_to_its_word(&self) -> Result<(), Gone> {
        let (found, scene) = (self.find()?, self.scene());
        let over = {
            let mut ledger = self.ledger.lock().unwrap();
            ledger.judge(&found, &scene);
            ledger.sample_of_over(scene.now)
        };
        self.over_stays_over(&over)
    }

    pub(super) fn scene(&self) -> Scene {
        Scene {
            now: self.now(),
            died_at: *self.died_at.lock().unwrap(),
            children: self.children.lock().unwrap().keys().cloned().collect(),
        }
    }

    /// What the broker shows, of one moment: it may still be learning which processes are gone.
    pub(super) fn find(&self) -> Result<Found, Gone> {
        let revisions = |live: &BTreeMap<String, Lease>| {
            let leases = live.values();
            leases
                .map(|lease| (lease.id.clone(), lease.revision))
                .collect::<Vec<_>>()
        };
        let end = Instant::now() + SOON;
        loop {
            let live = self.live_leases()?;
            let found = Found {
                over: self.over_leases(&live)?,
                live,
                devices: self.look(paths::DEVICES)?,
                queue: self.look(paths::QUEUE)?,
                policy: self.look(paths::POLICY)?,
            };
            if revisions(&self.live_leases()?) == revisions(&found.live) {
                return Ok(found);
            }
            assert!(Instant::now() < end, "leases change and nobody asks");
        }
    }

    fn look<T: DeserializeOwned>(&self, path: &str) -> Result<T, Gone> {
        match Request::get(path).attempt(&self.broker) {
            Attempt::Answered(answer) => Ok(answer.read()),
            Attempt::Lost | Attempt::Unsent => Err(Gone),
        }
    }

    /// By the names of their holders, which are the names of their claims.
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

    /// What clients believe to have, or to wait for, and is not `live`.
    fn over_leases(&self, live: &BTreeMap<String, Lease>) -> Result<BTreeMap<String, Lease>, Gone> {
        let believed = self.ledger.lock().unwrap().believed();
        let mut over = BTreeMap::new();
        for (key, id) in believed {
            if !live.contains_key(&key) {
                let path = paths::with_id(paths::LEASE, &id);
                match Request::get(&path).attempt(&self.broker) {
                    Attempt::Answered(answer) if answer.status == 404 => {}
                    Attempt::Answered(answer) => drop(over.insert(key, answer.lease())),
                    Attempt::Lost | Attempt::Unsent => return Err(Gone),
                }
            }
        }
        Ok(over)
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

/// Ends a broker under its clients, or waits until it ends; whether that was as it was meant.
fn end(mut process: Process, death: &Death) -> bool {
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
}
