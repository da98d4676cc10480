//! When what was held may be free: everything that is, is justified, or it is a bug.

use gpu_broker::Processes;
use gpu_lease::{At, BootMs, EndReason, Lease, Phase, ReclaimStage};

use super::law::Law;
use super::machine::Machine;
use super::oracle::{Oracle, require};

type Checked = Result<(), String>;

/// The attempt to signal that is the last one.
const LAST_ATTEMPT: u32 = 2;

impl Oracle {
    /// The memory of a lease becomes free only when its holder gave it back, is proven gone, nothing can be proven
    /// and the delay is over, or somebody said that no proof is needed.
    pub(super) fn frees_rightly(
        &self,
        before: &Lease,
        after: &Lease,
        at: At,
        machine: &Machine,
        laws: (&Law, &Law),
    ) -> Checked {
        let (Some(_), None) = (before.occupying(), after.occupying()) else {
            return Ok(());
        };
        let justified = self.gave_back(before, after)
            || self.vouched.contains(&before.id)
            || self.boots.get(&before.id) != Some(&self.boot)
            || nothing_is_proven(before, laws)
            || self.is_nowhere(before, at.boot)
            || is_proven(before, at.boot, machine, laws);
        require(justified, || {
            format!(
                "{} is free at {at:?}, and nothing says that its holder is gone: {after:?}\n  {before:?}",
                before.id
            )
        })
    }

    /// Its holder said so, or is not there to hear of it.
    fn gave_back(&self, before: &Lease, after: &Lease) -> bool {
        let released = after.end_reason() == Some(EndReason::Released);
        before.held().is_some() && released && self.let_go.contains(&before.id)
    }

    /// All that it was on is gone for good, or was not there since the broker started.
    fn is_nowhere(&self, lease: &Lease, now: BootMs) -> bool {
        let parts = lease.occupying().map(|grant| grant.allocations.as_slice());
        let parts = parts.unwrap_or_default();
        let lost = |key| self.is_lost(key, now);
        parts.iter().any(|part| lost(&part.device))
            && parts
                .iter()
                .all(|part| lost(&part.device) || !self.is_told_of(&part.device))
    }
}

/// `verify = false` is for those who are ended now, not for those who are being verified.
fn nothing_is_proven(before: &Lease, (earlier, live): (&Law, &Law)) -> bool {
    before.held().is_some() && !(earlier.verify && live.verify)
}

fn is_proven(
    before: &Lease,
    now: BootMs,
    machine: &Machine,
    (earlier, live): (&Law, &Law),
) -> bool {
    if let Some(process) = before.process() {
        return machine.is_gone(process);
    }
    let since = match &before.phase {
        Phase::Reclaiming(_, reclaim) => reclaim.since.boot,
        Phase::Waiting(_) | Phase::Held(_) | Phase::Ended(_) => now,
    };
    since + earlier.delay.min(live.delay) <= now
}

/// When something has to happen to what is being reclaimed: it is free, its holder is killed, or it is set aside.
pub(super) fn reclaim_due(lease: &Lease, law: &Law) -> Option<BootMs> {
    let Phase::Reclaiming(_, reclaim) = &lease.phase else {
        return None;
    };
    let since = reclaim.since.boot;
    let verifying = reclaim.stage == ReclaimStage::Verifying;
    match lease.process() {
        None => Some(since + law.delay),
        Some(_) if reclaim.stage == ReclaimStage::Quarantined => None,
        Some(_) if verifying && reclaim.signal && reclaim.attempt < LAST_ATTEMPT => {
            Some(since + law.delay.min(law.quarantine_after))
        }
        Some(_) => Some(since + law.quarantine_after),
    }
}
