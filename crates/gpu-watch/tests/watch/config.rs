//! Which files are meant, and configurations that make no sense.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use gpu_watch::{BackendChoice, Config, read_set};

use crate::rig::{Rig, words};

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
