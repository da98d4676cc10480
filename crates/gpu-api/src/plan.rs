//! What a policy would mean for what is held and what waits.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::policy::{Diagnostic, PolicyText};

/// Body of `POST /v1/policy/plan`. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyPlanRequest {
    /// The texts to plan, in the order in which they apply: 1 to 64. Absent: what is on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<PolicyText>>,
}

/// Answer of `POST /v1/policy/plan`; 200 also when the files do not compile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyPlan {
    /// The files compile.
    pub ok: bool,
    /// Hash of the policy that was planned; empty if it does not compile.
    pub hash: String,
    /// Hash of the plan, for `expect_plan` and `confirm`; empty if the files do not compile.
    pub plan: String,
    /// Hash of the policy in force, for `If-Match`.
    pub live: String,
    /// Generation of the policy in force.
    pub generation: u64,
    /// The files that were read.
    pub files: Vec<String>,
    /// What differs from the policy in force, one setting a line.
    pub changes: Vec<String>,
    /// What becomes of held leases, by id. Leases that are not named are not touched.
    pub leases: Vec<LeaseFate>,
    /// Waiters that would be refused, by id.
    pub denied: Vec<DeniedWaiter>,
    /// The plan in one line.
    pub summary: String,
    /// A saved file with this plan would wait for a confirmation.
    pub confirm_needed: bool,
    /// Leases that the plan ends and whose holders nothing can make go.
    pub impossible: Vec<String>,
    /// All that is wrong with the files.
    pub diagnostics: Vec<Diagnostic>,
}

/// What becomes of one held lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseFate {
    /// The lease.
    pub lease: String,
    /// Its holder's name.
    pub holder: String,
    /// What becomes of it.
    pub fate: Fate,
    /// The rule that says so; empty where none does.
    pub rule: String,
    /// Why, for people.
    pub reason: String,
    /// When a drain ends by force, or a shortened hold ends.
    pub deadline_at: Option<String>,
    /// Milliseconds until then.
    pub remaining_ms: Option<u64>,
    /// It would be ended by force at some time, but nothing may make its holder go.
    pub unenforceable: bool,
}

/// What becomes of a held lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It has until a deadline.
    Drain,
    /// It ends at once.
    Force,
    /// The new policy does not allow it and lets it stay.
    Keep,
    /// Its longest hold ends sooner.
    Shorten,
    /// An earlier policy asked it to go; the new one lets it stay.
    Withdraw,
}

/// A waiter that a new policy refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeniedWaiter {
    /// The lease.
    pub lease: String,
    /// Its holder's name.
    pub holder: String,
    /// The rule that refuses it.
    pub rule: String,
    /// Why, for the one who waits.
    pub reason: String,
}
