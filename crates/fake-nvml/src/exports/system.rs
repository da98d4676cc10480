//! Initialisation, versions, and finding cards.

use std::ffi::{c_char, c_int, c_uint};

use crate::abi::{Code, Handle};
use crate::config::{Card, Config, PciBusId};
use crate::pointer::{Buffer, Out, Text, put, put_text};
use crate::state::{count, handle_of, init, on_system, shutdown};

#[unsafe(no_mangle)]
extern "C" fn nvmlInit() -> Code {
    init()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Code {
    init()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    init()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Code {
    shutdown()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: Code) -> *const c_char {
    code.text().as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(text: Buffer<c_char>, len: c_uint) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    let room = unsafe { text.room(len) };
    on_system(|config| put_text(room, &config.driver_version()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetNVMLVersion(text: Buffer<c_char>, len: c_uint) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    let room = unsafe { text.room(len) };
    on_system(|config| put_text(room, &config.nvml_version()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetCudaDriverVersion(version: Out<'_, c_int>) -> Code {
    on_system(|config| put(version, config.cuda_version.cast_signed()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: Out<'_, c_int>) -> Code {
    on_system(|config| put(version, config.cuda_version.cast_signed()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetProcessName(
    pid: c_uint,
    text: Buffer<c_char>,
    len: c_uint,
) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    let room = unsafe { text.room(len) };
    on_system(|_| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe"));
        put_text(
            room,
            &program.map_err(|_| Code::NOT_FOUND)?.to_string_lossy(),
        )
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount(out: Out<'_, c_uint>) -> Code {
    on_system(|config| put(out, count(config)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(out: Out<'_, c_uint>) -> Code {
    on_system(|config| put(out, count(config)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex(index: c_uint, handle: Out<'_, Handle>) -> Code {
    on_system(|config| put(handle, handle_of(config, index as usize)?))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, handle: Out<'_, Handle>) -> Code {
    on_system(|config| put(handle, handle_of(config, index as usize)?))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: Text, handle: Out<'_, Handle>) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    let uuid = unsafe { uuid.read() };
    on_system(|config| {
        let uuid = uuid?;
        put(
            handle,
            find(config, |card, place| card.uuid(place) == uuid)?,
        )
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleBySerial(serial: Text, handle: Out<'_, Handle>) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    let serial = unsafe { serial.read() };
    on_system(|config| {
        let serial = serial?;
        let is_it = |card: &Card, _| card.serial.as_deref() == Some(serial);
        put(handle, find(config, is_it)?)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId(id: Text, handle: Out<'_, Handle>) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    by_bus_id(unsafe { id.read() }, handle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(id: Text, handle: Out<'_, Handle>) -> Code {
    // SAFETY: passes on what the C caller vouches for.
    by_bus_id(unsafe { id.read() }, handle)
}

fn by_bus_id(id: Result<&str, Code>, handle: Out<'_, Handle>) -> Code {
    on_system(|config| {
        let id = PciBusId::parse(id?).ok_or(Code::INVALID_ARGUMENT)?;
        put(
            handle,
            find(config, |card, place| card.pci_bus_id(place) == id)?,
        )
    })
}

fn find(config: &Config, is_it: impl Fn(&Card, usize) -> bool) -> Result<Handle, Code> {
    let mut cards = config.devices.iter().enumerate();
    let found = cards.find(|(place, card)| is_it(card, *place));
    handle_of(config, found.ok_or(Code::NOT_FOUND)?.0)
}
