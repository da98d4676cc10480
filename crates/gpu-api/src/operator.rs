//! What operators ask for, and what they are told.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::device::{Device, DeviceProcess};
use crate::lease::Lease;
use crate::span::Span;
use crate::text::Text;

/// Body of drain and revoke, for a lease and for a device. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DrainRequest {
    /// Time to stop. Absent: the policy's for a drain, none for a revoke.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<Span>,
    /// For the holder and the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<256>>,
}

/// Answer of `POST /v1/devices/{id}/drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceDrainResult {
    /// The device, cordoned.
    pub device: Device,
    /// The leases that were asked to stop.
    pub draining: Vec<Lease>,
}

/// Body of cordon, uncordon and clear-quarantine. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CordonRequest {
    /// For people and the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<256>>,
    /// When a cordon lifts by itself: `2h`, or an RFC 3339 timestamp.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "2h")]
    pub until: Option<Until>,
}

/// A point in time to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text<40>", into = "String")]
pub enum Until {
    /// This long from now.
    After(Span),
    /// An RFC 3339 timestamp, not looked at yet.
    At(String),
}

/// Body of `POST /v1/emergency-release`. At least one of `all`, `stuck`, `devices` and `leases`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmergencyRequest {
    /// Every lease, waiters too.
    pub all: bool,
    /// Those that end but do not go.
    pub stuck: bool,
    /// Those on these devices; up to 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Text<128>>,
    /// These; up to 1000.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Text<64>>,
    /// For the holders and the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Text<256>>,
    /// Also signal the registered processes, whatever `[reclaim] signal` says.
    pub kill: bool,
    /// Also make no new grants on the devices.
    pub cordon: bool,
    /// Believe that the memory is free without looking.
    pub force_unsafe: bool,
}

/// Which leases an emergency release ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every one.
    All,
    /// The union of these.
    Some {
        /// Those that end but do not go.
        stuck: bool,
        /// Those on these devices.
        devices: Vec<String>,
        /// These.
        leases: Vec<String>,
    },
}

/// Answer of `POST /v1/emergency-release`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EmergencyResult {
    /// What was done and what is really free, in one line.
    pub summary: String,
    /// The leases that were ended.
    pub released: Vec<EndedLease>,
    /// The waiters that were cancelled.
    pub cancelled: Vec<EndedLease>,
    /// The devices concerned, as they are afterwards.
    pub devices: Vec<DeviceFree>,
}

/// A lease that was ended, briefly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndedLease {
    /// The lease.
    pub id: String,
    /// Its holder's name.
    pub holder: String,
    /// The devices it held.
    pub devices: Vec<String>,
}

/// What is free on a device after an emergency release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceFree {
    /// The device's id.
    pub id: String,
    /// The device's place in PCI order.
    pub index: u32,
    /// All bytes.
    pub total: u64,
    /// Bytes that can be granted.
    pub free: u64,
    /// Bytes that are withheld until they are proven free.
    pub reclaiming: u64,
    /// Processes that still use memory.
    pub processes: Vec<DeviceProcess>,
    /// No new grants are made on it.
    pub cordoned: bool,
}

/// Body of `POST /v1/fences/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FenceCheck {
    /// The device's id.
    pub device: Text<128>,
    /// The fence that somebody shows.
    pub fence: u64,
}

/// Answer of `POST /v1/fences/check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FenceAnswer {
    /// Whether a granted lease on the device has this fence.
    pub current: bool,
}

impl EmergencyRequest {
    /// Most devices of one request.
    pub const DEVICES_MAX: usize = 64;
    /// Most leases of one request.
    pub const LEASES_MAX: usize = 1000;

    /// What is to end.
    ///
    /// # Errors
    /// A sentence if nothing is selected, `all` is mixed with a selection, or a list is too long.
    pub fn selection(&self) -> Result<Selection, &'static str> {
        let some = self.stuck || !self.devices.is_empty() || !self.leases.is_empty();
        if self.devices.len() > Self::DEVICES_MAX {
            return Err("more than 64 `devices`: use `all`");
        }
        if self.leases.len() > Self::LEASES_MAX {
            return Err("more than 1000 `leases`: use `all`");
        }
        match (self.all, some) {
            (true, false) => Ok(Selection::All),
            (true, true) => Err("`all` leaves nothing to select"),
            (false, false) => Err("nothing selected: give `all`, `stuck`, `devices` or `leases`"),
            (false, true) => Ok(Selection::Some {
                stuck: self.stuck,
                devices: self.devices.iter().map(ToString::to_string).collect(),
                leases: self.leases.iter().map(ToString::to_string).collect(),
            }),
        }
    }
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let not_a_time = || {
            format!(
                "`{}` is no time: write `2h`, or `2026-01-31T18:00:00Z`",
                crate::bytes::shortened(text)
            )
        };
        match text.parse::<Span>() {
            Ok(span) => Ok(Self::After(span)),
            Err(_) if text.len() <= 40 && text.contains('T') => Ok(Self::At(text.to_owned())),
            Err(_) => Err(not_a_time()),
        }
    }
}

impl TryFrom<Text<40>> for Until {
    type Error = String;

    fn try_from(text: Text<40>) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Until> for String {
    fn from(until: Until) -> Self {
        match until {
            Until::After(span) => format!("{}ms", span.as_ms()),
            Until::At(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emergency_selects_something() {
        let read = |json: &str| {
            crate::decode::<EmergencyRequest>(json.as_bytes())
                .expect(json)
                .selection()
        };
        assert_eq!(read(r#"{"all":true}"#), Ok(Selection::All));
        assert!(read("{}").is_err());
        assert!(read(r#"{"all":true,"stuck":true}"#).is_err());
        let some = Selection::Some {
            stuck: false,
            devices: vec!["GPU-1".to_owned()],
            leases: vec![],
        };
        assert_eq!(read(r#"{"devices":["GPU-1"]}"#), Ok(some));
    }

    #[test]
    fn a_point_in_time_is_a_length_or_a_timestamp() {
        assert_eq!("2h".parse(), Ok(Until::After(Span::from_secs(7200))));
        assert_eq!(
            "2026-01-31T18:00:00Z".parse(),
            Ok(Until::At("2026-01-31T18:00:00Z".to_owned()))
        );
        assert!("later".parse::<Until>().is_err());
    }
}
