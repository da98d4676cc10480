//! The one trait behind which devices are found and read, and what it speaks in.
//!
//! Everything here is as the driver said it. What is believed is decided in `merge` and `reading`.

mod amdgpu;
mod declared;
mod nvml;
mod vulkan;

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use amdgpu::Amdgpu;
pub(crate) use declared::declared;
pub(crate) use nvml::Nvml;
pub(crate) use vulkan::Vulkan;

/// A way to find devices, and perhaps to read them.
pub(crate) trait Source {
    /// Which one it is.
    fn name(&self) -> SourceName;

    /// The devices that there are now.
    fn discover(&mut self) -> Result<Discovery, SourceError>;

    /// What is in use on them now.
    fn read(&mut self) -> Result<Readings, SourceError>;
}

/// The sources, most trusted first: of two that know a fact, the first is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SourceName {
    Nvml,
    Amdgpu,
    Wgpu,
    Declared,
}

impl SourceName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Nvml => "nvml",
            Self::Amdgpu => "amdgpu",
            Self::Wgpu => "wgpu",
            Self::Declared => "declared",
        }
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a source cannot answer at all.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct SourceError(pub(crate) String);

/// What a source found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Discovery {
    pub(crate) standing: Standing,
    pub(crate) found: Vec<Found>,
    /// What an operator should know: which device could not be asked, what is not installed.
    pub(crate) notes: Vec<String>,
}

/// How far an answer can be relied on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// A device that is not listed is not there.
    #[default]
    Complete,
    /// Some device did not say who it is; it may be one known from before.
    Partial,
    /// This host has no such driver.
    Absent,
}

/// One device as one source sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Unique within the source, and stable: readings refer to it.
    pub(crate) id: String,
    pub(crate) pci_bus_id: Option<String>,
    /// The UUID that the driver gives the hardware, as 32 hexadecimal digits.
    pub(crate) uuid: Option<String>,
    pub(crate) name: Option<String>,
    /// The PCI vendor number.
    pub(crate) vendor: Option<u32>,
    pub(crate) kind: Option<Kind>,
    pub(crate) driver: Option<String>,
    /// Bytes that can be granted.
    pub(crate) memory_total: Option<u64>,
    /// Whether this source can read the memory in use.
    pub(crate) readable: bool,
    /// Why it must not be leased.
    pub(crate) unusable: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Cpu,
    Discrete,
    Integrated,
    Simulated,
    Virtual,
}

/// What a source read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Readings {
    /// The ids of all devices that are there, read or not; `None` where one did not say who it is.
    pub(crate) present: Option<Vec<String>>,
    pub(crate) readings: Vec<RawReading>,
    /// Which device could not be read, and why.
    pub(crate) notes: Vec<String>,
}

/// One device as read, not yet believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RawReading {
    /// [`Found::id`] of the device.
    pub(crate) id: String,
    pub(crate) memory_used: u64,
    pub(crate) processes: Vec<RawProcess>,
    pub(crate) utilisation_percent: Option<u32>,
    pub(crate) temperature_c: Option<u32>,
    pub(crate) power_mw: Option<u32>,
}

/// A process on a device as the driver lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RawProcess {
    pub(crate) pid: u32,
    pub(crate) memory: Option<u64>,
}
