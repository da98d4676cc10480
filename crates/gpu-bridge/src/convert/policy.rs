//! The policy in force, and what is wrong with one that is not.

use gpu_api as wire;
use gpu_broker::{ApiOverride, Checked, Diagnostic, Diagnostics, Severity};
use gpu_lease::{RuleErrors, Share, TenantStanding};
use sha2::{Digest, Sha256};

use super::reload::Reloads;
use super::time::rfc3339;
use crate::secrets::hex;

/// The layer above the files that callers of the API set.
const API_LAYER: &str = "override";

/// The policy in force, with what is on disk if that is something else. `above` are the settings over the
/// files that last as long as the broker.
pub(crate) fn policy(reloads: &Reloads<'_>, above: &[wire::PolicyOverride]) -> wire::Policy {
    let snapshot = &reloads.scene.snapshot;
    let source = &snapshot.policy.source;
    let files = source.files.iter().map(|(path, text)| wire::PolicyFile {
        path: path.clone(),
        hash: hex(&Sha256::digest(text)),
        text: text.clone(),
    });
    let loaded = reloads
        .switch_to_live()
        .map_or(reloads.started, |switch| switch.at);
    let set = reloads.state.overrides.iter().map(api_override);
    wire::Policy {
        generation: snapshot.counters.generation,
        hash: source.hash.clone(),
        loaded_at: rfc3339(loaded),
        degraded: reloads.state.degraded.is_some(),
        files: files.collect(),
        overrides: above.iter().cloned().chain(set).collect(),
        candidate: reloads.candidate(),
        error_state: reloads.error_state(),
        rolled_back: reloads.rolled_back(),
        draining: reloads.draining().keys().map(ToString::to_string).collect(),
        tenants: reloads.scene.tenants(),
        erring: reloads.state.erring.iter().map(rule_errors).collect(),
    }
}

/// What was found in the files named `files`.
pub fn policy_check(
    files: Vec<String>,
    checked: Result<Checked, Diagnostics>,
) -> wire::PolicyCheck {
    match checked {
        Ok(Checked {
            hash,
            changes,
            warnings,
        }) => wire::PolicyCheck {
            ok: true,
            hash: Some(hash),
            in_force: changes.is_empty(),
            files,
            changes,
            diagnostics: warnings.iter().map(diagnostic).collect(),
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
    diagnostics.items().iter().map(diagnostic).collect()
}

fn diagnostic(item: &Diagnostic) -> wire::Diagnostic {
    wire::Diagnostic {
        severity: match item.severity {
            Severity::Error => wire::Severity::Error,
            Severity::Warning => wire::Severity::Warning,
        },
        file: item.file.clone(),
        line: u32::try_from(item.line).unwrap_or(u32::MAX),
        column: u32::try_from(item.column).unwrap_or(u32::MAX),
        width: u32::try_from(item.width).unwrap_or(u32::MAX),
        message: item.message.clone(),
        hint: item.hint.clone(),
        source_line: item.source_line.clone(),
    }
}

/// A rule that failed.
pub(super) fn rule_errors(errors: &RuleErrors) -> wire::RuleErrors {
    wire::RuleErrors {
        rule: errors.rule.clone(),
        count: errors.count,
        last: errors.last.clone(),
    }
}

/// How a tenant stands.
pub(super) fn tenant(standing: &TenantStanding) -> wire::TenantStanding {
    wire::TenantStanding {
        name: standing.key.name.clone(),
        user: standing.key.user.clone(),
        weight: standing.weight,
        held: share(standing.held),
        waiting: standing.waiting,
        used: standing.used,
    }
}

fn share(share: Share) -> wire::Share {
    wire::Share {
        leases: share.leases,
        devices: share.devices,
        memory: share.memory,
    }
}

fn api_override(set: &ApiOverride) -> wire::PolicyOverride {
    let (setting, value) = set.text.split_once('=').unwrap_or((&set.text, ""));
    wire::PolicyOverride {
        setting: setting.trim().to_owned(),
        value: value.trim().to_owned(),
        origin: API_LAYER.to_owned(),
        by: Some(set.by.clone()),
        until: Some(rfc3339(set.until.wall)),
    }
}
