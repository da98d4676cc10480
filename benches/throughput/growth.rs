//! What becomes of the file of a broker that runs for a long time: its size every so many leases.

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use gpu_broker::{Clock, Handle, Life};
use gpu_lease::{At, BootMs, Command, LeaseId, Ms, WallMs};
use gpu_store::{RedbStore, StoreId};

use crate::setting::{ROOMY, config, devices, request};

const LEASES: u64 = 10_000_000;
/// Leases that are granted in one turn, and given back in the next.
const PER_TURN: u64 = 500;
/// Virtual time between two turns: 42 leases a minute, 35 days of which are two million.
const TURN_MS: u64 = PER_TURN * 60_000 / 84;
const USERS: u64 = 20;
const TENANTS: u64 = 3;

pub(crate) fn bench() {
    let wanted = std::env::args().filter_map(|arg| arg.parse().ok()).next();
    let leases = wanted.unwrap_or(LEASES);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("store.redb");
    let mut run = Run::on(&path);
    println!(
        "\n{leases} leases, one after the other, {} a day",
        86_400_000 / TURN_MS / 2 * PER_TURN
    );
    println!(
        "{:>12} {:>10} {:>8} {:>10}",
        "leases", "file MiB", "days", "leases/s"
    );
    let step = (leases / 10).max(PER_TURN);
    let mut done = 0;
    while done < leases {
        let began = Instant::now();
        let goal = (done + step).min(leases);
        let first = done;
        while done < goal {
            run.pairs(done);
            done += PER_TURN;
        }
        let size = fs::metadata(&path).expect("a file").len() as f64 / f64::from(1 << 20);
        let rate = (done - first) as f64 / began.elapsed().as_secs_f64();
        println!("{done:>12} {size:>10.1} {:>8.1} {rate:>10.0}", run.days());
    }
    drop(run);
    let closed = fs::metadata(&path).expect("a file").len() as f64 / f64::from(1 << 20);
    let compacted = RedbStore::compact(&path).expect("room on the disk");
    let compacted = compacted.after_bytes as f64 / f64::from(1 << 20);
    println!("closed: {closed:.1} MiB; compacted: {compacted:.1} MiB");
}

/// A broker whose time passes as it is told.
struct Run {
    life: Life,
    handle: Handle,
    clock: Arc<TestClock>,
}

#[derive(Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> At {
        let passed = self.0.load(Ordering::Relaxed);
        At {
            boot: BootMs(passed),
            wall: WallMs(1_767_225_600_000 + passed),
        }
    }
}

impl Run {
    fn on(path: &std::path::Path) -> Self {
        let store = RedbStore::open(path, StoreId::from_bits(1)).expect("a new store");
        let clock = Arc::new(TestClock::default());
        let begun = Life::begin(config(Arc::new(store), clock.clone(), true));
        let (started, _) = begun.expect("a new store and a good policy");
        let mut life = started.broker;
        life.tell(Command::Inventory(devices()))
            .expect("there is room");
        life.turn(Duration::ZERO).expect("the store works");
        Self {
            life,
            handle: started.handle,
            clock,
        }
    }

    fn days(&self) -> f64 {
        self.clock.now().boot.0 as f64 / 86_400_000.0
    }

    /// Grants so many leases in one turn and takes them back in the next.
    fn pairs(&mut self, first: u64) {
        let ids: Vec<_> = (first..first + PER_TURN).map(|n| (n, id(n))).collect();
        let handle = self.handle.clone();
        self.all(ids.iter().map(|&(n, id)| {
            let handle = handle.clone();
            async move { drop(handle.acquire(id, asked(n)).await.expect("there is room")) }
        }));
        self.all(ids.iter().map(|&(_, id)| {
            let handle = handle.clone();
            async move {
                drop(
                    handle
                        .lease(Command::Release { id })
                        .await
                        .expect("it is held"),
                )
            }
        }));
    }

    /// Puts everything into the inbox, and turns the loop until it is answered.
    fn all(&mut self, calls: impl Iterator<Item = impl Future<Output = ()> + 'static>) {
        let mut calls: Vec<Pin<Box<dyn Future<Output = ()>>>> = calls
            .map(|call| Box::pin(call) as Pin<Box<dyn Future<Output = ()>>>)
            .collect();
        let mut context = Context::from_waker(Waker::noop());
        self.clock.0.fetch_add(TURN_MS, Ordering::Relaxed);
        loop {
            calls.retain_mut(|call| call.as_mut().poll(&mut context) == Poll::Pending);
            if calls.is_empty() {
                return;
            }
            self.life.turn(Duration::ZERO).expect("the store works");
        }
    }
}

/// Ids come in no order, as those of a broker.
fn id(n: u64) -> LeaseId {
    LeaseId::from_bits(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 4)
}

fn asked(n: u64) -> gpu_lease::Request {
    let mut asked = request(ROOMY);
    asked.ttl = Ms::from_secs(3600);
    asked.holder.user = format!("user-{}", n % USERS);
    asked.holder.tenant = Some(format!("tenant-{}", n % TENANTS));
    asked
}
