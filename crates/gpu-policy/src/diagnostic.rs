//! What is wrong with a set of policy files: as data, and as text for people.

use std::fmt;
use std::ops::Range;

use crate::text::Text;

/// More diagnostics than this are counted but not kept.
pub const DIAGNOSTICS_MAX: usize = 100;

const EXCERPT_CHARS_MAX: usize = 160;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// There is no policy.
    Error,
    /// The policy is in order, and hardly what was meant.
    Warning,
}

/// One error or warning and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file as the caller named it, or `--set` or `environment`.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted in characters from 1.
    pub column: usize,
    /// How many characters of the line are meant, from the column on; at least 1.
    pub width: usize,
    /// A lowercase fragment that names the thing in backticks.
    pub message: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
    /// The line, cut to the 160 characters around the column and without what a terminal would act on;
    /// `None` where there is no file.
    pub source_line: Option<String>,
    /// How many characters of `source_line` come before the column.
    indent: usize,
}

/// Every error of a set of files and what else they deserve a warning for; never without an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    items: Vec<Diagnostic>,
    errors: usize,
    warnings: usize,
}

impl Diagnostics {
    /// The errors in file order, then the warnings; at most [`DIAGNOSTICS_MAX`] of each.
    pub fn items(&self) -> &[Diagnostic] {
        &self.items
    }

    /// How many errors there are, with those that were not kept.
    pub fn total(&self) -> usize {
        self.errors
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            writeln!(f, "{item}\n")?;
        }
        match (self.errors + self.warnings).saturating_sub(self.items.len()) {
            0 => {}
            more => writeln!(f, "and {more} more that are not shown\n")?,
        }
        f.write_str(&counted(self.errors, "error"))?;
        if self.warnings > 0 {
            write!(f, " and {}", counted(self.warnings, "warning"))?;
        }
        f.write_str(" in the policy")
    }
}

impl std::error::Error for Diagnostics {}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gutter = self.line.to_string().len();
        writeln!(f, "{}: {}", self.severity, self.message)?;
        write!(
            f,
            "{:gutter$}--> {}:{}:{}",
            "", self.file, self.line, self.column
        )?;
        if let Some(line) = &self.source_line {
            writeln!(f, "\n{:gutter$} |", "")?;
            writeln!(f, "{} | {line}", self.line)?;
            let room = line.chars().count().saturating_sub(self.indent);
            let carets = "^".repeat(self.width.min(room).max(1));
            let indent = " ".repeat(self.indent);
            write!(f, "{:gutter$} | {indent}{carets}", "")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n{:gutter$} = hint: {hint}", "")?;
        }
        Ok(())
    }
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// The part of `line` around its `from`-th character, without anything that a terminal would act on, and
/// how many characters of it come before that one.
fn excerpt(line: &str, from: usize) -> (String, usize) {
    let skip = match from + 1 < EXCERPT_CHARS_MAX {
        true => 0,
        false => from - EXCERPT_CHARS_MAX / 2,
    };
    let shown = line.chars().skip(skip).take(EXCERPT_CHARS_MAX);
    let printable = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    (shown.map(printable).collect(), from - skip)
}

/// What is wrong with a thing, without the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        self.maybe_hint(Some(hint.into()))
    }

    pub(crate) fn maybe_hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// The same problem, said of one entry of a list.
    pub(crate) fn of_entry(self) -> Self {
        Self {
            message: format!("has an entry that {}", self.message),
            ..self
        }
    }

    /// The same problem, said of `subject`.
    pub(crate) fn of(self, subject: &str) -> Self {
        Self {
            message: format!("`{subject}` {}", self.message),
            ..self
        }
    }
}

/// A place in a text.
#[derive(Clone, Debug)]
pub(crate) struct Site<'a> {
    pub(crate) text: &'a Text,
    pub(crate) span: Range<usize>,
}

impl Site<'_> {
    /// The text at this place.
    pub(crate) fn source(&self) -> &str {
        self.text.body.get(self.span.clone()).unwrap_or_default()
    }
}

impl fmt::Display for Site<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Text { name, body, .. } = self.text;
        if self.text.is_override() {
            return write!(f, "`{name} {}`", crate::units::shortened(body));
        }
        let (line, _) = self.text.line_and_start(self.span.start);
        write!(f, "`{name}` line {line}")
    }
}

/// Collects diagnostics.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    errors: Kept,
    warnings: Kept,
}

/// Diagnostics of one severity, each with the place of its file among the layers.
#[derive(Debug, Default)]
struct Kept {
    items: Vec<(usize, Diagnostic)>,
    total: usize,
}

impl Problems {
    pub(crate) fn add(&mut self, site: &Site<'_>, problem: Problem) {
        self.errors.add(Severity::Error, site, problem);
    }

    /// A problem that a policy can live with.
    pub(crate) fn warn(&mut self, site: &Site<'_>, problem: Problem) {
        self.warnings.add(Severity::Warning, site, problem);
    }

    /// A problem with the set as a whole: said of the first line of the file that it has to begin with.
    pub(crate) fn add_to_set(&mut self, file: &str, problem: Problem) {
        self.errors.total += 1;
        let diagnostic = Diagnostic {
            severity: Severity::Error,
            file: file.to_owned(),
            line: 1,
            column: 1,
            width: 1,
            message: problem.message,
            hint: problem.hint,
            source_line: None,
            indent: 0,
        };
        self.errors.items.push((0, diagnostic));
    }

    /// The warnings, if there is no error.
    pub(crate) fn into_result(self) -> Result<Vec<Diagnostic>, Diagnostics> {
        let (errors, warnings) = (self.errors.total, self.warnings.total);
        let mut items = self.errors.sorted();
        items.extend(self.warnings.sorted());
        match errors {
            0 => Ok(items),
            errors => Err(Diagnostics {
                items,
                errors,
                warnings,
            }),
        }
    }
}

impl Kept {
    fn add(&mut self, severity: Severity, site: &Site<'_>, problem: Problem) {
        self.total += 1;
        if self.items.len() < DIAGNOSTICS_MAX {
            let diagnostic = locate(severity, site, problem);
            self.items.push((site.text.index, diagnostic));
        }
    }

    fn sorted(mut self) -> Vec<Diagnostic> {
        self.items
            .sort_by_key(|(index, item)| (*index, item.line, item.column));
        self.items.into_iter().map(|(_, item)| item).collect()
    }
}

fn locate(severity: Severity, site: &Site<'_>, problem: Problem) -> Diagnostic {
    let Site { text, span } = site;
    let (line, start) = text.line_and_start(span.start);
    let content = text.body[start..].lines().next().unwrap_or_default();
    let chars_until = |offset: usize| text.body[start..text.floor(offset)].chars().count();
    let line_end = start + content.len();
    let from = chars_until(span.start);
    let to = chars_until(span.end.clamp(span.start, line_end.max(span.start)));
    let (source_line, indent) = excerpt(content, from);
    Diagnostic {
        severity,
        file: text.name.clone(),
        line,
        column: from + 1,
        width: (to - from).max(1),
        message: problem.message,
        hint: problem.hint,
        source_line: Some(source_line),
        indent,
    }
}
