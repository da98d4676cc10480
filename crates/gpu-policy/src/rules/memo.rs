//! Verdicts by the inputs that they came from: leases with equal inputs share one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
