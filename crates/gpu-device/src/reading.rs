//! From what a driver read to what the books may believe.

use gpu_lease::{BootMs, DeviceProcess, Reading};

use crate::merge::Target;
use crate::source::{RawProcess, RawReading};

/// Processes beyond this number on one device are not listed.
const MAX_PROCESSES_OF_DEVICE: usize = 4096;
const MAX_TEMPERATURE_C: u32 = 200;
const MAX_POWER_MW: u32 = 10_000_000;

/// The reading of `target`, or why it cannot be true.
///
/// A side value that cannot be true is left out; used memory that cannot be true makes the whole
/// reading worthless, because grants rest on it.
pub(crate) fn believe(raw: RawReading, target: &Target, taken: BootMs) -> Result<Reading, String> {
    let total = target.memory_total;
    if raw.memory_used > total {
        return Err(format!(
            "`{}` says that {} of {total} bytes are in use",
            target.key, raw.memory_used
        ));
    }
    let processes = raw.processes.into_iter().take(MAX_PROCESSES_OF_DEVICE);
    Ok(Reading {
        device: target.key.clone(),
        taken,
        memory_used: raw.memory_used,
        processes: processes
            .filter_map(|listed| process(&listed, total))
            .collect(),
        utilisation_percent: at_most(raw.utilisation_percent, 100)
            .and_then(|percent| percent.try_into().ok()),
        temperature_c: at_most(raw.temperature_c, MAX_TEMPERATURE_C),
        power_mw: at_most(raw.power_mw, MAX_POWER_MW),
    })
}

fn process(listed: &RawProcess, total: u64) -> Option<DeviceProcess> {
    (listed.pid != 0).then(|| DeviceProcess {
        pid: listed.pid,
        memory: listed.memory.filter(|bytes| *bytes <= total),
        lease: None,
    })
}

fn at_most(value: Option<u32>, most: u32) -> Option<u32> {
    value.filter(|value| *value <= most)
}

#[cfg(test)]
mod tests {
    use gpu_lease::DeviceKey;

    use super::*;

    fn target() -> Target {
        Target {
            key: DeviceKey::local("GPU-1"),
            memory_total: 1000,
        }
    }

    #[test]
    fn more_memory_in_use_than_there_is_voids_the_reading() {
        for (memory_used, believed) in [(0, true), (1000, true), (1001, false), (u64::MAX, false)] {
            let raw = RawReading {
                memory_used,
                ..RawReading::default()
            };
            let reading = believe(raw, &target(), BootMs(7));
            assert_eq!(reading.is_ok(), believed, "{memory_used}");
        }
    }

    #[test]
    fn other_absurd_values_are_left_out() {
        let raw = RawReading {
            memory_used: 10,
            processes: vec![
                RawProcess {
                    pid: 0,
                    memory: Some(1),
                },
                RawProcess {
                    pid: 42,
                    memory: Some(u64::MAX),
                },
            ],
            utilisation_percent: Some(101),
            temperature_c: Some(u32::MAX),
            power_mw: Some(u32::MAX),
            ..RawReading::default()
        };
        let reading = believe(raw, &target(), BootMs(7)).expect("memory is plausible");
        assert_eq!(reading.utilisation_percent, None);
        assert_eq!(reading.temperature_c, None);
        assert_eq!(reading.power_mw, None);
        let [process] = &reading.processes[..] else {
            panic!("one process, not {:?}", reading.processes)
        };
        assert_eq!((process.pid, process.memory), (42, None));
    }

    #[test]
    fn the_list_of_processes_is_bounded() {
        let listed = |pid| RawProcess { pid, memory: None };
        let raw = RawReading {
            processes: (1..=100_000).map(listed).collect(),
            ..RawReading::default()
        };
        let reading = believe(raw, &target(), BootMs(7)).expect("memory is plausible");
        assert_eq!(reading.processes.len(), MAX_PROCESSES_OF_DEVICE);
    }
}
