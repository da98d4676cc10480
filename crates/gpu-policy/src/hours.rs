//! Hours of the day, such as `18:00-09:00`, in civil time of a zone.

use std::fmt;

use gpu_lease::WallMs;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

use crate::cel::Step;
use crate::diagnostic::Problem;
use crate::units::shortened;

/// A window that opens once a day; over midnight if it closes before it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hours {
    opens: Time,
    closes: Time,
}

/// Hours in a zone. A time that a clock change skips is the same time after the change; of a time that it
/// repeats, the first counts.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) hours: Hours,
    pub(crate) zone: TimeZone,
}

impl Hours {
    /// `HH:MM-HH:MM`.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let malformed = || {
            Problem::new(format!("must be hours, not `{}`", shortened(text)))
                .hint("hours are `HH:MM-HH:MM` on a 24 hour clock, such as `18:00-09:00`")
        };
        let (opens, closes) = text.split_once('-').ok_or_else(malformed)?;
        let opens = time(opens.trim()).ok_or_else(malformed)?;
        let closes = time(closes.trim()).ok_or_else(malformed)?;
        if opens == closes {
            let hint = "leave `hours` out for a class that may start at any time";
            return Err(Problem::new("must not open and close at the same time").hint(hint));
        }
        Ok(Self { opens, closes })
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { opens, closes } = self;
        let (from, to) = (
            (opens.hour(), opens.minute()),
            (closes.hour(), closes.minute()),
        );
        write!(f, "{:02}:{:02}-{:02}:{:02}", from.0, from.1, to.0, to.1)
    }
}

impl Schedule {
    /// Whether the window is open at `now`.
    pub(crate) fn is_open(&self, now: WallMs) -> bool {
        let now = timestamp(now);
        self.windows(now)
            .any(|(opens, closes)| (opens..closes).contains(&now))
    }

    /// The next time after `now` at which the window opens or closes.
    pub(crate) fn next_change(&self, now: WallMs) -> Option<WallMs> {
        let now = timestamp(now);
        let edges = self
            .windows(now)
            .flat_map(|(opens, closes)| [opens, closes]);
        let next = edges.filter(|edge| *edge > now).min()?;
        u64::try_from(next.as_millisecond()).ok().map(WallMs)
    }

    /// The windows of the days around `now`.
    fn windows(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let today = now.to_zoned(self.zone.clone()).date();
        let days = (-1..=2).filter_map(move |day| today.checked_add(Span::new().days(day)).ok());
        days.filter_map(|day| self.window(day))
            .filter(|(opens, closes)| opens < closes)
    }

    /// The window that opens on `day`.
    fn window(&self, day: Date) -> Option<(Timestamp, Timestamp)> {
        let Hours { opens, closes } = self.hours;
        let last = match closes > opens {
            true => day,
            false => day.tomorrow().ok()?,
        };
        let at = |day: Date, time| {
            Some(
                day.to_datetime(time)
                    .to_zoned(self.zone.clone())
                    .ok()?
                    .timestamp(),
            )
        };
        Some((at(day, opens)?, at(last, closes)?))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.hours,
            self.zone.iana_name().unwrap_or("UTC")
        )
    }
}

/// `HH:MM`; `24:00` is the midnight that ends a day.
fn time(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    let digits = |text: &str| match text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<i8>().ok(),
        false => None,
    };
    match (digits(hour)?, digits(minute)?) {
        (24, 0) => Some(Time::midnight()),
        (hour, minute) => Time::new(hour, minute, 0, 0).ok(),
    }
}

/// The next time after `now` at which a clock in `zone`, or in UTC, shows another minute, hour or day.
pub(crate) fn next_step(now: WallMs, zone: Option<&TimeZone>, step: Step) -> Option<WallMs> {
    let zone = zone.cloned().unwrap_or(TimeZone::UTC);
    let here = timestamp(now).to_zoned(zone.clone());
    let next = match step {
        Step::Minute => after(&here, 60).next(),
        Step::Hour => {
            let hour = |at: &Timestamp| at.to_zoned(zone.clone()).hour();
            after(&here, QUARTER_SECS).find(|at| hour(at) != here.hour())
        }
        Step::Day => Some(here.tomorrow().ok()?.start_of_day().ok()?.timestamp()),
    };
    u64::try_from(next?.as_millisecond()).ok().map(WallMs)
}

/// The next time after `now` at which a clock in `zone`, or in UTC, shows `hour` and `minute`. On a night
/// that has no such time, it is as much later as the clock was put forward.
pub(crate) fn next_clock(
    now: WallMs,
    zone: Option<&TimeZone>,
    (hour, minute): (u8, u8),
) -> Option<WallMs> {
    let zone = zone.cloned().unwrap_or(TimeZone::UTC);
    let here = timestamp(now).to_zoned(zone.clone());
    let time = Time::new(i8::try_from(hour).ok()?, i8::try_from(minute).ok()?, 0, 0).ok()?;
    let days = [here.date(), here.date().tomorrow().ok()?];
    let mut times = days.into_iter().filter_map(|day| {
        let shown = day.to_datetime(time).to_zoned(zone.clone()).ok()?;
        u64::try_from(shown.timestamp().as_millisecond()).ok()
    });
    times.find(|time| *time > now.0).map(WallMs)
}

/// The clocks of every zone are whole quarters of an hour apart.
const QUARTER_SECS: i64 = 15 * 60;

/// The multiples of `secs` after `here`, for a few hours.
fn after(here: &Zoned, secs: i64) -> impl Iterator<Item = Timestamp> {
    let next = here.timestamp().as_second().div_euclid(secs) + 1;
    (next..next + 16).filter_map(move |count| Timestamp::from_second(count * secs).ok())
}

/// A time beyond the year 9999 is taken for the last one that has a date.
pub(crate) fn timestamp(now: WallMs) -> Timestamp {
    i64::try_from(now.0)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(hours: &str, zone: &str) -> Schedule {
        Schedule {
            hours: Hours::parse(hours).expect("hours"),
            zone: jiff::tz::TimeZoneDatabase::bundled()
                .get(zone)
                .expect("zone"),
        }
    }

    fn wall(text: &str) -> WallMs {
        let at: Timestamp = text.parse().expect("RFC 3339");
        WallMs(u64::try_from(at.as_millisecond()).expect("after 1970"))
    }

    /// (hours, now, open?, next change), all in Berlin; DST there begins 2026-03-29T01:00Z, ends 2026-10-25T01:00Z.
    #[test]
    fn windows_in_berlin() {
        for (hours, now, open, next) in [
            // Within a day, in winter (UTC+1).
            (
                "09:00-18:00",
                "2026-01-15T07:59:59.999Z",
                false,
                "2026-01-15T08:00:00Z",
            ),
            (
                "09:00-18:00",
                "2026-01-15T08:00:00Z",
                true,
                "2026-01-15T17:00:00Z",
            ),
            (
                "09:00-18:00",
                "2026-01-15T17:00:00Z",
                false,
                "2026-01-16T08:00:00Z",
            ),
            // Over midnight.
            (
                "18:00-09:00",
                "2026-01-15T16:59:59Z",
                false,
                "2026-01-15T17:00:00Z",
            ),
            (
                "18:00-09:00",
                "2026-01-15T17:00:00Z",
                true,
                "2026-01-16T08:00:00Z",
            ),
            (
                "18:00-09:00",
                "2026-01-16T02:00:00Z",
                true,
                "2026-01-16T08:00:00Z",
            ),
            (
                "18:00-24:00",
                "2026-01-15T22:30:00Z",
                true,
                "2026-01-15T23:00:00Z",
            ),
            // The short night: 18:00 at UTC+1 to 09:00 at UTC+2.
            (
                "18:00-09:00",
                "2026-03-28T17:00:00Z",
                true,
                "2026-03-29T07:00:00Z",
            ),
            // The long night.
            (
                "18:00-09:00",
                "2026-10-24T16:00:00Z",
                true,
                "2026-10-25T08:00:00Z",
            ),
            // 02:30 does not exist on the short night: it is 03:30.
            (
                "02:30-06:00",
                "2026-03-29T01:15:00Z",
                false,
                "2026-03-29T01:30:00Z",
            ),
            // 02:30 is there twice on the long night: the first counts, and the window does not open again.
            (
                "18:00-02:30",
                "2026-10-25T00:29:00Z",
                true,
                "2026-10-25T00:30:00Z",
            ),
            (
                "18:00-02:30",
                "2026-10-25T01:15:00Z",
                false,
                "2026-10-25T17:00:00Z",
            ),
        ] {
            let schedule = schedule(hours, "Europe/Berlin");
            assert_eq!(schedule.is_open(wall(now)), open, "{hours} at {now}");
            assert_eq!(
                schedule.next_change(wall(now)),
                Some(wall(next)),
                "{hours} after {now}"
            );
        }
    }

    /// The night on which 02:30 does not exist, and the one on which it is there twice.
    #[test]
    fn nights_on_which_the_clock_changes() {
        let spring = "2026-03-29T";
        let autumn = "2026-10-25T";
        for (night, hours, opens, closes) in [
            // From 02:00 at once to 03:00, at 01:00Z: what is skipped is as long after the change.
            (spring, "02:30-06:00", "01:30:00Z", "04:00:00Z"),
            (spring, "01:00-02:30", "00:00:00Z", "01:30:00Z"),
            (spring, "02:15-02:45", "01:15:00Z", "01:45:00Z"),
            (spring, "03:00-04:00", "01:00:00Z", "02:00:00Z"),
            // From 03:00 back to 02:00, at 01:00Z: of what is there twice, the first counts.
            (autumn, "02:30-06:00", "00:30:00Z", "05:00:00Z"),
            (autumn, "01:00-02:30", "2026-10-24T23:00:00Z", "00:30:00Z"),
            (autumn, "02:15-02:45", "00:15:00Z", "00:45:00Z"),
            (autumn, "03:00-04:00", "02:00:00Z", "03:00:00Z"),
        ] {
            let schedule = schedule(hours, "Europe/Berlin");
            let at = |time: &str| match time.contains('T') {
                true => wall(time),
                false => wall(&format!("{night}{time}")),
            };
            let (opens, closes) = (at(opens), at(closes));
            let before = WallMs(opens.0 - 1);
            assert!(!schedule.is_open(before), "{hours} before {night}");
            assert_eq!(
                schedule.next_change(before),
                Some(opens),
                "{hours} opens on {night}"
            );
            assert!(schedule.is_open(opens), "{hours} on {night}");
            assert_eq!(
                schedule.next_change(opens),
                Some(closes),
                "{hours} closes on {night}"
            );
            assert!(!schedule.is_open(closes), "{hours} after {night}");
            for minutes in 0..12 * 60 {
                let later = WallMs(closes.0 + minutes * 60_000);
                assert!(!schedule.is_open(later), "{hours} opens again on {night}");
            }
        }
    }

    /// (zone, now, the next minute, hour and day)
    #[test]
    fn steps_of_the_clock() {
        let minute = "2026-01-15T17:06:00Z";
        for (zone, now, steps) in [
            (
                "UTC",
                "2026-01-15T17:05:30Z",
                [minute, "2026-01-15T18:00:00Z", "2026-01-16T00:00:00Z"],
            ),
            (
                "Europe/Berlin",
                "2026-01-15T17:05:30Z",
                [minute, "2026-01-15T18:00:00Z", "2026-01-15T23:00:00Z"],
            ),
            (
                "Asia/Kathmandu",
                "2026-01-15T17:05:30Z",
                [minute, "2026-01-15T17:15:00Z", "2026-01-15T18:15:00Z"],
            ),
            // 02:59 is followed by 02:00, and that day has 25 hours.
            (
                "Europe/Berlin",
                "2026-10-25T00:59:00Z",
                [
                    "2026-10-25T01:00:00Z",
                    "2026-10-25T02:00:00Z",
                    "2026-10-25T23:00:00Z",
                ],
            ),
            // 01:59 is followed by 03:00.
            (
                "Europe/Berlin",
                "2026-03-29T00:59:00Z",
                [
                    "2026-03-29T01:00:00Z",
                    "2026-03-29T01:00:00Z",
                    "2026-03-29T22:00:00Z",
                ],
            ),
        ] {
            let zone = jiff::tz::TimeZoneDatabase::bundled()
                .get(zone)
                .expect("zone");
            let next = |step| next_step(wall(now), Some(&zone), step);
            let found = [Step::Minute, Step::Hour, Step::Day].map(next);
            assert_eq!(found, steps.map(|step| Some(wall(step))), "{now}");
        }
        assert_eq!(next_step(WallMs(u64::MAX), None, Step::Day), None);
    }

    #[test]
    fn open_and_next_change_agree_through_a_year_of_minutes() {
        for hours in ["18:00-09:00", "02:15-02:45", "03:00-02:00", "00:00-23:59"] {
            let schedule = schedule(hours, "America/New_York");
            let mut now = wall("2026-01-01T00:00:00Z");
            while now < wall("2027-01-01T00:00:00Z") {
                let next = schedule.next_change(now).expect("a change within two days");
                assert!(next > now, "{hours} at {now:?}");
                let before = WallMs(next.0 - 1);
                assert_eq!(
                    schedule.is_open(now),
                    schedule.is_open(before),
                    "{hours} from {now:?} to {next:?}"
                );
                now = next;
            }
        }
    }

    #[test]
    fn the_next_time_that_a_clock_shows() {
        let berlin = jiff::tz::TimeZoneDatabase::bundled()
            .get("Europe/Berlin")
            .expect("a zone");
        for (now, clock, next) in [
            ("2026-01-15T12:00:00Z", (18, 5), "2026-01-15T17:05:00Z"),
            ("2026-01-15T17:05:00Z", (18, 5), "2026-01-16T17:05:00Z"),
            ("2026-07-15T12:00:00Z", (18, 5), "2026-07-15T16:05:00Z"),
            // The night of 29 March has no half past two.
            ("2026-03-28T20:00:00Z", (2, 30), "2026-03-29T01:30:00Z"),
        ] {
            let found = next_clock(wall(now), Some(&berlin), clock);
            assert_eq!(found, Some(wall(next)), "{clock:?} after {now}");
        }
        let utc = next_clock(wall("2026-01-15T12:00:00Z"), None, (11, 0));
        assert_eq!(utc, Some(wall("2026-01-16T11:00:00Z")));
        assert_eq!(next_clock(WallMs(u64::MAX), None, (11, 0)), None);
    }

    #[test]
    fn the_ends_of_time_are_no_panic() {
        let schedule = schedule("18:00-09:00", "Pacific/Apia");
        for now in [
            WallMs(0),
            WallMs(u64::MAX),
            WallMs(i64::MAX as u64),
            WallMs(253_402_300_799_999),
        ] {
            let _ = (schedule.is_open(now), schedule.next_change(now));
        }
    }

    #[test]
    fn malformed_hours() {
        for text in [
            "",
            "18:00",
            "18-09",
            "25:00-09:00",
            "18:60-09:00",
            "+8:00-09:00",
            "18:00-18:00",
            "00:00-24:00",
        ] {
            assert!(Hours::parse(text).is_err(), "{text}");
        }
    }
}
