//! Lengths of time: `30s`, `1h30m` in, `1h 30m` out.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::bytes::shortened;

/// A length of time in whole milliseconds, 0 to 366 days.
///
/// In JSON a string of numbers with units: `"250ms"`, `"30s"`, `"5m"`, `"1h30m"`, `"7d"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    ms: u64,
}

/// Why a text is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSpanError {
    /// Nothing there.
    #[error("no time given (try `30s`)")]
    Empty,
    /// Below zero.
    #[error("`{0}` is negative: a time is 0s or more")]
    Negative(String),
    /// Not numbers with units.
    #[error("`{0}` is no time: expected a number and a unit, such as `30s`, `5m` or `1h30m`")]
    NoNumber(String),
    /// A number without its unit.
    #[error("`{0}` has no unit: write `{0}s` or `{0}ms`")]
    NoUnit(String),
    /// More than 366 days.
    #[error("`{0}` is too long: the most is 366d")]
    TooLong(String),
    /// The unit is not known.
    #[error("`{unit}` is no unit of time: use ms, s, m, h or d")]
    UnknownUnit {
        /// What stood after the number.
        unit: String,
    },
}

impl Span {
    /// The longest length.
    pub const MAX: Self = Self::from_ms(366 * 86_400_000);

    /// This many milliseconds, [`Span::MAX`] at most.
    pub const fn from_ms(ms: u64) -> Self {
        const MS_MAX: u64 = 366 * 86_400_000;
        Self {
            ms: if ms < MS_MAX { ms } else { MS_MAX },
        }
    }

    /// This many seconds, [`Span::MAX`] at most.
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_ms(secs.saturating_mul(1000))
    }

    /// The length in milliseconds.
    pub const fn as_ms(self) -> u64 {
        self.ms
    }

    /// The length for a timer.
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.ms)
    }
}

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, ParseSpanError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ParseSpanError::Empty);
        }
        if text.starts_with('-') {
            return Err(ParseSpanError::Negative(shortened(text)));
        }
        let mut total_ms = 0_u64;
        let mut rest = text;
        while !rest.is_empty() {
            let (part_ms, after) = first_part(rest, text)?;
            total_ms = total_ms.saturating_add(part_ms);
            rest = after.trim_start();
        }
        match total_ms <= Self::MAX.ms {
            true => Ok(Self { ms: total_ms }),
            false => Err(ParseSpanError::TooLong(shortened(text))),
        }
    }
}

impl fmt::Display for Span {
    /// For people, one or two units: `450ms`, `42s`, `12m`, `1h 5m`, `3d 2h`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.ms / 1000;
        let pair = |whole: u64, unit, rest: u64, small| match rest {
            0 => format!("{whole}{unit}"),
            rest => format!("{whole}{unit} {rest}{small}"),
        };
        f.pad(&match self.ms {
            0 => "0s".to_owned(),
            1..1000 => format!("{}ms", self.ms),
            1000..60_000 => format!("{secs}s"),
            60_000..3_600_000 => pair(secs / 60, "m", secs % 60, "s"),
            3_600_000..86_400_000 => pair(secs / 3600, "h", secs / 60 % 60, "m"),
            _ => pair(secs / 86_400, "d", secs / 3600 % 24, "h"),
        })
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.ms % 1000 {
            0 => serializer.collect_str(&format_args!("{}s", self.ms / 1000)),
            _ => serializer.collect_str(&format_args!("{}ms", self.ms)),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SpanVisitor)
    }
}

impl PartialSchema for Span {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "A length of time such as \"250ms\", \"30s\", \"5m\" or \"1h30m\"; 366d at most.",
            ))
            .into()
    }
}

impl ToSchema for Span {}

struct SpanVisitor;

impl Visitor<'_> for SpanVisitor {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a length of time such as \"30s\"")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Span, E> {
        Err(E::custom(ParseSpanError::NoUnit(value.to_string())))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Span, E> {
        Err(E::custom(ParseSpanError::Negative(value.to_string())))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
        text.parse().map_err(E::custom)
    }
}

/// The milliseconds of the first number and unit of `rest`, and what follows; `text` is what an error shows.
fn first_part<'a>(rest: &'a str, text: &str) -> Result<(u64, &'a str), ParseSpanError> {
    let number_end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (number, after) = rest.split_at(number_end);
    if number.is_empty() {
        return Err(ParseSpanError::NoNumber(shortened(text)));
    }
    let after = after.trim_start();
    let unit_end = after
        .find(|c: char| c.is_ascii_digit() || c.is_whitespace())
        .unwrap_or(after.len());
    let (unit, after) = after.split_at(unit_end);
    if unit.is_empty() {
        return Err(ParseSpanError::NoUnit(shortened(number)));
    }
    let unit_ms = unit_ms(unit)?;
    let number: u64 = number
        .parse()
        .map_err(|_| ParseSpanError::TooLong(shortened(text)))?;
    Ok((number.saturating_mul(unit_ms), after))
}

fn unit_ms(unit: &str) -> Result<u64, ParseSpanError> {
    Ok(match unit {
        "ms" => 1,
        "s" | "sec" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(ParseSpanError::UnknownUnit {
                unit: shortened(unit),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let table = [
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("90 s", 90_000),
            ("7d", 604_800_000),
            ("366d", Span::MAX.as_ms()),
        ];
        for (text, ms) in table {
            assert_eq!(text.parse(), Ok(Span::from_ms(ms)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let table = [
            ("", "no time given"),
            ("30", "`30` has no unit: write `30s`"),
            ("1h30", "`30` has no unit"),
            ("-5s", "negative"),
            ("soon", "is no time"),
            ("5 lightyears", "`lightyears` is no unit"),
            ("1.5h", "`.` is no unit"),
            ("367d", "too long"),
            ("99999999999999999999s", "too long"),
        ];
        for (text, part) in table {
            let error = text.parse::<Span>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn json_takes_text_only_and_gives_it_back() {
        let read =
            |json: &str| serde_json::from_str::<Span>(json).map_err(|error| error.to_string());
        assert_eq!(read("\"90s\""), Ok(Span::from_secs(90)));
        assert!(
            read("30")
                .expect_err("no unit")
                .contains("write `30s` or `30ms`")
        );
        assert!(read("-1").expect_err("negative").contains("negative"));
        for (ms, json) in [(0, "\"0s\""), (250, "\"250ms\""), (90_000, "\"90s\"")] {
            assert_eq!(
                serde_json::to_string(&Span::from_ms(ms)).expect("a string"),
                json
            );
        }
    }

    #[test]
    fn times_are_shown_for_people() {
        let table = [
            (0, "0s"),
            (450, "450ms"),
            (42_999, "42s"),
            (720_000, "12m"),
            (3_900_000, "1h 5m"),
            (266_400_000, "3d 2h"),
        ];
        for (ms, text) in table {
            assert_eq!(Span::from_ms(ms).to_string(), text);
        }
    }
}
