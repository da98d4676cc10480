//! A real listener and clients that behave badly: slow, silent, gone, or too much.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpu_bridge::{Limits, Listeners, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{Bench, eventually, soon};

/// Slow clients are borne with for this long here.
const PATIENCE: Duration = Duration::from_millis(400);

/// A bridge on a port and on a socket.
struct Live {
    bench: Bench,
    address: SocketAddr,
    socket: PathBuf,
    token: String,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Live {
    async fn start(dev: bool) -> Self {
        let bench = Bench::start(true);
        let limits = Limits {
            header_read: PATIENCE,
            body_read: PATIENCE,
            write_stall: PATIENCE,
            ..Limits::default()
        };
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("socket");
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = tcp.local_addr().expect("an address");
        let listeners = Listeners {
            tcp: Some(tcp),
            unix: Some(UnixListener::bind(&socket).expect("a path")),
        };
        let app = bench.app(dev, limits);
        let token = app.config.secrets.token().expect("a token").to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listeners, app, async {
            drop(stopped.await);
        }));
        let handle = bench.handle.clone();
        eventually("the broker", || !handle.snapshot().recovering).await;
        Self {
            bench,
            address,
            socket,
            token,
            stop: Some(stop),
            serving,
            _dir: dir,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    /// Sends `text` on a connection of its own and reads until the other end closes.
    async fn exchange(&self, text: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.expect("it is read");
        read_all(&mut stream).await
    }

    fn waiting(&self) -> usize {
        self.bench.handle.snapshot().waiting.len()
    }

    fn held(&self) -> usize {
        let leases = self.bench.handle.page(None, 100);
        leases.iter().filter(|lease| lease.held().is_some()).count()
    }
}

async fn read_all(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is an end too.
    drop(soon(stream.read_to_end(&mut bytes)).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn last(text: &str) -> String {
    text.replacen("\r\n", "\r\nConnection: close\r\n", 1)
}

#[tokio::test]
async fn slow_clients_are_closed_in_time() {
    let live = Live::start(true).await;
    let idle = format!("{}\r\n", request("GET", "/healthz", "").trim_end());
    for (name, text) in [
        ("silent", ""),
        ("half a header", "GET /v1/status HTTP/1.1\r\nHost: loc"),
        ("idle after an answer", idle.as_str()),
    ] {
        let began = Instant::now();
        live.exchange(text).await;
        let took = began.elapsed();
        assert!(
            took >= PATIENCE / 2 && took < PATIENCE * 10,
            "{name}: closed after {took:?}"
        );
    }
    let mut dripping = live.connect().await;
    let began = Instant::now();
    while dripping.write_all(b"G").await.is_ok() {
        assert!(
            began.elapsed() < PATIENCE * 20,
            "one byte at a time is no header"
        );
        tokio::time::sleep(PATIENCE / 8).await;
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_timeout() {
    let live = Live::start(true).await;
    let text = "POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let answer = live.exchange(text).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("request_timeout"), "{answer}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_with_a_reason() {
    let live = Live::start(true).await;
    let body = format!("{{\"class\":\"{}\"}}", "x".repeat(1 << 20));
    let answer = live
        .exchange(&last(&request("POST", "/v1/leases", &body)))
        .await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let chunked = "POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 100_000, "x".repeat(100_000));
    let answer = live.exchange(&format!("{chunked}{chunk}0\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let expecting = "POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 3000000\r\n\r\n";
    let answer = live.exchange(expecting).await;
    assert!(
        answer.starts_with("HTTP/1.1 413 "),
        "nothing is asked for that is not wanted: {answer}"
    );
    let header = format!(
        "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    assert!(live.exchange(&header).await.starts_with("HTTP/1.1 431 "));
    let headers: String = (0..100).map(|n| format!("X-{n}: x\r\n")).collect();
    let many = format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    assert!(live.exchange(&many).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let live = Live::start(true).await;
    for (text, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "421"),
        ("GET / HTTP/1.0\r\n\r\n", "421"),
        (
            "GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            "421",
        ),
        (
            "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            "4",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            "4",
        ),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
        ("GET  /  HTTP/1.1\r\n\r\n", "400"),
        ("\u{0}\u{1}\u{2}\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
            "421",
        ),
        (
            "POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{}",
            "4",
        ),
    ] {
        let answer = live.exchange(text).await;
        // hyper closes without a word where the bytes are of another protocol.
        let refused = answer.is_empty()
            || answer.starts_with(&format!("HTTP/1.1 {status}"))
            || answer.starts_with(&format!("HTTP/1.0 {status}"));
        assert!(refused, "{text:?}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_goes_while_it_waits_is_never_granted() {
    let live = Live::start(true).await;
    let all = live
        .exchange(&last(&request("POST", "/v1/leases", r#"{"devices":2}"#)))
        .await;
    assert!(all.starts_with("HTTP/1.1 201 "), "{all}");
    let wait = request("POST", "/v1/leases", r#"{"memory":"1GiB","wait":"10m"}"#);
    for (name, more) in [
        ("plain", ""),
        (
            "with bytes of a later request",
            "GET /v1/status HTTP/1.1\r\n",
        ),
        (
            "with a whole later request",
            "GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ),
    ] {
        for half in [false, true] {
            let mut stream = live.connect().await;
            stream
                .write_all(format!("{wait}{more}").as_bytes())
                .await
                .expect("it is read");
            eventually("the queue", || live.waiting() == 1).await;
            match half {
                true => stream.shutdown().await.expect("it is open"),
                false => drop(stream),
            }
            eventually(&format!("{name}, half closed: {half}: the queue"), || {
                live.waiting() == 0
            })
            .await;
        }
    }
    let path = live.socket.clone();
    let mut local = UnixStream::connect(path).await.expect("it listens");
    local.write_all(wait.as_bytes()).await.expect("it is read");
    eventually("the queue", || live.waiting() == 1).await;
    drop(local);
    eventually("the queue", || live.waiting() == 0).await;
    assert_eq!(live.held(), 1, "only the first holds anything");
}

#[tokio::test]
async fn the_socket_knows_its_user_and_the_port_does_not() {
    let live = Live::start(false).await;
    let ask = last(&request("POST", "/v1/leases", r#"{"memory":"1GiB"}"#));
    let mut local = UnixStream::connect(&live.socket).await.expect("it listens");
    local.write_all(ask.as_bytes()).await.expect("it is read");
    let answer = read_all(&mut local).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert!(!answer.contains("\"user\":\"anonymous\""), "{answer}");
    let answer = live.exchange(&ask).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let authorization = format!("\r\nAuthorization: Bearer {}\r\n", live.token);
    let answer = live
        .exchange(&ask.replacen("\r\n", &authorization, 1))
        .await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let status = live
        .exchange(&last(&request("GET", "/v1/status", "")))
        .await;
    assert!(
        status.contains(&format!("http://{}", live.address)),
        "{status}"
    );
    assert!(status.contains("unix:/"), "{status}");
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_dropped() {
    let live = Live::start(true).await;
    let mut stream = live.connect().await;
    let wanted = "GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(4000);
    let mut sent = 0;
    let began = Instant::now();
    // Answers pile up unread until the server gives up on the connection.
    let gone = loop {
        match tokio::time::timeout(PATIENCE, stream.write(&wanted.as_bytes()[sent % 1000..])).await
        {
            Ok(Ok(n)) => sent += n,
            Ok(Err(_)) => break true,
            Err(_) if began.elapsed() > PATIENCE * 25 => break false,
            Err(_) => {}
        }
    };
    assert!(gone, "it is still served after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_shutdown_answers_waiters_and_ends() {
    let mut live = Live::start(true).await;
    let mut idle = live.connect().await;
    idle.write_all(b"GET /v1/st").await.expect("it is read");
    live.exchange(&last(&request("POST", "/v1/leases", r#"{"devices":2}"#)))
        .await;
    let mut waiter = live.connect().await;
    let wait = request("POST", "/v1/leases", r#"{"memory":"1GiB","wait":"10m"}"#);
    waiter.write_all(wait.as_bytes()).await.expect("it is read");
    let mut reader = live.connect().await;
    reader
        .write_all(request("GET", "/v1/events", "").as_bytes())
        .await
        .expect("it is read");
    eventually("the queue", || live.waiting() == 1).await;
    live.bench.broker.as_ref().expect("it runs").begin_stop();
    live.stop
        .take()
        .expect("it runs")
        .send(())
        .expect("it waits");
    let answer = read_all(&mut waiter).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after"), "{answer}");
    read_all(&mut reader).await;
    soon(&mut live.serving)
        .await
        .expect("no panic")
        .expect("no error");
}
