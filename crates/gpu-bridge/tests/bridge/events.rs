//! The event stream: live, resumed, reset.

use axum::body::Body;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::support::{Server, delete, get, post, soon};

/// The lines of a stream as they come.
struct Stream {
    body: Body,
    text: String,
}

impl Stream {
    async fn open(server: &Server, last: Option<&str>) -> Self {
        let call = get("/v1/events");
        let call = match last {
            Some(last) => call.header("last-event-id", last),
            None => call,
        };
        let response = server.open(call).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = Self {
            body: response.into_body(),
            text: String::new(),
        };
        // The hello says that the stream listens.
        assert!(stream.block().await.starts_with(": gpu-manager"));
        stream
    }

    /// The next event's data; its name and id agree with it.
    async fn next(&mut self) -> Value {
        loop {
            let block = self.block().await;
            if block.starts_with(':') {
                continue;
            }
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .expect("a field")
            };
            let data: Value = serde_json::from_str(field("data: ")).expect("JSON");
            assert_eq!(data["id"], field("id: "));
            assert_eq!(data["name"], field("event: "));
            return data;
        }
    }

    /// Events until one of this name.
    async fn until(&mut self, name: &str) -> Value {
        loop {
            let event = self.next().await;
            if event["name"] == name {
                return event;
            }
        }
    }

    async fn block(&mut self) -> String {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return block;
            }
            let frame = soon(self.body.frame())
                .await
                .expect("the stream goes on")
                .expect("a frame");
            let data = frame.into_data().expect("data");
            self.text
                .push_str(std::str::from_utf8(&data).expect("text"));
        }
    }
}

#[tokio::test]
async fn a_reader_resumes_where_it_left_off() {
    let server = Server::dev().await;
    let mut stream = Stream::open(&server, None).await;
    let acquire = async || {
        server
            .send(post("/v1/leases").json(&json!({"memory": "1GiB"})))
            .await
            .expect(201)
    };
    let one = acquire().await;
    let granted = stream.until("lease_granted").await;
    assert_eq!(granted["lease"], one["id"]);
    drop(stream);
    let two = acquire().await;
    let path = format!("/v1/leases/{}", one["id"].as_str().expect("an id"));
    server.send(delete(&path)).await.expect(200);
    let mut resumed = Stream::open(&server, granted["id"].as_str()).await;
    let missed = resumed.next().await;
    assert_eq!(
        (&missed["name"], &missed["lease"]),
        (&json!("lease_granted"), &two["id"]),
        "nothing twice, nothing left out"
    );
    assert_eq!(resumed.until("lease_ended").await["lease"], one["id"]);
    let three = acquire().await;
    assert_eq!(
        resumed.until("lease_granted").await["lease"],
        three["id"],
        "then live"
    );
}

#[tokio::test]
async fn a_reader_of_another_history_is_reset() {
    let server = Server::dev().await;
    for last in [
        "0000000000000001-1-0",
        "garbage",
        "000000000000beef-99999999-0",
    ] {
        let mut stream = Stream::open(&server, Some(last)).await;
        assert_eq!(stream.next().await["name"], "reset", "{last}");
        let lease = server
            .send(post("/v1/leases").json(&json!({"memory": "1GiB"})))
            .await
            .expect(201);
        assert_eq!(
            stream.until("lease_granted").await["lease"],
            lease["id"],
            "{last}"
        );
    }
}

#[tokio::test]
async fn a_refused_policy_is_told() {
    let server = Server::dev().await;
    let mut stream = Stream::open(&server, None).await;
    server
        .send(post("/v1/leases").json(&json!({"memory": "1GiB"})))
        .await
        .expect(201);
    stream.until("lease_granted").await;
    for text in ["schema = 1\nx = 1\n", "schema = 1\ny = 1\n"] {
        *server.bench.policy.lock() = text.to_owned();
        server.send(post("/v1/hot-reload")).await.expect(422);
        let event = stream.until("policy_refused").await;
        assert!(
            event["text"]
                .as_str()
                .expect("text")
                .contains("default.toml:2:1"),
            "{event}"
        );
    }
}

#[tokio::test]
async fn streams_are_limited_and_end_with_the_broker() {
    let server = Server::dev().await;
    let mut streams = Vec::new();
    for _ in 0..gpu_bridge::EVENT_STREAMS_MAX {
        streams.push(Stream::open(&server, None).await);
    }
    let reply = server.send(get("/v1/events")).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code()),
        (503, "overloaded".to_owned())
    );
    assert!(reply.headers.contains_key("retry-after"));
    let mut last = streams.pop().expect("there are many");
    drop(streams);
    server.bench.broker.as_ref().expect("it runs").begin_stop();
    let end = soon(async { while last.body.frame().await.is_some() {} });
    end.await;
}
