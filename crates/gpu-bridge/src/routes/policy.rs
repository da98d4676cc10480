//! The policy in force, and checking one that is not.

use axum::extract::State;
use axum::http::StatusCode;
use gpu_api::{
    BODY_BYTES_MAX, ErrorCode, POLICY_FILES_MAX, PolicyCheckRequest, PolicyText, Problem,
};
use gpu_broker::SourceFile;

use super::reload::blocking;
use super::{Answer, Shared, json};
use crate::convert::{Scene, policy, policy_check};
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
    let texts = asked.files.map(texts).transpose()?;
    let check = blocking(&bridge, move |reloader| {
        let files = texts.map_or_else(|| reloader.read().map_err(unreadable), Ok)?;
        let names = files.iter().map(|file| file.name.clone()).collect();
        Ok::<_, Problem>(policy_check(names, reloader.check(&files)))
    });
    Ok(json(StatusCode::OK, &check.await??))
}

fn texts(texts: Vec<PolicyText>) -> Result<Vec<SourceFile>, Problem> {
    if texts.len() > POLICY_FILES_MAX {
        let detail = format!(
            "`files`: {} are too many: the most is {POLICY_FILES_MAX}",
            texts.len()
        );
        return Err(Problem::new(ErrorCode::InvalidRequest, detail));
    }
    let file = |file: PolicyText| SourceFile::new(file.name.into_string(), file.text);
    Ok(texts.into_iter().map(file).collect())
}

fn unreadable(why: String) -> Problem {
    Problem::new(
        ErrorCode::InvalidRequest,
        format!("the policy files cannot be read: {why}"),
    )
}
