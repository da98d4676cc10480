//! Times of the core as RFC 3339, and the other way round.

use gpu_api::{ErrorCode, Problem, Until};
use gpu_lease::{At, Deadline, Ms, WallMs};
use jiff::Timestamp;

/// `2026-01-31T18:00:00.000Z`. A time that no calendar has is shown as its epoch.
pub fn rfc3339(wall: WallMs) -> String {
    let ms = i64::try_from(wall.0).unwrap_or_default();
    let timestamp = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{timestamp:.3}")
}

/// The point in time that a caller means.
///
/// # Errors
/// It is no time, or in the past.
pub(crate) fn deadline(until: &Until, now: At) -> Result<Deadline, Problem> {
    let invalid = |detail: String| Problem::new(ErrorCode::InvalidRequest, detail);
    let text = match until {
        Until::After(span) => return Ok(now.after(Ms(span.as_ms()))),
        Until::At(text) => text,
    };
    let timestamp: Timestamp = text.parse().map_err(|_| {
        invalid(format!("`until`: `{text}` is no RFC 3339 time"))
            .with_hint("write `2h`, or `2026-01-31T18:00:00Z`")
    })?;
    let wall = u64::try_from(timestamp.as_millisecond()).unwrap_or_default();
    match wall.checked_sub(now.wall.0) {
        Some(left) if left > 0 => Ok(Deadline {
            boot: now.boot + Ms(left),
            wall: WallMs(wall),
        }),
        _ => Err(invalid(format!("`until`: {text} is over"))),
    }
}

#[cfg(test)]
mod tests {
    use gpu_lease::BootMs;

    use super::*;

    #[test]
    fn times_are_written_in_one_form() {
        assert_eq!(rfc3339(WallMs(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            rfc3339(WallMs(1_769_882_400_250)),
            "2026-01-31T18:00:00.250Z"
        );
        assert_eq!(rfc3339(WallMs(u64::MAX)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_deadline_is_ahead() {
        let now = At {
            boot: BootMs(5_000),
            wall: WallMs(1_769_882_400_000),
        };
        let read =
            |text: &str| deadline(&text.parse().expect(text), now).map(|deadline| deadline.boot.0);
        assert_eq!(read("2s").expect("a length"), 7_000);
        assert_eq!(read("2026-01-31T18:00:01Z").expect("a time"), 6_000);
        assert_eq!(
            read("2026-01-31T19:00:01+01:00").expect("another zone"),
            6_000
        );
        for text in [
            "2026-01-31T18:00:00Z",
            "1969-01-01T00:00:00Z",
            "2026-13-31T18:00:00Z",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
