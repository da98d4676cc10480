//! Devices, leases, plans and reloads that tests show.

use gpu_api::{
    Allocation, Blocker, Breaker, Cordon, Device, DeviceDrain, DeviceKind, DeviceLease,
    DeviceMemory, Diagnostic, Enforcement, Freshness, Holder, HolderKind, Lease, LeaseState,
    PolicyPlan, ReloadOutcome, ReloadPhases, ReloadResult, ReloadState, ReloadTrigger, Severity,
    Vendor, Waiting, Wanted,
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

/// 12 GiB of a device.
pub(crate) fn device_lease() -> DeviceLease {
    DeviceLease {
        id: "l-1".to_owned(),
        holder: "test".to_owned(),
        kind: HolderKind::Remote,
        state: LeaseState::Active,
        memory: 12 << 30,
        exclusive: false,
    }
}

/// A cordon without an end.
pub(crate) fn cordon() -> Cordon {
    Cordon {
        reason: None,
        by: "ann".to_owned(),
        until: None,
    }
}

/// Two leases that have half a minute.
pub(crate) fn device_drain() -> DeviceDrain {
    DeviceDrain {
        leases: 2,
        deadline_at: "2026-01-01T12:00:30Z".to_owned(),
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

/// A plan of one changed setting that touches nobody.
pub(crate) fn plan() -> PolicyPlan {
    PolicyPlan {
        ok: true,
        hash: "bb".repeat(32),
        plan: "cafe".repeat(16),
        live: "aa".repeat(32),
        generation: 4,
        files: vec!["default.toml".to_owned()],
        changes: vec!["queue.order: fifo -> priority".to_owned()],
        leases: Vec::new(),
        denied: Vec::new(),
        summary: "no lease is touched".to_owned(),
        confirm_needed: false,
        impossible: Vec::new(),
        diagnostics: Vec::new(),
    }
}

/// A reload three minutes ago that changed one setting.
pub(crate) fn reload(outcome: ReloadOutcome) -> ReloadResult {
    ReloadResult {
        id: "7".to_owned(),
        outcome,
        summary: "generation 5 is live".to_owned(),
        trigger: ReloadTrigger::Api,
        by: "ann".to_owned(),
        at: "2026-01-01T11:57:00Z".to_owned(),
        took_ms: 5,
        phases: ReloadPhases {
            settle_us: None,
            read_us: Some(340),
            compile_us: 1_250,
            plan_us: 90,
            apply_us: 2_000,
            path: None,
        },
        generation: 5,
        previous_generation: 4,
        hash_before: "aa".repeat(32),
        hash: "bb".repeat(32),
        files: vec!["default.toml".to_owned()],
        changes: vec!["queue.order: fifo -> priority".to_owned()],
        leases: Vec::new(),
        denied: Vec::new(),
        stale: Vec::new(),
        plan: None,
        attempt: 0,
        diagnostics: Vec::new(),
    }
}

/// A watch that is on and has nothing to say.
pub(crate) fn reload_state() -> ReloadState {
    ReloadState {
        enabled: true,
        why: "only this host can connect".to_owned(),
        switched: None,
        dev: false,
        watching: vec!["/etc/gpu-manager/policies".to_owned()],
        on_disk_differs: false,
        error_since: None,
        candidate: None,
        breaker: Breaker::closed(),
        last: None,
        history: Vec::new(),
        counts: Vec::new(),
        draining_generations: Vec::new(),
        erring: Vec::new(),
        watch: None,
    }
}

/// A key that is misspelt.
pub(crate) fn diagnostic() -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        file: "default.toml".to_owned(),
        line: 12,
        column: 3,
        width: 9,
        message: "unknown key `prioritty`".to_owned(),
        hint: Some("did you mean `priority`?".to_owned()),
        source_line: Some("\t prioritty = 1".to_owned()),
    }
}
