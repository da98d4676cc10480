//! What was: the history a page at a time, and who held what for how long.

use serde_json::{Value, json};

use crate::support::{Server, delete, get, operator, post, user};

async fn acquire(server: &Server, name: &str, uid: u32, memory: &str) -> String {
    let asked = post("/v1/leases").json(&json!({ "memory": memory }));
    let lease = server.send(asked.from(user(name, uid))).await.expect(201);
    lease["id"].as_str().expect("an id").to_owned()
}

async fn release(server: &Server, id: &str) {
    let asked = delete(&format!("/v1/leases/{id}")).from(operator());
    server.send(asked).await.expect(200);
}

async fn look(server: &Server, path: &str) -> Value {
    server.send(get(path).from(operator())).await.expect(200)
}

/// What each event is about, such as `lease_granted`.
fn names(page: &Value) -> Vec<&str> {
    let events = page["events"].as_array().expect("events");
    events
        .iter()
        .map(|event| event["name"].as_str().expect("a name"))
        .collect()
}

#[tokio::test]
async fn the_history_answers_who_what_and_where() {
    let server = Server::dev().await;
    let of_ann = acquire(&server, "ann", 1001, "1GiB").await;
    let of_bo = acquire(&server, "bo", 1002, "1GiB").await;
    release(&server, &of_ann).await;

    let page = look(&server, &format!("/v1/history?lease={of_ann}")).await;
    assert_eq!(names(&page), ["lease_granted", "lease_ended"]);
    assert_eq!(
        (&page["next"], &page["reset"]),
        (&Value::Null, &json!(false))
    );
    let granted = &page["events"][0];
    assert_eq!(granted["user"], "ann");
    let device = granted["device"].as_str().expect("a device");

    let page = look(&server, "/v1/history?user=bo").await;
    assert_eq!(page["events"][0]["lease"], of_bo.as_str());
    let page = look(&server, &format!("/v1/history?device={device}&user=ann")).await;
    assert_eq!(names(&page), ["lease_granted", "lease_ended"]);
    let page = look(&server, "/v1/history?since=1h&user=nobody").await;
    assert_eq!(names(&page).len(), 0);
    let page = look(&server, "/v1/history?since=2020-01-01T00:00:00Z&user=bo").await;
    assert_eq!(names(&page), ["lease_granted"]);
}

#[tokio::test]
async fn pages_of_the_history_lead_to_its_end() {
    let server = Server::dev().await;
    for _ in 0..3 {
        let id = acquire(&server, "ann", 1001, "1GiB").await;
        release(&server, &id).await;
    }
    let all = look(&server, "/v1/history").await;
    let mut seen = Vec::new();
    let mut path = "/v1/history?limit=2".to_owned();
    loop {
        let page = look(&server, &path).await;
        seen.extend(page["events"].as_array().expect("events").clone());
        let Some(next) = page["next"].as_str() else {
            break;
        };
        path = format!("/v1/history?limit=2&after={next}");
    }
    assert_eq!(Value::from(seen), all["events"]);
    let elsewhere = look(&server, "/v1/history?after=00000000000000aa-1-0&limit=1").await;
    assert_eq!(elsewhere["reset"], true);
    assert_eq!(elsewhere["events"][0], all["events"][0]);
}

#[tokio::test]
async fn usage_is_added_up_as_it_is_asked_for() {
    let server = Server::dev().await;
    let held = acquire(&server, "ann", 1001, "2GiB").await;
    let ended = acquire(&server, "ann", 1001, "1GiB").await;
    acquire(&server, "bo", 1002, "1GiB").await;
    release(&server, &ended).await;
    let granted = server.handle().now();
    server
        .until(|handle| handle.now().wall > granted.wall)
        .await;

    let report = look(&server, "/v1/usage").await;
    assert_eq!(report["by"], "user");
    let users: Vec<_> = rows(&report)
        .iter()
        .map(|row| row["user"].clone())
        .collect();
    assert!(
        users.contains(&json!("ann")) && users.contains(&json!("bo")),
        "{report}"
    );
    let ann = rows(&report)
        .iter()
        .find(|row| row["user"] == "ann")
        .expect("a row");
    assert_eq!(
        (&ann["tenant"], &ann["device"]),
        (&Value::Null, &Value::Null)
    );
    assert!(ann["held_ms"].as_u64().expect("a number") > 0);

    let report = look(&server, "/v1/usage?by=device,user&since=1h").await;
    assert_eq!(report["by"], "user,device");
    assert!(
        rows(&report).iter().all(|row| row["device"].is_string()),
        "{report}"
    );
    release(&server, &held).await;
}

fn rows(report: &Value) -> &Vec<Value> {
    report["rows"].as_array().expect("rows")
}

#[tokio::test]
async fn questions_that_are_none_are_refused() {
    let server = Server::dev().await;
    for (path, part) in [
        ("/v1/history?lease=x", "`lease`"),
        ("/v1/history?after=1", "`after`"),
        ("/v1/history?limit=0", "`limit` is 1 to 1000"),
        ("/v1/history?limit=1001", "`limit` is 1 to 1000"),
        ("/v1/history?since=noon", "`noon` is no time"),
        ("/v1/history?since=2026-13-01T00:00:00Z", "RFC 3339"),
        ("/v1/history?since=2999-01-01T00:00:00Z", "still to come"),
        ("/v1/history?colour=red", "colour"),
        ("/v1/usage?by=host", "`host` is none of"),
        ("/v1/usage?since=-1h", "`-1h` is no time"),
    ] {
        let refused = server.send(get(path)).await.expect(400);
        let text = refused.to_string();
        assert!(text.contains(part), "{path}: {text}");
    }
}
