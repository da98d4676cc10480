//! A fake `libnvidia-ml.so`: NVML's C interface, answered from a TOML file, with faults.
//!
//! It is for tests and demonstrations on machines without an NVIDIA card. It owns the C interface and
//! nothing else, and must never know of leases or of the broker. It cannot pass for a driver: without
//! the file it says "driver not loaded", every card's name starts with `Fake `, and the driver and
//! library versions end in `-fake`.
//!
//! # Use
//! Set `FAKE_NVML_CONFIG` to the path of the file. A Rust program that loads NVML by path loads
//! [`built_library`]; a Python program that loads `libnvidia-ml.so.1` finds it through a symbolic link
//! of that name in a directory that `LD_LIBRARY_PATH` names.
//!
//! The file is read at each call, so an edit changes the next answer. A file that cannot be read as
//! this format is reported once on stderr and changes nothing; before the first good one NVML cannot
//! be initialised and says "unknown error".
//!
//! # The file
//! Everything is optional. An amount of memory is a number of bytes or text such as `"24GiB"`.
//!
//! ```toml
//! driver_version = "570.86.10"   # `-fake` is appended
//! nvml_version = "12.570.86.10"
//! cuda_version = 12080           # 1000 * major + 10 * minor
//! init_fault = "driver_mismatch" # only nvmlInit fails
//! fault = "unknown"              # every call fails
//! slow_ms = 200                  # every call takes this much longer
//!
//! [[device]]
//! name = "GeForce RTX 4090"      # shown as `Fake GeForce RTX 4090`
//! uuid = "GPU-6a1f0000-0000-4000-8000-000000000001"
//! serial = "1234567890"          # absent, as any reading below: not supported
//! pci_bus_id = "0000:65:00.0"
//! memory_total = "24GiB"         # "0" to "18446744073709551615": absurd values are for tests
//! memory_reserved = "400MiB"     # what the driver keeps for itself
//! memory_used = "9GiB"           # by default the sum over the processes
//! utilisation_percent = 42
//! temperature_c = 61
//! power_mw = 212000
//! power_limit_mw = 450000
//! fan_percent = 30
//! graphics_clock_mhz = 2520
//! memory_clock_mhz = 10501
//! mig = false
//! fault = "lost"                 # every call on this card
//! slow_ms = 50
//!
//! [[device.process]]
//! pid = 4242
//! memory = "9GiB"                # absent: the driver does not say
//! kind = "compute"               # or "graphics"
//! ```
//!
//! Faults: `hang` (blocks until the file says otherwise), `crash` (aborts the process that called),
//! `take_memory` (takes address space, and touches none of it, until there is no more, which aborts the
//! process; where nothing limits it, it stops at 64 GiB and says "unknown error"), `lost`,
//! `reset_required`, `unknown`, `driver_mismatch`, `driver_not_loaded`, `not_found`, `no_permission`,
//! `not_supported`.
//!
//! MIG instances, events, NVLink and everything that changes a card are not there: where the tools ask
//! for one it says "not supported".
#![expect(
    unsafe_code,
    reason = "exports a C interface: unmangled names, and buffers that come with a pointer and a length"
)]

mod abi;
mod config;
mod exports;
mod pointer;
mod state;

use std::path::PathBuf;

/// Where cargo put the shared library of this crate, seen from a test that depends on it.
///
/// Cargo builds the library of a dependency into the folder of the test executables
/// (`target/<profile>/deps`), without a hash in its name.
///
/// # Panics
/// If the calling executable is not in that folder.
pub fn built_library() -> PathBuf {
    let executable = std::env::current_exe().expect("the path of the running executable is known");
    let library = executable.with_file_name("libfake_nvml.so");
    assert!(
        library.exists(),
        "no `{}`: is this a test with `fake-nvml` as a dev-dependency?",
        library.display()
    );
    library
}
