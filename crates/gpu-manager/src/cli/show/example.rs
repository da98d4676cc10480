//! Devices and leases that tests show.

use gpu_api::{
    Allocation, Blocker, Device, DeviceKind, DeviceMemory, Enforcement, Freshness, Holder,
    HolderKind, Lease, LeaseState, Vendor, Waiting, Wanted,
};
use jiff::Timestamp;

/// The time in every example.
pub(crate) fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().expect("a timestamp")
}

/// An idle device of 80 GiB.
pub(crate) fn device(index: u32, id: &str) -> Device {
    Device {
        id: id.to_owned(),
        index,
        name: "Simulated A100".to_owned(),
        vendor: Vendor::Other,
        kind: DeviceKind::Simulated,
        pci_bus_id: None,
        driver: None,
        found_by: vec!["declared".to_owned()],
        simulated: true,
        leasable: true,
        memory: DeviceMemory {
            total: 80 << 30,
            free: 80 << 30,
            ..DeviceMemory::default()
        },
        utilisation_percent: None,
        temperature_c: None,
        power_mw: None,
        telemetry: Freshness::Unsupported,
        read_at: None,
        overcommitted: false,
        lost: false,
        quarantined: false,
        cordon: None,
        drain: None,
        labels: Vec::new(),
        leases: Vec::new(),
        processes: Vec::new(),
    }
}

/// 12 GiB on `sim-0`, for five minutes.
pub(crate) fn active(id: &str) -> Lease {
    Lease {
        id: id.to_owned(),
        revision: 1,
        state: LeaseState::Active,
        end_reason: None,
        fence: Some(7),
        unresponsive: false,
        reclaim: None,
        holder: Holder {
            name: "test".to_owned(),
            kind: HolderKind::Remote,
            tenant: None,
            user: "ann".to_owned(),
            pid: None,
        },
        class: "standard".to_owned(),
        priority: 0,
        wanted: Wanted {
            devices: 1,
            memory: Some(12 << 30),
            exclusive: false,
            select: None,
            max_hold_ms: None,
        },
        allocations: vec![Allocation {
            device: "sim-0".to_owned(),
            name: "Simulated A100".to_owned(),
            index: 0,
            memory: 12 << 30,
            exclusive: false,
            compute: None,
        }],
        env: Default::default(),
        waiting: None,
        loading: false,
        policy_generation: 1,
        created_at: "2026-01-01T11:50:00Z".to_owned(),
        granted_at: Some("2026-01-01T11:55:00Z".to_owned()),
        expires_at: None,
        remaining_ms: None,
        ttl_ms: 60_000,
        hold_until: None,
        ended_at: None,
        drain: None,
        observed: None,
        enforcement: Enforcement::Advisory,
        labels: Default::default(),
        secret: None,
    }
}

/// Second in the queue for ten minutes.
pub(crate) fn waiting(id: &str) -> Lease {
    Lease {
        state: LeaseState::Waiting,
        fence: None,
        allocations: Vec::new(),
        granted_at: None,
        waiting: Some(Waiting {
            position: 2,
            reason_code: "no_room".to_owned(),
            reason: "needs 12 GiB on one device".to_owned(),
            blockers: vec![Blocker {
                lease: Some("l-1".to_owned()),
                holder: "vllm-a".to_owned(),
                device: Some("sim-0".to_owned()),
                memory: Some(8 << 30),
                until: Some("2026-01-01T13:00:00Z".to_owned()),
            }],
            eligible_at: None,
            eta_ms: Some(120_000),
        }),
        ..active(id)
    }
}
