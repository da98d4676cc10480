//! Lanes that are full say so at once, and each leaves the other alone.

use gpu_broker::{AcquireError, LeaseCommandError, Unavailable};
use gpu_lease::{Command, Emergency, EndReason, LeaseError, LeaseId, Ms, Targets};

use crate::world::{Asked, Said, World, patient, request, until};

/// What the lanes of the inbox hold; the numbers are part of what clients meet.
pub(crate) const ACQUIRE_MAX: usize = 4096;
pub(crate) const CONTROL_MAX: usize = 8192;
const EMERGENCY_MAX: usize = 64;

#[test]
fn a_full_lane_of_requests_is_overloaded_and_heartbeats_still_pass() {
    let world = World::new();
    let holder = world.acquire(request(80));
    world.store.hold();
    let renewed = world.say(Command::Renew { id: holder.id });
    world.store.until_held();
    let asked: Vec<_> = (0..ACQUIRE_MAX).map(|_| world.ask(request(1)).1).collect();
    let refused = world.try_acquire(request(1));
    assert!(matches!(
        refused,
        Err(AcquireError::Unavailable(Unavailable::Overloaded))
    ));
    let released = world.say(Command::Release { id: holder.id });
    world.store.open();
    world.wait(renewed).unwrap();
    world.wait(released).expect("it was taken");
    let answers = asked.into_iter().map(|answer| world.wait(answer));
    let granted = answers.filter(Result::is_ok).count();
    assert_eq!(granted, 80, "every request that was let in is decided");
}

/// A loop in the middle of a commit, for a request, and as many heartbeats of `id` behind it as may wait.
fn full_of_heartbeats(world: &World, id: LeaseId) -> (Asked, Vec<Said>) {
    world.store.hold();
    let (_, first) = world.ask(request(1));
    world.store.until_held();
    let said = (0..CONTROL_MAX).map(|_| world.say(Command::Renew { id }));
    (first, said.collect())
}

#[test]
fn a_full_lane_of_commands_is_overloaded_and_loses_nothing_it_took() {
    let world = World::new();
    let lease = world.acquire(request(1));
    let (first, said) = full_of_heartbeats(&world, lease.id);
    let refused = world.wait(world.say(Command::Renew { id: lease.id }));
    assert!(matches!(
        refused,
        Err(LeaseCommandError::Unavailable(Unavailable::Overloaded))
    ));
    let before = world.store.commits();
    world.store.open();
    world.wait(first).unwrap();
    for answer in said {
        world.wait(answer).unwrap();
    }
    assert_eq!(world.store.commits(), before + 2, "all of them at once");
}

#[test]
fn an_emergency_is_taken_where_heartbeats_are_not_and_goes_before_them() {
    let world = World::new();
    let lease = world.acquire(request(1));
    let (first, said) = full_of_heartbeats(&world, lease.id);
    let one_more = world.say(Command::Renew { id: lease.id });
    assert!(world.wait(one_more).is_err(), "there is no room");
    let called: Vec<_> = (0..EMERGENCY_MAX)
        .map(|_| world.call(emergency(lease.id)))
        .collect();
    let refused = world.wait(world.call(emergency(lease.id)));
    assert_eq!(refused, Err(Unavailable::Overloaded));
    world.store.open();
    world.wait(first).unwrap();
    let ended = called.into_iter().map(|answer| world.wait(answer).unwrap());
    assert_eq!(ended.collect::<Vec<_>>().concat(), [lease.id]);
    for answer in said {
        assert!(matches!(
            world.wait(answer),
            Err(LeaseCommandError::Refused(LeaseError::Ended(
                EndReason::Emergency
            )))
        ));
    }
}

fn emergency(id: LeaseId) -> Emergency {
    Emergency {
        targets: Targets::Leases(vec![id]),
        reason: "smoke".into(),
        by: "root".into(),
        kill: false,
        cordon: false,
        force_unsafe: false,
    }
}

/// What each waiter is told of each holder is too much to be said anew in every turn.
#[test]
fn a_long_queue_is_explained_now_and_then_and_the_last_word_is_said() {
    let world = World::new();
    let holders: Vec<_> = (0..80).map(|_| world.acquire(request(1)).id).collect();
    for _ in 0..200 {
        world.acquire(patient(1));
    }
    let explained = || world.handle.snapshot().waiting.len();
    let reported = || world.handle.snapshot().counters.revision;
    let revision = || holders.iter().map(|id| world.lease(*id).revision).max();
    assert!(explained() < 200, "80 times 200 holders are too many");
    world.renew(holders[0]).unwrap();
    assert!(Some(reported()) >= revision(), "only the reasons rest");
    assert!(explained() < 200);
    world.clock.jump(Ms(80 * 200 / 256));
    until("all have been explained", || explained() == 200);
}
