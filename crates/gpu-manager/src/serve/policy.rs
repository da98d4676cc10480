//! Between policy files and the broker: what to start with, what to reload, what to watch.

use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use gpu_api::{PolicyOverride, WatchState, WatchedPath};
use gpu_bridge::{WatchReport, rfc3339};
use gpu_broker::{Override, ReloadStart, Reloader, StartPolicy, Started, WatchTiming};
use gpu_lease::{At, Ms, Policy, WallMs};
use gpu_watch::{Backend, Change, Event, FileSet, LastEvent, Status, Watch};
use parking_lot::Mutex;

use super::config::Config;
use super::disk::{Disk, built_in};

/// How often it is looked whether something of the policy has come due.
const TICK_EVERY: Duration = Duration::from_secs(1);

/// The files as they are now; `None` if there is no policy directory.
pub(super) fn read(config: &Config) -> Result<Option<FileSet>, String> {
    let Some(watch) = config.policy_watch() else {
        return Ok(None);
    };
    let set = gpu_watch::read_set(&watch);
    set.map(Some)
        .map_err(|error| format!("policy files cannot be read: {error}"))
}

/// What the broker starts with, and the files as they were read for that, if they were. A safe start leaves them.
pub(super) fn start_policy(
    config: &Config,
    disk: &Arc<Disk>,
    is_safe: bool,
) -> Result<(StartPolicy, Option<FileSet>), String> {
    if is_safe {
        return Ok((without_files(config)?, None));
    }
    let files = read(config);
    let policy = start(config, disk, &files)?;
    Ok((policy, files.ok().flatten()))
}

/// The policy that `files` say, with what goes over them; also where they cannot be read.
pub(super) fn start(
    config: &Config,
    disk: &Disk,
    files: &Result<Option<FileSet>, String>,
) -> Result<StartPolicy, String> {
    let sources =
        |set: &Option<FileSet>| set.as_ref().map_or_else(built_in, |set| disk.sources(set));
    Ok(StartPolicy {
        files: files.as_ref().map(sources).map_err(Clone::clone),
        overrides: overrides(config)?,
        dev: config.dev,
    })
}

/// The policy of a safe start, where nothing was ever live: nobody looks at the files.
fn without_files(config: &Config) -> Result<StartPolicy, String> {
    Ok(StartPolicy {
        files: Ok(built_in()),
        overrides: overrides(config)?,
        dev: config.dev,
    })
}

pub(super) fn compile(start: &StartPolicy) -> Result<Policy, String> {
    let files = start.files.as_ref().map_err(Clone::clone)?;
    let policy = gpu_policy::compile(files, &start.overrides);
    policy.map_err(|diagnostics| diagnostics.to_string())
}

fn reloader(
    config: &Config,
    disk: Arc<Disk>,
    started: &Started,
    is_safe: bool,
) -> Result<Reloader, String> {
    let switched = started.settings.policy_watch.as_ref();
    let switched = switched.filter(|_| !config.hot_reload_is_said);
    let start = ReloadStart {
        watching: switched.map_or(config.hot_reload, |switch| switch.enabled),
        ..started.reload_start()
    };
    let handle = started.handle.clone();
    if is_safe {
        let start = ReloadStart {
            watching: false,
            ..start
        };
        let read = Box::new(|| Err(gpu_bridge::SAFE_START.to_owned()));
        return Ok(Reloader::new(handle, read, overrides(config)?, start));
    }
    let read = Box::new(move || disk.read());
    Ok(Reloader::new(handle, read, overrides(config)?, start))
}

/// Reloads of policies, and what asks for them.
pub(super) struct Policies {
    pub(super) reloader: Arc<Reloader>,
    pub(super) watch: Arc<PolicyWatch>,
    ticks: Option<Ticks>,
}

impl Policies {
    /// Where `known` files could not be read, whatever can be is news.
    pub(super) fn start(
        config: &Config,
        disk: &Arc<Disk>,
        started: &Started,
        known: Option<FileSet>,
        is_safe: bool,
    ) -> Result<Self, String> {
        // Files that the start left waiting are looked at by it, and that waits for the broker.
        let reloader =
            tokio::task::block_in_place(|| reloader(config, disk.clone(), started, is_safe));
        let reloader = Arc::new(reloader?);
        let (watch, ticks) = match is_safe {
            true => (PolicyWatch::off(reloader.clone(), disk.clone()), None),
            false => (
                PolicyWatch::start(reloader.clone(), disk.clone(), known.as_ref())?,
                Some(Ticks::start(reloader.clone())?),
            ),
        };
        Ok(Self {
            reloader,
            watch: Arc::new(watch),
            ticks,
        })
    }

    pub(super) fn stop(self) {
        drop(self.ticks);
        self.watch.stop();
    }
}

/// Offers every set that changed to the reloader. Can begin again with another configuration.
pub(super) struct PolicyWatch {
    reloader: Arc<Reloader>,
    disk: Arc<Disk>,
    watch: Mutex<Option<Watch>>,
    /// Nothing is watched, whatever the configuration says.
    is_off: bool,
}

impl PolicyWatch {
    /// Watches for sets that differ from `known`.
    fn start(
        reloader: Arc<Reloader>,
        disk: Arc<Disk>,
        known: Option<&FileSet>,
    ) -> Result<Self, String> {
        let watch = start_watch(disk.watched().as_ref(), known, &reloader, &disk)?;
        Ok(Self {
            reloader,
            disk,
            watch: Mutex::new(watch),
            is_off: false,
        })
    }

    /// Watches nothing, ever.
    fn off(reloader: Arc<Reloader>, disk: Arc<Disk>) -> Self {
        Self {
            reloader,
            disk,
            watch: Mutex::new(None),
            is_off: true,
        }
    }

    /// Watches as `config` says from here on. What changed meanwhile is looked at now.
    pub(super) fn restart(&self, config: &Config) -> Result<(), String> {
        if self.is_off {
            return Ok(());
        }
        let wanted = config.policy_watch();
        let known = wanted
            .as_ref()
            .and_then(|watch| gpu_watch::read_set(watch).ok());
        let watch = start_watch(wanted.as_ref(), known.as_ref(), &self.reloader, &self.disk)?;
        self.disk.watch_instead(wanted);
        let before = mem::replace(&mut *self.watch.lock(), watch);
        // Its end waits for a reload that it began: not under the lock that whoever looks at it takes.
        drop(before);
        self.reloader.offer_recovered();
        Ok(())
    }

    /// Whether nobody looks at the files, because the broker started safe.
    pub(super) fn is_off(&self) -> bool {
        self.is_off
    }

    /// Ends it.
    fn stop(&self) {
        let watch = self.watch.lock().take();
        drop(watch);
    }

    fn status(&self) -> Option<Status> {
        self.watch.lock().as_ref().map(Watch::status)
    }
}

fn start_watch(
    watched: Option<&gpu_watch::Config>,
    known: Option<&FileSet>,
    reloader: &Arc<Reloader>,
    disk: &Arc<Disk>,
) -> Result<Option<Watch>, String> {
    let Some(watched) = watched else {
        return Ok(None);
    };
    let (reloader, disk) = (reloader.clone(), disk.clone());
    let sink = move |event| match event {
        Event::Changed(change) => {
            let sources = disk.sources(&change.set);
            drop(reloader.offer(sources, timing(&change)));
        }
        Event::LogOnly(path) => tracing::info!(path = %path.display(), "changed; it is no policy"),
        Event::Recovered => reloader.offer_recovered(),
        Event::Touched => tracing::info!("policy files were saved and say the same"),
        Event::Trouble(text) => reloader.offer_unreadable(text),
    };
    let watch = Watch::start(watched, known, sink);
    watch.map(Some).map_err(|error| error.to_string())
}

/// What a watch knows of a change before anybody looks at it.
fn timing(change: &Change) -> WatchTiming {
    WatchTiming {
        settle: Some(change.settled.saturating_duration_since(change.detected)),
        read: Some(change.read.saturating_duration_since(change.settled)),
        path: change.path.as_ref().map(|path| path.display().to_string()),
    }
}

/// Looks once a second at what has come due, on a thread of its own; ends when it is dropped.
struct Ticks {
    /// Its end is the sign.
    _kept: mpsc::Sender<()>,
}

impl Ticks {
    fn start(reloader: Arc<Reloader>) -> Result<Self, String> {
        let (_kept, over) = mpsc::channel();
        let tick = move || {
            while over.recv_timeout(TICK_EVERY) == Err(RecvTimeoutError::Timeout) {
                reloader.tick();
            }
        };
        let thread = thread::Builder::new().name("policy-tick".to_owned());
        thread
            .spawn(tick)
            .map_err(|error| format!("no thread: {error}"))?;
        Ok(Self { _kept })
    }
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
    let watched_path = |watched: gpu_watch::WatchedPath| WatchedPath {
        path: shown(watched.path),
        backend: backend(watched.backend),
        last_event_at: watched.last_event.as_ref().map(at),
        last_event: watched.last_event.map(|event| event.kind.to_string()),
    };
    WatchState {
        backend: backend(status.backend),
        warning: status.warning,
        paths: status.watched.into_iter().map(shown).collect(),
        files: status.paths.into_iter().map(watched_path).collect(),
        troubles: status.troubles,
        last_event_at: last.as_ref().map(at),
        last_event_path: last.and_then(|event| event.path).map(shown),
        changed: status.counters.changed,
        ignored: status.counters.ignored,
    }
}

/// The settings above the files that last as long as the broker, for people.
pub(super) fn shown_overrides(config: &Config) -> Result<Vec<PolicyOverride>, String> {
    let shown = |set: &Override| PolicyOverride {
        setting: set.setting(),
        value: set.value_text().to_owned(),
        origin: set.origin().to_owned(),
        by: None,
        until: None,
    };
    Ok(overrides(config)?.iter().map(shown).collect())
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

fn backend(backend: Backend) -> String {
    match backend {
        Backend::Inotify => "inotify".to_owned(),
        Backend::Poll => "poll".to_owned(),
    }
}
