//! A store that ends with the process, for `--ephemeral` and for tests.

use std::collections::BTreeMap;
use std::ops::Bound;

use gpu_lease::{At, Cordon, Counters, DeviceKey, Lease, LeaseId, Rows};
use parking_lot::RwLock;

use crate::event::{self, EVENTS_PER_PAGE_MAX, EventPage, EventPosition, StoreId, StoredEvent};
use crate::store::{Batch, CommitError, LastGood, ReadError, Settings, Store, Stored};
use crate::usage::{
    self, Hour, USAGE_ROWS_PER_HOUR_MAX, USAGE_ROWS_PER_TRIM, USAGE_ROWS_PER_USER_MAX, Usage,
    UsageKey, UsageRow,
};

/// Rows in memory.
#[derive(Debug)]
pub struct MemoryStore {
    store_id: StoreId,
    tables: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    boot_id: Option<String>,
    counters: Option<Counters>,
    leases: BTreeMap<LeaseId, Lease>,
    cordons: BTreeMap<DeviceKey, Cordon>,
    policy: Option<LastGood>,
    settings: Settings,
    events: BTreeMap<EventPosition, StoredEvent>,
    trimmed: Option<EventPosition>,
    usage: BTreeMap<Hour, BTreeMap<UsageKey, Usage>>,
    usage_counted: Option<At>,
}

impl MemoryStore {
    /// An empty store of this name.
    pub fn new(store_id: StoreId) -> Self {
        Self {
            store_id,
            tables: RwLock::default(),
        }
    }
}

impl Store for MemoryStore {
    fn load(&self) -> Result<Stored, ReadError> {
        let tables = self.tables.read();
        Ok(Stored {
            store_id: self.store_id,
            boot_id: tables.boot_id.clone(),
            rows: tables.counters.map(|counters| tables.rows(counters)),
            policy: tables.policy.clone(),
            settings: tables.settings.clone(),
            usage_counted: tables.usage_counted,
        })
    }

    fn commit(&self, batch: &Batch<'_>) -> Result<(), CommitError> {
        self.tables.write().apply(batch.clone());
        Ok(())
    }

    fn events(&self, after: Option<EventPosition>, limit: usize) -> Result<EventPage, ReadError> {
        Ok(self.tables.read().page(after, limit))
    }

    fn usage(&self, from: Hour, each: &mut dyn FnMut(UsageRow)) -> Result<(), ReadError> {
        // Not under the lock: nobody knows what `each` does.
        let rows = self.tables.read().usage_from(from);
        rows.into_iter().for_each(each);
        Ok(())
    }
}

impl Tables {
    fn rows(&self, counters: Counters) -> Rows {
        let cordons = self.cordons.iter();
        Rows {
            counters,
            leases: self.leases.values().cloned().collect(),
            cordons: cordons
                .map(|(device, cordon)| (device.clone(), cordon.clone()))
                .collect(),
        }
    }

    fn apply(&mut self, batch: Batch<'_>) {
        self.counters = Some(batch.counters);
        self.boot_id = batch.boot_id.or(self.boot_id.take());
        self.policy = batch.policy.or(self.policy.take());
        self.usage_counted = batch.usage_counted.or(self.usage_counted);
        if let Some(settings) = batch.settings {
            self.settings = settings;
        }
        for lease in batch.leases {
            self.leases.insert(lease.id, lease.clone());
        }
        for id in batch.pruned {
            self.leases.remove(&id);
        }
        for (device, cordon) in batch.cordons {
            match cordon {
                Some(cordon) => self.cordons.insert(device, cordon),
                None => self.cordons.remove(&device),
            };
        }
        let events = batch.events.into_iter();
        self.events
            .extend(events.map(|event| (event.position, event)));
        self.trim();
        self.add_usage(&batch.usage);
    }

    fn add_usage(&mut self, rows: &[UsageRow]) {
        for row in rows {
            let hour = self.usage.entry(row.key.hour).or_default();
            let of_user = || hour.keys().filter(|key| key.user == row.key.user).count();
            let has_room =
                || hour.len() < USAGE_ROWS_PER_HOUR_MAX && of_user() < USAGE_ROWS_PER_USER_MAX;
            let key = match hour.contains_key(&row.key) || has_room() {
                true => row.key.clone(),
                false => row.key.other(),
            };
            *hour.entry(key).or_default() += row.usage;
        }
        if let Some(newest) = usage::newest(rows) {
            self.trim_usage(newest.oldest_kept());
        }
    }

    fn trim_usage(&mut self, oldest_kept: Hour) {
        let mut left = USAGE_ROWS_PER_TRIM;
        while let Some(mut oldest) = self.usage.first_entry()
            && *oldest.key() < oldest_kept
        {
            while left > 0 && oldest.get_mut().pop_first().is_some() {
                left -= 1;
            }
            if !oldest.get().is_empty() {
                return;
            }
            oldest.remove();
        }
    }

    fn usage_from(&self, from: Hour) -> Vec<UsageRow> {
        let rows = self.usage.range(from..).flat_map(|(_, rows)| rows);
        rows.map(|(key, &usage)| UsageRow {
            key: key.clone(),
            usage,
        })
        .collect()
    }

    fn trim(&mut self) {
        for _ in 0..event::excess(self.events.len()) {
            let oldest = self.events.pop_first();
            self.trimmed = oldest.map(|(position, _)| position).or(self.trimmed);
        }
    }

    fn page(&self, after: Option<EventPosition>, limit: usize) -> EventPage {
        let last_revision = self.counters.map_or(0, |counters| counters.revision);
        let reset = after.is_some_and(|after| event::is_reset(after, self.trimmed, last_revision));
        let start = match after {
            Some(after) if !reset => Bound::Excluded(after),
            _ => Bound::Unbounded,
        };
        let events = self.events.range((start, Bound::Unbounded));
        EventPage {
            events: events
                .take(limit.min(EVENTS_PER_PAGE_MAX))
                .map(|(_, event)| event.clone())
                .collect(),
            reset,
        }
    }
}
