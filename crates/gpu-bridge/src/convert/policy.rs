//! The policy in force, and what is wrong with one that is not.

use gpu_api as wire;
use gpu_broker::{Checked, Diagnostics, ReloadOutcome, ReloadState};
use gpu_lease::{DrainSource, WallMs};
use sha2::{Digest, Sha256};

use super::Scene;
use super::reload::{candidate, error_state};
use super::time::rfc3339;
use crate::secrets::hex;

/// The policy in force, with what is on disk if that is something else.
pub(crate) fn policy(
    scene: &Scene<'_>,
    state: &ReloadState,
    started: WallMs,
    overrides: &[String],
) -> wire::Policy {
    let source = &scene.snapshot.policy.source;
    let files = source.files.iter().map(|(path, text)| wire::PolicyFile {
        path: path.clone(),
        hash: hex(&Sha256::digest(text)),
        text: text.clone(),
    });
    wire::Policy {
        generation: scene.snapshot.counters.generation,
        hash: source.hash.clone(),
        loaded_at: rfc3339(loaded(state, scene.snapshot.counters.generation).unwrap_or(started)),
        degraded: state.degraded.is_some(),
        files: files.collect(),
        overrides: overrides.to_vec(),
        candidate: state.candidate.as_ref().and_then(candidate),
        error_state: error_state(state),
        draining: draining(scene),
    }
}

/// What was found in the files named `files`.
pub fn policy_check(
    files: Vec<String>,
    checked: Result<Checked, Diagnostics>,
) -> wire::PolicyCheck {
    match checked {
        Ok(Checked { hash, changes }) => wire::PolicyCheck {
            ok: true,
            hash: Some(hash),
            in_force: changes.is_empty(),
            files,
            changes,
            diagnostics: Vec::new(),
        },
        Err(found) => wire::PolicyCheck {
            ok: false,
            hash: None,
            in_force: false,
            files,
            changes: Vec::new(),
            diagnostics: diagnostics(&found),
        },
    }
}

/// All errors of a set of files.
pub(crate) fn diagnostics(diagnostics: &Diagnostics) -> Vec<wire::Diagnostic> {
    let items = diagnostics.items().iter();
    let shown = items.map(|item| wire::Diagnostic {
        severity: wire::Severity::Error,
        file: item.file.clone(),
        line: u32::try_from(item.line).unwrap_or(u32::MAX),
        column: u32::try_from(item.column).unwrap_or(u32::MAX),
        message: item.message.clone(),
        hint: item.hint.clone(),
        source_line: None,
    });
    shown.collect()
}

/// When the live generation was switched in, if that was since the start and is remembered.
fn loaded(state: &ReloadState, live: u64) -> Option<WallMs> {
    let is_live = |outcome: &ReloadOutcome| matches!(outcome, ReloadOutcome::Applied { generation, .. } if *generation == live);
    let switch = state.history.iter().find(|result| is_live(&result.outcome));
    switch.map(|result| result.at)
}

/// The held leases that a policy asked to go.
fn draining(scene: &Scene<'_>) -> Vec<String> {
    let occupants = scene
        .snapshot
        .devices
        .iter()
        .flat_map(|device| &device.occupants);
    let mut ids: Vec<_> = occupants.copied().collect();
    ids.sort_unstable();
    ids.dedup();
    let leases = ids.into_iter().filter_map(|id| scene.find(id));
    let asked = leases.filter(|lease| {
        let grant = lease.held();
        grant.is_some_and(|grant| grant.drains.contains_key(&DrainSource::Policy))
    });
    asked.map(|lease| lease.id.to_string()).collect()
}
