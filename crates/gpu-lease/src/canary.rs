//! Bugs that a test plants on purpose, to prove that the evidence would find them.
//!
//! Nothing of this is in a build without the feature `canaries`: [`is_planted`] is then `false` for the
//! compiler.

/// One bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Canary {
    /// Answers are sent although their rows were not written.
    AnswerBeforeCommit = 1,
    /// Leases expire by the wall clock.
    ExpiryByWallClock,
    /// The counter of fences is not among the rows.
    FenceNotStored,
    /// The memory of a lease that was ended by force is free at once.
    FreeBeforeVerify,
    /// A heartbeat brings a lease back that has expired.
    RenewAfterExpiry,
    /// A release wakes nobody who waits.
    LostWakeUp,
    /// A policy switch does its settings and forgets what they mean for leases that are held.
    HalfAppliedPolicy,
    /// Requests of a batch go before the heartbeats of it.
    BatchReordering,
    /// A waiter outlives the connection that it was made for.
    WaiterBoundToDeadClient,
    /// A restart forgets that leases drain.
    RestartForgetsDraining,
    /// An emergency leaves fences current.
    EmergencyForgetsFence,
    /// Recovery forgets leases whose device is not seen yet.
    RecoveryDropsUnknownDevice,
}

impl Canary {
    /// All of them.
    pub const ALL: [Self; 12] = [
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
