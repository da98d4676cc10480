//! Reloads and checks of the policy.

use axum::http::Method;
use gpu_bridge::RELOADS_IN_LINE_MAX;
use serde_json::{Value, json};

use crate::support::{Server, call, get, post};

#[tokio::test]
async fn a_good_edit_is_applied_and_a_bad_one_changes_nothing() {
    let server = Server::dev().await;
    let save = |text: &str| *server.bench.policy.lock() = text.to_owned();
    let reload = async || server.send(post("/v1/hot-reload")).await.expect(200);
    let before = server.send(get("/v1/policy")).await.expect(200);
    let same = reload().await;
    assert_eq!(
        (&same["outcome"], &same["trigger"]),
        (&json!("unchanged"), &json!("api"))
    );
    save("schema = 1\n[placement]\nstrategy = \"spread\"\n");
    let applied = reload().await;
    assert_eq!(applied["outcome"], "applied", "{applied}");
    assert_eq!(
        applied["generation"],
        before["generation"].as_u64().expect("a number") + 1
    );
    assert_eq!(applied["previous_generation"], before["generation"]);
    assert!(
        applied["changes"].to_string().contains("spread"),
        "{applied}"
    );
    save("schema = 1\n[placement]\nstratgy = \"pack\"\n");
    let failed = server.send(post("/v1/hot-reload")).await.expect(422);
    assert_eq!(
        (&failed["outcome"], &failed["generation"]),
        (&json!("failed"), &applied["generation"])
    );
    let found = &failed["diagnostics"][0];
    assert_eq!(
        (&found["file"], &found["line"], &found["column"]),
        (&json!("default.toml"), &json!(3), &json!(1))
    );
    assert_eq!(
        (&found["severity"], &found["width"], &found["source_line"]),
        (
            &json!("error"),
            &json!("stratgy".len()),
            &json!("stratgy = \"pack\"")
        )
    );
    let policy = server.send(get("/v1/policy")).await.expect(200);
    assert_eq!(
        (&policy["generation"], &policy["hash"]),
        (&applied["generation"], &applied["hash"])
    );
    assert_eq!(policy["candidate"]["state"], "failing");
    assert!(
        policy["error_state"]["summary"]
            .as_str()
            .expect("text")
            .contains("default.toml:3:1")
    );
    assert!(
        policy["files"][0]["text"]
            .as_str()
            .expect("text")
            .contains("spread")
    );
    assert_eq!(
        server.send(get("/v1/status")).await.expect(200)["policy"]["disk"],
        "failing"
    );
    let state = server.send(get("/v1/hot-reload")).await.expect(200);
    assert_eq!(state["last"]["outcome"], "failed");
    assert_eq!(
        (&state["on_disk_differs"], &state["candidate"]["attempt"]),
        (&json!(true), &json!(1))
    );
    let history = state["history"].as_array().expect("a list");
    let said: Vec<_> = history
        .iter()
        .map(|entry| {
            let generation = entry["generation"].as_u64().expect("a number");
            (entry["outcome"].as_str().expect("a word"), generation)
        })
        .collect();
    let after = applied["generation"].as_u64().expect("a number");
    assert_eq!(
        said,
        [
            ("failed", after),
            ("applied", after),
            ("unchanged", after - 1)
        ],
        "each with the generation of then"
    );
    assert!(
        history[1]["phases"]["compile_us"].is_u64(),
        "{}",
        history[1]
    );
    let counted = json!({"trigger": "api", "outcome": "failed", "count": 1});
    assert!(
        state["counts"]
            .as_array()
            .expect("a list")
            .contains(&counted)
    );
}

const CLASSES: &str = "schema = 1\n[reclaim]\ndelay = \"1s\"\n[[class]]\nname = \"batch\"\n";
const NO_BATCH: &str = "schema = 1\n[reclaim]\ndelay = \"1s\"\n";

/// A lease that the policy without its class does not allow.
async fn hold_batch(server: &Server) -> String {
    let request = json!({"memory": "1GiB", "class": "batch", "holder": {"name": "night job"}});
    let call = post("/v1/leases").json(&request).bearer(&server.token);
    let lease = server.send(call).await.expect(201);
    lease["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_plan_that_drains_waits_for_its_confirmation() {
    let server = Server::strict().await;
    let lease = hold_batch(&server).await;
    *server.bench.policy.lock() = NO_BATCH.to_owned();
    let plan = server
        .send(post("/v1/policy/plan").json(&json!({})))
        .await
        .expect(200);
    assert_eq!(
        (&plan["ok"], &plan["confirm_needed"], &plan["summary"]),
        (&json!(true), &json!(true), &json!("1 lease drains"))
    );
    let fate = &plan["leases"][0];
    assert_eq!(
        (&fate["lease"], &fate["fate"], &fate["holder"]),
        (&json!(lease), &json!("drain"), &json!("night job"))
    );
    assert!(fate["remaining_ms"].as_u64().expect("a number") > 0);
    assert!(!fate["rule"].as_str().expect("text").is_empty(), "{fate}");

    let reload = |body: Value| post("/v1/hot-reload").json(&body).bearer(&server.token);
    let waits = server.send(reload(json!({}))).await.expect(409);
    assert_eq!(
        (&waits["outcome"], &waits["plan"]),
        (&json!("needs_confirmation"), &plan["plan"])
    );
    let status = server.send(get("/v1/status")).await.expect(200);
    assert_eq!(
        (&status["policy"]["disk"], &status["policy"]["pending"]),
        (&json!("pending"), &plan["plan"])
    );
    let state = server.send(get("/v1/hot-reload")).await.expect(200);
    assert_eq!(state["candidate"]["state"], "needs_confirmation");
    for expected in [
        "00",
        "00112233",
        &plan["plan"].as_str().expect("a hash")[..7],
    ] {
        let moved = server.send(reload(json!({"expect_plan": expected}))).await;
        assert_eq!(moved.expect(412)["outcome"], "moved", "{expected}");
    }
    let stale = reload(json!({"confirm": plan["plan"]})).header("if-match", "\"00ff\"");
    assert_eq!(server.send(stale).await.expect(412)["outcome"], "moved");

    let short = &plan["plan"].as_str().expect("a hash")[..12];
    let live = format!("\"{}\"", plan["live"].as_str().expect("a hash"));
    let confirmed = reload(json!({"confirm": short})).header("if-match", &live);
    let applied = server.send(confirmed).await.expect(200);
    assert_eq!(applied["outcome"], "applied");
    assert_eq!(applied["leases"][0]["fate"], "drain", "as planned");
    let policy = server.send(get("/v1/policy")).await;
    assert_eq!(
        policy.headers["etag"],
        format!("\"{}\"", applied["hash"].as_str().expect("a hash"))
    );
    assert_eq!(policy.expect(200)["draining"], json!([lease]));
    let state = server.send(get("/v1/hot-reload")).await.expect(200);
    let draining = &state["draining_generations"][0];
    assert_eq!(
        (&draining["generation"], &draining["leases"]),
        (&applied["previous_generation"], &json!([lease]))
    );
    let metrics = server.send(get("/metrics")).await.text;
    for line in [
        "gpu_manager_policy_draining_leases 1",
        "gpu_manager_reloads_total{trigger=\"api\",result=\"needs_confirmation\"} 1",
    ] {
        assert!(
            metrics.lines().any(|there| there == line),
            "{line}\n{metrics}"
        );
    }

    let back = post("/v1/policy/rollback").bearer(&server.token);
    let back = server.send(back).await.expect(200);
    assert_eq!(
        (
            &back["outcome"],
            &back["trigger"],
            &back["leases"][0]["fate"]
        ),
        (&json!("applied"), &json!("rollback"), &json!("withdraw"))
    );
    let policy = server.send(get("/v1/policy")).await.expect(200);
    assert_eq!(
        (&policy["rolled_back"]["hash"], &policy["draining"]),
        (&applied["hash"], &json!([]))
    );
    let nowhere = post("/v1/policy/rollback").json(&json!({"generation": 99}));
    let nowhere = server.send(nowhere.bearer(&server.token)).await;
    assert_eq!(nowhere.code(), "not_found");
}

#[tokio::test]
async fn the_number_of_series_does_not_grow_with_reloads() {
    let server = Server::dev().await;
    let mut lines = Vec::new();
    for round in 0..6 {
        let delay = if round % 2 == 0 { "2s" } else { "1s" };
        *server.bench.policy.lock() = CLASSES.replace("1s", delay);
        server.send(post("/v1/hot-reload")).await.expect(200);
        let metrics = server.send(get("/metrics")).await.text;
        let about_requests = |line: &&str| line.contains("http_request_seconds");
        lines.push(metrics.lines().filter(|line| !about_requests(line)).count());
        let infos = metrics.matches("gpu_manager_policy_info{").count();
        assert_eq!(infos, 1, "the hash is replaced");
    }
    assert_eq!(lines[1], lines[5], "{lines:?}");
}

#[tokio::test]
async fn policy_files_are_written_only_if_they_are_taken() {
    let server = Server::strict().await;
    let on_disk = || server.bench.policy.lock().clone();
    let live = async || {
        let policy = server.send(get("/v1/policy")).await.expect(200);
        format!("\"{}\"", policy["hash"].as_str().expect("a hash"))
    };
    let put = |text: &str, expect_plan: Option<&Value>| {
        let files = json!([{"name": "default.toml", "text": text}]);
        let body = json!({"files": files, "expect_plan": expect_plan});
        let call = call(Method::PUT, "/v1/policy").json(&body);
        call.bearer(&server.token)
    };
    let blind = server.send(put(NO_BATCH, None)).await;
    assert_eq!(blind.code(), "bad_request", "without `If-Match`");
    let lease = hold_batch(&server).await;
    let tag = live().await;
    let waits = server
        .send(put(NO_BATCH, None).header("if-match", &tag))
        .await;
    let waits = waits.expect(409);
    assert_eq!(
        (&waits["outcome"], &waits["leases"][0]["lease"]),
        (&json!("needs_confirmation"), &json!(lease))
    );
    let wrong = put(NO_BATCH, Some(&json!("00"))).header("if-match", &tag);
    assert_eq!(server.send(wrong).await.expect(412)["outcome"], "moved");
    let old = put(NO_BATCH, None).header("if-match", "\"00\"");
    assert_eq!(server.send(old).await.expect(412)["outcome"], "moved");
    let bad = put("schema = 1\nx = 2\n", None).header("if-match", &tag);
    let bad = server.send(bad).await.expect(422);
    assert_eq!(
        (&bad["outcome"], &bad["diagnostics"][0]["line"]),
        (&json!("failed"), &json!(2))
    );
    assert_eq!(on_disk(), CLASSES, "nothing was written so far");
    let state = server.send(get("/v1/hot-reload")).await.expect(200);
    assert_eq!(
        state["on_disk_differs"], false,
        "and nothing is said of the disk"
    );

    let plan = waits["plan"].as_str().expect("a hash");
    let short = put(NO_BATCH, Some(&json!(plan[..7]))).header("if-match", &tag);
    assert_eq!(server.send(short).await.expect(412)["outcome"], "moved");
    let call = put(NO_BATCH, Some(&json!(plan[..8]))).header("if-match", &tag);
    let applied = server.send(call).await.expect(200);
    assert_eq!(applied["outcome"], "applied", "{applied}");
    assert_eq!(on_disk(), NO_BATCH);
    let files = json!({"files": [{"name": "../etc/x.toml", "text": ""}]});
    let elsewhere = call_put(&files).bearer(&server.token);
    let elsewhere = elsewhere.header("if-match", &live().await);
    assert_eq!(server.send(elsewhere).await.code(), "policy_read_only");
    for tag in ["abc\"", "W/\"00\"", "\"00\", \"11\"", ""] {
        let odd = put(NO_BATCH, None).header("if-match", tag);
        assert_eq!(server.send(odd).await.code(), "bad_request", "{tag}");
    }
    let pending = NO_BATCH.replace("1s", "3s");
    *server.bench.policy.lock() = pending.clone();
    let over = put(CLASSES, None).header("if-match", &live().await);
    let over = server.send(over).await.expect(412);
    assert_eq!(over["outcome"], "moved");
    assert!(over["summary"].to_string().contains("on disk"), "{over}");
    assert_eq!(on_disk(), pending, "what somebody put there is not lost");
    let any = put(CLASSES, None).header("if-match", "*");
    assert_eq!(server.send(any).await.expect(200)["outcome"], "applied");
}

fn call_put(body: &Value) -> crate::support::Call {
    call(Method::PUT, "/v1/policy").json(body)
}

#[tokio::test]
async fn settings_are_set_above_the_files_for_a_while() {
    let server = Server::dev().await;
    let put = |body: Value| call(Method::PUT, "/v1/policy/overrides").json(&body);
    let spread = json!({"set": {"placement.strategy": "spread"}, "expires_in": "2h"});
    let applied = server.send(put(spread)).await.expect(200);
    assert_eq!(
        (&applied["outcome"], &applied["trigger"]),
        (&json!("applied"), &json!("override"))
    );
    let policy = server.send(get("/v1/policy")).await.expect(200);
    let set = &policy["overrides"][0];
    assert_eq!(
        (&set["setting"], &set["value"], &set["origin"], &set["by"]),
        (
            &json!("placement.strategy"),
            &json!("spread"),
            &json!("override"),
            &json!("anonymous")
        )
    );
    assert!(set["until"].is_string());
    let metrics = server.send(get("/metrics")).await.text;
    assert!(
        metrics.contains("gpu_manager_policy_overrides 1\n"),
        "{metrics}"
    );
    let back = server.send(post("/v1/policy/rollback")).await.expect(409);
    let said = back["detail"].as_str().expect("text");
    assert!(said.contains("no other policy files were live"), "{said}");
    let bad = json!({"set": {"placement.strategy": "sprad"}, "expires_in": "2h"});
    let bad = server.send(put(bad)).await.expect(422);
    assert_eq!(bad["outcome"], "failed", "{bad}");
    for body in [
        json!({"set": {"placement.strategy": "pack"}}),
        json!({"set": {"placement.strategy": "pack"}, "expires_in": "400d"}),
        json!({"set": {"nonsense": "pack"}, "expires_in": "2h"}),
    ] {
        let refused = server.send(put(body.clone())).await;
        assert_eq!(refused.code(), "invalid_request", "{body}");
    }
    let cleared = server.send(put(json!({}))).await.expect(200);
    assert_eq!(cleared["outcome"], "applied", "{cleared}");
    let policy = server.send(get("/v1/policy")).await.expect(200);
    assert_eq!(policy["overrides"], json!([]));
}

#[tokio::test]
async fn an_override_that_drains_waits_for_its_confirmation() {
    let server = Server::strict().await;
    let lease = hold_batch(&server).await;
    let put = |plan: Option<&Value>| {
        let set = json!({"placement.reserve": "15.5GiB", "reload.on_shrink": "drain"});
        let body = json!({"set": set, "expires_in": "2h", "expect_plan": plan});
        let call = call(Method::PUT, "/v1/policy/overrides").json(&body);
        call.bearer(&server.token)
    };
    let waits = server.send(put(None)).await.expect(409);
    assert_eq!(waits["leases"][0]["lease"], json!(lease), "{waits}");
    let wrong = server.send(put(Some(&json!("00")))).await;
    assert_eq!(wrong.expect(412)["outcome"], "moved");
    let shown = json!(waits["plan"].as_str().expect("a hash")[..12]);
    let applied = server.send(put(Some(&shown))).await.expect(200);
    assert_eq!(
        (&applied["outcome"], &applied["leases"][0]["fate"]),
        (&json!("applied"), &json!("drain"))
    );
}

#[tokio::test]
async fn a_clock_is_that_of_the_policy() {
    let server = Server::dev().await;
    let berlin = "schema = 1\n[defaults]\ntimezone = \"Europe/Berlin\"\n";
    *server.bench.policy.lock() = berlin.to_owned();
    server.send(post("/v1/hot-reload")).await.expect(200);
    let now = jiff::Timestamp::now();
    let call = post("/v1/policy/explain").json(&json!({"request": {}, "at": "22:00"}));
    let explained = server.send(call).await.expect(200);
    let at: jiff::Timestamp = explained["at"]
        .as_str()
        .expect("a time")
        .parse()
        .expect("RFC 3339");
    let there = at.in_tz("Europe/Berlin").expect("a zone");
    assert_eq!((there.hour(), there.minute()), (22, 0), "{at}");
    let ahead = at.as_second() - now.as_second();
    assert!((0..=25 * 3600).contains(&ahead), "the next one: {at}");
}

#[tokio::test]
async fn a_request_is_explained() {
    let server = Server::strict().await;
    let explain = async |body: Value| {
        let call = post("/v1/policy/explain").json(&body);
        server.send(call).await
    };
    let granted = explain(json!({"request": {"memory": "4GiB", "class": "batch"}})).await;
    let granted = granted.expect(200);
    assert_eq!(
        (&granted["outcome"], &granted["class"], &granted["devices"]),
        (&json!("granted"), &json!("batch"), &json!(["sim-0"]))
    );
    let never = explain(json!({"request": {"memory": "400GiB"}}))
        .await
        .expect(200);
    assert_eq!(
        (&never["outcome"], &never["denial"]["code"]),
        (&json!("refused"), &json!("never_fits"))
    );
    for device in ["sim-0", "sim-1"] {
        let all = json!({"select": format!("device.id == '{device}'")});
        let call = post("/v1/leases").json(&all).bearer(&server.token);
        server.send(call).await.expect(201);
    }
    let waits = json!({"request": {"memory": "4GiB", "wait": "5m"}, "at": "18:05"});
    let waits = explain(waits).await.expect(200);
    assert_eq!(waits["outcome"], "waits");
    assert_eq!(
        waits["waiting"]["blockers"]
            .as_array()
            .expect("a list")
            .len(),
        2,
        "and for whom: {waits}"
    );
    assert!(
        waits["at"].as_str().expect("a time").contains(":05:"),
        "{waits}"
    );
    let at_once = explain(json!({"request": {"memory": "4GiB"}}))
        .await
        .expect(200);
    assert_eq!(
        (&at_once["outcome"], &at_once["denial"]),
        (&json!("waits"), &Value::Null),
        "also what would not wait is told why"
    );
    assert!(at_once["waiting"]["reason"].is_string());
    let leases = server.send(get("/v1/leases")).await.expect(200);
    assert_eq!(
        leases["leases"].as_array().expect("a list").len(),
        2,
        "nothing was asked for"
    );
    for body in [
        json!({"request": {}, "at": "T"}),
        json!({"request": {}, "at": "25:00"}),
    ] {
        assert_eq!(
            explain(body.clone()).await.code(),
            "invalid_request",
            "{body}"
        );
    }
}

#[tokio::test]
#[expect(
    clippy::await_holding_lock,
    reason = "nobody can read the file meanwhile, and this thread does not"
)]
async fn what_takes_longer_than_the_caller_waits_goes_on() {
    let server = Server::dev().await;
    *server.bench.policy.lock() = CLASSES.replace("1s", "2s");
    // Nobody reads the file while it is being written, so the reload cannot be over.
    let written = server.bench.policy.lock();
    let running = server.send(post("/v1/hot-reload?timeout=10ms")).await;
    drop(written);
    let running = running.expect(202);
    assert_eq!(running["outcome"], "running");
    let handle = server.handle().clone();
    let id = running["id"].as_str().expect("an id").to_owned();
    let before = running["generation"].as_u64().expect("a number");
    server
        .until(|_| handle.snapshot().counters.generation > before)
        .await;
    crate::support::eventually("the history", || {
        let history = server.bench.reloader.state().history;
        history.iter().any(|it| it.id.to_string() == id)
    })
    .await;
    for query in ["timeout=soon", "timeout=1", "wait=5s"] {
        let odd = server.send(post(&format!("/v1/hot-reload?{query}"))).await;
        assert_eq!(odd.code(), "bad_request", "{query}");
    }
    assert_eq!(
        server.send(get("/v1/policy?x=1")).await.code(),
        "bad_request"
    );
}

#[tokio::test]
#[expect(
    clippy::await_holding_lock,
    reason = "nobody can read the file meanwhile, and this thread does not"
)]
async fn so_many_reloads_wait_and_no_more() {
    let server = Server::dev().await;
    let written = server.bench.policy.lock();
    for _ in 0..RELOADS_IN_LINE_MAX {
        let reply = server.send(post("/v1/hot-reload?timeout=1ms")).await;
        assert_eq!(reply.expect(202)["outcome"], "running");
    }
    let refused = server.send(post("/v1/hot-reload?timeout=1ms")).await;
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(refused.code(), "too_many_reloads");
    drop(written);
    crate::support::eventually("the line", || {
        server.bench.reloader.state().history.len() == RELOADS_IN_LINE_MAX
    })
    .await;
}

#[tokio::test]
async fn what_lies_elsewhere_is_not_quoted() {
    let server = Server::strict().await;
    *server.bench.policy.lock() = "# from elsewhere\nroot_secret = 1\n".to_owned();
    let reload = post("/v1/hot-reload").bearer(&server.token);
    server.send(reload).await.expect(422);
    for path in ["/v1/hot-reload", "/v1/policy", "/v1/status"] {
        let reply = server.send(get(path)).await;
        assert!(
            !reply.text.contains("root_secret"),
            "{path}: {}",
            reply.text
        );
    }
    for path in ["/v1/policy/check", "/v1/policy/plan"] {
        let reply = server.send(post(path).json(&json!({}))).await;
        assert!(
            !reply.text.contains("root_secret"),
            "{path}: {}",
            reply.text
        );
        assert_eq!(reply.expect(200)["ok"], false);
    }
}

#[tokio::test]
async fn the_watch_is_switched_at_run_time() {
    let server = Server::dev().await;
    let state = server.send(get("/v1/hot-reload")).await.expect(200);
    assert_eq!(
        (&state["enabled"], &state["why"]),
        (&json!(true), &json!("the listener is loopback"))
    );
    let off = call(Method::PUT, "/v1/hot-reload").json(&json!({"enabled": false}));
    let state = server.send(off).await.expect(200);
    assert_eq!(
        (&state["enabled"], &state["why"]),
        (&json!(false), &json!("switched by anonymous"))
    );
    for body in [
        json!({}),
        json!({"enabled": "yes"}),
        json!({"enabled": true, "x": 1}),
    ] {
        let bad = call(Method::PUT, "/v1/hot-reload").json(&body);
        assert_eq!(server.send(bad).await.code(), "invalid_request", "{body}");
    }
}

#[tokio::test]
async fn texts_are_checked_without_being_loaded() {
    let server = Server::strict().await;
    let check = async |text: &str| {
        let files = json!({"files": [{"name": "default.toml", "text": text}]});
        server
            .send(post("/v1/policy/check").json(&files))
            .await
            .expect(200)
    };
    let good = check("schema = 1\n[queue]\nbackfill = false\n").await;
    assert_eq!(
        (&good["ok"], &good["in_force"]),
        (&json!(true), &json!(false))
    );
    assert!(good["changes"].to_string().contains("backfill"), "{good}");
    let bad = check("schema = 1\n[queue]\nbackfil = false\n[reload]\nheld = 3\n").await;
    assert_eq!(bad["ok"], false);
    assert_eq!(
        bad["diagnostics"].as_array().expect("a list").len(),
        2,
        "all errors at once: {bad}"
    );
    let large = check(&format!("schema = 1\n#{}\n", "x".repeat(200_000))).await;
    assert!(
        large["ok"].is_boolean(),
        "files are larger than other bodies"
    );
    let many: Vec<Value> = (0..65)
        .map(|n| json!({"name": format!("{n}.toml"), "text": ""}))
        .collect();
    let live = server.send(post("/v1/policy/check").json(&json!({}))).await;
    assert_eq!(live.expect(200)["in_force"], true, "the broker's own files");
    for body in [json!({"files": many}), json!({"files": [{"name": "a"}]})] {
        let reply = server.send(post("/v1/policy/check").json(&body)).await;
        assert_eq!(reply.code(), "invalid_request");
    }
}
