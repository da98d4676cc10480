//! Readers of single values: each turns a TOML value into a typed one or says what is wrong with it.

use std::marker::PhantomData;
use std::ops::RangeInclusive;

use globset::{GlobBuilder, GlobMatcher};
use gpu_lease::Ms;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use toml::de::DeValue;

use crate::cel::TEXT_BYTES_MAX;
use crate::diagnostic::Problem;
use crate::hours::Hours;
use crate::json::Json;
use crate::suggest::{did_you_mean, list};
use crate::units::{duration_text, parse_duration, parse_size, shortened, size_text, without_unit};

/// A word of the schema and what it means; `None` is planned, and refused until it works.
pub(crate) type Words<T> = [(&'static str, Option<T>)];

/// Understands one kind of value, and says which.
pub(crate) trait Reader {
    /// What the value becomes.
    type Value;

    /// The value, or what is wrong with it, as words that follow its key.
    fn read(&self, value: &DeValue<'_>) -> Result<Self::Value, Problem>;

    /// The values that are understood, as JSON schema.
    fn shape(&self) -> Json;

    /// The values that are understood, in words.
    fn says(&self) -> String;
}

/// One of some words.
pub(crate) struct OneOf<T: 'static>(&'static Words<T>);

/// One of `words`.
pub(crate) fn one_of<T: Copy>(words: &'static Words<T>) -> OneOf<T> {
    OneOf(words)
}

impl<T: Copy> Reader for OneOf<T> {
    type Value = T;

    fn read(&self, value: &DeValue<'_>) -> Result<T, Problem> {
        let word = string(value)?;
        match self.0.iter().find(|(known, _)| *known == word) {
            Some((_, Some(meaning))) => Ok(*meaning),
            Some((_, None)) => Err(not_supported(word, self.0)),
            None => Err(no_such_word(word, self.0)),
        }
    }

    fn shape(&self) -> Json {
        Json::of_type("string").with("enum", Json::list(supported(self.0)))
    }

    fn says(&self) -> String {
        list(supported(self.0))
    }
}

/// A length of time.
pub(crate) struct Duration(RangeInclusive<Ms>);

/// A length of time within `range`.
pub(crate) fn duration(range: RangeInclusive<Ms>) -> Duration {
    Duration(range)
}

impl Reader for Duration {
    type Value = Ms;

    fn read(&self, value: &DeValue<'_>) -> Result<Ms, Problem> {
        let length = match value {
            DeValue::Integer(number) => match number.as_str().parse() {
                Ok(number) => return Err(without_unit(number)),
                Err(_) => return Err(wrong_type("a duration such as \"30s\"", value)),
            },
            value => parse_duration(string(value)?)?,
        };
        within(&self.0, length, |bound| duration_text(*bound))
    }

    fn shape(&self) -> Json {
        Json::of_type("string").with("pattern", "^([0-9]+(w|d|h|m|s|ms))+$")
    }

    fn says(&self) -> String {
        let (least, most) = (duration_text(*self.0.start()), duration_text(*self.0.end()));
        format!("duration, {least} to {most}")
    }
}

/// A number of bytes.
pub(crate) struct Size(RangeInclusive<u64>);

/// A number of bytes within `range`.
pub(crate) fn size(range: RangeInclusive<u64>) -> Size {
    Size(range)
}

impl Reader for Size {
    type Value = u64;

    fn read(&self, value: &DeValue<'_>) -> Result<u64, Problem> {
        let bytes = match value {
            DeValue::Integer(_) => u64::try_from(whole_number(value)?)
                .map_err(|_| Problem::new("must not be negative"))?,
            value => parse_size(string(value)?)?,
        };
        within(&self.0, bytes, |bound| size_text(*bound))
    }

    fn shape(&self) -> Json {
        const PATTERN: &str = "^[0-9]+([.][0-9]{1,3})? *([bB]|[kKmMgGtT]([iI]?[bB])?)$";
        Json::object()
            .with("type", Json::list(["integer", "string"]))
            .with("minimum", 0)
            .with("pattern", PATTERN)
    }

    fn says(&self) -> String {
        let (least, most) = (size_text(*self.0.start()), size_text(*self.0.end()));
        format!("size, {least} to {most}")
    }
}

/// A whole number.
pub(crate) struct Integer<T>(RangeInclusive<i64>, PhantomData<T>);

/// A whole number within `range`.
pub(crate) fn integer<T: TryFrom<i64>>(range: RangeInclusive<i64>) -> Integer<T> {
    Integer(range, PhantomData)
}

impl<T: TryFrom<i64>> Reader for Integer<T> {
    type Value = T;

    fn read(&self, value: &DeValue<'_>) -> Result<T, Problem> {
        let number = within(&self.0, whole_number(value)?, i64::to_string)?;
        T::try_from(number).map_err(|_| Problem::new("is out of range"))
    }

    fn shape(&self) -> Json {
        Json::of_type("integer")
            .with("minimum", *self.0.start())
            .with("maximum", *self.0.end())
    }

    fn says(&self) -> String {
        format!("whole number, {} to {}", self.0.start(), self.0.end())
    }
}

/// `true` or `false`.
pub(crate) struct Flag;

impl Reader for Flag {
    type Value = bool;

    fn read(&self, value: &DeValue<'_>) -> Result<bool, Problem> {
        match value {
            DeValue::Boolean(flag) => Ok(*flag),
            DeValue::String(word) if matches!(word.as_ref(), "true" | "false") => {
                Err(wrong_type("true or false", value).hint("write it without quotes"))
            }
            value => Err(wrong_type("true or false", value)),
        }
    }

    fn shape(&self) -> Json {
        Json::of_type("boolean")
    }

    fn says(&self) -> String {
        "true or false".to_owned()
    }
}

/// The name of a class, a tenant or a label: what fits into a header, a shell word and a metric.
pub(crate) struct Name;

const NAME_CHARS_MAX: usize = 64;

impl Reader for Name {
    type Value = String;

    fn read(&self, value: &DeValue<'_>) -> Result<String, Problem> {
        let name = string(value)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(allowed) {
            let message = format!("must be a name, not `{}`", shortened(name));
            return Err(Problem::new(message).hint(self.says()));
        }
        Ok(name.to_owned())
    }

    fn shape(&self) -> Json {
        let pattern = format!("^[a-zA-Z0-9_.-]{{1,{NAME_CHARS_MAX}}}$");
        Json::of_type("string").with("pattern", pattern)
    }

    fn says(&self) -> String {
        format!("1 to {NAME_CHARS_MAX} characters of a-z, A-Z, 0-9, `-`, `_`, `.`")
    }
}

/// A list of [`Name`]s.
pub(crate) struct Names;

const NAMES_MAX: usize = 32;

impl Reader for Names {
    type Value = Vec<String>;

    fn read(&self, value: &DeValue<'_>) -> Result<Vec<String>, Problem> {
        let DeValue::Array(items) = value else {
            return Err(wrong_type("a list such as [\"fast\"]", value));
        };
        if items.len() > NAMES_MAX {
            return Err(Problem::new(format!("has more than {NAMES_MAX} entries")));
        }
        let entry = |item: &toml::Spanned<DeValue<'_>>| {
            Name.read(item.get_ref()).map_err(Problem::of_entry)
        };
        items.iter().map(entry).collect()
    }

    fn shape(&self) -> Json {
        Json::of_type("array")
            .with("items", Name.shape())
            .with("maxItems", as_i64(NAMES_MAX))
    }

    fn says(&self) -> String {
        format!("list of up to {NAMES_MAX} names")
    }
}

/// One line for people.
pub(crate) struct Line {
    chars_max: usize,
    wanted: &'static str,
    example: &'static str,
}

/// Why something is so.
pub(crate) const REASON: Line = Line {
    chars_max: 200,
    wanted: "the reason, in words",
    example: "say why, such as \"fan broken\"",
};

/// What a rule is called.
pub(crate) const TITLE: Line = Line {
    chars_max: 80,
    wanted: "a name in quotes",
    example: "name it by what it does, such as \"big jobs at night\"",
};

impl Reader for Line {
    type Value = String;

    fn read(&self, value: &DeValue<'_>) -> Result<String, Problem> {
        let text = match value {
            DeValue::Boolean(_) => {
                return Err(wrong_type(self.wanted, value).hint(self.example));
            }
            value => string(value)?,
        };
        let printable = !text.chars().any(char::is_control);
        match text.trim() {
            "" => Err(Problem::new("must not be empty")),
            text if printable && text.chars().count() <= self.chars_max => Ok(text.to_owned()),
            _ => Err(Problem::new(format!(
                "must be one line of at most {} characters",
                self.chars_max
            ))),
        }
    }

    fn shape(&self) -> Json {
        Json::of_type("string")
            .with("minLength", 1)
            .with("maxLength", as_i64(self.chars_max))
    }

    fn says(&self) -> String {
        format!("one line, up to {} characters", self.chars_max)
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
pub(crate) struct Pattern;

const PATTERN_CHARS_MAX: usize = 128;

impl Reader for Pattern {
    type Value = DevicePattern;

    fn read(&self, value: &DeValue<'_>) -> Result<DevicePattern, Problem> {
        let text = string(value)?;
        if text.is_empty()
            || text.chars().count() > PATTERN_CHARS_MAX
            || text.chars().any(char::is_control)
        {
            return Err(Problem::new(format!("must be {}", self.says())));
        }
        let glob = GlobBuilder::new(text).case_insensitive(true).build();
        let glob = glob.map_err(|error| Problem::new(format!("is no glob: {}", error.kind())))?;
        Ok(DevicePattern {
            text: text.to_owned(),
            glob: glob.compile_matcher(),
        })
    }

    fn shape(&self) -> Json {
        Json::of_type("string")
            .with("minLength", 1)
            .with("maxLength", as_i64(PATTERN_CHARS_MAX))
    }

    fn says(&self) -> String {
        format!("an id, a name or a glob of 1 to {PATTERN_CHARS_MAX} characters")
    }
}

/// Hours of the day such as `18:00-09:00`.
pub(crate) struct HoursOfDay;

impl Reader for HoursOfDay {
    type Value = Hours;

    fn read(&self, value: &DeValue<'_>) -> Result<Hours, Problem> {
        Hours::parse(string(value)?)
    }

    fn shape(&self) -> Json {
        Json::of_type("string").with("pattern", "^ *[0-9]{2}:[0-9]{2} *- *[0-9]{2}:[0-9]{2} *$")
    }

    fn says(&self) -> String {
        "`HH:MM-HH:MM`, over midnight if it closes before it opens".to_owned()
    }
}

/// A zone of the time zone database that the program carries.
pub(crate) struct Zone;

impl Reader for Zone {
    type Value = TimeZone;

    fn read(&self, value: &DeValue<'_>) -> Result<TimeZone, Problem> {
        let name = string(value)?;
        let zones = TimeZoneDatabase::bundled();
        zones.get(name).map_err(|_| {
            let available: Vec<String> = zones.available().map(|zone| zone.to_string()).collect();
            let hint = did_you_mean(name, available.iter().map(String::as_str));
            Problem::new(format!("must be a time zone, not `{}`", shortened(name)))
                .hint(hint.unwrap_or_else(|| "a name such as `Europe/Berlin` or `UTC`".to_owned()))
        })
    }

    fn shape(&self) -> Json {
        Json::of_type("string").with("examples", Json::list(["UTC", "Europe/Berlin"]))
    }

    fn says(&self) -> String {
        "name of the IANA time zone database".to_owned()
    }
}

/// An expression that is not compiled yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Formula {
    /// Without the spaces around it.
    pub(crate) text: String,
    /// How many bytes of spaces come before it.
    pub(crate) lead: usize,
}

/// A [`Formula`] over `variables` that becomes `result`.
pub(crate) struct Cel {
    pub(crate) variables: &'static str,
    pub(crate) result: &'static str,
}

impl Reader for Cel {
    type Value = Formula;

    fn read(&self, value: &DeValue<'_>) -> Result<Formula, Problem> {
        let text = match value {
            DeValue::Boolean(flag) => {
                let hint = format!("write it in quotes: \"{flag}\"");
                return Err(wrong_type("an expression in quotes", value).hint(hint));
            }
            value => string(value)?,
        };
        match text.trim() {
            "" => Err(Problem::new("must not be empty")),
            formula => Ok(Formula {
                text: formula.to_owned(),
                lead: text.len() - text.trim_start().len(),
            }),
        }
    }

    fn shape(&self) -> Json {
        Json::of_type("string")
            .with("minLength", 1)
            .with("maxLength", as_i64(TEXT_BYTES_MAX))
    }

    fn says(&self) -> String {
        format!("CEL over {}, to {}", self.variables, self.result)
    }
}

/// The version of the schema.
pub(crate) struct SchemaVersion;

impl Reader for SchemaVersion {
    type Value = ();

    fn read(&self, value: &DeValue<'_>) -> Result<(), Problem> {
        match whole_number(value)? {
            1 => Ok(()),
            other => Err(Problem::new(format!("must be 1, not {other}"))),
        }
    }

    fn shape(&self) -> Json {
        Json::object().with("const", 1)
    }

    fn says(&self) -> String {
        "1".to_owned()
    }
}

/// A small bound as JSON has numbers.
fn as_i64(bound: usize) -> i64 {
    i64::try_from(bound).unwrap_or(i64::MAX)
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
