//! A broker with two simulated devices behind a bridge, and requests that read as one line.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use gpu_bridge::{App, Config, Limits, Peer, PolicyFiles, PolicyFilesError, Secrets, UnixUser};
use gpu_broker::{
    BootClock, Broker, Handle, HostProcesses, ReloadStart, Reloader, SourceFile, StartPolicy,
    boot_id,
};
use gpu_lease::{Device, DeviceKey, DeviceKind, Telemetry, Vendor};
use gpu_store::{MemoryStore, StoreId};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::Value;
use tower::ServiceExt;

pub(crate) const GIB: u64 = 1 << 30;
/// Whatever takes longer than this has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

const POLICY: &str = "schema = 1\n[reclaim]\ndelay = \"1s\"\n[[class]]\nname = \"batch\"\n";

/// A broker, and everything that is needed to put a bridge before it.
pub(crate) struct Bench {
    pub(crate) broker: Option<Broker>,
    pub(crate) handle: Handle,
    pub(crate) reloader: Arc<Reloader>,
    /// The one policy file.
    pub(crate) policy: Arc<Mutex<String>>,
}

/// A bench with its bridge.
pub(crate) struct Server {
    pub(crate) bench: Bench,
    pub(crate) router: Router,
    pub(crate) token: Arc<str>,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Bench {
    pub(crate) fn start(dev: bool) -> Self {
        let policy = Arc::new(Mutex::new(POLICY.to_owned()));
        let read = {
            let policy = policy.clone();
            move || vec![SourceFile::new("default.toml", policy.lock().clone())]
        };
        let config = gpu_broker::Config {
            store: Arc::new(MemoryStore::new(StoreId::from_bits(0xbeef))),
            clock: Arc::new(BootClock),
            processes: Arc::new(HostProcesses::of_boot(boot_id().expect("/proc"))),
            boot_id: boot_id().expect("/proc"),
            introduction: "gpu-manager".to_owned(),
            policy: StartPolicy {
                files: Ok(read()),
                overrides: vec![],
                dev,
            },
        };
        let started = Broker::start(config, Box::new(|| {}));
        let started = started.expect("a policy that compiles and an empty store");
        started.handle.inventory(vec![device(0), device(1)]);
        let reloader = Reloader::new(
            started.handle.clone(),
            Box::new(move || Ok(read())),
            vec![],
            ReloadStart {
                watching: true,
                dev,
                ..started.reload_start()
            },
        );
        Self {
            broker: Some(started.broker),
            handle: started.handle,
            reloader: Arc::new(reloader),
            policy,
        }
    }

    pub(crate) fn app(&self, dev: bool, limits: Limits) -> App {
        App {
            watch: Box::new(|_| None),
            policy_files: Arc::new(OneFile(self.policy.clone())),
            handle: self.handle.clone(),
            reloader: self.reloader.clone(),
            config: Config {
                dev,
                allowed_hosts: vec![],
                allowed_origins: vec!["http://app.lab:3000".parse().expect("an origin")],
                admin_group: "gpu-admin".to_owned(),
                secrets: Secrets::ephemeral(),
                state_dir: None,
                policy_paths: vec!["policies".into()],
                overrides: vec![],
                watch_reason: "the listener is loopback".to_owned(),
                assets: None,
                warnings: gpu_bridge::Warnings::default(),
                safe_start: None,
                limits,
            },
        }
    }
}

/// The one policy file, as if it were on disk. One that says where it is from is not quoted.
struct OneFile(Arc<Mutex<String>>);

impl PolicyFiles for OneFile {
    fn quotes(&self, _: &str) -> bool {
        !self.0.lock().starts_with("# from elsewhere")
    }

    fn place(&self, files: Vec<SourceFile>) -> Result<Vec<SourceFile>, PolicyFilesError> {
        match files.as_slice() {
            [file] if file.name == "default.toml" => Ok(files),
            _ => Err(PolicyFilesError::ReadOnly("there is one file".to_owned())),
        }
    }

    fn write(&self, files: &[SourceFile]) -> Result<Vec<SourceFile>, PolicyFilesError> {
        let text = String::from_utf8(files[0].bytes.clone()).expect("text");
        let before = std::mem::replace(&mut *self.0.lock(), text);
        Ok(vec![SourceFile::new("default.toml", before)])
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.stop().expect("the store in memory works");
        }
    }
}

impl Server {
    /// Dev mode: loopback may do everything.
    pub(crate) async fn dev() -> Self {
        Self::start(true).await
    }

    /// As a service for several users.
    pub(crate) async fn strict() -> Self {
        Self::start(false).await
    }

    async fn start(dev: bool) -> Self {
        let bench = Bench::start(dev);
        let app = bench.app(dev, Limits::default());
        let token = app.config.secrets.token().expect("a token");
        let server = Self {
            router: gpu_bridge::service(app, &[]),
            bench,
            token,
        };
        server.until(|handle| !handle.snapshot().recovering).await;
        server
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.bench.handle
    }

    /// Sends `call` and reads the whole answer.
    pub(crate) async fn send(&self, call: Call) -> Reply {
        let response = self.open(call).await;
        let (parts, body) = response.into_parts();
        let read = tokio::time::timeout(DEADLINE, body.collect()).await;
        let bytes = read
            .expect("the body ends")
            .expect("the body is whole")
            .to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).expect("text"),
        }
    }

    /// Sends `call` and answers as soon as the head is there.
    pub(crate) async fn open(&self, call: Call) -> axum::http::Response<Body> {
        let answer = self.router.clone().oneshot(call.0);
        let answer = tokio::time::timeout(DEADLINE, answer).await;
        answer.expect("it answers").expect("a router never fails")
    }

    /// Waits until the broker looks as it should.
    pub(crate) async fn until(&self, done: impl Fn(&Handle) -> bool) {
        let handle = &self.bench.handle;
        eventually("the broker", || done(handle)).await;
    }
}

/// A request under construction; it comes from loopback.
pub(crate) struct Call(pub(crate) Request<Body>);

pub(crate) fn get(path: &str) -> Call {
    call(Method::GET, path)
}

pub(crate) fn post(path: &str) -> Call {
    call(Method::POST, path)
}

pub(crate) fn delete(path: &str) -> Call {
    call(Method::DELETE, path)
}

pub(crate) fn call(method: Method, path: &str) -> Call {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(Body::empty());
    Call(request.expect("a path"))
        .header("host", "localhost:8080")
        .from(near())
}

impl Call {
    pub(crate) fn from(mut self, peer: Peer) -> Self {
        self.0.extensions_mut().insert(peer);
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.0
            .headers_mut()
            .insert(name, value.parse().expect("a header value"));
        self
    }

    pub(crate) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.text("application/json", &body.to_string())
    }

    pub(crate) fn text(mut self, kind: &str, body: &str) -> Self {
        *self.0.body_mut() = Body::from(body.to_owned());
        self.header("content-type", kind)
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The `code` of a problem, which this must be.
    pub(crate) fn code(&self) -> String {
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{}",
            self.text
        );
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16(), "{}", self.text);
        problem["code"].as_str().expect("a code").to_owned()
    }

    /// The body, if the status is the expected one.
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self.json()
    }
}

/// Looks again and again, until `done` or the deadline.
pub(crate) async fn eventually(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < DEADLINE,
            "{what} never came to be as it should"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The result of `work`, which must not take for ever.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .expect("it does not take for ever")
}

pub(crate) fn near() -> Peer {
    Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 5000)))
}

pub(crate) fn far() -> Peer {
    Peer::Tcp(SocketAddr::from(([192, 168, 1, 9], 5000)))
}

pub(crate) fn user(name: &str, uid: u32) -> Peer {
    let name = name.to_owned();
    Peer::Unix(Arc::new(UnixUser {
        uid,
        name,
        admin: false,
    }))
}

pub(crate) fn operator() -> Peer {
    let name = "root".to_owned();
    Peer::Unix(Arc::new(UnixUser {
        uid: 0,
        name,
        admin: true,
    }))
}

fn device(index: u32) -> Device {
    Device {
        key: DeviceKey::local(&format!("sim-{index}")),
        name: "Simulated A100".to_owned(),
        index,
        vendor: Vendor::Nvidia,
        kind: DeviceKind::Simulated,
        pci_bus_id: None,
        nvml_uuid: (index == 0).then(|| "GPU-0000".to_owned()),
        driver: None,
        memory_total: 16 * GIB,
        telemetry: Telemetry::Unsupported,
        leasable: true,
        found_by: vec!["declared".to_owned()],
    }
}
