//! A thousand changes take no more descriptors, threads or watches than one.

use std::fs;
use std::time::Duration;

use gpu_watch::BackendChoice;

use crate::rig::Rig;

const NAMES: [&str; 2] = ["default.toml", "50.toml"];

/// What this process holds: descriptors, threads, and watches of inotify.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    watches: usize,
}

impl Held {
    fn now() -> Self {
        let entries = |path: &str| fs::read_dir(path).expect("a directory of proc").count();
        let infos = fs::read_dir("/proc/self/fdinfo").expect("a directory of proc");
        // The descriptor that lists them is gone when it is read.
        let infos = infos
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path()).ok());
        let watches = |info: String| {
            info.lines()
                .filter(|line| line.starts_with("inotify "))
                .count()
        };
        Self {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            watches: infos.map(watches).sum(),
        }
    }
}

/// Swaps directories, which come and go with their watches, and edits a file of each.
fn holds_no_more_after(changes: u32, backend: BackendChoice) {
    let mut rig = Rig::new(backend);
    rig.lay_out_generations(&NAMES);
    let mut config = rig.config();
    config.reload_delay = Duration::from_millis(1);
    config.poll = config.poll.min(Duration::from_secs(10));
    rig.start_with(&config);
    let mut before = None;
    for n in 1..=changes / 2 {
        rig.swap_generation(&n.to_string(), &NAMES);
        fs::remove_dir_all(rig.path(&format!("..generation-{}", n - 1))).expect("removed");
        while rig.changed() != format!("default.toml=d{n} 50.toml=5{n}") {}
        rig.write("..data/50.toml", &format!("edit {n}"));
        while rig.changed() != format!("default.toml=d{n} 50.toml=edit {n}") {}
        let held = Held::now();
        assert_eq!(*before.get_or_insert(Held::now()), held, "after {n} rounds");
    }
}

#[test]
fn a_thousand_changes_by_events_hold_no_more_than_one() {
    holds_no_more_after(1000, BackendChoice::Auto);
}

#[test]
fn two_hundred_changes_by_the_poll_hold_no_more_than_one() {
    holds_no_more_after(200, BackendChoice::Poll);
}
