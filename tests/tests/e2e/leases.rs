//! A lease from the request to the end.

use std::time::Duration;

use gpu_api::{EndReason, Enforcement, HolderKind, LeaseState, Span, paths};
use gpu_manager_tests::{Host, Request, for_as_long, gib, problem};
use serde_json::json;

#[test]
fn a_lease_is_acquired_kept_made_ready_and_given_back() {
    let host = Host::with_cards(1);
    let broker = host.start();

    let answer = Request::post(
        paths::LEASES,
        &json!({
            "holder": {"name": "vllm"}, "memory": "8GiB", "ttl": "30s", "load": true,
            "labels": {"model": "llama"},
        }),
    )
    .send(broker.address());
    assert_eq!(answer.status, 201, "{}", answer.text());
    let lease = answer.lease();
    assert_eq!(
        answer.header("location"),
        Some(format!("/v1/leases/{}", lease.id).as_str())
    );
    assert!(lease.id.starts_with("l-"), "{}", lease.id);
    assert_eq!(lease.state, LeaseState::Active);
    assert_eq!(
        (lease.holder.name.as_str(), lease.holder.kind),
        ("vllm", HolderKind::Remote)
    );
    assert_eq!(lease.class, "standard");
    assert_eq!(lease.ttl_ms, 30_000);
    assert!(lease.loading);
    assert_eq!(lease.labels["model"], "llama");
    assert_eq!(
        lease.enforcement,
        Enforcement::Advisory,
        "nothing is read of a simulated card"
    );
    let [part] = &lease.allocations[..] else {
        panic!("one card: {lease:?}")
    };
    assert_eq!(
        (part.device.as_str(), part.memory, part.exclusive),
        ("sim-0", gib(8), false)
    );
    let fence = lease.fence.expect("a grant has a fence");
    assert_eq!(lease.env["GPU_MANAGER_LEASE"], lease.id);
    assert_eq!(lease.env["GPU_MANAGER_FENCE"], fence.to_string());
    assert_eq!(lease.env["GPU_MANAGER_DEVICES"], "sim-0");

    let renewed = broker.renew(&lease).unwrap();
    assert!(renewed.expires_at >= lease.expires_at);
    assert!(renewed.remaining_ms.unwrap() > 25_000, "{renewed:?}");
    assert_eq!(renewed.secret, None, "a secret is told once");
    assert_eq!(renewed.fence, lease.fence);
    assert!(!broker.ready_lease(&lease).unwrap().loading);

    let device = broker.device("sim-0");
    assert_eq!(
        (device.memory.granted, device.memory.free),
        (gib(8), gib(16))
    );
    assert!(broker.fence_is_current("sim-0", fence));
    assert!(!broker.fence_is_current("sim-0", fence + 1));

    let over = broker.release(&lease);
    assert_eq!(
        (over.state, over.end_reason),
        (LeaseState::Ended, Some(EndReason::Released))
    );
    assert_eq!(
        broker.device("sim-0").memory.free,
        gib(24),
        "a clean release frees at once"
    );
    assert!(!broker.fence_is_current("sim-0", fence));
    assert_eq!(
        broker.release(&lease).state,
        LeaseState::Ended,
        "again is no error"
    );
    assert_eq!(problem(broker.renew(&lease)).code.status(), 410);
}

#[test]
fn a_whole_card_goes_from_hand_to_hand_and_the_waiter_knows_whom_it_waits_for() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let first = broker.grant(&json!({"holder": {"name": "ann"}}));
    assert!(
        first.allocations[0].exclusive,
        "nothing said is one whole card"
    );
    let second =
        broker.wait_beside(&json!({"holder": {"name": "bo"}, "exclusive": true, "wait": "1m"}));

    let queue = broker.queue();
    let waiting = queue.waiters[0].waiting.as_ref().expect("a reason");
    assert_eq!(waiting.position, 1);
    assert_eq!(waiting.blockers[0].holder, "ann", "{waiting:?}");
    assert_eq!(
        waiting.blockers[0].lease.as_deref(),
        Some(first.id.as_str())
    );
    assert!(waiting.reason.contains("sim-0"), "{waiting:?}");

    broker.release(&first);
    let answer = second.join().unwrap();
    assert_eq!(answer.status, 201);
    let second = answer.lease();
    assert_eq!(second.id, queue.waiters[0].id);
    assert!(second.fence > first.fence);
    assert_eq!(broker.queue().total, 0);
}

#[test]
fn a_wait_that_is_over_says_what_was_in_the_way() {
    let host = Host::with_cards(1);
    let broker = host.start();
    broker.grant(&json!({"holder": {"name": "ann"}}));
    let refused = problem(broker.acquire(&json!({"memory": "1GiB", "wait": "300ms"})));
    assert_eq!(
        (refused.code.status(), refused.code.as_str()),
        (408, "wait_over")
    );
    assert!(refused.detail.contains("sim-0"), "{refused:?}");
    assert_eq!(broker.queue().total, 0);
    assert_eq!(
        broker.live_leases().len(),
        1,
        "a wait that is over never becomes a lease"
    );
}

#[test]
fn a_queued_request_is_answered_at_once_and_granted_later() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let holder = broker.grant(&json!({}));
    let answer =
        Request::post(paths::LEASES, &json!({"queue": true, "wait": "1m"})).send(broker.address());
    assert_eq!(answer.status, 202, "{}", answer.text());
    let queued = answer.lease();
    assert_eq!(queued.state, LeaseState::Waiting);
    assert!(queued.waiting.is_some() && queued.fence.is_none());
    assert_eq!(broker.renew(&queued).unwrap().state, LeaseState::Waiting);

    broker.release(&holder);
    let look = broker
        .client()
        .lease_after(&queued.id, queued.revision, Span::from_secs(10));
    let granted = broker.must(look);
    assert_eq!(
        (granted.id.as_str(), granted.state),
        (queued.id.as_str(), LeaseState::Active)
    );
    broker.release(&queued);
}

#[test]
fn a_queued_request_that_nobody_renews_leaves_the_queue() {
    let host = Host::with_cards(1);
    let broker = host.start();
    broker.grant(&json!({}));
    let queued = broker
        .acquire(&json!({"queue": true, "wait": "1h", "ttl": "1s"}))
        .unwrap();
    assert_eq!(
        broker.until_ended(&queued.id).end_reason,
        Some(EndReason::Expired)
    );
    assert_eq!(broker.queue().total, 0);
}

#[test]
fn who_sends_no_heartbeat_loses_the_lease_and_the_memory_comes_back() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1s"}));
    let over = broker.until(&lease.id, "is over", |lease| lease.is_over());
    assert_eq!(over.end_reason, Some(EndReason::Expired));
    assert_eq!(problem(broker.renew(&lease)).code.status(), 410);
    broker.until_ended(&lease.id);
    assert_eq!(broker.device("sim-0").memory.free, gib(24));
}

#[test]
fn heartbeats_keep_a_lease_beyond_its_ttl() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1s"}));
    let mut last = std::time::Instant::now();
    for_as_long(Duration::from_millis(2500), "the lease is held", || {
        if last.elapsed() > Duration::from_millis(300) {
            last = std::time::Instant::now();
            return broker.renew(&lease).is_ok_and(|lease| lease.is_granted());
        }
        true
    });
}

#[test]
fn a_gang_gets_all_of_its_cards_or_none() {
    let host = Host::with_cards(3);
    let broker = host.start();
    let one = broker.grant(&json!({"select": "device.id == 'sim-1'"}));
    let pair = broker.grant(&json!({"devices": 2}));
    let devices: Vec<_> = pair
        .allocations
        .iter()
        .map(|part| part.device.as_str())
        .collect();
    assert_eq!(devices, ["sim-0", "sim-2"]);
    assert_eq!(pair.env["GPU_MANAGER_DEVICES"], "sim-0,sim-2");

    let three = broker.wait_beside(&json!({"devices": 3, "wait": "1m"}));
    broker.release(&pair);
    let still = broker.queue();
    assert_eq!(still.total, 1, "two of three are free, and none is taken");
    assert!(
        broker
            .devices()
            .iter()
            .filter(|device| device.leases.is_empty())
            .count()
            == 2
    );
    broker.release(&one);
    assert_eq!(three.join().unwrap().lease().allocations.len(), 3);
}

#[test]
fn two_engines_never_load_on_one_card_at_once() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let first = broker.grant(&json!({"memory": "8GiB", "load": true}));
    let second = broker.wait_beside(&json!({"memory": "8GiB", "load": true, "wait": "1m"}));
    broker.ready_lease(&first).unwrap();
    assert_eq!(second.join().unwrap().status, 201);
}

#[test]
fn a_longest_hold_ends_a_lease_whatever_the_heartbeats() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"max_hold": "500ms"}));
    assert!(lease.hold_until.is_some());
    let over = broker.until_ended(&lease.id);
    assert_eq!(over.end_reason, Some(EndReason::MaxHold));
}

#[test]
fn an_operator_drains_a_lease_and_the_holder_learns_why_from_its_heartbeat() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({}));
    let drained = host.run(&[
        "drain",
        &lease.id,
        "--grace",
        "1s",
        "--reason",
        "fan is loud",
    ]);
    assert_eq!(drained.code, 0, "{}", drained.stderr);
    let heartbeat = broker.renew(&lease).unwrap();
    assert_eq!(heartbeat.state, LeaseState::Draining);
    let cause = heartbeat.drain.expect("who and why").causes.remove(0);
    assert_eq!(
        (cause.reason.as_str(), cause.by.as_deref()),
        ("fan is loud", Some("root"))
    );
    assert_eq!(
        broker.until_ended(&lease.id).end_reason,
        Some(EndReason::Revoked)
    );

    let other = broker.grant(&json!({}));
    assert_eq!(host.run(&["revoke", &other.id]).code, 0);
    assert_eq!(
        broker.until_ended(&other.id).end_reason,
        Some(EndReason::Revoked)
    );
}

#[test]
fn every_reading_verb_has_words_for_people_and_json_for_programs() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let held = broker.grant(&json!({"holder": {"name": "ann"}}));
    let waits = broker
        .acquire(&json!({"holder": {"name": "bo"}, "queue": true, "wait": "1h"}))
        .unwrap();
    for (verb, words) in [
        (&["devices"][..], "sim-0"),
        (&["status"], "serving"),
        (&["leases"], "ann"),
        (&["queue"], "ann"),
        (&["why", &waits.id], "ann"),
        (&["why", &held.id], "ann"),
        (&["policy", "show"], "default.toml"),
        (&["reload", "--status"], "policies"),
    ] {
        let told = host.run(verb);
        assert_eq!(told.code, 0, "{verb:?}: {}", told.stderr);
        assert!(told.stdout.contains(words), "{verb:?}: {}", told.stdout);
        assert!(
            !told.stdout.contains('\u{1b}'),
            "{verb:?}: no colours where there is no terminal"
        );
        let json = host.run(&[verb, &["--json"]].concat());
        assert_eq!(json.code, 0, "{verb:?}: {}", json.stderr);
        let value: serde_json::Value = serde_json::from_str(&json.stdout)
            .unwrap_or_else(|error| panic!("{verb:?}: {error}: {}", json.stdout));
        assert!(value.is_object(), "{verb:?}: {value}");
    }
    let follow = host.cli(&["events", "--json", "--count", "1"]);
    let event = gpu_manager_tests::eventually("an event is told", || {
        // The command line may not listen yet.
        let queued = broker
            .acquire(&json!({"queue": true, "wait": "1h"}))
            .unwrap();
        broker.release(&queued);
        follow.stdout().lines().next().map(ToOwned::to_owned)
    });
    assert!(event.contains("\"lease_"), "{event}");
    for verb in [
        &["status"][..],
        &["leases"],
        &["why", "l-000000000000"],
        &["reload"],
        &["--hot-reload"],
    ] {
        let mut nowhere = host.command();
        nowhere
            .args(verb)
            .env("GPU_MANAGER_URL", "unix:/nowhere.sock");
        let ran = gpu_manager_tests::Process::start(nowhere, host.dir()).wait();
        assert_eq!(ran.code, 3, "{verb:?}: {}", ran.stderr);
    }
}
