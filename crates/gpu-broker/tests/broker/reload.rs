//! One road from files to a live policy: what each trigger gets, and what is remembered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use gpu_broker::{
    CandidateState, Override, ReloadOptions, ReloadOutcome, ReloadResult, ReloadStart, Reloader,
    SourceFile, Trigger, Unavailable, WatchTiming,
};
use gpu_lease::{DrainSource, EventKind, Fate, Request};
use gpu_store::EventPosition;
use parking_lot::Mutex;

use crate::world::{Setup, World, files, patient, request};

/// What reading the files gives.
type Disk = Arc<Mutex<Result<Vec<SourceFile>, String>>>;

/// Files on a disk, and what reloads them.
pub(crate) struct Reloads {
    pub(crate) disk: Disk,
    pub(crate) reloader: Arc<Reloader>,
}

impl Reloads {
    /// In dev mode: nothing waits for a confirmation.
    pub(crate) fn of(world: &World) -> Self {
        Self::with(world, true, Vec::new())
    }

    /// In dev mode, with layers above the files.
    pub(crate) fn under(world: &World, overrides: Vec<Override>) -> Self {
        Self::with(world, true, overrides)
    }

    /// As in production: what drains leases waits for a confirmation.
    pub(crate) fn gated(world: &World) -> Self {
        Self::with(world, false, Vec::new())
    }

    fn with(world: &World, dev: bool, overrides: Vec<Override>) -> Self {
        let disk: Disk = Arc::new(Mutex::new(Ok(files(&world.policy()))));
        let read = disk.clone();
        let start = world.started.reload_start();
        let watching = start.settings.policy_watch.as_ref();
        let reloader = Reloader::new(
            world.handle.clone(),
            Box::new(move || read.lock().clone()),
            overrides,
            ReloadStart {
                watching: watching.is_none_or(|switch| switch.enabled),
                dev,
                ..start
            },
        );
        Self {
            disk,
            reloader: Arc::new(reloader),
        }
    }

    pub(crate) fn save(&self, text: &str) {
        *self.disk.lock() = Ok(files(text));
    }

    /// By hand, without a confirmation.
    pub(crate) fn reload(&self) -> Arc<ReloadResult> {
        self.reload_with(&ReloadOptions::default())
    }

    pub(crate) fn reload_with(&self, options: &ReloadOptions) -> Arc<ReloadResult> {
        self.reloader.reload(Trigger::Api, "root", options)
    }

    /// By hand, confirming the plan of this hash.
    pub(crate) fn confirm(&self, hash: &str) -> Arc<ReloadResult> {
        self.reload_with(&ReloadOptions {
            confirm: Some(hash.to_owned()),
            ..ReloadOptions::default()
        })
    }

    /// As a watcher does after a save.
    pub(crate) fn offer(&self, text: &str) -> Arc<ReloadResult> {
        self.save(text);
        let timing = WatchTiming {
            path: Some("default.toml".to_owned()),
            ..WatchTiming::default()
        };
        self.reloader
            .offer(files(text), timing)
            .expect("files are watched")
    }

    /// What is shown of the files on disk.
    pub(crate) fn candidate(&self) -> Option<CandidateState> {
        let candidate = self.reloader.state().candidate;
        candidate.map(|candidate| candidate.state)
    }
}

/// The generation that a result made live.
pub(crate) fn applied(result: &ReloadResult) -> u64 {
    match &result.outcome {
        ReloadOutcome::Applied { generation } => *generation,
        other => panic!("it is applied, not {other:?}"),
    }
}

pub(crate) fn attempt(result: &ReloadResult) -> u32 {
    match &result.outcome {
        ReloadOutcome::Refused { attempt, .. } => *attempt,
        other => panic!("it is refused, not {other:?}"),
    }
}

/// Where the events end.
pub(crate) fn end_of_events(world: &World) -> EventPosition {
    world.nudge();
    world.events_after(None).last().unwrap().position
}

/// What happened after a position, in short: its kind and the beginning of its text.
pub(crate) fn kinds_after(world: &World, after: EventPosition) -> Vec<EventKind> {
    world.nudge();
    let events = world.events_after(Some(after));
    events.iter().map(|event| event.event.kind).collect()
}

pub(crate) fn max_waiting(world: &World) -> usize {
    world.handle.snapshot().policy.queue.max_waiting
}

#[test]
fn good_files_are_live_when_the_result_is_there() {
    let world = World::with(Setup::policy("[[class]]\nname = \"batch\"\n"));
    let batch = |request| Request {
        class: "batch".to_owned(),
        ..request
    };
    let held = world.acquire(batch(request(50)));
    let waiting = world.acquire(batch(patient(50)));
    let reloads = Reloads::of(&world);
    let before = world.handle.snapshot().policy.source.hash.clone();
    reloads.save("[queue]\nmax_waiting = 3\n");
    let result = reloads.reload();
    assert_eq!((result.id, applied(&result)), (1, 2));
    assert_eq!(result.changes.len(), 2, "{:?}", result.changes);
    let plan = result.plan.as_ref().unwrap();
    assert_eq!(plan.held[0].id, held.id);
    assert!(matches!(plan.held[0].fate, Fate::Drain(_)));
    assert_eq!(plan.denied[0].0, waiting.id);
    assert_eq!(result.hash_before, before);
    assert_eq!(result.files, ["default.toml"]);

    assert_eq!(max_waiting(&world), 3);
    let live = world.handle.snapshot().policy.source.hash.clone();
    assert_eq!(result.hash_after.as_ref(), Some(&live));
    let grant = world.lease(held.id).held().unwrap().clone();
    assert!(grant.drains.contains_key(&DrainSource::Policy));
    assert!(world.handle.find(waiting.id).is_none());

    let state = reloads.reloader.state();
    assert_eq!(state.last.unwrap().id, 1);
    assert_eq!(state.history.len(), 1);
}

#[test]
fn files_that_say_what_is_live_change_nothing() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let before = world.store.commits();
    for text in ["", "# a comment\n", "[queue]\nmax_waiting = 1024\n"] {
        let result = reloads.offer(text);
        assert!(matches!(result.outcome, ReloadOutcome::Unchanged));
    }
    assert_eq!(world.handle.snapshot().counters.generation, 1);
    assert_eq!(world.store.commits(), before);
    let state = reloads.reloader.state();
    assert!(state.last.is_none(), "nothing has happened");
    assert_eq!(state.history.len(), 3);
}

#[test]
fn bad_files_are_refused_and_the_attempts_counted() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let last = world.events_after(None).last().unwrap().position;
    let (first, second) = ("[queu]\n", "[queue]\nmax_waiting = -1\n");
    assert_eq!(attempt(&reloads.offer(first)), 1);
    assert_eq!(attempt(&reloads.offer(first)), 1, "the same failure again");
    assert_eq!(attempt(&reloads.offer(second)), 2);
    assert_eq!(attempt(&reloads.reload()), 3, "somebody asked for it");
    *reloads.disk.lock() = Err("permission denied".to_owned());
    assert!(matches!(
        &reloads.reload().outcome,
        ReloadOutcome::Unreadable(why) if why == "permission denied"
    ));
    assert_eq!(attempt(&reloads.offer(first)), 4, "no good save in between");

    assert_eq!(world.handle.snapshot().counters.generation, 1);
    assert_eq!(reloads.candidate(), Some(CandidateState::Rejected));
    world.nudge();
    let mut events = world.events_after(Some(last));
    events.retain(|event| event.event.kind != EventKind::ReloadBegun);
    assert_eq!(events.len(), 5, "the same bytes are looked at once");
    assert!(
        events
            .iter()
            .all(|event| event.event.kind == EventKind::PolicyRefused)
    );
    assert_eq!(events[2].event.by.as_deref(), Some("root"));

    let good = reloads.offer("[queue]\nmax_waiting = 3\n");
    assert_eq!(applied(&good), 2);
    assert!(reloads.candidate().is_none());
    assert_eq!(attempt(&reloads.offer(first)), 1, "a good save in between");
}

#[test]
fn a_check_changes_nothing() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let checked = reloads.reloader.check(&files("[queue]\nmax_waiting = 3\n"));
    assert_eq!(checked.unwrap().changes.len(), 1);
    assert!(reloads.reloader.check(&files("[queu]\n")).is_err());
    assert_eq!(max_waiting(&world), 1024);
    assert!(reloads.reloader.state().history.is_empty());
}

#[test]
fn a_watcher_says_when_files_cannot_be_read_and_when_they_can_again() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    reloads
        .reloader
        .offer_unreadable("permission denied".to_owned());
    assert_eq!(reloads.candidate(), Some(CandidateState::NotLoaded));
    reloads.reloader.offer_recovered();
    assert!(reloads.candidate().is_none());
    reloads.reloader.set_watching(false, "root").unwrap();
    reloads
        .reloader
        .offer_unreadable("permission denied".to_owned());
    assert!(reloads.candidate().is_none(), "nobody looks");
}

#[test]
fn while_watching_is_off_saves_are_not_applied_and_triggers_are() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    reloads.reloader.set_watching(false, "root").unwrap();
    let text = "[queue]\nmax_waiting = 3\n";
    let offered = reloads.reloader.offer(files(text), WatchTiming::default());
    assert!(offered.is_none());
    assert_eq!(max_waiting(&world), 1024);
    reloads.save("[queue]\nmax_waiting = 4\n");
    assert!(matches!(
        reloads.reload().outcome,
        ReloadOutcome::Applied { .. }
    ));
    assert_eq!(max_waiting(&world), 4);
    let state = reloads.reloader.state();
    assert!(!state.watching);
    assert_eq!(state.switched_by.unwrap().by, "root");
    drop(reloads);

    let world = world.restart(|_| ());
    let stored = world.started.settings.policy_watch.clone().unwrap();
    assert_eq!((stored.enabled, stored.by.as_str()), (false, "root"));
}

#[test]
fn what_was_saved_while_watching_was_off_is_live_once_it_is_on_again() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    reloads.reloader.set_watching(false, "root").unwrap();
    reloads.save("[queue]\nmax_waiting = 5\n");
    reloads.reloader.set_watching(true, "root").unwrap();
    assert_eq!(max_waiting(&world), 5);
}

#[test]
fn to_watch_again_applies_nothing_that_was_taken_back() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    applied(&reloads.offer("[queue]\nmax_waiting = 5\n"));
    let options = ReloadOptions::default();
    applied(&reloads.reloader.rollback("root", None, &options).unwrap());
    let enable = |enabled| reloads.reloader.set_watching(enabled, "root").unwrap();
    let before = reloads.reloader.state().history.len();
    enable(true);
    assert_eq!(reloads.reloader.state().history.len(), before, "it was on");
    enable(false);
    enable(true);
    assert_eq!(max_waiting(&world), 1024);
    assert_eq!(reloads.candidate(), Some(CandidateState::RolledBack));
}

#[test]
fn the_event_of_a_refusal_names_the_first_error_and_shows_no_line_of_the_file() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let end = end_of_events(&world);
    reloads.offer("[queu]\nsecret = 1\n[clas]\n");
    reloads
        .reloader
        .offer_unreadable("permission denied ".repeat(1000));
    world.nudge();
    let mut events = world.events_after(Some(end));
    events.retain(|event| event.event.kind == EventKind::PolicyRefused);
    let text = &events[0].event.text;
    assert!(text.contains("default.toml:2:2: "), "{text}");
    assert!(text.ends_with("(and 1 more error)"), "{text}");
    assert!(!text.contains("secret") && !text.contains('\n'), "{text}");
    assert!(events[1].event.text.len() < 600);
}

#[test]
fn what_is_stored_of_a_switch_is_what_is_live() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    let switchers = (0..8).map(|n| {
        let reloader = reloads.reloader.clone();
        thread::spawn(move || reloader.set_watching(n % 2 == 0, &n.to_string()))
    });
    for switcher in switchers.collect::<Vec<_>>() {
        switcher.join().unwrap().unwrap();
    }
    let live = reloads.reloader.state();
    let stored = gpu_store::Store::load(&*world.store).unwrap();
    let stored = stored.settings.policy_watch.unwrap();
    assert_eq!(live.watching, stored.enabled);
    assert_eq!(live.switched_by, Some(stored));
}

#[test]
fn reloads_at_the_same_time_go_one_after_the_other() {
    let world = World::new();
    let (reads, inside) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let read = {
        let reads = reads.clone();
        move || {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
            let n = reads.fetch_add(1, Ordering::SeqCst) + 1;
            thread::yield_now();
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok(files(&format!("[queue]\nmax_waiting = {n}\n")))
        }
    };
    let reloader = Arc::new(Reloader::new(
        world.handle.clone(),
        Box::new(read),
        Vec::new(),
        ReloadStart::default(),
    ));
    let triggers = (0..8).map(|_| {
        let reloader = reloader.clone();
        thread::spawn(move || reloader.reload(Trigger::Api, "ann", &ReloadOptions::default()))
    });
    let triggers: Vec<_> = triggers.collect();
    let mut results: Vec<_> = triggers
        .into_iter()
        .map(|trigger| trigger.join().unwrap())
        .collect();
    results.sort_by_key(|result| result.id);
    for (place, result) in results.iter().enumerate() {
        assert_eq!(result.id, place as u64 + 1, "none is lost");
        assert!(matches!(
            result.outcome,
            ReloadOutcome::Applied { generation } if generation == result.id + 1
        ));
        if let Some(next) = results.get(place + 1) {
            assert_eq!(result.hash_after.as_ref(), Some(&next.hash_before));
        }
    }
    assert_eq!(max_waiting(&world), 8, "the last one read is live");
    let history: Vec<u64> = reloader
        .state()
        .history
        .iter()
        .map(|past| past.id)
        .collect();
    assert_eq!(history, [8, 7, 6, 5, 4, 3, 2, 1]);
}

#[test]
fn a_reload_that_meets_the_end_of_the_broker_says_so() {
    let world = World::new();
    let reloads = Reloads::of(&world);
    drop(world.stop());
    reloads.save("[queue]\nmax_waiting = 3\n");
    let reloader = reloads.reloader.clone();
    let asked = thread::spawn(move || {
        let switched = reloader.set_watching(false, "root");
        let options = ReloadOptions::default();
        (
            reloader.reload(Trigger::Signal, "SIGHUP", &options),
            switched,
        )
    });
    crate::world::until("it is answered", || asked.is_finished());
    let (result, switched) = asked.join().unwrap();
    assert!(matches!(
        result.outcome,
        ReloadOutcome::Stopped(Unavailable::Stopping)
    ));
    assert_eq!(switched, Err(Unavailable::Stopping));
    assert!(reloads.reloader.state().watching, "nothing was switched");
}
