//! A broker to ask, and what the tests ask for.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use gpu_broker::{
    AcquireError, Broker, Clock, Config, Handle, HostProcesses, LeaseCommandError, Override,
    SourceFile, StartError, StartPolicy, Started, Unavailable, boot_id,
};
use gpu_lease::{
    Amount, At, BootMs, Command, Device, DeviceKey, DeviceKind, Emergency, EndReason, Holder,
    HolderKind, Lease, LeaseError, LeaseId, Ms, Reading, Request, STANDARD_CLASS, Select,
    Telemetry, Vendor, WallMs,
};
use gpu_store::{EventPosition, MemoryStore, RedbStore, Store, StoreId, StoredEvent};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::store::TestStore;

pub(crate) const GIB: u64 = 1 << 30;
/// An answer that takes longer does not come.
pub(crate) const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// 2026-01-01T17:59:50Z: ten seconds before the evening.
const START: At = At {
    boot: BootMs(1_000_000),
    wall: WallMs(1_767_290_390_000),
};
/// Time passes in steps that are no pause.
const STEP: Ms = Ms(500);

/// Time that moves when a test says so; both clocks together.
#[derive(Default)]
pub(crate) struct ManualClock {
    passed_ms: AtomicU64,
    /// What had passed when the host was booted last.
    booted_ms: AtomicU64,
    looked_at: AtomicUsize,
}

impl ManualClock {
    /// All at once, as it looks to a process that was suspended.
    pub(crate) fn jump(&self, by: Ms) {
        self.passed_ms.fetch_add(by.0, Ordering::SeqCst);
    }

    /// The time since the boot begins anew, that of people goes on.
    pub(crate) fn boot_again(&self) {
        let passed = self.passed_ms.load(Ordering::SeqCst);
        self.booted_ms.store(passed, Ordering::SeqCst);
    }

    /// How often anybody has asked for the time.
    pub(crate) fn looked_at(&self) -> usize {
        self.looked_at.load(Ordering::SeqCst)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> At {
        self.looked_at.fetch_add(1, Ordering::SeqCst);
        let passed = Ms(self.passed_ms.load(Ordering::SeqCst));
        let booted = self.booted_ms.load(Ordering::SeqCst);
        At {
            boot: START.boot + Ms(passed.0 - booted),
            wall: WallMs(START.wall.0 + passed.0),
        }
    }
}

/// Where rows are between two lives of a broker.
#[derive(Clone)]
pub(crate) enum Rows {
    Memory(Arc<MemoryStore>),
    Redb(PathBuf),
}

impl Rows {
    pub(crate) fn memory() -> Self {
        Self::Memory(Arc::new(MemoryStore::new(StoreId::from_bits(7))))
    }

    pub(crate) fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(store) => store.clone(),
            Self::Redb(path) => Arc::new(RedbStore::open(path, StoreId::from_bits(7)).unwrap()),
        }
    }
}

/// What a broker starts with.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) rows: Rows,
    pub(crate) boot_id: String,
    pub(crate) policy: String,
    /// Why its files cannot be read, if they cannot.
    pub(crate) unreadable: Option<String>,
    pub(crate) dev: bool,
    pub(crate) overrides: Vec<Override>,
    /// Time that passes while the start makes durable what it means.
    pub(crate) opening_takes: Ms,
    /// How often a reading was asked for.
    pub(crate) reads: Arc<AtomicUsize>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            clock: Arc::default(),
            rows: Rows::memory(),
            boot_id: boot_id().unwrap(),
            policy: String::new(),
            unreadable: None,
            dev: false,
            overrides: Vec::new(),
            opening_takes: Ms(0),
            reads: Arc::default(),
        }
    }
}

impl Setup {
    pub(crate) fn policy(text: &str) -> Self {
        Self {
            policy: text.to_owned(),
            ..Self::default()
        }
    }

    /// A start on `store`, whatever [`Self::rows`] says.
    pub(crate) fn start_on(&self, store: Arc<dyn Store>) -> Result<Started, StartError> {
        let reads = self.reads.clone();
        let read_now = move || {
            reads.fetch_add(1, Ordering::SeqCst);
        };
        let config = Config {
            store,
            clock: self.clock.clone(),
            processes: Arc::new(HostProcesses::of_boot(self.boot_id.clone())),
            boot_id: self.boot_id.clone(),
            introduction: "gpu-manager".to_owned(),
            policy: StartPolicy {
                files: match &self.unreadable {
                    Some(why) => Err(why.clone()),
                    None => Ok(files(&self.policy)),
                },
                overrides: self.overrides.clone(),
                dev: self.dev,
            },
        };
        Broker::start(config, Box::new(read_now))
    }

    pub(crate) fn run(self) -> World {
        let store = Arc::new(TestStore::around(self.rows.open()));
        store.take(self.clock.clone(), self.opening_takes);
        let started = self.start_on(store.clone()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        World {
            clock: self.clock.clone(),
            store,
            handle: started.handle.clone(),
            started,
            setup: self,
            runtime,
        }
    }
}

/// Runs a scenario on rows in memory and on rows in a file.
pub(crate) fn on_every_store(scenario: impl Fn(Setup)) {
    scenario(Setup::default());
    let directory = tempfile::tempdir().unwrap();
    scenario(Setup {
        rows: Rows::Redb(directory.path().join("store.redb")),
        ..Setup::default()
    });
}

/// The files of a policy that says `text` and nothing else.
pub(crate) fn files(text: &str) -> Vec<SourceFile> {
    vec![SourceFile::new(
        "default.toml",
        format!("schema = 1\n{text}"),
    )]
}

/// A broker that runs.
pub(crate) struct World {
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) store: Arc<TestStore>,
    pub(crate) handle: Handle,
    pub(crate) started: Started,
    setup: Setup,
    runtime: Runtime,
}

/// A request on its way.
pub(crate) type Asked = Pin<Box<dyn Future<Output = Result<Lease, AcquireError>> + Send>>;
/// A command on its way.
pub(crate) type Said = Pin<Box<dyn Future<Output = Result<Lease, LeaseCommandError>> + Send>>;
pub(crate) type Called = Pin<Box<dyn Future<Output = Result<Vec<LeaseId>, Unavailable>> + Send>>;

impl World {
    /// With one device of 80 GiB, `gpu-0`, of which nothing can be read.
    pub(crate) fn new() -> Self {
        Self::with(Setup::default())
    }

    /// The same with something else to start with.
    pub(crate) fn with(setup: Setup) -> Self {
        let world = setup.run();
        world.inventory(&[device("gpu-0", 80)]);
        world
    }

    /// The policy that it was started with.
    pub(crate) fn policy(&self) -> String {
        self.setup.policy.clone()
    }

    /// Stops in order and starts again on what is stored, after `change`.
    pub(crate) fn restart(self, change: impl FnOnce(&mut Setup)) -> Self {
        let mut setup = self.stop();
        change(&mut setup);
        setup.run()
    }

    /// Stops in order; nothing has the store open any more.
    pub(crate) fn stop(self) -> Setup {
        self.started.broker.stop().unwrap();
        self.setup
    }

    /// The same after the store failed.
    pub(crate) fn crashed(self) -> Setup {
        drop(self.started.broker.stop().unwrap_err());
        self.setup
    }

    /// The answer, if there is one in time.
    pub(crate) fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            let answer = tokio::time::timeout(ANSWER_TIME_MAX, answer).await;
            answer.expect("it is answered")
        })
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(future)
    }

    pub(crate) fn inventory(&self, devices: &[Device]) {
        self.handle.inventory(devices.to_vec());
        self.nudge();
    }

    pub(crate) fn telemetry(&self, reading: Reading) {
        self.handle.telemetry(vec![reading]);
        self.nudge();
    }

    pub(crate) fn try_acquire(&self, request: Request) -> Result<Lease, AcquireError> {
        self.wait(self.handle.acquire(self.handle.new_lease_id(), request))
    }

    pub(crate) fn acquire(&self, request: Request) -> Lease {
        self.try_acquire(request).unwrap()
    }

    /// Puts a request into the inbox without waiting for the answer.
    pub(crate) fn ask(&self, request: Request) -> (LeaseId, Asked) {
        let id = self.handle.new_lease_id();
        let handle = self.handle.clone();
        let mut asked: Asked = Box::pin(async move { handle.acquire(id, request).await });
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(answer) = asked.as_mut().poll(&mut context) {
            return (id, Box::pin(async { answer }));
        }
        (id, asked)
    }

    /// The same for a command about a lease.
    pub(crate) fn say(&self, command: Command) -> Said {
        let handle = self.handle.clone();
        let mut said: Said = Box::pin(async move { handle.lease(command).await });
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(answer) = said.as_mut().poll(&mut context) {
            return Box::pin(async { answer });
        }
        said
    }

    /// The same for an emergency release.
    pub(crate) fn call(&self, emergency: Emergency) -> Called {
        let handle = self.handle.clone();
        let mut called: Called = Box::pin(async move { handle.emergency(emergency).await });
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(answer) = called.as_mut().poll(&mut context) {
            return Box::pin(async { answer });
        }
        called
    }

    pub(crate) fn command(&self, command: Command) -> Result<Lease, LeaseCommandError> {
        self.wait(self.handle.lease(command))
    }

    pub(crate) fn renew(&self, id: LeaseId) -> Result<Lease, LeaseCommandError> {
        self.command(Command::Renew { id })
    }

    pub(crate) fn release(&self, id: LeaseId) -> Lease {
        self.command(Command::Release { id }).unwrap()
    }

    /// Lets the loop take a turn, with all that was said before.
    pub(crate) fn nudge(&self) {
        let nobody = LeaseId::from_bits(0);
        let answer = self.renew(nobody);
        assert!(matches!(
            answer,
            Err(LeaseCommandError::Refused(LeaseError::NotFound))
        ));
    }

    /// Time passes, and the loop sees it pass.
    pub(crate) fn pass(&self, time: Ms) {
        let mut left = time.0;
        while left > 0 {
            let step = left.min(STEP.0);
            self.clock.jump(Ms(step));
            self.nudge();
            left -= step;
        }
    }

    pub(crate) fn lease(&self, id: LeaseId) -> Arc<Lease> {
        self.handle.find(id).expect("the lease is known")
    }

    pub(crate) fn end_reason(&self, id: LeaseId) -> Option<EndReason> {
        self.lease(id).end_reason()
    }

    pub(crate) fn is_held(&self, id: LeaseId) -> bool {
        self.handle
            .find(id)
            .is_some_and(|lease| lease.held().is_some())
    }

    /// Every event after a position, page by page.
    pub(crate) fn events_after(&self, mut after: Option<EventPosition>) -> Vec<StoredEvent> {
        let mut events = Vec::new();
        loop {
            let page = self.handle.events_after(after, 3).unwrap();
            assert!(!page.reset, "the history goes back to there");
            let Some(last) = page.events.last() else {
                return events;
            };
            after = Some(last.position);
            events.extend(page.events);
        }
    }

    pub(crate) fn reads(&self) -> usize {
        self.setup.reads.load(Ordering::SeqCst)
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < ANSWER_TIME_MAX, "it never is so: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Long enough for an answer that must not come.
pub(crate) fn rest() {
    thread::sleep(Duration::from_millis(20));
}

/// A device of which nothing can be read, so that grants need no reading.
pub(crate) fn device(id: &str, gib: u64) -> Device {
    Device {
        key: DeviceKey::local(id),
        name: "Test device".to_owned(),
        index: 0,
        vendor: Vendor::Nvidia,
        kind: DeviceKind::Simulated,
        pci_bus_id: None,
        nvml_uuid: None,
        driver: None,
        memory_total: gib * GIB,
        telemetry: Telemetry::Unsupported,
        leasable: true,
        found_by: vec!["declared".to_owned()],
    }
}

pub(crate) fn reading(id: &str, taken: BootMs) -> Reading {
    Reading {
        device: DeviceKey::local(id),
        taken,
        memory_used: 0,
        processes: Vec::new(),
        utilisation_percent: None,
        temperature_c: None,
        power_mw: None,
    }
}

/// So much of any device for somebody remote, now or never, with a heartbeat every minute.
pub(crate) fn request(gib: u64) -> Request {
    Request {
        holder: Holder {
            name: "job".to_owned(),
            kind: HolderKind::Remote,
            tenant: None,
            user: "ann".to_owned(),
            tenant_found: false,
            pid: None,
        },
        class: STANDARD_CLASS.to_owned(),
        devices: 1,
        amount: Amount::Memory(gib * GIB),
        select: Select::default(),
        ttl: Ms::from_secs(60),
        wait: Ms(0),
        max_hold: None,
        drain_grace: None,
        load: false,
        queue: false,
        idempotency: None,
        labels: BTreeMap::new(),
    }
}

/// The same for somebody who waits on a connection for up to ten minutes.
pub(crate) fn patient(gib: u64) -> Request {
    Request {
        wait: Ms::from_secs(600),
        ..request(gib)
    }
}

/// The same as a row that waits without a connection.
pub(crate) fn queued(gib: u64) -> Request {
    Request {
        queue: true,
        ..patient(gib)
    }
}
