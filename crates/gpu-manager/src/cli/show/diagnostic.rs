//! What is wrong with policy texts, in the manner of compilers.

use gpu_api::{Diagnostic, PolicyText, Severity};

use crate::cli::output::{Paint, Tone, clean};

/// Each with its place, its line of text and a hint.
pub(crate) fn render_all(diagnostics: &[Diagnostic], paint: Paint) -> String {
    diagnostics
        .iter()
        .map(|diagnostic| render(diagnostic, paint))
        .collect()
}

/// Adds the line of text that each is about, as far as `texts` have it.
pub(crate) fn quote(diagnostics: &mut [Diagnostic], texts: &[PolicyText]) {
    for diagnostic in diagnostics
        .iter_mut()
        .filter(|found| found.source_line.is_none() && found.line > 0)
    {
        let text = texts.iter().find(|text| *text.name == *diagnostic.file);
        let line = text.and_then(|text| text.text.lines().nth(diagnostic.line as usize - 1));
        diagnostic.source_line = line.map(ToOwned::to_owned);
    }
}

fn render(diagnostic: &Diagnostic, paint: Paint) -> String {
    let word = match diagnostic.severity {
        Severity::Error => paint.tone("error", Tone::Bad),
        Severity::Warning => paint.tone("warning", Tone::Warn),
    };
    let mut text = format!("{word}: {}\n", clean(&diagnostic.message));
    let place = match (diagnostic.line, diagnostic.column) {
        (0, _) => clean(&diagnostic.file),
        (line, 0) => format!("{}:{line}", clean(&diagnostic.file)),
        (line, column) => format!("{}:{line}:{column}", clean(&diagnostic.file)),
    };
    if !place.is_empty() {
        text.push_str(&format!("  --> {place}\n"));
    }
    if let Some(source) = &diagnostic.source_line {
        text.push_str(&excerpt(diagnostic, source, paint));
    }
    if let Some(hint) = &diagnostic.hint {
        text.push_str(&format!("  hint: {}\n", clean(hint)));
    }
    text
}

fn excerpt(diagnostic: &Diagnostic, source: &str, paint: Paint) -> String {
    let number = diagnostic.line.to_string();
    let margin = " ".repeat(number.len());
    // A tab is one column to the compiler and must be one to the caret.
    let source = clean(&source.replace('\t', " "));
    let before = diagnostic.column.saturating_sub(1) as usize;
    let room = source.chars().count().saturating_sub(before);
    let carets = "^".repeat((diagnostic.width as usize).min(room).max(1));
    let caret = match diagnostic.column {
        0 => String::new(),
        _ => format!(
            "  {margin} | {}{}\n",
            " ".repeat(before),
            paint.tone(&carets, Tone::Bad)
        ),
    };
    format!("  {margin} |\n  {number} | {source}\n{caret}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::example;

    #[test]
    fn a_diagnostic_points_at_its_place() {
        assert_eq!(
            render_all(&[example::diagnostic()], Paint::off()),
            "error: unknown key `prioritty`\n  \
               --> default.toml:12:3\n     \
                  |\n  \
               12 |   prioritty = 1\n     \
                  |   ^^^^^^^^^\n  \
               hint: did you mean `priority`?\n"
        );
    }
}
