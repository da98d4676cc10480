//! What survives a broker, and what two brokers may not share.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use gpu_api::{EndReason, LeaseState, paths};
use gpu_manager_tests::{Conversation, Host, POLICY, Request, eventually, for_as_long};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn leases_deadlines_secrets_and_fences_survive_a_kill() {
    let host = Host::with_cards(2);
    let broker = host.start();
    let short = broker.grant(&json!({"memory": "8GiB", "ttl": "60s", "max_hold": "10m"}));
    let whole = broker.grant(&json!({"exclusive": true, "ttl": "60s"}));
    let queued = broker
        .acquire(&json!({"devices": 2, "queue": true, "wait": "1h"}))
        .unwrap();
    broker.kill();

    let broker = host.start();
    assert!(
        broker
            .process()
            .stderr()
            .contains("2 leases are still held"),
        "{}",
        broker.process().stderr()
    );
    for before in [&short, &whole] {
        let after = broker.lease(&before.id);
        assert_eq!(after.state, LeaseState::Active);
        assert_eq!(after.fence, before.fence);
        assert_eq!(
            after.expires_at, before.expires_at,
            "a restart moves no deadline"
        );
        assert_eq!(after.hold_until, before.hold_until);
        assert_eq!(after.allocations, before.allocations);
        broker.renew(before).expect("its secret is still good");
    }
    assert_eq!(
        broker.lease(&queued.id).state,
        LeaseState::Waiting,
        "it keeps its place"
    );
    broker.release(&queued);
    let next = broker.grant(&json!({"memory": "8GiB"}));
    assert!(
        next.fence > short.fence.max(whole.fence),
        "a fence never repeats"
    );
}

#[test]
fn heartbeats_that_nobody_could_take_are_not_held_against_the_holder() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"ttl": "1s"}));
    broker.kill();
    for_as_long(Duration::from_millis(1500), "the broker is away", || true);
    let broker = host.start();
    assert!(
        broker.lease(&lease.id).expires_at < Some(broker.status().started_at),
        "it is overdue"
    );
    assert!(
        broker
            .renew(&lease)
            .expect("a late heartbeat is taken")
            .is_granted()
    );
}

#[test]
fn a_fence_rises_even_if_the_state_is_deleted() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let before = broker.grant(&json!({})).fence;
    broker.kill();
    fs::remove_dir_all(host.state_dir()).unwrap();
    // A new store counts from the time at which it is made.
    let broker = host.start();
    assert!(broker.grant(&json!({})).fence > before);
}

#[test]
fn a_stop_tells_waiters_to_come_back_and_keeps_what_is_held() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let held = broker.grant(&json!({}));
    let waiters: Vec<_> = (1..=3)
        .map(|number| {
            let waiter =
                Request::post(paths::LEASES, &json!({"wait": "1m"})).send_beside(broker.address());
            broker.until_waiting(number);
            waiter
        })
        .collect();
    let ran = broker.stop();
    for waiter in waiters {
        let answer = waiter.join().unwrap();
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
        assert_eq!(answer.problem().code.as_str(), "shutting_down");
    }
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("1 leases stay held") || ran.stderr.contains("1 lease stays held"),
        "{}",
        ran.stderr
    );

    let broker = host.start();
    assert_eq!(broker.lease(&held.id).state, LeaseState::Active);
    assert_eq!(
        broker.queue().total,
        0,
        "who waited on a connection died with it"
    );
}

#[test]
fn a_client_that_never_finishes_holds_a_stop_up_for_seconds_and_a_second_signal_not_at_all() {
    let host = Host::with_cards(1);
    let half = b"POST /v1/leases HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    let broker = host.start();
    let mut conversation = Conversation::open(broker.address());
    conversation.say(half);
    // Taken in the order of their arrival: the broker has read the half.
    broker.grant(&json!({"memory": "1GiB"}));
    let began = Instant::now();
    assert_eq!(broker.stop().code, 0);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );

    let broker = host.start();
    let mut conversation = Conversation::open(broker.address());
    conversation.say(half);
    broker.grant(&json!({"memory": "1GiB"}));
    let mut process = broker.into_process();
    process.signal(Signal::INT);
    eventually("it stops taking connections", || {
        std::os::unix::net::UnixStream::connect(host.socket())
            .is_err()
            .then_some(())
    });
    let began = Instant::now();
    process.signal(Signal::INT);
    let ran = eventually("it ends", || process.ended());
    assert!(ran.code == 130 || ran.code == 0, "{}", ran.stderr);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        host.start().status().leases.active,
        2,
        "what was held stays held"
    );
}

#[test]
fn the_event_stream_goes_on_where_it_broke_off_over_a_restart() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let mut events = broker.events(None);
    let first = broker.grant(&json!({"holder": {"name": "ann"}}));
    let granted = events.next_of("lease_granted");
    assert_eq!(granted.lease.as_deref(), Some(first.id.as_str()));
    broker.release(&first);
    broker.kill();

    let broker = host.start();
    let mut events = broker.events(Some(&granted.id));
    let ended = events.next_event();
    assert_eq!(
        (ended.name.as_str(), ended.lease.as_deref()),
        ("lease_ended", Some(first.id.as_str()))
    );
    let second = broker.grant(&json!({}));
    let granted = events.next_of("lease_granted");
    assert_eq!(granted.lease.as_deref(), Some(second.id.as_str()));

    let mut stranger = broker.events(Some("00000000deadbeef-1-0"));
    assert_eq!(
        stranger.next_event().name,
        "reset",
        "another history is not this one"
    );
}

#[test]
fn a_queued_waiter_is_granted_by_the_next_broker() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let held = broker.grant(&json!({}));
    let queued = broker
        .acquire(&json!({"queue": true, "wait": "1h"}))
        .unwrap();
    broker.kill();
    let broker = host.start();
    broker.release(&held);
    let granted = broker.until(&queued.id, "is granted", |lease| lease.is_granted());
    assert_eq!(granted.created_at, queued.created_at);
}

#[test]
fn two_brokers_never_share_a_store() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({}));
    let other = Host::with_cards(1);
    let second = other.serve(&["--state-dir", &host.state_dir().display().to_string()]);
    let ran = second.wait();
    assert_ne!(ran.code, 0);
    let store = host.state_dir().display().to_string();
    assert!(
        ran.stderr.contains(&store) && ran.stderr.contains("hint"),
        "{}",
        ran.stderr
    );
    assert!(
        broker.lease(&lease.id).is_granted(),
        "the first one did not notice"
    );
}

#[test]
fn a_second_broker_on_the_same_socket_or_port_says_who_is_there() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let other = Host::with_cards(1);
    let taken = other
        .serve(&["--socket", &host.socket().display().to_string()])
        .wait();
    assert_ne!(taken.code, 0);
    assert!(taken.stderr.contains("another broker"), "{}", taken.stderr);

    let port = broker.url().replace("http://", "");
    let taken = other.serve(&["--listen", &port]).wait();
    assert_ne!(taken.code, 0);
    let pid = broker.process().pid().to_string();
    assert!(
        taken.stderr.contains(&port) && taken.stderr.contains(&pid),
        "{}",
        taken.stderr
    );
}

#[test]
fn a_store_that_cannot_be_read_stops_every_start() {
    let host = Host::with_cards(1);
    let broker = host.start();
    broker.grant(&json!({}));
    broker.kill();
    let store = host.state_dir().join("store.redb");
    let good = fs::read(&store).unwrap();
    let text = b"this is no store\n".repeat(500);
    let half = good[..good.len() / 2].to_vec();
    let blank = vec![0; good.len()];
    for (what, bytes) in [("text", text), ("half a store", half), ("blank", blank)] {
        fs::write(&store, &bytes).unwrap();
        let ran = host.serve(&[]).wait();
        assert_ne!(ran.code, 0, "{what}");
        assert!(ran.stderr.contains("store.redb"), "{what}: {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{what}: {}", ran.stderr);
        assert_ne!(
            host.serve(&[]).wait().code,
            0,
            "{what}: the next start does not take it for empty"
        );
    }
}

#[test]
fn a_crash_between_answers_loses_nothing_that_was_answered() {
    let host = Host::with_cards(1).policy(POLICY);
    let broker = host.start();
    let address = broker.address().clone();
    // A client works as fast as it can while the power is cut.
    let client = thread::spawn(move || {
        let mut answered = Vec::new();
        loop {
            let body = json!({"memory": "1MiB", "ttl": "1h"});
            let request = Request::post(paths::LEASES, &body);
            let sent = std::panic::catch_unwind(|| request.send(&address));
            match sent {
                Ok(answer) if answer.status == 201 => answered.push(answer.lease()),
                _ => return answered,
            }
        }
    });
    eventually("twenty leases", || {
        (broker.status().leases.active >= 20).then_some(())
    });
    broker.kill();
    let answered = client.join().unwrap();
    assert!(answered.len() >= 20);
    let broker = host.start();
    for lease in &answered {
        let kept = broker.lease(&lease.id);
        assert_eq!((kept.state, kept.fence), (LeaseState::Active, lease.fence));
    }
    let lost: Vec<_> = broker
        .all_leases()
        .into_iter()
        .filter(|lease| lease.end_reason == Some(EndReason::Expired))
        .collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn without_a_broker_status_and_leases_read_the_store_and_say_so() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({"holder": {"name": "ann"}}));
    broker.kill();
    let state = host.state_dir().display().to_string();
    let status = host.run(&["status", "--state-dir", &state]);
    assert_eq!(status.code, 0, "{}", status.stderr);
    assert!(status.stdout.contains("not running"), "{}", status.stdout);
    assert!(
        status.stderr.contains("no broker answers"),
        "{}",
        status.stderr
    );
    let leases = host.run(&["leases", "--state-dir", &state]);
    assert!(
        leases.stdout.contains(&lease.id) && leases.stdout.contains("ann"),
        "{}{}",
        leases.stdout,
        leases.stderr
    );
}

#[test]
fn a_stop_takes_its_socket_along_and_a_start_deletes_no_file_of_others() {
    let host = Host::with_cards(1);
    assert_eq!(host.start().stop().code, 0);
    assert!(
        !host.socket().exists(),
        "nobody takes it for a broker that lives"
    );
    fs::write(host.socket(), "not a socket").unwrap();
    let refused = host.serve(&[]).wait();
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("cannot be used"),
        "{}",
        refused.stderr
    );
    assert_eq!(fs::read_to_string(host.socket()).unwrap(), "not a socket");
}

#[test]
fn what_is_said_at_the_start_goes_before_what_was_switched_at_run_time() {
    let host = Host::with_cards(1).flags(&["--no-reload"]);
    let broker = host.start();
    assert_eq!(host.run(&["reload", "--enable"]).code, 0);
    assert!(broker.reload_state().enabled);
    broker.kill();
    assert!(!host.start().reload_state().enabled);
}
