//! The description of the API: checked in, up to date, and true.

use std::path::Path;

use axum::http::Method;
use serde_json::Value;

use crate::support::{Server, call, get, operator};

/// `UPDATE_EXPECT=1` writes the file anew.
#[test]
fn the_document_that_is_checked_in_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, gpu_bridge::openapi_json()).expect("the docs directory");
    }
    let text = std::fs::read_to_string(&path).expect("docs/openapi.json");
    assert!(
        text == gpu_bridge::openapi_json(),
        "docs/openapi.json is old: run this test with UPDATE_EXPECT=1"
    );
}

#[tokio::test]
async fn every_operation_of_the_document_is_there() {
    let server = Server::dev().await;
    let document = server.send(get("/openapi.json")).await.expect(200);
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().expect("paths");
    let mut operations = 0;
    for (path, item) in paths {
        for method in item.as_object().expect("an item").keys() {
            operations += 1;
            let method: Method = method.to_uppercase().parse().expect("a method");
            let path = path.replace("{id}", "l-000000000000");
            let response = server
                .open(call(method.clone(), &path).from(operator()))
                .await;
            let status = response.status().as_u16();
            assert_ne!(status, 405, "{method} {path}");
            assert!(status < 500 || status == 503, "{method} {path}: {status}");
            // A path without an id is there; one with an id that is none says so itself.
            assert!(
                status != 404 || path.contains("l-000000000000"),
                "{method} {path}"
            );
        }
    }
    assert_eq!(operations, 36, "a new operation is described and counted");
}

#[tokio::test]
async fn every_reference_of_the_document_leads_somewhere() {
    let server = Server::dev().await;
    let document = server.send(get("/openapi.json")).await.expect(200);
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 50);
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("a local reference");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            references.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| collect(value, references));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, references)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
