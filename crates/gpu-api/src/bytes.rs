//! Amounts of memory: `12GiB` in, `12 GiB` out.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// An amount of memory in bytes, 0 to 2^63 - 1.
///
/// In JSON an integer, or a string such as `"12GiB"`, `"4g"` or `"5000MiB"`. A bare letter and the
/// `i` forms are powers of 1024; `KB`, `MB`, `GB` and `TB` are powers of 1000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Why a text is no amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseBytesError {
    /// Nothing there.
    #[error("no size given (try `12GiB`)")]
    Empty,
    /// Below zero.
    #[error("`{0}` is negative: a size is 0 or more")]
    Negative(String),
    /// Does not begin with a number.
    #[error("`{0}` is no size: expected a number and a unit, such as `12GiB` or `5000MiB`")]
    NoNumber(String),
    /// More than 2^63 - 1 bytes.
    #[error("`{0}` is too large: the most is 2^63 - 1 bytes")]
    TooLarge(String),
    /// The unit is not known.
    #[error("`{unit}` is no unit of size: use B, KiB, MiB, GiB or TiB")]
    UnknownUnit {
        /// What stood after the number.
        unit: String,
    },
}

impl Bytes {
    /// The largest amount.
    pub const MAX: Self = Self(i64::MAX as u64);
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, ParseBytesError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ParseBytesError::Empty);
        }
        if text.starts_with('-') {
            return Err(ParseBytesError::Negative(shortened(text)));
        }
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        if number.is_empty() {
            return Err(ParseBytesError::NoNumber(shortened(text)));
        }
        let unit = unit_bytes(unit.trim())?;
        scaled(number, unit, text)
    }
}

impl fmt::Display for Bytes {
    /// For people, with one decimal of the largest fitting unit, rounded down: `512 B`, `12 GiB`, `9.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [
            (1 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ];
        let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| self.0 >= *unit) else {
            return f.pad(&format!("{} B", self.0));
        };
        match (self.0 / unit, self.0 % unit * 10 / unit) {
            (whole, 0) => f.pad(&format!("{whole} {name}")),
            (whole, tenths) => f.pad(&format!("{whole}.{tenths} {name}")),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BytesVisitor)
    }
}

impl PartialSchema for Bytes {
    fn schema() -> RefOr<Schema> {
        let integer = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(0));
        let text = ObjectBuilder::new().schema_type(Type::String);
        OneOfBuilder::new()
            .item(integer)
            .item(text)
            .description(Some(
                "Bytes as an integer, or text such as \"12GiB\", \"4g\" or \"5000MiB\".",
            ))
            .into()
    }
}

impl ToSchema for Bytes {}

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes as an integer, or a size such as \"12GiB\"")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Bytes, E> {
        match value <= Bytes::MAX.0 {
            true => Ok(Bytes(value)),
            false => Err(E::custom(ParseBytesError::TooLarge(value.to_string()))),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Bytes, E> {
        u64::try_from(value)
            .map(Bytes)
            .map_err(|_| E::custom(ParseBytesError::Negative(value.to_string())))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Bytes, E> {
        Err(E::custom(match value {
            value if value < 0.0 => ParseBytesError::Negative(value.to_string()),
            value if value > Bytes::MAX.0 as f64 => ParseBytesError::TooLarge(value.to_string()),
            value => ParseBytesError::NoNumber(value.to_string()),
        }))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
        text.parse().map_err(E::custom)
    }
}

/// The bytes of one `unit`, in any case.
fn unit_bytes(unit: &str) -> Result<u64, ParseBytesError> {
    Ok(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        _ => {
            return Err(ParseBytesError::UnknownUnit {
                unit: shortened(unit),
            });
        }
    })
}

/// `number` times `unit`, exact for whole numbers; `text` is what an error shows.
fn scaled(number: &str, unit: u64, text: &str) -> Result<Bytes, ParseBytesError> {
    let no_number = || ParseBytesError::NoNumber(shortened(text));
    let too_large = || ParseBytesError::TooLarge(shortened(text));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (number.contains('.') && (fraction.is_empty() || fraction.contains('.')))
    {
        return Err(no_number());
    }
    if !fraction.is_empty() && unit == 1 {
        return Err(no_number());
    }
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let rest = format!("0.{fraction}0")
        .parse::<f64>()
        .map_err(|_| no_number())?;
    let bytes = whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add((rest * unit as f64) as u64));
    match bytes {
        Some(bytes) if bytes <= Bytes::MAX.0 => Ok(Bytes(bytes)),
        _ => Err(too_large()),
    }
}

/// The first 40 characters of a text that comes from outside, for an error message.
pub(crate) fn shortened(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 40;
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", text[..end].escape_debug()),
        None => text.escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let table = [
            ("0", 0),
            ("17", 17),
            ("17b", 17),
            ("4g", 4 << 30),
            ("4GiB", 4 << 30),
            ("4 GiB", 4 << 30),
            ("4Gi", 4 << 30),
            ("1.5GiB", 3 << 29),
            ("5000MiB", 5000 << 20),
            ("20G", 20 << 30),
            ("1KB", 1000),
            ("2TB", 2_000_000_000_000),
            ("9223372036854775807", i64::MAX as u64),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let table = [
            ("", "no size given"),
            ("-1", "`-1` is negative"),
            ("12 parsecs", "`parsecs` is no unit"),
            ("GiB", "`GiB` is no size"),
            ("1.GiB", "is no size"),
            (".5GiB", "is no size"),
            ("1.2.3GiB", "is no size"),
            ("0.5", "is no size"),
            ("1e9", "`e9` is no unit"),
            ("9223372036854775808", "too large"),
            ("99999999999999999999999", "too large"),
            ("8388608TiB", "too large"),
            ("NaN", "`NaN` is no size"),
        ];
        for (text, part) in table {
            let error = text.parse::<Bytes>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn json_takes_integers_and_text() {
        let read =
            |json: &str| serde_json::from_str::<Bytes>(json).map_err(|error| error.to_string());
        assert_eq!(read("12"), Ok(Bytes(12)));
        assert_eq!(read("\"12MiB\""), Ok(Bytes(12 << 20)));
        for (json, part) in [
            ("-1", "negative"),
            ("9223372036854775808", "too large"),
            ("1e300", "too large"),
            ("1.5", "is no size"),
            ("\"12 parsecs\"", "no unit"),
            ("true", "bytes as an integer"),
            ("null", "bytes as an integer"),
        ] {
            let error = read(json).expect_err(json);
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn sizes_are_shown_for_people() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (12 << 30, "12 GiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (3 << 29, "1.5 GiB"),
            (80 << 40, "80 TiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
