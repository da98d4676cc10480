//! A lease from the request to its end, and every way in which a request is refused.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Call, GIB, Server, call, delete, get, near, operator, post, soon, user};

fn ask(body: Value) -> Call {
    post("/v1/leases").json(&body)
}

fn path(lease: &Value, rest: &str) -> String {
    format!("/v1/leases/{}{rest}", lease["id"].as_str().expect("an id"))
}

fn secret(lease: &Value) -> &str {
    lease["secret"].as_str().expect("a secret")
}

#[tokio::test]
async fn a_lease_from_the_grant_to_the_end() {
    let server = Server::dev().await;
    let asked = json!({
        "holder": {"name": "vllm-a"}, "memory": "4GiB", "ttl": "30s", "labels": {"team": "x"},
        "select": "device.id == 'sim-0'",
    });
    let reply = server.send(ask(asked)).await;
    let location = reply.headers["location"].clone();
    let lease = reply.expect(201);
    assert_eq!(location.to_str().expect("text"), path(&lease, ""));
    for (field, value) in [
        ("state", json!("active")),
        ("end_reason", json!(null)),
        ("unresponsive", json!(false)),
        ("reclaim", json!(null)),
        (
            "holder",
            json!({"name": "vllm-a", "kind": "remote", "tenant": null, "user": "anonymous", "pid": null}),
        ),
        ("class", json!("standard")),
        ("priority", json!(0)),
        (
            "allocations",
            json!([{"device": "sim-0", "name": "Simulated A100", "index": 0, "memory": 4 * GIB, "exclusive": false, "compute": null}]),
        ),
        ("waiting", json!(null)),
        ("ttl_ms", json!(30_000)),
        ("drain", json!(null)),
        ("observed", json!(null)),
        ("enforcement", json!("advisory")),
        ("labels", json!({"team": "x"})),
    ] {
        assert_eq!(lease[field], value, "{field}");
    }
    assert!(lease["remaining_ms"].as_u64().expect("a number") <= 30_000);
    let env = &lease["env"];
    for (name, value) in [
        ("CUDA_VISIBLE_DEVICES", json!("GPU-0000")),
        ("CUDA_DEVICE_ORDER", json!("PCI_BUS_ID")),
        ("NVIDIA_VISIBLE_DEVICES", json!("GPU-0000")),
        ("GPU_MANAGER_LEASE", lease["id"].clone()),
        ("GPU_MANAGER_FENCE", json!(lease["fence"].to_string())),
        ("GPU_MANAGER_DEVICES", json!("sim-0")),
        ("ROCR_VISIBLE_DEVICES", json!(null)),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    let seen = server.send(get(&path(&lease, ""))).await.expect(200);
    assert_eq!(
        seen.get("secret"),
        None,
        "only its creator is told the secret"
    );
    server.send(post(&path(&lease, "/renew"))).await.expect(200);
    server.send(post(&path(&lease, "/ready"))).await.expect(200);
    let ended = server.send(delete(&path(&lease, ""))).await.expect(200);
    assert_eq!(
        (&ended["state"], &ended["end_reason"]),
        (&json!("ended"), &json!("released"))
    );
    assert_eq!(ended["env"], json!({}));
    server.send(delete(&path(&lease, ""))).await.expect(200);
    server
        .send(post(&path(&lease, "/release")))
        .await
        .expect(200);
    for verb in ["/renew", "/ready"] {
        let reply = server.send(post(&path(&lease, verb))).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code()),
            (410, "ended".to_owned()),
            "{verb}"
        );
    }
}

#[tokio::test]
async fn a_device_without_a_uuid_is_named_by_its_id() {
    let server = Server::dev().await;
    let lease = server
        .send(ask(json!({"select": "device.id == 'sim-1'"})))
        .await
        .expect(201);
    assert_eq!(
        lease["allocations"][0]["exclusive"], true,
        "nothing said: a whole device"
    );
    assert_eq!(lease["env"]["GPU_MANAGER_DEVICES"], "sim-1");
    assert_eq!(lease["env"]["CUDA_VISIBLE_DEVICES"], Value::Null);
}

#[tokio::test]
async fn only_the_owner_the_secret_and_admins_change_a_lease() {
    let server = Server::strict().await;
    let (ann, bob) = (user("ann", 1001), user("bob", 1002));
    let lease = server
        .send(ask(json!({"memory": "1GiB"})).from(ann.clone()))
        .await
        .expect(201);
    assert_eq!(lease["holder"]["user"], "ann");
    assert_eq!(lease["holder"]["name"], "ann");
    let other = server
        .send(ask(json!({"memory": "1GiB"})).from(bob.clone()))
        .await
        .expect(201);
    let token = server.token.to_string();
    let renew = || post(&path(&lease, "/renew"));
    for (name, call, status) in [
        ("its user", renew().from(ann.clone()), 200),
        ("another user", renew().from(bob.clone()), 403),
        (
            "another user with the secret",
            renew()
                .from(bob.clone())
                .header("x-lease-secret", secret(&lease)),
            200,
        ),
        (
            "another lease's secret",
            renew()
                .from(bob.clone())
                .header("x-lease-secret", secret(&other)),
            403,
        ),
        (
            "its user with a wrong secret",
            renew().from(ann.clone()).header("x-lease-secret", "wrong"),
            403,
        ),
        ("an admin", renew().from(operator()), 200),
        (
            "an admin with a wrong secret",
            renew().from(operator()).header("x-lease-secret", "wrong"),
            403,
        ),
        (
            "TCP without a token",
            renew().header("x-lease-secret", secret(&lease)),
            401,
        ),
        ("the token", renew().bearer(&token), 200),
        ("a wrong token", renew().bearer("wrong"), 401),
        (
            "a wrong token with its user",
            renew().from(ann.clone()).bearer("wrong"),
            401,
        ),
        (
            "another user releases",
            delete(&path(&lease, "")).from(bob.clone()),
            403,
        ),
        (
            "another user says ready",
            post(&path(&lease, "/ready")).from(bob),
            403,
        ),
        ("reading is free", get(&path(&lease, "")), 200),
        (
            "a lease that is none",
            post("/v1/leases/l-000000000000/renew").from(ann.clone()),
            404,
        ),
        (
            "an id that is none",
            post("/v1/leases/xyz/renew").from(ann),
            404,
        ),
    ] {
        assert_eq!(server.send(call).await.status.as_u16(), status, "{name}");
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_served_says_why() {
    let server = Server::dev().await;
    let all = server
        .send(ask(json!({"devices": 2, "holder": {"name": "big"}})))
        .await
        .expect(201);
    for (name, body, status, code) in [
        (
            "nothing free",
            json!({"memory": "1GiB"}),
            409,
            "does_not_fit",
        ),
        (
            "wait over",
            json!({"memory": "1GiB", "wait": "50ms"}),
            408,
            "wait_over",
        ),
        ("too large", json!({"memory": "17GiB"}), 422, "never_fits"),
        ("too many", json!({"devices": 3}), 422, "never_fits"),
        (
            "unknown device",
            json!({"select": "device.id == 'no'"}),
            422,
            "never_fits",
        ),
        (
            "unknown class",
            json!({"memory": "1GiB", "class": "no"}),
            403,
            "denied",
        ),
        ("compute", json!({"compute": 500}), 422, "invalid_request"),
        ("hook", json!({"drain_hook": "x"}), 422, "invalid_request"),
        (
            "an expression",
            json!({"select": "device.memry > 4"}),
            422,
            "invalid_request",
        ),
        (
            "a process, and nobody can tell whose",
            json!({"holder": {"kind": "process", "pid": std::process::id()}}),
            403,
            "forbidden",
        ),
    ] {
        let reply = server.send(ask(body)).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (status, code),
            "{name}: {}",
            reply.text
        );
        let retry = reply.headers.contains_key("retry-after");
        assert_eq!(retry, status == 409, "{name}: 409, 429 and 503 say when");
        if status == 409 || status == 408 {
            let problem = reply.json();
            assert!(
                problem["detail"].as_str().expect("text").contains("big"),
                "{name}: {problem}"
            );
            assert_eq!(
                problem["waiting"]["blockers"][0]["lease"], all["id"],
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn bad_input_is_never_the_servers_fault() {
    let server = Server::dev().await;
    let many_labels: Value = (0..17)
        .map(|n| (n.to_string(), json!("x")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for body in [
        json!({"memory": -1}),
        json!({"memory": "-1"}),
        json!({"memory": 0}),
        json!({"memory": "12 parsecs"}),
        json!({"memory": 9_223_372_036_854_775_808_u64}),
        json!({"memory": 1e300}),
        json!({"memory": "99999999999999999999GiB"}),
        json!({"memory": true}),
        json!({"memory": null, "devices": 10_000}),
        json!({"devices": 0}),
        json!({"devices": -1}),
        json!({"devices": 1.5}),
        json!({"ttl": "0s"}),
        json!({"ttl": "2h"}),
        json!({"ttl": 30}),
        json!({"wait": "-5s"}),
        json!({"wait": "soon"}),
        json!({"wait": "1000000d"}),
        json!({"max_hold": "0s"}),
        json!({"memmory": "1GiB"}),
        json!({"holder": {"nam": "x"}}),
        json!({"holder": {"name": ""}}),
        json!({"holder": {"name": "a\u{1b}[31m"}}),
        json!({"holder": {"name": "x".repeat(129)}}),
        json!({"holder": {"kind": "ghost"}}),
        json!({"holder": {"kind": "process"}}),
        json!({"labels": many_labels}),
        json!({"class": ""}),
        json!({"memory": "1GiB", "exclusive": true}),
        json!({"select": "x".repeat(3000)}),
        json!([]),
        json!("x"),
        json!(null),
    ] {
        let reply = server.send(ask(body.clone())).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (422, "invalid_request"),
            "{body}"
        );
    }
    for (kind, body, status, code) in [
        ("application/json", "{", 400, "bad_json"),
        ("application/json", "{} {}", 400, "bad_json"),
        ("application/json", "\u{0}", 400, "bad_json"),
        ("application/json", "{\"memory\":1", 400, "bad_json"),
        ("text/plain", "{}", 415, "unsupported_media_type"),
        (
            "application/json; charset=utf-8",
            "{}",
            415,
            "unsupported_media_type",
        ),
        (
            "application/x-www-form-urlencoded",
            "memory=1",
            415,
            "unsupported_media_type",
        ),
    ] {
        let reply = server.send(post("/v1/leases").text(kind, body)).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (status, code),
            "{kind} {body}"
        );
    }
    let deep = format!("{{\"labels\":{}", "[".repeat(20_000));
    assert!(
        server
            .send(post("/v1/leases").text("application/json", &deep))
            .await
            .status
            .is_client_error()
    );
    let empty = server.send(post("/v1/leases")).await;
    assert_eq!(
        empty.code(),
        "bad_json",
        "a lease is never asked for by accident"
    );
    let large = format!("{{\"class\":\"{}\"}}", "x".repeat(1 << 20));
    let reply = server
        .send(post("/v1/leases").text("application/json", &large))
        .await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (413, "body_too_large")
    );
}

#[tokio::test]
async fn paths_methods_and_queries_that_are_not_there() {
    let server = Server::dev().await;
    for (call, status, code, allow) in [
        (get("/v2/leases"), 404, "not_found", None),
        (get("/v1/leases/"), 404, "not_found", None),
        (get("/v1/leases/xyz"), 404, "not_found", None),
        (get("/v1/leases/l-000000000000"), 404, "not_found", None),
        (get("/v1/leases/%FF"), 400, "bad_request", None),
        (get("//v1/leases"), 404, "not_found", None),
        (get("/v1/../v1/status"), 404, "not_found", None),
        (
            call(Method::PATCH, "/v1/leases"),
            405,
            "method_not_allowed",
            Some("GET,HEAD,POST"),
        ),
        (
            call(Method::OPTIONS, "/v1/leases"),
            405,
            "method_not_allowed",
            Some("GET,HEAD,POST"),
        ),
        (
            delete("/v1/devices"),
            405,
            "method_not_allowed",
            Some("GET,HEAD"),
        ),
        (
            get("/v1/leases/l-000000000000/renew"),
            405,
            "method_not_allowed",
            Some("POST"),
        ),
        (
            call(Method::TRACE, "/v1/status"),
            405,
            "method_not_allowed",
            Some("GET,HEAD"),
        ),
        (get("/v1/leases?limit=0"), 400, "bad_request", None),
        (get("/v1/leases?limit=1001"), 400, "bad_request", None),
        (get("/v1/leases?limit=-1"), 400, "bad_request", None),
        (
            get("/v1/leases?limit=99999999999"),
            400,
            "bad_request",
            None,
        ),
        (get("/v1/leases?limt=1"), 400, "bad_request", None),
        (get("/v1/leases?limit=1&limit=2"), 400, "bad_request", None),
        (get("/v1/leases?after=xyz"), 400, "bad_request", None),
        (get("/v1/leases?live=perhaps"), 400, "bad_request", None),
        (get("/v1/devices?x=1"), 400, "bad_request", None),
        (
            get("/v1/leases/l-000000000000?wait=soon"),
            400,
            "bad_request",
            None,
        ),
        (post("/v1/devices/none/cordon"), 404, "not_found", None),
    ] {
        let uri = format!("{} {}", call.0.method(), call.0.uri());
        let reply = server.send(call).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (status, code),
            "{uri}"
        );
        let allowed = reply
            .headers
            .get("allow")
            .map(|value| value.to_str().expect("text"));
        assert_eq!(allowed, allow, "{uri}");
    }
    assert_eq!(
        server.send(call(Method::HEAD, "/v1/status")).await.status,
        StatusCode::OK
    );
    let body_where_none_belongs = post("/v1/leases/l-000000000000/renew").json(&json!({"x": 1}));
    assert_eq!(
        server.send(body_where_none_belongs).await.code(),
        "invalid_request"
    );
}

#[tokio::test]
async fn the_same_key_is_the_same_lease() {
    let server = Server::strict().await;
    let (ann, bob) = (user("ann", 1001), user("bob", 1002));
    let keyed = |body: Value| ask(body).header("idempotency-key", "k1");
    let first = server
        .send(keyed(json!({"memory": "1GiB"})).from(ann.clone()))
        .await
        .expect(201);
    let again = server
        .send(keyed(json!({"memory": "1GiB"})).from(ann.clone()))
        .await
        .expect(201);
    assert_eq!(
        (&first["id"], &first["secret"]),
        (&again["id"], &again["secret"])
    );
    let spelled = keyed(json!(null)).text(
        "application/json",
        " {\"memory\": 1073741824, \"devices\":1} ",
    );
    assert_eq!(
        server.send(spelled.from(ann.clone())).await.expect(201)["id"],
        first["id"]
    );
    let other = server
        .send(keyed(json!({"memory": "2GiB"})).from(ann.clone()))
        .await;
    assert_eq!(
        (other.status.as_u16(), other.code()),
        (422, "idempotency_mismatch".to_owned())
    );
    let others = server
        .send(keyed(json!({"memory": "1GiB"})).from(bob))
        .await
        .expect(201);
    assert_ne!(others["id"], first["id"], "keys of others are other keys");
    server
        .send(delete(&path(&first, "")).from(ann.clone()))
        .await
        .expect(200);
    let over = server
        .send(keyed(json!({"memory": "1GiB"})).from(ann.clone()))
        .await
        .expect(200);
    assert_eq!(
        (&over["id"], &over["state"]),
        (&first["id"], &json!("ended"))
    );
    for key in ["", "with space", &"x".repeat(129)] {
        let reply = server
            .send(
                ask(json!({}))
                    .header("idempotency-key", key)
                    .from(ann.clone()),
            )
            .await;
        assert_eq!(reply.code(), "bad_request", "{key:?}");
    }
}

#[tokio::test]
async fn a_queued_request_is_a_row_that_lives_by_renewals() {
    let server = Server::dev().await;
    let all = server.send(ask(json!({"devices": 2}))).await.expect(201);
    let queued = server
        .send(ask(json!({"memory": "1GiB", "queue": true})))
        .await
        .expect(202);
    assert_eq!(queued["state"], "waiting");
    assert_eq!(queued["waiting"]["position"], 1);
    assert_eq!(queued["waiting"]["reason_code"], "capacity");
    let queue = server.send(get("/v1/queue")).await.expect(200);
    assert_eq!(
        (&queue["total"], &queue["waiters"][0]["id"]),
        (&json!(1), &queued["id"])
    );
    server
        .send(post(&path(&queued, "/renew")))
        .await
        .expect(200);
    let early = server.send(post(&path(&queued, "/ready"))).await;
    assert_eq!(
        (early.status.as_u16(), early.code()),
        (409, "wrong_state".to_owned())
    );
    let after = queued["revision"].as_u64().expect("a number");
    let look = get(&format!(
        "{}?wait=20s&after={}",
        path(&queued, ""),
        after + 1
    ));
    let (seen, _) = tokio::join!(server.send(look), server.send(delete(&path(&all, ""))));
    assert_eq!(
        seen.expect(200)["state"],
        "active",
        "the look is answered by the grant"
    );
    let cancelled = server.send(delete(&path(&queued, ""))).await.expect(200);
    assert_eq!(cancelled["end_reason"], "released");
}

#[tokio::test]
async fn a_full_queue_says_so() {
    let server = Server::dev().await;
    *server.bench.policy.lock() = "schema = 1\n[queue]\nmax_waiting = 1\n".to_owned();
    server.send(post("/v1/hot-reload")).await.expect(200);
    server.send(ask(json!({"devices": 2}))).await.expect(201);
    server.send(ask(json!({"queue": true}))).await.expect(202);
    let reply = server.send(ask(json!({"queue": true}))).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code()),
        (429, "queue_full".to_owned())
    );
    assert!(reply.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_waiter_is_served_when_there_is_room() {
    let server = Server::dev().await;
    let all = server.send(ask(json!({"devices": 2}))).await.expect(201);
    let waits = server.send(ask(json!({"memory": "1GiB", "wait": "10m"})));
    let frees = async {
        server
            .until(|handle| handle.snapshot().waiting.len() == 1)
            .await;
        server.send(delete(&path(&all, ""))).await
    };
    let (granted, _) = soon(async { tokio::join!(waits, frees) }).await;
    assert_eq!(granted.expect(201)["state"], "active");
}

#[tokio::test]
async fn a_waiter_that_is_dropped_is_never_granted() {
    let server = Server::dev().await;
    let all = server.send(ask(json!({"devices": 2}))).await.expect(201);
    let mut waits = Box::pin(server.open(ask(json!({"memory": "1GiB", "wait": "10m"}))));
    let queued = server.until(|handle| handle.snapshot().waiting.len() == 1);
    tokio::select! {
        _ = &mut waits => panic!("nothing is free"),
        () = queued => {}
    }
    drop(waits);
    server
        .until(|handle| handle.snapshot().waiting.is_empty())
        .await;
    server.send(delete(&path(&all, ""))).await.expect(200);
    let leases = server.send(get("/v1/leases?live=true")).await.expect(200);
    assert_eq!(leases["leases"], json!([]), "nothing is held");
}

#[tokio::test]
async fn a_retry_outlives_the_connection_that_it_replaces() {
    let server = Server::dev().await;
    let all = server.send(ask(json!({"devices": 2}))).await.expect(201);
    let keyed = || ask(json!({"memory": "1GiB", "wait": "10m"})).header("idempotency-key", "k1");
    let mut first = Box::pin(server.open(keyed()));
    let mut retry = Box::pin(server.send(keyed()));
    let queued = server.until(|handle| handle.snapshot().waiting.len() == 1);
    tokio::select! {
        _ = &mut first => panic!("nothing is free"),
        () = queued => {}
    }
    let waited = server.handle().snapshot().waiting[0].0;
    // The retry joins the wait of the first: requests are taken in turn, so one that is sent after it and is
    // answered says that the broker has it. Then the broker hears that the first is gone.
    tokio::select! {
        biased;
        _ = &mut first => panic!("nothing is free"),
        _ = &mut retry => panic!("nothing is free"),
        later = server.send(ask(json!({"devices": 9}))) => drop(later.expect(422)),
    }
    assert_eq!(
        server.handle().snapshot().waiting.len(),
        1,
        "one request, not two"
    );
    drop(first);
    let moved = server.until(|handle| {
        let waiting = &handle.snapshot().waiting;
        waiting.len() == 1 && waiting[0].0 != waited
    });
    tokio::select! {
        _ = &mut retry => panic!("nothing is free"),
        () = moved => {}
    }
    let (granted, _) =
        soon(async { tokio::join!(retry, server.send(delete(&path(&all, "")))) }).await;
    assert_eq!(granted.expect(201)["state"], "active");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_gives_the_grant_back() {
    let server = Server::dev().await;
    let response = server.open(ask(json!({"memory": "1GiB"}))).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    drop(response);
    server
        .until(|handle| {
            handle
                .page(None, 10)
                .iter()
                .all(|lease| lease.held().is_none())
        })
        .await;
}

#[tokio::test]
async fn waiters_hear_of_a_shutdown() {
    let server = Server::dev().await;
    server.send(ask(json!({"devices": 2}))).await.expect(201);
    let waits = server.send(ask(json!({"memory": "1GiB", "wait": "10m"})));
    let stops = async {
        server
            .until(|handle| handle.snapshot().waiting.len() == 1)
            .await;
        server.bench.broker.as_ref().expect("it runs").begin_stop();
    };
    let (reply, ()) = soon(async { tokio::join!(waits, stops) }).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code()),
        (503, "shutting_down".to_owned())
    );
    assert!(reply.headers.contains_key("retry-after"));
    let late = server.send(ask(json!({"memory": "1GiB"}))).await;
    assert_eq!(late.code(), "shutting_down");
    assert_eq!(server.send(get("/readyz")).await.code(), "shutting_down");
}

#[tokio::test]
async fn leases_are_listed_a_page_at_a_time() {
    let server = Server::dev().await;
    for n in 0..5 {
        let lease = server
            .send(ask(json!({"memory": "1GiB"})))
            .await
            .expect(201);
        if n % 2 == 0 {
            server.send(delete(&path(&lease, ""))).await.expect(200);
        }
    }
    for (live, expected) in [(false, 5), (true, 2)] {
        let (mut seen, mut after) = (0, String::new());
        loop {
            let page = server
                .send(get(&format!("/v1/leases?limit=2&live={live}{after}")))
                .await
                .expect(200);
            seen += page["leases"].as_array().expect("a list").len();
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(seen, expected, "live: {live}");
    }
}

#[tokio::test]
async fn a_fence_is_current_while_its_lease_is_held() {
    let server = Server::strict().await;
    let ann = user("ann", 1001);
    let lease = server
        .send(ask(json!({"memory": "1GiB"})).from(ann.clone()))
        .await
        .expect(201);
    let device = lease["allocations"][0]["device"].clone();
    let check =
        |fence: u64| post("/v1/fences/check").json(&json!({"device": device, "fence": fence}));
    let fence = lease["fence"].as_u64().expect("a fence");
    let is_current =
        async |fence| server.send(check(fence).from(near())).await.expect(200)["current"].clone();
    assert_eq!(
        is_current(fence).await,
        true,
        "anybody on this host may ask"
    );
    assert_eq!(is_current(fence + 1).await, false);
    server
        .send(delete(&path(&lease, "")).from(ann))
        .await
        .expect(200);
    assert_eq!(is_current(fence).await, false);
    let unknown = post("/v1/fences/check").json(&json!({"device": "none", "fence": 1}));
    assert_eq!(server.send(unknown).await.code(), "not_found");
}

#[tokio::test]
async fn devices_are_selected_by_any_expression_over_them() {
    let server = Server::dev().await;
    let ask = |select: &str| post("/v1/leases").json(&json!({"memory": "1GiB", "select": select}));
    let second = "device.index == 1 && device.memory >= GiB(16)";
    let lease = server.send(ask(second)).await.expect(201);
    assert_eq!(
        (
            &lease["allocations"][0]["device"],
            &lease["wanted"]["select"]
        ),
        (&json!("sim-1"), &json!(second))
    );
    let none = server.send(ask("device.memory > TiB(4)")).await;
    assert_eq!(none.code(), "never_fits");
    let misspelled = server.send(ask("true && device.memry > 4")).await;
    assert_eq!(misspelled.code(), "invalid_request");
    let problem = misspelled.json();
    let detail = problem["detail"].as_str().expect("text");
    assert!(detail.starts_with("`select`, column "), "{detail}");
    let hint = problem["hint"].as_str().expect("a hint");
    assert!(hint.contains("memory"), "{hint}");
}
