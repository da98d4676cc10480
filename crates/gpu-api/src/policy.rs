//! The policy in force, checking one that is not, and changing it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::span::Span;
use crate::status::TenantStanding;
use crate::text::Text;

/// Most files of one check.
pub const POLICY_FILES_MAX: usize = 64;

/// Most settings of one `PUT /v1/policy/overrides`.
pub const OVERRIDES_MAX: usize = 64;

/// Answer of `GET /v1/policy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Rises with every switch.
    pub generation: u64,
    /// Hash of the source it was compiled from; what `If-Match` takes.
    pub hash: String,
    /// When it was switched in.
    pub loaded_at: String,
    /// Served from the store because the files on disk do not compile.
    pub degraded: bool,
    /// The files it was compiled from, in the order in which they apply.
    pub files: Vec<PolicyFile>,
    /// Settings of layers above the files, the lowest layer first.
    pub overrides: Vec<PolicyOverride>,
    /// What is on disk, if it is not what is in force.
    pub candidate: Option<Candidate>,
    /// Why the candidate is not in force.
    pub error_state: Option<ErrorState>,
    /// The policy that was in force and was withdrawn, if the one now in force took its place for that.
    pub rolled_back: Option<RolledBack>,
    /// Leases that drain because of a policy.
    pub draining: Vec<String>,
    /// How its tenants stand, by name and user.
    pub tenants: Vec<TenantStanding>,
    /// Its rules that failed.
    pub erring: Vec<RuleErrors>,
}

/// A setting of a layer above the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyOverride {
    /// Its place, such as `placement.strategy`.
    pub setting: String,
    /// Its value as it would be written in a file.
    pub value: String,
    /// The layer: `environment`, `--set`, or `override` for the API.
    pub origin: String,
    /// Who set it by the API.
    pub by: Option<String>,
    /// When it lifts by itself.
    pub until: Option<String>,
}

/// Why the files on disk are not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorState {
    /// Why, in one line.
    pub summary: String,
    /// Since when.
    pub since: String,
    /// Distinct saves and triggers that failed since the last good one.
    pub attempt: u32,
}

/// A policy that was in force and was withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolledBack {
    /// Its hash.
    pub hash: String,
    /// When it was withdrawn.
    pub at: String,
    /// Why.
    pub why: String,
}

/// The errors of one rule since its policy was compiled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuleErrors {
    /// The rule.
    pub rule: String,
    /// How often a decision met an error of it.
    pub count: u64,
    /// What the last one said.
    pub last: String,
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
    /// Why it is not in force, in one line.
    pub summary: String,
    /// Hash of the plan that waits for a confirmation.
    pub plan: Option<String>,
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
    /// Compiles; files switched to and fro too often, and rest.
    Resting,
    /// Was in force, and was withdrawn.
    RolledBack,
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
    /// How many characters are meant, from the column on.
    #[serde(default)]
    pub width: u32,
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

/// Body of `PUT /v1/policy`: the whole set of files, each named without a directory. The hash of the policy
/// in force goes into `If-Match`, in quotes. With other files on disk than those in force nothing is written,
/// unless `If-Match` is `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyPut {
    /// The files in the order in which they apply: 1 to 64. Absent: what is on disk is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<PolicyText>>,
    /// Hash of the plan that is expected: with another one nothing changes. It also confirms the plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_plan: Option<Text<128>>,
}

/// Body of `POST /v1/policy/rollback`. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyRollbackRequest {
    /// The generation to go back to. Absent: the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Hash of the plan that is expected: with another one nothing changes. It also confirms the plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_plan: Option<Text<128>>,
}

/// Body of `PUT /v1/policy/overrides`: replaces what was set there before; an empty `set` clears it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OverridesRequest {
    /// Values by setting, as with `--set`: up to 64.
    pub set: Settings,
    /// When they lift by themselves, 1s to 30d; needed unless `set` is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<Span>,
    /// Hash of the plan that is expected: with another one nothing changes. It also confirms the plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expect_plan: Option<Text<128>>,
}

/// Values by setting, such as `spread` by `placement.strategy`: up to 64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "BTreeMap<Text<256>, Text<1024>>")]
#[schema(value_type = BTreeMap<String, String>)]
pub struct Settings(BTreeMap<Text<256>, Text<1024>>);

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

impl OverridesRequest {
    /// Longest time that settings can be set for.
    pub const EXPIRES_IN_MAX: Span = Span::from_secs(30 * 86_400);

    /// How long the settings hold; `None` clears them.
    ///
    /// # Errors
    /// A sentence if there are settings without a time, or the time is out of bounds.
    pub fn lifetime(&self) -> Result<Option<Span>, String> {
        let bounds = Span::from_secs(1)..=Self::EXPIRES_IN_MAX;
        match self.expires_in {
            _ if self.set.is_empty() => Ok(None),
            None => Err("`expires_in` is missing: say how long, such as `2h`".to_owned()),
            Some(span) if bounds.contains(&span) => Ok(Some(span)),
            Some(span) => Err(format!("`expires_in`: {span} is out of bounds: 1s to 30d")),
        }
    }
}

impl Settings {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Setting and value, by setting.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl TryFrom<BTreeMap<Text<256>, Text<1024>>> for Settings {
    type Error = String;

    fn try_from(settings: BTreeMap<Text<256>, Text<1024>>) -> Result<Self, String> {
        match settings.len() {
            0..=OVERRIDES_MAX => Ok(Self(settings)),
            many => Err(format!("`{many}` settings: the most is {OVERRIDES_MAX}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_for_a_while() {
        let lifetime = |json: &str| {
            let request = crate::decode::<OverridesRequest>(json.as_bytes()).expect(json);
            request.lifetime()
        };
        assert_eq!(lifetime("{}"), Ok(None));
        assert_eq!(
            lifetime(r#"{"set":{"queue.order":"fifo"},"expires_in":"2h"}"#),
            Ok(Some(Span::from_secs(7200)))
        );
        for (json, part) in [
            (r#"{"set":{"queue.order":"fifo"}}"#, "is missing"),
            (r#"{"set":{"a":"b"},"expires_in":"0s"}"#, "1s to 30d"),
            (r#"{"set":{"a":"b"},"expires_in":"31d"}"#, "1s to 30d"),
        ] {
            let error = lifetime(json).expect_err(json);
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn what_changes_a_policy_is_bounded() {
        let many: Vec<String> = (0..=OVERRIDES_MAX)
            .map(|n| format!("\"a.k{n}\":\"1\""))
            .collect();
        let many = format!("{{\"set\":{{{}}}}}", many.join(","));
        let long = format!("{{\"set\":{{\"a.b\":\"{}\"}}}}", "x".repeat(1025));
        for (body, part) in [
            (many.as_str(), "the most is 64"),
            (long.as_str(), "the most is 1024"),
            (r#"{"set":{"a.b":1}}"#, "expected a string"),
            (r#"{"unset":[]}"#, "unknown field `unset`"),
        ] {
            let problem = crate::decode::<OverridesRequest>(body.as_bytes()).expect_err(part);
            assert!(problem.detail.contains(part), "{}", problem.detail);
        }
        let body = br#"{"generation":-1}"#;
        assert!(crate::decode::<PolicyRollbackRequest>(body).is_err());
        let body = br#"{"files":[{"name":"","text":""}]}"#;
        assert!(crate::decode::<PolicyPut>(body).is_err());
    }
}
