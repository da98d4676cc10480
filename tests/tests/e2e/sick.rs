//! The command line where the broker is gone, hangs, or started safe: what it says, and what it exits with.

use std::fs;

use gpu_manager_tests::{Host, Process};
use rustix::process::Signal;
use serde_json::json;

use crate::safe_start::kill_right_after_start;

/// A verb, and its exit codes with no broker, one that hangs, and one that started safe: the table in
/// `docs/recovery.md`. `{n}` is a lease, `STATE` the state directory.
const CODES: [(&str, i32, i32, i32); 37] = [
    ("status --state-dir STATE", 0, 3, 0),
    ("leases --state-dir STATE", 0, 3, 0),
    ("history --state-dir STATE", 0, 3, 0),
    ("usage --state-dir STATE", 0, 3, 0),
    ("devices", 3, 3, 0),
    ("queue", 3, 3, 0),
    ("why {0}", 3, 3, 0),
    ("watches", 3, 3, 0),
    ("policy show", 3, 3, 0),
    ("policy override list", 3, 3, 0),
    ("reload --status", 3, 3, 0),
    ("reload --history", 3, 3, 0),
    ("renew {0}", 3, 3, 0),
    ("release {0}", 3, 3, 0),
    ("drain {1}", 3, 3, 0),
    ("revoke {2}", 3, 3, 0),
    ("cordon sim-0", 3, 3, 1),
    ("uncordon sim-0", 3, 3, 1),
    ("clear-quarantine sim-0", 3, 3, 1),
    ("acquire --memory 1GiB", 3, 3, 1),
    ("acquire --memory 1GiB --wait-timeout 3s", 3, 124, 124),
    ("acquire --memory 1GiB --hold", 3, 3, 1),
    ("run --memory 1GiB --wait-timeout 3s -- true", 125, 124, 124),
    ("run --gpu sim-0 --wait-timeout 3s -- true", 125, 124, 124),
    ("run --memory 1GiB --wait-timeout 0s -- true", 125, 125, 125),
    ("policy explain --memory 1GiB", 3, 3, 1),
    ("policy check", 3, 3, 1),
    ("policy plan", 3, 3, 1),
    ("policy diff", 3, 3, 1),
    ("policy apply --yes", 3, 3, 1),
    ("reload", 3, 3, 1),
    ("--hot-reload", 3, 3, 1),
    ("policy override clear", 3, 3, 0),
    ("token show --state-dir STATE", 0, 0, 0),
    ("release --emergency --lease {3}", 3, 3, 0),
    ("release --emergency --lease {4} --state-dir STATE", 0, 7, 0),
    ("store check --state-dir STATE", 0, 1, 1),
];

#[test]
fn every_verb_ends_with_its_exit_code_and_says_why() {
    let host = Host::with_cards(1).safe_starts();
    let broker = host.start();
    let held: Vec<String> = (0..5)
        .map(|_| broker.grant(&json!({"memory": "1GiB", "ttl": "1h"})).id)
        .collect();
    let started = |line: &str| {
        let mut line = line.replace("STATE", &host.state_dir().display().to_string());
        for (n, id) in held.iter().enumerate() {
            line = line.replace(&format!("{{{n}}}"), id);
        }
        host.cli(&line.split(' ').collect::<Vec<_>>())
    };
    broker.process().signal(Signal::STOP);
    let asked: Vec<Process> = CODES.iter().map(|(line, ..)| started(line)).collect();
    for ((line, _, code, _), process) in CODES.iter().zip(asked) {
        must_end_with(process, *code, &format!("{line}, where one hangs"));
    }
    broker.kill();
    kill_right_after_start(&host, 2);
    let safe = host.start_safe();
    for (line, _, _, code) in CODES {
        must_end_with(started(line), code, &format!("{line}, where one is safe"));
    }
    safe.stop();
    for (line, code, ..) in CODES {
        must_end_with(started(line), code, &format!("{line}, where none is"));
    }
}

fn must_end_with(process: Process, code: i32, what: &str) {
    let ran = process.wait();
    assert_eq!(ran.code, code, "{what}: {}{}", ran.stdout, ran.stderr);
    assert!(code == 0 || !ran.stderr.is_empty(), "{what} says nothing");
}

#[test]
fn whoever_waits_for_a_broker_that_hangs_is_told_and_served_when_it_goes_on() {
    let host = Host::with_cards(1);
    let broker = host.start();
    broker.process().signal(Signal::STOP);
    let run = host.cli(&["run", "--memory", "1GiB", "--", "echo", "served"]);
    let given_up = host.cli(&["run", "--memory", "1GiB", "--", "echo", "served"]);
    let trying = format!(
        "the broker at {} lives, but does not answer within 5 s; trying again",
        host.url()
    );
    run.until_stderr(&trying);
    given_up.until_stderr(&trying);
    given_up.signal(Signal::INT);
    assert_eq!(given_up.wait().code, 130);
    broker.process().signal(Signal::CONT);
    let ran = run.wait();
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "served\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        ran.stderr.matches("trying again").count(),
        1,
        "{}",
        ran.stderr
    );
    assert_eq!(broker.live_leases(), []);
}

#[test]
fn a_wait_in_the_queue_of_a_broker_that_hangs_is_over_in_time() {
    let host = Host::with_cards(1);
    let broker = host.start();
    broker.grant(&json!({"ttl": "1h"}));
    let run = host.cli(&["run", "--wait-timeout", "8s", "--", "echo", "served"]);
    run.until_stderr("waiting (next)");
    broker.process().signal(Signal::STOP);
    run.until_stderr("trying again");
    let ran = run.wait();
    assert_eq!((ran.code, ran.stdout.as_str()), (124, ""), "{}", ran.stderr);
    let over = "the wait is over without a grant: the broker at";
    assert!(ran.stderr.contains(over), "{}", ran.stderr);
}

#[test]
fn a_command_runs_on_while_the_broker_hangs_and_that_is_said_once() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let script = "echo up; while [ ! -e over ]; do sleep 0.1; done";
    let run = host.cli(&["run", "--ttl", "1s", "--", "sh", "-c", script]);
    run.until_stdout("up");
    broker.process().signal(Signal::STOP);
    run.until_stderr("does not answer within 5 s; the command runs on");
    broker.process().signal(Signal::CONT);
    run.until_stderr("the broker is back");
    fs::write(host.dir().join("over"), "").unwrap();
    let ran = run.wait();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("runs on").count(), 1, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("is back").count(), 1, "{}", ran.stderr);
}
