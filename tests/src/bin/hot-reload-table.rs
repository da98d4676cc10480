//! Writes `tests/hot-reload.md`: the scenarios that live policy has to stand, each with the tests that hold it
//! and what became of them in the last run.
//!
//! `hot-reload-table REPORT`, in the root of the checkout: `REPORT` is what nextest wrote of a run of every
//! test, as JUnit. The table names no time and no machine, so that every good run writes the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::{env, fs, io};

use serde::Deserialize;

const SCENARIOS: &str = "tests/hot-reload.toml";
const TABLE: &str = "tests/hot-reload.md";

/// The scenarios are numbered from 1 to this.
const SCENARIOS_COUNT: usize = 100;

const OPENING: &str = "\
# Hot reload: what it stands

Written by `scripts/test.sh` from [hot-reload.toml](hot-reload.toml) and the run of every test; not to be edited.
A row passes if all its tests ran and passed.

| | what | tests | |
|---|---|---|---|
";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenarios {
    scenario: Vec<Scenario>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    number: usize,
    section: String,
    /// What must come about, in a few words.
    what: String,
    /// `BINARY NAME`, as nextest lists them. `{a,b}` in a name stands for two tests.
    tests: Option<Vec<String>>,
    /// Why it does not apply.
    not_here: Option<String>,
}

/// What became of the tests of a run: whether each passed, by `BINARY NAME`.
type Results = BTreeMap<String, bool>;

/// What is to be said of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Fail(Vec<String>),
    Missing,
    NotHere(String),
    Pass,
    /// Tests that were not part of the run.
    Unknown(Vec<String>),
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the table could be written with a result in each row.
fn run() -> Result<bool, String> {
    let report = env::args().nth(1).ok_or("usage: hot-reload-table REPORT")?;
    let scenarios = parse(&read(SCENARIOS)?)?;
    let results = results(&read(&report)?)?;
    let verdicts: Vec<Verdict> = scenarios.iter().map(|row| row.verdict(&results)).collect();
    write_if_changed(TABLE, &render(&scenarios, &verdicts))?;
    println!("hot reload: {} See {TABLE}.", counts(&verdicts));
    Ok(complain(&scenarios, &verdicts))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("`{path}`: {error}"))
}

fn write_if_changed(path: &str, text: &str) -> Result<(), String> {
    let told = |error: io::Error| format!("`{path}`: {error}");
    match fs::read_to_string(path) {
        Ok(before) if before == text => Ok(()),
        _ => fs::write(path, text).map_err(told),
    }
}

fn parse(text: &str) -> Result<Vec<Scenario>, String> {
    let scenarios: Scenarios =
        toml::from_str(text).map_err(|error| format!("`{SCENARIOS}`: {error}"))?;
    let rows = scenarios.scenario;
    for (row, number) in rows.iter().zip(1..) {
        if row.number != number {
            return Err(format!(
                "`{SCENARIOS}`: row {number} is numbered {}",
                row.number
            ));
        }
        if row.tests.is_some() == row.not_here.is_some() {
            return Err(format!(
                "`{SCENARIOS}`: row {number} needs either `tests` or `not_here`"
            ));
        }
    }
    match rows.len() {
        SCENARIOS_COUNT => Ok(rows),
        other => Err(format!(
            "`{SCENARIOS}`: {other} rows instead of {SCENARIOS_COUNT}"
        )),
    }
}

/// Reads what nextest writes as JUnit: `<testcase name="NAME" classname="BINARY" ...>`, and a `<failure>` or an
/// `<error>` in it if it did not pass.
fn results(report: &str) -> Result<Results, String> {
    let mut results = Results::new();
    for case in report.split("<testcase ").skip(1) {
        let (attributes, rest) = case.split_once('>').ok_or("the report is cut short")?;
        let (Some(binary), Some(name)) = (
            attribute(attributes, "classname"),
            attribute(attributes, "name"),
        ) else {
            return Err(format!("no test is named by `{attributes}`"));
        };
        let inside = match attributes.ends_with('/') {
            true => "",
            false => rest.split("</testcase>").next().unwrap_or_default(),
        };
        let passed = !inside.contains("<failure") && !inside.contains("<error");
        results.insert(format!("{binary} {name}"), passed);
    }
    Ok(results)
}

/// The value of an attribute. Names of tests have no character that XML would have to escape.
fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let found = |word: &'a str| {
        word.strip_prefix(name)?
            .strip_prefix("=\"")?
            .split('"')
            .next()
    };
    attributes.split(' ').find_map(found)
}

/// The tests that an entry stands for: one, or one for each word between braces.
fn expand(entry: &str) -> Vec<String> {
    let braces = entry
        .split_once('{')
        .and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    match braces {
        Some((before, (words, after))) => words
            .split(',')
            .map(|word| format!("{before}{word}{after}"))
            .collect(),
        None => vec![entry.to_owned()],
    }
}

impl Scenario {
    fn verdict(&self, results: &Results) -> Verdict {
        if let Some(why) = &self.not_here {
            return Verdict::NotHere(why.clone());
        }
        let entries = self.tests.iter().flatten();
        let tests: Vec<String> = entries.flat_map(|entry| expand(entry)).collect();
        let those = |passed: Option<bool>| -> Vec<String> {
            let tests = tests
                .iter()
                .filter(|test| results.get(*test).copied() == passed);
            tests.cloned().collect()
        };
        let (unknown, failed) = (those(None), those(Some(false)));
        match (tests.is_empty(), unknown.is_empty(), failed.is_empty()) {
            (true, _, _) => Verdict::Missing,
            (_, false, _) => Verdict::Unknown(unknown),
            (_, _, false) => Verdict::Fail(failed),
            _ => Verdict::Pass,
        }
    }
}

fn render(scenarios: &[Scenario], verdicts: &[Verdict]) -> String {
    let mut table = OPENING.to_owned();
    for (row, verdict) in scenarios.iter().zip(verdicts) {
        let tests = row.tests.iter().flatten();
        let tests: Vec<String> = tests.map(|test| format!("`{test}`")).collect();
        let _ = writeln!(
            table,
            "| {}{} | {} | {} | {} |",
            row.section,
            row.number,
            row.what,
            tests.join("<br>"),
            verdict.words()
        );
    }
    let _ = writeln!(table, "\n{}", counts(verdicts));
    table
}

impl Verdict {
    fn words(&self) -> String {
        match self {
            Self::Fail(_) => "**FAIL**".to_owned(),
            Self::Missing => "**missing**".to_owned(),
            Self::NotHere(why) => format!("not here: {why}"),
            Self::Pass => "pass".to_owned(),
            Self::Unknown(tests) => format!("**FAIL**: no test `{}`", tests.join("`, `")),
        }
    }
}

/// The closing line, which a check can look for.
fn counts(verdicts: &[Verdict]) -> String {
    let count = |of: fn(&Verdict) -> bool| verdicts.iter().filter(|verdict| of(verdict)).count();
    format!(
        "{} scenarios: {} pass, {} FAIL, {} missing, {} not here.",
        verdicts.len(),
        count(|verdict| *verdict == Verdict::Pass),
        count(|verdict| matches!(verdict, Verdict::Fail(_) | Verdict::Unknown(_))),
        count(|verdict| *verdict == Verdict::Missing),
        count(|verdict| matches!(verdict, Verdict::NotHere(_))),
    )
}

/// Names the rows whose tests failed or do not exist; whether all of them exist.
fn complain(scenarios: &[Scenario], verdicts: &[Verdict]) -> bool {
    let mut all_known = true;
    for (row, verdict) in scenarios.iter().zip(verdicts) {
        match verdict {
            Verdict::Fail(tests) => {
                eprintln!(
                    "hot reload: scenario {}: FAIL {}",
                    row.number,
                    tests.join(", ")
                );
            }
            Verdict::Unknown(tests) => {
                all_known = false;
                let tests = tests.join("`, `");
                eprintln!(
                    "error: `{SCENARIOS}`: scenario {}: `{tests}` did not run",
                    row.number
                );
            }
            Verdict::Missing | Verdict::NotHere(_) | Verdict::Pass => {}
        }
    }
    all_known
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="4" skipped="0" failures="1" errors="0" time="0.4">
    <testsuite name="a::it" tests="4" skipped="0" errors="0" failures="1">
        <testcase name="x::inotify::saved" classname="a::it" timestamp="2026" time="0.1"/>
        <testcase name="x::poll::saved" classname="a::it" timestamp="2026" time="0.1"></testcase>
        <testcase name="broken" classname="a::it" timestamp="2026" time="0.1">
            <failure message="at it.rs:1:2" type="test failure"/>
        </testcase>
        <testcase name="last" classname="a" timestamp="2026" time="0.1"/>
    </testsuite>
</testsuites>
"#;

    #[test]
    fn the_scenarios_that_are_checked_in_are_sound() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/hot-reload.toml");
        let text = fs::read_to_string(path).expect("it is there");
        if let Err(error) = parse(&text) {
            panic!("{error}");
        }
    }

    #[test]
    fn a_row_passes_if_all_its_tests_ran_and_passed() {
        let results = results(REPORT).expect("a report");
        let check = |tests: &[&str], expected: &str| {
            let row = Scenario {
                number: 1,
                section: "A".to_owned(),
                what: "a save".to_owned(),
                tests: Some(tests.iter().map(ToString::to_string).collect()),
                not_here: None,
            };
            assert_eq!(row.verdict(&results).words(), expected, "{tests:?}");
        };
        check(&["a::it x::inotify::saved"], "pass");
        check(&["a::it x::{inotify,poll}::saved", "a last"], "pass");
        check(&["a last", "a::it broken"], "**FAIL**");
        check(&[], "**missing**");
        check(
            &["a::it x::{inotify,rumour}::saved"],
            "**FAIL**: no test `a::it x::rumour::saved`",
        );
        check(&["a::it last"], "**FAIL**: no test `a::it last`");
    }

    #[test]
    fn a_table_that_is_not_sound_is_refused() {
        let row = |text: &str| format!("[[scenario]]\nsection = \"A\"\nwhat = \"x\"\n{text}\n");
        let check = |text: &str, expected: &str| {
            let error = parse(&row(text)).expect_err("not sound");
            assert!(error.contains(expected), "{error}");
        };
        check("number = 2\ntests = []", "row 1 is numbered 2");
        check("number = 1", "row 1 needs either `tests` or `not_here`");
        check("number = 1\ntest = []", "unknown field `test`");
        check("number = 1\ntests = []", "1 rows instead of 100");
    }
}
