//! Rules of a scene: by class, by the clock, by the books, by user; and what they make of requests.

use gpu_lease::{
    Amount, Device, DeviceState, Ms, Refusal, Request, RuleHit, Rules, Sets, Standing, Verdict,
    WallMs,
};

use super::GIB;
use crate::dice::Dice;

/// Filters that requests of a scene have.
pub(super) const FILTERS: [&str; 4] = ["even", "fast", "big", "broken"];
/// Names that requests claim as their tenants.
pub(super) const TENANTS: [&str; 3] = ["lab", "guests", "each"];

/// Everything that the rules of one policy say.
#[derive(Debug, Default)]
pub(super) struct SceneRules {
    /// Refused always.
    pub(super) denied: Option<&'static str>,
    /// The class `hourly` starts only in the first half of each minute.
    pub(super) hourly_waits: bool,
    /// The class `hourly` is refused in the last ten seconds of each minute.
    pub(super) hourly_is_refused: bool,
    /// A rule fails on this class and says deny.
    pub(super) errs_on: Option<&'static str>,
    /// A user waits who would hold more devices.
    pub(super) user_devices: Option<u32>,
    /// A tenant, or a user without one, is refused who holds so many leases.
    pub(super) tenant_leases: Option<u32>,
    /// Everybody waits while so many do.
    pub(super) crowd: Option<u32>,
    /// More than this part of all memory, in hundredths, is refused.
    pub(super) percent: Option<u64>,
    /// Large jobs become batch jobs.
    pub(super) large_is_batch: bool,
    /// Jobs of this user come first, and not for long.
    pub(super) favourite: Option<&'static str>,
    /// Jobs of class batch go to the devices that pass this filter.
    pub(super) batch_filter: Option<&'static str>,
    /// The device that each device rule is about; `None` is every one.
    pub(super) devices: Vec<Option<&'static str>>,
    /// The tenants of the policy, each with its members.
    pub(super) tenants: Vec<(&'static str, Members)>,
}

/// Whom a tenant is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Members {
    /// This user.
    User(&'static str),
    /// Whoever says so.
    Claimed,
    /// Everybody.
    Everybody,
}

impl SceneRules {
    pub(super) fn roll(dice: &mut Dice) -> Self {
        let reads = dice.chance(30);
        let of_books = |dice: &mut Dice, options: &[u32]| match reads {
            true => dice.maybe(40, options),
            false => None,
        };
        Self {
            denied: dice.maybe(25, &["batch", "interactive", "standard"]),
            hourly_waits: dice.chance(70),
            hourly_is_refused: dice.chance(30),
            errs_on: dice.maybe(8, &["batch", "interactive"]),
            user_devices: of_books(dice, &[1, 2, 3]),
            tenant_leases: of_books(dice, &[1, 3, 5]),
            crowd: of_books(dice, &[1, 3]),
            percent: of_books(dice, &[20, 50]).map(u64::from),
            large_is_batch: dice.chance(20),
            favourite: dice.maybe(20, &["ann", "bo"]),
            batch_filter: dice.maybe(15, &["even", "fast"]),
            devices: Vec::new(),
            tenants: Vec::new(),
        }
    }

    /// Whether a lease may be refused at one second and not at another.
    pub(super) fn refuse_by_the_clock(&self) -> bool {
        self.hourly_is_refused
    }

    fn by_the_books(&self, request: &Request, standing: &Standing) -> Option<Verdict> {
        let devices = standing.user.devices + request.devices;
        if self
            .tenant_leases
            .is_some_and(|most| standing.tenant.leases >= most)
        {
            return Some(deny("enough-leases"));
        }
        if let (Some(percent), Amount::Memory(bytes)) = (self.percent, request.amount)
            && bytes > standing.grantable / 100 * percent
        {
            return Some(deny("too-large-a-part"));
        }
        if self.user_devices.is_some_and(|most| devices > most) {
            return Some(hold("enough-devices", None));
        }
        let crowded = self.crowd.is_some_and(|most| standing.waiting >= most);
        crowded.then(|| hold("a-crowd", None))
    }
}

impl Rules for SceneRules {
    fn admit(&self, request: &Request, standing: &Standing, now: WallMs) -> Verdict {
        let second = now.0 / 1000 % 60;
        let hourly = request.class == "hourly";
        if self.denied == Some(request.class.as_str()) {
            return deny("no-such-work");
        }
        if self.errs_on == Some(request.class.as_str()) {
            return Verdict::Deny {
                rule: "fragile".to_string(),
                reason: "it failed".to_string(),
                erred: true,
            };
        }
        if hourly && self.hourly_is_refused && second >= 50 {
            return deny("rush-hour");
        }
        if hourly && self.hourly_waits && second >= 30 {
            return hold("hours", self.next_change(now));
        }
        let by_books = self.by_the_books(request, standing);
        by_books.unwrap_or(Verdict::Allow)
    }

    fn shape(&self, request: &Request, standing: &Standing, _now: WallMs) -> Sets {
        let mut sets = Sets::default();
        let large = matches!(request.amount, Amount::Memory(bytes) if bytes > 16 * GIB);
        if self.large_is_batch && large {
            sets.class = Some("batch".to_string());
        }
        if self.favourite == Some(request.holder.user.as_str()) {
            sets.priority = Some(7 - i64::from(standing.user.leases));
            sets.max_hold = Some(Ms(60_000));
            sets.ttl = Some(Ms(30_000));
        }
        if let Some(filter) = self.batch_filter.filter(|_| request.class == "batch") {
            sets.filters.push(filter.to_string());
        }
        sets
    }

    fn reads_standing(&self) -> bool {
        let limits = [self.user_devices, self.tenant_leases, self.crowd];
        limits.iter().any(Option::is_some) || self.percent.is_some()
    }

    fn tenant(&self, request: &Request) -> Result<Option<usize>, Refusal> {
        let user = request.holder.user.as_str();
        let matches = |members: &Members| match members {
            Members::User(name) => Some(*name == user),
            Members::Everybody => Some(true),
            Members::Claimed => None,
        };
        let mut tenants = self.tenants.iter();
        let Some(claim) = &request.holder.tenant else {
            return Ok(tenants.position(|(_, members)| matches(members) == Some(true)));
        };
        let place =
            tenants.position(|(name, members)| name == claim && matches(members) != Some(false));
        place.map(Some).ok_or(Refusal {
            rule: format!("tenant {claim}"),
            reason: "not a member".to_string(),
        })
    }

    fn device_matches(&self, rule: usize, device: &Device) -> bool {
        self.devices[rule].is_none_or(|id| id == device.key.id.as_str())
    }

    fn selects(&self, filter: &str, device: &Device, labels: &[String]) -> bool {
        match filter {
            "even" => device.index.is_multiple_of(2),
            "fast" => labels.iter().any(|label| label == "fast"),
            "big" => device.memory_total > 12 * GIB,
            _ => false,
        }
    }

    fn scores(
        &self,
        _request: &Request,
        devices: &[&DeviceState],
        standing: &Standing,
        _now: WallMs,
    ) -> Vec<i64> {
        let odd = standing.user.leases % 2 == 1;
        let score = |state: &&DeviceState| {
            let granted = i64::try_from(state.usage.granted / GIB).expect("a card is small");
            if odd { -granted } else { granted }
        };
        devices.iter().map(score).collect()
    }

    fn hits(&self, request: &Request, standing: &Standing, now: WallMs) -> Vec<RuleHit> {
        vec![RuleHit {
            rule: "all".to_string(),
            effect: format!("{:?}", self.admit(request, standing, now)),
        }]
    }

    fn next_change(&self, now: WallMs) -> Option<WallMs> {
        Some(WallMs((now.0 / 60_000 + 1) * 60_000))
    }
}

fn deny(rule: &str) -> Verdict {
    Verdict::Deny {
        rule: rule.to_string(),
        reason: "not here".to_string(),
        erred: false,
    }
}

fn hold(rule: &str, until: Option<WallMs>) -> Verdict {
    Verdict::Hold {
        rule: rule.to_string(),
        reason: "not yet".to_string(),
        until,
    }
}
