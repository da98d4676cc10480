//! Ends of the broker at bad moments, and what the next life finds.

use std::sync::Arc;

use gpu_broker::{
    Clock, Config, Fatal, Life, ReloadStart, Reloader, SourceFile, StartPolicy, Started,
};
use gpu_lease::{Effect, Ms};

use super::acts::lose_connections;
use super::oracle::require;
use super::reload::Before;
use super::rows::{Ending, WatchedStore};
use super::{Checked, START_GRACE, World};
use crate::dice::Dice;

/// More recoveries in a row are not cut.
const CUTS_IN_RECOVERY_MAX: u32 = 3;

impl World {
    /// Plans or does something bad.
    pub(super) fn crash(&mut self, dice: &mut Dice) -> Checked {
        match dice.below(10) {
            // Between two turns: what is in the inbox is lost, nobody is told.
            0..2 => self.recover(dice),
            // Everybody was answered, and nobody hears it.
            2 => {
                let turned = self.life().turn(std::time::Duration::ZERO);
                self.disk.fail_after(None);
                if let Err(fatal @ Fatal::Books(_)) = turned {
                    return Err(fatal.to_string());
                }
                self.recover(dice)
            }
            3 => self.end_next_commit(Ending::Before),
            4..6 => self.end_next_commit(Ending::After),
            _ => {
                let operations = dice.below(24);
                self.end_next_commit(Ending::Torn(operations))
            }
        }
    }

    fn end_next_commit(&mut self, ending: Ending) -> Checked {
        self.say(|| format!("the next commit ends {ending:?}"));
        self.watch.lock().ending = Some(ending);
        self.disk.fail_after(match ending {
            Ending::Torn(operations) => Some(operations),
            Ending::Before | Ending::After => None,
        });
        Ok(())
    }

    /// The broker is gone; another one starts on what is left, until one gets through its start.
    pub(super) fn recover(&mut self, dice: &mut Dice) -> Checked {
        self.stats.crashes += 1;
        let mut cuts = 0;
        let mut power = self.power_goes(dice);
        loop {
            self.die(dice, power);
            self.watch.lock().ending = None;
            let may_cut = cuts < CUTS_IN_RECOVERY_MAX && dice.chance(20);
            if may_cut {
                cuts += 1;
                self.cut_the_start(dice);
            }
            match self.begin(dice) {
                Ok(()) => break,
                Err(_) if may_cut => {
                    self.stats.in_recovery += 1;
                    self.stats.crashes += 1;
                    power = self.power_goes(dice);
                }
                Err(error) => return Err(format!("no start after a crash: {error}")),
            }
        }
        self.disk.fail_after(None);
        self.watch.lock().ending = None;
        self.check_recovered()
    }

    /// A write that was cut short is the end of the host, or of the process alone.
    fn power_goes(&self, dice: &mut Dice) -> bool {
        dice.chance(if self.disk.has_failed() { 60 } else { 25 })
    }

    /// The process is gone, or the whole host.
    fn die(&mut self, dice: &mut Dice, power: bool) {
        let torn = power && self.disk.unsynced() > 0;
        self.disk = match power {
            true => self.disk.after_power_cut(&mut || dice.chance(50)),
            false => self.disk.after_kill(),
        };
        let away = dice.pick(&[Ms(50), Ms(1_000), Ms(20_000), Ms(400_000)]);
        if power {
            self.stats.power_cuts += 1;
            self.stats.torn_images += u64::from(torn);
            self.reboot(away);
        } else {
            self.clock.pass(away);
        }
        self.failed = false;
        self.reader.lose();
        self.last_readings.clear();
        self.reloader = None;
        self.handle = None;
        self.life = None;
        self.operators.clear();
        self.gone.clear();
        self.watched.clear();
        self.reports.clear();
        lose_connections(&mut self.clients);
    }

    fn reboot(&mut self, away: Ms) {
        self.stats.reboots += 1;
        self.machine.reboot();
        self.clock.reboot(away);
        for client in &mut self.clients {
            client.process = None;
        }
    }

    fn cut_the_start(&mut self, dice: &mut Dice) {
        match dice.below(3) {
            0 => self.watch.lock().ending = Some(Ending::Before),
            1 => self.watch.lock().ending = Some(Ending::After),
            _ => {
                self.watch.lock().ending = Some(Ending::Torn(0));
                self.disk.fail_after(Some(dice.below(40)));
            }
        }
    }

    /// A life begins on the disk as it is.
    pub(super) fn begin(&mut self, dice: &mut Dice) -> Checked {
        // A commit that was cut and got through is judged by what was done before it.
        let store = WatchedStore::open(self.disk.clone(), self.watch.clone())?;
        let before = {
            let watch = &mut *self.watch.lock();
            watch.oracle.begin(self.machine.boot_id());
            Before::of(&watch.rows)
        };
        let config = Config {
            store: Arc::new(store),
            clock: self.clock.clone(),
            processes: Arc::new(self.machine.clone()),
            boot_id: self.machine.boot_id(),
            introduction: "gpu-manager".to_owned(),
            policy: StartPolicy {
                files: Ok(self.files.lock().clone()),
                overrides: Vec::new(),
                dev: false,
            },
        };
        let (started, effects) = Life::begin(config).map_err(|error| error.to_string())?;
        self.begins_by_its_files(&before)?;
        self.live(dice, started, effects)
    }

    fn live(&mut self, dice: &mut Dice, started: Started<Life>, effects: Vec<Effect>) -> Checked {
        let start = ReloadStart {
            watching: true,
            ..started.reload_start()
        };
        let handle = started.handle.clone();
        self.handle = Some(started.handle);
        self.life = Some(started.broker);
        self.turbulent = true;
        self.turned = self.clock.now().boot;
        self.grace_until = self.turned + START_GRACE;
        {
            let watch = &mut *self.watch.lock();
            watch.oracle.rest();
            watch.oracle.forget_devices();
            self.reader.connect(&handle, &watch.rows.log)?;
        }
        self.perform(dice, effects)?;
        let files = self.files.clone();
        let read = move || -> Result<Vec<SourceFile>, String> { Ok(files.lock().clone()) };
        let made = self.beside(dice, move || {
            Reloader::new(handle, Box::new(read), Vec::new(), start)
        })?;
        if let Some(reloader) = made {
            self.reloader = Some(Arc::new(reloader));
        }
        Ok(())
    }

    /// The books are what is stored, row by row.
    fn check_recovered(&mut self) -> Checked {
        let mut watch = self.watch.lock();
        watch.oracle.is_content()?;
        let books = self.life.as_ref().ok_or("no life")?.books();
        let rows = books.rows();
        let leases = rows.leases.iter().eq(watch.rows.leases.values());
        require(leases, || {
            let stored: Vec<_> = watch.rows.leases.values().collect();
            format!("recovered {:?}\n  stored {stored:?}", rows.leases)
        })?;
        let cordons = rows.cordons.iter().map(|(device, cordon)| (device, cordon));
        require(cordons.eq(&watch.rows.cordons), || {
            "other cordons were recovered".to_owned()
        })?;
        drop(watch);
        self.usage_adds_up()
    }
}
