//! Who asks: borrowers of every kind, keepers of processes, and ghosts that ask once and wait on their connection.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use gpu_api::{LeaseState, paths};
use gpu_manager_tests::{Dice, Request, SOON, gib};
use serde_json::{Value, json};

use super::ledger::{Belief, Claim};
use super::world::{CLASSES, Gone, LAB, SHORT_TTL, World};

/// One client has no more requests open than this.
const OPEN_MAX: usize = 4;
/// A keeper has so many processes.
const CHILDREN: usize = 2;

/// One client, with the claims that it is not done with.
pub(super) struct Client {
    part: Part,
    mine: Vec<String>,
    pub(super) dice: Dice,
}

#[derive(Clone, Copy)]
pub(super) enum Part {
    /// Asks under keys, again after every kill.
    Borrower,
    /// The same, for leases that live as long as a process.
    Keeper,
    /// Asks once, without a key, and waits until it is granted or the broker is gone.
    Ghost,
}

impl Client {
    pub(super) fn new(part: Part, seed: u64) -> Self {
        Self {
            part,
            mine: Vec::new(),
            dice: Dice::new(seed),
        }
    }

    /// All of one life: what was left open first, then anything.
    pub(super) fn work(&mut self, world: &World) {
        let _gone = self.resume(world).and_then(|()| self.work_on(world));
        if let Part::Keeper = self.part
            && self.dice.chance(1, 3)
        {
            self.lose_a_child(world);
        }
    }

    fn work_on(&mut self, world: &World) -> Result<(), Gone> {
        loop {
            self.forget(world);
            match self.part {
                Part::Borrower => self.borrow(world)?,
                Part::Keeper => self.keep(world)?,
                Part::Ghost => self.haunt(world)?,
            }
        }
    }

    fn resume(&mut self, world: &World) -> Result<(), Gone> {
        for key in &self.mine {
            let claim = world.claim(key);
            match claim.belief {
                Belief::Asked => world.acquire(key)?,
                Belief::Leaving if claim.has_process() => world.outlive_child(key)?,
                Belief::Leaving => world.release(key)?,
                Belief::Refused | Belief::Waiting | Belief::Held | Belief::Over => {}
            }
        }
        Ok(())
    }

    /// Drops the claims of which nothing more is to come.
    fn forget(&mut self, world: &World) {
        self.mine.retain(|key| {
            let (claim, has_child) = (world.claim(key), world.has_child(key));
            match claim.belief {
                Belief::Refused => {
                    world.end_child(key);
                    false
                }
                Belief::Over => has_child,
                Belief::Asked | Belief::Waiting | Belief::Held | Belief::Leaving => true,
            }
        });
    }

    fn borrow(&mut self, world: &World) -> Result<(), Gone> {
        let roll = self.dice.below(10);
        if self.mine.len() < OPEN_MAX && (self.mine.is_empty() || roll < 4) {
            return self.ask_for(world, "k", anything);
        }
        let key = self.dice.pick(&self.mine).clone();
        match roll {
            0..2 => world.acquire(&key),
            2..6 => world.renew(&key),
            _ => world.release(&key),
        }
    }

    fn keep(&mut self, world: &World) -> Result<(), Gone> {
        if self.mine.len() < CHILDREN {
            let child = world.host.sleeper();
            let pid = child.pid();
            let key = self.claim(world, "p", |dice| of_process(dice, pid));
            world.children.lock().unwrap().insert(key.clone(), child);
            return world.acquire(&key);
        }
        let key = self.dice.pick(&self.mine).clone();
        if world.claim(&key).lease.is_none() {
            // It was over before it was told: which lease that was is told by another answer.
            return world.acquire(&key);
        }
        match (world.belief(&key), self.dice.below(10)) {
            (Belief::Held | Belief::Over, 0) => {
                world.believe(&key, Belief::Leaving);
                world.end_child(&key);
                world.outlive_child(&key)
            }
            (Belief::Held, 1..6) => world.renew(&key),
            _ => world.look_at(&key),
        }
    }

    fn haunt(&mut self, world: &World) -> Result<(), Gone> {
        match self.mine.first() {
            None => self.ask_for(world, "g", of_ghost),
            Some(key) => world.release(key),
        }
    }

    /// A process that ends when there is no broker to see it.
    fn lose_a_child(&mut self, world: &World) {
        let mut held = self.mine.iter();
        if let Some(key) = held.find(|key| world.belief(key) == Belief::Held) {
            world.believe(key, Belief::Leaving);
            world.end_child(key);
        }
    }

    fn ask_for(
        &mut self,
        world: &World,
        kind: &str,
        body: impl FnOnce(&mut Dice) -> Value,
    ) -> Result<(), Gone> {
        let key = self.claim(world, kind, body);
        world.acquire(&key)
    }

    /// A request that is not sent yet.
    fn claim(
        &mut self,
        world: &World,
        kind: &str,
        body: impl FnOnce(&mut Dice) -> Value,
    ) -> String {
        let key = format!("{kind}{}", world.keys.fetch_add(1, Ordering::Relaxed));
        let mut body = body(&mut self.dice);
        body["holder"]["name"] = json!(key);
        let is_keyed = !matches!(self.part, Part::Ghost);
        let claim = Claim::new(body, is_keyed, world.now());
        let mut ledger = world.ledger.lock().unwrap();
        ledger.claims.insert(key.clone(), claim);
        self.mine.push(key.clone());
        key
    }
}

/// Whole devices or parts, one or two of them, of some class and tenant, with every way to wait.
fn anything(dice: &mut Dice) -> Value {
    let mut body = json!({"holder": {}, "ttl": if dice.chance(1, 2) { SHORT_TTL } else { "1h" }});
    match dice.below(10) {
        0 => body["exclusive"] = json!(true),
        n => body["memory"] = json!(gib(2 * n)),
    }
    if dice.chance(1, 5) {
        body["devices"] = json!(2);
    }
    if dice.chance(1, 2) {
        body["class"] = json!(dice.pick(&CLASSES));
    }
    if dice.chance(1, 4) {
        body["holder"]["tenant"] = json!(LAB);
    }
    match dice.below(4) {
        0 => (body["queue"], body["wait"]) = (json!(true), json!("1h")),
        1 => body["wait"] = json!("30ms"),
        _ => {}
    }
    body
}

fn of_process(dice: &mut Dice, pid: u32) -> Value {
    let holder = json!({"kind": "process", "pid": pid});
    let memory = gib(1 + dice.below(6));
    json!({"holder": holder, "memory": memory, "ttl": SHORT_TTL, "wait": "30ms"})
}

fn of_ghost(dice: &mut Dice) -> Value {
    json!({"holder": {}, "memory": gib(8 + dice.below(16)), "ttl": SHORT_TTL, "wait": "1h"})
}

impl World {
    fn acquire(&self, key: &str) -> Result<(), Gone> {
        let claim = self.claim(key);
        let mut request = Request::post(paths::LEASES, &claim.body);
        if claim.is_keyed {
            request = request.header("idempotency-key", key);
        }
        let answer = self.ask(&request)?;
        self.told(key, &answer);
        Ok(())
    }

    fn renew(&self, key: &str) -> Result<(), Gone> {
        let answer = self.ask(&self.of_lease(key, "POST", paths::LEASE_RENEW))?;
        self.told(key, &answer);
        Ok(())
    }

    fn release(&self, key: &str) -> Result<(), Gone> {
        self.believe(key, Belief::Leaving);
        let answer = self.ask(&self.of_lease(key, "DELETE", paths::LEASE))?;
        self.told(key, &answer);
        Ok(())
    }

    fn look_at(&self, key: &str) -> Result<(), Gone> {
        let answer = self.ask(&self.of_lease(key, "GET", paths::LEASE))?;
        self.told(key, &answer);
        Ok(())
    }

    fn of_lease(&self, key: &str, method: &str, path: &str) -> Request {
        let lease = self.claim(key).lease.expect("it is known by its id");
        let request = Request::new(method, &paths::with_id(path, &lease.id));
        match lease.secret {
            Some(secret) => request.header("x-lease-secret", &secret),
            // It was found, not told; the same user may all the same.
            None => request,
        }
    }

    fn has_child(&self, key: &str) -> bool {
        self.children.lock().unwrap().contains_key(key)
    }

    fn end_child(&self, key: &str) {
        let child = self.children.lock().unwrap().remove(key);
        if let Some(child) = child {
            child.kill();
        }
    }

    /// Its process has ended: so does the lease, and what it held is free.
    fn outlive_child(&self, key: &str) -> Result<(), Gone> {
        let end = Instant::now() + SOON;
        loop {
            let answer = self.ask(&self.of_lease(key, "GET", paths::LEASE))?;
            if answer.lease().state == LeaseState::Ended {
                self.told(key, &answer);
                return Ok(());
            }
            assert!(
                Instant::now() < end,
                "{key} outlives its process: {}",
                answer.text()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}
