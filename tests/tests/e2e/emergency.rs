//! The way out when something is stuck.

use gpu_api::{EmergencyResult, EndReason, LeaseState};
use gpu_manager_tests::{Host, POLICY, Request, is_alive};
use serde_json::json;

#[test]
fn everything_ends_and_a_second_broker_shows_it() {
    let host = Host::with_cards(2);
    let broker = host.start();
    let held = broker.grant(&json!({"holder": {"name": "ann"}}));
    let shared = broker.grant(&json!({"memory": "4GiB"}));
    let waiter = broker.wait_beside(&json!({"devices": 2, "wait": "1m"}));
    let queued = broker
        .acquire(&json!({"devices": 2, "queue": true, "wait": "1h"}))
        .unwrap();

    let released = host.run(&["release", "--emergency", "--all", "--yes"]);
    assert_eq!(released.code, 0, "{}", released.stderr);
    assert!(
        released.stdout.contains("released 2"),
        "{}",
        released.stdout
    );
    assert!(released.stdout.contains("ann"), "{}", released.stdout);
    assert_eq!(waiter.join().unwrap().status, 410);
    assert_eq!(broker.lease(&queued.id).state, LeaseState::Ended);
    for lease in [&held, &shared] {
        assert_eq!(
            broker.until_ended(&lease.id).end_reason,
            Some(EndReason::Emergency)
        );
    }
    broker.stop();

    let broker = host.start();
    assert_eq!(broker.live_leases(), []);
    let leases = host.run(&["leases", "--all"]);
    assert!(
        leases.stdout.contains(&held.id) && leases.stdout.contains("emergency"),
        "{}",
        leases.stdout
    );
    let next = broker.grant(&json!({"devices": 2}));
    assert!(next.fence > held.fence.max(shared.fence));
}

#[test]
fn nothing_ends_without_consent() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let lease = broker.grant(&json!({}));
    for args in [
        &["release", "--emergency"][..],
        &["release", "--emergency", "--all"],
        &["release", "--emergency", "--yes"],
        &["release", "--all", "--yes"],
    ] {
        let ran = host.run(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
    }
    let unknown = host.run(&["release", "--emergency", "--device", "sim-9"]);
    assert_ne!(unknown.code, 0);
    assert!(
        unknown.stderr.contains("sim-0"),
        "it names the devices: {}",
        unknown.stderr
    );
    let empty = Request::post("/v1/emergency-release", &json!({})).send(broker.address());
    assert_eq!(empty.status, 422, "{}", empty.text());
    assert!(broker.lease(&lease.id).is_granted());
}

#[test]
fn one_card_is_freed_and_the_others_are_left_alone() {
    let host = Host::with_cards(2);
    let broker = host.start();
    let first = broker.grant(&json!({"select": "device.id == 'sim-0'"}));
    let second = broker.grant(&json!({"select": "device.id == 'sim-1'"}));
    let args = [
        "release",
        "--emergency",
        "--device",
        "0",
        "--cordon",
        "--reason",
        "smoke",
        "--json",
    ];
    let ran = host.run(&args);
    let result: EmergencyResult =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(result.released.len(), 1);
    assert_eq!(result.devices.len(), 1);
    assert!(result.devices[0].cordoned);
    broker.until_ended(&first.id);
    assert!(broker.lease(&second.id).is_granted());
    let cordon = broker.device("sim-0").cordon.expect("no new grants on it");
    assert_eq!(cordon.reason.as_deref(), Some("smoke"));
}

#[test]
fn a_holder_that_ignores_the_polite_signal_is_killed_before_its_memory_is_granted() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let holder = host.stubborn();
    let lease = broker.grant_to(&holder);
    assert_eq!(lease.holder.pid, Some(holder.pid()));

    let ran = host.run(&["release", "--emergency", "--lease", &lease.id, "--kill"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let during = broker.lease(&lease.id);
    if during.state == LeaseState::Reclaiming && is_alive(holder.pid()) {
        assert_eq!(
            broker.device("sim-0").memory.free,
            0,
            "not granted until it is gone"
        );
    }
    let over = broker.until_ended(&lease.id);
    assert_eq!(over.end_reason, Some(EndReason::Emergency));
    assert_eq!(holder.wait().code, 137, "it was killed");
    broker.grant(&json!({}));
}

#[test]
fn a_holder_that_may_not_be_signalled_is_stuck_and_its_memory_stays_out_of_use() {
    let policy = format!("{POLICY}quarantine_after = '1s'\nsignal = 'never'\n");
    let host = Host::with_cards(1).policy(&policy);
    let broker = host.start();
    let holder = host.stubborn();
    let lease = broker.grant_to(&holder);
    assert_eq!(host.run(&["revoke", &lease.id]).code, 0);
    broker.until(&lease.id, "is quarantined", |lease| {
        lease
            .reclaim
            .as_ref()
            .is_some_and(|reclaim| reclaim.phase == gpu_api::ReclaimPhase::Quarantined)
    });
    assert!(broker.device("sim-0").quarantined);
    let refused = broker.acquire(&json!({"memory": "1GiB"}));
    assert_eq!(gpu_manager_tests::problem(refused).code.status(), 409);
    assert!(is_alive(holder.pid()), "nobody signalled it");

    let released = host.run(&["release", "--emergency", "--stuck", "--force-unsafe"]);
    assert_eq!(released.code, 0, "{}", released.stderr);
    broker.until_ended(&lease.id);
    broker.grant(&json!({"memory": "1GiB"}));
    assert!(is_alive(holder.pid()));
}
