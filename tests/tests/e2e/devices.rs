//! Cards: found, held back, lost, used by strangers, hung.

use std::time::{Duration, Instant};

use gpu_api::{DeviceKind, EndReason, Enforcement, Freshness, LeaseState, paths};
use gpu_manager_tests::{Host, POLICY, Request, eventually, gib, problem};
use serde_json::json;

const CARD: &str = "GPU-00000000-0000-4000-8000-00000000000a";
const OTHER: &str = "GPU-00000000-0000-4000-8000-00000000000b";

/// One fake NVIDIA card, with more of its table.
fn card(uuid: &str, bus: u8, more: &str) -> String {
    format!(
        "[[device]]\nname = 'RTX'\nuuid = '{uuid}'\npci_bus_id = '0000:{bus:02x}:00.0'\nmemory_total = '24GiB'\n{more}\n"
    )
}

fn process(pid: u32, memory: &str) -> String {
    format!("[[device.process]]\npid = {pid}\nmemory = '{memory}'\n")
}

#[test]
fn a_cordon_holds_new_leases_back_and_says_why() {
    let host = Host::with_cards(1);
    let broker = host.start();
    let held = broker.grant(&json!({"memory": "1GiB"}));
    assert_eq!(host.run(&["cordon", "0", "--reason", "new fan"]).code, 0);
    let refused = problem(broker.acquire(&json!({"memory": "1GiB"})));
    assert_eq!(refused.code.status(), 409);
    assert!(refused.detail.contains("new fan"), "{}", refused.detail);
    assert!(broker.lease(&held.id).is_granted(), "who is there may stay");
    broker.kill();

    let broker = host.start();
    let cordon = broker
        .device("sim-0")
        .cordon
        .expect("it outlives the broker");
    assert_eq!(
        (cordon.reason.as_deref(), cordon.by.as_str()),
        (Some("new fan"), "root")
    );
    let waiter = broker.wait_beside(&json!({"memory": "1GiB", "wait": "1m"}));
    assert_eq!(host.run(&["uncordon", "sim-0"]).code, 0);
    assert_eq!(waiter.join().unwrap().status, 201);

    assert_eq!(host.run(&["cordon", "sim-0", "--until", "400ms"]).code, 0);
    eventually("it lifts by itself", || {
        broker.device("sim-0").cordon.is_none().then_some(())
    });
}

#[test]
fn a_drained_card_asks_every_holder_to_go_and_an_uncordon_lets_them_stay() {
    let host = Host::with_cards(2);
    let broker = host.start();
    let here = broker.grant(&json!({"memory": "1GiB", "select": "device.id == 'sim-0'"}));
    let there = broker.grant(&json!({"memory": "1GiB", "select": "device.id == 'sim-1'"}));
    assert_eq!(
        host.run(&["drain", "--device", "sim-0", "--grace", "10m"])
            .code,
        0
    );
    assert_eq!(broker.lease(&here.id).state, LeaseState::Draining);
    assert_eq!(broker.lease(&there.id).state, LeaseState::Active);
    assert_eq!(broker.device("sim-0").drain.expect("it drains").leases, 1);
    assert_eq!(host.run(&["uncordon", "sim-0"]).code, 0);
    assert_eq!(broker.lease(&here.id).state, LeaseState::Active);

    assert_eq!(
        host.run(&["drain", "--device", "sim-0", "--grace", "300ms"])
            .code,
        0
    );
    let over = broker.until_ended(&here.id);
    assert!(
        matches!(
            over.end_reason,
            Some(EndReason::Revoked | EndReason::DeviceLost)
        ),
        "{over:?}"
    );
}

#[test]
fn the_cards_of_a_driver_are_leased_with_the_environment_that_jobs_need() {
    let host = Host::with_cards(1)
        .nvml(&(card(OTHER, 0xb1, "") + &card(CARD, 0x17, "temperature_c = 61\n")));
    let broker = host.start();
    let ids: Vec<String> = broker
        .devices()
        .into_iter()
        .map(|device| device.id)
        .collect();
    assert_eq!(
        ids,
        [CARD, OTHER, "sim-0"],
        "in bus order, declared ones last"
    );
    let first = broker.device(CARD);
    assert_eq!(
        (first.kind, first.index, first.simulated),
        (DeviceKind::Discrete, 0, false)
    );
    assert_eq!(first.name, "Fake RTX");
    assert_eq!(first.found_by, ["nvml"]);

    let pair = broker.grant(&json!({"devices": 2, "memory": "8GiB", "select": format!("device.id in ['{CARD}', '{OTHER}']")}));
    assert_eq!(pair.env["CUDA_VISIBLE_DEVICES"], format!("{CARD},{OTHER}"));
    assert_eq!(
        pair.env["NVIDIA_VISIBLE_DEVICES"],
        pair.env["CUDA_VISIBLE_DEVICES"]
    );
    assert_eq!(pair.env["CUDA_DEVICE_ORDER"], "PCI_BUS_ID");
    assert_eq!(pair.enforcement, Enforcement::Observed);
    let read = broker.device(CARD);
    assert_eq!(
        (read.telemetry, read.temperature_c),
        (Freshness::Fresh, Some(61))
    );
}

#[test]
fn memory_that_strangers_use_is_charged_and_named() {
    let host = Host::with_cards(0).nvml(&card(CARD, 1, &process(1, "9GiB")));
    let broker = host.start();
    let device = eventually("the card was read", || {
        Some(broker.device(CARD)).filter(|card| card.memory.used.is_some())
    });
    assert_eq!(
        (device.memory.foreign, device.memory.free),
        (gib(9), gib(15))
    );
    assert_eq!(
        (device.processes[0].pid, device.processes[0].lease.as_ref()),
        (1, None)
    );

    let refused = problem(broker.acquire(&json!({"memory": "16GiB"})));
    assert_eq!(refused.code.status(), 409);
    assert!(refused.detail.contains("15 GiB free"), "{}", refused.detail);
    let blockers = refused.waiting.expect("who is in the way").blockers;
    assert!(
        blockers
            .iter()
            .any(|blocker| blocker.lease.is_none() && blocker.memory == Some(gib(9))),
        "{blockers:?}"
    );
    let whole = problem(broker.acquire(&json!({})));
    assert_eq!(whole.code.status(), 409, "no whole card beside a stranger");

    let waiter = broker.wait_beside(&json!({"memory": "16GiB", "wait": "10s"}));
    host.write_nvml(&card(CARD, 1, &process(1, "1GiB")));
    assert_eq!(
        waiter.join().unwrap().status,
        201,
        "the stranger has gone down to 1 GiB"
    );
}

#[test]
fn what_a_holder_uses_is_its_own_and_not_a_strangers() {
    let host = Host::with_cards(0).nvml(&card(CARD, 1, ""));
    let broker = host.start();
    let job = host.cli(&[
        "run",
        "--memory",
        "8GiB",
        "--",
        "sh",
        "-c",
        "while [ ! -e done ]; do sleep 0.05; done",
    ]);
    let lease = eventually("it is leased", || {
        broker
            .live_leases()
            .into_iter()
            .find(|lease| lease.is_granted())
    });
    let pid = lease.holder.pid.expect("`run` says whose it is");
    host.write_nvml(&card(CARD, 1, &process(pid, "6GiB")));
    let observed = broker.until(&lease.id, "is observed", |lease| lease.observed.is_some());
    assert_eq!(observed.observed.unwrap().memory, gib(6));
    let device = broker.device(CARD);
    assert_eq!(
        device.processes[0].lease.as_deref(),
        Some(lease.id.as_str())
    );
    assert_eq!((device.memory.foreign, device.memory.free), (0, gib(16)));

    host.write_nvml(&card(
        CARD,
        1,
        &(process(pid, "6GiB") + &process(1, "17GiB")),
    ));
    eventually("more is in use than was left", || {
        broker.device(CARD).overcommitted.then_some(())
    });
    assert!(
        broker.lease(&lease.id).is_granted(),
        "nobody is ended for what a stranger does"
    );
    std::fs::write(host.dir().join("done"), "").unwrap();
    assert_eq!(job.wait().code, 0);
}

#[test]
fn a_card_that_falls_off_the_bus_is_lost_and_comes_back() {
    let host = Host::with_cards(0).nvml(&(card(CARD, 1, "") + &card(OTHER, 2, "")));
    let broker = host.start();
    let lease =
        broker.grant(&json!({"memory": "1GiB", "select": format!("device.id == '{OTHER}'")}));
    host.write_nvml(&(card(CARD, 1, "") + &card(OTHER, 2, "fault = 'lost'\n")));
    eventually("it is lost", || broker.device(OTHER).lost.then_some(()));
    assert!(
        broker.lease(&lease.id).is_granted(),
        "its lease has a minute"
    );
    let refused = problem(
        broker.acquire(&json!({"memory": "1GiB", "select": format!("device.id == '{OTHER}'")})),
    );
    assert!(matches!(refused.code.status(), 409 | 422), "{refused:?}");
    broker.grant(&json!({"memory": "1GiB"}));

    host.write_nvml(&(card(CARD, 1, "") + &card(OTHER, 2, "")));
    eventually("it is back", || (!broker.device(OTHER).lost).then_some(()));
    broker.renew(&lease).expect("nothing happened to it");
}

#[test]
fn a_driver_that_hangs_hangs_no_lease() {
    let host = Host::with_cards(1).nvml(&card(CARD, 1, ""));
    let broker = host.start();
    let on_card = json!({"memory": "1GiB", "select": format!("device.id == '{CARD}'")});
    let lease = broker.grant(&on_card);
    host.write_nvml(&card(CARD, 1, "fault = 'hang'\n"));
    eventually("the numbers are old", || {
        (broker.device(CARD).telemetry == Freshness::Stale).then_some(())
    });

    let quick = |what: &str, limit: Duration, ask: &dyn Fn()| {
        let began = Instant::now();
        ask();
        assert!(began.elapsed() < limit, "{what}: {:?}", began.elapsed());
    };
    let soon = Duration::from_secs(1);
    quick("a heartbeat", soon, &|| drop(broker.renew(&lease).unwrap()));
    quick("the status", soon, &|| drop(broker.status()));
    quick("a lease of another card", soon, &|| {
        drop(broker.grant(&json!({"memory": "1GiB", "select": "device.id == 'sim-0'"})));
    });
    quick(
        "no to a lease of this card",
        Duration::from_secs(4),
        &|| {
            let refused = problem(broker.acquire(&on_card));
            assert_eq!(refused.code.status(), 409, "{refused:?}");
        },
    );
    quick("a release", soon, &|| drop(broker.release(&lease)));

    host.write_nvml(&card(CARD, 1, ""));
    let again =
        json!({"memory": "1GiB", "select": format!("device.id == '{CARD}'"), "wait": "14s"});
    assert!(
        broker.acquire(&again).unwrap().is_granted(),
        "it works again"
    );
}

#[test]
fn a_card_that_a_start_does_not_find_keeps_its_fence_and_can_be_freed() {
    let both = format!("{}{}", card(CARD, 1, ""), card(OTHER, 2, ""));
    let host = Host::with_cards(0).nvml(&both);
    let broker = host.start();
    let body = json!({"memory": "1GiB", "ttl": "1h", "select": format!("device.id == '{OTHER}'")});
    let lease = broker.grant(&body);
    broker.stop();
    host.write_nvml(&card(CARD, 1, ""));
    let broker = host.start();
    assert!(
        broker.lease(&lease.id).is_granted(),
        "what was never seen is not lost"
    );
    assert!(broker.fence_is_current(OTHER, lease.fence.unwrap()));
    let release = |device: &str| host.run(&["release", "--emergency", "--device", device]);
    let unknown = release("GPU-none");
    assert!(unknown.code != 0, "{}", unknown.stdout);
    let freed = release(OTHER);
    assert_eq!(freed.code, 0, "{}", freed.stderr);
    assert!(!broker.fence_is_current(OTHER, lease.fence.unwrap()));
}

#[test]
fn two_brokers_never_lease_out_one_card() {
    let host = Host::with_cards(0).nvml(&card(CARD, 1, ""));
    let broker = host.start();
    let lease = broker.grant(&json!({}));
    let other = Host::with_cards(1).nvml(&card(CARD, 1, "")).beside(&host);
    let ran = other.serve(&[]).wait();
    assert_ne!(ran.code, 0);
    let pid = broker.process().pid().to_string();
    assert!(
        ran.stderr.contains(CARD) && ran.stderr.contains(&pid),
        "{}",
        ran.stderr
    );
    assert!(broker.lease(&lease.id).is_granted());
    broker.kill();
    other.start();
}

#[test]
fn a_machine_without_any_gpu_says_so_and_serves() {
    let host = Host::with_cards(0).policy(POLICY);
    let broker = host.start();
    let status = broker.status();
    assert_eq!((status.devices, status.devices_open), (0, 0));
    assert!(
        status
            .warnings
            .iter()
            .any(|warning| warning.contains("nvml")),
        "{:?}",
        status.warnings
    );
    let refused = Request::post(paths::LEASES, &json!({"wait": "10m"})).send(broker.address());
    assert_eq!(refused.status, 422, "{}", refused.text());
    let listed = host.run(&["devices"]);
    assert_eq!(listed.code, 0);
    assert!(listed.stdout.contains("no device"), "{}", listed.stdout);
    broker.process().until_stderr("no device was found");
}

#[test]
fn the_software_renderer_of_this_machine_is_found_by_vulkan_and_leased_in_dev_mode() {
    let host = Host::with_cards(0).wgpu();
    let broker = host.start();
    let devices = broker.devices();
    let cpu = devices.iter().find(|device| device.kind == DeviceKind::Cpu);
    let cpu = cpu.unwrap_or_else(|| {
        panic!(
            "no llvmpipe: install mesa-vulkan-drivers: {devices:?} {:?}",
            broker.status().warnings
        )
    });
    assert!(cpu.name.contains("llvmpipe"), "{cpu:?}");
    assert_eq!(cpu.found_by, ["wgpu"]);
    assert!(cpu.leasable && cpu.memory.total > gib(1) / 4, "{cpu:?}");
    assert!(!cpu.simulated);
    let lease =
        broker.grant(&json!({"memory": "64MiB", "select": format!("device.id == '{}'", cpu.id)}));
    assert_eq!(lease.allocations[0].device, cpu.id);
    let listed = host.run(&["devices"]);
    assert!(listed.stdout.contains("llvmpipe"), "{}", listed.stdout);
    broker.kill();

    let broker = host.guarded().start();
    let cpu = broker.device(&lease.allocations[0].device);
    assert!(
        !cpu.leasable,
        "listed, but not leased out unless somebody says so"
    );
}
