//! Files that are none, that may not be read, and that are never at rest.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use gpu_watch::Event;

use crate::rig::{Rig, words};

on_both_backends! {
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

    fn a_giant_file_is_refused_unread(rig: Rig) {
        rig.start();
        let giant = fs::File::create(rig.path("50.toml.new")).expect("a file");
        giant.set_len(1 << 30).expect("a sparse file");
        rig.rename("50.toml.new", "50.toml");
        assert!(rig.trouble().contains("50.toml` is larger than 1 MiB"));
        rig.remove("50.toml");
        assert_eq!(rig.next(), Event::Recovered);
    }

    fn more_files_than_a_set_may_have_are_refused(rig: Rig) {
        rig.start();
        let spare = rig.top().join("spare");
        fs::create_dir(&spare).expect("a directory");
        for n in 0..=gpu_watch::FILES_MAX {
            fs::write(spare.join(format!("{n:03}.toml")), "x").expect("a file");
        }
        fs::rename(rig.top().join("policies"), rig.top().join("away")).expect("a rename");
        assert!(rig.trouble().ends_with("does not exist"));
        fs::rename(&spare, rig.top().join("policies")).expect("a rename");
        assert_eq!(rig.trouble(), "there are more than 256 files");
        for n in 1..=gpu_watch::FILES_MAX {
            rig.remove(&format!("{n:03}.toml"));
        }
        rig.write("default.toml", "few");
        assert_eq!(rig.changed(), "default.toml=few 000.toml=x");
    }

    fn a_told_file_that_is_written_without_pause_holds_nothing_up(rig: Rig) {
        let mut config = rig.config();
        config.log_only = vec!["*.md".to_owned()];
        rig.write("busy.md", "");
        // Enough to read that the busy file is another at the end of it.
        for n in 100..300 {
            rig.write(&format!("{n}.toml"), "x");
        }
        rig.start_with(&config);
        let (busy, done) = (rig.path("busy.md"), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| write_without_pause(&busy, &done));
            assert_eq!(rig.next(), Event::LogOnly(busy.clone()));
            rig.write("default.toml", "second");
            let told = std::iter::repeat_with(|| rig.next()).find(|event| *event != Event::LogOnly(busy.clone()));
            done.store(true, Relaxed);
            let Some(Event::Changed(change)) = told else {
                panic!("unexpected {told:?}");
            };
            assert!(words(&change.set).starts_with("default.toml=second "));
        });
    }

    fn a_told_file_that_is_not_there_holds_nothing_up(rig: Rig) {
        let mut config = rig.config();
        config.log_only = vec!["*.md".to_owned()];
        rig.start_with(&config);
        symlink("nowhere", rig.path("README.md")).expect("a link");
        symlink("a.md", rig.path("a.md")).expect("a link");
        rig.write("default.toml", "second");
        assert_eq!(rig.changed(), "default.toml=second");
        assert_eq!(rig.watch().status().troubles, Vec::<String>::new());
    }

    fn a_file_that_nobody_can_read_at_rest_is_told(rig: Rig) {
        let mut config = rig.config();
        config.reload_delay = Duration::from_millis(10);
        config.max_wait = Duration::from_millis(20);
        rig.start_with(&config);
        let (busy, done) = (rig.path("default.toml"), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| write_without_pause(&busy, &done));
            // A look may be lucky.
            let told = std::iter::repeat_with(|| rig.next()).find_map(|event| match event {
                Event::Trouble(reason) => Some(reason),
                _ => None,
            });
            done.store(true, Relaxed);
            assert_eq!(told.as_deref(), Some("the files change all the time"));
        });
        rig.write("default.toml", "at rest");
        while !matches!(rig.next(), Event::Changed(change) if words(&change.set) == "default.toml=at rest") {}
        assert_eq!(rig.watch().status().troubles, Vec::<String>::new());
    }

    fn dropping_a_watch_ends_it_at_once(rig: Rig) {
        rig.start();
        let (watch, events) = rig.watching.take().expect("started");
        let dropped = Instant::now();
        drop(watch);
        assert!(dropped.elapsed() < Duration::from_secs(5));
        assert_eq!(events.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    }
}

/// Root reads every file: takes that right from this thread and those that it starts.
fn become_unprivileged() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let mut sets = capabilities(None).expect("capabilities");
    sets.effective &= !(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    set_capabilities(None, sets).expect("fewer capabilities");
}

/// Writes with a new size each time, so that no two looks find the same.
fn write_without_pause(path: &Path, done: &AtomicBool) {
    let file = fs::File::options().write(true).open(path).expect("a file");
    for n in (0..).take_while(|_| !done.load(Relaxed)) {
        file.write_all_at(b"busy", 0).expect("written");
        file.set_len(4 + n % 1000).expect("a size");
    }
}
