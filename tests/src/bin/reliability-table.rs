//! Writes the table of figures in `docs/reliability.md` from what the runs left in `target/evidence`.
//!
//! Run it in the root of the checkout, after `scripts/evidence.sh` and `scripts/test.sh`. The figures follow
//! from seeds, so that every good run of the same code writes the same. A figure below what is promised, or
//! none, is an error.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::{fs, io};

use gpu_manager_tests::evidence;

const DOCUMENT: &str = "docs/reliability.md";
const BEGIN: &str = "<!-- figures: written by reliability-table -->\n";
const END: &str = "<!-- end of figures -->\n";

/// One figure: where it is found, what it counts, and how much of it is promised.
struct Row {
    layer: &'static str,
    figure: &'static str,
    what: &'static str,
    at_least: u64,
    command: &'static str,
}

const fn row(
    (layer, figure): (&'static str, &'static str),
    what: &'static str,
    at_least: u64,
    command: &'static str,
) -> Row {
    Row {
        layer,
        figure,
        what,
        at_least,
        command,
    }
}

const SIMULATION: &str = "`gpu-manager-sim run --seeds 0..10000`";

const ROWS: [Row; 10] = [
    row(
        ("simulation", "steps"),
        "simulated steps of the real loop, store and reloads",
        20_000_000,
        SIMULATION,
    ),
    row(
        ("simulation", "crashes"),
        "crashes among them",
        30_000,
        SIMULATION,
    ),
    row(
        ("simulation", "reloads"),
        "policy reloads among them",
        20_000,
        SIMULATION,
    ),
    row(
        ("simulation", "emergencies"),
        "emergency releases among them",
        40_000,
        SIMULATION,
    ),
    row(
        ("simulation", "torn images"),
        "power cuts with something written and not synced",
        2_000,
        SIMULATION,
    ),
    row(
        ("exhaustive", "states"),
        "states of the small case, every one",
        900_000,
        "`gpu-manager-sim exhaustive`",
    ),
    row(
        ("canaries", "found"),
        "planted bugs found",
        14,
        "`gpu-manager-sim canaries`",
    ),
    row(
        ("kills", "lives"),
        "lives of the real daemon, each ended by `kill -9` under clients or in its recovery",
        300,
        "`scripts/test.sh crashes::`",
    ),
    row(
        ("histories", "histories"),
        "histories of concurrent clients, linearizable",
        30,
        "`scripts/test.sh linearizable`",
    ),
    row(
        ("histories", "operations"),
        "operations in them, 1,000 in each",
        30_000,
        "`scripts/test.sh linearizable`",
    ),
];

fn main() -> ExitCode {
    match write() {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            for what in missed {
                eprintln!("error: {what}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {DOCUMENT}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers what is missing; nothing is written then.
fn write() -> io::Result<Vec<String>> {
    let text = fs::read_to_string(DOCUMENT)?;
    let parts = text.split_once(BEGIN).zip(text.split_once(END));
    let ((before, _), (_, after)) = parts.ok_or(io::ErrorKind::InvalidData)?;
    let (table, missed) = table();
    if missed.is_empty() {
        fs::write(DOCUMENT, format!("{before}{BEGIN}{table}{END}{after}"))?;
    }
    Ok(missed)
}

fn table() -> (String, Vec<String>) {
    let mut table = "\n| what | at least | in this run | by |\n|---|---:|---:|---|\n".to_owned();
    let mut missed = Vec::new();
    for row in ROWS {
        let found = figure(row.layer, row.figure);
        let shown = found.map_or("none".to_owned(), grouped);
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {} | {} | {shown} | {} |",
            row.what,
            grouped(row.at_least),
            row.command
        );
        if found.is_none_or(|found| found < row.at_least) {
            missed.push(format!("{}: {shown}, of {}", row.what, row.at_least));
        }
    }
    table.push('\n');
    (table, missed)
}

/// The sum over the parts of the layer: it is in one file, or in one for each story that was told.
fn figure(layer: &str, figure: &str) -> Option<u64> {
    let files = fs::read_dir(evidence::directory()).ok()?;
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    let parts = names.filter(|name| name.starts_with(layer) && name.ends_with(".json"));
    parts
        .filter_map(|name| figures(&name)?.get(figure).copied())
        .reduce(|all, part| all + part)
}

fn figures(name: &str) -> Option<BTreeMap<String, u64>> {
    let text = fs::read(evidence::directory().join(name)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// With a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_apart() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (20_000_000, "20,000,000"),
        ];
        for (number, text) in cases {
            assert_eq!(super::grouped(number), text);
        }
    }
}
