//! What a card is and what it reads.

use std::ffi::{c_char, c_int, c_uint};

use crate::abi::{Code, Handle, Memory, MemoryV2, PciInfo, TemperatureV1, Utilisation};
use crate::config::Card;
use crate::pointer::{Buffer, Out, put, put_if_known, put_text, text_array};
use crate::state::on_card;

const TEMPERATURE_SENSOR_GPU: c_uint = 0;
const CLOCK_MEMORY: c_uint = 2;
const CLOCK_VIDEO: c_uint = 3;
const FAKE_PCI_DEVICE: c_uint = 0xfa4e_10de;

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(card: Handle, text: Buffer<c_char>, len: c_uint) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    let room = unsafe { text.room(len) };
    on_card(card, |card, _| put_text(room, &card.name()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(card: Handle, text: Buffer<c_char>, len: c_uint) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    let room = unsafe { text.room(len) };
    on_card(card, |card, place| put_text(room, &card.uuid(place)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSerial(card: Handle, text: Buffer<c_char>, len: c_uint) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    let room = unsafe { text.room(len) };
    on_card(card, |card, _| {
        put_text(room, card.serial.as_deref().ok_or(Code::NOT_SUPPORTED)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetIndex(card: Handle, index: Out<'_, c_uint>) -> Code {
    on_card(card, |_, place| put(index, place as c_uint))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMinorNumber(card: Handle, minor: Out<'_, c_uint>) -> Code {
    on_card(card, |_, place| put(minor, place as c_uint))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetBrand(card: Handle, brand: Out<'_, c_uint>) -> Code {
    const UNKNOWN: c_uint = 0;
    on_card(card, |_, _| put(brand, UNKNOWN))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPersistenceMode(card: Handle, on: Out<'_, c_uint>) -> Code {
    on_card(card, |_, _| put(on, 0))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeMode(card: Handle, mode: Out<'_, c_uint>) -> Code {
    const DEFAULT: c_uint = 0;
    on_card(card, |_, _| put(mode, DEFAULT))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetDisplayMode(card: Handle, on: Out<'_, c_uint>) -> Code {
    on_card(card, |_, _| put(on, 0))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetDisplayActive(card: Handle, on: Out<'_, c_uint>) -> Code {
    on_card(card, |_, _| put(on, 0))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPerformanceState(card: Handle, state: Out<'_, c_uint>) -> Code {
    on_card(card, |_, _| put(state, 0))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCudaComputeCapability(
    card: Handle,
    major: Out<'_, c_int>,
    minor: Out<'_, c_int>,
) -> Code {
    on_card(card, |_, _| put(major, 8).and(put(minor, 9)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigMode(
    card: Handle,
    current: Out<'_, c_uint>,
    pending: Out<'_, c_uint>,
) -> Code {
    on_card(card, |card, _| {
        let mode = card.mig.map(c_uint::from);
        put_if_known(current, mode).and(put_if_known(pending, mode))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxMigDeviceCount(card: Handle, count: Out<'_, c_uint>) -> Code {
    on_card(card, |_, _| put(count, 0))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceIsMigDeviceHandle(card: Handle, is_mig: Out<'_, c_uint>) -> Code {
    on_card(card, |_, _| put(is_mig, 0))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPciInfo(card: Handle, out: Out<'_, PciInfo>) -> Code {
    on_card(card, |card, place| put(out, pci_info(card, place)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPciInfo_v2(card: Handle, out: Out<'_, PciInfo>) -> Code {
    on_card(card, |card, place| put(out, pci_info(card, place)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPciInfo_v3(card: Handle, out: Out<'_, PciInfo>) -> Code {
    on_card(card, |card, place| put(out, pci_info(card, place)))
}

/// The first version counts what the driver reserves as used.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo(card: Handle, out: Out<'_, Memory>) -> Code {
    on_card(card, |card, _| {
        let used = card.memory_used().saturating_add(card.memory_reserved);
        put(
            out,
            Memory {
                total: card.memory_total,
                free: card.memory_total.saturating_sub(used),
                used,
            },
        )
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(card: Handle, out: Option<&mut MemoryV2>) -> Code {
    on_card(card, |card, _| {
        let out = out.ok_or(Code::INVALID_ARGUMENT)?;
        if out.version != MemoryV2::VERSION {
            return Err(Code::VERSION_MISMATCH);
        }
        let (total, reserved, used) = (card.memory_total, card.memory_reserved, card.memory_used());
        *out = MemoryV2 {
            version: out.version,
            total,
            reserved,
            free: total.saturating_sub(reserved).saturating_sub(used),
            used,
        };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUtilizationRates(card: Handle, out: Out<'_, Utilisation>) -> Code {
    on_card(card, |card, _| {
        let rates = card
            .utilisation_percent
            .map(|gpu| Utilisation { gpu, memory: 0 });
        put_if_known(out, rates)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTemperature(
    card: Handle,
    sensor: c_uint,
    celsius: Out<'_, c_uint>,
) -> Code {
    on_card(card, |card, _| match sensor {
        TEMPERATURE_SENSOR_GPU => put_if_known(celsius, card.temperature_c),
        _ => Err(Code::INVALID_ARGUMENT),
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTemperatureV(card: Handle, out: Option<&mut TemperatureV1>) -> Code {
    on_card(card, |card, _| {
        let out = out.ok_or(Code::INVALID_ARGUMENT)?;
        if (out.version & 0xff_ffff, out.sensor) != (12, TEMPERATURE_SENSOR_GPU) {
            return Err(Code::INVALID_ARGUMENT);
        }
        let celsius = card.temperature_c.ok_or(Code::NOT_SUPPORTED)?;
        out.celsius = c_int::try_from(celsius).unwrap_or(c_int::MAX);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerUsage(card: Handle, milliwatts: Out<'_, c_uint>) -> Code {
    on_card(card, |card, _| put_if_known(milliwatts, card.power_mw))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerManagementLimit(card: Handle, limit: Out<'_, c_uint>) -> Code {
    on_card(card, |card, _| put_if_known(limit, card.power_limit_mw))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEnforcedPowerLimit(card: Handle, limit: Out<'_, c_uint>) -> Code {
    on_card(card, |card, _| put_if_known(limit, card.power_limit_mw))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNumFans(card: Handle, count: Out<'_, c_uint>) -> Code {
    on_card(card, |card, _| {
        put(count, c_uint::from(card.fan_percent.is_some()))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetFanSpeed(card: Handle, percent: Out<'_, c_uint>) -> Code {
    on_card(card, |card, _| put_if_known(percent, card.fan_percent))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetFanSpeed_v2(
    card: Handle,
    fan: c_uint,
    percent: Out<'_, c_uint>,
) -> Code {
    on_card(card, |card, _| match fan {
        0 => put_if_known(percent, card.fan_percent),
        _ => Err(Code::INVALID_ARGUMENT),
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetClockInfo(card: Handle, clock: c_uint, mhz: Out<'_, c_uint>) -> Code {
    on_card(card, |card, _| put_if_known(mhz, clock_mhz(card, clock)?))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxClockInfo(card: Handle, clock: c_uint, mhz: Out<'_, c_uint>) -> Code {
    on_card(card, |card, _| put_if_known(mhz, clock_mhz(card, clock)?))
}

fn clock_mhz(card: &Card, clock: c_uint) -> Result<Option<c_uint>, Code> {
    match clock {
        CLOCK_MEMORY => Ok(card.memory_clock_mhz),
        0..=CLOCK_VIDEO => Ok(card.graphics_clock_mhz),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}

fn pci_info(card: &Card, place: usize) -> PciInfo {
    let id = card.pci_bus_id(place);
    PciInfo {
        bus_id_legacy: text_array(&id.legacy_text()),
        domain: id.domain,
        bus: id.bus,
        device: id.device,
        device_id: FAKE_PCI_DEVICE,
        subsystem_id: FAKE_PCI_DEVICE,
        bus_id: text_array(&id.text()),
    }
}
