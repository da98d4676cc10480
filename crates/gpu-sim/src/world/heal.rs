//! The end of every life: everything is mended, nobody asks for more, and then everybody must be served and
//! everything must be free.

use gpu_broker::{Clock, ReloadOptions, ReloadOutcome, Trigger};
use gpu_lease::{Amount, Books, Command, DeviceState, Lease, LeaseId, Ms};

use super::client::{Call, Sent, State};
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

    /// Who waits, patiently and for what this host could give.
    fn owed(&mut self) -> Vec<LeaseId> {
        let now = self.clock.now().boot;
        let waiting = self.clients.iter().filter_map(|client| match client.state {
            State::Waiting { id, .. } => Some(id),
            State::Idle | State::Asking { .. } | State::Holding { .. } => None,
        });
        let ids: Vec<LeaseId> = waiting.collect();
        let books = self.life().books();
        let is_patient = |lease: &&Lease| {
            let until = lease.waiting().map(|wait| wait.until);
            until.is_some_and(|until| until.is_none_or(|until| until > now + PATIENCE))
        };
        let leases = ids.iter().filter_map(|id| books.lease(*id));
        let patient = leases
            .filter(is_patient)
            .filter(|lease| is_owed(lease, books));
        patient.map(|lease| lease.id).collect()
    }

    fn were_served(&self, owed: &[LeaseId]) -> Checked {
        for id in owed {
            let lease = self.handle().find(*id);
            let served = lease.as_ref().is_none_or(|lease| lease.grant().is_some());
            require(served, || format!("waited in vain: {lease:?}"))?;
        }
        Ok(())
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

    fn is_at_rest(&mut self) -> bool {
        let books = self.life().books();
        !books.leases().any(|lease| is_owed(lease, books))
    }

    fn finish(&mut self) -> Checked {
        self.all_are_answered()?;
        let watch = self.watch.clone();
        let watch = watch.lock();
        self.stats.commits = watch.commits;
        self.stats.granted = watch.oracle.granted;
        self.stats.ends = watch.oracle.ends.clone();
        self.stats.events = watch.oracle.events.clone();
        self.stats.seeds = 1;
        let books = self.life.as_ref().ok_or("no life")?.books();
        let left = books.leases().find(|lease| is_owed(lease, books));
        require(left.is_none(), || {
            format!("never served, or never given back: {left:?}")
        })
    }
}

/// Whether it holds something, or waits for what this host could give. Who asked before the devices were
/// known may wait for what no card has, and says so.
fn is_owed(lease: &Lease, books: &Books) -> bool {
    let request = &lease.request;
    let could_serve = |state: &&DeviceState| match request.amount {
        Amount::Exclusive => true,
        Amount::Memory(bytes) => bytes <= state.grantable(),
    };
    let serving = books.devices().filter(could_serve).count();
    let waits = lease.waiting().is_some() && serving >= request.devices as usize;
    waits || lease.occupying().is_some()
}
