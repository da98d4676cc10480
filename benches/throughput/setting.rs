//! What all benches work with: devices, requests, and a broker on a store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_broker::{
    BootClock, Broker, Clock, Config, Handle, HostProcesses, SourceFile, StartPolicy, Started,
    boot_id,
};
use gpu_lease::{
    Amount, Command, Device, DeviceKey, DeviceKind, Holder, HolderKind, Ms, Request,
    STANDARD_CLASS, Select, Telemetry, Vendor,
};
use gpu_manager_benches::Sample;
use gpu_store::{RedbStore, Store, StoreId};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The device that pairs are granted on; it always has room.
pub(crate) const ROOMY: &str = "roomy";
/// A device of exactly [`CROWD`] small leases, so that who wants more of it waits.
pub(crate) const FULL: &str = "full";
/// The others, where there are others.
pub(crate) const CROWD: usize = 1000;
/// What every lease is granted.
pub(crate) const SMALL: u64 = 64 << 20;

pub(crate) fn devices() -> Vec<Device> {
    vec![
        device(FULL, SMALL * CROWD as u64),
        device(ROOMY, SMALL * 100 * CROWD as u64),
    ]
}

pub(crate) fn device(id: &str, memory_total: u64) -> Device {
    Device {
        key: DeviceKey::local(id),
        name: "Bench device".to_owned(),
        index: 0,
        vendor: Vendor::Other,
        kind: DeviceKind::Simulated,
        pci_bus_id: None,
        nvml_uuid: None,
        driver: None,
        memory_total,
        telemetry: Telemetry::Unsupported,
        leasable: true,
        found_by: Vec::new(),
    }
}

/// A little of one device, now or never.
pub(crate) fn request(device: &str) -> Request {
    Request {
        holder: Holder {
            name: "bench".to_owned(),
            kind: HolderKind::Remote,
            tenant: None,
            user: "bench".to_owned(),
            tenant_found: false,
            pid: None,
        },
        class: STANDARD_CLASS.to_owned(),
        devices: 1,
        amount: Amount::Memory(SMALL),
        select: Select::ids(vec![DeviceKey::local(device).id]),
        ttl: Ms::from_secs(3600),
        wait: Ms(0),
        max_hold: None,
        drain_grace: None,
        load: false,
        queue: false,
        idempotency: None,
        labels: BTreeMap::new(),
    }
}

/// The same for somebody who waits.
pub(crate) fn patient(device: &str) -> Request {
    Request {
        wait: Ms::from_secs(3600),
        ..request(device)
    }
}

/// A file that goes with its directory.
pub(crate) fn redb() -> (Arc<dyn Store>, TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = RedbStore::open(&dir.path().join("store.redb"), StoreId::from_bits(1));
    (Arc::new(store.expect("a new store")), dir)
}

/// A broker that knows its devices.
pub(crate) fn start(store: Arc<dyn Store>) -> Started {
    let started = Broker::start(config(store, Arc::new(BootClock), true), Box::new(|| ()));
    let started = started.expect("a new store and a good policy");
    started.handle.inventory(devices());
    started
}

/// A broker of the present boot, with a policy that lets many wait.
pub(crate) fn config(store: Arc<dyn Store>, clock: Arc<dyn Clock>, dev: bool) -> Config {
    let policy = "[queue]\nmax_waiting = 100000\n";
    Config {
        store,
        clock,
        processes: Arc::new(HostProcesses::of_boot(boot_id().expect("there is a /proc"))),
        boot_id: boot_id().expect("there is a /proc"),
        introduction: "gpu-manager".to_owned(),
        policy: StartPolicy {
            files: Ok(vec![SourceFile::new("default.toml", policy)]),
            overrides: Vec::new(),
            dev,
        },
    }
}

pub(crate) fn runtime(threads: usize) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .expect("threads")
}

/// Lets so many tasks acquire and release for `time`.
pub(crate) fn pairs(runtime: &Runtime, handle: &Handle, tasks: usize, time: Duration) -> Sample {
    let began = Instant::now();
    let workers: Vec<_> = (0..tasks)
        .map(|_| runtime.spawn(pairs_of_one(handle.clone(), began + time)))
        .collect();
    let mut pairs = Vec::new();
    for worker in workers {
        pairs.extend(runtime.block_on(worker).expect("a task ends in order"));
    }
    Sample {
        took: began.elapsed(),
        pairs,
    }
}

async fn pairs_of_one(handle: Handle, until: Instant) -> Vec<Duration> {
    let mut pairs = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let id = handle.new_lease_id();
        let lease = handle
            .acquire(id, request(ROOMY))
            .await
            .expect("there is room");
        assert!(lease.held().is_some(), "there is room");
        let released = handle.lease(Command::Release { id }).await;
        released.expect("it was held");
        pairs.push(began.elapsed());
    }
    pairs
}
