//! `policy explain`: what would become of a request.

use gpu_api::{ExplainOutcome, ExplainRequest, Explanation, Span};
use jiff::Timestamp;

use crate::cli::Done;
use crate::cli::args::ExplainArgs;
use crate::cli::context::Context;
use crate::cli::exit;
use crate::cli::grant;
use crate::cli::output::{Paint, Tone, clean, print, print_json, until};
use crate::cli::patience::Patience;
use crate::cli::show::{blocker_line, plan::rule_name};

/// Explains; asks for nothing.
pub(super) async fn explain(context: &Context, args: ExplainArgs) -> Done {
    let holder = grant::holder(context, &args.want, None, None);
    let mut no_patience = Patience::new(Span::default());
    let request = ExplainRequest {
        request: grant::request(context, &args.want, holder, &mut no_patience).await?,
        at: args.at,
    };
    let explanation = context.client.explain_policy(&request).await?;
    match args.output.json {
        true => print_json(&explanation)?,
        false => print(&render(&explanation, context.now(), context.paint))?,
    }
    context.note_disk_state().await;
    Ok(code(&explanation))
}

/// What `acquire` would exit with that does not wait.
fn code(explanation: &Explanation) -> u8 {
    match (explanation.outcome, &explanation.denial) {
        (ExplainOutcome::Granted, _) => exit::OK,
        (_, Some(denial)) => exit::code_of(denial.code),
        (ExplainOutcome::Refused, None) => exit::REFUSED,
        (ExplainOutcome::Waits, None) => exit::WAIT_OVER,
    }
}

fn render(explanation: &Explanation, now: Timestamp, paint: Paint) -> String {
    let mut lines = vec![headline(explanation, paint)];
    let mut line =
        |name: &str, text: String| lines.push(format!("  {name:<10} {}\n", clean(&text)));
    line("at", explanation.at.clone());
    line(
        "class",
        format!("{}, priority {}", explanation.class, explanation.priority),
    );
    if let Some(tenant) = &explanation.tenant {
        line("tenant", tenant.clone());
    }
    let ttl = Span::from_ms(explanation.ttl_ms);
    line("heartbeat", format!("every {ttl} at the latest"));
    if let Some(ms) = explanation.max_hold_ms {
        line("ends", format!("{} after the grant", Span::from_ms(ms)));
    }
    for rule in &explanation.rules {
        line(
            "applies",
            format!("{} {}", rule_name(&rule.rule), rule.effect),
        );
    }
    if explanation.rules.is_empty() {
        line("applies", "no rule".to_owned());
    }
    if let Some(waiting) = &explanation.waiting {
        line("place", grant::place(waiting.position));
        for blocker in &waiting.blockers {
            line("blocked by", blocker_line(blocker, now));
        }
        if let Some(at) = &waiting.eligible_at {
            line("eligible", until(at, now));
        }
        if let Some(ms) = waiting.eta_ms {
            line("expected", format!("in {}", Span::from_ms(ms)));
        }
    }
    lines.concat()
}

fn headline(explanation: &Explanation, paint: Paint) -> String {
    let denial = explanation.denial.as_ref();
    let denial = denial.map(|problem| problem.detail.as_str());
    let waiting = explanation.waiting.as_ref();
    let because = |why: Option<&str>| why.map_or(String::new(), |why| format!(": {why}"));
    let (word, tone, rest) = match explanation.outcome {
        ExplainOutcome::Granted => (
            "would be granted",
            Tone::Good,
            format!(" on {}", explanation.devices.join(", ")),
        ),
        ExplainOutcome::Refused => ("would be refused", Tone::Bad, because(denial)),
        ExplainOutcome::Waits => {
            let reason = waiting.map(|waiting| waiting.reason.as_str());
            ("would wait", Tone::Warn, because(reason.or(denial)))
        }
    };
    format!("{}{}\n", paint.tone(word, tone), clean(&rest))
}

#[cfg(test)]
mod tests {
    use gpu_api::{ErrorCode, Problem, RuleEffect};

    use super::*;
    use crate::cli::show::example;

    fn explanation(outcome: ExplainOutcome) -> Explanation {
        Explanation {
            class: "batch".to_owned(),
            priority: 1,
            tenant: None,
            ttl_ms: 60_000,
            max_hold_ms: None,
            rules: Vec::new(),
            outcome,
            devices: Vec::new(),
            waiting: None,
            denial: None,
            at: "2026-01-01T12:00:00Z".to_owned(),
        }
    }

    #[test]
    fn a_grant_names_its_devices() {
        let granted = Explanation {
            devices: vec!["GPU-1".to_owned(), "GPU-2".to_owned()],
            tenant: Some("research/ann".to_owned()),
            max_hold_ms: Some(7_200_000),
            ..explanation(ExplainOutcome::Granted)
        };
        assert_eq!(
            render(&granted, example::now(), Paint::off()),
            "would be granted on GPU-1, GPU-2\n  \
               at         2026-01-01T12:00:00Z\n  \
               class      batch, priority 1\n  \
               tenant     research/ann\n  \
               heartbeat  every 1m at the latest\n  \
               ends       2h after the grant\n  \
               applies    no rule\n"
        );
    }

    #[test]
    fn a_wait_names_the_rule_and_who_is_in_the_way() {
        let waiting = Explanation {
            waiting: example::waiting("l-2").waiting,
            rules: vec![RuleEffect {
                rule: "big jobs at night".to_owned(),
                effect: "holds: over 40 GiB runs at night".to_owned(),
            }],
            ..explanation(ExplainOutcome::Waits)
        };
        assert_eq!(
            render(&waiting, example::now(), Paint::off()),
            "would wait: needs 12 GiB on one device\n  \
               at         2026-01-01T12:00:00Z\n  \
               class      batch, priority 1\n  \
               heartbeat  every 1m at the latest\n  \
               applies    rule \"big jobs at night\" holds: over 40 GiB runs at night\n  \
               place      2nd in the queue\n  \
               blocked by vllm-a (l-1) with 8 GiB on sim-0, until 13:00:00Z\n  \
               expected   in 2m\n"
        );
    }

    #[test]
    fn a_refusal_says_why() {
        let problem = Problem::new(ErrorCode::Denied, "denied by `no notebooks`: not here");
        let refused = Explanation {
            denial: Some(Box::new(problem)),
            ..explanation(ExplainOutcome::Refused)
        };
        let text = render(&refused, example::now(), Paint::off());
        assert!(
            text.starts_with("would be refused: denied by `no notebooks`: not here\n"),
            "{text}"
        );
    }

    #[test]
    fn the_exit_code_is_that_of_an_acquire_that_does_not_wait() {
        let denied = |outcome, code| Explanation {
            denial: Some(Box::new(Problem::new(code, "no"))),
            ..explanation(outcome)
        };
        for (explained, expected) in [
            (explanation(ExplainOutcome::Granted), exit::OK),
            (explanation(ExplainOutcome::Waits), exit::WAIT_OVER),
            (
                denied(ExplainOutcome::Waits, ErrorCode::Recovering),
                exit::NO_BROKER,
            ),
            (
                denied(ExplainOutcome::Refused, ErrorCode::Denied),
                exit::REFUSED,
            ),
            (
                denied(ExplainOutcome::Refused, ErrorCode::SafeStart),
                exit::REFUSED,
            ),
        ] {
            assert_eq!(code(&explained), expected, "{explained:?}");
        }
    }
}
