//! How often which rule failed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use gpu_lease::RuleErrors;

/// Errors since the policy was compiled, by rule. The number of rules bounds it.
#[derive(Debug, Default)]
pub(super) struct Errors(Mutex<BTreeMap<String, (u64, String)>>);

impl Errors {
    pub(super) fn count(&self, rule: &str, error: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(rule) {
            Some((count, last)) => {
                *count = count.saturating_add(1);
                error.clone_into(last);
            }
            None => drop(counts.insert(rule.to_owned(), (1, error.to_owned()))),
        }
    }

    pub(super) fn list(&self) -> Vec<RuleErrors> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let errors = counts.iter().map(|(rule, (count, last))| RuleErrors {
            rule: rule.clone(),
            count: *count,
            last: last.clone(),
        });
        errors.collect()
    }
}
