//! Evaluation with made-up inputs: an expression that has a value for none of them is refused.

use std::collections::{BTreeMap, BTreeSet};

use gpu_lease::{
    Amount, Device, DeviceKey, DeviceKind, DeviceSettings, DeviceState, Holder, HolderKind, Ms,
    Request, Select, Share, Standing, Telemetry, Usage, Vendor, WallMs,
};

use super::Fault;
use super::check::Checked;
use super::eval;
use super::inputs::Inputs;

/// How much of everything there is in a probe.
#[derive(Clone, Copy, Debug)]
struct Much {
    count: u32,
    bytes: u64,
    /// 2026-01-15T18:05Z and so on.
    now: WallMs,
    /// What every label says; `None` has no labels.
    label: Option<&'static str>,
}

const PROBES: [Much; 4] = [
    Much {
        count: 1,
        bytes: 24 << 30,
        now: WallMs(1_768_500_300_000),
        label: Some("1"),
    },
    Much {
        count: 0,
        bytes: 0,
        now: WallMs(0),
        label: None,
    },
    Much {
        count: u32::MAX,
        bytes: u64::MAX,
        now: WallMs(u64::MAX),
        label: Some(""),
    },
    Much {
        count: 2,
        bytes: 1,
        now: WallMs(1_774_747_800_000),
        label: Some("a"),
    },
];

/// Whether `checked` has a value for anything at all.
pub(super) fn probe(checked: &Checked) -> Result<(), Fault> {
    let mut failed = None;
    for much in PROBES {
        let (request, state) = (request(much, &checked.labels), state(much));
        let inputs =
            Inputs::of_request(&request, &standing(much), much.now, None).with_device(&state);
        match eval::evaluate(&checked.node, &inputs) {
            Ok(_) => return Ok(()),
            Err(failure) => failed = Some(failure),
        }
    }
    let why = failed
        .map(|failure| failure.to_string())
        .unwrap_or_default();
    Err(Fault::new(format!(
        "the expression fails for every request: {why}"
    )))
}

fn request(much: Much, labels: &[String]) -> Request {
    let label = |text: &str| {
        let labels = labels.iter().map(|name| (name.clone(), text.to_owned()));
        labels.collect::<BTreeMap<_, _>>()
    };
    Request {
        holder: Holder {
            name: "probe".to_owned(),
            kind: HolderKind::Remote,
            tenant: None,
            user: "anonymous".to_owned(),
            tenant_found: false,
            pid: None,
        },
        class: "standard".to_owned(),
        devices: much.count.max(1),
        amount: match much.bytes {
            0 => Amount::Exclusive,
            bytes => Amount::Memory(bytes),
        },
        select: Select::default(),
        ttl: Ms::from_secs(60),
        wait: Ms(much.bytes),
        max_hold: None,
        drain_grace: None,
        load: false,
        queue: false,
        idempotency: None,
        labels: much.label.map(label).unwrap_or_default(),
    }
}

fn standing(much: Much) -> Standing {
    let share = Share {
        leases: much.count,
        devices: much.count,
        memory: much.bytes,
    };
    Standing {
        held: share,
        grantable: much.bytes,
        waiting: much.count,
        user: share,
        tenant: share,
    }
}

fn state(much: Much) -> DeviceState {
    DeviceState {
        device: Device {
            index: much.count,
            memory_total: much.bytes,
            ..device()
        },
        settings: DeviceSettings {
            reserve: 0,
            load_slots: 1,
            labels: much.label.map(str::to_owned).into_iter().collect(),
            cordon: None,
        },
        cordon: None,
        reading: None,
        lost_since: None,
        read_after: None,
        occupants: BTreeSet::new(),
        peaks: BTreeMap::new(),
        usage: Usage {
            granted: much.bytes,
            ..Usage::default()
        },
    }
}

/// A device of no account.
pub(super) fn device() -> Device {
    Device {
        key: DeviceKey::local("GPU-probe"),
        name: "Probe".to_owned(),
        index: 0,
        vendor: Vendor::Nvidia,
        kind: DeviceKind::Simulated,
        pci_bus_id: None,
        nvml_uuid: None,
        driver: None,
        memory_total: 0,
        telemetry: Telemetry::Unsupported,
        leasable: true,
        found_by: Vec::new(),
    }
}
