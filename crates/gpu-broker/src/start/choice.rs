//! Which policy a life of the broker begins under: that of the files, or what was last good.

use std::sync::Arc;

use gpu_lease::{At, Books, Confirm, Policy};
use gpu_policy::{Diagnostics, Override, SourceFile, compile};
use gpu_store::{LastGood, RejectedFiles, Settings, Stored};

use super::{StartError, StartPolicy};
use crate::reload::{api_layers, depends_on_devices, files_hash};

/// Which policy a life begins under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Under {
    /// That of the files.
    Files,
    /// The one that was live when the last life ended.
    LastGood,
}

/// What to start with, all layers known.
pub(super) struct Start<'a> {
    files: Result<&'a [SourceFile], &'a String>,
    pub(super) files_hash: String,
    /// The layers above the files that last as long as the broker.
    base: &'a [Override],
    /// All of them.
    pub(super) layers: Vec<Override>,
    rejected: Option<&'a RejectedFiles>,
    dev: bool,
}

/// The policy to start with.
pub(crate) struct Chosen {
    pub(crate) policy: Arc<Policy>,
    /// Why it is not that of the files, where they are bad.
    pub(crate) degraded: Option<String>,
    /// The files, where they are good and something else is live.
    pub(crate) waiting: Option<Vec<SourceFile>>,
}

impl<'a> Start<'a> {
    pub(super) fn of(policy: &'a StartPolicy, settings: &'a Settings) -> Self {
        let base = policy.overrides.iter().cloned();
        let files = policy.files.as_deref();
        Self {
            files,
            files_hash: files.map_or_else(|_| String::new(), files_hash),
            base: &policy.overrides,
            layers: base.chain(api_layers(&settings.overrides)).collect(),
            rejected: settings.rejected.as_ref(),
            dev: policy.dev,
        }
    }

    pub(super) fn choose(
        &self,
        under: Under,
        last_good: Option<&LastGood>,
    ) -> Result<Chosen, StartError> {
        match under {
            Under::Files => self.choose_policy(last_good),
            Under::LastGood => self.keep_policy(last_good),
        }
    }

    /// The files if they compile and were not taken back, else what was last good.
    fn choose_policy(&self, last_good: Option<&LastGood>) -> Result<Chosen, StartError> {
        match self.compiled() {
            Ok(policy) => {
                let taken_back = last_good.filter(|_| self.is_taken_back());
                let good = taken_back.and_then(|good| recompile(good, &self.layers).ok());
                Ok(Chosen {
                    waiting: good.as_ref().and(self.waiting()),
                    policy: good.unwrap_or_else(|| Arc::new(policy)),
                    degraded: None,
                })
            }
            Err(files) => {
                let Some(good) = last_good else {
                    return Err(StartError::Policy(files));
                };
                match self.recompile_last(good) {
                    Ok(policy) => Ok(Chosen {
                        policy,
                        degraded: Some(files),
                        waiting: None,
                    }),
                    Err(last_good) => Err(StartError::LastGood { files, last_good }),
                }
            }
        }
    }

    /// What was last good, said to be the very same whatever lies over it now. One that this version does not
    /// understand leaves its name to what is given: what is held is kept under any policy.
    fn keep_policy(&self, last_good: Option<&LastGood>) -> Result<Chosen, StartError> {
        let given = || self.compiled().map_err(StartError::Policy);
        let policy = match last_good {
            None => Arc::new(given()?),
            Some(good) => {
                let kept = match self.recompile_last(good) {
                    Ok(policy) => Policy::clone(&policy),
                    Err(_) => given()?,
                };
                let source = good.source.clone();
                Arc::new(Policy { source, ..kept })
            }
        };
        Ok(Chosen {
            policy,
            degraded: None,
            waiting: None,
        })
    }

    fn compiled(&self) -> Result<Policy, String> {
        let files = self.files.map_err(Clone::clone)?;
        compile(files, &self.layers).map_err(|errors| errors.to_string())
    }

    fn waiting(&self) -> Option<Vec<SourceFile>> {
        self.files.ok().map(<[SourceFile]>::to_vec)
    }

    /// What to start with instead, if a reload to `chosen` had to be confirmed: a restart is no way around
    /// that. Devices are not known yet: a policy of which the plan depends on them is planned once they are.
    /// Settings of the command line are not held back: whoever starts the broker sets them.
    /// `books` are those that were found.
    pub(super) fn gate(
        &self,
        chosen: &Chosen,
        stored: &Stored,
        books: &Books,
        at: At,
    ) -> Option<Chosen> {
        let good = stored.policy.as_ref()?;
        if self.dev || chosen.degraded.is_some() || chosen.waiting.is_some() {
            return None;
        }
        let confirm = (books.policy().reload.confirm).max(chosen.policy.reload.confirm);
        let holds = books.leases().any(|lease| lease.held().is_some());
        let is_blind = holds
            && confirm != Confirm::Never
            && *books.policy() != chosen.policy
            && depends_on_devices(&chosen.policy);
        if !is_blind && !books.plan(at, &chosen.policy).needs(confirm) {
            return None;
        }
        let before = self.base.iter().cloned();
        let before: Vec<_> = before
            .chain(api_layers(&stored.settings.overrides))
            .collect();
        Some(Chosen {
            policy: recompile(good, &before).ok()?,
            degraded: None,
            waiting: self.waiting(),
        })
    }

    /// Whether these very files were live and are to be no more; those that only failed may be good by now.
    fn is_taken_back(&self) -> bool {
        self.rejected
            .is_some_and(|rejected| rejected.hash == self.files_hash && rejected.attempt == 0)
    }

    /// With the API overrides, or without them if they do not fit.
    fn recompile_last(&self, good: &LastGood) -> Result<Arc<Policy>, Diagnostics> {
        recompile(good, &self.layers).or_else(|errors| {
            let bare = recompile(good, self.base);
            bare.map_err(|_| errors)
        })
    }
}

pub(super) fn recompile(
    good: &LastGood,
    overrides: &[Override],
) -> Result<Arc<Policy>, Diagnostics> {
    let files = good.source.files.iter();
    let file = |(name, text): &(String, String)| SourceFile::new(name.clone(), text.clone());
    let files: Vec<SourceFile> = files.map(file).collect();
    compile(&files, overrides).map(Arc::new)
}
