//! What the second count of grants finds. That it finds nothing else is held by every other scenario: each of
//! their commands is entered.

use gpu_lease::{Allocation, Books, DeviceKey, Fence, Grant, Lease, LeaseId, Ledger, Phase};

use crate::world::{World, memory, whole, world};

const GIB: u64 = 1 << 30;

/// Two share gpu-0, one has gpu-1 alone, one has ended; and the ledger before `new` came to gpu-0 as well.
fn shared() -> (World, Ledger) {
    let mut world = world();
    world
        .device("gpu-0", 24)
        .device("gpu-1", 24)
        .ask(memory("ann", 8).on(&["gpu-0"]))
        .ask(memory("bo", 8).on(&["gpu-0"]))
        .ask(whole("cy").on(&["gpu-1"]))
        .ask(memory("done", 1).on(&["gpu-0"]))
        .release("done");
    let ledger = Ledger::of(world.books());
    world.ask(memory("new", 4).on(&["gpu-0"]));
    (world, ledger)
}

/// `lease` with something else granted than was.
fn forged(lease: &Lease, edit: impl FnOnce(&mut Grant)) -> Lease {
    let mut grant = lease.grant().expect("it was granted").clone();
    edit(&mut grant);
    Lease {
        phase: Phase::Held(grant),
        ..lease.clone()
    }
}

fn on(device: &str, gib: u64, exclusive: bool) -> Vec<Allocation> {
    vec![Allocation {
        device: DeviceKey::local(device),
        memory: gib * GIB,
        exclusive,
    }]
}

fn breach(ledger: &Ledger, change: (Option<&Lease>, &Lease), books: &Books) -> String {
    let entered = ledger.clone().enter(&[change], books);
    let said = entered.map_err(|breach| breach.to_string());
    said.expect_err("this must be found")
}

#[test]
fn a_grant_that_takes_what_another_has_is_found() {
    let (world, ledger) = shared();
    let new = world.lease("new");
    for (allocations, expected) in [
        (
            on("gpu-1", 1, false),
            "on gpu-1 with another, and one of them alone",
        ),
        (
            on("gpu-0", 8, true),
            "on gpu-0 with another, and one of them alone",
        ),
        (
            on("gpu-0", 9, false),
            "25 GiB of gpu-0 would be granted, which has 24 GiB",
        ),
        (on("gpu-7", 1, false), "on gpu-7, which is not there"),
        (
            on("gpu-0", 5, false),
            "20 GiB of gpu-0 are granted as the books say, and 21 GiB as its leases say",
        ),
    ] {
        let forged = forged(new, |grant| grant.allocations = allocations);
        let found = breach(&ledger, (None, &forged), world.books());
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn a_fence_is_given_once_and_rises() {
    let (world, ledger) = shared();
    let new = world.lease("new");
    let Fence(next) = world.books().counters().next_fence;
    for fence in [world.fence_of("ann"), Fence(0), Fence(next)] {
        let forged = forged(new, |grant| grant.fence = fence);
        let found = breach(&ledger, (None, &forged), world.books());
        assert!(found.ends_with("which is not new"), "{found}");
    }
    let twin = Lease {
        id: LeaseId::from_bits(77),
        ..new.clone()
    };
    let twins = [(None, new), (None, &twin)];
    let found = ledger.clone().enter(&twins, world.books());
    assert!(found.is_err(), "two of one command had the same fence");
}

#[test]
fn what_has_ended_is_not_held_again() {
    let (world, ledger) = shared();
    let done = world.lease("done");
    let found = breach(&ledger, (Some(done), &forged(done, |_| {})), world.books());
    assert!(
        found.ends_with("has ended and would be held again"),
        "{found}"
    );
}

#[test]
fn what_was_granted_is_entered_and_a_lost_device_takes_no_more() {
    let (mut world, mut ledger) = shared();
    let new = world.lease("new").clone();
    let entered = ledger.clone().enter(&[(None, &new)], world.books());
    assert_eq!(entered, Ok(()));
    world.lose("gpu-0");
    let found = breach(&ledger, (None, &new), world.books());
    assert!(found.ends_with("on gpu-0, which is not there"), "{found}");
    assert_eq!(
        ledger.enter(&[(Some(&new), &new)], world.books()),
        Ok(()),
        "a heartbeat"
    );
}
