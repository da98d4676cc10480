//! Reloads: results, and how the files on disk stand to what is live.

use gpu_api as wire;
use gpu_broker::{Candidate, CandidateState, ReloadOutcome, ReloadResult, ReloadState, Trigger};
use gpu_lease::{Deadline, Fate, LeaseFate};

use super::policy::diagnostics;
use super::time::rfc3339;
use crate::app::Config;

/// What became of one reload; `live` is the generation now in force, for one that changed nothing.
pub(crate) fn reload_result(result: &ReloadResult, live: u64) -> wire::ReloadResult {
    let switched = match &result.outcome {
        ReloadOutcome::Applied { generation } | ReloadOutcome::RolledBack { generation, .. } => {
            Some(*generation)
        }
        ReloadOutcome::Moved { .. }
        | ReloadOutcome::NeedsConfirmation
        | ReloadOutcome::Refused { .. }
        | ReloadOutcome::Rejected { .. }
        | ReloadOutcome::Resting { .. }
        | ReloadOutcome::Stopped(_)
        | ReloadOutcome::Unchanged
        | ReloadOutcome::Unreadable(_) => None,
    };
    let generation = switched.unwrap_or(live);
    wire::ReloadResult {
        outcome: outcome(&result.outcome),
        summary: summary(result),
        trigger: trigger(result.trigger),
        at: rfc3339(result.at),
        took_ms: result.took.0,
        generation,
        previous_generation: generation.saturating_sub(u64::from(switched.is_some())),
        hash: result.hash_after.clone().unwrap_or_default(),
        files: result.files.clone(),
        changes: result.changes.clone(),
        leases: result
            .plan
            .as_ref()
            .map_or_else(Vec::new, |plan| plan.held.iter().map(fate).collect()),
        stale: result.stale.iter().map(ToString::to_string).collect(),
        plan: result.plan_hash.clone(),
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
        .map(|switch| format!("switched by {}", switch.by));
    wire::ReloadState {
        enabled: state.watching,
        why: switched.unwrap_or_else(|| config.watch_reason.clone()),
        watching: config
            .policy_paths
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        breaker_until: None,
        last: state.last.as_ref().map(|last| reload_result(last, live)),
        watch,
    }
}

/// How the files on disk compare with what is live, as far as anybody has looked.
pub(crate) fn disk(state: &ReloadState) -> wire::DiskState {
    if state.candidate.is_some() || state.degraded.is_some() {
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
        .candidate
        .as_ref()
        .map(|candidate| summary(&candidate.result));
    refused.or_else(|| state.degraded.as_ref().map(|why| one_line(why)))
}

/// What is on disk and is not live.
pub(super) fn candidate(candidate: &Candidate) -> Option<wire::Candidate> {
    Some(wire::Candidate {
        hash: candidate.result.hash_after.clone().unwrap_or_default(),
        seen_at: rfc3339(candidate.result.at),
        state: match candidate.state {
            CandidateState::Failing => wire::CandidateState::Failing,
            CandidateState::Rejected | CandidateState::RolledBack => wire::CandidateState::Rejected,
            CandidateState::NeedsConfirmation
            | CandidateState::NotLoaded
            | CandidateState::Resting => return None,
        },
        attempt: candidate.attempt,
        diagnostics: found(&candidate.result.outcome),
    })
}

fn outcome(outcome: &ReloadOutcome) -> wire::ReloadOutcome {
    match outcome {
        ReloadOutcome::Applied { .. } | ReloadOutcome::RolledBack { .. } => {
            wire::ReloadOutcome::Applied
        }
        ReloadOutcome::NeedsConfirmation => wire::ReloadOutcome::NeedsConfirmation,
        ReloadOutcome::Refused { rejected: true, .. } | ReloadOutcome::Rejected { .. } => {
            wire::ReloadOutcome::Rejected
        }
        ReloadOutcome::Moved { .. }
        | ReloadOutcome::Refused { .. }
        | ReloadOutcome::Resting { .. }
        | ReloadOutcome::Stopped(_)
        | ReloadOutcome::Unreadable(_) => wire::ReloadOutcome::Failed,
        ReloadOutcome::Unchanged => wire::ReloadOutcome::Unchanged,
    }
}

/// What came of it, in one line.
fn summary(result: &ReloadResult) -> String {
    match &result.outcome {
        ReloadOutcome::Applied { generation } => match result.changes.as_slice() {
            [] => format!("generation {generation} is live"),
            [one] => format!("generation {generation} is live: {one}"),
            [first, more @ ..] => format!(
                "generation {generation} is live: {first}, and {} more",
                more.len()
            ),
        },
        ReloadOutcome::Moved { live } => {
            format!("not applied: something else is true than was expected; live is {live}")
        }
        ReloadOutcome::NeedsConfirmation => {
            "not applied: what it means for leases has to be confirmed".to_owned()
        }
        ReloadOutcome::Refused {
            diagnostics,
            attempt,
            ..
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
        ReloadOutcome::Rejected { why } => format!("rejected before and not changed since: {why}"),
        ReloadOutcome::Resting { until } => {
            format!("not applied: saved files rest until {}", rfc3339(*until))
        }
        ReloadOutcome::RolledBack { generation, why } => {
            format!("rolled back, generation {generation} is live: {why}")
        }
        ReloadOutcome::Stopped(why) => format!("not applied: {why}"),
        ReloadOutcome::Unchanged => "the files say what is live already".to_owned(),
        ReloadOutcome::Unreadable(why) => {
            format!("the files cannot be read, the policy before stays: {why}")
        }
    }
}

fn attempt(outcome: &ReloadOutcome) -> u32 {
    match outcome {
        ReloadOutcome::Refused { attempt, .. } => *attempt,
        _ => 0,
    }
}

fn found(outcome: &ReloadOutcome) -> Vec<wire::Diagnostic> {
    match outcome {
        ReloadOutcome::Refused {
            diagnostics: found, ..
        } => diagnostics(found),
        _ => Vec::new(),
    }
}

fn fate(fate: &LeaseFate) -> wire::LeaseFate {
    let (word, deadline): (wire::Fate, Option<Deadline>) = match fate.fate {
        Fate::Drain(deadline) => (wire::Fate::Drain, Some(deadline)),
        Fate::Force => (wire::Fate::Force, None),
        Fate::Keep | Fate::Withdraw => (wire::Fate::Keep, None),
        Fate::Shorten(deadline) => (wire::Fate::Drain, Some(deadline)),
    };
    let because = &fate.because;
    let reason = match (because.rule.as_str(), fate.fate) {
        (_, Fate::Withdraw) => "the new policy lets it stay".to_owned(),
        (_, Fate::Shorten(_)) => "its longest hold was cut".to_owned(),
        ("", _) => "the reload is about every lease".to_owned(),
        (rule, _) => format!("{rule}: {}", because.reason),
    };
    wire::LeaseFate {
        lease: fate.id.to_string(),
        holder: fate.holder.clone(),
        fate: word,
        reason,
        deadline_at: deadline.map(|deadline| rfc3339(deadline.wall)),
    }
}

fn trigger(trigger: Trigger) -> wire::ReloadTrigger {
    match trigger {
        Trigger::Api | Trigger::Override | Trigger::Rollback => wire::ReloadTrigger::Api,
        Trigger::File => wire::ReloadTrigger::File,
        Trigger::Signal => wire::ReloadTrigger::Signal,
    }
}

fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.take(2).collect::<Vec<_>>().join(" ")
}
