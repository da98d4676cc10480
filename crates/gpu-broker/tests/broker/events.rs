//! The history: ordered, without gaps or doubles, over turns, restarts and refusals.

use gpu_lease::{Command, DeviceKey, DrainNotice, Emergency, EventKind, Targets};
use gpu_store::{EventPosition, StoredEvent};

use crate::world::{Setup, World, device, on_every_store, patient, request};

fn positions(events: &[StoredEvent]) -> Vec<EventPosition> {
    events.iter().map(|event| event.position).collect()
}

/// Something of everything: several commands a turn, several events a command.
fn busy_day(world: &World) {
    let holder = world.acquire(request(10));
    world.store.hold();
    let (_, first) = world.ask(request(10));
    world.store.until_held();
    let asked: Vec<_> = (0..5).map(|_| world.ask(request(10)).1).collect();
    world.store.open();
    world.wait(first).unwrap();
    for answer in asked {
        world.wait(answer).unwrap();
    }
    assert!(world.acquire(patient(60)).waiting().is_some());
    let notice = DrainNotice {
        grace: None,
        reason: "maintenance".to_owned(),
        by: "root".to_owned(),
    };
    let drained = world.handle.device(Command::DrainDevice {
        device: DeviceKey::local("gpu-0"),
        notice,
    });
    world.wait(drained).unwrap();
    world.release(holder.id);
    let emergency = world.handle.emergency(Emergency {
        targets: Targets::All,
        reason: "smoke".to_owned(),
        by: "root".to_owned(),
        kill: false,
        cordon: false,
        force_unsafe: true,
    });
    world.wait(emergency).unwrap();
    let uncordoned = world.handle.device(Command::Uncordon {
        device: DeviceKey::local("gpu-0"),
        by: "root".to_owned(),
    });
    world.wait(uncordoned).unwrap();
}

#[test]
fn positions_rise_and_are_heard_as_they_are_stored() {
    let world = Setup::default().run();
    let mut live = world.handle.live_events();
    let before = world.events_after(None);
    world.inventory(&[device("gpu-0", 80)]);
    busy_day(&world);
    let events = world.events_after(before.last().map(|event| event.position));
    assert!(events.len() > 20);
    assert!(
        positions(&events).is_sorted_by(|a, b| a < b),
        "{:?}",
        positions(&events)
    );
    let heard: Vec<StoredEvent> = std::iter::from_fn(|| live.try_recv().ok())
        .map(|event| (*event).clone())
        .collect();
    assert_eq!(heard, events);
    let kinds = [
        EventKind::DeviceFound,
        EventKind::LeaseGranted,
        EventKind::LeaseWaiting,
        EventKind::LeaseDraining,
        EventKind::DeviceCordoned,
        EventKind::LeaseEnded,
        EventKind::EmergencyRelease,
    ];
    for kind in kinds {
        let said = events.iter().any(|event| event.event.kind == kind);
        assert!(said, "{kind:?} is said");
    }
}

#[test]
fn a_reader_goes_on_where_it_was_after_a_restart() {
    let world = World::new();
    busy_day(&world);
    let store_id = world.handle.store_id();
    let last = world.events_after(None).last().unwrap().position;

    let world = world.restart(|_| ());
    assert_eq!(world.handle.store_id(), store_id);
    // A waiter on a connection is no row, and yet its events must not share a place with later ones.
    world.inventory(&[device("gpu-0", 80)]);
    busy_day(&world);
    let whole = world.events_after(None);
    let rest = world.events_after(Some(last));
    assert!(positions(&whole).is_sorted_by(|a, b| a < b));
    assert!(rest.iter().all(|event| event.position > last));
    assert_eq!(whole[whole.len() - rest.len()..], rest);
    let kinds = rest.iter().map(|event| event.event.kind);
    assert_eq!(
        kinds.take(3).collect::<Vec<_>>(),
        [
            EventKind::BrokerStopped,
            EventKind::BrokerStarted,
            EventKind::DeviceFound
        ]
    );
}

#[test]
fn the_history_tells_how_each_life_began_and_ended() {
    on_every_store(|setup| {
        let world = World::with(setup);
        world.acquire(request(1));
        let world = world.restart(|_| ());
        world.store.fail();
        assert!(world.try_acquire(request(1)).is_err());
        let world = world.crashed().run();
        let world = world.restart(|setup| setup.boot_id = "another".to_owned());
        let of_broker = |event: &StoredEvent| {
            let kind = event.event.kind;
            kind == EventKind::BrokerStarted || kind == EventKind::BrokerStopped
        };
        let events = world.events_after(None);
        let told: Vec<&str> = events
            .iter()
            .filter(|event| of_broker(event))
            .map(|event| event.event.text.as_str())
            .collect();
        assert_eq!(
            told,
            [
                "gpu-manager started: 0 leases held",
                "stopped in order: 1 lease held",
                "gpu-manager started: 1 lease held",
                "gpu-manager started: 1 lease held; the one before did not stop in order",
                "stopped in order: 1 lease held",
                "gpu-manager started: the host was booted since, so what was held has ended",
            ]
        );
    });
}
