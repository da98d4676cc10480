//! Saves of every kind, and what looks like one and is none.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use gpu_watch::{BackendChoice, Event, Watch, read_set};

use crate::rig::{Rig, words};

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
        rig.remove("4913");
        rig.rename("default.toml", "default.toml~");
        rig.write("default.toml", "edited");
        assert_eq!(rig.changed(), "default.toml=edited");
        rig.remove("default.toml~");
        rig.write("default.toml", "again");
        assert_eq!(rig.changed(), "default.toml=again");
        assert_eq!(rig.counters().changed, 2);
    }

    fn a_file_that_is_removed_and_comes_back_is_one_change(rig: Rig) {
        rig.start();
        rig.remove("default.toml");
        rig.looked();
        rig.write("default.toml", "back");
        assert_eq!(rig.changed(), "default.toml=back");
        assert_eq!(rig.counters().changed, 1);
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

    fn what_editors_and_readers_leave_behind_is_no_change(rig: Rig) {
        rig.write("private.toml", "not ours");
        let mut config = rig.config();
        config.exclude = vec!["private.toml".to_owned()];
        rig.start_with(&config);
        for name in [".default.toml.swp", "default.toml~", "4913", "#default.toml#", ".#default.toml", "private.toml"] {
            rig.write(name, "left behind");
        }
        for _ in 0..10 {
            fs::read(rig.path("default.toml")).expect("a file");
        }
        let options = fs::File::options().append(true).open(rig.path("default.toml"));
        let times = fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH);
        options.expect("a file").set_times(times).expect("touched");
        rig.looked();
        let counters = rig.counters();
        assert_eq!(counters.changed, 0);
        assert!(counters.ignored > 0 || rig.backend == BackendChoice::Poll, "{counters:?}");
        rig.write("default.toml", "second");
        assert_eq!(rig.changed(), "default.toml=second");
        assert_eq!(rig.counters().changed, 1);
    }

    fn touching_and_rewriting_the_same_is_no_change(rig: Rig) {
        rig.start();
        for _ in 0..1000 {
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

    fn other_bytes_of_the_same_size_and_time_are_a_change(rig: Rig) {
        rig.start();
        let time = fs::metadata(rig.path("default.toml")).and_then(|found| found.modified()).expect("a time");
        for text in ["tsrif", "thing", "three"] {
            rig.write("default.toml", text);
            let file = fs::File::options().append(true).open(rig.path("default.toml")).expect("a file");
            file.set_modified(time).expect("touched");
            assert_eq!(rig.changed(), format!("default.toml={text}"));
        }
        assert_eq!(rig.counters().changed, 3);
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

    fn a_writer_without_rest_delays_no_change_beyond_the_longest_wait(rig: Rig) {
        let config = rig.config();
        rig.start();
        let started = Instant::now();
        let mut writes = 0;
        while started.elapsed() < Duration::from_secs(3) {
            writes += 1;
            rig.write("default.toml", &format!("{writes}"));
            thread::sleep(Duration::from_millis(20));
        }
        let last = format!("default.toml={writes}");
        let mut changes = vec![rig.change()];
        while words(&changes[changes.len() - 1].set) != last {
            changes.push(rig.change());
        }
        // A file caught empty waits for the next write; a busy machine adds its own.
        let most = config.max_wait + Duration::from_secs(2);
        for change in &changes {
            assert!(change.settled - change.detected <= most, "{change:?}");
        }
        for pair in changes.windows(2) {
            assert!(pair[1].settled - pair[0].settled >= config.reload_delay, "{pair:?}");
        }
        assert!(changes.len() >= 2, "{} changes for {writes} writes", changes.len());
    }

    fn patterns_say_what_counts(rig: Rig) {
        rig.write("README.md", "about");
        let mut config = rig.config();
        config.unsettled = Duration::from_millis(100);
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
        rig.remove("on.toml");
        assert_eq!(rig.changed(), "default.toml=first");
        assert_eq!(rig.counters().changed, 2);
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
