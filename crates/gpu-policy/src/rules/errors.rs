//! How often which rule failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use gpu_lease::RuleErrors;

/// More things than this that an expression failed on are not told apart: further ones are not counted.
const SEEN_MAX: usize = 4096;

/// Errors since the policy was compiled, by rule. The number of rules bounds it.
#[derive(Debug, Default)]
pub(super) struct Errors {
    counts: Mutex<BTreeMap<String, (u64, String)>>,
    seen: Mutex<BTreeSet<(String, Vec<u8>)>>,
}

impl Errors {
    /// Counts an error of what is asked again and again, once for each thing that it is `about`.
    pub(super) fn count_once(&self, rule: &str, error: &str, about: Vec<u8>) {
        let is_new = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.len() < SEEN_MAX && seen.insert((rule.to_owned(), about))
        };
        if is_new {
            self.count(rule, error);
        }
    }

    pub(super) fn count(&self, rule: &str, error: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(rule) {
            Some((count, last)) => {
                *count = count.saturating_add(1);
                error.clone_into(last);
            }
            None => drop(counts.insert(rule.to_owned(), (1, error.to_owned()))),
        }
    }

    pub(super) fn list(&self) -> Vec<RuleErrors> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let errors = counts.iter().map(|(rule, (count, last))| RuleErrors {
            rule: rule.clone(),
            count: *count,
            last: last.clone(),
        });
        errors.collect()
    }
}
