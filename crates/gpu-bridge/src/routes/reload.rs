//! The policy watch, and reloads by hand.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::IF_MATCH;
use axum::http::{HeaderMap, Response, StatusCode};
use gpu_api::{
    ErrorCode, Problem, ReloadOutcome, ReloadQuery, ReloadRequest, ReloadResult, ReloadSwitch,
};
use gpu_broker::{ReloadOptions, Reloader, Trigger};

use super::{Answer, Shared, json};
use crate::app::Bridge;
use crate::convert::{Reloads, unavailable};
use crate::extract::{Admin, Json, OptionalJson, Query, bad_request};
use crate::problem::Refusal;

/// How long a caller waits for the result of a reload who does not say.
const PATIENCE_DEFAULT: Duration = Duration::from_secs(30);
/// How long a caller waits at the most; the reload goes on.
const PATIENCE_MAX: Duration = Duration::from_secs(300);
/// The beginning of the hash of a plan that is enough to name it.
const PLAN_CHARS_MIN: usize = 8;
/// The whole hash of a plan.
const PLAN_CHARS: usize = 64;
/// A hash in a header is no longer than this.
const TAG_BYTES_MAX: usize = 130;

pub(super) async fn state(State(bridge): State<Shared>, Query(query): Query<NoQuery>) -> Answer {
    let NoQuery {} = query;
    Ok(json(StatusCode::OK, &shown(&bridge)))
}

/// The result is the answer whatever it is; the status says the same for those who look no further.
pub(super) async fn trigger(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    Query(query): Query<ReloadQuery>,
    headers: HeaderMap,
    OptionalJson(asked): OptionalJson<ReloadRequest>,
) -> Answer {
    let confirm = asked.confirm.map(gpu_api::Text::into_string);
    let options = ReloadOptions {
        confirm: confirm.map(|hash| whole_hash(&bridge, hash)),
        ..options(&bridge, &headers, asked.expect_plan)?
    };
    let by = caller.name().to_owned();
    load(&bridge, &query, caller.name(), move |bridge, id| {
        load_disk(bridge, &by, ReloadOptions { id, ..options })
    })
    .await
}

pub(super) async fn switch(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    Query(query): Query<NoQuery>,
    Json(asked): Json<ReloadSwitch>,
) -> Answer {
    let NoQuery {} = query;
    let turn = bridge.reload()?;
    let by = caller.name().to_owned();
    let switched = blocking(&bridge, move |reloader| {
        // Held until it is done, also if the caller is gone by then.
        let _turn = turn;
        reloader.set_watching(asked.enabled, &by)
    })
    .await?;
    switched.map_err(unavailable)?;
    Ok(json(StatusCode::OK, &shown(&bridge)))
}

/// For a path of which another method takes a query.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoQuery {}

/// Does `work`, which loads a policy, and answers with its result; or that it goes on, once the caller has
/// waited for long enough.
pub(super) async fn load(
    bridge: &Shared,
    query: &ReloadQuery,
    by: &str,
    work: impl FnOnce(&Bridge, Option<u64>) -> Result<ReloadResult, Problem> + Send + 'static,
) -> Answer {
    let turn = bridge.reload()?;
    let id = bridge.reloader.new_id();
    let asked = query.timeout.map(gpu_api::Span::as_duration);
    let patience = asked.unwrap_or(PATIENCE_DEFAULT).min(PATIENCE_MAX);
    let at_work = bridge.clone();
    let work = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(&at_work, Some(id))
    });
    match tokio::time::timeout(patience, work).await {
        Ok(done) => Ok(answered(&done.map_err(|error| broke_off(&error))??)),
        Err(_) => Ok(answered(&running(bridge, id, by, patience))),
    }
}

/// What became of a reload, unless the broker stops.
pub(super) fn loaded(
    bridge: &Bridge,
    result: &gpu_broker::ReloadResult,
) -> Result<ReloadResult, Problem> {
    match &result.outcome {
        gpu_broker::ReloadOutcome::Stopped(why) => Err(unavailable(*why)),
        _ => Ok(Reloads::of(bridge).result(result)),
    }
}

/// Loads what is on disk.
pub(super) fn load_disk(
    bridge: &Bridge,
    by: &str,
    mut options: ReloadOptions,
) -> Result<ReloadResult, Problem> {
    bridge.reads_files()?;
    if let Some(hash) = options.expect_plan.as_mut()
        && hash.len() < PLAN_CHARS
        && let Ok(files) = bridge.reloader.read()
        && let Ok(planning) = bridge.reloader.plan(&files)
        && names(hash, &planning.plan_hash)
    {
        *hash = planning.plan_hash;
    }
    loaded(bridge, &bridge.reloader.reload(Trigger::Api, by, &options))
}

/// What a caller expects. Who expects a plan has seen it, and so confirms it.
pub(super) fn options(
    bridge: &Bridge,
    headers: &HeaderMap,
    expect_plan: Option<gpu_api::Text<128>>,
) -> Result<ReloadOptions, Refusal> {
    Ok(ReloadOptions {
        expect_live: expected(headers)?,
        expect_plan: expect_plan.map(|hash| whole_hash(bridge, hash.into_string())),
        ..ReloadOptions::default()
    })
}

/// The hash of the plan that somebody was shown, where `hash` is the beginning of it: people are shown no more.
fn whole_hash(bridge: &Bridge, hash: String) -> String {
    let reloads = Reloads::of(bridge);
    let history = reloads.state.history.iter();
    let shown = history.filter_map(|result| result.plan_hash.clone());
    let mut plans = reloads.pending().into_iter().chain(shown);
    plans.find(|plan| names(&hash, plan)).unwrap_or(hash)
}

/// Whether `hash`, whole or its beginning, is enough to name `plan`.
pub(super) fn names(hash: &str, plan: &str) -> bool {
    hash.len() >= PLAN_CHARS_MIN && plan.starts_with(&hash.to_ascii_lowercase())
}

/// Whether the caller says that anything may be there.
pub(super) fn takes_any(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(IF_MATCH).iter();
    values.next().is_some_and(|value| value == "*")
}

/// The hash of the policy that the caller expects to be live; `*` is any.
fn expected(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut values = headers.get_all(IF_MATCH).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    let hash = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(text);
    let is_hash = !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    match (text, values.next()) {
        ("*", None) => Ok(None),
        (_, None) if is_hash && text.len() <= TAG_BYTES_MAX => Ok(Some(hash.to_owned())),
        _ => Err(bad_request(
            "`If-Match` takes one hash of a policy, as in `GET /v1/policy`",
        )),
    }
}

/// Does something with the reloader that may take a while.
pub(super) async fn blocking<T: Send + 'static>(
    bridge: &Bridge,
    work: impl FnOnce(&Reloader) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let reloader = bridge.reloader.clone();
    let done = tokio::task::spawn_blocking(move || work(&reloader)).await;
    done.map_err(|error| broke_off(&error))
}

fn broke_off(error: &tokio::task::JoinError) -> Refusal {
    tracing::error!("a reload broke off: {error}");
    Problem::new(
        ErrorCode::Internal,
        "the reload broke off; the log says why",
    )
    .into()
}

fn answered(result: &ReloadResult) -> Response<Body> {
    let status = StatusCode::from_u16(result.outcome.status());
    json(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), result)
}

fn running(bridge: &Bridge, id: u64, by: &str, waited: Duration) -> ReloadResult {
    ReloadResult {
        id: id.to_string(),
        summary: "it goes on; the history of `GET /v1/hot-reload` says later what came of it"
            .to_owned(),
        took_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        ..Reloads::of(bridge).blank(ReloadOutcome::Running, by)
    }
}

fn shown(bridge: &Bridge) -> gpu_api::ReloadState {
    let watch = (bridge.watch)(bridge.handle.now());
    Reloads::of(bridge).shown(watch)
}
