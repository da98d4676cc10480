//! A broker that crashes again and again: it keeps what is held, and leaves alone what may have ended it.

use gpu_api::{BrokerState, DiskState, EndReason, LeaseState, paths};
use gpu_client::IdempotencyKey;
use gpu_manager_tests::{Broker, Host, Request, eventually, is_alive, problem};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn after_three_kills_the_next_start_is_safe_and_after_a_stop_in_order_it_is_not() {
    let host = Host::with_cards(1).safe_starts();
    let broker = host.start();
    let key = IdempotencyKey::random();
    let held = broker
        .acquire_as(&json!({"memory": "8GiB", "ttl": "1h"}), &key)
        .unwrap();
    broker.kill();
    kill_right_after_start(&host, 2);
    // It may be what ended them, so it is not even read.
    host.write_policy("not a policy");

    let safe = host.start_safe();
    let said = safe.process().stderr();
    assert!(
        said.contains("safe start: 3 starts within the last 60 s"),
        "{said}"
    );
    assert!(
        said.contains("hint: ") && said.contains("1 lease is still held"),
        "{said}"
    );
    let kept = safe.lease(&held.id);
    assert_eq!((kept.state, kept.fence), (LeaseState::Active, held.fence));
    safe.renew(&held).expect("heartbeats are taken");
    let device = &held.allocations[0].device;
    let fence = held.fence.unwrap();
    assert!(
        safe.fence_is_current(device, fence),
        "of a device that nobody looked at"
    );
    assert!(!safe.fence_is_current(device, fence + 1));
    let replayed = safe.acquire_as(&json!({"memory": "8GiB", "ttl": "1h"}), &key);
    assert_eq!(
        replayed.expect("a repeated request is answered").id,
        held.id
    );

    let status = safe.status();
    assert_eq!(
        status.policy.disk,
        DiskState::Unknown,
        "{:?}",
        status.policy
    );
    assert!(!status.policy.watched);
    let why = status.safe_start.expect("it says why");
    assert!(why.contains("without order"), "{why}");
    assert_eq!(safe.devices(), [], "no device was looked for");
    assert_eq!(children(safe.process().pid()), 0, "no driver was asked");

    for body in [
        json!({"memory": "1GiB"}),
        json!({"memory": "1GiB", "wait": "1m"}),
        json!({"queue": true, "wait": "1m"}),
    ] {
        let answer = Request::post(paths::LEASES, &body).send(safe.address());
        assert_eq!(answer.status, 503, "{body}: {}", answer.text());
        assert!(answer.header("retry-after").is_some());
        let problem = answer.problem();
        assert_eq!(problem.code.as_str(), "safe_start");
        assert!(
            problem.detail.contains("started safe"),
            "{}",
            problem.detail
        );
        assert!(
            problem
                .hint
                .is_some_and(|hint| hint.contains("start it again"))
        );
    }
    let ready = Request::get(paths::READYZ).send(safe.address());
    assert_eq!(
        (ready.status, ready.problem().code.as_str()),
        (503, "safe_start")
    );
    assert_eq!(
        Request::get(paths::HEALTHZ).send(safe.address()).status,
        200
    );
    let shown = host.run(&["status"]);
    assert!(
        shown.stdout.contains("started safe, grants nothing"),
        "{}",
        shown.stdout
    );
    assert!(shown.stdout.contains("hint: "), "{}", shown.stdout);
    for verb in [&["reload"][..], &["acquire", "--memory", "1GiB"]] {
        let refused = host.run(verb);
        assert_eq!(
            refused.code, 1,
            "it answers, and says no: {}",
            refused.stderr
        );
        assert!(
            refused.stderr.contains("started safe"),
            "{}",
            refused.stderr
        );
    }
    nothing_false_is_said(&host, &safe, &held.allocations[0].device);
    safe.process().signal(Signal::HUP);
    let not_read = "SIGHUP: policy files are not read in a safe start";
    safe.process().until_stderr(not_read);
    let said = safe.process().stderr();
    assert!(!said.contains("ERROR"), "{said}");

    assert_eq!(safe.stop().code, 0);
    host.write_policy(gpu_manager_tests::POLICY);
    let broker = host.start();
    assert_eq!(broker.status().state, BrokerState::Serving);
    assert_eq!(broker.lease(&held.id).fence, held.fence);
    assert!(broker.grant(&json!({"memory": "1GiB"})).fence > held.fence);
}

/// What is not looked at is not said to be known, empty, or waiting for a reload.
fn nothing_false_is_said(host: &Host, safe: &Broker, device: &str) {
    let banner = safe.process().stderr();
    assert!(banner.contains("(not read: safe start)"), "{banner}");
    assert!(
        banner.contains("1 lease recovered, none is granted"),
        "{banner}"
    );
    for not in ["read at start", "hot reload", "is applied at once"] {
        assert!(!banner.contains(not), "`{not}`: {banner}");
    }
    let safely = "started safe: it grants nothing, looks at no device and reads no policy file";
    for (verb, says) in [
        ("watches", "no policy files are watched\n"),
        ("devices", "no devices are known\n"),
        ("queue", ""),
        ("leases", device),
        ("reload --status", "policy watch  off (safe start)"),
        ("reload --status", "on disk      not read since the start"),
    ] {
        let words: Vec<&str> = verb.split(' ').collect();
        let ran = host.run(&words);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stdout.contains(says), "{}", ran.stdout);
        assert!(ran.stderr.contains(safely), "{}", ran.stderr);
        assert!(!ran.stderr.contains("gpu-manager reload"), "{}", ran.stderr);
    }
    let explained = host.run(&["policy", "explain", "--memory", "1GiB"]);
    let refused = format!("would be refused: the broker {safely}");
    assert!(
        explained.stdout.starts_with(&refused) && !explained.stdout.contains("discovered"),
        "{}",
        explained.stdout
    );
    for verb in [
        "cordon 0",
        "policy plan",
        "policy diff",
        "run --gpu 0 --wait-timeout 1s -- true",
    ] {
        let words: Vec<&str> = verb.split(' ').collect();
        let said = host.run(&words).stderr;
        assert!(
            said.contains("started safe") && said.contains("start it again"),
            "{verb}: {said}"
        );
    }
}

#[test]
fn a_safe_start_that_is_killed_counts_too_and_releases_are_taken() {
    let host = Host::with_cards(1).safe_starts();
    let broker = host.start();
    let held = broker.grant(&json!({"ttl": "1h"}));
    broker.kill();
    kill_right_after_start(&host, 2);
    host.start_safe().kill();
    let safe = host.start_safe();
    assert!(
        safe.process().stderr().contains("4 starts"),
        "{}",
        safe.process().stderr()
    );
    safe.release(&held);
    safe.until_ended(&held.id);
    safe.stop();
    host.start().grant(&json!({}));
}

#[test]
fn nobody_is_signalled_after_a_safe_start_and_the_lease_says_why() {
    let host = Host::with_cards(1).safe_starts();
    let broker = host.start();
    let holder = host.sleeper();
    let lease = broker.grant_to(&holder);
    broker.kill();
    kill_right_after_start(&host, 2);
    let safe = host.start_safe();
    let ran = host.run(&["release", "--emergency", "--lease", &lease.id, "--kill"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let stuck = safe.until(&lease.id, "is stuck", |lease| {
        let reclaim = lease.reclaim.as_ref();
        reclaim.is_some_and(|reclaim| reclaim.reason.contains("signals nobody"))
    });
    assert_eq!(stuck.state, LeaseState::Reclaiming);
    assert!(is_alive(holder.pid()));
}

#[test]
fn a_waiter_of_before_is_told_why_and_a_device_that_is_not_seen_can_be_freed() {
    let host = Host::with_cards(1).safe_starts();
    let broker = host.start();
    let held = broker.grant(&json!({"ttl": "1h"}));
    let waiter = broker.acquire(&json!({"queue": true, "wait": "1h", "ttl": "1h"}));
    let waiter = waiter.expect("a place in the queue");
    broker.kill();
    kill_right_after_start(&host, 2);
    let safe = host.start_safe();
    let why = host.run(&["why", &waiter.id]);
    assert!(
        why.stdout.contains("because    the broker started safe"),
        "{}",
        why.stdout
    );
    let unknown = host.run(&["release", "--emergency", "--device", "sim-7"]);
    assert_eq!(unknown.code, 1, "{}", unknown.stderr);
    let ran = host.run(&["release", "--emergency", "--device", "sim-0"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("released 1"), "{}", ran.stdout);
    let over = safe.lease(&held.id);
    assert_eq!(over.end_reason, Some(EndReason::Emergency), "{over:?}");
}

#[test]
fn a_start_that_says_why_it_ends_is_no_crash() {
    let host = Host::with_cards(1).safe_starts();
    for _ in 0..4 {
        host.write_policy("not a policy");
        assert_eq!(host.serve(&[]).wait().code, 1);
        assert_eq!(host.serve(&["--listen", "nowhere"]).wait().code, 1);
    }
    host.write_policy(gpu_manager_tests::POLICY);
    let broker = host.start();
    for _ in 0..4 {
        assert_eq!(
            host.serve(&[]).wait().code,
            9,
            "the first one has the store"
        );
    }
    broker.kill();
    let broker = host.start();
    let refused = broker.acquire(&json!({"memory": "1000GiB"}));
    assert_eq!(problem(refused).code.as_str(), "never_fits", "it serves");
}

#[test]
fn safe_starts_can_be_switched_off() {
    let host = Host::with_cards(1);
    for _ in 0..5 {
        host.start().kill();
    }
    host.start().grant(&json!({}));
}

pub(crate) fn kill_right_after_start(host: &Host, times: usize) {
    let starts = host.state_dir().join("starts");
    for _ in 0..times {
        let lines = || {
            std::fs::read_to_string(&starts)
                .unwrap_or_default()
                .lines()
                .count()
        };
        let before = lines();
        let process = host.serve(&[]);
        eventually("the start is written down", || {
            (lines() > before).then_some(())
        });
        process.kill();
    }
}

fn children(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .expect("it lives")
        .flatten();
    let children =
        tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    children.map(|line| line.split_whitespace().count()).sum()
}
