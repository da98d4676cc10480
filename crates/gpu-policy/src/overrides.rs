//! Single settings from above the files: the environment, `--set` and the API.

use std::borrow::Cow;
use std::ffi::OsString;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::text::Text;

/// A variable that begins so sets a policy setting: `GPU_MANAGER_POLICY__PLACEMENT__STRATEGY=spread`.
pub const ENV_PREFIX: &str = "GPU_MANAGER_POLICY__";

/// An override longer than this many bytes is refused.
pub const OVERRIDE_BYTES_MAX: usize = 4096;

/// The origin of what [`Override::from_env`] finds.
pub const FROM_ENVIRONMENT: &str = "environment";

/// The origin of what the command line says.
pub const FROM_COMMAND_LINE: &str = "--set";

/// The origin of what was set by the API, until it expires.
pub const FROM_API: &str = "override";

/// A setting that survives every reload of the files below it.
///
/// Of two for the same setting the API wins over the command line, and that over the environment; of two of
/// the same origin the later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    text: Text,
    section: String,
    key: String,
    key_span: Range<usize>,
    value_span: Range<usize>,
}

/// Text that is no override.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    /// There is no `=`.
    #[error(
        "`{0}` is no setting: expected `section.key=value`, such as `placement.strategy=spread`"
    )]
    Malformed(String),
    /// The value of this variable is not UTF-8.
    #[error("the value of `{0}` is not UTF-8")]
    NotUtf8(String),
    /// The setting is part of a table that is declared by name.
    #[error("`{0}` can only be set in a policy file: `[[{0}]]` tables have names")]
    Table(String),
    /// More than [`OVERRIDE_BYTES_MAX`] bytes.
    #[error("the override of `{0}` is longer than {OVERRIDE_BYTES_MAX} bytes")]
    TooLong(String),
}

impl Override {
    /// The setting that `text` says, such as `placement.strategy=spread`. Whether the setting exists is
    /// for [`crate::compile`] to say, which names `origin`, such as [`FROM_COMMAND_LINE`], as the file.
    ///
    /// # Errors
    /// If `text` is not `section.key=value`, or too long.
    pub fn parse(origin: &str, text: &str) -> Result<Self, OverrideError> {
        let shown = || crate::units::shortened(text);
        let (path, _) = text
            .split_once('=')
            .ok_or_else(|| OverrideError::Malformed(shown()))?;
        let (section, key) = path
            .split_once('.')
            .ok_or_else(|| OverrideError::Malformed(shown()))?;
        Self::new(origin, text, path.len(), section.trim(), key.trim())
    }

    /// The settings among the variables of an environment, ordered by name.
    ///
    /// # Errors
    /// If the name or the value of a variable that begins with [`ENV_PREFIX`] is malformed.
    pub fn from_env(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Vec<Self>, OverrideError> {
        let ours = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok()?;
            name.starts_with(ENV_PREFIX).then_some((name, value))
        };
        let mut found: Vec<_> = variables.into_iter().filter_map(ours).collect();
        found.sort();
        found.into_iter().map(Self::from_variable).collect()
    }

    /// What is set, such as `placement.strategy`.
    pub fn setting(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// Where it comes from: [`FROM_ENVIRONMENT`], [`FROM_COMMAND_LINE`], [`FROM_API`] or what it was parsed
    /// with.
    pub fn origin(&self) -> &str {
        &self.text.name
    }

    /// What it is set to, as it was written.
    pub fn value_text(&self) -> &str {
        self.text.body[self.value_span.clone()].trim()
    }

    /// `overrides`, the lowest first.
    pub(crate) fn in_order(overrides: &[Self]) -> Vec<&Self> {
        let rank = |setting: &&Self| match setting.origin() {
            FROM_ENVIRONMENT => 0,
            FROM_API => 2,
            _ => 1,
        };
        let mut ordered: Vec<&Self> = overrides.iter().collect();
        ordered.sort_by_key(rank);
        ordered
    }

    pub(crate) fn text(&self) -> &Text {
        &self.text
    }

    /// What a file would say: one table with one key.
    pub(crate) fn tree(&self) -> DeTable<'_> {
        let value = Spanned::new(self.value_span.clone(), self.value());
        let mut section = DeTable::new();
        section.insert(self.spanned(&self.key), value);
        let section = Spanned::new(self.key_span.clone(), DeValue::Table(section));
        let mut root = DeTable::new();
        root.insert(self.spanned(&self.section), section);
        root
    }

    fn from_variable((name, value): (String, OsString)) -> Result<Self, OverrideError> {
        let Ok(value) = value.into_string() else {
            return Err(OverrideError::NotUtf8(name));
        };
        let path = name[ENV_PREFIX.len()..].to_lowercase();
        let text = format!("{name}={value}");
        match path.split_once("__") {
            Some((section, key)) => Self::new(FROM_ENVIRONMENT, &text, name.len(), section, key),
            None => Err(OverrideError::Malformed(crate::units::shortened(&text))),
        }
    }

    fn new(
        origin: &str,
        text: &str,
        equals: usize,
        section: &str,
        key: &str,
    ) -> Result<Self, OverrideError> {
        if section.is_empty() || key.is_empty() {
            return Err(OverrideError::Malformed(crate::units::shortened(text)));
        }
        if text.len() > OVERRIDE_BYTES_MAX {
            return Err(OverrideError::TooLong(crate::units::shortened(section)));
        }
        if matches!(section, "class" | "device" | "rule" | "tenant") {
            return Err(OverrideError::Table(section.to_owned()));
        }
        Ok(Self {
            text: Text::of_override(origin, text),
            section: section.to_owned(),
            key: key.to_owned(),
            key_span: 0..equals,
            value_span: equals + 1..text.len(),
        })
    }

    fn spanned<'s>(&self, word: &'s str) -> Spanned<Cow<'s, str>> {
        Spanned::new(self.key_span.clone(), Cow::Borrowed(word))
    }

    /// A number, a flag or quoted text as TOML has them; anything else is text without quotes.
    fn value(&self) -> DeValue<'_> {
        let text = self.text.body[self.value_span.clone()].trim();
        let bare = DeValue::String(Cow::Borrowed(text));
        if text.starts_with(['[', '{']) {
            return bare;
        }
        match DeValue::parse(text).map(Spanned::into_inner) {
            Ok(value @ (DeValue::Boolean(_) | DeValue::Integer(_) | DeValue::String(_))) => value,
            _ => bare,
        }
    }
}
