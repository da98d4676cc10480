//! A policy as a flat list of settings: what it is hashed by, and what a difference is said in.

use std::fmt;

use gpu_lease::{
    Class, Confirm, Defaults, DeviceRule, Held, Ms, OnShrink, Placement, Policy, QueueOrder,
    QueueSettings, ReclaimSettings, ReloadScope, ReloadSettings, SignalRule, Strategy,
};
use sha2::{Digest, Sha256};

use crate::compile::{SourceFile, texts};
use crate::diagnostic::Problems;
use crate::draft::Draft;
use crate::hours::Schedule;
use crate::rules::PolicyRules;
use crate::units::{duration_text, size_text};

/// Part of every hash, so that a later schema with equal settings is another policy.
const SCHEMA: &str = "gpu-manager policy schema 1";

/// One difference between two policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The setting: `placement.strategy`, `class batch`, `class batch.priority`, `device *4090*.reserve`.
    pub setting: String,
    /// The old value; `None` if the thing is new.
    pub before: Option<String>,
    /// The new value; `None` if the thing is gone.
    pub after: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            setting,
            before,
            after,
        } = self;
        match (before, after) {
            (Some(before), Some(after)) => write!(f, "{setting}: {before} -> {after}"),
            (None, Some(after)) => write!(f, "{setting}: added ({after})"),
            (_, None) => write!(f, "{setting}: removed"),
        }
    }
}

/// What changes when `new` replaces `old`, in the order of the schema; empty if their hashes are equal.
///
/// Class hours and device names are read again from the texts of the two sources, so a time zone that is
/// set by an override shows as its value in the files.
pub fn diff(old: &Policy, new: &Policy) -> Vec<Change> {
    if old.source.hash == new.source.hash {
        return Vec::new();
    }
    let (old, new) = (Settings::read(old), Settings::read(new));
    let gone = old
        .groups
        .iter()
        .filter(|group| new.group(&group.title).is_none());
    let gone = gone.map(Group::removed);
    let kept_or_added = new
        .groups
        .iter()
        .flat_map(|group| match old.group(&group.title) {
            Some(before) => before.changes(group),
            None => vec![group.added()],
        });
    gone.chain(kept_or_added)
        .chain(old.reordered(&new))
        .collect()
}

/// Every setting of a policy, in words.
#[derive(Debug)]
pub(crate) struct Settings {
    groups: Vec<Group>,
}

/// A section, a class or a device rule.
#[derive(Debug)]
struct Group {
    title: String,
    values: Vec<(&'static str, String)>,
}

impl Settings {
    pub(crate) fn of(policy: &Policy, rules: &PolicyRules) -> Self {
        let Policy {
            source: _,
            tenants: _,
            reload,
            defaults,
            placement,
            queue,
            reclaim,
            foreign_ignore_below,
            classes,
            devices,
            rules: _,
        } = policy;
        let mut groups = vec![
            reload_group(reload),
            defaults_group(defaults),
            placement_group(placement),
            queue_group(queue),
            reclaim_group(reclaim),
            Group::new(
                "foreign",
                vec![("ignore_below", size_text(*foreign_ignore_below))],
            ),
        ];
        for (name, class) in classes {
            let schedule = rules.parts().classes.get(name).and_then(Option::as_ref);
            groups.push(class_group(name, class, schedule));
        }
        for (devices, rule) in rules.parts().devices.iter().zip(devices) {
            groups.push(device_group(devices.text(), rule));
        }
        Self { groups }
    }

    /// SHA-256 over all settings, in hexadecimal.
    pub(crate) fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        let mut word = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        word(SCHEMA);
        for Group { title, values } in &self.groups {
            word(title);
            for (key, value) in values {
                word(key);
                word(value);
            }
        }
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The settings of a compiled policy, what its rules hide read again from its source.
    fn read(policy: &Policy) -> Self {
        let files = policy.source.files.iter();
        let files: Vec<SourceFile> = files
            .map(|(name, text)| SourceFile::new(name, text.as_bytes()))
            .collect();
        let mut ignored = Problems::default();
        let texts = texts(&files, &mut ignored);
        let rules = Draft::read(&texts, &[], &mut ignored).rules();
        Self::of(policy, &rules)
    }

    fn group(&self, title: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.title == title)
    }

    /// Device rules apply in order, so another order of the same rules is a change.
    fn reordered(&self, new: &Self) -> Option<Change> {
        let common = |one: &Self, other: &Self| -> Vec<String> {
            let devices = one
                .groups
                .iter()
                .filter(|group| group.title.starts_with("device "));
            let common = devices.filter(|group| other.group(&group.title).is_some());
            common
                .map(|group| group.title["device ".len()..].to_owned())
                .collect()
        };
        let (before, after) = (common(self, new), common(new, self));
        (before != after).then(|| Change {
            setting: "device order".to_owned(),
            before: Some(before.join(", ")),
            after: Some(after.join(", ")),
        })
    }
}

impl Group {
    fn new(title: impl Into<String>, values: Vec<(&'static str, String)>) -> Self {
        Self {
            title: title.into(),
            values,
        }
    }

    fn removed(&self) -> Change {
        Change {
            setting: self.title.clone(),
            before: Some(self.words()),
            after: None,
        }
    }

    fn added(&self) -> Change {
        Change {
            setting: self.title.clone(),
            before: None,
            after: Some(self.words()),
        }
    }

    fn changes(&self, new: &Self) -> Vec<Change> {
        let pairs = self.values.iter().zip(&new.values);
        let changed = pairs.filter(|((_, before), (_, after))| before != after);
        let change = |((key, before), (_, after)): (&(&str, String), &(&str, String))| Change {
            setting: format!("{}.{key}", self.title),
            before: Some(before.clone()),
            after: Some(after.clone()),
        };
        changed.map(change).collect()
    }

    fn words(&self) -> String {
        let said = self.values.iter().filter(|(_, value)| value != NONE);
        let words: Vec<String> = said.map(|(key, value)| format!("{key} {value}")).collect();
        words.join(", ")
    }
}

const NONE: &str = "none";

fn reload_group(reload: &ReloadSettings) -> Group {
    let ReloadSettings {
        held,
        scope,
        grace,
        grace_max,
        confirm,
        on_shrink,
        rollback_errors,
        rollback_within,
    } = reload;
    let confirm = match confirm {
        Confirm::Never => "never",
        Confirm::Force => "force",
        Confirm::Drain => "drain",
    };
    let on_shrink = match on_shrink {
        OnShrink::Drain => "drain",
        OnShrink::Keep => "keep",
    };
    let held = match held {
        Held::Keep => "keep",
        Held::Drain => "drain",
        Held::Force => "force",
    };
    let scope = match scope {
        ReloadScope::All => "all",
        ReloadScope::Violating => "violating",
    };
    let values = vec![
        ("held", held.to_owned()),
        ("scope", scope.to_owned()),
        ("grace", duration_text(*grace)),
        ("grace_max", duration_text(*grace_max)),
        ("confirm", confirm.to_owned()),
        ("on_shrink", on_shrink.to_owned()),
        ("rollback_errors", rollback_errors.to_string()),
        ("rollback_within", duration_text(*rollback_within)),
    ];
    Group::new("reload", values)
}

fn defaults_group(defaults: &Defaults) -> Group {
    let Defaults { class, ttl, wait } = defaults;
    let values = vec![
        ("class", class.clone()),
        ("ttl", duration_text(*ttl)),
        ("wait", duration_text(*wait)),
    ];
    Group::new("defaults", values)
}

fn placement_group(placement: &Placement) -> Group {
    let Placement {
        strategy,
        reserve,
        load_slots,
    } = placement;
    let strategy = match strategy {
        Strategy::BestFit => "best-fit",
        Strategy::FirstFit => "first-fit",
        Strategy::Pack => "pack",
        Strategy::Score => "score",
        Strategy::Spread => "spread",
        Strategy::WorstFit => "worst-fit",
    };
    let values = vec![
        ("strategy", strategy.to_owned()),
        ("reserve", size_text(*reserve)),
        ("load_slots", load_slots.to_string()),
    ];
    Group::new("placement", values)
}

fn queue_group(queue: &QueueSettings) -> Group {
    let QueueSettings {
        order,
        aging,
        backfill,
        max_waiting,
        half_life,
    } = queue;
    let order = match order {
        QueueOrder::FairShare => "fair-share",
        QueueOrder::Fifo => "fifo",
        QueueOrder::Priority => "priority",
    };
    let values = vec![
        ("order", order.to_owned()),
        ("aging", duration_text(*aging)),
        ("backfill", backfill.to_string()),
        ("max_waiting", max_waiting.to_string()),
        ("half_life", duration_text(*half_life)),
    ];
    Group::new("queue", values)
}

fn reclaim_group(reclaim: &ReclaimSettings) -> Group {
    let ReclaimSettings {
        verify,
        delay,
        quarantine_after,
        signal,
    } = reclaim;
    let signal = match signal {
        SignalRule::Always => "always",
        SignalRule::Never => "never",
        SignalRule::Supervised => "supervised",
    };
    let values = vec![
        ("verify", verify.to_string()),
        ("delay", duration_text(*delay)),
        ("quarantine_after", duration_text(*quarantine_after)),
        ("signal", signal.to_owned()),
    ];
    Group::new("reclaim", values)
}

fn class_group(name: &str, class: &Class, schedule: Option<&Schedule>) -> Group {
    let Class {
        priority,
        drain_grace,
        max_hold,
    } = class;
    let values = vec![
        ("priority", priority.to_string()),
        ("drain_grace", duration_text(*drain_grace)),
        (
            "max_hold",
            or_none(max_hold.map(|length: Ms| duration_text(length))),
        ),
        ("hours", or_none(schedule.map(Schedule::to_string))),
    ];
    Group::new(format!("class {name}"), values)
}

fn device_group(pattern: &str, rule: &DeviceRule) -> Group {
    let DeviceRule {
        reserve,
        load_slots,
        labels,
        cordon,
        drain,
    } = rule;
    let labels = (!labels.is_empty()).then(|| labels.join(" "));
    let values = vec![
        ("reserve", or_none(reserve.map(size_text))),
        (
            "load_slots",
            or_none(load_slots.map(|slots| slots.to_string())),
        ),
        ("labels", or_none(labels)),
        (
            "cordon",
            or_none(cordon.as_ref().map(|reason| format!("\"{reason}\""))),
        ),
        (
            "drain",
            or_none(drain.as_ref().map(|reason| format!("\"{reason}\""))),
        ),
    ];
    Group::new(format!("device {pattern}"), values)
}

fn or_none(value: Option<String>) -> String {
    value.unwrap_or_else(|| NONE.to_owned())
}
