//! Adapters of every vendor, through wgpu's Vulkan backend.
//!
//! wgpu does not say how much memory there is, nor a device's UUID; both are asked of Vulkan itself,
//! on the physical device behind wgpu's adapter. There is nothing to read: what a Vulkan driver
//! says of memory in use is one process's view.
#![expect(
    unsafe_code,
    reason = "the physical device behind wgpu's adapter is reached by its raw handle only"
)]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use ash::vk;
use wgpu::{
    Adapter, AdapterInfo, Backends, DeviceType, Instance, InstanceDescriptor, InstanceFlags,
};

use crate::source::{Discovery, Found, Kind, Readings, Source, SourceError, SourceName, Standing};

const AMD: u32 = 0x1002;

/// The Vulkan drivers of this host.
pub(crate) struct Vulkan;

impl Source for Vulkan {
    fn name(&self) -> SourceName {
        SourceName::Wgpu
    }

    fn discover(&mut self) -> Result<Discovery, SourceError> {
        let instance = Instance::new(InstanceDescriptor {
            backends: Backends::VULKAN,
            flags: InstanceFlags::ALLOW_UNDERLYING_NONCOMPLIANT_ADAPTER,
            ..InstanceDescriptor::new_without_display_handle()
        });
        let adapters = ready(instance.enumerate_adapters(Backends::VULKAN))?;
        match adapters.is_empty() {
            true => Ok(Discovery {
                standing: Standing::Absent,
                notes: vec!["no Vulkan driver is installed, or none finds a device".to_owned()],
                ..Discovery::default()
            }),
            false => Ok(Discovery {
                found: adapters.iter().map(found).collect(),
                ..Discovery::default()
            }),
        }
    }

    fn read(&mut self) -> Result<Readings, SourceError> {
        Ok(Readings::default())
    }
}

/// Takes the value of a future that is ready at once, as all of wgpu's are outside of browsers.
fn ready<T>(future: impl Future<Output = T>) -> Result<T, SourceError> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Ok(value),
        Poll::Pending => Err(SourceError("wgpu made us wait for adapters".to_owned())),
    }
}

fn found(adapter: &Adapter) -> Found {
    let info = adapter.get_info();
    let facts = physical(adapter);
    let uuid = facts.as_ref().and_then(|facts| facts.uuid.clone());
    Found {
        id: uuid.clone().unwrap_or_else(|| slug(&info.name)),
        pci_bus_id: Some(info.device_pci_bus_id.clone()).filter(|id| !id.is_empty()),
        uuid,
        vendor: Some(info.vendor),
        kind: Some(kind(info.device_type)),
        driver: Some(format!("{} {}", info.driver, info.driver_info)),
        memory_total: facts.map(|facts| memory_total(&info, &facts.local_heaps)),
        name: Some(info.name),
        ..Found::default()
    }
}

fn kind(device_type: DeviceType) -> Kind {
    match device_type {
        DeviceType::Cpu => Kind::Cpu,
        DeviceType::DiscreteGpu => Kind::Discrete,
        DeviceType::IntegratedGpu => Kind::Integrated,
        DeviceType::VirtualGpu | DeviceType::Other => Kind::Virtual,
    }
}

/// What only Vulkan itself says.
struct Physical {
    uuid: Option<String>,
    /// Sizes of the heaps that are local to the device, in bytes.
    local_heaps: Vec<u64>,
}

fn physical(adapter: &Adapter) -> Option<Physical> {
    // SAFETY: the adapter is only looked at, while the guard lives; nothing of it is destroyed.
    let hal = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let (instance, device) = (
        hal.shared_instance().raw_instance(),
        hal.raw_physical_device(),
    );
    let mut ids = vk::PhysicalDeviceIDProperties::default();
    let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut ids);
    // SAFETY: `device` belongs to `instance` and both live as long as the guard. wgpu demands
    // Vulkan 1.1 or the extension of this function, and the chained structure is part of both.
    let memory = unsafe {
        instance.get_physical_device_properties2(device, &mut properties);
        instance.get_physical_device_memory_properties(device)
    };
    let local = |heap: &&vk::MemoryHeap| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL);
    let heaps = memory.memory_heaps_as_slice().iter().filter(local);
    Some(Physical {
        uuid: hexadecimal(ids.device_uuid),
        local_heaps: heaps.map(|heap| heap.size).collect(),
    })
}

/// AMD's drivers split memory into heaps; others list windows into the one big heap next to it.
fn memory_total(info: &AdapterInfo, local_heaps: &[u64]) -> u64 {
    let heaps = local_heaps.iter().copied();
    match info.vendor {
        AMD => heaps.fold(0, u64::saturating_add),
        _ => heaps.max().unwrap_or(0),
    }
}

/// Drivers without a UUID give zeroes.
fn hexadecimal(uuid: [u8; 16]) -> Option<String> {
    let digits = uuid.iter().map(|byte| format!("{byte:02x}"));
    (uuid != [0; 16]).then(|| digits.collect())
}

fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join("-").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_ids() {
        assert_eq!(
            slug("llvmpipe (LLVM 15.0.6, 256 bits)"),
            "llvmpipe-llvm-15-0-6-256-bits"
        );
    }

    #[test]
    fn a_uuid_of_zeroes_is_none() {
        assert_eq!(hexadecimal([0; 16]), None);
        let digits = hexadecimal([0xab; 16]);
        assert_eq!(digits.as_deref(), Some("abababababababababababababababab"));
    }
}
