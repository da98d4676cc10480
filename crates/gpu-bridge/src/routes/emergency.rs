//! The way out when something is stuck.

use axum::extract::State;
use axum::http::StatusCode;
use gpu_api::EmergencyRequest;
use gpu_lease::{Emergency, Targets};

use super::{Answer, Shared, json};
use crate::convert::{EmergencyReport, targets, unavailable};
use crate::extract::{Admin, Json};
use crate::identity::Caller;

pub(super) async fn release(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    Json(asked): Json<EmergencyRequest>,
) -> Answer {
    let scene = bridge.scene();
    let targets = targets(&asked, &scene)?;
    let report = EmergencyReport::before(&targets, &scene);
    let mut ended = Vec::new();
    for targets in targets {
        let emergency = emergency(&asked, targets, &caller);
        ended.extend(
            bridge
                .handle
                .emergency(emergency)
                .await
                .map_err(unavailable)?,
        );
    }
    ended.sort_unstable();
    ended.dedup();
    let result = report.after(&ended, &bridge.scene());
    tracing::warn!(by = caller.name(), "emergency release: {}", result.summary);
    Ok(json(StatusCode::OK, &result))
}

fn emergency(asked: &EmergencyRequest, targets: Targets, caller: &Caller) -> Emergency {
    let reason = asked.reason.as_ref().map(ToString::to_string);
    Emergency {
        targets,
        reason: reason.unwrap_or_else(|| "emergency release".to_owned()),
        by: caller.name().to_owned(),
        kill: asked.kill,
        cordon: asked.cordon,
        force_unsafe: asked.force_unsafe,
    }
}
