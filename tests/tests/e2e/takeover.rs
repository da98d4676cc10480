//! An emergency release when the broker has too much to do, is gone, or hangs. Fences rise in every case.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gpu_api::{EmergencyResult, EndReason, Lease, LeaseState, paths};
use gpu_manager_tests::{
    Address, Broker, Conversation, Host, Process, Ran, Request, eventually, is_alive, problem,
};
use rustix::process::{Signal, Uid};
use rustix::thread::set_thread_uid;
use serde_json::json;

/// Exit codes, as `gpu-manager --help` has them.
const NO_BROKER: i32 = 3;
const HUNG: i32 = 7;

/// Under which an `acquire` that says nothing of it waits.
const WAITS: &str = "schema = 1\n[placement]\nreserve = \"0B\"\n[reclaim]\ndelay = \"200ms\"\n\
    [defaults]\nwait = \"25s\"\n";

/// What a listener serves at once.
const CONNECTIONS_MAX: usize = 512;
const BUSY_CLIENTS: usize = 128;
const EMERGENCIES: usize = 100;
/// An operator does not wait longer, on the busiest of machines.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A release that is not answered for so long is one of a broker that hangs.
const HANGS_AFTER: Duration = Duration::from_secs(10);
/// So many looks in a row find a client without an answer where the store hangs.
const SILENT_LOOKS: usize = 4;

#[test]
fn emergencies_are_answered_at_once_while_a_hundred_clients_renew_and_ask_as_fast_as_they_can() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let held = broker.grant(&json!({"memory": "1GiB", "ttl": "1h"}));
    let mut stuck = Vec::new();
    stuck.resize_with(EMERGENCIES, || {
        broker.grant(&json!({"memory": "1MiB", "ttl": "1h"}))
    });
    let crowd = Crowd::of(BUSY_CLIENTS, &broker, &held);
    let mut took = Vec::new();
    for lease in &stuck {
        let body = json!({"leases": [lease.id], "reason": "drill"});
        let began = Instant::now();
        let answer = Request::post(paths::EMERGENCY_RELEASE, &body).send(broker.socket());
        took.push(began.elapsed());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.read::<EmergencyResult>().released.len(), 1);
    }
    let served = crowd.end();
    took.sort_unstable();
    let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    eprintln!("{EMERGENCIES} emergencies beside {served} other answers: p50 {p50:?}, p99 {p99:?}");
    assert!(p99 <= ANSWER_MAX, "p99 {p99:?}");
    assert!(served > 1000, "the broker had little to do: {served}");
}

#[test]
fn a_port_full_of_connections_that_say_nothing_does_not_keep_an_operator_out() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({}));
    let stuck: Vec<_> = (0..CONNECTIONS_MAX + 64)
        .map(|_| Conversation::open(broker.address()))
        .collect();
    let ran = host.run(&["release", "--emergency", "--lease", &lease.id]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    drop(stuck);
    assert_eq!(
        broker.until_ended(&lease.id).end_reason,
        Some(EndReason::Emergency)
    );
}

#[test]
fn a_port_that_fills_up_while_somebody_waits_takes_nothing_from_him() {
    let host = Host::with_cards(1).policy(WAITS);
    let broker = host.start();
    let held = broker.grant(&json!({"wait": "0s", "ttl": "1h"}));
    let waiter = at(&host, &broker.url(), &["acquire"]);
    broker.until_waiting(1);
    let crowd = fill(&broker);
    // The broker is asked whether it lives, several times.
    thread::sleep(Duration::from_secs(9));
    released_on_socket(&broker, &held);
    let ran = waiter.wait();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("GPU_MANAGER_LEASE"), "{}", ran.stdout);
    drop(crowd);
}

#[test]
fn a_healthy_broker_whose_port_is_full_is_not_taken_over() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1h"}));
    let crowd = fill(&broker);
    let state = host.state_dir().display().to_string();
    let words = ["release", "--emergency", "--takeover", "--lease", &lease.id];
    let words = [&words[..], &["--state-dir", &state]].concat();
    let ran = at(&host, &broker.url(), &words).wait();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains(&host.url()),
        "it says where: {}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("killing"), "{}", ran.stderr);
    assert!(is_alive(broker.process().pid()));
    drop(crowd);
    assert_eq!(
        broker.until_ended(&lease.id).end_reason,
        Some(EndReason::Emergency)
    );
}

/// The command line, with the broker at `url`.
fn at(host: &Host, url: &str, args: &[&str]) -> Process {
    let mut command = host.command();
    command.args(args).env("GPU_MANAGER_URL", url);
    Process::start(command, host.dir())
}

/// Takes every place of the port, and the queue for them.
fn fill(broker: &Broker) -> Vec<Conversation> {
    let open = || Conversation::open(broker.address());
    std::iter::repeat_with(open)
        .take(CONNECTIONS_MAX + 8)
        .collect()
}

fn released_on_socket(broker: &Broker, lease: &Lease) {
    let body = json!({"leases": [lease.id], "reason": "over"});
    let answer = Request::post(paths::EMERGENCY_RELEASE, &body).send(broker.socket());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_socket_full_of_another_users_connections_does_not_keep_an_operator_out() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({}));
    let everybody = Permissions::from_mode(0o755);
    fs::set_permissions(host.dir(), everybody).unwrap();
    let socket = broker.socket().clone();
    let stranger = thread::spawn(move || {
        // Of this thread alone.
        set_thread_uid(Uid::from_raw(65534)).unwrap();
        let stuck: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| Conversation::open(&socket))
            .collect();
        let refused = Request::get(paths::STATUS).send(&socket);
        (stuck, refused)
    });
    let (stuck, refused) = stranger.join().unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.problem().code.as_str(), "overloaded");
    let ran = host.run(&["release", "--emergency", "--lease", &lease.id]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    drop(stuck);
}

#[test]
fn where_no_broker_lives_leases_are_released_on_the_store() {
    let host = Host::with_cards(5);
    let broker = host.start();
    let [first, second, third] = ["sim-0", "sim-1", "sim-2"]
        .map(|id| broker.grant(&json!({"select": format!("device.id == '{id}'"), "ttl": "1h"})));
    broker.kill();

    let unsaid = stored(&host, &[]);
    assert_eq!(
        unsaid.code, 2,
        "the same consent is needed: {}",
        unsaid.stderr
    );
    let unknown = stored(&host, &["--device", "sim-7"]);
    assert_eq!(unknown.code, 2);
    assert!(
        unknown.stderr.contains("sim-0, sim-1, sim-2"),
        "{}",
        unknown.stderr
    );

    let ran = stored(
        &host,
        &["--device", "sim-0", "--cordon", "--reason", "smoke"],
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("released 1") && ran.stdout.contains(&first.id),
        "{}",
        ran.stdout
    );
    assert!(ran.stderr.contains("no broker runs"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("verified that the holders are gone"),
        "{}",
        ran.stderr
    );
    let ran = stored(&host, &["--lease", &second.id, "--json"]);
    let result: EmergencyResult = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(result.released[0].devices, ["sim-1"]);

    let broker = host.start();
    for lease in [&first, &second] {
        must_be_over(&broker, lease);
        assert!(!broker.fence_is_current("sim-0", lease.fence.unwrap()));
    }
    assert_eq!(broker.lease(&third.id).state, LeaseState::Active);
    assert_eq!(broker.lease(&third.id).fence, third.fence);
    assert_eq!(broker.lease(&third.id).expires_at, third.expires_at);
    let cordon = broker.device("sim-0").cordon.expect("no new grants on it");
    assert_eq!(cordon.reason.as_deref(), Some("smoke"));
    let next = broker.grant(&json!({}));
    assert!(next.fence > first.fence.max(second.fence).max(third.fence));
    broker.kill();

    let ran = stored(&host, &["--all", "--yes"]);
    assert!(
        ran.stdout.contains("released 2"),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
    let again = stored(&host, &["--all", "--yes"]);
    assert!(
        again.stdout.contains("released 0"),
        "{}{}",
        again.stdout,
        again.stderr
    );
    assert!(host.start().grant(&json!({})).fence > next.fence);
}

#[test]
fn a_holder_is_killed_by_its_identity_where_no_broker_lives() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let holder = host.stubborn();
    let lease = broker.grant_to(&holder);
    broker.kill();
    let spared = stored(&host, &["--lease", &lease.id]);
    assert_eq!(spared.code, 0, "{}", spared.stderr);
    assert!(
        spared
            .stderr
            .contains(&format!("pid {}, still lives", holder.pid())),
        "{}",
        spared.stderr
    );
    assert!(is_alive(holder.pid()), "nobody said --kill");

    let ran = stored(&host, &["--lease", &lease.id, "--kill"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(holder.wait().code, 137);
    let broker = host.start();
    assert_eq!(
        broker.until_ended(&lease.id).end_reason,
        Some(EndReason::Emergency)
    );
    assert!(broker.grant(&json!({})).fence > lease.fence);
}

#[test]
fn a_broker_that_hangs_is_named_and_left_alone_unless_it_is_to_be_taken_over() {
    let host = Host::with_cards(3);
    let broker = host.start();
    let [stuck, other] = ["sim-0", "sim-1"]
        .map(|id| broker.grant(&json!({"select": format!("device.id == '{id}'"), "ttl": "1h"})));
    let pid = broker.process().pid();
    broker.process().signal(Signal::STOP);
    let began = Instant::now();
    let ran = stored(&host, &["--lease", &stuck.id]);
    assert_eq!(ran.code, HUNG, "{}", ran.stderr);
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
    for part in [
        &format!("pid {pid}, which is stopped"),
        "does not answer within 6 s",
        "nothing was changed",
        "--takeover",
        &format!("kill -CONT {pid}"),
    ] {
        assert!(ran.stderr.contains(part), "`{part}` in {}", ran.stderr);
    }
    broker.process().signal(Signal::CONT);
    assert_eq!(broker.lease(&stuck.id).state, LeaseState::Active);

    broker.process().signal(Signal::STOP);
    let unsaid = stored(&host, &["--takeover"]);
    assert_eq!(
        unsaid.code, 2,
        "the same consent is needed: {}",
        unsaid.stderr
    );
    assert!(is_alive(pid));
    let ran = stored(&host, &["--lease", &stuck.id, "--takeover"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains(&format!("killing the broker (pid {pid}")),
        "{}",
        ran.stderr
    );
    assert!(ran.stdout.contains("released 1"), "{}", ran.stdout);
    assert_eq!(broker.into_process().wait().code, 137);

    let broker = host.start();
    must_be_over(&broker, &stuck);
    assert_eq!(broker.lease(&other.id).state, LeaseState::Active);
    assert!(broker.grant(&json!({})).fence > stuck.fence.max(other.fence));
}

#[test]
fn a_broker_that_answers_at_last_is_not_killed() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1h"}));
    broker.process().signal(Signal::STOP);
    let state = host.state_dir().display().to_string();
    let words = ["release", "--emergency", "--takeover", "--lease", &lease.id];
    let cli = host.cli(&[&words[..], &["--state-dir", &state]].concat());
    // It was silent for six seconds, and is asked for three more before it would be killed.
    thread::sleep(Duration::from_millis(7500));
    broker.process().signal(Signal::CONT);
    let ran = cli.wait();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("nobody is killed"), "{}", ran.stderr);
    assert!(is_alive(broker.process().pid()));
    must_be_over(&broker, &lease);
}

#[test]
fn a_broker_whose_store_hangs_is_taken_over_although_it_still_answers_reads() {
    let Hanging {
        host,
        broker,
        lease,
        crowd,
    } = Hanging::start();
    let state = host.state_dir().display().to_string();
    let words = ["release", "--emergency", "--state-dir", &state, "--all"];
    let cli = host.cli(&[&words[..], &["--reason", "the disk hangs", "--takeover"]].concat());
    cli.until_stderr("killing the broker");
    let ran = cli.wait();
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stderr.contains("did not answer it within"),
        "{}",
        ran.stderr
    );
    broker.into_process().wait();
    crowd.end();
    let broker = host.alone().start();
    must_be_over(&broker, &lease);
    assert!(broker.grant(&json!({})).fence > lease.fence);
}

#[test]
fn a_broker_that_was_not_asked_is_left_alone_when_the_one_that_was_hangs() {
    let hanging = Hanging::start();
    let other = Host::with_cards(1);
    let broker = other.start();
    let lease = broker.grant(&json!({"ttl": "1h"}));
    let state = other.state_dir().display().to_string();
    let mut command = other.command();
    // As through a tunnel to another host.
    command
        .args([
            "release",
            "--emergency",
            "--takeover",
            "--state-dir",
            &state,
        ])
        .args(["--lease", &hanging.lease.id])
        .env("GPU_MANAGER_URL", hanging.broker.url());
    let ran = Process::start(command, other.dir()).wait();
    assert_eq!(ran.code, HUNG, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("it may still do it"), "{}", ran.stderr);
    assert!(is_alive(broker.process().pid()));
    assert_eq!(broker.lease(&lease.id).state, LeaseState::Active);
    hanging.crowd.over.store(true, Ordering::Relaxed);
}

#[test]
fn a_broker_that_dies_of_the_release_is_not_called_one_that_hangs() {
    let host = Host::with_cards(1).env("GPU_MANAGER_FAIL_POINT", "emergency_applied:1");
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1h"}));
    let ran = host.run(&["release", "--emergency", "--lease", &lease.id]);
    assert_eq!(ran.code, HUNG, "whose it was is not known: {}", ran.stderr);
    assert_ne!(broker.into_process().wait().code, 0);

    let broker = host.start();
    assert_eq!(broker.lease(&lease.id).state, LeaseState::Active);
    let began = Instant::now();
    let ran = stored(&host, &["--lease", &lease.id]);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("released 1"), "{}", ran.stdout);
    assert!(ran.stderr.contains("no broker runs"), "{}", ran.stderr);
    assert!(began.elapsed() < HANGS_AFTER, "it is not waited for");
    assert_ne!(broker.into_process().wait().code, 0);
    must_be_over(&host.env("GPU_MANAGER_FAIL_POINT", "").start(), &lease);
}

#[test]
fn a_broker_that_still_opens_its_store_is_named() {
    let host = Host::with_cards(1);
    host.start().stop();
    let store = host.state_dir().join("store.redb").display().to_string();
    let trace = host.dir().join("strace.log").display().to_string();
    let slow = "inject=flock:delay_enter=10000000";
    let words = ["strace", "-D", "-f", "-o", &trace, "-P", &store, "-e", slow];
    let host = host.under(&words);
    let broker = host.serve(&[]);
    eventually("it says who it is", || {
        host.state_dir().join("broker.pid").exists().then_some(())
    });
    let ran = stored(&host, &["--all", "--yes"]);
    assert_eq!(ran.code, HUNG, "{}{}", ran.stdout, ran.stderr);
    let named = format!("pid {}", broker.pid());
    assert!(ran.stderr.contains(&named), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("does not have the store"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains("no broker runs"), "{}", ran.stderr);
}

#[test]
fn whom_only_a_file_calls_the_broker_is_never_killed() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1h"}));
    broker.kill();
    let stale = stored(&host, &["--lease", &lease.id, "--takeover"]);
    assert_eq!(stale.code, 0, "{}", stale.stderr);
    assert!(stale.stderr.contains("no broker runs"), "{}", stale.stderr);

    let mut command = Command::new("sleep");
    command.arg("1000");
    let innocent = Process::start(command, host.dir());
    name_the_broker(&host, innocent.pid());
    let named = stored(&host, &["--all", "--yes"]);
    assert_eq!(named.code, HUNG, "{}", named.stderr);
    assert!(
        named.stderr.contains("does not have the store") && named.stderr.contains("hint"),
        "{}",
        named.stderr
    );
    let free = stored(&host, &["--all", "--yes", "--takeover"]);
    assert_eq!(free.code, 0, "nobody has the store: {}", free.stderr);
    assert!(free.stderr.contains("nobody is killed"), "{}", free.stderr);

    let broker = host.start();
    broker.process().signal(Signal::STOP);
    name_the_broker(&host, innocent.pid());
    let taken = stored(&host, &["--all", "--yes", "--takeover"]);
    assert_eq!(taken.code, HUNG, "another has it: {}", taken.stderr);
    assert!(taken.stderr.contains("fuser"), "{}", taken.stderr);
    assert!(is_alive(innocent.pid()) && is_alive(broker.process().pid()));
}

/// Writes what a broker of this pid would have written of itself.
fn name_the_broker(host: &Host, pid: u32) {
    let read = |path: &str| fs::read_to_string(path).expect("the kernel says");
    let stat = read(&format!("/proc/{pid}/stat"));
    let behind_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = behind_name.split_whitespace().nth(19).unwrap_or_default();
    let boot = read("/proc/sys/kernel/random/boot_id");
    let text = format!("{pid}\nstart_ticks {ticks}\nboot_id {}\n", boot.trim());
    fs::write(host.state_dir().join("broker.pid"), text).expect("the directory is ours");
}

#[test]
fn a_broker_that_answers_is_not_taken_over() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({}));
    let ran = stored(&host, &["--all", "--yes", "--takeover"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("no takeover was needed"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        broker.until_ended(&lease.id).end_reason,
        Some(EndReason::Emergency)
    );
    assert!(broker.grant(&json!({})).fence > lease.fence);
}

#[test]
fn the_broker_of_a_state_directory_is_found_where_it_listens() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({}));
    let state = host.state_dir().display().to_string();
    let args = [
        "release",
        "--emergency",
        "--all",
        "--yes",
        "--state-dir",
        &state,
    ];
    let mut command = host.command();
    command
        .args(args)
        .env("GPU_MANAGER_URL", "unix:/nowhere/at/all.sock");
    let ran = Process::start(command, host.dir()).wait();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains(&host.url()),
        "it says where: {}",
        ran.stderr
    );
    broker.until_ended(&lease.id);
}

#[test]
fn where_there_is_neither_a_broker_nor_a_store_that_is_said() {
    let host = Host::with_cards(1);
    let ran = stored(&host, &["--all", "--yes"]);
    assert_eq!(ran.code, NO_BROKER, "{}", ran.stderr);
    for part in ["no broker answers", "no store", "hint", "--state-dir"] {
        assert!(ran.stderr.contains(part), "`{part}` in {}", ran.stderr);
    }
    assert!(!host.state_dir().join("store.redb").exists());
}

/// It was ended, and does not come back; its memory is granted when that is verified.
fn must_be_over(broker: &Broker, lease: &Lease) {
    let over = broker.lease(&lease.id);
    assert_eq!(over.end_reason, Some(EndReason::Emergency), "{over:?}");
    assert_eq!(problem(broker.renew(lease)).code.as_str(), "ended");
}

/// An emergency release that knows where the store is.
fn stored(host: &Host, args: &[&str]) -> Ran {
    let state = host.state_dir().display().to_string();
    let words = ["release", "--emergency", "--state-dir", &state];
    host.run(&[&words, args].concat())
}

/// A broker that answers reads, and whose store hangs for longer than a release is waited for.
struct Hanging {
    crowd: Crowd,
    broker: Broker,
    lease: Lease,
    host: Host,
}

impl Hanging {
    fn start() -> Self {
        let host = Host::with_cards(2);
        let store = host.state_dir().join("store.redb").display().to_string();
        let trace = host.dir().join("strace.log").display().to_string();
        // The tracer lets a killed broker go after that: the release is not answered (10 s), and what is left of
        // it then is not more than a killed broker is waited for (10 s), however late it was seen to hang.
        let hang = "inject=fdatasync:delay_enter=18000000:when=30+";
        let words = ["strace", "-D", "-f", "-o", &trace, "-P", &store, "-e", hang];
        let host = host.under(&words);
        let broker = host.start();
        let lease = broker.grant(&json!({"ttl": "1h", "select": "device.id == 'sim-0'"}));
        let crowd = Crowd::of(1, &broker, &lease);
        until_silent(&crowd);
        assert_eq!(broker.status().leases.active, 1, "reads are answered");
        Self {
            crowd,
            broker,
            lease,
            host,
        }
    }
}

/// Several looks in a row find nothing: one finds nothing on a busy machine too.
fn until_silent(crowd: &Crowd) {
    let (mut before, mut silent) = (0, 0);
    eventually("no client is answered any more", || {
        thread::sleep(Duration::from_millis(500));
        let served = crowd.served.load(Ordering::Relaxed);
        silent = match served > 0 && served == before {
            true => silent + 1,
            false => 0,
        };
        before = served;
        (silent == SILENT_LOOKS).then_some(())
    });
}

/// Clients that leave the broker no rest.
struct Crowd {
    over: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn of(clients: usize, broker: &Broker, held: &Lease) -> Self {
        let (over, served) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let renew = Request::post(&paths::LEASE_RENEW.replace("{id}", &held.id), &json!({}));
        let ask = Request::post(
            paths::LEASES,
            &json!({"memory": "1MiB", "wait": "0s", "ttl": "5s"}),
        );
        let client = |n: usize| {
            let (over, served) = (over.clone(), served.clone());
            let request = match n % 2 {
                0 => renew.clone(),
                _ => ask.clone(),
            };
            let address: Address = broker.address().clone();
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let sent = catch_unwind(AssertUnwindSafe(|| request.send(&address)));
                    let answered = sent.is_ok_and(|answer| answer.status != 0);
                    served.fetch_add(u64::from(answered), Ordering::Relaxed);
                }
            })
        };
        Self {
            clients: (0..clients).map(client).collect(),
            over,
            served,
        }
    }

    /// How many answers there were.
    fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("a client does not panic");
        }
        self.served.load(Ordering::Relaxed)
    }
}
