//! Every error leaves as a problem of RFC 9457.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use gpu_api::Problem;

const RETRY_AFTER_MS: u64 = 1000;

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct Refusal(Box<Problem>);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut problem = *self.0;
        let status = StatusCode::from_u16(problem.code.status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry = tells_when_to_retry(status)
            .then(|| *problem.retry_after_ms.get_or_insert(RETRY_AFTER_MS));
        let body = serde_json::to_vec(&problem).expect("problems are plain data with text as keys");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(ms) = retry {
            headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn tells_when_to_retry(status: StatusCode) -> bool {
    let later = [
        StatusCode::CONFLICT,
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::SERVICE_UNAVAILABLE,
    ];
    later.contains(&status)
}

#[cfg(test)]
mod tests {
    use gpu_api::ErrorCode;

    use super::*;

    #[test]
    fn every_code_has_its_status_and_says_when_to_come_back() {
        for code in ErrorCode::ALL {
            let response = Refusal::from(Problem::new(code, "x")).into_response();
            assert_eq!(response.status().as_u16(), code.status(), "{code}");
            let retry = matches!(code.status(), 409 | 429 | 503);
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                retry,
                "{code}"
            );
            assert_eq!(
                response.headers()[CONTENT_TYPE],
                "application/problem+json",
                "{code}"
            );
        }
    }
}
