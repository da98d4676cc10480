//! The file as last read, the count of initialisations, and how faults come about.

use std::ffi::{OsString, c_uint};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::abi::{Code, Handle, code_of};
use crate::config::{Card, Config, Fault};

/// How often a call that hangs looks whether the file still says so.
const HANG_POLL: Duration = Duration::from_millis(20);
/// What a call takes at once that takes all memory, and how often if nothing stops it.
const TAKEN_BYTES: usize = 1 << 30;
const TAKEN_TIMES_MAX: usize = 64;

/// Counts one more user; fails as the file says.
pub(crate) fn init() -> Code {
    code_of(current().and_then(|config| {
        suffer(&config, config.slow_ms, |config| {
            config.init_fault.or(config.fault)
        })?;
        INITIALISED.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }))
}

/// Counts one user less.
pub(crate) fn shutdown() -> Code {
    let less = |count: usize| count.checked_sub(1);
    match INITIALISED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
        Ok(_) => Code::SUCCESS,
        Err(_) => Code::UNINITIALIZED,
    }
}

/// Answers a call on the whole system.
pub(crate) fn on_system(body: impl FnOnce(&Config) -> Result<(), Code>) -> Code {
    code_of(usable().and_then(|config| {
        suffer(&config, config.slow_ms, |config| config.fault)?;
        body(&config)
    }))
}

/// Answers a call on one card. A card that the file no longer has is lost.
pub(crate) fn on_card(handle: Handle, body: impl FnOnce(&Card, usize) -> Result<(), Code>) -> Code {
    code_of(usable().and_then(|config| {
        let place = handle.place().ok_or(Code::INVALID_ARGUMENT)?;
        let card = config.devices.get(place).ok_or(Code::GPU_IS_LOST)?;
        let slow_ms = config.slow_ms.saturating_add(card.slow_ms);
        suffer(&config, slow_ms, |config| {
            let card = config.devices.get(place);
            config.fault.or(card.and_then(|card| card.fault))
        })?;
        body(card, place)
    }))
}

/// The handle of a card, unless it is faulty in a way that shows already here.
pub(crate) fn handle_of(config: &Config, place: usize) -> Result<Handle, Code> {
    let card = config.devices.get(place).ok_or(Code::INVALID_ARGUMENT)?;
    match card.fault {
        None | Some(Fault::Hang | Fault::Crash | Fault::TakeMemory) => Ok(Handle::of(place)),
        Some(fault) => Err(code_for(fault)),
    }
}

/// The number of cards as NVML counts.
pub(crate) fn count(config: &Config) -> c_uint {
    config.devices.len() as c_uint
}

static INITIALISED: AtomicUsize = AtomicUsize::new(0);
static LAST_READ: Mutex<LastRead> = Mutex::new(LastRead {
    path: None,
    text: String::new(),
    good: None,
});

struct LastRead {
    path: Option<OsString>,
    text: String,
    good: Option<Arc<Config>>,
}

fn usable() -> Result<Arc<Config>, Code> {
    match INITIALISED.load(Ordering::Relaxed) {
        0 => Err(Code::UNINITIALIZED),
        _ => current(),
    }
}

/// Reads the file; parses it only if its content is another than at the last call.
fn current() -> Result<Arc<Config>, Code> {
    let path = std::env::var_os("FAKE_NVML_CONFIG").ok_or(Code::DRIVER_NOT_LOADED)?;
    let mut last = LAST_READ.lock().unwrap_or_else(PoisonError::into_inner);
    let text = fs::read_to_string(&path).unwrap_or_default();
    if last.path.as_ref() != Some(&path) || last.text != text {
        match parse(&text) {
            Ok(config) => last.good = Some(Arc::new(config)),
            Err(problem) => eprintln!("fake-nvml: `{}`: {problem}", path.display()),
        }
        last.path = Some(path);
        last.text = text;
    }
    last.good.clone().ok_or(Code::UNKNOWN)
}

/// A file that is empty is one that is just being written.
fn parse(text: &str) -> Result<Config, String> {
    match text {
        "" => Err("is empty or cannot be read".to_owned()),
        text => toml::from_str(text).map_err(|error| error.to_string()),
    }
}

/// Waits as long as the file says, then fails as it says.
fn suffer(
    config: &Arc<Config>,
    slow_ms: u64,
    fault: impl Fn(&Config) -> Option<Fault>,
) -> Result<(), Code> {
    thread::sleep(Duration::from_millis(slow_ms));
    let mut fault_now = fault(config);
    while fault_now == Some(Fault::Hang) {
        thread::sleep(HANG_POLL);
        fault_now = fault(&*current()?);
    }
    match fault_now {
        None => Ok(()),
        Some(Fault::Crash) => std::process::abort(),
        Some(fault) => {
            if fault == Fault::TakeMemory {
                take_memory();
            }
            Err(code_for(fault))
        }
    }
}

/// Ends the process where its address space has a limit below what is taken at most.
fn take_memory() {
    let taken = (0..TAKEN_TIMES_MAX).map(|_| Vec::<u8>::with_capacity(TAKEN_BYTES));
    drop(std::hint::black_box(taken.collect::<Vec<_>>()));
}

fn code_for(fault: Fault) -> Code {
    match fault {
        Fault::Lost => Code::GPU_IS_LOST,
        Fault::ResetRequired => Code::RESET_REQUIRED,
        Fault::DriverMismatch => Code::DRIVER_MISMATCH,
        Fault::DriverNotLoaded => Code::DRIVER_NOT_LOADED,
        Fault::NotFound => Code::NOT_FOUND,
        Fault::NoPermission => Code::NO_PERMISSION,
        Fault::NotSupported => Code::NOT_SUPPORTED,
        Fault::Hang | Fault::Crash | Fault::TakeMemory | Fault::Unknown => Code::UNKNOWN,
    }
}
