//! `gpu-manager.toml`, signals and systemd while the broker runs.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use gpu_manager_tests::{Broker, Host, POLICY, Request, eventually};
use rustix::process::Signal;

/// What systemd would hear.
struct Systemd(UnixDatagram);

impl Systemd {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("the directory is ours");
        let patience = Some(Duration::from_secs(15));
        socket.set_read_timeout(patience).expect("a time");
        Self(socket)
    }

    fn next(&self) -> String {
        let mut bytes = [0; 1024];
        let read = self.0.recv(&mut bytes).expect("a word before the deadline");
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }
}

fn monotonic_us() -> u128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let parts = (u128::try_from(now.tv_sec), u128::try_from(now.tv_nsec));
    match parts {
        (Ok(secs), Ok(nanos)) => secs * 1_000_000 + nanos / 1000,
        _ => panic!("the clock begins at zero"),
    }
}

#[test]
fn systemd_hears_of_the_start_of_each_reload_and_of_the_end_also_when_it_fails() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let systemd = Systemd::listen(&path);
    let host = Host::with_cards(1).env("NOTIFY_SOCKET", path.to_str().expect("plain"));
    let broker = host.start();
    assert_eq!(systemd.next(), "READY=1\nSTATUS=serving\n");

    for (policy, ending) in [(POLICY, "serving\n"), ("not TOML", "changed nothing")] {
        host.write_policy(policy);
        let before = monotonic_us();
        broker.process().signal(Signal::HUP);
        let began = systemd.next();
        let stamp = began.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let stamp: u128 = stamp
            .and_then(|stamp| stamp.trim().parse().ok())
            .unwrap_or_else(|| panic!("{began}"));
        assert!((before..=monotonic_us()).contains(&stamp), "{began}");
        let over = systemd.next();
        assert!(
            over.starts_with("READY=1\n") && over.contains(ending),
            "{over}"
        );
    }
    broker.process().signal(Signal::TERM);
    assert_eq!(systemd.next(), "STOPPING=1\n");
}

#[test]
fn a_thousand_hangups_are_a_few_reloads_and_the_last_save_is_live() {
    let host = Host::with_cards(1).flags(&["--no-reload"]);
    let broker = host.start();
    for n in 0..1000 {
        if n == 900 {
            host.write_policy(&format!("{POLICY}[queue]\nmax_waiting = 77\n"));
        }
        broker.process().signal(Signal::HUP);
    }
    let policy = broker.until_generation(2);
    assert_eq!(policy.generation, 2, "one edit is one generation");
    assert!(policy.files[0].text.contains("77"));
}

#[test]
fn a_hangup_in_the_first_moments_does_not_end_the_broker() {
    let host = Host::with_cards(1);
    let process = host.serve(&[]);
    // The program takes the signal over before it reads anything: from there on it may come at any time.
    eventually("the signal is handled", || {
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).ok()?;
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))?;
        let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
        (caught & 1 == 1).then_some(())
    });
    for _ in 0..50 {
        process.signal(Signal::HUP);
    }
    process.until_stderr("say what is live already");
}

#[test]
fn the_watch_is_configured_anew_while_the_broker_runs() {
    let host = Host::with_cards(1);
    let broker = host.start();
    host.write_config("[watch]\ninclude = ['**/*.policy', '**/default.toml']\n");
    broker.process().until_stderr("`[watch]` is taken over");
    let more = host.policy_dir().join("night.policy");
    fs::write(more, "[queue]\norder = 'fifo'\n").expect("the directory is ours");
    let policy = broker.until_generation(2);
    assert_eq!(policy.files.len(), 2, "{policy:?}");
}

#[test]
fn what_needs_a_restart_is_named_and_what_is_wrong_is_refused() {
    let host = Host::with_cards(1);
    let broker = host.start();
    host.write_config(
        "listen = '127.0.0.1:9'\nstate_dir = 'elsewhere'\n[http]\nallowed_origins = ['http://a']\n",
    );
    broker
        .process()
        .until_stderr("only a restart can change: [http] allowed_origins");
    host.write_config("[watch]\nreload_dely = '1s'\n");
    broker.process().until_stderr("unknown field `reload_dely`");
    assert_eq!(broker.policy().generation, 1, "it goes on");
}

#[test]
fn a_time_without_a_unit_is_answered_with_what_may_have_been_meant() {
    let host = Host::with_cards(1).env("GPU_MANAGER_RELOAD_DELAY", "500");
    let ran = host.serve(&[]).wait();
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("`500ms`"), "{}", ran.stderr);
}

#[test]
fn a_saved_part_of_the_page_shows_at_once_in_dev_mode_only() {
    let host = Host::with_cards(1).settings("[watch]\nassets = ['page']\n");
    let dir = host.dir().join("page");
    fs::create_dir(&dir).expect("the directory is ours");
    let broker = host.start();
    let mut events = broker.events(None);
    fs::write(dir.join("page.css"), "body { color: red }").expect("the directory is ours");
    events.next_of("assets_changed");
    assert_eq!(style(&broker), "body { color: red }");

    let guarded = Host::with_cards(1)
        .guarded()
        .settings(&format!("[watch]\nassets = ['{}']\n", dir.display()));
    assert_ne!(style(&guarded.start()), "body { color: red }");
}

fn style(broker: &Broker) -> String {
    Request::get("/page.css").send(broker.address()).text()
}
