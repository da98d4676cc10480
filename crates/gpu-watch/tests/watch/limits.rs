//! What the system runs out of, and what it does not tell.
//!
//! Limits are those of a user namespace, and mounts those of a mount namespace, in a process of their own:
//! the machine does not notice.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use gpu_watch::{Backend, BackendChoice, Config, EventKind};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::rig::{Rig, apart, in_a_world_apart, is_apart, words};

/// Where the watching half of a test finds its files.
const DIRECTORY: &str = "GPU_WATCH_TEST_DIRECTORY";

/// A command that runs the rest of the line where `limit` of /proc/sys/user is `value`.
fn limited(limit: &str, value: u32) -> [String; 7] {
    let script = format!("echo {value} > /proc/sys/user/{limit} && exec \"$@\"");
    [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        &script,
        "sh",
    ]
    .map(ToOwned::to_owned)
}

fn the_poll_takes_over(reason: &str) {
    let mut rig = Rig::new(BackendChoice::Auto);
    let mut config = rig.config();
    config.poll = Duration::from_millis(25);
    rig.start_with(&config);
    let status = rig.watch().status();
    assert_eq!(status.backend, Backend::Poll);
    assert!(status.watched.is_empty());
    assert!(
        status
            .paths
            .iter()
            .all(|path| path.backend == Backend::Poll),
        "{:?}",
        status.paths
    );
    let warning = status.warning.expect("a warning");
    assert!(warning.contains(reason), "{warning}");
    rig.write("default.toml", "second");
    assert_eq!(rig.changed(), "default.toml=second");
}

#[test]
fn no_instance_of_inotify_is_left() {
    let world = limited("max_inotify_instances", 0);
    let world = world.each_ref().map(String::as_str);
    in_a_world_apart("limits::no_instance_of_inotify_is_left", &world, || {
        the_poll_takes_over("Too many open files");
    });
}

#[test]
fn no_watch_of_inotify_is_left() {
    let world = limited("max_inotify_watches", 1);
    let world = world.each_ref().map(String::as_str);
    in_a_world_apart("limits::no_watch_of_inotify_is_left", &world, || {
        the_poll_takes_over("limit");
    });
}

/// A file with a mount of its own, until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(source: &Path, target: PathBuf) -> Self {
        let mut mount = Command::new("mount");
        let done = mount.arg("--bind").arg(source).arg(&target).status();
        assert!(done.is_ok_and(|status| status.success()));
        Self(target)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_file_that_is_mounted_by_itself_is_left_to_the_poll_with_a_warning() {
    let test = "limits::a_file_that_is_mounted_by_itself_is_left_to_the_poll_with_a_warning";
    let world = ["unshare", "--mount", "--propagation", "private"];
    in_a_world_apart(test, &world, || {
        let mut rig = Rig::new(BackendChoice::Auto);
        let sources = ["a", "b"].map(|name| rig.top().join(name));
        for source in &sources {
            fs::write(source, "source").expect("a file");
        }
        let _mounted = Mounted::new(&sources[0], rig.path("default.toml"));
        let mut config = rig.config();
        config.poll = Duration::from_millis(25);
        rig.start_with(&config);
        let status = rig.watch().status();
        assert_eq!(status.backend, Backend::Inotify);
        let warning = status.warning.expect("a warning");
        assert!(
            warning.ends_with("default.toml` is mounted by itself"),
            "{warning}"
        );
        let file = status
            .paths
            .iter()
            .find(|path| path.path == rig.path("default.toml"));
        assert_eq!(file.map(|file| file.backend), Some(Backend::Poll));

        fs::write(&sources[0], "written where it is").expect("a file");
        let change = rig.change();
        assert_eq!(words(&change.set), "default.toml=written where it is");
        assert_eq!(change.path, Some(rig.path("default.toml")));
        let status = rig.watch().status();
        let file = status
            .paths
            .iter()
            .find(|path| path.path == rig.path("default.toml"));
        let last = file
            .and_then(|file| file.last_event.as_ref())
            .expect("an event");
        assert_eq!(last.kind, EventKind::Polled);

        let over = Mounted::new(&sources[1], rig.path("default.toml"));
        assert_eq!(rig.changed(), "default.toml=source");
        drop(over);
        assert_eq!(rig.changed(), "default.toml=written where it is");
    });
}

#[test]
fn a_file_system_that_does_not_tell_is_left_to_the_poll_with_a_warning() {
    let mut rig = Rig::new(BackendChoice::Auto);
    let mut config = rig.config();
    config.roots.push("/proc/version".into());
    rig.start_with(&config);
    let status = rig.watch().status();
    let warning = status.warning.expect("a warning");
    assert!(warning.ends_with("`/proc` is on proc"), "{warning}");
    let proc = status
        .paths
        .iter()
        .find(|path| path.path == Path::new("/proc"));
    assert_eq!(proc.map(|proc| proc.backend), Some(Backend::Poll));
}

/// The process that watches is stopped while more happens than the system keeps events of.
#[test]
fn events_that_were_dropped_are_made_good_by_looking_at_everything() {
    if is_apart() {
        return watch_and_tell();
    }
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").ok();
    let limit: u32 = limit
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(u32::MAX);
    if limit > 1 << 18 {
        return eprintln!("skipped: the system keeps {limit} events");
    }
    let rig = Rig::new(BackendChoice::Auto);
    let test = "limits::events_that_were_dropped_are_made_good_by_looking_at_everything";
    let mut command = apart(test, &[]);
    command
        .env(DIRECTORY, rig.top())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut watcher = Watcher::new(command);
    assert_eq!(watcher.next(), "watching");
    watcher.stop();
    for _ in 0..limit / 2 {
        // To create, open, close and remove a file are four events.
        rig.write("4913", "");
        rig.remove("4913");
    }
    // The new directory may well get the inode of the old one.
    fs::remove_dir_all(rig.top().join("policies")).expect("removed");
    fs::create_dir(rig.top().join("policies")).expect("a directory");
    rig.write("default.toml", "the last word");
    watcher.resume();
    assert_eq!(watcher.next(), "default.toml=the last word, last overflow");
    rig.write("default.toml", "one more");
    assert_eq!(watcher.next(), "default.toml=one more, last written");
}

/// The watching half: no poll helps it.
fn watch_and_tell() {
    let top = std::env::var_os(DIRECTORY).expect("a directory");
    let mut rig = Rig::new(BackendChoice::Auto);
    let config = Config {
        roots: vec![Path::new(&top).join("policies")],
        ..rig.config()
    };
    rig.start_with(&config);
    eprintln!("watching");
    for _ in 0..2 {
        let change = rig.change();
        let last = rig.watch().status().last_event.expect("an event");
        eprintln!("{}, last {}", words(&change.set), last.kind);
    }
}

/// A process that watches and tells, ended with this.
struct Watcher {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Watcher {
    fn new(mut command: Command) -> Self {
        let mut child = command.spawn().expect("this program runs");
        let told = child.stderr.take().expect("a pipe");
        let lines = BufReader::new(told).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> String {
        self.lines.next().expect("a line").expect("text")
    }

    /// Returns when every thread of it has stopped.
    fn stop(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).expect("a signal");
        let stopped = waitpid(Some(pid), WaitOptions::UNTRACED).expect("a child");
        assert!(stopped.is_some_and(|(_, status)| status.stopped()));
    }

    fn resume(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("a signal");
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
