//! What can be said without a broker: its store, and policy files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gpu_api::{
    Event, HistoryQuery, Lease, PolicyCheck, PolicyText, Problem, UsageQuery, UsageReport,
};
use gpu_bridge::UsageTable;
use gpu_broker::{
    BootClock, Broker, Checked, Clock, HostProcesses, Hour, ReadError, Signals, SourceFile,
    StartPolicy, Started, UsageBasis, usage_so_far,
};
use gpu_client::Endpoint;
use gpu_lease::{Policy, PolicySource, WallMs};
use gpu_store::{OpenError, RedbStore, StoreId, StoreSnapshot};

use crate::owner::Owner;
use crate::serve::STORE_FILE;
use crate::serve::config::default_state_dir;

/// What a store holds while no broker runs on it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Where the store is.
    pub(crate) path: PathBuf,
    /// Its leases, oldest first, those that ended included.
    pub(crate) leases: Vec<Lease>,
    /// The policy that was in force.
    pub(crate) policy_generation: u64,
}

/// The store in `state_dir`, or in the usual place; `None` if there is none.
///
/// # Errors
/// A sentence if there is one that cannot be read.
pub(crate) fn read(state_dir: Option<&Path>) -> Result<Option<Stored>, String> {
    let Some(snapshot) = open(state_dir)? else {
        return Ok(None);
    };
    let stored = snapshot.load().map_err(unreadable)?;
    let rows = stored.rows.as_ref();
    let leases = rows.map(|rows| gpu_bridge::stored_leases(rows, BootClock.now()));
    let mut leases = leases.unwrap_or_default();
    leases.sort_by(|a, b| a.created_at.cmp(&b.created_at));
    Ok(Some(Stored {
        path: store_path(state_dir),
        leases,
        policy_generation: rows.map_or(0, |rows| rows.counters.generation),
    }))
}

/// The events of that store that `query` asks for, oldest first; `device` finds the id of the device that is
/// meant among those that the whole history is about.
///
/// # Errors
/// As for [`read`], or the query is none. What `device` refuses is within.
pub(crate) fn history<E>(
    state_dir: Option<&Path>,
    query: &HistoryQuery,
    device: impl FnOnce(&BTreeSet<String>, &str) -> Result<String, E>,
) -> Result<Option<Result<Vec<Event>, E>>, String> {
    let Some(snapshot) = open(state_dir)? else {
        return Ok(None);
    };
    let mut query = query.clone();
    if let Some(text) = &query.device {
        let all = events(&snapshot, &HistoryQuery::default())?;
        match device(&devices(&all), text) {
            Ok(id) => query.device = id.parse().ok(),
            Err(refused) => return Ok(Some(Err(refused))),
        }
    }
    events(&snapshot, &query).map(|events| Some(Ok(events)))
}

fn events(snapshot: &StoreSnapshot, query: &HistoryQuery) -> Result<Vec<Event>, String> {
    let store = snapshot.load().map_err(unreadable)?.store_id;
    let filter = gpu_bridge::event_filter(query, BootClock.now().wall).map_err(detail)?;
    let (mut events, mut after) = (Vec::new(), None);
    loop {
        let read = |after, limit| snapshot.events(after, limit);
        let found = filter.find(read, after, usize::MAX).map_err(unreadable)?;
        events.extend(gpu_bridge::history(store, &found).events);
        after = found.next;
        if after.is_none() {
            return Ok(events);
        }
    }
}

/// The ids of the devices that `events` are about.
fn devices(events: &[Event]) -> BTreeSet<String> {
    let ids = events.iter();
    ids.flat_map(|event| event.device.iter().chain(&event.other_devices))
        .cloned()
        .collect()
}

/// The usage in that store, and of what is still held by it.
///
/// # Errors
/// As for [`read`], or the query is none.
pub(crate) fn usage(
    state_dir: Option<&Path>,
    query: &UsageQuery,
) -> Result<Option<UsageReport>, String> {
    let Some(snapshot) = open(state_dir)? else {
        return Ok(None);
    };
    let now = BootClock.now();
    let mut table = UsageTable::new(query, now.wall).map_err(detail)?;
    let mut count = |row| table.add(row);
    let from = Hour::of(WallMs(0));
    snapshot.usage(from, &mut count).map_err(unreadable)?;
    let stored = snapshot.load().map_err(unreadable)?;
    let same_boot = gpu_broker::boot_id().ok() == stored.boot_id;
    let policy = stored
        .policy
        .as_ref()
        .and_then(|good| compiled(&good.source));
    let basis = UsageBasis {
        counted: stored.usage_counted,
        same_boot,
        policy: policy.as_ref(),
    };
    let leases = stored.rows.map(|rows| rows.leases).unwrap_or_default();
    let held = leases.iter();
    held.flat_map(|lease| usage_so_far(lease, now, &basis))
        .for_each(count);
    Ok(Some(table.report()))
}

/// The policy that was live, as far as its files say; none if they cannot be read any more.
fn compiled(source: &PolicySource) -> Option<Policy> {
    let files = source.files.iter();
    let files = files.map(|(name, text)| SourceFile::new(name.clone(), text.clone()));
    gpu_policy::compile(&files.collect::<Vec<_>>(), &[]).ok()
}

/// Where the store is in `state_dir`, or in the usual place.
pub(crate) fn store_path(state_dir: Option<&Path>) -> PathBuf {
    let dir = state_dir.map_or_else(default_state_dir, Path::to_owned);
    dir.join(STORE_FILE)
}

fn open(state_dir: Option<&Path>) -> Result<Option<StoreSnapshot>, String> {
    match RedbStore::open_read_only(&store_path(state_dir)) {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(OpenError::Missing { .. }) => Ok(None),
        Err(error @ OpenError::InUse { .. }) => {
            let dir = state_dir.map_or_else(default_state_dir, Path::to_owned);
            Err(format!("{error}{}", owner_of(&dir).unwrap_or_default()))
        }
        Err(error) => Err(format!("{error} ({})", error.hint())),
    }
}

/// Whose the state directory `dir` is and where that broker is asked, for the end of a message; `None` if no
/// living broker says so.
pub(crate) fn owner_of(dir: &Path) -> Option<String> {
    let (owner, _) = Owner::alive(dir).ok()??;
    let at = match owner.listen.as_slice() {
        [] => "it does not listen yet".to_owned(),
        listen => format!("it listens at {}", listen.join(" and ")),
    };
    Some(format!(": {}, {at}", owner.named()))
}

/// Where the broker is that has the state directory `dir`, if one lives and listens.
pub(crate) fn endpoint_of(dir: &Path) -> Option<Endpoint> {
    let (owner, _) = Owner::alive(dir).ok()??;
    owner.endpoints().next()
}

fn unreadable(error: ReadError) -> String {
    format!("{error} ({})", error.hint())
}

fn detail(problem: Problem) -> String {
    problem.detail
}

/// A store was not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// A broker has it.
    InUse,
    /// There is none.
    Missing,
    /// It cannot be used, for the reason given.
    Unusable(String),
}

/// Takes the store in `dir`, as a broker does and in place of one: its own loop runs on it, under the policy that
/// was last good, until it is stopped. It knows no device, so that it grants nothing.
///
/// # Errors
/// [`NotTaken`]; nothing was changed then.
pub(crate) fn take(dir: &Path, signals: Signals) -> Result<Started, NotTaken> {
    let path = dir.join(STORE_FILE);
    if !path.exists() {
        return Err(NotTaken::Missing);
    }
    let unusable = |why: &dyn std::fmt::Display, hint: &str| {
        NotTaken::Unusable(format!("{why}\n  hint: {hint}"))
    };
    let nothing = |error: std::io::Error| NotTaken::Unusable(format!("no boot id: {error}"));
    let boot_id = gpu_broker::boot_id().map_err(nothing)?;
    // The name of a store that is made, and this one is there.
    let store = RedbStore::open(&path, StoreId::from_bits(0)).map_err(|error| match &error {
        OpenError::InUse { .. } => NotTaken::InUse,
        other => unusable(other, other.hint()),
    })?;
    let config = gpu_broker::Config {
        store: Arc::new(store),
        clock: Arc::new(BootClock),
        processes: Arc::new(HostProcesses::of_boot(boot_id.clone())),
        boot_id,
        policy: StartPolicy {
            files: Ok(vec![SourceFile::new("default.toml", "")]),
            overrides: Vec::new(),
            dev: false,
        },
        introduction: "`gpu-manager release --emergency`".to_owned(),
    };
    Broker::resume(config, signals).map_err(|error| match &error {
        gpu_broker::StartError::Read(why) => unusable(why, why.hint()),
        gpu_broker::StartError::Write(fatal) => unusable(fatal, fatal.hint()),
        other => NotTaken::Unusable(other.to_string()),
    })
}

/// Compiles policy texts without a broker: there is no live policy to compare them with.
pub(crate) fn check_policy(files: &[PolicyText]) -> PolicyCheck {
    let source = |file: &PolicyText| SourceFile::new(file.name.to_string(), file.text.clone());
    let sources: Vec<SourceFile> = files.iter().map(source).collect();
    let names = sources.iter().map(|source| source.name.clone()).collect();
    let compiled = gpu_policy::compile_with_warnings(&sources, &[]);
    let checked = compiled.map(|compiled| Checked {
        hash: compiled.policy.source.hash.clone(),
        changes: Vec::new(),
        warnings: compiled.warnings,
    });
    PolicyCheck {
        in_force: false,
        ..gpu_bridge::policy_check(names, checked)
    }
}
