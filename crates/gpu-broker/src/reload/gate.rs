//! The gate before a switch: what somebody must confirm, and what was confirmed.

use std::sync::Arc;

use gpu_lease::{Confirm, Expect, OnShrink, Plan, Planned, Policy};

use super::Reloader;
use super::result::ReloadOutcome;
use super::road::{Draft, Road, Wanted};
use crate::handle::Unavailable;

/// Plans that can still be confirmed by their hash.
const ASKED_MAX: usize = 8;

/// A plan that somebody was asked to confirm.
pub(super) struct Asked {
    plan_hash: String,
    policy: String,
    plan: Arc<Plan>,
}

impl Road {
    /// The most that `hash` confirms, if it names the plan of now or one that it was asked for and that
    /// the plan of now is within.
    fn confirmed(
        &self,
        hash: &str,
        draft: &Draft,
        policy: &Policy,
        plan: &Arc<Plan>,
    ) -> Option<Arc<Plan>> {
        if draft.plan_hash.as_deref() == Some(hash) {
            return Some(plan.clone());
        }
        let asked = self.asked.iter().find(|asked| asked.plan_hash == hash)?;
        let covers = asked.policy == policy.source.hash && plan.is_within(&asked.plan);
        covers.then(|| asked.plan.clone())
    }

    fn ask(&mut self, draft: &Draft, policy: &Policy, plan: Arc<Plan>) {
        self.asked.push_front(Asked {
            plan_hash: draft.plan_hash.clone().unwrap_or_default(),
            policy: policy.source.hash.clone(),
            plan,
        });
        self.asked.truncate(ASKED_MAX);
    }
}

/// Whether a plan of `policy` can only be made once the devices are known.
pub(crate) fn depends_on_devices(policy: &Policy) -> bool {
    let drains = policy.devices.iter().any(|rule| rule.drain.is_some());
    drains || policy.reload.on_shrink == OnShrink::Drain || policy.rules.reads_standing()
}

impl Reloader {
    /// What must be true for the switch, or why there is none.
    pub(super) fn expectation(
        &self,
        road: &mut Road,
        wanted: &Wanted<'_>,
        draft: &Draft,
        policy: &Policy,
        planned: &Planned,
    ) -> Result<Expect, ReloadOutcome> {
        let plan = Arc::new(planned.plan.clone());
        let within = |plan| {
            Ok(Expect {
                within: Some(plan),
                ..Expect::default()
            })
        };
        if let Some(hash) = &wanted.options.expect_plan {
            if draft.plan_hash.as_ref() != Some(hash) {
                let live = draft.before.source.hash.clone();
                return Err(ReloadOutcome::Moved { live });
            }
            return Ok(Expect {
                exactly: Some(plan),
                ..Expect::default()
            });
        }
        let confirm = self.confirm(&draft.before, policy);
        if wanted.withdraws.is_some() {
            return within(plan);
        }
        if confirm == Confirm::Never {
            return Ok(Expect::default());
        }
        let hash = wanted.options.confirm.as_deref();
        let confirmed = hash.and_then(|hash| road.confirmed(hash, draft, policy, &plan));
        if let Some(most) = confirmed {
            return within(most);
        }
        if plan.needs(confirm) {
            road.ask(draft, policy, plan);
            return Err(ReloadOutcome::NeedsConfirmation);
        }
        if self.handle.snapshot().recovering && depends_on_devices(policy) && self.holds_anything()
        {
            // Before the devices are known, nobody can say what has to be confirmed.
            return Err(ReloadOutcome::Stopped(Unavailable::Recovering));
        }
        within(plan)
    }

    fn holds_anything(&self) -> bool {
        let leases = self.handle.page(None, usize::MAX);
        leases.iter().any(|lease| lease.held().is_some())
    }

    /// Which plans have to be confirmed, between these two policies.
    pub(super) fn confirm(&self, live: &Policy, policy: &Policy) -> Confirm {
        match self.dev {
            true => Confirm::Never,
            false => live.reload.confirm.max(policy.reload.confirm),
        }
    }
}
