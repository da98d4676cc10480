//! A device as the API shows it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::lease::{HolderKind, LeaseState};

/// One leasable unit of hardware, with what is held and read on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// The identity over restarts.
    pub id: String,
    /// Place in PCI order, from 0.
    pub index: u32,
    /// The product name.
    pub name: String,
    /// Who made it.
    pub vendor: Vendor,
    /// What sort of hardware.
    pub kind: DeviceKind,
    /// Such as `0000:65:00.0`, where there is a bus.
    pub pci_bus_id: Option<String>,
    /// Name and version of the driver, where known.
    pub driver: Option<String>,
    /// The ways it was found, such as `nvml`, `wgpu`, `declared`.
    pub found_by: Vec<String>,
    /// Declared in the configuration: there is no hardware behind it.
    pub simulated: bool,
    /// May be granted at all.
    pub leasable: bool,
    /// Bytes and where they are.
    pub memory: DeviceMemory,
    /// Share of time in which a kernel ran, 0 to 100.
    pub utilisation_percent: Option<u8>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Milliwatts.
    pub power_mw: Option<u32>,
    /// Whether the readings can be trusted.
    pub telemetry: Freshness,
    /// When it was last read.
    pub read_at: Option<String>,
    /// More is in use than the grants allow for.
    pub overcommitted: bool,
    /// Not seen any more.
    pub lost: bool,
    /// Memory of it is not believed free.
    pub quarantined: bool,
    /// Why no new grants are made on it.
    pub cordon: Option<Cordon>,
    /// Its leases were asked to stop.
    pub drain: Option<DeviceDrain>,
    /// Words that policy gives it.
    pub labels: Vec<String>,
    /// Who holds a part of it.
    pub leases: Vec<DeviceLease>,
    /// Who uses memory on it, as the driver reports.
    pub processes: Vec<DeviceProcess>,
}

/// Where the bytes of a device are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceMemory {
    /// All of it.
    pub total: u64,
    /// Never granted.
    pub reserve: u64,
    /// Granted to leases, those that are being reclaimed included.
    pub granted: u64,
    /// In use by anybody at the last reading; absent where it cannot be read.
    pub used: Option<u64>,
    /// In use by processes of no lease.
    pub foreign: u64,
    /// What could be granted.
    pub free: u64,
}

/// Who made a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// Advanced Micro Devices.
    Amd,
    /// Intel.
    Intel,
    /// NVIDIA.
    Nvidia,
    /// Any other.
    Other,
}

/// What sort of hardware a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A software renderer.
    Cpu,
    /// A card with memory of its own.
    Discrete,
    /// Shares the host's memory.
    Integrated,
    /// In the books only.
    Simulated,
    /// Passed through by a hypervisor.
    Virtual,
}

/// Whether readings can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// Read within three polls.
    Fresh,
    /// Not read for three polls.
    Stale,
    /// Cannot be read.
    Unsupported,
}

/// Why no new grants are made on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cordon {
    /// For people.
    pub reason: Option<String>,
    /// The admin, or the policy file.
    pub by: String,
    /// When it lifts by itself.
    pub until: Option<String>,
}

/// The leases of a device were asked to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceDrain {
    /// How many are still there.
    pub leases: u32,
    /// When the last of them is ended by force.
    pub deadline_at: String,
}

/// What a lease holds of the device that lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceLease {
    /// The lease.
    pub id: String,
    /// Its holder's name.
    pub holder: String,
    /// How the holder is known to live.
    pub kind: HolderKind,
    /// Where it stands.
    pub state: LeaseState,
    /// Bytes granted here.
    pub memory: u64,
    /// The device is its alone.
    pub exclusive: bool,
}

/// A process that uses memory on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceProcess {
    /// The process id.
    pub pid: u32,
    /// Bytes in use; absent where the driver does not say.
    pub memory: Option<u64>,
    /// The lease it belongs to; absent for a foreign one.
    pub lease: Option<String>,
    /// Its command; shown to admins and its owner only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// Answer of `GET /v1/devices`, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceList {
    /// Every device of the host.
    pub devices: Vec<Device>,
}
