//! What a policy decides by evaluation: classes and their hours, tenants, rules, filters and scores of devices.

mod errors;
mod memo;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use gpu_lease::{
    Device, DeviceState, Refusal, Request, RuleErrors, RuleHit, Rules, Sets, Standing, Verdict,
    WallMs,
};
use jiff::tz::TimeZone;

use self::errors::Errors;
use self::memo::{Ends, Memo};
use crate::cel::{Expression, Inputs, Reads, select_filter};
use crate::hours::{self, Schedule};
use crate::suggest::{did_you_mean, list};
use crate::units::shortened;
use crate::value::DevicePattern;

/// The name under which errors of the placement's score are counted.
const SCORE: &str = "placement.score";

/// [`Rules`] of a compiled policy.
#[derive(Debug)]
pub(crate) struct PolicyRules {
    parts: Parts,
    /// What the hold and deny rules read together.
    reads: Reads,
    memo: Memo,
    ends: Ends,
    errors: Errors,
}

/// What [`PolicyRules`] are made of.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Every class, and when it may start.
    pub(crate) classes: BTreeMap<String, Option<Schedule>>,
    /// The devices that each device rule is about, in the order of the rules.
    pub(crate) devices: Vec<DeviceMatch>,
    /// Who belongs to each tenant, in the order of the tenants.
    pub(crate) tenants: Vec<TenantMatch>,
    /// In file order.
    pub(crate) rules: Vec<Rule>,
    /// How well a device suits a request.
    pub(crate) score: Option<Expression>,
    /// Where `now` is; `None` is UTC.
    pub(crate) zone: Option<TimeZone>,
}

/// Which devices a device rule is about.
#[derive(Clone, Debug)]
pub(crate) enum DeviceMatch {
    /// By id or name.
    Pattern(DevicePattern),
    /// Those that it holds for.
    When(Expression),
}

/// Who belongs to a tenant.
#[derive(Clone, Debug)]
pub(crate) struct TenantMatch {
    pub(crate) name: String,
    /// Each user is a tenant of its own.
    pub(crate) per_user: bool,
    /// Whose requests; `None` is those that claim it, and everybody's of a tenant per user.
    pub(crate) when: Option<Expression>,
}

/// A `[[rule]]`.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) when: Expression,
    pub(crate) action: Action,
    pub(crate) on_error: OnError,
}

/// What a rule does where it applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Refuses, for this reason.
    Deny(String),
    /// Makes wait, for this reason.
    Hold(String),
    /// Changes the request as it arrives.
    Set(Sets),
}

/// What a rule that fails does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnError {
    Deny,
    Skip,
}

/// What the hold and deny rules say, and which of them failed on the way.
#[derive(Clone, Debug)]
struct Decided {
    verdict: Verdict,
    failed: Vec<(usize, String)>,
}

impl Rules for PolicyRules {
    fn admit(&self, request: &Request, standing: &Standing, now: WallMs) -> Verdict {
        if let Some(verdict) = self.of_class(request, now) {
            return verdict;
        }
        if !self.parts.rules.iter().any(Rule::decides) {
            return Verdict::Allow;
        }
        self.decided(request, standing, now).verdict
    }

    fn shape(&self, request: &Request, standing: &Standing, now: WallMs) -> Sets {
        let mut sets = Sets::default();
        if !self.parts.rules.iter().any(Rule::sets_something) {
            return sets;
        }
        self.shaped(request, standing, now, |_, said| {
            if let Ok(set) = said {
                add(&mut sets, set);
            }
        });
        sets
    }

    fn count_errors(&self, request: &Request, standing: &Standing, now: WallMs) {
        if self.parts.rules.is_empty() && self.parts.tenants.is_empty() {
            return;
        }
        let count = |name: &str, error: &str| self.errors.count(name, error);
        let mut made = self.shaped(request, standing, now, |rule, said| match said {
            // What decides says it again.
            Err(error) if !rule.decides() => count(&rule.name, &error),
            _ => {}
        });
        let Ok(tenant) =
            self.find_tenant(&made, |tenant, error| count(&tenant_rule(tenant), error))
        else {
            return;
        };
        self.write_tenant(&mut made, tenant);
        if self.of_class(&made, now).is_some() {
            return;
        }
        for (rule, error) in &self.decided(&made, standing, now).failed {
            count(&self.parts.rules[*rule].name, error);
        }
    }

    fn reads_standing(&self) -> bool {
        let rules = self.parts.rules.iter().map(|rule| &rule.when);
        rules.chain(&self.parts.score).any(Expression::reads_books)
    }

    fn tenant(&self, request: &Request) -> Result<Option<usize>, Refusal> {
        self.find_tenant(request, |_, _| {})
    }

    fn device_matches(&self, rule: usize, device: &Device) -> bool {
        match self.parts.devices.get(rule) {
            Some(DeviceMatch::Pattern(pattern)) => {
                pattern.matches(device.key.id.as_str()) || pattern.matches(&device.name)
            }
            Some(DeviceMatch::When(expression)) => {
                let matches = expression.test(&Inputs::of_device(device, &[]));
                matches.unwrap_or_else(|error| {
                    let name = format!("device {}", shortened(expression.text()));
                    let about = device.key.id.as_str().as_bytes().to_vec();
                    self.errors.count_once(&name, &error, about);
                    false
                })
            }
            None => false,
        }
    }

    fn selects(&self, filter: &str, device: &Device, labels: &[String]) -> bool {
        select_filter(filter, device, labels).unwrap_or_else(|error| {
            // What a request says by itself is no error of the policy.
            if let Some(rule) = self.parts.rules.iter().find(|rule| rule.adds(filter)) {
                let about = device.key.id.as_str().as_bytes().to_vec();
                self.errors.count_once(&rule.name, &error, about);
            }
            false
        })
    }

    fn scores(
        &self,
        request: &Request,
        devices: &[&DeviceState],
        standing: &Standing,
        now: WallMs,
    ) -> Vec<i64> {
        let Some(score) = &self.parts.score else {
            return devices.iter().map(|_| 0).collect();
        };
        let inputs = self.inputs(request, standing, now);
        let of = |device: &&DeviceState| match score.number(&inputs.with_device(device)) {
            Ok(points) => milli_points(points),
            Err(error) => {
                let mut about = self
                    .inputs(request, &Standing::default(), WallMs(0))
                    .key(score.reads());
                about.extend(device.device.key.id.as_str().bytes());
                self.errors.count_once(SCORE, &error, about);
                i64::MIN
            }
        };
        devices.iter().map(of).collect()
    }

    fn hits(&self, request: &Request, standing: &Standing, now: WallMs) -> Vec<RuleHit> {
        let mut hits = Vec::new();
        let mut made = self.shaped(request, standing, now, |rule, said| match said {
            Ok(set) => hits.push(hit(&rule.name, format!("sets {}", words(set)))),
            Err(_) if rule.decides() => {}
            Err(error) => hits.push(hit(&rule.name, rule.failure(&error))),
        });
        let tenant = self.tenant(&made).ok().flatten();
        self.write_tenant(&mut made, tenant);
        match self.of_class(&made, now) {
            Some(verdict) => hits.extend(of_verdict(verdict)),
            None => self.add_hits(&self.inputs(&made, standing, now), &mut hits),
        }
        hits
    }

    fn errors(&self) -> Vec<RuleErrors> {
        self.errors.list()
    }

    fn next_change(&self, now: WallMs) -> Option<WallMs> {
        let schedules = self.parts.classes.values().flatten();
        let of_class = schedules.filter_map(|schedule| schedule.next_change(now));
        let of_rules = self
            .reads
            .step()
            .and_then(|step| hours::next_step(now, self.parts.zone.as_ref(), step));
        of_class.chain(of_rules).min()
    }

    fn next_clock(&self, hour: u8, minute: u8, now: WallMs) -> WallMs {
        // There is none at the end of time alone.
        hours::next_clock(now, self.parts.zone.as_ref(), (hour, minute)).unwrap_or(now)
    }
}

impl PolicyRules {
    pub(crate) fn new(parts: Parts) -> Self {
        let deciding = parts.rules.iter().filter(|rule| rule.decides());
        let reads = deciding
            .map(|rule| rule.when.reads())
            .fold(Reads::default(), Reads::union);
        Self {
            parts,
            reads,
            memo: Memo::default(),
            ends: Ends::default(),
            errors: Errors::default(),
        }
    }

    fn inputs<'a>(&'a self, request: &'a Request, standing: &Standing, now: WallMs) -> Inputs<'a> {
        Inputs::of_request(request, standing, now, self.parts.zone.as_ref())
    }

    /// What the class alone says.
    fn of_class(&self, request: &Request, now: WallMs) -> Option<Verdict> {
        match self.parts.classes.get(&request.class) {
            None => Some(self.no_such_class(&request.class)),
            Some(Some(schedule)) if !schedule.is_open(now) => {
                Some(closed(&request.class, schedule, now))
            }
            Some(_) => None,
        }
    }

    /// [`Self::decide`], which is asked once for equal inputs.
    fn decided(&self, request: &Request, standing: &Standing, now: WallMs) -> Decided {
        let inputs = self.inputs(request, standing, now);
        let key = inputs.key(self.reads);
        self.memo.get_or(key, || self.decide(&inputs, now))
    }

    /// What the first hold or deny rule that applies says.
    fn decide(&self, inputs: &Inputs<'_>, now: WallMs) -> Decided {
        let mut failed = Vec::new();
        for (index, rule) in self.parts.rules.iter().enumerate() {
            let said = rule.says(inputs, || self.holds_until(index, inputs, now));
            if let Some(Err(error)) = &said {
                failed.push((index, error.clone()));
            }
            let verdict = match said {
                Some(Ok(verdict)) => verdict,
                Some(Err(error)) if rule.on_error == OnError::Deny => rule.erred(&error),
                Some(Err(_)) | None => continue,
            };
            return Decided { verdict, failed };
        }
        Decided {
            verdict: Verdict::Allow,
            failed,
        }
    }

    /// When the clock alone ends a hold of the `index`-th rule. The leases that are held by it share what was
    /// found, from minute to minute, so that nobody pays for it again and again.
    fn holds_until(&self, index: usize, inputs: &Inputs<'_>, now: WallMs) -> Option<WallMs> {
        let rule = &self.parts.rules[index];
        if !rule.when.reads_now() {
            return None;
        }
        let key = (index, inputs.at(WallMs(0)).key(rule.when.reads()));
        self.ends
            .get_or(key, now, || rule.ends_holding(inputs, now))
    }

    /// [`Self::decide`] for people, without counting.
    fn add_hits(&self, inputs: &Inputs<'_>, hits: &mut Vec<RuleHit>) {
        for rule in &self.parts.rules {
            match rule.says(inputs, || None) {
                None => {}
                Some(Ok(verdict)) => return hits.extend(of_verdict(verdict)),
                Some(Err(error)) => {
                    hits.push(hit(&rule.name, rule.failure(&error)));
                    if rule.on_error == OnError::Deny {
                        return;
                    }
                }
            }
        }
    }

    /// `request` as the set rules leave it; each sees what the ones before it did.
    fn shaped<'a>(
        &'a self,
        request: &Request,
        standing: &Standing,
        now: WallMs,
        mut each: impl FnMut(&'a Rule, Result<&'a Sets, String>),
    ) -> Request {
        let mut shaped = request.clone();
        let mut rules = self.parts.rules.iter();
        loop {
            let inputs = self.inputs(&shaped, standing, now);
            let next = rules.by_ref().find_map(|rule| {
                let set = rule.sets(&inputs, |error| each(rule, Err(error)))?;
                Some((rule, set))
            });
            let Some((rule, set)) = next else {
                return shaped;
            };
            set.apply(&mut shaped);
            each(rule, Ok(set));
        }
    }

    /// The tenant that `request` claims or is found in; `failed` hears of each whose `match` fails.
    fn find_tenant(
        &self,
        request: &Request,
        mut failed: impl FnMut(&str, &str),
    ) -> Result<Option<usize>, Refusal> {
        let tenants = &self.parts.tenants;
        let claimed = request.holder.tenant.as_deref();
        let inputs = self.inputs(request, &Standing::default(), WallMs(0));
        let mut takes_in = |tenant: &TenantMatch| {
            let Some(when) = &tenant.when else {
                return tenant.per_user;
            };
            when.test(&inputs).unwrap_or_else(|error| {
                failed(&tenant.name, &error);
                false
            })
        };
        let Some(claimed) = claimed.filter(|_| !tenants.is_empty()) else {
            return Ok(tenants.iter().position(takes_in));
        };
        let found = tenants.iter().position(|tenant| tenant.name == claimed);
        let index = found.ok_or_else(|| self.no_such_tenant(claimed))?;
        let tenant = &tenants[index];
        match tenant.when.is_none() || takes_in(tenant) {
            true => Ok(Some(index)),
            false => Err(not_in(tenant, request)),
        }
    }

    /// Writes down the tenant that `request` was found in, as its lease has it.
    fn write_tenant(&self, request: &mut Request, tenant: Option<usize>) {
        let found = tenant.map(|index| self.parts.tenants[index].name.clone());
        let claimed = request.holder.tenant.take();
        request.holder.tenant = claimed.or(found);
    }

    fn no_such_class(&self, class: &str) -> Verdict {
        let known = || self.parts.classes.keys().map(String::as_str);
        let shown = shortened(class);
        let hint = did_you_mean(class, known())
            .map(|hint| format!("; {hint}"))
            .unwrap_or_default();
        Verdict::Deny {
            rule: format!("class {shown}"),
            reason: format!(
                "class `{shown}` does not exist; the classes are {}{hint}",
                list(known())
            ),
            erred: false,
        }
    }

    fn no_such_tenant(&self, tenant: &str) -> Refusal {
        let known = || self.parts.tenants.iter().map(|tenant| tenant.name.as_str());
        let shown = shortened(tenant);
        let hint = did_you_mean(tenant, known())
            .map(|hint| format!("; {hint}"))
            .unwrap_or_default();
        Refusal {
            rule: tenant_rule(&shown),
            reason: format!("tenant `{shown}` does not exist{hint}"),
        }
    }
}

impl Rule {
    /// Whether it can hold or deny: a rule that sets can where it fails.
    fn decides(&self) -> bool {
        match self.action {
            Action::Deny(_) | Action::Hold(_) => true,
            Action::Set(_) => self.on_error == OnError::Deny,
        }
    }

    fn sets_something(&self) -> bool {
        matches!(self.action, Action::Set(_))
    }

    /// Whether it sets this filter.
    fn adds(&self, filter: &str) -> bool {
        let Action::Set(set) = &self.action else {
            return false;
        };
        set.filters.iter().any(|own| own == filter)
    }

    /// What it sets, if it sets and applies.
    fn sets(&self, inputs: &Inputs<'_>, failed: impl FnOnce(String)) -> Option<&Sets> {
        let Action::Set(set) = &self.action else {
            return None;
        };
        match self.when.test(inputs) {
            Ok(applies) => applies.then_some(set),
            Err(error) => {
                failed(error);
                None
            }
        }
    }

    /// Its verdict, if it decides and applies.
    fn says(
        &self,
        inputs: &Inputs<'_>,
        until: impl FnOnce() -> Option<WallMs>,
    ) -> Option<Result<Verdict, String>> {
        if !self.decides() {
            return None;
        }
        match self.when.test(inputs) {
            Ok(true) => self.verdict(until).map(Ok),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn verdict(&self, until: impl FnOnce() -> Option<WallMs>) -> Option<Verdict> {
        let rule = self.name.clone();
        match &self.action {
            Action::Deny(reason) => Some(Verdict::Deny {
                rule,
                reason: reason.clone(),
                erred: false,
            }),
            Action::Hold(reason) => Some(Verdict::Hold {
                rule,
                reason: reason.clone(),
                until: until(),
            }),
            Action::Set(_) => None,
        }
    }

    /// When the clock alone ends the hold: looked for by the quarter of an hour for an hour, by the hour for a
    /// day and by six hours for eight days, then to the minute between two of these, in at most
    /// 64 evaluations. An end that is over before the next look is missed.
    fn ends_holding(&self, inputs: &Inputs<'_>, now: WallMs) -> Option<WallMs> {
        const MINUTE_MS: u64 = 60_000;
        let start = now.0 - now.0 % MINUTE_MS;
        let at = |minute: u64| WallMs(start.saturating_add(minute * MINUTE_MS));
        let holds = |minute: u64| self.when.test(&inputs.at(at(minute))) == Ok(true);
        let quarters = (1..=4).map(|quarter| quarter * 15);
        let hours = (2..=24).map(|hour| hour * 60);
        let sixths = (5..=32).map(|sixth| sixth * 360);
        let mut held = 0;
        let mut over = quarters.chain(hours).chain(sixths).find(|minute| {
            let is_over = !holds(*minute);
            held = if is_over { held } else { *minute };
            is_over
        })?;
        while over - held > 1 {
            let middle = held.midpoint(over);
            match holds(middle) {
                true => held = middle,
                false => over = middle,
            }
        }
        Some(at(over))
    }

    fn erred(&self, error: &str) -> Verdict {
        Verdict::Deny {
            rule: self.name.clone(),
            reason: format!("the rule failed on this request: {error}"),
            erred: true,
        }
    }

    fn failure(&self, error: &str) -> String {
        let then = match self.on_error {
            OnError::Deny => "denies",
            OnError::Skip => "is skipped",
        };
        format!("fails and {then}: {error}")
    }
}

/// `sets` and what `set` says on top.
fn add(sets: &mut Sets, set: &Sets) {
    sets.class = set.class.clone().or(sets.class.take());
    sets.priority = set.priority.or(sets.priority);
    sets.ttl = set.ttl.or(sets.ttl);
    sets.max_hold = shorter(sets.max_hold, set.max_hold);
    sets.filters.extend(set.filters.iter().cloned());
}

fn shorter<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}

/// "class = batch, priority = 5"
fn words(set: &Sets) -> String {
    let Sets {
        class,
        priority,
        ttl,
        max_hold,
        filters,
    } = set;
    let parts = [
        class.as_ref().map(|class| format!("class = {class}")),
        priority.map(|priority| format!("priority = {priority}")),
        ttl.map(|ttl| format!("ttl = {ttl}")),
        max_hold.map(|max_hold| format!("max_hold = {max_hold}")),
    ];
    let filters = filters.iter().map(|filter| format!("select = {filter}"));
    let parts: Vec<String> = parts.into_iter().flatten().chain(filters).collect();
    parts.join(", ")
}

fn hit(rule: &str, effect: String) -> RuleHit {
    RuleHit {
        rule: rule.to_owned(),
        effect,
    }
}

fn of_verdict(verdict: Verdict) -> Option<RuleHit> {
    match verdict {
        Verdict::Allow => None,
        Verdict::Hold { rule, reason, .. } => Some(hit(&rule, format!("holds: {reason}"))),
        Verdict::Deny { rule, reason, .. } => Some(hit(&rule, format!("denies: {reason}"))),
    }
}

fn closed(class: &str, schedule: &Schedule, now: WallMs) -> Verdict {
    Verdict::Hold {
        rule: format!("class {class}: hours"),
        reason: format!("class `{class}` starts only within {schedule}"),
        until: schedule.next_change(now),
    }
}

fn tenant_rule(name: &str) -> String {
    format!("tenant {name}")
}

fn not_in(tenant: &TenantMatch, request: &Request) -> Refusal {
    Refusal {
        rule: tenant_rule(&tenant.name),
        reason: format!(
            "`{}` is not in tenant `{}`",
            shortened(&request.holder.user),
            tenant.name
        ),
    }
}

/// Thousandths of `points`, as near as an integer is; above the least, which is for errors.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a cast of a float saturates"
)]
fn milli_points(points: f64) -> i64 {
    ((points * 1000.0).round() as i64).max(i64::MIN + 1)
}
