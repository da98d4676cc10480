//! What a policy would mean for what is held and what waits.

use gpu_api as wire;
use gpu_broker::{Diagnostics, Planning};
use gpu_lease::{Deadline, Fate, LeaseFate, Plan};

use super::Scene;
use super::policy::diagnostics;
use super::time::rfc3339;

/// What the files named `files` would mean now.
pub(crate) fn policy_plan(
    files: Vec<String>,
    planned: Result<Planning, Diagnostics>,
    scene: &Scene<'_>,
) -> wire::PolicyPlan {
    let live = &scene.snapshot.policy.source.hash;
    let nothing = wire::PolicyPlan {
        ok: false,
        hash: String::new(),
        plan: String::new(),
        live: live.clone(),
        generation: scene.snapshot.counters.generation,
        files,
        changes: Vec::new(),
        leases: Vec::new(),
        denied: Vec::new(),
        summary: String::new(),
        confirm_needed: false,
        impossible: Vec::new(),
        diagnostics: Vec::new(),
    };
    match planned {
        Ok(planning) => wire::PolicyPlan {
            ok: true,
            summary: would(&planning),
            leases: scene.fates(&planning.plan, usize::MAX),
            denied: scene.denied(&planning.plan, usize::MAX),
            impossible: impossible(&planning.plan),
            hash: planning.hash,
            plan: planning.plan_hash,
            live: planning.live,
            changes: planning.changes,
            confirm_needed: planning.confirm_needed,
            ..nothing
        },
        Err(found) => wire::PolicyPlan {
            summary: match found.total() {
                1 => "the files have an error".to_owned(),
                total => format!("the files have {total} errors"),
            },
            diagnostics: diagnostics(&found),
            ..nothing
        },
    }
}

impl Scene<'_> {
    /// What becomes of held leases, the first `most` of them.
    pub(crate) fn fates(&self, plan: &Plan, most: usize) -> Vec<wire::LeaseFate> {
        let held = plan.held.iter().take(most);
        held.map(|fate| self.fate(fate)).collect()
    }

    /// Who waits and would be refused, the first `most` of them.
    pub(crate) fn denied(&self, plan: &Plan, most: usize) -> Vec<wire::DeniedWaiter> {
        let denied = plan.denied.iter().take(most).map(|(id, refusal)| {
            let waiter = self.find(*id);
            wire::DeniedWaiter {
                lease: id.to_string(),
                holder: waiter
                    .map_or_else(String::new, |waiter| waiter.request.holder.name.clone()),
                rule: refusal.rule.clone(),
                reason: refusal.reason.clone(),
            }
        });
        denied.collect()
    }

    fn fate(&self, fate: &LeaseFate) -> wire::LeaseFate {
        let (word, deadline) = word(fate.fate);
        let deadline = deadline.or(fate.shorten);
        let because = &fate.because;
        let reason = match (fate.fate, because.reason.as_str()) {
            (Fate::Withdraw, "") => "the new policy lets it stay",
            (Fate::Shorten(_), "") => "its longest hold was cut",
            (_, "") => "the reload is about every lease",
            (_, reason) => reason,
        };
        wire::LeaseFate {
            lease: fate.id.to_string(),
            holder: fate.holder.clone(),
            fate: word,
            rule: because.rule.clone(),
            reason: reason.to_owned(),
            deadline_at: deadline.map(|deadline| rfc3339(deadline.wall)),
            remaining_ms: deadline.map(|deadline| (deadline.boot - self.now.boot).0),
            unenforceable: fate.unenforceable,
        }
    }
}

fn would(planning: &Planning) -> String {
    match planning.hash == planning.live {
        true => "the files say what is live already".to_owned(),
        false => planning.plan.to_string(),
    }
}

/// The leases that are to end by force some time, and whose holders nothing can make go.
fn impossible(plan: &Plan) -> Vec<String> {
    let held = plan.held.iter().filter(|held| held.unenforceable);
    held.map(|held| held.id.to_string()).collect()
}

fn word(fate: Fate) -> (wire::Fate, Option<Deadline>) {
    match fate {
        Fate::Drain(deadline) => (wire::Fate::Drain, Some(deadline)),
        Fate::Force => (wire::Fate::Force, None),
        Fate::Keep => (wire::Fate::Keep, None),
        Fate::Shorten(deadline) => (wire::Fate::Shorten, Some(deadline)),
        Fate::Withdraw => (wire::Fate::Withdraw, None),
    }
}
