//! Takes the keys out of a TOML table one by one, and complains about what is left.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Problem, Problems, Site};
use crate::suggest::{did_you_mean, list};
use crate::text::Text;

/// A value and the place where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Located<'a, T> {
    pub(crate) value: T,
    pub(crate) site: Site<'a>,
}

/// A table whose keys are being read.
#[derive(Debug)]
pub(crate) struct Section<'a, 'p> {
    /// As people write it: `[placement]`; empty for the whole file.
    title: String,
    text: &'a Text,
    header: Range<usize>,
    entries: DeTable<'a>,
    known: Vec<&'static str>,
    problems: &'p mut Problems,
}

impl<'a, 'p> Section<'a, 'p> {
    /// The top level of `text`, which was parsed to `entries`.
    pub(crate) fn root(text: &'a Text, entries: DeTable<'a>, problems: &'p mut Problems) -> Self {
        Self {
            title: String::new(),
            text,
            header: 0..0,
            entries,
            known: Vec::new(),
            problems,
        }
    }

    /// The value of `key` as `read` understands it; `None` if it is absent or wrong.
    pub(crate) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, Problem>,
    ) -> Option<Located<'a, T>> {
        let (_, value) = self.remove(key)?;
        let site = self.text.site(value.span());
        match read(value.get_ref()) {
            Ok(value) => Some(Located { value, site }),
            Err(problem) => {
                self.problems.add(&site, problem.of(key));
                None
            }
        }
    }

    /// [`Section::take`] into `slot`, which keeps its value if there is none; answers where it stood.
    pub(crate) fn set<T>(
        &mut self,
        key: &'static str,
        slot: &mut T,
        read: impl Fn(&DeValue<'_>) -> Result<T, Problem>,
    ) -> Option<Site<'a>> {
        let Located { value, site } = self.take(key, read)?;
        *slot = value;
        Some(site)
    }

    /// [`Section::take`] of a key that must be there.
    pub(crate) fn require<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Result<T, Problem>,
    ) -> Option<Located<'a, T>> {
        if !self.entries.contains_key(key) {
            let problem = Problem::new(format!("{} has no `{key}`", self.title));
            self.problems
                .add(&self.text.site(self.header.clone()), problem);
        }
        self.take(key, read)
    }

    /// A key that is planned: refused, since it would look as if it did something.
    pub(crate) fn later(&mut self, key: &'static str) {
        if let Some((name, _)) = self.entries.remove_entry(key) {
            let problem = Problem::new(format!("`{key}` is not supported yet")).hint("remove it");
            self.complain(name.span(), problem);
        }
    }

    /// The table `[key]`.
    pub(crate) fn table(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'a, '_>)) {
        let Some((name, value)) = self.remove(key) else {
            return;
        };
        match value.into_inner() {
            DeValue::Table(entries) => self.nested(format!("[{key}]"), name, entries, read),
            _ => self.complain(
                name,
                Problem::new(format!("`{key}` is a table")).hint(format!("write `[{key}]`")),
            ),
        }
    }

    /// The tables `[[key]]`.
    pub(crate) fn tables(&mut self, key: &'static str, mut read: impl FnMut(&mut Section<'a, '_>)) {
        let wrong = || {
            Problem::new(format!("`{key}` is a list of tables")).hint(format!("write `[[{key}]]`"))
        };
        let Some((name, value)) = self.remove(key) else {
            return;
        };
        let DeValue::Array(items) = value.into_inner() else {
            return self.complain(name, wrong());
        };
        for item in items {
            let header = item.span();
            match item.into_inner() {
                DeValue::Table(entries) => {
                    self.nested(format!("[[{key}]]"), header, entries, &mut read);
                }
                _ => self.complain(header, wrong()),
            }
        }
    }

    /// Adds `problem` at `site`.
    pub(crate) fn problem(&mut self, site: &Site<'a>, problem: Problem) {
        self.problems.add(site, problem);
    }

    /// Every key that was not taken is unknown.
    pub(crate) fn finish(self) {
        let place = match self.title.as_str() {
            "" => String::new(),
            title => format!(" in {title}"),
        };
        for (key, _) in &self.entries {
            let word = key.get_ref().as_ref();
            let problem = Problem::new(format!(
                "unknown key `{}`{place}",
                crate::units::shortened(word)
            ));
            let hint = did_you_mean(word, self.known.iter().copied())
                .unwrap_or_else(|| format!("known keys are {}", list(self.known.iter().copied())));
            self.problems
                .add(&self.text.site(key.span()), problem.hint(hint));
        }
    }

    fn nested(
        &mut self,
        title: String,
        header: Range<usize>,
        entries: DeTable<'a>,
        read: impl FnOnce(&mut Section<'a, '_>),
    ) {
        let mut section = Section {
            title,
            text: self.text,
            header,
            entries,
            known: Vec::new(),
            problems: self.problems,
        };
        read(&mut section);
        section.finish();
    }

    fn complain(&mut self, span: Range<usize>, problem: Problem) {
        self.problems.add(&self.text.site(span), problem);
    }

    /// The value of `key` and the place of the key itself.
    fn remove(&mut self, key: &'static str) -> Option<(Range<usize>, toml::Spanned<DeValue<'a>>)> {
        self.known.push(key);
        let (name, value) = self.entries.remove_entry(key)?;
        Some((name.span(), value))
    }
}
