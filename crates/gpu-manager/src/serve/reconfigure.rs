//! `gpu-manager.toml` while the broker runs: what can change does, and the rest is named.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gpu_broker::{ReloadOptions, Reloader, Trigger};
use gpu_watch::{Event, Watch};
use parking_lot::Mutex;

use super::config::Config;
use super::policy::PolicyWatch;
use crate::cli::args::ServeArgs;

/// Looks at the configuration again when it changes or somebody asks.
pub(super) struct Reconfigure {
    args: ServeArgs,
    /// What the broker runs with.
    running: Mutex<Config>,
    policy_watch: Arc<PolicyWatch>,
}

impl Reconfigure {
    pub(super) fn new(args: ServeArgs, running: Config, policy_watch: Arc<PolicyWatch>) -> Self {
        Self {
            args,
            running: Mutex::new(running),
            policy_watch,
        }
    }

    /// Watches the configuration file for as long as the watch is kept; `None` if there is no file.
    pub(super) fn watch(self: &Arc<Self>) -> Result<Option<Watch>, String> {
        let Some(file) = self.file() else {
            return Ok(None);
        };
        let watched = watch_of(&file);
        let known = gpu_watch::read_set(&watched).ok();
        let this = self.clone();
        let sink = move |event| match event {
            Event::Changed(_) | Event::Recovered => this.look(),
            Event::Trouble(why) => tracing::error!("configuration cannot be read: {why}"),
            Event::LogOnly(_) | Event::Touched => {}
        };
        let watch = Watch::start(&watched, known.as_ref(), sink);
        watch.map(Some).map_err(|error| error.to_string())
    }

    /// What SIGHUP asks for: a look at the configuration and at the policy files. Answers whether the files are good;
    /// `None` where they are not read.
    pub(super) fn on_hangup(&self, reloader: &Reloader) -> Option<bool> {
        self.look();
        if self.policy_watch.is_off() {
            tracing::warn!(
                "SIGHUP: policy files are not read in a safe start; {}",
                gpu_bridge::SAFE_START_HINT
            );
            return None;
        }
        let result = reloader.reload(Trigger::Signal, "SIGHUP", &ReloadOptions::default());
        Some(result.outcome.is_good())
    }

    /// Takes over what can change; a configuration with errors changes nothing.
    pub(super) fn look(&self) {
        match Config::load(&self.args) {
            Ok(wanted) => self.take_over(wanted),
            Err(error) => {
                tracing::error!("configuration is refused, the one before stays: {error}");
            }
        }
    }

    fn take_over(&self, wanted: Config) {
        let mut running = self.running.lock();
        let later = running.needs_restart(&wanted);
        if !later.is_empty() {
            tracing::warn!(
                "configuration changed what only a restart can change: {}",
                later.join(", ")
            );
        }
        // Of a safe start nothing is watched, and the next start looks anyway.
        if running.watch == wanted.watch || self.policy_watch.is_off() {
            return;
        }
        let before = mem::replace(&mut running.watch, wanted.watch);
        match self.policy_watch.restart(&running) {
            Ok(()) => tracing::info!("configuration: `[watch]` is taken over"),
            Err(error) => {
                // The next look tries it again.
                running.watch = before;
                tracing::error!("configuration: `[watch]` cannot be used: {error}");
            }
        }
    }

    fn file(&self) -> Option<PathBuf> {
        self.running.lock().file.clone()
    }
}

fn watch_of(file: &Path) -> gpu_watch::Config {
    gpu_watch::Config::new([file.to_owned()])
}
