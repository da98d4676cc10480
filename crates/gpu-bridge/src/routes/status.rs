//! The broker at a glance: for people, for supervisors, for Prometheus.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::IntoResponse;
use gpu_api::{BrokerState, Health, LeaseCounts, LeaseState, PolicyStatus, SERVICE, Status};
use gpu_broker::Handle;
use gpu_lease::DeviceState;

use super::{Answer, Shared, json};
use crate::app::Bridge;
use crate::convert::{Reloads, rfc3339, state};
use crate::identity::Caller;

const COUNTED_AT_ONCE_MAX: usize = 4096;

pub(super) async fn status(State(bridge): State<Shared>, caller: Caller) -> Answer {
    let reloads = Reloads::of(&bridge);
    let snapshot = &reloads.scene.snapshot;
    let open = snapshot
        .devices
        .iter()
        .filter(|state| is_open(state))
        .count();
    let config = &bridge.config;
    let status = Status {
        service: SERVICE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: broker_state(&bridge),
        safe_start: config.safe_start.clone(),
        dev: config.dev,
        pid: std::process::id(),
        started_at: rfc3339(bridge.started.wall),
        uptime_ms: (bridge.handle.now().boot - bridge.started.boot).0,
        listen: bridge.listen.clone(),
        state_dir: config
            .state_dir
            .as_ref()
            .map(|dir| dir.display().to_string()),
        caller: caller.name().to_owned(),
        admin: caller.admin,
        policy: policy_status(&bridge, &reloads),
        devices: u32::try_from(snapshot.devices.len()).unwrap_or(u32::MAX),
        devices_open: u32::try_from(open).unwrap_or(u32::MAX),
        leases: lease_counts(&bridge.handle),
        tenants: reloads.scene.tenants(),
        warnings: config.warnings.lock().clone(),
    };
    Ok(json(StatusCode::OK, &status))
}

/// The process answers.
pub(super) async fn healthz(State(bridge): State<Shared>) -> Answer {
    let status = broker_state(&bridge);
    Ok(json(StatusCode::OK, &Health { status }))
}

/// The broker grants.
pub(super) async fn readyz(State(bridge): State<Shared>) -> Answer {
    let status = broker_state(&bridge);
    match status {
        BrokerState::Serving => Ok(json(StatusCode::OK, &Health { status })),
        BrokerState::Safe => Err(bridge
            .safe_start()
            .unwrap_or_else(|| not_ready(status))
            .into()),
        BrokerState::Recovering | BrokerState::Stopping => Err(not_ready(status).into()),
    }
}

pub(super) async fn metrics(State(bridge): State<Shared>) -> Answer {
    let watch = (bridge.watch)(bridge.handle.now());
    let text = bridge.metrics.text(
        &bridge.handle,
        &Reloads::of(&bridge),
        watch.as_ref(),
        bridge.config.overrides.len(),
    );
    let mut response = text.into_response();
    let kind =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// Leases by state.
pub(crate) fn lease_counts(handle: &Handle) -> LeaseCounts {
    let mut counts = LeaseCounts::default();
    let mut after = None;
    loop {
        let leases = handle.page(after, COUNTED_AT_ONCE_MAX);
        let Some(last) = leases.last() else {
            return counts;
        };
        after = Some(last.id);
        for lease in &leases {
            *match state(lease) {
                LeaseState::Waiting => &mut counts.waiting,
                LeaseState::Active => &mut counts.active,
                LeaseState::Draining => &mut counts.draining,
                LeaseState::Reclaiming => &mut counts.reclaiming,
                LeaseState::Ended => &mut counts.ended,
            } += 1;
        }
    }
}

fn broker_state(bridge: &Bridge) -> BrokerState {
    if bridge.handle.is_stopping() {
        return BrokerState::Stopping;
    }
    match bridge.handle.snapshot().recovering {
        true if bridge.config.safe_start.is_some() => BrokerState::Safe,
        true => BrokerState::Recovering,
        false => BrokerState::Serving,
    }
}

fn not_ready(status: BrokerState) -> gpu_api::Problem {
    let (code, detail) = match status {
        BrokerState::Stopping => (
            gpu_api::ErrorCode::ShuttingDown,
            "the broker is shutting down",
        ),
        BrokerState::Recovering | BrokerState::Safe | BrokerState::Serving => (
            gpu_api::ErrorCode::Recovering,
            "devices are still being discovered",
        ),
    };
    gpu_api::Problem::new(code, detail)
}

fn policy_status(bridge: &Bridge, reloads: &Reloads<'_>) -> PolicyStatus {
    let snapshot = &reloads.scene.snapshot;
    PolicyStatus {
        generation: snapshot.counters.generation,
        hash: snapshot.policy.source.hash.clone(),
        dirs: bridge
            .config
            .policy_paths
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        watched: reloads.state.watching,
        disk: reloads.disk(),
        error_state: reloads.error_line(),
        pending: reloads.pending(),
    }
}

fn is_open(state: &DeviceState) -> bool {
    state.device.leasable && state.lost_since.is_none() && state.cordoned().is_none()
}
