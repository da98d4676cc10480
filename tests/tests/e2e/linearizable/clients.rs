//! The clients of one history: they ask for anything, and write down what they are told of which card.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gpu_api::{DeviceList, EmergencyResult, EndReason, FenceAnswer, Lease, LeaseState, paths};
use gpu_manager_tests::{
    Address, Amount, Answer, Asked, Attempt, Call, Dice, End, Host, Life, Op, Phase, Request, Ret,
    SOON, Seen, Wanted, gib,
};
use serde_json::{Value, json};

use super::{CARDS, OPERATIONS};

/// The shortest time to live that there is, and one that is longer than any history.
const SHORT_TTL: Duration = Duration::from_secs(1);
const LONG_TTL: Duration = Duration::from_secs(3600);

/// In the middle of a history, for longer than the shortest time to live, nobody is in a hurry.
const QUIET: Range<u64> = OPERATIONS / 2..OPERATIONS * 7 / 10;
const QUIET_PACE: Duration = Duration::from_millis(90);
/// Who waits, waits no longer than this.
const WAIT_MS_MAX: u64 = 40;

/// What a client was told, and of which card.
pub(super) type Told = (usize, Call<Asked, Ret>);

/// What all clients of one history share.
pub(super) struct Scene {
    broker: Address,
    began: Instant,
    clock: AtomicU64,
    pub(super) answered: AtomicU64,
    is_quiet: bool,
    waits_one_in: u64,
    next_key: AtomicU64,
    /// Leases by their numbers.
    names: Mutex<Vec<String>>,
    /// What anybody was ever granted.
    granted: Mutex<Vec<Known>>,
    lives: Mutex<Vec<Life>>,
    born: Condvar,
}

/// A lease that some client was told of.
#[derive(Clone, Debug)]
struct Known {
    wanted: Wanted,
    card: usize,
    fence: u64,
    id: String,
    secret: String,
}

/// One client, and what it saw of each card.
pub(super) struct Client<'a> {
    number: usize,
    scene: &'a Scene,
    dice: Dice,
    holds: Vec<Known>,
    calls: Vec<Told>,
}

impl Scene {
    /// `is_quiet` in the middle: whatever nobody renews has time to run out. Of so many requests one waits.
    pub(super) fn of(host: &Host, is_quiet: bool, waits_one_in: u64) -> Self {
        Self {
            broker: Address::Unix(host.socket()),
            began: Instant::now(),
            clock: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            is_quiet,
            waits_one_in,
            next_key: AtomicU64::new(0),
            names: Mutex::default(),
            granted: Mutex::default(),
            lives: Mutex::new(vec![Life {
                begun: 0,
                over: u64::MAX,
            }]),
            born: Condvar::new(),
        }
    }

    /// Nanoseconds; no moment is there twice.
    pub(super) fn now(&self) -> u64 {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap();
        let after = |last: u64| Some(now.max(last + 1));
        let last = self
            .clock
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, after);
        now.max(last.unwrap() + 1)
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

    pub(super) fn lives(&self) -> Vec<Life> {
        self.lives.lock().unwrap().clone()
    }

    /// Kills a broker by `kill` and starts another by `start`.
    pub(super) fn change_lives<B>(&self, kill: impl FnOnce(), start: impl FnOnce() -> B) -> B {
        self.lives.lock().unwrap().last_mut().unwrap().over = self.now();
        kill();
        let begun = self.now();
        let broker = start();
        let over = u64::MAX;
        self.lives.lock().unwrap().push(Life { begun, over });
        self.born.notify_all();
        broker
    }

    /// Waits for a broker that was started after `life`.
    fn outlive(&self, life: usize) {
        let present = self.lives.lock().unwrap();
        let waited = self
            .born
            .wait_timeout_while(present, SOON, |lives| lives.len() <= life);
        assert!(
            !waited.unwrap().1.timed_out(),
            "no broker after life {life}"
        );
    }
}

impl<'a> Client<'a> {
    pub(super) fn new(number: usize, scene: &'a Scene, seed: u64) -> Self {
        Self {
            number,
            scene,
            dice: Dice::new(seed ^ ((number as u64 + 1) << 32)),
            holds: Vec::new(),
            calls: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Vec<Told> {
        loop {
            match self.scene.answered.load(Ordering::Relaxed) {
                OPERATIONS.. => return self.calls,
                answered if self.scene.is_quiet && QUIET.contains(&answered) => self.keep_quiet(),
                _ => self.do_something(),
            }
        }
    }

    /// How everything ended.
    pub(super) fn look_at_all(mut self) -> Vec<Told> {
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
            (34..40, Some(lease), _) => self.acquire_until_told(lease.card, lease.wanted),
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

    /// Ends nothing, in no hurry: what nobody renews has time to run out.
    fn keep_quiet(&mut self) {
        thread::sleep(QUIET_PACE);
        let mine = (!self.holds.is_empty()).then(|| self.dice.pick(&self.holds).clone());
        let theirs = self.anybodys();
        match (self.dice.below(8), mine, theirs) {
            (0, Some(lease), _) => drop(self.renew(&lease)),
            (1, _, Some(lease)) => drop(self.look(&lease)),
            (2, _, Some(lease)) => drop(self.check(&lease)),
            (3, _, _) => self.look_at_card(),
            _ => self.acquire_on_any_card(Amount::Memory(gib(1)), None, SHORT_TTL),
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
        op: impl Into<Asked>,
        request: &Request,
        read: impl Fn(&Scene, &Answer) -> Ret,
    ) -> Option<Ret> {
        let op = op.into();
        let life = self.scene.lives().len();
        let begun = self.scene.now();
        let attempt = request.attempt(&self.scene.broker);
        let answer = match &attempt {
            Attempt::Answered(answer) if says_nothing_yet(op, answer) => {
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
        let amount = match self.dice.below(8) {
            0 => Amount::Exclusive,
            n => Amount::Memory(gib(4 + 2 * n)),
        };
        let wait = self.dice.chance(1, self.scene.waits_one_in);
        let wait = wait.then(|| Duration::from_millis(1 + self.dice.below(WAIT_MS_MAX)));
        let ttl = *self.dice.pick(&[SHORT_TTL, LONG_TTL]);
        self.acquire_on_any_card(amount, wait, ttl);
    }

    fn acquire_on_any_card(&mut self, amount: Amount, wait: Option<Duration>, ttl: Duration) {
        let key = self.scene.next_key.fetch_add(1, Ordering::Relaxed);
        let card = self.dice.below(CARDS as u64) as usize;
        let wanted = Wanted {
            key: u32::try_from(key).unwrap(),
            amount,
            wait,
            ttl,
        };
        self.acquire_until_told(card, wanted);
    }

    /// Asks again under the same key until there is an answer.
    fn acquire_until_told(&mut self, card: usize, wanted: Wanted) {
        let request = Request::post(paths::LEASES, &body(card, wanted));
        let request = request.header("idempotency-key", &format!("k{}", wanted.key));
        let told = Mutex::new(None);
        loop {
            let answer = self.call(card, wanted, &request, |scene, answer| {
                let ret = read_lease(scene, answer);
                if let Ret::Lease(_) = ret {
                    *told.lock().unwrap() = Some(answer.lease());
                }
                ret
            });
            match answer {
                Some(Ret::Lease(seen)) if seen.phase == Phase::Held => break,
                // It was over before it was told: what it was is told by the next answer.
                None | Some(Ret::Gone) => {}
                Some(_) => return,
            }
        }
        let lease = told.into_inner().unwrap().expect("a lease was read");
        let known = Known {
            wanted,
            card,
            fence: lease.fence.unwrap(),
            secret: lease.secret.expect("whoever asks is told the secret"),
            id: lease.id,
        };
        if !self.holds.iter().any(|held| held.id == known.id) {
            self.holds.push(known.clone());
            self.scene.granted.lock().unwrap().push(known);
        }
    }

    fn renew(&mut self, lease: &Known) -> Option<Ret> {
        let path = paths::with_id(paths::LEASE_RENEW, &lease.id);
        let request = Request::new("POST", &path).header("x-lease-secret", &lease.secret);
        self.call(
            lease.card,
            Op::Renew(lease.wanted.key),
            &request,
            read_lease,
        )
    }

    fn release(&mut self, lease: &Known) -> Option<Ret> {
        self.holds.retain(|held| held.id != lease.id);
        let path = paths::with_id(paths::LEASE, &lease.id);
        let request = Request::new("DELETE", &path).header("x-lease-secret", &lease.secret);
        self.call(
            lease.card,
            Op::Release(lease.wanted.key),
            &request,
            read_lease,
        )
    }

    fn look(&mut self, lease: &Known) -> Option<Ret> {
        let request = Request::get(&paths::with_id(paths::LEASE, &lease.id));
        self.call(lease.card, Op::Look(lease.wanted.key), &request, read_lease)
    }

    fn revoke(&mut self, lease: &Known) {
        let path = paths::with_id(paths::LEASE_REVOKE, &lease.id);
        let request = Request::post(&path, &json!({}));
        self.call(
            lease.card,
            Op::Revoke(lease.wanted.key),
            &request,
            read_lease,
        );
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

fn body(card: usize, wanted: Wanted) -> Value {
    let select = format!("device.id == 'sim-{card}'");
    let ttl = format!("{}s", wanted.ttl.as_secs());
    let mut body = json!({"select": select, "ttl": ttl});
    match wanted.amount {
        Amount::Exclusive => body["exclusive"] = json!(true),
        Amount::Memory(bytes) => body["memory"] = json!(bytes),
    }
    if let Some(wait) = wanted.wait {
        body["wait"] = json!(format!("{}ms", wait.as_millis()));
    }
    body
}

/// Whether this is the answer of a broker that does not know its devices yet.
fn says_nothing_yet(op: Asked, answer: &Answer) -> bool {
    match op {
        _ if answer.status == 503 => true,
        Asked::Else(Op::Stop | Op::Free) => answer.status == 404,
        Asked::Else(Op::Taken) => answer.read::<DeviceList>().devices.is_empty(),
        Asked::Lease(_) | Asked::Else(_) => false,
    }
}

fn read_lease(scene: &Scene, answer: &Answer) -> Ret {
    match answer.status {
        200 | 201 => match seen(scene, &answer.lease()) {
            Some(seen) => Ret::Lease(seen),
            None => Ret::Unknown,
        },
        408 | 409 => Ret::Refused,
        410 => Ret::Gone,
        404 => Ret::Unknown,
        other => panic!("{other}: {}", answer.text()),
    }
}

fn seen(scene: &Scene, lease: &Lease) -> Option<Seen> {
    let end = match lease.end_reason {
        Some(EndReason::Emergency) => Some(End::Emergency),
        Some(EndReason::Expired) => Some(End::Expired),
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
