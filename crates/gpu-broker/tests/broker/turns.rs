//! One turn of the loop, by hand: what is in one batch, and in which order it is done.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use gpu_broker::{Config, HostProcesses, Life, StartPolicy, Started};
use gpu_lease::{Command, LeaseId, Ms, Request};
use gpu_store::{MemoryStore, StoreId};

use crate::world::{ManualClock, device, files, queued, request};

/// A broker with one card of 24 GiB that is turned by hand.
fn life(clock: &Arc<ManualClock>) -> Started<Life> {
    let config = Config {
        store: Arc::new(MemoryStore::new(StoreId::from_bits(7))),
        clock: clock.clone(),
        processes: Arc::new(HostProcesses::of_boot("a boot".to_owned())),
        boot_id: "a boot".to_owned(),
        introduction: "gpu-manager".to_owned(),
        policy: StartPolicy {
            files: Ok(files("")),
            overrides: Vec::new(),
            dev: false,
        },
    };
    let (mut started, _effects) = Life::begin(config).unwrap();
    let found = Command::Inventory(vec![device("gpu-0", 24)]);
    started.broker.tell(found).unwrap();
    started.broker.turn(Duration::ZERO).unwrap();
    started
}

/// What is answered by the next turn.
fn answered<T>(life: &mut Life, asked: impl Future<Output = T>) -> T {
    let mut asked = pin!(asked);
    let mut poll = || asked.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll().is_pending(), "nothing is answered before a turn");
    life.turn(Duration::ZERO).unwrap();
    match poll() {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("a turn answers everything"),
    }
}

#[test]
fn a_heartbeat_in_the_queue_is_heard_before_anything_else_of_its_batch() {
    let clock = Arc::new(ManualClock::default());
    let mut started = life(&clock);
    let life = &mut started.broker;
    let [holder, waiter] = [1, 2].map(LeaseId::from_bits);
    answered(life, started.handle.acquire(holder, request(24))).unwrap();
    let patient = Request {
        ttl: Ms(1_000),
        ..queued(8)
    };
    answered(life, started.handle.acquire(waiter, patient)).unwrap();

    clock.jump(Ms(1_000));
    life.tell(Command::Inventory(vec![device("gpu-0", 24)]))
        .unwrap();
    let renewed = answered(life, started.handle.lease(Command::Renew { id: waiter }));

    assert!(renewed.unwrap().waiting().is_some());
}
