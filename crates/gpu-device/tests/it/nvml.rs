//! NVML through the real child process, over the fake library.
use std::path::PathBuf;

use gpu_device::{Config, LinkError, Probe, ProbeState, ReadError};
use gpu_lease::{DeviceKind, DeviceProcess, Telemetry, Vendor};

use crate::support::{Host, eventually, limits};

const GIB: u64 = 1 << 30;
const FIRST: &str = "GPU-00000000-0000-4000-8000-00000000000a";
const SECOND: &str = "GPU-00000000-0000-4000-8000-00000000000b";

/// Two cards, the second one first on the bus; `first` and `second` are put into their tables.
fn two_cards(first: &str, second: &str) -> String {
    format!(
        "[[device]]\n\
         name = 'A'\n\
         uuid = '{FIRST}'\n\
         pci_bus_id = '0000:b1:00.0'\n\
         memory_total = '24GiB'\n\
         memory_reserved = '1GiB'\n\
         {first}\n\
         [[device]]\n\
         name = 'B'\n\
         uuid = '{SECOND}'\n\
         pci_bus_id = '0000:17:00.0'\n\
         memory_total = '80GiB'\n\
         {second}"
    )
}

/// The ids of the devices that have a reading.
fn read_ids(probe: &Probe) -> Vec<String> {
    let readings = probe.read().unwrap().into_iter();
    readings
        .map(|reading| reading.device.id.to_string())
        .collect()
}

#[test]
fn cards_are_found_in_bus_order() {
    let host = Host::new(&two_cards("", "mig = true"));
    let inventory = host.probe().inventory().unwrap();
    let [b, a] = &inventory.devices[..] else {
        panic!("two devices, not {inventory:?}")
    };

    assert_eq!((a.key.id.as_str(), b.key.id.as_str()), (FIRST, SECOND));
    assert_eq!((a.index, b.index), (1, 0));
    assert_eq!(a.name, "Fake A");
    assert_eq!(a.vendor, Vendor::Nvidia);
    assert_eq!(a.kind, DeviceKind::Discrete);
    assert_eq!(a.pci_bus_id.as_deref(), Some("0000:b1:00.0"));
    assert_eq!(a.nvml_uuid.as_deref(), Some(FIRST));
    assert_eq!(a.driver.as_deref(), Some("nvidia 570.86.10-fake"));
    assert_eq!(a.memory_total, 23 * GIB);
    assert_eq!(a.telemetry, Telemetry::Supported);
    assert_eq!(a.found_by, ["nvml"]);
    assert!(a.leasable);
    assert!(!b.leasable, "MIG is on");
}

#[test]
fn readings_follow_the_card() {
    let host = Host::new(&two_cards("memory_used = '1GiB'", ""));
    let probe = host.probe();
    probe.inventory().unwrap();
    let before = probe.read().unwrap();
    assert_eq!(before[0].memory_used, GIB);

    host.write(&two_cards(
        "utilisation_percent = 97\ntemperature_c = 71\npower_mw = 300000\n\
         [[device.process]]\npid = 42\nmemory = '5GiB'\n\
         [[device.process]]\npid = 42\nmemory = '5GiB'\nkind = 'graphics'\n\
         [[device.process]]\npid = 43\nkind = 'graphics'",
        "",
    ));
    let after = probe.read().unwrap();
    assert_eq!(after[0].device.id.as_str(), FIRST);
    assert_eq!(after[0].memory_used, 10 * GIB);
    assert_eq!(after[0].utilisation_percent, Some(97));
    assert_eq!(after[0].temperature_c, Some(71));
    assert_eq!(after[0].power_mw, Some(300_000));
    let process = |pid, memory| DeviceProcess {
        pid,
        memory,
        lease: None,
    };
    assert_eq!(
        after[0].processes,
        [process(42, Some(5 * GIB)), process(43, None)]
    );
    assert!(after[0].taken >= before[0].taken);
    assert_eq!(after[1].memory_used, 0);
    assert_eq!(probe.health().state, ProbeState::Ok);
}

#[test]
fn a_lost_card_has_no_reading_and_leaves_the_next_inventory() {
    for fault in ["lost", "reset_required"] {
        let host = Host::new(&two_cards("", ""));
        let probe = host.probe();
        probe.inventory().unwrap();
        assert_eq!(read_ids(&probe), [FIRST, SECOND]);
        assert!(!probe.health().rediscover);

        host.write(&two_cards("", &format!("fault = '{fault}'")));
        assert_eq!(read_ids(&probe), [FIRST]);
        let health = probe.health();
        assert!(health.rediscover, "{fault}");
        assert_eq!(health.state, ProbeState::Ok);
        assert!(
            health.notes[0].to_string().starts_with("nvml: card 1"),
            "{health:?}"
        );

        let devices = probe.inventory().unwrap().devices;
        assert_eq!(devices.len(), 1);
        assert_eq!(read_ids(&probe), [FIRST]);
        assert!(!probe.health().rediscover, "{fault}: nothing new since");

        host.write(&two_cards("", ""));
        assert_eq!(read_ids(&probe), [FIRST]);
        assert!(probe.health().rediscover, "{fault}: it is back");
        assert_eq!(probe.inventory().unwrap().devices.len(), 2);
    }
}

#[test]
fn an_unknown_error_loses_no_card() {
    let host = Host::new(&two_cards("", ""));
    let probe = host.probe();
    let before = probe.inventory().unwrap().devices;

    for trouble in [
        two_cards("", "fault = 'unknown'"),
        format!("fault = 'unknown'\n{}", two_cards("", "")),
        format!(
            "init_fault = 'driver_mismatch'\nfault = 'unknown'\n{}",
            two_cards("", "")
        ),
    ] {
        host.write(&trouble);
        let _no_reading_of_the_second = probe.read();
        let inventory = probe.inventory().unwrap();
        assert_eq!(inventory.devices, before);
        assert!(!inventory.notes.is_empty());
    }
    host.write(&two_cards("", ""));
    assert_eq!(probe.inventory().unwrap().devices, before);
    assert_eq!(read_ids(&probe), [FIRST, SECOND]);
}

#[test]
fn when_no_card_answers_the_error_says_so() {
    let host = Host::new(&two_cards("", ""));
    let probe = host.probe();
    probe.inventory().unwrap();

    host.write(&format!("fault = 'unknown'\n{}", two_cards("", "")));
    let error = probe.read().unwrap_err();
    assert!(matches!(error, ReadError::Drivers(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "no driver answers: nvml: an internal driver error occurred"
    );
    assert_eq!(
        probe.health().last_error.as_deref(),
        Some("nvml: an internal driver error occurred")
    );

    host.write(&two_cards("", ""));
    assert_eq!(read_ids(&probe), [FIRST, SECOND]);
    assert_eq!(probe.health().last_error, None);
}

#[test]
fn a_driver_that_hangs_is_left_behind() {
    let host = Host::new(&two_cards("", ""));
    let probe = host.probe();
    let before = probe.inventory().unwrap().devices;

    host.write(&two_cards("fault = 'hang'", ""));
    let error = probe.read().unwrap_err();
    assert!(
        matches!(error, ReadError::Probe(LinkError::Hangs { .. })),
        "{error:?}"
    );
    let health = probe.health();
    assert_eq!(health.state, ProbeState::Restarting);
    let said = health.last_error.unwrap();
    assert_eq!(said, "probe: the probe did not answer within 300 ms");

    let error = probe.read().unwrap_err();
    assert!(
        matches!(error, ReadError::Probe(LinkError::Resting { .. })),
        "{error:?}"
    );
    assert_eq!(
        probe.inventory().unwrap().devices,
        before,
        "nothing is lost meanwhile"
    );

    host.write(&two_cards("memory_used = '2GiB'", ""));
    let readings = eventually("readings again", || probe.read().ok());
    assert_eq!(readings[0].memory_used, 2 * GIB);
    assert_eq!(probe.health().state, ProbeState::Ok);
}

#[test]
fn a_driver_that_crashes_takes_only_the_child_with_it() {
    let host = Host::new(&two_cards("", ""));
    let probe = host.probe();
    probe.inventory().unwrap();

    host.write(&two_cards("fault = 'crash'", ""));
    let error = probe.read().unwrap_err();
    assert!(
        matches!(error, ReadError::Probe(LinkError::Ended { .. })),
        "{error:?}"
    );
    assert!(error.to_string().contains("signal: 6"), "{error}");

    host.write(&two_cards("", ""));
    eventually("readings again", || probe.read().ok());
}

/// The child has a bound on its address space, so that the memory of the host is not taken with it.
#[test]
fn a_driver_that_takes_all_memory_ends_only_the_child() {
    let host = Host::new(&two_cards("", ""));
    let probe = host.probe();
    let before = probe.inventory().unwrap().devices;

    host.write(&two_cards("fault = 'take_memory'", ""));
    for start in 0..2 {
        // The second time in a new child, after a rest.
        let text = eventually("the end of a child", || match probe.read().unwrap_err() {
            ReadError::Probe(LinkError::Resting { .. }) if start > 0 => None,
            ReadError::Probe(ended @ LinkError::Ended { .. }) => Some(ended.to_string()),
            other => panic!("{other:?}"),
        });
        assert!(text.contains("memory allocation of"), "{text}");
        assert!(text.contains("signal: 6"), "{text}");
        assert_eq!(probe.health().state, ProbeState::Restarting);
    }
    let resting = probe.read().unwrap_err().to_string();
    assert!(resting.contains("is started again in"), "{resting}");
    assert!(resting.contains("memory allocation of"), "{resting}");
    let inventory = probe.inventory().unwrap();
    assert_eq!(inventory.devices, before, "nothing is lost meanwhile");

    host.write(&two_cards("memory_used = '2GiB'", ""));
    let readings = eventually("readings again", || probe.read().ok());
    assert_eq!(readings[0].memory_used, 2 * GIB);
}

/// After an upgrade under a running host. The child lives on, and the reason is said for as long as it is so.
#[test]
fn a_driver_that_does_not_match_its_library_is_named_until_it_does() {
    const MISMATCH: &str = "init_fault = 'driver_mismatch'\nfault = 'driver_mismatch'\n";
    let host = Host::new(MISMATCH);
    let probe = host.probe();
    let inventory = probe.inventory().unwrap();
    assert_eq!(inventory.devices, []);
    let note = inventory.notes[0].to_string();
    assert!(note.contains("reboot, or load the driver anew"), "{note}");

    host.write(&two_cards("", ""));
    let before = probe.inventory().unwrap().devices;
    assert_eq!(read_ids(&probe), [FIRST, SECOND]);
    host.write(&format!("{MISMATCH}{}", two_cards("", "")));
    for _ in 0..3 {
        let error = probe.read().unwrap_err().to_string();
        assert!(error.contains("reboot, or load the driver anew"), "{error}");
        assert_eq!(probe.health().state, ProbeState::Ok, "no new child");
    }
    assert_eq!(probe.inventory().unwrap().devices, before);
    assert!(probe.health().rediscover, "it is tried again");

    host.write(&two_cards("", ""));
    assert_eq!(probe.inventory().unwrap().devices, before);
    assert_eq!(read_ids(&probe), [FIRST, SECOND]);
}

#[test]
fn an_unknown_error_has_the_library_initialised_anew() {
    let host = Host::new(&two_cards("", ""));
    let probe = host.probe();
    probe.inventory().unwrap();

    // The fault of the initialisation shows only when there is one.
    let confused = two_cards("", "fault = 'unknown'");
    host.write(&format!("init_fault = 'no_permission'\n{confused}"));
    assert_eq!(read_ids(&probe), [FIRST]);
    let error = probe.read().unwrap_err().to_string();
    assert!(error.contains("permission"), "{error}");
    assert_eq!(probe.inventory().unwrap().devices.len(), 2);

    host.write(&two_cards("", ""));
    probe.inventory().unwrap();
    assert_eq!(read_ids(&probe), [FIRST, SECOND]);
}

/// It is being replaced, or was taken away: whoever computes there goes on until the kernel says otherwise.
#[test]
fn a_driver_that_goes_away_under_its_cards_loses_none() {
    let host = Host::new(&two_cards("", ""));
    let probe = host.probe();
    let before = probe.inventory().unwrap().devices;

    let gone = "init_fault = 'driver_not_loaded'\nfault = 'driver_not_loaded'\n";
    host.write(&format!("{gone}{}", two_cards("", "")));
    probe.read().unwrap_err();
    let inventory = probe.inventory().unwrap();
    assert_eq!(inventory.devices, before);
    let note = inventory.notes[0].to_string();
    assert_eq!(note, "nvml: the NVIDIA driver is not loaded");
    assert!(probe.health().rediscover, "it is looked for again");
    probe.read().unwrap_err();

    host.write(&two_cards("", ""));
    assert_eq!(probe.inventory().unwrap().devices, before);
    assert_eq!(read_ids(&probe), [FIRST, SECOND]);
}

/// That the devices have changed is said until somebody looks, not once.
#[test]
fn a_change_is_said_until_the_inventory_is_made_again() {
    let host = Host::new(&two_cards("", ""));
    let probe = host.probe();
    probe.inventory().unwrap();

    host.write(&two_cards("", "fault = 'lost'"));
    assert_eq!(read_ids(&probe), [FIRST]);
    host.write(&two_cards("", ""));
    assert_eq!(read_ids(&probe), [FIRST, SECOND]);
    host.write(&format!("fault = 'unknown'\n{}", two_cards("", "")));
    probe.read().unwrap_err();
    host.write(&two_cards("", ""));
    read_ids(&probe);
    assert!(probe.health().rediscover);
    probe.inventory().unwrap();
    assert!(!probe.health().rediscover);
}

#[test]
fn poisonous_values_are_not_believed() {
    let host = Host::new(&two_cards("", ""));
    let probe = host.probe();
    probe.inventory().unwrap();

    host.write(&two_cards(
        "memory_used = '18446744073709551615'",
        "temperature_c = 4000000000\nutilisation_percent = 900\n\
         [[device.process]]\npid = 0\nmemory = '1GiB'",
    ));
    let readings = probe.read().unwrap();
    let [second] = &readings[..] else {
        panic!("one reading, not {readings:?}")
    };
    assert_eq!(second.device.id.as_str(), SECOND);
    assert_eq!(second.temperature_c, None);
    assert_eq!(second.utilisation_percent, None);
    assert_eq!(second.processes, []);
    assert!(probe.health().notes[0].text.contains("bytes are in use"));
}

#[test]
fn a_card_without_a_sane_total_is_not_leased() {
    for total in ["0", "18446744073709551615"] {
        let host = Host::new(&format!("[[device]]\nmemory_total = '{total}'"));
        let probe = host.probe();
        let inventory = probe.inventory().unwrap();
        assert!(!inventory.devices[0].leasable, "{total}");
        assert_eq!(inventory.devices[0].memory_total, 0);
        assert_eq!(probe.read().unwrap(), []);
    }
}

#[test]
fn without_a_driver_there_is_a_note_and_no_error() {
    let missing = "library `libnvidia-not-there.so` not found";
    let not_loaded = "the NVIDIA driver is not loaded";
    let host = Host::new("init_fault = 'driver_not_loaded'");
    for (library, note) in [
        (PathBuf::from("libnvidia-not-there.so"), missing),
        (fake_nvml::built_library(), not_loaded),
    ] {
        let config = Config {
            nvml_library: library,
            ..host.config()
        };
        let probe = Probe::with_limits(config, host.command(), limits());
        let inventory = probe.inventory().unwrap();
        assert_eq!(inventory.devices, []);
        assert_eq!(inventory.notes[0].to_string(), format!("nvml: {note}"));
        assert!(!probe.health().rediscover);
        assert_eq!(probe.read().unwrap(), []);
    }
}
