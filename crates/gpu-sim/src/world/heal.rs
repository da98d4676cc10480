//! The end of every life: everything is mended, nobody asks for more, and then everybody must be served and
//! everything must be free.

use gpu_broker::{Clock, Life, ReloadOptions, ReloadOutcome, Trigger};
use gpu_lease::{Amount, Books, Command, Lease, LeaseId, Ms, Request};

use super::client::{Call, Client, Sent, State};
use super::oracle::require;
use super::{Checked, World, files};
use crate::dice::Dice;

/// By then the longest heartbeat, grace and reclaiming are over.
const ROUNDS_MAX: u32 = 500;
const ROUND: Ms = Ms(500);
/// Whoever has so much time left is served when everything works again: by then also those are gone who were
/// served before and whom nobody waits for any more.
const PATIENCE: Ms = Ms(180_000);

impl World {
    /// # Errors
    /// Somebody is not served, or something is not given back.
    pub fn heal(&mut self, bits: u64) -> Checked {
        let dice = &mut Dice::new(bits);
        self.watch.lock().ending = None;
        self.disk.fail_after(None);
        self.machine.heal();
        self.look_at_devices()?;
        self.flow(dice, ROUND)?;
        self.open_policy(dice)?;
        self.lift_everything(dice)?;
        let owed = self.owed();
        for _ in 0..ROUNDS_MAX {
            if self.is_at_rest() {
                break;
            }
            self.go_on_politely()?;
            self.flow(dice, ROUND)?;
        }
        self.were_served(&owed)?;
        self.finish()
    }

    /// Who waits, patiently and for what this host could give, by what clients asked for.
    fn owed(&self) -> Vec<LeaseId> {
        let sizes = self.sizes();
        let owed = self.clients.iter().filter_map(|client| {
            let request = client.request.as_ref()?;
            let id = self.waits_for(client)?;
            let owed = could_serve(request, &sizes) && self.is_patient(id, request);
            owed.then_some(id)
        });
        owed.collect()
    }

    /// The lease that a client waits for. On a line it has heard of every end; what waits as a row may have ended
    /// while nobody asked, and then that was judged when it was written.
    fn waits_for(&self, client: &Client) -> Option<LeaseId> {
        let State::Waiting { id, line } = &client.state else {
            return None;
        };
        let watch = self.watch.lock();
        let row = watch.rows.leases.get(id);
        let waits = line.is_some() || row.is_some_and(|row| row.waiting().is_some());
        waits.then_some(*id)
    }

    /// A request without a wait is refused soon, or waits for ever if it queues.
    fn is_patient(&self, id: LeaseId, request: &Request) -> bool {
        let now = self.clock.now().boot;
        let asked = self.told.get(&id).map(|told| told.asked);
        match request.wait {
            Ms(0) => request.queue,
            wait => asked.is_some_and(|asked| asked + wait > now + PATIENCE),
        }
    }

    /// What ended is known for a day, and no broker ends meanwhile: who is not known any more was lost.
    fn were_served(&self, owed: &[LeaseId]) -> Checked {
        for id in owed {
            let lease = self.handle().find(*id);
            let served = lease.as_ref().is_some_and(|lease| lease.grant().is_some());
            require(served, || format!("{id} waited in vain: {lease:?}"))?;
        }
        Ok(())
    }

    /// What can be granted of each card, now that all of them are there.
    fn sizes(&self) -> Vec<u64> {
        let reserve = self.watch.lock().oracle.law.reserve;
        let keys = self.machine.keys();
        let totals = keys.iter().map(|key| self.machine.total(key));
        totals.map(|total| total.saturating_sub(reserve)).collect()
    }

    fn open_policy(&mut self, dice: &mut Dice) -> Checked {
        self.turn(dice)?;
        *self.files.lock() = files::open();
        let reloader = self.reloader.clone().ok_or("no reloader")?;
        let result = self.beside(dice, move || {
            reloader.reload(Trigger::Api, "root", &ReloadOptions::default())
        })?;
        let result = result.ok_or("a healthy broker ended")?;
        let options = ReloadOptions {
            confirm: result.plan_hash.clone(),
            ..ReloadOptions::default()
        };
        let result = match result.outcome {
            ReloadOutcome::NeedsConfirmation => {
                let reloader = self.reloader.clone().ok_or("no reloader")?;
                self.beside(dice, move || {
                    reloader.reload(Trigger::Api, "root", &options)
                })?
            }
            _ => Some(result),
        };
        let good = result
            .as_ref()
            .is_some_and(|result| result.outcome.is_good());
        require(good, || {
            format!("the policy that allows everything: {result:?}")
        })
    }

    fn lift_everything(&mut self, dice: &mut Dice) -> Checked {
        self.vouch_for(&self.machine.keys());
        for device in self.machine.keys() {
            let by = "root".to_owned();
            let lift = Call::device(
                self.handle(),
                Command::Uncordon {
                    device: device.clone(),
                    by: by.clone(),
                },
            );
            self.operate_by(Vec::new(), lift)?;
            let clear = Call::device(self.handle(), Command::ClearQuarantine { device, by });
            self.operate_by(Vec::new(), clear)?;
        }
        self.turn(dice)
    }

    /// Who holds gives back, who waits goes on waiting.
    fn go_on_politely(&mut self) -> Checked {
        for who in 0..self.clients.len() {
            let sent = match &self.clients[who].state {
                State::Holding { id } => Sent::Release(*id),
                State::Waiting { id, line: None } => Sent::Renew(*id),
                State::Idle | State::Asking { .. } | State::Waiting { .. } => continue,
            };
            self.send(who, sent)?;
        }
        Ok(())
    }

    fn is_at_rest(&self) -> bool {
        self.left().is_none()
    }

    /// Somebody who is not served yet, or has not given back: by what is stored, or by the books alone.
    fn left(&self) -> Option<Lease> {
        let sizes = self.sizes();
        let watch = self.watch.lock();
        let books = self.life.as_ref().map(Life::books);
        let known = books.into_iter().flat_map(Books::leases);
        let mut leases = watch.rows.leases.values().chain(known);
        leases.find(|lease| is_owed(lease, &sizes)).cloned()
    }

    fn finish(&mut self) -> Checked {
        self.all_are_answered()?;
        let left = self.left();
        let watch = self.watch.lock();
        self.stats.commits = watch.commits;
        self.stats.granted = watch.oracle.granted;
        self.stats.ends = watch.oracle.ends.clone();
        self.stats.events = watch.oracle.events.clone();
        self.stats.seeds = 1;
        require(left.is_none(), || {
            format!("never served, or never given back: {left:?}")
        })
    }
}

/// Whether it holds something, or waits for what this host could give. Who asked before the devices were
/// known may wait for what no card has, and says so.
fn is_owed(lease: &Lease, sizes: &[u64]) -> bool {
    let waits = lease.waiting().is_some() && could_serve(&lease.request, sizes);
    waits || lease.occupying().is_some()
}

/// Whether enough cards are large enough.
fn could_serve(request: &Request, sizes: &[u64]) -> bool {
    let serves = |size: &&u64| match request.amount {
        Amount::Exclusive => true,
        Amount::Memory(bytes) => bytes <= **size,
    };
    sizes.iter().filter(serves).count() >= request.devices as usize
}
