//! What the table explains, and what it does not.

use super::*;
use crate::linear::{Call, Calls, linearize};

const TOTAL: u64 = 24;

fn seen(lease: u32, fence: u64, phase: Phase) -> Ret {
    Ret::Lease(Seen {
        lease,
        fence,
        phase,
    })
}

fn held(lease: u32, fence: u64) -> Ret {
    seen(lease, fence, Phase::Held)
}

fn acquire(key: u32, bytes: u64) -> Op {
    Op::Acquire {
        key,
        amount: Amount::Memory(bytes),
        told: None,
    }
}

fn alone(key: u32) -> Op {
    Op::Acquire {
        key,
        amount: Amount::Exclusive,
        told: None,
    }
}

fn leases<const N: usize>(leases: [u32; N]) -> BTreeSet<u32> {
    BTreeSet::from(leases)
}

/// One after the other.
fn story(steps: &[(Op, Ret)]) -> Calls<LeaseTable> {
    let steps = steps.iter().cloned().zip(0..);
    let call = |((op, ret), n): ((Op, Ret), u64)| Call {
        client: 0,
        begun: 2 * n,
        op,
        answer: Some((2 * n + 1, ret)),
    };
    steps.map(call).collect()
}

fn is_linear(calls: &Calls<LeaseTable>) -> bool {
    linearize(
        &LeaseTable::new(TOTAL),
        calls,
        Op::only_looks,
        Op::is_prompt,
    )
    .is_ok()
}

fn is_explained(steps: &[(Op, Ret)]) -> bool {
    is_linear(&story(steps))
}

#[test]
fn a_life_of_every_kind_is_explained() {
    let revoked = Phase::Reclaiming(End::Revoked);
    let story = [
        (acquire(1, 16), held(1, 10)),
        (acquire(2, 16), Ret::Refused),
        (acquire(2, 8), held(2, 11)),
        (acquire(1, 16), held(1, 10)),
        (alone(3), Ret::Refused),
        (Op::Taken, Ret::Taken(24, leases([1, 2]))),
        (Op::Renew(1), held(1, 10)),
        (Op::Check(10), Ret::Current(true)),
        (Op::Check(12), Ret::Current(false)),
        (Op::Release(1), seen(1, 10, Phase::Ended(End::Released))),
        (Op::Release(1), seen(1, 10, Phase::Ended(End::Released))),
        (Op::Renew(1), Ret::Gone),
        (Op::Revoke(2), seen(2, 11, revoked)),
        (Op::Look(2), seen(2, 11, revoked)),
        (Op::Release(2), seen(2, 11, revoked)),
        (Op::Check(11), Ret::Current(false)),
        (alone(3), Ret::Refused),
        (Op::Stop, Ret::Ended(leases([]))),
        (Op::Free, Ret::Ended(leases([2]))),
        (alone(3), held(7, 40)),
        (Op::Stop, Ret::Ended(leases([7]))),
        (alone(3), seen(7, 40, Phase::Reclaiming(End::Emergency))),
    ];
    assert!(is_explained(&story));
}

#[test]
fn what_a_broken_broker_would_say_is_refused() {
    let over = Phase::Ended(End::Released);
    let released = [
        (acquire(1, 16), held(1, 10)),
        (Op::Release(1), seen(1, 10, over)),
    ];
    let check = |what: &str, before: &[(Op, Ret)], last: (Op, Ret)| {
        assert!(is_explained(before), "{what}: what went before is fine");
        assert!(!is_explained(&[before, &[last]].concat()), "{what}");
    };
    let holds = [(acquire(1, 16), held(1, 10))];
    check("more than there is", &holds, (acquire(2, 16), held(2, 11)));
    check(
        "two alone",
        &[(alone(1), held(1, 10))],
        (alone(2), held(2, 11)),
    );
    check("alone beside another", &holds, (alone(2), held(2, 11)));
    check("refused for nothing", &released, (alone(2), Ret::Refused));
    check("a fence again", &released, (alone(2), held(2, 10)));
    check("an older fence", &released, (alone(2), held(2, 9)));
    check("a lease again", &released, (alone(2), held(1, 11)));
    check(
        "risen from the dead",
        &released,
        (Op::Renew(1), held(1, 10)),
    );
    check("stale look", &released, (Op::Look(1), held(1, 10)));
    check(
        "stale check",
        &released,
        (Op::Check(10), Ret::Current(true)),
    );
    check(
        "stale device",
        &released,
        (Op::Taken, Ret::Taken(16, leases([1]))),
    );
    check("lost", &holds, (Op::Look(1), Ret::Unknown));
    check("ended by nobody", &holds, (Op::Renew(1), Ret::Gone));
    check(
        "a second lease for a key",
        &holds,
        (acquire(1, 16), held(2, 11)),
    );
    check(
        "another fence for a key",
        &holds,
        (acquire(1, 16), held(1, 11)),
    );
    let revoked = [
        (acquire(1, 16), held(1, 10)),
        (Op::Revoke(1), seen(1, 10, Phase::Reclaiming(End::Revoked))),
    ];
    check(
        "granted before it is free",
        &revoked,
        (acquire(2, 16), held(2, 11)),
    );
    check(
        "current after the end",
        &revoked,
        (Op::Check(10), Ret::Current(true)),
    );
    check(
        "an emergency that spares",
        &holds,
        (Op::Stop, Ret::Ended(leases([]))),
    );
}

fn open(client: usize, begun: u64, op: Op) -> Call<Op, Ret> {
    Call {
        client,
        begun,
        op,
        answer: None,
    }
}

#[test]
fn a_request_that_a_crash_left_open_was_done_or_not_and_a_retry_tells() {
    let amount = Amount::Memory(16);
    let told = |before| {
        Some(Grant {
            lease: 5,
            fence: 30,
            before,
            end: None,
        })
    };
    let asked = |before| Op::Acquire {
        key: 1,
        amount,
        told: told(before),
    };
    let check = |before, steps: &[(Op, Ret)], expected: bool| {
        let mut calls = story(steps);
        calls.push(open(9, 0, asked(before)));
        calls.extend(retried(asked(before), 2 * steps.len() as u64));
        assert_eq!(is_linear(&calls), expected, "{steps:?}");
    };
    check(0, &[(alone(2), Ret::Refused)], true);
    let over = seen(2, 20, Phase::Ended(End::Released));
    let between = [(alone(2), held(2, 20)), (Op::Release(2), over)];
    check(20, &between, true);
    check(0, &between, false);
    let over = seen(2, 40, Phase::Ended(End::Released));
    let higher = [(alone(2), held(2, 40)), (Op::Release(2), over)];
    check(0, &higher, false);
    check(40, &higher, false);
}

fn retried(op: Op, begun: u64) -> Calls<LeaseTable> {
    let answer = Some((begun + 1, held(5, 30)));
    vec![Call {
        client: 0,
        begun,
        op,
        answer,
    }]
}

#[test]
fn a_release_that_a_crash_left_open_is_not_taken_back() {
    let check = |steps: &[(Op, Ret)], expected: bool| {
        let mut calls = story(steps);
        calls.push(open(9, 2, Op::Release(1)));
        assert_eq!(is_linear(&calls), expected, "{steps:?}");
    };
    let granted = (alone(1), held(1, 10));
    let holds = (Op::Renew(1), held(1, 10));
    check(
        &[granted.clone(), holds.clone(), (alone(2), held(2, 11))],
        true,
    );
    check(&[granted.clone(), holds.clone(), holds.clone()], true);
    check(&[granted, (alone(2), held(2, 11)), holds], false);
}

fn join(key: u32, amount: Amount) -> (Op, Ret) {
    let deaths = (0, 0);
    let join = Op::Join {
        key,
        amount,
        deaths,
    };
    (join, Ret::Done)
}

fn serve(key: u32, fence: u64, before: u64) -> (Op, Ret) {
    let grant = Grant {
        lease: key,
        fence,
        before,
        end: None,
    };
    (Op::Serve { key, grant }, Ret::Done)
}

fn release(lease: u32, fence: u64) -> (Op, Ret) {
    let over = Phase::Ended(End::Released);
    (Op::Release(lease), seen(lease, fence, over))
}

/// One device is held, and three wait for it: for all of it, for a half, and for more than a half.
fn waiting() -> Vec<(Op, Ret)> {
    vec![
        (acquire(1, 16), held(1, 10)),
        join(2, Amount::Exclusive),
        join(3, Amount::Memory(12)),
        join(4, Amount::Memory(14)),
    ]
}

#[test]
fn waiters_are_served_in_turn_or_give_up() {
    let steps = [
        // What is free may be kept for the first, who wants all.
        (acquire(5, 8), Ret::Refused),
        (acquire(6, 8), held(6, 11)),
        release(6, 11),
        (Op::GiveUp(2), Ret::Done),
        release(1, 10),
        serve(3, 12, 11),
        (Op::Look(3), held(3, 12)),
        (acquire(5, 12), Ret::Refused),
        release(3, 12),
        serve(4, 13, 12),
        (acquire(5, 10), held(5, 14)),
    ];
    assert!(is_explained(&[&waiting()[..], &steps].concat()));
}

#[test]
fn who_vanished_with_a_broker_may_have_kept_others_waiting_until_then() {
    let blurred = [
        (Op::Blur, Ret::Done),
        (acquire(5, 8), Ret::Refused),
        (acquire(5, 8), held(5, 11)),
        release(5, 11),
    ];
    let dead = [(Op::Die, Ret::Done), (acquire(6, 8), Ret::Refused)];
    let begin = [(acquire(1, 16), held(1, 10))];
    let until_then = [&begin[..], &blurred].concat();
    assert!(is_explained(&until_then));
    assert!(!is_explained(&[&until_then[..], &dead].concat()));
}

#[test]
fn what_a_broken_queue_would_say_is_refused() {
    let check = |what: &str, steps: &[(Op, Ret)]| {
        let (_, before) = steps.split_last().expect("there are steps");
        let before = [&waiting()[..], before].concat();
        assert!(is_explained(&before), "{what}: what went before is fine");
        assert!(
            !is_explained(&[&waiting()[..], steps].concat()),
            "{what}: {steps:?}"
        );
    };
    let free = release(1, 10);
    check("served while it does not fit", &[serve(2, 11, 10)]);
    check("served and never asked", &[serve(7, 11, 10)]);
    check("over and never asked", &[(Op::GiveUp(7), Ret::Done)]);
    check(
        "over twice",
        &[(Op::GiveUp(2), Ret::Done), (Op::GiveUp(2), Ret::Done)],
    );
    check(
        "a wait in vain although there is room",
        &[free.clone(), (Op::GiveUp(2), Ret::Done)],
    );
    check(
        "served after a wait in vain",
        &[(Op::GiveUp(4), Ret::Done), serve(4, 11, 10)],
    );
    check(
        "a waiter that fits is passed by another",
        &[(Op::GiveUp(2), Ret::Done), free.clone(), serve(4, 11, 10)],
    );
    check(
        "a waiter that fits is passed by a newcomer",
        &[
            (Op::GiveUp(2), Ret::Done),
            free.clone(),
            (acquire(5, 2), held(5, 11)),
        ],
    );
    check(
        "a lost wake-up, seen by a look at the device",
        &[
            (Op::GiveUp(2), Ret::Done),
            free.clone(),
            (Op::Taken, Ret::Taken(0, leases([]))),
        ],
    );
    check(
        "refused for nothing, as nobody waits any more",
        &[
            (Op::GiveUp(2), Ret::Done),
            (Op::GiveUp(3), Ret::Done),
            (Op::GiveUp(4), Ret::Done),
            (acquire(5, 8), Ret::Refused),
        ],
    );
    check("a fence again", &[free.clone(), serve(2, 10, 10)]);
    check(
        "a waiter that outlives its broker",
        &[(Op::Die, Ret::Done), free.clone(), serve(2, 11, 10)],
    );
    check(
        "a request that comes after its broker",
        &[(Op::Die, Ret::Done), join(5, Amount::Memory(2))],
    );
    check(
        "refused because of one who died with its broker",
        &[(Op::Die, Ret::Done), free, (alone(5), Ret::Refused)],
    );
}

#[test]
fn what_ran_out_is_over_and_not_free() {
    let expired = Phase::Reclaiming(End::Expired);
    let before = [(acquire(1, 16), held(1, 10)), (Op::Expire(1), Ret::Done)];
    let check = |last: (Op, Ret), expected: bool| {
        let steps = [&before[..], std::slice::from_ref(&last)].concat();
        assert_eq!(is_explained(&steps), expected, "{last:?}");
    };
    check((Op::Look(1), seen(1, 10, expired)), true);
    check((Op::Renew(1), Ret::Gone), true);
    check((Op::Check(10), Ret::Current(false)), true);
    check((alone(2), Ret::Refused), true);
    check((Op::Free, Ret::Ended(leases([1]))), true);
    check((Op::Renew(1), held(1, 10)), false);
    check((Op::Check(10), Ret::Current(true)), false);
    check((alone(2), held(2, 11)), false);
    check((Op::Expire(1), Ret::Done), false);
    let unasked = [
        (acquire(1, 16), held(1, 10)),
        (Op::Look(1), seen(1, 10, expired)),
    ];
    assert!(!is_explained(&unasked), "it ran out without a step");
}
