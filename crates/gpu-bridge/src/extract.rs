//! Bodies, queries and paths as typed values, each bounded in size and time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::EXPECT;
use axum::http::request::Parts;
use bytes::BytesMut;
use gpu_api::{ErrorCode, PLAIN_BODY_BYTES_MAX, Problem};
use gpu_lease::LeaseId;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::identity::Caller;
use crate::line::Line;
use crate::problem::Refusal;
use crate::routes::Shared;
use crate::shown::shown;

/// Bytes of a body that is too large which are read and dropped, so that the client gets to hear why.
const DISCARDED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A body of at most `BYTES_MAX` bytes that must be there.
pub(crate) struct Json<T, const BYTES_MAX: usize = PLAIN_BODY_BYTES_MAX>(pub(crate) T);

/// A body that may be left out, which is the same as `{}`.
pub(crate) struct OptionalJson<T, const BYTES_MAX: usize = PLAIN_BODY_BYTES_MAX>(pub(crate) T);

/// The query; a parameter that is not known is refused.
pub(crate) struct Query<T>(pub(crate) T);

/// The lease that the path names.
pub(crate) struct LeaseInPath(pub(crate) LeaseId);

/// The device that the path names.
pub(crate) struct DeviceInPath(pub(crate) String);

/// A caller that may use operator verbs.
pub(crate) struct Admin(pub(crate) Caller);

/// The connection, where there is one.
#[derive(Clone)]
pub(crate) struct MaybeLine(pub(crate) Option<std::sync::Arc<Line>>);

impl<T: DeserializeOwned, const BYTES_MAX: usize> FromRequest<Shared> for Json<T, BYTES_MAX> {
    type Rejection = Refusal;

    async fn from_request(request: Request, bridge: &Shared) -> Result<Self, Refusal> {
        let body = read(request, BYTES_MAX, bridge.config.limits.body_read).await?;
        Ok(Self(gpu_api::decode(&body)?))
    }
}

impl<T: DeserializeOwned + Default, const BYTES_MAX: usize> FromRequest<Shared>
    for OptionalJson<T, BYTES_MAX>
{
    type Rejection = Refusal;

    async fn from_request(request: Request, bridge: &Shared) -> Result<Self, Refusal> {
        let body = read(request, BYTES_MAX, bridge.config.limits.body_read).await?;
        match body.is_empty() {
            true => Ok(Self(T::default())),
            false => Ok(Self(gpu_api::decode(&body)?)),
        }
    }
}

impl<T: DeserializeOwned> FromRequestParts<Shared> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Refusal> {
        let query = axum::extract::Query::try_from_uri(&parts.uri);
        let query = query.map_err(|error| bad_request(&error.body_text()))?;
        Ok(Self(query.0))
    }
}

impl FromRequestParts<Shared> for LeaseInPath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, bridge: &Shared) -> Result<Self, Refusal> {
        let text = path_id(parts, bridge).await?;
        text.parse().map(Self).map_err(|error| {
            Problem::new(ErrorCode::NotFound, format!("no lease `{}`", shown(&text)))
                .with_hint(format!("{error}"))
                .into()
        })
    }
}

impl FromRequestParts<Shared> for DeviceInPath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, bridge: &Shared) -> Result<Self, Refusal> {
        path_id(parts, bridge).await.map(Self)
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Refusal> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::new(ErrorCode::Unauthorized, "nobody is asking").into())
    }
}

impl FromRequestParts<Shared> for Admin {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, bridge: &Shared) -> Result<Self, Refusal> {
        let caller = Caller::from_request_parts(parts, bridge).await?;
        caller.must_be_admin()?;
        Ok(Self(caller))
    }
}

impl FromRequestParts<Shared> for MaybeLine {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Refusal> {
        Ok(Self(parts.extensions.get().cloned()))
    }
}

impl MaybeLine {
    /// Waits until the client is gone; for ever where there is no connection.
    pub(crate) async fn hung_up(&self) {
        match &self.0 {
            Some(line) => line.hung_up().await,
            None => std::future::pending().await,
        }
    }

    /// Whether the client is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.as_ref().is_some_and(|line| line.is_gone())
    }
}

pub(crate) fn bad_request(detail: &str) -> Refusal {
    Problem::new(ErrorCode::BadRequest, detail).into()
}

async fn path_id(parts: &mut Parts, bridge: &Shared) -> Result<String, Refusal> {
    let path = Path::<String>::from_request_parts(parts, bridge).await;
    path.map(|Path(id)| id)
        .map_err(|error| bad_request(&error.body_text()))
}

/// The whole body, or why there is none.
async fn read(request: Request, bytes_max: usize, patience: Duration) -> Result<Bytes, Refusal> {
    let waits_for_word = request.headers().contains_key(EXPECT);
    let body = request.into_body();
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    // Who waits to be told to go on, or means to send more than would be dropped, is told now.
    if declared > DISCARDED_BYTES_MAX || (waits_for_word && declared > bytes_max) {
        return Err(too_large(bytes_max));
    }
    match timeout(patience, collect(body, bytes_max)).await {
        Ok(result) => result,
        Err(_) => Err(Problem::new(
            ErrorCode::RequestTimeout,
            format!("the body did not arrive within {} s", patience.as_secs()),
        )
        .into()),
    }
}

async fn collect(mut body: Body, bytes_max: usize) -> Result<Bytes, Refusal> {
    let mut kept = BytesMut::new();
    let mut arrived = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| bad_request(&format!("the body broke off: {error}")))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        arrived = arrived.saturating_add(data.len());
        if arrived > DISCARDED_BYTES_MAX {
            break;
        }
        if arrived <= bytes_max {
            kept.extend_from_slice(data);
        }
    }
    match arrived <= bytes_max {
        true => Ok(kept.freeze()),
        false => Err(too_large(bytes_max)),
    }
}

fn too_large(bytes_max: usize) -> Refusal {
    let detail = format!("the body has more than {bytes_max} bytes");
    Problem::new(ErrorCode::BodyTooLarge, detail).into()
}
