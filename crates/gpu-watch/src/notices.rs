//! The events of the file system: which directories they are wanted of, and what to do without them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::{ErrorKind, EventHandler, RecommendedWatcher, RecursiveMode, Watcher};

use crate::links::Points;
use crate::shared::Shared;

/// Makes the source of events; a test makes one that fails.
pub(crate) type Factory = fn(Arc<Shared>) -> notify::Result<Box<dyn Watcher + Send>>;

/// The file system's own events.
pub(crate) fn file_system(shared: Arc<Shared>) -> notify::Result<Box<dyn Watcher + Send>> {
    let watcher = RecommendedWatcher::new(Observer(shared), notify::Config::default())?;
    Ok(Box::new(watcher))
}

struct Observer(Arc<Shared>);

impl EventHandler for Observer {
    fn handle_event(&mut self, event: notify::Result<notify::Event>) {
        self.0.observe(event);
    }
}

/// The directories that events are delivered of.
pub(crate) struct Notices {
    watcher: Box<dyn Watcher + Send>,
    /// With the device and inode that was there: a directory may be replaced by another of its name.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Notices {
    pub(crate) fn new(shared: Arc<Shared>, factory: Factory) -> notify::Result<Self> {
        Ok(Self {
            watcher: factory(shared)?,
            watched: BTreeMap::new(),
        })
    }

    /// Watches the directories of `points` and no others; whether that was a change.
    ///
    /// # Errors
    /// If the system's limits are reached. A directory that cannot be watched for a reason of its own is
    /// left to the poll.
    pub(crate) fn follow(&mut self, points: &Points) -> notify::Result<bool> {
        let wanted: BTreeMap<PathBuf, (u64, u64)> = points
            .directories()
            .filter_map(|path| Some((path.clone(), identity(path)?)))
            .collect();
        let before = std::mem::take(&mut self.watched);
        let outdated = before
            .iter()
            .filter(|(path, id)| wanted.get(*path) != Some(id));
        for (path, _) in outdated {
            // It may be gone already, with its directory.
            let _ = self.watcher.unwatch(path);
        }
        for (path, id) in wanted {
            if before.get(&path) == Some(&id) || self.watch(&path)? {
                self.watched.insert(path, id);
            }
        }
        Ok(self.watched != before)
    }

    /// Forgets what is watched, so that [`Notices::follow`] begins anew.
    pub(crate) fn forget(&mut self) {
        for (path, _) in std::mem::take(&mut self.watched) {
            let _ = self.watcher.unwatch(&path);
        }
    }

    pub(crate) fn watched(&self) -> Vec<PathBuf> {
        self.watched.keys().cloned().collect()
    }

    fn watch(&mut self, path: &Path) -> notify::Result<bool> {
        match self.watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind, ErrorKind::MaxFilesWatch) => Err(error),
            Err(error) => {
                tracing::debug!("`{}` is left to the poll: {error}", path.display());
                Ok(false)
            }
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
