//! Numbers for Prometheus: what the bridge counts itself, and what is read from the broker when asked.

mod policy;

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::Method;
use gpu_api::{ErrorCode, LeaseState, WatchState};
use gpu_broker::Handle;
use gpu_lease::{DeviceState, Fence};
use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::convert::Reloads;
use crate::routes::lease_counts;
use policy::PolicyReadings;

type Label = (&'static str, String);
type Gauges = Family<[Label; 1], Gauge>;
type Counters = Family<[Label; 1], Counter>;
type Latency = Family<[Label; 2], Histogram, fn() -> Histogram>;

/// From a tenth of a millisecond to over a minute: long waits are requests too.
const LATENCY_BUCKETS_SECS: [f64; 12] = [
    0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 30.0, 120.0,
];

/// A label is no longer than this.
const LABEL_CHARS_MAX: usize = 128;

/// Every metric of a broker.
pub(crate) struct Metrics {
    registry: Registry,
    denials: Counters,
    latency: Latency,
    readings: Mutex<Readings>,
    first_fence: Fence,
}

/// What is set anew each time somebody asks.
struct Readings {
    leases: Gauges,
    waiters: Gauge,
    grants: Counter,
    memory_total: Gauges,
    memory_granted: Gauges,
    memory_observed: Gauges,
    memory_foreign: Gauges,
    policy: PolicyReadings,
}

impl Metrics {
    /// Nothing counted yet: what there is in the broker now is not counted as new.
    pub(crate) fn new(handle: &Handle) -> Self {
        let mut registry = Registry::with_prefix("gpu_manager");
        let readings = Readings::registered(&mut registry, handle);
        let denials = Counters::default();
        registry.register(
            "denials",
            "Requests for leases that were refused, by reason",
            denials.clone(),
        );
        let latency = Latency::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS_SECS));
        registry.register(
            "http_request_seconds",
            "Time to answer, by method and route; waits included",
            latency.clone(),
        );
        Self {
            registry,
            denials,
            latency,
            readings: Mutex::new(readings),
            first_fence: handle.snapshot().counters.next_fence,
        }
    }

    /// A request for a lease was refused.
    pub(crate) fn denied(&self, code: ErrorCode) {
        self.denials
            .get_or_create(&[("reason", code.to_string())])
            .inc();
    }

    /// A request was answered.
    pub(crate) fn answered(&self, method: &Method, route: &str, took: Duration) {
        let labels = [
            ("method", method_label(method).to_owned()),
            ("route", route.to_owned()),
        ];
        self.latency
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Everything as text. `set_at_start` settings stand above the policy files beside those of the API.
    pub(crate) fn text(
        &self,
        handle: &Handle,
        reloads: &Reloads<'_>,
        watch: Option<&WatchState>,
        set_at_start: usize,
    ) -> String {
        let mut readings = self.readings.lock();
        readings.take(handle, self.first_fence);
        readings.policy.take(handle, reloads, watch, set_at_start);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }
}

impl Readings {
    fn registered(registry: &mut Registry, handle: &Handle) -> Self {
        let readings = Self {
            leases: Gauges::default(),
            waiters: Gauge::default(),
            grants: Counter::default(),
            memory_total: Gauges::default(),
            memory_granted: Gauges::default(),
            memory_observed: Gauges::default(),
            memory_foreign: Gauges::default(),
            policy: PolicyReadings::registered(registry, handle),
        };
        let r = &readings;
        registry.register(
            "leases",
            "Leases that are known, by state",
            r.leases.clone(),
        );
        registry.register(
            "waiters",
            "Requests that wait for a grant",
            r.waiters.clone(),
        );
        registry.register(
            "grants",
            "Grants since the start of the broker",
            r.grants.clone(),
        );
        for (name, help, gauges) in [
            (
                "device_memory_total_bytes",
                "Memory of a device",
                &r.memory_total,
            ),
            (
                "device_memory_granted_bytes",
                "Memory granted to leases",
                &r.memory_granted,
            ),
            (
                "device_memory_observed_bytes",
                "Memory in use at the last reading",
                &r.memory_observed,
            ),
            (
                "device_memory_foreign_bytes",
                "Memory in use by processes without a lease",
                &r.memory_foreign,
            ),
        ] {
            registry.register(name, help, gauges.clone());
        }
        readings
    }

    fn take(&mut self, handle: &Handle, first_fence: Fence) {
        let snapshot = handle.snapshot();
        for (state, count) in by_state(handle) {
            set(&self.leases, "state", state, count);
        }
        self.waiters.set(gauge_value(snapshot.waiting.len() as u64));
        let granted = snapshot.counters.next_fence.0.saturating_sub(first_fence.0);
        self.grants
            .inc_by(granted.saturating_sub(self.grants.get()));
        self.take_devices(&snapshot.devices);
    }

    fn take_devices(&self, devices: &[DeviceState]) {
        for gauges in [
            &self.memory_total,
            &self.memory_granted,
            &self.memory_observed,
            &self.memory_foreign,
        ] {
            // A device that is gone leaves no line behind.
            gauges.clear();
        }
        for state in devices {
            let id = state.device.key.id.as_str();
            set(&self.memory_total, "device", id, state.device.memory_total);
            set(&self.memory_granted, "device", id, state.usage.granted);
            set(&self.memory_foreign, "device", id, state.usage.foreign);
            if let Some(reading) = &state.reading {
                set(&self.memory_observed, "device", id, reading.memory_used);
            }
        }
    }
}

fn by_state(handle: &Handle) -> BTreeMap<&'static str, u64> {
    let counts = lease_counts(handle);
    let state = |state: LeaseState| match state {
        LeaseState::Waiting => ("waiting", counts.waiting),
        LeaseState::Active => ("active", counts.active),
        LeaseState::Draining => ("draining", counts.draining),
        LeaseState::Reclaiming => ("reclaiming", counts.reclaiming),
        LeaseState::Ended => ("ended", counts.ended),
    };
    let states = [
        LeaseState::Waiting,
        LeaseState::Active,
        LeaseState::Draining,
        LeaseState::Reclaiming,
        LeaseState::Ended,
    ];
    states.into_iter().map(state).collect()
}

fn set(gauges: &Gauges, label: &'static str, value: &str, number: u64) {
    gauges
        .get_or_create(&[(label, plain(value))])
        .set(gauge_value(number));
}

/// `text` as a label: the encoder writes labels as they are.
fn plain(text: &str) -> String {
    let plain = |c: char| !c.is_control() && !matches!(c, '"' | '\\');
    let chars = text.chars().filter(|&c| plain(c));
    chars.take(LABEL_CHARS_MAX).collect()
}

fn gauge_value(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A method as a label; what clients make up is one label.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
