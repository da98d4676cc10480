//! What expressions say, what is refused and where, what it costs, and that the `cel` crate agrees.

mod agreement;
mod hostile;

use std::collections::BTreeMap;

use gpu_lease::{Amount, Holder, HolderKind, Ms, Request, Select, Share, Standing, WallMs};

use super::*;

/// 2026-01-15T17:05:30Z, a Thursday; 18:05 in Berlin.
const THURSDAY: WallMs = WallMs(1_768_496_730_000);

fn request() -> Request {
    Request {
        holder: Holder {
            name: "trainer".to_owned(),
            kind: HolderKind::Remote,
            tenant: Some("research".to_owned()),
            user: "ann".to_owned(),
            tenant_found: false,
            pid: None,
        },
        class: "batch".to_owned(),
        devices: 2,
        amount: Amount::Memory(40 << 30),
        select: Select::default(),
        ttl: Ms::from_secs(60),
        wait: Ms::from_secs(300),
        max_hold: None,
        drain_grace: None,
        load: true,
        queue: false,
        idempotency: None,
        labels: BTreeMap::from([("team".to_owned(), "vision".to_owned())]),
    }
}

fn standing() -> Standing {
    let share = |leases, devices, memory| Share {
        leases,
        devices,
        memory,
    };
    Standing {
        held: share(3, 4, 60 << 30),
        grantable: 160 << 30,
        waiting: 5,
        user: share(1, 2, 20 << 30),
        tenant: share(2, 3, 30 << 30),
    }
}

fn berlin() -> jiff::tz::TimeZone {
    jiff::tz::TimeZoneDatabase::bundled()
        .get("Europe/Berlin")
        .expect("zone")
}

/// Whether the rule `text` applies to [`request`] on a Thursday.
fn says(text: &str) -> Result<bool, String> {
    let expression = Expression::compile(text, Scope::Rule).expect(text);
    let (request, zone) = (request(), berlin());
    expression.test(&Inputs::of_request(
        &request,
        &standing(),
        THURSDAY,
        Some(&zone),
    ))
}

fn fault(text: &str, scope: Scope) -> Fault {
    Expression::compile(text, scope).expect_err(text)
}

#[test]
fn what_a_rule_says() {
    for (text, value) in [
        // Fields.
        (
            "request.class == 'batch' && request.memory >= GiB(40)",
            true,
        ),
        ("request.memory > GiB(40)", false),
        (
            "request.devices == 2 && !request.exclusive && request.load && !request.queue",
            true,
        ),
        (
            "request.ttl == 60 && request.wait == 300 && request.max_hold == 0",
            true,
        ),
        ("holder.name == 'trainer' && holder.kind == 'remote'", true),
        (
            "holder.user in ['ann', 'bo'] && holder.tenant == 'research'",
            true,
        ),
        (
            "books.leases == 3 && books.waiting == 5 && books.memory_free == GiB(100)",
            true,
        ),
        (
            "books.user.memory < books.tenant.memory && books.tenant.devices == 3",
            true,
        ),
        (
            "books.memory_granted * 100 / books.memory_total == 37",
            true,
        ),
        // Labels.
        ("request.labels.team == 'vision'", true),
        ("request.labels['team'] == 'vision'", true),
        (
            "has(request.labels.team) && !has(request.labels.project)",
            true,
        ),
        (
            "'team' in request.labels && size(request.labels) == 1",
            true,
        ),
        (
            "has(request.labels.project) && request.labels.project == 'x'",
            false,
        ),
        // The clock, in Berlin.
        (
            "now.hour == 18 && now.minute == 5 && now.clock == '18:05'",
            true,
        ),
        (
            "now.weekday == 'thu' && now.day == 15 && now.month == 1 && now.year == 2026",
            true,
        ),
        ("now.clock >= '18:00' || now.clock < '09:00'", true),
        ("now.weekday in ['sat', 'sun']", false),
        // Operators.
        ("request.devices > 1 ? holder.user == 'ann' : false", true),
        (
            "-request.devices == -2 && request.devices % 2 == 0 && 7 / 2 == 3",
            true,
        ),
        (
            "double(request.devices) / 4.0 == 0.5 && int(1.9) == 1",
            true,
        ),
        ("request.devices < 2.5 && 2.0 == request.devices", true),
        (
            "request.memory == KiB(41943040) && GiB(0.5) == MiB(512) && TiB(1) == GiB(1024)",
            true,
        ),
        (
            "holder.name.startsWith('tr') && holder.name.endsWith('er') && holder.name.contains('ain')",
            true,
        ),
        ("holder.name.size() == 7 && size('äö') == 2", true),
        ("'it\\'s' == \"it's\"", true),
        // Lists.
        ("['ann', 'bo'].exists(x, x == holder.user)", true),
        ("[1, 2, 3].all(x, x < request.devices)", false),
        ("[1, 2, 3].exists_one(x, x == request.devices)", true),
        ("[1, 2, 3].filter(x, x > 1).map(x, x * 2)[1] == 6", true),
        (
            "[1, 2, 3].map(x, x > 1, x * 10).all(x, x in [20, 30])",
            true,
        ),
        ("[1, 2].exists(x, [2, 3].exists(y, x == y))", true),
        (
            "size([request.devices, 3]) == 2 && ['a', 'b'][1] == 'b'",
            true,
        ),
        // One side decides though the other fails.
        (
            "request.labels.project == 'x' || request.devices == 2",
            true,
        ),
        (
            "request.devices == 3 && request.labels.project == 'x'",
            false,
        ),
        ("[0, 1].exists(x, 1 / x == 1)", true),
    ] {
        assert_eq!(says(text), Ok(value), "{text}");
    }
}

#[test]
fn what_fails_for_some_requests_is_an_error_and_no_panic() {
    for (text, error) in [
        (
            "request.labels.project == 'x'",
            "the request has no label `project`",
        ),
        (
            "request.labels['project'] == 'x'",
            "the request has no label `project`",
        ),
        ("1 / (request.devices - 2) == 0", "division by zero"),
        ("1 % (request.devices - 2) == 0", "division by zero"),
        (
            "(request.memory + 1) * 9223372036 > 0",
            "the result is out of range",
        ),
        ("TiB(request.memory) > 0", "the size is out of range"),
        (
            "-(request.wait - 9223372036854775807 - 301) > 0",
            "the result is out of range",
        ),
        (
            "int(double(request.memory) * 1e18) > 0",
            "the number is out of range",
        ),
        (
            "[1, 2][request.devices] == 1",
            "there is no item 2 in the list",
        ),
        (
            "[1, 2][1 - request.devices] == 1",
            "there is no item -1 in the list",
        ),
        (
            "[1, 2].all(x, 1 / (request.devices - x) == 1)",
            "division by zero",
        ),
    ] {
        assert_eq!(says(text), Err(error.to_owned()), "{text}");
    }
}

#[test]
fn a_score_is_a_finite_number() {
    let number = |text: &str| {
        let expression = Expression::compile(text, Scope::Score).expect(text);
        expression.number(&Inputs::of_request(&request(), &standing(), THURSDAY, None))
    };
    assert_eq!(number("request.devices * 10"), Ok(20.0));
    assert_eq!(number("double(request.devices) / 4.0"), Ok(0.5));
    assert_eq!(number("request.devices > 1 ? 1 : 0"), Ok(1.0));
    let error = Err("the result is not a number".to_owned());
    assert_eq!(number("1.0 / double(request.devices - 2)"), error);
    assert_eq!(number("0.0 / double(request.devices - 2)"), error);
}

/// (scope, text, what it points at, message, hint)
#[test]
fn what_is_refused_says_where_and_what_to_write() {
    use Scope::{Device, Rule, Score, Tenant};
    for (scope, text, at, message, hint) in [
        // Names.
        (
            Rule,
            "reqest.class == 'x'",
            "reqest",
            "there is no `reqest`",
            "did you mean `request`?",
        ),
        (
            Rule,
            "request.clas == 'x'",
            "request.clas",
            "there is no `request.clas`",
            "did you mean `request.class`?",
        ),
        (
            Rule,
            "true && memory > 1",
            "memory",
            "there is no `memory`",
            "did you mean `request.memory`?",
        ),
        (
            Rule,
            "now.weekday == sat",
            "sat",
            "there is no `sat`",
            "a rule sees `request`, `holder`, `books`, `now`; text is quoted: 'text'",
        ),
        (
            Rule,
            "books.user > 3",
            "books.user",
            "`books.user` is not a value",
            "name one of its fields: `books.user.leases`, `books.user.devices`, `books.user.memory`",
        ),
        (
            Rule,
            "device.name == 'x'",
            "device",
            "a rule does not see `device`",
            "it sees `request`, `holder`, `books`, `now`",
        ),
        (
            Device,
            "device.free > 1",
            "device.free",
            "the `match` of a device does not see `device.free`",
            "only a score sees it",
        ),
        (
            Device,
            "'x' in device.labels",
            "device.labels",
            "the `match` of a device does not see `device.labels`",
            "only a selection of devices or a score sees it",
        ),
        (
            Tenant,
            "now.hour == 3",
            "now",
            "the `match` of a tenant does not see `now`",
            "it sees `request`, `holder`",
        ),
        (
            Rule,
            "['a'].exists(x, x.name == 'a')",
            "x.name",
            "`x` is text and has no fields",
            "",
        ),
        (
            Rule,
            "holder.user.name == 'a'",
            "holder.user.name",
            "`holder.user` is text and has no fields",
            "",
        ),
        // Functions.
        (
            Rule,
            "holder.user.matches('a.*')",
            "matches",
            "there is no function `matches`",
            "use `startsWith`, `endsWith`, `contains` or `in`",
        ),
        (
            Rule,
            "holder.user.startswith('a')",
            "startswith",
            "there is no function `startswith`",
            "did you mean `startsWith`?",
        ),
        (
            Rule,
            "request.memory > GB(1)",
            "GB",
            "there is no function `GB`",
            "did you mean `GiB`?",
        ),
        (
            Rule,
            "contains('a', 'b')",
            "contains",
            "`contains` follows what it is about",
            "write `VALUE.contains(...)`",
        ),
        (
            Rule,
            "has(request.class)",
            "request.class",
            "`request.class` is always there",
            "write `has(request.labels.NAME)`",
        ),
        (
            Rule,
            "GiB('4') > 1",
            "'4'",
            "`GiB` needs a number, this is text",
            "",
        ),
        (Rule, "size(4) > 1", "4", "an int has no size", ""),
        // Types.
        (
            Rule,
            "request.class == 1",
            "==",
            "`==` cannot compare text with an int",
            "",
        ),
        (
            Rule,
            "request.devices == '2'",
            "==",
            "`==` cannot compare an int with text",
            "write the number without quotes: 2",
        ),
        (
            Rule,
            "request.load > false",
            ">",
            "`>` cannot compare true or false with true or false",
            "",
        ),
        (
            Rule,
            "request.devices + 1.5 > 2",
            "+",
            "`+` cannot take an int and a double",
            "write a double as `2.0`, or convert by `double(...)` or `int(...)`",
        ),
        (
            Rule,
            "holder.user + 'x' == 'annx'",
            "+",
            "`+` cannot take text and text",
            "texts are not joined here: compare the parts",
        ),
        (
            Rule,
            "'a' * 3 == 'aaa'",
            "*",
            "`*` cannot take text and an int",
            "texts are not joined here: compare the parts",
        ),
        (
            Rule,
            "[1] + [2] == [1, 2]",
            "+",
            "`+` cannot take a list of ints and a list of ints",
            "",
        ),
        (
            Rule,
            "!request.devices",
            "request.devices",
            "this must be true or false, it is an int",
            "",
        ),
        (
            Rule,
            "request.class && true",
            "request.class",
            "this must be true or false, it is text",
            "",
        ),
        (
            Rule,
            "request.load ? 1 : 'x'",
            "?",
            "the two answers differ: an int and text",
            "texts are not joined here: compare the parts",
        ),
        (
            Rule,
            "holder.user in 'ann'",
            "'ann'",
            "`in` needs a list on its right, this is text",
            "write `in ['a', 'b']`, or `text.contains('a')`",
        ),
        (
            Rule,
            "request.devices in ['1']",
            "in",
            "`in` cannot find an int in a list of texts",
            "",
        ),
        (
            Rule,
            "request.labels.exists(x, x == 'a')",
            "request.labels",
            "there are no items in labels",
            "loops are over `device.labels` and lists such as `['a', 'b']`",
        ),
        (
            Rule,
            "[1, 'a'].size() == 2",
            "'a'",
            "the list begins with an int, this is text",
            "",
        ),
        (
            Rule,
            "[[1]].size() == 1",
            "[",
            "a list of ints cannot be within a list",
            "",
        ),
        (Rule, "[].size() == 1", "[", "the list is empty", ""),
        (
            Rule,
            "request.devices[0] == 1",
            "[",
            "an int has no item by an int",
            "",
        ),
        (
            Rule,
            "request.labels == null",
            "null",
            "there is no `null` here",
            "what is not set is '' or 0; ask for a label by `has(...)`",
        ),
        // The whole.
        (
            Rule,
            "request.devices",
            "request.devices",
            "a rule must say true or false, this is an int",
            "compare it with something",
        ),
        (
            Score,
            "request.load",
            "request.load",
            "a score must say a number, this is true or false",
            "write `CONDITION ? 1 : 0`",
        ),
        (
            Rule,
            "request.devices ==",
            "==",
            "the expression is not complete",
            "",
        ),
        (
            Rule,
            "request.devices == 1)",
            ")",
            "`)` is not expected here",
            "",
        ),
        (
            Rule,
            "request.load and true",
            "and",
            "`and` is no operator",
            "write `&&`",
        ),
        (
            Rule,
            "request.load & true",
            "&",
            "`&` has no meaning here",
            "write `&&`",
        ),
        (
            Rule,
            "request.devices = 1",
            "=",
            "`=` has no meaning here",
            "write `==` to compare",
        ),
        (
            Rule,
            "'ä' == 'ä' && 5u == 5",
            "5u",
            "`5u` is no number",
            "write `5`",
        ),
        (
            Rule,
            "request.memory > 40GiB",
            "40GiB",
            "`40GiB` is no number",
            "sizes are written `GiB(40)`",
        ),
        (Rule, "1 / 0 == 1", "/", "division by zero", ""),
        (
            Rule,
            "9223372036854775807 + 1 > 0",
            "+",
            "the result is out of range",
            "",
        ),
        (
            Rule,
            "TiB(9223372036854775807) > 0",
            "TiB",
            "the size is out of range",
            "",
        ),
        (
            Rule,
            "[1, 2].exists(request, true)",
            "request",
            "`request` has a meaning already",
            "",
        ),
        (
            Rule,
            "[1, 2].exists(1, true)",
            "1",
            "this must be a name for the items",
            "such as `x`",
        ),
        (
            Rule,
            "[1].exists(x, [1].exists(y, [1].exists(z, x + y == z)))",
            "exists",
            "loops are within loops more than 2 deep",
            "",
        ),
    ] {
        let fault = fault(text, scope);
        let found = fault.span.clone().map_or("", |span| &text[span]);
        let said = (
            found,
            fault.message.as_str(),
            fault.hint.as_deref().unwrap_or_default(),
        );
        assert_eq!(said, (at, message, hint), "{text}");
    }
}

#[test]
fn only_what_is_read_counts() {
    for (text, books, now, step) in [
        ("request.class == 'x'", false, false, None),
        ("books.leases > 3", true, false, None),
        ("now.weekday == 'sat'", false, true, Some(Step::Day)),
        (
            "now.hour > 3 && now.weekday == 'sat'",
            false,
            true,
            Some(Step::Hour),
        ),
        (
            "books.waiting > 1 || now.clock > '18:00'",
            true,
            true,
            Some(Step::Minute),
        ),
    ] {
        let expression = Expression::compile(text, Scope::Rule).expect(text);
        let reads = expression.reads();
        let found = (
            expression.reads_books(),
            expression.reads_now(),
            reads.step(),
        );
        assert_eq!(found, (books, now, step), "{text}");
    }
}

#[test]
fn keys_differ_where_what_is_read_differs() {
    let key = |text: &str, change: fn(&mut Request), now: u64| {
        let expression = Expression::compile(text, Scope::Rule).expect(text);
        let mut request = request();
        change(&mut request);
        let inputs = Inputs::of_request(
            &request,
            &Standing::default(),
            WallMs(THURSDAY.0 + now),
            None,
        );
        inputs.key(expression.reads())
    };
    let same =
        |text: &str, change: fn(&mut Request), now| key(text, |_| {}, 0) == key(text, change, now);
    assert!(same(
        "request.class == 'x'",
        |request| request.devices = 9,
        1_000_000
    ));
    assert!(!same(
        "request.class == 'x'",
        |request| request.class.push('x'),
        0
    ));
    assert!(same("now.year == 1", |_| {}, 10_000));
    assert!(!same("now.year == 1", |_| {}, 60_000));
    assert!(!same(
        "has(request.labels.x)",
        |request| request.labels.clear(),
        0
    ));
    // What one field ends with another does not begin with.
    let names = "holder.name == holder.user";
    let shifted = |request: &mut Request| {
        request.holder.name = "trainera".to_owned();
        request.holder.user = "nn".to_owned();
    };
    assert!(!same(names, shifted, 0));
}

#[test]
fn a_text_is_compiled_once() {
    let text = "request.class == 'compiled once'";
    let first = Expression::compile(text, Scope::Rule).expect(text);
    let again = Expression::compile(text, Scope::Rule).expect(text);
    assert!(Arc::ptr_eq(&first.0, &again.0));
    let tenant = Expression::compile(text, Scope::Tenant).expect(text);
    assert!(!Arc::ptr_eq(&first.0, &tenant.0));
}

/// A queue full of filters, asked once more, as on each inventory.
#[test]
fn the_filters_of_a_whole_queue_are_compiled_once() {
    let filter = |n: u32| {
        let text = format!("device.index != {n}");
        Expression::compile(&text, Scope::Select).expect("a filter")
    };
    let first: Vec<Expression> = (0..1024).map(filter).collect();
    for (n, first) in (0..1024).zip(&first) {
        assert!(Arc::ptr_eq(&first.0, &filter(n).0), "{n}");
    }
}

#[test]
fn one_expression_too_many_does_not_drive_out_all_others() {
    let kept = Kept::new(8);
    let text = |n: u32| format!("request.devices == {n}");
    for n in 0..9 {
        let expression = Expression::compile(&text(n), Scope::Rule).expect("an expression");
        kept.keep(Scope::Rule, &expression);
    }
    let left = (0..9).filter(|n| kept.get(&text(*n), Scope::Rule).is_some());
    assert_eq!(left.count(), 5);
}
