//! Questions to the history: what they find, and how they go on.

use gpu_lease::{DeviceId, DeviceKey, LeaseId, WallMs};
use gpu_store::{
    Batch, EVENTS_PER_LOOK_MAX, EventFilter, EventPosition, FoundEvents, MemoryStore, Store,
    StoredEvent,
};

use crate::examples::{counters, event, position, store_id};

#[test]
fn each_question_finds_what_it_asks_for() {
    let of_ann = StoredEvent {
        user: Some("ann".to_owned()),
        also_on: vec![DeviceKey::local("GPU-2")],
        ..event(1, 0)
    };
    let mut by_ann = event(2, 0);
    by_ann.event.lease = None;
    by_ann.event.device = Some(DeviceKey::local("GPU-2"));
    let mut of_bo = event(3, 0);
    of_bo.user = Some("bo".to_owned());
    of_bo.event.by = None;
    let store = store_of(vec![of_ann, by_ann, of_bo]);

    let start = event(0, 0).wall.0;
    let device = |id| EventFilter {
        device: Some(DeviceId::new(id)),
        ..EventFilter::default()
    };
    let user = |name: &str| EventFilter {
        user: Some(name.to_owned()),
        ..EventFilter::default()
    };
    let cases: [(EventFilter, &[u64]); 8] = [
        (EventFilter::default(), &[1, 2, 3]),
        (device("GPU-1"), &[1, 3]),
        (device("GPU-2"), &[1, 2]),
        (device("GPU-"), &[]),
        (user("ann"), &[1, 2]),
        (user("bo"), &[3]),
        (
            EventFilter {
                lease: Some(LeaseId::from_bits(3)),
                ..EventFilter::default()
            },
            &[3],
        ),
        (
            EventFilter {
                since: Some(WallMs(start + 2)),
                ..user("ann")
            },
            &[2],
        ),
    ];
    for (filter, expected) in cases {
        let found = find(&store, &filter, None, 10);
        let revisions: Vec<_> = found.events.iter().map(|e| e.position.revision).collect();
        assert_eq!(revisions, expected, "{filter:?}");
        assert_eq!((found.next, found.reset), (None, false), "{filter:?}");
    }
}

#[test]
fn pages_go_on_where_the_last_one_ended() {
    let store = store_of((1..=5).map(|revision| event(revision, 0)).collect());
    let all = EventFilter::default();
    let first = find(&store, &all, None, 2);
    assert_eq!((first.events.len(), first.next), (2, Some(position(2, 0))));
    let second = find(&store, &all, first.next, 3);
    assert_eq!((second.events.len(), second.next), (3, None));
    assert_eq!(
        find(&store, &all, Some(position(5, 0)), 3),
        FoundEvents::default()
    );

    let lost = find(&store, &all, Some(position(9, 0)), 9);
    assert!(
        lost.reset && lost.events.len() == 5,
        "a place of another history"
    );
}

/// One answer looks at so much and no more, and says where to go on.
#[test]
fn a_rare_answer_takes_more_than_one_page() {
    let many = EVENTS_PER_LOOK_MAX as u32 + 1;
    let mut events: Vec<_> = (0..many).map(|n| event(1, n)).collect();
    events[many as usize - 1].user = Some("rare".to_owned());
    let store = store_of(events);
    let rare = EventFilter {
        user: Some("rare".to_owned()),
        ..EventFilter::default()
    };
    let first = find(&store, &rare, None, 10);
    assert_eq!(first.next, Some(position(1, many - 2)));
    assert_eq!(first.events, []);
    let second = find(&store, &rare, first.next, 10);
    assert_eq!((second.events.len(), second.next), (1, None));
}

fn store_of(events: Vec<StoredEvent>) -> MemoryStore {
    let store = MemoryStore::new(store_id());
    let batch = Batch {
        events,
        ..Batch::new(counters(5))
    };
    store.commit(&batch).unwrap();
    store
}

fn find(
    store: &MemoryStore,
    filter: &EventFilter,
    after: Option<EventPosition>,
    limit: usize,
) -> FoundEvents {
    let read = |after, limit| store.events(after, limit);
    filter.find(read, after, limit).unwrap()
}
