//! What a policy would mean, and what became of loading one.

use gpu_api::{
    DeniedWaiter, Fate, LeaseFate, PolicyPlan, ReloadOutcome, ReloadResult, ReloadTrigger,
    Severity, Span,
};
use jiff::Timestamp;

use crate::cli::context::short_hash;
use crate::cli::output::{Paint, Tone, clean, clock, count};
use crate::cli::show::diagnostic;
use crate::cli::table::{Align, Cell, Table};

/// Rules that no file gives a name to.
const BUILT_IN_RULES: [&str; 3] = ["class", "device", "tenant"];

/// What differs, what becomes of whom, and a last line that counts.
pub(crate) fn render_plan(plan: &PolicyPlan, now: Timestamp, paint: Paint) -> String {
    let diagnostics = diagnostic::render_all(&plan.diagnostics, paint);
    if !plan.ok {
        let errors = plan.diagnostics.iter();
        let errors = errors
            .filter(|found| found.severity == Severity::Error)
            .count();
        let verdict = format!(
            "{}: nothing can be planned",
            count(errors, "error", "errors")
        );
        return format!("{diagnostics}{}\n", paint.tone(&verdict, Tone::Bad));
    }
    let changes = match plan.hash == plan.live {
        true => format!(
            "the policy in force says the same (generation {})\n",
            plan.generation
        ),
        false => change_lines(&plan.changes),
    };
    let fates = render_fates(&plan.leases, &plan.denied, now, paint);
    let counts = counts(&plan.leases, &plan.denied);
    let last = format!("plan {}: {counts}\n", short_hash(&plan.plan));
    let gate = match plan.confirm_needed {
        true => format!(
            "saved, it waits for `gpu-manager reload --confirm {}`\n",
            short_hash(&plan.plan)
        ),
        false => String::new(),
    };
    format!("{diagnostics}{changes}{fates}{last}{gate}")
}

/// What became of it, what differs, what became of whom, and what a person does next.
pub(crate) fn render_result(result: &ReloadResult, now: Timestamp, paint: Paint) -> String {
    let next = next_step(result).map(|next| format!("{}\n", clean(&next)));
    format!(
        "{}{}",
        render_outcome(result, now, paint),
        next.unwrap_or_default()
    )
}

/// What became of it, what differs, and what became of whom.
pub(crate) fn render_outcome(result: &ReloadResult, now: Timestamp, paint: Paint) -> String {
    let mut text = diagnostic::render_all(&result.diagnostics, paint);
    let tone = tone(result.outcome);
    text.push_str(&format!("{}\n", paint.tone(&clean(&result.summary), tone)));
    match result.changes.as_slice() {
        // Said already.
        [one] if result.summary.contains(one) => {}
        changes => text.push_str(&change_lines(changes)),
    }
    text.push_str(&render_fates(&result.leases, &result.denied, now, paint));
    for lease in &result.stale {
        text.push_str(&format!("  {} ended: its process is gone\n", clean(lease)));
    }
    text
}

/// Whether a lease is drained, ended, or ends sooner.
pub(crate) fn touches(leases: &[LeaseFate]) -> bool {
    leases.iter().any(|lease| match lease.fate {
        Fate::Drain | Fate::Force | Fate::Shorten => true,
        Fate::Keep | Fate::Withdraw => false,
    })
}

/// `2 drained, 1 kept, 1 waiter denied`
pub(crate) fn counts(leases: &[LeaseFate], denied: &[DeniedWaiter]) -> String {
    let all = [
        (Fate::Force, "ended at once"),
        (Fate::Drain, "drained"),
        (Fate::Shorten, "cut short"),
        (Fate::Keep, "kept"),
        (Fate::Withdraw, "no longer drained"),
    ];
    let with = |fate| leases.iter().filter(|lease| lease.fate == fate).count();
    let counted = all.iter().map(|(fate, words)| (with(*fate), *words));
    let mut parts: Vec<String> = counted
        .filter(|(number, _)| *number > 0)
        .map(|(number, words)| format!("{} {words}", count(number, "lease", "leases")))
        .collect();
    if !denied.is_empty() {
        parts.push(format!(
            "{} denied",
            count(denied.len(), "waiter", "waiters")
        ));
    }
    match parts.is_empty() {
        true => "no lease is touched".to_owned(),
        false => parts.join(", "),
    }
}

/// A row for each, and what the `!` before some of them means.
fn render_fates(
    leases: &[LeaseFate],
    denied: &[DeniedWaiter],
    now: Timestamp,
    paint: Paint,
) -> String {
    let mut table = Table::new(&[("", Align::Left); 6]);
    for lease in leases {
        table.row(fate_row(lease, now));
    }
    for waiter in denied {
        table.row(denied_row(waiter));
    }
    let impossible = leases.iter().filter(|lease| lease.unenforceable).count();
    let mark = match impossible {
        0 => String::new(),
        number => format!(
            "!  {} may not be signalled: the memory is not free until the holder goes by itself\n",
            count(number, "lease", "leases")
        ),
    };
    format!("{}{mark}", table.render_rows(paint))
}

fn fate_row(lease: &LeaseFate, now: Timestamp) -> [Cell; 6] {
    let (word, tone) = match lease.fate {
        Fate::Drain => ("drain", Tone::Warn),
        Fate::Force => ("force", Tone::Bad),
        Fate::Keep => ("keep", Tone::Good),
        Fate::Shorten => ("shorten", Tone::Warn),
        Fate::Withdraw => ("withdraw", Tone::Good),
    };
    let mark = if lease.unenforceable { "!" } else { "" };
    [
        Cell::tone(mark, Tone::Bad),
        Cell::tone(word, tone),
        lease.lease.as_str().into(),
        Cell::tone(&lease.holder, Tone::Bold),
        when(lease, now).into(),
        why(&lease.rule, &lease.reason).into(),
    ]
}

fn denied_row(waiter: &DeniedWaiter) -> [Cell; 6] {
    [
        "".into(),
        Cell::tone("denied", Tone::Warn),
        waiter.lease.as_str().into(),
        Cell::tone(&waiter.holder, Tone::Bold),
        "".into(),
        why(&waiter.rule, &waiter.reason).into(),
    ]
}

/// `by 18:05:00Z (30s)`, `now`, or nothing.
fn when(lease: &LeaseFate, now: Timestamp) -> String {
    if lease.fate == Fate::Force {
        return "now".to_owned();
    }
    let left = lease
        .remaining_ms
        .map(|ms| format!(" ({})", Span::from_ms(ms)));
    let at = lease.deadline_at.as_ref();
    at.map_or(String::new(), |at| {
        format!("by {}{}", clock(at, now), left.unwrap_or_default())
    })
}

/// `rule "big jobs at night": over 40 GiB runs at night`
fn why(rule: &str, reason: &str) -> String {
    match rule {
        "" => reason.to_owned(),
        rule => format!("{}: {reason}", rule_name(rule)),
    }
}

/// `rule "big jobs at night"`, `class batch`
pub(crate) fn rule_name(rule: &str) -> String {
    let word = rule.split(' ').next().unwrap_or_default();
    match BUILT_IN_RULES.contains(&word) {
        true => rule.to_owned(),
        false => format!("rule \"{rule}\""),
    }
}

fn change_lines(changes: &[String]) -> String {
    let lines = changes.iter();
    lines
        .map(|change| format!("  {}\n", clean(change)))
        .collect()
}

/// What a person does next, where there is something.
fn next_step(result: &ReloadResult) -> Option<String> {
    let hash = result.plan.as_deref().map(short_hash);
    let undone = matches!(
        result.trigger,
        ReloadTrigger::Override | ReloadTrigger::Rollback
    );
    match (result.outcome, hash) {
        (ReloadOutcome::NeedsConfirmation, _) if undone => {
            Some("to do it all the same: say --yes".to_owned())
        }
        (ReloadOutcome::NeedsConfirmation, Some(hash)) => {
            Some(format!("to load it: gpu-manager reload --confirm {hash}"))
        }
        (ReloadOutcome::Running, _) => {
            Some("what comes of it: gpu-manager reload --history".to_owned())
        }
        (ReloadOutcome::Resting, _) => {
            Some("to load it all the same: gpu-manager reload".to_owned())
        }
        _ => None,
    }
}

/// How an outcome is painted.
pub(crate) fn tone(outcome: ReloadOutcome) -> Tone {
    match outcome {
        ReloadOutcome::Applied | ReloadOutcome::Unchanged => Tone::Good,
        ReloadOutcome::NeedsConfirmation
        | ReloadOutcome::Resting
        | ReloadOutcome::RolledBack
        | ReloadOutcome::Running => Tone::Warn,
        ReloadOutcome::Failed | ReloadOutcome::Moved | ReloadOutcome::Rejected => Tone::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::example;

    fn lease(id: &str, holder: &str, fate: Fate) -> LeaseFate {
        LeaseFate {
            lease: id.to_owned(),
            holder: holder.to_owned(),
            fate,
            rule: "big jobs at night".to_owned(),
            reason: "over 40 GiB runs at night".to_owned(),
            deadline_at: None,
            remaining_ms: None,
            unenforceable: false,
        }
    }

    fn busy_plan() -> PolicyPlan {
        PolicyPlan {
            changes: vec!["rule.big jobs at night: added".to_owned()],
            leases: vec![
                lease("l-1", "train-a", Fate::Keep),
                LeaseFate {
                    deadline_at: Some("2026-01-01T12:00:30Z".to_owned()),
                    remaining_ms: Some(30_000),
                    unenforceable: true,
                    ..lease("l-2", "comfy", Fate::Drain)
                },
                LeaseFate {
                    rule: String::new(),
                    reason: "its longest hold was cut".to_owned(),
                    deadline_at: Some("2026-01-02T08:00:00Z".to_owned()),
                    remaining_ms: Some(72_000_000),
                    ..lease("l-3", "notebook", Fate::Shorten)
                },
                lease("l-4", "vllm", Fate::Force),
            ],
            denied: vec![DeniedWaiter {
                lease: "l-5".to_owned(),
                holder: "sweep".to_owned(),
                rule: "class".to_owned(),
                reason: "class `batch` is not defined".to_owned(),
            }],
            confirm_needed: true,
            impossible: vec!["l-2".to_owned()],
            ..example::plan()
        }
    }

    #[test]
    fn a_plan_names_every_fate_and_counts_them() {
        assert_eq!(
            render_plan(&busy_plan(), example::now(), Paint::off()),
            "  rule.big jobs at night: added\n   \
               keep     l-1  train-a                                  rule \"big jobs at night\": over 40 GiB runs at night\n\
             !  drain    l-2  comfy     by 12:00:30Z (30s)             rule \"big jobs at night\": over 40 GiB runs at night\n   \
               shorten  l-3  notebook  by 2026-01-02 08:00:00Z (20h)  its longest hold was cut\n   \
               force    l-4  vllm      now                            rule \"big jobs at night\": over 40 GiB runs at night\n   \
               denied   l-5  sweep                                    class: class `batch` is not defined\n\
             !  1 lease may not be signalled: the memory is not free until the holder goes by itself\n\
             plan cafecafecafe: 1 lease ended at once, 1 lease drained, 1 lease cut short, 1 lease kept, \
             1 waiter denied\n\
             saved, it waits for `gpu-manager reload --confirm cafecafecafe`\n"
        );
        assert!(touches(&busy_plan().leases));
    }

    #[test]
    fn a_plan_that_changes_nothing_says_so() {
        let same = PolicyPlan {
            hash: example::plan().live,
            changes: Vec::new(),
            ..example::plan()
        };
        assert_eq!(
            render_plan(&same, example::now(), Paint::off()),
            "the policy in force says the same (generation 4)\n\
             plan cafecafecafe: no lease is touched\n"
        );
        assert!(!touches(&same.leases));
    }

    #[test]
    fn a_plan_of_what_does_not_compile_is_its_errors() {
        let broken = PolicyPlan {
            ok: false,
            diagnostics: vec![example::diagnostic()],
            ..example::plan()
        };
        let text = render_plan(&broken, example::now(), Paint::off());
        assert!(
            text.starts_with("error: unknown key `prioritty`\n"),
            "{text}"
        );
        assert!(
            text.ends_with("1 error: nothing can be planned\n"),
            "{text}"
        );
    }

    #[test]
    fn what_the_summary_says_is_not_said_twice() {
        let result = ReloadResult {
            summary: "generation 5 is live: queue.order: fifo -> priority".to_owned(),
            ..example::reload(ReloadOutcome::Applied)
        };
        assert_eq!(
            render_result(&result, example::now(), Paint::off()),
            "generation 5 is live: queue.order: fifo -> priority\n"
        );
    }

    #[test]
    fn a_result_says_what_to_do_next() {
        let result = ReloadResult {
            summary: "the plan waits for a confirmation".to_owned(),
            leases: vec![lease("l-4", "vllm", Fate::Force)],
            stale: vec!["l-9".to_owned()],
            plan: Some("cafe".repeat(16)),
            ..example::reload(ReloadOutcome::NeedsConfirmation)
        };
        assert_eq!(
            render_result(&result, example::now(), Paint::off()),
            "the plan waits for a confirmation\n  \
               queue.order: fifo -> priority\n  \
               force  l-4  vllm  now  rule \"big jobs at night\": over 40 GiB runs at night\n  \
               l-9 ended: its process is gone\n\
             to load it: gpu-manager reload --confirm cafecafecafe\n"
        );
    }
}
