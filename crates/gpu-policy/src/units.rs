//! Sizes and durations as people write them: `512MiB`, `1.5g`, `1h30m`.

use gpu_lease::Ms;

use crate::diagnostic::Problem;

const SIZE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

const DURATION_UNITS: [(&str, u64); 6] = [
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Bytes of `text`: a number, at most three decimals, and a unit. `g` and `GiB` count in 1024, `GB` in 1000.
pub(crate) fn parse_size(text: &str) -> Result<u64, Problem> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let malformed = || {
        Problem::new(format!("must be a size, not `{}`", shortened(text)))
            .hint("a size is a number and a unit: `512MiB`, `4GiB`, `4g`")
    };
    let thousandths = thousandths(number).ok_or_else(malformed)?;
    if unit.is_empty() {
        let message = format!("needs a unit, not `{}`", shortened(text));
        return Err(Problem::new(message).hint(format!("did you mean `{}MiB`?", shortened(number))));
    }
    let scale = size_unit(unit.trim()).ok_or_else(malformed)?;
    let bytes = thousandths
        .checked_mul(u128::from(scale))
        .ok_or_else(malformed)?
        / 1000;
    u64::try_from(bytes).map_err(|_| Problem::new("is more bytes than can be counted"))
}

/// Milliseconds of `text`: numbers with units, the largest first.
pub(crate) fn parse_duration(text: &str) -> Result<Ms, Problem> {
    let text = text.trim();
    if let Ok(number) = text.parse::<u64>() {
        return Err(without_unit(number));
    }
    let malformed = || {
        Problem::new(format!("must be a duration, not `{}`", shortened(text)))
            .hint("a duration is a number and a unit: `500ms`, `30s`, `10m`, `1h30m`, `2d`")
    };
    let mut rest = text;
    let mut total = 0_u64;
    let mut units = DURATION_UNITS.iter();
    while !rest.is_empty() {
        let (number, tail) = split_at(rest, |c| !c.is_ascii_digit());
        let (unit, tail) = split_at(tail, |c| c.is_ascii_digit());
        let number: u64 = number.parse().map_err(|_| malformed())?;
        let (_, scale) = units
            .find(|(name, _)| *name == unit)
            .ok_or_else(malformed)?;
        let part = number.checked_mul(*scale).ok_or_else(malformed)?;
        total = total.checked_add(part).ok_or_else(malformed)?;
        rest = tail;
    }
    match text {
        "" => Err(malformed()),
        _ => Ok(Ms(total)),
    }
}

/// The problem of a duration that is a bare number.
pub(crate) fn without_unit(number: u64) -> Problem {
    let unit = if number >= 100 { "ms" } else { "s" };
    Problem::new(format!("needs a unit, not `{number}`"))
        .hint(format!("did you mean `{number}{unit}`?"))
}

/// The shortest text that [`parse_size`] reads back to the same number.
pub(crate) fn size_text(bytes: u64) -> String {
    let fits = |(_, scale): &&(&str, u64)| bytes != 0 && bytes.is_multiple_of(*scale);
    match SIZE_UNITS.iter().find(fits) {
        Some((unit, scale)) => format!("{}{unit}", bytes / scale),
        None => "0B".to_owned(),
    }
}

/// The shortest text that [`parse_duration`] reads back to the same number.
pub(crate) fn duration_text(length: Ms) -> String {
    if length.0 == 0 {
        return "0s".to_owned();
    }
    let mut rest = length.0;
    let mut text = String::new();
    for (unit, scale) in &DURATION_UNITS[1..] {
        if rest >= *scale {
            text.push_str(&format!("{}{unit}", rest / scale));
            rest %= scale;
        }
    }
    text
}

/// `text` without anything that a terminal would act on; only its beginning if it is too long to be shown.
pub(crate) fn shortened(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 40;
    let printable = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).map(printable).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

fn split_at(text: &str, end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(end).unwrap_or(text.len()))
}

fn thousandths(number: &str) -> Option<u128> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let small = decimals.len() <= 3 && !decimals.is_empty() && whole.len() <= 20;
    let decimals = format!("{decimals:0<3}");
    match small {
        true => Some(whole.parse::<u128>().ok()? * 1000 + decimals.parse::<u128>().ok()?),
        false => None,
    }
}

fn size_unit(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let (base, power) = match unit.as_str() {
        "b" => (1, 0),
        "k" | "kib" => (1024_u64, 1),
        "m" | "mib" => (1024, 2),
        "g" | "gib" => (1024, 3),
        "t" | "tib" => (1024, 4),
        "kb" => (1000, 1),
        "mb" => (1000, 2),
        "gb" => (1000, 3),
        "tb" => (1000, 4),
        _ => return None,
    };
    Some(base.pow(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("4g", 4 << 30),
            ("4 GiB", 4 << 30),
            ("1.5GiB", 3 << 29),
            ("5000MiB", 5000 << 20),
            ("2GB", 2_000_000_000),
            ("0B", 0),
            ("7b", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(parse_size(&size_text(bytes)), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none() {
        for text in [
            "",
            "MiB",
            "-1GiB",
            "12 parsecs",
            "1.2.3g",
            "1.0001g",
            ".5g",
            "99999999999999999999TiB",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        let problem = parse_size("512").expect_err("no unit");
        assert_eq!(problem.hint.as_deref(), Some("did you mean `512MiB`?"));
    }

    #[test]
    fn durations() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1m500ms", 60_500),
            ("2d", 172_800_000),
            ("1w", 604_800_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Ms(ms)), "{text}");
            assert_eq!(parse_duration(&duration_text(Ms(ms))), Ok(Ms(ms)), "{text}");
        }
    }

    #[test]
    fn durations_that_are_none() {
        for text in [
            "",
            "s",
            "30",
            "30 parsecs",
            "1m1h",
            "1m1m",
            "-5s",
            "1.5h",
            "99999999999999999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        let hint = |text| parse_duration(text).expect_err("no unit").hint;
        assert_eq!(hint("500").as_deref(), Some("did you mean `500ms`?"));
        assert_eq!(hint("30").as_deref(), Some("did you mean `30s`?"));
    }
}
