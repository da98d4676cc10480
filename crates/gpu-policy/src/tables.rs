//! The tables that have names: classes, devices, tenants and rules.

use std::collections::BTreeMap;
use std::ops::Range;

use gpu_lease::{Class, DeviceRule, Ms, Sets, Tenant};

use crate::cel::{Expression, Scope};
use crate::diagnostic::{Problem, Problems, Site};
use crate::draft::{HOUR, LOAD_SLOTS_MAX, MONTH, SECOND, SIZE_BYTES_MAX};
use crate::hours::Hours;
use crate::rules::{Action, DeviceMatch, OnError, Rule, TenantMatch};
use crate::section::{Located, Section};
use crate::spelling::spelled;
use crate::value::{
    Cel, DevicePattern, Flag, Formula, HoursOfDay, Name, Names, Pattern, REASON, TITLE, Words,
    duration, integer, one_of, size,
};

const YEAR: Ms = Ms::from_secs(365 * 86_400);
const PRIORITY_MAX: i64 = 1_000_000;
const WEIGHT_MAX: i64 = 1000;
const QUOTA_MAX: i64 = 1_000_000;

const PER: &Words<()> = &[("user", Some(()))];
const ON_ERROR: &Words<OnError> = &[("deny", Some(OnError::Deny)), ("skip", Some(OnError::Skip))];

const OF_RULE: Cel = Cel {
    variables: "`request`, `holder`, `books`, `now`",
    result: "true or false",
};
const OF_TENANT: Cel = Cel {
    variables: "`request`, `holder`",
    result: "true or false",
};
const OF_DEVICE: Cel = Cel {
    variables: "`device`",
    result: "true or false",
};

/// Tables of one kind, in file order.
#[derive(Debug)]
pub(crate) struct Tables<'a, T> {
    /// `class`
    word: &'static str,
    /// More are refused.
    most: usize,
    items: Vec<Declared<'a, T>>,
    places: BTreeMap<String, usize>,
}

/// A table and where it has its name.
#[derive(Debug)]
pub(crate) struct Declared<'a, T> {
    pub(crate) name: String,
    pub(crate) site: Site<'a>,
    pub(crate) value: T,
}

impl<'a, T> Tables<'a, T> {
    pub(crate) fn new(word: &'static str, most: usize) -> Self {
        Self {
            word,
            most,
            items: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Declared<'a, T>> {
        self.items.iter()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The tables and their names, in file order.
    pub(crate) fn into_values(self) -> impl Iterator<Item = (String, T)> {
        self.items
            .into_iter()
            .map(|table| (table.name, table.value))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Adds a table; one that says `replace = true` takes the place of an earlier one of its name.
    fn add(
        &mut self,
        section: &mut Section<'a, '_>,
        name: Located<'a, String>,
        replace: bool,
        value: T,
    ) {
        let Located { value: name, site } = name;
        match self.places.get(&name) {
            Some(at) if replace => self.items[*at] = Declared { name, site, value },
            Some(at) => {
                let first = &self.items[*at].site;
                section.problem(&site, declared_twice(self.word, &name, first));
            }
            None if self.items.len() >= self.most => {
                let message = format!("there are more than {} {} tables", self.most, self.word);
                section.problem(&site, Problem::new(message));
            }
            None => {
                self.places.insert(name.clone(), self.items.len());
                self.items.push(Declared { name, site, value });
            }
        }
    }
}

/// `[[class]]`
#[derive(Debug)]
pub(crate) struct ClassDraft<'a> {
    pub(crate) class: Class,
    pub(crate) hours: Option<Located<'a, Hours>>,
}

/// `[[device]]`
#[derive(Debug)]
pub(crate) struct DeviceDraft<'a> {
    pub(crate) about: About<'a>,
    pub(crate) rule: DeviceRule,
}

/// Which devices a `[[device]]` is about.
#[derive(Debug)]
pub(crate) enum About<'a> {
    Pattern(DevicePattern),
    When(Located<'a, Formula>),
}

/// `[[tenant]]`
#[derive(Debug)]
pub(crate) struct TenantDraft<'a> {
    pub(crate) tenant: Tenant,
    pub(crate) when: Option<Located<'a, Formula>>,
}

/// `[[rule]]`
#[derive(Debug)]
pub(crate) struct RuleDraft<'a> {
    pub(crate) when: Located<'a, Formula>,
    pub(crate) action: ActionDraft<'a>,
    pub(crate) on_error: OnError,
}

#[derive(Debug)]
pub(crate) enum ActionDraft<'a> {
    Deny(String),
    Hold(String),
    Set(SetDraft<'a>),
}

/// `set` of a `[[rule]]`
#[derive(Debug, Default)]
pub(crate) struct SetDraft<'a> {
    pub(crate) class: Option<Located<'a, String>>,
    pub(crate) priority: Option<i64>,
    pub(crate) ttl: Option<Ms>,
    pub(crate) max_hold: Option<Ms>,
    pub(crate) select: Option<Located<'a, Formula>>,
}

impl<'a> Tables<'a, ClassDraft<'a>> {
    pub(crate) fn class(&mut self, section: &mut Section<'a, '_>) {
        let mut class = Class::default();
        let name = section.require("name", Name);
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
        section.set_some("max_hold", &mut class.max_hold, duration(SECOND..=YEAR));
        let hours = section.take("hours", HoursOfDay);
        let replace = replaces(section);
        section.later("preempts");
        section.later("min_runtime");
        if let Some(name) = name {
            self.add(section, name, replace, ClassDraft { class, hours });
        }
    }
}

impl<'a> Tables<'a, DeviceDraft<'a>> {
    pub(crate) fn device(&mut self, section: &mut Section<'a, '_>) {
        let mut rule = DeviceRule::default();
        let one = section.exactly_one(&["name", "match"]);
        let pattern = section.take("name", Pattern);
        let when = section.take("match", OF_DEVICE);
        section.set_some("reserve", &mut rule.reserve, size(0..=SIZE_BYTES_MAX));
        section.set_some(
            "load_slots",
            &mut rule.load_slots,
            integer(1..=LOAD_SLOTS_MAX),
        );
        section.set("labels", &mut rule.labels, Names);
        section.set_some("cordon", &mut rule.cordon, REASON);
        section.set_some("drain", &mut rule.drain, REASON);
        let replace = replaces(section);
        if !one {
            return;
        }
        let pattern = pattern
            .map(|Located { value, site }| (value.text.clone(), site, About::Pattern(value)));
        let when = when.map(|when| {
            (
                matching(&when.value.text),
                when.site.clone(),
                About::When(when),
            )
        });
        if let Some((value, site, about)) = pattern.or(when) {
            self.add(
                section,
                Located { value, site },
                replace,
                DeviceDraft { about, rule },
            );
        }
    }
}

impl<'a> Tables<'a, TenantDraft<'a>> {
    pub(crate) fn tenant(&mut self, section: &mut Section<'a, '_>) {
        let mut tenant = Tenant {
            name: String::new(),
            weight: 1,
            max_devices: None,
            max_memory: None,
            max_leases: None,
            per_user: false,
        };
        let name = section.require("name", Name);
        let when = section.take("match", OF_TENANT);
        section.set("weight", &mut tenant.weight, integer(1..=WEIGHT_MAX));
        let devices = section.set_some(
            "max_devices",
            &mut tenant.max_devices,
            integer(0..=QUOTA_MAX),
        );
        let memory = section.set_some(
            "max_memory",
            &mut tenant.max_memory,
            size(0..=SIZE_BYTES_MAX),
        );
        let leases = section.set_some("max_leases", &mut tenant.max_leases, integer(0..=QUOTA_MAX));
        tenant.per_user = section.take("per", one_of(PER)).is_some();
        let replace = replaces(section);
        let Some(name) = name else {
            return;
        };
        for (key, site, is_zero) in [
            ("max_devices", devices, tenant.max_devices == Some(0)),
            ("max_memory", memory, tenant.max_memory == Some(0)),
            ("max_leases", leases, tenant.max_leases == Some(0)),
        ] {
            if let Some(site) = site.filter(|_| is_zero) {
                section.warning(&site, nothing_for(&name.value, key));
            }
        }
        tenant.name.clone_from(&name.value);
        self.add(section, name, replace, TenantDraft { tenant, when });
    }
}

impl<'a> Tables<'a, RuleDraft<'a>> {
    pub(crate) fn rule(&mut self, section: &mut Section<'a, '_>) {
        let name = section.require("name", TITLE);
        let when = section.require("when", OF_RULE);
        let one = section.exactly_one(&["deny", "hold", "set"]);
        let deny = section.take("deny", REASON);
        let hold = section.take("hold", REASON);
        let mut set = None;
        section.table("set", |section| set = Some(read_set(section)));
        let on_error = section.take("on_error", one_of(ON_ERROR));
        let replace = replaces(section);
        let deny = deny.map(|reason| ActionDraft::Deny(reason.value));
        let hold = hold.map(|reason| ActionDraft::Hold(reason.value));
        let action = deny.or(hold).or(set.map(ActionDraft::Set)).filter(|_| one);
        let (Some(name), Some(when), Some(action)) = (name, when, action) else {
            return;
        };
        let on_error = match (on_error, &action) {
            (Some(said), _) => said.value,
            (None, ActionDraft::Set(_)) => OnError::Skip,
            (None, _) => OnError::Deny,
        };
        let rule = RuleDraft {
            when,
            action,
            on_error,
        };
        self.add(section, name, replace, rule);
    }
}

fn read_set<'a>(section: &mut Section<'a, '_>) -> SetDraft<'a> {
    let mut set = SetDraft {
        class: section.take("class", Name),
        ..SetDraft::default()
    };
    section.set_some(
        "priority",
        &mut set.priority,
        integer(-PRIORITY_MAX..=PRIORITY_MAX),
    );
    section.set_some("ttl", &mut set.ttl, duration(SECOND..=HOUR));
    section.set_some("max_hold", &mut set.max_hold, duration(SECOND..=YEAR));
    set.select = section.take("select", OF_DEVICE);
    if section.is_empty_table() {
        let hint = "say `class`, `priority`, `ttl`, `max_hold` or `select`";
        let problem = Problem::new("`set` sets nothing").hint(hint);
        section.problem(&section.site(), problem);
    }
    set
}

impl ClassDraft<'_> {
    pub(crate) const MOST: usize = 256;
}

impl DeviceDraft<'_> {
    pub(crate) const MOST: usize = 256;

    /// The devices, with an expression that can be evaluated.
    pub(crate) fn compile(&self, problems: &mut Problems) -> Option<DeviceMatch> {
        match &self.about {
            About::Pattern(pattern) => Some(DeviceMatch::Pattern(pattern.clone())),
            About::When(when) => {
                compiled(when, "match", Scope::Device, problems).map(DeviceMatch::When)
            }
        }
    }
}

impl TenantDraft<'_> {
    pub(crate) const MOST: usize = 256;

    pub(crate) fn compile(&self, problems: &mut Problems) -> Option<TenantMatch> {
        let when = match &self.when {
            Some(when) => Some(compiled(when, "match", Scope::Tenant, problems)?),
            None => None,
        };
        Some(TenantMatch {
            name: self.tenant.name.clone(),
            per_user: self.tenant.per_user,
            when,
        })
    }
}

impl RuleDraft<'_> {
    pub(crate) const MOST: usize = 1000;

    pub(crate) fn compile(&self, name: &str, problems: &mut Problems) -> Option<Rule> {
        let when = compiled(&self.when, "when", Scope::Rule, problems);
        let action = match &self.action {
            ActionDraft::Deny(reason) => Some(Action::Deny(reason.clone())),
            ActionDraft::Hold(reason) => Some(Action::Hold(reason.clone())),
            ActionDraft::Set(set) => set.compile(problems).map(Action::Set),
        };
        Some(Rule {
            name: name.to_owned(),
            when: when?,
            action: action?,
            on_error: self.on_error,
        })
    }

    /// What it does to every request, if it plainly does that.
    pub(crate) fn stops_everybody(&self) -> Option<&'static str> {
        let stops = match self.action {
            ActionDraft::Deny(_) => "denies",
            ActionDraft::Hold(_) => "holds",
            ActionDraft::Set(_) => return None,
        };
        (self.when.value.text == "true").then_some(stops)
    }
}

impl SetDraft<'_> {
    fn compile(&self, problems: &mut Problems) -> Option<Sets> {
        let select = match &self.select {
            Some(select) => Some(compiled(select, "select", Scope::Select, problems)?),
            None => None,
        };
        Some(Sets {
            class: self.class.as_ref().map(|class| class.value.clone()),
            priority: self.priority,
            ttl: self.ttl,
            max_hold: self.max_hold,
            filters: select
                .iter()
                .map(|filter| filter.text().to_owned())
                .collect(),
        })
    }
}

impl<'a> Located<'a, Formula> {
    /// The place of the bytes `span` of the expression, however the file spells them.
    pub(crate) fn within(&self, span: &Range<usize>) -> Site<'a> {
        let Self { value, site } = self;
        let span = span.start + value.lead..span.end + value.lead;
        let spelled = spelled(site.source(), &span);
        Site {
            text: site.text,
            span: site.span.start + spelled.start..site.span.start + spelled.end,
        }
    }
}

/// The expression of `formula`, the value of `key`; what is wrong with it is said where it stands in the file.
pub(crate) fn compiled(
    formula: &Located<'_, Formula>,
    key: &str,
    scope: Scope,
    problems: &mut Problems,
) -> Option<Expression> {
    let Located { value, site } = formula;
    let fault = match Expression::compile(&value.text, scope) {
        Ok(expression) => return Some(expression),
        Err(fault) => fault,
    };
    let problem = Problem::new(format!("`{key}`: {}", fault.message)).maybe_hint(fault.hint);
    let place = fault
        .span
        .map_or_else(|| site.clone(), |span| formula.within(&span));
    problems.add(&place, problem);
    None
}

/// What a `[[device]]` without a name is called.
pub(crate) fn matching(formula: &str) -> String {
    format!("match {formula}")
}

fn replaces(section: &mut Section<'_, '_>) -> bool {
    section
        .take("replace", Flag)
        .is_some_and(|replace| replace.value)
}

fn nothing_for(tenant: &str, key: &str) -> Problem {
    Problem::new(format!("tenant `{tenant}` may hold nothing: `{key}` is 0"))
        .hint(format!("leave `{key}` out for no limit"))
}

fn declared_twice(what: &str, name: &str, first: &Site<'_>) -> Problem {
    let name = crate::units::shortened(name);
    Problem::new(format!(
        "{what} `{name}` is declared twice, first in {first}"
    ))
    .hint("say `replace = true` here, or remove one of the two")
}
