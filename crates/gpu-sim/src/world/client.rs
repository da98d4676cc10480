//! Somebody who asks for leases, keeps them, and may vanish at any moment. A client believes what it was
//! told, and complains when it is told otherwise later.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use gpu_broker::{
    AbandonGuard, AcquireError, DeviceCommandError, Follower, Handle, LeaseCommandError,
    Unavailable,
};
use gpu_lease::{
    Amount, BootMs, Command, Denial, Fence, Holder, HolderKind, Idempotency, Lease, LeaseError,
    LeaseId, Ms, Process, Request, Select,
};

use super::machine::{GIB, Machine};
use crate::dice::Dice;

/// What comes of asking the broker.
pub(super) enum Reply {
    Acquire(Result<Lease, AcquireError>),
    Lease(Result<Lease, LeaseCommandError>),
    Emergency(Result<Vec<LeaseId>, Unavailable>),
    Device(Result<(), DeviceCommandError>),
}

impl Reply {
    /// Whether the broker did not take it, or ended before it was answered.
    pub(super) fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Acquire(Err(AcquireError::Unavailable(_)))
                | Self::Lease(Err(LeaseCommandError::Unavailable(_)))
                | Self::Emergency(Err(_))
                | Self::Device(Err(DeviceCommandError::Unavailable(_)))
        )
    }
}

/// A call that is not answered yet.
pub(super) struct Call {
    answer: Pin<Box<dyn Future<Output = Reply>>>,
}

impl Call {
    pub(super) fn acquire(handle: &Handle, id: LeaseId, request: Request) -> Self {
        let handle = handle.clone();
        Self::of(async move { Reply::Acquire(handle.acquire(id, request).await) })
    }

    pub(super) fn lease(handle: &Handle, command: Command) -> Self {
        let handle = handle.clone();
        Self::of(async move { Reply::Lease(handle.lease(command).await) })
    }

    pub(super) fn emergency(handle: &Handle, emergency: gpu_lease::Emergency) -> Self {
        let handle = handle.clone();
        Self::of(async move { Reply::Emergency(handle.emergency(emergency).await) })
    }

    pub(super) fn device(handle: &Handle, command: Command) -> Self {
        let handle = handle.clone();
        Self::of(async move { Reply::Device(handle.device(command).await) })
    }

    /// The message is on its way when this returns.
    fn of(answer: impl Future<Output = Reply> + 'static) -> Self {
        Self {
            answer: Box::pin(answer),
        }
    }

    /// The answer, if it is there.
    pub(super) fn poll(&mut self) -> Option<Reply> {
        poll(self.answer.as_mut())
    }
}

/// What a future says without waiting.
pub(super) fn poll<T>(future: Pin<&mut (dyn Future<Output = T> + '_)>) -> Option<T> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Who follows a lease, and what it heard.
type News = (Follower, Option<Arc<Lease>>);

/// A connection on which a request waits: it hears of the grant, and gives the request up when it goes.
pub(super) struct Line {
    news: Pin<Box<dyn Future<Output = News>>>,
    guard: Option<AbandonGuard>,
}

impl Line {
    /// As the HTTP side does: subscribed before the request is made.
    pub(super) fn open(handle: &Handle, id: LeaseId) -> Self {
        Self {
            news: Box::pin(next(handle.follow(id))),
            guard: Some(handle.abandon_on_drop(id)),
        }
    }

    /// What is new since it was last asked.
    pub(super) fn hear(&mut self) -> Option<Arc<Lease>> {
        let (follower, lease) = poll(self.news.as_mut())?;
        self.news = Box::pin(next(follower));
        lease
    }

    /// The answer was handed over: nobody gives up any more.
    pub(super) fn hang_up_politely(mut self) {
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
    }
}

async fn next(mut follower: Follower) -> News {
    let lease = follower.changed().await;
    (follower, lease)
}

/// Where a client is.
pub(super) enum State {
    Idle,
    /// It asked, and nobody has answered.
    Asking {
        id: LeaseId,
        call: Call,
        line: Line,
    },
    /// It waits, on a line or as a row.
    Waiting {
        id: LeaseId,
        line: Option<Line>,
    },
    /// It holds what it was told.
    Holding {
        id: LeaseId,
    },
}

impl State {
    /// Whether this lease is what the client waits for or holds.
    pub(super) fn is_about(&self, lease: LeaseId) -> bool {
        match self {
            Self::Idle | Self::Asking { .. } => false,
            Self::Waiting { id, .. } | Self::Holding { id } => *id == lease,
        }
    }
}

/// One client.
pub(super) struct Client {
    pub(super) name: &'static str,
    pub(super) state: State,
    /// What it asked for last.
    pub(super) request: Option<Request>,
    /// Calls about what it holds that are not answered yet.
    pub(super) calls: Vec<(Sent, Call)>,
    pub(super) process: Option<Process>,
    /// Keys that it used up.
    pub(super) keys: u64,
    /// It asked, and never heard what came of it.
    pub(super) unsure: bool,
}

/// What a call was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Renew(LeaseId),
    Ready(LeaseId),
    Release(LeaseId),
}

impl Sent {
    /// The lease that it is about.
    pub(super) fn id(self) -> LeaseId {
        match self {
            Self::Renew(id) | Self::Ready(id) | Self::Release(id) => id,
        }
    }
}

impl Client {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            state: State::Idle,
            request: None,
            calls: Vec::new(),
            process: None,
            keys: 0,
            unsure: false,
        }
    }

    /// Whether asking again is safe.
    pub(super) fn has_key(&self) -> bool {
        let request = self.request.as_ref();
        request.is_some_and(|request| request.idempotency.is_some())
    }

    /// Another request of this client.
    pub(super) fn think(&mut self, dice: &mut Dice, machine: &Machine) -> Request {
        self.process = None;
        let kind = match dice.below(10) {
            0..5 if machine.has_room() => {
                let process = machine.start(dice);
                self.process = Some(process.clone());
                HolderKind::Process(process)
            }
            5..6 => HolderKind::Page,
            _ => HolderKind::Remote,
        };
        self.keys += 1;
        let key = dice.chance(60).then(|| Idempotency {
            key: (self.name.to_owned(), self.keys.to_string()),
            body_hash: "a body".to_owned(),
        });
        Request {
            holder: Holder {
                name: self.name.to_owned(),
                kind,
                tenant: dice.maybe(15, &["research".to_owned(), "nobody".to_owned()]),
                tenant_found: false,
                user: dice.pick(&["ann", "bo"]).to_owned(),
                pid: None,
            },
            class: dice.pick(&["standard", "batch", "urgent"]).to_owned(),
            devices: dice.weighted(&[(85, 1), (12, 2), (3, 3)]),
            amount: amount(dice),
            select: Select::default(),
            ttl: Ms(dice.pick(&[1_000, 5_000, 20_000, 60_000])),
            wait: Ms(dice.weighted(&[(30, 0), (30, 5_000), (25, 60_000), (15, 600_000)])),
            max_hold: dice.maybe(15, &[Ms(5_000), Ms(60_000)]),
            drain_grace: dice.maybe(15, &[Ms(0), Ms(10_000)]),
            load: dice.chance(15),
            queue: dice.chance(30),
            idempotency: key,
            labels: Default::default(),
        }
    }
}

fn amount(dice: &mut Dice) -> Amount {
    match dice.chance(20) {
        true => Amount::Exclusive,
        false => Amount::Memory(dice.pick(&[1, 2, 4, 6, 8, 12, 16]) * GIB),
    }
}

/// Whether a refusal says that the broker does not know, or may not; anything else is a bug. `failed`: it
/// ended, so that it cannot answer.
pub(super) fn is_fair(error: &AcquireError, failed: bool) -> bool {
    match error {
        AcquireError::Denied(denial) => !matches!(denial, Denial::IdempotencyMismatch),
        AcquireError::Unavailable(_) => failed,
    }
}

/// Whether a lease that is `now` so can be what this answer says it is: it is over, or not known any more.
pub(super) fn is_over_as(error: LeaseError, now: Option<&Lease>) -> bool {
    match error {
        // Also forgotten, by the same turn.
        LeaseError::Ended(reason) => now.is_none_or(|now| now.end_reason() == Some(reason)),
        LeaseError::NotFound => now.is_none(),
        LeaseError::NotGranted => true,
    }
}

/// What was said of a lease, whatever became of the client that heard it.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// When somebody asked for it, under this id.
    pub(super) asked: BootMs,
    /// Its fence.
    pub(super) fence: Option<Fence>,
    /// The first revision in which it was over.
    pub(super) over: Option<u64>,
}
