//! Reloads: results, and how the files on disk stand to what is live.

use gpu_api as wire;
use gpu_broker::{ReloadOutcome, ReloadResult, ReloadState, Trigger};
use gpu_lease::{Deadline, Fate, LeaseFate, Plan};

use super::policy::diagnostics;
use super::time::rfc3339;
use crate::app::Config;

/// What became of one reload; `live` is the generation now in force, for one that changed nothing.
pub(crate) fn reload_result(result: &ReloadResult, live: u64) -> wire::ReloadResult {
    let generation = match &result.outcome {
        ReloadOutcome::Applied { generation, .. } => *generation,
        ReloadOutcome::Refused { .. }
        | ReloadOutcome::Stopped(_)
        | ReloadOutcome::Unchanged
        | ReloadOutcome::Unreadable(_) => live,
    };
    let applied = matches!(result.outcome, ReloadOutcome::Applied { .. });
    wire::ReloadResult {
        id: result.id.to_string(),
        outcome: outcome(&result.outcome),
        summary: summary(&result.outcome),
        trigger: trigger(result.trigger),
        by: result.by.clone(),
        at: rfc3339(result.at),
        took_ms: result.took.0,
        phases: wire::ReloadPhases::default(),
        generation,
        previous_generation: generation.saturating_sub(u64::from(applied)),
        hash_before: result.hash_before.clone(),
        hash: result.hash_after.clone().unwrap_or_default(),
        files: result.files.clone(),
        changes: changes(&result.outcome),
        leases: plan(&result.outcome)
            .map_or_else(Vec::new, |plan| plan.held.iter().map(fate).collect()),
        denied: Vec::new(),
        stale: Vec::new(),
        plan: None,
        attempt: attempt(&result.outcome),
        diagnostics: found(&result.outcome),
    }
}

/// The policy watch.
pub(crate) fn reload_state(
    state: &ReloadState,
    live: u64,
    config: &Config,
    watch: Option<wire::WatchState>,
) -> wire::ReloadState {
    let switched = state
        .switched_by
        .as_ref()
        .map(|by| format!("switched by {by}"));
    wire::ReloadState {
        enabled: state.watching,
        why: switched.unwrap_or_else(|| config.watch_reason.clone()),
        watching: config
            .policy_paths
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        switched: None,
        dev: config.dev,
        on_disk_differs: state.refused.is_some() || state.degraded.is_some(),
        error_since: state.refused.as_ref().map(|refused| rfc3339(refused.at)),
        candidate: state.refused.as_deref().and_then(candidate),
        breaker: wire::Breaker::closed(),
        last: state.last.as_ref().map(|last| reload_result(last, live)),
        history: Vec::new(),
        counts: Vec::new(),
        draining_generations: Vec::new(),
        erring: Vec::new(),
        watch,
    }
}

/// How the files on disk compare with what is live, as far as anybody has looked.
pub(crate) fn disk(state: &ReloadState) -> wire::DiskState {
    if state.refused.is_some() || state.degraded.is_some() {
        return wire::DiskState::Failing;
    }
    match state.watching {
        true => wire::DiskState::Same,
        false => wire::DiskState::Unknown,
    }
}

/// Why disk and live differ, in one line.
pub(crate) fn error_state(state: &ReloadState) -> Option<String> {
    let refused = state
        .refused
        .as_ref()
        .map(|result| summary(&result.outcome));
    refused.or_else(|| state.degraded.as_ref().map(|why| one_line(why)))
}

/// What is on disk and was refused.
pub(super) fn candidate(refused: &ReloadResult) -> Option<wire::Candidate> {
    let ReloadOutcome::Refused { attempt, .. } = &refused.outcome else {
        return None;
    };
    Some(wire::Candidate {
        hash: refused.hash_after.clone().unwrap_or_default(),
        summary: summary(&refused.outcome),
        plan: None,
        seen_at: rfc3339(refused.at),
        state: match wire_outcome(*attempt) {
            wire::ReloadOutcome::Rejected => wire::CandidateState::Rejected,
            _ => wire::CandidateState::Failing,
        },
        attempt: *attempt,
        diagnostics: found(&refused.outcome),
    })
}

/// A candidate that failed this often is rejected.
const REJECTED_AFTER_ATTEMPTS: u32 = 3;

fn wire_outcome(attempt: u32) -> wire::ReloadOutcome {
    match attempt < REJECTED_AFTER_ATTEMPTS {
        true => wire::ReloadOutcome::Failed,
        false => wire::ReloadOutcome::Rejected,
    }
}

fn outcome(outcome: &ReloadOutcome) -> wire::ReloadOutcome {
    match outcome {
        ReloadOutcome::Applied { .. } => wire::ReloadOutcome::Applied,
        ReloadOutcome::Refused { attempt, .. } => wire_outcome(*attempt),
        ReloadOutcome::Stopped(_) | ReloadOutcome::Unreadable(_) => wire::ReloadOutcome::Failed,
        ReloadOutcome::Unchanged => wire::ReloadOutcome::Unchanged,
    }
}

/// What came of it, in one line.
fn summary(outcome: &ReloadOutcome) -> String {
    match outcome {
        ReloadOutcome::Applied {
            generation,
            changes,
            ..
        } => match changes.as_slice() {
            [] => format!("generation {generation} is live"),
            [one] => format!("generation {generation} is live: {one}"),
            [first, more @ ..] => format!(
                "generation {generation} is live: {first}, and {} more",
                more.len()
            ),
        },
        ReloadOutcome::Refused {
            diagnostics,
            attempt,
        } => {
            let first = diagnostics.items().first();
            let place = first.map(|item| {
                format!(
                    "{}:{}:{}: {}",
                    item.file, item.line, item.column, item.message
                )
            });
            let more = match diagnostics.total().saturating_sub(1) {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            format!(
                "refused (attempt {attempt}), the policy before stays: {}{more}",
                place.unwrap_or_default()
            )
        }
        ReloadOutcome::Stopped(why) => format!("not applied: {why}"),
        ReloadOutcome::Unchanged => "the files say what is live already".to_owned(),
        ReloadOutcome::Unreadable(why) => {
            format!("the files cannot be read, the policy before stays: {why}")
        }
    }
}

fn changes(outcome: &ReloadOutcome) -> Vec<String> {
    match outcome {
        ReloadOutcome::Applied { changes, .. } => changes.clone(),
        ReloadOutcome::Refused { .. }
        | ReloadOutcome::Stopped(_)
        | ReloadOutcome::Unchanged
        | ReloadOutcome::Unreadable(_) => Vec::new(),
    }
}

fn plan(outcome: &ReloadOutcome) -> Option<&Plan> {
    match outcome {
        ReloadOutcome::Applied { plan, .. } => Some(plan),
        ReloadOutcome::Refused { .. }
        | ReloadOutcome::Stopped(_)
        | ReloadOutcome::Unchanged
        | ReloadOutcome::Unreadable(_) => None,
    }
}

fn attempt(outcome: &ReloadOutcome) -> u32 {
    match outcome {
        ReloadOutcome::Refused { attempt, .. } => *attempt,
        ReloadOutcome::Applied { .. }
        | ReloadOutcome::Stopped(_)
        | ReloadOutcome::Unchanged
        | ReloadOutcome::Unreadable(_) => 0,
    }
}

fn found(outcome: &ReloadOutcome) -> Vec<wire::Diagnostic> {
    match outcome {
        ReloadOutcome::Refused {
            diagnostics: found, ..
        } => diagnostics(found),
        ReloadOutcome::Applied { .. }
        | ReloadOutcome::Stopped(_)
        | ReloadOutcome::Unchanged
        | ReloadOutcome::Unreadable(_) => Vec::new(),
    }
}

fn fate(fate: &LeaseFate) -> wire::LeaseFate {
    let (word, deadline): (wire::Fate, Option<Deadline>) = match fate.fate {
        Fate::Drain(deadline) => (wire::Fate::Drain, Some(deadline)),
        Fate::Force => (wire::Fate::Force, None),
        Fate::Keep => (wire::Fate::Keep, None),
        Fate::Shorten(deadline) => (wire::Fate::Shorten, Some(deadline)),
        Fate::Withdraw => (wire::Fate::Withdraw, None),
    };
    let because = &fate.because;
    let reason = match (because.rule.as_str(), fate.fate) {
        (_, Fate::Withdraw) => "the new policy lets it stay",
        (_, Fate::Shorten(_)) => "its longest hold was cut",
        ("", _) => "the reload is about every lease",
        _ => &because.reason,
    };
    wire::LeaseFate {
        lease: fate.id.to_string(),
        holder: fate.holder.clone(),
        fate: word,
        rule: because.rule.clone(),
        reason: reason.to_owned(),
        deadline_at: deadline.map(|deadline| rfc3339(deadline.wall)),
        remaining_ms: None,
        unenforceable: fate.unenforceable,
    }
}

fn trigger(trigger: Trigger) -> wire::ReloadTrigger {
    match trigger {
        Trigger::Api | Trigger::CommandLine => wire::ReloadTrigger::Api,
        Trigger::File => wire::ReloadTrigger::File,
        Trigger::Signal => wire::ReloadTrigger::Signal,
        Trigger::Start => wire::ReloadTrigger::Start,
    }
}

fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(2).collect::<Vec<_>>().join(" ")
}
