//! `policy`: check, plan, apply, roll back, edit, compare, explain, override, show.

mod edit;
mod explain;
mod files;
mod load;
mod overrides;
mod save;

use std::path::PathBuf;

use gpu_api::{Policy, PolicyCheck, PolicyCheckRequest, PolicyOverride, Severity};
use jiff::Timestamp;

use crate::cli::args::PolicyCommand;
use crate::cli::context::{Context, short_hash};
use crate::cli::exit::{self, Failure};
use crate::cli::output::{Paint, Tone, ago, clean, count, note, print, print_json, until};
use crate::cli::show::diagnostic;
use crate::cli::{Done, ask};
use crate::offline;

pub(crate) use load::{apply, plan, rollback, tell};

/// Does one of them.
pub(crate) async fn policy(context: &Context, command: PolicyCommand) -> Done {
    let somebody = |json: bool| ask::somebody() && !json;
    match command {
        PolicyCommand::Apply(args) => {
            apply(context, &args, somebody(args.consent.output.json)).await
        }
        PolicyCommand::Check { files, output } => check(context, &files, output.json).await,
        PolicyCommand::Diff(output) => diff(context, output.json).await,
        PolicyCommand::Edit(args) => edit::edit(context, args).await,
        PolicyCommand::Explain(args) => explain::explain(context, *args).await,
        PolicyCommand::Override { command } => overrides::overrides(context, command).await,
        PolicyCommand::Plan { files, output } => plan(context, &files, output.json).await,
        PolicyCommand::Rollback {
            generation,
            consent,
        } => rollback(context, generation, consent, somebody(consent.output.json)).await,
        PolicyCommand::Show(output) => show(context, output.json).await,
        PolicyCommand::Schema => {
            print(&gpu_policy::schema_json())?;
            Ok(exit::OK)
        }
    }
}

/// Compiles files without loading them, also without a broker.
pub(crate) async fn check(context: &Context, files: &[PathBuf], json: bool) -> Done {
    let check = match files.is_empty() {
        true => check_on_disk(context).await?,
        false => check_named(context, files).await?,
    };
    match json {
        true => print_json(&check)?,
        false => print(&render_check(&check, context.paint))?,
    }
    Ok(if check.ok { exit::OK } else { exit::REFUSED })
}

/// What the broker has on disk: it knows which files those are.
async fn check_on_disk(context: &Context) -> Result<PolicyCheck, Failure> {
    let request = PolicyCheckRequest::default();
    let checked = context.client.check_policy(&request).await;
    checked.map_err(|error| match error.is_away() {
        true => {
            Failure::from(error).hint("name the files to check: `gpu-manager policy check FILE...`")
        }
        false => error.into(),
    })
}

async fn check_named(context: &Context, files: &[PathBuf]) -> Result<PolicyCheck, Failure> {
    let texts = files::read(files.to_vec())?;
    let request = PolicyCheckRequest {
        files: Some(texts.clone()),
    };
    let mut check = match context.client.check_policy(&request).await {
        Ok(check) => check,
        Err(error) if error.is_away() => offline::check_policy(&texts),
        Err(error) => return Err(error.into()),
    };
    diagnostic::quote(&mut check.diagnostics, &texts);
    Ok(check)
}

/// Says what on disk differs from what is in force.
pub(crate) async fn diff(context: &Context, json: bool) -> Done {
    let on_disk = PolicyCheckRequest::default();
    let check = context.client.check_policy(&on_disk).await?;
    match json {
        true => print_json(&check)?,
        false => print(&render_diff(&check, context.paint))?,
    }
    Ok(if check.in_force {
        exit::OK
    } else {
        exit::REFUSED
    })
}

async fn show(context: &Context, json: bool) -> Done {
    let policy = context.client.policy().await?;
    match json {
        true => print_json(&policy)?,
        false => print(&render_policy(&policy, context.now()))?,
    }
    if policy.degraded {
        note(
            "this is the last good policy from the store: the files on disk did not compile at the start",
        );
    }
    context.note_disk_state().await;
    Ok(exit::OK)
}

fn render_check(check: &PolicyCheck, paint: Paint) -> String {
    let errors = check
        .diagnostics
        .iter()
        .filter(|found| found.severity == Severity::Error)
        .count();
    let verdict = match (check.ok, check.in_force) {
        (true, true) => paint.tone("ok, and in force", Tone::Good),
        (true, false) => paint.tone("ok", Tone::Good),
        (false, _) => paint.tone(&count(errors, "error", "errors"), Tone::Bad),
    };
    let files = check
        .files
        .iter()
        .map(|file| clean(file))
        .collect::<Vec<_>>()
        .join(", ");
    let files = if files.is_empty() {
        String::new()
    } else {
        format!(" ({files})")
    };
    let diagnostics = diagnostic::render_all(&check.diagnostics, paint);
    let changes = check.changes.iter();
    let changes: String = changes
        .map(|change| format!("  would change {}\n", clean(change)))
        .collect();
    format!("{diagnostics}{verdict}{files}\n{changes}")
}

fn render_diff(check: &PolicyCheck, paint: Paint) -> String {
    let diagnostics = diagnostic::render_all(&check.diagnostics, paint);
    let verdict = match (check.ok, check.in_force) {
        (_, true) => "the policy on disk is the one in force\n",
        (true, false) => "the policy on disk is not the one in force:\n",
        (false, false) => "the policy on disk does not compile\n",
    };
    let changes = check.changes.iter();
    let changes: String = changes
        .map(|change| format!("  {}\n", clean(change)))
        .collect();
    format!("{diagnostics}{verdict}{changes}")
}

/// The text of the files, with what is not in them as comments.
fn render_policy(policy: &Policy, now: Timestamp) -> String {
    let mut text = format!(
        "# generation {} ({}), in force for {}\n",
        policy.generation,
        short_hash(&policy.hash),
        ago(&policy.loaded_at, now)
    );
    let mut comment = |line: String| text.push_str(&format!("# {}\n", clean(&line)));
    for setting in &policy.overrides {
        comment(format!("shadowed by {}", shadow(setting, now)));
    }
    if let Some(rolled_back) = &policy.rolled_back {
        let (hash, why) = (short_hash(&rolled_back.hash), &rolled_back.why);
        let when = ago(&rolled_back.at, now);
        comment(format!("took the place of {hash} {when} ago: {why}"));
    }
    for rule in &policy.erring {
        let failed = count(rule.count as usize, "error", "errors");
        comment(format!(
            "rule \"{}\" has {failed}: {}",
            rule.rule, rule.last
        ));
    }
    if policy.files.is_empty() {
        comment("no files: what is built in holds".to_owned());
    }
    for file in &policy.files {
        text.push_str(&format!(
            "\n# --- {}\n{}\n",
            clean(&file.path),
            file.text.trim_end()
        ));
    }
    text
}

/// `queue.order = fifo (override, by ann, lifts in 2h)`
fn shadow(setting: &PolicyOverride, now: Timestamp) -> String {
    let by = setting.by.as_ref().map(|by| format!(", by {by}"));
    let lifts = setting.until.as_ref();
    let lifts = lifts.map(|at| format!(", lifts {}", until(at, now)));
    format!(
        "{} = {} ({}{}{})",
        setting.setting,
        setting.value,
        setting.origin,
        by.unwrap_or_default(),
        lifts.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use gpu_api::{PolicyFile, RolledBack, RuleErrors};

    use super::*;
    use crate::cli::show::example;

    fn check(ok: bool, changes: &[&str]) -> PolicyCheck {
        PolicyCheck {
            ok,
            hash: None,
            in_force: ok && changes.is_empty(),
            files: vec!["default.toml".to_owned()],
            changes: changes.iter().map(ToString::to_string).collect(),
            diagnostics: if ok {
                vec![]
            } else {
                vec![example::diagnostic()]
            },
        }
    }

    #[test]
    fn a_difference_is_named() {
        let diff = |check: &PolicyCheck| render_diff(check, Paint::off());
        assert_eq!(
            diff(&check(true, &[])),
            "the policy on disk is the one in force\n"
        );
        assert_eq!(
            diff(&check(true, &["queue.order: fifo -> priority"])),
            "the policy on disk is not the one in force:\n  queue.order: fifo -> priority\n"
        );
        assert!(diff(&check(false, &[])).ends_with("does not compile\n"));
    }

    #[test]
    fn the_policy_in_force_is_text_with_comments() {
        let policy = Policy {
            generation: 5,
            hash: "ab".repeat(32),
            loaded_at: "2026-01-01T11:57:00Z".to_owned(),
            degraded: false,
            files: vec![PolicyFile {
                path: "default.toml".to_owned(),
                hash: String::new(),
                text: "schema = 1\n".to_owned(),
            }],
            overrides: vec![PolicyOverride {
                setting: "queue.order".to_owned(),
                value: "fifo".to_owned(),
                origin: "override".to_owned(),
                by: Some("ann".to_owned()),
                until: Some("2026-01-01T14:00:00Z".to_owned()),
            }],
            candidate: None,
            error_state: None,
            rolled_back: Some(RolledBack {
                hash: "cd".repeat(32),
                at: "2026-01-01T11:57:00Z".to_owned(),
                why: "10 errors of rules within 5m".to_owned(),
            }),
            draining: Vec::new(),
            tenants: Vec::new(),
            erring: vec![RuleErrors {
                rule: "nights".to_owned(),
                count: 1,
                last: "no such key: team".to_owned(),
            }],
        };
        assert_eq!(
            render_policy(&policy, example::now()),
            "# generation 5 (abababababab), in force for 3m\n\
             # shadowed by queue.order = fifo (override, by ann, lifts in 2h)\n\
             # took the place of cdcdcdcdcdcd 3m ago: 10 errors of rules within 5m\n\
             # rule \"nights\" has 1 error: no such key: team\n\
             \n\
             # --- default.toml\n\
             schema = 1\n"
        );
    }
}
