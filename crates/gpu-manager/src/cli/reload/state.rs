//! How the policy watch stands, and the last reloads.

use gpu_api::{
    Breaker, BreakerState, Candidate, CandidateState, ReloadOutcome, ReloadPhases, ReloadResult,
    ReloadState, ReloadTrigger,
};
use jiff::Timestamp;

use crate::cli::context::short_hash;
use crate::cli::output::{Paint, Tone, ago, clean, count, micros, until};
use crate::cli::show::{diagnostic, plan};
use crate::cli::table::{Align, Cell, Table};

/// A block of lines. A broker that started `safe` has not compared the disk with anything.
pub(super) fn render(state: &ReloadState, safe: bool, now: Timestamp, paint: Paint) -> String {
    let mut text = headline(state, safe, now, paint);
    let mut line = |name: &str, words: String| {
        text.push_str(&format!("  {name:<12} {}\n", clean(&words)));
    };
    for path in &state.watching {
        line("watches", path.clone());
    }
    if state.dev {
        line("dev mode", "plans are never confirmed".to_owned());
    }
    line("on disk", on_disk(state, safe, now));
    if let Some(candidate) = &state.candidate {
        line("candidate", candidate_line(candidate));
    }
    if let Some(words) = breaker_line(&state.breaker, now) {
        line("files", words);
    }
    for generation in &state.draining_generations {
        let leases = &generation.leases;
        let held = count(leases.len(), "lease", "leases");
        line(
            "draining",
            format!(
                "generation {}: {held} ({})",
                generation.generation,
                leases.join(", ")
            ),
        );
    }
    for rule in &state.erring {
        let number = usize::try_from(rule.count).unwrap_or(usize::MAX);
        let failed = count(number, "error", "errors");
        line(
            "failing rule",
            format!("\"{}\", {failed}: {}", rule.rule, rule.last),
        );
    }
    if let Some(last) = &state.last {
        let when = ago(&last.at, now);
        line("last reload", format!("{when} ago: {}", last.summary));
    }
    let found = state
        .candidate
        .as_ref()
        .map(|candidate| &candidate.diagnostics);
    let found = found.map(|found| diagnostic::render_all(found, paint));
    format!("{text}{}", found.unwrap_or_default())
}

/// A row for each reload, the newest first.
pub(super) fn render_history(history: &[ReloadResult], now: Timestamp, paint: Paint) -> String {
    if history.is_empty() {
        return "no reload yet\n".to_owned();
    }
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("AGO", Align::Right),
        ("TRIGGER", Align::Left),
        ("BY", Align::Left),
        ("OUTCOME", Align::Left),
        ("SETTLED", Align::Right),
        ("READ", Align::Right),
        ("COMPILED", Align::Right),
        ("PLANNED", Align::Right),
        ("APPLIED", Align::Right),
        ("SUMMARY", Align::Left),
    ]);
    for result in history {
        table.row(history_row(result, now));
    }
    table.render(paint)
}

fn history_row(result: &ReloadResult, now: Timestamp) -> [Cell; 11] {
    let ReloadPhases {
        settle_us,
        read_us,
        compile_us,
        plan_us,
        apply_us,
        path: _,
    } = result.phases;
    let part = |us: Option<u64>| us.filter(|us| *us > 0).map_or("-".to_owned(), micros);
    let by = if result.by.is_empty() {
        "-"
    } else {
        &result.by
    };
    [
        result.id.as_str().into(),
        ago(&result.at, now).into(),
        trigger(result.trigger).into(),
        by.into(),
        Cell::tone(outcome(result.outcome), plan::tone(result.outcome)),
        part(settle_us).into(),
        part(read_us).into(),
        part(Some(compile_us)).into(),
        part(Some(plan_us)).into(),
        part(Some(apply_us)).into(),
        result.summary.as_str().into(),
    ]
}

fn headline(state: &ReloadState, safe: bool, now: Timestamp, paint: Paint) -> String {
    let switch = match state.enabled {
        true => paint.tone("on", Tone::Good),
        false => paint.tone("off", Tone::Warn),
    };
    let why = match &state.switched {
        _ if safe => "safe start".to_owned(),
        Some(switched) => format!("switched by {} {} ago", switched.by, ago(&switched.at, now)),
        None => state.why.clone(),
    };
    format!("policy watch  {switch} ({})\n", clean(&why))
}

fn on_disk(state: &ReloadState, safe: bool, now: Timestamp) -> String {
    let since = state.error_since.as_ref();
    let since = since.map(|at| format!(", for {}", ago(at, now)));
    match state.on_disk_differs {
        _ if safe => "not read since the start".to_owned(),
        true => format!("not what is in force{}", since.unwrap_or_default()),
        false => "what is in force".to_owned(),
    }
}

/// `waits for gpu-manager reload --confirm 1a2b..: it would drain 2 leases`
fn candidate_line(candidate: &Candidate) -> String {
    let attempt = candidate.attempt;
    let plan = candidate.plan.as_deref().map(short_hash);
    let state = match candidate.state {
        CandidateState::Failing => format!("does not compile (attempt {attempt} of 3)"),
        CandidateState::NeedsConfirmation => format!(
            "waits for gpu-manager reload --confirm {}",
            plan.unwrap_or_default()
        ),
        CandidateState::NotLoaded => "was not loaded".to_owned(),
        CandidateState::Rejected => "is rejected until it changes or is reloaded".to_owned(),
        CandidateState::Resting => "rests: gpu-manager reload loads it".to_owned(),
        CandidateState::RolledBack => "was in force and was withdrawn".to_owned(),
    };
    match candidate.summary.as_str() {
        "" => state,
        summary => format!("{state}: {summary}"),
    }
}

fn breaker_line(breaker: &Breaker, now: Timestamp) -> Option<String> {
    let culprit = breaker.culprit.as_ref();
    let culprit = culprit.map_or(String::new(), |path| format!(" (the last was {path})"));
    let until = breaker.until.as_ref().map(|at| until(at, now));
    match breaker.state {
        BreakerState::Closed => None,
        BreakerState::HalfOpen => Some(format!(
            "switched to and fro too often{culprit}: the next save decides"
        )),
        BreakerState::Open => Some(format!(
            "switched to and fro too often{culprit} and rest; they are loaded again {}",
            until.unwrap_or_else(|| "later".to_owned())
        )),
    }
}

fn trigger(trigger: ReloadTrigger) -> &'static str {
    match trigger {
        ReloadTrigger::Api => "api",
        ReloadTrigger::File => "file",
        ReloadTrigger::Override => "override",
        ReloadTrigger::Rollback => "rollback",
        ReloadTrigger::Signal => "signal",
    }
}

fn outcome(outcome: ReloadOutcome) -> &'static str {
    match outcome {
        ReloadOutcome::Applied => "applied",
        ReloadOutcome::Failed => "failed",
        ReloadOutcome::Moved => "moved",
        ReloadOutcome::NeedsConfirmation => "needs confirmation",
        ReloadOutcome::Rejected => "rejected",
        ReloadOutcome::Resting => "resting",
        ReloadOutcome::RolledBack => "rolled back",
        ReloadOutcome::Running => "running",
        ReloadOutcome::Unchanged => "unchanged",
    }
}

#[cfg(test)]
mod tests {
    use gpu_api::{DrainingGeneration, RuleErrors, Switched};

    use super::*;
    use crate::cli::show::example;

    fn candidate() -> Candidate {
        Candidate {
            hash: "bb".repeat(32),
            summary: "2 leases would be drained".to_owned(),
            plan: Some("cafe".repeat(16)),
            seen_at: "2026-01-01T11:57:00Z".to_owned(),
            state: CandidateState::NeedsConfirmation,
            attempt: 0,
            diagnostics: Vec::new(),
        }
    }

    #[test]
    fn a_watch_without_trouble_is_short() {
        assert_eq!(
            render(
                &example::reload_state(),
                false,
                example::now(),
                Paint::off()
            ),
            "policy watch  on (only this host can connect)\n  \
               watches      /etc/gpu-manager/policies\n  \
               on disk      what is in force\n"
        );
    }

    #[test]
    fn of_a_safe_start_nothing_is_said_that_nobody_has_looked_at() {
        let state = ReloadState {
            enabled: false,
            ..example::reload_state()
        };
        assert_eq!(
            render(&state, true, example::now(), Paint::off()),
            "policy watch  off (safe start)\n  \
               watches      /etc/gpu-manager/policies\n  \
               on disk      not read since the start\n"
        );
    }

    #[test]
    fn a_watch_in_trouble_says_all_of_it() {
        let state = ReloadState {
            enabled: false,
            switched: Some(Switched {
                by: "ann".to_owned(),
                at: "2026-01-01T11:00:00Z".to_owned(),
            }),
            on_disk_differs: true,
            error_since: Some("2026-01-01T11:57:00Z".to_owned()),
            candidate: Some(candidate()),
            breaker: Breaker {
                state: BreakerState::Open,
                until: Some("2026-01-01T12:01:00Z".to_owned()),
                culprit: Some("default.toml".to_owned()),
            },
            draining_generations: vec![DrainingGeneration {
                generation: 3,
                leases: vec!["l-1".to_owned()],
            }],
            erring: vec![RuleErrors {
                rule: "nights".to_owned(),
                count: 2,
                last: "no such key: team".to_owned(),
            }],
            last: Some(example::reload(ReloadOutcome::Applied)),
            ..example::reload_state()
        };
        assert_eq!(
            render(&state, false, example::now(), Paint::off()),
            "policy watch  off (switched by ann 1h ago)\n  \
               watches      /etc/gpu-manager/policies\n  \
               on disk      not what is in force, for 3m\n  \
               candidate    waits for gpu-manager reload --confirm cafecafecafe: 2 leases would be drained\n  \
               files        switched to and fro too often (the last was default.toml) and rest; \
             they are loaded again in 1m\n  \
               draining     generation 3: 1 lease (l-1)\n  \
               failing rule \"nights\", 2 errors: no such key: team\n  \
               last reload  3m ago: generation 5 is live\n"
        );
    }

    #[test]
    fn the_history_is_a_table_of_phases() {
        let saved = ReloadResult {
            id: "8".to_owned(),
            trigger: ReloadTrigger::File,
            by: String::new(),
            phases: ReloadPhases {
                settle_us: Some(201_000),
                apply_us: 0,
                ..example::reload(ReloadOutcome::Applied).phases
            },
            summary: "1 lease would be drained".to_owned(),
            ..example::reload(ReloadOutcome::NeedsConfirmation)
        };
        let history = [saved, example::reload(ReloadOutcome::Applied)];
        assert_eq!(
            render_history(&history, example::now(), Paint::off()),
            "ID  AGO  TRIGGER  BY   OUTCOME             SETTLED   READ  COMPILED  PLANNED  APPLIED  SUMMARY\n \
              8   3m  file     -    needs confirmation  201.0ms  340us     1.2ms     90us        -  1 lease would be drained\n \
              7   3m  api      ann  applied                   -  340us     1.2ms     90us    2.0ms  generation 5 is live\n"
        );
        assert_eq!(
            render_history(&[], example::now(), Paint::off()),
            "no reload yet\n"
        );
    }
}
