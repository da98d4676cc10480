//! Readers of single values: each turns a TOML value into a typed one or says what is wrong with it.

use std::ops::RangeInclusive;

use globset::{GlobBuilder, GlobMatcher};
use gpu_lease::Ms;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use toml::de::DeValue;

use crate::diagnostic::Problem;
use crate::hours::Hours;
use crate::suggest::{did_you_mean, list};
use crate::units::{duration_text, parse_duration, parse_size, shortened, size_text, without_unit};

/// A word of the schema and what it means; `None` is planned, and refused until it works.
pub(crate) type Words<T> = [(&'static str, Option<T>)];

/// One of `words`.
pub(crate) fn one_of<T: Copy>(
    words: &'static Words<T>,
) -> impl Fn(&DeValue<'_>) -> Result<T, Problem> {
    move |value| {
        let word = string(value)?;
        match words.iter().find(|(known, _)| *known == word) {
            Some((_, Some(meaning))) => Ok(*meaning),
            Some((_, None)) => Err(not_supported(word, words)),
            None => Err(no_such_word(word, words)),
        }
    }
}

/// A length of time within `range`.
pub(crate) fn duration(range: RangeInclusive<Ms>) -> impl Fn(&DeValue<'_>) -> Result<Ms, Problem> {
    move |value| {
        let length = match value {
            DeValue::Integer(number) => match number.as_str().parse() {
                Ok(number) => return Err(without_unit(number)),
                Err(_) => return Err(wrong_type("a duration such as \"30s\"", value)),
            },
            value => parse_duration(string(value)?)?,
        };
        within(&range, length, |bound| duration_text(*bound))
    }
}

/// A number of bytes within `range`.
pub(crate) fn size(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<u64, Problem> {
    move |value| {
        let bytes = match value {
            DeValue::Integer(_) => u64::try_from(whole_number(value)?)
                .map_err(|_| Problem::new("must not be negative"))?,
            value => parse_size(string(value)?)?,
        };
        within(&range, bytes, |bound| size_text(*bound))
    }
}

/// A whole number within `range`.
pub(crate) fn integer<T>(range: RangeInclusive<i64>) -> impl Fn(&DeValue<'_>) -> Result<T, Problem>
where
    T: TryFrom<i64>,
{
    move |value| {
        let number = within(&range, whole_number(value)?, i64::to_string)?;
        T::try_from(number).map_err(|_| Problem::new("is out of range"))
    }
}

/// `true` or `false`.
pub(crate) fn flag(value: &DeValue<'_>) -> Result<bool, Problem> {
    match value {
        DeValue::Boolean(flag) => Ok(*flag),
        DeValue::String(word) if matches!(word.as_ref(), "true" | "false") => {
            Err(wrong_type("true or false", value).hint("write it without quotes"))
        }
        value => Err(wrong_type("true or false", value)),
    }
}

/// The name of a class or a label: what fits into a header, a shell word and a metric.
pub(crate) fn name(value: &DeValue<'_>) -> Result<String, Problem> {
    const NAME_CHARS_MAX: usize = 64;
    let name = string(value)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(allowed) {
        let message = format!("must be a name, not `{}`", shortened(name));
        let hint = format!("1 to {NAME_CHARS_MAX} characters of a-z, A-Z, 0-9, `-`, `_`, `.`");
        return Err(Problem::new(message).hint(hint));
    }
    Ok(name.to_owned())
}

/// A list of distinct names.
pub(crate) fn names(value: &DeValue<'_>) -> Result<Vec<String>, Problem> {
    const NAMES_MAX: usize = 32;
    let DeValue::Array(items) = value else {
        return Err(wrong_type("a list such as [\"fast\"]", value));
    };
    if items.len() > NAMES_MAX {
        return Err(Problem::new(format!("has more than {NAMES_MAX} entries")));
    }
    let entry = |item: &toml::Spanned<DeValue<'_>>| name(item.get_ref()).map_err(Problem::of_entry);
    items.iter().map(entry).collect()
}

/// A sentence for people.
pub(crate) fn sentence(value: &DeValue<'_>) -> Result<String, Problem> {
    const SENTENCE_CHARS_MAX: usize = 200;
    let text = match value {
        DeValue::Boolean(_) => {
            let problem = wrong_type("the reason, in words", value);
            return Err(problem.hint("say why, such as \"fan broken\""));
        }
        value => string(value)?,
    };
    let printable = !text.chars().any(char::is_control);
    match text.trim() {
        "" => Err(Problem::new("must not be empty")),
        text if printable && text.chars().count() <= SENTENCE_CHARS_MAX => Ok(text.to_owned()),
        _ => Err(Problem::new(format!(
            "must be one line of at most {SENTENCE_CHARS_MAX} characters"
        ))),
    }
}

/// A device by id or name, exactly or by a glob that ignores case.
#[derive(Clone, Debug)]
pub(crate) struct DevicePattern {
    pub(crate) text: String,
    glob: GlobMatcher,
}

impl DevicePattern {
    pub(crate) fn matches(&self, id_or_name: &str) -> bool {
        self.text == id_or_name || self.glob.is_match(id_or_name)
    }
}

/// A [`DevicePattern`].
pub(crate) fn device_pattern(value: &DeValue<'_>) -> Result<DevicePattern, Problem> {
    const PATTERN_CHARS_MAX: usize = 128;
    let text = string(value)?;
    if text.is_empty()
        || text.chars().count() > PATTERN_CHARS_MAX
        || text.chars().any(char::is_control)
    {
        let message =
            format!("must be an id, a name or a glob of 1 to {PATTERN_CHARS_MAX} characters");
        return Err(Problem::new(message));
    }
    let glob = GlobBuilder::new(text).case_insensitive(true).build();
    let glob = glob.map_err(|error| Problem::new(format!("is no glob: {}", error.kind())))?;
    Ok(DevicePattern {
        text: text.to_owned(),
        glob: glob.compile_matcher(),
    })
}

/// Hours of the day such as `18:00-09:00`.
pub(crate) fn hours(value: &DeValue<'_>) -> Result<Hours, Problem> {
    Hours::parse(string(value)?)
}

/// A zone of the time zone database that the program carries.
pub(crate) fn timezone(value: &DeValue<'_>) -> Result<TimeZone, Problem> {
    let name = string(value)?;
    let zones = TimeZoneDatabase::bundled();
    zones.get(name).map_err(|_| {
        let available: Vec<String> = zones.available().map(|zone| zone.to_string()).collect();
        let hint = did_you_mean(name, available.iter().map(String::as_str));
        Problem::new(format!("must be a time zone, not `{}`", shortened(name)))
            .hint(hint.unwrap_or_else(|| "a name such as `Europe/Berlin` or `UTC`".to_owned()))
    })
}

/// The version of the schema.
pub(crate) fn schema_version(value: &DeValue<'_>) -> Result<(), Problem> {
    match whole_number(value)? {
        1 => Ok(()),
        other => Err(Problem::new(format!("must be 1, not {other}"))),
    }
}

fn string<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Problem> {
    value
        .as_str()
        .ok_or_else(|| wrong_type("text in quotes", value))
}

fn whole_number(value: &DeValue<'_>) -> Result<i64, Problem> {
    let DeValue::Integer(number) = value else {
        return Err(wrong_type("a whole number", value));
    };
    i64::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| Problem::new("does not fit into 64 bits"))
}

fn wrong_type(wanted: &str, value: &DeValue<'_>) -> Problem {
    let found = match value {
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Boolean(flag) => format!("{flag}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Float(number) => shortened(number.as_str()),
        DeValue::Integer(number) => shortened(number.as_str()),
        DeValue::String(text) => format!("\"{}\"", shortened(text)),
        DeValue::Table(_) => "a table".to_owned(),
    };
    Problem::new(format!("must be {wanted}, not {found}"))
}

fn within<T: PartialOrd>(
    range: &RangeInclusive<T>,
    value: T,
    text: impl Fn(&T) -> String,
) -> Result<T, Problem> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (least, most) = (text(range.start()), text(range.end()));
    let message = format!("must be between {least} and {most}, not {}", text(&value));
    Err(Problem::new(message))
}

fn supported<T>(words: &'static Words<T>) -> impl Iterator<Item = &'static str> {
    words
        .iter()
        .filter(|(_, meaning)| meaning.is_some())
        .map(|(word, _)| *word)
}

fn not_supported<T>(word: &str, words: &'static Words<T>) -> Problem {
    Problem::new(format!("= \"{word}\" is not supported yet"))
        .hint(format!("use {}", list(supported(words))))
}

fn no_such_word<T>(word: &str, words: &'static Words<T>) -> Problem {
    let message = format!(
        "must be one of {}, not `{}`",
        list(supported(words)),
        shortened(word)
    );
    Problem::new(message).maybe_hint(did_you_mean(word, supported(words)))
}
