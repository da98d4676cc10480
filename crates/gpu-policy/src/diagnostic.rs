//! What is wrong with a set of policy files: as data, and as text for people.

use std::fmt;
use std::ops::Range;

use crate::text::Text;

/// More diagnostics than this are counted but not kept.
pub const DIAGNOSTICS_MAX: usize = 100;

const EXCERPT_CHARS_MAX: usize = 160;

/// One error and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as the caller named it, or `--set` or `environment`.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted in characters from 1.
    pub column: usize,
    /// A lowercase fragment that names the thing in backticks.
    pub message: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
    excerpt: Option<Excerpt>,
}

/// Every error of a set of files, in file order; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    items: Vec<Diagnostic>,
    total: usize,
}

impl Diagnostics {
    /// The errors, at most [`DIAGNOSTICS_MAX`].
    pub fn items(&self) -> &[Diagnostic] {
        &self.items
    }

    /// How many errors there are, with those that were not kept.
    pub fn total(&self) -> usize {
        self.total
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            writeln!(f, "{item}\n")?;
        }
        match self.total - self.items.len() {
            0 => {}
            more => writeln!(f, "and {more} more that are not shown\n")?,
        }
        match self.total {
            1 => f.write_str("1 error in the policy"),
            total => write!(f, "{total} errors in the policy"),
        }
    }
}

impl std::error::Error for Diagnostics {}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gutter = self.line.to_string().len();
        writeln!(f, "error: {}", self.message)?;
        write!(
            f,
            "{:gutter$}--> {}:{}:{}",
            "", self.file, self.line, self.column
        )?;
        if let Some(excerpt) = &self.excerpt {
            writeln!(f, "\n{:gutter$} |", "")?;
            writeln!(f, "{} | {}", self.line, excerpt.line)?;
            let carets = "^".repeat(excerpt.width);
            write!(
                f,
                "{:gutter$} | {:indent$}{carets}",
                "",
                "",
                indent = excerpt.indent
            )?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n{:gutter$} = hint: {hint}", "")?;
        }
        Ok(())
    }
}

/// The source line of a diagnostic, cut to what a terminal can show.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Excerpt {
    line: String,
    indent: usize,
    width: usize,
}

impl Excerpt {
    /// The part of `line` around the characters `from..to`, without anything that a terminal would act on.
    fn new(line: &str, from: usize, to: usize) -> Self {
        let skip = if from + 1 < EXCERPT_CHARS_MAX {
            0
        } else {
            from - EXCERPT_CHARS_MAX / 2
        };
        let shown = line.chars().skip(skip).take(EXCERPT_CHARS_MAX);
        let printable = |c: char| match c {
            '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        let line: String = shown.map(printable).collect();
        let indent = from - skip;
        let room = line.chars().count().saturating_sub(indent);
        Self {
            line,
            indent,
            width: (to - from).min(room).max(1),
        }
    }
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

impl fmt::Display for Site<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, _) = self.text.line_and_start(self.span.start);
        write!(f, "`{}` line {line}", self.text.name)
    }
}

/// Collects diagnostics.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    kept: Vec<(usize, Diagnostic)>,
    total: usize,
}

impl Problems {
    pub(crate) fn add(&mut self, site: &Site<'_>, problem: Problem) {
        self.total += 1;
        if self.kept.len() < DIAGNOSTICS_MAX {
            self.kept.push((site.text.index, locate(site, problem)));
        }
    }

    /// A problem with the set as a whole: said of the first line of the file that it has to begin with.
    pub(crate) fn add_to_set(&mut self, file: &str, problem: Problem) {
        self.total += 1;
        let diagnostic = Diagnostic {
            file: file.to_owned(),
            line: 1,
            column: 1,
            message: problem.message,
            hint: problem.hint,
            excerpt: None,
        };
        self.kept.push((0, diagnostic));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.total == 0
    }

    pub(crate) fn into_result(self) -> Result<(), Diagnostics> {
        if self.is_empty() {
            return Ok(());
        }
        let mut kept = self.kept;
        kept.sort_by_key(|(index, item)| (*index, item.line, item.column));
        Err(Diagnostics {
            items: kept.into_iter().map(|(_, item)| item).collect(),
            total: self.total,
        })
    }
}

fn locate(site: &Site<'_>, problem: Problem) -> Diagnostic {
    let Site { text, span } = site;
    let (line, start) = text.line_and_start(span.start);
    let content = text.body[start..].lines().next().unwrap_or_default();
    let chars_until = |offset: usize| text.body[start..text.floor(offset)].chars().count();
    let line_end = start + content.len();
    let from = chars_until(span.start);
    let to = chars_until(span.end.clamp(span.start, line_end.max(span.start)));
    Diagnostic {
        file: text.name.clone(),
        line,
        column: from + 1,
        message: problem.message,
        hint: problem.hint,
        excerpt: Some(Excerpt::new(content, from, to)),
    }
}
