//! How long a start takes that finds a hundred thousand live leases, part by part.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_broker::{
    BootClock, Clock, EventPosition, Life, ReadError, StartError, Started, StoredEvent, UsageRow,
};
use gpu_lease::{
    At, Books, Command, Counters, Device, DeviceKey, Event, EventKind, Fence, Lease, LeaseId,
    Phase, Policy, Rows, Select,
};
use gpu_store::{
    Batch, CommitError, EVENTS_KEPT, EventPage, Hour, RedbStore, Store, StoreId, Stored,
};
use parking_lot::Mutex;

use crate::setting::{SMALL, config, device, request};

const LIVE: u64 = 100_000;
const DEVICES: u64 = 8;
/// Rows of one commit while the store is filled.
const PER_COMMIT: usize = 10_000;
const ROUNDS: usize = 3;

pub(crate) fn bench() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("store.redb");
    fill(&path);
    let path = killed(&path);
    let size = std::fs::metadata(&path).expect("a file").len();
    println!(
        "\nrecovery of {LIVE} live leases and {EVENTS_KEPT} events, a file of {} MiB, in ms",
        size >> 20
    );
    println!("{:<28} {:>8} {:>8} {:>8}", "", "least", "median", "most");
    let rounds: Vec<_> = (0..ROUNDS).map(|_| start(&path)).collect();
    for part in 0..rounds[0].len() {
        let mut times: Vec<_> = rounds
            .iter()
            .map(|round| round[part].1.as_micros())
            .collect();
        times.sort_unstable();
        let ms = |at: usize| times[at] as f64 / 1000.0;
        println!(
            "{:<28} {:>8.1} {:>8.1} {:>8.1}",
            rounds[0][part].0,
            ms(0),
            ms(ROUNDS / 2),
            ms(ROUNDS - 1)
        );
    }
}

/// One start, and what it consists of.
fn start(path: &Path) -> Vec<(&'static str, Duration)> {
    let whole = Instant::now();
    let opened = timed(|| RedbStore::open(path, StoreId::from_bits(1)).expect("a sound store"));
    let store = Arc::new(Timed {
        inner: opened.0,
        load: Mutex::default(),
        commit: Mutex::default(),
    });
    let (begun, begin) = timed(|| begin(store.clone()).expect("a good policy"));
    let (mut life, handle) = (begun.broker, begun.handle);
    assert_eq!(begun.kept as u64, LIVE);
    let (load, commit) = (*store.load.lock(), store.commit.lock().unwrap_or_default());
    let ((), inventory) = timed(|| {
        life.tell(Command::Inventory(devices()))
            .expect("there is room");
        life.turn(Duration::ZERO).expect("the store works");
    });
    assert!(!handle.snapshot().recovering);
    let whole = whole.elapsed();
    let rows = store
        .inner
        .load()
        .expect("a sound store")
        .rows
        .expect("rows");
    let (mut alone, books) = timed(|| Books::from_rows(Arc::new(Policy::built_in()), rows));
    let (_, found) = timed(|| alone.apply(now(), Command::Inventory(devices())));
    vec![
        ("open and check", opened.1),
        ("load the rows", load),
        (
            "books, plan and readers",
            begin.saturating_sub(load + commit),
        ),
        ("  of that, books once", books),
        ("first commit", commit),
        ("first inventory", inventory),
        ("  of that, books", found),
        ("ready to grant", whole),
    ]
}

/// As a start of the program does it, but without threads.
fn begin(store: Arc<dyn Store>) -> Result<Started<Life>, StartError> {
    let begun = Life::begin(config(store, Arc::new(BootClock), false));
    begun.map(|(started, _effects)| started)
}

/// The file as it is when a broker that runs on it is killed.
fn killed(path: &Path) -> PathBuf {
    let store = Arc::new(RedbStore::open(path, StoreId::from_bits(1)).expect("a sound store"));
    let _broker = begin(store).expect("a good policy");
    let copy = path.with_extension("killed");
    std::fs::copy(path, &copy).expect("room on the disk");
    copy
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let done = work();
    (done, began.elapsed())
}

/// A store that notes how long its parts of a start take.
struct Timed {
    inner: RedbStore,
    load: Mutex<Duration>,
    /// Of the first one, which opens the life.
    commit: Mutex<Option<Duration>>,
}

impl Store for Timed {
    fn load(&self) -> Result<Stored, ReadError> {
        let (stored, took) = timed(|| self.inner.load());
        *self.load.lock() = took;
        stored
    }

    fn commit(&self, batch: &Batch<'_>) -> Result<(), CommitError> {
        let (done, took) = timed(|| self.inner.commit(batch));
        self.commit.lock().get_or_insert(took);
        done
    }

    fn events(&self, after: Option<EventPosition>, limit: usize) -> Result<EventPage, ReadError> {
        self.inner.events(after, limit)
    }

    fn usage(&self, from: Hour, each: &mut dyn FnMut(UsageRow)) -> Result<(), ReadError> {
        self.inner.usage(from, each)
    }
}

fn devices() -> Vec<Device> {
    let one = |n| device(&format!("gpu-{n}"), SMALL * LIVE);
    (0..DEVICES).map(one).collect()
}

/// Leases as books that work have them, and a full history.
fn fill(path: &Path) {
    let store = RedbStore::open(path, StoreId::from_bits(1)).expect("a new store");
    let (template, mut counters) = granted();
    let leases: Vec<_> = (1..=LIVE).map(|n| like(&template, n)).collect();
    counters.revision = LIVE;
    counters.next_fence = Fence(LIVE + 1);
    let events: Vec<_> = (0..EVENTS_KEPT as u64).map(|n| event(n, &leases)).collect();
    for (leases, events) in leases.chunks(PER_COMMIT).zip(events.chunks(PER_COMMIT)) {
        let batch = Batch {
            boot_id: Some(gpu_broker::boot_id().expect("there is a /proc")),
            leases: leases.iter().collect(),
            events: events.to_vec(),
            ..Batch::new(counters)
        };
        store.commit(&batch).expect("room on the disk");
    }
}

/// A lease of books that granted one.
fn granted() -> (Lease, Counters) {
    let mut books = Books::new(Arc::new(Policy::built_in()), Fence(1));
    books.apply(now(), Command::Inventory(devices()));
    let mut request = request("gpu-0");
    request
        .labels
        .insert("ticket".to_owned(), "ABC-123".to_owned());
    let id = LeaseId::from_bits(1);
    let request = Box::new(request);
    books.apply(now(), Command::Acquire { id, request });
    let Rows {
        mut leases,
        counters,
        ..
    } = books.rows();
    (leases.remove(0), counters)
}

/// The lease of another holder, on one device of many.
fn like(template: &Lease, n: u64) -> Lease {
    let mut lease = template.clone();
    let device = DeviceKey::local(&format!("gpu-{}", n % DEVICES));
    // Ids come in no order, as those of a broker.
    lease.id = LeaseId::from_bits(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 4);
    lease.revision = n;
    lease.request.select = Select::ids(vec![device.id.clone()]);
    lease.request.holder.name = format!("job {n}");
    lease.request.holder.user = format!("user-{}", n % 40);
    if let Phase::Held(grant) = &mut lease.phase {
        grant.fence = Fence(n);
        grant.allocations[0].device = device;
    }
    lease
}

fn event(n: u64, leases: &[Lease]) -> StoredEvent {
    let lease = &leases[n as usize % leases.len()];
    StoredEvent {
        position: EventPosition {
            revision: n + 1,
            n: 0,
        },
        wall: now().wall,
        generation: 1,
        event: Event {
            kind: EventKind::LeaseGranted,
            lease: Some(lease.id),
            device: Some(DeviceKey::local("gpu-1")),
            by: None,
            text: format!("{} was granted 64 MiB", lease.request.holder.name),
        },
        user: Some(lease.request.holder.user.clone()),
        also_on: Vec::new(),
    }
}

/// The real time, which the start is measured by: nothing has expired.
fn now() -> At {
    BootClock.now()
}
