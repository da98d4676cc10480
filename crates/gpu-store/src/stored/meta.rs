//! Everything that is no lease and no event, as it is written.

use std::sync::Arc;

use gpu_lease::{Fence, WallMs};
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
        }
    }
}

impl From<Settings> for crate::Settings {
    fn from(settings: Settings) -> Self {
        Self {
            policy_watch: settings.policy_watch.map(Into::into),
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
