//! Text that was made to break the loader: it must end in an error, soon, and never in a panic.

use std::time::{Duration, Instant};

use gpu_policy::{FILE_BYTES_MAX, SourceFile, compile};

/// Generous for an unoptimised build on a busy machine; what is meant is "not quadratic".
const COMPILE_TIME_MAX: Duration = Duration::from_secs(20);

/// The first error of a `default.toml` with `text`.
fn refused(text: impl Into<Vec<u8>>) -> gpu_policy::Diagnostic {
    let started = Instant::now();
    let result = compile(&[SourceFile::new("default.toml", text)], &[]);
    assert!(
        started.elapsed() < COMPILE_TIME_MAX,
        "took {:?}",
        started.elapsed()
    );
    let errors = result.expect_err("hostile text");
    assert!(errors.to_string().len() < 100_000);
    errors.items()[0].clone()
}

#[test]
fn nesting_a_million_deep() {
    let depth = 1_000_000;
    for text in [
        format!("x = {}", "[".repeat(depth)),
        format!("x = {}", "{a=".repeat(depth / 3)),
        format!("x = {}", "[{a=".repeat(depth / 4)),
        format!("{}a", "[".repeat(depth)),
        format!("{}x = 1", "a.".repeat(depth / 2)),
        format!("[{}x]", "'a'. ".repeat(depth / 5)),
        format!("[[{}x]]", "\"a\".".repeat(depth / 4)),
    ] {
        let error = refused(text);
        assert!(error.column > 1, "{error}");
    }
}

#[test]
fn as_much_as_fits_into_a_file() {
    let fill = |line: &str| line.repeat(FILE_BYTES_MAX / line.len());
    for text in [
        fill("x"),
        fill("=\n"),
        fill("\"\n"),
        fill("[a]\n"),
        fill("[[class]]\n"),
        fill("[[class]]\nname = 'x'\n"),
        fill("x = \"\"\"\n"),
        fill("\r"),
        fill("\0"),
        fill("\u{feff}"),
        fill("x='y',"),
        format!(
            "x = '{}'",
            fill("é").get(..FILE_BYTES_MAX / 2).unwrap_or_default()
        ),
    ] {
        refused(text);
    }
}

#[test]
fn a_file_over_the_limit_is_refused_unread() {
    let error = refused(vec![b'#'; FILE_BYTES_MAX + 1]);
    assert_eq!(error.message, "the file is larger than 1 MiB");
}

#[test]
fn nothing_reaches_the_terminal_that_it_would_act_on() {
    let error = refused("\"\u{1b}[2J\" = 1\n[queue]\norder = '\u{9b}31m'\n");
    assert!(!error.to_string().contains('\u{1b}'), "{error:?}");
    let error = refused("[queue]\norder = '\u{9b}31m'\n");
    assert!(!error.to_string().contains('\u{9b}'), "{error:?}");
    for rule in [
        "name = \"a\\u001b[2J\"\nwhen = \"true\"\ndeny = \"x\"",
        "name = \"a\"\nwhen = \"request.class == '\\u001b[2J'\"\ndeny = \"x\"",
        "name = \"a\"\nwhen = \"request.\\u001b[2J\"\ndeny = \"x\"",
        "name = \"a\"\nwhen = \"true\"\ndeny = \"\\u009b31m\"",
    ] {
        let text = format!("[[rule]]\n{rule}\n[unknown]\n");
        let errors = compile(&[SourceFile::new("default.toml", text)], &[]);
        let shown = errors.expect_err("an unknown table").to_string();
        assert!(!shown.contains(['\u{1b}', '\u{9b}']), "{shown:?}");
    }
}

/// A rule called `name`, in TOML.
fn rule(name: usize) -> String {
    format!(
        "[[rule]]\nname = 'r{name}'\nwhen = 'request.memory > GiB({name})'\ndeny = 'too much'\n"
    )
}

#[test]
fn a_thousand_rules_and_no_more() {
    let rules = |count: usize| (0..count).map(rule).collect::<String>();
    let policy = compile(&[SourceFile::new("default.toml", rules(1000))], &[]);
    assert_eq!(policy.map(|policy| policy.source.files.len()), Ok(1));
    let error = refused(rules(1001));
    assert_eq!(error.message, "there are more than 1000 rule tables");
    assert_eq!(error.line, 4002);
}

#[test]
fn as_many_tables_as_fit_into_a_file() {
    let fill = |line: &str| line.repeat(FILE_BYTES_MAX / line.len());
    for text in [
        fill("[[rule]]\n"),
        fill("[[rule]]\nname='r'\nwhen='x'\ndeny='y'\n"),
        fill("[[device]]\nmatch='x'\n"),
        format!(
            "[[rule]]\nname='r'\nwhen='''{}'''\ndeny='y'\n",
            "request.class != \"a && ".repeat(FILE_BYTES_MAX / 50)
        ),
        fill("[[tenant]]\nname='t'\n"),
        format!(
            "[[rule]]\nname='r'\nwhen='''{}'''\ndeny='y'\n",
            fill("(").get(..FILE_BYTES_MAX / 2).unwrap_or_default()
        ),
        format!(
            "[[rule]]\nname=\"{}\"\nwhen='x'\ndeny='y'\n",
            fill("\\u00e9")
                .get(..FILE_BYTES_MAX / 2 / 6 * 6)
                .unwrap_or_default()
        ),
    ] {
        refused(text);
    }
}
