//! The policy in force, and checking one that is not.

use axum::extract::State;
use axum::http::StatusCode;
use gpu_api::{
    BODY_BYTES_MAX, ErrorCode, POLICY_FILES_MAX, PolicyCheck, PolicyCheckRequest, Problem,
};
use gpu_broker::{Diagnostics, SourceFile};

use super::reload::blocking;
use super::{Answer, Shared, json};
use crate::convert::{Scene, diagnostics, policy};
use crate::extract::Json;

pub(super) async fn live(State(bridge): State<Shared>) -> Answer {
    let scene = Scene::of(&bridge.handle);
    let state = bridge.reloader.state();
    let shown = policy(
        &scene,
        &state,
        bridge.started.wall,
        &bridge.config.overrides,
    );
    Ok(json(StatusCode::OK, &shown))
}

/// 200 also when there are errors: they are the answer.
pub(super) async fn check(
    State(bridge): State<Shared>,
    Json(asked): Json<PolicyCheckRequest, BODY_BYTES_MAX>,
) -> Answer {
    let files = texts(asked)?;
    let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
    let checked = blocking(&bridge, move |reloader| reloader.check(&files)).await?;
    Ok(json(StatusCode::OK, &verdict(names, checked)))
}

fn texts(asked: PolicyCheckRequest) -> Result<Vec<SourceFile>, Problem> {
    let invalid = |detail: String| Problem::new(ErrorCode::InvalidRequest, detail);
    let Some(files) = asked.files else {
        return Err(invalid("`files` is needed: the texts to check".to_owned()));
    };
    if files.len() > POLICY_FILES_MAX {
        return Err(invalid(format!(
            "`files`: {} are too many: the most is {POLICY_FILES_MAX}",
            files.len()
        )));
    }
    let file = |file: gpu_api::PolicyText| SourceFile::new(file.name.into_string(), file.text);
    Ok(files.into_iter().map(file).collect())
}

fn verdict(files: Vec<String>, checked: Result<Vec<String>, Diagnostics>) -> PolicyCheck {
    match checked {
        Ok(changes) => PolicyCheck {
            ok: true,
            hash: None,
            in_force: changes.is_empty(),
            files,
            changes,
            diagnostics: Vec::new(),
        },
        Err(found) => PolicyCheck {
            ok: false,
            hash: None,
            in_force: false,
            files,
            changes: Vec::new(),
            diagnostics: diagnostics(&found),
        },
    }
}
