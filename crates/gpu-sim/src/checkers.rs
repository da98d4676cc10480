//! What must hold after every command, whatever it was. Each checker looks at the books from outside.

use std::collections::{BTreeMap, BTreeSet};

use gpu_lease::{
    Amount, Answer, At, Books, Command, DeviceKey, DeviceState, EventKind, Fate, Fence, Grant,
    Lease, LeaseId, Outcome, Phase, QueueOrder, Standing, Telemetry, Verdict,
};

/// What the checkers remember between commands: the rows as a store would have them that is told of
/// changes alone.
#[derive(Clone, Debug, Default)]
pub struct Checkers {
    rows: BTreeMap<LeaseId, Lease>,
    /// Waits that ended without a trace.
    dropped: BTreeSet<LeaseId>,
    highest_fence: Option<Fence>,
    revision: u64,
}

type Checked = Result<(), String>;

impl Checkers {
    /// Looks at what `command` did. The error says what does not hold.
    pub fn check(
        &mut self,
        at: At,
        command: &Command,
        outcome: &Outcome,
        books: &Books,
    ) -> Checked {
        reload_touches_only_its_plan(&self.rows, outcome)?;
        refusal_leaves_no_trace(command, outcome)?;
        let mut granted = Vec::new();
        for lease in &outcome.changes.leases {
            if self.follow(lease, outcome, books)? {
                granted.push(lease);
            }
        }
        for id in &outcome.changes.pruned {
            let row = self.rows.remove(id);
            let over = row.as_ref().is_some_and(|row| row.end_reason().is_some());
            require(over, || format!("{id} is pruned, but is {row:?}"))?;
        }
        self.fences_rise(&granted, books)?;
        self.revision_counts(outcome, books)?;
        self.changes_are_complete(books)?;
        for lease in granted {
            grant_is_sound(at, lease, books)?;
            quota_is_kept(lease, books)?;
        }
        for state in books.devices() {
            device_adds_up(state, books)?;
        }
        if matches!(command, Command::Expire) {
            let due = books.next_deadline();
            let later = due.is_none_or(|due| due > at.boot);
            require(later, || format!("{due:?} is due after time was told"))?;
        }
        if queue_was_served(command, &outcome.answer) {
            head_is_served(at, books)?;
        }
        Ok(())
    }

    /// The broker died: what is no row is gone.
    pub fn restart(&mut self) {
        self.rows.retain(|_, lease| lease.is_durable());
    }

    /// The rows as a store has them.
    pub fn rows(&self) -> impl Iterator<Item = &Lease> {
        self.rows.values()
    }

    /// Takes one change; true if it is a grant.
    fn follow(&mut self, lease: &Lease, outcome: &Outcome, books: &Books) -> Result<bool, String> {
        let id = lease.id;
        require(!self.dropped.contains(&id), || {
            format!("{id} is back: {lease:?}")
        })?;
        let before = self.rows.remove(&id);
        life_goes_one_way(before.as_ref(), lease)?;
        events_tell(before.as_ref(), lease, outcome)?;
        let was_granted = before.as_ref().is_some_and(|lease| lease.grant().is_some());
        let revision = books.counters().revision;
        require(lease.revision == revision, || {
            format!(
                "{id} changed in revision {revision} and says {}",
                lease.revision
            )
        })?;
        match matches!(lease.phase, Phase::Ended(_)) && !lease.is_durable() {
            true => drop(self.dropped.insert(id)),
            false => drop(self.rows.insert(id, lease.clone())),
        }
        Ok(lease.held().is_some() && !was_granted)
    }

    fn fences_rise(&mut self, granted: &[&Lease], books: &Books) -> Checked {
        let mut fences: Vec<Fence> = granted
            .iter()
            .filter_map(|l| Some(l.held()?.fence))
            .collect();
        fences.sort();
        for fence in fences {
            let rises = self.highest_fence.is_none_or(|highest| highest < fence);
            require(rises, || format!("fence {fence} was given before"))?;
            self.highest_fence = Some(fence);
        }
        let next = books.counters().next_fence;
        let rises = self.highest_fence.is_none_or(|highest| highest < next);
        require(rises, || format!("fence {next} would be given again"))
    }

    fn revision_counts(&mut self, outcome: &Outcome, books: &Books) -> Checked {
        let revision = books.counters().revision;
        let rises = revision == self.revision || revision == self.revision + 1;
        require(rises, || {
            format!("revision {revision} after {}", self.revision)
        })?;
        let silent = outcome.changes.leases.is_empty()
            && outcome.changes.pruned.is_empty()
            && outcome.changes.cordons.is_empty()
            && outcome.changes.policy.is_none()
            && outcome.events.is_empty();
        require(silent == (revision == self.revision), || {
            format!(
                "revision {revision} after {} does not fit {outcome:?}",
                self.revision
            )
        })?;
        self.revision = revision;
        Ok(())
    }

    /// Whoever hears of every change knows every lease.
    fn changes_are_complete(&self, books: &Books) -> Checked {
        let known = self.rows.values().map(|lease| (lease.id, lease.revision));
        let there = books.leases().map(|lease| (lease.id, lease.revision));
        require(known.eq(there), || {
            let known: Vec<_> = self.rows.keys().collect();
            let there: Vec<_> = books.leases().map(|lease| lease.id).collect();
            format!("changes tell of {known:?}, the books know {there:?}")
        })
    }
}

/// Waiting, held, reclaiming, ended: never back, and an end keeps its reason.
fn life_goes_one_way(before: Option<&Lease>, after: &Lease) -> Checked {
    let same_grant = |a: &Grant, b: &Grant| {
        (a.fence, a.at, a.generation, &a.allocations)
            == (b.fence, b.at, b.generation, &b.allocations)
    };
    let reason = after.end_reason();
    let fine = match (before.map(|lease| &lease.phase), &after.phase) {
        (None, Phase::Reclaiming(..)) => false,
        (None, Phase::Ended(ending)) => ending.grant.is_none(),
        (None, _) => true,
        (Some(Phase::Waiting(a)), Phase::Waiting(b)) => a.seq == b.seq && a.until == b.until,
        (Some(Phase::Waiting(_)), Phase::Ended(ending)) => ending.grant.is_none(),
        (Some(Phase::Waiting(_)), Phase::Held(_)) => true,
        (Some(Phase::Held(a)), Phase::Held(b) | Phase::Reclaiming(b, _)) => same_grant(a, b),
        (Some(Phase::Held(a)), Phase::Ended(ending)) => {
            ending.grant.as_ref().is_some_and(|b| same_grant(a, b))
        }
        (Some(Phase::Reclaiming(a, was)), Phase::Reclaiming(b, is)) => {
            same_grant(a, b) && was.reason == is.reason && was.attempt <= is.attempt
        }
        (Some(Phase::Reclaiming(a, was)), Phase::Ended(ending)) => {
            ending.grant.as_ref().is_some_and(|b| same_grant(a, b)) && reason == Some(was.reason)
        }
        (Some(Phase::Ended(a)), Phase::Ended(b)) => (a.reason, &a.grant) == (b.reason, &b.grant),
        (Some(_), _) => false,
    };
    require(fine, || format!("from {before:?} to {after:?}"))
}

fn events_tell(before: Option<&Lease>, after: &Lease, outcome: &Outcome) -> Checked {
    let rank = |lease: &Lease| match lease.phase {
        Phase::Waiting(_) => 0,
        Phase::Held(_) => 1,
        Phase::Reclaiming(..) => 2,
        Phase::Ended(_) => 3,
    };
    let before = before.map(rank);
    let moved = before != Some(rank(after));
    let expected = match after.phase {
        Phase::Waiting(_) => EventKind::LeaseWaiting,
        Phase::Held(_) => EventKind::LeaseGranted,
        Phase::Reclaiming(..) => EventKind::LeaseReclaiming,
        Phase::Ended(_) => EventKind::LeaseEnded,
    };
    let mine = outcome
        .events
        .iter()
        .filter(|event| event.lease == Some(after.id));
    let told = mine.filter(|event| event.kind == expected).count();
    require(!moved || told == 1, || {
        format!("{} moved and {told} events of {expected:?} tell", after.id)
    })
}

/// All devices or none, each of them one that may be granted, and no more of it than there is.
fn grant_is_sound(at: At, lease: &Lease, books: &Books) -> Checked {
    let Some(grant) = lease.held() else {
        return Ok(());
    };
    let devices: BTreeSet<&DeviceKey> = grant.allocations.iter().map(|part| &part.device).collect();
    let whole =
        devices.len() == lease.request.devices as usize && devices.len() == grant.allocations.len();
    require(whole, || format!("not all devices: {lease:?}"))?;
    for part in &grant.allocations {
        let state = books
            .devices()
            .find(|state| state.device.key == part.device);
        let state = state.ok_or_else(|| format!("no such device: {part:?}"))?;
        let open = state.device.leasable
            && state.lost_since.is_none()
            && state.cordoned().is_none()
            && is_selected(state, lease, books)
            && (state.device.telemetry == Telemetry::Unsupported || is_fresh(at, state));
        require(open, || format!("{state:?} took {lease:?}"))?;
        let fits = state.usage.granted <= state.grantable();
        let alone = part.exclusive == (lease.request.amount == Amount::Exclusive);
        let charged = state.usage.charged.saturating_add(state.usage.foreign);
        let left = part.exclusive || charged <= state.grantable();
        require(fits && alone && left, || {
            format!("{state:?} has no room for {lease:?}")
        })?;
    }
    Ok(())
}

fn is_selected(state: &DeviceState, lease: &Lease, books: &Books) -> bool {
    let select = &lease.request.select;
    let rules = &books.policy().rules;
    let labels = &state.settings.labels;
    let mut filters = select.filters.iter();
    select.names(&state.device.key.id)
        && filters.all(|filter| rules.selects(filter, &state.device, labels))
}

/// A tenant that is granted something is within its quota afterwards.
fn quota_is_kept(lease: &Lease, books: &Books) -> Checked {
    let policy = books.policy();
    let member = |lease: &Lease| match policy.tenants.is_empty() {
        true => None,
        false => policy.rules.tenant(&lease.request).ok().flatten(),
    };
    let Some(place) = member(lease) else {
        return Ok(());
    };
    let tenant = &policy.tenants[place];
    let user = |lease: &Lease| tenant.per_user.then(|| lease.request.holder.user.clone());
    let mine = books
        .leases()
        .filter(|other| member(other) == Some(place) && user(other) == user(lease));
    let grants: Vec<&Grant> = mine.filter_map(Lease::occupying).collect();
    let devices: usize = grants.iter().map(|grant| grant.allocations.len()).sum();
    let memory: u64 = grants.iter().map(|grant| grant.memory()).sum();
    let kept = tenant
        .max_devices
        .is_none_or(|most| devices <= most as usize)
        && tenant
            .max_leases
            .is_none_or(|most| grants.len() <= most as usize)
        && tenant.max_memory.is_none_or(|most| memory <= most);
    require(kept, || format!("{tenant:?} is exceeded by {lease:?}"))
}

fn is_fresh(at: At, state: &DeviceState) -> bool {
    state.reading.as_ref().is_some_and(|reading| {
        let late_enough = state.read_after.is_none_or(|after| reading.taken > after);
        reading.taken.0 + 3_000 >= at.boot.0 && late_enough
    })
}

/// Who is there is who holds something there; one who is alone is alone; the formula holds.
fn device_adds_up(state: &DeviceState, books: &Books) -> Checked {
    let key = &state.device.key;
    let mut occupants = BTreeSet::new();
    let (mut charged, mut accounted, mut alone) = (0, 0, false);
    for lease in books.leases() {
        let Some(part) = lease.occupying().and_then(|grant| grant.on(key)) else {
            continue;
        };
        let observed = state.observed(lease.id);
        charged += part.memory.max(observed.unwrap_or(0));
        accounted += observed.unwrap_or(part.memory);
        alone |= part.exclusive;
        occupants.insert(lease.id);
    }
    require(occupants == state.occupants, || {
        format!(
            "{key} is held by {occupants:?}, and says {:?}",
            state.occupants
        )
    })?;
    require(!alone || occupants.len() == 1, || {
        format!("{key} is exclusive and held by {occupants:?}")
    })?;
    let used = state
        .reading
        .as_ref()
        .map_or(0, |reading| reading.memory_used);
    let foreign = used.saturating_sub(accounted);
    let free = state
        .grantable()
        .saturating_sub(charged)
        .saturating_sub(foreign);
    require(free == state.free(), || {
        format!("{key} has {free} free, and says {}", state.free())
    })
}

/// A refused request and a replay change nothing, so nobody is served either.
fn queue_was_served(command: &Command, answer: &Answer) -> bool {
    match (command, answer) {
        (Command::Acquire { id, .. }, Answer::Acquire(Ok(lease))) => lease.id == *id,
        (Command::Acquire { .. }, _) => false,
        _ => true,
    }
}

/// The first waiter that only devices keep waiting does not fit.
pub(crate) fn head_is_served(at: At, books: &Books) -> Checked {
    let policy = books.policy();
    let asks_more = policy.queue.order == QueueOrder::FairShare
        || policy.rules.reads_standing()
        || !policy.tenants.is_empty();
    if asks_more {
        // Only the reference knows who is the head then.
        return Ok(());
    }
    let rank = |lease: &&Lease| {
        let waited = (at.boot - lease.created.boot).0;
        let aged = lease.priority + waited.checked_div(policy.queue.aging.0).unwrap_or(0) as i64;
        let seq = lease.waiting().map(|wait| wait.seq);
        match policy.queue.order {
            QueueOrder::Fifo => (0, seq),
            QueueOrder::FairShare | QueueOrder::Priority => (-aged, seq),
        }
    };
    let allowed = |lease: &&Lease| {
        policy.classes.contains_key(&lease.request.class)
            && policy
                .rules
                .admit(&lease.request, &Standing::default(), at.wall)
                == Verdict::Allow
    };
    let waiters = books.leases().filter(|lease| lease.waiting().is_some());
    let Some(head) = waiters.filter(allowed).min_by_key(rank) else {
        return Ok(());
    };
    let room = books
        .devices()
        .filter(|state| has_room(at, state, head, books));
    let served = room.count() < head.request.devices as usize;
    require(served, || format!("there is room for {head:?}"))
}

fn has_room(at: At, state: &DeviceState, lease: &Lease, books: &Books) -> bool {
    let request = &lease.request;
    let open = state.device.leasable
        && state.lost_since.is_none()
        && state.cordoned().is_none()
        && is_selected(state, lease, books)
        && (state.device.telemetry == Telemetry::Unsupported || is_fresh(at, state));
    let slot = !request.load || state.usage.loading < state.settings.load_slots;
    let room = match request.amount {
        Amount::Memory(bytes) => state.free() >= bytes,
        Amount::Exclusive => {
            state.occupants.is_empty() && state.usage.foreign <= books.policy().foreign_ignore_below
        }
    };
    open && slot && room && !state.usage.exclusive
}

/// A switch changes of what is held only what its plan names, and a kept lease not at all.
fn reload_touches_only_its_plan(before: &BTreeMap<LeaseId, Lease>, outcome: &Outcome) -> Checked {
    let Answer::Policy(Ok(Some(switched))) = &outcome.answer else {
        return Ok(());
    };
    let plan = &switched.plan.held;
    for lease in &outcome.changes.leases {
        // Whose tenant alone was found anew is as it was.
        let was_held = before
            .get(&lease.id)
            .is_some_and(|before| before.held().is_some() && before.phase != lease.phase);
        let planned = plan.iter().find(|fate| fate.id == lease.id);
        let touched = planned.is_some_and(|fate| fate.fate != Fate::Keep || fate.shorten.is_some());
        require(!was_held || touched, || {
            format!("the switch touched {lease:?}, which its plan does not")
        })?;
    }
    Ok(())
}

/// Whoever is refused was never there.
fn refusal_leaves_no_trace(command: &Command, outcome: &Outcome) -> Checked {
    let (Command::Acquire { id, .. }, Answer::Acquire(Err(_))) = (command, &outcome.answer) else {
        return Ok(());
    };
    let told = outcome.events.iter().any(|event| event.lease == Some(*id));
    let changed = outcome.changes.leases.iter().any(|lease| lease.id == *id);
    require(!told && !changed, || {
        format!("{id} was refused and is told of")
    })
}

fn require(holds: bool, what: impl FnOnce() -> String) -> Checked {
    match holds {
        true => Ok(()),
        false => Err(what()),
    }
}
