//! Verdicts by the inputs that they came from: leases with equal inputs share one, and the end of a hold over
//! all the minutes until then.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gpu_lease::WallMs;

use super::Decided;

/// More verdicts than this are not kept: then all are forgotten.
const VERDICTS_MAX: usize = 4096;

/// Verdicts by [`crate::cel::Inputs::key`].
#[derive(Debug, Default)]
pub(super) struct Memo(Mutex<BTreeMap<Vec<u8>, Decided>>);

impl Memo {
    /// What is kept for `key`, or what `decide` says.
    pub(super) fn get_or(&self, key: Vec<u8>, decide: impl FnOnce() -> Decided) -> Decided {
        if let Some(decided) = self.verdicts().get(&key) {
            return decided.clone();
        }
        let decided = decide();
        let mut verdicts = self.verdicts();
        if verdicts.len() >= VERDICTS_MAX {
            verdicts.clear();
        }
        verdicts.insert(key, decided.clone());
        decided
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.verdicts().len()
    }

    fn verdicts(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Decided>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More ends of holds than this are not kept: then all are forgotten.
const ENDS_MAX: usize = 16_384;

/// When holds end by the clock, by the rule and what else it reads.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<BTreeMap<(usize, Vec<u8>), End>>);

/// What was found at one time, and stays true for a while.
#[derive(Clone, Copy, Debug)]
struct End {
    from: WallMs,
    /// Where no end was found, when to look again.
    to: WallMs,
    end: Option<WallMs>,
}

impl Ends {
    /// What is kept for a hold that holds at `now`, or what `find` says.
    pub(super) fn get_or(
        &self,
        key: (usize, Vec<u8>),
        now: WallMs,
        find: impl FnOnce() -> Option<WallMs>,
    ) -> Option<WallMs> {
        const NONE_FOR_MS: u64 = 3_600_000;
        if let Some(known) = self.ends().get(&key)
            && (known.from..known.to).contains(&now)
        {
            return known.end;
        }
        let end = find();
        let to = end.unwrap_or(WallMs(now.0.saturating_add(NONE_FOR_MS)));
        let mut ends = self.ends();
        if ends.len() >= ENDS_MAX {
            ends.clear();
        }
        ends.insert(key, End { from: now, to, end });
        end
    }

    fn ends(&self) -> MutexGuard<'_, BTreeMap<(usize, Vec<u8>), End>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
