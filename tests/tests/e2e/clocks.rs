//! Clocks that jump and brokers that are asleep: nothing that is held ends early or late.
//!
//! Where the machine cannot do a story, its test says `NOT RUN` and why.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gpu_api::{EndReason, HolderKind, Lease, LeaseState, paths};
use gpu_manager_tests::{Broker, Host, Request, eventually, for_as_long, is_alive};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::json;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// What comes about by time takes this long here, and no longer than [`LATE`] more.
const LENGTH: Duration = Duration::from_secs(2);
/// The loop looks at what is due at once; the rest is a machine with other things to do.
const LATE: Duration = Duration::from_secs(4);
/// How long nothing expires after the loop was paused for more than a second.
const PAUSE_GRACE: Duration = Duration::from_secs(5);

/// Well within a ttl of a second.
const BEAT: Duration = Duration::from_millis(250);

/// A host whose wall clock can be turned while its brokers run.
struct TurnedClock {
    host: Host,
}

impl TurnedClock {
    /// `None`, and it is said, where the library is missing that turns the clock of one process.
    fn new(cards: usize) -> Option<Self> {
        let places = ["x86_64-linux-gnu", "aarch64-linux-gnu"];
        let library = places.map(|place| format!("/usr/lib/{place}/faketime/libfaketime.so.1"));
        let library = library.into_iter().find(|path| Path::new(path).exists());
        let Some(library) = library else {
            eprintln!(
                "NOT RUN: steps of the wall clock: no libfaketime.so.1 (Debian's package `faketime`)"
            );
            return None;
        };
        let host = Host::with_cards(cards);
        let file = host.dir().join("clock").display().to_string();
        let host = host
            .env("LD_PRELOAD", &library)
            .env("FAKETIME_TIMESTAMP_FILE", &file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
        let clock = Self { host };
        clock.set(0);
        Some(clock)
    }

    /// So many seconds ahead of the host's.
    fn set(&self, seconds: i64) {
        let draft = self.host.dir().join("clock.draft");
        fs::write(&draft, format!("{seconds:+}\n")).unwrap();
        fs::rename(draft, self.host.dir().join("clock")).unwrap();
    }
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Seconds by which the broker's wall clock is ahead of the host's, as a new lease shows it.
fn ahead(broker: &Broker) -> f64 {
    let lease = broker.grant(&json!({"memory": "1MiB"}));
    broker.release(&lease);
    let real = time(&humantime_now());
    time(&lease.created_at).duration_since(real).as_secs_f64()
}

fn humantime_now() -> String {
    let ran = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"])
        .output();
    String::from_utf8(ran.unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}

/// Something that time alone brings about, `LENGTH` after it began.
struct Due<'a> {
    what: &'static str,
    began: Instant,
    has_come: Box<dyn Fn() -> bool + Send + 'a>,
}

impl Due<'_> {
    /// Looks all the time: it does not come early, and it comes.
    fn comes_in_time(self, step: &str) {
        let what = format!("{}, {step}", self.what);
        while !(self.has_come)() {
            let late = self.began.elapsed().saturating_sub(LENGTH);
            assert!(late < LATE, "late: {what}");
            thread::sleep(Duration::from_millis(20));
        }
        assert!(
            self.began.elapsed() >= LENGTH,
            "early by {:?}: {what}",
            LENGTH - self.began.elapsed()
        );
    }
}

fn ends_as<'a>(
    broker: &'a Broker,
    what: &'static str,
    began: Instant,
    lease: &Lease,
    reason: EndReason,
) -> Due<'a> {
    let id = lease.id.clone();
    let has_come = move || {
        let lease = broker.lease(&id);
        assert!(
            lease.end_reason.is_none_or(|found| found == reason),
            "{lease:?}"
        );
        lease.end_reason.is_some()
    };
    Due {
        what,
        began,
        has_come: Box::new(has_come),
    }
}

fn on(card: usize) -> String {
    format!("device.id == 'sim-{card}'")
}

/// One of each kind of deadline, `LENGTH` from its beginning.
fn deadlines(broker: &Broker) -> Vec<Due<'_>> {
    let mut due = Vec::new();
    let begin = Instant::now;
    let began = begin();
    let silent = broker.grant(&json!({"select": on(0), "memory": "1GiB", "ttl": "2s"}));
    due.push(ends_as(
        broker,
        "a silent holder expires",
        began,
        &silent,
        EndReason::Expired,
    ));
    let began = begin();
    let held =
        broker.grant(&json!({"select": on(0), "memory": "1GiB", "ttl": "1h", "max_hold": "2s"}));
    due.push(ends_as(
        broker,
        "the longest hold ends",
        began,
        &held,
        EndReason::MaxHold,
    ));
    let drained = broker.grant(&json!({"select": on(0), "memory": "1GiB", "ttl": "1h"}));
    let drain = serde_json::from_value(json!({"grace": "2s"})).unwrap();
    let began = begin();
    broker.must(broker.client().drain_lease(&drained.id, &drain));
    due.push(ends_as(
        broker,
        "a drain ends",
        began,
        &drained,
        EndReason::Revoked,
    ));
    broker.grant(&json!({"select": on(1), "ttl": "1h"}));
    let began = begin();
    let waits = json!({"select": on(1), "ttl": "1h", "queue": true, "wait": "2s"});
    let waits = broker.acquire(&waits).unwrap();
    due.push(ends_as(
        broker,
        "a queued wait is over",
        began,
        &waits,
        EndReason::WaitTimeout,
    ));
    let began = begin();
    let forgets = json!({"select": on(1), "ttl": "2s", "queue": true, "wait": "1h"});
    let forgets = broker.acquire(&forgets).unwrap();
    due.push(ends_as(
        broker,
        "a silent waiter leaves",
        began,
        &forgets,
        EndReason::Expired,
    ));
    let cordon = serde_json::from_value(json!({"until": "2s"})).unwrap();
    let began = begin();
    broker.must(broker.client().cordon("sim-2", &cordon));
    due.push(Due {
        what: "a cordon lifts",
        began,
        has_come: Box::new(|| broker.device("sim-2").cordon.is_none()),
    });
    let began = begin();
    let waits = json!({"select": on(1), "wait": "2s"});
    let waits = Request::post(paths::LEASES, &waits).send_beside(broker.address());
    due.push(Due {
        what: "a wait on a connection is over",
        began,
        has_come: Box::new(move || waits.is_finished()),
    });
    due
}

/// Tells holders to stop, also when the story fails.
#[derive(Default)]
struct Stop(AtomicBool);

impl Stop {
    fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Says it when it goes.
struct StopAtLast<'a>(&'a Stop);

impl Drop for StopAtLast<'_> {
    fn drop(&mut self) {
        self.0.now();
    }
}

/// A holder that sends heartbeats until it is told to stop. What it was answered last.
fn beat(broker: &Broker, lease: &Lease, every: Duration, stop: &AtomicBool) -> Lease {
    let mut last = broker.renew(lease).expect("it is held");
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(every);
        last = broker
            .renew(lease)
            .unwrap_or_else(|error| panic!("a heartbeat was refused: {error}"));
    }
    last
}

/// Turns the clock as `steps` say while everything has a deadline, and over a restart.
fn nothing_comes_early_or_late(step: &str, steps: &[i64]) {
    let Some(clock) = TurnedClock::new(4) else {
        return;
    };
    let broker = clock.host.start();
    let keeps = broker.grant(&json!({"select": on(3), "memory": "1GiB", "ttl": "1h"}));
    let lives = broker.grant(&json!({"select": on(3), "memory": "1GiB", "ttl": "1s"}));
    let stop = Stop::default();
    let due = deadlines(&broker);
    thread::scope(|scope| {
        let _at_last = StopAtLast(&stop);
        let beats = scope.spawn(|| beat(&broker, &lives, BEAT, &stop.0));
        for seconds in steps {
            thread::sleep(Duration::from_millis(300));
            clock.set(*seconds);
        }
        let due: Vec<_> = due
            .into_iter()
            .map(|due| scope.spawn(|| due.comes_in_time(step)))
            .collect();
        let failed = due.into_iter().filter_map(|due| due.join().err()).count();
        stop.now();
        assert!(beats.join().unwrap().is_granted(), "{step}");
        assert_eq!(failed, 0, "{step}");
    });
    let last = steps.last().copied().unwrap_or(0);
    let found = ahead(&broker);
    assert!(
        (found - last as f64).abs() < 5.0,
        "{step}: the clock of the broker is {found} s ahead"
    );
    times_are_sane(&broker, &keeps, step);

    broker.kill();
    clock.set(0);
    let broker = clock.host.start();
    let kept = broker.lease(&keeps.id);
    assert_eq!(
        (kept.state, kept.fence),
        (LeaseState::Active, keeps.fence),
        "{step}"
    );
    times_are_sane(&broker, &keeps, step);
    let next = broker.grant(&json!({"memory": "1GiB"}));
    assert!(next.fence > keeps.fence.max(lives.fence), "{step}");
}

/// What is shown of a lease of an hour that was granted seconds ago.
fn times_are_sane(broker: &Broker, lease: &Lease, step: &str) {
    let left = broker.lease(&lease.id).remaining_ms.unwrap();
    let hour = HOUR as u64 * 1000;
    assert!(
        (hour - 30_000..=hour).contains(&left),
        "{step}: {left} ms left"
    );
    let renewed = broker.renew(lease).unwrap();
    let fresh = broker.grant(&json!({"memory": "1MiB"}));
    broker.release(&fresh);
    let expires = time(renewed.expires_at.as_ref().unwrap());
    let left = expires.duration_since(time(&fresh.created_at)).as_secs();
    assert!(
        (HOUR - 5..=HOUR).contains(&left),
        "{step}: {left} s by the calendar"
    );
}

#[test]
fn steps_of_the_wall_clock_move_no_deadline() {
    let steps: [(&str, &[i64]); 4] = [
        ("an hour back", &[-HOUR]),
        ("a day ahead", &[DAY]),
        ("a year ahead", &[YEAR]),
        ("a year ahead and back", &[YEAR, 0]),
    ];
    thread::scope(|scope| {
        for (step, steps) in steps {
            scope.spawn(move || nothing_comes_early_or_late(step, steps));
        }
    });
    eprintln!(
        "clocks: {} steps of the wall clock, 9 deadlines each, and a restart",
        steps.len()
    );
}

/// Stops a broker for so many tenths of the ttl of one second.
fn stopped_for(tenths: u64) {
    let host = Host::with_cards(1);
    let broker = host.start();
    let asked = Instant::now();
    let silent = broker.grant(&json!({"memory": "1GiB", "ttl": "1s"}));
    let beats = broker.grant(&json!({"memory": "1GiB", "ttl": "1s"}));
    let stop = Stop::default();
    let length = Duration::from_millis(100 * tenths);
    thread::scope(|scope| {
        let _at_last = StopAtLast(&stop);
        let alive = scope.spawn(|| beat(&broker, &beats, BEAT, &stop.0));
        thread::sleep(Duration::from_millis(300));
        broker.process().signal(Signal::STOP);
        thread::sleep(length);
        let resumed = Instant::now();
        broker.process().signal(Signal::CONT);
        let over = eventually("the silent holder expires", || {
            Some(broker.lease(&silent.id)).filter(Lease::is_over)
        });
        assert_eq!(over.end_reason, Some(EndReason::Expired));
        let (held, since) = (asked.elapsed(), resumed.elapsed());
        assert!(held >= Duration::from_secs(1), "early, after {held:?}");
        // The loop had wanted to wake within half a second, and calls more than a second a pause.
        if length > Duration::from_millis(1_600) {
            assert!(
                since >= PAUSE_GRACE,
                "{since:?} after a pause of {length:?}"
            );
        }
        let latest = PAUSE_GRACE + LATE;
        assert!(since < latest, "{since:?} after a pause of {length:?}");
        stop.now();
        assert!(alive.join().unwrap().is_granted(), "stopped for {length:?}");
    });
}

#[test]
fn a_broker_that_was_stopped_takes_late_heartbeats_before_it_expires_anybody() {
    let tenths = [5, 10, 12, 15, 20, 30];
    thread::scope(|scope| {
        for tenths in tenths {
            scope.spawn(move || stopped_for(tenths));
        }
    });
    eprintln!(
        "clocks: stopped for {tenths:?} tenths of a ttl, with a silent and a living holder each"
    );
}

#[test]
fn a_supervisor_that_is_stopped_is_unresponsive_and_nobody_is_killed() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let job = host.cli(&[
        "run", "--memory", "1GiB", "--ttl", "1s", "--", "sleep", "60",
    ]);
    let lease = eventually("it is leased", || {
        broker.live_leases().into_iter().find(Lease::is_granted)
    });
    assert_eq!(lease.holder.kind, HolderKind::Process);
    let pid = lease.holder.pid.unwrap();
    job.signal(Signal::STOP);
    broker.until(&lease.id, "is unresponsive", |lease| lease.unresponsive);
    for_as_long(Duration::from_millis(1_500), "held, and alive", || {
        broker.lease(&lease.id).state == LeaseState::Active && is_alive(pid)
    });
    job.signal(Signal::CONT);
    broker.until(&lease.id, "responds again", |lease| !lease.unresponsive);
    job.signal(Signal::TERM);
    job.wait();
    broker.until_ended(&lease.id);
}

/// The words that start a program with a boot clock that is so many seconds ahead; `None`, and it is said, where
/// that is not allowed.
fn boot_clock_ahead(seconds: &str, what: &str) -> Option<[String; 4]> {
    let words = ["unshare", "--time", "--boottime", seconds].map(ToOwned::to_owned);
    let tried = Command::new(&words[0])
        .args(&words[1..])
        .arg("true")
        .output();
    if tried.as_ref().is_ok_and(|tried| tried.status.success()) {
        return Some(words);
    }
    let why = tried.map_or_else(
        |error| error.to_string(),
        |tried| String::from_utf8_lossy(&tried.stderr).into_owned(),
    );
    eprintln!("NOT RUN: {what}: no time namespace: {}", why.trim());
    None
}

/// The host with a broker whose boot clock is ahead of the host's.
fn start_ahead(host: Host, words: &[String; 4]) -> (Host, Broker) {
    let host = host.under(&words.each_ref().map(String::as_str));
    let broker = host.start();
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/time")).unwrap();
    assert_ne!(
        of(&broker.process().pid().to_string()),
        of("self"),
        "it has a clock of its own"
    );
    (host, broker)
}

#[test]
fn a_broker_with_a_boot_clock_of_its_own_keeps_its_deadlines_and_knows_its_processes() {
    let Some(words) = boot_clock_ahead("86400", "a broker in a time namespace") else {
        return;
    };
    let host = Host::with_cards(3);
    let (host, broker) = start_ahead(host, &words);
    let due = deadlines(&broker);
    thread::scope(|scope| {
        for due in due {
            scope.spawn(|| due.comes_in_time("a boot clock a day ahead"));
        }
    });
    let job = host.cli(&[
        "run",
        "--gpu",
        "2",
        "--memory",
        "1GiB",
        "--",
        "sh",
        "-c",
        "sleep 0.5; exit 7",
    ]);
    let lease = eventually("it is leased", || {
        broker
            .live_leases()
            .into_iter()
            .find(|lease| lease.holder.kind == HolderKind::Process)
    });
    for_as_long(Duration::from_millis(200), "held", || {
        broker.lease(&lease.id).state == LeaseState::Active
    });
    assert_eq!(job.wait().code, 7);
    let over = broker.until_ended(&lease.id);
    assert!(
        matches!(
            over.end_reason,
            Some(EndReason::Released | EndReason::ProcessGone)
        ),
        "{over:?}"
    );
}

/// The host sleeps for an hour between two brokers: boot time goes on, nobody can send heartbeats.
#[test]
fn an_hour_asleep_between_two_brokers_is_not_held_against_holders() {
    let Some(words) = boot_clock_ahead("3600", "a suspend while no broker runs") else {
        return;
    };
    let host = Host::with_cards(1);
    let broker = host.start();
    let silent = broker.grant(&json!({"memory": "1GiB", "ttl": "1s"}));
    let beats = broker.grant(&json!({"memory": "1GiB", "ttl": "1s"}));
    broker.kill();
    let woke = Instant::now();
    let (_host, broker) = start_ahead(host, &words);
    assert_eq!(
        broker.lease(&silent.id).remaining_ms,
        Some(0),
        "long overdue"
    );
    let stop = Stop::default();
    thread::scope(|scope| {
        let _at_last = StopAtLast(&stop);
        let alive = scope.spawn(|| beat(&broker, &beats, BEAT, &stop.0));
        for_as_long(
            Duration::from_secs(28).saturating_sub(woke.elapsed()),
            "nothing expires in the grace after a start",
            || {
                thread::sleep(Duration::from_millis(100));
                broker.lease(&silent.id).is_granted()
            },
        );
        let over = eventually("the silent holder expires", || {
            Some(broker.lease(&silent.id)).filter(Lease::is_over)
        });
        assert_eq!(over.end_reason, Some(EndReason::Expired));
        assert!(
            woke.elapsed() < Duration::from_secs(36),
            "{:?}",
            woke.elapsed()
        );
        stop.now();
        assert!(alive.join().unwrap().is_granted());
    });
}
