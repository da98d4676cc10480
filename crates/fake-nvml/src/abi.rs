//! The types of NVML's C interface that are answered: codes, structures, handles.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};

/// What every NVML call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Code(c_uint);

impl Code {
    pub(crate) const SUCCESS: Self = Self(0);
    pub(crate) const UNINITIALIZED: Self = Self(1);
    pub(crate) const INVALID_ARGUMENT: Self = Self(2);
    pub(crate) const NOT_SUPPORTED: Self = Self(3);
    pub(crate) const NO_PERMISSION: Self = Self(4);
    pub(crate) const NOT_FOUND: Self = Self(6);
    pub(crate) const INSUFFICIENT_SIZE: Self = Self(7);
    pub(crate) const DRIVER_NOT_LOADED: Self = Self(9);
    pub(crate) const GPU_IS_LOST: Self = Self(15);
    pub(crate) const RESET_REQUIRED: Self = Self(16);
    pub(crate) const DRIVER_MISMATCH: Self = Self(18);
    pub(crate) const VERSION_MISMATCH: Self = Self(25);
    pub(crate) const UNKNOWN: Self = Self(999);

    /// What `nvmlErrorString` says.
    pub(crate) fn text(self) -> &'static CStr {
        match self {
            Self::SUCCESS => c"Success",
            Self::UNINITIALIZED => c"Uninitialized",
            Self::INVALID_ARGUMENT => c"Invalid Argument",
            Self::NOT_SUPPORTED => c"Not Supported",
            Self::NO_PERMISSION => c"Insufficient Permissions",
            Self::NOT_FOUND => c"Not Found",
            Self::INSUFFICIENT_SIZE => c"Insufficient Size",
            Self::DRIVER_NOT_LOADED => c"Driver Not Loaded (fake)",
            Self::GPU_IS_LOST => c"GPU is lost",
            Self::RESET_REQUIRED => c"GPU requires reset",
            Self::DRIVER_MISMATCH => c"Driver/library version mismatch",
            Self::VERSION_MISMATCH => c"Argument version mismatch",
            _ => c"Unknown Error",
        }
    }
}

/// Turns what a body of an exported function says into its return value.
pub(crate) fn code_of(result: Result<(), Code>) -> Code {
    result.err().unwrap_or(Code::SUCCESS)
}

/// An opaque `nvmlDevice_t`: never dereferenced, it holds a mark and the place in the file.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Handle(usize);

impl Handle {
    const MARK: usize = 0x0fae_0000;

    pub(crate) fn of(place: usize) -> Self {
        Self(Self::MARK | place)
    }

    pub(crate) fn place(self) -> Option<usize> {
        (self.0 & !0xffff == Self::MARK).then_some(self.0 & 0xffff)
    }
}

#[repr(C)]
pub(crate) struct Memory {
    pub(crate) total: c_ulonglong,
    pub(crate) free: c_ulonglong,
    pub(crate) used: c_ulonglong,
}

#[repr(C)]
pub(crate) struct MemoryV2 {
    pub(crate) version: c_uint,
    pub(crate) total: c_ulonglong,
    pub(crate) reserved: c_ulonglong,
    pub(crate) free: c_ulonglong,
    pub(crate) used: c_ulonglong,
}

impl MemoryV2 {
    /// What the caller must have put into `version`: the size, and 2 in the top byte.
    pub(crate) const VERSION: c_uint = 40 | 2 << 24;
}

#[repr(C)]
pub(crate) struct Utilisation {
    pub(crate) gpu: c_uint,
    pub(crate) memory: c_uint,
}

#[repr(C)]
pub(crate) struct TemperatureV1 {
    pub(crate) version: c_uint,
    pub(crate) sensor: c_uint,
    pub(crate) celsius: c_int,
}

#[repr(C)]
pub(crate) struct ProcessV1 {
    pub(crate) pid: c_uint,
    pub(crate) memory: c_ulonglong,
}

/// The second and third version have one layout.
#[repr(C)]
pub(crate) struct ProcessV2 {
    pub(crate) pid: c_uint,
    pub(crate) memory: c_ulonglong,
    pub(crate) gpu_instance: c_uint,
    pub(crate) compute_instance: c_uint,
}

#[repr(C)]
pub(crate) struct PciInfo {
    pub(crate) bus_id_legacy: [c_char; 16],
    pub(crate) domain: c_uint,
    pub(crate) bus: c_uint,
    pub(crate) device: c_uint,
    pub(crate) device_id: c_uint,
    pub(crate) subsystem_id: c_uint,
    pub(crate) bus_id: [c_char; 32],
}

const _: () = assert!(size_of::<MemoryV2>() == 40);
const _: () = assert!(size_of::<ProcessV1>() == 16);
const _: () = assert!(size_of::<ProcessV2>() == 24);
const _: () = assert!(size_of::<PciInfo>() == 68);
