//! What a client asks for, typed and bounded.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use crate::bytes::Bytes;
use crate::lease::HolderKind;
use crate::span::Span;
use crate::text::Text;

/// Body of `POST /v1/leases`. Every field has a default; `{}` asks for one whole device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct AcquireRequest {
    /// Who asks.
    pub holder: HolderRequest,
    /// The class of policy; the policy's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Text<64>>,
    /// How many devices, all or nothing: 1 to 64.
    pub devices: DeviceCount,
    /// Memory of each device; absent asks for whole devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Whole devices, alone. Excludes `memory`.
    pub exclusive: bool,
    /// Thousandths of each device's compute, 1 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<ComputeMilli>,
    /// Which devices may serve, such as `device.id == 'GPU-1'`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub select: Option<Text<2048>>,
    /// Longest time between heartbeats, 1s to 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// How long to wait for a grant; `0s` asks for an answer at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Span>,
    /// Longest time to hold the grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_hold: Option<Span>,
    /// Time that the holder needs to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_grace: Option<Span>,
    /// Takes each device's load slot until the holder says ready.
    pub load: bool,
    /// The name of an unload hook that the policy defines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_hook: Option<Text<64>>,
    /// Free words: up to 16 of 64 bytes each with values of up to 256 bytes.
    pub labels: Labels,
    /// Wait as a stored row that lives by renewals: answers 202 at once.
    pub queue: bool,
}

/// Who asks, as far as the caller says; the user is what the broker can verify.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HolderRequest {
    /// A name for people; the verified user's if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text<128>>,
    /// How the broker can know that the holder lives.
    pub kind: HolderKind,
    /// The tenant it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Text<64>>,
    /// Its process id; needed for `process`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// A supervisor started the process and expects the broker to signal it when its lease is forced to end.
    pub supervised: bool,
}

/// How many devices: 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "u64")]
#[schema(value_type = u32, minimum = 1, maximum = 64, default = 1)]
pub struct DeviceCount(u32);

/// Thousandths of a device's compute: 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "u64")]
#[schema(value_type = u32, minimum = 1, maximum = 1000)]
pub struct ComputeMilli(u32);

/// Longest time between heartbeats: 1s to 1h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Span")]
#[schema(value_type = String, example = "60s")]
pub struct Ttl(Span);

/// Free words of the holder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "BTreeMap<Text<64>, Text<256>>")]
#[schema(value_type = BTreeMap<String, String>)]
pub struct Labels(BTreeMap<Text<64>, Text<256>>);

/// How much of each device a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// This many bytes.
    Memory(NonZeroU64),
    /// All of it, alone.
    Whole,
}

impl AcquireRequest {
    /// How much of each device is asked for.
    pub fn demand(&self) -> Demand {
        match self.memory.and_then(|memory| NonZeroU64::new(memory.0)) {
            Some(bytes) if !self.exclusive => Demand::Memory(bytes),
            _ => Demand::Whole,
        }
    }
}

impl DeviceCount {
    /// Most devices of one request.
    pub const MAX: u64 = 64;

    /// The number, 1 to 64.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for DeviceCount {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u64> for DeviceCount {
    type Error = String;

    fn try_from(count: u64) -> Result<Self, String> {
        match u32::try_from(count) {
            Ok(number) if (1..=Self::MAX).contains(&count) => Ok(Self(number)),
            _ => Err(format!(
                "`{count}` devices: 1 to {} can be asked for",
                Self::MAX
            )),
        }
    }
}

impl ComputeMilli {
    /// The number, 1 to 1000.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for ComputeMilli {
    type Error = String;

    fn try_from(milli: u64) -> Result<Self, String> {
        match u32::try_from(milli) {
            Ok(number) if (1..=1000).contains(&milli) => Ok(Self(number)),
            _ => Err(format!(
                "`{milli}` thousandths of compute: 1 to 1000 can be asked for"
            )),
        }
    }
}

impl Ttl {
    /// Shortest time between heartbeats.
    pub const MIN: Span = Span::from_secs(1);
    /// Longest time between heartbeats.
    pub const MAX: Span = Span::from_secs(3600);

    /// The length.
    pub fn span(self) -> Span {
        self.0
    }
}

impl TryFrom<Span> for Ttl {
    type Error = String;

    fn try_from(span: Span) -> Result<Self, String> {
        match (Self::MIN..=Self::MAX).contains(&span) {
            true => Ok(Self(span)),
            false => Err(format!(
                "a ttl of {span}: 1s to 1h can be asked for (it is the time between heartbeats)"
            )),
        }
    }
}

impl Labels {
    /// Most labels of one request.
    pub const COUNT_MAX: usize = 16;

    /// The words by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl TryFrom<BTreeMap<Text<64>, Text<256>>> for Labels {
    type Error = String;

    fn try_from(labels: BTreeMap<Text<64>, Text<256>>) -> Result<Self, String> {
        match labels.len() <= Self::COUNT_MAX {
            true => Ok(Self(labels)),
            false => Err(format!(
                "`{}` labels: the most is {}",
                labels.len(),
                Self::COUNT_MAX
            )),
        }
    }
}

impl Serialize for AcquireRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

// `remote = "Self"` derives an inherent function that reads field by field; this one compares the fields too.
impl<'de> Deserialize<'de> for AcquireRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let request = Self::deserialize(deserializer)?;
        match contradiction(&request) {
            None => Ok(request),
            Some(sentence) => Err(de::Error::custom(sentence)),
        }
    }
}

/// What two fields of `request` say against each other.
fn contradiction(request: &AcquireRequest) -> Option<&'static str> {
    if request.memory == Some(Bytes(0)) {
        return Some(
            "`memory` is 0: ask for at least one byte, or leave it out for a whole device",
        );
    }
    if request.memory.is_some() && request.exclusive {
        return Some("`memory` and `exclusive` exclude each other: an exclusive device is whole");
    }
    if request.holder.kind == HolderKind::Process && request.holder.pid.is_none() {
        return Some("`holder.pid` is needed where `holder.kind` is `process`");
    }
    if request.max_hold == Some(Span::from_ms(0)) {
        return Some("`max_hold` is 0s: it is the time from the grant to the end");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_back_as_written() {
        let request = AcquireRequest {
            memory: Some(Bytes(1 << 30)),
            devices: DeviceCount(2),
            ttl: Some(Ttl(Span::from_secs(60))),
            labels: Labels(BTreeMap::from([(
                "reason".parse().expect("short"),
                "a try".parse().expect("short"),
            )])),
            ..AcquireRequest::default()
        };
        let json = serde_json::to_vec(&request).expect("plain data");
        assert_eq!(
            crate::decode::<AcquireRequest>(&json).expect("its own text"),
            request
        );
    }

    #[test]
    fn labels_are_counted() {
        let many: BTreeMap<Text<64>, Text<256>> = (0..17)
            .map(|n| {
                (
                    format!("k{n}").parse().expect("short"),
                    "v".parse().expect("short"),
                )
            })
            .collect();
        assert!(Labels::try_from(many).is_err());
    }
}
