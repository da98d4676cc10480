//! What a life of the broker starts from: which policy, which books, and what the start itself does to them.

mod choice;

use std::io;
use std::sync::Arc;

use gpu_lease::canary::{Canary, is_planted};
use gpu_lease::{
    At, Books, Command, Counters, Event, EventKind, Expect, Fence, Lease, Ms, Phase, Policy, Rows,
    Switch,
};
use gpu_policy::{Diagnostics, Override, SourceFile};
use gpu_store::{BreakerRow, EventPosition, LastGood, ReadError, Settings, Store, Stored};
use thiserror::Error;

use crate::broker::Config;
use crate::reload::unexpired;
use crate::turn::{Fatal, Opening};
use choice::{Start, recompile};

pub(crate) use choice::{Chosen, Under};

/// After a start holders have this long to send the heartbeats that nobody took.
const START_GRACE_MS: Ms = Ms::from_secs(30);

/// After a life that did not end in order the next revision is so much higher: a disk that lied, or that damaged its
/// last pages, may have lost commits that were seen, and no event has the id of a lost one.
const REVISIONS_SKIPPED: u64 = 1 << 16;

/// The policy to start with: the files as they are now, with what goes over them.
pub struct StartPolicy {
    /// The files, in the order in which they apply, or why they cannot be read.
    pub files: Result<Vec<SourceFile>, String>,
    /// The layers above the files.
    pub overrides: Vec<Override>,
    /// Dev mode: nothing waits for a confirmation.
    pub dev: bool,
}

/// A broker cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The policy has errors or cannot be read, and no earlier one is stored.
    #[error("the policy has errors and no last good one is stored\n{0}")]
    Policy(String),
    /// The policy has errors or cannot be read, and the last good one has errors too.
    #[error(
        "the policy has errors, and so has the last good one that is stored\n{files}\nthe last good one:\n{last_good}"
    )]
    LastGood {
        /// What is wrong with the files.
        files: String,
        /// Of the last good ones, as this version reads them under the settings above them.
        last_good: Diagnostics,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store cannot be written.
    #[error(transparent)]
    Write(#[from] Fatal),
    /// No thread.
    #[error("the broker's threads cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// What a life begins with: found in the store, decided, and not durable yet.
pub(crate) struct Beginning {
    /// As they were found, under the policy that they decided by.
    pub(crate) books: Books,
    pub(crate) chosen: Chosen,
    /// What is stored beside the rows, without what ended meanwhile.
    pub(crate) settings: Settings,
    pub(crate) rebooted: bool,
    pub(crate) files_hash: String,
    /// Whether the life before, if there was one, wrote down that it ends.
    in_order: bool,
}

impl Beginning {
    /// Takes the rows out of `stored`.
    pub(crate) fn of(
        stored: &mut Stored,
        config: &Config,
        under: Under,
        at: At,
    ) -> Result<Self, StartError> {
        let mut rows = stored.rows.take();
        let in_order = stopped_in_order(&*config.store, rows.as_ref())?;
        if let Some(rows) = &mut rows {
            leave_room(&mut rows.counters, in_order, at);
        }
        let rebooted = is_rebooted(stored, &config.boot_id);
        let mut settings = still_true(&stored.settings, rebooted, at);
        let start = Start::of(&config.policy, &settings);
        let mut chosen = start.choose(under, stored.policy.as_ref())?;
        let mut books = recover(stored, rows, &chosen.policy, &start.layers, at);
        // What another boot held has ended and cannot be asked to go.
        if under == Under::Files
            && !rebooted
            && let Some(safe) = start.gate(&chosen, stored, &books, at)
        {
            // Also overrides that ended meanwhile stay until their end is confirmed.
            settings = stored.settings.clone();
            chosen = safe;
            let layers = Start::of(&config.policy, &settings).layers;
            books = recover(stored, Some(books.rows()), &chosen.policy, &layers, at);
        }
        Ok(Self {
            files_hash: Start::of(&config.policy, &settings).files_hash,
            books,
            chosen,
            settings,
            rebooted,
            in_order,
        })
    }

    /// What is to be made durable first of all.
    pub(crate) fn opening(&self, stored: &Stored, config: &Config, at: At) -> Opening {
        let settings = &self.settings;
        Opening {
            boot_id: config.boot_id.clone(),
            settings: (*settings != stored.settings).then(|| settings.clone()),
            commands: self.commands(&config.introduction, at),
        }
    }

    fn commands(&self, introduction: &str, at: At) -> Vec<Command> {
        let started = Command::Note(self.introduce(introduction));
        let reboot = self.rebooted.then_some(Command::HostRebooted);
        let grace = grace_at_start(&self.books, at);
        let switch = Command::SetPolicy(Box::new(Switch {
            policy: self.chosen.policy.clone(),
            changes: "the files changed while no broker ran".to_owned(),
            planned: None,
            expect: Expect::default(),
        }));
        let commands = [Some(started), reboot, grace, Some(switch)];
        commands.into_iter().flatten().collect()
    }

    fn introduce(&self, introduction: &str) -> Event {
        let how = match (self.rebooted, self.in_order) {
            (true, _) => "the host was booted since, so what was held has ended".to_owned(),
            (false, true) => held(&self.books),
            (false, false) => format!(
                "{}; the one before did not stop in order",
                held(&self.books)
            ),
        };
        Event {
            kind: EventKind::BrokerStarted,
            lease: None,
            device: None,
            by: None,
            text: format!("{introduction} started: {how}"),
        }
    }
}

/// That nothing more comes of this life, and why.
pub(crate) fn farewell(why: &str, books: &Books) -> Event {
    Event {
        kind: EventKind::BrokerStopped,
        lease: None,
        device: None,
        by: None,
        text: format!("{why}: {}", held(books)),
    }
}

fn held(books: &Books) -> String {
    let held = books.leases().filter(|lease| lease.held().is_some());
    let said = match held.count() {
        1 => "1 lease held".to_owned(),
        held => format!("{held} leases held"),
    };
    let taken_back = |lease: &&Lease| lease.held().is_none() && lease.occupying().is_some();
    match books.leases().filter(taken_back).count() {
        0 => said,
        back => format!("{said}, {back} being taken back"),
    }
}

fn is_rebooted(stored: &Stored, boot_id: &str) -> bool {
    let boot = stored.boot_id.as_deref();
    boot.is_some_and(|boot| boot != boot_id || is_planted(Canary::RestartTakenForReboot))
}

/// Whether the last thing that was written with `rows` is that the broker stopped.
fn stopped_in_order(store: &dyn Store, rows: Option<&Rows>) -> Result<bool, ReadError> {
    let Some(rows) = rows else {
        return Ok(true);
    };
    let before = EventPosition {
        revision: rows.counters.revision.saturating_sub(1),
        n: u32::MAX,
    };
    let page = store.events(Some(before), 1)?;
    let last = page.events.first().filter(|_| !page.reset);
    Ok(last.is_some_and(|last| last.event.kind == EventKind::BrokerStopped))
}

/// What is stored of settings, without what ended with its boot or by its time.
fn still_true(stored: &Settings, rebooted: bool, at: At) -> Settings {
    match rebooted {
        true => Settings {
            overrides: Vec::new(),
            breaker: BreakerRow::default(),
            ..stored.clone()
        },
        false => Settings {
            overrides: unexpired(&stored.overrides, at),
            ..stored.clone()
        },
    }
}

/// The books that wrote the rows, under the policy that they decided by, so that a policy which changed
/// while no broker ran is switched to like any other.
fn recover(
    stored: &Stored,
    rows: Option<Rows>,
    policy: &Arc<Policy>,
    overrides: &[Override],
    at: At,
) -> Books {
    let Some(rows) = rows else {
        return Books::new(policy.clone(), first_fence(at));
    };
    let last = stored.policy.as_ref();
    let last = last.map(|good| decided_by(good, policy, overrides));
    Books::from_rows(last.unwrap_or_else(|| policy.clone()), rows)
}

/// The policy of before. What lay over its files is not stored: if neither the present overrides nor none
/// make it what it was, it is at least known to be another one than `policy`.
fn decided_by(good: &LastGood, policy: &Arc<Policy>, overrides: &[Override]) -> Arc<Policy> {
    let bare = recompile(good, &[]).ok();
    let bare = bare.filter(|bare| bare.source.hash == good.source.hash);
    let last = bare.map_or_else(|| recompile(good, overrides), Ok);
    let last = last.inspect_err(|why| {
        tracing::warn!("the policy of before cannot be read any more and is ignored\n{why}");
    });
    Arc::new(Policy {
        source: good.source.clone(),
        ..Policy::clone(&last.unwrap_or_else(|_| policy.clone()))
    })
}

/// Higher than every fence that was given before: by a store that was deleted, or that a copy of it was put back for.
fn first_fence(at: At) -> Fence {
    let (seconds, millis) = (at.wall.0 / 1000, at.wall.0 % 1000);
    // Two starts in one second are told apart too: 1000 << 10 is still less than 1 << 20.
    Fence(seconds.saturating_mul(1 << 20).saturating_add(millis << 10))
}

/// What was written last, and somebody has seen, may not be in these rows any more.
fn leave_room(counters: &mut Counters, in_order: bool, at: At) {
    counters.next_fence = counters.next_fence.max(first_fence(at));
    if !in_order {
        counters.revision += REVISIONS_SKIPPED;
    }
}

/// For holders and waiters of before, who could not send heartbeats. Where there are none, nothing is late.
fn grace_at_start(books: &Books, at: At) -> Option<Command> {
    let mut leases = books.leases();
    let waited_for = leases.any(|lease| !matches!(lease.phase, Phase::Ended(_)));
    waited_for.then_some(Command::Grace {
        until: at.boot + START_GRACE_MS,
    })
}
