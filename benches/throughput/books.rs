//! The books alone: no thread, no store, no clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_lease::{
    Answer, At, Books, BootMs, Command, Fence, LeaseId, Policy, QueueSettings, Request, WallMs,
};
use gpu_manager_benches::{Case, Sample, compare};

use crate::setting::{CROWD, FULL, ROOMY, devices, patient, request};

const TIME: Duration = Duration::from_millis(300);
/// Ended leases are forgotten now and then, as the loop does.
const PAIRS_PER_SWEEP: usize = 1000;

pub(crate) fn bench() {
    let case = |name: &str, here: usize, waiting: usize| {
        let mut day = Day::with(here, waiting);
        Case::new(name, move |time| day.pairs(time))
    };
    compare(
        "books alone",
        TIME,
        vec![
            case("no other lease", 0, 0),
            case("1,000 other leases on the device", CROWD, 0),
            case("1,000 waiters for another, full device", 0, CROWD),
        ],
    );
}

/// Books in use.
struct Day {
    books: Books,
    last_id: u64,
}

impl Day {
    fn with(here: usize, waiting: usize) -> Self {
        let built_in = Policy::built_in();
        let policy = Policy {
            queue: QueueSettings {
                max_waiting: 100_000,
                ..built_in.queue.clone()
            },
            ..built_in
        };
        let mut day = Self {
            books: Books::new(Arc::new(policy), Fence(1)),
            last_id: 0,
        };
        day.books.apply(NOW, Command::Inventory(devices()));
        for _ in 0..here {
            day.acquire(request(ROOMY));
        }
        let crowd = if waiting > 0 { CROWD + waiting } else { 0 };
        for _ in 0..crowd {
            day.acquire(patient(FULL));
        }
        day
    }

    fn pairs(&mut self, time: Duration) -> Sample {
        let began = Instant::now();
        let mut pairs = Vec::new();
        while began.elapsed() < time {
            let pair = Instant::now();
            let id = self.acquire(request(ROOMY));
            self.books.apply(NOW, Command::Release { id });
            pairs.push(pair.elapsed());
            if pairs.len().is_multiple_of(PAIRS_PER_SWEEP) {
                self.books.apply(NOW, Command::Expire);
            }
        }
        Sample {
            took: began.elapsed(),
            pairs,
        }
    }

    fn acquire(&mut self, request: Request) -> LeaseId {
        self.last_id += 1;
        let id = LeaseId::from_bits(self.last_id);
        let outcome = self.books.apply(
            NOW,
            Command::Acquire {
                id,
                request: Box::new(request),
            },
        );
        assert!(
            matches!(outcome.answer, Answer::Acquire(Ok(_))),
            "it is granted or waits"
        );
        id
    }
}

/// A day of no length: what is measured does not depend on it.
const NOW: At = At {
    boot: BootMs(1_000_000),
    wall: WallMs(1_767_225_600_000),
};
