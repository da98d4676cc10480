//! A body from outside becomes a typed request, or a problem that names the field.

use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::problem::{ErrorCode, Problem};

/// Reads `body` as one JSON value.
///
/// # Errors
/// [`ErrorCode::BadJson`] for text that is no JSON, [`ErrorCode::InvalidRequest`] for JSON that is no `T`;
/// the detail names the field.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    if body.trim_ascii_start().starts_with(b"[") {
        // serde takes an array for a struct, field by field; nobody means that.
        return Err(Problem::new(
            ErrorCode::InvalidRequest,
            "expected an object, found an array",
        ));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        problem(&path, error.inner())
    })?;
    json.end().map_err(|error| problem(".", &error))?;
    Ok(value)
}

fn problem(path: &str, error: &serde_json::Error) -> Problem {
    let code = match error.classify() {
        Category::Data => ErrorCode::InvalidRequest,
        Category::Eof | Category::Io | Category::Syntax => ErrorCode::BadJson,
    };
    match path {
        "." => Problem::new(code, error.to_string()),
        path => Problem::new(code, format!("`{path}`: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::AcquireRequest;

    #[test]
    fn a_refusal_names_the_field() {
        let table = [
            ("{", ErrorCode::BadJson, "EOF"),
            ("{} {}", ErrorCode::BadJson, "trailing"),
            ("[]", ErrorCode::InvalidRequest, "an array"),
            (
                r#"{"memory":"12 parsecs"}"#,
                ErrorCode::InvalidRequest,
                "`memory`: `parsecs` is no unit",
            ),
            (
                r#"{"memory":-1}"#,
                ErrorCode::InvalidRequest,
                "`memory`: `-1` is negative",
            ),
            (r#"{"memory":0}"#, ErrorCode::InvalidRequest, "`memory`"),
            (
                r#"{"memory":9223372036854775808}"#,
                ErrorCode::InvalidRequest,
                "too large",
            ),
            (
                r#"{"devices":10000}"#,
                ErrorCode::InvalidRequest,
                "`devices`: `10000` devices: 1 to 64",
            ),
            (
                r#"{"ttl":30}"#,
                ErrorCode::InvalidRequest,
                "`ttl`: `30` has no unit",
            ),
            (
                r#"{"ttl":"2h"}"#,
                ErrorCode::InvalidRequest,
                "`ttl`: a ttl of 2h",
            ),
            (
                r#"{"memmory":1}"#,
                ErrorCode::InvalidRequest,
                "unknown field `memmory`",
            ),
            (
                r#"{"memory":"1GiB","exclusive":true}"#,
                ErrorCode::InvalidRequest,
                "`memory` and `exclusive`",
            ),
            (
                r#"{"holder":{"kind":"process"}}"#,
                ErrorCode::InvalidRequest,
                "`holder.pid`",
            ),
            (
                r#"{"labels":{"a":"b\n"}}"#,
                ErrorCode::InvalidRequest,
                "control character",
            ),
        ];
        for (body, code, part) in table {
            let problem = decode::<AcquireRequest>(body.as_bytes()).expect_err(body);
            assert_eq!(problem.code, code, "{body}");
            assert!(problem.detail.contains(part), "{body}: {}", problem.detail);
        }
    }

    #[test]
    fn an_empty_object_asks_for_one_whole_device() {
        let request: AcquireRequest = decode(b"{}").expect("every field has a default");
        assert_eq!(request.demand(), crate::Demand::Whole);
        assert_eq!(request.devices.get(), 1);
    }
}
