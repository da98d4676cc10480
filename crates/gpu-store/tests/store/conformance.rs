//! What every store does. A check takes an empty store and knows nothing of its kind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use gpu_lease::{At, BootMs, DeviceKey, Lease, LeaseId, Rows, WallMs};
use gpu_store::{
    Batch, EVENTS_KEPT, EVENTS_PER_PAGE_MAX, EVENTS_PER_TRIM, EventPage, EventPosition, Hour,
    MemoryStore, RedbStore, Settings, Store, Stored, USAGE_KEPT_HOURS, USAGE_OTHER,
    USAGE_ROWS_PER_HOUR_MAX, USAGE_ROWS_PER_TRIM, USAGE_ROWS_PER_USER_MAX, Usage, UsageRow,
};

use crate::examples::{
    all_events, all_leases, all_usage, cordon, cordons, counters, event, full_batch, lease,
    live_settings, policy, position, settings, store_id, usage,
};

macro_rules! every_store_does {
    ($($check:ident),+ $(,)?) => {
        mod memory {
            $(#[test]
            fn $check() {
                super::$check(&super::MemoryStore::new(super::store_id()));
            })+
        }

        mod redb {
            $(#[test]
            fn $check() {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("store.redb");
                super::$check(&super::RedbStore::open(&path, super::store_id()).unwrap());
            })+
        }
    };
}

every_store_does! {
    a_new_store_knows_only_its_name,
    everything_committed_is_loaded,
    a_later_row_replaces_an_earlier_one,
    what_a_batch_does_not_name_stays,
    pruned_leases_are_gone,
    cordons_are_set_and_lifted,
    readers_see_whole_batches,
    events_come_in_pages,
    a_reader_resumes_where_it_was,
    a_position_of_another_history_resets,
    old_events_are_trimmed,
    usage_adds_up,
    what_is_counted_is_remembered,
    an_hour_has_so_many_rows,
    a_user_has_so_many_rows_of_an_hour,
    old_usage_is_removed,
}

fn a_new_store_knows_only_its_name(store: &dyn Store) {
    let expected = Stored {
        store_id: store_id(),
        boot_id: None,
        rows: None,
        policy: None,
        settings: Settings::default(),
        usage_counted: None,
    };
    assert_eq!(store.load().unwrap(), expected);
    assert_eq!(store.events(None, 10).unwrap(), EventPage::default());
}

fn everything_committed_is_loaded(store: &dyn Store) {
    let leases = all_leases();
    store.commit(&full_batch(&leases)).unwrap();
    let expected = Stored {
        store_id: store_id(),
        boot_id: Some("boot-a".to_owned()),
        rows: Some(Rows {
            counters: counters(17),
            leases,
            cordons: cordons(),
        }),
        policy: Some(policy(4)),
        settings: settings(),
        usage_counted: None,
    };
    assert_eq!(store.load().unwrap(), expected);
    assert_eq!(store.events(None, 100).unwrap().events, all_events());
}

fn a_later_row_replaces_an_earlier_one(store: &dyn Store) {
    let leases = all_leases();
    store.commit(&full_batch(&leases)).unwrap();
    let renewed = Lease {
        revision: 18,
        ..lease(2)
    };
    let ended = Lease {
        revision: 19,
        phase: leases[10].phase.clone(),
        ..lease(2)
    };
    let mut batch = Batch::new(counters(19));
    batch.leases = vec![&renewed, &ended];
    batch.boot_id = Some("boot-b".to_owned());
    batch.policy = Some(policy(5));
    batch.settings = Some(live_settings());
    store.commit(&batch).unwrap();

    let stored = store.load().unwrap();
    let rows = stored.rows.unwrap();
    assert_eq!(rows.counters, counters(19));
    assert_eq!(rows.leases.len(), leases.len());
    assert_eq!(rows.leases[1], ended);
    assert_eq!(stored.boot_id.as_deref(), Some("boot-b"));
    assert_eq!(stored.policy, Some(policy(5)));
    assert_eq!(stored.settings, live_settings());
}

fn what_a_batch_does_not_name_stays(store: &dyn Store) {
    let leases = all_leases();
    store.commit(&full_batch(&leases)).unwrap();
    let before = store.load().unwrap();
    store.commit(&Batch::new(counters(18))).unwrap();
    let expected = Stored {
        rows: Some(Rows {
            counters: counters(18),
            ..before.rows.unwrap()
        }),
        ..before
    };
    assert_eq!(store.load().unwrap(), expected);
    assert_eq!(store.events(None, 100).unwrap().events, all_events());
}

fn pruned_leases_are_gone(store: &dyn Store) {
    let leases = [lease(1), lease(2), lease(3)];
    let mut batch = Batch::new(counters(1));
    batch.leases = leases.iter().collect();
    store.commit(&batch).unwrap();

    let mut batch = Batch::new(counters(2));
    batch.leases = vec![&leases[2]];
    batch.pruned = [1, 3, 99].map(LeaseId::from_bits).into();
    store.commit(&batch).unwrap();
    assert_eq!(store.load().unwrap().rows.unwrap().leases, [lease(2)]);
}

fn cordons_are_set_and_lifted(store: &dyn Store) {
    let device = DeviceKey::local;
    let steps = [
        (
            vec![("a", Some("one")), ("b", Some("two"))],
            vec![("a", "one"), ("b", "two")],
        ),
        (
            vec![("a", None), ("b", Some("three"))],
            vec![("b", "three")],
        ),
        (vec![("c", None)], vec![("b", "three")]),
        (vec![("b", None), ("b", Some("four"))], vec![("b", "four")]),
        (vec![("d", Some("five")), ("d", None), ("b", None)], vec![]),
    ];
    for (revision, (changes, expected)) in (1..).zip(steps) {
        let mut batch = Batch::new(counters(revision));
        batch.cordons = changes
            .into_iter()
            .map(|(id, reason)| (device(id), reason.map(cordon)))
            .collect();
        store.commit(&batch).unwrap();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(id, reason)| (device(id), cordon(reason)))
            .collect();
        assert_eq!(store.load().unwrap().rows.unwrap().cordons, expected);
    }
}

/// Each batch moves the counters, every lease and the policy to one revision.
fn readers_see_whole_batches(store: &dyn Store) {
    const BATCHES: u64 = 100;
    let done = AtomicBool::new(false);
    let write = || {
        for revision in 1..=BATCHES {
            let leases = [1, 2, 3, 4].map(|bits| Lease {
                revision,
                ..lease(bits)
            });
            let mut batch = Batch::new(counters(revision));
            batch.leases = leases.iter().collect();
            batch.policy = Some(policy(revision));
            batch.events = vec![event(revision, 0)];
            store.commit(&batch).unwrap();
        }
        done.store(true, Ordering::Release);
    };
    thread::scope(|scope| {
        scope.spawn(write);
        while !done.load(Ordering::Acquire) {
            let stored = store.load().unwrap();
            let Some(rows) = stored.rows else { continue };
            let revision = rows.counters.revision;
            assert_eq!(rows.leases.len(), 4);
            assert!(rows.leases.iter().all(|lease| lease.revision == revision));
            assert_eq!(stored.policy.unwrap().generation, revision);
        }
    });
    assert_eq!(
        store.load().unwrap().rows.unwrap().counters,
        counters(BATCHES)
    );
}

fn events_come_in_pages(store: &dyn Store) {
    append(store, 1..=3, 500);
    let mut after = None;
    let mut seen = Vec::new();
    loop {
        let page = store.events(after, 400).unwrap();
        assert!(!page.reset && page.events.len() <= 400);
        let Some(last) = page.events.last() else {
            break;
        };
        after = Some(last.position);
        seen.extend(page.events);
    }
    let expected: Vec<_> = (1..=3)
        .flat_map(|revision| (0..500).map(move |n| event(revision, n)))
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(store.events(None, 0).unwrap().events, []);
    let longest = store.events(None, usize::MAX).unwrap().events;
    assert_eq!(longest.len(), EVENTS_PER_PAGE_MAX);
}

fn a_reader_resumes_where_it_was(store: &dyn Store) {
    append(store, 2..=2, 2);
    append(store, 5..=5, 1);
    store.commit(&Batch::new(counters(9))).unwrap();
    let all = [position(2, 0), position(2, 1), position(5, 0)];
    let cases: [(EventPosition, &[EventPosition]); 8] = [
        (position(0, 0), &all),
        (position(1, 7), &all),
        (position(2, 0), &all[1..]),
        (position(2, 1), &all[2..]),
        (position(2, 9), &all[2..]),
        (position(5, 0), &[]),
        (position(7, 0), &[]),
        (position(9, 3), &[]),
    ];
    for (after, expected) in cases {
        assert_eq!(
            positions(store, after),
            (false, expected.to_vec()),
            "{after:?}"
        );
    }
}

fn a_position_of_another_history_resets(store: &dyn Store) {
    append(store, 1..=2, 1);
    let all = vec![position(1, 0), position(2, 0)];
    assert_eq!(positions(store, position(3, 0)), (true, all));
}

fn old_events_are_trimmed(store: &dyn Store) {
    const PER_BATCH: u32 = 10_000;
    let full = (EVENTS_KEPT / PER_BATCH as usize) as u64;
    append(store, 1..=full, PER_BATCH);
    append(store, full + 1..=full + 1, EVENTS_PER_TRIM as u32 - 1);
    assert_eq!(oldest(store), position(1, 0));
    assert!(!positions(store, position(0, 0)).0);

    append(store, full + 2..=full + 2, 1);
    let trimmed = EVENTS_PER_TRIM as u32;
    assert_eq!(oldest(store), position(1, trimmed));
    for (after, reset, first) in [
        (position(0, 0), true, position(1, trimmed)),
        (position(1, trimmed - 2), true, position(1, trimmed)),
        (position(1, trimmed - 1), false, position(1, trimmed)),
        (position(1, trimmed), false, position(1, trimmed + 1)),
        (position(full + 1, 0), false, position(full + 1, 1)),
    ] {
        let page = store.events(Some(after), 1).unwrap();
        assert_eq!(
            (page.reset, page.events[0].position),
            (reset, first),
            "{after:?}"
        );
    }
    assert_eq!(count(store), EVENTS_KEPT);
}

fn usage_adds_up(store: &dyn Store) {
    assert_eq!(usage_from(store, 0), []);
    let all = all_usage();
    use_up(store, all.clone());
    use_up(
        store,
        vec![usage(491_000, "ann", 5), usage(491_000, "ann", 6)],
    );
    let mut expected = all;
    expected[0] = usage(491_000, "ann", 3_600_011);
    assert_eq!(usage_from(store, 0), expected);
    assert_eq!(usage_from(store, 491_001), expected[2..]);
    assert_eq!(usage_from(store, 491_002), []);

    let full = Usage {
        held_ms: u64::MAX,
        byte_ms: u128::MAX,
    };
    expected[0].usage = full;
    use_up(store, vec![expected[0].clone()]);
    assert_eq!(usage_from(store, 0), expected, "a sum does not begin anew");
}

/// What there is no row for is counted all the same, under another name.
fn an_hour_has_so_many_rows(store: &dyn Store) {
    let most = USAGE_ROWS_PER_HOUR_MAX as u64;
    let user = |n: u64| usage(7, &format!("user-{n:04}"), 10);
    use_up(store, (0..most + 2).map(user).collect());
    use_up(store, vec![user(most + 2), user(3), usage(8, "late", 1)]);

    let mut expected: Vec<_> = (0..most).map(user).collect();
    expected[3].usage += user(3).usage;
    let mut other = usage(7, USAGE_OTHER, 30);
    other.key.tenant = Some(USAGE_OTHER.to_owned());
    expected.insert(0, other);
    expected.push(usage(8, "late", 1));
    assert_eq!(usage_from(store, 0), expected);
}

/// One user with many tenants and devices does not take the rows of others.
fn a_user_has_so_many_rows_of_an_hour(store: &dyn Store) {
    let most = USAGE_ROWS_PER_USER_MAX as u64;
    let on = |n: u64| {
        let mut row = usage(7, "greedy", 10);
        row.key.tenant = Some(format!("tenant-{n:04}"));
        row
    };
    use_up(store, (0..most / 2).map(on).collect());
    use_up(store, (most / 2..1000).map(on).collect());
    // A name that begins like the other one is another one.
    use_up(store, vec![usage(7, "greedy2", 1), usage(7, "ann", 1)]);

    let rows = usage_from(store, 0);
    let held = |user: &str| {
        let of_user = rows.iter().filter(|row| row.key.user == user);
        of_user.map(|row| row.usage.held_ms).collect::<Vec<_>>()
    };
    assert_eq!(held("greedy"), vec![10; USAGE_ROWS_PER_USER_MAX]);
    assert_eq!(held(USAGE_OTHER), [(1000 - most) * 10]);
    assert_eq!((held("greedy2"), held("ann")), (vec![1], vec![1]));
}

fn what_is_counted_is_remembered(store: &dyn Store) {
    let at = At {
        boot: BootMs(5),
        wall: WallMs(7),
    };
    let mut batch = Batch::new(counters(1));
    batch.usage_counted = Some(at);
    store.commit(&batch).unwrap();
    store.commit(&Batch::new(counters(2))).unwrap();
    assert_eq!(store.load().unwrap().usage_counted, Some(at));
}

fn old_usage_is_removed(store: &dyn Store) {
    let hours = |from: u64, to: u64| -> Vec<_> { (from..to).map(|h| usage(h, "ann", 1)).collect() };
    use_up(store, hours(100, 100 + USAGE_KEPT_HOURS));
    assert_eq!(usage_from(store, 0).len() as u64, USAGE_KEPT_HOURS);
    use_up(store, hours(100 + USAGE_KEPT_HOURS, 102 + USAGE_KEPT_HOURS));
    assert_eq!(usage_from(store, 0), hours(102, 102 + USAGE_KEPT_HOURS));

    // What is too old when it comes is counted and goes at once.
    use_up(
        store,
        vec![usage(50, "ann", 1), usage(101 + USAGE_KEPT_HOURS, "bo", 1)],
    );
    assert_eq!(usage_from(store, 0)[0], usage(102, "ann", 1));

    // After a long rest it takes more than one commit.
    let users = |hour: u64| (0..500).map(move |n| usage(hour, &format!("user-{n:03}"), 1));
    use_up(store, (5000..5010).flat_map(users).collect());
    let rows = usage_from(store, 0).len();
    use_up(store, vec![usage(9000, "ann", 1)]);
    assert_eq!(usage_from(store, 0).len(), rows + 1 - USAGE_ROWS_PER_TRIM);
    use_up(store, vec![usage(9000, "ann", 1)]);
    assert_eq!(usage_from(store, 0), [usage(9000, "ann", 2)]);
}

fn use_up(store: &dyn Store, usage: Vec<UsageRow>) {
    let mut batch = Batch::new(counters(1));
    batch.usage = usage;
    store.commit(&batch).unwrap();
}

fn usage_from(store: &dyn Store, hour: u64) -> Vec<UsageRow> {
    let mut rows = Vec::new();
    store.usage(Hour(hour), &mut |row| rows.push(row)).unwrap();
    rows
}

/// Commits `per_batch` events for each revision.
fn append(store: &dyn Store, revisions: std::ops::RangeInclusive<u64>, per_batch: u32) {
    for revision in revisions {
        let mut batch = Batch::new(counters(revision));
        batch.events = (0..per_batch).map(|n| event(revision, n)).collect();
        store.commit(&batch).unwrap();
    }
}

fn positions(store: &dyn Store, after: EventPosition) -> (bool, Vec<EventPosition>) {
    let page = store.events(Some(after), 10).unwrap();
    let positions = page.events.iter().map(|event| event.position);
    (page.reset, positions.collect())
}

fn oldest(store: &dyn Store) -> EventPosition {
    store.events(None, 1).unwrap().events[0].position
}

fn count(store: &dyn Store) -> usize {
    let mut after = None;
    let mut count = 0;
    loop {
        let page = store.events(after, EVENTS_PER_PAGE_MAX).unwrap();
        let Some(last) = page.events.last() else {
            return count;
        };
        after = Some(last.position);
        count += page.events.len();
    }
}
