//! The policy watch, and reloads by hand.

use axum::extract::State;
use axum::http::StatusCode;
use gpu_api::{ErrorCode, Problem, ReloadRequest, ReloadSwitch};
use gpu_broker::{ReloadOptions, Reloader, Trigger};

use super::{Answer, Shared, json};
use crate::app::Bridge;
use crate::convert::{reload_result, reload_state, unavailable};
use crate::extract::{Admin, Json, OptionalJson};
use crate::problem::Refusal;

pub(super) async fn state(State(bridge): State<Shared>) -> Answer {
    Ok(json(StatusCode::OK, &shown(&bridge)))
}

/// A refusal is a result like any other: 200, and the outcome says so.
pub(super) async fn trigger(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    OptionalJson(asked): OptionalJson<ReloadRequest>,
) -> Answer {
    if asked.confirm.is_some() {
        return Err(
            Problem::new(ErrorCode::PolicyChanged, "no plan waits for a confirmation").into(),
        );
    }
    let by = caller.name().to_owned();
    let result = blocking(&bridge, move |reloader| {
        reloader.reload(Trigger::Api, &by, &ReloadOptions::default())
    })
    .await?;
    let live = bridge.handle.snapshot().counters.generation;
    Ok(json(StatusCode::OK, &reload_result(&result, live)))
}

pub(super) async fn switch(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    Json(asked): Json<ReloadSwitch>,
) -> Answer {
    let by = caller.name().to_owned();
    let switched = blocking(&bridge, move |reloader| {
        reloader.set_watching(asked.enabled, &by)
    })
    .await?;
    switched.map_err(unavailable)?;
    Ok(json(StatusCode::OK, &shown(&bridge)))
}

/// Does something with the reloader that may take a while.
pub(super) async fn blocking<T: Send + 'static>(
    bridge: &Bridge,
    work: impl FnOnce(&Reloader) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let reloader = bridge.reloader.clone();
    let done = tokio::task::spawn_blocking(move || work(&reloader)).await;
    done.map_err(|error| {
        tracing::error!("a reload broke off: {error}");
        Problem::new(
            ErrorCode::Internal,
            "the reload broke off; the log says why",
        )
        .into()
    })
}

fn shown(bridge: &Bridge) -> gpu_api::ReloadState {
    let live = bridge.handle.snapshot().counters.generation;
    let watch = (bridge.watch)(bridge.handle.now());
    reload_state(&bridge.reloader.state(), live, &bridge.config, watch)
}
