//! The devices of a scene, and what is read from them.

use gpu_lease::{
    At, Books, BootMs, Device, DeviceKey, DeviceKind, DeviceProcess, DeviceState, Reading,
    Telemetry, Vendor,
};

use super::GIB;
use crate::dice::Dice;

/// Id, memory in GiB, whether used memory can be read, whether it may be granted.
const CARDS: [(&str, u64, bool, bool); 5] = [
    ("gpu-0", 24, true, true),
    ("gpu-1", 24, true, true),
    ("gpu-2", 16, false, true),
    ("gpu-3", 8, true, true),
    ("cpu-0", 32, false, false),
];

/// So many devices.
pub(super) fn all(count: usize) -> Vec<Device> {
    (0..CARDS.len()).map(card).take(count).collect()
}

/// Mostly every device; some may be missing or look different.
pub(super) fn inventory(dice: &mut Dice, count: usize) -> Vec<Device> {
    let presence = dice.pick(&[100, 100, 80, 50]);
    let mut found: Vec<Device> = all(count)
        .into_iter()
        .filter(|_| dice.chance(presence))
        .collect();
    for device in &mut found {
        if dice.chance(5) {
            device.leasable = !device.leasable;
        }
        if dice.chance(5) {
            device.memory_total /= 2;
        }
    }
    found
}

/// A device of the scene, or in a few cases one that was never there.
pub(super) fn some_key(dice: &mut Dice) -> DeviceKey {
    let mut ids: Vec<&str> = CARDS.iter().map(|(id, ..)| *id).collect();
    if dice.chance(10) {
        ids.push("gpu-9");
    }
    DeviceKey::local(dice.pick(&ids))
}

/// A reading of every device with nobody there.
pub(super) fn idle(at: At) -> Vec<Reading> {
    let keys = CARDS.iter().map(|(id, ..)| DeviceKey::local(id));
    keys.map(|device| reading(device, at.boot)).collect()
}

/// Readings of most devices: holders within, at and over their grants, strangers, late numbers.
pub(super) fn readings(dice: &mut Dice, at: At, books: &Books) -> Vec<Reading> {
    let mut readings = Vec::new();
    for state in books.devices() {
        if dice.chance(90) {
            readings.push(observed(dice, at, books, state));
        }
    }
    if dice.chance(5) {
        readings.push(reading(DeviceKey::local("gpu-9"), at.boot));
    }
    readings
}

fn observed(dice: &mut Dice, at: At, books: &Books, state: &DeviceState) -> Reading {
    let age = dice.weighted(&[(80, 0), (8, 1_000), (5, 2_999), (5, 3_001), (2, 10_000)]);
    let taken = BootMs(at.boot.0.saturating_sub(age));
    let mut reading = reading(state.device.key.clone(), taken);
    for &id in &state.occupants {
        let grant = books.lease(id).and_then(|lease| lease.occupying());
        let part = grant.and_then(|grant| grant.on(&state.device.key));
        let granted = part.map_or(0, |part| part.memory);
        let used = granted / 100 * dice.pick(&[0, 25, 100, 100, 130]);
        let attributed = dice.chance(60);
        reading.memory_used += used;
        if attributed || dice.chance(50) {
            reading.processes.push(DeviceProcess {
                pid: 4_242,
                memory: dice.chance(90).then_some(used),
                lease: attributed.then_some(id),
            });
        }
    }
    let foreign = dice.weighted(&[
        (60, 0),
        (12, GIB / 4),
        (12, 3 * GIB),
        (6, 15 * GIB),
        (2, 30 * GIB),
    ]);
    reading.memory_used += foreign;
    reading
}

fn reading(device: DeviceKey, taken: BootMs) -> Reading {
    Reading {
        device,
        taken,
        memory_used: 0,
        processes: Vec::new(),
        utilisation_percent: None,
        temperature_c: None,
        power_mw: None,
    }
}

fn card(place: usize) -> Device {
    let (id, gib, readable, leasable) = CARDS[place];
    Device {
        key: DeviceKey::local(id),
        name: format!("Card {id}"),
        index: u32::try_from(place).expect("a handful of cards"),
        vendor: Vendor::Nvidia,
        kind: DeviceKind::Discrete,
        pci_bus_id: None,
        nvml_uuid: None,
        driver: None,
        memory_total: gib * GIB,
        telemetry: match readable {
            true => Telemetry::Supported,
            false => Telemetry::Unsupported,
        },
        leasable,
        found_by: Vec::new(),
    }
}
