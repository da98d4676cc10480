//! Texts that are meant to abort, to hang or to fill the memory.

use std::time::{Duration, Instant};

use super::*;

/// In a debug build.
const TIME_MAX: Duration = Duration::from_millis(100);
const SOUP_TIME_MAX: Duration = Duration::from_millis(50);

/// Compiles and evaluates; says how long the fastest of three times took, as the host has other work too.
fn time(text: &str, scope: Scope) -> (Result<(), String>, Duration) {
    let run = || {
        let started = Instant::now();
        let said = compile_anew(text, scope).map_err(|fault| fault.message);
        let said = said.and_then(|expression| {
            let request = request();
            let inputs = Inputs::of_request(&request, &standing(), THURSDAY, None);
            match scope {
                Scope::Score => expression.number(&inputs).map(drop),
                _ => expression.test(&inputs).map(drop),
            }
        });
        (said, started.elapsed())
    };
    let first = run();
    let rest = (0..2).map(|_| run().1);
    let fastest = rest.fold(first.1, Duration::min);
    (first.0, fastest)
}

#[test]
fn hostile_rules_are_refused_or_err_in_no_time() {
    let long = |piece: &str, count: usize| piece.repeat(count);
    let nested = |open: &str, close: &str, count: usize| {
        format!("{}1{} == 1", long(open, count), long(close, count))
    };
    let loops = "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29]";
    let mut slowest = (Duration::ZERO, "");
    for (name, text) in [
        ("2 KiB and one byte", long(" ", 2049)),
        ("a megabyte", long("true||", 200_000)),
        ("brackets 17 deep", nested("(", ")", 17)),
        ("brackets as deep as fits", nested("(", ")", 1000)),
        ("lists as deep as fits", nested("[", "]", 1000)),
        ("calls as deep as fits", nested("size(", ")", 300)),
        ("indexes as deep as fits", long("a[", 1000)),
        ("brackets that do not close", long("(", 2048)),
        ("brackets that do not open", long(")", 2048)),
        ("not not not", format!("{}true", long("!", 2000))),
        ("minus minus minus", format!("{}1 == 1", long("-", 2000))),
        ("minus in many ways", format!("{}1 == 1", long("-(", 120))),
        (
            "ternaries to the right",
            format!("{}false", long("true?true:", 200)),
        ),
        ("a sum of thousands", format!("{}1 == 1", long("1+", 1000))),
        ("a sum of a hundred", format!("{}1 == 1", long("1+", 100))),
        ("comparisons in a row", format!("{}1", long("1<", 120))),
        (
            "fields of fields",
            format!("request{} == 1", long(".a", 900)),
        ),
        (
            "calls of calls",
            format!("request{} == 1", long(".a()", 400)),
        ),
        (
            "13 million steps",
            format!("{loops}.all(a, {loops}.all(b, {loops}.all(c, {loops}.all(d, a+b+c+d >= 0))))"),
        ),
        (
            "13 million steps by map",
            format!("{loops}.map(a, {loops}.map(b, {loops}.map(c, a*b*c))).size() == 1"),
        ),
        (
            "a million steps",
            format!(
                "{loops}.all(a, {loops}.map(b, {loops}.size()).all(c, a < 99)) && {loops}.all(a, {loops}.all(b, a * b % 7 < 8 && a + b < 99 && a - b < 99 && a * b < 9999 && a + b + a + b > -1))"
            ),
        ),
        (
            "steps in a range",
            "[1].map(a, [1].map(b, [1].map(c, [1].map(d, d))).size()).size() == 1".to_owned(),
        ),
        (
            "lists of lists",
            "[1].map(x, [x, x]).map(x, [x, x]).map(x, [x, x]).size() == 1".to_owned(),
        ),
        (
            "doubling text",
            "['a'].map(x, x + x).map(x, x + x).map(x, x + x).exists(x, size(x) > 1)".to_owned(),
        ),
        (
            "a list that doubles",
            "[[1].map(x, x)].map(x, x + x + x + x)[0].size() > 0".to_owned(),
        ),
        ("a map", "{'a': {'a': {'a': 1}}}.a.a.a == 1".to_owned()),
        (
            "a message",
            "google.protobuf.Struct{a: 1}.a == 1".to_owned(),
        ),
        ("text by number", "'\\u0000' == holder.user".to_owned()),
        ("text by octal number", "'\\000' == holder.user".to_owned()),
        ("bytes", "b'\\xff' == b''".to_owned()),
        ("raw text", "r'\\' == '\\\\'".to_owned()),
        ("long text", "'''' == ''''".to_owned()),
        ("NUL", "holder.user == '\0'".to_owned()),
        (
            "from right to left",
            "holder.user == 'a\u{202e}b'".to_owned(),
        ),
        ("no width", "holder.user\u{200b} == 'a'".to_owned()),
        (
            "a letter that looks like another",
            "h\u{43e}lder.user == 'a'".to_owned(),
        ),
        ("a byte order mark", "\u{feff}true".to_owned()),
        ("a quoted name", "`holder`.user == 'a'".to_owned()),
        ("a comment", "true // && false".to_owned()),
        ("an absolute name", ".holder.user == 'a'".to_owned()),
        ("an optional field", "holder.?user == 'a'".to_owned()),
        ("an optional item", "[?holder.user] == ['a']".to_owned()),
        (
            "a number that does not fit",
            "99999999999999999999 > 1".to_owned(),
        ),
        (
            "a number of a thousand digits",
            format!("{} > 1", long("9", 1000)),
        ),
        ("a number too large", "1e999 > 1.0".to_owned()),
        (
            "hexadecimal that does not fit",
            "0xfffffffffffffffff > 1".to_owned(),
        ),
        ("overflow", "request.memory * request.memory > 0".to_owned()),
        (
            "the least number by -1",
            "(0 - 9223372036854775807 - (request.devices - 1)) / (1 - request.devices) > 0"
                .to_owned(),
        ),
        (
            "division by zero",
            "1 / (request.devices - 2) > 0".to_owned(),
        ),
        (
            "a regular expression",
            "holder.user.matches('(a+)+$')".to_owned(),
        ),
        ("types", "type(holder.user) == string".to_owned()),
        ("dyn", "dyn(holder.user) == 1".to_owned()),
        ("a reserved word", "for == 1".to_owned()),
        ("only operators", long("&&", 100)),
        ("only dots", long(".", 200)),
        ("only commas", format!("[{}]", long(",", 200))),
        ("only quotes", long("'", 2001)),
        ("only backslashes", format!("'{}", long("\\", 2000))),
        ("only question marks", long("?", 200)),
        ("only colons", long(":", 200)),
        ("only `in`", long("in ", 200)),
    ] {
        let (said, took) = time(&text, Scope::Rule);
        assert!(said.is_err(), "{name}: {text}");
        assert!(took < TIME_MAX, "{name} took {took:?}");
        if took > slowest.0 {
            slowest = (took, name);
        }
    }
    println!("the slowest: {} in {:?}", slowest.1, slowest.0);
}

/// What is as large and as deep as it may be.
#[test]
fn the_largest_that_are_let_through_are_fast_too() {
    let items = vec!["'x'"; 120].join(",");
    let labels = "device.labels.exists(a, device.labels.exists(b, a == b))";
    for (scope, text) in [
        (Scope::Rule, vec!["request.class == 'a'"; 42].join(" || ")),
        (Scope::Rule, format!("holder.user in [{items}]")),
        (
            Scope::Rule,
            format!("{}1{} == 1", "(".repeat(16), ")".repeat(16)),
        ),
        (
            Scope::Rule,
            format!("{}true{}", "!(".repeat(16), ")".repeat(16)),
        ),
        (Scope::Rule, format!("{}request.load", "!".repeat(16))),
        (
            Scope::Rule,
            format!("{}false", "request.load?true:".repeat(16)),
        ),
        (
            Scope::Rule,
            format!("request.devices{} == 1", "+1".repeat(30)),
        ),
        (
            Scope::Rule,
            format!(
                "{}request.devices{} > 1",
                "(".repeat(15),
                "+1+1)".repeat(15)
            ),
        ),
        (
            Scope::Rule,
            format!("{}true{}", "(".repeat(16), "?true:true)".repeat(16)),
        ),
        (Scope::Select, labels.to_owned()),
    ] {
        let started = Instant::now();
        let expression = compile_anew(&text, scope);
        assert!(expression.is_ok(), "{text}: {expression:?}");
        println!(
            "{:?} for {} bytes: {:.40}...",
            started.elapsed(),
            text.len(),
            text
        );
        assert!(time(&text, scope).1 < TIME_MAX, "{text}");
    }
}

#[test]
fn as_many_labels_as_a_device_ever_has_are_an_error_at_most() {
    let compile = |text| Expression::compile(text, Scope::Select).expect("a filter");
    let found = compile("device.labels.exists(a, device.labels.exists(b, a == b))");
    let never = compile("device.labels.all(a, device.labels.all(b, a != '' && b != ''))");
    let labels: Vec<String> = (0..10_000).map(|label| format!("label-{label}")).collect();
    let device = super::super::probe::device();
    let started = Instant::now();
    assert_eq!(
        never.test(&Inputs::of_device(&device, &labels)),
        Err("the lists are too long".to_owned())
    );
    assert_eq!(found.test(&Inputs::of_device(&device, &labels)), Ok(true));
    assert!(started.elapsed() < TIME_MAX * 5, "{:?}", started.elapsed());
}

/// Everything that the scanner lets through has room on a stack half as deep as the parser's, in a debug build.
#[test]
fn the_deepest_that_are_let_through_need_half_of_the_stack() {
    let deepest = [
        ("(", ")", 16),
        ("[", "]", 16),
        ("-(1+1*1-", ")", 16),
        ("1==1+1*(1?1:", ")", 16),
        ("a?a:a||a&&1==1+1*(", ")", 13),
        ("a||a&&1==1+1*a[", "]", 16),
        ("a||a&&1==1+1*-a.a(", ")", 14),
        ("a?(", "):a", 16),
        ("(a?a:", ")", 16),
        ("[1].map(x,", ")", 16),
        ("size(a.b.c.d(", "))", 8),
        ("!(!a[", "])", 8),
    ];
    for (open, close, times) in deepest {
        let text = format!("{}1{}", open.repeat(times), close.repeat(times));
        let tokens = scan::scan(&text).expect(&text);
        let parse = || drop(parsed(&text, &tokens, Scope::Rule));
        thread::scope(|scope| {
            let builder = thread::Builder::new().stack_size(PARSER_STACK_BYTES / 2);
            builder
                .spawn_scoped(scope, parse)
                .expect("a thread")
                .join()
                .expect("no panic");
        });
    }
}

/// An evaluation is on the stack of whoever decides.
#[test]
fn the_deepest_that_are_let_through_are_evaluated_on_little_stack() {
    for text in [
        format!(
            "{}request.devices{} > 1",
            "(".repeat(15),
            "+1+1+1+1)".repeat(15)
        ),
        format!("{}request.load{}", "!(true && ".repeat(14), ")".repeat(14)),
        format!("{}request.load", "request.load ? false : ".repeat(16)),
        format!(
            "[1].all(x, [2].all(y, {}x < y{}))",
            "!(".repeat(13),
            ")".repeat(13)
        ),
    ] {
        let expression = compile_anew(&text, Scope::Rule).expect(&text);
        let request = request();
        let evaluate = || {
            let inputs = Inputs::of_request(&request, &standing(), THURSDAY, None);
            expression.test(&inputs)
        };
        let said = thread::scope(|scope| {
            let builder = thread::Builder::new().stack_size(256 << 10);
            builder
                .spawn_scoped(scope, evaluate)
                .expect("a thread")
                .join()
        });
        assert!(said.expect("no panic").is_ok(), "{text}");
    }
}

#[test]
fn soups_of_tokens_and_mutated_rules_neither_panic_nor_hang() {
    let seed = std::env::var("GPU_POLICY_SEED");
    let seed = seed.ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("seed {seed}: run again with GPU_POLICY_SEED={seed}");
    let mut random = agreement::Random(seed);
    let scopes = [
        Scope::Rule,
        Scope::Tenant,
        Scope::Device,
        Scope::Select,
        Scope::Score,
    ];
    let (mut passed, mut slowest) = (0, Duration::ZERO);
    for round in 0..4_000 {
        let text = match random.below(2) {
            0 => soup(&mut random),
            _ => mutated(&mut random),
        };
        let started = Instant::now();
        let scope = scopes[random.below(scopes.len())];
        let said = compile_anew(&text, scope);
        passed += usize::from(said.is_ok());
        if let Err(fault) = said {
            let span = fault.span.unwrap_or(0..text.len());
            assert!(
                text.get(span.clone()).is_some(),
                "seed {seed} round {round}: {span:?} of {text}"
            );
        }
        let mut took = started.elapsed();
        if took > SOUP_TIME_MAX {
            took = took.min(time(&text, scope).1);
        }
        assert!(
            took < SOUP_TIME_MAX,
            "seed {seed} round {round}: {took:?} for {text}"
        );
        slowest = slowest.max(took);
    }
    println!("{passed} passed, the slowest took {slowest:?}");
    assert!(passed > 20, "the generator makes nothing but nonsense");
}

const WORDS: [&str; 48] = [
    "request",
    "holder",
    "device",
    "books",
    "now",
    ".",
    ".class",
    ".memory",
    ".labels",
    ".user",
    ".x",
    "(",
    ")",
    "[",
    "]",
    ",",
    "?",
    ":",
    "&&",
    "||",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "==",
    "!=",
    "<",
    ">=",
    "in",
    "true",
    "null",
    "1",
    "1.5",
    "'a'",
    "\"b\"",
    "size(",
    ".all(x,",
    ".map(x,",
    ".exists(y,",
    "has(",
    "GiB(",
    "x",
    "0",
    "0x7f",
    "'\\''",
    "é",
];

fn soup(random: &mut agreement::Random) -> String {
    let words = (0..random.below(60)).map(|_| WORDS[random.below(WORDS.len())]);
    words.collect::<Vec<_>>().join(["", " "][random.below(2)])
}

fn mutated(random: &mut agreement::Random) -> String {
    let mut text: Vec<char> = agreement::condition(random, 3).chars().collect();
    for _ in 0..random.below(4) {
        let at = random.below(text.len() + 1);
        let end = (at + random.below(8)).min(text.len());
        match random.below(3) {
            0 => drop(text.drain(at..end)),
            1 => {
                let copy = text[at..end].to_vec();
                text.splice(at..at, copy);
            }
            _ => {
                let word = WORDS[random.below(WORDS.len())];
                text.splice(at..at, word.chars());
            }
        }
    }
    text.into_iter().collect()
}
