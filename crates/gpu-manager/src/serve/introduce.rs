//! What a broker says on standard error when it starts: where it is, what it found, what is not as usual.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gpu_broker::{CandidateState, Handle, ReloadState, Started};

use super::config::Config;
use super::policy;

/// How often it is looked whether the devices are known.
const READY_EVERY: Duration = Duration::from_millis(5);

/// The first lines that a person sees.
pub(super) fn introduce(
    config: &Config,
    address: SocketAddr,
    started: &Started,
    reloads: &ReloadState,
    safe: Option<&str>,
) {
    eprintln!("gpu-manager {}", env!("CARGO_PKG_VERSION"));
    eprintln!("page      http://{address}/");
    if let Some(socket) = &config.socket {
        eprintln!("socket    {}", socket.display());
    }
    eprintln!("policies  {}", policies(config, reloads.watching, safe));
    match config.ephemeral {
        true => eprintln!("state     none: leases die with this process"),
        false => eprintln!("state     {}", config.state_dir.display()),
    }
    introduce_settings(config, reloads);
    if config.dev {
        eprintln!("dev mode  every caller of this host may do everything, without a token");
        if safe.is_none() {
            eprintln!("          a saved policy is applied at once, whatever it drains or ends");
        }
    }
    if started.rebooted {
        eprintln!("the host was booted since: the leases of before have ended");
    } else {
        match started.kept {
            0 => {}
            1 => eprintln!("1 lease is still held"),
            kept => eprintln!("{kept} leases are still held"),
        }
    }
    match safe {
        Some(why) => introduce_safe_start(why),
        None => introduce_troubles(started, reloads),
    }
    if io::stdin().is_terminal() && !config.dev {
        eprintln!("hint: Ctrl-C stops the broker; what is held stays held");
    }
}

pub(super) fn tell_when_ready(started: &Started, began: Instant, is_safe: bool) {
    let (handle, kept) = (started.handle.clone(), started.kept);
    match is_safe {
        true => tell_ready(began, kept, ", none is granted: safe start"),
        false => drop(tokio::spawn(tell_once_ready(handle, began, kept))),
    }
}

/// Says how long the start took, once the devices are known and so something can be granted.
async fn tell_once_ready(handle: Handle, began: Instant, recovered: usize) {
    while handle.snapshot().recovering {
        if handle.is_stopping() {
            return;
        }
        tokio::time::sleep(READY_EVERY).await;
    }
    tell_ready(began, recovered, "");
}

fn tell_ready(began: Instant, recovered: usize, but: &str) {
    let took = began.elapsed().as_millis();
    let leases = match recovered {
        1 => "1 lease".to_owned(),
        leases => format!("{leases} leases"),
    };
    eprintln!("ready     in {took} ms, {leases} recovered{but}");
}

/// Where policies are from and whether saves are applied.
fn policies(config: &Config, watching: bool, safe: Option<&str>) -> String {
    let watch = match (safe, watching) {
        (Some(_), _) => "not read: safe start",
        (None, true) => "hot reload",
        (None, false) => "read at start and on request",
    };
    let roots = config.policy_roots.iter();
    let roots: Vec<_> = roots.map(|root| root.display().to_string()).collect();
    match roots.as_slice() {
        [] => format!("built-in ({watch})"),
        roots => format!("{} ({watch})", roots.join(", ")),
    }
}

/// What stands above the policy files: editing them there changes nothing.
fn introduce_settings(config: &Config, reloads: &ReloadState) {
    for set in policy::shown_overrides(config).unwrap_or_default() {
        eprintln!("override  {} = {} ({})", set.setting, set.value, set.origin);
    }
    for set in &reloads.overrides {
        let until = gpu_bridge::rfc3339(set.until.wall);
        eprintln!("override  {} (by {} until {until})", set.text, set.by);
    }
}

/// What a person has to know who finds that nothing is granted.
fn introduce_safe_start(why: &str) {
    eprintln!("safe start: {why}");
    eprintln!("  {};", gpu_bridge::SAFE_START);
    eprintln!(
        "  held leases are kept and can be renewed and released, no process is signalled, the last good policy is in force"
    );
    eprintln!("hint: {}", gpu_bridge::SAFE_START_HINT);
}

/// What is on disk and is not live.
fn introduce_troubles(started: &Started, reloads: &ReloadState) {
    if let Some(diagnostics) = &started.degraded {
        eprintln!(
            "degraded: the policy files are bad, the last good policy is live\n{diagnostics}"
        );
    }
    let Some(candidate) = &reloads.candidate else {
        return;
    };
    let hint = match candidate.state {
        CandidateState::NeedsConfirmation => "`gpu-manager reload --confirm HASH` applies them",
        CandidateState::Failing | CandidateState::Rejected => {
            "`gpu-manager policy check` says what is wrong"
        }
        CandidateState::NotLoaded | CandidateState::Resting | CandidateState::RolledBack => {
            "`gpu-manager reload` applies them"
        }
    };
    let state = candidate.state.as_str().replace('_', " ");
    eprintln!("the policy files on disk are not live: {state}; {hint}");
}
