//! The store alone, on disks that lose their power within a commit: what was answered is there, what was cut
//! is there whole or not at all. And a disk that lies is found out, so the test can see what it looks for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gpu_lease::{Counters, Fence};
use gpu_sim::Dice;
use gpu_store::{Batch, CrashDisk, RedbStore, Store, StoreId};

/// Operations of the disk within which the power goes; a commit takes fewer.
const CUT_WITHIN: u64 = 16;

#[test]
fn an_honest_disk_loses_nothing_that_was_answered() {
    let mut torn = 0;
    for seed in 0..300 {
        let dice = &mut Dice::new(seed);
        let disk = CrashDisk::new();
        let cut = commit_until_the_power_goes(&disk, dice);
        torn += u64::from(disk.unsynced() > 0);
        let found = recovered(&disk, dice).expect("what an honest disk kept can be read");
        let whole = found == cut.answered || found == cut.answered + 1;
        assert!(whole, "seed {seed}: {found} after {} answers", cut.answered);
    }
    println!("{torn} of 300 images had something that was not synced");
    assert!(torn > 100);
}

#[test]
fn a_disk_that_lies_is_found_out() {
    let lost = (0..100).filter(|&seed| {
        let dice = &mut Dice::new(seed);
        let disk = CrashDisk::new();
        let store = RedbStore::open_on(disk.clone(), StoreId::from_bits(1));
        drop(store.expect("an empty disk"));
        disk.lie_every(2);
        let cut = commit_until_the_power_goes(&disk, dice);
        recovered(&disk, dice).is_none_or(|found| found < cut.answered)
    });
    assert!(lost.count() > 10);
}

struct Cut {
    /// The last revision that the store said is durable.
    answered: u64,
}

fn commit_until_the_power_goes(disk: &CrashDisk, dice: &mut Dice) -> Cut {
    let store = RedbStore::open_on(disk.clone(), StoreId::from_bits(1)).expect("it works so far");
    let calm = dice.below(20);
    for revision in 1..u64::MAX {
        if revision == calm + 1 {
            disk.fail_after(Some(dice.below(CUT_WITHIN)));
        }
        if store.commit(&batch(revision)).is_err() {
            return Cut {
                answered: revision - 1,
            };
        }
    }
    unreachable!("the power goes before")
}

/// The revision that is found once the power is back, if anything is; sometimes it goes within the recovery too.
fn recovered(disk: &CrashDisk, dice: &mut Dice) -> Option<u64> {
    let mut disk = disk.after_power_cut(&mut || dice.chance(50));
    if dice.chance(50) {
        disk.fail_after(Some(dice.below(CUT_WITHIN)));
        drop(open(&disk));
        disk = disk.after_power_cut(&mut || dice.chance(50));
    }
    let stored = open(&disk)?.load().ok()?;
    Some(stored.rows.map_or(0, |rows| rows.counters.revision))
}

/// redb panics on some images that no honest disk leaves.
fn open(disk: &CrashDisk) -> Option<RedbStore> {
    let open = || RedbStore::open_on(disk.clone(), StoreId::from_bits(1)).ok();
    catch_unwind(AssertUnwindSafe(open)).ok().flatten()
}

fn batch(revision: u64) -> Batch<'static> {
    Batch::new(Counters {
        revision,
        next_fence: Fence(revision),
        generation: 1,
    })
}
