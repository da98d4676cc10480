//! Between policy files and the broker: what to start with, what to reload, what to watch.

use std::path::PathBuf;
use std::sync::Arc;

use gpu_api::WatchState;
use gpu_bridge::{WatchReport, rfc3339};
use gpu_broker::{
    Override, ReloadResult, ReloadStart, Reloader, SourceFile, StartPolicy, Started, WatchTiming,
};
use gpu_lease::{At, Ms, Policy, WallMs};
use gpu_watch::{Backend, Event, FileSet, LastEvent, Status, Watch, WatchedFile};
use parking_lot::{Mutex, RwLock};

use super::config::Config;

/// What stands for the files where there are none: everything built in.
const BUILT_IN: &str = "# no policy directory was found\n";

/// The files as they are now; `None` if there is no policy directory.
pub(super) fn read(config: &Config) -> Result<Option<FileSet>, String> {
    let Some(watch) = config.policy_watch() else {
        return Ok(None);
    };
    let set = gpu_watch::read_set(&watch);
    set.map(Some)
        .map_err(|error| format!("policy files cannot be read: {error}"))
}

/// The policy that `files` say, with what goes over them.
pub(super) fn start(config: &Config, files: Option<&FileSet>) -> Result<StartPolicy, String> {
    Ok(StartPolicy {
        files: files.map_or_else(built_in, sources),
        overrides: overrides(config)?,
    })
}

pub(super) fn compile(start: &StartPolicy) -> Result<Policy, String> {
    let policy = gpu_policy::compile(&start.files, &start.overrides);
    policy.map_err(|diagnostics| diagnostics.to_string())
}

/// Which files are watched and read; changes when the configuration does.
pub(super) type Watched = Arc<RwLock<Option<gpu_watch::Config>>>;

pub(super) fn reloader(
    config: &Config,
    watched: Watched,
    started: &Started,
) -> Result<Reloader, String> {
    let switched = started.settings.policy_watch.as_ref();
    let switched = switched.filter(|_| !config.hot_reload_is_said);
    let start = ReloadStart {
        watching: switched.map_or(config.hot_reload, |switch| switch.enabled),
        dev: config.dev,
        ..started.reload_start()
    };
    let read = move || match watched.read().clone() {
        Some(watch) => gpu_watch::read_set(&watch)
            .map(|set| sources(&set))
            .map_err(|error| error.to_string()),
        None => Ok(built_in()),
    };
    Ok(Reloader::new(
        started.handle.clone(),
        Box::new(read),
        overrides(config)?,
        start,
    ))
}

/// Offers every set that changed to the reloader. Can begin again with another configuration.
pub(super) struct PolicyWatch {
    reloader: Arc<Reloader>,
    watched: Watched,
    watch: Mutex<Option<Watch>>,
}

impl PolicyWatch {
    /// Watches for sets that differ from `known`.
    pub(super) fn start(
        reloader: Arc<Reloader>,
        watched: Watched,
        known: Option<&FileSet>,
    ) -> Result<Self, String> {
        let watch = start_watch(watched.read().as_ref(), known, &reloader)?;
        Ok(Self {
            reloader,
            watched,
            watch: Mutex::new(watch),
        })
    }

    /// Watches as `config` says from here on. What changed meanwhile is looked at now.
    pub(super) fn restart(&self, config: &Config) -> Result<(), String> {
        let wanted = config.policy_watch();
        let known = wanted
            .as_ref()
            .and_then(|watch| gpu_watch::read_set(watch).ok());
        let watch = start_watch(wanted.as_ref(), known.as_ref(), &self.reloader)?;
        *self.watched.write() = wanted;
        *self.watch.lock() = watch;
        self.reloader.offer_recovered();
        Ok(())
    }

    /// Ends it.
    pub(super) fn stop(&self) {
        drop(self.watch.lock().take());
    }

    fn status(&self) -> Option<Status> {
        self.watch.lock().as_ref().map(Watch::status)
    }
}

fn start_watch(
    watched: Option<&gpu_watch::Config>,
    known: Option<&FileSet>,
    reloader: &Arc<Reloader>,
) -> Result<Option<Watch>, String> {
    let Some(watched) = watched else {
        return Ok(None);
    };
    let reloader = reloader.clone();
    let sink = move |event| match event {
        Event::Changed(set) => drop(reloader.offer(sources(&set), WatchTiming::default())),
        Event::LogOnly(path) => tracing::info!(path = %path.display(), "changed; it is no policy"),
        Event::Recovered => reloader.offer_recovered(),
        Event::Touched => tracing::info!("policy files were saved and say the same"),
        Event::Trouble(text) => reloader.offer_unreadable(text),
    };
    let watch = Watch::start(watched, known, sink);
    watch.map(Some).map_err(|error| error.to_string())
}

/// Whether what a reload read is what is live.
pub(super) fn is_live(result: &ReloadResult) -> bool {
    result.outcome.is_good()
}

/// Says how `watch` is doing for as long as it is kept.
pub(super) fn watch_report(watch: &Arc<PolicyWatch>) -> WatchReport {
    let watch = watch.clone();
    Box::new(move |now| Some(watch_state(watch.status()?, now)))
}

fn watch_state(status: Status, now: At) -> WatchState {
    let shown = |path: PathBuf| path.display().to_string();
    let since =
        |event: &LastEvent| Ms(u64::try_from(event.at.elapsed().as_millis()).unwrap_or(u64::MAX));
    let last = status.last_event;
    let at = |event: &LastEvent| rfc3339(WallMs(now.wall.0.saturating_sub(since(event).0)));
    WatchState {
        backend: match status.backend {
            Backend::Inotify => "inotify".to_owned(),
            Backend::Poll => "poll".to_owned(),
        },
        warning: status.warning,
        paths: status.watched.into_iter().map(shown).collect(),
        files: Vec::new(),
        troubles: status.troubles,
        last_event_at: last.as_ref().map(at),
        last_event_path: last.and_then(|event| event.path).map(shown),
        changed: status.counters.changed,
        ignored: status.counters.ignored,
    }
}

/// The environment first, then `--set`: the later wins.
fn overrides(config: &Config) -> Result<Vec<Override>, String> {
    let variables = std::env::vars_os();
    let mut layers = Override::from_env(variables).map_err(|error| error.to_string())?;
    for text in &config.policy_sets {
        layers.push(Override::parse("--set", text).map_err(|error| error.to_string())?);
    }
    Ok(layers)
}

fn built_in() -> Vec<SourceFile> {
    vec![SourceFile::new("default.toml", BUILT_IN)]
}

fn sources(set: &FileSet) -> Vec<SourceFile> {
    let source =
        |file: &WatchedFile| SourceFile::new(file.path.display().to_string(), file.bytes.clone());
    set.files.iter().map(source).collect()
}
