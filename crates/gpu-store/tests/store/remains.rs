//! What is read of a damaged file: only what was written, and as much of that as can be.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gpu_lease::Lease;
use gpu_store::{AsOf, Batch, OpenError, ReadError, RedbStore, Remains, RemainsReport, Store};
use tempfile::TempDir;

use crate::examples::{
    all_usage, cordons, counters, event, lease, policy, settings, store_id, usage,
};

const LEASES: u64 = 300;
/// A label of one lease that is nowhere else in the file.
const MARK: &str = "the only one of its kind";

/// Also where rows are larger than a page, and where the file was not closed.
#[test]
fn all_of_a_sound_file_is_read() {
    let place = Place::filled();
    let rows = RedbStore::open_read_only(&place.path).unwrap();
    let expected = rows.check().unwrap();
    assert_eq!(expected.faults, []);
    let report = place.remains();
    assert_eq!(report.faults, []);
    let counted = report.tables.iter();
    let counted: Vec<_> = counted.map(|left| (left.table, left.readable)).collect();
    assert_eq!(counted, expected.rows);
    assert!(report.tables.iter().all(|left| left.is_whole()));
    assert!(report.tables.iter().all(|left| left.damaged.is_empty()));
    assert_eq!(place.dumped(), place.lines());

    let store = RedbStore::open(&place.path, store_id()).unwrap();
    let mut batch = Batch::new(counters(20));
    batch.events = vec![event(20, 0)];
    store.commit(&batch).unwrap();
    let killed = Place::of(&fs::read(&place.path).unwrap());
    drop(store);
    assert_eq!(killed.dumped(), place.lines());
}

/// A store in which nothing ever happened has no table of usage.
#[test]
fn a_new_store_has_lost_nothing() {
    let place = Place::new();
    drop(RedbStore::open(&place.path, store_id()).unwrap());
    assert!(place.remains().tables.iter().all(|left| left.is_whole()));
}

#[test]
fn a_flipped_bit_in_a_row_costs_its_page() {
    let place = Place::filled();
    let whole = place.lines();
    let mut bytes = fs::read(&place.path).unwrap();
    let at = position_of(&bytes, MARK);
    bytes[at] ^= 0x20;
    let damaged = Place::of(&bytes);
    let refused = RedbStore::open_read_only(&damaged.path).err();
    assert!(matches!(refused, Some(OpenError::Corrupt { .. })));

    let report = damaged.remains();
    let (hurt, others): (Vec<_>, Vec<_>) = report.tables.iter().partition(|left| !left.is_whole());
    assert_eq!(others.len(), 5, "{others:?}");
    let leases = hurt[0];
    assert_eq!((leases.table, leases.lost), ("leases", Some(0)));
    assert_eq!(leases.readable + leases.unsure, LEASES);
    assert!(leases.readable > LEASES * 9 / 10, "{leases:?}");
    assert!(leases.damaged[0].contains(&(at as u64)), "{leases:?}");
    assert_eq!(report.faults.len() as u64, leases.unsure);
    let said = "row `l-000000000004` of table `leases`: its page is damaged";
    let named = report.faults.iter().map(ToString::to_string);
    assert!(named.into_iter().any(|fault| fault.starts_with(said)));

    let dumped = damaged.dumped();
    let marked = dumped
        .iter()
        .find(|line| line.contains("the only one of its k"));
    let marked = marked.map(String::as_str).unwrap_or_default();
    assert!(whole.iter().all(|line| line != marked));
    assert!(dumped.iter().any(|line| line.contains(r#","unsure":{"#)));
    assert_eq!(dumped.len(), whole.len());
}

/// What a commit has written after another is not passed off as never having been there.
#[test]
fn an_older_commit_is_not_passed_off_as_the_last() {
    let place = Place::killed_after(2);
    let bytes = fs::read(&place.path).unwrap();
    let last = 64 + 128 * usize::from(bytes[9] & 1);
    let list = 4096 * (1 + usize::from(u16_at(&bytes, last + 8)));
    assert_eq!(place.remains().as_of, AsOf::Last);
    assert_eq!(place.leases(), (2, 0, Some(0)));

    let mut zeroed = bytes.clone();
    zeroed[list..list + 4096].fill(0);
    let zeroed = Place::of(&zeroed);
    assert!(RedbStore::open_read_only(&zeroed.path).is_err());
    assert_eq!(zeroed.remains().as_of, AsOf::Earlier);
    assert_eq!(zeroed.leases(), (1, 0, None));

    // Where the slot says its number, where it points, its checksum.
    for (at, left) in [(104, 2), (8, 1), (112, 2)] {
        let mut flipped = bytes.clone();
        flipped[last + at] ^= 1;
        let flipped = Place::of(&flipped);
        assert!(RedbStore::open_read_only(&flipped.path).is_err());
        let report = flipped.remains();
        assert_ne!(report.as_of, AsOf::Last, "{at}");
        assert!(report.tables.iter().all(|table| table.lost.is_none()));
        assert_eq!(flipped.leases(), (left, 0, None), "{at}");
    }
}

/// The first phase of a commit has written its slot, and the second never came: its rows were never answered.
#[test]
fn a_commit_that_was_never_completed_is_not_read_as_one_that_was() {
    let place = Place::killed_after(2);
    let mut bytes = fs::read(&place.path).unwrap();
    bytes[9] ^= 1;
    let begun = Place::of(&bytes);
    assert_eq!(begun.remains().as_of, AsOf::PerhapsEarlier);
    assert_eq!(begun.leases(), (1, 0, None));
    assert!(!begun.dumped().concat().contains("l-000000000002"));

    // Its rows are all that is left, and nobody takes them for sound.
    let last = 64 + 128 * usize::from(bytes[9] & 1);
    let list = 4096 * (1 + usize::from(u16_at(&bytes, last + 8)));
    bytes[list..list + 4096].fill(0);
    let begun = Place::of(&bytes);
    assert_eq!(begun.leases(), (0, 2, None));
    let faults = begun.remains().faults;
    assert!(
        faults
            .iter()
            .all(|fault| fault.detail.contains("never completed"))
    );
}

/// Whatever is flipped: a row that is said to be as it was written is, none is lost without a word, nothing
/// panics, and the file is left alone.
#[test]
fn no_row_is_made_up_and_none_is_lost_without_a_word() {
    let place = Place::filled();
    let whole: BTreeSet<_> = place.lines().into_iter().collect();
    let bytes = fs::read(&place.path).unwrap();
    let counts = RedbStore::open_read_only(&place.path).unwrap();
    let counts = counts.check().unwrap().rows;
    let used: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
    let mut readable = 0;
    for n in 0..60 {
        let mut bytes = bytes.clone();
        // From one flipped byte to so many that hardly anything is left.
        for flip in 0..1 << (n % 12) {
            let at = used[(n * 7919 + flip * 104_729) % used.len()];
            bytes[at] ^= 1 << (n % 8);
        }
        let damaged = Place::of(&bytes);
        let Some(remains) = Remains::read(&damaged.path).unwrap() else {
            continue;
        };
        let report = remains.check();
        for (left, (table, rows)) in report.tables.iter().zip(&counts) {
            let counted = left.lost.map(|lost| left.readable + left.unsure + lost);
            assert!(
                counted.is_none_or(|all| all >= *rows),
                "{n}: {table} {left:?}"
            );
        }
        for line in damaged.dumped() {
            let sound = !line.contains(r#","unsure":"#) && !line.contains(r#","unreadable":"#);
            assert!(!sound || whole.contains(&line), "{n}: {line}");
            readable += u64::from(sound);
        }
        for left in report.tables.iter().filter(|left| left.damaged.is_empty()) {
            assert!(left.unsure == 0 || left.lost.is_none(), "{n}: {left:?}");
        }
        assert!(fs::read(&damaged.path).unwrap() == bytes);
    }
    assert!(readable > 5 * LEASES, "{readable}");
}

/// However a leaf was made up, its rows are no more than a page has room for.
#[test]
fn a_crafted_leaf_is_not_read_over_and_over() {
    let place = Place::filled();
    let mut bytes = fs::read(&place.path).unwrap();
    // Leaves of leases have keys of eight bytes and ends of values: say of every row that it is as long as it can be.
    let at = position_of(&bytes, MARK) / 4096 * 4096;
    let page = &mut bytes[at..at + 4096];
    assert_eq!(page[0], 1);
    page[2..4].copy_from_slice(&300_u16.to_le_bytes());
    for n in 0..300 {
        let end: u32 = if n % 2 == 0 { 0 } else { 4096 };
        page[4 + 4 * n..8 + 4 * n].copy_from_slice(&end.to_le_bytes());
    }
    let leases = Place::of(&bytes).leases();
    assert!(leases.1 < 5, "{leases:?}");
}

/// The list of the tables is at the end of a closed file.
#[test]
fn of_a_file_cut_short_nothing_is_made_up() {
    let place = Place::filled();
    let whole: BTreeSet<_> = place.lines().into_iter().collect();
    let bytes = fs::read(&place.path).unwrap();
    for part in 1..16 {
        let cut = Place::of(&bytes[..bytes.len() / 16 * part]);
        if Remains::read(&cut.path).unwrap().is_some() {
            assert!(cut.dumped().iter().all(|line| whole.contains(line)));
        }
    }
    for nothing in [&bytes[..100], &[0; 8192], b"SQLite format 3\0"] {
        let place = Place::of(nothing);
        assert!(Remains::read(&place.path).unwrap().is_none());
    }
    let missing = Remains::read(Path::new("/nowhere/store.redb")).err();
    assert!(matches!(missing, Some(OpenError::Missing { .. })));
}

struct Place {
    path: PathBuf,
    _directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            path: directory.path().join("store.redb"),
            _directory: directory,
        }
    }

    fn of(bytes: &[u8]) -> Self {
        let place = Self::new();
        fs::write(&place.path, bytes).unwrap();
        place
    }

    /// A closed store with something in every table, and some names that are long.
    fn filled() -> Self {
        let place = Self::new();
        let store = RedbStore::open(&place.path, store_id()).unwrap();
        let mut leases: Vec<Lease> = (1..=LEASES).map(sound_lease).collect();
        leases[3].request.labels = [("text".to_owned(), MARK.to_owned())].into();
        leases[200].request.labels = [("text".to_owned(), "x".repeat(20_000))].into();
        let cordons = cordons().into_iter();
        let long = "u".repeat(400);
        let mut batch = Batch {
            leases: leases.iter().collect(),
            cordons: cordons.map(|(key, cordon)| (key, Some(cordon))).collect(),
            policy: Some(policy(4)),
            settings: Some(settings()),
            events: (0..500).map(|n| event(18, n)).collect(),
            usage: all_usage(),
            ..Batch::new(counters(18))
        };
        batch.usage.push(usage(491_001, &long, 7));
        store.commit(&batch).unwrap();
        place
    }

    /// The file of a broker that was killed after so many commits of one lease each.
    fn killed_after(leases: u64) -> Self {
        let place = Self::new();
        let store = RedbStore::open(&place.path, store_id()).unwrap();
        let store = store.with_two_phase_commits();
        for n in 1..=leases {
            let lease = sound_lease(n);
            let batch = Batch {
                leases: vec![&lease],
                ..Batch::new(counters(n))
            };
            store.commit(&batch).unwrap();
        }
        Self::of(&fs::read(&place.path).unwrap())
    }

    /// How many are readable, unsure, lost.
    fn leases(&self) -> (u64, u64, Option<u64>) {
        let tables = self.remains().tables;
        let leases = tables.iter().find(|left| left.table == "leases").unwrap();
        (leases.readable, leases.unsure, leases.lost)
    }

    fn remains(&self) -> RemainsReport {
        Remains::read(&self.path).unwrap().unwrap().check()
    }

    fn dumped(&self) -> Vec<String> {
        let remains = Remains::read(&self.path).unwrap().unwrap();
        let mut lines = Vec::new();
        let each = |line: &str| {
            lines.push(line.to_owned());
            Ok::<_, ReadError>(())
        };
        remains.dump(each).unwrap();
        lines
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let each = |line: &str| {
            lines.push(line.to_owned());
            Ok::<_, ReadError>(())
        };
        let snapshot = RedbStore::open_read_only(&self.path).unwrap();
        snapshot.dump(each).unwrap();
        lines
    }
}

/// One whose idempotency key and fence nobody else has.
fn sound_lease(bits: u64) -> Lease {
    let mut lease = lease(bits);
    lease.request.idempotency = None;
    if let gpu_lease::Phase::Held(grant) = &mut lease.phase {
        grant.fence = gpu_lease::Fence(bits);
        for part in &mut grant.allocations {
            part.exclusive = false;
        }
    }
    lease
}

/// Of a page in the first region; the first page of the file is its header.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn position_of(bytes: &[u8], text: &str) -> usize {
    let found = bytes
        .windows(text.len())
        .position(|part| part == text.as_bytes());
    found.unwrap()
}
