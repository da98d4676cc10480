//! `store`: looks into the file of a broker that is stopped, and makes it small. No broker is asked.

use std::path::Path;

use gpu_api::Bytes;
use gpu_store::{
    AsOf, CheckReport, Fault, OpenError, ReadError, RedbStore, Remains, RemainsReport, TableRemains,
};
use serde_json::json;

use crate::cli::Done;
use crate::cli::args::{StateDirArgs, StoreCommand, StoredArgs};
use crate::cli::exit::{self, Failure};
use crate::cli::output::{clean, print, print_json};
use crate::offline::store_path;

/// Checks, dumps or compacts.
pub(crate) fn store(command: StoreCommand) -> Done {
    match command {
        StoreCommand::Check(args) => check(&args),
        StoreCommand::Compact(args) => compact(&args),
        StoreCommand::Dump(args) => dump(&args),
    }
}

fn check(args: &StoredArgs) -> Done {
    let path = store_path(args.state_dir.as_deref());
    let snapshot = match RedbStore::open_read_only(&path) {
        Ok(snapshot) => snapshot,
        Err(error @ OpenError::Corrupt { .. }) => return check_remains(args, &path, &error),
        Err(error) => return Err(refused(error)),
    };
    let report = snapshot.check().map_err(unreadable)?;
    match args.output.json {
        true => print_json(&report_json(&path, &report))?,
        false => print(&render(&path, &report))?,
    }
    match report.faults.len() {
        0 => Ok(exit::OK),
        _ => Err(Failure::refused("the store is not sound").hint(
            "keep a copy of it; restore an older one, or start with none: holders that still run are then unknown",
        )),
    }
}

fn check_remains(args: &StoredArgs, path: &Path, damage: &OpenError) -> Done {
    let report = remains(path, damage)?.check();
    match args.output.json {
        true => print_json(&remains_json(path, damage, &report))?,
        false => print(&render_remains(path, &report))?,
    }
    let what = [Some(damage.to_string()), as_of(report.as_of)];
    let what: Vec<_> = what.into_iter().flatten().collect();
    Err(Failure::refused(what.join("; ")).hint(AFTER_DAMAGE))
}

/// What is to be said of rows that may not be those of the last commit.
fn as_of(as_of: AsOf) -> Option<String> {
    let which = match as_of {
        AsOf::Last => return None,
        AsOf::PerhapsEarlier => "perhaps as of an earlier commit",
        AsOf::Earlier => "as of an earlier commit",
    };
    Some(format!("{which}: what was written after it is not there"))
}

fn dump(args: &StateDirArgs) -> Done {
    let path = store_path(args.state_dir.as_deref());
    let snapshot = match RedbStore::open_read_only(&path) {
        Ok(snapshot) => snapshot,
        Err(error @ OpenError::Corrupt { .. }) => return dump_remains(&path, &error),
        Err(error) => return Err(refused(error)),
    };
    let printed: Result<(), Stopped> =
        snapshot.dump(|line| print(&format!("{line}\n")).map_err(Stopped::Printing));
    match printed {
        Ok(()) => Ok(exit::OK),
        Err(Stopped::Printing(failure)) => Err(failure),
        Err(Stopped::Reading(error)) => Err(unreadable(error)),
    }
}

fn dump_remains(path: &Path, damage: &OpenError) -> Done {
    let remains = remains(path, damage)?;
    let tables = remains.dump(|line| print(&format!("{line}\n")))?;
    let hurt = tables.iter().filter(|left| !left.is_whole());
    let hurt = hurt.map(|left| format!("{} {}", left.table, amounts(left)));
    let said: Vec<_> = as_of(remains.as_of()).into_iter().chain(hurt).collect();
    let said = match said.is_empty() {
        true => "every row could be read".to_owned(),
        false => said.join("; "),
    };
    Err(Failure::refused(format!("{damage}; {said}")).hint(AFTER_DAMAGE))
}

/// What to do when redb does not open a file.
const AFTER_DAMAGE: &str = "keep this file; `gpu-manager store dump` prints what can be read of it; then restore a copy, or move it away to start with no leases: holders that still run are then unknown";

fn remains(path: &Path, damage: &OpenError) -> Result<Remains, Failure> {
    let remains = Remains::read(path).map_err(refused)?;
    remains.ok_or_else(|| {
        let text = format!("{damage}; no row of it can be read");
        Failure::refused(text).hint(damage.hint())
    })
}

/// Why a dump stopped.
enum Stopped {
    Printing(Failure),
    Reading(ReadError),
}

impl From<ReadError> for Stopped {
    fn from(error: ReadError) -> Self {
        Self::Reading(error)
    }
}

fn compact(args: &StateDirArgs) -> Done {
    let path = store_path(args.state_dir.as_deref());
    let done = RedbStore::compact(&path).map_err(refused)?;
    print(&format!(
        "{}: {} before, {} after\n",
        path.display(),
        bytes(done.before_bytes),
        bytes(done.after_bytes)
    ))?;
    Ok(exit::OK)
}

fn refused(error: OpenError) -> Failure {
    let failure = Failure::refused(error.to_string());
    match error {
        OpenError::InUse { path } => {
            let path = path.display();
            Failure::refused(format!("the store `{path}` is in use by a broker")).hint(
                "stop that broker first; while it runs, `gpu-manager status`, `history` and `usage` ask it",
            )
        }
        OpenError::Missing { .. } => {
            failure.hint("say where the broker keeps its state with --state-dir DIR")
        }
        other => failure.hint(other.hint()),
    }
}

fn unreadable(error: ReadError) -> Failure {
    Failure::refused(error.to_string()).hint(error.hint())
}

/// `70 KiB (71680 bytes)`: people compare the one, programs the other.
fn bytes(number: u64) -> String {
    format!("{} ({number} bytes)", Bytes(number))
}

fn render(path: &Path, report: &CheckReport) -> String {
    let rows = report
        .rows
        .iter()
        .map(|(table, rows)| format!("{table} {rows}"));
    let rows: Vec<_> = rows.collect();
    let verdict = match report.faults.len() {
        0 => "sound".to_owned(),
        1 => "1 fault".to_owned(),
        faults => format!("{faults} faults"),
    };
    let path = path.display();
    let faults = render_faults(&report.faults);
    format!("{path}: {verdict} (rows: {})\n{faults}", rows.join(", "))
}

fn render_remains(path: &Path, report: &RemainsReport) -> String {
    let tables = report.tables.iter();
    let tables: String = tables
        .map(|left| format!("  {:<10}{}{}\n", left.table, amounts(left), places(left)))
        .collect();
    let mut faults = render_faults(&report.faults);
    if report.more_faults > 0 {
        faults.push_str(&format!("  and {} more\n", report.more_faults));
    }
    let when = as_of(report.as_of).map(|text| format!("; {text}"));
    let when = when.unwrap_or_default();
    format!("{}: damaged{when}\n{tables}{faults}", path.display())
}

fn render_faults(faults: &[Fault]) -> String {
    let lines = faults
        .iter()
        .map(|fault| format!("  {}\n", clean(&fault.to_string())));
    lines.collect()
}

/// `97 readable, 5 unsure, 18 lost`.
fn amounts(left: &TableRemains) -> String {
    let lost = match left.lost {
        Some(lost) => format!("{lost} lost"),
        None => "nobody knows how many lost".to_owned(),
    };
    format!("{} readable, {} unsure, {lost}", left.readable, left.unsure)
}

/// Where the disk, or whatever wrote to it, should be looked at.
fn places(left: &TableRemains) -> String {
    let places = left.damaged.iter();
    let places: Vec<_> = places
        .map(|place| format!("{}..{}", place.start, place.end))
        .collect();
    match places.is_empty() {
        true => String::new(),
        false => format!("; damaged bytes {}", places.join(", ")),
    }
}

fn report_json(path: &Path, report: &CheckReport) -> serde_json::Value {
    let rows: serde_json::Map<_, _> = report
        .rows
        .iter()
        .map(|(table, rows)| ((*table).to_owned(), json!(rows)))
        .collect();
    let faults = faults_json(&report.faults);
    json!({"path": path, "sound": faults.is_empty(), "rows": rows, "faults": faults})
}

fn remains_json(path: &Path, damage: &OpenError, report: &RemainsReport) -> serde_json::Value {
    let tables = report.tables.iter().map(|left| {
        let places = left.damaged.iter();
        let places: Vec<_> = places.map(|place| [place.start, place.end]).collect();
        json!({"readable": left.readable, "unsure": left.unsure, "lost": left.lost, "damaged_bytes": places})
    });
    let names = report.tables.iter().map(|left| left.table.to_owned());
    let tables: serde_json::Map<_, _> = names.zip(tables).collect();
    let faults = faults_json(&report.faults);
    json!({"path": path, "sound": false, "damage": damage.to_string(), "as_of": as_of_name(report.as_of), "tables": tables, "faults": faults, "more_faults": report.more_faults})
}

fn as_of_name(as_of: AsOf) -> &'static str {
    match as_of {
        AsOf::Last => "last",
        AsOf::PerhapsEarlier => "perhaps_earlier",
        AsOf::Earlier => "earlier",
    }
}

fn faults_json(faults: &[Fault]) -> Vec<serde_json::Value> {
    let one =
        |fault: &Fault| json!({"table": fault.table, "key": fault.key, "detail": fault.detail});
    faults.iter().map(one).collect()
}
