//! The policies of a scene, each by a number that is also its hash.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_lease::{
    Class, Device, DeviceRule, Held, Ms, Policy, PolicySource, QueueOrder, ReloadScope, Request,
    Rules, SignalRule, Standing, Strategy, Verdict, WallMs,
};

use super::GIB;
use crate::dice::Dice;

/// Rules by class and by the clock.
#[derive(Debug)]
struct SceneRules {
    /// Refused always.
    denied: Option<&'static str>,
    /// The class `hourly` starts only in the first half of each minute.
    hourly_waits: bool,
    /// The class `hourly` is refused in the last ten seconds of each minute.
    hourly_is_refused: bool,
    /// The device that each device rule is about; `None` is every one.
    devices: Vec<Option<&'static str>>,
}

impl Rules for SceneRules {
    fn admit(&self, request: &Request, _standing: &Standing, now: WallMs) -> Verdict {
        let second = now.0 / 1000 % 60;
        let hourly = request.class == "hourly";
        if self.denied == Some(request.class.as_str()) {
            return deny("no-such-work");
        }
        if hourly && self.hourly_is_refused && second >= 50 {
            return deny("rush-hour");
        }
        if hourly && self.hourly_waits && second >= 30 {
            return Verdict::Hold {
                rule: "hours".to_string(),
                reason: "starts in the first half of a minute".to_string(),
                until: self.next_change(now),
            };
        }
        Verdict::Allow
    }

    fn device_matches(&self, rule: usize, device: &Device) -> bool {
        self.devices[rule].is_none_or(|id| id == device.key.id.as_str())
    }

    fn next_change(&self, now: WallMs) -> Option<WallMs> {
        Some(WallMs((now.0 / 60_000 + 1) * 60_000))
    }
}

/// The policy of this number: always the same one.
pub fn policy(number: u64) -> Policy {
    let dice = &mut Dice::new(number);
    let mut policy = Policy::built_in();
    policy.source = Arc::new(PolicySource {
        hash: format!("policy-{number}"),
        files: Vec::new(),
    });
    if number > 0 {
        settle(&mut policy, dice);
    }
    policy
}

fn settle(policy: &mut Policy, dice: &mut Dice) {
    policy.placement.strategy = dice.pick(&[
        Strategy::BestFit,
        Strategy::FirstFit,
        Strategy::Pack,
        Strategy::Spread,
        Strategy::WorstFit,
    ]);
    policy.placement.reserve = dice.pick(&[0, 0, GIB, 4 * GIB]);
    policy.placement.load_slots = dice.pick(&[1, 1, 2]);
    policy.queue.order = dice.pick(&[QueueOrder::Priority, QueueOrder::Priority, QueueOrder::Fifo]);
    policy.queue.aging = Ms(dice.pick(&[0, 5_000, 600_000]));
    policy.queue.backfill = dice.chance(75);
    policy.queue.max_waiting = dice.pick(&[0, 3, 8, 1_000, 1_000, 1_000, 1_000]);
    policy.reclaim.verify = dice.chance(80);
    policy.reclaim.delay = Ms(dice.pick(&[500, 5_000]));
    policy.reclaim.quarantine_after = Ms(dice.pick(&[300, 8_000, 60_000]));
    policy.reclaim.signal = dice.pick(&[
        SignalRule::Always,
        SignalRule::Never,
        SignalRule::Supervised,
    ]);
    policy.reload.held = dice.pick(&[Held::Drain, Held::Drain, Held::Keep, Held::Force]);
    policy.reload.scope = match dice.chance(15) {
        true => ReloadScope::All,
        false => ReloadScope::Violating,
    };
    policy.reload.grace = Ms(dice.pick(&[0, 2_000, 30_000]));
    policy.reload.grace_max = Ms(dice.pick(&[20_000, 3_600_000]));
    policy.foreign_ignore_below = dice.pick(&[0, GIB / 2]);
    policy.classes.extend(classes(dice));
    (policy.devices, policy.rules) = rules(dice);
}

fn classes(dice: &mut Dice) -> BTreeMap<String, Class> {
    let mut classes = BTreeMap::new();
    for (name, priority) in [("batch", -3), ("interactive", 10), ("hourly", 0)] {
        if dice.chance(95) {
            let class = Class {
                priority,
                drain_grace: Ms(dice.pick(&[0, 5_000, 60_000])),
                max_hold: dice.maybe(40, &[Ms(2_000), Ms(15_000), Ms(90_000)]),
            };
            classes.insert(name.to_string(), class);
        }
    }
    classes
}

fn rules(dice: &mut Dice) -> (Vec<DeviceRule>, Arc<dyn Rules>) {
    let mut settings = Vec::new();
    let mut devices = Vec::new();
    for _ in 0..dice.below(3) {
        devices.push(dice.pick(&[None, Some("gpu-0"), Some("gpu-1"), Some("gpu-2")]));
        settings.push(DeviceRule {
            reserve: dice.maybe(50, &[0, 2 * GIB, 2 * GIB, 40 * GIB]),
            load_slots: dice.maybe(30, &[0, 1, 3]),
            labels: vec!["fast".to_string()],
            cordon: dice.maybe(8, &["kept for the demo".to_string()]),
            drain: None,
        });
    }
    let rules = SceneRules {
        denied: dice.maybe(25, &["batch", "interactive", "standard"]),
        hourly_waits: dice.chance(70),
        hourly_is_refused: dice.chance(30),
        devices,
    };
    (settings, Arc::new(rules))
}

fn deny(rule: &str) -> Verdict {
    Verdict::Deny {
        rule: rule.to_string(),
        reason: "not here".to_string(),
        erred: false,
    }
}
