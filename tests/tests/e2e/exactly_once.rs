//! One request, one lease: however often it is sent, and whatever became of the broker in between.

use std::collections::BTreeSet;
use std::thread;

use gpu_api::{EndReason, Lease, LeaseState, paths};
use gpu_manager_tests::{Answer, Broker, Host, Request, gib, problem};
use serde_json::{Value, json};

fn keyed(key: &str, body: &Value) -> Request {
    Request::post(paths::LEASES, body).header("idempotency-key", key)
}

fn ask(broker: &Broker, key: &str, body: &Value) -> Answer {
    keyed(key, body).send(broker.address())
}

/// The same request from many clients at once.
fn ask_at_once(broker: &Broker, count: usize, key: &str, body: &Value) -> Vec<Answer> {
    let asked = (0..count).map(|_| keyed(key, body).send_beside(broker.address()));
    let asked: Vec<_> = asked.collect();
    let answers = asked.into_iter().map(|asked| asked.join());
    answers
        .map(|answer| answer.expect("it is answered"))
        .collect()
}

fn restart(host: &Host, broker: Broker) -> Broker {
    broker.kill();
    host.start()
}

/// What makes a lease this one and no other.
fn identity(answer: &Answer) -> (String, Option<u64>, Option<String>) {
    let Lease {
        id, fence, secret, ..
    } = answer.lease();
    (id, fence, secret)
}

#[test]
fn a_retry_after_a_kill_is_answered_the_same_lease_and_the_same_secret() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let body = json!({"memory": "8GiB", "ttl": "1h"});
    let first = ask(&broker, "k", &body);
    assert_eq!(first.status, 201, "{}", first.text());
    let broker = restart(&host, broker);
    let again = ask(&broker, "k", &body);
    assert_eq!((again.status, identity(&again)), (201, identity(&first)));
    assert!(
        broker
            .renew(&again.lease())
            .is_ok_and(|lease| lease.is_granted())
    );
    assert_eq!(broker.device("sim-0").memory.granted, gib(8), "once");
}

#[test]
fn a_retry_is_answered_the_lease_also_where_its_process_is_gone() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let process = host.sleeper();
    let holder = json!({"kind": "process", "pid": process.pid()});
    let body = json!({"holder": holder, "memory": "8GiB", "ttl": "1h"});
    let ask = |broker: &Broker, key: &str| keyed(key, &body).send(broker.socket());
    let first = ask(&broker, "k");
    assert_eq!(first.status, 201, "{}", first.text());
    process.kill();
    broker.until_ended(&first.lease().id);
    let broker = restart(&host, broker);
    let again = ask(&broker, "k");
    assert_eq!((again.status, identity(&again)), (200, identity(&first)));
    assert_eq!(again.lease().end_reason, Some(EndReason::ProcessGone));
    let another = ask(&broker, "another");
    assert_eq!(another.status, 422, "{}", another.text());
    let changed = json!({"holder": holder, "memory": "9GiB", "ttl": "1h"});
    let mismatch = keyed("k", &changed).send(broker.socket());
    assert_eq!(mismatch.status, 422, "{}", mismatch.text());
}

#[test]
fn duplicates_at_once_are_one_lease() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let answers = ask_at_once(&broker, 16, "k", &json!({"memory": "2GiB"}));
    assert!(
        answers.iter().all(|answer| answer.status == 201),
        "{answers:?}"
    );
    let leases: BTreeSet<_> = answers.iter().map(identity).collect();
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert_eq!(broker.live_leases().len(), 1);
    assert_eq!(broker.device("sim-0").memory.granted, gib(2));
}

#[test]
fn duplicates_that_wait_are_one_waiter_and_one_lease() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let holder = broker.grant(&json!({}));
    let body = json!({"memory": "2GiB", "wait": "1m"});
    thread::scope(|scope| {
        let asked = scope.spawn(|| ask_at_once(&broker, 8, "k", &body));
        broker.until_waiting(1);
        broker.release(&holder);
        let answers = asked.join().expect("all are answered");
        assert!(
            answers.iter().all(|answer| answer.status == 201),
            "{answers:?}"
        );
        let leases: BTreeSet<_> = answers.iter().map(identity).collect();
        assert_eq!(leases.len(), 1, "{leases:?}");
    });
    assert_eq!(broker.live_leases().len(), 1);
}

#[test]
fn a_key_belongs_to_its_request_also_after_a_kill_and_after_the_end() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let body = json!({"memory": "2GiB", "ttl": "1h"});
    let other = json!({"memory": "3GiB", "ttl": "1h"});
    let lease = ask(&broker, "k", &body).lease();
    let refused = |broker: &Broker| {
        let answer = ask(broker, "k", &other);
        (answer.status, answer.problem().code.as_str().to_owned())
    };
    let mismatch = (422, "idempotency_mismatch".to_owned());
    assert_eq!(refused(&broker), mismatch);
    let broker = restart(&host, broker);
    assert_eq!(refused(&broker), mismatch);
    broker.release(&lease);
    let broker = restart(&host, broker);
    assert_eq!(refused(&broker), mismatch);
    assert_eq!(broker.live_leases(), []);
}

#[test]
fn a_replay_answers_the_lease_as_it_is_now() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let body = json!({"memory": "2GiB", "ttl": "1h"});
    let lease = ask(&broker, "k", &body).lease();
    let drain = serde_json::from_value(json!({"grace": "1h", "reason": "fan"})).unwrap();
    broker.must(broker.client().drain_lease(&lease.id, &drain));
    let replay = ask(&broker, "k", &body);
    assert_eq!(
        (replay.status, replay.lease().state),
        (201, LeaseState::Draining)
    );
    let broker = restart(&host, broker);
    assert_eq!(ask(&broker, "k", &body).lease().state, LeaseState::Draining);
    broker.release(&lease);
    let mut broker = broker;
    for _ in 0..2 {
        let replay = ask(&broker, "k", &body);
        let over = replay.lease();
        assert_eq!((replay.status, over.state), (200, LeaseState::Ended));
        assert_eq!((over.id, over.fence), (lease.id.clone(), lease.fence));
        assert_eq!(over.end_reason, Some(EndReason::Released));
        broker = restart(&host, broker);
    }
}

#[test]
fn a_refusal_is_not_remembered() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let holder = broker.grant(&json!({}));
    let body = json!({"memory": "2GiB"});
    assert_eq!(ask(&broker, "k", &body).status, 409);
    let late = json!({"memory": "2GiB", "wait": "200ms"});
    assert_eq!(ask(&broker, "w", &late).status, 408);
    broker.release(&holder);
    assert_eq!(ask(&broker, "k", &body).status, 201);
    assert_eq!(ask(&broker, "w", &late).status, 201);
}

#[test]
fn a_wait_that_is_over_or_cancelled_is_never_granted_whatever_becomes_of_the_broker() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let holder = broker.grant(&json!({"ttl": "1h"}));
    let named = |name: &str, more: Value| {
        let mut body = json!({"holder": {"name": name}, "memory": "1GiB", "ttl": "1h"});
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        body
    };
    let over = ask(&broker, "over", &named("ghost", json!({"wait": "100ms"})));
    assert_eq!(over.status, 408);
    let cancelled = named("ghost", json!({"queue": true, "wait": "1h"}));
    let waits = ask(&broker, "cancelled", &cancelled).lease();
    assert_eq!(
        broker.release(&waits).end_reason,
        Some(EndReason::Cancelled)
    );
    let timed_out = named("ghost", json!({"queue": true, "wait": "200ms"}));
    let timed_out = ask(&broker, "late", &timed_out).lease();
    let late = broker.until_ended(&timed_out.id);
    assert_eq!(late.end_reason, Some(EndReason::WaitTimeout));
    let on_connection = named("ghost", json!({"wait": "1h"}));
    let asked = keyed("conn", &on_connection).send_beside(broker.address());
    broker.until_waiting(1);

    let broker = restart(&host, broker);
    assert_eq!(
        asked.join().expect("it hears that nobody is there").status,
        0
    );
    assert_eq!(
        broker.queue().total,
        0,
        "who waited on a connection is nobody"
    );
    broker.release(&holder);
    let next = broker.grant(&json!({"exclusive": true}));
    let granted = broker.all_leases();
    let granted = granted.iter().filter(|lease| lease.fence.is_some());
    let granted: BTreeSet<_> = granted.map(|lease| &lease.id).collect();
    assert_eq!(
        granted,
        BTreeSet::from([&holder.id, &next.id]),
        "nobody came in between"
    );
    let replay = ask(&broker, "cancelled", &cancelled);
    assert_eq!(
        (replay.status, replay.lease().state),
        (200, LeaseState::Ended)
    );
    assert_eq!(problem(broker.renew(&waits)).code.status(), 410);
    let mut ghosts = broker.all_leases().into_iter();
    let granted = ghosts.find(|lease| lease.holder.name == "ghost" && lease.fence.is_some());
    assert_eq!(granted, None);
}

#[test]
fn a_retry_of_a_queued_request_keeps_its_place_over_a_kill() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let holder = broker.grant(&json!({"ttl": "1h"}));
    let body = json!({"queue": true, "wait": "1h", "ttl": "1h"});
    let first = ask(&broker, "first", &body);
    let second = ask(&broker, "second", &body);
    assert_eq!((first.status, second.status), (202, 202));
    let broker = restart(&host, broker);
    let again = ask(&broker, "first", &body);
    assert_eq!((again.status, identity(&again)), (202, identity(&first)));
    assert_eq!(broker.queue().total, 2, "nobody waits twice");
    broker.release(&holder);
    broker.until(&first.lease().id, "is granted", Lease::is_granted);
    assert_eq!(broker.lease(&second.lease().id).state, LeaseState::Waiting);
    let granted = ask(&broker, "first", &body);
    assert_eq!(granted.status, 201);
    assert_eq!(granted.lease().id, first.lease().id);
}
