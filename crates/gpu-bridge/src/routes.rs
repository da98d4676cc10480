//! Every path, and what stands before and behind all of them.

mod assets;
mod device;
mod emergency;
mod events;
mod lease;
mod policy;
mod records;
mod reload;
mod status;
mod wait;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, CACHE_CONTROL, CONTENT_TYPE, HeaderName,
    HeaderValue, ORIGIN, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Method, Response, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use gpu_api::{ErrorCode, Problem, paths};
use hyper::body::Body as _;
use serde::Serialize;

use crate::app::{App, Bridge};
use crate::extract::bad_request;
use crate::guard::{Passed, is_preflight};
use crate::identity::{Approach, Caller, Peer};
use crate::problem::Refusal;
use crate::shown::shown;

pub(crate) use status::lease_counts;

/// What every handler gets.
pub(crate) type Shared = Arc<Bridge>;

/// What a handler answers.
type Answer = Result<Response<Body>, Refusal>;

/// Paths that take a query.
const WITH_QUERY: [&str; 8] = [
    paths::HISTORY,
    paths::HOT_RELOAD,
    paths::LEASE,
    paths::LEASES,
    paths::POLICY,
    paths::POLICY_OVERRIDES,
    paths::POLICY_ROLLBACK,
    paths::USAGE,
];

/// The whole server without a listener: a request carries its [`Peer`] as an extension, and one without it
/// counts as a stranger. `bound` are addresses that the Host header may name.
pub fn service(app: App, bound: &[SocketAddr]) -> Router {
    router(Arc::new(Bridge::new(app, bound, Vec::new())))
}

/// Guard and identity before anything is routed, whatever the method and the path.
pub(crate) fn router(bridge: Shared) -> Router {
    let routes = routes().layer(from_fn_with_state(bridge.clone(), observe));
    Router::new()
        .fallback_service(routes.with_state(bridge.clone()))
        .layer(from_fn_with_state(bridge, screen))
}

fn routes() -> Router<Shared> {
    Router::new()
        .route(paths::LEASES, get(lease::list).post(lease::acquire))
        .route(paths::LEASE, get(lease::one).delete(lease::release))
        .route(paths::LEASE_RENEW, post(lease::renew))
        .route(paths::LEASE_READY, post(lease::ready))
        .route(paths::LEASE_RELEASE, post(lease::release))
        .route(paths::LEASE_DRAIN, post(lease::drain))
        .route(paths::LEASE_REVOKE, post(lease::revoke))
        .route(paths::FENCES_CHECK, post(lease::check_fence))
        .route(paths::EMERGENCY_RELEASE, post(emergency::release))
        .route(paths::DEVICES, get(device::list))
        .route(paths::DEVICE_CORDON, post(device::cordon))
        .route(paths::DEVICE_UNCORDON, post(device::uncordon))
        .route(paths::DEVICE_DRAIN, post(device::drain))
        .route(
            paths::DEVICE_CLEAR_QUARANTINE,
            post(device::clear_quarantine),
        )
        .route(
            paths::HOT_RELOAD,
            get(reload::state).post(reload::trigger).put(reload::switch),
        )
        .route(paths::POLICY, get(policy::live).put(policy::write))
        .route(paths::POLICY_CHECK, post(policy::check))
        .route(paths::POLICY_EXPLAIN, post(policy::explain))
        .route(paths::POLICY_OVERRIDES, put(policy::set_overrides))
        .route(paths::POLICY_PLAN, post(policy::plan))
        .route(paths::POLICY_ROLLBACK, post(policy::roll_back))
        .route(paths::QUEUE, get(lease::queue))
        .route(paths::EVENTS, get(events::stream))
        .route(paths::HISTORY, get(records::events))
        .route(paths::USAGE, get(records::usage))
        .route(paths::STATUS, get(status::status))
        .route(paths::HEALTHZ, get(status::healthz))
        .route(paths::READYZ, get(status::readyz))
        .route(paths::HEALTH, get(status::readyz))
        .route(paths::METRICS, get(status::metrics))
        .route(paths::OPENAPI, get(assets::openapi))
        .route("/", get(assets::page))
        .route("/page.css", get(assets::style))
        .route("/page.js", get(assets::script))
        .route("/gpu-hot-reloader.js", get(assets::hot_reloader))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
}

/// Lets through what may be answered, with who is asking.
async fn screen(State(bridge): State<Shared>, mut request: Request, next: Next) -> Response<Body> {
    let has_body = !request.body().is_end_stream();
    let passed = match bridge
        .guard
        .check(request.uri(), request.headers(), has_body)
    {
        Ok(passed) => passed,
        Err(problem) => return with_common_headers(Refusal::from(problem).into_response(), None),
    };
    let origin = passed.listed_origin.clone();
    if is_preflight(request.method(), request.headers()) && origin.is_some() {
        return with_common_headers(preflight(), origin);
    }
    let response = match admit(&bridge, &mut request, passed) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    with_common_headers(response, origin)
}

fn admit(bridge: &Bridge, request: &mut Request, _: Passed) -> Result<(), Refusal> {
    let approach = Approach {
        peer: request.extensions().get::<Peer>(),
        method: request.method(),
        path: request.uri().path(),
        headers: request.headers(),
    };
    let caller = Caller::identify(&approach, &bridge.config.secrets, bridge.config.dev)?;
    request.extensions_mut().insert(caller);
    Ok(())
}

/// Measures, and refuses a query where none is understood.
async fn observe(State(bridge): State<Shared>, request: Request, next: Next) -> Response<Body> {
    let began = Instant::now();
    let method = request.method().clone();
    let matched = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let response = match query_refused(&request, matched.as_deref()) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    let route = matched.as_deref().unwrap_or("unmatched");
    bridge.metrics.answered(&method, route, began.elapsed());
    response
}

fn query_refused(request: &Request, route: Option<&str>) -> Option<Refusal> {
    let query = request.uri().query().unwrap_or_default();
    let understood =
        route.is_none_or(|route| !route.starts_with("/v1/") || WITH_QUERY.contains(&route));
    (!query.is_empty() && !understood).then(|| bad_request("this path takes no query"))
}

fn preflight() -> Response<Body> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    set(ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE");
    set(
        ACCESS_CONTROL_ALLOW_HEADERS,
        "authorization, content-type, idempotency-key, if-match, last-event-id, x-lease-secret",
    );
    set(ACCESS_CONTROL_MAX_AGE, "600");
    response
}

/// What every answer says; only a listed origin may read it from another page.
fn with_common_headers(
    mut response: Response<Body>,
    listed: Option<HeaderValue>,
) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(VARY, HeaderValue::from(ORIGIN));
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    if let Some(origin) = listed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("etag, retry-after"),
        );
    }
    response
}

async fn no_such_path(request: Request) -> Refusal {
    let path = shown(request.uri().path());
    Problem::new(ErrorCode::NotFound, format!("no path `{path}`"))
        .with_hint("`GET /openapi.json` describes every path")
        .into()
}

async fn no_such_method(method: Method, request: Request) -> Refusal {
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("this path", |path| path.as_str());
    Problem::new(
        ErrorCode::MethodNotAllowed,
        format!("`{path}` has no `{}`", shown(method.as_str())),
    )
    .with_hint("the header `Allow` names what it has")
    .into()
}

/// `value` as the body of a good answer.
fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(Body::from(json_bytes(value)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn json_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("answers are plain data with text as keys")
}
