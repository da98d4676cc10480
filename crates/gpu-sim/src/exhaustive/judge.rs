//! What must hold after every step of every life. It looks at the books from outside, and knows the rules
//! of the design, not how they are kept.

use std::collections::BTreeMap;
use std::fmt;

use gpu_lease::{
    Amount, Answer, Books, BootMs, Command, DeviceState, Effect, Emergency, EndReason, Fence,
    Grant, Lease, LeaseId, Outcome, Phase, Reclaim, ReclaimStage, Targets, Telemetry,
};
use stateright::Property;

use super::case::{DELAY, UNIT_MS, units};
use super::model::Lives;
use super::moment::{Moment, at};

/// What must hold; the numbers are those of the invariants in docs/reliability.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Nothing is granted twice.
    Alone,
    /// Memory of a forced end is free only when its holder is gone.
    Verified,
    /// Fences rise.
    Fences,
    /// Rows are everything.
    Rows,
    /// A lease ends by a cause.
    Causes,
    /// What is over stays over.
    Over,
    /// The books add up.
    Sums,
    /// Nobody waits for what is free.
    Served,
    /// Nobody waits for ever.
    Live,
    /// An emergency ends what it names.
    Emergency,
}

/// A rule that does not hold, and what of it.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) rule: Rule,
    pub(super) what: String,
}

/// Everybody is gone after so many rounds in which everybody who holds gives back.
const ROUNDS_MAX: usize = 10;

type Judged = Result<(), Broken>;
type Before = BTreeMap<LeaseId, Phase>;

impl Rule {
    pub(super) const ALL: [Self; 10] = [
        Self::Alone,
        Self::Verified,
        Self::Fences,
        Self::Rows,
        Self::Causes,
        Self::Over,
        Self::Sums,
        Self::Served,
        Self::Live,
        Self::Emergency,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alone => "I1 an exclusive lease is alone, others get no more than there is",
            Self::Verified => "I1 memory of a forced end is free only when its holder is gone",
            Self::Fences => "I2 every fence is higher than all before it, over a crash too",
            Self::Rows => "I3 what the rows say is what is decided by after a crash",
            Self::Causes => "I4 a lease ends for a reason that is true, and never early",
            Self::Over => {
                "I6 what has ended stays ended, and nobody is granted what nobody waits for"
            }
            Self::Sums => "I9 the books add up",
            Self::Served => "I9 nobody waits for what is free",
            Self::Live => "I9 whoever waits is served when the others have gone",
            Self::Emergency => "I12 an emergency ends what it names, fence and all",
        }
    }

    fn check(self, holds: bool, what: impl FnOnce() -> String) -> Judged {
        match holds {
            true => Ok(()),
            false => Err(Broken {
                rule: self,
                what: what(),
            }),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rules as the checker takes them.
pub(super) fn properties() -> Vec<Property<Lives>> {
    vec![
        Property::always(Rule::Alone.name(), |lives, m| lives.holds(Rule::Alone, m)),
        Property::always(Rule::Verified.name(), |lives, m| {
            lives.holds(Rule::Verified, m)
        }),
        Property::always(Rule::Fences.name(), |lives, m| lives.holds(Rule::Fences, m)),
        Property::always(Rule::Rows.name(), |lives, m| lives.holds(Rule::Rows, m)),
        Property::always(Rule::Causes.name(), |lives, m| lives.holds(Rule::Causes, m)),
        Property::always(Rule::Over.name(), |lives, m| lives.holds(Rule::Over, m)),
        Property::always(Rule::Sums.name(), |lives, m| lives.holds(Rule::Sums, m)),
        Property::always(Rule::Served.name(), |lives, m| lives.holds(Rule::Served, m)),
        Property::always(Rule::Live.name(), |lives, m| lives.holds(Rule::Live, m)),
        Property::always(Rule::Emergency.name(), |lives, m| {
            lives.holds(Rule::Emergency, m)
        }),
    ]
}

/// What `command` did to leases, each of which was as `before` says.
pub(super) fn change(
    lives: &Lives,
    moment: &Moment,
    before: &Before,
    command: &Command,
    outcome: &Outcome,
) -> Judged {
    fences_rise(moment, before, outcome)?;
    for lease in &outcome.changes.leases {
        let changed = Changed {
            moment,
            command,
            lease,
        };
        changed.judge(before.get(&lease.id))?;
        if is_granted(before.get(&lease.id), lease) {
            grant_is_wanted(lives, moment, lease, &outcome.effects)?;
        }
    }
    changes_are_told(moment, before, outcome)?;
    answer_is_true(moment, before, command, &outcome.answer)?;
    served(lives, moment)
}

/// Somebody waits for it, and its process is watched from now on.
fn grant_is_wanted(lives: &Lives, moment: &Moment, lease: &Lease, effects: &[Effect]) -> Judged {
    let id = lease.id;
    let known = moment.known[lives.client_of(id)];
    Rule::Over.check(known.lease == Some(id), || {
        format!("{id} is granted, and nobody waits for it")
    })?;
    let is_watched = lease.process().is_none() || effects.iter().any(|effect| watches(effect, id));
    Rule::Causes.check(is_watched, || format!("nobody watches {id}"))
}

fn watches(effect: &Effect, lease: LeaseId) -> bool {
    matches!(effect, Effect::Watch { id, .. } if *id == lease)
}

/// Whoever hears of changes alone, as the store does, knows the leases as the books do.
fn changes_are_told(moment: &Moment, before: &Before, outcome: &Outcome) -> Judged {
    let told = |id: LeaseId| outcome.changes.leases.iter().find(|lease| lease.id == id);
    let new = moment
        .open()
        .map(|lease| lease.id)
        .filter(|id| !before.contains_key(id));
    for id in before.keys().copied().chain(new) {
        let heard = told(id).map(|lease| &lease.phase).or(before.get(&id));
        let holds = match moment.books.lease(id) {
            Some(lease) => heard == Some(&lease.phase),
            None => told(id).is_some_and(|lease| !lease.is_durable()),
        };
        Rule::Rows.check(holds, || format!("what became of {id} is not told"))?;
    }
    Ok(())
}

fn fences_rise(moment: &Moment, before: &Before, outcome: &Outcome) -> Judged {
    let granted = outcome.changes.leases.iter();
    let granted = granted.filter(|lease| is_granted(before.get(&lease.id), lease));
    let mut fences: Vec<Fence> = granted.filter_map(|l| Some(l.held()?.fence)).collect();
    fences.sort();
    let rises = moment.highest < fences.first().copied() || fences.is_empty();
    let differ = fences.windows(2).all(|pair| pair[0] < pair[1]);
    Rule::Fences.check(rises && differ, || {
        format!("{fences:?} are given after {:?}", moment.highest)
    })
}

fn answer_is_true(moment: &Moment, before: &Before, command: &Command, answer: &Answer) -> Judged {
    match (command, answer) {
        (Command::Renew { id }, Answer::Lease(answer)) => {
            let lives = matches!(before.get(id), Some(Phase::Waiting(_) | Phase::Held(_)));
            Rule::Over.check(lives == answer.is_ok(), || {
                let was = before.get(id).map_or("over", word);
                let told = if answer.is_ok() { "well" } else { "over" };
                format!("{id} was {was}, and a heartbeat is told that it is {told}")
            })
        }
        (Command::Emergency(emergency), _) => {
            let named = before.iter().filter(|(_, was)| is_named(emergency, was));
            let mut leases = named.filter_map(|(id, _)| moment.books.lease(*id));
            let survivor = leases.find(|lease| lease.end_reason().is_none());
            Rule::Emergency.check(survivor.is_none(), || {
                let id = survivor.map(|lease| lease.id.to_string());
                format!("{} lives on", id.unwrap_or_default())
            })
        }
        _ => Ok(()),
    }
}

fn is_named(emergency: &Emergency, was: &Phase) -> bool {
    match (&emergency.targets, was) {
        (Targets::All, _) => true,
        (Targets::Devices(keys), Phase::Held(grant)) => {
            let mut parts = grant.allocations.iter();
            parts.any(|part| keys.contains(&part.device))
        }
        (Targets::Devices(_) | Targets::Leases(_) | Targets::Stuck, _) => false,
    }
}

/// One lease that a command changed.
struct Changed<'a> {
    moment: &'a Moment,
    command: &'a Command,
    lease: &'a Lease,
}

impl Changed<'_> {
    fn judge(&self, before: Option<&Phase>) -> Judged {
        match (before, &self.lease.phase) {
            (None | Some(Phase::Waiting(_)), Phase::Waiting(_) | Phase::Held(_)) => Ok(()),
            (None, Phase::Ended(ending)) => self.one_way(ending.grant.is_none(), before),
            (Some(Phase::Waiting(wait)), Phase::Ended(ending)) => {
                self.one_way(ending.grant.is_none(), before)?;
                let due = self.due(wait.until).or(self.graced(wait.renew_by));
                self.ends_for(ending.reason, due)
            }
            (Some(Phase::Held(was)), Phase::Held(is)) => self.one_way(is_same(was, is), before),
            (Some(Phase::Held(was)), Phase::Reclaiming(is, reclaim)) => {
                self.one_way(is_same(was, is), before)?;
                self.held_ends_for(was, reclaim.reason)
            }
            (Some(Phase::Held(was)), Phase::Ended(ending)) => {
                self.one_way(
                    ending.grant.as_ref().is_some_and(|is| is_same(was, is)),
                    before,
                )?;
                self.held_ends_for(was, ending.reason)?;
                let given_back = [EndReason::Released, EndReason::ProcessGone];
                self.verified(given_back.contains(&ending.reason))
            }
            (Some(Phase::Reclaiming(was, from)), Phase::Reclaiming(is, to)) => {
                self.one_way(is_same(was, is) && from.reason == to.reason, before)
            }
            (Some(Phase::Reclaiming(was, reclaim)), Phase::Ended(ending)) => {
                let same = ending.grant.as_ref().is_some_and(|is| is_same(was, is));
                self.one_way(same && ending.reason == reclaim.reason, before)?;
                self.verified(self.is_gone(reclaim))
            }
            (Some(_), _) | (None, Phase::Reclaiming(..)) => self.one_way(false, before),
        }
    }

    fn one_way(&self, holds: bool, before: Option<&Phase>) -> Judged {
        Rule::Over.check(holds, || {
            let was = before.map_or("not there", word);
            format!(
                "{} was {was} and is {}",
                self.lease.id,
                word(&self.lease.phase)
            )
        })
    }

    fn verified(&self, holds: bool) -> Judged {
        Rule::Verified.check(holds, || {
            let reason = self.lease.end_reason();
            let reason = reason.map_or("no reason", EndReason::as_str);
            format!(
                "{} is free ({reason}), and nobody knows that its holder is gone",
                self.lease.id
            )
        })
    }

    /// A process is gone if somebody saw it go, or vouches for it when the books have given up on it; of
    /// others nothing is known but that time passed.
    fn is_gone(&self, reclaim: &Reclaim) -> bool {
        let vouched = matches!(self.command, Command::ClearQuarantine { .. })
            && reclaim.stage == ReclaimStage::Quarantined;
        match self.lease.process() {
            Some(_) => self.is_said_to_be_gone() || vouched,
            None => self.due(Some(reclaim.since.boot + units(DELAY))).is_some(),
        }
    }

    fn is_said_to_be_gone(&self) -> bool {
        matches!(self.command, Command::ProcessGone { id, .. } if *id == self.lease.id)
    }

    fn held_ends_for(&self, grant: &Grant, reason: EndReason) -> Judged {
        let due = match reason {
            // A process that lives is not ended for its heartbeats.
            EndReason::Expired if self.lease.process().is_some() => None,
            EndReason::Expired => Some(grant.expires),
            _ => grant.drain().map(|(_, drain)| drain.deadline),
        };
        self.ends_for(reason, self.graced(due.map(|due| due.boot)))
    }

    /// Whether `reason` is what happened; `due` if time says that it is over.
    fn ends_for(&self, reason: EndReason, due: Option<()>) -> Judged {
        let id = self.lease.id;
        let holds = match reason {
            EndReason::Cancelled | EndReason::Released => match self.command {
                Command::Release { id: named } | Command::Abandon { id: named } => *named == id,
                _ => false,
            },
            EndReason::Emergency => matches!(self.command, Command::Emergency(_)),
            EndReason::Expired | EndReason::Revoked | EndReason::WaitTimeout => due.is_some(),
            EndReason::ProcessGone => self.is_said_to_be_gone(),
            EndReason::Denied
            | EndReason::DeviceLost
            | EndReason::HostRebooted
            | EndReason::MaxHold
            | EndReason::Policy
            | EndReason::Preempted => false,
        };
        Rule::Causes.check(holds, || {
            format!("{id} is over ({reason}), and that is not so")
        })
    }

    fn due(&self, due: Option<BootMs>) -> Option<()> {
        due.filter(|due| *due <= self.moment.at().boot).map(drop)
    }

    fn graced(&self, due: Option<BootMs>) -> Option<()> {
        self.due(due.map(|due| due.max(at(self.moment.grace).boot)))
    }
}

/// What a crash must leave as it was.
pub(super) fn recovery(before: &Books, after: &Books) -> Judged {
    let (was, is) = (before.rows(), after.rows());
    let (counted, counts) = (was.counters, is.counters);
    Rule::Rows.check(counted == counts, || {
        format!("{counted:?} became {counts:?}")
    })?;
    let same = was.leases.iter().zip(&is.leases);
    let changed = same.clone().find(|(was, is)| was != is);
    let forgotten = was.leases.len() != is.leases.len();
    Rule::Rows.check(changed.is_none() && !forgotten, || match changed {
        Some((lease, _)) => format!("a crash changes {}", lease.id),
        None => "a crash forgets a lease".to_owned(),
    })?;
    let effects = after.standing_effects();
    let is_missed = |lease: &&Lease| {
        let occupies = lease.occupying().is_some() && lease.process().is_some();
        occupies && !effects.iter().any(|effect| watches(effect, lease.id))
    };
    let missed = after.leases().find(is_missed);
    Rule::Rows.check(missed.is_none(), || {
        "a process that held before a crash is not watched after it".to_owned()
    })
}

/// What must hold of every moment, however it came to it.
pub(super) fn standing(moment: &Moment) -> Judged {
    for state in moment.books.devices() {
        adds_up(state, &moment.books)?;
    }
    for known in &moment.known {
        if let (Some(id), Some(fence)) = (known.lease, known.fence) {
            let grant = moment.books.lease(id).and_then(Lease::grant);
            Rule::Rows.check(grant.is_some_and(|grant| grant.fence == fence), || {
                format!("{id} was granted by fence {fence}, and nobody knows")
            })?;
        }
    }
    let next = moment.books.counters().next_fence;
    Rule::Fences.check(moment.highest < Some(next), || {
        format!("fence {next} is to be given again")
    })
}

/// The design's formula, over the leases themselves.
fn adds_up(state: &DeviceState, books: &Books) -> Judged {
    let key = &state.device.key;
    let (mut leases, mut alone, mut granted, mut charged, mut accounted) = (0, 0, 0, 0, 0);
    for lease in books.leases() {
        let Some(part) = lease.occupying().and_then(|grant| grant.on(key)) else {
            continue;
        };
        let observed = state.observed(lease.id);
        leases += 1;
        alone += u32::from(part.exclusive);
        granted += part.memory;
        charged += part.memory.max(observed.unwrap_or(0));
        accounted += observed.unwrap_or(part.memory);
    }
    let fits = granted <= state.grantable() && (alone == 0 || leases == 1);
    Rule::Alone.check(fits, || {
        format!("{leases} leases hold {granted} bytes of {state:?}")
    })?;
    let used = state
        .reading
        .as_ref()
        .map_or(0, |reading| reading.memory_used);
    let taken = charged + used.saturating_sub(accounted);
    let free = state.grantable().saturating_sub(taken);
    let same =
        free == state.free() && leases == state.occupants.len() && granted == state.usage.granted;
    Rule::Sums.check(same, || format!("{free} bytes are free of {state:?}"))
}

/// The first in the queue has no device that fits, and everybody else at most one, which the first may be
/// going to get.
fn served(lives: &Lives, moment: &Moment) -> Judged {
    let mut waiters: Vec<&Lease> = moment.open().filter(|l| l.waiting().is_some()).collect();
    waiters.sort_by_key(|lease| lease.waiting().map(|wait| wait.seq));
    for (place, lease) in waiters.into_iter().enumerate() {
        let devices = moment.books.devices();
        let room = devices
            .filter(|state| has_room(state, lease, moment))
            .count();
        Rule::Served.check(room <= usize::from(place > 0), || {
            format!("{} waits", lives.client(lease.id).name())
        })?;
    }
    Ok(())
}

fn is_overdue(lease: &Lease, moment: &Moment) -> bool {
    let now = moment.at().boot;
    let renewal = |by: BootMs| by.max(at(moment.grace).boot);
    lease.waiting().is_some_and(|wait| {
        wait.until.is_some_and(|until| until <= now)
            || wait.renew_by.is_some_and(|by| renewal(by) <= now)
    })
}

fn has_room(state: &DeviceState, lease: &Lease, moment: &Moment) -> bool {
    let is_readable = state.device.telemetry == Telemetry::Supported;
    let is_read = state.reading.as_ref().is_some_and(|reading| {
        let late_enough = state.read_after.is_none_or(|after| reading.taken > after);
        moment.at().boot - reading.taken < UNIT_MS && late_enough
    });
    let fits = match lease.request.amount {
        Amount::Exclusive => state.occupants.is_empty() && state.usage.foreign == 0,
        Amount::Memory(bytes) => !state.usage.exclusive && state.free() >= bytes,
    };
    fits && (is_read || !is_readable)
}

fn is_granted(before: Option<&Phase>, lease: &Lease) -> bool {
    lease.held().is_some() && matches!(before, None | Some(Phase::Waiting(_)))
}

fn word(phase: &Phase) -> &'static str {
    match phase {
        Phase::Waiting(_) => "waiting",
        Phase::Held(_) => "held",
        Phase::Reclaiming(..) => "being reclaimed",
        Phase::Ended(_) => "over",
    }
}

fn is_same(a: &Grant, b: &Grant) -> bool {
    (a.fence, a.at, &a.allocations) == (b.fence, b.at, &b.allocations)
}

impl Lives {
    /// If everybody goes from here on and no more misfortune comes, whoever keeps its place in the queue is
    /// granted what it waits for, and in the end everything is free.
    pub(super) fn ends_well(&self, moment: &Moment) -> bool {
        let mut moment = moment.clone();
        let keeps_its_place = |lease: &&Lease| {
            lease.waiting().is_some() && lease.request.queue && !is_overdue(lease, &moment)
        };
        let hopeful: Vec<LeaseId> = moment
            .open()
            .filter(keeps_its_place)
            .map(|l| l.id)
            .collect();
        for _ in 0..ROUNDS_MAX {
            self.see_everybody_off(&mut moment);
            if moment.open().next().is_none() {
                break;
            }
        }
        let grant = |id: &LeaseId| moment.books.lease(*id)?.grant();
        let is_free = |state: &DeviceState| state.free() == state.grantable();
        moment.open().next().is_none()
            && moment.books.devices().all(is_free)
            && hopeful.iter().all(|id| grant(id).is_some())
    }
}
