//! Leases and the queue: ask, look, keep, give back; and what operators do to them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use axum::http::{HeaderMap, Response, StatusCode};
use gpu_api::{
    AcquireRequest, DrainRequest, FenceAnswer, FenceCheck, IDEMPOTENCY_KEY_BYTES_MAX,
    IDEMPOTENCY_KEY_HEADER, LEASE_SECRET_HEADER, LEASES_PER_PAGE_MAX, LeaseList, LeaseListQuery,
    LeaseQuery, paths,
};
use gpu_lease::{Command, DeviceKey, DrainNotice, Fence, Lease, LeaseId, Ms, Phase};
use tokio::time::timeout;

use super::wait::{Settled, replayed, settle};
use super::{Answer, Shared, json, json_bytes};
use crate::app::Bridge;
use crate::convert::{idempotency, lease_refused, no_such_device, no_such_lease, request};
use crate::extract::{Admin, Json, LeaseInPath, MaybeLine, OptionalJson, Query, bad_request};
use crate::handover::HandOver;
use crate::identity::Caller;
use crate::problem::Refusal;

/// A look at a lease waits no longer than this; a client that wants more asks again.
pub(crate) const LOOK_SECS_MAX: u64 = 300;
/// Leases that are looked at in one go while a page of live ones is gathered.
const SCAN_MAX: usize = 1000;

pub(super) async fn acquire(
    State(bridge): State<Shared>,
    caller: Caller,
    line: MaybeLine,
    headers: HeaderMap,
    Json(asked): Json<AcquireRequest>,
) -> Answer {
    let key = idempotency_key(&headers)?.map(|key| idempotency(key, &caller, &asked));
    let policy = bridge.handle.snapshot().policy.clone();
    let settled = match request(&asked, key.clone(), &caller, &policy) {
        Ok(request) => settle(&bridge, &line, &request).await,
        // What it names may be gone since it was answered.
        Err(problem) => replayed(&bridge, key.as_ref()).ok_or(problem),
    };
    let settled = settled.inspect_err(|problem| bridge.metrics.denied(problem.code))?;
    Ok(handed_over(&bridge, settled, line))
}

pub(super) async fn list(
    State(bridge): State<Shared>,
    Query(query): Query<LeaseListQuery>,
) -> Answer {
    let limit = match query.limit {
        None => LEASES_PER_PAGE_MAX,
        Some(limit @ 1..=LEASES_PER_PAGE_MAX) => limit,
        Some(_) => {
            return Err(bad_request(&format!(
                "`limit` is 1 to {LEASES_PER_PAGE_MAX}"
            )));
        }
    };
    let after = query.after.map(|after| after.parse());
    let after: Option<LeaseId> = after
        .transpose()
        .map_err(|error| bad_request(&format!("`after`: {error}")))?;
    let (leases, more) = page(&bridge, after, limit as usize, query.live);
    let scene = bridge.scene();
    let next = leases
        .last()
        .filter(|_| more)
        .map(|lease| lease.id.to_string());
    let leases = leases.iter().map(|lease| scene.lease(lease)).collect();
    Ok(json(StatusCode::OK, &LeaseList { leases, next }))
}

pub(super) async fn one(
    State(bridge): State<Shared>,
    line: MaybeLine,
    LeaseInPath(id): LeaseInPath,
    Query(query): Query<LeaseQuery>,
) -> Answer {
    // Subscribed first: a change between the look and the wait is not missed.
    let mut follower = bridge.handle.follow(id);
    let mut lease = bridge.handle.find(id).ok_or_else(|| no_such_lease(id))?;
    if let Some(wait) = query.wait
        && !is_news(&lease, query.after)
    {
        let _room = bridge.waiting_request()?;
        let patience = wait.as_duration().min(Duration::from_secs(LOOK_SECS_MAX));
        let change = async {
            tokio::select! {
                changed = follower.changed() => changed,
                () = bridge.handle.stopped() => None,
                () = line.hung_up() => None,
            }
        };
        if let Ok(Some(changed)) = timeout(patience, change).await {
            lease = changed;
        }
    }
    Ok(json(StatusCode::OK, &bridge.scene().lease(&lease)))
}

pub(super) async fn renew(
    State(bridge): State<Shared>,
    caller: Caller,
    LeaseInPath(id): LeaseInPath,
    headers: HeaderMap,
    OptionalJson(Nothing {}): OptionalJson<Nothing>,
) -> Answer {
    must_own(&bridge, &caller, id, &headers)?;
    done(&bridge, id, Command::Renew { id }).await
}

pub(super) async fn ready(
    State(bridge): State<Shared>,
    caller: Caller,
    LeaseInPath(id): LeaseInPath,
    headers: HeaderMap,
    OptionalJson(Nothing {}): OptionalJson<Nothing>,
) -> Answer {
    must_own(&bridge, &caller, id, &headers)?;
    done(&bridge, id, Command::Ready { id }).await
}

pub(super) async fn release(
    State(bridge): State<Shared>,
    caller: Caller,
    LeaseInPath(id): LeaseInPath,
    headers: HeaderMap,
    OptionalJson(Nothing {}): OptionalJson<Nothing>,
) -> Answer {
    must_own(&bridge, &caller, id, &headers)?;
    done(&bridge, id, Command::Release { id }).await
}

pub(super) async fn drain(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    LeaseInPath(id): LeaseInPath,
    OptionalJson(asked): OptionalJson<DrainRequest>,
) -> Answer {
    let notice = notice(&asked, &caller);
    done(&bridge, id, Command::DrainLease { id, notice }).await
}

/// At once, or as a drain with the grace that is given: its deadline revokes too.
pub(super) async fn revoke(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    LeaseInPath(id): LeaseInPath,
    OptionalJson(asked): OptionalJson<DrainRequest>,
) -> Answer {
    let held = bridge
        .handle
        .find(id)
        .is_some_and(|lease| lease.held().is_some());
    let notice = notice(&asked, &caller);
    let command = match notice.grace {
        Some(grace) if grace > Ms(0) && held => Command::DrainLease { id, notice },
        _ => Command::Revoke {
            id,
            reason: notice.reason,
            by: notice.by,
        },
    };
    done(&bridge, id, command).await
}

pub(super) async fn check_fence(
    State(bridge): State<Shared>,
    Json(asked): Json<FenceCheck>,
) -> Answer {
    let scene = bridge.scene();
    let key = DeviceKey::local(&asked.device);
    let is_current = |lease: &Lease| {
        let grant = lease.held();
        grant.is_some_and(|grant| grant.fence == Fence(asked.fence) && grant.on(&key).is_some())
    };
    let current = match scene.device_state(&key) {
        Some(device) => {
            let occupants = device.occupants.iter();
            let mut leases = occupants.filter_map(|id| bridge.handle.find(*id));
            leases.any(|lease| is_current(&lease))
        }
        // What is held is known also of a device that nobody has looked for yet, or that is not found.
        None => bridge.handle.find_by(is_current).is_some(),
    };
    if !current && !scene.knows(&key) {
        return Err(no_such_device(&asked.device).into());
    }
    Ok(json(StatusCode::OK, &FenceAnswer { current }))
}

pub(super) async fn queue(State(bridge): State<Shared>) -> Answer {
    let scene = bridge.scene();
    let waiting = &scene.snapshot.waiting;
    let first = waiting.iter().take(LEASES_PER_PAGE_MAX as usize);
    let leases = first.filter_map(|(id, _)| bridge.handle.find(*id));
    let queue = gpu_api::Queue {
        waiters: leases.map(|lease| scene.lease(&lease)).collect(),
        total: waiting.len() as u64,
    };
    Ok(json(StatusCode::OK, &queue))
}

/// `{}`, for requests that say everything by their path.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// How long a holder has, why and by whom.
pub(super) fn notice(asked: &DrainRequest, caller: &Caller) -> DrainNotice {
    let reason = asked.reason.as_ref().map(ToString::to_string);
    DrainNotice {
        grace: asked.grace.map(|grace| Ms(grace.as_ms())),
        reason: reason.unwrap_or_else(|| "an operator wants it back".to_owned()),
        by: caller.name().to_owned(),
    }
}

/// 201 for a grant, 202 for a place in the queue, 200 for a replay of what is over.
fn handed_over(bridge: &Bridge, settled: Settled, line: MaybeLine) -> Response<Body> {
    let Settled { lease, guard } = settled;
    let status = match &lease.phase {
        Phase::Waiting(_) => StatusCode::ACCEPTED,
        Phase::Held(_) => StatusCode::CREATED,
        Phase::Reclaiming(..) | Phase::Ended(_) => StatusCode::OK,
    };
    let mut shown = bridge.scene().lease(&lease);
    shown.secret = Some(bridge.config.secrets.of_lease(lease.id));
    let mut response = Response::new(HandOver::body(json_bytes(&shown), guard, line));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(location) = HeaderValue::from_str(&paths::with_id(paths::LEASE, &shown.id)) {
        headers.insert(LOCATION, location);
    }
    response
}

/// Does what `command` says and answers the lease as it is then.
async fn done(bridge: &Bridge, id: LeaseId, command: Command) -> Answer {
    let lease = bridge
        .handle
        .lease(command)
        .await
        .map_err(|error| lease_refused(&error, id))?;
    Ok(json(StatusCode::OK, &bridge.scene().lease(&lease)))
}

fn must_own(
    bridge: &Bridge,
    caller: &Caller,
    id: LeaseId,
    headers: &HeaderMap,
) -> Result<(), Refusal> {
    let lease = bridge.handle.find(id).ok_or_else(|| no_such_lease(id))?;
    let secret = one_header(headers, LEASE_SECRET_HEADER)?;
    Ok(caller.must_own(&lease, secret, &bridge.config.secrets)?)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let key = one_header(headers, IDEMPOTENCY_KEY_HEADER)?;
    let fits = |key: &str| {
        let plain = key.bytes().all(|byte| byte.is_ascii_graphic());
        plain && (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len())
    };
    match key {
        Some(key) if !fits(key) => Err(bad_request(&format!(
            "`{IDEMPOTENCY_KEY_HEADER}` is 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"
        ))),
        key => Ok(key),
    }
}

fn one_header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(HeaderName::from_static(name)).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value
            .to_str()
            .map(Some)
            .map_err(|_| bad_request(&format!("`{name}` is no plain text"))),
        (Some(_), Some(_)) => Err(bad_request(&format!("`{name}` is there more than once"))),
    }
}

/// Whether there is something to answer at once. What has ended changes no more.
fn is_news(lease: &Lease, after: Option<u64>) -> bool {
    matches!(lease.phase, Phase::Ended(_)) || after.is_some_and(|after| lease.revision > after)
}

/// Up to `limit` leases, and whether there are more.
fn page(
    bridge: &Bridge,
    mut after: Option<LeaseId>,
    limit: usize,
    live: bool,
) -> (Vec<Arc<Lease>>, bool) {
    let mut found: Vec<Arc<Lease>> = Vec::new();
    loop {
        let scanned = bridge.handle.page(after, SCAN_MAX);
        let Some(last) = scanned.last() else {
            return (found, false);
        };
        after = Some(last.id);
        let wanted = |lease: &Arc<Lease>| !live || !matches!(lease.phase, Phase::Ended(_));
        found.extend(scanned.into_iter().filter(wanted));
        if found.len() > limit {
            found.truncate(limit);
            return (found, true);
        }
    }
}
