//! Waiting on a connection for a grant: every way out of it, and none that leaves a lease behind.

use std::sync::Arc;
use std::time::Duration;

use gpu_api::{ErrorCode, Problem, Waiting};
use gpu_broker::{AbandonGuard, Follower};
use gpu_lease::{EndReason, Idempotency, Lease, LeaseId, Request};
use tokio::time::{MissedTickBehavior, interval};

use crate::app::Bridge;
use crate::convert::{acquire_refused, over, unavailable};
use crate::extract::MaybeLine;

/// A waiter's reason is looked at this often, so that a wait that ends in vain can say why.
const REASON_EVERY_MS: u64 = 1000;
/// A replay whose first request is given up meanwhile is asked again at most this often.
const REPLAYS_MAX: usize = 3;

/// A lease with what gives it up if nobody takes the answer.
pub(super) struct Settled {
    pub(super) lease: Lease,
    pub(super) guard: Option<AbandonGuard>,
}

/// Asks for a lease and waits, if the request waits on its connection, until there is something to answer:
/// a grant, or a place in the queue.
///
/// # Errors
/// The request is refused, its wait is over, the broker stops, or the client is gone.
pub(super) async fn settle(
    bridge: &Bridge,
    line: &MaybeLine,
    request: &Request,
) -> Result<Settled, Problem> {
    for _ in 0..REPLAYS_MAX {
        if let Some(settled) = ask(bridge, line, request).await? {
            return Ok(settled);
        }
    }
    Err(unavailable(gpu_broker::Unavailable::Overloaded))
}

/// What the same request became, as far as it waits for nobody.
pub(super) fn replayed(bridge: &Bridge, asked: Option<&Idempotency>) -> Option<Settled> {
    let asked = asked?;
    let is_it = |lease: &Lease| {
        lease.request.idempotency.as_ref() == Some(asked) && !waits_on_its_connection(lease)
    };
    let lease = bridge.handle.find_by(is_it)?;
    Some(Settled {
        lease: Arc::unwrap_or_clone(lease),
        guard: None,
    })
}

/// `None`: this was a replay of a request that its first client has given up.
async fn ask(
    bridge: &Bridge,
    line: &MaybeLine,
    request: &Request,
) -> Result<Option<Settled>, Problem> {
    let handle = &bridge.handle;
    let id = handle.new_lease_id();
    let mut follower = handle.follow(id);
    let guard = handle.abandon_on_drop(id);
    let lease = match bridge.acquire(id, request.clone()).await {
        Ok(lease) => lease,
        Err(error) => {
            guard.disarm();
            return Err(acquire_refused(&error, &bridge.scene()));
        }
    };
    // The lease of an earlier request belongs to the connection that made it, not to this one.
    let guard = match lease.id == id {
        true => Some(guard),
        false => {
            guard.disarm();
            follower = handle.follow(lease.id);
            None
        }
    };
    let replayed = guard.is_none();
    let lease = match (replayed, handle.find(lease.id)) {
        (false, _) => lease,
        (true, Some(now)) => Arc::unwrap_or_clone(now),
        // Given up before anybody followed it here: there is no change left to hear of.
        (true, None) if waits_on_its_connection(&lease) => return Ok(None),
        (true, None) => lease,
    };
    if !waits_on_its_connection(&lease) {
        return Ok(Some(Settled { lease, guard }));
    }
    let _room = bridge.waiting_request()?;
    let (lease, last) = wait(bridge, line, lease.id, &mut follower).await?;
    match lease.end_reason() {
        Some(EndReason::Cancelled) if replayed => Ok(None),
        Some(reason) => Err(over(reason, request.wait, last)),
        None => Ok(Some(Settled { lease, guard })),
    }
}

/// The lease once it waits no more, with the last reason that it waited for.
async fn wait(
    bridge: &Bridge,
    line: &MaybeLine,
    id: LeaseId,
    follower: &mut Follower,
) -> Result<(Lease, Option<Waiting>), Problem> {
    let mut looks = interval(Duration::from_millis(REASON_EVERY_MS));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        tokio::select! {
            biased;
            changed = follower.changed() => {
                let lease = changed.ok_or_else(stopping)?;
                if !waits_on_its_connection(&lease) {
                    return Ok((Arc::unwrap_or_clone(lease), last));
                }
            }
            () = bridge.handle.stopped() => return Err(stopping()),
            () = line.hung_up() => return Err(Problem::new(ErrorCode::RequestTimeout, "the client is gone")),
            _ = looks.tick() => last = bridge.scene().waiting(id).or(last),
        }
    }
}

fn waits_on_its_connection(lease: &Lease) -> bool {
    lease.waiting().is_some() && !lease.request.queue
}

fn stopping() -> Problem {
    unavailable(gpu_broker::Unavailable::Stopping)
}
