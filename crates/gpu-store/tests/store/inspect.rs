//! Looking into a stopped broker's file: whether it is sound, what is in it, and how small it can be.

use std::fs;
use std::path::{Path, PathBuf};

use gpu_lease::{Fence, Lease, Phase};
use gpu_store::{Batch, OpenError, ReadError, RedbStore, Store};
use redb::{Database, TableDefinition};
use serde_json::Value;
use tempfile::TempDir;

use crate::examples::{all_usage, cordons, counters, event, lease, policy, settings, store_id};

const LEASES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leases");

#[test]
fn a_sound_store_has_no_faults() {
    let (path, _directory) = stored(&[on("GPU-1", 1), on("GPU-2", 2)]);
    let report = RedbStore::open_read_only(&path).unwrap().check().unwrap();
    assert_eq!(report.faults, []);
    let expected = [
        ("meta", 4),
        ("leases", 2),
        ("cordons", 2),
        ("policies", 1),
        ("events", 1),
        ("usage", 3),
    ];
    assert_eq!(report.rows, expected);
}

#[test]
fn books_that_do_not_add_up_are_found() {
    type Spoil = fn(&mut [Lease]);
    let table: [(Spoil, &str); 6] = [
        (
            |leases| grant(&mut leases[1]).allocations[0].device.id = "GPU-1".into_id(),
            "row `l-000000000001` of table `leases`: it holds `GPU-1` alone, and so do or share it l-000000000002",
        ),
        (
            |leases| grant(&mut leases[1]).fence = Fence(u64::MAX),
            "is not below",
        ),
        (
            |leases| grant(&mut leases[1]).fence = Fence(1),
            "fence 1 is also that of l-000000000001",
        ),
        (
            |leases| leases[1].revision = 99,
            "revision 99 is later than 18, the last",
        ),
        (
            |leases| grant(&mut leases[1]).generation = 99,
            "generation 99 is later than 4",
        ),
        (
            |leases| grant(&mut leases[1]).allocations.clear(),
            "it holds no device",
        ),
    ];
    for (spoil, said) in table {
        let mut leases = [on("GPU-1", 1), on("GPU-2", 2)];
        spoil(&mut leases);
        let (path, _directory) = stored(&leases);
        let faults = RedbStore::open_read_only(&path)
            .unwrap()
            .check()
            .unwrap()
            .faults;
        let text: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 1, "{said}: {text:?}");
        assert!(text[0].contains(said), "{text:?}");
    }
}

/// Every row that is not understood is named, not only the first one.
#[test]
fn rows_that_are_not_understood_are_named_and_dumped() {
    let (path, _directory) = stored(&[on("GPU-1", 1), on("GPU-2", 2), on("GPU-3", 3)]);
    let database = Database::open(&path).unwrap();
    let txn = database.begin_write().unwrap();
    let mut table = txn.open_table(LEASES).unwrap();
    table.insert(1, b"\xff{".as_slice()).unwrap();
    table.insert(3, br#"{"revision":1}"#.as_slice()).unwrap();
    drop(table);
    txn.commit().unwrap();
    drop(database);

    let snapshot = RedbStore::open_read_only(&path).unwrap();
    let faults = snapshot.check().unwrap().faults;
    let named: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(named, ["l-000000000001", "l-000000000003"]);
    assert!(faults[1].detail.contains("missing field"), "{faults:?}");

    let lines = dump(&path);
    let row = |key: &str| lines.iter().find(|line| line["key"] == key).unwrap();
    assert!(row("l-000000000001")["unreadable"].is_string());
    assert_eq!(row("l-000000000003")["row"]["revision"], 1);
}

#[test]
fn every_row_is_dumped_on_a_line_of_its_own() {
    let (path, _directory) = stored(&[on("GPU-1", 1)]);
    let lines = dump(&path);
    let keys: Vec<String> = lines
        .iter()
        .map(|line| format!("{} {}", line["table"], line["key"]).replace('"', ""))
        .collect();
    let expected = [
        "meta counters",
        "meta format",
        "meta settings",
        "meta store_id",
        "leases l-000000000001",
        "cordons host-b/GPU-0",
        "cordons local/GPU-1",
        "policies last_good",
        "events 18-0",
        "usage 491000 ann  local/GPU-1",
        "usage 491000 ann research local/GPU-1",
        "usage 491001 bo  host-b/GPU-0",
    ];
    assert_eq!(keys, expected);
    assert_eq!(lines[4]["row"]["phase"]["held"]["fence"], 1);
}

#[test]
fn a_file_is_made_as_small_as_its_rows() {
    let (path, _directory) = stored(&[]);
    let many: Vec<_> = (1..2000).map(|n| on("GPU-1", n)).collect();
    let store = RedbStore::open(&path, store_id()).unwrap();
    let mut batch = Batch::new(counters(19));
    batch.leases = many.iter().collect();
    store.commit(&batch).unwrap();
    // A few stay here and there, so that the file cannot be cut off behind the last of them.
    for part in many.chunks(100) {
        let mut batch = Batch::new(counters(20));
        let gone = part.iter().map(|lease| lease.id).skip(1);
        batch.pruned = gone.collect();
        batch.events = vec![event(20, part[0].id.bits() as u32)];
        store.commit(&batch).unwrap();
    }
    let before = store.load().unwrap();
    assert!(matches!(
        RedbStore::compact(&path),
        Err(OpenError::InUse { .. })
    ));
    drop(store);

    let size = fs::metadata(&path).unwrap().len();
    let compacted = RedbStore::compact(&path).unwrap();
    assert_eq!(compacted.before_bytes, size);
    assert_eq!(compacted.after_bytes, fs::metadata(&path).unwrap().len());
    assert!(compacted.after_bytes < size / 2, "{compacted:?}");
    let store = RedbStore::open(&path, store_id()).unwrap();
    assert_eq!(store.load().unwrap(), before);
}

/// What a broker leaves that was killed after a flood: an open that finds most of the file empty makes it small.
#[test]
fn a_file_that_is_mostly_empty_is_made_small_when_it_is_opened() {
    let (path, directory) = stored(&[]);
    let store = RedbStore::open(&path, store_id()).unwrap();
    assert_eq!(store.compacted(), None);
    let mut large = on("GPU-1", 1);
    large.request.labels = [("text".to_owned(), "x".repeat(1 << 17))].into();
    let named = |n| Lease {
        id: gpu_lease::LeaseId::from_bits(n),
        ..large.clone()
    };
    let many: Vec<_> = (1..=640).map(named).collect();
    let mut batch = Batch::new(counters(19));
    batch.leases = many.iter().collect();
    store.commit(&batch).unwrap();
    let mut batch = Batch::new(counters(20));
    batch.pruned = many.iter().skip(10).map(|lease| lease.id).collect();
    store.commit(&batch).unwrap();
    let before = store.load().unwrap();

    let killed = directory.path().join("killed.redb");
    fs::copy(&path, &killed).unwrap();
    let opened = RedbStore::open(&killed, store_id()).unwrap();
    let compacted = opened.compacted().expect("it pays");
    assert!(compacted.before_bytes >= 64 << 20, "{compacted:?}");
    assert!(compacted.after_bytes < 8 << 20, "{compacted:?}");
    assert_eq!(opened.load().unwrap(), before);
    drop(opened);
    let opened = RedbStore::open(&killed, store_id()).unwrap();
    assert_eq!(opened.compacted(), None, "once is enough");
}

#[test]
fn nothing_is_made_where_there_is_no_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let error = RedbStore::compact(&path).unwrap_err();
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    assert!(!path.exists());
}

/// An active lease that has `device` alone.
fn on(device: &str, bits: u64) -> Lease {
    let mut lease = lease(bits);
    lease.request.idempotency = None;
    let grant = grant(&mut lease);
    grant.fence = Fence(bits);
    grant.allocations.truncate(1);
    grant.allocations[0].device.id = device.into_id();
    grant.allocations[0].exclusive = true;
    lease
}

fn grant(lease: &mut Lease) -> &mut gpu_lease::Grant {
    match &mut lease.phase {
        Phase::Held(grant) => grant,
        other => panic!("not held: {other:?}"),
    }
}

trait IntoId {
    fn into_id(self) -> gpu_lease::DeviceId;
}

impl IntoId for &str {
    fn into_id(self) -> gpu_lease::DeviceId {
        gpu_lease::DeviceId::new(self)
    }
}

/// A closed store with these leases and something in every other table.
fn stored(leases: &[Lease]) -> (PathBuf, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path, store_id()).unwrap();
    let cordons = cordons().into_iter();
    let batch = Batch {
        leases: leases.iter().collect(),
        cordons: cordons.map(|(key, cordon)| (key, Some(cordon))).collect(),
        policy: Some(policy(4)),
        settings: Some(settings()),
        events: vec![event(18, 0)],
        usage: all_usage(),
        ..Batch::new(counters(18))
    };
    store.commit(&batch).unwrap();
    (path, directory)
}

fn dump(path: &Path) -> Vec<Value> {
    let mut lines = Vec::new();
    let snapshot = RedbStore::open_read_only(path).unwrap();
    let each = |line: &str| {
        lines.push(serde_json::from_str(line).unwrap());
        Ok::<_, ReadError>(())
    };
    snapshot.dump(each).unwrap();
    lines
}
