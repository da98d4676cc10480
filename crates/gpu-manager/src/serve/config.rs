//! `gpu-manager.toml`, its environment and the flags over it: what needs a restart to change.

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpu_api::{Bytes, Span};
use gpu_device::SimulatedDevice;
use serde::Deserialize;
use toml::{Table, Value};

use crate::cli::args::ServeArgs;

const ENV_PREFIX: &str = "GPU_MANAGER_CONFIG__";
const LISTEN_DEFAULT: &str = "127.0.0.1:8080";
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// A save that never gets quiet is read after this long.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Everything that a broker is started with.
#[derive(Debug)]
pub(super) struct Config {
    /// The file that it is from, if there is one.
    pub(super) file: Option<PathBuf>,
    pub(super) dev: bool,
    pub(super) ephemeral: bool,
    pub(super) listen: SocketAddr,
    pub(super) socket: Option<PathBuf>,
    pub(super) state_dir: PathBuf,
    /// Empty: no policy directory exists, and the built-in policy is used.
    pub(super) policy_roots: Vec<PathBuf>,
    pub(super) policy_sets: Vec<String>,
    /// Whether saved policy files are applied, as far as configuration says so.
    pub(super) hot_reload: bool,
    /// Who decided that.
    pub(super) hot_reload_reason: &'static str,
    /// Whether it was said for this start, and so goes before what was switched at run time.
    pub(super) hot_reload_is_said: bool,
    pub(super) devices: gpu_device::Config,
    pub(super) device_poll: Duration,
    pub(super) watch: WatchSection,
    /// Files of the page that are served instead of the built-in ones, in dev mode.
    pub(super) assets: Vec<PathBuf>,
    pub(super) allowed_origins: Vec<String>,
    /// Whether a start after several crashes is a safe one.
    pub(super) safe_start: bool,
    /// Whether each commit is synced twice, so that damage to the last one is found out.
    pub(super) two_phase_commits: bool,
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    listen: Option<String>,
    socket: Option<PathBuf>,
    policy_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    hot_reload: HotReload,
    safe_start: bool,
    two_phase_commits: bool,
    devices: DevicesSection,
    simulated_device: Vec<SimulatedSection>,
    watch: WatchSection,
    http: HttpSection,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DevicesSection {
    nvml: bool,
    nvml_library: PathBuf,
    wgpu: bool,
    allow_cpu_adapters: bool,
    poll: Span,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SimulatedSection {
    id: String,
    name: String,
    memory: Bytes,
}

/// `[watch]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WatchSection {
    pub(super) reload_delay: Span,
    pub(super) poll: Span,
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) log_only: Vec<String>,
    /// Directories with files of the page, in dev mode.
    assets: Vec<PathBuf>,
}

/// `hot_reload`: whether saved policy files are applied.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(from = "HotReloadWord")]
enum HotReload {
    /// Where only this host can connect.
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum HotReloadWord {
    Switch(bool),
    Word(AutoWord),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AutoWord {
    Auto,
}

impl From<HotReloadWord> for HotReload {
    fn from(word: HotReloadWord) -> Self {
        match word {
            HotReloadWord::Switch(true) => Self::Always,
            HotReloadWord::Switch(false) => Self::Never,
            HotReloadWord::Word(AutoWord::Auto) => Self::Auto,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HttpSection {
    allowed_origins: Vec<String>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            listen: None,
            socket: None,
            policy_dir: None,
            state_dir: None,
            hot_reload: HotReload::default(),
            safe_start: true,
            two_phase_commits: false,
            devices: DevicesSection::default(),
            simulated_device: Vec::new(),
            watch: WatchSection::default(),
            http: HttpSection::default(),
        }
    }
}

impl Default for DevicesSection {
    fn default() -> Self {
        let config = gpu_device::Config::default();
        Self {
            nvml: config.nvml,
            nvml_library: config.nvml_library,
            wgpu: config.wgpu,
            allow_cpu_adapters: config.allow_cpu_adapters,
            poll: Span::from_secs(1),
        }
    }
}

impl Default for WatchSection {
    fn default() -> Self {
        Self {
            reload_delay: Span::from_ms(200),
            poll: Span::from_secs(2),
            include: vec!["**/*.toml".to_owned()],
            exclude: Vec::new(),
            log_only: vec!["**/*.md".to_owned()],
            assets: Vec::new(),
        }
    }
}

impl Config {
    /// What the file, the environment and `args` say together; the later wins.
    ///
    /// # Errors
    /// A text for people, with a hint.
    pub(super) fn load(args: &ServeArgs) -> Result<Self, String> {
        let path = args.config.clone().or_else(installed_config);
        let file = File::read(path.as_deref())?;
        let base = path
            .as_deref()
            .and_then(Path::parent)
            .unwrap_or(Path::new(""));
        let in_base = |dir: PathBuf| base.join(dir);
        let listen = listen_address(args, file.listen.as_deref())?;
        let mut watch = file.watch;
        watch.reload_delay = args.reload_delay.unwrap_or(watch.reload_delay);
        let (hot_reload, hot_reload_reason) = hot_reload(args, file.hot_reload, listen);
        let assets = watch
            .assets
            .iter()
            .map(|dir| absolute(in_base(dir.clone())));
        let assets = assets.filter(|_| args.dev).collect();
        let socket = args.socket.clone().or(file.socket.map(in_base));
        let policy_roots = policy_roots(args, file.policy_dir.map(in_base));
        let state_dir = args.state_dir.clone().or(file.state_dir.map(in_base));
        Ok(Self {
            assets,
            file: path.clone(),
            dev: args.dev,
            ephemeral: args.ephemeral,
            listen,
            socket: socket.or_else(default_socket).map(absolute),
            state_dir: absolute(state_dir.unwrap_or_else(default_state_dir)),
            policy_roots: policy_roots.into_iter().map(absolute).collect(),
            policy_sets: args.set.clone(),
            hot_reload,
            hot_reload_reason,
            hot_reload_is_said: args.no_reload || args.hot_reload.is_some(),
            device_poll: file.devices.poll.as_duration(),
            devices: device_config(file.devices, file.simulated_device, args.dev),
            watch,
            allowed_origins: file.http.allowed_origins,
            safe_start: file.safe_start,
            two_phase_commits: file.two_phase_commits,
        })
    }

    /// The keys that differ in `wanted` and that a running broker cannot take over.
    pub(super) fn needs_restart(&self, wanted: &Self) -> Vec<&'static str> {
        let differs = [
            ("listen", self.listen != wanted.listen),
            ("socket", self.socket != wanted.socket),
            ("state_dir", self.state_dir != wanted.state_dir),
            ("policy_dir", self.policy_roots != wanted.policy_roots),
            ("hot_reload", self.hot_reload != wanted.hot_reload),
            ("safe_start", self.safe_start != wanted.safe_start),
            (
                "two_phase_commits",
                self.two_phase_commits != wanted.two_phase_commits,
            ),
            (
                "[devices]",
                (&self.devices, self.device_poll) != (&wanted.devices, wanted.device_poll),
            ),
            ("[watch] assets", self.assets != wanted.assets),
            (
                "[http] allowed_origins",
                self.allowed_origins != wanted.allowed_origins,
            ),
        ];
        let changed = differs.into_iter().filter(|(_, differs)| *differs);
        changed.map(|(key, _)| key).collect()
    }

    /// The watch of the policy files; `None` if there is nothing to watch.
    pub(super) fn policy_watch(&self) -> Option<gpu_watch::Config> {
        if self.policy_roots.is_empty() {
            return None;
        }
        Some(gpu_watch::Config {
            include: self.watch.include.clone(),
            exclude: self.watch.exclude.clone(),
            log_only: self.watch.log_only.clone(),
            reload_delay: self.watch.reload_delay.as_duration(),
            max_wait: MAX_WAIT.max(self.watch.reload_delay.as_duration()),
            poll: self.watch.poll.as_duration(),
            ..gpu_watch::Config::new(self.policy_roots.iter().cloned())
        })
    }
}

impl File {
    /// The file at `path`, if any, with the environment over it.
    fn read(path: Option<&Path>) -> Result<Self, String> {
        let mut table = path.map_or_else(|| Ok(Table::new()), read_table)?;
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else {
                continue;
            };
            let text = value
                .to_str()
                .ok_or_else(|| format!("`{name}` is not UTF-8"))?;
            set(&mut table, name, &name[ENV_PREFIX.len()..], text)?;
        }
        let shown = path.unwrap_or(Path::new("gpu-manager.toml")).display();
        Self::deserialize(table).map_err(|error| {
            let error = error.to_string();
            format!("`{shown}` is not valid: {}", error.trim_end())
        })
    }
}

fn read_table(path: &Path) -> Result<Table, String> {
    let shown = path.display();
    let unread = |error: io::Error| format!("configuration `{shown}` cannot be read: {error}");
    if fs::metadata(path).map_err(unread)?.len() > CONFIG_BYTES_MAX {
        return Err(format!(
            "configuration `{shown}` is larger than {CONFIG_BYTES_MAX} bytes"
        ));
    }
    let text = fs::read_to_string(path).map_err(unread)?;
    // Read as the typed file first: only that reading knows line and column of a wrong key.
    if let Err(error) = toml::from_str::<File>(&text) {
        return Err(format!("`{shown}` is not valid\n{error}"));
    }
    text.parse()
        .map_err(|error| format!("`{shown}` is no TOML\n{error}"))
}

/// Puts the value of an environment variable at its place: TOML if it is, text if it is not.
fn set(table: &mut Table, name: &str, key: &str, value: &str) -> Result<(), String> {
    let key = key.to_ascii_lowercase();
    let (sections, last) = key.rsplit_once("__").unwrap_or(("", &key));
    let mut at = table;
    for part in sections.split("__").filter(|part| !part.is_empty()) {
        let entry = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = entry
            .as_table_mut()
            .ok_or_else(|| format!("`{name}`: `{part}` is no section"))?;
    }
    let typed = format!("v = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"));
    at.insert(
        last.to_owned(),
        typed.unwrap_or_else(|| Value::String(value.to_owned())),
    );
    Ok(())
}

fn listen_address(args: &ServeArgs, configured: Option<&str>) -> Result<SocketAddr, String> {
    let text = args
        .listen
        .as_deref()
        .or(configured)
        .unwrap_or(LISTEN_DEFAULT);
    let address = text
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| format!("`{text}` is no address\nhint: `--listen 127.0.0.1:8080`"))?;
    if address.ip().is_unspecified() {
        return Err(format!(
            "`{text}` listens on every network\nhint: name one address; for other hosts use an ssh tunnel"
        ));
    }
    if args.dev && !address.ip().is_loopback() {
        return Err(format!(
            "`{text}` is not loopback, and dev mode asks nobody for a token"
        ));
    }
    Ok(address)
}

/// Whether saved policy files are applied, and why.
fn hot_reload(args: &ServeArgs, configured: HotReload, listen: SocketAddr) -> (bool, &'static str) {
    match (args.hot_reload, configured) {
        _ if args.no_reload => (false, "--no-reload"),
        (Some(wanted), _) => (wanted, "--hot-reload"),
        (None, HotReload::Always) => (true, "`hot_reload` of the configuration"),
        (None, HotReload::Never) => (false, "`hot_reload` of the configuration"),
        (None, HotReload::Auto) if listen.ip().is_loopback() => {
            (true, "only this host can connect")
        }
        (None, HotReload::Auto) => (false, "other hosts can connect"),
    }
}

fn installed_config() -> Option<PathBuf> {
    let user =
        xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("gpu-manager/gpu-manager.toml"));
    let system = PathBuf::from("/etc/gpu-manager/gpu-manager.toml");
    [user, Some(system)]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
}

fn policy_roots(args: &ServeArgs, configured: Option<PathBuf>) -> Vec<PathBuf> {
    if !args.policy_dir.is_empty() {
        return args.policy_dir.clone();
    }
    let user = xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("gpu-manager/policies"));
    let places = [
        user,
        Some(PathBuf::from("/etc/gpu-manager/policies")),
        Some(PathBuf::from("policies")),
    ];
    let usual = places
        .into_iter()
        .flatten()
        .find(|path| path.join("default.toml").exists());
    configured.or(usual).into_iter().collect()
}

pub(crate) fn default_state_dir() -> PathBuf {
    let user = || xdg("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("gpu-manager"));
    let system = PathBuf::from("/var/lib/gpu-manager");
    if is_root() {
        system
    } else {
        user().unwrap_or(system)
    }
}

fn default_socket() -> Option<PathBuf> {
    let runtime = match is_root() {
        true => Some(PathBuf::from("/run")),
        false => std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
    };
    runtime.map(|dir| dir.join("gpu-manager/gpu-manager.sock"))
}

/// Other shells, with other working directories, are told these paths.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn xdg(variable: &str, below_home: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute());
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(below_home)))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn device_config(
    section: DevicesSection,
    simulated: Vec<SimulatedSection>,
    dev: bool,
) -> gpu_device::Config {
    let simulated = simulated.into_iter().map(|device| SimulatedDevice {
        id: device.id,
        name: device.name,
        memory_bytes: device.memory.0,
    });
    gpu_device::Config {
        nvml: section.nvml,
        nvml_library: section.nvml_library,
        wgpu: section.wgpu,
        allow_cpu_adapters: section.allow_cpu_adapters || dev,
        simulated: simulated.collect(),
        ..gpu_device::Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::File;

    #[test]
    fn the_reference_is_a_configuration() {
        let page = include_str!("../../../../docs/configuration.md");
        let sample = page.split("```toml\n").nth(1);
        let sample = sample.and_then(|rest| rest.split("```").next());
        let file: File = toml::from_str(sample.expect("a sample")).expect("it is one");
        assert_eq!(file.simulated_device[0].id, "sim-0");
    }
}
