//! Named moments at which a test can end the process as `kill -9` would.
//!
//! Nothing of this is in a build without the feature `fail-points`.

/// A moment between two things that must not come apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailPoint {
    /// What is stored was recovered; what the start means for it is not durable.
    Opening,
    /// It is durable, and nobody was answered.
    Opened,
    /// A batch was applied and is not durable.
    BeforeCommit,
    /// It is durable, and no reader sees it.
    AfterCommit,
    /// Readers see it, and nobody was answered.
    BeforeReply,
    /// Everybody was answered, and no effect was started.
    BeforeEffects,
    /// A policy switch was applied and is not durable.
    ReloadSwitched,
    /// An emergency was applied and is not durable.
    EmergencyApplied,
}

/// Ends the process here if a test wants that.
#[cfg(not(feature = "fail-points"))]
pub(crate) const fn reach(_: FailPoint) {}

#[cfg(feature = "fail-points")]
pub(crate) use armed::reach;

#[cfg(feature = "fail-points")]
mod armed {
    use std::env;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::FailPoint;

    /// `<name>:<n>`: ends the process the n-th time that it gets there.
    const VARIABLE: &str = "GPU_MANAGER_FAIL_POINT";

    static WANTED: LazyLock<Option<(String, AtomicU64)>> = LazyLock::new(|| {
        let text = env::var(VARIABLE).ok()?;
        let (name, count) = text.split_once(':')?;
        Some((name.to_owned(), AtomicU64::new(count.parse().ok()?)))
    });

    pub(crate) fn reach(point: FailPoint) {
        let Some((name, left)) = WANTED.as_ref() else {
            return;
        };
        if name == point.name() && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    impl FailPoint {
        fn name(self) -> &'static str {
            match self {
                Self::Opening => "opening",
                Self::Opened => "opened",
                Self::BeforeCommit => "before_commit",
                Self::AfterCommit => "after_commit",
                Self::BeforeReply => "before_reply",
                Self::BeforeEffects => "before_effects",
                Self::ReloadSwitched => "reload_switched",
                Self::EmergencyApplied => "emergency_applied",
            }
        }
    }
}
