//! The handle of a watch, and what it tells.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::config::{BackendChoice, Config, ConfigError, Scope};
use crate::notices::{Factory, file_system};
use crate::read::{FileSet, ReadError, read_settled};
use crate::run::Runner;
use crate::shared::{Shared, Status};

/// What a watch tells its sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The set differs from the one delivered last. One such event for each change that settled.
    Changed(Change),
    /// This file changed, and is only told.
    LogOnly(PathBuf),
    /// What [`Event::Trouble`] told is over, and the set is the one delivered last.
    Recovered,
    /// Files were written or replaced, and say what they said before.
    Touched,
    /// Something is in the way of a complete set; the set delivered last stays. Told once per reason.
    Trouble(String),
}

/// A set that differs from the one delivered before, and when that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// All files of the set.
    pub set: FileSet,
    /// When the first sign of it came.
    pub detected: Instant,
    /// When it had been quiet for long enough, or unquiet for too long.
    pub settled: Instant,
    /// When all files had been read.
    pub read: Instant,
    /// What the first sign was about, where that is known.
    pub path: Option<PathBuf>,
}

/// Why a watch cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no thread to be had.
    #[error("a thread to watch files cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// A running watch; ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    scope: Arc<Scope>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches what `config` says and tells `sink`, on a thread of its own. The first set is delivered
    /// unless it is `known`, the set that the caller read before.
    ///
    /// Files that are missing or unreadable, and a system without file events, are no errors here: they
    /// are told as events and in [`Watch::status`].
    ///
    /// # Errors
    /// If `config` makes no sense, or there are no more threads.
    pub fn start(
        config: &Config,
        known: Option<&FileSet>,
        sink: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, StartError> {
        Self::start_with(config, known, sink, file_system)
    }

    /// Reads the set now, once, on the calling thread.
    ///
    /// # Errors
    /// As [`crate::read_set`].
    pub fn read_now(&self) -> Result<FileSet, ReadError> {
        read_settled(&self.scope)
    }

    /// How the watch is doing.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    fn start_with(
        config: &Config,
        known: Option<&FileSet>,
        sink: impl FnMut(Event) + Send + 'static,
        factory: Factory,
    ) -> Result<Self, StartError> {
        let scope = Arc::new(Scope::parse(config)?);
        let shared = Arc::new(Shared::new(Arc::clone(&scope)));
        let mut runner = Runner::new(config, Arc::clone(&scope), Arc::clone(&shared), known, sink);
        if config.backend == BackendChoice::Auto {
            runner.attach(factory);
        }
        let thread = thread::Builder::new().name("gpu-watch".to_owned());
        let thread = Some(thread.spawn(move || runner.run())?);
        Ok(Self {
            scope,
            shared,
            thread,
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop();
        // A sink that owns its watch may drop it: a thread cannot wait for itself.
        let thread = self
            .thread
            .take()
            .filter(|thread| thread.thread().id() != thread::current().id());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;
    use std::time::Duration;

    use notify::{Error, ErrorKind, RecursiveMode, Watcher, WatcherKind};

    use super::*;
    use crate::shared::{Backend, EventKind};

    #[derive(Debug)]
    struct Exhausted;

    impl Watcher for Exhausted {
        fn new<F: notify::EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
            Ok(Self)
        }

        fn watch(&mut self, _: &std::path::Path, _: RecursiveMode) -> notify::Result<()> {
            Err(Error::new(ErrorKind::MaxFilesWatch))
        }

        fn unwatch(&mut self, _: &std::path::Path) -> notify::Result<()> {
            Ok(())
        }

        fn kind() -> WatcherKind {
            WatcherKind::NullWatcher
        }
    }

    /// As on a file system that does not tell.
    #[derive(Debug)]
    struct Deaf;

    impl Watcher for Deaf {
        fn new<F: notify::EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
            Ok(Self)
        }

        fn watch(&mut self, _: &std::path::Path, _: RecursiveMode) -> notify::Result<()> {
            Ok(())
        }

        fn unwatch(&mut self, _: &std::path::Path) -> notify::Result<()> {
            Ok(())
        }

        fn kind() -> WatcherKind {
            WatcherKind::NullWatcher
        }
    }

    /// Writes to a watched file; the watch, and what it told.
    fn write_watched_by(factory: Factory) -> (Watch, Change) {
        let temp = tempfile::tempdir().expect("a directory");
        let file = temp.path().join("default.toml");
        fs::write(&file, "a").expect("a file");
        let mut config = Config::new([temp.path().to_owned()]);
        config.poll = Duration::from_millis(20);
        config.reload_delay = Duration::from_millis(20);
        let known = crate::read_set(&config).expect("a set");
        let (sink, events) = mpsc::channel();
        let sink = move |event| drop(sink.send(event));
        let watch = Watch::start_with(&config, Some(&known), sink, factory).expect("a watch");
        fs::write(&file, "b").expect("a file");
        match events.recv_timeout(Duration::from_secs(10)) {
            Ok(Event::Changed(change)) => (watch, change),
            other => panic!("{other:?}"),
        }
    }

    /// No instance of inotify is left, or no watch: the poll finds the change, and the status says why.
    #[test]
    fn without_file_events_the_poll_takes_over() {
        let factories: [Factory; 2] = [
            |_| Err(Error::io(io::Error::from_raw_os_error(24))),
            |_| Ok(Box::new(Exhausted)),
        ];
        for factory in factories {
            let (watch, change) = write_watched_by(factory);
            assert_eq!(change.set.files[0].bytes, b"b");
            assert_eq!(watch.status().backend, Backend::Poll);
            assert!(watch.status().warning.is_some());
        }
    }

    #[test]
    fn what_no_event_tells_is_found_by_the_poll() {
        let (watch, change) = write_watched_by(|_| Ok(Box::new(Deaf)));
        assert_eq!(change.set.files[0].bytes, b"b");
        let status = watch.status();
        assert_eq!(status.backend, Backend::Inotify);
        assert_eq!(status.counters.signs, 0);
        let last = status.last_event.expect("a sign");
        assert_eq!(last.kind, EventKind::Polled);
    }
}
