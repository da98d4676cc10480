//! Closed sets of words. Every one is written in snake case, as the variant is named here.

use serde::{Deserialize, Serialize};

/// Mirrors an enum of the core that has no fields; a variant that only one side has does not compile.
macro_rules! words {
    ($($name:ident { $($word:ident),+ $(,)? })+) => {$(
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub(super) enum $name { $($word),+ }

        impl From<gpu_lease::$name> for $name {
            fn from(word: gpu_lease::$name) -> Self {
                match word { $(gpu_lease::$name::$word => Self::$word),+ }
            }
        }

        impl From<$name> for gpu_lease::$name {
            fn from(word: $name) -> Self {
                match word { $($name::$word => Self::$word),+ }
            }
        }
    )+};
}

words! {
    DrainSource { Device, Operator, Policy, Preemption }

    EndReason {
        Cancelled,
        Denied,
        DeviceLost,
        Emergency,
        Expired,
        HostRebooted,
        MaxHold,
        Policy,
        Preempted,
        ProcessGone,
        Released,
        Revoked,
        WaitTimeout,
    }

    EventKind {
        BrokerStarted,
        BrokerStopped,
        DeviceCordoned,
        DeviceFound,
        DeviceLost,
        DeviceOvercommitted,
        DeviceUncordoned,
        EmergencyRelease,
        LeaseDraining,
        LeaseEnded,
        LeaseGranted,
        LeaseQuarantined,
        LeaseReady,
        LeaseReclaiming,
        LeaseStuck,
        LeaseUnresponsive,
        LeaseWaiting,
        LeaseWithdrawn,
        PolicyPending,
        PolicyPlanned,
        PolicyRefused,
        PolicyRolledBack,
        PolicySwitched,
        ReloadBegun,
        ReloadBreaker,
    }
}
