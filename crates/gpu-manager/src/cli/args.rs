//! The arguments as types.

mod policy;

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use gpu_api::{Bytes, DeviceCount, Since, Span, Text, Ttl, Until, UsageBy};

use crate::cli::exit;

/// A broker for the GPUs of this machine: leases, policies, and a way out when something is stuck.
#[derive(Debug, Parser)]
#[command(name = "gpu-manager", version, max_term_width = 110, after_help = exit::HELP)]
pub(crate) struct Cli {
    /// Reload the policy of the broker that answers, and say what changed. If there is none, and this is a
    /// terminal, start one in the foreground with hot reload on.
    #[arg(long)]
    pub(crate) hot_reload: bool,

    #[command(flatten)]
    pub(crate) broker: BrokerArgs,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Where the broker is, and who is asking.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Broker")]
pub(crate) struct BrokerArgs {
    /// The broker: `http://HOST:PORT` or `unix:/PATH`. Otherwise its socket on this host, else
    /// http://127.0.0.1:8080.
    #[arg(
        long,
        global = true,
        env = "GPU_MANAGER_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) url: Option<String>,

    /// The token to show it. Its Unix socket needs none.
    #[arg(
        long,
        global = true,
        env = "GPU_MANAGER_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the broker.
    Serve(ServeArgs),
    /// Run a command under a lease: wait for it, set the environment, give it back afterwards.
    Run(RunArgs),
    /// List the devices, what is granted on them and what is free.
    Devices(JsonArgs),
    /// Show the broker at a glance.
    Status(StoredArgs),
    /// List the leases.
    Leases(LeasesArgs),
    /// List who waits, and why.
    Queue(JsonArgs),
    /// Explain why a request waits, or what became of a lease.
    Why(WhyArgs),
    /// Ask for a lease without running anything under it.
    Acquire(AcquireArgs),
    /// Send one heartbeat for a lease.
    Renew(LeaseArgs),
    /// Give a lease back; with --emergency, free what is stuck.
    Release(ReleaseArgs),
    /// Ask the holder of a lease, or all of a device, to stop by a deadline.
    Drain(DrainArgs),
    /// End a lease by force.
    Revoke(RevokeArgs),
    /// Make no new grants on a device.
    Cordon(CordonArgs),
    /// Make grants on a device again.
    Uncordon(UncordonArgs),
    /// Believe that the quarantined memory of a device is free.
    ClearQuarantine(UncordonArgs),
    /// Check, plan, apply, edit, explain and show policies.
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Reload the policy now, or see and switch the policy watch. Never starts a broker.
    #[command(after_help = exit::LOADING_HELP)]
    Reload(ReloadArgs),
    /// Show which policy files are watched, how, and what was last seen.
    Watches(JsonArgs),
    /// Follow what happens.
    Events(EventsArgs),
    /// List what happened, from the records of the broker, whether it runs or not.
    History(HistoryArgs),
    /// Add up who held what for how long.
    Usage(UsageArgs),
    /// Look into the store of a broker that is stopped, or make it small.
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Show or replace the token that TCP clients need.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Print the completion script of a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Become a command when told to; what `run` starts.
    #[command(hide = true)]
    Launch {
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Talk to the drivers; what `serve` starts.
    #[command(hide = true)]
    Probe {
        /// For the broker that starts it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    /// For development: loopback callers need no token and may do everything, edits apply at once.
    #[arg(long, env = "GPU_MANAGER_DEV", value_parser = BoolishValueParser::new(),
          num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true)]
    pub(crate) dev: bool,

    /// Load a policy file as soon as it is saved. On by itself where only this host can connect.
    #[arg(long, env = "GPU_MANAGER_HOT_RELOAD", value_parser = BoolishValueParser::new(),
          num_args = 0..=1, require_equals = true, default_missing_value = "true",
          hide_possible_values = true)]
    pub(crate) hot_reload: Option<bool>,

    /// Load policy files when told to only.
    #[arg(long)]
    pub(crate) no_reload: bool,

    /// How long a policy file must be quiet before it is loaded.
    #[arg(long, env = "GPU_MANAGER_RELOAD_DELAY", value_name = "TIME")]
    pub(crate) reload_delay: Option<Span>,

    /// Check the configuration and the policy, and exit.
    #[arg(long)]
    pub(crate) check: bool,

    /// Keep nothing on disk: leases die with the broker.
    #[arg(long)]
    pub(crate) ephemeral: bool,

    /// The TCP address [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,

    /// The path of the Unix socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Policy files: a directory, a glob or a file. Can be repeated.
    #[arg(long, value_name = "DIR")]
    pub(crate) policy_dir: Vec<PathBuf>,

    /// Where leases and the token are kept.
    #[arg(long, value_name = "DIR", conflicts_with = "ephemeral")]
    pub(crate) state_dir: Option<PathBuf>,

    /// A policy setting that survives every reload, such as `placement.strategy=spread`. Can be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,

    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// What is asked for; the same for `run` and `acquire`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct WantArgs {
    /// How many devices, all or nothing [default: 1, or one for each --gpu]
    #[arg(long, visible_alias = "devices", value_name = "N", value_parser = device_count)]
    pub(crate) gpus: Option<DeviceCount>,

    /// Only this device: an id, its beginning, or an index. Can be repeated.
    #[arg(
        long,
        value_name = "ID",
        value_delimiter = ',',
        conflicts_with = "select"
    )]
    pub(crate) gpu: Vec<String>,

    /// Memory of each device, such as 12GiB. Without it the whole device is asked for.
    #[arg(
        long,
        visible_alias = "memory",
        value_name = "SIZE",
        value_parser = size,
        conflicts_with = "exclusive"
    )]
    pub(crate) gpu_memory: Option<Bytes>,

    /// The whole device, alone.
    #[arg(long)]
    pub(crate) exclusive: bool,

    /// The class of the policy.
    #[arg(long, value_name = "CLASS")]
    pub(crate) class: Option<Text<64>>,

    /// A name for people [default: the command's, or the user's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<Text<128>>,

    /// The tenant to ask for.
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant: Option<Text<64>>,

    /// Longest time between heartbeats, 1s to 1h.
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    pub(crate) ttl: Option<Ttl>,

    /// Longest time to hold the lease.
    #[arg(long, value_name = "TIME")]
    pub(crate) max_hold: Option<Span>,

    /// Time that the work needs to stop when it is asked to.
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_grace: Option<Span>,

    /// Longest time to wait; exits with 124 when it is over [default: run waits as long as it takes]
    #[arg(long, value_name = "TIME")]
    pub(crate) wait_timeout: Option<Span>,

    /// Which devices may serve, such as "device.id == 'GPU-1'".
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) select: Option<Text<2048>>,

    /// Why; others see it.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<Text<256>>,

    /// A word for rules and people, such as ticket=ABC-123. Can be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label: Vec<(Text<64>, Text<256>)>,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) want: WantArgs,

    /// What to do when the broker comes back and the lease is gone.
    #[arg(long, value_enum, default_value_t = OnLost::Continue, value_name = "WHAT")]
    pub(crate) on_lost: OnLost,

    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// What becomes of the child when its lease is lost without anybody wanting it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLost {
    /// It runs on, without a lease.
    Continue,
    /// It is asked to stop, and killed ten seconds later.
    Stop,
}

#[derive(Args, Debug)]
pub(crate) struct AcquireArgs {
    #[command(flatten)]
    pub(crate) want: WantArgs,

    /// Stay, keep the lease by heartbeats, and give it back at the end (Ctrl-C).
    #[arg(long)]
    pub(crate) hold: bool,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct JsonArgs {
    /// Print JSON for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StoredArgs {
    /// Where to look for the store if no broker answers.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct LeasesArgs {
    /// Those that ended in the last 24 hours too.
    #[arg(long, short)]
    pub(crate) all: bool,

    #[command(flatten)]
    pub(crate) stored: StoredArgs,
}

#[derive(Args, Debug)]
pub(crate) struct WhyArgs {
    /// The lease, or the name of its holder if only one lease has it.
    #[arg(value_name = "LEASE")]
    pub(crate) lease: String,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct LeaseArgs {
    /// The lease.
    #[arg(value_name = "ID", env = gpu_api::ENV_LEASE)]
    pub(crate) id: String,

    /// Its secret, if another user or a page acquired it.
    #[arg(long, env = ENV_SECRET, hide_env_values = true, value_name = "SECRET")]
    pub(crate) secret: Option<String>,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ReleaseArgs {
    /// The lease [default: the one in GPU_MANAGER_LEASE, unless --emergency]
    #[arg(value_name = "ID", conflicts_with_all = ["all", "device", "stuck", "lease"])]
    pub(crate) id: Option<Text<64>>,

    /// Its secret, if another user or a page acquired it.
    #[arg(long, env = ENV_SECRET, hide_env_values = true, value_name = "SECRET")]
    pub(crate) secret: Option<String>,

    /// End leases of others that are stuck. Without a selection it lists what would end, and asks.
    #[arg(long)]
    pub(crate) emergency: bool,

    /// Every lease, waiters too. Without a terminal it needs --yes or --reason.
    #[arg(long, requires = "emergency", conflicts_with_all = ["device", "lease", "stuck"])]
    pub(crate) all: bool,

    /// The leases on this device: an id, its beginning, or an index. Can be repeated.
    #[arg(long, requires = "emergency", value_name = "ID", value_delimiter = ',')]
    pub(crate) device: Vec<String>,

    /// This lease. Can be repeated.
    #[arg(long, requires = "emergency", value_name = "ID", value_delimiter = ',')]
    pub(crate) lease: Vec<Text<64>>,

    /// The leases that ended but whose memory does not come back.
    #[arg(long, requires = "emergency")]
    pub(crate) stuck: bool,

    /// For the holders and the log.
    #[arg(long, requires = "emergency", value_name = "TEXT")]
    pub(crate) reason: Option<Text<256>>,

    /// Do not ask.
    #[arg(long, short, requires = "emergency")]
    pub(crate) yes: bool,

    /// Also signal the registered processes of the holders, whatever `[reclaim] signal` says.
    #[arg(long, requires = "emergency")]
    pub(crate) kill: bool,

    /// Also make no new grants on the devices.
    #[arg(long, requires = "emergency")]
    pub(crate) cordon: bool,

    /// Believe that the memory is free without looking.
    #[arg(long, requires = "emergency")]
    pub(crate) force_unsafe: bool,

    /// If a broker of this host lives and does not answer: kill it, then release on its store. What it
    /// granted stays held but for what is released.
    #[arg(long, requires = "emergency")]
    pub(crate) takeover: bool,

    /// Where the store is, if no broker answers [default: the usual place, unless --url or GPU_MANAGER_URL says
    /// which broker is meant]
    #[arg(long, requires = "emergency", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct DrainArgs {
    /// The lease.
    #[arg(
        value_name = "LEASE",
        required_unless_present = "device",
        conflicts_with = "device"
    )]
    pub(crate) lease: Option<String>,

    /// Every lease of this device, which is cordoned: an id, its beginning, or an index.
    #[arg(long, value_name = "ID")]
    pub(crate) device: Option<String>,

    /// Time to stop [default: the policy's]
    #[arg(long, value_name = "TIME")]
    pub(crate) grace: Option<Span>,

    /// For the holders and the log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<Text<256>>,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct RevokeArgs {
    /// The lease.
    #[arg(value_name = "LEASE")]
    pub(crate) lease: String,

    /// For the holder and the log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<Text<256>>,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct CordonArgs {
    /// The device: an id, its beginning, or an index.
    #[arg(value_name = "DEVICE")]
    pub(crate) device: String,

    /// When it lifts by itself: `2h`, or an RFC 3339 timestamp.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Until>,

    /// For people and the log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<Text<256>>,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct UncordonArgs {
    /// The device: an id, its beginning, or an index.
    #[arg(value_name = "DEVICE")]
    pub(crate) device: String,

    /// For the log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<Text<256>>,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ReloadArgs {
    /// Load the plan that waits for a confirmation: its hash, or the beginning of it.
    #[arg(long, group = "what", value_name = "HASH", value_parser = policy::hash)]
    pub(crate) confirm: Option<Text<128>>,

    /// Ask what to do, line by line: check, plan, apply, roll back, show what differs.
    #[arg(long, group = "what", conflicts_with = "json")]
    pub(crate) interactive: bool,

    /// List the last reloads and how long each part of them took.
    #[arg(long, group = "what")]
    pub(crate) history: bool,

    /// Say how the policy watch stands.
    #[arg(long, group = "what")]
    pub(crate) status: bool,

    /// Load policy files as soon as they are saved.
    #[arg(long, group = "what")]
    pub(crate) enable: bool,

    /// Load policy files when told to only.
    #[arg(long, group = "what")]
    pub(crate) disable: bool,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    /// Go on until interrupted; the default, unless --count says otherwise.
    #[arg(long, short)]
    pub(crate) follow: bool,

    /// Begin behind the event of this id.
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<String>,

    /// Stop after this many.
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    pub(crate) count: Option<u64>,

    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Args, Debug)]
pub(crate) struct HistoryArgs {
    /// Of this lease only.
    #[arg(long, value_name = "ID")]
    pub(crate) lease: Option<Text<64>>,

    /// Of this device only, or of leases that held something of it: an id, its beginning, or an index.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<Text<128>>,

    /// Of leases of this user only, or done by it.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<Text<128>>,

    /// Not older than this, such as 2h or 30d, or an RFC 3339 time.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Since>,

    /// The latest of them; 0 for all that are kept.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: usize,

    #[command(flatten)]
    pub(crate) stored: StoredArgs,
}

#[derive(Args, Debug)]
pub(crate) struct UsageArgs {
    /// What the rows are for: some of user, tenant and device, with commas [default: user]
    #[arg(long, value_name = "WHAT")]
    pub(crate) by: Option<UsageBy>,

    /// Since when, such as 12h or 30d, or an RFC 3339 time; from the beginning of that hour. 35 days are kept
    /// [default: 30d]
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Since>,

    #[command(flatten)]
    pub(crate) stored: StoredArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Check that the file is whole, every row is understood, and the books add up; exits with 1 if not.
    Check(StoredArgs),
    /// Print every row as a line of JSON.
    Dump(StateDirArgs),
    /// Make the file as small as its rows.
    Compact(StateDirArgs),
}

#[derive(Args, Debug)]
pub(crate) struct StateDirArgs {
    /// Where the broker keeps its state.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Print the token of the broker of this host.
    Show(TokenArgs),
    /// Replace it; clients that use the old one are refused.
    Rotate(TokenArgs),
}

#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    /// Where the broker keeps its state [default: where the broker that answers says, else the usual place]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// Environment variable with the secret of the lease in [`gpu_api::ENV_LEASE`].
pub(crate) const ENV_SECRET: &str = "GPU_MANAGER_LEASE_SECRET";

impl ServeArgs {
    /// What `gpu-manager --hot-reload` starts: loopback only, with the policy watch on.
    pub(crate) fn for_hot_reload() -> Self {
        let words = [
            "gpu-manager",
            "serve",
            "--hot-reload",
            "--listen",
            "127.0.0.1:8080",
        ];
        match Cli::parse_from(words).command {
            Some(Command::Serve(args)) => args,
            _ => unreachable!("the words say serve"),
        }
    }
}

fn label(text: &str) -> Result<(Text<64>, Text<256>), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("write it as KEY=VALUE, such as ticket=ABC-123")?;
    let key = key.parse().map_err(|error| format!("the key: {error}"))?;
    let value = value
        .parse()
        .map_err(|error| format!("the value: {error}"))?;
    Ok((key, value))
}

fn device_count(text: &str) -> Result<DeviceCount, String> {
    let count: u64 = text
        .parse()
        .map_err(|_| format!("`{text}` is no number of devices"))?;
    count.try_into()
}

/// Nobody who types `8` means eight bytes; programs say bytes in JSON.
fn size(text: &str) -> Result<Bytes, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "`{text}` has no unit: write `{text}GiB` or `{text}MiB`"
        ));
    }
    text.parse()
        .map_err(|error: gpu_api::ParseBytesError| error.to_string())
}

fn ttl(text: &str) -> Result<Ttl, String> {
    let span: Span = text
        .parse()
        .map_err(|error: gpu_api::ParseSpanError| error.to_string())?;
    span.try_into()
}

pub(crate) use policy::{
    ApplyArgs, ConsentArgs, EditArgs, ExplainArgs, OverrideCommand, PolicyCommand,
};

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(words: &str) -> Result<Cli, String> {
        Cli::try_parse_from(words.split_whitespace()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn good_lines_are_taken() {
        for line in [
            "gpu-manager --hot-reload",
            "gpu-manager serve --dev --ephemeral --listen 127.0.0.1:0 --set a.b=c --set d.e=f",
            "gpu-manager serve --hot-reload --policy-dir a --policy-dir b",
            "gpu-manager run --gpus 2 --gpu-memory 12GiB --class batch -- python train.py --gpus 4",
            "gpu-manager run --memory 4g --wait-timeout 5m --on-lost stop -- true",
            "gpu-manager acquire --devices 2 --hold --json",
            "gpu-manager release --emergency --all --yes",
            "gpu-manager release --emergency --device 0,1 --kill",
            "gpu-manager release --emergency --all --yes --takeover --state-dir /var/lib/gpu-manager",
            "gpu-manager release l-000000000000",
            "gpu-manager drain --device 0 --grace 5m",
            "gpu-manager reload --status --json",
            "gpu-manager events -f",
            "gpu-manager policy check a.toml b.toml",
            "gpu-manager policy plan policies",
            "gpu-manager policy apply policies --expect-plan 1a2b3c4d5e6f",
            "gpu-manager policy apply --yes --json",
            "gpu-manager policy rollback",
            "gpu-manager policy rollback 7 --yes",
            "gpu-manager policy edit night.toml",
            "gpu-manager policy diff --json",
            "gpu-manager policy explain --memory 40GiB --class batch --at 18:05",
            "gpu-manager policy override set placement.strategy=spread queue.order=fifo --for 2h",
            "gpu-manager policy override clear",
            "gpu-manager policy override list --json",
            "gpu-manager reload --confirm 1a2b3c4d",
            "gpu-manager reload --interactive",
            "gpu-manager reload --history --json",
            "gpu-manager status --url unix:/run/x.sock",
            "gpu-manager history --user ann --since 2h --limit 0 --json",
            "gpu-manager usage --by user,tenant,device --since 30d",
            "gpu-manager store check --state-dir /var/lib/gpu-manager",
        ] {
            parse(line).expect(line);
        }
    }

    #[test]
    fn mistakes_are_explained() {
        for (line, part) in [
            ("gpu-manager run --memory -1 -- true", "-1"),
            ("gpu-manager run --memory=-1 -- true", "negative"),
            (
                "gpu-manager run --memory 12parsecs -- true",
                "`parsecs` is no unit",
            ),
            ("gpu-manager run --memory 8 -- true", "`8GiB`"),
            ("gpu-manager run --gpus 10000 -- true", "1 to 64"),
            ("gpu-manager run --ttl 30 -- true", "no unit"),
            ("gpu-manager run --ttl 2h -- true", "1s to 1h"),
            (
                "gpu-manager run --memory 1g --exclusive -- true",
                "cannot be used with",
            ),
            (
                "gpu-manager run --gpu 0 --select x -- true",
                "cannot be used with",
            ),
            ("gpu-manager run", "<CMD>"),
            ("gpu-manager release --all", "--emergency"),
            ("gpu-manager release --takeover", "--emergency"),
            (
                "gpu-manager release --emergency --all --stuck",
                "cannot be used with",
            ),
            (
                "gpu-manager reload --enable --disable",
                "cannot be used with",
            ),
            ("gpu-manager drain", "required"),
            (
                "gpu-manager reload --confirm 1a2b3c4d --history",
                "cannot be used with",
            ),
            ("gpu-manager reload --confirm 1a2b", "at least 8"),
            ("gpu-manager reload --confirm lastone", "hexadecimal"),
            ("gpu-manager policy override set a.b=c", "--for"),
            ("gpu-manager policy override set a.b --for 2h", "`a.b`"),
            (
                "gpu-manager policy override set a.b=c --for 31d",
                "1s to 30d",
            ),
            ("gpu-manager policy explain --at noon", "18:05"),
            ("gpu-manager history --since yesterday", "2h"),
            ("gpu-manager usage --by host", "`device`"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn a_switch_can_be_said_in_words() {
        let switch = |line: &str| match parse(line).expect(line).command {
            Some(Command::Serve(args)) => args.hot_reload,
            other => panic!("{other:?}"),
        };
        assert_eq!(switch("gpu-manager serve"), None);
        assert_eq!(switch("gpu-manager serve --hot-reload"), Some(true));
        assert_eq!(switch("gpu-manager serve --hot-reload=off"), Some(false));
        assert_eq!(ServeArgs::for_hot_reload().hot_reload, Some(true));
    }
}
