//! The broker with its loop, on a disk and in memory, next to what the disk and the store can do.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_broker::Started;
use gpu_lease::{At, Books, BootMs, Command, Fence, LeaseId, Outcome, Policy, WallMs};
use gpu_manager_benches::{Case, Sample, compare};
use gpu_store::{Batch, EventPosition, MemoryStore, Store, StoreId, StoredEvent};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::setting::{CROWD, FULL, ROOMY, devices, pairs, patient, redb, request, runtime, start};

const TIME: Duration = Duration::from_millis(700);
/// The smallest thing that a disk writes.
const PAGE_BYTES: usize = 4096;

pub(crate) fn bench() {
    let mut cases = vec![disk(), bare_store()];
    cases.extend([1, 32, 128].map(durable));
    cases.extend([1, 32, 128].map(|tasks| in_memory(tasks, 0, 0)));
    cases.push(in_memory(1, CROWD, 0));
    cases.push(in_memory(1, 0, CROWD));
    compare("through the broker", TIME, cases);
}

/// Two writes of a page, each synced: no pair that is durable by itself is faster.
fn disk() -> Case {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("page");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path);
    let mut file = file.expect("a new file");
    let mut write = move || {
        file.seek(SeekFrom::Start(0)).expect("a file");
        file.write_all(&[1; PAGE_BYTES]).expect("room on the disk");
        file.sync_data().expect("a disk");
    };
    Case::new("the disk: two synced writes of 4 KiB", move |time| {
        let _dir = &dir;
        alone(time, || {
            write();
            write();
        })
    })
}

/// Books and store without a loop: one commit a command.
fn bare_store() -> Case {
    let (store, dir) = redb();
    let mut books = Books::new(Arc::new(Policy::built_in()), Fence(1));
    books.apply(NOW, Command::Inventory(devices()));
    let mut last_id = 0;
    Case::new("the store: one durable commit a command", move |time| {
        let _dir = &dir;
        alone(time, || {
            last_id += 1;
            let id = LeaseId::from_bits(last_id);
            let request = Box::new(request(ROOMY));
            for command in [Command::Acquire { id, request }, Command::Release { id }] {
                let outcome = books.apply(NOW, command);
                commit(&*store, &books, &outcome);
            }
        })
    })
}

fn commit(store: &dyn Store, books: &Books, outcome: &Outcome) {
    let counters = books.counters();
    let events = outcome
        .events
        .iter()
        .zip(0..)
        .map(|(event, n)| StoredEvent {
            position: EventPosition {
                revision: counters.revision,
                n,
            },
            wall: NOW.wall,
            generation: counters.generation,
            event: event.clone(),
            user: Some("bench".to_owned()),
            also_on: Vec::new(),
        });
    let batch = Batch {
        leases: outcome.changes.leases.iter().collect(),
        events: events.collect(),
        ..Batch::new(counters)
    };
    store.commit(&batch).expect("room on the disk");
}

fn durable(tasks: usize) -> Case {
    let (store, dir) = redb();
    let name = format!("broker on redb, {tasks} tasks");
    Bench::on(store, Some(dir)).case(name, tasks)
}

fn in_memory(tasks: usize, here: usize, waiting: usize) -> Case {
    let store = Arc::new(MemoryStore::new(StoreId::from_bits(1)));
    let bench = Bench::on(store, None);
    let others = bench.crowd(here, waiting);
    bench.case(format!("broker in memory, {tasks} tasks{others}"), tasks)
}

/// A broker that is measured, with everything that has to live as long.
struct Bench {
    started: Started,
    runtime: Runtime,
    _dir: Option<TempDir>,
}

impl Bench {
    fn on(store: Arc<dyn Store>, dir: Option<TempDir>) -> Self {
        Self {
            started: start(store),
            runtime: runtime(2),
            _dir: dir,
        }
    }

    /// Others on the device of the pairs, and who wait for another one that as many have filled.
    fn crowd(&self, here: usize, waiting: usize) -> &'static str {
        let handle = &self.started.handle;
        let acquire = |request| {
            let asked = handle.acquire(handle.new_lease_id(), request);
            self.runtime
                .block_on(asked)
                .expect("it is granted or waits");
        };
        (0..here).for_each(|_| acquire(request(ROOMY)));
        let crowd = if waiting > 0 { CROWD + waiting } else { 0 };
        (0..crowd).for_each(|_| acquire(patient(FULL)));
        match (here, waiting) {
            (0, 0) => "",
            (_, 0) => ", 1,000 leases there",
            (..) => ", 1,000 waiters elsewhere",
        }
    }

    fn case(self, name: String, tasks: usize) -> Case {
        Case::new(name, move |time| {
            pairs(&self.runtime, &self.started.handle, tasks, time)
        })
    }
}

/// One pair after the other.
fn alone(time: Duration, mut pair: impl FnMut()) -> Sample {
    let began = Instant::now();
    let mut pairs = Vec::new();
    while began.elapsed() < time {
        let each = Instant::now();
        pair();
        pairs.push(each.elapsed());
    }
    Sample {
        took: began.elapsed(),
        pairs,
    }
}

const NOW: At = At {
    boot: BootMs(1_000_000),
    wall: WallMs(1_767_225_600_000),
};
