//! What was: told by the broker while it runs, by its store when it does not, and by neither to be wrong.

use gpu_api::{EndReason, History, UsageReport};
use gpu_manager_tests::{Host, Process, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The events that `history` prints as JSON.
fn events(host: &Host, args: &[&str]) -> Vec<gpu_api::Event> {
    let mut all = vec!["history", "--json"];
    all.extend(args);
    let ran = host.run(&all);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines = ran.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("an event"))
        .collect()
}

fn usage(host: &Host, args: &[&str]) -> UsageReport {
    let mut all = vec!["usage", "--json"];
    all.extend(args);
    let ran = host.run(&all);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).expect("a report")
}

#[test]
fn history_and_usage_outlive_the_broker() {
    let host = Host::with_cards(2);
    let broker = host.start();
    let gang = broker.grant(&json!({"devices": 2, "memory": "4GiB"}));
    let kept = broker.grant(&json!({"memory": "2GiB"}));
    broker.release(&gang);
    let of_gang = events(&host, &["--lease", &gang.id]);
    let names: Vec<_> = of_gang.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["lease_granted", "lease_ended"]);
    for index in ["0", "1"] {
        let on = events(&host, &["--device", index, "--since", "1h"]);
        assert!(
            on.contains(&of_gang[0]),
            "a lease of two devices is found on {index}"
        );
    }
    let latest = host.run(&["history", "--limit", "1"]);
    assert!(latest.stdout.contains("lease_ended"), "{}", latest.stdout);
    assert!(latest.stderr.contains("the latest 1"), "{}", latest.stderr);
    eventually("the lease that is held counts", || {
        let rows = usage(&host, &["--by", "device"]).rows;
        rows.iter().find(|row| row.held_ms > 0).cloned()
    });
    broker.kill();

    let state_dir = host.state_dir();
    let state_dir = ["--state-dir", state_dir.to_str().unwrap()];
    let stored = events(&host, &[&["--lease", &gang.id], &state_dir[..]].concat());
    assert_eq!(stored, of_gang, "the file says what the broker said");
    let left = usage(&host, &[&["--by", "user,device"], &state_dir[..]].concat());
    assert!(!left.rows.is_empty());

    let broker = host.start();
    let ready = || {
        let said = broker.process().stderr();
        said.contains("ms, 1 lease recovered").then_some(())
    };
    eventually("it says when it can grant, and what it found", ready);
    assert_eq!(events(&host, &["--lease", &gang.id]), of_gang);
    broker.release(&kept);
    let after = usage(&host, &["--by", "user,device"]);
    let sum = |report: &UsageReport| report.rows.iter().map(|row| row.held_ms).sum::<u64>();
    assert!(sum(&after) >= sum(&left), "what was counted stays counted");
}

#[test]
fn a_device_of_the_history_is_named_by_its_id_or_said_to_be_none() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"memory": "4GiB"}));
    let unknown = host.run(&["history", "--device", "7"]);
    assert_eq!((unknown.code, unknown.stdout.as_str()), (2, ""));
    assert!(
        unknown.stderr.contains("there is no device `7`"),
        "{}",
        unknown.stderr
    );
    broker.kill();

    let id = &lease.allocations[0].device;
    let state_dir = host.state_dir();
    let on = |device: &str| {
        let dir = state_dir.to_str().unwrap();
        host.run(&["history", "--device", device, "--state-dir", dir])
    };
    let of_id = on(id);
    assert!(of_id.stdout.contains(&lease.id), "{}", of_id.stdout);
    assert_eq!(on("sim-").stdout, of_id.stdout);
    for none in ["0", "sim", "GPU-"] {
        let refused = on(none);
        assert_eq!((refused.code, refused.stdout.as_str()), (2, ""), "{none}");
        assert!(
            refused.stderr.contains("not its index"),
            "{}",
            refused.stderr
        );
    }
    let leases = host.run(&["leases", "--state-dir", state_dir.to_str().unwrap()]);
    assert!(
        leases.stdout.contains(id.as_str()),
        "no index is known: {}",
        leases.stdout
    );
}

#[test]
fn a_broker_that_hangs_is_said_to_be_there_and_one_without_a_store_to_be_nowhere() {
    let host = Host::with_cards(1);
    let broker = host.start();
    broker.process().signal(Signal::STOP);
    let verbs = ["status", "history", "usage", "leases", "devices", "queue"];
    // All at once, as each has its patience.
    for hung in verbs.map(|verb| host.cli(&[verb])) {
        let hung = hung.wait();
        assert_eq!((hung.code, hung.stdout.as_str()), (3, ""));
        for part in [
            "lives, but does not answer within 5 s",
            "--takeover",
            "--state-dir DIR",
        ] {
            assert!(hung.stderr.contains(part), "{}", hung.stderr);
        }
    }
    broker.process().signal(Signal::CONT);
    assert_eq!(host.run(&["status"]).code, 0);
    broker.stop();
    let empty = host.run(&["history", "--state-dir", "/nowhere"]);
    assert_eq!(empty.code, 3);
    for part in ["no broker answers", "no store `/nowhere/store.redb`"] {
        assert!(empty.stderr.contains(part), "{}", empty.stderr);
    }
}

#[test]
fn whoever_names_a_state_directory_is_told_whose_it_is() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"memory": "4GiB"}));
    let pid = format!("pid {}, it listens at unix:/", broker.process().pid());
    let second = host.serve(&[]).wait();
    assert_eq!(second.code, 9);
    assert!(second.stderr.contains(&pid), "{}", second.stderr);

    let state_dir = host.state_dir();
    let dir = ["--state-dir", state_dir.to_str().unwrap()];
    for verb in ["status", "leases", "history", "usage"] {
        let mut command = host.command();
        command.arg(verb).args(dir);
        let found = Process::start(command, host.dir()).wait();
        assert_eq!(found.code, 0, "{}", found.stderr);
        assert!(
            !found.stderr.contains("no broker answers"),
            "{}",
            found.stderr
        );
        assert!(verb != "leases" || found.stdout.contains(&lease.id));
    }
    let mut elsewhere = host.command();
    elsewhere
        .args(["status", "--url", "unix:/nowhere.sock"])
        .args(dir);
    let elsewhere = Process::start(elsewhere, host.dir()).wait();
    assert_eq!(elsewhere.code, 3);
    assert!(elsewhere.stderr.contains(&pid), "{}", elsewhere.stderr);
}

#[test]
fn the_store_of_a_stopped_broker_is_checked_dumped_and_compacted() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"memory": "4GiB"}));
    let state_dir = host.state_dir();
    let store = |verb: &str| host.run(&["store", verb, "--state-dir", state_dir.to_str().unwrap()]);
    for verb in ["check", "dump", "compact"] {
        let refused = store(verb);
        assert_eq!((refused.code, refused.stdout.as_str()), (1, ""), "{verb}");
        assert!(
            refused.stderr.contains("in use by a broker"),
            "{}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains("hint: stop that broker"),
            "{}",
            refused.stderr
        );
    }
    broker.kill();

    let checked = store("check");
    assert_eq!(checked.code, 0, "{}", checked.stdout);
    assert!(
        checked.stdout.contains("sound (rows: "),
        "{}",
        checked.stdout
    );
    let dumped = store("dump");
    let rows: Vec<Value> = dumped
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        rows.iter()
            .any(|row| row["table"] == "leases" && row["key"] == lease.id.as_str())
    );
    let compacted = store("compact");
    assert!(compacted.stdout.contains(" after"), "{}", compacted.stdout);

    let broker = host.start();
    assert_eq!(broker.lease(&lease.id).fence, lease.fence);
    assert_eq!(broker.release(&lease).end_reason, Some(EndReason::Released));
}

#[test]
fn a_store_that_is_cut_short_is_not_sound() {
    let host = Host::with_cards(1);
    let broker = host.start();
    broker.grant(&json!({"memory": "4GiB"}));
    broker.stop();
    let path = host.state_dir().join("store.redb");
    let whole = std::fs::read(&path).unwrap();
    // The end of a file may be room that nothing was written to.
    std::fs::write(&path, &whole[..whole.len() / 8]).unwrap();
    let state_dir = host.state_dir();
    let checked = host.run(&["store", "check", "--state-dir", state_dir.to_str().unwrap()]);
    assert_eq!(checked.code, 1, "{}", checked.stdout);
    assert!(checked.stderr.contains("is damaged"), "{}", checked.stderr);
    assert!(checked.stderr.contains("hint: "), "{}", checked.stderr);
}

/// The type of an answer is what the path says.
#[test]
fn the_history_is_read_page_by_page() {
    let host = Host::with_cards(1);
    let broker = host.start();
    for _ in 0..3 {
        broker.release(&broker.grant(&json!({"memory": "1GiB"})));
    }
    let query = |after: Option<String>| gpu_api::HistoryQuery {
        after: after.map(|id| id.parse().unwrap()),
        limit: Some(2),
        ..gpu_api::HistoryQuery::default()
    };
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let page: History = broker.must(broker.client().history(&query(after)));
        assert!(page.events.len() <= 2 && !page.reset);
        all.extend(page.events);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(all, events(&host, &["--limit", "0"]));
}
