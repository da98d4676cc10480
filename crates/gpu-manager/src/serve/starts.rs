//! Whether the starts before this one ended in order. A broker that crashes again and again starts *safe*: it
//! keeps what is held, and does nothing that may have been what ended it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use gpu_lease::{BootMs, Ms};

/// Within the state directory: a line for each start that has not ended in order.
const STARTS_FILE: &str = "starts";
/// So many of them are no accident any more,
const CRASHES_MIN: usize = 3;
/// if they began so shortly ago.
const WITHIN_MS: Ms = Ms::from_secs(60);
/// A start that lived for so long went well, whatever becomes of it.
pub(super) const WELL_AFTER: Duration = Duration::from_secs(60);
/// More lines than this say nothing more.
const LINES_MAX: usize = 16;

/// What is written down of the starts on one state directory.
#[derive(Debug)]
pub(super) struct Starts {
    path: PathBuf,
    this: Start,
    crashes: usize,
}

/// One line: a boot, CLOCK_BOOTTIME in milliseconds, and the process, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Start {
    boot_id: String,
    at: BootMs,
    pid: u32,
}

impl Starts {
    /// Writes down that a broker starts in `dir`, and looks at how those before it ended. A file that
    /// cannot be read or written stops no start: the store will have more to say about that.
    pub(super) fn begin(dir: &Path, boot_id: &str, at: BootMs) -> Self {
        let this = Start {
            boot_id: boot_id.to_owned(),
            at,
            pid: std::process::id(),
        };
        let path = dir.join(STARTS_FILE);
        let mut lines = read(&path).unwrap_or_else(|error| {
            tracing::warn!(%error, "`{}` cannot be read", path.display());
            Vec::new()
        });
        lines.retain(|line| line.boot_id == boot_id && at - line.at <= WITHIN_MS);
        let starts = Self {
            path,
            crashes: lines.len(),
            this,
        };
        let skipped = lines.len().saturating_sub(LINES_MAX);
        starts.write(lines.iter().skip(skipped).chain([&starts.this]));
        starts
    }

    /// Why this start must be safe, if it must.
    pub(super) fn safe(&self) -> Option<String> {
        (self.crashes >= CRASHES_MIN).then(|| {
            let (crashes, secs) = (self.crashes, WITHIN_MS.0 / 1000);
            format!(
                "{crashes} starts within the last {secs} s ended without order, as after a crash or a kill"
            )
        })
    }

    /// This start ended in order, or went well: what was before it does not count any more.
    pub(super) fn clear(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, "`{}` is left behind", self.path.display());
        }
    }

    /// This start ended by itself and said why, which is no crash; those before it still count.
    pub(super) fn take_back(&self) {
        match read(&self.path) {
            Ok(lines) => self.write(lines.iter().filter(|line| **line != self.this)),
            Err(error) => tracing::warn!(%error, "`{}` cannot be read", self.path.display()),
        }
    }

    /// A crash meanwhile loses the lines, which makes the next start less careful and nothing worse.
    fn write<'a>(&self, lines: impl Iterator<Item = &'a Start>) {
        let text: String = lines
            .map(|line| format!("{} {} {}\n", line.boot_id, line.at.0, line.pid))
            .collect();
        if let Err(error) = fs::write(&self.path, text) {
            tracing::warn!(%error, "`{}` cannot be written", self.path.display());
        }
    }
}

/// Lines that are none of ours count for nothing.
fn read(path: &Path) -> io::Result<Vec<Start>> {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl FromStr for Start {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let mut words = line.split_ascii_whitespace();
        let mut word = || words.next().ok_or(());
        Ok(Self {
            boot_id: word()?.to_owned(),
            at: BootMs(word()?.parse().map_err(drop)?),
            pid: word()?.parse().map_err(drop)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(dir: &Path, secs: u64) -> Starts {
        Starts::begin(dir, "this-boot", BootMs(secs * 1000))
    }

    #[test]
    fn the_start_after_three_crashes_within_a_minute_is_safe() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        for (secs, safe) in [
            (10, false),
            (20, false),
            (30, false),
            (40, true),
            (45, true),
        ] {
            assert_eq!(
                begin(dir.path(), secs).safe().is_some(),
                safe,
                "at {secs} s"
            );
        }
        assert!(begin(dir.path(), 200).safe().is_none(), "they are long ago");
    }

    #[test]
    fn an_end_in_order_forgets_and_an_error_that_was_said_does_not_count() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        for secs in 1..20 {
            begin(dir.path(), secs).take_back();
        }
        for secs in 20..23 {
            let starts = begin(dir.path(), secs);
            assert!(starts.safe().is_none(), "at {secs} s");
        }
        let safe = begin(dir.path(), 23);
        assert_eq!(
            safe.safe().as_deref(),
            Some("3 starts within the last 60 s ended without order, as after a crash or a kill")
        );
        safe.clear();
        assert!(begin(dir.path(), 24).safe().is_none());
    }

    #[test]
    fn another_boot_and_a_file_of_something_else_count_for_nothing() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        for _ in 0..3 {
            Starts::begin(dir.path(), "another-boot", BootMs(1000));
        }
        assert!(begin(dir.path(), 1).safe().is_none());
        fs::write(dir.path().join(STARTS_FILE), b"\xff\xfe 1\nthis-boot x y\n")
            .expect("the directory is ours");
        assert!(begin(dir.path(), 2).safe().is_none());
    }
}
