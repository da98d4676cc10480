//! Reloads and checks of the policy.

use axum::http::Method;
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
    let failed = reload().await;
    assert_eq!(
        (&failed["outcome"], &failed["generation"]),
        (&json!("failed"), &applied["generation"])
    );
    let found = &failed["diagnostics"][0];
    assert_eq!(
        (&found["file"], &found["line"], &found["column"]),
        (&json!("default.toml"), &json!(3), &json!(1))
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
    let confirm = post("/v1/hot-reload").json(&json!({"confirm": "abc"}));
    assert_eq!(server.send(confirm).await.code(), "policy_changed");
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
