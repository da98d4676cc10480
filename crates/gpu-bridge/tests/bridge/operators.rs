//! What operators do, and that nobody else does it.

use serde_json::{Value, json};

use crate::support::{GIB, Server, delete, get, operator, post, user};

#[tokio::test]
async fn operator_verbs_are_for_operators() {
    let server = Server::strict().await;
    let ann = user("ann", 1001);
    let lease = server
        .send(
            post("/v1/leases")
                .json(&json!({"memory": "1GiB"}))
                .from(ann.clone()),
        )
        .await
        .expect(201);
    let id = lease["id"].as_str().expect("an id");
    for path in [
        &format!("/v1/leases/{id}/drain"),
        &format!("/v1/leases/{id}/revoke"),
        "/v1/devices/sim-0/cordon",
        "/v1/devices/sim-0/uncordon",
        "/v1/devices/sim-0/drain",
        "/v1/devices/sim-0/clear-quarantine",
        "/v1/hot-reload",
    ] {
        let reply = server.send(post(path).from(ann.clone())).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (403, "forbidden"),
            "{path}"
        );
        assert_eq!(
            server.send(post(path)).await.status,
            401,
            "{path} without a token"
        );
    }
    let all = json!({"all": true});
    let emergency = post("/v1/emergency-release").json(&all).from(ann);
    assert_eq!(server.send(emergency).await.code(), "forbidden");
    let by_token = post("/v1/emergency-release")
        .json(&all)
        .bearer(&server.token);
    assert_eq!(
        server.send(by_token).await.expect(200)["released"][0]["id"],
        lease["id"]
    );
}

#[tokio::test]
async fn a_lease_is_drained_and_revoked() {
    let server = Server::dev().await;
    let acquire = async || {
        server
            .send(post("/v1/leases").json(&json!({"memory": "1GiB"})))
            .await
            .expect(201)
    };
    let on = |lease: &Value, verb: &str| {
        format!("/v1/leases/{}/{verb}", lease["id"].as_str().expect("an id"))
    };
    let lease = acquire().await;
    let asked = json!({"grace": "1h", "reason": "driver update"});
    let drained = server
        .send(post(&on(&lease, "drain")).json(&asked))
        .await
        .expect(200);
    assert_eq!(drained["state"], "draining");
    let cause = &drained["drain"]["causes"][0];
    assert_eq!(
        (&cause["source"], &cause["reason"], &cause["by"]),
        (
            &json!("operator"),
            &json!("driver update"),
            &json!("anonymous")
        )
    );
    let renewed = server.send(post(&on(&lease, "renew"))).await.expect(200);
    assert_eq!(renewed["state"], "draining", "a heartbeat tells the holder");
    let revoked = server.send(post(&on(&lease, "revoke"))).await.expect(200);
    assert_eq!(revoked["end_reason"], "revoked");
    assert_eq!(
        server.send(post(&on(&lease, "drain"))).await.code(),
        "ended"
    );
    let gentle = acquire().await;
    let revoked = server
        .send(post(&on(&gentle, "revoke")).json(&json!({"grace": "1h"})))
        .await
        .expect(200);
    assert_eq!(
        revoked["state"], "draining",
        "a revoke with a grace is a drain by that deadline"
    );
    let bad = server
        .send(post(&on(&gentle, "drain")).json(&json!({"grace": "-1s"})))
        .await;
    assert_eq!(bad.code(), "invalid_request");
}

#[tokio::test]
async fn a_device_is_cordoned_drained_and_opened_again() {
    let server = Server::dev().await;
    let cordon = json!({"reason": "new fan", "until": "2h"});
    let device = server
        .send(post("/v1/devices/sim-0/cordon").json(&cordon))
        .await
        .expect(200);
    assert_eq!(
        (&device["cordon"]["reason"], &device["cordon"]["by"]),
        (&json!("new fan"), &json!("anonymous"))
    );
    assert!(device["cordon"]["until"].is_string());
    let status = server.send(get("/v1/status")).await.expect(200);
    assert_eq!(
        (&status["devices"], &status["devices_open"]),
        (&json!(2), &json!(1))
    );
    let there = post("/v1/leases").json(&json!({"select": "device.id == 'sim-0'"}));
    let refused = server.send(there).await;
    assert_eq!(refused.code(), "does_not_fit");
    assert!(refused.text.contains("new fan"), "{}", refused.text);
    for until in ["2020-01-01T00:00:00Z", "later"] {
        let reply = server
            .send(post("/v1/devices/sim-0/cordon").json(&json!({"until": until})))
            .await;
        assert_eq!(reply.status, 422, "{until}");
    }
    let open = server
        .send(post("/v1/devices/sim-0/uncordon"))
        .await
        .expect(200);
    assert_eq!(open["cordon"], Value::Null);
    let lease = server
        .send(post("/v1/leases").json(&json!({"select": "device.id == 'sim-0'"})))
        .await
        .expect(201);
    let drained = server
        .send(post("/v1/devices/sim-0/drain").json(&json!({"grace": "1h"})))
        .await
        .expect(200);
    assert_eq!(drained["draining"][0]["id"], lease["id"]);
    assert_eq!(drained["device"]["drain"]["leases"], 1);
    assert!(drained["device"]["cordon"].is_object());
    server
        .send(post("/v1/devices/sim-0/clear-quarantine"))
        .await
        .expect(200);
}

#[tokio::test]
async fn devices_show_what_is_held_on_them() {
    let server = Server::dev().await;
    let asked =
        json!({"memory": "4GiB", "select": "device.id == 'sim-1'", "holder": {"name": "a"}});
    let lease = server
        .send(post("/v1/leases").json(&asked))
        .await
        .expect(201);
    let list = server.send(get("/v1/devices")).await.expect(200);
    let device = &list["devices"][1];
    assert_eq!(device["id"], "sim-1");
    assert_eq!(
        device["memory"],
        json!({"total": 16 * GIB, "reserve": 0, "granted": 4 * GIB, "used": null, "foreign": 0, "free": 12 * GIB})
    );
    assert_eq!(device["leases"][0]["id"], lease["id"]);
    for (field, value) in [
        ("simulated", json!(true)),
        ("telemetry", json!("unsupported")),
        ("vendor", json!("nvidia")),
        ("kind", json!("simulated")),
        ("cordon", json!(null)),
    ] {
        assert_eq!(device[field], value, "{field}");
    }
}

#[tokio::test]
async fn an_emergency_says_what_is_really_free() {
    let server = Server::dev().await;
    let held = server
        .send(post("/v1/leases").json(&json!({"devices": 2, "holder": {"name": "a"}})))
        .await
        .expect(201);
    server
        .send(post("/v1/leases").json(&json!({"queue": true, "holder": {"name": "b"}})))
        .await
        .expect(202);
    for (body, code) in [
        (json!({}), "invalid_request"),
        (json!({"all": true, "stuck": true}), "invalid_request"),
        (json!({"devices": ["none"]}), "not_found"),
        (json!({"leases": ["l-000000000000"]}), "not_found"),
        (json!({"everything": true}), "invalid_request"),
    ] {
        assert_eq!(
            server
                .send(post("/v1/emergency-release").json(&body))
                .await
                .code(),
            code,
            "{body}"
        );
    }
    let asked = json!({"all": true, "reason": "stuck", "cordon": true});
    let result = server
        .send(post("/v1/emergency-release").json(&asked))
        .await
        .expect(200);
    assert_eq!(
        result["released"],
        json!([{"id": held["id"], "holder": "a", "devices": ["sim-0", "sim-1"]}])
    );
    assert_eq!(result["cancelled"][0]["holder"], "b");
    assert_eq!(
        result["summary"],
        "released 1, cancelled 1 waiter; sim-0 holds 16 GiB back until the holder is proven gone; \
         sim-1 holds 16 GiB back until the holder is proven gone"
    );
    assert_eq!(result["devices"][0]["cordoned"], true);
    let asked = json!({"stuck": true, "devices": ["sim-0"], "force_unsafe": true});
    let result = server
        .send(post("/v1/emergency-release").json(&asked))
        .await
        .expect(200);
    assert_eq!(result["devices"][0]["reclaiming"], 0, "{result}");
}

#[tokio::test]
async fn the_status_tells_who_is_asking() {
    let server = Server::strict().await;
    for (call, caller, admin) in [
        (get("/v1/status"), "anonymous", false),
        (get("/v1/status").from(user("ann", 1001)), "ann", false),
        (get("/v1/status").from(operator()), "root", true),
        (get("/v1/status").bearer(&server.token), "token:admin", true),
    ] {
        let status = server.send(call).await.expect(200);
        assert_eq!(
            (&status["caller"], &status["admin"]),
            (&json!(caller), &json!(admin))
        );
        assert_eq!(status["service"], "gpu-manager");
        assert_eq!(status["policy"]["disk"], "same");
    }
    for path in ["/healthz", "/readyz", "/health"] {
        assert_eq!(
            server.send(get(path)).await.expect(200)["status"],
            "serving"
        );
    }
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let server = Server::dev().await;
    let lease = server
        .send(post("/v1/leases").json(&json!({"memory": "4GiB"})))
        .await
        .expect(201);
    server
        .send(post("/v1/leases").json(&json!({"memory": "40GiB"})))
        .await;
    server.send(post("/v1/hot-reload")).await.expect(200);
    let reply = server.send(get("/metrics")).await;
    for line in [
        "gpu_manager_leases{state=\"active\"} 1",
        "gpu_manager_leases{state=\"ended\"} 0",
        "gpu_manager_waiters 0",
        "gpu_manager_grants_total 1",
        "gpu_manager_denials_total{reason=\"never_fits\"} 1",
        "gpu_manager_reloads_total{trigger=\"api\",result=\"unchanged\"} 1",
        "gpu_manager_reload_last_ok 1",
        "gpu_manager_reload_seconds_count 1",
        "gpu_manager_reload_breaker 0",
        "gpu_manager_policy_on_disk_differs 0",
        "gpu_manager_policy_draining_leases 0",
        "gpu_manager_policy_ended_leases_total 0",
        "gpu_manager_policy_overrides 0",
        "gpu_manager_device_memory_total_bytes{device=\"sim-0\"} 17179869184",
        "gpu_manager_device_memory_foreign_bytes{device=\"sim-1\"} 0",
        "gpu_manager_http_request_seconds_count{method=\"POST\",route=\"/v1/leases\"} 2",
    ] {
        assert!(
            reply.text.lines().any(|there| there == line),
            "{line}\n{}",
            reply.text
        );
    }
    assert!(reply.text.ends_with("# EOF\n"));
    let path = format!("/v1/leases/{}", lease["id"].as_str().expect("an id"));
    server.send(delete(&path)).await.expect(200);
    let again = server.send(get("/metrics")).await.text;
    assert!(again.contains("gpu_manager_leases{state=\"ended\"} 1"));
    assert!(
        again.contains("gpu_manager_reloads_total{trigger=\"api\",result=\"unchanged\"} 1\n"),
        "counted once"
    );
    assert!(
        again.contains("route=\"/v1/leases/{id}\""),
        "a route, not a path"
    );
}
