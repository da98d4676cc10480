//! What leases held, by the hour: counted once, whatever happens, and placed where it was.

use gpu_broker::{EventFilter, Hour, UsageRow};
use gpu_lease::{DeviceId, DeviceKey, EndReason, Lease, Ms, Request};

use crate::world::{GIB, Rows, Setup, World, device, request, until};

/// Every broker here starts ten seconds before the end of this hour.
const HOUR: u64 = 1_767_290_390_000 / 3_600_000;

fn secs(secs: u64) -> Ms {
    Ms::from_secs(secs)
}

/// Runs a scenario on rows in memory and on rows in a file.
fn on_every_store(scenario: impl Fn(Setup)) {
    scenario(Setup::default());
    let directory = tempfile::tempdir().unwrap();
    scenario(Setup {
        rows: Rows::Redb(directory.path().join("store.redb")),
        ..Setup::default()
    });
}

/// Hours after the first one, with the seconds held of each.
fn held(world: &World) -> Vec<(u64, u64)> {
    let rows = usage(world);
    let of = |row: &UsageRow| (row.key.hour.0 - HOUR, row.usage.held_ms / 1000);
    rows.iter().map(of).collect()
}

fn usage(world: &World) -> Vec<UsageRow> {
    let mut rows = Vec::new();
    let mut keep = |row| rows.push(row);
    world.handle.usage(Hour(0), &mut keep).unwrap();
    rows
}

#[test]
fn a_lease_counts_in_the_hours_that_it_was_held_in() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let lease = world.acquire(request(10));
        world.pass(secs(30));
        let so_far = usage(&world);
        assert_eq!(held(&world), [(0, 10), (1, 20)], "also while it is held");
        world.release(lease.id);
        assert_eq!(usage(&world), so_far, "the same when it has ended");
        let first = &so_far[0];
        assert_eq!((first.key.user.as_str(), &first.key.tenant), ("ann", &None));
        assert_eq!(first.key.device, DeviceKey::local("gpu-0"));
        assert_eq!(first.usage.byte_ms, u128::from(10 * GIB) * 10_000);

        world.pass(secs(60));
        world.release(lease.id);
        assert_eq!(usage(&world), so_far, "and that once");
        let other = world.acquire(request(20));
        world.pass(secs(5));
        world.release(other.id);
        assert_eq!(held(&world), [(0, 10), (1, 25)], "leases add up");
    });
}

/// From the end of its grant on, memory that is on its way back is nobody's.
#[test]
fn a_lease_that_is_reclaimed_counts_until_its_end() {
    let world = World::new();
    let lease = world.acquire(Request {
        ttl: secs(20),
        ..request(10)
    });
    world.pass(secs(21));
    assert_eq!(world.end_reason(lease.id), Some(EndReason::Expired));
    world.pass(secs(600));
    assert_eq!(held(&world), [(0, 10), (1, 10)]);
}

#[test]
fn a_lease_that_outlives_the_broker_counts_through() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let lease = world.acquire(request(10));
        world.pass(secs(5));
        let world = world.restart(|setup| setup.clock.jump(secs(25)));
        world.inventory(&[device("gpu-0", 80)]);
        assert_eq!(held(&world), [(0, 10), (1, 20)]);
        world.release(lease.id);
        let world = world.restart(|_| {});
        assert_eq!(held(&world), [(0, 10), (1, 20)]);
    });
}

/// Nobody saw the end: it is not taken for later than the heartbeat that would have been next.
#[test]
fn a_boot_ends_what_was_held_by_its_last_deadline() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let lease = world.acquire(request(10));
        world.pass(secs(15));
        world.renew(lease.id).unwrap();
        let world = world.restart(|setup| {
            setup.boot_id = "another boot".to_owned();
            setup.clock.jump(secs(50_000));
        });
        assert_eq!(world.end_reason(lease.id), Some(EndReason::HostRebooted));
        // Fifteen seconds, and the minute that its last heartbeat was good for.
        assert_eq!(held(&world), [(0, 10), (1, 65)]);
        let world = world.restart(|_| {});
        assert_eq!(held(&world), [(0, 10), (1, 65)]);
    });
}

/// What was not committed is neither ended nor counted; the next life does both.
#[test]
fn an_end_that_was_not_stored_is_not_counted() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let lease = world.acquire(request(10));
        world.pass(secs(5));
        world.store.fail();
        let refused = world.command(gpu_lease::Command::Release { id: lease.id });
        assert!(refused.is_err());
        until("the loop has ended", || world.handle.is_stopping());
        let setup = world.crashed();
        let world = World::with(setup);
        assert!(world.is_held(lease.id));
        world.pass(secs(5));
        assert_eq!(held(&world), [(0, 10)]);
        world.release(lease.id);
        assert_eq!(held(&world), [(0, 10)]);
    });
}

#[test]
fn an_event_is_found_by_each_device_and_by_the_user_of_its_lease() {
    let world = Setup::default().run();
    world.inventory(&["gpu-0", "gpu-1", "gpu-2"].map(|id| device(id, 80)));
    let gang = world.acquire(Request {
        devices: 2,
        ..request(60)
    });
    let on = |lease: &Lease| -> Vec<DeviceId> {
        let parts = lease.grant().unwrap().allocations.iter();
        parts.map(|part| part.device.id.clone()).collect()
    };
    let devices = on(&gang);
    let single = world.acquire(request(60));
    assert!(
        !devices.contains(&on(&single)[0]),
        "there is no room beside"
    );
    world.release(gang.id);

    let find = |filter: EventFilter| {
        let found = world.handle.find_events(&filter, None, 100).unwrap();
        let about = |id| {
            found
                .events
                .iter()
                .filter(|e| e.event.lease == Some(id))
                .count()
        };
        (about(gang.id), about(single.id))
    };
    for device in devices {
        let device = Some(device);
        assert_eq!(
            find(EventFilter {
                device,
                ..EventFilter::default()
            }),
            (2, 0),
            "granted, ended"
        );
    }
    let of = |user: &str| EventFilter {
        user: Some(user.to_owned()),
        ..EventFilter::default()
    };
    assert_eq!(find(of("ann")), (2, 1));
    assert_eq!(find(of("bo")), (0, 0));
}
