//! Numbers about the policy: reloads, what they do to leases, the watch, rules and tenants.
//!
//! The number of series does not grow with reloads: what a reload replaces, its label replaces.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use gpu_api::WatchState;
use gpu_broker::{Breaker, Handle, ReloadState};
use gpu_lease::{EndReason, LeaseId, WallMs};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::{Gauges, gauge_value, plain, set};
use crate::convert::{Reloads, counts};

/// Rules whose errors are shown, tenants that are shown: those after them have no line of their own.
const SERIES_MAX: usize = 200;
/// Leases that are looked at in one go.
const PAGE_LEASES_MAX: usize = 4096;
/// From half a millisecond to half a minute.
const RELOAD_BUCKETS_SECS: [f64; 10] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 5.0, 30.0,
];

type Seconds = Gauge<f64, AtomicU64>;
type Attempts = Family<[(&'static str, &'static str); 2], Counter>;

/// What is set anew each time somebody asks.
pub(super) struct PolicyReadings {
    attempts: Attempts,
    last_ok: Gauge,
    last_success: Seconds,
    took: Histogram,
    /// The reloads whose time is in the histogram, as far as they are remembered.
    timed: BTreeSet<u64>,
    generation: Gauge,
    info: Gauges,
    differs: Gauge,
    draining: Gauge,
    ended: Counter,
    /// The leases that are counted as ended by a policy, as far as they are known.
    counted: BTreeSet<LeaseId>,
    ignored: Counter,
    backend: Gauges,
    breaker: Gauge,
    overrides: Gauge,
    rule_errors: Gauges,
    tenant_memory: Gauges,
    tenant_leases: Gauges,
    tenant_used: Gauges,
}

impl PolicyReadings {
    pub(super) fn registered(registry: &mut Registry, handle: &Handle) -> Self {
        let readings = Self {
            attempts: Attempts::default(),
            last_ok: Gauge::default(),
            last_success: Seconds::default(),
            took: Histogram::new(RELOAD_BUCKETS_SECS),
            timed: BTreeSet::new(),
            generation: Gauge::default(),
            info: Gauges::default(),
            differs: Gauge::default(),
            draining: Gauge::default(),
            ended: Counter::default(),
            counted: ended_by_policy(handle),
            ignored: Counter::default(),
            backend: Gauges::default(),
            breaker: Gauge::default(),
            overrides: Gauge::default(),
            rule_errors: Gauges::default(),
            tenant_memory: Gauges::default(),
            tenant_leases: Gauges::default(),
            tenant_used: Gauges::default(),
        };
        readings.register_reloads(registry);
        readings.register_policy(registry);
        readings
    }

    fn register_reloads(&self, registry: &mut Registry) {
        registry.register(
            "reloads",
            "Reloads of the policy since the start, by what asked for them and by result",
            self.attempts.clone(),
        );
        registry.register(
            "reload_last_ok",
            "Whether the last reload was applied or found nothing to do",
            self.last_ok.clone(),
        );
        registry.register_with_unit(
            "reload_last_success_timestamp",
            "When a reload was last applied or found nothing to do, since 1970",
            Unit::Seconds,
            self.last_success.clone(),
        );
        registry.register_with_unit(
            "reload",
            "Time that reloads took, from the reading of the files on",
            Unit::Seconds,
            self.took.clone(),
        );
        registry.register(
            "reload_breaker",
            "0: saved files are applied, 1: the next one is on trial, 2: they rest",
            self.breaker.clone(),
        );
        registry.register(
            "watch_ignored_events",
            "Events of the file system that can mean no change, and saves of the same content",
            self.ignored.clone(),
        );
        registry.register(
            "watch_backend_info",
            "What tells of changes of the policy files",
            self.backend.clone(),
        );
    }

    fn register_policy(&self, registry: &mut Registry) {
        for (name, help, gauge) in [
            (
                "policy_generation",
                "The generation of the policy in force",
                &self.generation,
            ),
            (
                "policy_on_disk_differs",
                "Whether the files on disk are something else than the policy in force",
                &self.differs,
            ),
            (
                "policy_draining_leases",
                "Held leases that a policy asked to go",
                &self.draining,
            ),
            (
                "policy_overrides",
                "Settings above the policy files",
                &self.overrides,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "policy_ended_leases",
            "Leases that a policy ended since the start of the broker",
            self.ended.clone(),
        );
        for (name, help, gauges) in [
            ("policy_info", "The policy in force", &self.info),
            (
                "policy_rule_errors",
                "Errors of rules of the policy in force",
                &self.rule_errors,
            ),
            (
                "tenant_held_memory_bytes",
                "Memory granted to a tenant, its users together",
                &self.tenant_memory,
            ),
            (
                "tenant_held_leases",
                "Leases that a tenant holds, its users together",
                &self.tenant_leases,
            ),
            (
                "tenant_used_byte_seconds",
                "What a tenant had of late, its users together; what is a half-life ago counts half",
                &self.tenant_used,
            ),
        ] {
            registry.register(name, help, gauges.clone());
        }
    }

    pub(super) fn take(
        &mut self,
        handle: &Handle,
        reloads: &Reloads<'_>,
        watch: Option<&WatchState>,
        set_at_start: usize,
    ) {
        self.take_reloads(&reloads.state);
        self.take_policy(reloads);
        self.take_tenants(reloads);
        self.take_watch(watch);
        let overrides = reloads.state.overrides.len() + set_at_start;
        self.overrides.set(gauge_value(overrides as u64));
        let ended = ended_by_policy(handle);
        self.ended
            .inc_by(ended.difference(&self.counted).count() as u64);
        self.counted = ended;
    }

    fn take_reloads(&mut self, state: &ReloadState) {
        for count in counts(state) {
            let labels = [
                ("trigger", count.trigger.as_str()),
                ("result", count.outcome.as_str()),
            ];
            rise_to(&self.attempts.get_or_create(&labels), count.count);
        }
        let newest = state.history.front();
        let ok = newest.is_none_or(|result| result.outcome.is_good());
        self.last_ok.set(i64::from(ok));
        self.last_success
            .set(state.last_success.map_or(0.0, seconds));
        let remembered = state.history.iter();
        for result in remembered.filter(|result| !self.timed.contains(&result.id)) {
            let phases = &result.phases;
            let parts = [phases.read, Some(phases.compile), Some(phases.plan)];
            let before = parts.into_iter().flatten().sum::<std::time::Duration>();
            self.took.observe((before + phases.apply).as_secs_f64());
        }
        self.timed = state.history.iter().map(|result| result.id).collect();
        self.breaker.set(match state.breaker {
            Breaker::Closed => 0,
            Breaker::HalfOpen => 1,
            Breaker::Open { .. } => 2,
        });
    }

    fn take_policy(&self, reloads: &Reloads<'_>) {
        let snapshot = &reloads.scene.snapshot;
        self.generation
            .set(gauge_value(snapshot.counters.generation));
        self.info.clear();
        set(&self.info, "hash", &snapshot.policy.source.hash, 1);
        self.differs.set(i64::from(reloads.differs()));
        self.draining
            .set(gauge_value(reloads.draining().len() as u64));
        self.rule_errors.clear();
        for errors in reloads.state.erring.iter().take(SERIES_MAX) {
            set(&self.rule_errors, "rule", &errors.rule, errors.count);
        }
    }

    fn take_tenants(&self, reloads: &Reloads<'_>) {
        for gauges in [&self.tenant_memory, &self.tenant_leases, &self.tenant_used] {
            gauges.clear();
        }
        let mut shown = BTreeSet::new();
        for standing in reloads.scene.tenants() {
            let tenant = plain(&standing.name);
            if shown.len() >= SERIES_MAX && !shown.contains(&tenant) {
                continue;
            }
            let add = |gauges: &Gauges, amount: u64| {
                let gauge = gauges.get_or_create(&[("tenant", tenant.clone())]);
                gauge.set(gauge.get().saturating_add(gauge_value(amount)));
            };
            add(&self.tenant_memory, standing.held.memory);
            add(&self.tenant_leases, u64::from(standing.held.leases));
            add(&self.tenant_used, standing.used);
            shown.insert(tenant);
        }
    }

    fn take_watch(&self, watch: Option<&WatchState>) {
        self.backend.clear();
        if let Some(watch) = watch {
            set(&self.backend, "backend", &watch.backend, 1);
            rise_to(&self.ignored, watch.ignored);
        }
    }
}

/// A count that somebody else keeps; one that begins anew is not followed down.
fn rise_to(counter: &Counter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

fn seconds(at: WallMs) -> f64 {
    at.0 as f64 / 1000.0
}

fn ended_by_policy(handle: &Handle) -> BTreeSet<LeaseId> {
    let mut ended = BTreeSet::new();
    let mut after = None;
    loop {
        let leases = handle.page(after, PAGE_LEASES_MAX);
        let Some(last) = leases.last() else {
            return ended;
        };
        after = Some(last.id);
        let by_policy = leases
            .iter()
            .filter(|lease| lease.end_reason() == Some(EndReason::Policy));
        ended.extend(by_policy.map(|lease| lease.id));
    }
}
