//! What the bridge is given, and what its handlers share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gpu_api::{ErrorCode, PolicyOverride, Problem, WatchState};
use gpu_broker::{AcquireError, Handle, Reloader, SourceFile};
use gpu_lease::{At, Lease, LeaseId, Ms, Request};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::convert::Scene;
use crate::guard::{Authority, Guard, Origin};
use crate::metrics::Metrics;
use crate::secrets::Secrets;

/// Event streams that are open at once.
pub const EVENT_STREAMS_MAX: usize = 128;
/// Requests that wait on their connection at once, for a lease or for a change of one. What is left of the
/// connections is for requests that are answered now.
pub const WAITING_REQUESTS_MAX: usize = 320;
/// Reloads that callers asked for at once: one runs, the others wait for their turn.
pub const RELOADS_IN_LINE_MAX: usize = 8;
/// Policies that are checked or planned for callers at once.
pub const POLICY_LOOKS_MAX: usize = 8;
/// Requests for history and usage that read the store at once; each reads a bounded part of it.
pub const RECORD_LOOKS_MAX: usize = 4;

/// What a broker that started safe leaves alone, as every front end says it.
pub const SAFE_START: &str =
    "the broker started safe: it grants nothing, looks at no device and reads no policy file";

/// The same with the reason for it.
pub(crate) fn safe_start_reason(why: &str) -> String {
    format!("{SAFE_START} ({why})")
}

/// What a request is told that a broker which started safe does not do, for the reason `why`.
pub(crate) fn safe_start_problem(why: &str) -> Problem {
    Problem::new(ErrorCode::SafeStart, safe_start_reason(why))
        .with_retry_after_ms(SAFE_START_RETRY_MS)
        .with_hint(SAFE_START_HINT)
}

/// How a broker that started safe becomes one that grants.
pub const SAFE_START_HINT: &str = "see why the broker ended (its log, `dmesg`) and mend that, then stop this one in order and start it again";

/// Says how the watch of the policy files is doing.
pub type WatchReport = Box<dyn Fn(At) -> Option<WatchState> + Send + Sync>;

/// Somebody has to mend something first.
const SAFE_START_RETRY_MS: u64 = 30_000;

/// The policy files on disk: what may be said of them, and a way to write them.
pub trait PolicyFiles: Send + Sync {
    /// Whether messages may quote what the file of this name says: not if a link leads outside of the
    /// directories that are watched.
    fn quotes(&self, name: &str) -> bool;

    /// `files` under the names that they have on disk, in the order in which they apply. Writes nothing.
    ///
    /// # Errors
    /// They may not be written, or not under these names.
    fn place(&self, files: Vec<SourceFile>) -> Result<Vec<SourceFile>, PolicyFilesError>;

    /// Makes `files`, as [`Self::place`] answered them, the whole set on disk, and answers the set before.
    ///
    /// # Errors
    /// They cannot be written; what was there before is there still.
    fn write(&self, files: &[SourceFile]) -> Result<Vec<SourceFile>, PolicyFilesError>;
}

/// Policy files are not written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyFilesError {
    /// Something went wrong on the way.
    #[error("the policy files cannot be written: {0}")]
    Failed(String),
    /// A name that no policy file can have here.
    #[error("`{name}`: {why}")]
    Name {
        /// The name, fit for a message.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The broker may not, for the reason given.
    #[error("the broker does not write the policy files: {0}")]
    ReadOnly(String),
}

/// A broker with everything that its HTTP side needs to know.
pub struct App {
    /// The broker.
    pub handle: Handle,
    /// Its policy files.
    pub reloader: Arc<Reloader>,
    /// How to serve it.
    pub config: Config,
    /// How the watch of the policy files is doing at this moment, if there is one.
    pub watch: WatchReport,
    /// Its policy files on disk.
    pub policy_files: Arc<dyn PolicyFiles>,
}

/// What an operator should know at this moment, one line each: whoever knows better writes it anew.
pub type Warnings = Arc<Mutex<Vec<String>>>;

/// How a broker is served.
#[derive(Debug)]
pub struct Config {
    /// Loopback callers need no token and may use operator verbs.
    pub dev: bool,
    /// Names beside the loopback's and the bound address that the `Host` header may say.
    pub allowed_hosts: Vec<Authority>,
    /// Pages of other origins that may call.
    pub allowed_origins: Vec<Origin>,
    /// Members of this group are admins on the Unix socket.
    pub admin_group: String,
    /// The token and the key of lease secrets.
    pub secrets: Secrets,
    /// Where the state is kept, if it is.
    pub state_dir: Option<PathBuf>,
    /// Where policy files are read from.
    pub policy_paths: Vec<PathBuf>,
    /// Settings above the policy files that last as long as the broker, the lowest layer first.
    pub overrides: Vec<PolicyOverride>,
    /// Who decided whether policy files are watched, unless somebody switched it since.
    pub watch_reason: String,
    /// What an operator should know.
    pub warnings: Warnings,
    /// Why the broker started safe, if it did: it grants nothing then.
    pub safe_start: Option<String>,
    /// Files of the page that go before the built-in ones, for those who work on it.
    pub assets: Option<Assets>,
    /// How long slow clients are borne with.
    pub limits: Limits,
}

/// Files of the page on disk.
#[derive(Clone, Debug)]
pub struct Assets {
    /// Where they are looked for, the first that has one.
    pub dirs: Vec<PathBuf>,
    /// Counts their changes; open pages are told of each.
    pub changed: watch::Receiver<u64>,
}

/// How long slow clients are borne with.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first byte expected to the end of the headers; an idle connection is closed by it too.
    pub header_read: Duration,
    /// For the whole body of a request.
    pub body_read: Duration,
    /// For an answer of which nothing is taken.
    pub write_stall: Duration,
    /// Between two signs of life of an event stream that has nothing to tell.
    pub event_silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_read: Duration::from_secs(15),
            body_read: Duration::from_secs(15),
            write_stall: Duration::from_secs(30),
            event_silence: Duration::from_secs(15),
        }
    }
}

/// What all handlers share.
pub(crate) struct Bridge {
    pub(crate) handle: Handle,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) config: Config,
    pub(crate) watch: WatchReport,
    pub(crate) policy_files: Arc<dyn PolicyFiles>,
    /// Held from the plan of a set of files until it is written and live.
    pub(crate) policy_writes: Mutex<()>,
    pub(crate) guard: Guard,
    pub(crate) metrics: Metrics,
    /// The addresses served, as a client would write them.
    pub(crate) listen: Vec<String>,
    pub(crate) started: At,
    event_streams: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    reloads: Arc<Semaphore>,
    policy_looks: Arc<Semaphore>,
    record_looks: Arc<Semaphore>,
}

impl Bridge {
    pub(crate) fn new(app: App, bound: &[SocketAddr], listen: Vec<String>) -> Self {
        let App {
            handle,
            reloader,
            config,
            watch,
            policy_files,
        } = app;
        Self {
            guard: Guard::new(bound, &config.allowed_hosts, &config.allowed_origins),
            metrics: Metrics::new(&handle),
            started: handle.now(),
            event_streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_REQUESTS_MAX)),
            reloads: Arc::new(Semaphore::new(RELOADS_IN_LINE_MAX)),
            policy_looks: Arc::new(Semaphore::new(POLICY_LOOKS_MAX)),
            record_looks: Arc::new(Semaphore::new(RECORD_LOOKS_MAX)),
            policy_files,
            policy_writes: Mutex::new(()),
            handle,
            reloader,
            config,
            watch,
            listen,
        }
    }

    /// Why nothing is granted, where that is because the broker started safe.
    pub(crate) fn safe_start(&self) -> Option<Problem> {
        let why = self.config.safe_start.as_deref();
        why.map(safe_start_problem)
    }

    /// Policy files are read, which those of a broker that started safe are not.
    pub(crate) fn reads_files(&self) -> Result<(), Problem> {
        self.safe_start().map_or(Ok(()), Err)
    }

    /// Asks for a lease. Nobody waits for a broker that started safe, which grants nothing later either; what a
    /// request that is sent again has become is still answered.
    pub(crate) async fn acquire(
        &self,
        id: LeaseId,
        mut request: Request,
    ) -> Result<Lease, AcquireError> {
        if self.config.safe_start.is_some() {
            request.wait = Ms(0);
            request.queue = false;
        }
        self.handle.acquire(id, request).await
    }

    /// What is looked at to show something of the core, as it is now.
    pub(crate) fn scene(&self) -> Scene<'_> {
        Scene::of(&self.handle, self.config.safe_start.as_deref())
    }

    /// Room for one more event stream.
    pub(crate) fn event_stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        room(&self.event_streams, "event streams", EVENT_STREAMS_MAX)
    }

    /// Room for one more request that waits on its connection.
    pub(crate) fn waiting_request(&self) -> Result<OwnedSemaphorePermit, Problem> {
        room(
            &self.waiting,
            "requests wait on their connections",
            WAITING_REQUESTS_MAX,
        )
    }

    /// Room for one more reload that a caller asked for, until it is over.
    pub(crate) fn reload(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.reloads.clone().try_acquire_owned().map_err(|_full| {
            let detail = format!("{RELOADS_IN_LINE_MAX} reloads run or wait already");
            Problem::new(ErrorCode::TooManyReloads, detail)
                .with_hint("the last of them reads the files as they are then")
        })
    }

    /// Room to check or plan one more policy.
    pub(crate) fn policy_look(&self) -> Result<OwnedSemaphorePermit, Problem> {
        room(
            &self.policy_looks,
            "policies are looked at",
            POLICY_LOOKS_MAX,
        )
    }

    /// Room to read once more what was.
    pub(crate) fn record_look(&self) -> Result<OwnedSemaphorePermit, Problem> {
        room(
            &self.record_looks,
            "requests read the history or the usage",
            RECORD_LOOKS_MAX,
        )
    }
}

fn room(slots: &Arc<Semaphore>, what: &str, max: usize) -> Result<OwnedSemaphorePermit, Problem> {
    slots.clone().try_acquire_owned().map_err(|_full| {
        Problem::new(ErrorCode::Overloaded, format!("{max} {what} already"))
            .with_hint("try again later, or queue with `\"queue\": true`")
    })
}
