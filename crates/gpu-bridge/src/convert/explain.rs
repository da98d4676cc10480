//! What would become of a request.

use gpu_api as wire;
use gpu_api::{ErrorCode, ExplainAt, Problem};
use gpu_lease::{At, Denial, DeviceKey, Explanation, Policy, RuleHit, TenantKey, WallMs};
use jiff::Timestamp;

use super::Scene;
use super::denial::denied;
use super::time::rfc3339;

/// The civil time that a request is to be explained for.
///
/// # Errors
/// It is no time.
pub(crate) fn explained_at(at: &ExplainAt, policy: &Policy, now: At) -> Result<WallMs, Problem> {
    let text = match at {
        ExplainAt::Clock { hour, minute } => {
            return Ok(policy.rules.next_clock(*hour, *minute, now.wall));
        }
        ExplainAt::Time(text) => text,
    };
    let time: Timestamp = text.parse().map_err(|_| {
        Problem::new(
            ErrorCode::InvalidRequest,
            format!("`at`: `{text}` is no RFC 3339 time"),
        )
        .with_hint("write `18:05`, or `2026-01-31T18:05:00Z`")
    })?;
    Ok(WallMs(
        u64::try_from(time.as_millisecond()).unwrap_or_default(),
    ))
}

/// What the books say of a request, for the time `at`.
pub(crate) fn explanation(
    explained: &Explanation,
    at: WallMs,
    scene: &Scene<'_>,
) -> wire::Explanation {
    let request = &explained.request;
    let (outcome, denial) = outcome(&explained.outcome, scene);
    wire::Explanation {
        class: request.class.clone(),
        priority: explained.priority,
        tenant: explained.tenant.as_ref().map(tenant),
        ttl_ms: request.ttl.0,
        max_hold_ms: request.max_hold.map(|hold| hold.0),
        rules: explained.hits.iter().map(effect).collect(),
        outcome,
        devices: devices(&explained.outcome),
        waiting: match &explained.outcome {
            Err(Denial::DoesNotFit(why)) => Some(scene.reason(why)),
            Ok(_) | Err(_) => None,
        },
        denial: denial.map(|denial| Box::new(denied(denial, scene))),
        at: rfc3339(at),
    }
}

/// What would become of it, and the denial where there is one. How long it would wait is another matter: what
/// cannot be now, and can be later, waits.
fn outcome<'a>(
    outcome: &'a Result<Vec<DeviceKey>, Denial>,
    scene: &Scene<'_>,
) -> (wire::ExplainOutcome, Option<&'a Denial>) {
    match outcome {
        Ok(_) => (wire::ExplainOutcome::Granted, None),
        Err(Denial::DoesNotFit(_)) => (wire::ExplainOutcome::Waits, None),
        Err(denial @ Denial::Recovering) if scene.safe_start.is_none() => {
            (wire::ExplainOutcome::Waits, Some(denial))
        }
        Err(denial) => (wire::ExplainOutcome::Refused, Some(denial)),
    }
}

fn devices(outcome: &Result<Vec<DeviceKey>, Denial>) -> Vec<String> {
    let keys = outcome.as_deref().unwrap_or_default();
    keys.iter().map(|key| key.id.to_string()).collect()
}

fn tenant(key: &TenantKey) -> String {
    match &key.user {
        Some(user) => format!("{}/{user}", key.name),
        None => key.name.clone(),
    }
}

fn effect(hit: &RuleHit) -> wire::RuleEffect {
    wire::RuleEffect {
        rule: hit.rule.clone(),
        effect: hit.effect.clone(),
    }
}
