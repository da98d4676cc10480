//! Lanes that are full say so at once, and each leaves the other alone.

use gpu_broker::{AcquireError, LeaseCommandError, Unavailable};
use gpu_lease::{Command, LeaseId};

use crate::world::{World, request};

/// What the lanes of the inbox hold; the numbers are part of what clients meet.
const ACQUIRE_MAX: usize = 4096;
const CONTROL_MAX: usize = 8192;

#[test]
fn a_full_lane_of_requests_is_overloaded_and_heartbeats_still_pass() {
    let world = World::new();
    let holder = world.acquire(request(80));
    world.store.hold();
    let renewed = {
        let handle = world.handle.clone();
        world.spawn(async move { handle.lease(Command::Renew { id: holder.id }).await })
    };
    world.store.until_held();
    let asked: Vec<_> = (0..ACQUIRE_MAX).map(|_| world.ask(request(1)).1).collect();
    let refused = world.try_acquire(request(1));
    assert!(matches!(
        refused,
        Err(AcquireError::Unavailable(Unavailable::Overloaded))
    ));
    let handle = world.handle.clone();
    let released = world.spawn(async move { handle.lease(Command::Release { id: holder.id }).await });
    crate::world::rest();
    assert!(!released.is_finished(), "it is taken, though not answered");
    world.store.open();
    world.wait(renewed).unwrap().unwrap();
    world.wait(released).unwrap().unwrap();
    let answers = asked.into_iter().map(|answer| world.wait(answer));
    let granted = answers.filter(Result::is_ok).count();
    assert_eq!(granted, 80, "every request let in is decided");
    world.nudge();
}

#[test]
fn a_full_lane_of_commands_is_overloaded_and_loses_nothing_it_took() {
    let world = World::new();
    world.store.hold();
    let (_, first) = world.ask(request(1));
    world.store.until_held();
    let nobody = LeaseId::from_bits(0);
    let asked: Vec<_> = (0..CONTROL_MAX)
        .map(|_| {
            let handle = world.handle.clone();
            world.spawn(async move { handle.lease(Command::Renew { id: nobody }).await })
        })
        .collect();
    let overloaded = || {
        let refused = world.renew(nobody);
        matches!(
            refused,
            Err(LeaseCommandError::Unavailable(Unavailable::Overloaded))
        )
    };
    // All of them are in the lane once the runtime has run them all.
    world.wait(async { while !lane_is_full(&world.handle) { tokio::task::yield_now().await } });
    assert!(overloaded());
    world.store.open();
    world.wait(first).unwrap();
    for answer in asked {
        let answer = world.wait(answer).unwrap();
        assert!(matches!(answer, Err(LeaseCommandError::Refused(_))));
    }
}

/// Asks without waiting: a lane with room keeps the question, and nobody hears the answer.
fn lane_is_full(handle: &gpu_broker::Handle) -> bool {
    use std::task::{Context, Poll, Waker};
    let mut asked = Box::pin(handle.lease(Command::Renew {
        id: LeaseId::from_bits(0),
    }));
    let mut context = Context::from_waker(Waker::noop());
    matches!(
        asked.as_mut().poll(&mut context),
        Poll::Ready(Err(LeaseCommandError::Unavailable(
            Unavailable::Overloaded
        )))
    )
}
