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

/// What `plan` does, in one line: `2 leases drain, 1 lease ends at once`.
pub(crate) fn in_words(plan: &Plan) -> String {
    let of = |wanted: wire::Fate| {
        let fates = plan.held.iter().filter(|held| word(held.fate).0 == wanted);
        fates.count()
    };
    let parts = [
        (
            of(wire::Fate::Force),
            "lease ends at once",
            "leases end at once",
        ),
        (of(wire::Fate::Drain), "lease drains", "leases drain"),
        (
            of(wire::Fate::Shorten),
            "lease is held shorter",
            "leases are held shorter",
        ),
        (
            of(wire::Fate::Keep),
            "lease stays although it is no longer allowed",
            "leases stay although they are no longer allowed",
        ),
        (
            of(wire::Fate::Withdraw),
            "lease may stay again",
            "leases may stay again",
        ),
        (
            plan.denied.len(),
            "waiter is refused",
            "waiters are refused",
        ),
        (
            impossible(plan).len(),
            "holder cannot be made to go",
            "holders cannot be made to go",
        ),
    ];
    let said = parts
        .into_iter()
        .filter_map(|(count, one, several)| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            _ => Some(format!("{count} {several}")),
        });
    let said: Vec<String> = said.collect();
    match said.as_slice() {
        [] => "no lease is touched".to_owned(),
        parts => parts.join(", "),
    }
}

fn would(planning: &Planning) -> String {
    match planning.hash == planning.live {
        true => "the files say what is live already".to_owned(),
        false => in_words(&planning.plan),
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

#[cfg(test)]
mod tests {
    use gpu_lease::{BootMs, LeaseId, Refusal, WallMs};

    use super::*;

    #[test]
    fn a_plan_is_one_line() {
        let deadline = Deadline {
            boot: BootMs(1),
            wall: WallMs(1),
        };
        let held = |fate, unenforceable| LeaseFate {
            id: LeaseId::from_bits(1),
            holder: "ann".to_owned(),
            fate,
            shorten: None,
            because: Refusal::default(),
            unenforceable,
        };
        let drains = held(Fate::Drain(deadline), true);
        let plan = Plan {
            held: vec![held(Fate::Force, false), drains.clone(), drains],
            denied: vec![(LeaseId::from_bits(2), Refusal::default())],
        };
        assert_eq!(
            in_words(&plan),
            "1 lease ends at once, 2 leases drain, 1 waiter is refused, 2 holders cannot be made to go"
        );
        assert_eq!(in_words(&Plan::default()), "no lease is touched");
    }
}
