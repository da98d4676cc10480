//! What the operator decided, as typed data plus the rules that only text can say.
//!
//! A policy is a value: equal, and hashed, by the source it was compiled from.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::{fmt, mem};

use crate::capacity::DeviceState;
use crate::device::Device;
use crate::lease::Lease;
use crate::plan::Refusal;
use crate::request::Request;
use crate::time::{BootMs, Ms, WallMs};

/// The class that exists without being declared.
pub const STANDARD_CLASS: &str = "standard";

/// Everything that a decision depends on beside the books themselves.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The text that this policy was compiled from.
    pub source: Arc<PolicySource>,
    /// What happens to held leases when a policy replaces another.
    pub reload: ReloadSettings,
    /// What a request gets that does not say.
    pub defaults: Defaults,
    /// Which devices a grant is placed on.
    pub placement: Placement,
    /// Who is served first.
    pub queue: QueueSettings,
    /// How memory of a forced end is taken back.
    pub reclaim: ReclaimSettings,
    /// Foreign use below this many bytes does not keep an exclusive request off a device.
    pub foreign_ignore_below: u64,
    /// Classes by name; [`STANDARD_CLASS`] is always among them.
    pub classes: BTreeMap<String, Class>,
    /// Settings for devices, in file order; a later one wins. The index is what [`Rules::device_matches`] takes.
    pub devices: Vec<DeviceRule>,
    /// Whose shares are limited, in file order. The index is what [`Rules::tenant`] answers.
    pub tenants: Vec<Tenant>,
    /// What only text can say.
    pub rules: Arc<dyn Rules>,
}

/// The files of a policy and their hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySource {
    /// Hash over all settings with every layer applied, in hexadecimal; comments and spaces do not count.
    pub hash: String,
    /// File name and text, in the order in which they apply.
    pub files: Vec<(String, String)>,
}

/// What happens to a held lease that the new policy no longer allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It stays until it ends by itself.
    Keep,
    /// Its holder is told and has until a deadline.
    Drain,
    /// It ends now.
    Force,
}

/// Which held leases a reload looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadScope {
    /// All of them.
    All,
    /// Those that the old policy allows and the new one does not.
    Violating,
}

/// Which plans of a saved file wait until somebody confirms them. The later is the stricter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confirm {
    /// None.
    Never,
    /// Those that end a lease at once.
    Force,
    /// Those that end a lease or ask its holder to go.
    Drain,
}

/// What happens to leases that a smaller quota or a larger reserve has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShrink {
    /// The newest are asked to go, until the others fit.
    Drain,
    /// They stay until they end by themselves; nothing new is granted meanwhile.
    Keep,
}

/// `[reload]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReloadSettings {
    /// The fate of a lease in scope.
    pub held: Held,
    /// Which leases are in scope.
    pub scope: ReloadScope,
    /// Least time to drain.
    pub grace: Ms,
    /// Most time to drain, whatever the class or the request asks for.
    pub grace_max: Ms,
    /// Which plans of a saved file wait for a confirmation.
    pub confirm: Confirm,
    /// The fate of leases that a smaller quota or a larger reserve has no room for.
    pub on_shrink: OnShrink,
    /// This many errors of rules within [`Self::rollback_within`] of a switch take it back; zero never does.
    pub rollback_errors: u64,
    /// How long after a switch errors of rules count.
    pub rollback_within: Ms,
}

/// `[defaults]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// The class of a request that names none.
    pub class: String,
    /// Time between heartbeats.
    pub ttl: Ms,
    /// How long a request waits that does not say.
    pub wait: Ms,
}

/// `[placement]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The order in which fitting devices are taken.
    pub strategy: Strategy,
    /// Bytes of every device that are never granted.
    pub reserve: u64,
    /// How many leases may load on one device at once.
    pub load_slots: u32,
}

/// The order in which fitting devices are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Least memory left over.
    BestFit,
    /// Lowest index.
    FirstFit,
    /// Most leases already there, so that whole devices stay free.
    Pack,
    /// Highest [`Rules::scores`].
    Score,
    /// Fewest leases there.
    Spread,
    /// Most memory left over.
    WorstFit,
}

/// Who is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOrder {
    /// By effective priority, then by the tenant that had least of late, then by arrival.
    FairShare,
    /// By arrival alone.
    Fifo,
    /// By effective priority, then by arrival.
    Priority,
}

/// `[queue]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// Who is served first.
    pub order: QueueOrder,
    /// Waiting this long raises the effective priority by one; zero never does.
    pub aging: Ms,
    /// Whether a request may pass the head of the queue when it does not delay it.
    pub backfill: bool,
    /// More waiters than this are refused.
    pub max_waiting: usize,
    /// What a tenant had this long ago counts half in its fair share.
    pub half_life: Ms,
}

/// Which processes the broker may signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRule {
    /// Every registered one.
    Always,
    /// None.
    Never,
    /// Those that `gpu-manager run` started.
    Supervised,
}

/// `[reclaim]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReclaimSettings {
    /// Whether memory of a forced end waits for proof that its holder is gone.
    pub verify: bool,
    /// How long to wait where nothing can be observed.
    pub delay: Ms,
    /// When an unverified capacity is quarantined.
    pub quarantine_after: Ms,
    /// Which processes may be signalled.
    pub signal: SignalRule,
}

/// `[[class]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Higher runs first.
    pub priority: i64,
    /// Time that a lease of this class has to drain.
    pub drain_grace: Ms,
    /// Longest time that a lease of this class is held.
    pub max_hold: Option<Ms>,
}

/// `[[device]]`: settings for the devices that [`Rules::device_matches`] says it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRule {
    /// Bytes never granted, instead of the placement's.
    pub reserve: Option<u64>,
    /// Leases that may load at once, instead of the placement's.
    pub load_slots: Option<u32>,
    /// Words that people and rules see.
    pub labels: Vec<String>,
    /// Why no new grants are made here.
    pub cordon: Option<String>,
    /// Why no new grants are made here and what is held here is no longer allowed.
    pub drain: Option<String>,
}

/// `[[tenant]]`: a share that its members have together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Its part of a fair share, relative to the others; at least 1.
    pub weight: u32,
    /// Most devices that its leases may be on, each counted as often as it is granted.
    pub max_devices: Option<u32>,
    /// Most bytes that may be granted to it.
    pub max_memory: Option<u64>,
    /// Most leases that it may hold.
    pub max_leases: Option<u32>,
    /// Each of its users is a tenant of its own, with the same limits.
    pub per_user: bool,
}

/// A tenant of the policy, or one user of it where each is a tenant of its own. In a fair share a user
/// without a tenant is one without a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TenantKey {
    /// The tenant's name.
    pub name: String,
    /// The user, where each is a tenant of its own.
    pub user: Option<String>,
}

/// What is held by some leases together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many leases.
    pub leases: u32,
    /// On how many devices, each counted as often as it is granted.
    pub devices: u32,
    /// Bytes granted.
    pub memory: u64,
}

/// What rules see of the books, without the lease that they decide about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// All that is held.
    pub held: Share,
    /// Bytes of all devices that may be granted together, reserves apart.
    pub grantable: u64,
    /// How many wait.
    pub waiting: u32,
    /// What the user of the request holds.
    pub user: Share,
    /// What the tenant of the request holds; the user's where it has none.
    pub tenant: Share,
}

/// What rules make of a request when it arrives. `None` leaves what it asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// Its class.
    pub class: Option<String>,
    /// Its priority, instead of its class's.
    pub priority: Option<i64>,
    /// Time between heartbeats.
    pub ttl: Option<Ms>,
    /// Longest time to hold the grant.
    pub max_hold: Option<Ms>,
    /// Further filters of devices.
    pub filters: Vec<String>,
}

impl Sets {
    /// Writes into `request` what is set: the shorter hold wins, and filters are added. Answers the priority,
    /// which no request has.
    pub fn apply(self, request: &mut Request) -> Option<i64> {
        request.class = self.class.unwrap_or_else(|| mem::take(&mut request.class));
        request.ttl = self.ttl.unwrap_or(request.ttl);
        let holds = [request.max_hold, self.max_hold];
        request.max_hold = holds.into_iter().flatten().min();
        request.select.filters.extend(self.filters);
        self.priority
    }
}

/// A rule that applied to a request, or that failed on it; for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleHit {
    /// The rule.
    pub rule: String,
    /// What it did, such as `denies: too big` or `sets class = batch`.
    pub effect: String,
}

/// The errors of one rule since its policy was compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleErrors {
    /// The rule.
    pub rule: String,
    /// How often a decision met an error of it.
    pub count: u64,
    /// What the last one said.
    pub last: String,
}

/// What the rules say of a request at a point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be granted.
    Allow,
    /// It must wait.
    Hold {
        /// The rule that says so.
        rule: String,
        /// For the one who waits.
        reason: String,
        /// When the rule will look different, where that is known.
        until: Option<WallMs>,
    },
    /// It is refused.
    Deny {
        /// The rule that says so.
        rule: String,
        /// For the one who asked.
        reason: String,
        /// The rule failed and says `on_error = "deny"`: a new request is refused, what is held is not touched.
        erred: bool,
    },
}

/// The part of a policy that is looked up by evaluation. Pure and total: an error is a value.
pub trait Rules: fmt::Debug + Send + Sync {
    /// Whether `request` may be granted at `now`, the capacity apart. Sets do not apply again.
    fn admit(&self, request: &Request, standing: &Standing, now: WallMs) -> Verdict;

    /// What the rules make of `request` when it arrives.
    fn shape(&self, _request: &Request, _standing: &Standing, _now: WallMs) -> Sets {
        Sets::default()
    }

    /// Whether any rule looks at the standing; where none does, nobody needs to know it.
    fn reads_standing(&self) -> bool {
        false
    }

    /// The tenant of the policy that `request` belongs to, by what it says and by who its holder is.
    ///
    /// # Errors
    /// It claims a tenant that it does not belong to.
    fn tenant(&self, _request: &Request) -> Result<Option<usize>, Refusal> {
        Ok(None)
    }

    /// Whether the `rule`-th device rule of the policy is about `device`.
    fn device_matches(&self, rule: usize, device: &Device) -> bool;

    /// Whether `device`, with the labels that the policy gives it, passes a filter of a request. A filter
    /// that fails is not passed.
    fn selects(&self, _filter: &str, _device: &Device, _labels: &[String]) -> bool {
        false
    }

    /// How well each of `devices` suits `request`, higher is better; in their order. For [`Strategy::Score`].
    fn scores(
        &self,
        _request: &Request,
        devices: &[&DeviceState],
        _standing: &Standing,
        _now: WallMs,
    ) -> Vec<i64> {
        devices.iter().map(|_| 0).collect()
    }

    /// Which rules apply to `request` as it arrives, in the order in which they do.
    fn hits(&self, _request: &Request, _standing: &Standing, _now: WallMs) -> Vec<RuleHit> {
        Vec::new()
    }

    /// The rules that failed so far.
    fn errors(&self) -> Vec<RuleErrors> {
        Vec::new()
    }

    /// The next time after `now` at which a verdict can change by the hour alone.
    fn next_change(&self, now: WallMs) -> Option<WallMs>;

    /// The next time after `now` at which the clock of the policy's timezone shows `hour` and `minute`; UTC
    /// where it has none.
    fn next_clock(&self, hour: u8, minute: u8, now: WallMs) -> WallMs {
        const DAY_MS: u64 = 86_400_000;
        let of_day = (u64::from(hour) * 60 + u64::from(minute)) * 60_000;
        let today = (now.0 - now.0 % DAY_MS).saturating_add(of_day);
        match today > now.0 {
            true => WallMs(today),
            false => WallMs(today.saturating_add(DAY_MS)),
        }
    }
}

/// Rules that allow everything and match every device.
#[derive(Clone, Copy, Debug)]
pub struct NoRules;

impl Rules for NoRules {
    fn admit(&self, _request: &Request, _standing: &Standing, _now: WallMs) -> Verdict {
        Verdict::Allow
    }

    fn device_matches(&self, _rule: usize, _device: &Device) -> bool {
        true
    }

    fn next_change(&self, _now: WallMs) -> Option<WallMs> {
        None
    }
}

impl Policy {
    /// What holds before any file is read.
    pub fn built_in() -> Self {
        Self {
            source: Arc::default(),
            reload: ReloadSettings {
                held: Held::Drain,
                scope: ReloadScope::Violating,
                grace: Ms::from_secs(30),
                grace_max: Ms::from_secs(3600),
                confirm: Confirm::Drain,
                on_shrink: OnShrink::Keep,
                rollback_errors: 10,
                rollback_within: Ms::from_secs(300),
            },
            defaults: Defaults {
                class: STANDARD_CLASS.to_string(),
                ttl: Ms::from_secs(60),
                wait: Ms(0),
            },
            placement: Placement {
                strategy: Strategy::BestFit,
                reserve: 0,
                load_slots: 1,
            },
            queue: QueueSettings {
                order: QueueOrder::Priority,
                aging: Ms::from_secs(600),
                backfill: true,
                max_waiting: 1024,
                half_life: Ms::from_secs(3600),
            },
            reclaim: ReclaimSettings {
                verify: true,
                delay: Ms::from_secs(5),
                quarantine_after: Ms::from_secs(60),
                signal: SignalRule::Supervised,
            },
            foreign_ignore_below: 512 << 20,
            classes: BTreeMap::from([(STANDARD_CLASS.to_string(), Class::default())]),
            devices: Vec::new(),
            tenants: Vec::new(),
            rules: Arc::new(NoRules),
        }
    }

    /// What applies to `device`, all matching device rules taken together.
    pub(crate) fn device_settings(&self, device: &Device) -> DeviceSettings {
        let mut settings = DeviceSettings {
            reserve: self.placement.reserve,
            load_slots: self.placement.load_slots,
            labels: Vec::new(),
            cordon: None,
        };
        for (index, rule) in self.devices.iter().enumerate() {
            if self.rules.device_matches(index, device) {
                settings.overlay(rule);
            }
        }
        settings
    }

    /// Why what is held on `device` is no longer allowed there, if a device rule says so.
    pub(crate) fn drain_of(&self, device: &Device) -> Option<&String> {
        let rules = self.devices.iter().enumerate().rev();
        let mut drains = rules.filter_map(|(index, rule)| Some((index, rule.drain.as_ref()?)));
        drains
            .find(|(index, _)| self.rules.device_matches(*index, device))
            .map(|(_, why)| why)
    }

    /// The priority that orders a waiter now: what it arrived with, and one step per `aging` that it waited.
    pub fn effective_priority(&self, lease: &Lease, now: BootMs) -> i64 {
        let waited = now - lease.created.boot;
        let steps = waited.0.checked_div(self.queue.aging.0).unwrap_or(0);
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        lease.priority.saturating_add(steps)
    }

    /// The time that `request` has to drain under this policy.
    pub(crate) fn grace_for(&self, request: &Request) -> Ms {
        let class = self.classes.get(&request.class);
        let wanted = [
            Some(self.reload.grace),
            class.map(|class| class.drain_grace),
            request.drain_grace,
        ];
        let longest = wanted.into_iter().flatten().max().unwrap_or_default();
        longest.min(self.reload.grace_max)
    }

    /// The longest time that `request` may be held: the shorter of what it asked for and its class allows.
    pub(crate) fn max_hold_for(&self, request: &Request) -> Option<Ms> {
        let class = self.classes.get(&request.class);
        let limits = [request.max_hold, class.and_then(|class| class.max_hold)];
        limits.into_iter().flatten().min()
    }
}

impl fmt::Display for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), &self.user) {
            ("", Some(user)) => write!(f, "of user {user}"),
            (name, Some(user)) => write!(f, "{name} ({user})"),
            (name, None) => f.write_str(name),
        }
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.source.hash == other.source.hash
    }
}

impl Default for Class {
    fn default() -> Self {
        Self {
            priority: 0,
            drain_grace: Ms(0),
            max_hold: None,
        }
    }
}

/// What a policy says of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Bytes never granted.
    pub reserve: u64,
    /// Leases that may load at once.
    pub load_slots: u32,
    /// Words that people and rules see.
    pub labels: Vec<String>,
    /// Why no new grants are made here; a drain is a reason as well.
    pub cordon: Option<String>,
}

impl DeviceSettings {
    fn overlay(&mut self, rule: &DeviceRule) {
        self.reserve = rule.reserve.unwrap_or(self.reserve);
        self.load_slots = rule.load_slots.unwrap_or(self.load_slots);
        self.labels.extend(rule.labels.iter().cloned());
        let closed = rule.drain.as_ref().or(rule.cordon.as_ref());
        self.cordon = closed.cloned().or(self.cordon.take());
    }
}
