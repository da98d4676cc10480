//! The probe itself: children that misbehave in every way, Vulkan for real, declared devices.
use std::io::Write;
use std::process::{Command, Stdio};

use gpu_device::{Config, InventoryError, Probe, ProbeCommand, ProbeState, SimulatedDevice};
use gpu_lease::{DeviceKind, Telemetry};

use crate::support::{Host, eventually, limits};

const GIB: u64 = 1 << 30;

fn only_declared(ids: &[&str]) -> Config {
    let simulated = ids.iter().map(|id| SimulatedDevice {
        id: (*id).to_owned(),
        name: "Simulated A100".to_owned(),
        memory_bytes: 80 * GIB,
    });
    Config {
        nvml: false,
        wgpu: false,
        simulated: simulated.collect(),
        ..Config::default()
    }
}

fn vulkan(allow_cpu_adapters: bool) -> Config {
    Config {
        nvml: false,
        wgpu: true,
        allow_cpu_adapters,
        ..Config::default()
    }
}

/// A child that does as a line of shell says.
fn shell(script: &str) -> ProbeCommand {
    ProbeCommand::new("/bin/sh", ["-c", script])
}

#[test]
fn vulkan_really_finds_a_device_with_memory() {
    for allowed in [false, true] {
        let host = Host::new("");
        let probe = Probe::with_limits(vulkan(allowed), host.command(), limits());
        let inventory = probe.inventory().unwrap();
        let cpu = inventory
            .devices
            .iter()
            .find(|device| device.kind == DeviceKind::Cpu)
            .unwrap_or_else(|| {
                panic!("no llvmpipe: is mesa-vulkan-drivers installed? {inventory:?}")
            });

        assert!(cpu.name.contains("llvmpipe"), "{cpu:?}");
        assert!(cpu.key.id.as_str().starts_with("vk-"), "{cpu:?}");
        assert!(cpu.memory_total > GIB / 4, "{cpu:?}");
        assert!(cpu.driver.as_deref().unwrap().contains("Mesa"), "{cpu:?}");
        assert_eq!(cpu.telemetry, Telemetry::Unsupported);
        assert_eq!(cpu.found_by, ["wgpu"]);
        assert_eq!(cpu.leasable, allowed);
        assert_eq!(probe.inventory().unwrap(), inventory, "it is stable");
        assert_eq!(probe.read().unwrap(), []);
    }
}

#[test]
fn declared_devices_come_as_declared() {
    let host = Host::new("");
    let probe = Probe::with_limits(only_declared(&["b", "a"]), host.command(), limits());
    let devices = probe.inventory().unwrap().devices;

    let ids: Vec<_> = devices
        .iter()
        .map(|device| device.key.id.as_str())
        .collect();
    assert_eq!(ids, ["b", "a"]);
    assert_eq!(devices[0].kind, DeviceKind::Simulated);
    assert_eq!(devices[0].memory_total, 80 * GIB);
    assert_eq!(devices[0].found_by, ["declared"]);
    assert!(devices[0].leasable);
}

#[test]
fn a_host_without_any_device_has_an_empty_inventory() {
    let host = Host::new("");
    let probe = Probe::with_limits(only_declared(&[]), host.command(), limits());
    assert_eq!(probe.health().state, ProbeState::Idle);
    assert_eq!(probe.inventory().unwrap().devices, []);
    assert_eq!(probe.health().state, ProbeState::Ok);
}

#[test]
fn a_child_that_misbehaves_is_named_and_costs_no_declared_device() {
    let missing = ProbeCommand::new("/nonexistent/probe", ["probe"]);
    for (command, complaint) in [
        (missing, "cannot start the probe `/nonexistent/probe`"),
        (shell("exit 3"), "the probe ended (exit status: 3)"),
        (shell("echo oh no >&2; exit 1"), "saying: oh no"),
        (shell("kill -SEGV $$"), "signal: 11"),
        (shell("echo what; cat"), "cannot be read"),
        (
            shell("echo '{\"number\":99,\"sources\":[]}'; cat"),
            "not asked",
        ),
        (shell("yes | tr -d '\\n'"), "more than 4194304 bytes"),
        (shell("exec sleep 60"), "did not answer within 1000 ms"),
        (shell("yes >&2"), "did not answer within 1000 ms"),
    ] {
        let limits = gpu_device::Limits {
            discover: std::time::Duration::from_secs(1),
            ..limits()
        };
        let probe = Probe::with_limits(only_declared(&["sim-0"]), command, limits);
        let inventory = probe.inventory().unwrap();
        assert_eq!(inventory.devices.len(), 1, "{complaint}");
        let note = inventory.notes[0].to_string();
        assert!(note.contains(complaint), "`{complaint}` is not in: {note}");

        let health = probe.health();
        assert_eq!(health.state, ProbeState::Restarting, "{complaint}");
        assert!(health.last_error.unwrap().contains(complaint));
        assert!(health.rediscover, "{complaint}");
    }
}

#[test]
fn without_any_answer_there_is_no_inventory() {
    let config = Config {
        wgpu: true,
        ..only_declared(&[])
    };
    let probe = Probe::with_limits(config, shell("exit 1"), limits());
    let InventoryError::NoSourceAnswers(notes) = probe.inventory().unwrap_err();
    let sources: Vec<_> = notes.iter().map(|note| note.source).collect();
    assert_eq!(sources, ["probe", "wgpu"]);
}

#[test]
fn rests_grow_and_end_with_an_answer() {
    let host = Host::new("");
    let marker = host.nvml_toml().with_file_name("well");
    let program = env!("CARGO_BIN_EXE_gpu-device-probe");
    let script = format!("test -e {} || exit 1; exec {program}", marker.display());
    let probe = Probe::with_limits(only_declared(&["sim-0"]), shell(&script), limits());
    for _ in 0..3 {
        probe.inventory().unwrap();
    }
    let resting = probe.health().last_error.unwrap();
    assert!(resting.contains("is started again in"), "{resting}");

    std::fs::write(marker, "").unwrap();
    eventually("an answer", || {
        probe.inventory().unwrap();
        (probe.health().state == ProbeState::Ok).then_some(())
    });
    assert_eq!(probe.health().last_error, None);
}

/// The parent cannot tell the child to end if it was killed; the end of the pipe must do.
#[test]
fn a_child_ends_with_its_parent_even_in_a_driver_that_hangs() {
    let host = Host::new("fault = 'hang'");
    let mut child = Command::new(env!("CARGO_BIN_EXE_gpu-device-probe"))
        .env("FAKE_NVML_CONFIG", host.nvml_toml())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut parent = child.stdin.take().unwrap();
    let library = fake_nvml::built_library();
    writeln!(
        parent,
        "{{\"nvml_library\":\"{}\",\"sysfs\":\"/nonexistent\"}}\n\
         {{\"number\":1,\"what\":\"read\"}}",
        library.display()
    )
    .unwrap();
    assert!(child.try_wait().unwrap().is_none());

    drop(parent);
    eventually("the end of the child", || child.try_wait().unwrap());
}
