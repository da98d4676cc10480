//! What lives came to, in numbers that are the same for the same seeds.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use gpu_lease::{EndReason, EventKind};

/// How much happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lives told to their end.
    pub seeds: u64,
    /// Things that happened.
    pub steps: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Durable writes.
    pub commits: u64,
    /// Ends of the broker at a bad moment, all together.
    pub crashes: u64,
    /// Those of them that were a loss of power.
    pub power_cuts: u64,
    /// Those of them that hit a disk with something written and not synced.
    pub torn_images: u64,
    /// Those of them that hit a recovery.
    pub in_recovery: u64,
    /// Boots of the host.
    pub reboots: u64,
    /// The loop did not run for a while.
    pub pauses: u64,
    /// Somebody set the civil clock.
    pub wall_steps: u64,
    /// Policy reloads, whatever came of them.
    pub reloads: u64,
    /// Those of them that switched the policy.
    pub switches: u64,
    /// Emergency releases.
    pub emergencies: u64,
    /// Signals to processes.
    pub signals: u64,
    /// Grants.
    pub granted: u64,
    /// Those of them whose room was looked at.
    pub rooms: u64,
    /// Retries that were answered by the lease that was there.
    pub replays: u64,
    /// Lives that were told twice, and were the same.
    pub twice: u64,
    /// How leases ended.
    pub ends: BTreeMap<EndReason, u64>,
    /// What became durable in the history, by kind.
    pub events: BTreeMap<&'static str, u64>,
}

impl Stats {
    /// All numbers with a word for each.
    pub fn numbers(&self) -> [(&'static str, u64); 19] {
        [
            ("seeds", self.seeds),
            ("steps", self.steps),
            ("turns", self.turns),
            ("commits", self.commits),
            ("crashes", self.crashes),
            ("power cuts", self.power_cuts),
            ("torn images", self.torn_images),
            ("crashes in recovery", self.in_recovery),
            ("reboots", self.reboots),
            ("pauses", self.pauses),
            ("wall clock steps", self.wall_steps),
            ("reloads", self.reloads),
            ("policy switches", self.switches),
            ("emergencies", self.emergencies),
            ("signals", self.signals),
            ("grants", self.granted),
            ("grants with room looked at", self.rooms),
            ("replays", self.replays),
            ("told twice", self.twice),
        ]
    }
}

/// How leases end in ten thousand lives. Nothing preempts yet.
const ENDS: [EndReason; 12] = [
    EndReason::Cancelled,
    EndReason::Denied,
    EndReason::DeviceLost,
    EndReason::Emergency,
    EndReason::Expired,
    EndReason::HostRebooted,
    EndReason::MaxHold,
    EndReason::Policy,
    EndReason::ProcessGone,
    EndReason::Released,
    EndReason::Revoked,
    EndReason::WaitTimeout,
];

/// What the history of ten thousand lives tells of.
const EVENTS: [EventKind; 21] = [
    EventKind::DeviceCordoned,
    EventKind::DeviceFound,
    EventKind::DeviceLost,
    EventKind::DeviceOvercommitted,
    EventKind::DeviceUncordoned,
    EventKind::EmergencyRelease,
    EventKind::LeaseDraining,
    EventKind::LeaseEnded,
    EventKind::LeaseGranted,
    EventKind::LeaseQuarantined,
    EventKind::LeaseReady,
    EventKind::LeaseReclaiming,
    EventKind::LeaseStuck,
    EventKind::LeaseUnresponsive,
    EventKind::LeaseWaiting,
    EventKind::LeaseWithdrawn,
    EventKind::PolicyPending,
    EventKind::PolicyRefused,
    EventKind::PolicyRolledBack,
    EventKind::PolicySwitched,
    EventKind::ReloadBegun,
];

impl Stats {
    /// The ends and the events that no life came to: a simulation that does not reach them tells nothing of them.
    pub fn missing(&self) -> Vec<&'static str> {
        let ends = ENDS.iter().filter(|reason| !self.ends.contains_key(reason));
        let events = EVENTS.iter().map(|kind| kind.as_str());
        let events = events.filter(|kind| !self.events.contains_key(kind));
        ends.map(|reason| reason.as_str()).chain(events).collect()
    }
}

impl AddAssign<&Stats> for Stats {
    fn add_assign(&mut self, other: &Stats) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.turns += other.turns;
        self.commits += other.commits;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.torn_images += other.torn_images;
        self.in_recovery += other.in_recovery;
        self.reboots += other.reboots;
        self.pauses += other.pauses;
        self.wall_steps += other.wall_steps;
        self.reloads += other.reloads;
        self.switches += other.switches;
        self.emergencies += other.emergencies;
        self.signals += other.signals;
        self.granted += other.granted;
        self.rooms += other.rooms;
        self.replays += other.replays;
        self.twice += other.twice;
        for (reason, count) in &other.ends {
            *self.ends.entry(*reason).or_default() += count;
        }
        for (kind, count) in &other.events {
            *self.events.entry(kind).or_default() += count;
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, number) in self.numbers() {
            writeln!(f, "{number:>12}  {word}")?;
        }
        for (reason, number) in &self.ends {
            writeln!(f, "{number:>12}  ended: {reason}")?;
        }
        for (kind, number) in &self.events {
            writeln!(f, "{number:>12}  told: {kind}")?;
        }
        Ok(())
    }
}
