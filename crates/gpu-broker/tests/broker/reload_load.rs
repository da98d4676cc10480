//! Reloads while the broker works: what is not touched stays as it is, and every decision is of one policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use gpu_broker::{
    CandidateState, ReloadOptions, ReloadOutcome, Trigger, Unavailable, register_process,
};
use gpu_lease::{Command, EndReason, Holder, HolderKind, Lease, LeaseId, Ms, Request};
use rustix::process::getuid;

use crate::limits::{ACQUIRE_MAX, CONTROL_MAX};
use crate::reload::{Reloads, applied, max_waiting};
use crate::world::{Setup, World, device, files, patient, queued, request};

#[test]
fn a_thousand_reloads_leave_what_they_do_not_touch_as_it_is() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let mut leases: Vec<Lease> = (0..4).map(|_| world.acquire(request(10))).collect();
    leases.extend((0..4).map(|_| world.acquire(queued(70))));
    let before: Vec<_> = leases.iter().map(|lease| world.lease(lease.id)).collect();
    for n in 1..=1000 {
        reloads.save(&format!("[queue]\nmax_waiting = {}\n", 8 + n % 2));
        applied(&reloads.reload());
        if n % 10 == 0 {
            let passing = world.acquire(queued(70));
            world.release(passing.id);
        }
    }
    let after: Vec<_> = leases.iter().map(|lease| world.lease(lease.id)).collect();
    assert_eq!(before, after, "row by row");
    assert_eq!(world.handle.snapshot().counters.generation, 1001);
}

#[test]
fn readers_see_both_halves_of_one_generation() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let over = Arc::new(AtomicBool::new(false));
    let readers = (0..64).map(|_| {
        let (handle, over) = (world.handle.clone(), over.clone());
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let snapshot = handle.snapshot();
                let queue = &snapshot.policy.queue;
                let halves = (
                    queue.max_waiting as u64,
                    snapshot.policy.defaults.wait.0 / 1000,
                );
                let generation = snapshot.counters.generation;
                assert!(generation == 1 || halves == (generation, generation));
                thread::yield_now();
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    for generation in 2..=200 {
        let text =
            format!("[queue]\nmax_waiting = {generation}\n[defaults]\nwait = \"{generation}s\"\n");
        reloads.save(&text);
        assert_eq!(applied(&reloads.reload()), generation);
    }
    over.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
}

#[test]
fn a_decision_before_the_switch_is_of_the_policy_before_it() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    reloads.save("[queue]\nmax_waiting = 3\n");
    world.store.hold();
    let (id, asked) = world.ask(request(1));
    world.store.until_held();
    let reloader = reloads.reloader.clone();
    let reload =
        thread::spawn(move || reloader.reload(Trigger::Api, "ann", &ReloadOptions::default()));
    crate::world::rest();
    world.store.open();
    assert_eq!(world.wait(asked).unwrap().id, id);
    assert_eq!(applied(&reload.join().unwrap()), 2);
    assert_eq!(world.lease(id).held().unwrap().generation, 1);
    let next = world.acquire(request(1));
    assert_eq!(next.held().unwrap().generation, 2);
}

#[test]
fn a_file_a_caller_and_a_signal_at_once_all_count_and_the_last_one_is_live() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    reloads.save("[queue]\nmax_waiting = 5\n");
    let triggers = [Trigger::Api, Trigger::File, Trigger::Signal].map(|trigger| {
        let reloader = reloads.reloader.clone();
        thread::spawn(move || reloader.reload(trigger, "", &ReloadOptions::default()))
    });
    let mut outcomes: Vec<_> = triggers
        .into_iter()
        .map(|trigger| trigger.join().unwrap().outcome.as_str())
        .collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["applied", "unchanged", "unchanged"]);
    assert_eq!(max_waiting(&world), 5);
    assert_eq!(reloads.reloader.state().history.len(), 3);
}

#[test]
fn who_waits_is_looked_at_once_after_the_switch_and_keeps_its_place() {
    let world = World::with(Setup::policy(
        "[[device]]\nname = \"*\"\ncordon = \"fan\"\n",
    ));
    let reloads = Reloads::of(&world);
    let (first, second) = (world.acquire(queued(40)), world.acquire(queued(41)));
    reloads.save("");
    applied(&reloads.reload());
    assert!(world.is_held(first.id));
    let waiting = world.lease(second.id);
    let wait = |lease: &Lease| lease.waiting().map(|wait| (wait.seq, wait.until));
    assert_eq!(wait(&waiting), wait(&second));
}

#[test]
fn a_reload_ends_leases_whose_process_is_gone_and_lists_them() {
    let world = World::new();
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let process = register_process(child.id(), getuid().as_raw(), false, false).unwrap();
    let lease = world.acquire(Request {
        holder: Holder {
            kind: HolderKind::Process(process),
            ..request(1).holder
        },
        ..request(1)
    });
    let other = world.acquire(request(1));
    let child = parking_lot::Mutex::new(Some(move || {
        child.kill().unwrap();
        child.wait().unwrap();
    }));
    let reloader = gpu_broker::Reloader::new(
        world.handle.clone(),
        // It dies while the files are read: whoever sees that first, the reload lists it.
        Box::new(move || {
            if let Some(mut kill) = child.lock().take() {
                kill();
            }
            Ok(files(""))
        }),
        Vec::new(),
        world.started.reload_start(),
    );
    let result = reloader.reload(Trigger::Api, "ann", &ReloadOptions::default());
    assert!(matches!(result.outcome, ReloadOutcome::Unchanged));
    assert_eq!(result.stale, [lease.id]);
    assert_eq!(world.end_reason(lease.id), Some(EndReason::ProcessGone));
    assert!(world.is_held(other.id));
}

#[test]
fn a_rule_by_the_hour_takes_effect_when_its_hour_comes() {
    // Ten seconds before 18:00 UTC; the review of every 15 s would come after it.
    let world = World::with(Setup::policy(
        "[defaults]\ntimezone = \"UTC\"\n[[class]]\nname = \"night\"\nhours = \"18:00-06:00\"\n",
    ));
    let waiting = world.acquire(Request {
        class: "night".to_owned(),
        ..queued(1)
    });
    world.clock.jump(Ms(9_900));
    world.nudge();
    assert!(!world.is_held(waiting.id));
    world.clock.jump(Ms(100));
    world.nudge();
    assert!(world.is_held(waiting.id));
}

#[test]
fn leases_of_many_generations_drain_and_only_deadlines_end_them() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let class = |n: u64| format!("[reload]\ngrace = \"1h\"\n[[class]]\nname = \"c{n}\"\n");
    let mut leases = Vec::new();
    for n in 0..10 {
        // Each switch drops the class of the generation before.
        applied(&reloads.offer(&class(n)));
        leases.push(world.acquire(Request {
            class: format!("c{n}"),
            ..request(1)
        }));
    }
    // A heartbeat every half minute.
    let pass = |world: &World, time: Ms| {
        for _ in 0..time.0 / 30_000 {
            world.pass(Ms::from_secs(30));
            for lease in leases.iter().filter(|lease| world.is_held(lease.id)) {
                let _ended = world.renew(lease.id);
            }
        }
    };
    pass(&world, Ms::from_secs(3570));
    assert!(leases.iter().all(|lease| world.is_held(lease.id)));
    pass(&world, Ms::from_secs(60));
    let ended: Vec<_> = leases
        .iter()
        .map(|lease| world.end_reason(lease.id))
        .collect();
    assert_eq!(
        ended[..9],
        [Some(EndReason::Policy); 9],
        "by their deadlines"
    );
    assert_eq!(ended[9], None, "its class is live");
}

#[test]
fn a_drain_goes_on_over_a_restart_and_a_jump_of_the_civil_clock_to_the_same_deadline() {
    let world = World::with(Setup::policy("[[class]]\nname = \"batch\"\n"));
    let reloads = Reloads::of(&world);
    let lease = world.acquire(Request {
        class: "batch".to_owned(),
        ttl: Ms::from_secs(3600),
        ..request(1)
    });
    applied(&reloads.offer("[reload]\ngrace = \"10m\"\n"));
    let deadline = |world: &World| {
        let lease = world.lease(lease.id);
        let (_, drain) = lease.held().unwrap().drain().unwrap();
        drain.deadline
    };
    let before = deadline(&world);
    drop(reloads);
    let world = world.restart(|setup| setup.policy = "[reload]\ngrace = \"10m\"\n".to_owned());
    world.inventory(&[device("gpu-0", 80)]);
    assert_eq!(deadline(&world), before);
    world.pass(Ms::from_secs(599));
    assert!(world.is_held(lease.id));
    world.pass(Ms::from_secs(2));
    assert_eq!(world.end_reason(lease.id), Some(EndReason::Policy));
}

#[test]
fn a_request_is_explained_without_a_trace() {
    let world = World::new();
    let before = world.handle.snapshot().counters;
    let explained = world.wait(world.handle.explain(patient(10), None)).unwrap();
    assert_eq!(explained.outcome.unwrap(), [device("gpu-0", 80).key]);
    assert_eq!(world.handle.snapshot().counters, before);
}

#[test]
fn a_reload_that_cannot_be_stored_is_as_if_it_never_was() {
    let world = World::with(Setup::policy("[[class]]\nname = \"batch\"\n"));
    let lease = world.acquire(Request {
        class: "batch".to_owned(),
        ..request(1)
    });
    let reloads = Reloads::of(&world);
    let before = (world.lease(lease.id), world.handle.snapshot().counters);
    world.store.fail();
    reloads.save("");
    let result = reloads.reload();
    assert!(
        matches!(result.outcome, ReloadOutcome::Stopped(_)),
        "{result:?}"
    );
    let after = (world.lease(lease.id), world.handle.snapshot().counters);
    assert_eq!(before, after, "readers see none of it");
    drop(reloads);
    let stored = gpu_store::Store::load(&*world.store).unwrap();
    let rows = stored.rows.unwrap();
    assert_eq!(rows.leases, [(*before.0).clone()]);
    assert_eq!(rows.counters, before.1);
}

/// Runs `act` while as many commands wait as may, and lets the loop go on after it.
fn while_overloaded<T>(world: &World, lease: LeaseId, act: impl FnOnce() -> T) -> T {
    world.store.hold();
    let (_, first) = world.ask(request(1));
    world.store.until_held();
    let renewals: Vec<_> = (0..CONTROL_MAX)
        .map(|_| world.say(Command::Renew { id: lease }))
        .collect();
    let acted = act();
    world.store.open();
    world.wait(first).unwrap();
    for renewal in renewals {
        world.wait(renewal).unwrap();
    }
    acted
}

#[test]
fn a_save_that_meets_too_much_at_once_is_tried_again() {
    let world = World::new();
    let reloads = Reloads::gated(&world);
    let lease = world.acquire(request(1));
    let text = "[queue]\nmax_waiting = 3\n";
    let result = while_overloaded(&world, lease.id, || reloads.offer(text));
    assert!(
        matches!(
            result.outcome,
            ReloadOutcome::Stopped(Unavailable::Overloaded)
        ),
        "{result:?}"
    );
    assert_eq!(reloads.candidate(), Some(CandidateState::NotLoaded));
    reloads.reloader.tick();
    assert_eq!(max_waiting(&world), 3);
    assert!(reloads.candidate().is_none());
}

#[test]
fn an_override_that_ends_while_there_is_too_much_ends_a_tick_later() {
    let world = World::new();
    let reloads = Reloads::gated(&world);
    let lease = world.acquire(Request {
        ttl: Ms::from_secs(3600),
        ..request(1)
    });
    let set = [("queue.max_waiting".to_owned(), "3".to_owned())];
    let options = ReloadOptions::default();
    let minute = Ms::from_secs(60);
    let set = reloads
        .reloader
        .set_overrides(&set, minute, "ann", &options);
    applied(&set.unwrap());
    world.pass(minute);
    while_overloaded(&world, lease.id, || reloads.reloader.tick());
    assert_eq!(max_waiting(&world), 3);
    assert_eq!(reloads.reloader.overrides().len(), 1);
    reloads.reloader.tick();
    assert_eq!(max_waiting(&world), 1024);
    assert!(reloads.reloader.overrides().is_empty());
}

#[test]
fn waiters_that_come_meanwhile_do_not_outgrow_what_was_confirmed() {
    let world = World::with(Setup::policy("[[class]]\nname = \"batch\"\n"));
    let reloads = Reloads::gated(&world);
    let batch = |request| Request {
        class: "batch".to_owned(),
        ..request
    };
    world.acquire(batch(request(50)));
    let hash = reloads.offer("").plan_hash.clone().unwrap();
    let waiting = world.acquire(batch(patient(50)));
    applied(&reloads.confirm(&hash));
    assert!(world.handle.find(waiting.id).is_none());
}

#[test]
fn explanations_wait_in_the_lane_of_requests() {
    let world = World::new();
    let holder = world.acquire(request(1));
    world.store.hold();
    let renewed = world.say(Command::Renew { id: holder.id });
    world.store.until_held();
    let asked: Vec<_> = (0..ACQUIRE_MAX).map(|_| world.ask(patient(1)).1).collect();
    let refused = world.wait(world.handle.explain(request(1), None));
    assert!(matches!(refused, Err(Unavailable::Overloaded)));
    world.store.open();
    world.wait(renewed).unwrap();
    drop(asked);
}
