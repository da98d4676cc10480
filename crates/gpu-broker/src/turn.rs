//! One turn of the loop: apply every message, make the batch durable, then let the world see it.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use gpu_lease::canary::{Canary, is_planted};
use gpu_lease::{
    Answer, At, Books, BootMs, Breach, Changes, Command, Cordon, DeviceKey, Effect, Event, Lease,
    LeaseId, Ledger, Ms, Outcome,
};
use gpu_store::{Batch, CommitError, EventPosition, Hour, LastGood, Settings, Store, StoredEvent};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::fail_point::{FailPoint, reach};
use crate::inbox::{self, Message, Reload};
use crate::start::farewell;
use crate::usage::{UsageBasis, UsageSums};
use crate::view::{Snapshot, View};

/// Waiters hear again how things are at least this often, so that rules by the hour take effect.
const REVIEW_MS: Ms = Ms::from_secs(15);
/// Every waiter is told who holds what it waits for. So many holders are named again in every turn; of
/// more, no more than so many in a millisecond, so that explaining never takes the loop for itself.
const NAMED_AT_ONCE_MAX: usize = 4096;
const NAMED_PER_MS: usize = 256;

/// The broker cannot go on. Nothing of the turn was answered.
#[derive(Debug, Error)]
pub enum Fatal {
    /// What it would answer might not be durable.
    #[error("the store failed, so nothing more is answered: {0}")]
    Store(#[from] CommitError),
    /// What it would store must not be.
    #[error("the books contradict themselves, so nothing more is granted: {0}")]
    Books(#[from] Breach),
}

impl Fatal {
    /// What a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Store(error) => error.hint(),
            Self::Books(_) => {
                "nothing of this was stored or answered, and everything before is; see what `gpu-manager store check` says, start it again, and report the line above: it is a fault of gpu-manager unless the store is damaged"
            }
        }
    }
}

/// The books with everything that one turn of the loop touches.
pub(crate) struct Turn {
    books: Books,
    /// What the books grant, counted once more.
    ledger: Ledger,
    store: Arc<dyn Store>,
    view: Arc<View>,
    reviewed: BootMs,
    /// Until then what is held is counted in the usage.
    counted: Option<At>,
    /// When rules by the hour change what they say.
    changes_at: Option<BootMs>,
    /// Reasons are not looked for again before.
    reasons_rest: BootMs,
    /// The reasons that are published are of an earlier turn.
    reasons_stale: bool,
}

/// What a start means.
pub(crate) struct Opening {
    /// The boot that the rows belong to from here on.
    pub(crate) boot_id: String,
    /// All of them, if one changed.
    pub(crate) settings: Option<Settings>,
    /// For the books, in order.
    pub(crate) commands: Vec<Command>,
}

/// What the messages of a turn add up to, before it is durable.
#[derive(Default)]
struct Work {
    leases: BTreeMap<LeaseId, Arc<Lease>>,
    pruned: Vec<LeaseId>,
    cordons: BTreeMap<DeviceKey, Option<Cordon>>,
    policy: Option<LastGood>,
    boot_id: Option<String>,
    settings: Option<Settings>,
    events: Vec<StoredEvent>,
    usage: UsageSums,
    usage_counted: Option<At>,
    effects: Vec<Effect>,
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
    stored: Vec<oneshot::Sender<()>>,
    /// Nothing of this may be stored.
    breach: Option<Breach>,
    /// Devices or the queue may look different.
    touched: bool,
}

impl Turn {
    /// `counted` is what the store says of the usage.
    pub(crate) fn new(
        books: Books,
        store: Arc<dyn Store>,
        view: Arc<View>,
        counted: Option<At>,
        at: At,
    ) -> Self {
        let mut turn = Self {
            ledger: Ledger::of(&books),
            books,
            store,
            view,
            counted,
            reviewed: at.boot,
            changes_at: None,
            reasons_rest: at.boot,
            reasons_stale: false,
        };
        turn.look_ahead(at);
        turn
    }

    pub(crate) fn books(&self) -> &Books {
        &self.books
    }

    /// The first turn of a life: durable together with the policy that the rows are decided by from here on.
    pub(crate) fn open(&mut self, at: At, opening: Opening) -> Result<Vec<Effect>, Fatal> {
        let mut work = Work {
            boot_id: Some(opening.boot_id),
            settings: opening.settings,
            policy: Some(self.live_policy()),
            touched: true,
            ..Work::default()
        };
        for command in opening.commands {
            self.apply(&mut work, at, command);
        }
        self.look_ahead(at);
        // Also because the time of another boot means nothing in this one.
        self.count_held(&mut work, at);
        self.settle(work, at)
    }

    /// The last turn of a life that ends in order.
    pub(crate) fn close(&mut self, at: At, why: &str) -> Result<(), Fatal> {
        let mut work = Work::default();
        self.apply(&mut work, at, Command::Note(farewell(why, &self.books)));
        self.settle(work, at).map(drop)
    }

    /// Applies a batch at one moment and answers it. The effects are to be started now.
    ///
    /// # Errors
    /// The store failed, or the books did; nothing was answered or published.
    pub(crate) fn run(&mut self, at: At, mut batch: inbox::Batch) -> Result<Vec<Effect>, Fatal> {
        let mut work = Work::default();
        if is_planted(Canary::BatchReordering) {
            mem::swap(&mut batch.control, &mut batch.acquire);
        }
        for message in batch.control {
            self.take(&mut work, at, message);
        }
        if self.is_due(at) {
            self.reviewed = at.boot;
            self.look_ahead(at);
            // Places and reasons move by time alone.
            work.touched = true;
            self.apply(&mut work, at, Command::Expire);
        }
        for message in batch.acquire {
            self.take(&mut work, at, message);
        }
        if is_planted(Canary::AnswerBeforeCommit) {
            work.answer();
        }
        if self.is_another_hour(at) {
            self.count_held(&mut work, at);
        }
        self.settle(work, at)
    }

    /// Makes `work` durable, then lets the world see it.
    fn settle(&mut self, mut work: Work, at: At) -> Result<Vec<Effect>, Fatal> {
        if let Some(breach) = work.breach.take() {
            return Err(breach.into());
        }
        let view = self.view.clone();
        let mut counted = view.unsettle();
        self.commit(&mut work)?;
        *counted = self.counted;
        Ok(self.release(work, at))
    }

    fn is_another_hour(&self, at: At) -> bool {
        let counted = self.counted.map(|counted| Hour::of(counted.wall));
        counted != Some(Hour::of(at.wall))
    }

    /// Counts what everybody holds until now, so that an end has little to count.
    fn count_held(&mut self, work: &mut Work, at: At) {
        let basis = self.usage_basis();
        for lease in self.books.leases() {
            work.usage.count_held(lease, at, &basis);
        }
        self.counted = Some(at);
        work.usage_counted = self.counted;
    }

    /// When the loop has something to do although nobody says anything.
    pub(crate) fn wake_at(&self) -> BootMs {
        let review = self.reviewed + REVIEW_MS;
        let publish = self.reasons_stale.then_some(self.reasons_rest);
        let wakes = [
            self.books.next_deadline(),
            self.changes_at,
            Some(review),
            publish,
        ];
        wakes.into_iter().flatten().min().unwrap_or(review)
    }

    fn is_due(&self, at: At) -> bool {
        let deadline = self.books.next_deadline().is_some_and(|due| due <= at.boot);
        let changes = self.changes_at.is_some_and(|changes| changes <= at.boot);
        deadline || changes || self.reviewed + REVIEW_MS <= at.boot
    }

    /// The civil clock may be set meanwhile, so this is asked again with every review.
    fn look_ahead(&mut self, at: At) {
        let next = self.books.policy().rules.next_change(at.wall);
        self.changes_at = next.map(|next| at.boot + Ms(next.0.saturating_sub(at.wall.0).max(1)));
    }

    fn take(&mut self, work: &mut Work, at: At, message: Message) {
        match message {
            Message::Apply(command, reply) => {
                let answer = self.apply(work, at, command);
                work.answers.extend(reply.map(|reply| (reply, answer)));
            }
            Message::Switch(reload, reply) => {
                let answer = self.switch(work, at, *reload);
                work.answers.push((reply, answer));
            }
            Message::Settings(settings, done) => {
                work.settings = Some(settings);
                work.stored.push(done);
            }
        }
    }

    fn apply(&mut self, work: &mut Work, at: At, command: Command) -> Answer {
        let volatile = matches!(command, Command::Inventory(_) | Command::Telemetry(_));
        let before = self.books.counters().revision;
        let emergency = matches!(command, Command::Emergency(_));
        let outcome = self.books.apply(at, command);
        if emergency {
            reach(FailPoint::EmergencyApplied);
        }
        work.touched |= volatile || self.books.counters().revision != before;
        self.collect(work, at, outcome)
    }

    /// Everything of a switch says which reload it belongs to, and what led to it goes before it.
    fn switch(&mut self, work: &mut Work, at: At, reload: Reload) -> Answer {
        let command = Command::SetPolicy(Box::new(reload.switch));
        let mut outcome = self.books.apply(at, command);
        let switched = matches!(outcome.answer, Answer::Policy(Ok(Some(_))));
        if switched {
            for event in &mut outcome.events {
                event.text = format!("reload {}: {}", reload.id, event.text);
            }
            outcome.events.splice(0..0, reload.notes);
            work.settings = Some(reload.settings);
            work.touched = true;
            self.look_ahead(at);
            reach(FailPoint::ReloadSwitched);
        }
        self.collect(work, at, outcome)
    }

    fn collect(&mut self, work: &mut Work, at: At, outcome: Outcome) -> Answer {
        let Outcome {
            answer,
            changes,
            events,
            effects,
        } = outcome;
        self.account(work, &changes.leases);
        work.effects.extend(effects);
        work.add(changes, self.books.counters().generation);
        self.note(work, at, events);
        answer
    }

    /// Enters what changed in the ledger and in the usage.
    fn account(&mut self, work: &mut Work, leases: &[Lease]) {
        let before: Vec<_> = leases
            .iter()
            .map(|lease| self.before(work, lease.id))
            .collect();
        let before = before.iter().map(Option::as_deref);
        let changes: Vec<_> = before.zip(leases).collect();
        if let Err(breach) = self.ledger.enter(&changes, &self.books) {
            work.breach.get_or_insert(breach);
        }
        // What ended is counted in the commit that ends it, so that it is counted once, whatever happens.
        let basis = self.usage_basis();
        for (before, lease) in changes {
            if lease.end_reason().is_some() {
                work.usage.count_end(before, lease, &basis);
            }
        }
    }

    /// A lease as it was before the command that was just applied.
    fn before(&self, work: &Work, id: LeaseId) -> Option<Arc<Lease>> {
        let earlier = work.leases.get(&id).cloned();
        earlier.or_else(|| self.view.find(id))
    }

    fn usage_basis(&self) -> UsageBasis<'_> {
        UsageBasis {
            counted: self.counted,
            same_boot: true,
            policy: Some(self.books.policy()),
        }
    }

    fn note(&self, work: &mut Work, at: At, events: Vec<Event>) {
        let counters = self.books.counters();
        for event in events {
            let (user, also_on) = self.holder_of(work, &event);
            let last = work.events.last().map(|event| event.position);
            let n = match last {
                Some(last) if last.revision == counters.revision => last.n + 1,
                _ => 0,
            };
            work.events.push(StoredEvent {
                position: EventPosition {
                    revision: counters.revision,
                    n,
                },
                wall: at.wall,
                generation: counters.generation,
                event,
                user,
                also_on,
            });
        }
    }

    /// Whose lease `event` is about, and what that holds on other devices than the event names.
    fn holder_of(&self, work: &Work, event: &Event) -> (Option<String>, Vec<DeviceKey>) {
        let changed = |id| work.leases.get(&id).map(AsRef::as_ref);
        let lease = event
            .lease
            .and_then(|id| changed(id).or_else(|| self.books.lease(id)));
        let Some(lease) = lease else {
            return (None, Vec::new());
        };
        let parts = lease
            .grant()
            .into_iter()
            .flat_map(|grant| &grant.allocations);
        let devices = parts.map(|part| &part.device);
        let others = devices.filter(|device| Some(*device) != event.device.as_ref());
        (
            Some(lease.request.holder.user.clone()),
            others.cloned().collect(),
        )
    }

    fn live_policy(&self) -> LastGood {
        LastGood {
            generation: self.books.counters().generation,
            source: self.books.policy().source.clone(),
        }
    }

    fn commit(&self, work: &mut Work) -> Result<(), Fatal> {
        if !work.has_rows() {
            return Ok(());
        }
        let durable = work.leases.values().filter(|lease| lease.is_durable());
        let cordons = work.cordons.iter();
        let batch = Batch {
            boot_id: work.boot_id.take(),
            leases: durable.map(AsRef::as_ref).collect(),
            pruned: work.pruned.clone(),
            cordons: cordons
                .map(|(key, cordon)| (key.clone(), cordon.clone()))
                .collect(),
            policy: work.policy.take(),
            settings: work.settings.take(),
            events: work.events.clone(),
            usage: std::mem::take(&mut work.usage).into_rows(),
            usage_counted: work.usage_counted,
            ..Batch::new(self.books.counters())
        };
        reach(FailPoint::BeforeCommit);
        self.store.commit(&batch)?;
        reach(FailPoint::AfterCommit);
        Ok(())
    }

    /// Lets everybody see what is durable: readers first, then those who asked.
    fn release(&mut self, mut work: Work, at: At) -> Vec<Effect> {
        let leases: Vec<Arc<Lease>> = mem::take(&mut work.leases).into_values().collect();
        let rested = at.boot >= self.reasons_rest;
        let renew = work.touched || (self.reasons_stale && rested);
        let snapshot = renew.then(|| self.snapshot(at, rested));
        self.view.publish(&leases, &work.pruned, snapshot);
        self.view.announce(mem::take(&mut work.events));
        reach(FailPoint::BeforeReply);
        work.answer();
        work.effects
    }

    /// The books for readers. The reasons of a long queue rest in between; nothing else does.
    fn snapshot(&mut self, at: At, rested: bool) -> Snapshot {
        let waiting = match rested {
            true => self.books.waiting(at).into(),
            false => self.view.snapshot().waiting.clone(),
        };
        let snapshot = Snapshot::of(&self.books, waiting, at);
        self.reasons_stale = !rested;
        if rested {
            self.reasons_rest = at.boot + rest_after(snapshot.holders_named());
        }
        snapshot
    }
}

fn rest_after(named: usize) -> Ms {
    match named <= NAMED_AT_ONCE_MAX {
        true => Ms(0),
        false => Ms((named / NAMED_PER_MS) as u64),
    }
}

impl Work {
    /// Whether there is anything to store: who waits on a connection, say, is no row.
    fn has_rows(&self) -> bool {
        self.leases.values().any(|lease| lease.is_durable())
            || !self.pruned.is_empty()
            || !self.cordons.is_empty()
            || !self.events.is_empty()
            || self.policy.is_some()
            || self.boot_id.is_some()
            || self.settings.is_some()
            || !self.usage.is_empty()
    }

    /// Tells those who asked.
    fn answer(&mut self) {
        for (reply, answer) in self.answers.drain(..) {
            // Whoever asked may be gone; its guard says so.
            drop(reply.send(answer));
        }
        for done in self.stored.drain(..) {
            let _ = done.send(());
        }
    }

    fn add(&mut self, changes: Changes, generation: u64) {
        for id in &changes.pruned {
            self.leases.remove(id);
        }
        self.pruned.extend(changes.pruned);
        let leases = changes.leases.into_iter();
        self.leases
            .extend(leases.map(|lease| (lease.id, Arc::new(lease))));
        self.cordons.extend(changes.cordons);
        if let Some(source) = changes.policy {
            self.policy = Some(LastGood { generation, source });
        }
    }
}
