//! Which devices this host has, and what is in use on them.
//!
//! Owns discovery (NVML, Vulkan through wgpu, amdgpu's sysfs files, declared devices), the merge of what
//! they found into one inventory, and the reading of memory and processes. Must never know of leases
//! or policy: it says what is there.
//!
//! Drivers are not trusted to answer, nor to survive. NVML and sysfs are asked in a child process that
//! lives on and is killed and started again when it does not answer in time; Vulkan is asked in a
//! child for each enumeration. [`Probe`] is the parent's side; the program that it starts calls
//! [`child::serve`] or [`child::enumerate`].
//!
//! ```no_run
//! use gpu_device::{Config, Probe, ProbeCommand};
//!
//! let probe = Probe::new(Config::default(), ProbeCommand::new("/usr/local/bin/gpu-manager", ["probe"]));
//! let inventory = probe.inventory()?;
//! for device in &inventory.devices {
//!     println!("{} {}", device.index, device.name);
//! }
//! # Ok::<(), gpu_device::InventoryError>(())
//! ```

pub mod child;
mod config;
mod locks;
mod merge;
mod pci;
mod probe;
mod reading;
mod source;
mod wire;

pub use config::{Config, SimulatedDevice};
pub use locks::{DeviceLocks, LOCK_DIR, LockError};
pub use merge::MAX_MEMORY_BYTES;
pub use probe::{
    Health, Inventory, InventoryError, Limits, LinkError, Note, Probe, ProbeCommand, ProbeState,
    ReadError,
};
