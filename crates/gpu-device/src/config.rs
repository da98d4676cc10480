//! What to look for, as the operator configured it.

use std::path::PathBuf;

/// Which sources of devices are asked, and what they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Ask NVIDIA's driver library.
    pub nvml: bool,
    /// The driver library: a name that the dynamic linker finds, or a path.
    pub nvml_library: PathBuf,
    /// Ask Vulkan, through wgpu.
    pub wgpu: bool,
    /// Whether software renderers such as Mesa's llvmpipe may be leased. They are listed anyway.
    pub allow_cpu_adapters: bool,
    /// Where sysfs is mounted; amdgpu's memory counters are read below it.
    pub sysfs: PathBuf,
    /// Devices that exist in the books only, in the order in which they are listed.
    pub simulated: Vec<SimulatedDevice>,
}

impl Default for Config {
    /// Every source, the usual paths, no CPU adapters, nothing simulated.
    fn default() -> Self {
        Self {
            nvml: true,
            nvml_library: PathBuf::from("libnvidia-ml.so.1"),
            wgpu: true,
            allow_cpu_adapters: false,
            sysfs: PathBuf::from("/sys"),
            simulated: Vec::new(),
        }
    }
}

/// A device that the operator declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimulatedDevice {
    /// Its id, unique among all devices.
    pub id: String,
    /// The name that people see.
    pub name: String,
    /// Its memory in bytes, 1 to [`MAX_MEMORY_BYTES`](crate::MAX_MEMORY_BYTES).
    pub memory_bytes: u64,
}
