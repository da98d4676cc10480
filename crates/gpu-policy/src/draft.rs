//! The schema: which keys there are, what they mean, and how the layers add up.

use std::sync::Arc;

use gpu_lease::{
    Confirm, Held, Ms, OnShrink, Policy, PolicySource, QueueOrder, ReloadScope, ReloadSettings,
    STANDARD_CLASS, SignalRule, Strategy,
};
use jiff::tz::TimeZone;

use crate::cel::{Scope, TEXT_BYTES_MAX};
use crate::diagnostic::{Problem, Problems, Site};
use crate::hours::Schedule;
use crate::literals::compared;
use crate::overrides::Override;
use crate::rules::{Parts, PolicyRules};
use crate::schema::Shape;
use crate::section::{Located, Section};
use crate::settings::Settings;
use crate::suggest::{did_you_mean, list};
use crate::tables::{
    ActionDraft, ClassDraft, DeviceDraft, RuleDraft, Tables, TenantDraft, compiled,
};
use crate::text::Text;
use crate::units::shortened;
use crate::value::{
    Cel, Flag, Formula, Name, SchemaVersion, Words, Zone, duration, integer, one_of, size,
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
const CONFIRM: &Words<Confirm> = &[
    ("never", Some(Confirm::Never)),
    ("force", Some(Confirm::Force)),
    ("drain", Some(Confirm::Drain)),
];
const ON_SHRINK: &Words<OnShrink> = &[
    ("keep", Some(OnShrink::Keep)),
    ("drain", Some(OnShrink::Drain)),
];
const STRATEGY: &Words<Strategy> = &[
    ("first-fit", Some(Strategy::FirstFit)),
    ("best-fit", Some(Strategy::BestFit)),
    ("worst-fit", Some(Strategy::WorstFit)),
    ("spread", Some(Strategy::Spread)),
    ("pack", Some(Strategy::Pack)),
    ("fgd", None),
    ("score", Some(Strategy::Score)),
];
const ORDER: &Words<QueueOrder> = &[
    ("fifo", Some(QueueOrder::Fifo)),
    ("priority", Some(QueueOrder::Priority)),
    ("fair-share", Some(QueueOrder::FairShare)),
];
const SIGNAL: &Words<SignalRule> = &[
    ("never", Some(SignalRule::Never)),
    ("supervised", Some(SignalRule::Supervised)),
    ("always", Some(SignalRule::Always)),
];

pub(crate) const SECOND: Ms = Ms::from_secs(1);
const MINUTE: Ms = Ms::from_secs(60);
pub(crate) const HOUR: Ms = Ms::from_secs(3600);
const HOURS_6: Ms = Ms::from_secs(6 * 3600);
const DAY: Ms = Ms::from_secs(86_400);
pub(crate) const MONTH: Ms = Ms::from_secs(30 * 86_400);

pub(crate) const SIZE_BYTES_MAX: u64 = 1 << 50;
pub(crate) const LOAD_SLOTS_MAX: i64 = 64;
const WAITING_MAX: i64 = 100_000;
const ROLLBACK_ERRORS_MAX: i64 = 1_000_000;

const OF_SCORE: Cel = Cel {
    variables: "`request`, `holder`, `device`, `books`, `now`",
    result: "a number, higher is better",
};

/// The layers read so far.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    /// What is no table with a name.
    pub(crate) policy: Policy,
    pub(crate) zone: Option<TimeZone>,
    pub(crate) score: Option<Located<'a, Formula>>,
    pub(crate) classes: Tables<'a, ClassDraft<'a>>,
    pub(crate) devices: Tables<'a, DeviceDraft<'a>>,
    pub(crate) tenants: Tables<'a, TenantDraft<'a>>,
    pub(crate) rules: Tables<'a, RuleDraft<'a>>,
    places: Places<'a>,
}

/// Where the settings stand that others have to agree with.
#[derive(Debug, Default)]
struct Places<'a> {
    default_class: Option<Site<'a>>,
    grace: Option<Site<'a>>,
    grace_max: Option<Site<'a>>,
    strategy: Option<Site<'a>>,
}

impl<'a> Draft<'a> {
    fn new() -> Self {
        Self {
            policy: Policy::built_in(),
            zone: None,
            score: None,
            classes: Tables::new("class", ClassDraft::MOST),
            devices: Tables::new("device", DeviceDraft::MOST),
            tenants: Tables::new("tenant", TenantDraft::MOST),
            rules: Tables::new("rule", RuleDraft::MOST),
            places: Places::default(),
        }
    }

    /// All layers, the lowest first. What is wrong with them goes to `problems`.
    pub(crate) fn read(
        texts: &'a [Text],
        overrides: &[&'a Override],
        problems: &mut Problems,
    ) -> Self {
        let mut draft = Self::new();
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

    /// Every key that a layer may have.
    pub(crate) fn shape() -> Shape {
        let text = Text::of_override("", "");
        let mut problems = Problems::default();
        let mut recorder = Section::recorder(&text, &mut problems);
        Draft::new().keys(&mut recorder);
        recorder.into_shape()
    }

    /// Compiles the expressions. What is wrong with them goes to `problems`, and then the rules are not whole.
    pub(crate) fn parts(&self, problems: &mut Problems) -> Parts {
        let schedule = |draft: &ClassDraft<'_>| {
            let hours = draft.hours.as_ref()?.value;
            let zone = self.zone.clone()?;
            Some(Schedule { hours, zone })
        };
        let classes = self.classes.iter();
        let classes = classes.map(|class| (class.name.clone(), schedule(&class.value)));
        Parts {
            classes: [(STANDARD_CLASS.to_owned(), None)]
                .into_iter()
                .chain(classes)
                .collect(),
            devices: (self.devices.iter())
                .filter_map(|device| device.value.compile(problems))
                .collect(),
            tenants: (self.tenants.iter())
                .filter_map(|tenant| tenant.value.compile(problems))
                .collect(),
            rules: (self.rules.iter())
                .filter_map(|rule| rule.value.compile(&rule.name, problems))
                .collect(),
            score: (self.score.as_ref())
                .and_then(|score| compiled(score, "score", Scope::Score, problems)),
            zone: self.zone.clone(),
        }
    }

    /// The policy that the layers add up to, if they had no problems, with the `parts` of its rules.
    pub(crate) fn into_policy(self, parts: Parts, texts: &[Text]) -> Policy {
        let hash = Settings::of(&self).hash();
        let mut policy = self.policy;
        let classes = self.classes.into_values();
        policy
            .classes
            .extend(classes.map(|(name, draft)| (name, draft.class)));
        let devices = self.devices.into_values();
        policy.devices = devices.map(|(_, draft)| draft.rule).collect();
        let tenants = self.tenants.into_values();
        policy.tenants = tenants.map(|(_, draft)| draft.tenant).collect();
        policy.source = Arc::new(PolicySource {
            hash,
            files: texts
                .iter()
                .map(|text| (text.name.clone(), text.body.clone()))
                .collect(),
        });
        policy.rules = Arc::new(PolicyRules::new(parts));
        policy
    }

    fn layer(&mut self, mut root: Section<'a, '_>) {
        self.keys(&mut root);
        root.finish();
    }

    fn keys(&mut self, root: &mut Section<'a, '_>) {
        root.take("schema", SchemaVersion);
        root.table("reload", |section| self.reload(section));
        root.table("defaults", |section| self.defaults(section));
        root.table("placement", |section| self.placement(section));
        root.table("queue", |section| self.queue(section));
        root.table("reclaim", |section| self.reclaim(section));
        root.table("foreign", |section| {
            let slot = &mut self.policy.foreign_ignore_below;
            section.set("ignore_below", slot, size(0..=SIZE_BYTES_MAX));
        });
        root.tables("class", |section| self.classes.class(section));
        root.tables("tenant", |section| self.tenants.tenant(section));
        root.tables("rule", |section| self.rules.rule(section));
        root.tables("device", |section| self.devices.device(section));
        for planned in ["engine", "hook"] {
            root.later(planned);
        }
    }

    fn reload(&mut self, section: &mut Section<'a, '_>) {
        let reload = &mut self.policy.reload;
        section.set("held", &mut reload.held, one_of(HELD));
        section.set("scope", &mut reload.scope, one_of(SCOPE));
        let grace = section.set("grace", &mut reload.grace, duration(Ms(0)..=MONTH));
        let grace_max = section.set("grace_max", &mut reload.grace_max, duration(Ms(0)..=MONTH));
        section.set("confirm", &mut reload.confirm, one_of(CONFIRM));
        section.set("on_shrink", &mut reload.on_shrink, one_of(ON_SHRINK));
        let errors = integer(0..=ROLLBACK_ERRORS_MAX);
        section.set("rollback_errors", &mut reload.rollback_errors, errors);
        let within = duration(SECOND..=DAY);
        section.set("rollback_within", &mut reload.rollback_within, within);
        self.places.grace = grace.or(self.places.grace.take());
        self.places.grace_max = grace_max.or(self.places.grace_max.take());
    }

    fn defaults(&mut self, section: &mut Section<'a, '_>) {
        let defaults = &mut self.policy.defaults;
        let class = section.set("class", &mut defaults.class, Name);
        section.set("ttl", &mut defaults.ttl, duration(SECOND..=HOUR));
        section.set("wait", &mut defaults.wait, duration(Ms(0)..=MONTH));
        section.set_some("timezone", &mut self.zone, Zone);
        self.places.default_class = class.or(self.places.default_class.take());
    }

    fn placement(&mut self, section: &mut Section<'a, '_>) {
        let placement = &mut self.policy.placement;
        let strategy = section.set("strategy", &mut placement.strategy, one_of(STRATEGY));
        let score = section.take("score", OF_SCORE);
        section.set("reserve", &mut placement.reserve, size(0..=SIZE_BYTES_MAX));
        section.set(
            "load_slots",
            &mut placement.load_slots,
            integer(1..=LOAD_SLOTS_MAX),
        );
        self.places.strategy = strategy.or(self.places.strategy.take());
        self.score = score.or(self.score.take());
    }

    fn queue(&mut self, section: &mut Section<'a, '_>) {
        let queue = &mut self.policy.queue;
        section.set("order", &mut queue.order, one_of(ORDER));
        section.set(
            "half_life",
            &mut queue.half_life,
            duration(MINUTE..=HOURS_6),
        );
        section.set("aging", &mut queue.aging, duration(Ms(0)..=MONTH));
        section.set("backfill", &mut queue.backfill, Flag);
        section.set(
            "max_waiting",
            &mut queue.max_waiting,
            integer(0..=WAITING_MAX),
        );
    }

    fn reclaim(&mut self, section: &mut Section<'a, '_>) {
        let reclaim = &mut self.policy.reclaim;
        section.set("verify", &mut reclaim.verify, Flag);
        section.set("delay", &mut reclaim.delay, duration(Ms(0)..=HOUR));
        section.set(
            "quarantine_after",
            &mut reclaim.quarantine_after,
            duration(SECOND..=DAY),
        );
        section.set("signal", &mut reclaim.signal, one_of(SIGNAL));
    }

    /// What no single key can be wrong about.
    fn check(&self, problems: &mut Problems) {
        self.check_classes(problems);
        self.check_grace(problems);
        self.check_score(problems);
        if self.zone.is_none() {
            let hours = self.classes.iter();
            let hours = hours.filter_map(|class| class.value.hours.as_ref());
            hours.for_each(|hours| problems.add(&hours.site, no_timezone()));
        }
        for rule in self.rules.iter() {
            if let Some(stops) = rule.value.stops_everybody() {
                problems.warn(&rule.value.when.site, nobody(stops, &rule.name));
            }
            self.check_names(&rule.value.when, problems);
        }
    }

    /// Warns of the first class and the first tenant that `when` compares with and that does not exist.
    fn check_names(&self, when: &Located<'_, Formula>, problems: &mut Problems) {
        let text = &when.value.text;
        if text.len() > TEXT_BYTES_MAX {
            return;
        }
        let mut classes = compared(text, "request.class").into_iter();
        if let Some((word, span)) = classes.find(|(word, _)| !self.has_class(word)) {
            problems.warn(&when.within(&span), self.no_such_class(&shortened(word)));
        }
        if self.tenants.names().next().is_none() {
            return;
        }
        let mut tenants = compared(text, "holder.tenant").into_iter();
        if let Some((word, span)) = tenants.find(|(word, _)| !self.tenants.has(word)) {
            problems.warn(&when.within(&span), self.no_such_tenant(&shortened(word)));
        }
    }

    fn check_classes(&self, problems: &mut Problems) {
        let default = &self.policy.defaults.class;
        if let Some(site) = &self.places.default_class
            && !self.has_class(default)
        {
            problems.add(site, self.no_such_class(default));
        }
        for rule in self.rules.iter() {
            if let ActionDraft::Set(set) = &rule.value.action
                && let Some(class) = &set.class
                && !self.has_class(&class.value)
            {
                problems.add(&class.site, self.no_such_class(&class.value));
            }
        }
    }

    fn check_grace(&self, problems: &mut Problems) {
        let Places {
            grace, grace_max, ..
        } = &self.places;
        let reload = &self.policy.reload;
        if reload.grace <= reload.grace_max {
            return;
        }
        if let Some(site) = grace.as_ref().or(grace_max.as_ref()) {
            let limit = grace_max.as_ref().filter(|_| grace.is_some());
            problems.add(site, grace_too_long(reload, limit));
        }
    }

    fn check_score(&self, problems: &mut Problems) {
        let scores = self.policy.placement.strategy == Strategy::Score;
        match (&self.score, &self.places.strategy) {
            (None, Some(site)) if scores => problems.add(site, no_score()),
            (Some(score), strategy) if !scores => {
                problems.add(&score.site, unused_score(strategy.as_ref()));
            }
            _ => {}
        }
    }

    fn has_class(&self, name: &str) -> bool {
        name == STANDARD_CLASS || self.classes.has(name)
    }

    fn no_such_tenant(&self, name: &str) -> Problem {
        let known = || self.tenants.names();
        let hint = did_you_mean(name, known())
            .unwrap_or_else(|| format!("the tenants are {}", list(known())));
        Problem::new(format!("tenant `{name}` does not exist")).hint(hint)
    }

    fn no_such_class(&self, name: &str) -> Problem {
        let known = || self.classes.names().chain([STANDARD_CLASS]);
        let hint = did_you_mean(name, known())
            .unwrap_or_else(|| format!("the classes are {}", list(known())));
        Problem::new(format!("class `{name}` does not exist")).hint(hint)
    }
}

fn grace_too_long(reload: &ReloadSettings, limit: Option<&Site<'_>>) -> Problem {
    let ReloadSettings {
        grace, grace_max, ..
    } = reload;
    let place = limit.map(|site| format!(" of {site}")).unwrap_or_default();
    Problem::new(format!(
        "`grace` {grace} is longer than `grace_max` {grace_max}{place}"
    ))
    .hint("raise `grace_max` as well")
}

fn no_score() -> Problem {
    Problem::new("`strategy` = \"score\" needs a `score`")
        .hint("say how well a device suits a request: score = \"device.free\"")
}

fn unused_score(strategy: Option<&Site<'_>>) -> Problem {
    let place = strategy.map_or_else(
        || "and none is set".to_owned(),
        |site| format!("and another is set by {site}"),
    );
    Problem::new(format!("`score` needs `strategy` = \"score\", {place}")).hint("set both or none")
}

fn no_timezone() -> Problem {
    Problem::new("`hours` need a time zone")
        .hint("say it once, under `[defaults]`: timezone = \"Europe/Berlin\"")
}

fn nobody(stops: &str, rule: &str) -> Problem {
    Problem::new(format!(
        "rule `{rule}` {stops} every request: nothing is granted"
    ))
    .hint("remove it when that is no longer meant")
}
