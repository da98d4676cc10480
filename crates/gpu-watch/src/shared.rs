//! What the watching thread shares with the file system's events and with callers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use parking_lot::{Condvar, Mutex};

use crate::config::Scope;
use crate::links::Points;

/// How a watch is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where signs of a change come from.
    pub backend: Backend,
    /// Why it is the poll alone, if that was not asked for.
    pub warning: Option<String>,
    /// The directories that the file system reports on.
    pub watched: Vec<PathBuf>,
    /// What is in the way of a complete set.
    pub troubles: Vec<String>,
    /// The last event of the file system that mattered.
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

/// An event of the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastEvent {
    /// When it arrived.
    pub at: Instant,
    /// What it was about, where it says.
    pub path: Option<PathBuf>,
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
    sign: bool,
    /// The backend may have stopped watching directories by itself.
    lost: bool,
    points: Arc<Points>,
    status: Status,
}

/// Why the watching thread woke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Sign,
    Stop,
    Timer,
}

impl Shared {
    pub(crate) fn new(scope: Arc<Scope>) -> Self {
        let status = Status {
            backend: Backend::Poll,
            warning: None,
            watched: Vec::new(),
            troubles: Vec::new(),
            last_event: None,
            counters: Counters::default(),
        };
        let state = State {
            stop: false,
            sign: false,
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
        let (path, matters, moved) = match &event {
            Ok(event) if event.need_rescan() => (None, true, false),
            Ok(event) if is_mutation(event.kind) => {
                let points = Arc::clone(&self.state.lock().points);
                let concerns = |path: &&PathBuf| points.concerns(&self.scope, path);
                let path = event.paths.iter().find(concerns);
                let moved =
                    is_move(event.kind) && event.paths.iter().any(|path| points.contains(path));
                (path.cloned(), path.is_some(), moved)
            }
            Ok(_) => return,
            Err(error) => {
                tracing::warn!("watching files: {error}");
                (None, true, false)
            }
        };
        let mut state = self.state.lock();
        if !matters {
            state.status.counters.ignored += 1;
            return;
        }
        state.sign = true;
        state.lost |= moved;
        state.status.counters.signs += 1;
        state.status.last_event = Some(LastEvent {
            at: Instant::now(),
            path,
        });
        self.woken.notify_all();
    }

    /// Sleeps until there is a sign, an end, or `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> Wake {
        let mut state = self.state.lock();
        loop {
            if state.stop {
                return Wake::Stop;
            }
            if std::mem::take(&mut state.sign) {
                return Wake::Sign;
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

    /// Whether there was a sign since the last wait; it stays for the next one.
    pub(crate) fn has_sign(&self) -> bool {
        self.state.lock().sign
    }

    /// Whether the backend has to be told anew which directories to watch.
    pub(crate) fn take_lost(&self) -> bool {
        std::mem::take(&mut self.state.lock().lost)
    }

    pub(crate) fn set_points(&self, points: Points) {
        self.state.lock().points = Arc::new(points);
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

/// Whether an event can mean that content changed. Opening and reading, which a look does itself, cannot.
fn is_mutation(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Other
        | EventKind::Remove(_) => true,
    }
}

/// Whether an event takes a path away, whereupon the backend stops watching what was there.
fn is_move(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
    )
}
