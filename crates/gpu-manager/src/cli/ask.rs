//! Questions to whoever is at standard input: a person, or a pipe.

use std::io::{self, BufRead, IsTerminal};

use crate::cli::exit::Failure;
use crate::cli::output::print;

/// Whether a person can be asked.
pub(crate) fn somebody() -> bool {
    io::stdin().is_terminal()
}

/// The answer to `question` without the spaces around it; `None` if there is nobody to answer any more.
pub(crate) fn ask(question: &str) -> Result<Option<String>, Failure> {
    print(question)?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match read.map_err(|error| Failure::own(format!("failed to read an answer: {error}")))? {
        0 => {
            // The question stands alone in its line.
            print("\n")?;
            Ok(None)
        }
        _ => Ok(Some(answer.trim().to_owned())),
    }
}

/// Whether the answer to `question` is yes; silence is no.
pub(crate) fn agrees(question: &str) -> Result<bool, Failure> {
    let answer = ask(&format!("{question} [y/N] "))?;
    Ok(answer.is_some_and(|answer| matches!(answer.to_lowercase().as_str(), "y" | "yes")))
}
