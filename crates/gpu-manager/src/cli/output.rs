//! What goes to the terminal: colour where a person looks, plain text and JSON elsewhere.

use std::io::{self, IsTerminal, Write};

use jiff::Timestamp;
use serde::Serialize;

use gpu_api::Span;

use crate::cli::exit::{self, Failure};

/// How important a piece of text is to the eye.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Something is wrong.
    Bad,
    /// What the eye looks for.
    Bold,
    /// What the eye may skip.
    Dim,
    /// All is well.
    Good,
    /// As it is.
    #[default]
    Plain,
    /// Somebody should look.
    Warn,
}

/// Whether text is painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paint {
    on: bool,
}

impl Paint {
    /// Paints on a terminal, unless NO_COLOR is set to something.
    pub(crate) fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            on: io::stdout().is_terminal() && !unwanted && !dumb,
        }
    }

    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Self { on: false }
    }

    /// `text` in the colour of `tone`.
    pub(crate) fn tone(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            Tone::Bad => "31",
            Tone::Bold => "1",
            Tone::Dim => "2",
            Tone::Good => "32",
            Tone::Plain => return text.to_owned(),
            Tone::Warn => "33",
        };
        match self.on && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

/// Writes `text` to standard output. A reader that has gone, such as `head`, is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::new(exit::OK, "")),
        Err(error) => Err(Failure::own(format!(
            "failed to write to standard output: {error}"
        ))),
    }
}

/// Writes `value` as JSON for programs, indented, with a line end.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Failure::own(error.to_string()))?;
    print(&format!("{text}\n"))
}

/// Says one line to a person, on standard error.
pub(crate) fn note(text: &str) {
    // With standard error gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "gpu-manager: {}", clean(text));
}

/// `text` without characters that would steer a terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// How long ago `timestamp` was at `now`: `3m`; `-` if it is no timestamp.
pub(crate) fn ago(timestamp: &str, now: Timestamp) -> String {
    difference(timestamp, now).map_or("-".to_owned(), |ms| {
        Span::from_secs((-ms).max(0) as u64 / 1000).to_string()
    })
}

/// How long until `timestamp` from `now`: `in 3m`, `now` if it is over; the text itself if it is no timestamp.
pub(crate) fn until(timestamp: &str, now: Timestamp) -> String {
    match difference(timestamp, now) {
        None => clean(timestamp),
        Some(ms) if ms <= 0 => "now".to_owned(),
        Some(ms) => format!("in {}", Span::from_ms(ms as u64)),
    }
}

/// The time of day of `timestamp` in UTC, with the day if that is not the day of `now`; the text itself if it is
/// no timestamp.
pub(crate) fn clock(timestamp: &str, now: Timestamp) -> String {
    let Ok(then) = timestamp.parse::<Timestamp>() else {
        return clean(timestamp);
    };
    let day = |time: Timestamp| time.strftime("%Y-%m-%d").to_string();
    match day(then) == day(now) {
        true => then.strftime("%H:%M:%SZ").to_string(),
        false => then.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
    }
}

/// `1 device`, `2 devices`: with the word's plural as it is written.
pub(crate) fn count(number: usize, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number => format!("{number} {many}"),
    }
}

/// A short time for people, given in microseconds: `340us`, `1.2ms`, `2.1s`.
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{}.{}ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{}s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

fn difference(timestamp: &str, now: Timestamp) -> Option<i64> {
    let then: Timestamp = timestamp.parse().ok()?;
    Some(then.as_millisecond() - now.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_from_here() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a timestamp");
        assert_eq!(ago("2026-01-01T11:57:00Z", now), "3m");
        assert_eq!(ago("2026-01-01T11:59:59.1Z", now), "0s");
        assert_eq!(ago("yesterday", now), "-");
        assert_eq!(until("2026-01-01T13:05:00Z", now), "in 1h 5m");
        assert_eq!(until("2026-01-01T11:00:00Z", now), "now");
    }

    #[test]
    fn days_are_said_if_they_are_others() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a timestamp");
        assert_eq!(clock("2026-01-01T18:05:00.5Z", now), "18:05:00Z");
        assert_eq!(clock("2026-01-02T08:05:00Z", now), "2026-01-02 08:05:00Z");
        assert_eq!(clock("soon", now), "soon");
    }

    #[test]
    fn short_times_are_told_in_their_unit() {
        let told: Vec<String> = [0, 340, 1_250, 201_000, 2_140_000].map(micros).into();
        assert_eq!(told, ["0us", "340us", "1.2ms", "201.0ms", "2.1s"]);
    }

    #[test]
    fn nothing_from_outside_steers_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
