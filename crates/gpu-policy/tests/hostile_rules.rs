//! Expressions of clients that are meant to break the broker: refused within a moment, or harmless.

use std::time::{Duration, Instant};

use gpu_policy::parse_select;

/// In a debug build.
const TIME_MAX: Duration = Duration::from_millis(100);

/// How long the fastest of three times took, as the host has other work too.
fn time(text: &str) -> Duration {
    let run = || {
        let started = Instant::now();
        let _ = parse_select(text);
        started.elapsed()
    };
    (0..3).map(|_| run()).min().unwrap_or_default()
}

#[test]
fn hostile_selections_are_refused_in_no_time() {
    let list = "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19]";
    for (name, text) in [
        ("a megabyte", "x".repeat(1 << 20)),
        ("a thousand brackets", "(".repeat(1000)),
        (
            "a thousand lists",
            format!("{}{}", "[".repeat(1000), "]".repeat(1000)),
        ),
        ("a thousand nots", format!("{}true", "!".repeat(1000))),
        (
            "hundreds of ternaries",
            format!("{}true", "true?true:".repeat(200)),
        ),
        ("hundreds of sums", format!("{}1 > 1", "1+".repeat(500))),
        ("hundreds of fields", format!("device{}", ".a".repeat(500))),
        (
            "millions of steps",
            format!(
                "{list}.all(a, {list}.all(b, {list}.all(c, {list}.all(d, device.index > a+b+c+d))))"
            ),
        ),
        (
            "text that doubles",
            "['a'].map(x, x+x).map(x, x+x).exists(x, size(x) > 0)".to_owned(),
        ),
        ("NUL by number", "device.name == '\\u0000'".to_owned()),
        ("NUL", "device.name == '\0'".to_owned()),
        ("right to left", "device.name == '\u{202e}x'".to_owned()),
        (
            "a regular expression",
            "device.name.matches('(a*)*b')".to_owned(),
        ),
        (
            "a number out of range",
            "device.memory > 99999999999999999999".to_owned(),
        ),
        ("division by zero", "1 / 0 == device.index".to_owned()),
        ("nothing but quotes", "'".repeat(2048)),
        ("what others see", "request.labels.secret == 'x'".to_owned()),
    ] {
        let error = parse_select(&text).expect_err(name);
        assert!(error.to_string().len() < 1000, "{name}: {error}");
        assert!(error.column <= text.chars().count() + 1, "{name}: {error}");
        let took = time(&text);
        assert!(took < TIME_MAX, "{name} took {took:?}");
    }
}

#[test]
fn no_error_carries_what_a_terminal_would_act_on() {
    for text in [
        "\u{1b}[2J",
        "device.\u{1b}",
        "'\u{9b}31m' == device.name",
        "dev\u{202e}ice.id == 'x'",
        "\u{7}",
    ] {
        let error = parse_select(text).expect_err(text).to_string();
        assert!(!error.chars().any(char::is_control), "{error:?}");
        assert!(!error.contains('\u{202e}'), "{error:?}");
    }
}

#[test]
fn many_distinct_filters_are_not_kept_for_ever() {
    for index in 0..1200 {
        let text = format!("device.index == {index}");
        assert!(parse_select(&text).is_ok(), "{text}");
    }
}
