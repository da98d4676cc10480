//! What waits for the loop, bounded, in two lanes: control is drained before requests for leases.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gpu_lease::{Answer, Command, LeaseId};
use gpu_store::Settings;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// Renewals, releases, operator verbs and results that may wait.
pub(crate) const CONTROL_MAX: usize = 8192;
/// Requests for leases that may wait; more are told to come back.
pub(crate) const ACQUIRE_MAX: usize = 4096;
/// Messages that one durable write may carry.
pub(crate) const BATCH_MAX: usize = 512;

/// One thing for the loop to do.
pub(crate) enum Message {
    /// Apply a command; tell what came of it, if anybody asks.
    Apply(Command, Option<oneshot::Sender<Answer>>),
    /// Store operator settings.
    Settings(Settings, oneshot::Sender<()>),
}

/// The messages on their way to the loop.
#[derive(Default)]
pub(crate) struct Inbox {
    lanes: Mutex<Lanes>,
    arrived: Condvar,
}

#[derive(Default)]
struct Lanes {
    control: VecDeque<Message>,
    acquire: VecDeque<Message>,
    /// Each belongs to a request that was let in before, so their number is bounded by that of requests.
    abandoned: Vec<LeaseId>,
    stopping: bool,
}

/// The lane is full.
#[derive(Debug)]
pub(crate) struct Full;

impl Inbox {
    pub(crate) fn push_control(&self, message: Message) -> Result<(), Full> {
        self.push(message, CONTROL_MAX, |lanes| &mut lanes.control)
    }

    pub(crate) fn push_acquire(&self, message: Message) -> Result<(), Full> {
        self.push(message, ACQUIRE_MAX, |lanes| &mut lanes.acquire)
    }

    pub(crate) fn push_abandoned(&self, id: LeaseId) {
        self.lanes.lock().abandoned.push(id);
        self.arrived.notify_one();
    }

    /// Wakes the loop for the last time.
    pub(crate) fn stop(&self) {
        self.lanes.lock().stopping = true;
        self.arrived.notify_one();
    }

    /// Waits for messages, at most for `patience`; control first. `None` once it was stopped.
    pub(crate) fn take(&self, patience: Duration) -> Option<Batch> {
        let deadline = Instant::now() + patience;
        let mut lanes = self.lanes.lock();
        while lanes.is_empty() && !lanes.stopping {
            if self.arrived.wait_until(&mut lanes, deadline).timed_out() {
                break;
            }
        }
        if lanes.stopping && lanes.is_empty() {
            return None;
        }
        Some(lanes.batch())
    }

    fn push(
        &self,
        message: Message,
        limit: usize,
        lane: impl FnOnce(&mut Lanes) -> &mut VecDeque<Message>,
    ) -> Result<(), Full> {
        let mut lanes = self.lanes.lock();
        let lane = lane(&mut lanes);
        if lane.len() >= limit {
            return Err(Full);
        }
        lane.push_back(message);
        drop(lanes);
        self.arrived.notify_one();
        Ok(())
    }
}

/// The messages of one turn. What has come due is done between the two: a renewal that is here
/// goes before an expiry, and an expiry frees memory for a request.
pub(crate) struct Batch {
    pub(crate) control: Vec<Message>,
    pub(crate) acquire: Vec<Message>,
}

impl Lanes {
    fn is_empty(&self) -> bool {
        self.control.is_empty() && self.acquire.is_empty() && self.abandoned.is_empty()
    }

    fn batch(&mut self) -> Batch {
        let controls = self.control.len().min(BATCH_MAX);
        let mut control: Vec<Message> = self.control.drain(..controls).collect();
        let requests = self.acquire.len().min(BATCH_MAX - controls);
        let mut acquire: Vec<Message> = self.acquire.drain(..requests).collect();
        let abandon = |id| Message::Apply(Command::Abandon { id }, None);
        let abandoned = self.abandoned.drain(..).map(abandon);
        // An abandoned request may be in the very same batch: it is given up after it was made.
        match acquire.is_empty() {
            true => control.extend(abandoned),
            false => acquire.extend(abandoned),
        }
        Batch { control, acquire }
    }
}
