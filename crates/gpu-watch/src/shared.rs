//! What the watching thread shares with the file system's events and with callers.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use notify::event::{AccessKind, AccessMode, EventKind as Kind, ModifyKind};
use parking_lot::{Condvar, Mutex};

use crate::config::Scope;
use crate::links::Points;

/// How a watch is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where signs of a change come from.
    pub backend: Backend,
    /// What only the poll sees although events were asked for, and why.
    pub warning: Option<String>,
    /// The directories that the file system reports on.
    pub watched: Vec<PathBuf>,
    /// The directories on the ways to the files, and the files that only the poll sees.
    pub paths: Vec<WatchedPath>,
    /// What is in the way of a complete set.
    pub troubles: Vec<String>,
    /// The last sign of a change, by an event of the file system or by the poll.
    pub last_event: Option<LastEvent>,
    /// What was counted since the start.
    pub counters: Counters,
}

/// Where signs of a change come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Events of the file system, and the poll.
    Inotify,
    /// The poll alone.
    Poll,
}

/// A path that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedPath {
    /// Absolute; of a directory the real path, links resolved.
    pub path: PathBuf,
    /// Where signs of a change of it, or of what is in it, come from.
    pub backend: Backend,
    /// The last of them.
    pub last_event: Option<LastEvent>,
}

/// A sign of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastEvent {
    /// When it arrived.
    pub at: Instant,
    /// What happened.
    pub kind: EventKind,
    /// What it was about, where it says.
    pub path: Option<PathBuf>,
}

/// What a sign of a change says that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A file, directory or link is new.
    Created,
    /// The backend had an error; anything may have changed.
    Failed,
    /// Permissions, owner or times were set.
    Metadata,
    /// There were more events than the system keeps; anything may have changed.
    Overflow,
    /// The poll found other content than before.
    Polled,
    /// It is gone.
    Removed,
    /// A name went to, or came from, another.
    Renamed,
    /// Content was written.
    Written,
}

impl fmt::Display for EventKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Created => "created",
            Self::Failed => "failed",
            Self::Metadata => "metadata",
            Self::Overflow => "overflow",
            Self::Polled => "polled",
            Self::Removed => "removed",
            Self::Renamed => "renamed",
            Self::Written => "written",
        })
    }
}

/// What a watch counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Looks at the files.
    pub looks: u64,
    /// Events of the file system that can mean a change.
    pub signs: u64,
    /// Events that cannot, and signs after which nothing was different.
    pub ignored: u64,
    /// Sets delivered as changed.
    pub changed: u64,
    /// Times that files were written or replaced and said the same.
    pub touched: u64,
    /// Changes of files that are only told.
    pub log_only: u64,
    /// Troubles reported.
    pub troubles: u64,
}

/// One of these per watch.
#[derive(Debug)]
pub(crate) struct Shared {
    scope: Arc<Scope>,
    state: Mutex<State>,
    woken: Condvar,
}

#[derive(Debug)]
struct State {
    stop: bool,
    /// The first since the last wait.
    sign: Option<LastEvent>,
    /// The backend may have stopped watching directories by itself.
    lost: bool,
    points: Arc<Points>,
    status: Status,
}

/// Why the watching thread woke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Sign(LastEvent),
    Stop,
    Timer,
}

impl Shared {
    pub(crate) fn new(scope: Arc<Scope>) -> Self {
        let status = Status {
            backend: Backend::Poll,
            warning: None,
            watched: Vec::new(),
            paths: Vec::new(),
            troubles: Vec::new(),
            last_event: None,
            counters: Counters::default(),
        };
        let state = State {
            stop: false,
            sign: None,
            lost: false,
            points: Arc::default(),
            status,
        };
        Self {
            scope,
            state: Mutex::new(state),
            woken: Condvar::new(),
        }
    }

    /// Takes note of what the file system says. Nothing is queued: many signs are one.
    pub(crate) fn observe(&self, event: notify::Result<notify::Event>) {
        let at = Instant::now();
        let points = Arc::clone(&self.state.lock().points);
        let noted = match event {
            Ok(event) => match kind_of(&event) {
                Some(kind) => self.sign_of(&points, kind, &event, at),
                None => return,
            },
            Err(error) => {
                tracing::warn!("watching files: {error}");
                let kind = EventKind::Failed;
                let path = None;
                Some((LastEvent { at, kind, path }, true))
            }
        };
        let mut state = self.state.lock();
        let Some((sign, lost)) = noted else {
            state.status.counters.ignored += 1;
            return;
        };
        state.lost |= lost;
        state.status.counters.signs += 1;
        state.note(&sign, sign.path.as_deref().and_then(Path::parent));
        state.sign.get_or_insert(sign);
        self.woken.notify_all();
    }

    /// What `event` is a sign of, if it concerns the set, and whether the backend may have stopped
    /// watching a directory with it.
    fn sign_of(
        &self,
        points: &Points,
        kind: EventKind,
        event: &notify::Event,
        at: Instant,
    ) -> Option<(LastEvent, bool)> {
        if kind == EventKind::Overflow {
            let path = None;
            return Some((LastEvent { at, kind, path }, true));
        }
        let concerns = |path: &&PathBuf| points.concerns(&self.scope, path);
        let path = event.paths.iter().find(concerns).cloned()?;
        let moved = matches!(kind, EventKind::Removed | EventKind::Renamed);
        let lost = moved && event.paths.iter().any(|path| points.contains(path));
        let path = Some(path);
        Some((LastEvent { at, kind, path }, lost))
    }

    /// Takes note of what only the poll noticed.
    pub(crate) fn note(&self, sign: &LastEvent) {
        // Events name the real directory; the poll names the path as configured.
        let directory = sign.path.as_deref().and_then(Path::parent);
        let directory = directory.and_then(|path| path.canonicalize().ok());
        self.state.lock().note(sign, directory.as_deref());
    }

    /// Sleeps until there is a sign, an end, or `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> Wake {
        let mut state = self.state.lock();
        loop {
            if state.stop {
                return Wake::Stop;
            }
            if let Some(sign) = state.sign.take() {
                return Wake::Sign(sign);
            }
            if self.woken.wait_until(&mut state, deadline).timed_out() {
                return Wake::Timer;
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.woken.notify_all();
    }

    /// The first sign since the last wait; it stays for the next one.
    pub(crate) fn pending(&self) -> Option<LastEvent> {
        self.state.lock().sign.clone()
    }

    /// Whether the backend has to be told anew which directories to watch.
    pub(crate) fn take_lost(&self) -> bool {
        std::mem::take(&mut self.state.lock().lost)
    }

    /// From now on, `points` say which events matter; whether others did before.
    pub(crate) fn set_points(&self, points: Points) -> bool {
        let mut state = self.state.lock();
        let changed = *state.points != points;
        state.points = Arc::new(points);
        changed
    }

    /// From now on, these paths are watched; what was last heard of one stays known.
    pub(crate) fn set_paths(&self, paths: impl Iterator<Item = (PathBuf, Backend)>) {
        let mut state = self.state.lock();
        let before = std::mem::take(&mut state.status.paths);
        let last_event = |path: &Path| {
            let known = before.iter().find(|known| known.path == path)?;
            known.last_event.clone()
        };
        let watched = paths.map(|(path, backend)| WatchedPath {
            last_event: last_event(&path),
            path,
            backend,
        });
        state.status.paths = watched.collect();
    }

    pub(crate) fn count(&self, count: impl FnOnce(&mut Counters)) {
        count(&mut self.state.lock().status.counters);
    }

    pub(crate) fn update(&self, update: impl FnOnce(&mut Status)) {
        update(&mut self.state.lock().status);
    }

    pub(crate) fn status(&self) -> Status {
        self.state.lock().status.clone()
    }
}

impl State {
    /// Remembers `sign` as the last one, of all and of its own path or the `directory` that it happened in.
    fn note(&mut self, sign: &LastEvent, directory: Option<&Path>) {
        let paths = &mut self.status.paths;
        let itself = sign.path.as_deref();
        let place = |at: Option<&Path>| paths.iter().position(|known| Some(&*known.path) == at);
        if let Some(index) = place(itself).or_else(|| place(directory)) {
            paths[index].last_event = Some(sign.clone());
        }
        self.status.last_event = Some(sign.clone());
    }
}

/// What an event says that happened, if it can mean that content changed. Opening and reading, which a
/// look does itself, cannot.
fn kind_of(event: &notify::Event) -> Option<EventKind> {
    if event.need_rescan() {
        return Some(EventKind::Overflow);
    }
    match event.kind {
        Kind::Access(AccessKind::Close(AccessMode::Write)) => Some(EventKind::Written),
        Kind::Access(_) => None,
        Kind::Create(_) => Some(EventKind::Created),
        Kind::Modify(ModifyKind::Metadata(_)) => Some(EventKind::Metadata),
        Kind::Modify(ModifyKind::Name(_)) => Some(EventKind::Renamed),
        Kind::Modify(_) | Kind::Any | Kind::Other => Some(EventKind::Written),
        Kind::Remove(_) => Some(EventKind::Removed),
    }
}
