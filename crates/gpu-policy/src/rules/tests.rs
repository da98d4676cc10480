//! What a policy's rules decide, as tables; and that those who have none pay nothing for them.

use gpu_lease::{
    Amount, Device, DeviceKey, DeviceKind, DeviceSettings, DeviceState, Holder, HolderKind, Ms,
    Select, Share, Telemetry, Usage, Vendor,
};

use super::*;
use crate::cel::{EVALUATIONS, Scope};
use crate::hours::Hours;

/// 2026-01-15T17:05:30Z, a Thursday; 18:05 in Berlin.
const NOW: WallMs = WallMs(1_768_496_730_000);
const HOUR_MS: u64 = 3_600_000;

fn request(user: &str, gib: u64) -> Request {
    Request {
        holder: Holder {
            name: "trainer".to_owned(),
            kind: HolderKind::Remote,
            tenant: None,
            user: user.to_owned(),
            tenant_found: false,
            pid: None,
        },
        class: "standard".to_owned(),
        devices: 1,
        amount: Amount::Memory(gib << 30),
        select: Select::default(),
        ttl: Ms::from_secs(60),
        wait: Ms(0),
        max_hold: None,
        drain_grace: None,
        load: false,
        queue: false,
        idempotency: None,
        labels: BTreeMap::new(),
    }
}

fn device(id: &str, gib: u64, used: u64) -> DeviceState {
    DeviceState {
        device: Device {
            key: DeviceKey::local(id),
            name: format!("NVIDIA {id}"),
            index: 0,
            vendor: Vendor::Nvidia,
            kind: DeviceKind::Discrete,
            pci_bus_id: None,
            nvml_uuid: None,
            driver: None,
            memory_total: gib << 30,
            telemetry: Telemetry::Supported,
            leasable: true,
            found_by: Vec::new(),
        },
        settings: DeviceSettings {
            reserve: 0,
            load_slots: 1,
            labels: Vec::new(),
            cordon: None,
        },
        cordon: None,
        reading: None,
        lost_since: None,
        read_after: None,
        occupants: Default::default(),
        peaks: BTreeMap::new(),
        usage: Usage {
            granted: used << 30,
            charged: used << 30,
            ..Usage::default()
        },
    }
}

fn expression(text: &str, scope: Scope) -> Expression {
    Expression::compile(text, scope).expect(text)
}

fn rule(name: &str, when: &str, action: Action) -> Rule {
    let on_error = match action {
        Action::Set(_) => OnError::Skip,
        _ => OnError::Deny,
    };
    Rule {
        name: name.to_owned(),
        when: expression(when, Scope::Rule),
        action,
        on_error,
    }
}

fn deny(name: &str, when: &str) -> Rule {
    rule(name, when, Action::Deny(format!("because of {name}")))
}

fn hold(name: &str, when: &str) -> Rule {
    rule(name, when, Action::Hold(format!("because of {name}")))
}

fn set(name: &str, when: &str, sets: Sets) -> Rule {
    rule(name, when, Action::Set(sets))
}

fn berlin() -> TimeZone {
    jiff::tz::TimeZoneDatabase::bundled()
        .get("Europe/Berlin")
        .expect("zone")
}

fn rules(rules: Vec<Rule>) -> PolicyRules {
    let nights = Schedule {
        hours: Hours::parse("22:00-06:00").expect("hours"),
        zone: berlin(),
    };
    PolicyRules::new(Parts {
        classes: BTreeMap::from([
            ("standard".to_owned(), None),
            ("batch".to_owned(), None),
            ("night".to_owned(), Some(nights)),
        ]),
        rules,
        zone: Some(berlin()),
        ..Parts::default()
    })
}

/// A verdict in a few words.
fn said(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Allow => "allow".to_owned(),
        Verdict::Hold { rule, .. } => format!("hold: {rule}"),
        Verdict::Deny {
            rule, erred: false, ..
        } => format!("deny: {rule}"),
        Verdict::Deny { rule, reason, .. } => format!("deny: {rule}: {reason}"),
    }
}

fn evaluations(work: impl FnOnce()) -> u64 {
    let before = EVALUATIONS.get();
    work();
    EVALUATIONS.get() - before
}

#[test]
fn the_first_rule_that_applies_decides() {
    let mut skipped = deny("skipped", "request.labels.team == 'x'");
    skipped.on_error = OnError::Skip;
    let rules = rules(vec![
        set("no verdict", "true", Sets::default()),
        skipped,
        deny("too big", "request.memory > GiB(40)"),
        hold("many", "books.user.leases >= 2"),
        deny("also many", "books.user.leases >= 2"),
        deny("fails", "holder.user == 'eve' && 1 / request.wait > 0"),
        hold("evening", "now.hour >= 18 && holder.user == 'bo'"),
    ]);
    let none = Standing::default();
    let many = Standing {
        user: Share {
            leases: 2,
            ..Share::default()
        },
        ..none
    };
    for (user, gib, class, standing, verdict) in [
        ("ann", 1, "standard", none, "allow"),
        ("ann", 41, "standard", none, "deny: too big"),
        ("ann", 41, "standard", many, "deny: too big"),
        ("ann", 1, "standard", many, "hold: many"),
        ("bo", 1, "standard", none, "hold: evening"),
        (
            "eve",
            1,
            "standard",
            none,
            "deny: fails: the rule failed on this request: division by zero",
        ),
        ("ann", 41, "night", none, "hold: class night: hours"),
        ("ann", 41, "nigth", none, "deny: class nigth"),
    ] {
        let request = Request {
            class: class.to_owned(),
            ..request(user, gib)
        };
        assert_eq!(
            said(&rules.admit(&request, &standing, NOW)),
            verdict,
            "{user} {gib} {class}"
        );
    }
    assert!(rules.reads_standing());
}

/// Reads, plans, explanations and the looks at one waiter are no further requests.
#[test]
fn errors_are_counted_by_rule_once_for_each_new_request() {
    let mut skipped = deny("skipped", "request.labels.team == 'x'");
    skipped.on_error = OnError::Skip;
    let rules = rules(vec![skipped, deny("fails", "1 / request.wait > 0")]);
    let (request, none) = (request("ann", 1), Standing::default());
    for _ in 0..5 {
        let verdict = rules.admit(&request, &none, NOW);
        assert!(
            matches!(verdict, Verdict::Deny { erred: true, .. }),
            "{verdict:?}"
        );
        rules.shape(&request, &none, NOW);
        rules.hits(&request, &none, NOW);
    }
    assert_eq!(rules.errors(), []);
    let count = evaluations(|| {
        for _ in 0..5 {
            rules.count_errors(&request, &none, NOW);
        }
    });
    assert_eq!(count, 0, "it is remembered what the rules said");
    let error = |rule: &str, last: &str| RuleErrors {
        rule: rule.to_owned(),
        count: 5,
        last: last.to_owned(),
    };
    assert_eq!(
        rules.errors(),
        [
            error("fails", "division by zero"),
            error("skipped", "the request has no label `team`")
        ]
    );
}

#[test]
fn the_rules_that_apply_are_those_of_the_request_that_is_decided_about() {
    let batch = Sets {
        class: Some("batch".to_owned()),
        ..Sets::default()
    };
    let mut rules = rules(vec![
        set("unclaimed", "holder.tenant == ''", batch),
        set("never", "holder.tenant == 'lab'", Sets::default()),
        deny("lab", "holder.tenant == 'lab' && request.class == 'batch'"),
    ]);
    let lab = TenantMatch {
        name: "lab".to_owned(),
        per_user: false,
        when: Some(expression("request.class == 'batch'", Scope::Tenant)),
    };
    rules.parts.tenants.push(lab);
    let hits = rules.hits(&request("ann", 1), &Standing::default(), NOW);
    let names: Vec<&str> = hits.iter().map(|hit| hit.rule.as_str()).collect();
    assert_eq!(names, ["unclaimed", "lab"]);
}

#[test]
fn a_rule_that_sets_denies_where_it_fails_and_says_so() {
    let mut strict = set("by team", "request.labels.team == 'x'", Sets::default());
    strict.on_error = OnError::Deny;
    let rules = rules(vec![strict, hold("all", "true")]);
    let (mut request, none) = (request("ann", 1), Standing::default());
    let failed = "deny: by team: the rule failed on this request: the request has no label `team`";
    assert_eq!(rules.shape(&request, &none, NOW), Sets::default());
    assert_eq!(said(&rules.admit(&request, &none, NOW)), failed);
    assert_eq!(rules.errors(), []);
    rules.count_errors(&request, &none, NOW);
    assert_eq!(
        rules.errors()[0].count,
        1,
        "once, though it sets and decides"
    );
    let hits = rules.hits(&request, &none, NOW);
    assert_eq!(hits.len(), 1, "{hits:?}");
    request.labels.insert("team".to_owned(), "y".to_owned());
    assert_eq!(said(&rules.admit(&request, &none, NOW)), "hold: all");
}

#[test]
fn a_verdict_is_remembered_for_equal_inputs_of_what_is_read() {
    let of_request = || {
        rules(vec![
            deny("big", "request.memory > GiB(40)"),
            deny("ann", "holder.user == 'ann'"),
        ])
    };
    let of_clock = || rules(vec![deny("late", "now.minute == 6 && request.memory > 0")]);
    let of_books = || rules(vec![deny("busy", "books.waiting > 3")]);
    let waiting = |waiting| Standing {
        waiting,
        ..Standing::default()
    };
    let later = |ms| WallMs(NOW.0 + ms);
    for (what, rules, first, second, evaluated) in [
        (
            "what no rule reads",
            of_request(),
            (1, waiting(0), NOW),
            (1, waiting(9), later(30_000)),
            2,
        ),
        (
            "another size",
            of_request(),
            (1, waiting(0), NOW),
            (2, waiting(0), NOW),
            4,
        ),
        (
            "the same minute",
            of_clock(),
            (1, waiting(0), NOW),
            (1, waiting(0), later(29_999)),
            1,
        ),
        (
            "another minute",
            of_clock(),
            (1, waiting(0), NOW),
            (1, waiting(0), later(30_000)),
            2,
        ),
        (
            "another standing",
            of_books(),
            (1, waiting(3), NOW),
            (1, waiting(4), NOW),
            2,
        ),
        (
            "the same standing",
            of_books(),
            (1, waiting(3), NOW),
            (1, waiting(3), later(30_000)),
            1,
        ),
    ] {
        let count = evaluations(|| {
            for ((gib, standing, now), name) in
                [(first, "a"), (first, "b"), (second, "a"), (second, "b")]
            {
                let mut request = request("bo", gib);
                request.holder.name = name.to_owned();
                rules.admit(&request, &standing, now);
            }
        });
        assert_eq!(count, evaluated, "{what}");
    }
}

#[test]
fn more_inputs_than_are_remembered_are_decided_all_the_same() {
    let rules = rules(vec![deny("odd", "request.devices % 2 == 1")]);
    for devices in (0..10_000).chain(0..10) {
        let request = Request {
            devices,
            ..request("ann", 1)
        };
        let expected = if devices % 2 == 1 {
            "deny: odd"
        } else {
            "allow"
        };
        assert_eq!(
            said(&rules.admit(&request, &Standing::default(), NOW)),
            expected,
            "{devices}"
        );
    }
}

#[test]
fn policies_without_expressions_evaluate_none() {
    let rules = rules(Vec::new());
    let (request, card) = (request("ann", 1), device("GPU-1", 24, 0));
    let none = Standing::default();
    let count = evaluations(|| {
        assert_eq!(rules.admit(&request, &none, NOW), Verdict::Allow);
        assert_eq!(rules.shape(&request, &none, NOW), Sets::default());
        assert_eq!(rules.tenant(&request), Ok(None));
        assert_eq!(rules.scores(&request, &[&card], &none, NOW), [0]);
        assert!(!rules.device_matches(0, &card.device));
        assert!(!rules.reads_standing());
        assert_eq!(rules.hits(&request, &none, NOW), []);
        assert!(rules.next_change(NOW).is_some(), "the hours of a class");
    });
    assert_eq!(count, 0);
    assert_eq!(rules.memo.len(), 0);
}

#[test]
fn set_rules_apply_in_file_order_and_each_sees_what_was_set() {
    let class = |class: &str| Sets {
        class: Some(class.to_owned()),
        ..Sets::default()
    };
    let max_hold = |secs| Sets {
        max_hold: Some(Ms::from_secs(secs)),
        ..Sets::default()
    };
    let filter = |filter: &str| Sets {
        filters: vec![filter.to_owned()],
        ..Sets::default()
    };
    let rules = rules(vec![
        set(
            "large is batch",
            "request.memory >= GiB(24)",
            class("batch"),
        ),
        set("fails", "request.labels.team == 'x'", class("night")),
        set(
            "batch is low",
            "request.class == 'batch'",
            Sets {
                priority: Some(-5),
                ..max_hold(600)
            },
        ),
        set(
            "batch is short",
            "request.class == 'batch' && request.max_hold == 600",
            max_hold(300),
        ),
        set("and not longer", "request.max_hold == 300", max_hold(900)),
        set(
            "standard is quick",
            "request.class == 'standard'",
            Sets {
                ttl: Some(Ms::from_secs(10)),
                ..Sets::default()
            },
        ),
        set("on fast ones", "true", filter("'fast' in device.labels")),
        set("not on 0", "request.ttl == 60", filter("device.index > 0")),
        deny("never", "request.class == 'batch' && holder.user == 'eve'"),
    ]);
    let none = Standing::default();
    let shape = |gib| rules.shape(&request("ann", gib), &none, NOW);
    assert_eq!(
        shape(24),
        Sets {
            class: Some("batch".to_owned()),
            priority: Some(-5),
            ttl: None,
            max_hold: Some(Ms::from_secs(300)),
            filters: vec![
                "'fast' in device.labels".to_owned(),
                "device.index > 0".to_owned()
            ],
        }
    );
    assert_eq!(
        shape(1),
        Sets {
            ttl: Some(Ms::from_secs(10)),
            filters: vec!["'fast' in device.labels".to_owned()],
            ..Sets::default()
        }
    );
    assert_eq!(rules.errors(), []);
    // Sets act at arrival: a verdict is about what the request says by then.
    assert_eq!(said(&rules.admit(&request("eve", 24), &none, NOW)), "allow");
    let hits = rules.hits(&request("eve", 24), &none, NOW);
    let hits: Vec<String> = hits
        .iter()
        .map(|hit| format!("{} {}", hit.rule, hit.effect))
        .collect();
    assert_eq!(
        hits,
        [
            "large is batch sets class = batch",
            "fails fails and is skipped: the request has no label `team`",
            "batch is low sets priority = -5, max_hold = 10m",
            "batch is short sets max_hold = 5m",
            "and not longer sets max_hold = 15m",
            "on fast ones sets select = 'fast' in device.labels",
            "not on 0 sets select = device.index > 0",
            "never denies: because of never",
        ]
    );
}

#[test]
fn tenants_are_claimed_or_found() {
    let tenant = |name: &str, per_user, when: Option<&str>| TenantMatch {
        name: name.to_owned(),
        per_user,
        when: when.map(|when| expression(when, Scope::Tenant)),
    };
    let with = |tenants| {
        PolicyRules::new(Parts {
            tenants,
            ..Parts::default()
        })
    };
    let some = with(vec![
        tenant("guests", false, None),
        tenant("fails", false, Some("request.labels.x == 'y'")),
        tenant("research", false, Some("holder.user in ['ann', 'bo']")),
        tenant("ops", false, Some("holder.user.startsWith('b')")),
    ]);
    let everybody = with(vec![
        tenant("research", false, Some("holder.user == 'ann'")),
        tenant("all", true, None),
    ]);
    let nobody = with(Vec::new());
    for (rules, user, claim, found) in [
        (&some, "ann", None, Ok(Some(2))),
        (&some, "bo", None, Ok(Some(2))),
        (&some, "bo", Some("ops"), Ok(Some(3))),
        (&some, "eve", None, Ok(None)),
        (&some, "eve", Some("guests"), Ok(Some(0))),
        (
            &some,
            "eve",
            Some("research"),
            Err(("tenant research", "`eve` is not in tenant `research`")),
        ),
        (
            &some,
            "eve",
            Some("fails"),
            Err(("tenant fails", "`eve` is not in tenant `fails`")),
        ),
        (
            &some,
            "eve",
            Some("guest"),
            Err((
                "tenant guest",
                "tenant `guest` does not exist; did you mean `guests`?",
            )),
        ),
        (&everybody, "ann", None, Ok(Some(0))),
        (&everybody, "eve", None, Ok(Some(1))),
        (&everybody, "eve", Some("all"), Ok(Some(1))),
        (&nobody, "eve", Some("anything"), Ok(None)),
    ] {
        let mut request = request(user, 1);
        request.holder.tenant = claim.map(str::to_owned);
        let found = found.map_err(|(rule, reason)| Refusal {
            rule: rule.to_owned(),
            reason: reason.to_owned(),
        });
        assert_eq!(rules.tenant(&request), found, "{user} {claim:?}");
    }
    assert_eq!(some.errors(), []);
    some.count_errors(&request("eve", 1), &Standing::default(), NOW);
    let errors = some.errors();
    assert_eq!(
        (errors[0].rule.as_str(), errors[0].count),
        ("tenant fails", 1)
    );
}

#[test]
fn devices_are_matched_selected_and_scored() {
    let rules = PolicyRules::new(Parts {
        devices: vec![
            DeviceMatch::When(expression(
                "device.memory >= GiB(40) && device.vendor == 'nvidia'",
                Scope::Device,
            )),
            DeviceMatch::When(expression("1 / device.index == 1", Scope::Device)),
        ],
        score: Some(expression(
            "device.id == 'odd' ? 0.0 / double(device.leases) : double(device.free) / double(GiB(1)) - 0.0625",
            Scope::Score,
        )),
        ..Parts::default()
    });
    let (small, large, odd) = (
        device("GPU-1", 24, 4),
        device("GPU-2", 80, 0),
        device("odd", 1, 0),
    );
    assert!(!rules.device_matches(0, &small.device));
    assert!(rules.device_matches(0, &large.device));
    assert!(
        !rules.device_matches(1, &large.device),
        "an error is no match"
    );
    assert!(!rules.device_matches(2, &large.device));

    let labels = ["fast".to_owned()];
    for (filter, selected) in [
        ("'fast' in device.labels", true),
        ("device.memory > GiB(40)", false),
        ("device.nam == 'x'", false),
        ("1 / device.index == 1", false),
        ("", false),
    ] {
        assert_eq!(
            rules.selects(filter, &small.device, &labels),
            selected,
            "{filter}"
        );
    }

    for minute in 0..3 {
        assert!(!rules.device_matches(1, &large.device), "asked again");
        let scores = rules.scores(
            &request("ann", 1),
            &[&small, &large, &odd],
            &Standing::default(),
            WallMs(NOW.0 + minute * 60_000),
        );
        assert_eq!(scores, [19_938, 79_938, i64::MIN]);
    }
    let errors: Vec<(String, u64)> = rules
        .errors()
        .into_iter()
        .map(|errors| (errors.rule, errors.count))
        .collect();
    assert_eq!(
        errors,
        [
            ("device 1 / device.index == 1".to_owned(), 1),
            (SCORE.to_owned(), 1),
        ]
    );
}

#[test]
fn points_are_thousandths_within_what_fits() {
    for (points, milli) in [
        (0.0, 0),
        (1.5, 1500),
        (-0.0004, 0),
        (1e300, i64::MAX),
        (-1e300, i64::MIN + 1),
    ] {
        assert_eq!(milli_points(points), milli, "{points}");
    }
}

fn wall(text: &str) -> WallMs {
    let at: jiff::Timestamp = text.parse().expect("RFC 3339");
    WallMs(u64::try_from(at.as_millisecond()).expect("after 1970"))
}

/// (when, now, until), in Berlin
#[test]
fn a_hold_by_the_clock_says_until_when() {
    for (when, now, until) in [
        (
            "now.hour >= 18 || now.hour < 6",
            "2026-01-15T17:05:30Z",
            Some("2026-01-16T05:00:00Z"),
        ),
        (
            "now.clock >= '18:00' && now.clock < '18:30'",
            "2026-01-15T17:05:30Z",
            Some("2026-01-15T17:30:00Z"),
        ),
        (
            "now.weekday in ['thu', 'fri']",
            "2026-01-15T17:05:30Z",
            Some("2026-01-16T23:00:00Z"),
        ),
        ("now.month == 1", "2026-01-15T17:05:30Z", None),
        ("request.devices == 1", "2026-01-15T17:05:30Z", None),
        (
            "request.devices == 1 && now.year > 2000",
            "2026-01-15T17:05:30Z",
            None,
        ),
        // The hour that is there twice ends twice.
        (
            "now.clock >= '02:30' && now.clock < '03:00'",
            "2026-10-25T00:35:00Z",
            Some("2026-10-25T01:00:00Z"),
        ),
        (
            "now.clock >= '02:30' && now.clock < '03:00'",
            "2026-10-25T01:35:00Z",
            Some("2026-10-25T02:00:00Z"),
        ),
        // The hour that is skipped ends at once.
        (
            "now.hour >= 1 && now.clock < '02:30'",
            "2026-03-29T00:30:00Z",
            Some("2026-03-29T01:00:00Z"),
        ),
    ] {
        let rules = rules(vec![hold("clock", when)]);
        let Verdict::Hold { until: found, .. } =
            rules.admit(&request("ann", 1), &Standing::default(), wall(now))
        else {
            panic!("{when} holds at {now}");
        };
        assert_eq!(found, until.map(wall), "{when} at {now}");
    }
}

/// 4 quarters, 23 hours, 28 times six hours, and 9 halves of the last of these.
#[test]
fn the_end_of_a_hold_is_found_in_few_steps_and_remembered() {
    for (when, most) in [
        ("now.hour >= 18 || now.hour < 6", 1 + 64),
        ("now.clock >= '18:00' && now.clock < '18:30'", 1 + 64),
        ("now.clock != '05:59'", 1 + 64),
        ("now.month == 1", 1 + 64),
    ] {
        let rules = rules(vec![hold("clock", when)]);
        let admit = |minute: u64| {
            let now = WallMs(NOW.0 + minute * 60_000);
            match rules.admit(&request("ann", 1), &Standing::default(), now) {
                Verdict::Hold { until, .. } => until,
                verdict => panic!("{when} holds: {verdict:?}"),
            }
        };
        let mut first = None;
        let count = evaluations(|| first = admit(0));
        assert!(count <= most, "{when}: {count}");
        for minute in 1..20 {
            let count = evaluations(|| assert_eq!(admit(minute), first, "{when}"));
            assert_eq!(count, 1, "{when} {minute}");
        }
    }
}

/// Tomorrow, the day after, and then yesterday, as an explanation may ask.
#[test]
fn an_end_that_is_not_the_next_any_more_is_looked_for_again() {
    let rules = rules(vec![hold("clock", "now.hour != 3")]);
    for (now, end) in [
        ("2026-01-15T17:00:00Z", "2026-01-16T02:00:00Z"),
        ("2026-01-16T01:59:00Z", "2026-01-16T02:00:00Z"),
        ("2026-01-16T03:00:00Z", "2026-01-17T02:00:00Z"),
        ("2026-01-14T17:00:00Z", "2026-01-15T02:00:00Z"),
    ] {
        let verdict = rules.admit(&request("ann", 1), &Standing::default(), wall(now));
        let Verdict::Hold { until, .. } = verdict else {
            panic!("holds at {now}: {verdict:?}");
        };
        assert_eq!(until, Some(wall(end)), "{now}");
    }
}

#[test]
fn the_next_change_is_that_of_class_hours_or_of_the_clock_that_rules_read() {
    let next = |when: &str| rules(vec![hold("clock", when)]).next_change(NOW);
    assert_eq!(
        next("request.devices == 9"),
        Some(wall("2026-01-15T21:00:00Z")),
        "the class opens"
    );
    assert_eq!(
        next("now.weekday == 'sat'"),
        Some(wall("2026-01-15T21:00:00Z")),
        "before the day ends"
    );
    assert_eq!(next("now.hour == 3"), Some(wall("2026-01-15T18:00:00Z")));
    assert_eq!(
        next("now.clock == '18:30'"),
        Some(wall("2026-01-15T17:06:00Z"))
    );
    let sets = rules(vec![set("clock", "now.minute == 3", Sets::default())]);
    assert_eq!(
        sets.next_change(NOW),
        Some(wall("2026-01-15T21:00:00Z")),
        "sets act at arrival"
    );
    assert_eq!(PolicyRules::new(Parts::default()).next_change(NOW), None);
}

/// Nothing that a rule does not read changes what it says, at any hour.
#[test]
fn the_same_policy_says_the_same_of_the_same_inputs() {
    let policy = || {
        rules(vec![
            hold("evening", "now.hour >= 18 && holder.user == 'bo'"),
            deny("big", "request.memory > GiB(40) && now.weekday != 'sun'"),
        ])
    };
    let (one, other) = (policy(), policy());
    for hours in 0..24 * 8 {
        for (user, gib) in [("ann", 1), ("bo", 1), ("bo", 41)] {
            let now = WallMs(NOW.0 + hours * HOUR_MS);
            let (request, none) = (request(user, gib), Standing::default());
            let first = one.admit(&request, &none, now);
            assert_eq!(first, other.admit(&request, &none, now));
            assert_eq!(first, one.admit(&request, &none, now));
        }
    }
}
