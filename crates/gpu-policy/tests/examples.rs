//! What the policies under `policies/` do to requests that people make.

use std::collections::BTreeMap;

use gpu_lease::{
    Amount, Confirm, Device, DeviceKey, DeviceKind, Held, Holder, HolderKind, Ms, Policy,
    QueueOrder, Request, Select, Sets, Share, Standing, Strategy, Telemetry, Vendor, Verdict,
    WallMs,
};
use gpu_policy::{SourceFile, compile_with_warnings};
use jiff::Timestamp;

const GIB: u64 = 1 << 30;

fn policy(text: &str) -> Policy {
    let file = SourceFile::new("default.toml", text);
    let compiled = compile_with_warnings(&[file], &[]).unwrap_or_else(|errors| panic!("{errors}"));
    let warnings: Vec<String> = compiled.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    compiled.policy
}

/// What `who` asks for: 8 GiB of one device.
fn request(who: &str, class: &str) -> Request {
    Request {
        holder: Holder {
            name: "job".to_owned(),
            kind: HolderKind::Remote,
            tenant: None,
            user: who.to_owned(),
            tenant_found: false,
            pid: None,
        },
        class: class.to_owned(),
        devices: 1,
        amount: Amount::Memory(8 * GIB),
        select: Select::default(),
        ttl: Ms::from_secs(60),
        wait: Ms(0),
        max_hold: None,
        drain_grace: None,
        load: false,
        queue: false,
        idempotency: None,
        labels: BTreeMap::new(),
    }
}

fn whole(request: Request) -> Request {
    Request {
        amount: Amount::Exclusive,
        ..request
    }
}

fn device(index: u32, name: &str, gib: u64) -> Device {
    Device {
        key: DeviceKey::local(&format!("GPU-{index}")),
        name: name.to_owned(),
        index,
        vendor: Vendor::Nvidia,
        kind: DeviceKind::Discrete,
        pci_bus_id: None,
        nvml_uuid: None,
        driver: None,
        memory_total: gib * GIB,
        telemetry: Telemetry::Supported,
        leasable: true,
        found_by: Vec::new(),
    }
}

/// A point in time, in UTC.
fn at(text: &str) -> WallMs {
    let at: Timestamp = text.parse().expect("RFC 3339");
    WallMs(u64::try_from(at.as_millisecond()).expect("after 1970"))
}

/// The books of a host with 100 GiB, of which `granted` GiB are.
fn standing(granted: u64, user_devices: u32) -> Standing {
    let share = |leases: u32, memory: u64| Share {
        leases,
        devices: leases,
        memory,
    };
    Standing {
        held: share(u32::from(granted > 0), granted * GIB),
        grantable: 100 * GIB,
        waiting: 0,
        user: share(user_devices, 0),
        tenant: Share::default(),
    }
}

/// `request` as the sets of `policy` leave it, and in the tenant that it belongs to.
fn shaped(
    policy: &Policy,
    mut request: Request,
    standing: &Standing,
    now: WallMs,
) -> (Request, Sets) {
    let sets = policy.rules.shape(&request, standing, now);
    if let Some(class) = &sets.class {
        request.class.clone_from(class);
    }
    if let Ok(Some(tenant)) = policy.rules.tenant(&request) {
        request.holder.tenant = Some(policy.tenants[tenant].name.clone());
    }
    (request, sets)
}

/// `granted`, `held: RULE` or `denied: RULE`.
fn said(policy: &Policy, request: Request, standing: &Standing, now: &str) -> String {
    let now = at(now);
    let (request, _) = shaped(policy, request, standing, now);
    match policy.rules.admit(&request, standing, now) {
        Verdict::Allow => "granted".to_owned(),
        Verdict::Hold { rule, .. } => format!("held: {rule}"),
        Verdict::Deny { rule, .. } => format!("denied: {rule}"),
    }
}

/// The name of the tenant of `request`.
fn tenant_of(policy: &Policy, request: &Request) -> Option<String> {
    let found = policy.rules.tenant(request).ok()??;
    Some(policy.tenants[found].name.clone())
}

fn claiming(who: &str, tenant: &str) -> Request {
    let mut request = request(who, "interactive");
    request.holder.tenant = Some(tenant.to_owned());
    request
}

#[test]
fn workstation() {
    let policy = policy(include_str!("../../../policies/workstation/default.toml"));
    let ann = |class| request("ann", class);
    let free = standing(0, 0);
    let busy = standing(20, 1);
    for (request, books, now, expected) in [
        (ann("interactive"), &free, "2026-07-15T12:00:00Z", "granted"),
        (
            whole(ann("interactive")),
            &busy,
            "2026-07-15T12:00:00Z",
            "granted",
        ),
        // 14:00 and 23:00 in Berlin.
        (
            ann("night"),
            &free,
            "2026-07-15T12:00:00Z",
            "held: class night: hours",
        ),
        (ann("night"), &free, "2026-07-15T21:00:00Z", "granted"),
    ] {
        assert_eq!(said(&policy, request, books, now), expected, "{now}");
    }
    let noon = at("2026-07-15T12:00:00Z");
    let sets = |request, books| shaped(&policy, request, books, noon).1;
    assert_eq!(sets(whole(ann("interactive")), &busy).priority, Some(10));
    assert_eq!(sets(whole(ann("interactive")), &free).priority, None);
    let mut notebook = ann("interactive");
    notebook.holder.name = "notebook-3".to_owned();
    assert_eq!(
        sets(notebook, &free).max_hold,
        Some(Ms::from_secs(12 * 3600))
    );
    assert_eq!(
        (policy.reload.held, policy.reload.confirm),
        (Held::Keep, Confirm::Never)
    );
}

#[test]
fn shared_lab() {
    let policy = policy(include_str!("../../../policies/shared-lab/default.toml"));
    for (request, expected) in [
        (request("ann", "batch"), Some("staff")),
        (request("dora", "batch"), Some("member")),
        (claiming("dora", "course"), Some("course")),
        (claiming("dora", "staff"), None),
    ] {
        assert_eq!(tenant_of(&policy, &request).as_deref(), expected);
    }
    let [staff, course, member] = policy.tenants.as_slice() else {
        panic!("three tenants");
    };
    assert_eq!(
        (staff.weight, staff.max_devices, staff.per_user),
        (2, Some(4), false)
    );
    assert_eq!(
        (course.max_memory, course.max_leases),
        (Some(24 * GIB), Some(30))
    );
    assert_eq!((member.max_devices, member.per_user), (Some(2), true));
    assert_eq!(policy.queue.order, QueueOrder::FairShare);

    let large = || Request {
        amount: Amount::Memory(41 * GIB),
        ..request("dora", "batch")
    };
    let (none, one) = (standing(0, 0), standing(20, 1));
    // Berlin is two hours ahead in July, one in January. The 15th of July 2026 is a Wednesday.
    for (request, books, now, expected) in [
        (
            request("dora", "batch"),
            &none,
            "2026-07-15T12:00:00Z",
            "granted",
        ),
        (
            large(),
            &none,
            "2026-07-15T12:00:00Z",
            "held: class large: hours",
        ),
        (large(), &none, "2026-07-15T17:30:00Z", "granted"),
        (
            large(),
            &none,
            "2026-01-15T17:30:00Z",
            "held: class large: hours",
        ),
        (
            whole(request("dora", "batch")),
            &none,
            "2026-07-15T12:00:00Z",
            "granted",
        ),
        (
            whole(request("dora", "batch")),
            &one,
            "2026-07-15T12:00:00Z",
            "held: one whole card each by day",
        ),
        (
            whole(request("dora", "batch")),
            &one,
            "2026-07-18T12:00:00Z",
            "granted",
        ),
        (
            request("anonymous", "batch"),
            &none,
            "2026-07-15T12:00:00Z",
            "denied: no unnamed callers",
        ),
    ] {
        assert_eq!(said(&policy, request, books, now), expected, "{now}");
    }
    let about = |device: &Device| policy.rules.device_matches(0, device);
    assert!(about(&device(0, "NVIDIA T400", 4)));
    assert!(!about(&device(0, "NVIDIA A100", 80)));
    assert!(!about(&device(1, "NVIDIA T400", 4)));
}

#[test]
fn model_serving() {
    let policy = policy(include_str!("../../../policies/model-serving/default.toml"));
    let noon = "2026-07-15T12:00:00Z";
    let (free, full) = (standing(0, 0), standing(81, 3));
    for (request, books, expected) in [
        (request("model-server", "serving"), &full, "granted"),
        (request("model-server", "rollout"), &full, "granted"),
        (
            request("dora", "serving"),
            &free,
            "denied: serving is for the servers",
        ),
        (request("dora", "batch"), &free, "granted"),
        (request("dora", "batch"), &full, "held: room for a restart"),
    ] {
        let who = request.holder.user.clone();
        assert_eq!(said(&policy, request, books, noon), expected, "{who}");
    }
    let sets = |request| shaped(&policy, request, &free, at(noon)).1;
    assert_eq!(
        sets(request("model-server", "serving")).ttl,
        Some(Ms::from_secs(30))
    );
    let filters = sets(request("dora", "batch")).filters;
    let passes = |device: &Device, labels: &[&str]| {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        filters
            .iter()
            .all(|filter| policy.rules.selects(filter, device, &labels))
    };
    let h100 = device(0, "NVIDIA H100 80GB", 80);
    assert!(policy.rules.device_matches(0, &h100));
    assert_eq!(policy.devices[0].labels, ["serving"]);
    assert!(!passes(&h100, &["serving"]));
    assert!(passes(&device(1, "NVIDIA L4", 24), &[]));
    assert_eq!(policy.placement.strategy, Strategy::Score);
    let tenants = ["model-server", "dora"].map(|who| tenant_of(&policy, &request(who, "batch")));
    assert_eq!(
        tenants,
        [Some("serving".to_owned()), Some("others".to_owned())]
    );
}

#[test]
fn strict_production() {
    let policy = policy(include_str!(
        "../../../policies/strict-production/default.toml"
    ));
    let with_ticket = |mut request: Request| {
        request
            .labels
            .insert("ticket".to_owned(), "ABC-1".to_owned());
        request
    };
    let search = |class| request("svc-search", class);
    let free = standing(0, 0);
    let (noon, evening) = ("2026-07-15T12:00:00Z", "2026-07-15T18:00:00Z");
    for (request, now, expected) in [
        (with_ticket(search("standard")), noon, "granted"),
        (search("standard"), noon, "denied: a ticket for every job"),
        (
            with_ticket(request("dora", "standard")),
            noon,
            "denied: known tenants only",
        ),
        (
            with_ticket(whole(search("standard"))),
            noon,
            "denied: no whole cards",
        ),
        (
            with_ticket(whole(search("release"))),
            noon,
            "held: releases outside of office hours",
        ),
        (with_ticket(whole(search("release"))), evening, "granted"),
    ] {
        assert_eq!(said(&policy, request, &free, now), expected, "{now}");
    }
    let limits: Vec<_> = policy
        .tenants
        .iter()
        .map(|tenant| (tenant.name.as_str(), tenant.max_devices, tenant.max_memory))
        .collect();
    assert_eq!(
        limits,
        [
            ("payments", Some(2), Some(80 * GIB)),
            ("search", Some(4), Some(160 * GIB))
        ]
    );
    assert_eq!(policy.reload.rollback_errors, 1);
    assert_eq!(
        policy.classes["standard"].max_hold,
        Some(Ms::from_secs(12 * 3600))
    );
}
