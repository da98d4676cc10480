//! The parent's side: an inventory and readings, whatever becomes of the child.

mod asking;
mod link;
mod worker;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gpu_lease::{BootMs, Device, Reading};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::config::Config;
use crate::merge::Rules;
use crate::source::{SourceName, Standing};
use crate::wire::Settings;
use asking::Asking;

pub use worker::LinkError;

/// Finds and reads the devices of this host through child processes.
///
/// Its methods block, at most as long as [`Limits`] says; [`Probe::health`] never does. Threads that ask
/// at once are answered one after the other.
#[derive(Debug)]
pub struct Probe {
    config: Config,
    asking: Mutex<Asking>,
    health: Mutex<Health>,
}

/// The program whose `main` calls [`child::serve`](crate::child::serve), or
/// [`child::enumerate`](crate::child::enumerate) if given
/// [`ENUMERATE_FLAG`](crate::child::ENUMERATE_FLAG) as one more argument.
#[derive(Clone, Debug)]
pub struct ProbeCommand {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

impl ProbeCommand {
    /// A program by path, and what comes before the flag.
    pub fn new<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        }
    }
}

/// How long is waited, for what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For readings.
    pub read: Duration,
    /// For discovery, and for the first answer of a new child: drivers may take seconds for each
    /// card to wake.
    pub discover: Duration,
    /// After the first failure before the child is started again. Doubled with each further one.
    pub first_rest: Duration,
    /// The longest that this becomes.
    pub longest_rest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read: Duration::from_secs(5),
            discover: Duration::from_secs(60),
            first_rest: Duration::from_secs(1),
            longest_rest: Duration::from_secs(60),
        }
    }
}

/// The devices that are there, and what is to be said about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// In PCI bus order, then those without a bus by id, then declared ones in their order.
    pub devices: Vec<Device>,
    /// Why a device or a source is missing or not leased.
    pub notes: Vec<Note>,
}

/// One thing that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// `nvml`, `amdgpu`, `wgpu`, `declared`, or `probe` for the child itself.
    pub source: &'static str,
    /// A fragment such as "library `libnvidia-ml.so.1` not found".
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.text)
    }
}

/// How the probe is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether the child answers.
    pub state: ProbeState,
    /// What went wrong last, if anything did since the last answer.
    pub last_error: Option<String>,
    /// What is to be said about the last readings.
    pub notes: Vec<Note>,
    /// The inventory should be made again: a source did not answer for the last one, or the devices
    /// are no longer the same.
    pub rediscover: bool,
}

/// Whether the child answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeState {
    /// Nothing was asked yet.
    #[default]
    Idle,
    /// The last question was answered.
    Ok,
    /// The child hung or ended, and is started again after a rest.
    Restarting,
}

impl fmt::Display for ProbeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Ok => "ok",
            Self::Restarting => "restarting",
        })
    }
}

/// Why there is no inventory.
#[derive(Debug, Error)]
pub enum InventoryError {
    /// No source has ever answered, so that nothing can be said, not even that there is no device.
    #[error("no source of devices answers: {}", list(.0))]
    NoSourceAnswers(Vec<Note>),
}

/// Why there are no readings.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The child did not answer.
    #[error(transparent)]
    Probe(#[from] LinkError),
    /// The child answered, but every driver that has devices failed.
    #[error("no driver answers: {}", list(.0))]
    Drivers(Vec<Note>),
}

impl Probe {
    /// A probe that starts `command` when it is first asked.
    pub fn new(config: Config, command: ProbeCommand) -> Self {
        Self::with_limits(config, command, Limits::default())
    }

    /// The same with other [`Limits`].
    pub fn with_limits(config: Config, command: ProbeCommand, limits: Limits) -> Self {
        let settings = Settings {
            nvml_library: config.nvml.then(|| config.nvml_library.clone()),
            sysfs: config.sysfs.clone(),
        };
        Self {
            asking: Mutex::new(Asking::new(command, limits, settings)),
            config,
            health: Mutex::default(),
        }
    }

    /// Looks for devices. Costly: it loads every Vulkan driver, which may wake sleeping cards.
    ///
    /// A source that does not answer is believed to find what it found before, and a note says so: a
    /// device is not lost because a driver had a bad day.
    ///
    /// # Errors
    /// If no source has ever answered.
    pub fn inventory(&self) -> Result<Inventory, InventoryError> {
        let mut asking = lock(&self.asking);
        let (nvml_answer, failures) = asking.discover(&self.config);
        self.report(&asking, &failures, Vec::new(), !failures.is_empty());
        if asking.knows_nothing() && !failures.is_empty() {
            return Err(InventoryError::NoSourceAnswers(failures));
        }
        let (devices, remarks) = asking.merge(Rules {
            allow_cpu_adapters: self.config.allow_cpu_adapters,
            nvml_absent: !self.config.nvml || nvml_answer == Some(Standing::Absent),
        });
        let mut notes = failures;
        notes.extend(remarks);
        Ok(Inventory { devices, notes })
    }

    /// Reads what is in use on the devices of the last inventory.
    ///
    /// A device that cannot be read has no reading, and [`Health::notes`] says why. `taken` is when
    /// the child was asked, so that a reading is never taken for newer than it is. No child is asked
    /// where no driver of the last inventory could be read.
    ///
    /// # Errors
    /// If the child did not answer, or none of the drivers that have devices did.
    pub fn read(&self) -> Result<Vec<Reading>, ReadError> {
        let mut asking = lock(&self.asking);
        if !asking.can_read() {
            return Ok(Vec::new());
        }
        let taken = boot_time();
        let rediscover = lock(&self.health).rediscover;
        let round = asking.read(taken).inspect_err(|error| {
            self.report(&asking, &[Note::of_probe(error)], Vec::new(), rediscover);
        })?;
        let (errors, notes) = (round.errors, round.notes);
        self.report(&asking, &errors, notes, rediscover || round.changed);
        match round.readings.is_empty() && !errors.is_empty() {
            true => Err(ReadError::Drivers(errors)),
            false => Ok(round.readings),
        }
    }

    /// How the probe is. Never blocks on a driver.
    pub fn health(&self) -> Health {
        lock(&self.health).clone()
    }

    fn report(&self, asking: &Asking, errors: &[Note], notes: Vec<Note>, rediscover: bool) {
        *lock(&self.health) = Health {
            state: asking.state(),
            last_error: (!errors.is_empty()).then(|| list(errors)),
            notes,
            rediscover,
        };
    }
}

impl Note {
    fn new(source: SourceName, text: impl Into<String>) -> Self {
        Self {
            source: source.as_str(),
            text: text.into(),
        }
    }

    fn of_probe(error: &LinkError) -> Self {
        Self {
            source: "probe",
            text: error.to_string(),
        }
    }
}

impl From<(SourceName, String)> for Note {
    fn from((source, text): (SourceName, String)) -> Self {
        Self::new(source, text)
    }
}

fn list(notes: &[Note]) -> String {
    let texts: Vec<_> = notes.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// A thread that panicked while it held the lock left nothing half done that the next would mind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn boot_time() -> BootMs {
    let now = clock_gettime(ClockId::Boottime);
    let ms = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
    BootMs(u64::try_from(ms).unwrap_or(0))
}
