//! Effects on real processes: watched to their end, signalled only beyond doubt.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command as Program, ExitStatus, Stdio};

use gpu_broker::register_process;
use gpu_lease::{
    Command, Emergency, EndReason, Holder, HolderKind, Lease, Ms, Phase, Process, Request, Targets,
};
use rustix::process::{Signal, getuid};

use crate::world::{Setup, World, request, until};

const SIGNALS: &str =
    "[reclaim]\nsignal = \"always\"\ndelay = \"5s\"\nquarantine_after = \"60s\"\n";

/// A process that ends with the test.
struct Holding(Child);

impl Holding {
    fn sleeping() -> Self {
        Self(Program::new("sleep").arg("1000").spawn().unwrap())
    }

    /// One that SIGTERM does not move.
    fn stubborn() -> Self {
        let mut child = Program::new("sh")
            .args(["-c", "trap '' TERM; echo ready; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn registered(&self) -> Process {
        register_process(self.0.id(), getuid().as_raw(), false, false).unwrap()
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// How it ended, when it has.
    fn end(&mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn held_by(process: Process) -> Request {
    Request {
        holder: Holder {
            kind: HolderKind::Process(process),
            ..request(1).holder
        },
        ..request(1)
    }
}

fn revoke(world: &World, lease: &Lease) {
    let revoked = world.command(Command::Revoke {
        id: lease.id,
        reason: "maintenance".to_owned(),
        by: "root".to_owned(),
    });
    assert!(matches!(revoked.unwrap().phase, Phase::Reclaiming(..)));
}

fn until_ended(world: &World, lease: &Lease, reason: EndReason) {
    until("the lease is over", || {
        matches!(world.lease(lease.id).phase, Phase::Ended(_))
    });
    assert_eq!(world.end_reason(lease.id), Some(reason));
}

#[test]
fn a_lease_ends_with_its_process() {
    let world = World::new();
    let mut process = Holding::sleeping();
    let lease = world.acquire(held_by(process.registered()));
    let other = Holding::sleeping();
    let stays = world.acquire(held_by(other.registered()));
    process.kill();
    until_ended(&world, &lease, EndReason::ProcessGone);
    assert!(world.is_held(stays.id));
}

#[test]
fn a_process_that_lives_is_never_ended_for_a_missed_heartbeat() {
    let world = World::with(Setup::policy(SIGNALS));
    let mut process = Holding::sleeping();
    let lease = world.acquire(held_by(process.registered()));
    world.pass(Ms::from_secs(180));
    assert!(world.lease(lease.id).held().unwrap().unresponsive);
    assert!(process.is_alive());
}

#[test]
fn a_polite_process_goes_when_it_is_asked_to() {
    let world = World::with(Setup::policy(SIGNALS));
    let mut process = Holding::sleeping();
    let lease = world.acquire(held_by(process.registered()));
    revoke(&world, &lease);
    assert_eq!(process.end().signal(), Some(Signal::TERM.as_raw()));
    until_ended(&world, &lease, EndReason::Revoked);
}

#[test]
fn a_process_that_stays_is_killed_after_the_delay() {
    let world = World::with(Setup::policy(SIGNALS));
    let mut process = Holding::stubborn();
    let lease = world.acquire(held_by(process.registered()));
    revoke(&world, &lease);
    world.pass(Ms(4500));
    assert!(process.is_alive(), "it has the whole delay");
    world.pass(Ms(500));
    assert_eq!(process.end().signal(), Some(Signal::KILL.as_raw()));
    until_ended(&world, &lease, EndReason::Revoked);
}

#[test]
fn what_was_asked_for_before_a_restart_is_done_after_it() {
    let world = World::with(Setup::policy(SIGNALS));
    let (mut stubborn, mut gone) = (Holding::stubborn(), Holding::sleeping());
    let reclaimed = world.acquire(held_by(stubborn.registered()));
    let orphaned = world.acquire(held_by(gone.registered()));
    revoke(&world, &reclaimed);
    let setup = world.stop();
    gone.kill();
    let world = setup.run();
    until_ended(&world, &orphaned, EndReason::ProcessGone);
    // Nothing is ended by time before the grace of the start is over.
    world.pass(Ms::from_secs(35));
    assert_eq!(stubborn.end().signal(), Some(Signal::KILL.as_raw()));
    until_ended(&world, &reclaimed, EndReason::Revoked);
}

#[test]
fn a_process_that_is_not_the_registered_one_is_never_signalled() {
    let later = |process: Process| Process {
        start_ticks: process.start_ticks - 1,
        ..process
    };
    let elsewhere = |process: Process| Process {
        boot_id: "another boot".to_owned(),
        ..process
    };
    for mistaken in [later as fn(Process) -> Process, elsewhere] {
        let world = World::with(Setup::policy(SIGNALS));
        let mut process = Holding::sleeping();
        world.store.hold();
        let (id, asked) = world.ask(held_by(mistaken(process.registered())));
        world.store.until_held();
        // In the inbox before anybody can find out that the process is gone.
        let handle = world.handle.clone();
        let killed = world.spawn(async move {
            let targets = Targets::All;
            handle.emergency(emergency(targets)).await
        });
        crate::world::rest();
        world.store.open();
        let lease = world.wait(asked).unwrap();
        assert_eq!(lease.id, id);
        assert_eq!(world.wait(killed).unwrap(), Ok(vec![id]));
        until_ended(&world, &lease, EndReason::Emergency);
        world.pass(Ms::from_secs(61));
        crate::world::rest();
        assert!(process.is_alive(), "somebody else has its pid");
    }
}

#[test]
fn leases_that_are_over_leave_no_descriptors_behind() {
    let world = World::new();
    let process = Holding::sleeping();
    let before = pidfds();
    for _ in 0..100 {
        let lease = world.acquire(held_by(process.registered()));
        world.release(lease.id);
    }
    until("all but the last few are closed", || pidfds() <= before + 2);
}

fn emergency(targets: Targets) -> Emergency {
    Emergency {
        targets,
        reason: "smoke".to_owned(),
        by: "root".to_owned(),
        kill: true,
        cordon: false,
        force_unsafe: false,
    }
}

fn pidfds() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().contains("pidfd"))
        .count()
}
