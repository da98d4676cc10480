//! The schema: which keys there are, what they mean, and how the layers add up.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu_lease::{
    Class, DeviceRule, Held, Ms, Policy, PolicySource, QueueOrder, ReloadScope, STANDARD_CLASS,
    SignalRule, Strategy,
};
use jiff::tz::TimeZone;

use crate::diagnostic::{Problem, Problems, Site};
use crate::hours::{Hours, Schedule};
use crate::overrides::Override;
use crate::rules::{DeviceMatch, Parts, PolicyRules};
use crate::section::{Located, Section};
use crate::settings::Settings;
use crate::suggest::{did_you_mean, list};
use crate::text::Text;
use crate::value::{
    self, DevicePattern, Words, device_pattern, duration, flag, integer, names, one_of, sentence,
    size,
};

const HELD: &Words<Held> = &[
    ("keep", Some(Held::Keep)),
    ("drain", Some(Held::Drain)),
    ("force", Some(Held::Force)),
];
const SCOPE: &Words<ReloadScope> = &[
    ("violating", Some(ReloadScope::Violating)),
    ("all", Some(ReloadScope::All)),
];
/// Whether a saved file waits for a confirmation.
const CONFIRM: &Words<()> = &[("never", Some(())), ("drain", None), ("force", None)];
const STRATEGY: &Words<Strategy> = &[
    ("first-fit", Some(Strategy::FirstFit)),
    ("best-fit", Some(Strategy::BestFit)),
    ("worst-fit", Some(Strategy::WorstFit)),
    ("spread", Some(Strategy::Spread)),
    ("pack", Some(Strategy::Pack)),
    ("fgd", None),
    ("score", None),
];
const ORDER: &Words<QueueOrder> = &[
    ("fifo", Some(QueueOrder::Fifo)),
    ("priority", Some(QueueOrder::Priority)),
    ("fair-share", None),
];
const SIGNAL: &Words<SignalRule> = &[
    ("never", Some(SignalRule::Never)),
    ("supervised", Some(SignalRule::Supervised)),
    ("always", Some(SignalRule::Always)),
];

const SECOND: Ms = Ms::from_secs(1);
const HOUR: Ms = Ms::from_secs(3600);
const DAY: Ms = Ms::from_secs(86_400);
const MONTH: Ms = Ms::from_secs(30 * 86_400);
const YEAR: Ms = Ms::from_secs(365 * 86_400);

const SIZE_BYTES_MAX: u64 = 1 << 50;
const LOAD_SLOTS_MAX: i64 = 64;
const WAITING_MAX: i64 = 100_000;
const PRIORITY_MAX: i64 = 1_000_000;
const CLASSES_MAX: usize = 256;
const DEVICE_RULES_MAX: usize = 256;

/// The layers read so far.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    policy: Policy,
    zone: Option<TimeZone>,
    classes: BTreeMap<String, ClassDraft<'a>>,
    devices: Vec<DeviceDraft<'a>>,
    default_class: Option<Site<'a>>,
    grace: Option<Site<'a>>,
    grace_max: Option<Site<'a>>,
}

#[derive(Debug)]
struct ClassDraft<'a> {
    class: Class,
    hours: Option<Located<'a, Hours>>,
    declared: Site<'a>,
}

#[derive(Debug)]
struct DeviceDraft<'a> {
    pattern: DevicePattern,
    rule: DeviceRule,
    declared: Site<'a>,
}

impl<'a> Draft<'a> {
    /// All layers, the lowest first. What is wrong with them goes to `problems`.
    pub(crate) fn read(
        texts: &'a [Text],
        overrides: &'a [Override],
        problems: &mut Problems,
    ) -> Self {
        let mut draft = Self {
            policy: Policy::built_in(),
            zone: None,
            classes: BTreeMap::new(),
            devices: Vec::new(),
            default_class: None,
            grace: None,
            grace_max: None,
        };
        let mut whole = true;
        for text in texts {
            match text.parse(problems) {
                Some(tree) => draft.layer(Section::root(text, tree, problems)),
                None => whole = false,
            }
        }
        for setting in overrides {
            draft.layer(Section::root(setting.text(), setting.tree(), problems));
        }
        if whole {
            draft.check(problems);
        }
        draft
    }

    /// The policy that the layers add up to, if they had no problems.
    pub(crate) fn into_policy(self, texts: &[Text]) -> Policy {
        let rules = self.rules();
        let mut policy = self.policy;
        policy.classes.extend(
            self.classes
                .into_iter()
                .map(|(name, draft)| (name, draft.class)),
        );
        policy.devices = self.devices.into_iter().map(|draft| draft.rule).collect();
        policy.source = Arc::new(PolicySource {
            hash: Settings::of(&policy, &rules).hash(),
            files: texts
                .iter()
                .map(|text| (text.name.clone(), text.body.clone()))
                .collect(),
        });
        policy.rules = Arc::new(rules);
        policy
    }

    /// The part of the policy that is evaluated.
    pub(crate) fn rules(&self) -> PolicyRules {
        let schedule = |draft: &ClassDraft<'_>| {
            let hours = draft.hours.as_ref()?.value;
            let zone = self.zone.clone()?;
            Some(Schedule { hours, zone })
        };
        let declared = self
            .classes
            .iter()
            .map(|(name, draft)| (name.clone(), schedule(draft)));
        PolicyRules::new(Parts {
            classes: [(STANDARD_CLASS.to_owned(), None)]
                .into_iter()
                .chain(declared)
                .collect(),
            devices: self
                .devices
                .iter()
                .map(|draft| DeviceMatch::Pattern(draft.pattern.clone()))
                .collect(),
            zone: self.zone.clone(),
            ..Parts::default()
        })
    }

    fn layer(&mut self, mut root: Section<'a, '_>) {
        root.take("schema", value::schema_version);
        root.table("reload", |section| self.reload(section));
        root.table("defaults", |section| self.defaults(section));
        root.table("placement", |section| self.placement(section));
        root.table("queue", |section| self.queue(section));
        root.table("reclaim", |section| self.reclaim(section));
        root.table("foreign", |section| {
            let slot = &mut self.policy.foreign_ignore_below;
            section.set("ignore_below", slot, size(0..=SIZE_BYTES_MAX));
        });
        root.tables("class", |section| self.class(section));
        root.tables("device", |section| self.device(section));
        for planned in ["tenant", "rule", "engine", "hook"] {
            root.later(planned);
        }
        root.finish();
    }

    fn reload(&mut self, section: &mut Section<'a, '_>) {
        let reload = &mut self.policy.reload;
        section.set("held", &mut reload.held, one_of(HELD));
        section.set("scope", &mut reload.scope, one_of(SCOPE));
        let grace = section.set("grace", &mut reload.grace, duration(Ms(0)..=MONTH));
        let grace_max = section.set("grace_max", &mut reload.grace_max, duration(Ms(0)..=MONTH));
        section.take("confirm", one_of(CONFIRM));
        section.later("on_shrink");
        self.grace = grace.or(self.grace.take());
        self.grace_max = grace_max.or(self.grace_max.take());
    }

    fn defaults(&mut self, section: &mut Section<'a, '_>) {
        let defaults = &mut self.policy.defaults;
        let class = section.set("class", &mut defaults.class, value::name);
        section.set("ttl", &mut defaults.ttl, duration(SECOND..=HOUR));
        section.set("wait", &mut defaults.wait, duration(Ms(0)..=MONTH));
        section.set("timezone", &mut self.zone, |value| {
            value::timezone(value).map(Some)
        });
        self.default_class = class.or(self.default_class.take());
    }

    fn placement(&mut self, section: &mut Section<'a, '_>) {
        let placement = &mut self.policy.placement;
        section.set("strategy", &mut placement.strategy, one_of(STRATEGY));
        section.set("reserve", &mut placement.reserve, size(0..=SIZE_BYTES_MAX));
        section.set(
            "load_slots",
            &mut placement.load_slots,
            integer(1..=LOAD_SLOTS_MAX),
        );
    }

    fn queue(&mut self, section: &mut Section<'a, '_>) {
        let queue = &mut self.policy.queue;
        section.set("order", &mut queue.order, one_of(ORDER));
        section.set("aging", &mut queue.aging, duration(Ms(0)..=MONTH));
        section.set("backfill", &mut queue.backfill, flag);
        section.set(
            "max_waiting",
            &mut queue.max_waiting,
            integer(0..=WAITING_MAX),
        );
    }

    fn reclaim(&mut self, section: &mut Section<'a, '_>) {
        let reclaim = &mut self.policy.reclaim;
        section.set("verify", &mut reclaim.verify, flag);
        section.set("delay", &mut reclaim.delay, duration(Ms(0)..=HOUR));
        section.set(
            "quarantine_after",
            &mut reclaim.quarantine_after,
            duration(SECOND..=DAY),
        );
        section.set("signal", &mut reclaim.signal, one_of(SIGNAL));
    }

    fn class(&mut self, section: &mut Section<'a, '_>) {
        let mut class = Class::default();
        let name = section.require("name", value::name);
        section.set(
            "priority",
            &mut class.priority,
            integer(-PRIORITY_MAX..=PRIORITY_MAX),
        );
        section.set(
            "drain_grace",
            &mut class.drain_grace,
            duration(Ms(0)..=MONTH),
        );
        section.set("max_hold", &mut class.max_hold, |value| {
            duration(SECOND..=YEAR)(value).map(Some)
        });
        let hours = section.take("hours", value::hours);
        let replace = section
            .take("replace", flag)
            .is_some_and(|replace| replace.value);
        section.later("preempts");
        section.later("min_runtime");

        let Some(Located {
            value: name,
            site: declared,
        }) = name
        else {
            return;
        };
        match self.classes.get(&name) {
            Some(first) if !replace => {
                section.problem(&declared, declared_twice("class", &name, &first.declared));
            }
            None if self.classes.len() >= CLASSES_MAX => {
                section.problem(
                    &declared,
                    Problem::new(format!("there are more than {CLASSES_MAX} classes")),
                );
            }
            _ => {
                self.classes.insert(
                    name,
                    ClassDraft {
                        class,
                        hours,
                        declared,
                    },
                );
            }
        }
    }

    fn device(&mut self, section: &mut Section<'a, '_>) {
        let mut rule = DeviceRule::default();
        let pattern = section.require("name", device_pattern);
        section.set("reserve", &mut rule.reserve, |value| {
            size(0..=SIZE_BYTES_MAX)(value).map(Some)
        });
        section.set("load_slots", &mut rule.load_slots, |value| {
            integer(1..=LOAD_SLOTS_MAX)(value).map(Some)
        });
        section.set("labels", &mut rule.labels, names);
        section.set("cordon", &mut rule.cordon, |value| {
            sentence(value).map(Some)
        });
        let replace = section
            .take("replace", flag)
            .is_some_and(|replace| replace.value);
        section.later("match");

        let Some(Located {
            value: pattern,
            site: declared,
        }) = pattern
        else {
            return;
        };
        let first = self
            .devices
            .iter()
            .position(|draft| draft.pattern.text == pattern.text);
        match first {
            Some(index) if !replace => {
                let first = &self.devices[index].declared;
                section.problem(&declared, declared_twice("device", &pattern.text, first));
                return;
            }
            Some(index) => drop(self.devices.remove(index)),
            None if self.devices.len() >= DEVICE_RULES_MAX => {
                let message = format!("there are more than {DEVICE_RULES_MAX} device tables");
                section.problem(&declared, Problem::new(message));
                return;
            }
            None => {}
        }
        self.devices.push(DeviceDraft {
            pattern,
            rule,
            declared,
        });
    }

    /// What no single key can be wrong about.
    fn check(&self, problems: &mut Problems) {
        let defaults = &self.policy.defaults;
        if let Some(site) = &self.default_class
            && !self.has_class(&defaults.class)
        {
            problems.add(site, self.no_such_class(&defaults.class));
        }
        let reload = &self.policy.reload;
        if let Some(site) = self.grace.as_ref().or(self.grace_max.as_ref())
            && reload.grace > reload.grace_max
        {
            problems.add(site, grace_too_long(reload.grace, reload.grace_max));
        }
        if self.zone.is_none() {
            let hours = self
                .classes
                .values()
                .filter_map(|draft| draft.hours.as_ref());
            hours.for_each(|hours| problems.add(&hours.site, no_timezone()));
        }
    }

    fn has_class(&self, name: &str) -> bool {
        name == STANDARD_CLASS || self.classes.contains_key(name)
    }

    fn no_such_class(&self, name: &str) -> Problem {
        let known = || {
            self.classes
                .keys()
                .map(String::as_str)
                .chain([STANDARD_CLASS])
        };
        let hint = did_you_mean(name, known())
            .unwrap_or_else(|| format!("the classes are {}", list(known())));
        Problem::new(format!("class `{name}` does not exist")).hint(hint)
    }
}

fn declared_twice(what: &str, name: &str, first: &Site<'_>) -> Problem {
    Problem::new(format!(
        "{what} `{name}` is declared twice, first in {first}"
    ))
    .hint("say `replace = true` here, or remove one of the two")
}

fn grace_too_long(grace: Ms, grace_max: Ms) -> Problem {
    Problem::new(format!(
        "`grace` {grace} is longer than `grace_max` {grace_max}"
    ))
    .hint("raise `grace_max` as well")
}

fn no_timezone() -> Problem {
    Problem::new("`hours` need a time zone")
        .hint("say it once, under `[defaults]`: timezone = \"Europe/Berlin\"")
}
