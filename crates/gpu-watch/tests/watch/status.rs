//! What a watch says of itself, and of when a change happened.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpu_watch::{Backend, BackendChoice, EventKind, Status};

use crate::rig::Rig;

/// Each path with its backend and what was last heard of it.
fn told<'a>(status: &'a Status, top: &'a Path) -> Vec<(&'a Path, Backend, Option<EventKind>)> {
    let row = |watched: &'a gpu_watch::WatchedPath| {
        let path = watched.path.strip_prefix(top).unwrap_or(&watched.path);
        let last = watched.last_event.as_ref();
        (path, watched.backend, last.map(|event| event.kind))
    };
    status.paths.iter().map(row).collect()
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
    assert_eq!(last.kind, EventKind::Written);
}

#[test]
fn each_path_says_how_it_is_watched_and_what_was_last_heard() {
    use Backend::{Inotify, Poll};
    for (choice, backend, written) in [
        (BackendChoice::Auto, Inotify, EventKind::Written),
        (BackendChoice::Poll, Poll, EventKind::Polled),
    ] {
        let mut rig = Rig::new(choice);
        rig.start();
        let top = rig.top().canonicalize().expect("a real path");
        let policies = Path::new("policies");
        let none = [(Path::new(""), backend, None), (policies, backend, None)];
        assert_eq!(told(&rig.watch().status(), &top), none);

        rig.write("default.toml", "second");
        rig.changed();
        let status = rig.watch().status();
        let expected = [
            (Path::new(""), backend, None),
            (policies, backend, Some(written)),
        ];
        assert_eq!(told(&status, &top), expected);
        let last = status.paths[1].last_event.as_ref().expect("an event");
        assert_eq!(last.path, Some(top.join("policies/default.toml")));
        assert_eq!(status.last_event.as_ref(), Some(last));
    }
}

#[test]
fn what_the_poll_found_behind_a_link_is_told_of_the_real_directory() {
    let mut rig = Rig::new(BackendChoice::Poll);
    symlink("policies", rig.top().join("current")).expect("a link");
    let mut config = rig.config();
    config.roots = vec![rig.top().join("current")];
    rig.start_with(&config);
    rig.write("default.toml", "second");
    let change = rig.change();
    assert_eq!(change.path, Some(rig.top().join("current/default.toml")));
    let top = rig.top().canonicalize().expect("a real path");
    let status = rig.watch().status();
    let (above, policies) = (Path::new(""), Path::new("policies"));
    let polled = Some(EventKind::Polled);
    let expected = [
        (above, Backend::Poll, None),
        (policies, Backend::Poll, polled),
    ];
    assert_eq!(told(&status, &top), expected);
}

#[test]
fn what_is_no_longer_on_the_way_is_no_longer_told() {
    let mut rig = Rig::new(BackendChoice::Auto);
    rig.lay_out_generations(&["default.toml"]);
    rig.start();
    let paths = |rig: &Rig| -> Vec<PathBuf> {
        let status = rig.watch().status();
        status
            .paths
            .into_iter()
            .map(|watched| watched.path)
            .collect()
    };
    let top = rig.top().canonicalize().expect("a real path");
    let expected = |generation: &str| {
        let policies = top.join("policies");
        [top.clone(), policies.clone(), policies.join(generation)]
    };
    assert_eq!(paths(&rig), expected("..generation-0"));
    rig.swap_generation("1", &["default.toml"]);
    rig.changed();
    assert_eq!(paths(&rig), expected("..generation-1"));
    assert_eq!(rig.watch().status().watched, expected("..generation-1"));
}

#[test]
fn a_change_says_when_it_happened_and_what_it_began_with() {
    for backend in [BackendChoice::Auto, BackendChoice::Poll] {
        let mut rig = Rig::new(backend);
        let config = rig.config();
        rig.start_with(&config);
        let before = Instant::now();
        rig.write("50.toml", "x");
        rig.write("default.toml", "second");
        let change = rig.change();
        assert!(before <= change.detected, "{change:?}");
        assert!(
            change.detected + config.reload_delay <= change.settled,
            "{change:?}"
        );
        assert!(
            change.settled <= change.read && change.read <= Instant::now(),
            "{change:?}"
        );
        let culprit = change.path.expect("a path");
        // The poll may look between the two writes, or see both at once.
        let second = backend == BackendChoice::Poll && culprit.ends_with("default.toml");
        assert!(culprit.ends_with("50.toml") || second, "{culprit:?}");
    }
}

/// A save that seems to be under way is delivered late, and still says when it began.
#[test]
fn a_change_that_waited_for_the_rest_of_a_save_says_when_the_save_began() {
    let mut rig = Rig::new(BackendChoice::Auto);
    rig.write("50.toml", "x");
    let mut config = rig.config();
    config.unsettled = Duration::from_millis(300);
    rig.start_with(&config);
    let lost = Instant::now();
    fs::remove_file(rig.path("50.toml")).expect("removed");
    let change = rig.change();
    assert!(
        change.settled - change.detected >= config.unsettled,
        "{change:?}"
    );
    assert!(change.detected - lost < config.unsettled, "{change:?}");
    assert!(change.path.is_some_and(|path| path.ends_with("50.toml")));
}
