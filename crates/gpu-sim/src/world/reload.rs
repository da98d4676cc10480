//! Policy reloads, by the real road: it blocks, so it runs on a thread, and the loop turns only while that
//! thread waits for it. So the same seed gives the same turns.

use std::sync::Arc;
use std::thread;

use gpu_broker::{
    Life, ReloadOptions, ReloadOutcome, ReloadResult, Reloader, Trigger, WatchTiming,
};
use gpu_lease::{DrainSource, Fate, Lease, Ms};

use super::oracle::require;
use super::{Checked, World, files};
use crate::dice::Dice;

impl World {
    pub(super) fn reload(&mut self, dice: &mut Dice) -> Checked {
        // What is under way is answered first: from then on only the reload waits for the loop.
        self.turn(dice)?;
        let Some(reloader) = self.reloader.clone() else {
            return Ok(());
        };
        self.stats.reloads += 1;
        let saved = files::some(dice);
        *self.files.lock() = saved.clone();
        let way = dice.below(10);
        let results = self.beside(dice, move || match way {
            0..4 => Some(reloader.reload(Trigger::Api, "root", &ReloadOptions::default())),
            4..7 => {
                let result = reloader.offer(saved, WatchTiming::default());
                result.map(|result| confirm(&reloader, result))
            }
            7 => reloader
                .rollback("root", None, &ReloadOptions::default())
                .ok(),
            8 => {
                let set = [("placement.strategy".to_owned(), "spread".to_owned())];
                let options = ReloadOptions::default();
                reloader
                    .set_overrides(&set, Ms(30_000), "root", &options)
                    .ok()
            }
            _ => {
                reloader.tick();
                None
            }
        })?;
        match results.flatten() {
            Some(result) => self.reloaded(&result),
            None => Ok(()),
        }
    }

    /// Runs what waits for the loop. `None`: the loop ended meanwhile, and another began.
    pub(super) fn beside<T: Send + 'static>(
        &mut self,
        dice: &mut Dice,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, String> {
        let crashes = self.stats.crashes;
        let task = thread::spawn(task);
        let mut turned = Ok(());
        while !task.is_finished() {
            let awaited = self.life.as_ref().is_some_and(Life::is_awaited);
            if !awaited {
                thread::yield_now();
                continue;
            }
            self.watch.lock().oracle.acts.policy = true;
            turned = self.turn(dice);
            if turned.is_err() {
                // Nobody answers any more, and the task hears that.
                self.life = None;
            }
        }
        let done = task.join().map_err(|_| "a reload panicked".to_owned())?;
        turned?;
        Ok((crashes == self.stats.crashes).then_some(done))
    }

    /// What the result says is what became of the leases.
    fn reloaded(&mut self, result: &Arc<ReloadResult>) -> Checked {
        let outcome = result.outcome.as_str();
        self.say(|| format!("reload: {outcome} {:?}", result.plan));
        if !matches!(result.outcome, ReloadOutcome::Applied { .. }) {
            return Ok(());
        }
        self.stats.switches += 1;
        for fate in result.plan.iter().flat_map(|plan| &plan.held) {
            let lease = self.handle().find(fate.id);
            let done = lease.as_ref().is_none_or(|lease| has_met(lease, fate.fate));
            require(done, || format!("{fate:?} was said, and it is {lease:?}"))?;
        }
        Ok(())
    }
}

fn has_met(lease: &Lease, fate: Fate) -> bool {
    match (lease.held(), fate) {
        (None, _) => true,
        (Some(_), Fate::Force) => false,
        (Some(grant), Fate::Drain(_)) => grant.drains.contains_key(&DrainSource::Policy),
        (Some(grant), Fate::Withdraw) => !grant.drains.contains_key(&DrainSource::Policy),
        (Some(_), Fate::Keep | Fate::Shorten(_)) => true,
    }
}

/// Whoever saved the file confirms what it would do, if that is asked.
fn confirm(reloader: &Reloader, result: Arc<ReloadResult>) -> Arc<ReloadResult> {
    if !matches!(result.outcome, ReloadOutcome::NeedsConfirmation) {
        return result;
    }
    let options = ReloadOptions {
        confirm: result.plan_hash.clone(),
        ..ReloadOptions::default()
    };
    reloader.reload(Trigger::Api, "root", &options)
}
