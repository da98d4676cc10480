//! `watches`: every path that is looked at, how, and what was last seen there.

use gpu_api::{WatchState, WatchedPath};
use jiff::Timestamp;

use crate::cli::output::{Paint, ago, clean, count};
use crate::cli::table::{Align, Table};

/// A row for each path, then what is in the way.
pub(super) fn render(watch: &WatchState, now: Timestamp, paint: Paint) -> String {
    let mut table = Table::new(&[
        ("PATH", Align::Left),
        ("BACKEND", Align::Left),
        ("LAST EVENT", Align::Left),
    ]);
    for path in paths(watch) {
        table.row([
            path.path.as_str().into(),
            path.backend.as_str().into(),
            last_event(&path, now).into(),
        ]);
    }
    let warning = watch.warning.iter();
    let warning = warning.map(|why| format!("the poll alone: {}\n", clean(why)));
    let troubles = watch.troubles.iter();
    let troubles = troubles.map(|what| format!("trouble: {}\n", clean(what)));
    let lines: String = warning.chain(troubles).collect();
    format!("{}{lines}{}\n", table.render(paint), counted(watch, now))
}

/// Every path that is known; from a watch that names directories only, these.
fn paths(watch: &WatchState) -> Vec<WatchedPath> {
    if !watch.files.is_empty() {
        return watch.files.clone();
    }
    let directory = |path: &String| WatchedPath {
        path: path.clone(),
        backend: watch.backend.clone(),
        last_event_at: None,
        last_event: None,
    };
    watch.paths.iter().map(directory).collect()
}

/// `modified, 3m ago`
fn last_event(path: &WatchedPath, now: Timestamp) -> String {
    let when = path
        .last_event_at
        .as_ref()
        .map(|at| format!("{} ago", ago(at, now)));
    match (&path.last_event, when) {
        (Some(what), Some(when)) => format!("{what}, {when}"),
        (Some(what), None) => what.clone(),
        (None, Some(when)) => when,
        (None, None) => "-".to_owned(),
    }
}

/// `2 changes, 3 events ignored; the last 3m ago: default.toml`
fn counted(watch: &WatchState, now: Timestamp) -> String {
    let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let last = watch.last_event_at.as_ref().map(|at| {
        let path = watch.last_event_path.as_ref();
        let path = path.map_or(String::new(), |path| format!(": {}", clean(path)));
        format!("; the last {} ago{path}", ago(at, now))
    });
    format!(
        "{}, {} ignored{}",
        count(number(watch.changed), "change", "changes"),
        count(number(watch.ignored), "event", "events"),
        last.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::example;

    fn watch() -> WatchState {
        WatchState {
            backend: "inotify".to_owned(),
            warning: None,
            paths: vec!["/p".to_owned()],
            files: Vec::new(),
            troubles: Vec::new(),
            last_event_at: None,
            last_event_path: None,
            changed: 1,
            ignored: 3,
        }
    }

    #[test]
    fn watched_paths_are_a_table() {
        let path = |path: &str, backend: &str, event: Option<(&str, &str)>| WatchedPath {
            path: path.to_owned(),
            backend: backend.to_owned(),
            last_event_at: event.map(|(_, at)| at.to_owned()),
            last_event: event.map(|(what, _)| what.to_owned()),
        };
        let watch = WatchState {
            files: vec![
                path("/p", "inotify", None),
                path(
                    "/p/default.toml",
                    "inotify",
                    Some(("renamed onto", "2026-01-01T11:57:00Z")),
                ),
                path("/q/a.toml", "poll", None),
            ],
            warning: Some("no inotify watch is left".to_owned()),
            troubles: vec!["`/q/b.toml` is a FIFO".to_owned()],
            last_event_at: Some("2026-01-01T11:57:00Z".to_owned()),
            last_event_path: Some("/p/default.toml".to_owned()),
            ..watch()
        };
        assert_eq!(
            render(&watch, example::now(), Paint::off()),
            "PATH             BACKEND  LAST EVENT\n\
             /p               inotify  -\n\
             /p/default.toml  inotify  renamed onto, 3m ago\n\
             /q/a.toml        poll     -\n\
             the poll alone: no inotify watch is left\n\
             trouble: `/q/b.toml` is a FIFO\n\
             1 change, 3 events ignored; the last 3m ago: /p/default.toml\n"
        );
    }

    #[test]
    fn a_watch_that_names_directories_only_is_shown_by_them() {
        assert_eq!(
            render(&watch(), example::now(), Paint::off()),
            "PATH  BACKEND  LAST EVENT\n\
             /p    inotify  -\n\
             1 change, 3 events ignored\n"
        );
    }
}
