//! Devices that the operator declared. They are in the books only: there is nothing to read.

use crate::config::SimulatedDevice;
use crate::source::{Discovery, Found, Kind};

/// The declared devices, in their order.
pub(crate) fn declared(devices: &[SimulatedDevice]) -> Discovery {
    let found = devices.iter().map(|device| Found {
        id: device.id.clone(),
        name: Some(device.name.clone()),
        kind: Some(Kind::Simulated),
        memory_total: Some(device.memory_bytes),
        ..Found::default()
    });
    Discovery {
        found: found.collect(),
        ..Discovery::default()
    }
}
