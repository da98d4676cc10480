//! What browsers load: the page, its parts, the module for other pages, and the description of the API.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
};

use super::Shared;
use crate::app::Bridge;
use crate::openapi::openapi_json;

const PAGE: &str = include_str!("../assets/page.html");
const STYLE: &str = include_str!("../assets/page.css");
const SCRIPT: &str = include_str!("../assets/page.js");
const HOT_RELOADER: &str = include_str!("../assets/gpu-hot-reloader.js");

/// The page loads its own parts and talks to its own broker, and is no part of another page.
const PAGE_MAY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn page(State(bridge): State<Shared>) -> Response<Body> {
    let mut response = asset("text/html; charset=utf-8", text(&bridge, "page.html", PAGE));
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    set(CONTENT_SECURITY_POLICY, PAGE_MAY);
    set(REFERRER_POLICY, "no-referrer");
    set(
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    );
    response
}

pub(super) async fn style(State(bridge): State<Shared>) -> Response<Body> {
    asset("text/css; charset=utf-8", text(&bridge, "page.css", STYLE))
}

pub(super) async fn script(State(bridge): State<Shared>) -> Response<Body> {
    asset(
        "text/javascript; charset=utf-8",
        text(&bridge, "page.js", SCRIPT),
    )
}

pub(super) async fn hot_reloader(State(bridge): State<Shared>) -> Response<Body> {
    asset(
        "text/javascript; charset=utf-8",
        text(&bridge, "gpu-hot-reloader.js", HOT_RELOADER),
    )
}

/// The file of this name where somebody works on it, else what is built in.
fn text(bridge: &Bridge, name: &str, built_in: &'static str) -> Cow<'static, str> {
    let dirs = bridge.config.assets.iter().flat_map(|assets| &assets.dirs);
    let mut files = dirs.filter_map(|dir| std::fs::read_to_string(dir.join(name)).ok());
    files.next().map_or(Cow::Borrowed(built_in), Cow::Owned)
}

pub(super) async fn openapi() -> Response<Body> {
    asset("application/json", openapi_json())
}

fn asset(kind: &'static str, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
