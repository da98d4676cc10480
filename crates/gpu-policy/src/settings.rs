//! A policy as a flat list of settings: what it is hashed by, and what a difference is said in.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use gpu_lease::{
    Class, Confirm, Defaults, DeviceRule, Held, OnShrink, Placement, Policy, QueueOrder,
    QueueSettings, ReclaimSettings, ReloadScope, ReloadSettings, STANDARD_CLASS, SignalRule,
    Strategy, Tenant,
};
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};

use crate::compile::{SourceFile, texts};
use crate::diagnostic::Problems;
use crate::draft::Draft;
use crate::hours::Schedule;
use crate::overrides::Override;
use crate::rules::OnError;
use crate::tables::{
    About, ActionDraft, ClassDraft, DeviceDraft, RuleDraft, SetDraft, TenantDraft,
};
use crate::units::{duration_text, size_text};

/// Part of every hash, so that a later schema with equal settings is another policy.
const SCHEMA: &str = "gpu-manager policy schema 1";

/// One difference between two policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The setting: `placement.strategy`, `class batch`, `rule big jobs.when`, `device *4090*.reserve`.
    pub setting: String,
    /// The old value; `None` if the thing is new.
    pub before: Option<String>,
    /// The new value; `None` if the thing is gone.
    pub after: Option<String>,
    /// The thing itself is the same and comes before or after others than it did.
    pub moved: bool,
    /// The origin of an override that hides this change of the files, such as `--set`.
    pub shadowed_by: Option<String>,
}

/// The layers of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a> {
    /// File names and texts, in the order in which they apply, as [`gpu_lease::PolicySource`] has them.
    pub files: &'a [(String, String)],
    /// What is above the files.
    pub overrides: &'a [Override],
}

impl Change {
    fn new(setting: impl Into<String>, before: Option<&str>, after: Option<&str>) -> Self {
        Self {
            setting: one_line(&setting.into()),
            before: before.map(one_line),
            after: after.map(one_line),
            moved: false,
            shadowed_by: None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            setting,
            before,
            after,
            moved,
            shadowed_by,
        } = self;
        match (before, after) {
            (Some(before), Some(after)) if *moved => {
                write!(f, "{setting}: moved ({before} -> {after})")
            }
            (Some(before), Some(after)) => write!(f, "{setting}: {before} -> {after}"),
            (None, Some(after)) => write!(f, "{setting}: added ({after})"),
            (_, None) => write!(f, "{setting}: removed"),
        }?;
        match shadowed_by {
            Some(origin) => write!(f, " (shadowed by {origin})"),
            None => Ok(()),
        }
    }
}

/// What changes when `new` replaces `old`, in the order of the schema; empty if their hashes are equal.
///
/// What only text says, such as rules, is read again from the two sources, which do not have the overrides:
/// a time zone or a score that is set by one shows as its value in the files. [`diff_sources`] knows them.
pub fn diff(old: &Policy, new: &Policy) -> Vec<Change> {
    if old.source.hash == new.source.hash {
        return Vec::new();
    }
    Settings::read(old).changes(&Settings::read(new))
}

/// What changes from one set of layers to the other: first what takes effect, as [`diff`] says it, then what
/// the files say anew and an override of `after` hides. Layers with errors count as far as they can be read.
pub fn diff_sources(before: Layers<'_>, after: Layers<'_>) -> Vec<Change> {
    let mut changes = Settings::of_layers(before).changes(&Settings::of_layers(after));
    changes.extend(shadowed(before, after));
    changes
}

/// The settings that the files of `after` change below an override.
fn shadowed(before: Layers<'_>, after: Layers<'_>) -> Vec<Change> {
    let hiding: BTreeMap<String, &str> = Override::in_order(after.overrides)
        .into_iter()
        .map(|setting| (setting.setting(), setting.origin()))
        .collect();
    if hiding.is_empty() {
        return Vec::new();
    }
    let alone = |layers: Layers<'_>| {
        Settings::of_layers(Layers {
            overrides: &[],
            ..layers
        })
    };
    let (old, new) = (alone(before), alone(after));
    let change = |(setting, origin): (&String, &&str)| {
        let ((_, before), (_, after)) = (old.entry(setting)?, new.entry(setting)?);
        (before != after).then(|| Change {
            shadowed_by: Some((*origin).to_owned()),
            ..Change::new(setting.as_str(), Some(shown(before)), Some(shown(after)))
        })
    };
    hiding.iter().filter_map(change).collect()
}

/// Every setting of a policy, in words.
#[derive(Debug)]
pub(crate) struct Settings {
    groups: Vec<Group>,
}

/// A section or a table.
#[derive(Debug)]
struct Group {
    kind: Kind,
    title: String,
    values: Vec<Entry>,
}

/// A key, and its value if it has one.
type Entry = (&'static str, Option<String>);

/// What a group is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Class,
    Device,
    Rule,
    Section,
    Tenant,
}

impl Settings {
    pub(crate) fn of(draft: &Draft<'_>) -> Self {
        let Policy {
            source: _,
            tenants: _,
            reload,
            defaults,
            placement,
            queue,
            reclaim,
            foreign_ignore_below,
            classes: _,
            devices: _,
            rules: _,
        } = &draft.policy;
        let zone = draft.zone.as_ref().and_then(TimeZone::iana_name);
        let score = draft.score.as_ref().map(|score| score.value.text.as_str());
        let sections = [
            reload_group(reload),
            defaults_group(defaults, zone),
            placement_group(placement, score),
            queue_group(queue),
            reclaim_group(reclaim),
            Group::section(
                "foreign",
                vec![("ignore_below", Some(size_text(*foreign_ignore_below)))],
            ),
        ];
        let classes = class_groups(draft);
        let tenants = draft.tenants.iter();
        let tenants = tenants.map(|tenant| tenant_group(&tenant.value));
        let rules = draft.rules.iter();
        let rules = rules.map(|rule| rule_group(&rule.name, &rule.value));
        let devices = draft.devices.iter();
        let devices = devices.map(|device| device_group(&device.name, &device.value));
        Self {
            groups: sections
                .into_iter()
                .chain(classes)
                .chain(tenants)
                .chain(rules)
                .chain(devices)
                .collect(),
        }
    }

    /// What holds before any file is read.
    pub(crate) fn built_in() -> Self {
        Self::of(&Draft::read(&[], &[], &mut Problems::default()))
    }

    /// The value of `section.key`, or of a `class.key` of the built-in class; `None` if there is none.
    pub(crate) fn value(&self, setting: &str) -> Option<&str> {
        self.entry(setting)?.1.as_deref()
    }

    fn entry(&self, setting: &str) -> Option<&Entry> {
        let (section, key) = setting.split_once('.')?;
        let title = match section {
            "class" => "class standard",
            section => section,
        };
        let group = self.groups.iter().find(|group| group.title == title)?;
        group.values.iter().find(|(known, _)| *known == key)
    }

    /// SHA-256 over all settings, in hexadecimal.
    pub(crate) fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        let mut word = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        word(SCHEMA);
        for Group { title, values, .. } in &self.groups {
            word(title);
            for (key, value) in values {
                word(key);
                // No text of a value is that of none.
                word(if value.is_some() {
                    "is"
                } else {
                    "has no value"
                });
                word(value.as_deref().unwrap_or_default());
            }
        }
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The settings of a compiled policy: its typed data, and what only its text says.
    fn read(policy: &Policy) -> Self {
        Self::drafted(&policy.source.files, &[], |draft| {
            draft.policy = Policy {
                source: Arc::default(),
                ..policy.clone()
            };
        })
    }

    fn of_layers(layers: Layers<'_>) -> Self {
        Self::drafted(layers.files, layers.overrides, |_| {})
    }

    /// The settings of a draft of these layers, after `amend`.
    fn drafted(
        files: &[(String, String)],
        overrides: &[Override],
        amend: impl FnOnce(&mut Draft<'_>),
    ) -> Self {
        let files: Vec<SourceFile> = files
            .iter()
            .map(|(name, text)| SourceFile::new(name, text.as_bytes()))
            .collect();
        let mut ignored = Problems::default();
        let texts = texts(&files, &mut ignored);
        let overrides = Override::in_order(overrides);
        let mut draft = Draft::read(&texts, &overrides, &mut ignored);
        amend(&mut draft);
        Self::of(&draft)
    }

    fn changes(&self, new: &Self) -> Vec<Change> {
        let (old_by_title, new_by_title) = (self.by_title(), new.by_title());
        let gone = self.groups.iter();
        let gone = gone.filter(|group| !new_by_title.contains_key(group.title.as_str()));
        let gone = gone.map(Group::removed);
        let kept_or_added =
            new.groups
                .iter()
                .flat_map(|group| match old_by_title.get(group.title.as_str()) {
                    Some(before) => self.groups[*before].changes(group),
                    None => vec![group.added()],
                });
        let moved = [Kind::Tenant, Kind::Rule, Kind::Device];
        let moved = moved.into_iter().flat_map(|kind| self.moved(new, kind));
        gone.chain(kept_or_added).chain(moved).collect()
    }

    fn by_title(&self) -> BTreeMap<&str, usize> {
        let groups = self.groups.iter().enumerate();
        groups
            .map(|(at, group)| (group.title.as_str(), at))
            .collect()
    }

    /// Tables that apply in order and come in another one. As few as possible are said to have moved.
    fn moved(&self, new: &Self, kind: Kind) -> Vec<Change> {
        let places = |settings: &'_ Self| -> BTreeMap<String, usize> {
            let groups = settings.groups.iter().filter(|group| group.kind == kind);
            let titles = groups.map(|group| group.title.clone());
            titles.zip(1..).collect()
        };
        let (before, after) = (places(self), places(new));
        let mut common: Vec<(usize, usize, &String)> = (after.iter())
            .filter_map(|(title, to)| Some((*to, *before.get(title)?, title)))
            .collect();
        common.sort_unstable();
        let from: Vec<usize> = common.iter().map(|(_, from, _)| *from).collect();
        let stay = longest_rise(&from);
        let moved = common
            .into_iter()
            .filter(|(_, from, _)| stay.binary_search(from).is_err());
        let place = |place: usize| format!("place {place}");
        let change = |(to, from, title): (usize, usize, &String)| Change {
            moved: true,
            ..Change::new(title.as_str(), Some(&place(from)), Some(&place(to)))
        };
        moved.map(change).collect()
    }
}

/// The longest part of `numbers`, which are distinct, that rises.
fn longest_rise(numbers: &[usize]) -> Vec<usize> {
    // `ends[n]` is the place of the least number that ends a rise of n + 1 numbers.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(numbers.len());
    for (at, number) in numbers.iter().enumerate() {
        let length = ends.partition_point(|end| numbers[*end] < *number);
        before.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        match ends.get_mut(length) {
            Some(end) => *end = at,
            None => ends.push(at),
        }
    }
    let mut rise: Vec<usize> = Vec::new();
    let mut next = ends.last().copied();
    while let Some(at) = next {
        rise.push(numbers[at]);
        next = before[at];
    }
    rise.reverse();
    rise
}

/// `text` without line breaks.
fn one_line(text: &str) -> String {
    let line = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(line).collect()
}

impl Group {
    fn section(title: &str, values: Vec<Entry>) -> Self {
        Self {
            kind: Kind::Section,
            title: title.to_owned(),
            values,
        }
    }

    fn table(kind: Kind, name: &str, values: Vec<Entry>) -> Self {
        let word = match kind {
            Kind::Class => "class",
            Kind::Device => "device",
            Kind::Rule => "rule",
            Kind::Section => "section",
            Kind::Tenant => "tenant",
        };
        let title = format!("{word} {name}");
        Self {
            kind,
            title,
            values,
        }
    }

    fn removed(&self) -> Change {
        Change::new(self.title.as_str(), Some(&self.words()), None)
    }

    fn added(&self) -> Change {
        Change::new(self.title.as_str(), None, Some(&self.words()))
    }

    fn changes(&self, new: &Self) -> Vec<Change> {
        let pairs = self.values.iter().zip(&new.values);
        let changed = pairs.filter(|((_, before), (_, after))| before != after);
        let change = |((key, before), (_, after)): (&Entry, &Entry)| {
            let setting = format!("{}.{key}", self.title);
            Change::new(setting, Some(shown(before)), Some(shown(after)))
        };
        changed.map(change).collect()
    }

    fn words(&self) -> String {
        let said = self.values.iter().filter(|(key, _)| *key != "by");
        let words = said.filter_map(|(key, value)| Some(format!("{key} {}", value.as_ref()?)));
        words.collect::<Vec<_>>().join(", ")
    }
}

/// How a setting without a value is shown.
const NONE: &str = "none";

fn shown(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or(NONE)
}

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
        ("held", Some(held.to_owned())),
        ("scope", Some(scope.to_owned())),
        ("grace", Some(duration_text(*grace))),
        ("grace_max", Some(duration_text(*grace_max))),
        ("confirm", Some(confirm.to_owned())),
        ("on_shrink", Some(on_shrink.to_owned())),
        ("rollback_errors", Some(rollback_errors.to_string())),
        ("rollback_within", Some(duration_text(*rollback_within))),
    ];
    Group::section("reload", values)
}

fn defaults_group(defaults: &Defaults, zone: Option<&str>) -> Group {
    let Defaults { class, ttl, wait } = defaults;
    let values = vec![
        ("class", Some(class.clone())),
        ("ttl", Some(duration_text(*ttl))),
        ("wait", Some(duration_text(*wait))),
        ("timezone", zone.map(str::to_owned)),
    ];
    Group::section("defaults", values)
}

fn placement_group(placement: &Placement, score: Option<&str>) -> Group {
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
        ("strategy", Some(strategy.to_owned())),
        ("score", score.map(str::to_owned)),
        ("reserve", Some(size_text(*reserve))),
        ("load_slots", Some(load_slots.to_string())),
    ];
    Group::section("placement", values)
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
        ("order", Some(order.to_owned())),
        ("aging", Some(duration_text(*aging))),
        ("backfill", Some(backfill.to_string())),
        ("max_waiting", Some(max_waiting.to_string())),
        ("half_life", Some(duration_text(*half_life))),
    ];
    Group::section("queue", values)
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
        ("verify", Some(verify.to_string())),
        ("delay", Some(duration_text(*delay))),
        ("quarantine_after", Some(duration_text(*quarantine_after))),
        ("signal", Some(signal.to_owned())),
    ];
    Group::section("reclaim", values)
}

/// The classes by name, the built-in one among them.
fn class_groups(draft: &Draft<'_>) -> Vec<Group> {
    let built_in = Class::default();
    let mut classes: BTreeMap<&str, Group> = (draft.classes.iter())
        .map(|class| {
            let ClassDraft {
                class: value,
                hours,
            } = &class.value;
            let schedule = hours.as_ref().zip(draft.zone.clone());
            let schedule = schedule.map(|(hours, zone)| Schedule {
                hours: hours.value,
                zone,
            });
            (
                class.name.as_str(),
                class_group(&class.name, value, schedule),
            )
        })
        .collect();
    classes
        .entry(STANDARD_CLASS)
        .or_insert_with(|| class_group(STANDARD_CLASS, &built_in, None));
    classes.into_values().collect()
}

fn class_group(name: &str, class: &Class, schedule: Option<Schedule>) -> Group {
    let Class {
        priority,
        drain_grace,
        max_hold,
    } = class;
    let values = vec![
        ("priority", Some(priority.to_string())),
        ("drain_grace", Some(duration_text(*drain_grace))),
        ("max_hold", max_hold.map(duration_text)),
        ("hours", schedule.map(|schedule| schedule.to_string())),
    ];
    Group::table(Kind::Class, name, values)
}

fn tenant_group(draft: &TenantDraft<'_>) -> Group {
    let TenantDraft { tenant, when } = draft;
    let Tenant {
        name,
        weight,
        max_devices,
        max_memory,
        max_leases,
        per_user,
    } = tenant;
    let values = vec![
        ("match", when.as_ref().map(|when| when.value.text.clone())),
        ("weight", Some(weight.to_string())),
        ("max_devices", max_devices.map(|most| most.to_string())),
        ("max_memory", max_memory.map(size_text)),
        ("max_leases", max_leases.map(|most| most.to_string())),
        ("per", per_user.then(|| "user".to_owned())),
    ];
    Group::table(Kind::Tenant, name, values)
}

fn rule_group(name: &str, rule: &RuleDraft<'_>) -> Group {
    let RuleDraft {
        when,
        action,
        on_error,
    } = rule;
    let on_error = match on_error {
        OnError::Deny => "deny",
        OnError::Skip => "skip",
    };
    let (deny, hold, set) = match action {
        ActionDraft::Deny(reason) => (Some(quoted(reason)), None, None),
        ActionDraft::Hold(reason) => (None, Some(quoted(reason)), None),
        ActionDraft::Set(set) => (None, None, Some(set_words(set))),
    };
    let values = vec![
        ("when", Some(when.value.text.clone())),
        ("deny", deny),
        ("hold", hold),
        ("set", set),
        ("on_error", Some(on_error.to_owned())),
    ];
    Group::table(Kind::Rule, name, values)
}

fn set_words(set: &SetDraft<'_>) -> String {
    let SetDraft {
        class,
        priority,
        ttl,
        max_hold,
        select,
    } = set;
    let said = [
        ("class", class.as_ref().map(|class| class.value.clone())),
        ("priority", priority.map(|priority| priority.to_string())),
        ("ttl", ttl.map(duration_text)),
        ("max_hold", max_hold.map(duration_text)),
        (
            "select",
            select.as_ref().map(|select| select.value.text.clone()),
        ),
    ];
    let words = said
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key} {}", value?)));
    words.collect::<Vec<_>>().join(", ")
}

fn device_group(name: &str, draft: &DeviceDraft<'_>) -> Group {
    let DeviceDraft { about, rule } = draft;
    let DeviceRule {
        reserve,
        load_slots,
        labels,
        cordon,
        drain,
    } = rule;
    let labels = (!labels.is_empty()).then(|| format!("[{}]", labels.join(", ")));
    let by = match about {
        About::Pattern(_) => "name",
        About::When(_) => "match",
    };
    let values = vec![
        ("by", Some(by.to_owned())),
        ("reserve", reserve.map(size_text)),
        ("load_slots", load_slots.map(|slots| slots.to_string())),
        ("labels", labels),
        ("cordon", cordon.as_deref().map(quoted)),
        ("drain", drain.as_deref().map(quoted)),
    ];
    Group::table(Kind::Device, name, values)
}

fn quoted(reason: &str) -> String {
    format!("\"{reason}\"")
}
