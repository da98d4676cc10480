//! Just enough JSON to write a schema down, in an order that people chose.

use std::fmt;

/// A JSON value; the keys of an object keep their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Json {
    Flag(bool),
    List(Vec<Self>),
    Number(i64),
    Object(Vec<(String, Self)>),
    Text(String),
}

impl Json {
    pub(crate) fn object() -> Self {
        Self::Object(Vec::new())
    }

    /// `{"type": kind}`
    pub(crate) fn of_type(kind: &str) -> Self {
        Self::object().with("type", kind)
    }

    pub(crate) fn list<T: Into<Self>>(items: impl IntoIterator<Item = T>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }

    /// This object with one more key; anything else stays what it is.
    pub(crate) fn with(mut self, key: &str, value: impl Into<Self>) -> Self {
        if let Self::Object(entries) = &mut self {
            entries.push((key.to_owned(), value.into()));
        }
        self
    }

    /// The value of `key`, if this is an object that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Self::Object(entries) = self else {
            return None;
        };
        entries
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, indent: usize) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => quote(text, f),
            Self::List(items) => block(f, indent, ['[', ']'], items, |item, f| {
                item.write(f, indent + 2)
            }),
            Self::Object(entries) => block(f, indent, ['{', '}'], entries, |(key, value), f| {
                quote(key, f)?;
                f.write_str(": ")?;
                value.write(f, indent + 2)
            }),
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

impl From<bool> for Json {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<i64> for Json {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

fn block<T>(
    f: &mut fmt::Formatter<'_>,
    indent: usize,
    [open, close]: [char; 2],
    items: &[T],
    write: impl Fn(&T, &mut fmt::Formatter<'_>) -> fmt::Result,
) -> fmt::Result {
    if items.is_empty() {
        return write!(f, "{open}{close}");
    }
    for (index, item) in items.iter().enumerate() {
        let before = if index == 0 { open } else { ',' };
        let inner = indent + 2;
        write!(f, "{before}\n{:inner$}", "")?;
        write(item, f)?;
    }
    write!(f, "\n{:indent$}{close}", "")
}

fn quote(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_order_is_kept() {
        let json = Json::object()
            .with("z", Json::list(["a\"\\", "b\n\u{1}"]))
            .with("a", Json::object())
            .with("m", 7)
            .with("e", Json::List(Vec::new()));
        let expected = "{\n  \"z\": [\n    \"a\\\"\\\\\",\n    \"b\\n\\u0001\"\n  ],\n  \"a\": {},\n  \"m\": 7,\n  \"e\": []\n}";
        assert_eq!(json.to_string(), expected);
    }
}
