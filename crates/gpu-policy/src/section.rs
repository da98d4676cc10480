//! Takes the keys out of a TOML table one by one, and complains about what is left.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Problem, Problems, Site};
use crate::schema::{Node, Shape};
use crate::suggest::{did_you_mean, list};
use crate::text::Text;
use crate::value::Reader;

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
    is_empty: bool,
    entries: DeTable<'a>,
    known: Vec<&'static str>,
    /// What was asked for, if a schema is made of it.
    shape: Option<Shape>,
    problems: &'p mut Problems,
}

impl<'a, 'p> Section<'a, 'p> {
    /// The top level of `text`, which was parsed to `entries`.
    pub(crate) fn root(text: &'a Text, entries: DeTable<'a>, problems: &'p mut Problems) -> Self {
        Self {
            title: String::new(),
            text,
            header: 0..0,
            is_empty: entries.is_empty(),
            entries,
            known: Vec::new(),
            shape: None,
            problems,
        }
    }

    /// A file without a key that remembers which keys it was asked for.
    pub(crate) fn recorder(text: &'a Text, problems: &'p mut Problems) -> Self {
        Self {
            shape: Some(Shape::default()),
            ..Self::root(text, DeTable::new(), problems)
        }
    }

    /// What a [`Section::recorder`] was asked for.
    pub(crate) fn into_shape(self) -> Shape {
        self.shape.unwrap_or_default()
    }

    /// The value of `key` as `reader` understands it; `None` if it is absent or wrong.
    pub(crate) fn take<R: Reader>(
        &mut self,
        key: &'static str,
        reader: R,
    ) -> Option<Located<'a, R::Value>> {
        if let Some(shape) = &mut self.shape {
            shape.value(key, reader.shape(), reader.says());
        }
        let (_, value) = self.remove(key)?;
        let site = self.text.site(value.span());
        match reader.read(value.get_ref()) {
            Ok(value) => Some(Located { value, site }),
            Err(problem) => {
                self.problems.add(&site, problem.of(key));
                None
            }
        }
    }

    /// [`Section::take`] into `slot`, which keeps its value if there is none; answers where it stood.
    pub(crate) fn set<R: Reader>(
        &mut self,
        key: &'static str,
        slot: &mut R::Value,
        reader: R,
    ) -> Option<Site<'a>> {
        let Located { value, site } = self.take(key, reader)?;
        *slot = value;
        Some(site)
    }

    /// [`Section::set`] of a slot that may stay empty.
    pub(crate) fn set_some<R: Reader>(
        &mut self,
        key: &'static str,
        slot: &mut Option<R::Value>,
        reader: R,
    ) -> Option<Site<'a>> {
        let Located { value, site } = self.take(key, reader)?;
        *slot = Some(value);
        Some(site)
    }

    /// [`Section::take`] of a key that must be there.
    pub(crate) fn require<R: Reader>(
        &mut self,
        key: &'static str,
        reader: R,
    ) -> Option<Located<'a, R::Value>> {
        if let Some(shape) = &mut self.shape {
            shape.required.push(key);
        }
        if !self.entries.contains_key(key) {
            let problem = Problem::new(format!("{} has no `{key}`", self.title));
            self.problems
                .add(&self.text.site(self.header.clone()), problem);
        }
        self.take(key, reader)
    }

    /// Whether exactly one of `keys`, which are taken later, is there.
    pub(crate) fn exactly_one(&mut self, keys: &[&'static str]) -> bool {
        if let Some(shape) = &mut self.shape {
            shape.exactly_one = keys.to_vec();
        }
        let mut there: Vec<(&'static str, Range<usize>)> = Vec::new();
        for key in keys {
            if let Some((name, _)) = self.entries.get_key_value(*key) {
                there.push((*key, name.span()));
            }
        }
        match there.as_slice() {
            [] => {
                let problem = Problem::new(format!("{} has none of {}", self.title, list_of(keys)));
                self.complain(self.header.clone(), problem.hint("write one of them"));
            }
            [_] => return true,
            [(first, _), .., (last, span)] => {
                let message = format!("`{last}` excludes `{first}` in {}", self.title);
                let hint = format!("keep one of {}", list_of(keys));
                self.complain(span.clone(), Problem::new(message).hint(hint));
            }
        }
        false
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
        if self.shape.is_some() {
            return self.record(key, Node::Table, read);
        }
        let Some((name, value)) = self.remove(key) else {
            return;
        };
        match value.into_inner() {
            DeValue::Table(entries) => self.nested(self.title_of(key), name, entries, read),
            _ => self.complain(
                name,
                Problem::new(format!("`{key}` is a table")).hint(format!("write `[{key}]`")),
            ),
        }
    }

    /// The tables `[[key]]`.
    pub(crate) fn tables(&mut self, key: &'static str, mut read: impl FnMut(&mut Section<'a, '_>)) {
        if self.shape.is_some() {
            return self.record(key, Node::Tables, read);
        }
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

    /// Warns of `problem` at `site`.
    pub(crate) fn warning(&mut self, site: &Site<'a>, problem: Problem) {
        self.problems.warn(site, problem);
    }

    /// Whether the table says nothing at all.
    pub(crate) fn is_empty_table(&self) -> bool {
        self.is_empty
    }

    /// The place of the table itself.
    pub(crate) fn site(&self) -> Site<'a> {
        self.text.site(self.header.clone())
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
            is_empty: entries.is_empty(),
            entries,
            known: Vec::new(),
            shape: None,
            problems: self.problems,
        };
        read(&mut section);
        section.finish();
    }

    /// Has `read` ask for the keys of the table or tables `key`.
    fn record(
        &mut self,
        key: &'static str,
        node: fn(Shape) -> Node,
        read: impl FnOnce(&mut Section<'a, '_>),
    ) {
        let mut section = Section::recorder(self.text, self.problems);
        read(&mut section);
        let inner = section.into_shape();
        if let Some(shape) = &mut self.shape {
            shape.keys.push((key, node(inner)));
        }
    }

    /// `[key]`, or `[rule.key]` inside of `[[rule]]`.
    fn title_of(&self, key: &str) -> String {
        match self.title.trim_matches(['[', ']']) {
            "" => format!("[{key}]"),
            outer => format!("[{outer}.{key}]"),
        }
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

/// "`a`, `b`, `c`"
fn list_of(keys: &[&'static str]) -> String {
    list(keys.iter().copied())
}
