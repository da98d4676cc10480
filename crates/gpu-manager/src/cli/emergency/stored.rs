//! An emergency release where no broker lives: on its store, through the broker's own loop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_broker::{Handle, Signals, Started};
use gpu_lease::{DeviceKey, Emergency, Lease, LeaseId, Phase, Targets};
use tokio::time::sleep;

use super::silent::{self, Found};
use super::{Step, consents, selects_all};
use crate::cli::args::ReleaseArgs;
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::note;
use crate::offline::{self, NotTaken};

/// Whoever has the store and is no broker has it no longer.
const IN_USE_SECS_MAX: u64 = 3;
/// After each of the two signals, processes have this long to go.
const SIGNAL_SECS_MAX: u64 = 5;
/// It is looked this often whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A device may be named by so much of its id.
const PREFIX_CHARS_MIN: usize = 4;

/// Releases on the store in `dir`.
pub(super) async fn release(
    context: &Context,
    args: &ReleaseArgs,
    dir: &Path,
) -> Result<Step, Failure> {
    let mut listed = async || match offline::read(Some(dir)) {
        Ok(stored) => {
            let leases = stored.map_or_else(Vec::new, |stored| stored.leases);
            let open = |lease: &gpu_api::Lease| lease.state != gpu_api::LeaseState::Ended;
            Ok(leases.into_iter().filter(open).collect())
        }
        Err(why) => Err(Failure::new(exit::NO_BROKER, why)),
    };
    must_be_there(context, dir)?;
    note(&format!(
        "no broker runs: releasing on the store in `{}`",
        dir.display()
    ));
    if selects_all(args) && !consents(args, &mut listed, context).await? {
        return Ok(Step::Declined);
    }
    let signals = match args.kill {
        true => Signals::Send,
        false => Signals::Leave,
    };
    let taken = match take(context, args, dir, signals).await? {
        Ok(taken) => taken,
        Err(found) => return Ok(Step::Next(found)),
    };
    if taken.rebooted {
        note("the host was booted since the broker ran: every lease of before has ended");
    }
    let result = end(args, &taken).await;
    // What was done is stored, and is to be said, also if nothing more can be.
    if let Err(fatal) = taken.broker.stop() {
        note(&format!("{fatal}; hint: {}", fatal.hint()));
    }
    result.map(Step::Done)
}

/// Takes the store, or finds the broker that was started meanwhile. One that is just ending, or another emergency
/// release, may have it a little longer.
async fn take(
    context: &Context,
    args: &ReleaseArgs,
    dir: &Path,
    signals: Signals,
) -> Result<Result<Started, Found>, Failure> {
    let give_up = Instant::now() + Duration::from_secs(IN_USE_SECS_MAX);
    loop {
        let why = match offline::take(dir, signals.clone()) {
            Ok(taken) => return Ok(Ok(taken)),
            Err(why) => why,
        };
        if !matches!(why, NotTaken::InUse) {
            return Err(not_taken(context, dir, why));
        }
        if silent::is_misnamed(dir) {
            // Whoever has it is not who the directory names: nobody is asked, and nobody killed.
            match Instant::now() < give_up {
                true => sleep(LOOK_EVERY).await,
                false => return Err(not_taken(context, dir, why)),
            }
            continue;
        }
        match silent::find(context, args).await? {
            Found::Gone(_) if Instant::now() < give_up => sleep(LOOK_EVERY).await,
            Found::Gone(_) => return Err(not_taken(context, dir, why)),
            found => return Ok(Err(found)),
        }
    }
}

async fn end(args: &ReleaseArgs, taken: &Started) -> Result<gpu_api::EmergencyResult, Failure> {
    let handle = &taken.handle;
    let before = handle.page(None, usize::MAX);
    let mut ended = Vec::new();
    for targets in targets(args, &before)? {
        ended.extend(say(handle, emergency(args, targets)).await?);
    }
    ended.sort_unstable();
    ended.dedup();
    if args.kill {
        see_them_go(args, handle, &ended).await?;
    }
    say_what_is_left(handle, &ended);
    Ok(gpu_bridge::stored_emergency(before, &ended, handle))
}

async fn say(handle: &Handle, emergency: Emergency) -> Result<Vec<LeaseId>, Failure> {
    let refused = |why: gpu_broker::Unavailable| Failure::refused(why.to_string());
    handle.emergency(emergency).await.map_err(refused)
}

fn emergency(args: &ReleaseArgs, targets: Targets) -> Emergency {
    let reason = args.reason.as_ref().map(ToString::to_string);
    Emergency {
        targets,
        reason: reason.unwrap_or_else(|| "emergency release".to_owned()),
        by: user(),
        kill: args.kill,
        cordon: args.cordon,
        force_unsafe: args.force_unsafe,
    }
}

fn user() -> String {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    gpu_bridge::UnixUser::look_up(uid.as_raw(), gid.as_raw(), "gpu-admin").name
}

/// The processes were asked to go: those that do not are killed.
async fn see_them_go(
    args: &ReleaseArgs,
    handle: &Handle,
    ended: &[LeaseId],
) -> Result<(), Failure> {
    for is_last in [false, true] {
        let give_up = Instant::now() + Duration::from_secs(SIGNAL_SECS_MAX);
        let mut left = still_there(handle, ended);
        while !left.is_empty() && Instant::now() < give_up {
            sleep(LOOK_EVERY).await;
            left = still_there(handle, ended);
        }
        if left.is_empty() || is_last {
            return Ok(());
        }
        let left = left.iter().map(|lease| lease.id).collect();
        say(handle, emergency(args, Targets::Leases(left))).await?;
    }
    Ok(())
}

/// Of the leases `ended`, those whose process is not proven gone.
fn still_there(handle: &Handle, ended: &[LeaseId]) -> Vec<Arc<Lease>> {
    let leases = ended.iter().filter_map(|id| handle.find(*id));
    let lives = |lease: &Arc<Lease>| {
        matches!(lease.phase, Phase::Reclaiming(..)) && lease.process().is_some()
    };
    leases.filter(lives).collect()
}

fn say_what_is_left(handle: &Handle, ended: &[LeaseId]) {
    for lease in still_there(handle, ended) {
        let pid = lease.process().map_or(0, |process| process.pid);
        note(&format!(
            "{}: its process, pid {pid}, still lives",
            lease.id
        ));
    }
    if !ended.is_empty() {
        note("the next broker grants their memory when it has verified that the holders are gone");
    }
}

fn targets(args: &ReleaseArgs, leases: &[Arc<Lease>]) -> Result<Vec<Targets>, Failure> {
    if selects_all(args) {
        return Ok(vec![Targets::All]);
    }
    let mut targets = Vec::new();
    if args.stuck {
        targets.push(Targets::Stuck);
    }
    if !args.device.is_empty() {
        targets.push(Targets::Devices(devices(&args.device, leases)?));
    }
    let named: Vec<&str> = args
        .lease
        .iter()
        .chain(&args.id)
        .map(|text| &**text)
        .collect();
    if !named.is_empty() {
        let known = |text: &&str| {
            let id = text.parse().ok();
            let id = id.filter(|id| leases.iter().any(|lease| lease.id == *id));
            id.ok_or_else(|| Failure::refused(format!("the store has no lease `{text}`")))
        };
        targets.push(Targets::Leases(
            named.iter().map(known).collect::<Result<_, _>>()?,
        ));
    }
    Ok(targets)
}

/// Without a broker the devices known are those that leases are on.
fn devices(texts: &[String], leases: &[Arc<Lease>]) -> Result<Vec<DeviceKey>, Failure> {
    let grants = leases.iter().filter_map(|lease| lease.occupying());
    let keys: BTreeSet<&DeviceKey> = grants
        .flat_map(|grant| &grant.allocations)
        .map(|part| &part.device)
        .collect();
    let ids: BTreeMap<&str, &DeviceKey> =
        keys.into_iter().map(|key| (key.id.as_str(), key)).collect();
    let known = |text: &String| match resolve(&ids, text) {
        Some(key) => Ok(key.clone()),
        None => Err(unknown(text, ids.keys())),
    };
    texts.iter().map(known).collect()
}

fn resolve<'a>(ids: &BTreeMap<&str, &'a DeviceKey>, text: &str) -> Option<&'a DeviceKey> {
    if let Some(key) = ids.get(text) {
        return Some(key);
    }
    let long_enough = text.chars().count() >= PREFIX_CHARS_MIN;
    let mut beginning = ids
        .iter()
        .filter(|(id, _)| long_enough && id.starts_with(text));
    match (beginning.next(), beginning.next()) {
        (Some((_, key)), None) => Some(key),
        _ => None,
    }
}

fn unknown<'a>(text: &str, ids: impl Iterator<Item = &'a &'a str>) -> Failure {
    let ids: Vec<&str> = ids.copied().collect();
    let failure = Failure::usage(format!("no lease of the store is on one device `{text}`"));
    match ids.is_empty() {
        true => failure.hint("no lease holds anything"),
        false => failure.hint(format!(
            "without a broker a device is named by its id, not its index; leases are on {}",
            ids.join(", ")
        )),
    }
}

fn must_be_there(context: &Context, dir: &Path) -> Result<(), Failure> {
    match dir.join(crate::serve::STORE_FILE).exists() {
        true => Ok(()),
        false => Err(not_taken(context, dir, NotTaken::Missing)),
    }
}

fn not_taken(context: &Context, dir: &Path, why: NotTaken) -> Failure {
    let (endpoint, dir) = (context.client.endpoint(), dir.display());
    let nobody = format!("no broker answers at {endpoint}");
    match why {
        NotTaken::Missing => Failure::new(exit::NO_BROKER, format!("{nobody}, and there is no store in `{dir}`"))
            .hint("say where the broker is with GPU_MANAGER_URL, or where its state is with `--state-dir DIR`"),
        NotTaken::InUse => Failure::new(exit::HUNG, format!("{nobody}, and a process has the store in `{dir}` open; nothing was changed"))
            .hint(format!("a broker that has just started answers soon: say it again; `fuser {dir}/{}` names the process", crate::serve::STORE_FILE)),
        NotTaken::Unusable(why) => Failure::new(exit::STORE_UNUSABLE, format!("{nobody}, and {why}")),
    }
}
