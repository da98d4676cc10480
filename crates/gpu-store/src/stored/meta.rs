//! Everything that is no lease and no event, as it is written.

use std::sync::Arc;

use gpu_lease::{BootMs, Fence, Ms, WallMs};
use serde::{Deserialize, Serialize};

use super::Moment;
use crate::event::EventPosition;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Counters {
    revision: u64,
    next_fence: u64,
    generation: u64,
}

/// Until when what was held is counted, whether it has ended or not.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct UsageCounted(Moment);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cordon {
    reason: String,
    by: String,
    until: Option<Moment>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LastGood {
    generation: u64,
    hash: String,
    files: Vec<PolicyFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    name: String,
    text: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    policy_watch: Option<SwitchedBy>,
    // What no earlier version knew is written only where there is something to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overrides: Vec<ApiOverride>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<RejectedFiles>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    breaker: Option<Breaker>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApiOverride {
    text: String,
    by: String,
    at_wall_ms: u64,
    until: Moment,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RejectedFiles {
    hash: String,
    attempt: u32,
    why: String,
    at_wall_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Breaker {
    open_until: Option<Moment>,
    rest_ms: u64,
    on_trial: bool,
    tried_boot_ms: Option<u64>,
    culprit: Option<String>,
    back_boot_ms: Vec<u64>,
    recent: Vec<Recent>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recent {
    hash: String,
    until_boot_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchedBy {
    enabled: bool,
    by: String,
    at_wall_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Position {
    revision: u64,
    n: u32,
}

impl From<gpu_lease::At> for UsageCounted {
    fn from(at: gpu_lease::At) -> Self {
        Self(at.into())
    }
}

impl From<UsageCounted> for gpu_lease::At {
    fn from(counted: UsageCounted) -> Self {
        counted.0.into()
    }
}

impl From<gpu_lease::Counters> for Counters {
    fn from(counters: gpu_lease::Counters) -> Self {
        Self {
            revision: counters.revision,
            next_fence: counters.next_fence.0,
            generation: counters.generation,
        }
    }
}

impl From<Counters> for gpu_lease::Counters {
    fn from(counters: Counters) -> Self {
        Self {
            revision: counters.revision,
            next_fence: Fence(counters.next_fence),
            generation: counters.generation,
        }
    }
}

impl From<&gpu_lease::Cordon> for Cordon {
    fn from(cordon: &gpu_lease::Cordon) -> Self {
        Self {
            reason: cordon.reason.clone(),
            by: cordon.by.clone(),
            until: cordon.until.map(Into::into),
        }
    }
}

impl From<Cordon> for gpu_lease::Cordon {
    fn from(cordon: Cordon) -> Self {
        Self {
            reason: cordon.reason,
            by: cordon.by,
            until: cordon.until.map(Into::into),
        }
    }
}

impl From<&crate::LastGood> for LastGood {
    fn from(policy: &crate::LastGood) -> Self {
        let files = policy.source.files.iter().cloned();
        Self {
            generation: policy.generation,
            hash: policy.source.hash.clone(),
            files: files
                .map(|(name, text)| PolicyFile { name, text })
                .collect(),
        }
    }
}

impl From<LastGood> for crate::LastGood {
    fn from(policy: LastGood) -> Self {
        let files = policy.files.into_iter();
        Self {
            generation: policy.generation,
            source: Arc::new(gpu_lease::PolicySource {
                hash: policy.hash,
                files: files.map(|file| (file.name, file.text)).collect(),
            }),
        }
    }
}

impl From<&crate::Settings> for Settings {
    fn from(settings: &crate::Settings) -> Self {
        Self {
            policy_watch: settings.policy_watch.as_ref().map(SwitchedBy::from),
            overrides: settings.overrides.iter().map(ApiOverride::from).collect(),
            rejected: settings.rejected.as_ref().map(RejectedFiles::from),
            breaker: (settings.breaker != crate::BreakerRow::default())
                .then(|| Breaker::from(&settings.breaker)),
        }
    }
}

impl From<Settings> for crate::Settings {
    fn from(settings: Settings) -> Self {
        Self {
            policy_watch: settings.policy_watch.map(Into::into),
            overrides: settings.overrides.into_iter().map(Into::into).collect(),
            rejected: settings.rejected.map(Into::into),
            breaker: settings.breaker.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<&crate::ApiOverride> for ApiOverride {
    fn from(set: &crate::ApiOverride) -> Self {
        Self {
            text: set.text.clone(),
            by: set.by.clone(),
            at_wall_ms: set.at.0,
            until: set.until.into(),
        }
    }
}

impl From<ApiOverride> for crate::ApiOverride {
    fn from(set: ApiOverride) -> Self {
        Self {
            text: set.text,
            by: set.by,
            at: WallMs(set.at_wall_ms),
            until: set.until.into(),
        }
    }
}

impl From<&crate::RejectedFiles> for RejectedFiles {
    fn from(rejected: &crate::RejectedFiles) -> Self {
        Self {
            hash: rejected.hash.clone(),
            attempt: rejected.attempt,
            why: rejected.why.clone(),
            at_wall_ms: rejected.at.0,
        }
    }
}

impl From<RejectedFiles> for crate::RejectedFiles {
    fn from(rejected: RejectedFiles) -> Self {
        Self {
            hash: rejected.hash,
            attempt: rejected.attempt,
            why: rejected.why,
            at: WallMs(rejected.at_wall_ms),
        }
    }
}

impl From<&crate::BreakerRow> for Breaker {
    fn from(row: &crate::BreakerRow) -> Self {
        let recent = row.recent.iter().map(|(hash, until)| Recent {
            hash: hash.clone(),
            until_boot_ms: until.0,
        });
        Self {
            open_until: row.open_until.map(Into::into),
            rest_ms: row.rest.0,
            on_trial: row.on_trial,
            tried_boot_ms: row.tried.map(|at| at.0),
            culprit: row.culprit.clone(),
            back_boot_ms: row.back.iter().map(|at| at.0).collect(),
            recent: recent.collect(),
        }
    }
}

impl From<Breaker> for crate::BreakerRow {
    fn from(row: Breaker) -> Self {
        let recent = row.recent.into_iter();
        Self {
            open_until: row.open_until.map(Into::into),
            rest: Ms(row.rest_ms),
            on_trial: row.on_trial,
            tried: row.tried_boot_ms.map(BootMs),
            culprit: row.culprit,
            back: row.back_boot_ms.into_iter().map(BootMs).collect(),
            recent: recent
                .map(|recent| (recent.hash, BootMs(recent.until_boot_ms)))
                .collect(),
        }
    }
}

impl From<&crate::SwitchedBy> for SwitchedBy {
    fn from(switch: &crate::SwitchedBy) -> Self {
        Self {
            enabled: switch.enabled,
            by: switch.by.clone(),
            at_wall_ms: switch.at.0,
        }
    }
}

impl From<SwitchedBy> for crate::SwitchedBy {
    fn from(switch: SwitchedBy) -> Self {
        Self {
            enabled: switch.enabled,
            by: switch.by,
            at: WallMs(switch.at_wall_ms),
        }
    }
}

impl From<EventPosition> for Position {
    fn from(position: EventPosition) -> Self {
        Self {
            revision: position.revision,
            n: position.n,
        }
    }
}

impl From<Position> for EventPosition {
    fn from(position: Position) -> Self {
        Self {
            revision: position.revision,
            n: position.n,
        }
    }
}
