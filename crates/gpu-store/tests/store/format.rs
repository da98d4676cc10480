//! Format 1, frozen: the file in `fixtures/format-1.json` was written once and stays readable for ever.
//! The tables are opened by name here, so that the store's own constants are checked too.

use std::collections::BTreeMap;

use gpu_lease::{At, BootMs, DeviceKey, Rows, WallMs};
use gpu_store::{Batch, Hour, ReadError, RedbStore, Store, Stored, StoredEvent, UsageRow};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::{Value, json};

use crate::examples::{
    LIVE_EVENT_KINDS, all_events, all_leases, all_usage, cordons, counters, event, events_of,
    full_batch, live_settings, policy, settings, store_id,
};

const FIXTURE: &str = include_str!("../fixtures/format-1.json");
const LIVE_POLICY: &str = include_str!("../fixtures/format-1-live-policy.json");

/// What came with usage and with the users of events.
const USAGE_ROWS: &str = include_str!("../fixtures/format-1-usage.json");

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LEASES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leases");
const CORDONS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("cordons");
const POLICIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("policies");
const EVENTS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("events");
type UsageKey = (u64, &'static str, &'static str, &'static str, &'static str);
const USAGE: TableDefinition<'_, UsageKey, &[u8]> = TableDefinition::new("usage");

#[test]
fn an_old_file_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    restore(&path, &serde_json::from_str(FIXTURE).unwrap());

    let store = RedbStore::open(&path, gpu_store::StoreId::from_bits(7)).unwrap();
    let expected = Stored {
        store_id: store_id(),
        boot_id: Some("boot-a".to_owned()),
        rows: Some(Rows {
            counters: counters(17),
            leases: all_leases(),
            cordons: cordons(),
        }),
        policy: Some(policy(4)),
        settings: settings(),
        usage_counted: None,
    };
    assert_eq!(store.load().unwrap(), expected);
    assert_eq!(store.events(None, 100).unwrap().events, all_events());
    // What there was no table for then is added to it now.
    assert_eq!(usage_rows(&store), []);
    store.commit(&usage_batch()).unwrap();
    assert_eq!(usage_rows(&store), all_usage());
}

#[test]
fn a_file_is_written_as_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path, store_id()).unwrap();
    store.commit(&full_batch(&all_leases())).unwrap();
    drop(store);

    let written = dump(&path);
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let text = serde_json::to_string_pretty(&written).unwrap();
    assert_eq!(written, fixture, "the rows are now:\n{text}");
}

/// Rows of format 1 that came with live policy: read and written as ever, too.
#[test]
fn rows_of_live_policy_are_read_and_written_as_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path, store_id()).unwrap();
    let mut batch = Batch::new(counters(17));
    batch.settings = Some(live_settings());
    batch.events = events_of(&LIVE_EVENT_KINDS);
    store.commit(&batch).unwrap();
    assert_eq!(store.load().unwrap().settings, live_settings());
    drop(store);

    let written = dump(&path);
    let fixture: Value = serde_json::from_str(LIVE_POLICY).unwrap();
    let text = serde_json::to_string_pretty(&written).unwrap();
    assert_eq!(written, fixture, "the rows are now:\n{text}");
    let again = directory.path().join("again.redb");
    restore(&again, &fixture);
    let store = RedbStore::open(&again, store_id()).unwrap();
    assert_eq!(store.load().unwrap().settings, live_settings());
    let events = store.events(None, 100).unwrap().events;
    assert_eq!(events, events_of(&LIVE_EVENT_KINDS));
}

/// Rows of format 1 that came with usage: read and written as ever, too. Earlier versions do not look at their
/// table; they refuse the events, and no lease.
#[test]
fn rows_of_usage_are_read_and_written_as_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path, store_id()).unwrap();
    store.commit(&usage_batch()).unwrap();
    assert_eq!(usage_rows(&store), all_usage());
    drop(store);

    let written = dump(&path);
    let fixture: Value = serde_json::from_str(USAGE_ROWS).unwrap();
    let text = serde_json::to_string_pretty(&written).unwrap();
    assert_eq!(written, fixture, "the rows are now:\n{text}");
    let again = directory.path().join("again.redb");
    restore(&again, &fixture);
    let store = RedbStore::open(&again, store_id()).unwrap();
    assert_eq!(usage_rows(&store), all_usage());
    assert_eq!(store.load().unwrap().usage_counted, Some(COUNTED));
    let events = store.events(None, 100).unwrap().events;
    assert_eq!(events, usage_batch().events);
}

const COUNTED: At = At {
    boot: BootMs(40_000),
    wall: WallMs(1_767_603_600_000),
};

fn usage_batch() -> Batch<'static> {
    let of_ann = StoredEvent {
        user: Some("ann".to_owned()),
        also_on: vec![DeviceKey::local("GPU-2")],
        ..event(18, 0)
    };
    Batch {
        usage: all_usage(),
        usage_counted: Some(COUNTED),
        events: vec![of_ann],
        ..Batch::new(counters(18))
    }
}

fn usage_rows(store: &RedbStore) -> Vec<UsageRow> {
    let mut rows = Vec::new();
    store.usage(Hour(0), &mut |row| rows.push(row)).unwrap();
    rows
}

#[test]
fn a_row_that_is_not_understood_is_named() {
    let lease = "l-000000000002";
    let edits: [(&str, &str, Value, &str); 8] = [
        ("/leases/2/phase/held/fence", "leases", json!("x"), lease),
        ("/leases/2/phase", "leases", json!({"paused": {}}), lease),
        ("/leases/2/request/amount", "leases", json!("some"), lease),
        ("/leases/2/request/devices", "leases", json!(-1), lease),
        ("/events/17-1/kind", "events", json!("gpu_sold"), "17-1"),
        ("/events/17-1/lease", "events", json!("l-1"), "17-1"),
        (
            "/cordons/local GPU-1",
            "cordons",
            json!({"colour": 1}),
            "GPU-1",
        ),
        ("/meta/store_id", "meta", json!("me"), "store_id"),
    ];
    for (place, table, value, key) in edits {
        let mut rows: Value = serde_json::from_str(FIXTURE).unwrap();
        *rows.pointer_mut(place).unwrap() = value;
        let error = read_error(&rows);
        let ReadError::Row {
            table: t, key: k, ..
        } = &error
        else {
            panic!("{place}: {error}");
        };
        assert_eq!((*t, k.as_str()), (table, key), "{place}: {error}");
        assert!(
            error.to_string().contains(&format!("row `{key}`")),
            "{error}"
        );
    }
}

#[test]
fn a_field_of_a_later_version_is_not_dropped() {
    for place in [
        "/leases/2",
        "/leases/2/request",
        "/leases/2/request/holder",
        "/leases/2/request/holder/kind/process",
        "/leases/2/phase/held",
        "/leases/4/phase/reclaiming",
        "/meta/counters",
        "/meta/settings",
        "/policies/last_good",
        "/cordons/local GPU-1",
        "/events/17-1",
        "/events/17-1/device",
    ] {
        let mut rows: Value = serde_json::from_str(FIXTURE).unwrap();
        rows.pointer_mut(place).unwrap()["colour"] = json!(1);
        let error = read_error(&rows).to_string();
        assert!(error.contains("unknown field `colour`"), "{place}: {error}");
    }
}

fn read_error(rows: &Value) -> ReadError {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    restore(&path, rows);
    let store = RedbStore::open(&path, store_id()).unwrap();
    let loaded = store.load().and_then(|_| store.events(None, 100));
    loaded.unwrap_err()
}

/// A store file with these rows.
fn restore(path: &std::path::Path, rows: &Value) {
    let database = Database::create(path).unwrap();
    let txn = database.begin_write().unwrap();
    // Also the tables that stay empty.
    drop((
        txn.open_table(LEASES).unwrap(),
        txn.open_table(CORDONS).unwrap(),
        txn.open_table(POLICIES).unwrap(),
        txn.open_table(EVENTS).unwrap(),
    ));
    for (key, row) in entries(rows, "meta") {
        txn.open_table(META)
            .unwrap()
            .insert(key.as_str(), row.as_slice())
            .unwrap();
    }
    for (key, row) in entries(rows, "leases") {
        let key: u64 = key.parse().unwrap();
        txn.open_table(LEASES)
            .unwrap()
            .insert(key, row.as_slice())
            .unwrap();
    }
    for (key, row) in entries(rows, "cordons") {
        let key = key.split_once(' ').unwrap();
        txn.open_table(CORDONS)
            .unwrap()
            .insert(key, row.as_slice())
            .unwrap();
    }
    for (key, row) in entries(rows, "policies") {
        txn.open_table(POLICIES)
            .unwrap()
            .insert(key.as_str(), row.as_slice())
            .unwrap();
    }
    for (key, row) in entries(rows, "events") {
        let (revision, n) = key.split_once('-').unwrap();
        let key = (revision.parse().unwrap(), n.parse().unwrap());
        txn.open_table(EVENTS)
            .unwrap()
            .insert(key, row.as_slice())
            .unwrap();
    }
    for (key, row) in entries(rows, "usage") {
        let parts: Vec<&str> = key.split('|').collect();
        let hour = parts[0].parse().unwrap();
        let key = (hour, parts[1], parts[2], parts[3], parts[4]);
        let mut table = txn.open_table(USAGE).unwrap();
        table.insert(key, row.as_slice()).unwrap();
    }
    txn.commit().unwrap();
}

fn entries(rows: &Value, table: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = |row| serde_json::to_vec(row).unwrap();
    let table = rows[table].as_object();
    table
        .into_iter()
        .flatten()
        .map(|(key, row)| (key.clone(), bytes(row)))
        .collect()
}

/// All rows of a store file.
fn dump(path: &std::path::Path) -> Value {
    let database = Database::open(path).unwrap();
    let txn = database.begin_read().unwrap();
    let tables = txn.list_tables().unwrap();
    let names: Vec<_> = tables
        .map(|table| redb::TableHandle::name(&table).to_owned())
        .collect();
    let others = ["cordons", "events", "leases", "meta", "policies"];
    let has_usage = names.len() > others.len();
    assert_eq!(names[..others.len()], others);
    let mut rows = json!({
        "meta": rows_of(txn.open_table(META).unwrap().iter().unwrap(), |key| key.to_owned()),
        "leases": rows_of(txn.open_table(LEASES).unwrap().iter().unwrap(), |key| key.to_string()),
        "cordons": rows_of(
            txn.open_table(CORDONS).unwrap().iter().unwrap(),
            |(host, id)| format!("{host} {id}"),
        ),
        "policies": rows_of(txn.open_table(POLICIES).unwrap().iter().unwrap(), |key| key.to_owned()),
        "events": rows_of(
            txn.open_table(EVENTS).unwrap().iter().unwrap(),
            |(revision, n)| format!("{revision}-{n}"),
        ),
    });
    if has_usage {
        let table = txn.open_table(USAGE).unwrap();
        rows["usage"] = json!(rows_of(
            table.iter().unwrap(),
            |(hour, user, tenant, host, id)| format!("{hour}|{user}|{tenant}|{host}|{id}"),
        ));
    }
    rows
}

fn rows_of<K: redb::Key + 'static>(
    range: redb::Range<'_, K, &'static [u8]>,
    name: impl Fn(K::SelfType<'_>) -> String,
) -> BTreeMap<String, Value> {
    let row = |entry: Result<(redb::AccessGuard<'_, K>, redb::AccessGuard<'_, &[u8]>), _>| {
        let (key, row) = entry.unwrap();
        (
            name(key.value()),
            serde_json::from_slice(row.value()).unwrap(),
        )
    };
    range.map(row).collect()
}
