//! The processes on a card: compute and graphics, in the three versions of the structure.

use std::ffi::{c_uint, c_ulonglong};

use crate::abi::{Code, Handle, ProcessV1, ProcessV2};
use crate::config::{Process, ProcessKind};
use crate::pointer::{Buffer, Out, put};
use crate::state::on_card;

const NOT_AVAILABLE: c_ulonglong = c_ulonglong::MAX;
const NO_INSTANCE: c_uint = c_uint::MAX;

/// One exported function that lists the processes of one kind in one layout.
macro_rules! list_processes {
    ($($name:ident: $kind:ident as $layout:ty;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(
            card: Handle,
            count: Option<&mut c_uint>,
            list: Buffer<$layout>,
        ) -> Code {
            // SAFETY: passes on what the C caller vouches for.
            unsafe { list_into(card, ProcessKind::$kind, count, list) }
        }
    )*};
}

list_processes! {
    nvmlDeviceGetComputeRunningProcesses: Compute as ProcessV1;
    nvmlDeviceGetComputeRunningProcesses_v2: Compute as ProcessV2;
    nvmlDeviceGetComputeRunningProcesses_v3: Compute as ProcessV2;
    nvmlDeviceGetGraphicsRunningProcesses: Graphics as ProcessV1;
    nvmlDeviceGetGraphicsRunningProcesses_v2: Graphics as ProcessV2;
    nvmlDeviceGetGraphicsRunningProcesses_v3: Graphics as ProcessV2;
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    card: Handle,
    count: Out<'_, c_uint>,
) -> Code {
    on_card(card, |_, _| put(count, 0))
}

/// Fills `list`, of which the caller said the length in `count`, and says in `count` how many there are.
///
/// # Safety
/// The C caller vouches for `count` writable elements.
unsafe fn list_into<T: for<'a> From<&'a Process>>(
    card: Handle,
    kind: ProcessKind,
    count: Option<&mut c_uint>,
    list: Buffer<T>,
) -> Code {
    on_card(card, |card, _| {
        let count = count.ok_or(Code::INVALID_ARGUMENT)?;
        // SAFETY: the contract of this function.
        let room = unsafe { list.room(*count) }.unwrap_or_default();
        let processes: Vec<_> = card.processes(kind).collect();
        *count = processes.len() as c_uint;
        if processes.len() > room.len() {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        for (place, process) in room.iter_mut().zip(processes) {
            place.write(T::from(process));
        }
        Ok(())
    })
}

impl From<&Process> for ProcessV1 {
    fn from(process: &Process) -> Self {
        Self {
            pid: process.pid,
            memory: process.memory.unwrap_or(NOT_AVAILABLE),
        }
    }
}

impl From<&Process> for ProcessV2 {
    fn from(process: &Process) -> Self {
        Self {
            pid: process.pid,
            memory: process.memory.unwrap_or(NOT_AVAILABLE),
            gpu_instance: NO_INSTANCE,
            compute_instance: NO_INSTANCE,
        }
    }
}
