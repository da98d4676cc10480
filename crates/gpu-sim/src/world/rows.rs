//! The store of a world: redb on a disk that can lose its power, watched by somebody who remembers every
//! row that was ever durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpu_lease::{At, Cordon, Counters, DeviceKey, Lease, LeaseId};
use gpu_store::{
    Batch, CommitError, CrashDisk, EventPage, EventPosition, Hour, LastGood, OpenError, ReadError,
    RedbStore, Settings, StorageFault, Store, StoreId, Stored, StoredEvent, UsageRow,
};
use parking_lot::Mutex;

use super::oracle::Oracle;

/// So many of the latest events are compared after a crash.
const TAIL: usize = 32;

/// How the next commit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The process dies before anything is written.
    Before,
    /// The power goes after so many operations of the disk.
    Torn(u64),
    /// The process dies when everything is written, before anybody hears of it.
    After,
}

/// The rows as they must be found again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rows {
    pub(super) boot_id: Option<String>,
    pub(super) counters: Option<Counters>,
    pub(super) leases: BTreeMap<LeaseId, Lease>,
    /// Those that hold something.
    pub(super) occupying: BTreeSet<LeaseId>,
    pub(super) cordons: BTreeMap<DeviceKey, Cordon>,
    pub(super) policy: Option<LastGood>,
    pub(super) settings: Settings,
    usage_counted: Option<At>,
    /// All events, in order.
    pub(super) log: Vec<Arc<StoredEvent>>,
}

impl Rows {
    pub(super) fn apply(&mut self, batch: &Batch<'_>) {
        self.counters = Some(batch.counters);
        self.boot_id = batch.boot_id.clone().or(self.boot_id.take());
        self.policy = batch.policy.clone().or(self.policy.take());
        if let Some(settings) = &batch.settings {
            self.settings = settings.clone();
        }
        for lease in &batch.leases {
            match lease.occupying() {
                Some(_) => self.occupying.insert(lease.id),
                None => self.occupying.remove(&lease.id),
            };
            self.leases.insert(lease.id, (*lease).clone());
        }
        for id in &batch.pruned {
            self.leases.remove(id);
        }
        for (device, cordon) in &batch.cordons {
            match cordon {
                Some(cordon) => drop(self.cordons.insert(device.clone(), cordon.clone())),
                None => drop(self.cordons.remove(device)),
            }
        }
        self.usage_counted = batch.usage_counted.or(self.usage_counted);
        self.log.extend(batch.events.iter().cloned().map(Arc::new));
    }

    fn tail(&self) -> &[Arc<StoredEvent>] {
        &self.log[self.log.len().saturating_sub(TAIL)..]
    }

    /// Whether a store that was opened again holds exactly this.
    fn is_in(&self, stored: &Stored, tail: &[StoredEvent]) -> Result<(), String> {
        let same = |what: &str, same: bool| match same {
            true => Ok(()),
            false => Err(format!("the {what} that were found are others")),
        };
        let rows = stored.rows.as_ref();
        same("counters", rows.map(|rows| rows.counters) == self.counters)?;
        let leases = rows.map_or(&[][..], |rows| &rows.leases);
        same("leases", leases.iter().eq(self.leases.values()))?;
        let cordons = rows.map_or(&[][..], |rows| &rows.cordons);
        let found = cordons.iter().map(|(device, cordon)| (device, cordon));
        same("cordons", found.eq(&self.cordons))?;
        same("boot", stored.boot_id == self.boot_id)?;
        same("policy", stored.policy == self.policy)?;
        same("settings", stored.settings == self.settings)?;
        same(
            "counts of usage",
            stored.usage_counted == self.usage_counted,
        )?;
        let kept = self.tail().iter().map(AsRef::as_ref);
        same("events", tail.iter().eq(kept))
    }
}

/// The store that the broker sees.
pub(super) struct WatchedStore {
    redb: RedbStore,
    watch: Arc<Mutex<Watch>>,
}

/// Who remembers.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) rows: Rows,
    /// The commit that was cut last.
    perhaps: Option<Cut>,
    pub(super) ending: Option<Ending>,
    pub(super) commits: u64,
    pub(super) oracle: Oracle,
}

impl WatchedStore {
    /// Opens what a crash left, and finds everything that was durable.
    pub(super) fn open(disk: CrashDisk, watch: Arc<Mutex<Watch>>) -> Result<Self, String> {
        let opened = RedbStore::open_on(disk, StoreId::from_bits(7));
        let redb = opened.map_err(|error: OpenError| format!("after a crash: {error}"))?;
        watch.lock().find_again(&redb)?;
        Ok(Self { redb, watch })
    }
}

impl Watch {
    /// The cut commit is there as a whole, or not at all.
    fn find_again(&mut self, redb: &RedbStore) -> Result<(), String> {
        let stored = redb.load().map_err(|error| error.to_string())?;
        let perhaps = self.perhaps.take();
        let found = |rows: &Rows| {
            let before = rows.tail().first().map(|event| event.position);
            let page = redb.events(before.map(just_before), TAIL + 1);
            let page = page.map_err(|error| error.to_string())?;
            rows.is_in(&stored, &page.events)
        };
        match (found(&self.rows), perhaps) {
            (Ok(()), _) => {}
            (Err(why), None) => return Err(format!("not what was durable: {why}")),
            (Err(why), Some(cut)) => {
                let mut rows = self.rows.clone();
                rows.apply(&cut.batch());
                let other = found(&rows);
                other.map_err(|other| format!("neither before ({why}) nor after ({other})"))?;
                self.was_written(&cut.batch(), cut.at);
            }
        }
        let mut usage = Vec::new();
        let read = redb.usage(Hour(0), &mut |row| usage.push(row));
        read.map_err(|error| error.to_string())?;
        self.oracle.ledger.is(&usage)
    }

    fn was_written(&mut self, batch: &Batch<'_>, at: At) {
        self.oracle.see(batch, &self.rows, at);
        self.rows.apply(batch);
    }
}

/// A commit that was cut, and may have got through.
#[derive(Debug)]
struct Cut {
    /// When it began.
    at: At,
    leases: Vec<Lease>,
    rest: Batch<'static>,
}

impl Cut {
    fn of(batch: &Batch<'_>, at: At) -> Self {
        let leases = batch.leases.iter().map(|lease| (*lease).clone());
        Self {
            at,
            leases: leases.collect(),
            rest: Batch {
                boot_id: batch.boot_id.clone(),
                pruned: batch.pruned.clone(),
                cordons: batch.cordons.clone(),
                policy: batch.policy.clone(),
                settings: batch.settings.clone(),
                events: batch.events.clone(),
                usage: batch.usage.clone(),
                usage_counted: batch.usage_counted,
                ..Batch::new(batch.counters)
            },
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            leases: self.leases.iter().collect(),
            ..self.rest.clone()
        }
    }
}

fn just_before(position: EventPosition) -> EventPosition {
    match position.n {
        0 => EventPosition {
            revision: position.revision.saturating_sub(1),
            n: u32::MAX,
        },
        n => EventPosition {
            n: n - 1,
            ..position
        },
    }
}

impl Store for WatchedStore {
    fn load(&self) -> Result<Stored, ReadError> {
        self.redb.load()
    }

    fn commit(&self, batch: &Batch<'_>) -> Result<(), CommitError> {
        let mut watch = self.watch.lock();
        let ending = watch.ending.take();
        let at = watch.oracle.now();
        let died = |detail: &str| CommitError {
            cause: StorageFault::Io,
            detail: detail.to_owned(),
        };
        if ending == Some(Ending::Before) {
            return Err(died("the process died before the commit"));
        }
        if let Err(error) = self.redb.commit(batch) {
            // The disk was told when to fail; what got through is found out when it is opened again.
            watch.perhaps = Some(Cut::of(batch, at));
            return Err(error);
        }
        watch.commits += 1;
        watch.was_written(batch, at);
        match ending {
            Some(Ending::After) => Err(died("the process died after the commit")),
            _ => Ok(()),
        }
    }

    fn events(&self, after: Option<EventPosition>, limit: usize) -> Result<EventPage, ReadError> {
        self.redb.events(after, limit)
    }

    fn usage(&self, from: Hour, each: &mut dyn FnMut(UsageRow)) -> Result<(), ReadError> {
        self.redb.usage(from, each)
    }
}
