//! Bugs that a test plants on purpose, to prove that the evidence would find them.
//!
//! Nothing of this is in a build without the feature `canaries`: [`is_planted`] is then `false` for the
//! compiler.

/// One bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Canary {
    /// Answers are sent before their rows are written.
    AnswerBeforeCommit = 1,
    /// Leases expire at the civil time that their deadline is shown as.
    ExpiryByWallClock,
    /// The next fence after a restart follows from what is held, not from the counter in the rows.
    FenceNotStored,
    /// The memory of a lease that was ended by force is free at once, whoever still uses it.
    FreeBeforeVerify,
    /// A heartbeat brings a lease back that has expired, as long as its memory is not free.
    RenewAfterExpiry,
    /// A release wakes nobody who waits; whatever comes next does.
    LostWakeUp,
    /// A policy switch takes the settings and does nothing of its plan for held leases and waiters.
    HalfAppliedPolicy,
    /// Requests of a batch, and what has come due, go before the heartbeats of it.
    BatchReordering,
    /// A waiter outlives the connection that it was made for.
    WaiterBoundToDeadClient,
    /// A restart forgets that leases were asked to go.
    RestartForgetsDraining,
    /// An emergency only asks holders to go: their fences stay current, and they may renew.
    EmergencyForgetsFence,
    /// Leases whose device is not among the first that are seen end, as if it was lost.
    RecoveryDropsUnknownDevice,
    /// A restart takes itself for a boot of the host, and every lease for one of before.
    RestartTakenForReboot,
    /// What is granted of a device counts for nothing when the next request comes.
    GrantedTwice,
}

impl Canary {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::AnswerBeforeCommit,
        Self::ExpiryByWallClock,
        Self::FenceNotStored,
        Self::FreeBeforeVerify,
        Self::RenewAfterExpiry,
        Self::LostWakeUp,
        Self::HalfAppliedPolicy,
        Self::BatchReordering,
        Self::WaiterBoundToDeadClient,
        Self::RestartForgetsDraining,
        Self::EmergencyForgetsFence,
        Self::RecoveryDropsUnknownDevice,
        Self::RestartTakenForReboot,
        Self::GrantedTwice,
    ];
}

/// Whether this bug is there.
#[cfg(not(feature = "canaries"))]
pub const fn is_planted(_: Canary) -> bool {
    false
}

#[cfg(feature = "canaries")]
pub use planted::{is_planted, plant};

#[cfg(feature = "canaries")]
mod planted {
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::Canary;

    static PLANTED: AtomicU8 = AtomicU8::new(0);

    /// Plants this bug, or none, in the whole process.
    pub fn plant(canary: Option<Canary>) {
        PLANTED.store(canary.map_or(0, |canary| canary as u8), Ordering::Relaxed);
    }

    /// Whether this bug is there.
    pub fn is_planted(canary: Canary) -> bool {
        PLANTED.load(Ordering::Relaxed) == canary as u8
    }
}
