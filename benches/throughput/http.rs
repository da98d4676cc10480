//! Over HTTP on loopback, next to handlers that do nothing. Clients run in the same process and on the
//! same processors, so that all figures are those of both ends together.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use gpu_bridge::{App, Listeners, PolicyFiles, PolicyFilesError, Secrets};
use gpu_broker::{ReloadStart, Reloader, SourceFile, Started};
use gpu_manager_benches::{Case, Sample, compare};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tower::ServiceExt;

use crate::setting::{ROOMY, redb, runtime, start};

const TIME: Duration = Duration::from_millis(700);

pub(crate) fn bench() {
    let clients = Arc::new(runtime(2));
    let broker = Arc::new(Served::broker());
    let bare = Arc::new(Served::bare());
    let mut cases = Vec::new();
    for connections in [1, 32, 128] {
        let verbs: [(&str, &Arc<Served>, Pair); 3] = [
            ("two GETs of a bare handler", &bare, Pair::Hello),
            ("two POSTs of a bare JSON echo", &bare, Pair::Echo),
            ("acquire and release, durable", &broker, Pair::Lease),
        ];
        for (name, served, pair) in verbs {
            let (clients, served) = (clients.clone(), served.clone());
            let name = format!("{name}, {connections} connections");
            cases.push(Case::new(name, move |time| {
                pairs(&clients, served.address, pair, connections, time)
            }));
        }
    }
    compare("over HTTP on loopback", TIME, cases);
}

/// A server on its own threads, with everything that has to live as long.
struct Served {
    address: SocketAddr,
    _runtime: Runtime,
    _broker: Option<(Started, TempDir)>,
}

impl Served {
    fn broker() -> Self {
        let (store, dir) = redb();
        let started = start(store);
        let reloader = Reloader::new(
            started.handle.clone(),
            Box::new(|| Ok(Vec::new())),
            Vec::new(),
            ReloadStart::default(),
        );
        let app = App {
            watch: Box::new(|_| None),
            policy_files: Arc::new(NoFiles),
            handle: started.handle.clone(),
            reloader: Arc::new(reloader),
            config: config(),
        };
        let (runtime, listener, address) = listening();
        let listeners = Listeners {
            tcp: Some(listener),
            ..Listeners::default()
        };
        runtime.spawn(gpu_bridge::serve(listeners, app, std::future::pending()));
        Self {
            address,
            _runtime: runtime,
            _broker: Some((started, dir)),
        }
    }

    fn bare() -> Self {
        let router = Router::new().route("/", get(|| async { "hello" })).route(
            "/echo",
            post(|Json(body): Json<Value>| async { Json(body) }),
        );
        let (runtime, listener, address) = listening();
        runtime.spawn(accept(listener, router));
        Self {
            address,
            _runtime: runtime,
            _broker: None,
        }
    }
}

/// Nobody writes policies here.
struct NoFiles;

impl PolicyFiles for NoFiles {
    fn quotes(&self, _: &str) -> bool {
        true
    }

    fn place(&self, _: Vec<SourceFile>) -> Result<Vec<SourceFile>, PolicyFilesError> {
        Err(PolicyFilesError::ReadOnly("a bench".to_owned()))
    }

    fn write(&self, _: &[SourceFile]) -> Result<Vec<SourceFile>, PolicyFilesError> {
        Err(PolicyFilesError::ReadOnly("a bench".to_owned()))
    }
}

fn config() -> gpu_bridge::Config {
    gpu_bridge::Config {
        dev: true,
        allowed_hosts: Vec::new(),
        allowed_origins: Vec::new(),
        admin_group: "gpu-admin".to_owned(),
        secrets: Secrets::ephemeral(),
        state_dir: None,
        policy_paths: Vec::new(),
        overrides: Vec::new(),
        watch_reason: "a bench".to_owned(),
        assets: None,
        warnings: Default::default(),
        safe_start: None,
        limits: gpu_bridge::Limits::default(),
    }
}

fn listening() -> (Runtime, TcpListener, SocketAddr) {
    let runtime = runtime(2);
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    (runtime, listener, address)
}

async fn accept(listener: TcpListener, router: Router) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a connection");
        let router = router.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = router.clone().oneshot(request.map(Body::new));
            async move { Ok::<_, Infallible>(answer.await.expect("a router never fails")) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // A client that is gone has had enough.
        tokio::spawn(async move { drop(connection.await) });
    }
}

/// Two requests, the second after the answer to the first.
#[derive(Clone, Copy)]
enum Pair {
    Echo,
    Hello,
    Lease,
}

/// Lets so many clients, each on a connection of its own, do `pair` again and again for `time`.
fn pairs(
    clients: &Runtime,
    to: SocketAddr,
    pair: Pair,
    connections: usize,
    time: Duration,
) -> Sample {
    let opened: Vec<Client> = (0..connections)
        .map(|_| clients.block_on(Client::connect(to)))
        .collect();
    let began = Instant::now();
    let workers: Vec<_> = opened
        .into_iter()
        .map(|client| clients.spawn(client.pairs(pair, began + time)))
        .collect();
    let mut pairs = Vec::new();
    for worker in workers {
        pairs.extend(clients.block_on(worker).expect("a client ends in order"));
    }
    Sample {
        took: began.elapsed(),
        pairs,
    }
}

struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.expect("a server");
        stream.set_nodelay(true).expect("a connection");
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("a server");
        tokio::spawn(async move { drop(connection.await) });
        Self {
            sender,
            host: to.to_string(),
        }
    }

    async fn pairs(mut self, pair: Pair, until: Instant) -> Vec<Duration> {
        let mut pairs = Vec::new();
        while Instant::now() < until {
            let began = Instant::now();
            match pair {
                Pair::Hello => self.hello().await,
                Pair::Echo => self.echo().await,
                Pair::Lease => self.lease().await,
            }
            pairs.push(began.elapsed());
        }
        pairs
    }

    async fn hello(&mut self) {
        for _ in 0..2 {
            self.ask(Method::GET, "/", "", StatusCode::OK).await;
        }
    }

    async fn echo(&mut self) {
        for _ in 0..2 {
            self.ask(Method::POST, "/echo", &body(), StatusCode::OK)
                .await;
        }
    }

    async fn lease(&mut self) {
        let created = StatusCode::CREATED;
        let lease = self.ask(Method::POST, "/v1/leases", &body(), created).await;
        let lease: Value = serde_json::from_slice(&lease).expect("an answer in JSON");
        let id = lease["id"].as_str().expect("a lease has an id");
        self.ask(
            Method::DELETE,
            &format!("/v1/leases/{id}"),
            "",
            StatusCode::OK,
        )
        .await;
    }

    async fn ask(&mut self, method: Method, path: &str, body: &str, expected: StatusCode) -> Bytes {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host);
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::from(body.to_owned()))
            .expect("a request");
        self.sender
            .ready()
            .await
            .expect("the connection stays open");
        let answer = self.sender.send_request(request).await.expect("an answer");
        let status = answer.status();
        let answer = answer
            .into_body()
            .collect()
            .await
            .expect("a whole answer")
            .to_bytes();
        assert_eq!(status, expected, "{}", String::from_utf8_lossy(&answer));
        answer
    }
}

fn body() -> String {
    format!(r#"{{"memory":"64MiB","select":"device.id == '{ROOMY}'","holder":{{"name":"bench"}}}}"#)
}
