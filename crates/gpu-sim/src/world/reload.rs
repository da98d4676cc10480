//! Policy reloads, by the real road: it blocks, so it runs on a thread, and the loop turns only while that
//! thread waits for it. So the same seed gives the same turns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use gpu_broker::{
    Life, ReloadOptions, ReloadOutcome, ReloadResult, Reloader, Trigger, WatchTiming,
};
use gpu_lease::{DrainSource, Fate, Grant, LeaseFate, LeaseId, Ms};

use gpu_store::LastGood;

use super::oracle::require;
use super::rows::Rows;
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
        let before = Before::of(&self.watch.lock().rows);
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
            Some(result) => self.reloaded(&result, &before),
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

    /// What the result says is what became of the leases, and of nobody else; a policy that is no good is nothing.
    fn reloaded(&mut self, result: &Arc<ReloadResult>, before: &Before) -> Checked {
        let outcome = result.outcome.as_str();
        self.say(|| format!("reload: {outcome} {:?}", result.plan));
        match result.outcome {
            ReloadOutcome::Applied { .. } => self.stats.switches += 1,
            ReloadOutcome::Refused { .. } | ReloadOutcome::Unreadable(_) => {
                let watch = self.watch.lock();
                return require(watch.rows.policy == before.policy, || {
                    format!("{outcome}, and live is {:?}", watch.rows.policy)
                });
            }
            _ => return Ok(()),
        }
        let fates = result.plan.iter().flat_map(|plan| &plan.held);
        let fates: BTreeMap<LeaseId, &LeaseFate> = fates.map(|fate| (fate.id, fate)).collect();
        for (id, was) in &before.held {
            let lease = self.handle().find(*id);
            let Some(is) = lease.as_ref().and_then(|lease| lease.held()) else {
                continue;
            };
            let fate = fates.get(id);
            require(has_met(was, is, fate.copied()), || {
                format!("{fate:?} was said, and from {was:?} it is {lease:?}")
            })?;
        }
        Ok(())
    }
}

/// What was live and held before a reload.
struct Before {
    policy: Option<LastGood>,
    held: Vec<(LeaseId, Grant)>,
}

impl Before {
    fn of(rows: &Rows) -> Self {
        let held = rows.occupying.iter();
        let held = held.filter_map(|id| Some((*id, rows.leases[id].held()?.clone())));
        Self {
            policy: rows.policy.clone(),
            held: held.collect(),
        }
    }
}

/// Whether the plan's word for a lease that is still held is what came of it, to the millisecond.
fn has_met(before: &Grant, after: &Grant, fate: Option<&LeaseFate>) -> bool {
    let drain = |grant: &Grant| {
        grant
            .drains
            .get(&DrainSource::Policy)
            .map(|drain| drain.deadline)
    };
    let hold = fate.and_then(|fate| match fate.fate {
        Fate::Shorten(until) => Some(until),
        _ => fate.shorten,
    });
    let goes = match fate.map(|fate| fate.fate) {
        None | Some(Fate::Keep | Fate::Shorten(_)) => drain(after) == drain(before),
        Some(Fate::Drain(deadline)) => drain(after) == Some(deadline),
        Some(Fate::Force) => false,
        Some(Fate::Withdraw) => drain(after).is_none(),
    };
    goes && after.hold_until == hold.or(before.hold_until) && after.fence == before.fence
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
