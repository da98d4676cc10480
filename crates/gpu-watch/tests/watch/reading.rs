//! What is read, and when: whole sets of one moment, once each.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gpu_watch::{BackendChoice, Event, read_set};

use crate::rig::{Rig, words};

on_both_backends! {
    fn a_file_that_is_truncated_and_written_later_is_one_change(rig: Rig) {
        rig.start();
        let file = fs::File::create(rig.path("default.toml")).expect("a file");
        rig.looked();
        thread::sleep(Duration::from_millis(300));
        file.write_all_at(b"whole", 0).expect("written");
        assert_eq!(rig.changed(), "default.toml=whole");
        assert_eq!(rig.counters().changed, 1);
    }

    fn a_file_that_grows_is_one_change_once_it_is_whole(rig: Rig) {
        let mut config = rig.config();
        config.reload_delay = Duration::from_secs(1);
        config.max_wait = Duration::from_secs(20);
        // Two looks of the poll are further apart than a look that waits for quiet.
        config.poll = config.poll.max(Duration::from_millis(1200));
        rig.start_with(&config);
        let file = fs::File::create(rig.path("default.toml")).expect("a file");
        for n in 0..25 {
            file.write_all_at(b"+", n).expect("written");
            thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(rig.changed(), format!("default.toml={}", "+".repeat(25)));
        assert_eq!(rig.counters().changed, 1);
    }

    fn what_stays_lost_or_empty_is_delivered_in_the_end(rig: Rig) {
        rig.write("50.toml", "x");
        let mut config = rig.config();
        config.unsettled = Duration::from_millis(300);
        rig.start_with(&config);
        let lost = Instant::now();
        rig.remove("50.toml");
        assert_eq!(rig.changed(), "default.toml=first");
        assert!(lost.elapsed() >= config.unsettled);
        rig.write("default.toml", "");
        assert_eq!(rig.changed(), "default.toml=");
        rig.remove("default.toml");
        assert_eq!(rig.changed(), "");
    }

    fn the_sets_of_a_watch_are_never_a_mix(rig: Rig) {
        let names = ["default.toml", "50.toml", "90.toml"];
        rig.lay_out_generations(&names);
        let mut config = rig.config();
        config.reload_delay = Duration::from_millis(1);
        config.max_wait = Duration::from_millis(5);
        rig.start_with(&config);
        for n in 1..=200 {
            rig.swap_generation(&n.to_string(), &names);
            fs::remove_dir_all(rig.path(&format!("..generation-{}", n - 1))).expect("removed");
            thread::sleep(Duration::from_millis(1));
        }
        let generation = |word: &str| word.split_once('=').map(|(_, text)| text[1..].to_owned());
        loop {
            let told = rig.changed();
            let generations: BTreeSet<_> = told.split(' ').map(generation).collect();
            assert_eq!(generations.len(), 1, "{told}");
            if generations.contains(&Some("200".to_owned())) {
                break;
            }
        }
    }

    fn changes_during_a_running_reload_are_one_more_with_the_last_word(rig: Rig) {
        let (sink, events) = mpsc::channel();
        let (resume, gate) = mpsc::channel::<()>();
        let config = rig.config();
        rig.start_telling(&config, events, move |event| {
            let is_change = matches!(event, Event::Changed(_));
            drop(sink.send(event));
            if is_change {
                let _ = gate.recv();
            }
        });
        rig.write("default.toml", "running");
        assert_eq!(rig.changed(), "default.toml=running");
        for n in 0..20 {
            rig.write("new", &format!("meanwhile {n}"));
            rig.rename("new", "default.toml");
        }
        let written = Instant::now();
        resume.send(()).expect("it runs");
        let change = rig.change();
        assert_eq!(words(&change.set), "default.toml=meanwhile 19");
        assert!(rig.backend == BackendChoice::Poll || change.detected < written, "{change:?}");
        resume.send(()).expect("it runs");
        rig.write("default.toml", "the end");
        assert_eq!(rig.changed(), "default.toml=the end");
        drop(resume);
        assert_eq!(rig.counters().changed, 3);
    }
}

#[test]
fn a_set_is_never_a_mix_of_two_generations() {
    let rig = Rig::new(BackendChoice::Poll);
    rig.remove("default.toml");
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
