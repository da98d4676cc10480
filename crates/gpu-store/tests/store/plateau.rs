//! A file that is used for ever does not grow for ever.

use std::collections::VecDeque;
use std::fs;

use gpu_lease::{Lease, LeaseId, WallMs};
use gpu_store::{Batch, EVENTS_KEPT, Hour, RedbStore, Store, StoredEvent, USAGE_KEPT_HOURS};

use crate::examples::{counters, event, lease, store_id, usage};

/// Leases of one commit, which prunes as many, and what is told of them.
const PER_BATCH: u64 = 100;
const EVENTS_PER_BATCH: u32 = 2000;
const HOURS_PER_BATCH: u64 = 20;
/// Leases that are kept after their end.
const ENDED_KEPT: usize = 2000;
/// From here on there are as many rows of every kind as there may be.
const FULL: usize = 55;
const BATCHES: u64 = 75;

/// The same as `cargo bench -p gpu-manager-benches -- growth`, which goes to ten million leases through the
/// broker, in little: rows come and go as its retention has it.
#[test]
fn the_file_stays_as_large_as_what_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path, store_id()).unwrap();
    let mut ended = VecDeque::new();
    let mut sizes = Vec::new();
    for batch in 0..BATCHES {
        let leases: Vec<_> = (0..PER_BATCH).map(|n| one(batch * PER_BATCH + n)).collect();
        ended.extend(leases.iter().map(|lease| lease.id));
        let pruned = ended.len().saturating_sub(ENDED_KEPT);
        let hours = batch * HOURS_PER_BATCH..(batch + 1) * HOURS_PER_BATCH;
        let batch = Batch {
            leases: leases.iter().collect(),
            pruned: ended.drain(..pruned).collect(),
            events: (0..EVENTS_PER_BATCH).map(|n| told(batch, n)).collect(),
            usage: hours.map(|hour| usage(hour, "ann", 60_000)).collect(),
            ..Batch::new(counters(batch))
        };
        store.commit(&batch).unwrap();
        sizes.push(fs::metadata(&path).unwrap().len());
    }
    assert!(EVENTS_PER_BATCH as usize * FULL > EVENTS_KEPT);
    assert!(HOURS_PER_BATCH * FULL as u64 > USAGE_KEPT_HOURS);
    assert!(PER_BATCH as usize * FULL > ENDED_KEPT);
    let most = |sizes: &[u64]| sizes.iter().max().copied();
    let later = FULL + (sizes.len() - FULL) / 2;
    assert!(
        sizes[FULL / 4] < sizes[FULL],
        "it grows until it is full: {sizes:?}"
    );
    assert_eq!(
        most(&sizes[FULL..later]),
        most(&sizes[later..]),
        "{sizes:?}"
    );

    let rows = store.load().unwrap().rows.unwrap();
    assert_eq!(rows.leases.len(), ENDED_KEPT);
    let mut hours = 0;
    store.usage(Hour(0), &mut |_| hours += 1).unwrap();
    assert_eq!(hours, USAGE_KEPT_HOURS);
}

/// Ids come in no order, as those of a broker.
fn one(n: u64) -> Lease {
    Lease {
        id: LeaseId::from_bits(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 4),
        ..lease(1)
    }
}

fn told(revision: u64, n: u32) -> StoredEvent {
    StoredEvent {
        wall: WallMs(revision),
        ..event(revision, n)
    }
}
