//! What people, editors and tools do to files, on events and on the poll alone.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use gpu_watch::{BackendChoice, Config, Counters, Event, FileSet, Watch, read_set};

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory `policies` in a directory of its own, and a watch on it.
struct Rig {
    temp: tempfile::TempDir,
    backend: BackendChoice,
    watching: Option<(Watch, Receiver<Event>)>,
}

impl Rig {
    fn new(backend: BackendChoice) -> Self {
        let temp = tempfile::tempdir().expect("a directory");
        fs::create_dir(temp.path().join("policies")).expect("a directory");
        let rig = Self {
            temp,
            backend,
            watching: None,
        };
        rig.write("default.toml", "first");
        rig
    }

    fn top(&self) -> &Path {
        self.temp.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top().join("policies").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).expect("a rename");
    }

    /// With events the poll is too slow to help; without them it is fast.
    fn config(&self) -> Config {
        let mut config = Config::new([self.top().join("policies")]);
        config.backend = self.backend;
        config.reload_delay = Duration::from_millis(40);
        config.max_wait = Duration::from_millis(400);
        config.unsettled = Duration::from_secs(5);
        config.poll = match self.backend {
            BackendChoice::Auto => Duration::from_secs(600),
            BackendChoice::Poll => Duration::from_millis(25),
        };
        config
    }

    fn start(&mut self) {
        self.start_with(&self.config());
    }

    fn start_with(&mut self, config: &Config) {
        let known = read_set(config).ok();
        let (sink, events) = mpsc::channel();
        let watch = Watch::start(config, known.as_ref(), move |event| drop(sink.send(event)));
        self.watching = Some((watch.expect("a watch"), events));
        self.until(|counters| counters.looks > 0);
    }

    fn watch(&self) -> &Watch {
        &self.watching.as_ref().expect("started").0
    }

    fn counters(&self) -> Counters {
        self.watch().status().counters
    }

    fn next(&self) -> Event {
        let (_, events) = self.watching.as_ref().expect("started");
        events
            .recv_timeout(PATIENCE)
            .expect("an event before the deadline")
    }

    /// The next changed set, as `name=text` words; anything before it must be no more than a touch.
    fn changed(&self) -> String {
        loop {
            match self.next() {
                Event::Changed(set) => return words(&set),
                Event::Touched => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn trouble(&self) -> String {
        match self.next() {
            Event::Trouble(reason) => reason,
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Waits until the watch counted what `enough` asks for.
    fn until(&self, enough: impl Fn(&Counters) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.counters()) {
            assert!(Instant::now() < deadline, "{:?}", self.counters());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the watch has looked at what is there now.
    fn looked(&self) {
        let before = self.counters().looks;
        self.until(|counters| {
            counters.looks > before + 1
                || (counters.looks > before && self.backend == BackendChoice::Auto)
        });
    }
}

fn words(set: &FileSet) -> String {
    let word = |file: &gpu_watch::WatchedFile| {
        let name = file
            .path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        format!("{name}={}", String::from_utf8_lossy(&file.bytes))
    };
    set.files.iter().map(word).collect::<Vec<_>>().join(" ")
}

macro_rules! on_both_backends {
    ($($(#[$meta:meta])* fn $name:ident($rig:ident: Rig) $body:block)*) => {
        $($(#[$meta])* fn $name(mut $rig: Rig) $body)*

        mod inotify {
            $(#[test] fn $name() { super::$name(super::Rig::new(super::BackendChoice::Auto)); })*
        }

        mod poll {
            $(#[test] fn $name() { super::$name(super::Rig::new(super::BackendChoice::Poll)); })*
        }
    };
}

on_both_backends! {
    fn a_write_in_place_is_one_change(rig: Rig) {
        rig.start();
        rig.write("default.toml", "second");
        assert_eq!(rig.changed(), "default.toml=second");
        rig.write("default.toml", "third");
        assert_eq!(rig.changed(), "default.toml=third");
        assert_eq!(rig.counters().changed, 2);
    }

    fn a_save_by_rename_works_more_than_once(rig: Rig) {
        rig.start();
        for text in ["one", "two", "three"] {
            rig.write("default.toml.tmp", text);
            rig.rename("default.toml.tmp", "default.toml");
            assert_eq!(rig.changed(), format!("default.toml={text}"));
        }
        assert_eq!(rig.counters().changed, 3);
    }

    fn an_editor_that_keeps_a_backup_makes_one_change(rig: Rig) {
        rig.start();
        rig.write(".default.toml.swp", "swap");
        rig.write("4913", "");
        fs::remove_file(rig.path("4913")).expect("removed");
        rig.rename("default.toml", "default.toml~");
        rig.write("default.toml", "edited");
        assert_eq!(rig.changed(), "default.toml=edited");
        fs::remove_file(rig.path("default.toml~")).expect("removed");
        rig.write("default.toml", "again");
        assert_eq!(rig.changed(), "default.toml=again");
        assert_eq!(rig.counters().changed, 2);
    }

    fn a_file_that_is_removed_and_comes_back_is_one_change(rig: Rig) {
        rig.start();
        fs::remove_file(rig.path("default.toml")).expect("removed");
        rig.looked();
        rig.write("default.toml", "back");
        assert_eq!(rig.changed(), "default.toml=back");
        assert_eq!(rig.counters().changed, 1);
    }

    fn a_file_that_is_truncated_before_it_is_written_is_one_change(rig: Rig) {
        rig.start();
        rig.write("default.toml", "");
        rig.looked();
        rig.write("default.toml", "whole");
        assert_eq!(rig.changed(), "default.toml=whole");
        assert_eq!(rig.counters().changed, 1);
    }

    fn what_stays_lost_or_empty_is_delivered_in_the_end(rig: Rig) {
        rig.write("50.toml", "x");
        let mut config = rig.config();
        config.unsettled = Duration::from_millis(300);
        rig.start_with(&config);
        let lost = Instant::now();
        fs::remove_file(rig.path("50.toml")).expect("removed");
        assert_eq!(rig.changed(), "default.toml=first");
        assert!(lost.elapsed() >= config.unsettled);
        rig.write("default.toml", "");
        assert_eq!(rig.changed(), "default.toml=");
        fs::remove_file(rig.path("default.toml")).expect("removed");
        assert_eq!(rig.changed(), "");
    }

    fn drop_ins_join_in_order(rig: Rig) {
        rig.start();
        rig.write("90.toml", "z");
        assert_eq!(rig.changed(), "default.toml=first 90.toml=z");
        rig.write("10.toml", "a");
        assert_eq!(rig.changed(), "default.toml=first 10.toml=a 90.toml=z");
        rig.write("10.toml", "b");
        assert_eq!(rig.changed(), "default.toml=first 10.toml=b 90.toml=z");
    }

    fn swapped_data_directories_are_one_change_each(rig: Rig) {
        fs::remove_file(rig.path("default.toml")).expect("removed");
        let generation = |rig: &Rig, n: u32| {
            let name = format!("..generation-{n}");
            fs::create_dir(rig.path(&name)).expect("a directory");
            rig.write(&format!("{name}/default.toml"), &format!("a{n}"));
            rig.write(&format!("{name}/50.toml"), &format!("b{n}"));
            symlink(&name, rig.path("..data_tmp")).expect("a link");
            rig.rename("..data_tmp", "..data");
        };
        generation(&rig, 0);
        for name in ["default.toml", "50.toml"] {
            symlink(format!("..data/{name}"), rig.path(name)).expect("a link");
        }
        rig.start();
        for n in 1..=5 {
            generation(&rig, n);
            fs::remove_dir_all(rig.path(&format!("..generation-{}", n - 1))).expect("removed");
            assert_eq!(rig.changed(), format!("default.toml=a{n} 50.toml=b{n}"));
        }
        assert_eq!(rig.counters().changed, 5);
    }

    fn a_link_out_of_the_directory_is_followed_and_retargeted(rig: Rig) {
        let (a, b) = (rig.top().join("a"), rig.top().join("b"));
        fs::write(&a, "a1").expect("a file");
        fs::write(&b, "b1").expect("a file");
        fs::remove_file(rig.path("default.toml")).expect("removed");
        symlink(&a, rig.path("default.toml")).expect("a link");
        rig.start();
        fs::write(&a, "a2").expect("a file");
        assert_eq!(rig.changed(), "default.toml=a2");
        symlink(&b, rig.path("new")).expect("a link");
        rig.rename("new", "default.toml");
        assert_eq!(rig.changed(), "default.toml=b1");
        fs::write(&b, "b2").expect("a file");
        assert_eq!(rig.changed(), "default.toml=b2");
    }

    fn a_root_that_is_a_link_is_retargeted(rig: Rig) {
        for name in ["v1", "v2"] {
            fs::create_dir(rig.top().join(name)).expect("a directory");
            fs::write(rig.top().join(name).join("default.toml"), name).expect("a file");
        }
        symlink("v1", rig.top().join("current")).expect("a link");
        let mut config = rig.config();
        config.roots = vec![rig.top().join("current")];
        rig.start_with(&config);
        symlink("v2", rig.top().join("next")).expect("a link");
        fs::rename(rig.top().join("next"), rig.top().join("current")).expect("a rename");
        assert_eq!(rig.changed(), "default.toml=v2");
        fs::write(rig.top().join("v1/default.toml"), "old").expect("a file");
        fs::write(rig.top().join("v2/default.toml"), "new").expect("a file");
        assert_eq!(rig.changed(), "default.toml=new");
    }

    fn a_directory_that_is_replaced_is_watched_anew(rig: Rig) {
        rig.start();
        for round in ["one", "two"] {
            let old = rig.top().join(format!("old-{round}"));
            let new = rig.top().join("new");
            fs::create_dir(&new).expect("a directory");
            fs::write(new.join("default.toml"), round).expect("a file");
            fs::rename(rig.top().join("policies"), &old).expect("a rename");
            fs::rename(&new, rig.top().join("policies")).expect("a rename");
            assert_eq!(rig.changed(), format!("default.toml={round}"));
            fs::write(old.join("default.toml"), "the old directory").expect("a file");
            rig.write("default.toml", &format!("{round} written"));
            assert_eq!(rig.changed(), format!("default.toml={round} written"));
        }
    }

    fn a_directory_that_goes_and_comes_back_is_the_same_again(rig: Rig) {
        rig.start();
        let (policies, away) = (rig.top().join("policies"), rig.top().join("away"));
        fs::rename(&policies, &away).expect("a rename");
        assert!(rig.trouble().ends_with("policies` does not exist"));
        fs::rename(&away, &policies).expect("a rename");
        assert_eq!(rig.next(), Event::Recovered);
        rig.write("default.toml", "second");
        assert_eq!(rig.changed(), "default.toml=second");
    }

    fn a_root_that_is_missing_at_the_start_is_awaited(rig: Rig) {
        let mut config = rig.config();
        config.roots.push(rig.top().join("more/drop-ins"));
        rig.start_with(&config);
        assert!(rig.trouble().ends_with("more/drop-ins` does not exist"));
        fs::create_dir_all(rig.top().join("new/drop-ins")).expect("a directory");
        fs::write(rig.top().join("new/drop-ins/a.toml"), "x").expect("a file");
        fs::rename(rig.top().join("new"), rig.top().join("more")).expect("a rename");
        assert_eq!(rig.changed(), "default.toml=first a.toml=x");
        assert_eq!(rig.watch().status().troubles, Vec::<String>::new());
    }

    fn touching_and_rewriting_the_same_is_no_change(rig: Rig) {
        rig.start();
        for _ in 0..20 {
            rig.write("default.toml", "first");
        }
        let file = fs::File::options().append(true).open(rig.path("default.toml")).expect("a file");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("touched");
        fs::set_permissions(rig.path("default.toml"), fs::Permissions::from_mode(0o600)).expect("a mode");
        assert_eq!(rig.next(), Event::Touched);
        rig.write("default.toml", "second");
        assert_eq!(rig.changed(), "default.toml=second");
        assert_eq!(rig.counters().changed, 1);
    }

    fn an_older_file_of_the_same_size_is_a_change(rig: Rig) {
        rig.start();
        rig.write("other", "tsrif");
        let file = fs::File::options().append(true).open(rig.path("other")).expect("a file");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("touched");
        rig.rename("other", "default.toml");
        assert_eq!(rig.changed(), "default.toml=tsrif");
    }

    fn a_burst_is_delivered_now_and_then_and_ends_with_the_last_word(rig: Rig) {
        rig.start();
        let started = Instant::now();
        let mut writes = 0;
        while started.elapsed() < Duration::from_millis(1500) {
            writes += 1;
            rig.write("new", &format!("{writes}"));
            rig.rename("new", "default.toml");
            thread::sleep(Duration::from_millis(5));
        }
        let last = format!("default.toml={writes}");
        while rig.changed() != last {}
        // One for each max_wait of 400 ms, one at the end; a loaded machine makes pauses of its own.
        let changed = rig.counters().changed;
        assert!((2..=20).contains(&changed), "{changed} changes for {writes} writes");
    }

    fn patterns_say_what_counts(rig: Rig) {
        rig.write("README.md", "about");
        let mut config = rig.config();
        config.exclude = vec!["private*".to_owned(), rig.path("off.toml").display().to_string()];
        config.log_only = vec!["**/*.md".to_owned()];
        rig.start_with(&config);
        for name in ["private.toml", "off.toml", "notes.txt", ".hidden.toml", "private.md"] {
            rig.write(name, "x");
        }
        rig.write("README.md", "more about it");
        assert_eq!(rig.next(), Event::LogOnly(rig.path("README.md")));
        rig.write("on.toml", "y");
        assert_eq!(rig.changed(), "default.toml=first on.toml=y");
        assert_eq!(rig.counters().changed, 1);
    }

    fn what_is_no_file_is_told_and_does_not_stop_the_watch(rig: Rig) {
        rig.start();
        let trap = rig.path("50.toml");

        rustix::fs::mknodat(rustix::fs::CWD, &trap, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a FIFO");
        assert!(rig.trouble().contains("50.toml` is a FIFO"));
        fs::remove_file(&trap).expect("removed");
        assert_eq!(rig.next(), Event::Recovered);

        fs::create_dir(&trap).expect("a directory");
        assert!(rig.trouble().contains("50.toml` is a directory"));
        fs::remove_dir(&trap).expect("removed");
        assert_eq!(rig.next(), Event::Recovered);

        symlink("50.toml", &trap).expect("a link");
        assert!(rig.trouble().contains("50.toml` cannot be read"));
        fs::remove_file(&trap).expect("removed");
        assert_eq!(rig.next(), Event::Recovered);

        symlink("nowhere", &trap).expect("a link");
        assert!(rig.trouble().contains("50.toml` is a link to nothing"));
        fs::remove_file(&trap).expect("removed");
        assert_eq!(rig.next(), Event::Recovered);

        fs::write(&trap, vec![b'#'; (1 << 20) + 1]).expect("a file");
        assert!(rig.trouble().contains("50.toml` is larger than 1 MiB"));
        rig.write("default.toml", "held back");
        rig.looked();
        assert_eq!(rig.counters().changed, 0);
        fs::remove_file(&trap).expect("removed");
        assert_eq!(rig.changed(), "default.toml=held back");
    }

    fn a_file_that_may_not_be_read_is_told(rig: Rig) {
        become_unprivileged();
        rig.start();
        let mode = |mode| fs::set_permissions(rig.path("default.toml"), fs::Permissions::from_mode(mode));
        mode(0o000).expect("a mode");
        assert!(rig.trouble().contains("default.toml` may not be read: permission denied"));
        mode(0o600).expect("a mode");
        assert_eq!(rig.next(), Event::Recovered);
    }

    fn dropping_a_watch_ends_it_at_once(rig: Rig) {
        rig.start();
        let (watch, events) = rig.watching.take().expect("started");
        let dropped = Instant::now();
        drop(watch);
        assert!(dropped.elapsed() < Duration::from_secs(5));
        assert_eq!(events.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    }

    fn a_change_between_reading_and_watching_is_not_lost(rig: Rig) {
        let config = rig.config();
        let known = read_set(&config).expect("a set");
        rig.write("default.toml", "meanwhile");
        let (sink, events) = mpsc::channel();
        let watch = Watch::start(&config, Some(&known), move |event| drop(sink.send(event))).expect("a watch");
        rig.watching = Some((watch, events));
        assert_eq!(rig.changed(), "default.toml=meanwhile");
    }
}

/// Root reads every file: takes that right from this thread and those that it starts.
fn become_unprivileged() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let mut sets = capabilities(None).expect("capabilities");
    sets.effective &= !(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    set_capabilities(None, sets).expect("fewer capabilities");
}

#[test]
fn reading_does_not_wake_the_watch() {
    let mut rig = Rig::new(BackendChoice::Auto);
    rig.start();
    for _ in 0..100 {
        let set = rig.watch().read_now().expect("a set");
        assert_eq!(words(&set), "default.toml=first");
    }
    rig.write("default.toml", "second");
    assert_eq!(rig.changed(), "default.toml=second");
    // A write in place is a truncation, a write and a close, at most; each a sign.
    assert!(rig.counters().signs <= 4, "{:?}", rig.counters());
}

#[test]
fn the_status_says_what_is_watched() {
    let mut rig = Rig::new(BackendChoice::Auto);
    rig.start();
    let status = rig.watch().status();
    let top = rig.top().canonicalize().expect("a real path");
    assert_eq!(status.backend, gpu_watch::Backend::Inotify);
    assert_eq!(status.watched, [top.clone(), top.join("policies")]);
    rig.write("default.toml", "second");
    rig.changed();
    let last = rig.watch().status().last_event.expect("an event");
    assert_eq!(last.path, Some(top.join("policies/default.toml")));
}

#[test]
fn what_a_file_system_does_not_tell_is_found_by_the_poll() {
    let mut rig = Rig::new(BackendChoice::Poll);
    let mut config = rig.config();
    config.roots = vec![rig.path("default.toml")];
    rig.start_with(&config);
    rig.write("default.toml", "second");
    assert_eq!(rig.changed(), "default.toml=second");
    assert_eq!(rig.watch().status().backend, gpu_watch::Backend::Poll);
}

#[test]
fn roots_come_in_order_and_each_file_once() {
    let rig = Rig::new(BackendChoice::Poll);
    let more = rig.top().join("more");
    fs::create_dir(&more).expect("a directory");
    for (name, text) in [
        ("b.toml", "b"),
        ("a.toml", "a"),
        ("c.conf", "c"),
        ("d.conf", "d"),
    ] {
        fs::write(more.join(name), text).expect("a file");
    }
    let mut config = rig.config();
    config.roots = vec![
        more.clone(),
        rig.top().join("policies"),
        more.join("*.conf"),
        more.join("a.toml"),
    ];
    let set = read_set(&config).expect("a set");
    assert_eq!(
        words(&set),
        "a.toml=a b.toml=b default.toml=first c.conf=c d.conf=d"
    );
}

#[test]
fn a_set_is_never_a_mix_of_two_generations() {
    let rig = Rig::new(BackendChoice::Poll);
    fs::remove_file(rig.path("default.toml")).expect("removed");
    for n in ["0", "1"] {
        fs::create_dir(rig.path(&format!("..{n}"))).expect("a directory");
        for file in ["default.toml", "50.toml", "90.toml"] {
            rig.write(&format!("..{n}/{file}"), n);
        }
    }
    symlink("..0", rig.path("..data")).expect("a link");
    for file in ["default.toml", "50.toml", "90.toml"] {
        symlink(format!("..data/{file}"), rig.path(file)).expect("a link");
    }
    let config = rig.config();
    let done = AtomicBool::new(false);
    let (next, data) = (rig.path("..tmp"), rig.path("..data"));
    let sets = thread::scope(|scope| {
        scope.spawn(|| {
            for n in (0..).take_while(|_| !done.load(Relaxed)) {
                symlink(format!("..{}", n % 2), &next).expect("a link");
                fs::rename(&next, &data).expect("a rename");
                thread::sleep(Duration::from_millis(1));
            }
        });
        let sets: Vec<_> = (0..500).filter_map(|_| read_set(&config).ok()).collect();
        done.store(true, Relaxed);
        sets
    });
    assert!(
        sets.len() > 100,
        "only {} reads found a moment without a swap",
        sets.len()
    );
    for set in sets {
        let mixed = set
            .files
            .windows(2)
            .any(|pair| pair[0].bytes != pair[1].bytes);
        assert!(!mixed, "{}", words(&set));
    }
}

#[test]
fn configurations_that_make_no_sense() {
    let check = |change: &dyn Fn(&mut Config), expected: &str| {
        let mut config = Config::new([PathBuf::from("policies")]);
        change(&mut config);
        let error = read_set(&config).expect_err("no sense");
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    check(&|config| config.roots.clear(), "there is nothing to watch");
    check(
        &|config| config.roots = vec!["a*/b.toml".into()],
        "`a*/b.toml` has a wildcard before its last part",
    );
    check(
        &|config| config.include = vec!["[".into()],
        "`[` is no glob",
    );
    check(
        &|config| config.poll = Duration::ZERO,
        "`poll` must be between 10ms and 3600s, not 0ns",
    );
    check(
        &|config| config.reload_delay = Duration::from_secs(3),
        "`max_wait` must be between 3s and 60s, not 2s",
    );
}
