//! A running broker, as a well-behaved client sees it.

use std::future::Future;
use std::path::{Path, PathBuf};

use gpu_api::{
    AcquireRequest, BrokerState, Device, FenceCheck, Lease, LeaseState, Policy, Problem, Queue,
    ReloadState, Status, paths,
};
use gpu_client::{Client, ClientError, Endpoint, IdempotencyKey};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::events::Events;
use crate::http::{Address, Request};
use crate::patience::{SOON, eventually};
use crate::process::{Process, Ran};

/// A broker that grants, and a client of its port.
#[derive(Debug)]
pub struct Broker {
    process: Process,
    address: Address,
    socket: Address,
    client: Client,
    runtime: Runtime,
}

impl Broker {
    /// Waits until `process` grants, and finds out where it listens.
    pub(crate) fn ready(process: Process, socket: &Path) -> Self {
        Self::once(process, socket, "the broker grants", async |client| {
            client.ready_to_grant().await?;
            client.status().await
        })
    }

    /// Waits until `process` has started safe.
    pub(crate) fn safe(process: Process, socket: &Path) -> Self {
        let broker = Self::once(process, socket, "the broker answers", async |client| {
            client.status().await
        });
        let said = broker.process.stderr();
        assert_eq!(broker.status().state, BrokerState::Safe, "{said}");
        broker
    }

    fn once(
        mut process: Process,
        socket: &Path,
        what: &str,
        asked: impl AsyncFn(&Client) -> Result<Status, ClientError>,
    ) -> Self {
        let runtime = runtime();
        let client = client(Endpoint::Unix(socket.to_owned()));
        let status = eventually(what, || {
            if let Some(ran) = process.ended() {
                panic!("the broker ended with {}:\n{}", ran.code, ran.stderr);
            }
            runtime.block_on(asked(&client)).ok()
        });
        let url = status
            .listen
            .iter()
            .find_map(|url| url.strip_prefix("http://"));
        let address = url.and_then(|url| url.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no port: {:?}", status.listen));
        let endpoint = format!("http://{address}").parse().expect("an address");
        Self {
            process,
            address: Address::Tcp(address),
            socket: Address::Unix(PathBuf::from(socket)),
            client: self::client(endpoint),
            runtime,
        }
    }

    /// Its port.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its port as a URL without a path.
    pub fn url(&self) -> String {
        self.client.endpoint().to_string()
    }

    /// Its Unix socket.
    pub fn socket(&self) -> &Address {
        &self.socket
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it as a power cut would.
    pub fn kill(self) {
        self.into_process().kill();
    }

    /// Asks it to end, and waits for that.
    pub fn stop(self) -> Ran {
        self.process.signal(rustix::process::Signal::TERM);
        self.into_process().wait()
    }

    /// The process alone.
    pub fn into_process(self) -> Process {
        self.process
    }

    /// Asks for a lease as this body says; a fresh key makes it safe to repeat.
    ///
    /// # Errors
    /// What the broker says.
    pub fn acquire(&self, body: &Value) -> Result<Lease, ClientError> {
        self.acquire_as(body, &IdempotencyKey::random())
    }

    /// Asks for a lease under a key.
    ///
    /// # Errors
    /// What the broker says.
    pub fn acquire_as(&self, body: &Value, key: &IdempotencyKey) -> Result<Lease, ClientError> {
        let request: AcquireRequest =
            gpu_api::decode(body.to_string().as_bytes()).expect("the test says what it means");
        self.call(self.client.acquire(&request, key))
    }

    /// A lease that must be granted now.
    pub fn grant(&self, body: &Value) -> Lease {
        let lease = self
            .acquire(body)
            .unwrap_or_else(|error| panic!("{body}: {error}"));
        assert_eq!(lease.state, LeaseState::Active, "{body}: {lease:?}");
        lease
    }

    /// A whole device for as long as `process` lives; the socket tells whose that is.
    pub fn grant_to(&self, process: &Process) -> Lease {
        let holder = json!({"kind": "process", "pid": process.pid()});
        let body = json!({"holder": holder, "ttl": "1h"});
        let answer = Request::post(paths::LEASES, &body).send(&self.socket);
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.lease()
    }

    /// A request that waits on its connection; the test joins the thread for the answer. Returns once the
    /// broker has it in its queue.
    pub fn wait_beside(&self, body: &Value) -> std::thread::JoinHandle<crate::http::Answer> {
        let before = self.queue().total;
        let waiter = Request::post(paths::LEASES, body).send_beside(&self.address);
        self.until_waiting(before + 1);
        waiter
    }

    /// Waits until this many wait.
    pub fn until_waiting(&self, count: u64) {
        eventually(&format!("{count} wait"), || {
            (self.queue().total == count).then_some(())
        });
    }

    /// The lease as it is.
    pub fn lease(&self, id: &str) -> Lease {
        self.must(self.client.lease(id))
    }

    /// The lease once it is as wanted.
    pub fn until(&self, id: &str, what: &str, wanted: impl Fn(&Lease) -> bool) -> Lease {
        eventually(&format!("{id} {what}"), || {
            Some(self.lease(id)).filter(&wanted)
        })
    }

    /// The lease once it has ended and its memory is free.
    pub fn until_ended(&self, id: &str) -> Lease {
        self.until(id, "has ended", |lease| lease.state == LeaseState::Ended)
    }

    /// A heartbeat with the lease's secret.
    ///
    /// # Errors
    /// What the broker says.
    pub fn renew(&self, lease: &Lease) -> Result<Lease, ClientError> {
        self.call(self.client.renew(&lease.id, lease.secret.as_deref()))
    }

    /// The end of the load phase.
    ///
    /// # Errors
    /// What the broker says.
    pub fn ready_lease(&self, lease: &Lease) -> Result<Lease, ClientError> {
        self.call(self.client.ready(&lease.id, lease.secret.as_deref()))
    }

    /// Gives the lease back with its secret.
    pub fn release(&self, lease: &Lease) -> Lease {
        self.must(self.client.release(&lease.id, lease.secret.as_deref()))
    }

    /// Whether a fence is current on a device.
    pub fn fence_is_current(&self, device: &str, fence: u64) -> bool {
        let check = FenceCheck {
            device: device.parse().expect("a short id"),
            fence,
        };
        self.must(self.client.check_fence(&check)).current
    }

    /// Every lease that has not ended.
    pub fn live_leases(&self) -> Vec<Lease> {
        self.must(self.client.all_leases(true))
    }

    /// Every lease that is known.
    pub fn all_leases(&self) -> Vec<Lease> {
        self.must(self.client.all_leases(false))
    }

    /// The devices.
    pub fn devices(&self) -> Vec<Device> {
        self.must(self.client.devices())
    }

    /// One device.
    pub fn device(&self, id: &str) -> Device {
        let device = self.devices().into_iter().find(|device| device.id == id);
        device.unwrap_or_else(|| panic!("no device `{id}`"))
    }

    /// The broker at a glance.
    pub fn status(&self) -> Status {
        self.must(self.client.status())
    }

    /// Who waits.
    pub fn queue(&self) -> Queue {
        self.must(self.client.queue())
    }

    /// The policy in force.
    pub fn policy(&self) -> Policy {
        self.must(self.client.policy())
    }

    /// The policy watch.
    pub fn reload_state(&self) -> ReloadState {
        self.must(self.client.reload_state())
    }

    /// Waits until the policy in force is of this generation or a later one.
    pub fn until_generation(&self, generation: u64) -> Policy {
        eventually(&format!("generation {generation}"), || {
            Some(self.policy()).filter(|policy| policy.generation >= generation)
        })
    }

    /// What happens from here on, or from behind the event of this id.
    pub fn events(&self, after: Option<&str>) -> Events {
        Events::listen(&self.address, after)
    }

    /// The client, for what has no method here.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What comes of a call.
    ///
    /// # Errors
    /// What the broker says.
    pub fn call<T>(
        &self,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let bounded = async { timeout(SOON, call).await };
        self.runtime
            .block_on(bounded)
            .expect("the broker answers soon")
    }

    /// What comes of a call that must go well.
    pub fn must<T>(&self, call: impl Future<Output = Result<T, ClientError>>) -> T {
        self.call(call).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// What the broker says no with.
///
/// # Panics
/// If it said yes, or did not answer.
pub fn problem<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Problem {
    match answer {
        Err(ClientError::Problem(problem)) => *problem,
        other => panic!("not a problem: {other:?}"),
    }
}

fn client(endpoint: Endpoint) -> Client {
    Client::new(endpoint, None).expect("no token is a good token")
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build();
    runtime.expect("threads can be made")
}
