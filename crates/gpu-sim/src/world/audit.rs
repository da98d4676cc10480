//! What the history must say of a write: everything that happened to a lease, once, at the revision in which it
//! did, under one generation of the policy.

use gpu_lease::{At, EventKind, Lease, LeaseId, Phase, ReclaimStage};
use gpu_store::{Batch, StoredEvent};

use super::oracle::{new_grant, require};
use super::rows::Rows;

type Checked = Result<(), String>;

/// The events of a write that is made at `at`; `rows` are those before it.
pub(super) fn tells_all(batch: &Batch<'_>, rows: &Rows, at: At) -> Checked {
    in_order(batch, rows, at)?;
    under_one_policy(batch, rows)?;
    for lease in &batch.leases {
        let before = rows.leases.get(&lease.id);
        let mine = batch.events.iter();
        let mine = mine.filter(|stored| stored.event.lease == Some(lease.id));
        let told = Told {
            before,
            after: lease,
            events: mine.collect(),
        };
        told.is_complete()?;
    }
    batch
        .events
        .iter()
        .try_for_each(|stored| is_of_a_change(stored, batch, rows))
}

/// One after the other without a gap: numbers within a revision count from 0, and a revision is told of once.
fn in_order(batch: &Batch<'_>, rows: &Rows, at: At) -> Checked {
    let mut last = rows.counters.map(|counters| (counters.revision, None));
    for stored in &batch.events {
        let (revision, n) = (stored.position.revision, stored.position.n);
        let follows = match last {
            Some((same, Some(before))) if same == revision => n == before + 1,
            Some((earlier, _)) => earlier < revision && n == 0,
            None => n == 0,
        };
        let known = revision <= batch.counters.revision && stored.wall == at.wall;
        require(follows && known, || {
            format!("after {last:?} at {at:?}: {stored:?}")
        })?;
        last = Some((revision, Some(n)));
    }
    Ok(())
}

/// All of a revision is decided by one generation, and another one is told of where it begins.
fn under_one_policy(batch: &Batch<'_>, rows: &Rows) -> Checked {
    let first = rows.counters.map_or(1, |counters| counters.generation);
    let mut live = (0, first);
    for stored in &batch.events {
        let (revision, generation) = (stored.position.revision, stored.generation);
        let same = generation == live.1;
        let next = generation == live.1 + 1 && revision > live.0 && begins(batch, revision);
        require(same || next, || {
            format!("generation {} was live, and then {stored:?}", live.1)
        })?;
        live = (revision, generation);
    }
    let switched = batch.policy.as_ref().map(|policy| policy.generation);
    let now = batch.counters.generation;
    let fine = live.1 == now && switched.map_or(first == now, |switched| switched == now);
    require(fine, || {
        format!(
            "generation {first} was live, {live:?} was told of, {switched:?} is stored, and {now} is counted"
        )
    })
}

fn begins(batch: &Batch<'_>, revision: u64) -> bool {
    let switches = batch.events.iter().filter(|stored| {
        stored.position.revision == revision && stored.event.kind == EventKind::PolicySwitched
    });
    switches.count() == 1
}

/// Nothing is told of a row that does not change, and whose lease it is told of is who holds it.
fn is_of_a_change(stored: &StoredEvent, batch: &Batch<'_>, rows: &Rows) -> Checked {
    let Some(id) = stored.event.lease else {
        return Ok(());
    };
    let fine = match find(batch, id) {
        Some(lease) => stored.user.as_ref() == Some(&lease.request.holder.user),
        None => !rows.leases.contains_key(&id),
    };
    require(fine, || {
        format!("nothing became of what is told: {stored:?}")
    })
}

fn find<'a>(batch: &Batch<'a>, id: LeaseId) -> Option<&'a Lease> {
    let mut leases = batch.leases.iter();
    leases.find(|lease| lease.id == id).copied()
}

/// A lease with what is told of it.
struct Told<'a> {
    before: Option<&'a Lease>,
    after: &'a Lease,
    events: Vec<&'a StoredEvent>,
}

impl Told<'_> {
    fn is_complete(&self) -> Checked {
        let granted = usize::from(new_grant(self.before, self.after).is_some());
        let over = usize::from(is_over(self.after) && !self.before.is_some_and(is_over));
        let fine = self.count(EventKind::LeaseGranted) == granted
            && self.count(EventKind::LeaseEnded) == over
            && self.waits_once()
            && self.is_stamped()
            && self.reclaiming_is_told()
            && self.holding_is_told();
        require(fine, || {
            let told: Vec<_> = self
                .events
                .iter()
                .map(|stored| (stored.position, stored.event.kind))
                .collect();
            format!(
                "{told:?} tell of {:?}\n  that was {:?}",
                self.after, self.before
            )
        })
    }

    fn count(&self, kind: EventKind) -> usize {
        let events = self.events.iter();
        events.filter(|stored| stored.event.kind == kind).count()
    }

    fn waits_once(&self) -> bool {
        let told = self.count(EventKind::LeaseWaiting);
        match (self.before, &self.after.phase) {
            (Some(_), _) => told == 0,
            (None, Phase::Waiting(_)) => told == 1,
            (None, _) => told <= 1,
        }
    }

    /// An end is told of at the revision that the row has from then on; nothing is told of later ones.
    fn is_stamped(&self) -> bool {
        self.events.iter().all(|stored| {
            let (told, row) = (stored.position.revision, self.after.revision);
            told <= row && (stored.event.kind != EventKind::LeaseEnded || told == row)
        })
    }

    fn reclaiming_is_told(&self) -> bool {
        let stage = |lease: &Lease| match &lease.phase {
            Phase::Reclaiming(_, reclaim) => Some(reclaim.stage.clone()),
            Phase::Waiting(_) | Phase::Held(_) | Phase::Ended(_) => None,
        };
        let (before, after) = (self.before.and_then(stage), stage(self.after));
        let told = [
            self.count(EventKind::LeaseReclaiming),
            self.count(EventKind::LeaseStuck),
            self.count(EventKind::LeaseQuarantined),
        ];
        match (&before, &after) {
            (_, None) => is_over(self.after) || told == [0, 0, 0],
            (None, Some(_)) => told[0] >= 1,
            (Some(before), Some(after)) if before == after => true,
            (Some(_), Some(ReclaimStage::Verifying)) => told[0] >= 1,
            (Some(_), Some(ReclaimStage::Stuck(_))) => told[1] == 1,
            (Some(_), Some(ReclaimStage::Quarantined)) => told[2] == 1,
        }
    }

    /// Every cause to go that came, moved or went, a heartbeat that was missed, and the end of loading.
    fn holding_is_told(&self) -> bool {
        let Some(after) = self.after.held() else {
            return true;
        };
        let before = self.before.and_then(Lease::held);
        let drains = before.map(|grant| &grant.drains);
        let had = |source| drains.and_then(|drains| drains.get(source));
        let came = after
            .drains
            .iter()
            .filter(|(source, drain)| had(source) != Some(drain));
        let went = drains.into_iter().flatten();
        let went = went.filter(|(source, _)| !after.drains.contains_key(source));
        let missed = after.unresponsive && before.is_none_or(|before| !before.unresponsive);
        let loaded = before.is_some_and(|before| before.loading) && !after.loading;
        self.count(EventKind::LeaseDraining) >= came.count()
            && self.count(EventKind::LeaseWithdrawn) >= went.count()
            && self.count(EventKind::LeaseUnresponsive) >= usize::from(missed)
            && self.count(EventKind::LeaseReady) >= usize::from(loaded)
    }
}

fn is_over(lease: &Lease) -> bool {
    matches!(lease.phase, Phase::Ended(_))
}
