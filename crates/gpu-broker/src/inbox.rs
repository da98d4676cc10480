//! What waits for the loop, bounded, in three lanes: emergencies are drained before control, and that before
//! requests for leases.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use gpu_lease::{Answer, Command, Event, LeaseId, Switch};
use gpu_store::Settings;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::handle::Unavailable;

/// Renewals, releases, operator verbs and results that may wait. One durable write takes all of them:
/// a heartbeat that is here must not expire because others came before it.
const CONTROL_MAX: usize = 8192;
/// Emergency releases that may wait, in room of their own: however many heartbeats are on their way, an
/// operator gets through, and goes before them.
const EMERGENCY_MAX: usize = 64;
/// Requests for leases that may wait; more are told to come back.
const ACQUIRE_MAX: usize = 4096;
/// Requests are left for the next durable write when this one has so many messages.
const BATCH_MAX: usize = 512;

/// Whoever wakes this much later than it wanted to was not running, and neither was who reads heartbeats.
const ASLEEP: Duration = Duration::from_millis(150);
/// Then what was sent meanwhile is read first, for so long.
const HEARING: Duration = Duration::from_millis(100);

/// One thing for the loop to do.
pub(crate) enum Message {
    /// Apply a command; tell what came of it, if anybody asks.
    Apply(Command, Option<oneshot::Sender<Answer>>),
    /// Switch the policy.
    Switch(Box<Reload>, oneshot::Sender<Answer>),
    /// Store operator settings.
    Settings(Settings, oneshot::Sender<()>),
}

/// The last step of a reload. The policy, its source as last good, its leases, events and settings are one
/// durable write: the source cannot fail to be saved where the policy is live, or be saved where it is not.
pub(crate) struct Reload {
    /// Which one.
    pub(crate) id: u64,
    /// The switch.
    pub(crate) switch: Switch,
    /// What led to it; goes before the events of the switch.
    pub(crate) notes: Vec<Event>,
    /// The operator settings from there on.
    pub(crate) settings: Settings,
}

/// The messages on their way to the loop.
#[derive(Default)]
pub(crate) struct Inbox {
    lanes: Mutex<Lanes>,
    arrived: Condvar,
}

#[derive(Default)]
struct Lanes {
    emergency: VecDeque<Message>,
    control: VecDeque<Message>,
    /// Requests, and who gave one up: behind it, so that it is given up after it was made.
    acquire: VecDeque<Message>,
    closed: bool,
}

impl Inbox {
    /// Taken also where the control lane is full, and applied first.
    pub(crate) fn push_emergency(&self, message: Message) -> Result<(), Unavailable> {
        self.push(message, EMERGENCY_MAX, |lanes| &mut lanes.emergency)
    }

    pub(crate) fn push_control(&self, message: Message) -> Result<(), Unavailable> {
        self.push(message, CONTROL_MAX, |lanes| &mut lanes.control)
    }

    pub(crate) fn push_acquire(&self, message: Message) -> Result<(), Unavailable> {
        self.push(message, ACQUIRE_MAX, |lanes| &mut lanes.acquire)
    }

    /// Always taken: it belongs to a request that was let in, so their number is bounded by that of requests.
    pub(crate) fn push_abandoned(&self, id: LeaseId) {
        let message = Message::Apply(Command::Abandon { id }, None);
        // Nobody serves the queue of a loop that has ended.
        let _ = self.push(message, usize::MAX, |lanes| &mut lanes.acquire);
    }

    /// Whether any of the messages is to be answered.
    pub(crate) fn is_awaited(&self) -> bool {
        let lanes = self.lanes.lock();
        let first = lanes.emergency.iter().chain(&lanes.control);
        let mut messages = first.chain(&lanes.acquire);
        messages.any(|message| !matches!(message, Message::Apply(_, None)))
    }

    /// Takes no more messages and wakes the loop for those that are here.
    pub(crate) fn close(&self) {
        self.lanes.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Waits for messages, at most for `patience`; control first. `None` once it is closed and empty.
    pub(crate) fn take(&self, patience: Duration) -> Option<Batch> {
        let deadline = Instant::now() + patience;
        let mut lanes = self.lanes.lock();
        while lanes.is_empty() && !lanes.closed {
            if self.arrived.wait_until(&mut lanes, deadline).timed_out() {
                break;
            }
        }
        if lanes.closed && lanes.is_empty() {
            return None;
        }
        if !lanes.closed && Instant::now().saturating_duration_since(deadline) > ASLEEP {
            MutexGuard::unlocked(&mut lanes, || thread::sleep(HEARING));
        }
        Some(lanes.batch())
    }

    fn push(
        &self,
        message: Message,
        limit: usize,
        lane: impl FnOnce(&mut Lanes) -> &mut VecDeque<Message>,
    ) -> Result<(), Unavailable> {
        let mut lanes = self.lanes.lock();
        // A message that nobody will take would never be answered.
        if lanes.closed {
            return Err(Unavailable::Stopping);
        }
        let lane = lane(&mut lanes);
        if lane.len() >= limit {
            return Err(Unavailable::Overloaded);
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
        self.emergency.is_empty() && self.control.is_empty() && self.acquire.is_empty()
    }

    fn batch(&mut self) -> Batch {
        let first = self.emergency.drain(..);
        let control: Vec<Message> = first.chain(self.control.drain(..)).collect();
        let room = BATCH_MAX.saturating_sub(control.len());
        let requests = self.acquire.len().min(room);
        Batch {
            control,
            acquire: self.acquire.drain(..requests).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Message {
        let (reply, _) = oneshot::channel();
        Message::Settings(Settings::default(), reply)
    }

    #[test]
    fn emergencies_go_first_are_awaited_and_take_room_of_requests() {
        let inbox = Inbox::default();
        inbox.push_emergency(asked()).expect("there is room");
        assert!(inbox.is_awaited());
        for _ in 0..BATCH_MAX {
            inbox.push_acquire(asked()).expect("there is room");
        }
        let batch = inbox.take(Duration::ZERO).expect("it is open");
        assert_eq!(
            (batch.control.len(), batch.acquire.len()),
            (1, BATCH_MAX - 1)
        );
        let batch = inbox.take(Duration::ZERO).expect("it is open");
        assert_eq!((batch.control.len(), batch.acquire.len()), (0, 1));
    }
}
