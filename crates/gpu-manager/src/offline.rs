//! What can be said and done without a broker: its store, and policy files.

use std::path::{Path, PathBuf};

use std::sync::Arc;

use gpu_api::{Lease, PolicyCheck, PolicyText};
use gpu_broker::{
    BootClock, Broker, Checked, Clock, HostProcesses, Signals, SourceFile, StartPolicy, Started,
};
use gpu_store::{OpenError, RedbStore, StoreId};

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
    let dir = state_dir.map_or_else(default_state_dir, Path::to_owned);
    let path = dir.join(STORE_FILE);
    let snapshot = match RedbStore::open_read_only(&path) {
        Ok(snapshot) => snapshot,
        Err(OpenError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(format!("{error} ({})", error.hint())),
    };
    let stored = snapshot
        .load()
        .map_err(|error| format!("{error} ({})", error.hint()))?;
    let rows = stored.rows.as_ref();
    let leases = rows.map(|rows| gpu_bridge::stored_leases(rows, BootClock.now()));
    let mut leases = leases.unwrap_or_default();
    leases.sort_by(|a, b| a.created_at.cmp(&b.created_at));
    Ok(Some(Stored {
        path,
        leases,
        policy_generation: rows.map_or(0, |rows| rows.counters.generation),
    }))
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
    };
    Broker::resume(config, signals).map_err(|error| match &error {
        gpu_broker::StartError::Read(why) => unusable(why, why.hint()),
        gpu_broker::StartError::Write(fatal) => unusable(fatal, fatal.0.hint()),
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
