//! The policies of a scene, each by a number that is also its hash.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_lease::{
    Class, DeviceRule, Held, Ms, OnShrink, Policy, PolicySource, QueueOrder, ReloadScope,
    SignalRule, Strategy, Tenant,
};

use super::GIB;
use super::rules::{Members, SceneRules, TENANTS};
use crate::dice::Dice;

/// Marks a policy whose rules refuse leases by the clock: what is planned with it may be otherwise later.
pub(crate) const BY_THE_CLOCK: &str = "by the clock";

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
        Strategy::Score,
        Strategy::Spread,
        Strategy::WorstFit,
    ]);
    policy.placement.reserve = dice.pick(&[0, 0, GIB, 4 * GIB]);
    policy.placement.load_slots = dice.pick(&[1, 1, 2]);
    policy.queue.order = dice.pick(&[
        QueueOrder::Priority,
        QueueOrder::Priority,
        QueueOrder::FairShare,
        QueueOrder::FairShare,
        QueueOrder::Fifo,
    ]);
    policy.queue.half_life = Ms(dice.pick(&[60_000, 3_600_000, 86_400_000]));
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
    policy.reload.on_shrink = dice.pick(&[OnShrink::Drain, OnShrink::Keep]);
    policy.foreign_ignore_below = dice.pick(&[0, GIB / 2]);
    policy.classes.extend(classes(dice));
    let mut rules = SceneRules::roll(dice);
    policy.devices = devices(dice, &mut rules);
    policy.tenants = tenants(dice, &mut rules);
    if rules.refuse_by_the_clock() {
        let source = Arc::make_mut(&mut policy.source);
        source.files.push((BY_THE_CLOCK.to_string(), String::new()));
    }
    policy.rules = Arc::new(rules);
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

fn devices(dice: &mut Dice, rules: &mut SceneRules) -> Vec<DeviceRule> {
    let mut settings = Vec::new();
    for _ in 0..dice.below(3) {
        let device = dice.pick(&[None, Some("gpu-0"), Some("gpu-1"), Some("gpu-2")]);
        rules.devices.push(device);
        settings.push(DeviceRule {
            reserve: dice.maybe(50, &[0, 2 * GIB, 2 * GIB, 12 * GIB, 40 * GIB]),
            load_slots: dice.maybe(30, &[0, 1, 3]),
            labels: vec!["fast".to_string()],
            cordon: dice.maybe(8, &["kept for the demo".to_string()]),
            drain: dice.maybe(16, &["goes back to the shop".to_string()]),
        });
    }
    settings
}

fn tenants(dice: &mut Dice, rules: &mut SceneRules) -> Vec<Tenant> {
    if dice.chance(50) {
        return Vec::new();
    }
    let mut tenants = Vec::new();
    for name in TENANTS {
        if dice.chance(60) {
            let members = dice.pick(&[
                Members::User("ann"),
                Members::User("bo"),
                Members::Claimed,
                Members::Everybody,
                Members::Everybody,
            ]);
            rules.tenants.push((name, members));
            tenants.push(Tenant {
                name: name.to_string(),
                weight: dice.pick(&[1, 1, 2, 4]),
                max_devices: dice.maybe(40, &[0, 1, 2, 4]),
                max_memory: dice.maybe(40, &[2 * GIB, 12 * GIB, 24 * GIB, 60 * GIB]),
                max_leases: dice.maybe(40, &[0, 1, 2, 5]),
                per_user: name == "each" || dice.chance(20),
            });
        }
    }
    tenants
}
