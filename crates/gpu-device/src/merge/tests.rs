//! The merge as tables: what the sources say, and what becomes of it.

use super::*;

const GIB: u64 = 1 << 30;
const UUID: &str = "GPU-6a1f0000-0000-4000-8000-000000000001";

const RULES: Rules = Rules {
    allow_cpu_adapters: false,
    nvml_absent: false,
};

fn nvml(uuid: &str, pci: &str) -> Found {
    Found {
        id: uuid.to_owned(),
        pci_bus_id: Some(pci.to_owned()),
        uuid: Some(uuid.trim_start_matches("GPU-").replace('-', "")),
        name: Some("GeForce RTX 4090".to_owned()),
        vendor: Some(0x10de),
        kind: Some(Kind::Discrete),
        driver: Some("nvidia 570".to_owned()),
        memory_total: Some(23 * GIB),
        readable: true,
        unusable: None,
    }
}

fn vulkan(name: &str, vendor: u32, kind: Kind, pci: Option<&str>) -> Found {
    Found {
        id: name.to_owned(),
        pci_bus_id: pci.map(str::to_owned),
        name: Some(name.to_owned()),
        vendor: Some(vendor),
        kind: Some(kind),
        driver: Some("vulkan".to_owned()),
        memory_total: Some(24 * GIB),
        ..Found::default()
    }
}

fn amdgpu(pci: &str) -> Found {
    Found {
        id: pci.to_owned(),
        pci_bus_id: Some(pci.to_owned()),
        vendor: Some(0x1002),
        memory_total: Some(16 * GIB),
        readable: true,
        ..Found::default()
    }
}

fn declared(id: &str) -> Found {
    Found {
        id: id.to_owned(),
        name: Some("Simulated A100".to_owned()),
        kind: Some(Kind::Simulated),
        memory_total: Some(80 * GIB),
        ..Found::default()
    }
}

fn merged(found: Vec<(SourceName, Found)>, rules: Rules) -> Merged {
    let mut known = BTreeMap::<SourceName, Discovery>::new();
    for (source, found) in found {
        known.entry(source).or_default().found.push(found);
    }
    merge(&known, rules)
}

fn ids(merged: &Merged) -> Vec<&str> {
    let ids = merged.devices.iter().map(|device| device.key.id.as_str());
    ids.collect()
}

#[test]
fn a_card_that_nvml_and_vulkan_see_is_one() {
    use SourceName::{Nvml, Wgpu};
    let by_address = vulkan("RTX 4090", 0x10de, Kind::Discrete, Some("0000:65:00.0"));
    let by_uuid = Found {
        uuid: Some("6a1f0000000040008000000000000001".to_owned()),
        ..vulkan("RTX 4090", 0x10de, Kind::Discrete, None)
    };
    for seen in [by_address, by_uuid] {
        let merged = merged(
            vec![(Nvml, nvml(UUID, "00000000:65:00.0")), (Wgpu, seen)],
            RULES,
        );
        let [device] = &merged.devices[..] else {
            panic!("one device, not {:?}", merged.devices)
        };
        assert_eq!(device.key, DeviceKey::local(UUID));
        assert_eq!(device.nvml_uuid.as_deref(), Some(UUID));
        assert_eq!(device.pci_bus_id.as_deref(), Some("0000:65:00.0"));
        assert_eq!(device.memory_total, 23 * GIB);
        assert_eq!(device.driver.as_deref(), Some("nvidia 570"));
        assert_eq!(device.telemetry, Telemetry::Supported);
        assert_eq!(device.found_by, ["nvml", "wgpu"]);
        assert!(device.leasable);
    }
}

#[test]
fn order_is_by_bus_then_by_id_then_as_declared() {
    use SourceName::{Amdgpu, Declared, Nvml, Wgpu};
    let merged = merged(
        vec![
            (Declared, declared("sim-b")),
            (Declared, declared("sim-a")),
            (Wgpu, vulkan("zink", 0x1, Kind::Virtual, None)),
            (Wgpu, vulkan("apple", 0x1, Kind::Virtual, None)),
            (Nvml, nvml("GPU-a", "00000000:b1:00.0")),
            (Nvml, nvml("GPU-b", "00000000:17:00.0")),
            (Amdgpu, amdgpu("0000:65:00.0")),
        ],
        RULES,
    );
    assert_eq!(
        ids(&merged),
        [
            "GPU-b",
            "pci-0000:65:00.0",
            "GPU-a",
            "vk-apple",
            "vk-zink",
            "sim-b",
            "sim-a"
        ]
    );
    let indexes: Vec<_> = merged.devices.iter().map(|device| device.index).collect();
    assert_eq!(indexes, [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn who_may_be_leased() {
    use SourceName::{Nvml, Wgpu};
    let cpu = || vulkan("llvmpipe", 0x10005, Kind::Cpu, None);
    let nvidia = || vulkan("4090", 0x10de, Kind::Discrete, Some("0000:65:00.0"));
    let intel = || vulkan("Arc", 0x8086, Kind::Discrete, Some("0000:03:00.0"));
    let cpu_allowed = Rules {
        allow_cpu_adapters: true,
        ..RULES
    };
    let no_nvml = Rules {
        nvml_absent: true,
        ..RULES
    };
    let mig = || Found {
        unusable: Some("MIG is on".to_owned()),
        ..nvml(UUID, "0000:65:00.0")
    };
    let empty = || Found {
        memory_total: Some(0),
        ..nvml(UUID, "0000:65:00.0")
    };
    for (case, source, found, rules, leasable) in [
        ("an Intel card", Wgpu, intel(), RULES, true),
        ("llvmpipe", Wgpu, cpu(), RULES, false),
        ("llvmpipe, allowed", Wgpu, cpu(), cpu_allowed, true),
        (
            "a card that NVML keeps quiet about",
            Wgpu,
            nvidia(),
            RULES,
            false,
        ),
        ("an NVIDIA card without NVML", Wgpu, nvidia(), no_nvml, true),
        ("a card cut into MIG instances", Nvml, mig(), RULES, false),
        ("a card without memory", Nvml, empty(), RULES, false),
    ] {
        let merged = merged(vec![(source, found)], rules);
        assert_eq!(merged.devices[0].leasable, leasable, "{case}");
        assert_eq!(merged.notes.is_empty(), leasable, "{case}: says why");
    }
}

#[test]
fn a_total_that_cannot_be_is_taken_from_the_next_source() {
    use SourceName::{Nvml, Wgpu};
    for total in [None, Some(0), Some(u64::MAX)] {
        let absurd = Found {
            memory_total: total,
            ..nvml(UUID, "0000:65:00.0")
        };
        let sane = vulkan("4090", 0x10de, Kind::Discrete, Some("0000:65:00.0"));
        let merged = merged(vec![(Nvml, absurd), (Wgpu, sane)], RULES);
        assert_eq!(merged.devices[0].memory_total, 24 * GIB, "{total:?}");
    }
}

#[test]
fn an_integrated_chip_counts_the_memory_it_shares() {
    use SourceName::{Amdgpu, Wgpu};
    let seen = vulkan(
        "Radeon 780M",
        0x1002,
        Kind::Integrated,
        Some("0000:65:00.0"),
    );
    let merged = merged(vec![(Amdgpu, amdgpu("0000:65:00.0")), (Wgpu, seen)], RULES);
    assert_eq!(merged.devices[0].memory_total, 24 * GIB);
    assert_eq!(merged.devices[0].telemetry, Telemetry::Unsupported);
}

#[test]
fn hostile_names_and_ids_are_tamed() {
    use SourceName::{Declared, Nvml, Wgpu};
    let loud = Found {
        name: Some(format!("\u{1b}[31mred\n{}", "x".repeat(500))),
        ..nvml("GPU-\"; rm -rf", "0000:65:00.0")
    };
    let merged = merged(
        vec![
            (Nvml, loud),
            (Wgpu, vulkan("no id: \n", 0x1, Kind::Virtual, None)),
            (Declared, declared("sim-0")),
            (Declared, declared("sim-0")),
        ],
        RULES,
    );
    assert_eq!(ids(&merged), ["pci-0000:65:00.0", "sim-0"]);
    assert!(merged.devices[0].name.starts_with("[31mredxxx"));
    assert_eq!(merged.devices[0].name.len(), MAX_NAME_CHARS);
    assert_eq!(merged.devices[0].nvml_uuid, None);
    assert_eq!(merged.notes.len(), 2);
}

#[test]
fn a_declared_device_stays_apart() {
    use SourceName::{Declared, Nvml};
    let imitation = Found {
        pci_bus_id: Some("0000:65:00.0".to_owned()),
        ..declared("sim-0")
    };
    let merged = merged(
        vec![(Nvml, nvml(UUID, "0000:65:00.0")), (Declared, imitation)],
        RULES,
    );
    assert_eq!(ids(&merged), [UUID, "sim-0"]);
    assert_eq!(merged.devices[1].kind, DeviceKind::Simulated);
    assert_eq!(merged.devices[1].telemetry, Telemetry::Unsupported);
}
