//! What leases held, by the hour: counted once, whatever happens, and placed where it was.

use gpu_broker::{EventFilter, Hour, UsageRow};
use gpu_lease::{DeviceId, DeviceKey, EndReason, Lease, Ms, Request};

use crate::world::{GIB, Setup, World, device, on_every_store, request, rest, until};

/// Every broker here starts ten seconds before the end of this hour.
const HOUR: u64 = 1_767_290_390_000 / 3_600_000;

fn secs(secs: u64) -> Ms {
    Ms::from_secs(secs)
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

/// What is held is counted as the hours pass, so that the end of all leases at once is a small commit, also
/// where they were held for weeks.
#[test]
fn an_end_counts_no_more_than_what_was_held_of_late() {
    const HOURS: u64 = 200;
    on_every_store(|setup| {
        let world = World::with(setup);
        let lease = world.acquire(request(10));
        for _ in 0..HOURS {
            world.clock.jump(secs(3600));
            world.renew(lease.id).unwrap();
        }
        let so_far = usage(&world);
        world.release(lease.id);
        assert!(
            world.store.usage_rows() <= 2,
            "{}",
            world.store.usage_rows()
        );
        assert_eq!(usage(&world), so_far);
        let held: u64 = so_far.iter().map(|row| row.usage.held_ms).sum();
        assert_eq!((so_far.len() as u64, held), (HOURS + 1, HOURS * 3_600_000));
    });
}

/// The commit that counts an hour says so itself: after a crash it was done, or it is done again.
#[test]
fn an_hour_that_was_not_stored_is_counted_by_the_next_life() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let lease = world.acquire(request(10));
        world.pass(secs(5));
        world.store.fail();
        world.clock.jump(secs(10));
        until("the loop has ended", || world.handle.is_stopping());
        let setup = world.crashed();
        let world = World::with(setup);
        assert!(world.is_held(lease.id));
        assert_eq!(held(&world), [(0, 10), (1, 5)]);
        let world = world.restart(|setup| setup.clock.jump(secs(5)));
        assert_eq!(held(&world), [(0, 10), (1, 10)]);
        world.release(lease.id);
        assert_eq!(held(&world), [(0, 10), (1, 10)]);
    });
}

/// What a boot ended that began hours before is counted from where it was counted to.
#[test]
fn a_boot_ends_what_was_counted_in_part() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let lease = world.acquire(request(10));
        for _ in 0..3 {
            world.clock.jump(secs(3600));
            world.renew(lease.id).unwrap();
        }
        let world = world.restart(|setup| {
            setup.boot_id = "another boot".to_owned();
            setup.clock.jump(secs(50_000));
        });
        // Three hours, and the minute that its last heartbeat was good for.
        let counted = [(0, 10), (1, 3600), (2, 3600), (3, 3600), (4, 50)];
        assert_eq!(held(&world), counted);
        let world = world.restart(|_| {});
        assert_eq!(held(&world), counted);
    });
}

/// Times of another boot say nothing about what this one counted.
#[test]
fn a_new_boot_counts_from_its_beginning() {
    on_every_store(|setup| {
        let world = World::with(setup);
        world.pass(secs(20));
        let world = world.restart(|setup| {
            setup.boot_id = "another boot".to_owned();
            setup.clock.boot_again();
        });
        world.inventory(&[device("gpu-0", 80)]);
        let lease = world.acquire(request(10));
        world.pass(secs(5));
        let world = world.restart(|_| {});
        assert_eq!(held(&world), [(1, 5)]);
        world.release(lease.id);
        assert_eq!(held(&world), [(1, 5)]);
    });
}

/// An answer is of one moment, also of the one between a commit and its being seen.
#[test]
fn a_lease_that_ends_while_usage_is_asked_for_counts_once() {
    on_every_store(|setup| {
        let world = World::with(setup);
        let lease = world.acquire(request(10));
        world.pass(secs(5));
        world.store.hold_after();
        let released = world.say(gpu_lease::Command::Release { id: lease.id });
        world.store.until_held();
        let asked = std::thread::spawn({
            let handle = world.handle.clone();
            move || {
                let mut held_ms = 0;
                let mut add = |row: UsageRow| held_ms += row.usage.held_ms;
                handle.usage(Hour(0), &mut add).unwrap();
                held_ms
            }
        });
        rest();
        world.store.open();
        assert_eq!(asked.join().unwrap(), 5000);
        world.wait(released).unwrap();
    });
}

/// What a request calls its tenant is its own word, where the policy knows no such tenant.
#[test]
fn only_tenants_of_the_policy_are_counted_by() {
    let of = |policy: &str| {
        let world = World::with(Setup::policy(policy));
        let mut asked = request(10);
        asked.holder.tenant = Some("research".to_owned());
        let lease = world.acquire(asked);
        world.pass(secs(5));
        let so_far = usage(&world);
        world.release(lease.id);
        assert_eq!(usage(&world), so_far);
        so_far[0].key.tenant.clone()
    };
    assert_eq!(of(""), None);
    let known = "[[tenant]]\nname = \"research\"\nmatch = \"holder.user == 'ann'\"\n";
    assert_eq!(of(known).as_deref(), Some("research"));
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
