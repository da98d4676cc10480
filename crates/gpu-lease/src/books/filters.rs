//! Which devices pass the filters of the requests that wait: an index by the filter's text, so that no
//! expression is evaluated while the queue is served.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;

use super::Books;
use crate::capacity::DeviceState;
use crate::ids::DeviceKey;
use crate::request::Request;

/// More filters than two for each waiter and these are looked through for some that nobody uses.
const SPARE_MAX: usize = 64;

/// The devices that pass, by filter.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters(BTreeMap<String, BTreeSet<DeviceKey>>);

impl Books {
    /// Looks at the devices through the filters of `request`, unless that was done before.
    pub(super) fn learn_filters(&mut self, request: &Request) {
        if self.is_recovering() {
            return;
        }
        for filter in &request.select.filters {
            if !self.filters.0.contains_key(filter) {
                self.learn(filter.clone());
            }
        }
        if self.filters.0.len() > 2 * self.queue.len() + SPARE_MAX {
            self.forget_filters(request);
        }
    }

    fn learn(&mut self, filter: String) {
        let passing = self
            .devices()
            .filter(|state| self.evaluates(&filter, state));
        let keys = passing.map(|state| state.device.key.clone()).collect();
        self.filters.0.insert(filter, keys);
    }

    /// Forgets the filters that neither a waiter nor `request` has.
    fn forget_filters(&mut self, request: &Request) {
        let waiters = self
            .queue
            .values()
            .map(|id| &self.leases[id].request.select);
        let selects = waiters.chain([&request.select]);
        let used: BTreeSet<&String> = selects.flat_map(|select| &select.filters).collect();
        self.filters.0.retain(|filter, _| used.contains(filter));
    }

    /// Looks through every filter anew, after devices or the policy changed.
    pub(super) fn refilter(&mut self) {
        self.filters.0.clear();
        if self.is_recovering() {
            return;
        }
        let waiters = self.queue.values().map(|id| &self.leases[id].request);
        let filters = waiters.flat_map(|request| request.select.filters.iter().cloned());
        for filter in filters.collect::<BTreeSet<_>>() {
            self.learn(filter);
        }
    }

    /// Whether `request` may be placed on a device at all, capacity apart.
    pub(super) fn may_serve(&self, state: &DeviceState, request: &Request) -> bool {
        let select = &request.select;
        let mut filters = select.filters.iter();
        state.device.leasable
            && select.names(&state.device.key.id)
            && filters.all(|filter| self.passes(filter, state))
    }

    fn passes(&self, filter: &String, state: &DeviceState) -> bool {
        match self.filters.0.get(filter) {
            Some(passing) => passing.contains(&state.device.key),
            None => self.evaluates(filter, state),
        }
    }

    fn evaluates(&self, filter: &str, state: &DeviceState) -> bool {
        let labels = &state.settings.labels;
        self.policy.rules.selects(filter, &state.device, labels)
    }
}
