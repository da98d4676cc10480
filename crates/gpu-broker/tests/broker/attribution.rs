//! Which lease the processes on a device belong to, by real processes.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command as Program, Stdio};

use gpu_broker::register_process;
use gpu_lease::{
    DeviceKey, DeviceProcess, Holder, HolderKind, LeaseId, Process, Reading, Request, Select,
};
use rustix::process::{Pid, Signal, getuid, kill_process_group};

use crate::world::{GIB, World, device, reading, request};

/// A shell in a process group of its own, with a child: the shape of most jobs.
struct Job {
    shell: Child,
    child: u32,
}

impl Job {
    fn start() -> Self {
        let mut shell = Program::new("sh")
            .args(["-c", "sleep 1000 & echo $!; wait"])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = shell.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let child = line.trim().parse().unwrap();
        Self { shell, child }
    }

    fn shell(&self) -> u32 {
        self.shell.id()
    }

    fn registered(&self) -> Process {
        register_process(self.shell(), getuid().as_raw(), false, false).unwrap()
    }

    /// The shell dies and its child lives on.
    fn orphan(&mut self) {
        self.shell.kill().unwrap();
        self.shell.wait().unwrap();
    }

    fn group(&self) -> Pid {
        Pid::from_child(&self.shell)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = kill_process_group(self.group(), Signal::KILL);
        drop(self.shell.wait());
    }
}

fn by_process(process: Process) -> Request {
    Request {
        holder: Holder {
            kind: HolderKind::Process(process),
            ..request(1).holder
        },
        ..request(1)
    }
}

fn by_declared(pid: u32) -> Request {
    Request {
        holder: Holder {
            pid: Some(pid),
            ..request(1).holder
        },
        ..request(1)
    }
}

fn on(device: &str, request: Request) -> Request {
    Request {
        select: Select::ids(vec![DeviceKey::local(device).id]),
        ..request
    }
}

/// The leases that `pids` on `device` are attributed to.
fn attributed(world: &World, device: &str, pids: &[u32]) -> Vec<Option<LeaseId>> {
    let process = |pid: &u32| DeviceProcess {
        pid: *pid,
        memory: Some(GIB),
        lease: None,
    };
    world.telemetry(Reading {
        processes: pids.iter().map(process).collect(),
        memory_used: GIB * pids.len() as u64,
        ..reading(device, world.handle.now().boot)
    });
    let snapshot = world.handle.snapshot();
    let key = DeviceKey::local(device);
    let state = snapshot
        .devices
        .iter()
        .find(|state| state.device.key == key);
    let reading = state.unwrap().reading.as_ref().unwrap();
    reading
        .processes
        .iter()
        .map(|process| process.lease)
        .collect()
}

#[test]
fn a_process_and_its_children_belong_to_the_lease_that_registered_it() {
    let world = World::new();
    let (job, foreign) = (Job::start(), Job::start());
    let lease = world.acquire(by_process(job.registered()));
    let pids = [job.shell(), job.child, foreign.shell(), foreign.child];
    assert_eq!(
        attributed(&world, "gpu-0", &pids),
        [Some(lease.id), Some(lease.id), None, None]
    );
    let usage = world.handle.snapshot().devices[0].usage;
    assert_eq!((usage.charged, usage.foreign), (2 * GIB, 2 * GIB));
}

#[test]
fn a_child_that_outlived_its_parent_is_known_by_its_group() {
    let world = World::new();
    let mut job = Job::start();
    let lease = world.acquire(by_declared(job.shell()));
    assert_eq!(attributed(&world, "gpu-0", &[job.child]), [Some(lease.id)]);
    job.orphan();
    assert_eq!(attributed(&world, "gpu-0", &[job.child]), [Some(lease.id)]);
}

#[test]
fn a_later_process_with_the_same_pid_belongs_to_nobody() {
    let world = World::new();
    let job = Job::start();
    let earlier = Process {
        start_ticks: job.registered().start_ticks - 1,
        ..job.registered()
    };
    // The answer to its watch is on its way: the books may have ended it by the time of the reading.
    world.acquire(by_process(earlier));
    let pids = [job.shell(), job.child];
    assert_eq!(attributed(&world, "gpu-0", &pids), [None, None]);
}

#[test]
fn a_proven_process_goes_before_a_declared_pid() {
    let world = World::new();
    let job = Job::start();
    let declared = world.acquire(by_declared(job.shell()));
    assert_eq!(
        attributed(&world, "gpu-0", &[job.child]),
        [Some(declared.id)]
    );
    let proven = world.acquire(by_process(job.registered()));
    assert_eq!(attributed(&world, "gpu-0", &[job.child]), [Some(proven.id)]);
    world.release(proven.id);
    world.release(declared.id);
    assert_eq!(attributed(&world, "gpu-0", &[job.child]), [None]);
}

#[test]
fn a_process_with_a_lease_on_each_of_two_devices_is_charged_where_it_is() {
    let world = World::new();
    world.inventory(&[device("gpu-0", 80), device("gpu-1", 80)]);
    let job = Job::start();
    let first = world.acquire(on("gpu-0", by_process(job.registered())));
    let second = world.acquire(on("gpu-1", by_process(job.registered())));
    let pids = [job.shell(), job.child];
    for (device, lease) in [("gpu-0", first), ("gpu-1", second)] {
        assert_eq!(
            attributed(&world, device, &pids),
            [Some(lease.id), Some(lease.id)],
            "{device}"
        );
        world.renew(lease.id).unwrap();
    }
    for state in &world.handle.snapshot().devices {
        assert_eq!(state.usage.foreign, 0, "{}", state.device.key);
    }
}
