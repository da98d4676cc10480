//! What a device is and what was last read from it. Filled in by discovery and telemetry; never stored.

use alloc::string::String;
use alloc::vec::Vec;

use crate::ids::{DeviceKey, LeaseId};
use crate::time::BootMs;

/// One leasable unit of hardware, as discovery merged it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Host and id; the identity over restarts.
    pub key: DeviceKey,
    /// The product name, for people.
    pub name: String,
    /// Place in PCI bus order on the host, as `CUDA_DEVICE_ORDER=PCI_BUS_ID` counts; for people only.
    pub index: u32,
    /// Who made it.
    pub vendor: Vendor,
    /// What sort of hardware it is.
    pub kind: DeviceKind,
    /// `0000:65:00.0`, where there is a bus.
    pub pci_bus_id: Option<String>,
    /// The UUID that NVML knows it by; what `CUDA_VISIBLE_DEVICES` takes.
    pub nvml_uuid: Option<String>,
    /// The name and version of the driver, where known.
    pub driver: Option<String>,
    /// Memory that can ever be granted, in bytes.
    pub memory_total: u64,
    /// Whether used memory can be read at all. Without it a lease is advisory.
    pub telemetry: Telemetry,
    /// Whether it may be granted: CPU adapters only where the operator allows them.
    pub leasable: bool,
    /// The ways it was found, such as `nvml`, `wgpu` and `declared`.
    pub found_by: Vec<String>,
}

/// The maker of a device, where it matters to the environment of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A software renderer such as Mesa's llvmpipe.
    Cpu,
    /// A card with memory of its own.
    Discrete,
    /// Shares the memory of the host.
    Integrated,
    /// Declared in the configuration; exists in the books only.
    Simulated,
    /// Passed through by a hypervisor.
    Virtual,
}

/// Whether the memory in use on a device can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telemetry {
    /// Used memory is read by polling.
    Supported,
    /// Nothing can be read: grants rest on the books alone.
    Unsupported,
}

/// One reading of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The device.
    pub device: DeviceKey,
    /// When it was taken.
    pub taken: BootMs,
    /// Memory in use by anybody, in bytes.
    pub memory_used: u64,
    /// The processes that the driver reports on the device.
    pub processes: Vec<DeviceProcess>,
    /// Share of time in which a kernel ran, 0 to 100.
    pub utilisation_percent: Option<u8>,
    /// Temperature of the chip in degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Power draw in milliwatts.
    pub power_mw: Option<u32>,
}

/// A process that holds memory on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProcess {
    /// The process id as the driver reports it.
    pub pid: u32,
    /// Bytes in use; `None` where the driver does not say.
    pub memory: Option<u64>,
    /// The lease that it was attributed to; `None` is a foreign process.
    pub lease: Option<LeaseId>,
}
