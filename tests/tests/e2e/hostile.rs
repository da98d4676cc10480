//! Bad input, told what is wrong with it: always 4xx as problem+json, never 5xx, never a hang, never a change.

use gpu_api::{LEASE_SECRET_HEADER, paths};
use gpu_manager_tests::{Address, Answer, Conversation, Host, Request};
use serde_json::{Value, json};

/// A refusal as it must be.
fn check(what: &str, answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    let problem: Value = answer.read();
    let kind = answer.header("content-type");
    assert_eq!(kind, Some("application/problem+json"), "{what}");
    assert_eq!(problem["status"], status, "{what}");
    let told = |member: &str| {
        problem[member]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    };
    assert!(
        told("code") && told("detail") && told("title"),
        "{what}: {problem}"
    );
    let longest = answer.body.len();
    assert!(
        longest < 4096,
        "{what}: hostile input is not sent back whole: {longest} bytes"
    );
}

fn acquire(body: &str) -> Request {
    Request::new("POST", paths::LEASES).json(body)
}

#[test]
fn bad_requests_for_leases() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let long = format!(r#"{{"holder":{{"name":"{}"}}}}"#, "x".repeat(300));
    let labels: String = (0..40).map(|n| format!(r#""k{n}":"v","#)).collect();
    let labels = format!(r#"{{"labels":{{{}"z":"v"}}}}"#, labels);
    let table = [
        ("a negative size", r#"{"memory":-1}"#, 422),
        ("a negative size as text", r#"{"memory":"-1GiB"}"#, 422),
        ("parsecs", r#"{"memory":"12 parsecs"}"#, 422),
        ("2^63", r#"{"memory":9223372036854775808}"#, 422),
        ("2^64", r#"{"memory":18446744073709551616}"#, 422),
        ("2^63 as text", r#"{"memory":"9223372036854775808"}"#, 422),
        (
            "more than can be counted",
            r#"{"memory":"99999999999999999999999TiB"}"#,
            422,
        ),
        ("half a byte", r#"{"memory":0.5}"#, 422),
        ("no bytes", r#"{"memory":0}"#, 422),
        ("not a number", r#"{"memory":"NaNGiB"}"#, 422),
        ("infinity", r#"{"memory":1e999}"#, 400),
        ("10,000 devices", r#"{"devices":10000}"#, 422),
        ("no devices", r#"{"devices":0}"#, 422),
        ("-1 devices", r#"{"devices":-1}"#, 422),
        ("a device and a half", r#"{"devices":1.5}"#, 422),
        (
            "memory of a whole device",
            r#"{"memory":"1GiB","exclusive":true}"#,
            422,
        ),
        ("an unknown field", r#"{"memroy":"1GiB"}"#, 422),
        (
            "an unknown field of the holder",
            r#"{"holder":{"uid":0}}"#,
            422,
        ),
        ("a field twice", r#"{"memory":1,"memory":2}"#, 422),
        ("a short ttl", r#"{"ttl":"10ms"}"#, 422),
        ("a long ttl", r#"{"ttl":"2h"}"#, 422),
        ("a ttl without a unit", r#"{"ttl":60}"#, 422),
        ("a wait for ever", r#"{"wait":"99999999999999h"}"#, 422),
        ("an unknown kind", r#"{"holder":{"kind":"adopted"}}"#, 422),
        (
            "a process without a pid",
            r#"{"holder":{"kind":"process"}}"#,
            422,
        ),
        (
            "a process, and nobody can tell whose",
            r#"{"holder":{"kind":"process","pid":1}}"#,
            403,
        ),
        ("pid 0", r#"{"holder":{"kind":"process","pid":0}}"#, 403),
        (
            "a pid below 0",
            r#"{"holder":{"kind":"process","pid":-1}}"#,
            422,
        ),
        ("a name that is too long", long.as_str(), 422),
        ("too many labels", labels.as_str(), 422),
        ("a select that is none", r#"{"select":"import os"}"#, 422),
        (
            "a hook that is not there",
            r#"{"drain_hook":"rm -rf /"}"#,
            422,
        ),
        ("a class with a line break", "{\"class\":\"a\\nb\"}", 422),
        (
            "a zero byte in a name",
            r#"{"holder":{"name":"a\u0000b"}}"#,
            422,
        ),
        ("an array", "[]", 422),
        ("a number", "7", 422),
        ("null", "null", 422),
        ("nothing", "", 400),
        ("half of JSON", r#"{"memory":"#, 400),
        ("two values", "{}{}", 400),
        ("no JSON", "memory=1GiB", 400),
        ("deeply nested", deep.as_str(), 422),
        ("half of a character", "{\"class\":\"\\ud800\"}", 400),
    ];
    for (what, body, status) in table {
        check(what, &acquire(body).send(broker.address()), status);
    }
    let broken = Request::new("POST", paths::LEASES).json(b"{\"class\":\"\xff\xfe\"}".to_vec());
    check("not UTF-8", &broken.send(broker.address()), 400);
    assert_eq!(broker.live_leases(), [], "nothing came of any of it");
    assert_eq!(broker.queue().total, 0);
    broker.grant(&json!({}));
}

#[test]
fn bad_bodies_paths_methods_and_queries() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let megabyte = format!(r#"{{"holder":{{"name":"{}"}}}}"#, "x".repeat(1 << 20));
    let lease = paths::with_id(paths::LEASE, "l-000000000000");
    let renew = paths::with_id(paths::LEASE_RENEW, "l-000000000000");
    for (what, request, status) in [
        ("1 MB", acquire(&megabyte), 413),
        (
            "a form",
            Request::new("POST", paths::LEASES)
                .header("content-type", "application/x-www-form-urlencoded")
                .body("{}"),
            415,
        ),
        (
            "text",
            Request::new("POST", paths::LEASES)
                .header("content-type", "text/plain")
                .body("{}"),
            415,
        ),
        (
            "no type",
            Request::new("POST", paths::LEASES).body("{}"),
            415,
        ),
        (
            "JSON in Latin-1",
            Request::new("POST", paths::LEASES)
                .header("content-type", "application/json; charset=latin1")
                .body("{}"),
            415,
        ),
        ("PATCH", Request::new("PATCH", paths::LEASES), 405),
        (
            "DELETE of all leases",
            Request::new("DELETE", paths::LEASES),
            405,
        ),
        (
            "POST of the status",
            Request::new("POST", paths::STATUS).json("{}"),
            405,
        ),
        ("TRACE", Request::new("TRACE", paths::LEASES), 405),
        (
            "an invented method",
            Request::new("BREW", paths::LEASES),
            405,
        ),
        ("no such path", Request::get("/v1/nothing"), 404),
        ("climbing", Request::get("/v1/../../etc/passwd"), 404),
        (
            "climbing in disguise",
            Request::get("/%2e%2e/%2e%2e/etc/passwd"),
            404,
        ),
        ("an id that is none", Request::get("/v1/leases/%00"), 404),
        ("an id of another shape", Request::get("/v1/leases/17"), 404),
        (
            "an id with half an escape",
            Request::get("/v1/leases/%zz"),
            404,
        ),
        ("no such lease", Request::get(&lease), 404),
        ("a heartbeat of no lease", Request::new("POST", &renew), 404),
        ("a release of no lease", Request::new("DELETE", &lease), 404),
        (
            "no such device",
            Request::new("POST", "/v1/devices/sim-9/cordon").json("{}"),
            404,
        ),
        (
            "an unknown parameter",
            Request::get("/v1/leases?sort=id"),
            400,
        ),
        ("no leases at all", Request::get("/v1/leases?limit=0"), 400),
        (
            "too many leases",
            Request::get("/v1/leases?limit=1001"),
            400,
        ),
        (
            "a page that is none",
            Request::get("/v1/leases?after=page2"),
            400,
        ),
        (
            "a parameter twice",
            Request::get("/v1/leases?limit=1&limit=2"),
            400,
        ),
        (
            "a query where there is none",
            Request::get("/v1/status?x=1"),
            400,
        ),
        (
            "a cordon with more",
            Request::new("POST", "/v1/devices/sim-0/cordon").json(r#"{"why":"x"}"#),
            422,
        ),
        (
            "a cordon until yesterday",
            Request::new("POST", "/v1/devices/sim-0/cordon")
                .json(r#"{"until":"2001-01-01T00:00:00Z"}"#),
            422,
        ),
        (
            "a cordon until someday",
            Request::new("POST", "/v1/devices/sim-0/cordon").json(r#"{"until":"someday"}"#),
            422,
        ),
        (
            "an emergency of nothing",
            Request::post(paths::EMERGENCY_RELEASE, &json!({})),
            422,
        ),
        (
            "an emergency of everything and more",
            Request::post(
                paths::EMERGENCY_RELEASE,
                &json!({"all": true, "stuck": true}),
            ),
            422,
        ),
        (
            "a switch that is none",
            Request::new("PUT", paths::HOT_RELOAD).json(r#"{"enabled":"yes"}"#),
            422,
        ),
        (
            "a fence below zero",
            Request::post(
                paths::FENCES_CHECK,
                &json!({"device": "sim-0", "fence": -1}),
            ),
            422,
        ),
        (
            "a key that is too long",
            acquire("{}").header("idempotency-key", &"k".repeat(129)),
            400,
        ),
        (
            "a key with a space",
            acquire("{}").header("idempotency-key", "a b"),
            400,
        ),
        (
            "two keys",
            acquire("{}")
                .header("idempotency-key", "a")
                .header("idempotency-key", "b"),
            400,
        ),
        (
            "a wrong token",
            Request::get(paths::STATUS).header("authorization", "Bearer nonsense"),
            401,
        ),
        (
            "a token of another sort",
            Request::get(paths::STATUS).header("authorization", "Basic YTpi"),
            401,
        ),
        (
            "too many files to check",
            Request::post(
                paths::POLICY_CHECK,
                &json!({"files": vec![json!({"name": "a", "text": ""}); 65]}),
            ),
            422,
        ),
    ] {
        check(what, &request.send(broker.address()), status);
    }
    assert_eq!(broker.live_leases(), []);
    assert!(broker.device("sim-0").cordon.is_none());
}

#[test]
fn whoever_comes_after_the_end_or_with_a_wrong_secret_is_told_so() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let over = broker.grant(&json!({}));
    broker.release(&over);
    let lease = broker.grant(&json!({}));
    let secret = |id: &str, path: &str, secret: &str| {
        Request::new("POST", &paths::with_id(path, id))
            .header(LEASE_SECRET_HEADER, secret)
            .send(broker.address())
    };
    let mine = over.secret.as_deref().unwrap();
    check(
        "a heartbeat after the end",
        &secret(&over.id, paths::LEASE_RENEW, mine),
        410,
    );
    check(
        "ready after the end",
        &secret(&over.id, paths::LEASE_READY, mine),
        410,
    );
    check(
        "a drain after the end",
        &secret(&over.id, paths::LEASE_DRAIN, mine),
        410,
    );
    check(
        "another's secret",
        &secret(&lease.id, paths::LEASE_RENEW, mine),
        403,
    );
    check(
        "a guess",
        &secret(&lease.id, paths::LEASE_RELEASE, "guess"),
        403,
    );
    assert_eq!(
        secret(&over.id, paths::LEASE_RELEASE, mine).status,
        200,
        "a release is good twice"
    );
    let waiting = broker
        .acquire(&json!({"queue": true, "wait": "1m"}))
        .unwrap();
    check(
        "ready before the grant",
        &secret(
            &waiting.id,
            paths::LEASE_READY,
            waiting.secret.as_deref().unwrap(),
        ),
        409,
    );
}

#[test]
fn pages_of_other_sites_and_other_names_are_refused_before_anything_else() {
    let host = Host::with_cards(1).settings("[http]\nallowed_origins = ['http://app.lab:3000']\n");
    let broker = host.start();
    let own = broker.url();
    let port = own.rsplit(':').next().unwrap();
    let release_all = || Request::post(paths::EMERGENCY_RELEASE, &json!({"all": true}));
    let lease = broker.grant(&json!({}));
    for (what, request, status) in [
        (
            "a rebound name",
            release_all().header("host", "evil.example"),
            421,
        ),
        (
            "a rebound name with our port",
            release_all().header("host", &format!("evil.example:{port}")),
            421,
        ),
        (
            "a name that begins well",
            release_all().header("host", "localhost.evil.example"),
            421,
        ),
        (
            "two names",
            release_all()
                .header("host", "localhost")
                .header("host", "evil.example"),
            421,
        ),
        ("an empty name", release_all().header("host", ""), 421),
        (
            "another address of this host",
            release_all().header("host", "0.0.0.0"),
            421,
        ),
        (
            "another page",
            release_all().header("origin", "http://evil.example"),
            403,
        ),
        (
            "another page of this host",
            release_all().header("origin", "http://localhost:3000"),
            403,
        ),
        (
            "a page without an origin",
            release_all().header("origin", "null"),
            403,
        ),
        (
            "a page in disguise",
            release_all().header("origin", "http://app.lab:3000.evil.example"),
            403,
        ),
        (
            "a listed page by another scheme",
            release_all().header("origin", "https://app.lab:3000"),
            403,
        ),
        (
            "another site by its browser's word",
            release_all().header("sec-fetch-site", "cross-site"),
            403,
        ),
        (
            "a preflight of another page",
            Request::new("OPTIONS", paths::LEASES)
                .header("origin", "http://evil.example")
                .header("access-control-request-method", "POST"),
            403,
        ),
        (
            "reading, too",
            Request::get(paths::LEASES).header("host", "evil.example"),
            421,
        ),
        (
            "a path that is not there, too",
            Request::get("/nothing").header("origin", "http://evil.example"),
            403,
        ),
    ] {
        let answer = request.send(broker.address());
        check(what, &answer, status);
        assert_eq!(answer.header("access-control-allow-origin"), None, "{what}");
    }
    let over_socket = release_all()
        .header("origin", "http://evil.example")
        .send(broker.socket());
    check("over the socket, too", &over_socket, 403);
    assert!(broker.lease(&lease.id).is_granted());

    let preflight = Request::new("OPTIONS", paths::LEASES).header("origin", "http://app.lab:3000");
    let preflight = preflight
        .header("access-control-request-method", "POST")
        .send(broker.address());
    assert_eq!(preflight.status, 204);
    assert_eq!(
        preflight.header("access-control-allow-origin"),
        Some("http://app.lab:3000")
    );
    let own_page = Request::get(paths::LEASES)
        .header("host", &format!("127.0.0.1:{port}"))
        .header("origin", &own);
    assert_eq!(own_page.send(broker.address()).status, 200);
}

/// What no HTTP library would send.
#[test]
fn bytes_that_are_no_requests() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let many: String = (0..100).map(|n| format!("x-{n}: y\r\n")).collect();
    let huge = format!(
        "GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "y".repeat(64 << 10)
    );
    let path = format!(
        "GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "z".repeat(64 << 10)
    );
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n");
    let post = "POST /v1/leases HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    for (what, bytes) in [
        ("noise", "\x16\x03\x01\x02 hello\r\n\r\n".to_owned()),
        ("huge headers", huge),
        ("a huge path", path),
        ("too many headers", many),
        ("no host", "GET /v1/status HTTP/1.1\r\n\r\n".to_owned()),
        (
            "a header without a colon",
            "GET / HTTP/1.1\r\nhost localhost\r\n\r\n".to_owned(),
        ),
        (
            "a space before a colon",
            "GET / HTTP/1.1\r\nhost : localhost\r\n\r\n".to_owned(),
        ),
        (
            "two lengths",
            format!("{post}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}"),
        ),
        (
            "a length and chunks",
            format!("{post}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "a length below zero",
            format!("{post}content-length: -1\r\n\r\n"),
        ),
        (
            "chunks of no size",
            format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"),
        ),
        (
            "HTTP of the future",
            "GET / HTTP/9.9\r\nhost: localhost\r\n\r\n".to_owned(),
        ),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        (
            "a proxy's request",
            "CONNECT evil.example:443 HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        ),
        (
            "another host in the target",
            "GET http://evil.example/v1/status HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        ),
    ] {
        let mut conversation = Conversation::open(broker.address());
        conversation.say(bytes.as_bytes());
        conversation.half_close();
        let answer = conversation.answer();
        assert!(
            answer.status == 0 || (400..500).contains(&answer.status),
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
    }
    broker.grant(&json!({}));
}

#[test]
fn a_body_that_comes_in_drops_or_never_keeps_nobody_waiting() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let head = b"POST /v1/leases HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    let slow: Vec<Conversation> = (0..50)
        .map(|_| {
            let mut conversation = Conversation::open(broker.address());
            conversation.say(head);
            conversation
        })
        .collect();
    let lease = broker.grant(&json!({}));
    broker.renew(&lease).unwrap();
    drop(slow);
    assert_eq!(broker.live_leases().len(), 1);
}

#[test]
fn the_operators_metrics_and_the_description_of_the_api_are_there() {
    let host = Host::with_cards(1);
    let broker = host.start();
    broker.grant(&json!({"memory": "1GiB"}));
    assert_eq!(
        acquire(r#"{"memory":"30GiB"}"#)
            .send(broker.address())
            .status,
        422
    );
    let metrics = Request::get(paths::METRICS).send(broker.address()).text();
    for name in [
        "leases",
        "waiters",
        "grants",
        "denials",
        "device_memory",
        "request",
    ] {
        assert!(
            metrics
                .lines()
                .any(|line| !line.starts_with('#') && line.contains(name)),
            "no {name}:\n{metrics}"
        );
    }
    let api: Value = Request::get(paths::OPENAPI).send(broker.address()).read();
    assert!(
        api["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.1")),
        "{api}"
    );
    assert!(api["paths"][paths::LEASE_RENEW]["post"].is_object());
    for path in [paths::HEALTHZ, paths::READYZ, paths::HEALTH] {
        assert_eq!(
            Request::get(path).send(broker.address()).status,
            200,
            "{path}"
        );
    }
    let Address::Tcp(_) = broker.address() else {
        panic!("a port")
    };
}
