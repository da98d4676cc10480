//! `gpu-manager serve`: puts the broker together, runs it, and takes it apart in order.

mod assets;
pub(crate) mod config;
mod devices;
mod disk;
mod introduce;
mod listen;
mod log;
mod notify;
mod policy;
mod reconfigure;
mod starts;
mod trouble;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

use gpu_api::Bytes;
use gpu_bridge::{App, Assets, Listeners, Origin, Secrets, Warnings};
use gpu_broker::{BootClock, Broker, Clock, HostProcesses, Reloader, StartPolicy, Started};
use gpu_device::{LOCK_DIR, Probe, ProbeCommand};
use gpu_store::{MemoryStore, OpenError, RedbStore, Store, StoreId};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cli::args::ServeArgs;
use crate::offline;
use crate::owner::{Owner, OwnerFile};
use config::Config;
use devices::{Devices, ReadNow};
use disk::Disk;
use introduce::{introduce, tell_when_ready};
use policy::Policies;
use reconfigure::Reconfigure;
use starts::Starts;
use trouble::Trouble;

/// The store within the state directory.
pub(crate) const STORE_FILE: &str = "store.redb";
/// After SIGTERM, everything is over by then.
const STOP_MAX: Duration = Duration::from_secs(9);
/// What the supervisor is told of a safe start.
const SAFE_STATUS: &str = "started safe: grants nothing, see `gpu-manager status`";
/// Members of this group may use operator verbs on the socket.
const ADMIN_GROUP: &str = "gpu-admin";
/// Where devices are locked instead of [`LOCK_DIR`], for tests that must not meet a real broker.
const LOCK_DIR_VARIABLE: &str = "GPU_MANAGER_LOCK_DIR";

/// Runs the broker until it is told to stop.
pub(crate) fn run(args: ServeArgs) -> ExitCode {
    log::start(args.dev);
    if args.check {
        return Config::load(&args).map_or_else(|error| fail(&error), |config| check(&config));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no runtime: {error}")),
    };
    let code = match runtime.block_on(serve(args)) {
        Ok(code) => code,
        Err(trouble) => trouble.report(),
    };
    // A thread that hangs in a driver must not hold the process back.
    runtime.shutdown_background();
    code
}

fn fail(error: &str) -> ExitCode {
    Trouble::from(error.to_owned()).report()
}

/// `serve --check`: says what a start would say, and starts nothing.
fn check(config: &Config) -> ExitCode {
    let disk = Disk::new(config.policy_watch());
    let start = policy::start(config, &disk, &policy::read(config));
    match start.and_then(|start| policy::compile(&start)) {
        Ok(policy) => {
            println!(
                "configuration and policy are good (policy {})",
                policy.source.hash
            );
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

/// Why the broker stops.
enum Stop {
    Asked,
    Broken(Trouble),
    /// Its loop ended; it says itself why.
    Fatal,
}

async fn serve(args: ServeArgs) -> Result<ExitCode, Trouble> {
    // First of all: a signal that comes before its handler ends the process.
    let hangup = signal(SignalKind::hangup()).map_err(|error| format!("no signals: {error}"))?;
    let signals = Signals::install().map_err(|error| format!("no signals: {error}"))?;
    let config = Config::load(&args)?;
    let boot_id = gpu_broker::boot_id().map_err(|error| format!("no boot id: {error}"))?;
    if config.ephemeral {
        return serve_as(args, config, (hangup, signals), None).await;
    }
    make_private(&config.state_dir)?;
    let starts = config.safe_start.then(|| {
        let at = BootClock.now().boot;
        Arc::new(Starts::begin(&config.state_dir, &boot_id, at))
    });
    let safe = starts.as_ref().and_then(|starts| starts.safe());
    if let Some(starts) = starts.clone() {
        tokio::spawn(async move {
            tokio::time::sleep(starts::WELL_AFTER).await;
            starts.clear();
        });
    }
    // A panic, a kill or a fault of its own leaves what was written down as it is.
    let ended = serve_as(args, config, (hangup, signals), safe).await;
    match (&starts, &ended) {
        (Some(starts), Ok(_)) => starts.clear(),
        (Some(starts), Err(trouble)) if !trouble.is_own_fault() => starts.take_back(),
        _ => {}
    }
    ended
}

/// Runs a broker; `safe` says why it must keep what is held and do nothing else.
async fn serve_as(
    args: ServeArgs,
    config: Config,
    (hangup, mut signals): (Signal, Signals),
    safe: Option<String>,
) -> Result<ExitCode, Trouble> {
    let began = Instant::now();
    allow_many_descriptors();
    let Claim {
        store,
        owner,
        listeners,
        address,
    } = claim(&config).await?;
    let notes = Warnings::default();
    let (assets, asset_watch) = assets::open(&config)?;
    let bridge_config = bridge_config(&config, assets, notes.clone(), safe.clone())?;
    let (read_now, wanted) = devices::read_now();
    let disk = Arc::new(Disk::new(config.policy_watch()));
    let (policy, files) = policy::start_policy(&config, &disk, safe.is_some())?;
    let started = start_broker(policy, store, read_now, safe.as_deref())?;
    let (broken, mut trouble) = mpsc::channel::<Trouble>(1);
    let begun = Policies::start(&config, &disk, &started, files, safe.is_some());
    let begun = begun.and_then(|policies| {
        if safe.is_none() {
            start_devices(&config, &started, (wanted, broken.clone()), notes)?;
        }
        Ok(policies)
    });
    let policies = match begun {
        Ok(policies) => policies,
        Err(why) => return Err(given_up(started, why)),
    };
    let reloads = policies.reloader.state();
    introduce(&config, address, &started, &reloads, safe.as_deref());
    tell_when_ready(&started, began, safe.is_some());

    let app = App {
        handle: started.handle.clone(),
        reloader: policies.reloader.clone(),
        config: bridge_config,
        watch: policy::watch_report(&policies.watch),
        policy_files: disk,
    };
    let socket = config.socket.clone();
    let reconfigure = Arc::new(Reconfigure::new(args, config, policies.watch.clone()));
    let config_watch = match reconfigure.watch() {
        Ok(watch) => watch,
        Err(why) => return Err(given_up(started, why)),
    };
    let reloader = policies.reloader.clone();
    tokio::spawn(reload_on_hangup(hangup, reloader, reconfigure));
    let handle = started.handle.clone();
    let closing = async move { handle.stopped().await };
    let bridge = tokio::spawn(gpu_bridge::serve(listeners, app, closing));
    notify::ready(match safe {
        Some(_) => SAFE_STATUS,
        None => "serving",
    });
    let stop = tokio::select! {
        () = signals.stop() => Stop::Asked,
        Some(trouble) = trouble.recv() => Stop::Broken(trouble),
        () = started.handle.stopped() => Stop::Fatal,
    };
    notify::stopping();
    drop((broken, config_watch, asset_watch));
    policies.stop();
    let code = take_apart(started, bridge, &mut signals, stop).await;
    if let Some(socket) = &socket {
        listen::remove_socket(socket);
    }
    if let Some(owner) = owner {
        owner.remove();
    }
    code
}

/// A start that failed after the broker had begun: it ends in order, so that the next one is not held for one after
/// a crash.
fn given_up(started: Started, why: String) -> Trouble {
    let trouble = Trouble::from(why);
    match started.broker.stop_because(trouble.summary().to_owned()) {
        Ok(()) => trouble,
        Err(fatal) => Trouble::from(&fatal),
    }
}

/// What only one broker can have.
struct Claim {
    store: Arc<dyn Store>,
    owner: Option<OwnerFile>,
    listeners: Listeners,
    /// Where it listens on TCP, or would.
    address: SocketAddr,
}

/// Takes the store first: who has that has the state directory.
async fn claim(config: &Config) -> Result<Claim, Trouble> {
    // Before the store is checked and made small, which takes its time: somebody may ask who has it.
    let early = own_unless_owned(config);
    let store = open_store(config)?;
    let owner = own(config, Vec::new()).or(early);
    let listeners = listen::open(config).await?;
    let address = listeners.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok());
    let address = address.unwrap_or(config.listen);
    let owner = own(config, listen::addresses(config, address)).or(owner);
    Ok(Claim {
        store,
        owner,
        listeners,
        address,
    })
}

/// Says who has the state directory, where there is one.
fn own(config: &Config, listen: Vec<String>) -> Option<OwnerFile> {
    match config.ephemeral {
        true => None,
        false => OwnerFile::write(&config.state_dir, listen),
    }
}

/// The same where nobody else has it, as far as is known before the store says so.
fn own_unless_owned(config: &Config) -> Option<OwnerFile> {
    let is_free = !config.ephemeral && matches!(Owner::alive(&config.state_dir), Ok(None));
    is_free.then(|| own(config, Vec::new())).flatten()
}

/// Every connection, watched process and store file needs a descriptor; the usual soft limit is 1024.
fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

/// Configuration and policy are looked at on SIGHUP. As often as it comes while that runs, it is once more.
async fn reload_on_hangup(
    mut hangup: Signal,
    reloader: Arc<Reloader>,
    reconfigure: Arc<Reconfigure>,
) {
    while hangup.recv().await.is_some() {
        notify::reloading();
        let (reloader, reconfigure) = (reloader.clone(), reconfigure.clone());
        let looked = tokio::task::spawn_blocking(move || reconfigure.on_hangup(&reloader));
        let status = match looked.await {
            Ok(None) => SAFE_STATUS,
            Ok(Some(true)) => "serving",
            Ok(Some(false)) | Err(_) => {
                "serving; the last reload changed nothing: see `gpu-manager status`"
            }
        };
        notify::ready(status);
    }
}

/// No new grants; who waits is told; what is held stays. A second signal does not wait for that.
async fn take_apart(
    started: Started,
    bridge: JoinHandle<io::Result<()>>,
    signals: &mut Signals,
    stop: Stop,
) -> Result<ExitCode, Trouble> {
    started.broker.begin_stop();
    tokio::select! {
        _ = tokio::time::timeout(STOP_MAX, bridge) => {}
        () = signals.stop() => return Ok(ExitCode::from(130)),
    }
    let leases = started.handle.page(None, usize::MAX);
    let held = leases.iter().filter(|lease| lease.held().is_some()).count();
    let broker = started.broker;
    let stopped = match &stop {
        Stop::Broken(trouble) => broker.stop_because(trouble.summary().to_owned()),
        Stop::Asked | Stop::Fatal => broker.stop(),
    };
    match (stop, stopped) {
        (_, Err(fatal)) => Err(Trouble::from(&fatal)),
        (Stop::Broken(trouble), Ok(())) => Err(trouble),
        (Stop::Fatal, Ok(())) => Err("the loop ended by itself".to_owned().into()),
        (Stop::Asked, Ok(())) => {
            match held {
                1 => eprintln!("stopped; 1 lease stays held"),
                _ => eprintln!("stopped; {held} leases stay held"),
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn bridge_config(
    config: &Config,
    assets: Option<Assets>,
    notes: Warnings,
    safe_start: Option<String>,
) -> Result<gpu_bridge::Config, String> {
    let origins = config
        .allowed_origins
        .iter()
        .map(|origin| origin.parse::<Origin>());
    let secrets = match config.ephemeral {
        true => Secrets::ephemeral(),
        false => Secrets::open(&config.state_dir).map_err(|error| error.to_string())?,
    };
    Ok(gpu_bridge::Config {
        dev: config.dev,
        allowed_hosts: Vec::new(),
        allowed_origins: origins
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?,
        admin_group: ADMIN_GROUP.to_owned(),
        secrets,
        state_dir: (!config.ephemeral).then(|| config.state_dir.clone()),
        policy_paths: config.policy_roots.clone(),
        overrides: policy::shown_overrides(config)?,
        watch_reason: config.hot_reload_reason.to_owned(),
        warnings: notes,
        safe_start,
        assets,
        limits: gpu_bridge::Limits::default(),
    })
}

fn open_store(config: &Config) -> Result<Arc<dyn Store>, Trouble> {
    let id = StoreId::from_bits(getrandom::u64().map_err(|error| error.to_string())?);
    if config.ephemeral {
        return Ok(Arc::new(MemoryStore::new(id)));
    }
    let path = config.state_dir.join(STORE_FILE);
    let store = RedbStore::open(&path, id).map_err(|error| match &error {
        OpenError::InUse { .. } => {
            let owner = offline::owner_of(&config.state_dir).unwrap_or_default();
            Trouble::in_use(format!("{error}{owner}\nhint: {}", error.hint()))
        }
        _ => Trouble::from(error),
    })?;
    if let Some(done) = store.compacted() {
        let (before, after) = (Bytes(done.before_bytes), Bytes(done.after_bytes));
        tracing::info!("the store was mostly empty: {before} became {after}");
    }
    Ok(match config.two_phase_commits {
        true => Arc::new(store.with_two_phase_commits()),
        false => Arc::new(store),
    })
}

fn make_private(dir: &Path) -> Result<(), Trouble> {
    let shown = dir.display();
    let unusable = |error: io::Error| {
        Trouble::store_unusable(format!(
            "state directory `{shown}` cannot be used: {error}\nhint: name another with `--state-dir`"
        ))
    };
    if !dir.exists() {
        fs::create_dir_all(dir).map_err(unusable)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
    }
    Ok(())
}

fn start_broker(
    policy: StartPolicy,
    store: Arc<dyn Store>,
    read_now: ReadNow,
    safe: Option<&str>,
) -> Result<Started, Trouble> {
    let boot_id = gpu_broker::boot_id().map_err(|error| format!("no boot id: {error}"))?;
    let config = gpu_broker::Config {
        store,
        clock: Arc::new(BootClock),
        processes: Arc::new(HostProcesses::of_boot(boot_id.clone())),
        boot_id,
        policy,
        introduction: introduction(safe),
    };
    let started = match safe {
        Some(why) => Broker::resume(
            config,
            gpu_broker::Signals::Refuse(format!(
                "the broker started safe and signals nobody: {why}"
            )),
        ),
        None => Broker::start(config, Box::new(move || read_now.ask())),
    };
    Ok(started?)
}

/// How the history names this broker.
fn introduction(safe: Option<&str>) -> String {
    let name = concat!("gpu-manager ", env!("CARGO_PKG_VERSION"));
    match safe {
        Some(why) => format!("{name}, safe ({why}),"),
        None => name.to_owned(),
    }
}

fn start_devices(
    config: &Config,
    started: &Started,
    (wanted, broken): (std::sync::mpsc::Receiver<()>, mpsc::Sender<Trouble>),
    notes: Warnings,
) -> Result<(), String> {
    let this = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let devices = Devices {
        probe: Probe::new(config.devices.clone(), ProbeCommand::new(this, ["probe"])),
        handle: started.handle.clone(),
        poll: config.device_poll,
        wanted,
        notes,
    };
    let lock_dir = env::var_os(LOCK_DIR_VARIABLE).map_or(PathBuf::from(LOCK_DIR), PathBuf::from);
    let refused = move |error: gpu_device::LockError| drop(broken.blocking_send(locked(&error)));
    let started = devices.start(&lock_dir, refused);
    started.map_err(|error| format!("no thread: {error}"))
}

fn locked(error: &gpu_device::LockError) -> Trouble {
    match error {
        gpu_device::LockError::Taken { .. } => Trouble::in_use(format!(
            "{error}\nhint: one broker per set of devices; stop the other one first"
        )),
        gpu_device::LockError::Unusable { .. } => Trouble::from(format!(
            "{error}\nhint: without its locks two brokers could grant one device: let this user write there"
        )),
    }
}

/// Who wants the process to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
