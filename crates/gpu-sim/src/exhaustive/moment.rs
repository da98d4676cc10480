//! One moment of a life: the books, the time, and what clients know.

use std::sync::Arc;

use gpu_lease::{
    Allocation, At, Books, BootMs, EndReason, Fence, Lease, LeaseId, Phase, Reclaim, ReclaimStage,
    WallMs,
};

use super::case::{Case, Misfortune, units};
use super::judge::{Broken, Rule};
use super::model::Lives;

/// One moment of a life.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) books: Books,
    /// In units.
    pub(super) now: u64,
    /// Nothing held expires before, in units.
    pub(super) grace: u64,
    /// What each client knows.
    pub(super) known: Vec<Known>,
    /// Leases asked for.
    pub(super) asked: u64,
    /// The highest fence that was ever given.
    pub(super) highest: Option<Fence>,
    pub(super) left: Misfortune,
    pub(super) broken: Option<Arc<Broken>>,
}

/// What a client knows of its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The one that it waits for or holds, unless it heard that it is over.
    pub(super) lease: Option<LeaseId>,
    /// The fence that it was told.
    pub(super) fence: Option<Fence>,
}

impl Moment {
    pub(super) fn at(&self) -> At {
        at(self.now)
    }

    /// All leases that are not over.
    pub(super) fn open(&self) -> impl Iterator<Item = &Lease> {
        let is_open = |lease: &&Lease| !matches!(lease.phase, Phase::Ended(_));
        self.books.leases().filter(is_open)
    }

    /// How far reclaiming got, of whatever is being reclaimed.
    fn stages(&self) -> impl Iterator<Item = &ReclaimStage> {
        self.open()
            .filter_map(reclaim)
            .map(|reclaim| &reclaim.stage)
    }

    pub(super) fn is_quarantined(&self) -> bool {
        self.stages()
            .any(|stage| *stage == ReclaimStage::Quarantined)
    }

    fn is_reclaiming(&self, reason: EndReason) -> bool {
        self.open()
            .filter_map(reclaim)
            .any(|reclaim| reclaim.reason == reason)
    }

    /// Keeps the first thing that does not hold.
    pub(super) fn expect(&mut self, judged: Result<(), Broken>) {
        if let (Err(broken), None) = (judged, &self.broken) {
            self.broken = Some(Arc::new(broken));
        }
    }

    pub(super) fn breaks(&self, rule: Rule) -> bool {
        self.broken
            .as_ref()
            .is_some_and(|broken| broken.rule == rule)
    }
}

/// Something that is to happen in some life, so that it is known that what is checked happens at all.
pub(super) struct Happening {
    pub(super) name: &'static str,
    /// Whether it can in a case.
    can: fn(&Case) -> bool,
    pub(super) happens: fn(&Lives, &Moment) -> bool,
}

/// What is to happen in some life of `case`.
pub(super) fn events_of(case: &Case) -> impl Iterator<Item = &'static Happening> {
    EVENTS.iter().filter(|event| (event.can)(case))
}

const EVENTS: [Happening; 9] = [
    Happening {
        name: "somebody waits",
        can: |_| true,
        happens: |_, moment| moment.open().any(|lease| lease.waiting().is_some()),
    },
    Happening {
        name: "two share a device",
        can: |_| true,
        happens: |_, moment| {
            let mut devices = moment.books.devices();
            devices.any(|state| state.occupants.len() > 1)
        },
    },
    Happening {
        name: "a heartbeat is missed by a process that lives",
        can: Case::has_expiries,
        happens: |_, moment| {
            let mut grants = moment.open().filter_map(Lease::held);
            grants.any(|grant| grant.unresponsive)
        },
    },
    Happening {
        name: "memory of an expired lease is on its way back",
        can: Case::has_expiries,
        happens: |_, moment| moment.is_reclaiming(EndReason::Expired),
    },
    Happening {
        name: "memory of an emergency is on its way back",
        can: Case::has_emergencies,
        happens: |_, moment| moment.is_reclaiming(EndReason::Emergency),
    },
    Happening {
        name: "memory is quarantined",
        can: |_| true,
        happens: |_, moment| moment.is_quarantined(),
    },
    Happening {
        name: "a signal cannot be sent",
        can: Case::has_signals,
        happens: |_, moment| {
            let is_stuck = |stage: &ReclaimStage| matches!(stage, ReclaimStage::Stuck(_));
            moment.stages().any(is_stuck)
        },
    },
    Happening {
        name: "a device of a lease is not seen yet after a crash",
        can: |_| true,
        happens: |_, moment| {
            let is_seen = |part: &Allocation| {
                let mut seen = moment.books.devices();
                seen.any(|state| state.device.key == part.device)
            };
            let mut grants = moment.open().filter_map(Lease::occupying);
            grants.any(|grant| !grant.allocations.iter().all(is_seen))
        },
    },
    Happening {
        name: "everything is over after everything that goes wrong",
        can: |_| true,
        happens: |_, moment| moment.left == Misfortune::NONE && moment.open().next().is_none(),
    },
];

fn reclaim(lease: &Lease) -> Option<&Reclaim> {
    match &lease.phase {
        Phase::Reclaiming(_, reclaim) => Some(reclaim),
        Phase::Waiting(_) | Phase::Held(_) | Phase::Ended(_) => None,
    }
}

/// The moment of so many units.
pub(super) fn at(now: u64) -> At {
    At {
        boot: BootMs(units(now).0),
        wall: WallMs(units(now).0),
    }
}
