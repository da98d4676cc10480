//! A host in a temporary directory: configuration, policy files, state, cards. It outlives its brokers.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::broker::Broker;
use crate::process::{Process, Ran};

/// The policy of a host on which nobody said otherwise: every byte can be granted, and what was taken back by
/// force is free again at once.
pub const POLICY: &str = "schema = 1\n\
    [placement]\n\
    reserve = \"0B\"\n\
    [reclaim]\n\
    delay = \"200ms\"\n";

/// The setting `safe_start`, in the environment.
const SAFE_START: &str = "GPU_MANAGER_CONFIG__SAFE_START";

/// Where brokers are started.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
    cards: String,
    settings: String,
    flags: Vec<String>,
    lock_dir: PathBuf,
    environment: Vec<(String, String)>,
    under: Vec<String>,
    nvml: bool,
    wgpu: bool,
}

impl Host {
    /// A host in dev mode with `count` simulated cards of 24 GiB, `sim-0` and so on, under [`POLICY`].
    pub fn with_cards(count: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let card =
            |n| format!("[[simulated_device]]\nid = 'sim-{n}'\nname = 'Sim'\nmemory = '24GiB'\n");
        let host = Self {
            lock_dir: dir.path().join("locks"),
            dir,
            cards: (0..count).map(card).collect(),
            settings: String::new(),
            flags: vec!["--dev".to_owned()],
            environment: vec![(SAFE_START.to_owned(), "false".to_owned())],
            under: Vec::new(),
            nvml: false,
            wgpu: false,
        };
        fs::create_dir(host.policy_dir()).expect("the directory is ours");
        host.write_policy(POLICY);
        host
    }

    /// Without dev mode: a token is needed.
    #[must_use]
    pub fn guarded(mut self) -> Self {
        self.flags.retain(|flag| flag != "--dev");
        self
    }

    /// Where brokers that were killed several times start safe; elsewhere they are killed as often as a story wants.
    #[must_use]
    pub fn safe_starts(self) -> Self {
        self.env(SAFE_START, "true")
    }

    /// With brokers that are started by another program, which gets these arguments before theirs.
    #[must_use]
    pub fn under(mut self, program: &[&str]) -> Self {
        self.under = program.iter().map(ToString::to_string).collect();
        self
    }

    /// With brokers that are started as usual again.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.under.clear();
        self
    }

    /// With more arguments of `serve`.
    #[must_use]
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// With a variable in the environment of its brokers.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With more of `gpu-manager.toml`.
    #[must_use]
    pub fn settings(mut self, toml: &str) -> Self {
        self.settings.push_str(toml);
        self
    }

    /// With another policy than [`POLICY`].
    #[must_use]
    pub fn policy(self, toml: &str) -> Self {
        self.write_policy(toml);
        self
    }

    /// With the NVIDIA cards that this file of fake-nvml describes.
    #[must_use]
    pub fn nvml(mut self, toml: &str) -> Self {
        self.nvml = true;
        self.write_nvml(toml);
        self
    }

    /// With the adapters that Vulkan finds on this machine.
    #[must_use]
    pub fn wgpu(mut self) -> Self {
        self.wgpu = true;
        self
    }

    /// On the same machine as `other`, although its files are elsewhere.
    #[must_use]
    pub fn beside(mut self, other: &Host) -> Self {
        self.lock_dir.clone_from(&other.lock_dir);
        self
    }

    /// Everything of this host.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the store and the secrets are.
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// Where policy files are.
    pub fn policy_dir(&self) -> PathBuf {
        self.dir().join("policies")
    }

    /// The policy file that is there from the start.
    pub fn policy_file(&self) -> PathBuf {
        self.policy_dir().join("default.toml")
    }

    /// The Unix socket of the broker.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("gpu-manager.sock")
    }

    /// Saves the policy as an editor does that writes in place.
    pub fn write_policy(&self, toml: &str) {
        fs::write(self.policy_file(), toml).expect("the directory is ours");
    }

    /// Saves the policy as an editor does that writes beside it and renames.
    pub fn rename_policy(&self, toml: &str) {
        let draft = self.policy_dir().join("4913~");
        fs::write(&draft, toml).expect("the directory is ours");
        fs::rename(draft, self.policy_file()).expect("both are in one directory");
    }

    /// What the fake driver says from now on.
    pub fn write_nvml(&self, toml: &str) {
        let draft = self.dir().join("nvml.draft");
        fs::write(&draft, toml).expect("the directory is ours");
        fs::rename(draft, self.nvml_file()).expect("both are in one directory");
    }

    /// Starts a broker and waits until it grants.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(&self) -> Broker {
        Broker::ready(self.serve(&[]), &self.socket())
    }

    /// Starts a broker and waits until it has started safe, to grant nothing.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_safe(&self) -> Broker {
        Broker::safe(self.serve(&[]), &self.socket())
    }

    /// Starts a broker that may not come up, with these flags instead of or beside the usual ones.
    pub fn serve(&self, more: &[&str]) -> Process {
        self.serve_in(&[], more)
    }

    /// [`Self::serve`], with more variables in its environment.
    pub fn serve_in(&self, environment: &[(&str, &str)], more: &[&str]) -> Process {
        self.write_config("");
        let mut command = self.command_under(&self.under);
        command.arg("serve");
        let usual = [
            ("--listen", PathBuf::from("127.0.0.1:0")),
            ("--socket", self.socket()),
            ("--state-dir", self.state_dir()),
            ("--policy-dir", self.policy_dir()),
            ("--config", self.config_file()),
        ];
        for (flag, value) in usual.iter().filter(|(flag, _)| !more.contains(flag)) {
            command.arg(flag).arg(value);
        }
        command
            .args(&self.flags)
            .args(more)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(environment.iter().copied());
        Process::start(command, self.dir())
    }

    /// Starts the command line, which finds the broker of this host.
    pub fn cli(&self, args: &[&str]) -> Process {
        let mut command = self.command();
        command.args(args).env("GPU_MANAGER_URL", self.url());
        Process::start(command, self.dir())
    }

    /// What comes of the command line.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.cli(args).wait()
    }

    /// A process that can hold a lease.
    pub fn sleeper(&self) -> Process {
        self.program(&["sleep", "1000"])
    }

    /// A process that can hold a lease and does not mind being asked to stop.
    pub fn stubborn(&self) -> Process {
        let script = "trap '' TERM; echo up; while :; do sleep 0.1; done";
        let process = self.program(&["sh", "-c", script]);
        process.until_stdout("up");
        process
    }

    fn program(&self, words: &[&str]) -> Process {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Process::start(command, self.dir())
    }

    /// The broker's address for the command line: its socket.
    pub fn url(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// The program with nothing of this machine's environment.
    pub fn command(&self) -> Command {
        self.command_under(&[])
    }

    fn command_under(&self, under: &[String]) -> Command {
        let mut words = under.iter().map(PathBuf::from).chain([program()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir())
            .env("GPU_MANAGER_LOCK_DIR", &self.lock_dir)
            .env("FAKE_NVML_CONFIG", self.nvml_file())
            .current_dir(self.dir());
        command
    }

    /// The configuration that brokers of this host are started with.
    pub fn config_file(&self) -> PathBuf {
        self.dir().join("gpu-manager.toml")
    }

    /// Saves the configuration with `more` before what it says anyhow.
    pub fn write_config(&self, more: &str) {
        let text = format!("{more}\n{}", self.config());
        fs::write(self.config_file(), text).expect("the directory is ours");
    }

    fn nvml_file(&self) -> PathBuf {
        self.dir().join("nvml.toml")
    }

    fn config(&self) -> String {
        let (settings, cards, wgpu) = (&self.settings, &self.cards, self.wgpu);
        let library = match self.nvml {
            true => fake_nvml::built_library(),
            false => self.dir().join("no-such-library.so"),
        };
        let library = library.display();
        format!(
            "{settings}\n[devices]\nnvml_library = '{library}'\nwgpu = {wgpu}\npoll = '200ms'\n{cards}"
        )
    }
}

/// The program, where cargo puts it.
///
/// # Panics
/// If it was not built: `cargo nextest run --workspace` does, because the package `gpu-manager` has an
/// integration test; `cargo build -p gpu-manager` does too.
pub fn program() -> PathBuf {
    let test = env::current_exe().expect("the path of the running executable is known");
    let profile = test.parent().and_then(Path::parent);
    let program = profile
        .expect("tests are in target/<profile>/deps")
        .join("gpu-manager");
    assert!(
        program.exists(),
        "no `{}`: run `cargo build -p gpu-manager` first, or all tests with `scripts/test.sh`",
        program.display()
    );
    program
}
