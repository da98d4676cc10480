//! Clients that vanish while they wait, in every way there is: never granted, never left in the queue.

use std::process::Command;
use std::thread;

use gpu_api::paths;
use gpu_manager_tests::{Broker, Conversation, Host, Process, Request, eventually};
use serde_json::{Value, json};

fn wanted() -> Value {
    json!({"holder": {"name": "ghost"}, "exclusive": true, "wait": "10m"})
}

/// One way to be there and then not.
struct Way {
    name: &'static str,
    vanish: fn(&Host, &Broker),
}

fn waiting_conversation(broker: &Broker) -> Conversation {
    let mut conversation = Conversation::open(broker.address());
    conversation.say(&Request::post(paths::LEASES, &wanted()).bytes());
    broker.until_waiting(1);
    conversation
}

fn waiting_curl(host: &Host, broker: &Broker, more: &[&str]) -> Process {
    let mut curl = Command::new("curl");
    curl.args([
        "-s",
        "-H",
        "content-type: application/json",
        "-d",
        &wanted().to_string(),
    ]);
    curl.args(more)
        .arg(format!("{}{}", broker.url(), paths::LEASES));
    let curl = Process::start(curl, host.dir());
    broker.until_waiting(1);
    curl
}

const WAYS: [Way; 9] = [
    Way {
        name: "it closes the connection",
        vanish: |_, broker| drop(waiting_conversation(broker)),
    },
    Way {
        name: "it closes its half of the connection",
        vanish: |_, broker| {
            let mut conversation = waiting_conversation(broker);
            conversation.half_close();
            assert_ne!(conversation.answer().status, 201);
        },
    },
    Way {
        name: "it resets the connection",
        vanish: |_, broker| waiting_conversation(broker).reset(),
    },
    Way {
        name: "it sends the next request already, and closes",
        vanish: |_, broker| {
            let mut conversation = waiting_conversation(broker);
            conversation.say(b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\n\r\n");
        },
    },
    Way {
        name: "it sends half of the next request, and resets",
        vanish: |_, broker| {
            let mut conversation = waiting_conversation(broker);
            conversation.say(b"POST /v1/leases HTTP/1.1\r\nhost: lo");
            conversation.reset();
        },
    },
    Way {
        name: "it closes the socket",
        vanish: |_, broker| {
            let mut conversation = Conversation::open(broker.socket());
            conversation.say(&Request::post(paths::LEASES, &wanted()).bytes());
            broker.until_waiting(1);
        },
    },
    Way {
        name: "it is killed",
        vanish: |host, broker| waiting_curl(host, broker, &[]).kill(),
    },
    Way {
        name: "it runs out of patience",
        vanish: |host, broker| {
            assert_eq!(
                waiting_curl(host, broker, &["--max-time", "1"]).wait().code,
                28
            );
        },
    },
    Way {
        name: "the command line is interrupted",
        vanish: |host, broker| {
            let acquire = host.cli(&[
                "acquire",
                "--exclusive",
                "--wait-timeout",
                "10m",
                "--name",
                "ghost",
            ]);
            broker.until_waiting(1);
            acquire.signal(rustix::process::Signal::INT);
            assert_eq!(acquire.wait().code, 130);
        },
    },
];

#[test]
fn a_client_that_vanishes_while_it_waits_is_never_granted() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let mut events = broker.events(None);
    for way in WAYS {
        let holder = broker.grant(&json!({"holder": {"name": "holder"}}));
        events.next_of("lease_granted");
        (way.vanish)(&host, &broker);
        eventually(&format!("nobody waits after: {}", way.name), || {
            (broker.queue().total == 0).then_some(())
        });
        broker.release(&holder);
        // The very next grant is ours: the ghost got none in between.
        let next = broker.grant(&json!({"holder": {"name": "next"}}));
        let granted = events.next_of("lease_granted");
        assert_eq!(
            granted.lease.as_deref(),
            Some(next.id.as_str()),
            "{}: {granted:?}",
            way.name
        );
        broker.release(&next);
    }
    let ghosts: Vec<_> = broker
        .all_leases()
        .into_iter()
        .filter(|lease| lease.fence.is_some() && lease.holder.name == "ghost")
        .collect();
    assert!(ghosts.is_empty(), "{ghosts:?}");
}

#[test]
fn a_queued_command_line_that_is_killed_leaves_within_a_ttl() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let holder = broker.grant(&json!({}));
    let acquire = host.cli(&[
        "acquire",
        "--exclusive",
        "--wait-timeout",
        "10m",
        "--ttl",
        "1s",
    ]);
    broker.until_waiting(1);
    acquire.kill();
    eventually("nobody waits", || (broker.queue().total == 0).then_some(()));
    broker.release(&holder);
    broker.grant(&json!({}));
}

#[test]
fn a_client_that_vanishes_in_the_moment_of_its_grant_keeps_nothing() {
    let host = Host::with_cards(1);
    let broker = host.start();
    for round in 0..25 {
        let holder = broker.grant(&json!({}));
        let ghost = waiting_conversation(&broker);
        thread::scope(|scope| {
            scope.spawn(|| broker.release(&holder));
            match round % 2 {
                0 => drop(ghost),
                _ => ghost.reset(),
            }
        });
        eventually(&format!("the card is free again, round {round}"), || {
            broker.live_leases().is_empty().then_some(())
        });
    }
}

#[test]
fn a_crowd_that_vanishes_at_once_leaves_an_empty_queue() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let holder = broker.grant(&json!({}));
    let request = Request::post(paths::LEASES, &wanted()).bytes();
    let crowd: Vec<Conversation> = (0..100)
        .map(|_| {
            let mut conversation = Conversation::open(broker.address());
            conversation.say(&request);
            conversation
        })
        .collect();
    broker.until_waiting(100);
    crowd.into_iter().for_each(Conversation::reset);
    broker.until_waiting(0);
    broker.release(&holder);
    broker.grant(&json!({}));
}
