//! `store`: looks into the file of a broker that is stopped, and makes it small. No broker is asked.

use std::path::Path;

use gpu_api::Bytes;
use gpu_store::{CheckReport, OpenError, ReadError, RedbStore};
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
    let snapshot = RedbStore::open_read_only(&path).map_err(refused)?;
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

fn dump(args: &StateDirArgs) -> Done {
    let path = store_path(args.state_dir.as_deref());
    let snapshot = RedbStore::open_read_only(&path).map_err(refused)?;
    let printed: Result<(), Stopped> =
        snapshot.dump(|line| print(&format!("{line}\n")).map_err(Stopped::Printing));
    match printed {
        Ok(()) => Ok(exit::OK),
        Err(Stopped::Printing(failure)) => Err(failure),
        Err(Stopped::Reading(error)) => Err(unreadable(error)),
    }
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
    let faults = report.faults.iter();
    let faults: String = faults
        .map(|fault| format!("  {}\n", clean(&fault.to_string())))
        .collect();
    let path = path.display();
    format!("{path}: {verdict} (rows: {})\n{faults}", rows.join(", "))
}

fn report_json(path: &Path, report: &CheckReport) -> serde_json::Value {
    let faults = report.faults.iter();
    let faults: Vec<_> = faults
        .map(|fault| json!({"table": fault.table, "key": fault.key, "detail": fault.detail}))
        .collect();
    let rows: serde_json::Map<_, _> = report
        .rows
        .iter()
        .map(|(table, rows)| ((*table).to_owned(), json!(rows)))
        .collect();
    json!({"path": path, "sound": faults.is_empty(), "rows": rows, "faults": faults})
}
