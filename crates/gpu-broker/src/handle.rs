//! The way to the loop, and to what it published.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use gpu_lease::{
    Answer, At, Command, Denial, Device, Emergency, Event, Explanation, Fence, Lease, LeaseError,
    LeaseId, Planned, Policy, Reading, Request, Switched, Unexpected, UnknownDevice, WallMs, plan,
};
use gpu_store::{
    EventFilter, EventPage, EventPosition, FoundEvents, Hour, ReadError, Settings, Store, StoreId,
    StoredEvent, UsageRow,
};
use thiserror::Error;
use tokio::sync::{broadcast, oneshot, watch};

use crate::attribute::attribute;
use crate::broker::Config;
use crate::clock::Clock;
use crate::inbox::{Inbox, Message, Reload};
use crate::process::Processes;
use crate::usage::{UsageBasis, usage_so_far};
use crate::view::{Occupied, Snapshot, View};

/// How often it is looked whether a full inbox has room again.
const ROOM_EVERY: Duration = Duration::from_millis(10);

/// Asks the broker things and looks at what it published. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) view: Arc<View>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) processes: Arc<dyn Processes>,
    pub(crate) boot_id: String,
    pub(crate) store_id: StoreId,
    pub(crate) stopping: watch::Sender<bool>,
    /// What ends the broker, if it is nobody's wish.
    pub(crate) stopped_by: OnceLock<String>,
}

/// The broker does not take the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unavailable {
    /// As many messages wait as may.
    #[error("too many requests at once")]
    Overloaded,
    /// The devices are not known yet, and what is asked for depends on them.
    #[error("devices are still being discovered")]
    Recovering,
    /// It is shutting down.
    #[error("the broker is shutting down")]
    Stopping,
}

/// A request was not taken.
#[derive(Debug, Error)]
pub enum AcquireError {
    /// By the books.
    #[error(transparent)]
    Denied(Denial),
    /// By the broker.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A command about a lease was not done.
#[derive(Debug, Error)]
pub enum LeaseCommandError {
    /// By the books.
    #[error(transparent)]
    Refused(LeaseError),
    /// By the broker.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A command about a device was not done.
#[derive(Debug, Error)]
pub enum DeviceCommandError {
    /// By the broker.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// By the books.
    #[error(transparent)]
    Unknown(UnknownDevice),
}

impl Shared {
    pub(crate) fn of(config: &Config, view: Arc<View>, store_id: StoreId) -> Self {
        Self {
            inbox: Arc::default(),
            view,
            store: config.store.clone(),
            clock: config.clock.clone(),
            processes: config.processes.clone(),
            boot_id: config.boot_id.clone(),
            store_id,
            stopping: watch::Sender::new(false),
            stopped_by: OnceLock::new(),
        }
    }
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// An id that no lease has.
    pub fn new_lease_id(&self) -> LeaseId {
        loop {
            let id = LeaseId::from_bits(random_bits());
            if self.find(id).is_none() {
                return id;
            }
        }
    }

    /// Asks for a lease, and answers at once: it is held, or it waits.
    ///
    /// # Errors
    /// The request is refused, or the broker does not take it.
    pub async fn acquire(&self, id: LeaseId, request: Request) -> Result<Lease, AcquireError> {
        if self.is_stopping() {
            return Err(Unavailable::Stopping.into());
        }
        let (reply, answer) = oneshot::channel();
        let request = Box::new(request);
        let message = Message::Apply(Command::Acquire { id, request }, Some(reply));
        self.0.inbox.push_acquire(message)?;
        match answer.await.map_err(|_closed| Unavailable::Stopping)? {
            Answer::Acquire(result) => result.map_err(AcquireError::Denied),
            other => unreachable!("a request is answered by {other:?}"),
        }
    }

    /// Does what a command about one lease says: renew, ready, release, drain, revoke.
    ///
    /// # Errors
    /// The books refuse, or the broker does not take it.
    pub async fn lease(&self, command: Command) -> Result<Lease, LeaseCommandError> {
        match self.submit(command).await? {
            Answer::Lease(result) => result.map_err(LeaseCommandError::Refused),
            other => unreachable!("a command about a lease is answered by {other:?}"),
        }
    }

    /// Does what a command about one device says: cordon, uncordon, drain, clear its quarantine.
    ///
    /// # Errors
    /// There is no such device, or the broker does not take it.
    pub async fn device(&self, command: Command) -> Result<(), DeviceCommandError> {
        match self.submit(command).await? {
            Answer::Device(result) => result.map_err(DeviceCommandError::Unknown),
            other => unreachable!("a command about a device is answered by {other:?}"),
        }
    }

    /// What would become of a request if it came now, or at another civil time. Changes nothing. It takes
    /// its turn among the requests: it costs as much as one, and heartbeats do not wait for it.
    ///
    /// # Errors
    /// The broker does not take it.
    pub async fn explain(
        &self,
        request: Request,
        wall: Option<WallMs>,
    ) -> Result<Explanation, Unavailable> {
        let request = Box::new(request);
        let (reply, answer) = oneshot::channel();
        let message = Message::Apply(Command::Explain { request, wall }, Some(reply));
        self.0.inbox.push_acquire(message)?;
        match answer.await.map_err(|_closed| Unavailable::Stopping)? {
            Answer::Explain(explanation) => Ok(*explanation),
            other => unreachable!("an explanation is answered by {other:?}"),
        }
    }

    /// Ends leases at once and says which. There is room for it where there is none for anything else.
    ///
    /// # Errors
    /// The broker does not take it.
    pub async fn emergency(&self, emergency: Emergency) -> Result<Vec<LeaseId>, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Apply(Command::Emergency(emergency), Some(reply));
        self.0.inbox.push_emergency(message)?;
        match answer.await.map_err(|_closed| Unavailable::Stopping)? {
            Answer::Emergency(ended) => Ok(ended),
            other => unreachable!("an emergency is answered by {other:?}"),
        }
    }

    /// Gives the request up when the guard is dropped, unless it was disarmed.
    pub fn abandon_on_drop(&self, id: LeaseId) -> AbandonGuard {
        AbandonGuard {
            inbox: Some(self.0.inbox.clone()),
            id,
        }
    }

    /// Tells the books which devices there are, and waits for room to: nobody says it again.
    pub fn inventory(&self, devices: Vec<Device>) {
        let message = || Message::Apply(Command::Inventory(devices.clone()), None);
        while let Err(Unavailable::Overloaded) = self.0.inbox.push_control(message()) {
            std::thread::sleep(ROOM_EVERY);
        }
    }

    /// Tells the books what was read, each process with the lease that it belongs to.
    pub fn telemetry(&self, mut readings: Vec<Reading>) {
        let leases = self.0.view.page(None, usize::MAX);
        attribute(&mut readings, &leases, &*self.0.processes);
        self.tell(Command::Telemetry(readings));
    }

    /// The time as the loop sees it.
    pub fn now(&self) -> At {
        self.0.clock.now()
    }

    /// One lease as it was last made durable.
    pub fn find(&self, id: LeaseId) -> Option<Arc<Lease>> {
        self.0.view.find(id)
    }

    /// The first `limit` leases whose ids come after `after`.
    pub fn page(&self, after: Option<LeaseId>, limit: usize) -> Vec<Arc<Lease>> {
        self.0.view.page(after, limit)
    }

    /// The first lease that is as `wanted` says. The loop waits meanwhile before it publishes, so nothing slow.
    pub fn find_by(&self, wanted: impl Fn(&Lease) -> bool) -> Option<Arc<Lease>> {
        self.0.view.find_by(wanted)
    }

    /// Devices, queue and policy.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.view.snapshot()
    }

    /// The books and who occupies devices, of one moment.
    pub fn occupied(&self) -> Occupied {
        self.0.view.occupied()
    }

    /// Hears of every change of a lease from now on.
    pub fn follow(&self, id: LeaseId) -> Follower {
        Follower {
            changes: Some(self.0.view.follow(id)),
            view: self.0.view.clone(),
            id,
        }
    }

    /// Names the store; part of every event's id.
    pub fn store_id(&self) -> StoreId {
        self.0.store_id
    }

    /// The events after a position, oldest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn events_after(
        &self,
        after: Option<EventPosition>,
        limit: usize,
    ) -> Result<EventPage, ReadError> {
        self.0.store.events(after, limit)
    }

    /// The events after a position that `filter` takes, oldest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn find_events(
        &self,
        filter: &EventFilter,
        after: Option<EventPosition>,
        limit: usize,
    ) -> Result<FoundEvents, ReadError> {
        let read = |after, limit| self.0.store.events(after, limit);
        filter.find(read, after, limit)
    }

    /// The usage from the hour `from` on: of leases that have ended, then of those that are held, until now.
    /// Both are of one moment, so that none is counted twice or left out, also one that ends meanwhile.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn usage(&self, from: Hour, each: &mut dyn FnMut(UsageRow)) -> Result<(), ReadError> {
        let settled = self.0.view.settled();
        let (counted, now) = (*settled, self.now());
        let (leases, snapshot) = (self.page(None, usize::MAX), self.snapshot());
        let mut settled = Some(settled);
        self.0.store.usage(from, &mut |row| {
            // What is read is of before the first row: the loop need not wait for the others.
            settled = None;
            each(row);
        })?;
        drop(settled);
        let basis = UsageBasis {
            counted,
            // Another boot has ended what was held.
            same_boot: true,
            policy: Some(&snapshot.policy),
        };
        for lease in leases {
            let rows = usage_so_far(&lease, now, &basis).into_iter();
            rows.filter(|row| row.key.hour >= from).for_each(&mut *each);
        }
        Ok(())
    }

    /// Events from now on.
    pub fn live_events(&self) -> broadcast::Receiver<Arc<StoredEvent>> {
        self.0.view.live_events()
    }

    /// Whether no more requests are taken.
    pub fn is_stopping(&self) -> bool {
        *self.0.stopping.borrow()
    }

    /// Waits for the beginning of the shutdown.
    pub async fn stopped(&self) {
        let mut stopping = self.0.stopping.subscribe();
        // The sender lives as long as this handle.
        drop(stopping.wait_for(|stopping| *stopping).await);
    }

    /// Writes something into the audit that happened outside the books.
    pub(crate) fn note(&self, event: Event) {
        self.tell(Command::Note(event));
    }

    /// What `policy` would mean, by the rows as readers see them; the loop does nothing for it.
    pub(crate) fn plan(&self, policy: &Policy) -> Planned {
        // The snapshot first: a row that is newer is planned again by the switch.
        let snapshot = self.snapshot();
        let rows = self.page(None, usize::MAX);
        let concerned = |lease: &&Lease| lease.occupying().is_some() || lease.waiting().is_some();
        let leases: Vec<&Lease> = rows.iter().map(AsRef::as_ref).filter(concerned).collect();
        let (live, devices) = (&snapshot.policy, &snapshot.devices);
        Planned {
            live: live.source.hash.clone(),
            to: policy.source.hash.clone(),
            revision: snapshot.counters.revision,
            plan: plan(live, policy, &leases, devices, self.now()),
        }
    }

    /// Does the last step of a reload, from a thread that may wait. `None`: it is the policy that is live.
    pub(crate) fn switch_blocking(
        &self,
        reload: Reload,
    ) -> Result<Result<Option<Switched>, Unexpected>, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Switch(Box::new(reload), reply);
        self.0.inbox.push_control(message)?;
        match answer
            .blocking_recv()
            .map_err(|_closed| Unavailable::Stopping)?
        {
            Answer::Policy(switched) => Ok(switched),
            other => unreachable!("a policy is answered by {other:?}"),
        }
    }

    /// The grants whose holder registered a process.
    pub(crate) fn grants_with_process(&self) -> Vec<(LeaseId, Fence)> {
        let snapshot = self.snapshot();
        let devices = snapshot.devices.iter();
        let ids: BTreeSet<LeaseId> = devices
            .flat_map(|device| device.occupants.iter().copied())
            .collect();
        let leases = ids.into_iter().filter_map(|id| self.find(id));
        let with_process = leases.filter(|lease| lease.process().is_some());
        with_process
            .filter_map(|lease| Some((lease.id, lease.held()?.fence)))
            .collect()
    }

    /// Whether the process of `lease` is proven gone; in doubt it is not.
    pub(crate) fn is_process_gone(&self, lease: &Lease) -> bool {
        let processes = &self.0.processes;
        lease
            .process()
            .is_some_and(|process| processes.is_gone(process))
    }

    /// Says something that needs no answer, and waits until it is done.
    pub(crate) fn tell_blocking(&self, command: Command) {
        let (reply, done) = oneshot::channel();
        let message = Message::Apply(command, Some(reply));
        if self.0.inbox.push_control(message).is_ok() {
            // A loop that ended has done all that it will.
            drop(done.blocking_recv());
        }
    }

    pub(crate) fn store_settings_blocking(&self, settings: Settings) -> Result<(), Unavailable> {
        let (done, stored) = oneshot::channel();
        let message = Message::Settings(settings, done);
        self.0.inbox.push_control(message)?;
        stored
            .blocking_recv()
            .map_err(|_closed| Unavailable::Stopping)
    }

    async fn submit(&self, command: Command) -> Result<Answer, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Apply(command, Some(reply));
        self.0.inbox.push_control(message)?;
        answer.await.map_err(|_closed| Unavailable::Stopping)
    }

    fn tell(&self, command: Command) {
        if let Err(why) = self.0.inbox.push_control(Message::Apply(command, None)) {
            tracing::warn!("a report from outside is lost: {why}");
        }
    }
}

/// Gives a request up when nobody is left to hear the answer.
pub struct AbandonGuard {
    inbox: Option<Arc<Inbox>>,
    id: LeaseId,
}

impl AbandonGuard {
    /// The answer was handed over.
    pub fn disarm(mut self) {
        self.inbox = None;
    }
}

impl Drop for AbandonGuard {
    fn drop(&mut self) {
        if let Some(inbox) = &self.inbox {
            inbox.push_abandoned(self.id);
        }
    }
}

/// Hears of the changes of one lease.
pub struct Follower {
    changes: Option<watch::Receiver<Option<Arc<Lease>>>>,
    view: Arc<View>,
    id: LeaseId,
}

impl Follower {
    /// The lease after its next change; the last of several if they came fast. `None` once the broker is gone.
    pub async fn changed(&mut self) -> Option<Arc<Lease>> {
        let changes = self.changes.as_mut()?;
        changes.changed().await.ok()?;
        changes.borrow_and_update().clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.changes = None;
        self.view.unfollow(self.id);
    }
}

/// 64 bits that nobody can guess.
pub(crate) fn random_bits() -> u64 {
    getrandom::u64().expect("the kernel has randomness")
}
