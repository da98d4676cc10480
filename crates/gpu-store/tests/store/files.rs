//! What a store file survives, and which files are refused.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gpu_store::{Batch, OpenError, RedbStore, Store, StoreId, Stored};
use redb::{Database, TableDefinition};
use tempfile::TempDir;

use crate::examples::{all_leases, counters, full_batch, lease, store_id};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("store.redb")
    }

    fn open(&self) -> RedbStore {
        RedbStore::open(&self.path(), store_id()).unwrap()
    }

    /// A closed store with something in it, and what that is.
    fn filled(&self) -> Stored {
        let store = self.open();
        store.commit(&full_batch(&all_leases())).unwrap();
        store.load().unwrap()
    }

    fn refusal(&self) -> OpenError {
        let found = fs::read(self.path()).ok();
        let error = RedbStore::open(&self.path(), store_id()).err().unwrap();
        let left = fs::read(self.path()).ok() == found;
        assert!(left, "a refused file is left as it was: {error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("`{}`", self.path().display())),
            "{text}"
        );
        assert!(!error.hint().is_empty());
        error
    }
}

#[test]
fn a_store_opened_again_is_the_same() {
    let place = Place::new();
    let stored = place.filled();
    let another = StoreId::from_bits(7);
    let store = RedbStore::open(&place.path(), another).unwrap();
    assert_eq!(store.load().unwrap(), stored);
}

#[test]
fn two_phase_commits_are_read_like_others() {
    let place = Place::new();
    let store = place.open().with_two_phase_commits();
    store.commit(&full_batch(&all_leases())).unwrap();
    let stored = store.load().unwrap();
    drop(store);
    assert_eq!(place.open().load().unwrap(), stored);
}

/// A copy of the file after a commit returned is what kill -9 leaves, the page cache being the system's.
#[test]
fn what_was_committed_survives_an_end_at_any_time() {
    let place = Place::new();
    let store = place.open();
    for revision in 1..=20 {
        let lease = lease(revision);
        let mut batch = Batch::new(counters(revision));
        batch.leases = vec![&lease];
        store.commit(&batch).unwrap();

        let after_kill = Place::new();
        fs::copy(place.path(), after_kill.path()).unwrap();
        let snapshot = RedbStore::open_read_only(&after_kill.path()).unwrap();
        assert_eq!(snapshot.load(), store.load());
        assert_eq!(after_kill.open().load(), store.load());
    }
}

#[test]
fn only_the_owner_may_look() {
    let place = Place::new();
    let directory = place.directory.path().join("state/gpu-manager");
    let path = directory.join("store.redb");
    drop(RedbStore::open(&path, store_id()).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&directory), 0o700);
    let names = fs::read_dir(&directory).unwrap().count();
    assert_eq!(names, 1, "nothing but the store is left there");
}

#[test]
fn a_snapshot_shows_what_is_stored_and_changes_nothing() {
    let place = Place::new();
    let stored = place.filled();
    fs::set_permissions(place.path(), Permissions::from_mode(0o400)).unwrap();
    let before = fs::read(place.path()).unwrap();
    let snapshot = RedbStore::open_read_only(&place.path()).unwrap();
    assert_eq!(snapshot.load().unwrap(), stored);
    assert_eq!(snapshot.events(None, 100).unwrap().events.len(), 18);
    assert_eq!(fs::read(place.path()).unwrap(), before);

    fs::set_permissions(place.path(), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(
        place.open().load().unwrap(),
        stored,
        "a snapshot holds no lock"
    );
}

#[test]
fn no_snapshot_of_nothing() {
    let place = Place::new();
    let error = RedbStore::open_read_only(&place.path()).err().unwrap();
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    assert!(!place.path().exists());
}

#[test]
fn one_broker_for_a_store() {
    let place = Place::new();
    let first = place.open();
    for error in [
        RedbStore::open(&place.path(), store_id()).err().unwrap(),
        RedbStore::open_read_only(&place.path()).err().unwrap(),
    ] {
        let expected = format!(
            "the store `{}` is in use by another broker",
            place.path().display()
        );
        assert_eq!(error.to_string(), expected);
    }
    drop(first);
    place.open();
}

#[test]
fn a_store_is_waited_for_while_somebody_only_looks() {
    let place = Place::new();
    let stored = place.filled();
    let looking = File::open(place.path()).unwrap();
    looking.lock_shared().unwrap();
    let opened = std::thread::spawn({
        let path = place.path();
        move || RedbStore::open(&path, store_id()).map(|store| store.load())
    });
    drop(looking);
    assert_eq!(opened.join().unwrap().unwrap().unwrap(), stored);
}

#[test]
fn an_empty_file_is_refused() {
    let place = Place::new();
    File::create(place.path()).unwrap();
    let error = place.refusal();
    assert!(matches!(error, OpenError::Empty { .. }), "{error}");
}

#[test]
fn files_of_others_are_refused() {
    for bytes in [&b"x"[..], b"SQLite format 3\0", &[0; 8192], b"redb"] {
        let place = Place::new();
        fs::write(place.path(), bytes).unwrap();
        let error = place.refusal();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    }
}

#[test]
fn a_redb_file_of_another_program_is_refused() {
    type Fill = fn(&redb::WriteTransaction);
    let fills: [Fill; 4] = [
        |_| (),
        |txn| {
            drop(
                txn.open_table(TableDefinition::<u64, u64>::new("meta"))
                    .unwrap(),
            )
        },
        |txn| drop(txn.open_table(META).unwrap()),
        |txn| {
            let mut meta = txn.open_table(META).unwrap();
            meta.insert("format", &b"\"one\""[..]).unwrap();
        },
    ];
    for fill in fills {
        let place = Place::new();
        let database = Database::create(place.path()).unwrap();
        let txn = database.begin_write().unwrap();
        fill(&txn);
        txn.commit().unwrap();
        drop(database);
        let error = place.refusal();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    }
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let place = Place::new();
    place.filled();
    let database = Database::open(place.path()).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(META)
        .unwrap()
        .insert("format", &b"2"[..])
        .unwrap();
    txn.commit().unwrap();
    drop(database);
    let error = place.refusal();
    let expected = format!(
        "the store `{}` has format 2, and this version knows formats up to 1",
        place.path().display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_is_no_file_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path()).unwrap();
    let error = place.refusal();
    assert!(matches!(error, OpenError::NotAFile { .. }), "{error}");
    let error = RedbStore::open(Path::new("/dev/null"), store_id())
        .err()
        .unwrap();
    assert!(matches!(error, OpenError::NotAFile { .. }), "{error}");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let place = Place::new();
    fs::write(place.path(), "a file").unwrap();
    let below = place.path().join("store.redb");
    let error = RedbStore::open(&below, store_id()).err().unwrap();
    assert!(matches!(error, OpenError::Unreadable { .. }), "{error}");
    let error = RedbStore::open(Path::new("/proc/nowhere/store.redb"), store_id()).err();
    assert!(matches!(error, Some(OpenError::Create { .. })), "{error:?}");
}

#[test]
fn a_file_cut_short_is_refused() {
    let place = Place::new();
    place.filled();
    let whole = fs::read(place.path()).unwrap();
    for len in [10, 100, 4096, whole.len() / 2, whole.len() - 1] {
        let cut = Place::new();
        fs::write(cut.path(), &whole[..len]).unwrap();
        let error = cut.refusal();
        assert!(
            matches!(error, OpenError::Corrupt { .. }),
            "cut to {len} bytes: {error:?}"
        );
    }
}

/// What a killed broker leaves is repaired before it is known, and that only in memory.
#[test]
fn what_a_kill_left_is_refused_untouched_where_it_is_cut_or_of_a_later_version() {
    let place = Place::new();
    let store = place.open();
    store.commit(&full_batch(&all_leases())).unwrap();
    let killed = fs::read(place.path()).unwrap();
    drop(store);
    for len in [killed.len() / 2, killed.len() - 1, killed.len() - 4096] {
        let cut = Place::new();
        fs::write(cut.path(), &killed[..len]).unwrap();
        let error = cut.refusal();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    }
    let database = Database::open(place.path()).unwrap();
    let txn = database.begin_write().unwrap();
    let mut meta = txn.open_table(META).unwrap();
    meta.insert("format", &b"2"[..]).unwrap();
    drop(meta);
    txn.commit().unwrap();
    let later = Place::new();
    fs::copy(place.path(), later.path()).unwrap();
    let error = later.refusal();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
}

/// A damaged byte is refused, or is in a part of the file that holds nothing: rows are never lost without
/// a word.
#[test]
fn damage_is_found() {
    let place = Place::new();
    let stored = place.filled();
    let whole = fs::read(place.path()).unwrap();
    let used: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] != 0).collect();
    let mut refused = 0;
    for &at in used.iter().step_by(used.len() / 300) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        let damaged = Place::new();
        fs::write(damaged.path(), &bytes).unwrap();
        let opened = RedbStore::open(&damaged.path(), store_id());
        match opened.map(|store| store.load()) {
            Ok(loaded) => assert_eq!(loaded.as_ref(), Ok(&stored), "byte {at}"),
            Err(error) => {
                assert!(
                    matches!(error, OpenError::Corrupt { .. } | OpenError::Foreign { .. }),
                    "byte {at}: {error}"
                );
                let left = fs::read(damaged.path()).unwrap() == bytes;
                assert!(left, "byte {at}: it was left as it was");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}
