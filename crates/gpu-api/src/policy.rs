//! The policy in force, and checking one that is not.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::text::Text;

/// Most files of one check.
pub const POLICY_FILES_MAX: usize = 64;

/// Answer of `GET /v1/policy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Rises with every switch.
    pub generation: u64,
    /// Hash of the source it was compiled from.
    pub hash: String,
    /// When it was switched in.
    pub loaded_at: String,
    /// Served from the store because the files on disk do not compile.
    pub degraded: bool,
    /// The files it was compiled from, in the order in which they apply.
    pub files: Vec<PolicyFile>,
    /// Settings of layers above the files, such as `placement.strategy=spread (--set)`.
    pub overrides: Vec<String>,
    /// What is on disk, if it is not what is in force.
    pub candidate: Option<Candidate>,
    /// Why the candidate is not in force, in one line.
    pub error_state: Option<String>,
    /// Leases that drain because of a policy.
    pub draining: Vec<String>,
}

/// One file of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyFile {
    /// Its path.
    pub path: String,
    /// Hash of its bytes.
    pub hash: String,
    /// Its text as it was compiled.
    pub text: String,
}

/// What is on disk, if it is not what is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Candidate {
    /// Hash of the source; empty if it does not compile.
    pub hash: String,
    /// When it was read.
    pub seen_at: String,
    /// How it stands.
    pub state: CandidateState,
    /// Distinct saves and triggers that failed since the last good one.
    pub attempt: u32,
    /// All that is wrong with it.
    pub diagnostics: Vec<Diagnostic>,
}

/// How a candidate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CandidateState {
    /// Does not compile.
    Failing,
    /// Compiles; its plan waits for a confirmation.
    NeedsConfirmation,
    /// Compiles; watching is off, so nobody asked for it.
    NotLoaded,
    /// Does not compile, and is not tried again until it changes.
    Rejected,
}

/// Something to say about a policy text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file; empty for the set as a whole.
    pub file: String,
    /// From 1; 0 for the file as a whole.
    pub line: u32,
    /// From 1, in characters; 0 for the line as a whole.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The line of text, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_line: Option<String>,
}

/// How bad a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The policy is refused.
    Error,
    /// The policy is taken.
    Warning,
}

/// Body of `POST /v1/policy/check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyCheckRequest {
    /// The texts to check, in the order in which they apply: 1 to 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<PolicyText>>,
}

/// One text to check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyText {
    /// What its diagnostics call it.
    pub name: Text<4096>,
    /// TOML.
    pub text: String,
}

/// Answer of `POST /v1/policy/check`; 200 also when there are errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyCheck {
    /// No errors.
    pub ok: bool,
    /// Hash of the compiled source, if it compiles.
    pub hash: Option<String>,
    /// It is what is in force.
    pub in_force: bool,
    /// The files that were read.
    pub files: Vec<String>,
    /// What would differ from what is in force, one setting a line.
    #[serde(default)]
    pub changes: Vec<String>,
    /// Everything at once, by file and line.
    pub diagnostics: Vec<Diagnostic>,
}
