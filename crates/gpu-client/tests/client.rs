//! The client against a tiny server that says what each test tells it to.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use gpu_api::{
    AcquireRequest, DrainRequest, EndReason, Enforcement, ErrorCode, ExplainRequest, Holder,
    HolderKind, Lease, LeaseState, OverridesRequest, PolicyPlan, PolicyPlanRequest, PolicyPut,
    PolicyRollbackRequest, Problem, ReloadOutcome, ReloadPhases, ReloadRequest, ReloadResult,
    ReloadTrigger, Span, Wanted,
};
use gpu_client::{
    Client, ClientError, Endpoint, Gone, Heartbeat, IdempotencyKey, LoadOptions, Pulse,
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);

/// One request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    line: String,
    headers: HeaderMap,
    body: String,
}

/// What the server answers; the number counts requests from 0.
type Answers = dyn Fn(usize, &Seen) -> (u16, String) + Send + Sync;

struct Server {
    endpoint: Endpoint,
    connections: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Serves over TCP.
    async fn start(
        answers: impl Fn(usize, &Seen) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let server = Self {
            endpoint: Endpoint::Tcp {
                host: "127.0.0.1".to_owned(),
                port,
            },
            connections: Arc::default(),
            seen: Arc::default(),
        };
        let (connections, seen) = (Arc::clone(&server.connections), Arc::clone(&server.seen));
        let answers: Arc<Answers> = Arc::new(answers);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
                tokio::spawn(serve(TokioIo::new(stream), seen, answers));
            }
        });
        server
    }

    fn client(&self) -> Client {
        Client::new(self.endpoint.clone(), Some("secret-token")).expect("a plain token")
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen
            .lock()
            .expect("no test panics while it holds this")
            .clone()
    }

    fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }
}

async fn serve<I>(io: TokioIo<I>, seen: Arc<Mutex<Vec<Seen>>>, answers: Arc<Answers>)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
        async move {
            let request = record(request).await;
            let number = {
                let mut seen = seen.lock().expect("no test panics while it holds this");
                // Whether it lives is asked beside what a test is about.
                if request.line != "GET /healthz" {
                    seen.push(request.clone());
                }
                seen.len().saturating_sub(1)
            };
            let (status, body) = answers(number, &request);
            let response = Response::builder()
                .status(status)
                .body(Full::new(Bytes::from(body)));
            Ok::<_, Infallible>(response.expect("a valid status"))
        }
    });
    // A client that is done cuts the connection; that is no fault here.
    let _ = http1::Builder::new().serve_connection(io, service).await;
}

async fn record(request: Request<Incoming>) -> Seen {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Seen {
        line: format!("{} {}", head.method, head.uri),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}

fn lease(revision: u64, state: LeaseState) -> Lease {
    Lease {
        id: "l-000000000001".to_owned(),
        revision,
        state,
        end_reason: (state == LeaseState::Ended).then_some(EndReason::Revoked),
        fence: Some(7),
        unresponsive: false,
        reclaim: None,
        holder: Holder {
            name: "test".to_owned(),
            kind: HolderKind::Remote,
            tenant: None,
            user: "anonymous".to_owned(),
            pid: None,
        },
        class: "standard".to_owned(),
        priority: 0,
        wanted: Wanted {
            devices: 1,
            memory: None,
            exclusive: true,
            select: None,
            max_hold_ms: None,
        },
        allocations: Vec::new(),
        env: Default::default(),
        waiting: None,
        loading: false,
        policy_generation: 1,
        created_at: "2026-01-01T00:00:00Z".to_owned(),
        granted_at: None,
        expires_at: None,
        remaining_ms: None,
        ttl_ms: 600,
        hold_until: None,
        ended_at: None,
        drain: None,
        observed: None,
        enforcement: Enforcement::Advisory,
        labels: Default::default(),
        secret: None,
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future)
        .await
        .expect("it happens within ten seconds")
}

#[tokio::test]
async fn one_connection_serves_many_calls() {
    let server = Server::start(|_, _| (200, json(&lease(1, LeaseState::Active)))).await;
    let client = server.client();
    for _ in 0..3 {
        client.lease("l-1").await.expect("a lease");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(server.lines(), ["GET /v1/leases/l-1"; 3]);
}

#[tokio::test]
async fn a_connection_that_the_broker_closed_is_made_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let served = tokio::spawn(async move {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.expect("a request");
            }
            let body = json(&lease(1, LeaseState::Active));
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream
                .write_all(answer.as_bytes())
                .await
                .expect("an answer");
            // Closed without a word of it in the answer.
        }
    });
    let endpoint = Endpoint::Tcp {
        host: "127.0.0.1".to_owned(),
        port,
    };
    let client = Client::new(endpoint, None).expect("no token");
    for _ in 0..3 {
        soon(client.lease("l-1"))
            .await
            .expect("a lease, over a new connection");
    }
    soon(served).await.expect("three connections");
}

#[tokio::test]
async fn headers_carry_token_key_and_secret() {
    let server = Server::start(|_, _| (201, json(&lease(1, LeaseState::Active)))).await;
    let client = server.client();
    let key = IdempotencyKey::from_text("k-1").expect("plain text");
    client
        .acquire(&AcquireRequest::default(), &key)
        .await
        .expect("a lease");
    client.renew("l/1", Some("s3cret")).await.expect("a lease");
    client
        .drain_lease("l-1", &DrainRequest::default())
        .await
        .expect("a lease");

    let seen = server.seen();
    let header = |n: usize, name: &str| {
        seen[n]
            .headers
            .get(name)
            .map(|value| value.to_str().expect("text"))
    };
    assert_eq!(seen[0].line, "POST /v1/leases");
    assert_eq!(header(0, "authorization"), Some("Bearer secret-token"));
    assert_eq!(header(0, "idempotency-key"), Some("k-1"));
    assert_eq!(header(0, "content-type"), Some("application/json"));
    assert_eq!(seen[1].line, "POST /v1/leases/l%2F1/renew");
    assert_eq!(header(1, "x-lease-secret"), Some("s3cret"));
    assert_eq!(header(1, "content-type"), None, "no body, no type");
    assert_eq!(seen[2].body, "{}");
}

#[tokio::test]
async fn answers_become_results_and_errors() {
    let table = [
        (
            409,
            json(&Problem::new(ErrorCode::DoesNotFit, "needs 12.0 GiB")),
            "needs 12.0 GiB",
        ),
        (200, "<html>".to_owned(), "is no gpu-manager"),
        (
            502,
            "bad gateway".to_owned(),
            "`502 Bad Gateway` without a reason",
        ),
        (
            200,
            r#"{"service":"other"}"#.to_owned(),
            "is no gpu-manager",
        ),
    ];
    for (status, body, part) in table {
        let server = Server::start(move |_, _| (status, body.clone())).await;
        let error = server.client().status().await.expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
        assert!(!error.is_away());
    }
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("none.sock");
    let client = Client::new(Endpoint::Unix(path), None).expect("no token");
    let error = client.status().await.expect_err("nobody listens");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(error.is_away());
    assert!(
        error.to_string().starts_with("no broker answers at unix:/"),
        "{error}"
    );
}

/// Whoever asks is told soon, also who waits for work to be done; a long poll has its own time before that.
#[tokio::test]
async fn a_broker_that_hangs_is_told_from_one_that_is_gone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a.sock");
    // Connections are made by the kernel, and nobody takes them.
    let _listener = UnixListener::bind(&path).expect("a new path");
    let client = Client::new(Endpoint::Unix(path), None).expect("no token");
    let mut events = client.events(None);
    let wait = Span::from_ms(1000);
    let (request, key) = (AcquireRequest::default(), IdempotencyKey::random());
    let (status, event, release, grant, look) = tokio::join!(
        client.status(),
        events.next(),
        client.release("l-1", None),
        client.acquire(&request, &key),
        client.lease_after("l-1", 1, wait),
    );
    let errors = [status.err(), event.err(), release.err(), grant.err()];
    for (error, secs) in errors
        .into_iter()
        .map(|error| (error, 5))
        .chain([(look.err(), 6)])
    {
        let error = error.expect("nobody answers");
        let said = error.to_string();
        let part = format!("lives, but does not answer within {secs} s");
        assert!(said.contains(&part), "{said}");
        assert!(error.is_away());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_broker_that_says_that_it_lives_may_take_its_time_for_work() {
    let (alive, pings) = std::sync::mpsc::channel();
    let pings = Mutex::new(Some(pings));
    let server = Server::start(move |_, seen| match seen.line.as_str() {
        "GET /healthz" => {
            // Whoever works may have gone on by now.
            let _ = alive.send(());
            (200, r#"{"status":"serving"}"#.to_owned())
        }
        _ => {
            let pings = pings.lock().expect("nobody panics with it").take();
            let pings = pings.expect("it is sent once");
            // Before the call, on the connection for it, and meanwhile.
            for _ in 0..3 {
                let asked = tokio::task::block_in_place(|| pings.recv_timeout(DEADLINE));
                asked.expect("it is asked whether it lives");
            }
            (201, json(&lease(1, LeaseState::Active)))
        }
    });
    let server = server.await;
    let (request, key) = (AcquireRequest::default(), IdempotencyKey::random());
    let granted = server.client().acquire(&request, &key).await;
    assert_eq!(granted.expect("it was worth the wait").revision, 1);
    assert_eq!(
        server.connections.load(Ordering::SeqCst),
        2,
        "one for the call, one to ask on"
    );
}

/// Accepts `room` connections, answers every question on them whether it lives until `hangs`, and the rest after
/// `work`; nobody takes further connections.
async fn with_room(room: usize, work: Duration, hangs: Duration) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let began = tokio::time::Instant::now();
    let service = service_fn(move |request: Request<Incoming>| async move {
        if request.uri().path() != "/healthz" {
            tokio::time::sleep(work).await;
        } else if began.elapsed() > hangs {
            std::future::pending::<()>().await;
        }
        let body = json(&lease(1, LeaseState::Active));
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body))))
    });
    tokio::spawn(async move {
        for _ in 0..room {
            let (stream, _) = listener.accept().await.expect("a connection");
            let io = TokioIo::new(stream);
            tokio::spawn(http1::Builder::new().serve_connection(io, service));
        }
        std::future::pending::<()>().await;
        drop(listener);
    });
    let host = "127.0.0.1".to_owned();
    Client::new(Endpoint::Tcp { host, port }, None).expect("no token")
}

#[tokio::test]
async fn a_question_that_nobody_has_room_for_ends_no_call() {
    let client = with_room(1, Duration::from_secs(7), Duration::MAX).await;
    let (request, key) = (AcquireRequest::default(), IdempotencyKey::random());
    let granted = soon(client.acquire(&request, &key)).await;
    assert_eq!(granted.expect("it was worth the wait").revision, 1);
}

#[tokio::test]
async fn a_broker_that_hangs_in_the_middle_is_known_by_the_connection_that_it_answered_on() {
    let client = with_room(2, Duration::MAX, Duration::from_secs(1)).await;
    let (request, key) = (AcquireRequest::default(), IdempotencyKey::random());
    let error = soon(client.acquire(&request, &key)).await;
    let said = error.expect_err("it hangs").to_string();
    assert!(said.contains("does not answer within 5 s"), "{said}");
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a.sock");
    let listener = UnixListener::bind(&path).expect("a new path");
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let answers: Arc<Answers> = Arc::new(|_, _| (200, json(&lease(1, LeaseState::Active))));
    let server_seen = Arc::clone(&seen);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("one connection");
        serve(TokioIo::new(stream), server_seen, answers).await;
    });
    let client = Client::new(Endpoint::Unix(path), None).expect("no token");
    client.lease("l-1").await.expect("a lease");
    let seen = seen.lock().expect("no test panics while it holds this");
    assert_eq!(seen[0].headers["host"], "localhost");
}

#[tokio::test]
async fn all_pages_are_read() {
    let server = Server::start(|number, _| {
        let next = (number < 2).then(|| format!("page {number}"));
        (
            200,
            json(&gpu_api::LeaseList {
                leases: vec![lease(1, LeaseState::Active)],
                next,
            }),
        )
    })
    .await;
    assert_eq!(
        server
            .client()
            .all_leases(true)
            .await
            .expect("three pages")
            .len(),
        3
    );
    assert_eq!(server.lines()[1], "GET /v1/leases?live=true&after=page%200");
}

#[tokio::test]
async fn the_event_stream_resumes_where_it_broke_off() {
    let event = |n: usize| {
        let event = gpu_api::Event {
            id: format!("s-{n}-0"),
            at: "2026-01-01T00:00:00Z".to_owned(),
            name: "lease.granted".to_owned(),
            lease: None,
            user: None,
            device: None,
            other_devices: Vec::new(),
            by: None,
            text: String::new(),
            generation: 1,
        };
        format!(
            "id: {}\nevent: {}\ndata: {}\n\n",
            event.id,
            event.name,
            json(&event)
        )
    };
    let server =
        Server::start(move |number, _| (200, format!(": hello\n\n{}", event(number)))).await;
    let mut events = server.client().events(None);
    assert_eq!(soon(events.next()).await.expect("the first").id, "s-0-0");
    assert!(
        soon(events.next())
            .await
            .expect_err("the answer ended")
            .is_away()
    );
    assert_eq!(soon(events.next()).await.expect("the second").id, "s-1-0");
    let seen = server.seen();
    assert_eq!(seen[0].headers.get("last-event-id"), None);
    assert_eq!(seen[1].headers["last-event-id"], "s-0-0");
}

#[tokio::test]
async fn a_heartbeat_tells_of_draining_and_of_the_end() {
    let server = Server::start(|number, seen| match number {
        0 => (200, json(&lease(2, LeaseState::Active))),
        1 => (200, json(&lease(3, LeaseState::Draining))),
        _ if seen.line.starts_with("GET") && number < 5 => {
            (200, json(&lease(3, LeaseState::Draining)))
        }
        _ if seen.line.starts_with("GET") => (200, json(&lease(9, LeaseState::Ended))),
        _ => (
            410,
            json(&Problem::new(ErrorCode::Ended, "the lease ended")),
        ),
    })
    .await;
    let mut heartbeat = Heartbeat::start(server.client(), lease(1, LeaseState::Active));
    match soon(heartbeat.next()).await {
        Some(Pulse::Lease(lease)) => assert_eq!(lease.state, LeaseState::Draining),
        other => panic!("expected the draining lease, found {other:?}"),
    }
    match soon(heartbeat.next()).await {
        Some(Pulse::Gone(Gone::Ended(_))) => {}
        other => panic!("expected the end, found {other:?}"),
    }
    assert!(soon(heartbeat.next()).await.is_none());
    assert!(server.lines()[0].ends_with("/renew"), "it renews first");
    assert!(
        server.lines()[1].contains("?after=2&wait="),
        "then it waits for news"
    );
}

#[tokio::test]
async fn a_heartbeat_outlives_a_broker_that_is_away() {
    let server = Server::start(|number, _| match number {
        0..2 => (503, json(&Problem::new(ErrorCode::Recovering, "not yet"))),
        2 => (200, json(&lease(2, LeaseState::Active))),
        _ => (
            404,
            json(&Problem::new(ErrorCode::NotFound, "no such lease")),
        ),
    })
    .await;
    let mut heartbeat = Heartbeat::start(server.client(), lease(1, LeaseState::Active));
    assert!(matches!(soon(heartbeat.next()).await, Some(Pulse::Away(error)) if error.is_away()));
    assert!(matches!(
        soon(heartbeat.next()).await,
        Some(Pulse::Lease(_))
    ));
    assert!(matches!(
        soon(heartbeat.next()).await,
        Some(Pulse::Gone(Gone::Unknown))
    ));
}

fn reload_result(outcome: ReloadOutcome) -> ReloadResult {
    ReloadResult {
        id: "7".to_owned(),
        outcome,
        summary: outcome.as_str().to_owned(),
        trigger: ReloadTrigger::Api,
        by: "ann".to_owned(),
        at: "2026-01-01T00:00:00Z".to_owned(),
        took_ms: 3,
        phases: ReloadPhases::default(),
        generation: 4,
        previous_generation: 3,
        hash_before: "aa".to_owned(),
        hash: "bb".to_owned(),
        files: Vec::new(),
        changes: Vec::new(),
        leases: Vec::new(),
        denied: Vec::new(),
        stale: Vec::new(),
        plan: None,
        attempt: 0,
        diagnostics: Vec::new(),
    }
}

#[tokio::test]
async fn whatever_becomes_of_a_reload_is_a_result() {
    let server = Server::start(|number, _| {
        let outcome = ReloadOutcome::ALL[number];
        (outcome.status(), json(&reload_result(outcome)))
    })
    .await;
    let client = server.client();
    for outcome in ReloadOutcome::ALL {
        let result = client.reload(&ReloadRequest::default()).await;
        assert_eq!(result.expect("a result").outcome, outcome);
    }
}

#[tokio::test]
async fn a_reload_that_is_not_taken_is_an_error() {
    let table = [
        (ErrorCode::TooManyReloads, 429),
        (ErrorCode::PolicyChanged, 412),
        (ErrorCode::Forbidden, 403),
        (ErrorCode::ShuttingDown, 503),
    ];
    let server = Server::start(move |number, _| {
        let (code, status) = table[number];
        (status, json(&Problem::new(code, "no")))
    })
    .await;
    for (code, _) in table {
        let result = server.client().reload(&ReloadRequest::default()).await;
        assert_eq!(result.expect_err("a problem").code(), Some(code));
    }
}

#[tokio::test]
async fn policies_are_loaded_under_conditions() {
    let applied = || (200, json(&reload_result(ReloadOutcome::Applied)));
    let server = Server::start(move |_, _| applied()).await;
    let client = server.client();
    let options = LoadOptions {
        if_match: Some("aa".to_owned()),
        timeout: Some(Span::from_secs(5)),
    };
    let confirmed = ReloadRequest {
        confirm: Some("cafe".parse().expect("short")),
        ..ReloadRequest::default()
    };
    let overrides: OverridesRequest =
        gpu_api::decode(br#"{"set":{"queue.order":"fifo"},"expires_in":"2h"}"#).expect("sound");
    let none = LoadOptions::default();
    client.reload_if(&confirmed, &options).await.expect("good");
    let put = PolicyPut::default();
    client.put_policy(&put, &none).await.expect("good");
    let back = PolicyRollbackRequest {
        generation: Some(3),
        ..PolicyRollbackRequest::default()
    };
    client.rollback_policy(&back, &none).await.expect("good");
    client.set_overrides(&overrides, &none).await.expect("good");
    assert_eq!(
        server.lines(),
        [
            "POST /v1/hot-reload?timeout=5000ms",
            "PUT /v1/policy",
            "POST /v1/policy/rollback",
            "PUT /v1/policy/overrides",
        ]
    );
    let seen = server.seen();
    assert_eq!(seen[0].headers["if-match"], "\"aa\"");
    assert_eq!(seen[0].body, r#"{"confirm":"cafe"}"#);
    assert_eq!(seen[1].headers.get("if-match"), None);
    assert_eq!(seen[2].body, r#"{"generation":3}"#);
    let body: serde_json::Value = serde_json::from_str(&seen[3].body).expect("json");
    assert_eq!(body["set"]["queue.order"], "fifo");
}

#[tokio::test]
async fn plans_and_explanations_change_nothing_and_are_asked_for_by_post() {
    let plan = PolicyPlan {
        ok: true,
        hash: "bb".to_owned(),
        plan: "cafe".to_owned(),
        live: "aa".to_owned(),
        generation: 4,
        files: Vec::new(),
        changes: Vec::new(),
        leases: Vec::new(),
        denied: Vec::new(),
        summary: "no held lease is touched".to_owned(),
        confirm_needed: false,
        impossible: Vec::new(),
        diagnostics: Vec::new(),
    };
    let body = json(&plan);
    let server = Server::start(move |number, _| match number {
        0 => (200, body.clone()),
        _ => (
            422,
            json(&Problem::new(ErrorCode::InvalidRequest, "no such class")),
        ),
    })
    .await;
    let client = server.client();
    let request = PolicyPlanRequest::default();
    assert_eq!(client.plan_policy(&request).await.expect("a plan"), plan);
    let refused = client.explain_policy(&ExplainRequest::default()).await;
    assert_eq!(
        refused.expect_err("a problem").code(),
        Some(ErrorCode::InvalidRequest)
    );
    assert_eq!(
        server.lines(),
        ["POST /v1/policy/plan", "POST /v1/policy/explain"]
    );
}
