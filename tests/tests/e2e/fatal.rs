//! What ends a broker on the spot: it stops answering, says why and what to do, and once that is done nothing
//! that it answered is lost.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread::{self, JoinHandle};

use gpu_api::{Lease, LeaseState, paths};
use gpu_manager_tests::{
    Address, Attempt, Broker, Host, Ran, Request, SmallDisk, eventually, problem,
};
use redb::{Database, ReadableTable, TableDefinition};
use serde_json::{Value, json};

/// Exit codes of `serve`, as docs/configuration.md has them.
const STORE_UNUSABLE: i32 = 8;
const IN_USE: i32 = 9;
const STORE_FAILED: i32 = 10;
const BOOKS_BROKEN: i32 = 11;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LEASES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leases");

const CLIENTS: usize = 4;
/// Between two looks whether a broker has ended.
const REQUESTS: usize = 50;
/// The store must fail under work, not before any is done.
const ANSWERED_MIN: u64 = 20;

#[test]
fn a_disk_that_fills_up_under_load_ends_the_broker_and_no_lease() {
    let host = Host::with_cards(1);
    let Some(disk) = SmallDisk::mount(&host.state_dir(), 8) else {
        return;
    };
    let broker = host.start();
    let clients = work(&broker);
    until_worked(&broker);
    disk.fill();
    let (ran, mut answered) = end_of(broker, clients);
    let parts = ["No space left on device", "make room"];
    must_say(&ran, STORE_FAILED, &parts);

    let nowhere = host.state_dir().join("new").display().to_string();
    let ran = host.serve(&["--state-dir", &nowhere]).wait();
    must_say(&ran, STORE_UNUSABLE, &parts);
    let (ran, more) = end_of_a_start_on_a_full_disk(&host);
    must_say(&ran, ran.code, &parts);
    assert!(
        [STORE_UNUSABLE, STORE_FAILED].contains(&ran.code),
        "{ran:?}"
    );
    answered.extend(more);
    disk.clear();
    must_hold(&host.start(), &answered);
}

#[test]
fn a_sync_that_fails_ends_the_broker_and_no_lease() {
    let host = failing("fdatasync", "EIO");
    let broker = host.start();
    let clients = work(&broker);
    let (ran, answered) = end_of(broker, clients);
    must_say(&ran, STORE_FAILED, &["Input/output error", "dmesg"]);
    must_hold(&host.alone().start(), &answered);
}

#[test]
fn a_disk_that_takes_no_more_writes_ends_the_broker_and_no_lease() {
    let host = failing("pwrite64", "EROFS");
    let broker = host.start();
    let clients = work(&broker);
    let (ran, answered) = end_of(broker, clients);
    must_say(
        &ran,
        STORE_FAILED,
        &["Read-only file system", "mount it for writing"],
    );
    must_hold(&host.alone().start(), &answered);
}

#[test]
fn a_start_on_a_read_only_file_system_says_so_and_changes_nothing() {
    let host = Host::with_cards(1);
    let Some(disk) = SmallDisk::mount(&host.state_dir(), 8) else {
        return;
    };
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1h"}));
    broker.kill();
    disk.make_read_only();
    let ran = host.serve(&[]).wait();
    must_say(
        &ran,
        STORE_UNUSABLE,
        &["Read-only file system", "mount it for writing"],
    );
    disk.make_writable();
    must_hold(&host.start(), &[lease]);
}

#[test]
fn a_start_leaves_room_for_the_fences_and_events_that_its_store_does_not_know_of() {
    let host = Host::with_cards(1).env("GPU_MANAGER_CONFIG__TWO_PHASE_COMMITS", "true");
    let broker = host.start();
    let kept = broker.grant(&json!({"memory": "1GiB", "ttl": "1h"}));
    broker.stop();
    let store = host.state_dir().join("store.redb");
    let copy = fs::read(&store).unwrap();
    let broker = host.start();
    let lost = broker.grant(&json!({"memory": "1GiB", "ttl": "1h"}));
    broker.kill();
    fs::write(&store, copy).unwrap();

    let broker = host.start();
    let next = broker.grant(&json!({"memory": "1GiB", "ttl": "1h"}));
    assert!(
        next.fence > lost.fence,
        "{:?} and {:?}",
        next.fence,
        lost.fence
    );
    let before = next.revision;
    must_hold(&broker, &[kept, next]);
    broker.kill();
    let after = host.start().grant(&json!({"memory": "1GiB"})).revision;
    assert!(after > before + (1 << 16), "{before}, {after}");
}

#[test]
fn a_grant_that_contradicts_the_rows_ends_the_broker_as_a_crash_would() {
    let host = Host::with_cards(1).safe_starts();
    let broker = host.start();
    let held = broker.grant(&json!({"memory": "1GiB", "ttl": "1h"}));
    broker.stop();
    // As a store that was put together from two of them: the next fence is one that was given.
    forge_fence(&host.state_dir().join("store.redb"), 1 << 50);
    let broker = host.start();
    let request = Request::post(paths::LEASES, &json!({"memory": "1GiB"}));
    let answered = match request.attempt(broker.address()) {
        Attempt::Answered(answer) => answer.status,
        Attempt::Lost | Attempt::Unsent => 503,
    };
    assert_eq!(answered, 503);
    let ran = broker.into_process().wait();
    must_say(&ran, BOOKS_BROKEN, &["which is not new", "store check"]);
    let starts = fs::read_to_string(host.state_dir().join("starts")).unwrap();
    assert_eq!(starts.lines().count(), 1, "it counts: {starts}");

    let broker = host.start();
    assert!(broker.lease(&held.id).is_granted(), "it is kept");
    assert_eq!(broker.live_leases().len(), 1);
}

#[test]
fn a_file_that_is_no_sound_store_of_this_version_stops_every_start() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1h"}));
    broker.stop();
    let store = host.state_dir().join("store.redb");
    let good = fs::read(&store).unwrap();
    let damaged = {
        let mut bytes = good.clone();
        bytes[..64].fill(0);
        bytes
    };
    let newer = newer(&host.dir().join("newer.redb"), &good);
    // The end of a file may be room that nothing was written to.
    let beginning = good[..good.len() / 8].to_vec();
    for (bytes, parts) in [
        (damaged, ["is not a store", "--state-dir"]),
        (beginning, ["is damaged", "restore a copy"]),
        (Vec::new(), ["is an empty file", "restore a copy"]),
        (newer, ["has format 2", "a later one"]),
    ] {
        fs::write(&store, &bytes).unwrap();
        // The first refusal does not make it look sound to the second start.
        for _ in 0..2 {
            must_say(&host.serve(&[]).wait(), STORE_UNUSABLE, &parts);
            let left = fs::read(&store).unwrap() == bytes;
            assert!(left, "a file that was closed in order is left as it was");
        }
    }
    fs::write(&store, &good).unwrap();
    must_hold(&host.start(), &[lease]);
}

#[test]
fn a_second_broker_on_a_state_directory_ends_and_the_first_does_not_notice() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1h"}));
    let state = host.state_dir().display().to_string();
    let second = Host::with_cards(1).serve(&["--state-dir", &state]).wait();
    must_say(
        &second,
        IN_USE,
        &["in use by another broker", "stop the other"],
    );
    must_hold(&broker, std::slice::from_ref(&lease));
    broker.kill();
    must_hold(&host.start(), &[lease]);
}

#[test]
fn a_second_broker_of_a_device_ends_and_the_first_does_not_notice() {
    const CARD: &str = "[[device]]\nname = 'RTX'\nuuid = 'GPU-00000000-0000-4000-8000-00000000000a'\npci_bus_id = '0000:01:00.0'\nmemory_total = '24GiB'\n";
    let host = Host::with_cards(0).nvml(CARD);
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1h", "memory": "1GiB"}));
    let other = Host::with_cards(0).nvml(CARD).beside(&host);
    let pid = broker.process().pid().to_string();
    let second = other.serve(&[]).wait();
    must_say(
        &second,
        IN_USE,
        &["another broker of this host", &pid, "stop the other"],
    );
    let state_dir = other.state_dir();
    let history = other.run(&["history", "--state-dir", state_dir.to_str().unwrap()]);
    let ended = history.stdout.lines().last().unwrap_or_default();
    assert!(
        ended.contains("broker_stopped") && ended.contains("another broker of this host"),
        "{}",
        history.stdout
    );
    must_hold(&broker, &[lease]);
}

/// A host whose broker meets `error` in a call of the kernel after a while, whenever it is about its store.
fn failing(call: &str, error: &str) -> Host {
    let host = Host::with_cards(1);
    let store = host.state_dir().join("store.redb").display().to_string();
    // Counted for each thread: that of the loop is at work by then.
    let inject = format!("inject={call}:error={error}:when=200+");
    let trace = host.dir().join("strace.log").display().to_string();
    let words = [
        "strace", "-D", "-f", "-o", &trace, "-P", &store, "-e", &inject,
    ];
    host.under(&words)
}

/// Clients that ask for leases as fast as they are answered, until nobody answers; what they were granted.
fn work(broker: &Broker) -> Vec<JoinHandle<Vec<Lease>>> {
    let client = |_| {
        let address = broker.address().clone();
        thread::spawn(move || ask_until_the_end(&address))
    };
    (0..CLIENTS).map(client).collect()
}

fn ask_until_the_end(address: &Address) -> Vec<Lease> {
    let mut answered = Vec::new();
    let body = json!({"memory": "1MiB", "ttl": "1h"});
    loop {
        let request = Request::post(paths::LEASES, &body);
        // Nobody listens: it panics.
        match catch_unwind(AssertUnwindSafe(|| request.send(address))) {
            Ok(answer) if answer.status == 201 => answered.push(answer.lease()),
            Ok(_) | Err(_) => return answered,
        }
    }
}

fn until_worked(broker: &Broker) {
    eventually("leases are granted", || {
        (broker.status().leases.active >= ANSWERED_MIN).then_some(())
    });
}

fn end_of(broker: Broker, clients: Vec<JoinHandle<Vec<Lease>>>) -> (Ran, Vec<Lease>) {
    let answered = clients
        .into_iter()
        .flat_map(|client| client.join().expect("a client does not panic"));
    let answered: Vec<Lease> = answered.collect();
    assert!(answered.len() as u64 >= ANSWERED_MIN, "{}", answered.len());
    (broker.into_process().wait(), answered)
}

/// It cannot start; or it finds room within its file for that, and ends when that is used up.
fn end_of_a_start_on_a_full_disk(host: &Host) -> (Ran, Vec<Lease>) {
    let mut process = host.serve(&[]);
    let socket = Address::Unix(host.socket());
    let request = Request::post(paths::LEASES, &json!({"memory": "1MiB", "ttl": "1h"}));
    let mut answered = Vec::new();
    let ran = eventually("a broker on a full disk ends", || {
        let answers = (0..REQUESTS).map_while(|_| match request.attempt(&socket) {
            Attempt::Answered(answer) => Some(answer),
            Attempt::Lost | Attempt::Unsent => None,
        });
        let granted = answers.filter(|answer| answer.status == 201);
        answered.extend(granted.map(|answer| answer.lease()));
        process.ended()
    });
    (ran, answered)
}

/// One message, with all `parts` and a hint.
fn must_say(ran: &Ran, code: i32, parts: &[&str]) {
    assert_eq!(ran.code, code, "{}", ran.stderr);
    for part in parts.iter().chain(&["hint:"]) {
        assert!(ran.stderr.contains(part), "`{part}` in {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    let errors = ran.stderr.lines().filter(|line| line.starts_with("error:"));
    assert_eq!(errors.count(), 1, "{}", ran.stderr);
}

/// All that was answered is there as it was answered, and nothing was given twice.
fn must_hold(broker: &Broker, answered: &[Lease]) {
    for lease in answered {
        let kept = broker.lease(&lease.id);
        assert_eq!((kept.state, kept.fence), (LeaseState::Active, lease.fence));
    }
    let newest = answered.iter().map(|lease| lease.fence).max();
    match broker.acquire(&json!({"memory": "1MiB"})) {
        Ok(next) => assert!(Some(next.fence) > newest, "a fence repeats"),
        // Where one lease has the whole card, nothing else is granted.
        Err(error) => assert_eq!(problem(Err::<(), _>(error)).code.as_str(), "does_not_fit"),
    }
}

/// The store `good` as a later version would leave it.
fn newer(path: &Path, good: &[u8]) -> Vec<u8> {
    fs::write(path, good).expect("the directory is ours");
    write_meta(path, "format", b"2");
    fs::read(path).expect("it was just written")
}

/// The only lease gets a fence that the counter has not come to.
fn forge_fence(store: &Path, above: u64) {
    let database = Database::open(store).expect("it is good");
    let txn = database.begin_write().expect("nobody else has it");
    {
        let mut leases = txn.open_table(LEASES).expect("every store has it");
        let (id, mut row): (u64, Value) = {
            let first = leases.first().expect("it can be read").expect("a lease");
            let row = serde_json::from_slice(first.1.value()).expect("it is JSON");
            (first.0.value(), row)
        };
        let fence = &mut row["phase"]["held"]["fence"];
        *fence = json!(fence.as_u64().expect("it is held") + above);
        let row = row.to_string();
        leases
            .insert(id, row.as_bytes())
            .expect("it can be written");
    }
    txn.commit().expect("it can be written");
}

fn write_meta(store: &Path, key: &str, value: &[u8]) {
    let database = Database::open(store).expect("it is good");
    let txn = database.begin_write().expect("nobody else has it");
    txn.open_table(META)
        .expect("every store has it")
        .insert(key, value)
        .expect("it can be written");
    txn.commit().expect("it can be written");
}
