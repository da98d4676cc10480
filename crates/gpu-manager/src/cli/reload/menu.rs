//! `reload --interactive`: a menu, line by line, for a person or a pipe.

use gpu_api::PolicyStatus;

use crate::cli::args::{ApplyArgs, ConsentArgs, JsonArgs};
use crate::cli::context::{Context, disk_note, short_hash};
use crate::cli::exit::{self, Failure};
use crate::cli::output::{clean, print};
use crate::cli::{Done, ask, policy};

const MENU: &str = "c(heck), p(lan), a(pply), r(oll back), d(iff), q(uit)? ";

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Apply,
    Check,
    Diff,
    Plan,
    Quit,
    RollBack,
}

/// Asks and does until somebody quits; exits with the code of what was done last.
pub(super) async fn run(context: &Context) -> Done {
    let mut code = exit::OK;
    loop {
        print(&headline(&context.client.status().await?.policy))?;
        let Some(answer) = ask::ask(MENU)? else {
            return Ok(code);
        };
        code = match choice(&answer) {
            Some(Choice::Quit) => return Ok(code),
            Some(choice) => carry_out(context, choice)
                .await
                .unwrap_or_else(|failure| told(&failure)),
            None => {
                print(&format!("`{}` is nothing to choose\n", clean(&answer)))?;
                code
            }
        };
    }
}

async fn carry_out(context: &Context, choice: Choice) -> Done {
    let consent = ConsentArgs {
        yes: false,
        output: JsonArgs { json: false },
    };
    match choice {
        Choice::Apply => {
            let args = ApplyArgs {
                files: Vec::new(),
                expect_plan: None,
                overwrite: false,
                consent,
            };
            policy::apply(context, &args, true).await
        }
        Choice::Check => policy::check(context, &[], false).await,
        Choice::Diff => policy::diff(context, false).await,
        Choice::Plan => policy::plan(context, &[], false).await,
        Choice::Quit => Ok(exit::OK),
        Choice::RollBack => policy::rollback(context, None, consent, true).await,
    }
}

/// A failure ends what was chosen, not the menu.
fn told(failure: &Failure) -> u8 {
    failure.report();
    failure.code
}

/// A word or its first letter, as the menu has them.
fn choice(answer: &str) -> Option<Choice> {
    Some(match answer.to_lowercase().as_str() {
        "a" | "apply" => Choice::Apply,
        "c" | "check" => Choice::Check,
        "d" | "diff" => Choice::Diff,
        "p" | "plan" => Choice::Plan,
        "q" | "quit" => Choice::Quit,
        "r" | "roll back" | "rollback" => Choice::RollBack,
        _ => return None,
    })
}

/// `generation 4 (1a2b..) is in force`, and what a person should know about the files.
fn headline(policy: &PolicyStatus) -> String {
    let note = disk_note(policy).map(|note| format!("{}\n", clean(&note)));
    format!(
        "generation {} ({}) is in force\n{}",
        policy.generation,
        short_hash(&policy.hash),
        note.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use gpu_api::DiskState;

    use super::*;

    #[test]
    fn choices_are_words_or_letters() {
        let table = [
            ("c", Some(Choice::Check)),
            ("Plan", Some(Choice::Plan)),
            ("A", Some(Choice::Apply)),
            ("roll back", Some(Choice::RollBack)),
            ("d", Some(Choice::Diff)),
            ("quit", Some(Choice::Quit)),
            ("", None),
            ("x", None),
        ];
        for (answer, expected) in table {
            assert_eq!(choice(answer), expected, "{answer}");
        }
    }

    #[test]
    fn the_menu_says_how_things_stand() {
        let policy = PolicyStatus {
            generation: 4,
            hash: "ab".repeat(32),
            dirs: vec!["/p".to_owned()],
            watched: true,
            disk: DiskState::Pending,
            error_state: None,
            pending: Some("cafe".repeat(16)),
        };
        assert_eq!(
            headline(&policy),
            "generation 4 (abababababab) is in force\n\
             policy needs confirmation: gpu-manager reload --confirm cafecafecafe\n"
        );
    }
}
