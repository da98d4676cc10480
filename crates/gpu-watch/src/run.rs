//! The watching thread: waits, looks, and decides whether what it sees is a change that settled.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::blind::Blind;
use crate::config::{Config, Scope};
use crate::debounce::Debounce;
use crate::links::Points;
use crate::listing::{Listing, Stamp};
use crate::notices::{Factory, Notices};
use crate::read::{FileSet, Look, ReadError, Unready, read};
use crate::shared::{Backend, EventKind, LastEvent, Shared, Wake};
use crate::watch::{Change, Event};

/// How often in a row the watched directories may turn out to be others than a moment ago.
const FOLLOW_TRIES_MAX: usize = 3;

/// Files that nobody could read for so many times the longest wait are a trouble.
const MOVING_WAITS_MAX: u32 = 5;

/// The state of the watching thread.
pub(crate) struct Runner<S> {
    scope: Arc<Scope>,
    shared: Arc<Shared>,
    sink: S,
    notices: Option<Notices>,
    blind: Blind,
    max_wait: Duration,
    moving_since: Option<Instant>,
    poll: Duration,
    next_poll: Instant,
    debounce: Debounce,
    /// The first sign of the change that is looked for.
    first: Option<LastEvent>,
    /// The hash that was seen last while waiting for quiet.
    candidate: Option<String>,
    unsettled: Unsettled,
    delivered: Option<Delivered>,
    log_only: Option<BTreeMap<PathBuf, Stamp>>,
    troubles: BTreeSet<String>,
}

/// What is remembered of the set delivered last.
struct Delivered {
    hash: String,
    /// Each file, and whether it was empty.
    files: BTreeMap<PathBuf, bool>,
    stamps: Option<Vec<(PathBuf, Stamp)>>,
}

impl Delivered {
    fn new(set: &FileSet, stamps: Option<Vec<(PathBuf, Stamp)>>) -> Self {
        let files = set
            .files
            .iter()
            .map(|file| (file.path.clone(), file.bytes.is_empty()));
        Self {
            hash: set.hash.clone(),
            files: files.collect(),
            stamps,
        }
    }
}

/// Since when the set looks as if somebody was in the middle of a save.
struct Unsettled {
    patience: Duration,
    since: Option<Instant>,
    look_again: Option<Instant>,
}

impl<S: FnMut(Event)> Runner<S> {
    pub(crate) fn new(
        config: &Config,
        scope: Arc<Scope>,
        shared: Arc<Shared>,
        known: Option<&FileSet>,
        sink: S,
    ) -> Self {
        Self {
            scope,
            shared,
            sink,
            notices: None,
            blind: Blind::default(),
            max_wait: config.max_wait,
            moving_since: None,
            poll: config.poll,
            next_poll: Instant::now(),
            debounce: Debounce::new(config.reload_delay, config.max_wait),
            first: None,
            candidate: None,
            unsettled: Unsettled {
                patience: config.unsettled,
                since: None,
                look_again: None,
            },
            delivered: known.map(|set| Delivered::new(set, None)),
            log_only: None,
            troubles: BTreeSet::new(),
        }
    }

    /// Asks for the events of the file system.
    pub(crate) fn attach(&mut self, factory: Factory) {
        match Notices::new(Arc::clone(&self.shared), factory) {
            Ok(notices) => self.notices = Some(notices),
            Err(error) => return self.fall_back(&error),
        }
        self.follow(&Listing::of(&self.scope));
    }

    /// Watches until [`Shared::stop`].
    pub(crate) fn run(mut self) {
        self.look();
        loop {
            match self.shared.wait(self.next_look()) {
                Wake::Stop => return,
                Wake::Sign(sign) => {
                    self.first.get_or_insert(sign);
                    self.debounce.sign(Instant::now());
                }
                Wake::Timer => {}
            }
            if self.next_look() <= Instant::now() {
                self.look();
            }
        }
    }

    fn next_look(&self) -> Instant {
        let others = [self.debounce.due(), self.unsettled.look_again];
        others
            .into_iter()
            .flatten()
            .fold(self.next_poll, Instant::min)
    }

    fn look(&mut self) {
        let now = Instant::now();
        self.next_poll = now + self.poll;
        self.unsettled.look_again = None;
        let Look { listing, content } = self.read();
        self.shared.count(|counters| counters.looks += 1);
        self.tell_log_only(&listing);
        if !matches!(content, Err(Unready::Moving)) {
            self.moving_since = None;
        }
        match content {
            Ok(set) => self.judge(set, listing.content, now),
            Err(Unready::Moving) if self.moves_for_long(now) => {
                self.report(vec![ReadError::Moving.to_string()]);
            }
            Err(Unready::Moving) => {
                self.notice(&listing.content, now);
                self.wait_for_quiet(None, now);
            }
            Err(Unready::Trouble(reasons)) => self.report(reasons),
        }
    }

    /// Reads the set with all the directories on the way to it watched, so that whatever changes after it
    /// was read is a sign.
    fn read(&mut self) -> Look {
        for _ in 0..FOLLOW_TRIES_MAX {
            let look = read(&self.scope);
            if !self.follow(&look.listing) {
                return look;
            }
        }
        read(&self.scope)
    }

    /// Whether no look has found the files at rest for much longer than a burst of changes may take.
    fn moves_for_long(&mut self, now: Instant) -> bool {
        let since = *self.moving_since.get_or_insert(now);
        since + self.max_wait * MOVING_WAITS_MAX <= now
    }

    /// Watches what leads to the files of `listing`; whether these are other directories and names than
    /// before, so that events of them may have been missed.
    fn follow(&mut self, listing: &Listing) -> bool {
        let points = Points::of(&self.scope, listing);
        let followed = match &mut self.notices {
            Some(notices) => {
                if self.shared.take_lost() {
                    notices.forget();
                }
                notices.follow(&points)
            }
            None => Ok(false),
        };
        if let Err(error) = &followed {
            self.fall_back(error);
        }
        self.tell_paths(&points, listing);
        let others = self.shared.set_points(points);
        self.notices.is_some() && (others || followed.unwrap_or(false))
    }

    /// Says in the status which paths are watched, and how.
    fn tell_paths(&mut self, points: &Points, listing: &Listing) {
        let Some(notices) = &self.notices else {
            let paths = points.directories().cloned();
            return self
                .shared
                .set_paths(paths.map(|path| (path, Backend::Poll)));
        };
        let watched = notices.watched();
        let blind = Blind::of(points, listing);
        let directories = points.directories().filter(|path| watched.contains(path));
        let seen = directories.map(|path| (path.clone(), Backend::Inotify));
        let unseen = points.directories().filter(|path| !watched.contains(path));
        let unseen = unseen.chain(blind.paths());
        let unseen = unseen.map(|path| (path.clone(), Backend::Poll));
        let paths: BTreeMap<PathBuf, Backend> = seen.chain(unseen).collect();
        self.shared.set_paths(paths.into_iter());
        self.shared.update(|status| {
            status.backend = Backend::Inotify;
            status.watched = watched;
        });
        self.warn_of(blind);
    }

    /// Warns of paths that only the poll sees.
    fn warn_of(&mut self, blind: Blind) {
        if self.blind == blind {
            return;
        }
        let warning = blind.warning().map(|paths| {
            format!(
                "only a look every {:?} sees all changes: {paths}",
                self.poll
            )
        });
        if let Some(warning) = &warning {
            tracing::warn!("{warning}");
        }
        self.shared.update(|status| status.warning = warning);
        self.blind = blind;
    }

    fn fall_back(&mut self, error: &notify::Error) {
        let warning = format!(
            "no events of the file system, only a look every {:?}: {error}",
            self.poll
        );
        tracing::warn!("{warning}");
        self.notices = None;
        self.shared.update(|status| {
            status.backend = Backend::Poll;
            status.watched = Vec::new();
            status.warning = Some(warning);
        });
    }

    fn judge(&mut self, set: FileSet, stamps: Vec<(PathBuf, Stamp)>, now: Instant) {
        if self
            .delivered
            .as_ref()
            .is_some_and(|delivered| delivered.hash == set.hash)
        {
            self.nothing_new(stamps, now);
            return;
        }
        self.notice(&stamps, now);
        if !self.is_settled(&set.hash, now) {
            self.wait_for_quiet(Some(set.hash), now);
        } else if self.is_mid_save(&set, now) {
            self.debounce.clear();
            self.candidate = None;
        } else {
            self.deliver(set, stamps, now);
        }
    }

    /// Makes sure that the change has a first sign: what no event told is found by this look.
    fn notice(&mut self, stamps: &[(PathBuf, Stamp)], now: Instant) {
        if self.first.is_some() {
            return;
        }
        let sign = self.shared.pending().unwrap_or_else(|| {
            let delivered = self.delivered.as_ref();
            let before = delivered.and_then(|delivered| delivered.stamps.as_deref());
            let sign = LastEvent {
                at: now,
                kind: EventKind::Polled,
                path: before.and_then(|before| first_difference(before, stamps)),
            };
            self.shared.note(&sign);
            sign
        });
        self.first = Some(sign);
    }

    fn nothing_new(&mut self, stamps: Vec<(PathBuf, Stamp)>, now: Instant) {
        let asked = self.debounce.is_due(now);
        self.rest();
        if !std::mem::take(&mut self.troubles).is_empty() {
            self.shared.update(|status| status.troubles = Vec::new());
            (self.sink)(Event::Recovered);
        }
        let Some(delivered) = &mut self.delivered else {
            return;
        };
        let before = delivered.stamps.replace(stamps);
        if before.is_some() && before != delivered.stamps {
            self.shared.count(|counters| counters.touched += 1);
            (self.sink)(Event::Touched);
        } else if asked {
            self.shared.count(|counters| counters.ignored += 1);
        }
    }

    /// Whether the set with `hash` has been quiet for long enough, or unquiet for too long. What only the
    /// poll noticed must be seen twice.
    fn is_settled(&self, hash: &str, now: Instant) -> bool {
        let same = self
            .candidate
            .as_ref()
            .is_none_or(|candidate| candidate == hash);
        let quiet = self.debounce.is_due(now) && same && self.shared.pending().is_none();
        quiet || self.debounce.is_overdue(now)
    }

    /// Whether the set lost a file or holds an empty one, and that is not yet so for long.
    fn is_mid_save(&mut self, set: &FileSet, now: Instant) -> bool {
        let unsettled = &mut self.unsettled;
        if !looks_mid_save(set, self.delivered.as_ref()) {
            unsettled.since = None;
            return false;
        }
        let until = *unsettled.since.get_or_insert(now) + unsettled.patience;
        unsettled.look_again = (until > now).then_some(until);
        until > now
    }

    /// Looks again after a quiet period, which begins now unless the look found what the last one found.
    fn wait_for_quiet(&mut self, candidate: Option<String>, now: Instant) {
        if candidate.is_some() && candidate == self.candidate {
            return;
        }
        if self.debounce.is_overdue(now) {
            self.debounce.clear();
        }
        self.candidate = candidate;
        self.debounce.sign(now);
    }

    fn deliver(&mut self, set: FileSet, stamps: Vec<(PathBuf, Stamp)>, settled: Instant) {
        let first = self.first.take();
        self.rest();
        self.troubles.clear();
        self.delivered = Some(Delivered::new(&set, Some(stamps)));
        self.shared.update(|status| {
            status.counters.changed += 1;
            status.troubles = Vec::new();
        });
        (self.sink)(Event::Changed(Change {
            set,
            detected: first.as_ref().map_or(settled, |sign| sign.at),
            settled,
            read: Instant::now(),
            path: first.and_then(|sign| sign.path),
        }));
    }

    /// Every sign is answered.
    fn rest(&mut self) {
        self.debounce.clear();
        self.first = None;
        self.candidate = None;
        self.unsettled.since = None;
    }

    fn report(&mut self, reasons: Vec<String>) {
        self.debounce.clear();
        self.first = None;
        self.candidate = None;
        let known = std::mem::replace(&mut self.troubles, reasons.iter().cloned().collect());
        self.shared
            .update(|status| status.troubles = reasons.clone());
        for reason in reasons.into_iter().filter(|reason| !known.contains(reason)) {
            self.shared.count(|counters| counters.troubles += 1);
            (self.sink)(Event::Trouble(reason));
        }
    }

    fn tell_log_only(&mut self, listing: &Listing) {
        let Some(before) = self.log_only.replace(listing.log_only.clone()) else {
            return;
        };
        for path in changed_paths(&before, &listing.log_only) {
            self.shared.count(|counters| counters.log_only += 1);
            (self.sink)(Event::LogOnly(path));
        }
    }
}

/// An editor or a tool that truncates, or removes and then writes, leaves such a set behind for a moment.
fn looks_mid_save(set: &FileSet, delivered: Option<&Delivered>) -> bool {
    let was_empty =
        |path: &PathBuf| delivered.and_then(|delivered| delivered.files.get(path)) == Some(&true);
    let emptied = set
        .files
        .iter()
        .any(|file| file.bytes.is_empty() && !was_empty(&file.path));
    let there = |path: &PathBuf| set.files.iter().any(|file| file.path == *path);
    let lost = delivered.is_some_and(|delivered| !delivered.files.keys().all(there));
    emptied || lost
}

/// A file of the one list that is not, or not with the same stamp, in the other.
fn first_difference(before: &[(PathBuf, Stamp)], after: &[(PathBuf, Stamp)]) -> Option<PathBuf> {
    let came = after.iter().find(|file| !before.contains(file));
    let went = before.iter().find(|file| !after.contains(file));
    came.or(went).map(|(path, _)| path.clone())
}

/// The files that came, went, or have other content.
fn changed_paths(
    before: &BTreeMap<PathBuf, Stamp>,
    after: &BTreeMap<PathBuf, Stamp>,
) -> Vec<PathBuf> {
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let changed = |path: &&&PathBuf| match (before.get(**path), after.get(**path)) {
        (Some(before), Some(after)) => !before.same_content(after),
        _ => true,
    };
    paths
        .iter()
        .filter(changed)
        .map(|path| (*path).clone())
        .collect()
}
