//! Settings that callers of the API put above all others, for a while.

use std::sync::Arc;

use gpu_lease::{At, Ms};
use gpu_policy::{FROM_API, Override, OverrideError, compile};
use gpu_store::ApiOverride;
use thiserror::Error;

use super::Reloader;
use super::result::{ReloadOptions, ReloadOutcome, ReloadResult, Trigger};
use super::road::{Road, Wanted, sources};
use super::state::Candidate;

/// The longest life of an override.
pub const OVERRIDE_TTL_MAX: Ms = Ms::from_secs(30 * 86_400);
/// The shortest.
const OVERRIDE_TTL_MIN: Ms = Ms::from_secs(1);
/// As many overrides there can be at once.
pub const OVERRIDES_MAX: usize = 64;

/// A setting cannot be put above the others.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SetOverrideError {
    /// It is no setting.
    #[error(transparent)]
    Malformed(#[from] OverrideError),
    /// It lasts too short or too long.
    #[error("an override lasts from {OVERRIDE_TTL_MIN} to {OVERRIDE_TTL_MAX}")]
    Ttl,
    /// There are too many.
    #[error("there can be no more than {OVERRIDES_MAX} overrides")]
    TooMany,
}

/// The layers of `set`, in order. What cannot be read was of another version and says nothing.
pub(crate) fn api_layers(set: &[ApiOverride]) -> impl Iterator<Item = Override> {
    set.iter().filter_map(|set| match parse(&set.text) {
        Ok(layer) => Some(layer),
        Err(error) => {
            tracing::warn!(%error, "an override is dropped");
            None
        }
    })
}

/// Those that have not ended.
pub(crate) fn unexpired(set: &[ApiOverride], at: At) -> Vec<ApiOverride> {
    let lasts = |set: &&ApiOverride| set.until.boot > at.boot;
    set.iter().filter(lasts).cloned().collect()
}

impl Reloader {
    /// Puts `settings` (pairs such as `placement.strategy` and `spread`) above all others for `ttl`,
    /// instead of those that were there; none clears them. The files last applied are compiled anew, not
    /// read. Whether the policy is good with them, and applied, is in the result; if not, nothing is set.
    ///
    /// # Errors
    /// One is no setting, there are too many, or `ttl` is out of range.
    pub fn set_overrides(
        &self,
        settings: &[(String, String)],
        ttl: Ms,
        by: &str,
        options: &ReloadOptions,
    ) -> Result<Arc<ReloadResult>, SetOverrideError> {
        let mut road = self.one_at_a_time.lock();
        let set = self.stamped(settings, ttl, by)?;
        let wanted = Wanted {
            overrides: Some(set),
            ..Wanted::new(Trigger::Override, by, options)
        };
        Ok(self.recompile(&mut road, wanted))
    }

    /// The settings that callers of the API put above all others.
    pub fn overrides(&self) -> Vec<ApiOverride> {
        self.state.lock().overrides.clone()
    }

    fn stamped(
        &self,
        settings: &[(String, String)],
        ttl: Ms,
        by: &str,
    ) -> Result<Vec<ApiOverride>, SetOverrideError> {
        if settings.len() > OVERRIDES_MAX {
            return Err(SetOverrideError::TooMany);
        }
        if !settings.is_empty() && !(OVERRIDE_TTL_MIN..=OVERRIDE_TTL_MAX).contains(&ttl) {
            return Err(SetOverrideError::Ttl);
        }
        let now = self.handle.now();
        let stamp = |(setting, value): &(String, String)| {
            let text = format!("{setting}={value}");
            parse(&text)?;
            Ok(ApiOverride {
                text,
                by: by.to_owned(),
                at: now.wall,
                until: now.after(ttl),
            })
        };
        settings.iter().map(stamp).collect()
    }

    /// Ends overrides whose time is over. Where that asks so much of what is held that somebody must
    /// confirm it, they stay until then.
    pub(super) fn end_overrides(&self, road: &mut Road, now: At) {
        let left = unexpired(&road.settings.overrides, now);
        if left.len() == road.settings.overrides.len() {
            return self.forget_the_end(road);
        }
        if let Some(asked) = road.end_asked.clone()
            && self.must_confirm_end(&left)
        {
            return self.show_the_end(road, &asked);
        }
        self.end(road, left, "", &ReloadOptions::default());
    }

    /// Ends them if `options` confirm the plan that the end waits for: it is not about the files on disk.
    pub(super) fn confirm_end(
        &self,
        road: &mut Road,
        by: &str,
        options: &ReloadOptions,
    ) -> Option<Arc<ReloadResult>> {
        let confirmed = options.confirm.as_ref()?;
        let asked = road.end_asked.as_ref()?;
        if asked.plan_hash.as_ref() != Some(confirmed) {
            return None;
        }
        let left = unexpired(&road.settings.overrides, self.handle.now());
        Some(self.end(road, left, by, options))
    }

    fn end(
        &self,
        road: &mut Road,
        left: Vec<ApiOverride>,
        by: &str,
        options: &ReloadOptions,
    ) -> Arc<ReloadResult> {
        let wanted = Wanted {
            overrides: Some(left.clone()),
            is_due: true,
            ..Wanted::new(Trigger::Override, by, options)
        };
        let result = self.recompile(road, wanted);
        match result.outcome {
            ReloadOutcome::NeedsConfirmation => {
                road.end_asked = Some(result.clone());
                self.show_the_end(road, &result);
            }
            // It is tried again with the next tick.
            ReloadOutcome::Moved { .. } | ReloadOutcome::Stopped(_) => {}
            // Also where the files are bad without them: what is live stays until the next good reload.
            _ => {
                road.settings.overrides = left;
                self.forget_the_end(road);
            }
        }
        result
    }

    /// Whether the end still has to be confirmed, for leases come and go meanwhile.
    fn must_confirm_end(&self, left: &[ApiOverride]) -> bool {
        let live = self.handle.snapshot().policy.clone();
        let policy = compile(&sources(&live.source), &self.layers(left));
        policy.is_ok_and(|policy| {
            let confirm = self.confirm(&live, &policy);
            self.handle.plan(&policy).plan.needs(confirm)
        })
    }

    /// What is on disk and not live is shown rather.
    fn show_the_end(&self, road: &Road, asked: &Arc<ReloadResult>) {
        let is_older = |shown: &Candidate| is_an_end(shown) && shown.result.id != asked.id;
        if (self.state.lock().candidate.as_ref()).is_none_or(is_older) {
            self.stand_as_candidate(road, asked);
        }
    }

    fn forget_the_end(&self, road: &mut Road) {
        if road.end_asked.take().is_some() {
            let mut state = self.state.lock();
            state.candidate.take_if(|candidate| is_an_end(candidate));
        }
    }

    /// The road for the files last applied.
    fn recompile(&self, road: &mut Road, wanted: Wanted<'_>) -> Arc<ReloadResult> {
        let live = self.handle.snapshot().policy.source.clone();
        self.run(road, wanted, || Ok(sources(&live)))
    }
}

fn is_an_end(candidate: &Candidate) -> bool {
    candidate.result.trigger == Trigger::Override
}

fn parse(text: &str) -> Result<Override, OverrideError> {
    Override::parse(FROM_API, text)
}
