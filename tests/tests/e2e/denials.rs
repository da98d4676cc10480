//! Every way to be told no, and who may do what to whose lease.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use gpu_api::{LEASE_SECRET_HEADER, LeaseState, paths};
use gpu_client::IdempotencyKey;
use gpu_manager_tests::{Address, Answer, Broker, Host, POLICY, Process, Request, problem};
use serde_json::{Value, json};

fn post(broker: &Broker, body: &Value) -> Answer {
    Request::post(paths::LEASES, body).send(broker.address())
}

#[test]
fn what_never_fits_is_told_apart_from_what_does_not_fit_now() {
    let host = Host::with_cards(2);
    let broker = host.start();
    for never in [
        json!({"memory": "25GiB"}),
        json!({"devices": 3}),
        json!({"devices": 2, "memory": "24.5GiB", "wait": "1m"}),
        json!({"memory": "1GiB", "select": "device.id == 'sim-7'"}),
    ] {
        let answer = post(&broker, &never);
        assert_eq!(answer.status, 422, "{never}: {}", answer.text());
        assert_eq!(answer.problem().code.as_str(), "never_fits", "{never}");
    }

    let held = broker.grant(&json!({"holder": {"name": "ann"}, "devices": 2, "memory": "20GiB"}));
    let answer = post(&broker, &json!({"memory": "8GiB"}));
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    let no = answer.problem();
    assert_eq!(no.code.as_str(), "does_not_fit");
    let waiting = no.waiting.expect("who is in the way");
    assert!(
        waiting
            .blockers
            .iter()
            .all(|blocker| blocker.lease.as_ref() == Some(&held.id))
    );
    assert!(
        no.detail.contains("ann") && no.detail.contains("4 GiB"),
        "{}",
        no.detail
    );
}

#[test]
fn an_unknown_class_is_refused_by_name_with_a_suggestion() {
    let host = Host::with_cards(1).policy(&format!("{POLICY}[[class]]\nname = 'batch'\n"));
    let broker = host.start();
    let answer = post(&broker, &json!({"class": "bacth"}));
    assert_eq!(answer.status, 403, "{}", answer.text());
    let no = answer.problem();
    assert_eq!(no.code.as_str(), "denied");
    assert!(
        no.detail.contains("bacth") && no.detail.contains("`batch`"),
        "{}",
        no.detail
    );
    assert_eq!(broker.grant(&json!({"class": "batch"})).class, "batch");
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let host = Host::with_cards(1).policy(&format!("{POLICY}[queue]\nmax_waiting = 1\n"));
    let broker = host.start();
    let held = broker.grant(&json!({}));
    let waiter = broker.wait_beside(&json!({"wait": "1m"}));
    let answer = post(&broker, &json!({"wait": "1m"}));
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    assert_eq!(answer.problem().code.as_str(), "queue_full");
    broker.release(&held);
    assert_eq!(waiter.join().unwrap().status, 201);
}

#[test]
fn a_repeated_request_is_the_same_lease_and_another_one_is_refused() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let key = IdempotencyKey::from_text("job-17").unwrap();
    let first = broker.acquire_as(&json!({"memory": "4GiB"}), &key).unwrap();
    let again = broker
        .acquire_as(&json!({"memory": 4_294_967_296_u64}), &key)
        .unwrap();
    assert_eq!(
        (again.id, again.fence),
        (first.id.clone(), first.fence),
        "4GiB is 4GiB"
    );
    assert_eq!(
        again.secret, first.secret,
        "whoever lost the answer gets the secret again"
    );
    assert_eq!(broker.live_leases().len(), 1);

    let other = problem(broker.acquire_as(&json!({"memory": "5GiB"}), &key));
    assert_eq!(
        (other.code.status(), other.code.as_str()),
        (422, "idempotency_mismatch")
    );

    broker.release(&first);
    let replay = broker.acquire_as(&json!({"memory": "4GiB"}), &key).unwrap();
    assert_eq!(
        (replay.id, replay.state),
        (first.id, LeaseState::Ended),
        "a replay answers it as it is now"
    );

    let denied = IdempotencyKey::from_text("job-18").unwrap();
    let held = broker.grant(&json!({}));
    assert_eq!(
        problem(broker.acquire_as(&json!({}), &denied))
            .code
            .status(),
        409
    );
    broker.release(&held);
    let lease = broker.acquire_as(&json!({}), &denied).unwrap();
    assert_eq!(lease.state, LeaseState::Active, "denials are not stored");
}

#[test]
fn a_secret_belongs_to_one_lease() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let mine = broker.grant(&json!({"memory": "1GiB"}));
    let theirs = broker.grant(&json!({"memory": "1GiB"}));
    let theirs = theirs.secret.expect("told at the grant");
    let empty = String::new();
    for secret in [
        &theirs,
        &"guess".to_owned(),
        &"A".repeat(43),
        &"x".repeat(4000),
        &empty,
    ] {
        for path in [paths::LEASE_RENEW, paths::LEASE_READY, paths::LEASE_RELEASE] {
            let request = Request::new("POST", &paths::with_id(path, &mine.id));
            let answer = request
                .header(LEASE_SECRET_HEADER, secret)
                .send(broker.address());
            assert_eq!(
                answer.status,
                403,
                "{path} with `{secret}`: {}",
                answer.text()
            );
            assert_eq!(answer.problem().code.as_str(), "forbidden");
        }
    }
    assert!(broker.lease(&mine.id).is_granted());
}

#[test]
fn without_dev_mode_a_port_needs_the_token_for_every_change() {
    let host = Host::with_cards(1).guarded();
    let broker = host.start();
    let token = std::fs::read_to_string(host.state_dir().join("token")).unwrap();
    let mode = host
        .state_dir()
        .join("token")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let bearer = |token: &str| format!("Bearer {}", token.trim());
    let wrong = bearer(&"0".repeat(token.trim().len()));

    let answer = post(&broker, &json!({"memory": "1GiB"}));
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert_eq!(answer.problem().code.as_str(), "unauthorized");
    for (method, path) in [
        ("POST", paths::EMERGENCY_RELEASE.to_owned()),
        ("POST", paths::HOT_RELOAD.to_owned()),
        ("PUT", paths::HOT_RELOAD.to_owned()),
        ("POST", paths::with_id(paths::DEVICE_CORDON, "sim-0")),
        ("DELETE", paths::with_id(paths::LEASE, "l-000000000000")),
        ("POST", paths::with_id(paths::LEASE_RENEW, "l-000000000000")),
    ] {
        let without = Request::new(method, &path)
            .json("{}")
            .send(broker.address());
        assert_eq!(without.status, 401, "{method} {path}");
        let request = Request::new(method, &path)
            .json("{}")
            .header("authorization", &wrong);
        assert_eq!(
            request.send(broker.address()).status,
            401,
            "{method} {path} with a wrong token"
        );
    }
    assert_eq!(
        Request::get(paths::LEASES).send(broker.address()).status,
        200,
        "reading is free here"
    );
    let read = Request::get(paths::LEASES).header("authorization", &wrong);
    assert_eq!(
        read.send(broker.address()).status,
        401,
        "but not with a wrong token"
    );

    let body = json!({"memory": "1GiB"});
    let request = Request::post(paths::LEASES, &body).header("authorization", &bearer(&token));
    assert_eq!(request.send(broker.address()).status, 201);
    let rotated = host.run(&["token", "rotate"]);
    assert_eq!(rotated.code, 0, "{}", rotated.stderr);
    assert_eq!(
        request.send(broker.address()).status,
        401,
        "the old one is refused at once"
    );
    let fresh =
        Request::post(paths::LEASES, &body).header("authorization", &bearer(&rotated.stdout));
    assert_eq!(fresh.send(broker.address()).status, 201);
}

/// Runs only where the tests can become somebody else.
#[test]
fn another_user_of_the_host_sees_a_lease_and_cannot_touch_it() {
    let host = Host::with_cards(1).guarded();
    let broker = host.start();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    std::fs::set_permissions(host.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let Address::Unix(socket) = broker.socket() else {
        panic!("a socket")
    };
    let ask = |method: &str, path: &str, body: &str| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "curl",
            "-s",
            "-w",
            "%{http_code}",
        ]);
        command
            .args([
                "-H",
                "content-type: application/json",
                "-X",
                method,
                "--unix-socket",
            ])
            .arg(socket);
        command.arg(format!("http://localhost{path}"));
        if method != "GET" {
            command.args(["-d", body]);
        }
        let said = Process::start(command, host.dir()).wait().stdout;
        said[said.len() - 3..]
            .parse::<u16>()
            .unwrap_or_else(|_| panic!("{said}"))
    };
    let nobody = |method: &str, path: &str| ask(method, path, "{}");
    let lease = Request::post(paths::LEASES, &json!({"memory": "1GiB"}))
        .send(broker.socket())
        .lease();
    assert_eq!(lease.holder.user, "root", "verified by the kernel");
    assert_eq!(nobody("GET", &paths::with_id(paths::LEASE, &lease.id)), 200);
    for path in [
        paths::LEASE_RENEW,
        paths::LEASE_READY,
        paths::LEASE_RELEASE,
        paths::LEASE_DRAIN,
        paths::LEASE_REVOKE,
    ] {
        assert_eq!(
            nobody("POST", &paths::with_id(path, &lease.id)),
            403,
            "{path}"
        );
    }
    assert_eq!(
        nobody("DELETE", &paths::with_id(paths::LEASE, &lease.id)),
        403
    );
    assert_eq!(nobody("POST", paths::HOT_RELOAD), 403);
    assert_eq!(
        nobody("POST", &paths::with_id(paths::DEVICE_CORDON, "sim-0")),
        403
    );
    assert_eq!(
        nobody("POST", paths::LEASES),
        409,
        "it may ask: the card is not free as a whole"
    );
    let mine = std::process::id();
    let theirs = format!(r#"{{"memory":"1GiB","holder":{{"kind":"process","pid":{mine}}}}}"#);
    assert_eq!(
        ask("POST", paths::LEASES, &theirs),
        422,
        "nobody can have another user's process signalled"
    );
    assert!(broker.lease(&lease.id).is_granted());
}
