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

use super::law::Law;
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
            Some(result) => {
                self.says_what_is_live(&result, &before, way < 7)?;
                self.reloaded(&result, &before)
            }
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

    /// The next generation is what was saved, where that was to be applied; or else nothing was switched.
    fn says_what_is_live(
        &self,
        result: &ReloadResult,
        before: &Before,
        is_of_files: bool,
    ) -> Checked {
        let saved = files::texts(&self.files.lock());
        let watch = self.watch.lock();
        let (was, is) = (before.policy.as_ref(), watch.rows.policy.as_ref());
        let fine = match result.outcome {
            ReloadOutcome::Applied { generation } => {
                let next = is_next(was, is) && is.map(|is| is.generation) == Some(generation);
                next && (!is_of_files || is.is_some_and(|is| is.source.files == saved))
            }
            ReloadOutcome::RolledBack { .. } => is_next(was, is),
            ReloadOutcome::Stopped(_) => true,
            ReloadOutcome::Unchanged => was == is && (!is_of_files || says_the_same(is, &saved)),
            _ => was == is,
        };
        require(fine, || {
            let outcome = result.outcome.as_str();
            format!("{outcome}, and live is {is:?} after {was:?}; saved was {saved:?}")
        })
    }

    /// A start is a switch to the files, if they are any good, nobody took them back, and nobody has to be asked.
    pub(super) fn begins_by_its_files(&self, before: &Before) -> Checked {
        let files = self.files.lock().clone();
        if files::is_broken(&files) || before.rejected {
            return Ok(());
        }
        let saved = files::texts(&files);
        let watch = self.watch.lock();
        let (was, is) = (before.policy.as_ref(), watch.rows.policy.as_ref());
        let asks = was.is_some_and(|was| Law::of(&was.source.files).confirm);
        let asks = asks || Law::of(&saved).confirm;
        if asks && !before.held.is_empty() {
            return Ok(());
        }
        let switched = is_next(was, is) && is.is_some_and(|is| is.source.files == saved);
        let same = is_same(was, is) && says_the_same(is, &saved);
        require(switched || same, || {
            format!("{saved:?} was there at a start, and live is {is:?} after {was:?}")
        })
    }

    /// What the result says is what became of the leases, and of nobody else.
    fn reloaded(&mut self, result: &Arc<ReloadResult>, before: &Before) -> Checked {
        let outcome = result.outcome.as_str();
        self.say(|| format!("reload: {outcome} {:?}", result.plan));
        match result.outcome {
            ReloadOutcome::Applied { .. } => self.stats.switches += 1,
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

/// What was live and held before a reload or a start.
pub(super) struct Before {
    policy: Option<LastGood>,
    /// Files were taken back, and may still be there.
    rejected: bool,
    held: Vec<(LeaseId, Grant)>,
}

impl Before {
    pub(super) fn of(rows: &Rows) -> Self {
        let held = rows.occupying.iter();
        let held = held.filter_map(|id| Some((*id, rows.leases[id].held()?.clone())));
        Self {
            policy: rows.policy.clone(),
            rejected: rows.settings.rejected.is_some(),
            held: held.collect(),
        }
    }
}

fn is_next(was: Option<&LastGood>, is: Option<&LastGood>) -> bool {
    match (was, is) {
        (Some(was), Some(is)) => is.generation == was.generation + 1,
        (was, is) => was.is_none() && is.is_some(),
    }
}

fn is_same(was: Option<&LastGood>, is: Option<&LastGood>) -> bool {
    let name = |policy: &LastGood| (policy.generation, policy.source.hash.clone());
    was.map(name) == is.map(name)
}

/// Whether these files are no other policy, as far as lives are judged by it.
fn says_the_same(is: Option<&LastGood>, saved: &[(String, String)]) -> bool {
    is.is_some_and(|is| Law::of(&is.source.files) == Law::of(saved))
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
