//! `gpu-manager run`: a command under a lease.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use gpu_api::{EndReason, HolderKind, Lease, LeaseState};
use gpu_manager_tests::{Broker, Host, eventually, for_as_long, is_alive, program};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// A job that ends when the file `done` is there.
const JOB: [&str; 4] = [
    "--",
    "sh",
    "-c",
    "echo up; while [ ! -e done ]; do sleep 0.05; done; exit 5",
];

fn run_args<'a>(more: &[&'a str], job: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--memory", "1GiB"], more, job].concat()
}

fn granted(broker: &Broker) -> Lease {
    eventually("it is leased", || {
        broker.live_leases().into_iter().find(Lease::is_granted)
    })
}

/// The end of a lease whose command ended: whoever sees it first, `run` or the broker, says so.
fn is_orderly(over: &Lease) -> bool {
    matches!(
        over.end_reason,
        Some(EndReason::Released | EndReason::ProcessGone)
    )
}

/// A process that no test waits for ends with this value.
struct Orphan(u32);

impl Drop for Orphan {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill_process(
            Pid::from_raw(self.0.cast_signed()).expect("a process id"),
            Signal::KILL,
        );
    }
}

#[test]
fn the_command_sees_its_lease_in_its_environment() {
    let host = Host::with_cards(2);
    let broker = host.start();
    let ran = host.run(&[
        "run", "--gpu", "1", "--memory", "1GiB", "--name", "look", "--", "env",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let value = |name: &str| {
        let mut lines = ran.stdout.lines();
        lines
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_else(|| panic!("no {name}: {}", ran.stdout))
    };
    assert_eq!(value("GPU_MANAGER_DEVICES"), "sim-1");
    let over = broker.until_ended(value("GPU_MANAGER_LEASE"));
    assert_eq!(value("GPU_MANAGER_FENCE"), over.fence.unwrap().to_string());
    assert_eq!(
        (over.holder.name.as_str(), over.holder.kind),
        ("look", HolderKind::Process)
    );
    assert!(is_orderly(&over), "{over:?}");
    assert_eq!(broker.live_leases(), []);
}

#[test]
fn exit_codes_are_those_of_the_command_or_say_what_went_wrong() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let not_a_program = host.dir().join("notes.txt");
    fs::write(&not_a_program, "hello").unwrap();
    fs::set_permissions(&not_a_program, fs::Permissions::from_mode(0o644)).unwrap();
    let notes = not_a_program.display().to_string();
    for (code, args) in [
        (0, &["run", "--memory", "1GiB", "--", "true"][..]),
        (1, &["run", "--memory", "1GiB", "--", "false"]),
        (7, &["run", "--memory", "1GiB", "--", "sh", "-c", "exit 7"]),
        (
            137,
            &["run", "--memory", "1GiB", "--", "sh", "-c", "kill -9 $$"],
        ),
        (
            127,
            &["run", "--memory", "1GiB", "--", "no-such-program-anywhere"],
        ),
        (126, &["run", "--memory", "1GiB", "--", notes.as_str()]),
        (125, &["run", "--memory", "12parsecs", "--", "true"]),
        (125, &["run", "--memory", "1TiB", "--", "true"]),
        (125, &["run", "--class", "none", "--", "true"]),
        (125, &["run", "--gpu", "9", "--", "true"]),
        (125, &["run"]),
    ] {
        let ran = host.run(args);
        assert_eq!(ran.code, code, "{args:?}: {}", ran.stderr);
    }
    let held = broker.grant(&json!({}));
    let waited = host.run(&["run", "--wait-timeout", "300ms", "--", "true"]);
    assert_eq!(waited.code, 124, "{}", waited.stderr);
    assert!(
        waited.stderr.contains("sim-0"),
        "it says why it waits: {}",
        waited.stderr
    );
    broker.release(&held);
    assert_eq!(broker.live_leases(), [], "nothing is left of any of them");
    broker.kill();
    let nobody = host.run(&["run", "--memory", "1GiB", "--", "true"]);
    assert_eq!(nobody.code, 125, "{}", nobody.stderr);
    assert!(
        nobody.stderr.contains("no broker answers"),
        "{}",
        nobody.stderr
    );
}

#[test]
fn it_waits_its_turn_and_says_for_whom() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let held = broker.grant(&json!({"holder": {"name": "ann"}}));
    let job = host.cli(&["run", "--", "true"]);
    job.until_stderr("ann");
    broker.release(&held);
    assert_eq!(job.wait().code, 0);
}

#[test]
fn a_drained_command_that_will_not_go_is_killed_at_the_deadline() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let stubborn = [
        "--",
        "sh",
        "-c",
        "trap 'echo asked' TERM; echo up; while :; do sleep 0.1; done",
    ];
    let job = host.cli(&run_args(&[], &stubborn));
    job.until_stdout("up");
    let lease = granted(&broker);
    let began = Instant::now();
    assert_eq!(host.run(&["drain", &lease.id, "--grace", "1500ms"]).code, 0);
    job.until_stdout("asked");
    let ran = job.wait();
    assert_eq!(ran.code, 137, "{}", ran.stderr);
    assert!(
        began.elapsed() >= Duration::from_millis(1400),
        "not before its time: {:?}",
        began.elapsed()
    );
    let over = broker.until_ended(&lease.id);
    assert!(!is_alive(lease.holder.pid.unwrap()), "{over:?}");
    assert_eq!(broker.device("sim-0").memory.granted, 0);
}

#[test]
fn a_drained_command_that_goes_is_not_killed() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let polite = [
        "--",
        "sh",
        "-c",
        "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done",
    ];
    let job = host.cli(&run_args(&[], &polite));
    job.until_stdout("up");
    let lease = granted(&broker);
    assert_eq!(host.run(&["drain", &lease.id, "--grace", "1m"]).code, 0);
    assert_eq!(job.wait().code, 3);
    assert!(is_orderly(&broker.until_ended(&lease.id)));
}

#[test]
fn signals_reach_the_command() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let job = host.cli(&run_args(
        &[],
        &[
            "--",
            "sh",
            "-c",
            "trap 'exit 9' INT; echo up; while :; do sleep 0.05; done",
        ],
    ));
    job.until_stdout("up");
    job.signal(Signal::INT);
    assert_eq!(job.wait().code, 9);
    assert_eq!(broker.live_leases(), []);
}

#[test]
fn a_command_whose_supervisor_is_killed_keeps_its_lease_until_it_exits() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let job = host.cli(&run_args(&["--ttl", "1s"], &JOB));
    job.until_stdout("up");
    let lease = granted(&broker);
    let orphan = Orphan(lease.holder.pid.expect("`run` registers its command"));
    job.kill();
    let silent = broker.until(&lease.id, "is unresponsive", |lease| lease.unresponsive);
    assert_eq!(
        silent.state,
        LeaseState::Active,
        "no heartbeat, but a living process"
    );
    assert!(is_alive(orphan.0));
    fs::write(host.dir().join("done"), "").unwrap();
    let over = broker.until_ended(&lease.id);
    assert_eq!(over.end_reason, Some(EndReason::ProcessGone));
    broker.grant(&json!({}));
}

#[test]
fn a_broker_that_is_away_for_three_ttl_finds_the_command_running_and_leased() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let job = host.cli(&run_args(&["--ttl", "1s"], &JOB));
    job.until_stdout("up");
    let lease = granted(&broker);
    let pid = lease.holder.pid.unwrap();
    broker.kill();
    job.until_stderr("runs on");
    for_as_long(Duration::from_millis(3200), "the command runs", || {
        is_alive(pid)
    });

    let broker = host.start();
    let kept = broker.lease(&lease.id);
    assert_eq!((kept.state, kept.fence), (LeaseState::Active, lease.fence));
    job.until_stderr("the broker is back");
    let renewed = broker.until(&lease.id, "is renewed", |now| {
        now.revision > kept.revision || now.expires_at > kept.expires_at
    });
    assert!(renewed.is_granted() && !renewed.unresponsive);
    assert!(is_alive(pid));
    fs::write(host.dir().join("done"), "").unwrap();
    assert_eq!(job.wait().code, 5);
    assert!(is_orderly(&broker.until_ended(&lease.id)));
}

#[test]
fn a_command_that_ended_while_the_broker_was_away_is_found_gone() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let job = host.cli(&run_args(&["--ttl", "1s"], &JOB));
    job.until_stdout("up");
    let lease = granted(&broker);
    broker.kill();
    fs::write(host.dir().join("done"), "").unwrap();
    assert_eq!(job.wait().code, 5, "its own code, broker or not");
    let broker = host.start();
    assert_eq!(
        broker.until_ended(&lease.id).end_reason,
        Some(EndReason::ProcessGone)
    );
}

#[test]
fn a_run_within_a_run_uses_the_outer_lease_or_is_refused() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let program = program().display().to_string();
    let nested = |memory: &'static str| {
        let script = format!(
            "echo $GPU_MANAGER_LEASE; exec {program} run --memory {memory} -- sh -c 'echo $GPU_MANAGER_LEASE'"
        );
        host.run(&["run", "--memory", "2GiB", "--", "sh", "-c", &script])
    };
    let fits = nested("1GiB");
    assert_eq!(fits.code, 0, "{}", fits.stderr);
    let ids: Vec<&str> = fits.stdout.lines().collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
    assert_eq!(broker.all_leases().len(), 1);
    let too_big = nested("4GiB");
    assert_eq!(too_big.code, 125, "{}", too_big.stderr);
    assert!(too_big.stderr.contains("holds 2 GiB"), "{}", too_big.stderr);
}

#[test]
fn a_lease_that_is_ended_by_force_ends_the_command() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let job = host.cli(&run_args(
        &[],
        &[
            "--",
            "sh",
            "-c",
            "trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done",
        ],
    ));
    job.until_stdout("up");
    let lease = granted(&broker);
    assert_eq!(
        host.run(&["release", "--emergency", "--lease", &lease.id])
            .code,
        0
    );
    assert_eq!(job.wait().code, 4);
    assert_eq!(
        broker.until_ended(&lease.id).end_reason,
        Some(EndReason::Emergency)
    );
}

#[test]
fn acquire_prints_what_a_shell_can_use() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let acquired = host.run(&["acquire", "--memory", "1GiB"]);
    assert_eq!(acquired.code, 0, "{}", acquired.stderr);
    let lease = broker.live_leases().remove(0);
    assert!(
        acquired
            .stdout
            .contains(&format!("export GPU_MANAGER_LEASE={}", lease.id)),
        "{}",
        acquired.stdout
    );
    assert_eq!(host.run(&["renew", &lease.id]).code, 0);
    assert_eq!(host.run(&["release", &lease.id]).code, 0);
    assert_eq!(host.run(&["renew", &lease.id]).code, 1, "after the end");
    let held = host.cli(&["acquire", "--memory", "1GiB", "--hold"]);
    let lease = granted(&broker);
    held.until_stdout("export GPU_MANAGER_LEASE");
    held.signal(Signal::INT);
    assert_eq!(held.wait().code, 0);
    assert_eq!(
        broker.until_ended(&lease.id).end_reason,
        Some(EndReason::Released)
    );
}
