//! An event as it is written; its position is the key of its row.

use gpu_lease::{LeaseId, ParseLeaseIdError, WallMs};
use serde::{Deserialize, Serialize};

use super::DeviceKey;
use super::words::EventKind;
use crate::event::{EventPosition, StoredEvent};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Event {
    wall_ms: u64,
    generation: u64,
    kind: EventKind,
    lease: Option<LeaseName>,
    device: Option<DeviceKey>,
    by: Option<String>,
    text: String,
    // Absent in rows of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    also_on: Vec<DeviceKey>,
}

/// A lease id as people know it.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct LeaseName(LeaseId);

impl Event {
    /// The event in the row of `position`.
    pub(crate) fn into_core(self, position: EventPosition) -> StoredEvent {
        StoredEvent {
            position,
            wall: WallMs(self.wall_ms),
            generation: self.generation,
            event: gpu_lease::Event {
                kind: self.kind.into(),
                lease: self.lease.map(|name| name.0),
                device: self.device.map(Into::into),
                by: self.by,
                text: self.text,
            },
            user: self.user,
            also_on: self.also_on.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<&StoredEvent> for Event {
    fn from(stored: &StoredEvent) -> Self {
        let event = &stored.event;
        Self {
            wall_ms: stored.wall.0,
            generation: stored.generation,
            kind: event.kind.into(),
            lease: event.lease.map(LeaseName),
            device: event.device.as_ref().map(DeviceKey::from),
            by: event.by.clone(),
            text: event.text.clone(),
            user: stored.user.clone(),
            also_on: stored.also_on.iter().map(DeviceKey::from).collect(),
        }
    }
}

impl From<LeaseName> for String {
    fn from(name: LeaseName) -> Self {
        name.0.to_string()
    }
}

impl TryFrom<String> for LeaseName {
    type Error = ParseLeaseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}
