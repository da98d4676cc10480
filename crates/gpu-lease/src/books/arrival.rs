//! How a request comes in: what rules and tenants make of it, and whether it is taken.

use alloc::string::String;
use alloc::vec::Vec;

use super::queue::SETTLE_MS;
use super::{Books, Turn};
use crate::capacity::never_fits;
use crate::command::{Denial, EventKind, Explanation};
use crate::ids::{DeviceKey, LeaseId};
use crate::lease::{Lease, Phase, Wait};
use crate::plan::Refusal;
use crate::policy::{Standing, Verdict};
use crate::request::Request;
use crate::time::{At, Ms, WallMs};

impl Books {
    pub(super) fn acquire(
        &mut self,
        turn: &mut Turn,
        id: LeaseId,
        request: Request,
    ) -> Result<Lease, Denial> {
        if let Some(earlier) = self.replayed(&request)? {
            return Ok(earlier);
        }
        self.count_errors(&request, turn.at);
        let lease = self.arrive(turn.at, id, request);
        self.learn_filters(&lease.request);
        self.refuse_hopeless(&lease, turn.at)?;
        self.refuse_surplus(turn, &lease)?;
        self.put(turn, lease);
        self.serve_queue(turn);
        self.refuse_unserved(turn, id)?;
        let lease = self.leases[&id].clone();
        if lease.waiting().is_some() {
            turn.event(EventKind::LeaseWaiting, &lease, "waits for a grant".into());
        }
        Ok(lease)
    }

    /// The lease that the same caller got for the same key and body.
    fn replayed(&self, request: &Request) -> Result<Option<Lease>, Denial> {
        let Some(idempotency) = &request.idempotency else {
            return Ok(None);
        };
        let Some(lease) = self.keys.get(&idempotency.key).map(|id| &self.leases[id]) else {
            return Ok(None);
        };
        match &lease.request.idempotency {
            Some(first) if first.body_hash == idempotency.body_hash => Ok(Some(lease.clone())),
            _ => Err(Denial::IdempotencyMismatch),
        }
    }

    /// Refuses what no waiting can help.
    fn refuse_hopeless(&self, lease: &Lease, at: At) -> Result<(), Denial> {
        if let Verdict::Deny { rule, reason, .. } = self.verdict(lease, at) {
            return Err(Denial::ByPolicy { rule, reason });
        }
        if let Some(Refusal { rule, reason }) = self.hopeless_quota(lease) {
            return Err(Denial::ByPolicy { rule, reason });
        }
        match self.never_fits(&lease.request) {
            Some(reason) => Err(Denial::NeverFits(reason)),
            None => Ok(()),
        }
    }

    /// Refuses what would have to wait where no more may. It never stands in the queue, so that what
    /// is refused cannot be in anybody's way.
    fn refuse_surplus(&mut self, turn: &mut Turn, lease: &Lease) -> Result<(), Denial> {
        let max_waiting = self.policy.queue.max_waiting;
        if self.queue.len() >= max_waiting {
            // Whoever is served, or has waited long enough, makes room.
            self.serve_queue(turn);
        }
        self.refuse_if_full(lease, turn.at)
    }

    fn refuse_if_full(&self, lease: &Lease, at: At) -> Result<(), Denial> {
        let max_waiting = self.policy.queue.max_waiting;
        match self.queue.len() >= max_waiting && self.would_wait(lease, at) {
            true => Err(Denial::QueueFull { max_waiting }),
            false => Ok(()),
        }
    }

    /// Refuses what the queue neither served nor kept.
    fn refuse_unserved(&self, turn: &mut Turn, id: LeaseId) -> Result<(), Denial> {
        let Some(lease) = turn.take_dropped(id) else {
            return Ok(());
        };
        turn.events.retain(|event| event.lease != Some(id));
        Err(match self.is_recovering() {
            true => Denial::Recovering,
            false => Denial::DoesNotFit(self.why_alone(&lease, turn.at)),
        })
    }

    /// Errors of rules on a new request, unless they would see too little of the books.
    fn count_errors(&self, request: &Request, at: At) {
        if !self.is_recovering() {
            let standing = self.standing_at_arrival(request);
            self.policy.rules.count_errors(request, &standing, at.wall);
        }
    }

    /// The waiter that a request becomes. What rules set, they set here, once; from then on everybody sees
    /// the request as it was made, with its tenant written down.
    fn arrive(&self, at: At, id: LeaseId, mut request: Request) -> Lease {
        self.policy.find_tenant(&mut request);
        let standing = self.standing_at_arrival(&request);
        let sets = self.policy.rules.shape(&request, &standing, at.wall);
        sets.apply(&mut request);
        // What was set may have moved it to another tenant.
        self.policy.find_tenant(&mut request);
        let class = self.policy.classes.get(&request.class);
        let of_class = class.map_or(0, |class| class.priority);
        self.waiter(at, id, request, sets.priority.unwrap_or(of_class))
    }

    fn standing_at_arrival(&self, request: &Request) -> Standing {
        self.standing_of_newcomer(request, &self.policy.membership(request))
    }

    fn waiter(&self, at: At, id: LeaseId, request: Request, priority: i64) -> Lease {
        let seq = self.queue.last_key_value().map_or(0, |(last, _)| last + 1);
        let patience = match request.wait {
            Ms(0) if request.queue => None,
            Ms(0) => Some(at.boot + SETTLE_MS),
            wait => Some(at.boot + wait),
        };
        let wait = Wait {
            seq,
            until: patience,
            renew_by: request.queue.then(|| at.boot + request.ttl),
        };
        Lease {
            id,
            revision: self.counters.revision,
            priority,
            request,
            created: at,
            phase: Phase::Waiting(wait),
        }
    }

    /// Why `request` could not even be served by idle devices, or `None` if it could.
    fn never_fits(&self, request: &Request) -> Option<String> {
        let devices = self.devices.as_ref()?.values();
        let serving = devices.filter(|state| self.may_serve(state, request));
        let mut serving: Vec<u64> = serving.map(|state| state.grantable()).collect();
        serving.sort_unstable();
        never_fits(request, &serving)
    }

    /// What would become of `request` if it came now; `wall` is another civil time for the rules.
    pub(super) fn explain(&self, at: At, request: Request, wall: Option<WallMs>) -> Explanation {
        let at = At {
            wall: wall.unwrap_or(at.wall),
            ..at
        };
        // No broker gives this id away: it draws at random out of as many.
        let id = LeaseId::from_bits(u64::MAX);
        let mut seen = request.clone();
        self.policy.find_tenant(&mut seen);
        let standing = self.standing_at_arrival(&seen);
        let hits = self.policy.rules.hits(&seen, &standing, at.wall);
        let lease = self.arrive(at, id, request);
        Explanation {
            hits,
            tenant: self.membership(&lease).as_ref().clone().ok().flatten(),
            outcome: self.outlook(&lease, at),
            priority: lease.priority,
            request: lease.request,
        }
    }

    fn outlook(&self, lease: &Lease, at: At) -> Result<Vec<DeviceKey>, Denial> {
        self.refuse_hopeless(lease, at)?;
        self.refuse_if_full(lease, at)?;
        if self.is_recovering() {
            return Err(Denial::Recovering);
        }
        self.devices_for(lease, at)
            .map_err(|_cause| Denial::DoesNotFit(self.why_alone(lease, at)))
    }
}
