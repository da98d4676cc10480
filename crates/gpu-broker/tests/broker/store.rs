//! A store whose commits a test holds back, fails and counts.

use std::sync::Arc;

use gpu_lease::Ms;
use gpu_store::{
    Batch, CommitError, EventPage, EventPosition, Hour, ReadError, StorageFault, Store, Stored,
    UsageRow,
};
use parking_lot::{Condvar, Mutex};

use crate::world::ManualClock;

/// What happens to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Fail,
    Hold,
    Panic,
    Work,
}

pub(crate) struct TestStore {
    inner: Arc<dyn Store>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

struct Gate {
    mode: Mode,
    /// What was stored is not said to be.
    silent: bool,
    held: usize,
    commits: usize,
    /// Rows of usage that the last one added to.
    usage_rows: usize,
    /// Time that the next one takes.
    takes: Option<(Arc<ManualClock>, Ms)>,
}

impl TestStore {
    pub(crate) fn around(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            gate: Mutex::new(Gate {
                mode: Mode::Work,
                silent: false,
                held: 0,
                commits: 0,
                usage_rows: 0,
                takes: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// From here on no commit returns.
    pub(crate) fn hold(&self) {
        self.set(Mode::Hold);
    }

    /// From here on what is committed is stored, and no commit returns.
    pub(crate) fn hold_after(&self) {
        self.gate.lock().silent = true;
    }

    /// The next commit takes so long.
    pub(crate) fn take(&self, clock: Arc<ManualClock>, time: Ms) {
        self.gate.lock().takes = Some((clock, time));
    }

    /// Commits work, those held back first.
    pub(crate) fn open(&self) {
        self.gate.lock().silent = false;
        self.set(Mode::Work);
    }

    /// Commits fail, those held back first.
    pub(crate) fn fail(&self) {
        self.set(Mode::Fail);
    }

    pub(crate) fn panic(&self) {
        self.set(Mode::Panic);
    }

    /// Waits until the loop stands in a commit.
    pub(crate) fn until_held(&self) {
        let mut gate = self.gate.lock();
        while gate.held == 0 {
            let waited = self
                .changed
                .wait_for(&mut gate, crate::world::ANSWER_TIME_MAX);
            assert!(!waited.timed_out(), "nothing is committed");
        }
    }

    /// Commits that worked.
    pub(crate) fn commits(&self) -> usize {
        self.gate.lock().commits
    }

    /// Rows of usage that the last commit added to.
    pub(crate) fn usage_rows(&self) -> usize {
        self.gate.lock().usage_rows
    }

    fn set(&self, mode: Mode) {
        self.gate.lock().mode = mode;
        self.changed.notify_all();
    }

    fn pass(&self) -> Mode {
        let mut gate = self.gate.lock();
        gate.held += 1;
        self.changed.notify_all();
        while gate.mode == Mode::Hold {
            self.changed.wait(&mut gate);
        }
        gate.held -= 1;
        gate.mode
    }
}

impl TestStore {
    fn stored(&self, usage_rows: usize) {
        let mut gate = self.gate.lock();
        gate.commits += 1;
        gate.usage_rows = usage_rows;
        if let Some((clock, time)) = gate.takes.take() {
            clock.jump(time);
        }
        gate.held += 1;
        self.changed.notify_all();
        while gate.silent {
            self.changed.wait(&mut gate);
        }
        gate.held -= 1;
    }
}

impl Store for TestStore {
    fn load(&self) -> Result<Stored, ReadError> {
        self.inner.load()
    }

    fn commit(&self, batch: &Batch<'_>) -> Result<(), CommitError> {
        match self.pass() {
            Mode::Fail => Err(CommitError {
                detail: "no space left on device".to_owned(),
                cause: StorageFault::Full,
            }),
            Mode::Panic => panic!("the store is broken"),
            Mode::Hold | Mode::Work => {
                self.inner.commit(batch)?;
                self.stored(batch.usage.len());
                Ok(())
            }
        }
    }

    fn events(&self, after: Option<EventPosition>, limit: usize) -> Result<EventPage, ReadError> {
        self.inner.events(after, limit)
    }

    fn usage(&self, from: Hour, each: &mut dyn FnMut(UsageRow)) -> Result<(), ReadError> {
        self.inner.usage(from, each)
    }
}

/// A store that cannot be read.
pub(crate) struct Unreadable;

impl Store for Unreadable {
    fn load(&self) -> Result<Stored, ReadError> {
        Err(ReadError::Storage {
            detail: "input/output error".to_owned(),
        })
    }

    fn commit(&self, _batch: &Batch<'_>) -> Result<(), CommitError> {
        unreachable!("nothing is written to a store that could not be read")
    }

    fn events(&self, _after: Option<EventPosition>, _limit: usize) -> Result<EventPage, ReadError> {
        unreachable!("nobody asks for events of a broker that did not start")
    }

    fn usage(&self, _from: Hour, _each: &mut dyn FnMut(UsageRow)) -> Result<(), ReadError> {
        unreachable!("nobody asks for usage of a broker that did not start")
    }
}
