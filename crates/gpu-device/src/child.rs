//! The child's side: what the probe program does.
//!
//! It reads questions on standard input and writes one line of JSON for each on standard output. It ends
//! when its input ends, even if a driver holds its main thread. What drivers print goes to stderr.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal};
use serde::Serialize;

use crate::source::{Amdgpu, Nvml, Source, SourceError, Vulkan};
use crate::wire::{Answer, Ask, Said, Settings, What};

/// The argument that [`Probe`](crate::Probe) adds to its command to have Vulkan enumerated once.
pub const ENUMERATE_FLAG: &str = "--enumerate";

/// A driver that wants more address space than this has run wild.
const MAX_ADDRESS_SPACE_BYTES: u64 = 16 << 30;
/// How long the main thread may take to end after the parent has gone.
const END_GRACE: Duration = Duration::from_secs(1);

/// Answers the parent's questions about NVML and sysfs until its input ends.
///
/// # Errors
/// If standard output cannot be written, or the first line is not from a parent of this version.
pub fn serve() -> io::Result<()> {
    limit_address_space();
    let mut answers = take_stdout()?;
    let lines = lines_of_stdin();
    let Ok(settings) = lines.recv() else {
        return Ok(());
    };
    let mut sources = sources(serde_json::from_str(&settings)?);
    for line in lines {
        let ask: Ask = serde_json::from_str(&line)?;
        match ask.what {
            What::Discover => say(&mut answers, ask, &mut sources, |source| source.discover())?,
            What::Read => say(&mut answers, ask, &mut sources, |source| source.read())?,
        }
    }
    Ok(())
}

/// Answers once with the adapters that Vulkan knows.
///
/// # Errors
/// If standard output cannot be written.
pub fn enumerate() -> io::Result<()> {
    let mut answers = take_stdout()?;
    let _ends_with_the_parent = lines_of_stdin();
    let ask = Ask {
        number: 0,
        what: What::Discover,
    };
    let mut vulkan: [Box<dyn Source>; 1] = [Box::new(Vulkan)];
    say(&mut answers, ask, &mut vulkan, |source| source.discover())
}

fn sources(settings: Settings) -> Vec<Box<dyn Source>> {
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    if let Some(library) = settings.nvml_library {
        sources.push(Box::new(Nvml::new(library)));
    }
    sources.push(Box::new(Amdgpu::new(&settings.sysfs)));
    sources
}

fn say<T: Serialize>(
    answers: &mut File,
    ask: Ask,
    sources: &mut [Box<dyn Source>],
    mut question: impl FnMut(&mut dyn Source) -> Result<T, SourceError>,
) -> io::Result<()> {
    let said = sources.iter_mut().map(|source| Said {
        source: source.name(),
        result: question(&mut **source).map_err(|error| error.to_string()),
    });
    let answer = Answer {
        number: ask.number,
        sources: said.collect(),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    answers.write_all(&line)
}

/// Keeps standard output for answers only: what drivers print there goes to stderr.
fn take_stdout() -> io::Result<File> {
    let answers = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok(answers.into())
}

/// The lines of standard input. Once it ends the process does, be the main thread stuck or not.
fn lines_of_stdin() -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
        drop(sender);
        thread::sleep(END_GRACE);
        // Not `exit`: it would run the handlers of a driver that may be what hangs.
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    });
    lines
}

/// Best effort: where the limit is already lower, or may not be set, the driver's own sanity remains.
fn limit_address_space() {
    let limit = Rlimit {
        current: Some(MAX_ADDRESS_SPACE_BYTES),
        maximum: Some(MAX_ADDRESS_SPACE_BYTES),
    };
    let _ = rustix::process::setrlimit(Resource::As, limit);
}
