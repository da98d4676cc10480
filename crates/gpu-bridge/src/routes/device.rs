//! Devices, and what operators do to them.

use axum::extract::State;
use axum::http::StatusCode;
use gpu_api::{CordonRequest, DeviceDrainResult, DeviceList, DrainRequest};
use gpu_lease::{Command, Cordon, DeviceKey};

use super::lease::notice;
use super::{Answer, Shared, json};
use crate::app::Bridge;
use crate::convert::{Scene, deadline, device_refused, no_such_device};
use crate::extract::{Admin, DeviceInPath, OptionalJson};
use crate::problem::Refusal;

pub(super) async fn list(State(bridge): State<Shared>) -> Answer {
    let devices = Scene::of_devices(&bridge.handle).devices();
    Ok(json(StatusCode::OK, &DeviceList { devices }))
}

pub(super) async fn cordon(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    DeviceInPath(id): DeviceInPath,
    OptionalJson(asked): OptionalJson<CordonRequest>,
) -> Answer {
    let until = asked
        .until
        .as_ref()
        .map(|until| deadline(until, bridge.handle.now()));
    let reason = asked.reason.as_ref().map(ToString::to_string);
    let device = DeviceKey::local(&id);
    let cordon = Cordon {
        reason: reason.unwrap_or_else(|| format!("cordoned by {}", caller.name())),
        by: caller.name().to_owned(),
        until: until.transpose()?,
    };
    done(&bridge, &id, Command::Cordon { device, cordon }).await
}

pub(super) async fn uncordon(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    DeviceInPath(id): DeviceInPath,
    OptionalJson(CordonRequest { .. }): OptionalJson<CordonRequest>,
) -> Answer {
    let command = Command::Uncordon {
        device: DeviceKey::local(&id),
        by: caller.name().to_owned(),
    };
    done(&bridge, &id, command).await
}

pub(super) async fn clear_quarantine(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    DeviceInPath(id): DeviceInPath,
    OptionalJson(CordonRequest { .. }): OptionalJson<CordonRequest>,
) -> Answer {
    let command = Command::ClearQuarantine {
        device: DeviceKey::local(&id),
        by: caller.name().to_owned(),
    };
    done(&bridge, &id, command).await
}

pub(super) async fn drain(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    DeviceInPath(id): DeviceInPath,
    OptionalJson(asked): OptionalJson<DrainRequest>,
) -> Answer {
    let command = Command::DrainDevice {
        device: DeviceKey::local(&id),
        notice: notice(&asked, &caller),
    };
    bridge
        .handle
        .device(command)
        .await
        .map_err(|error| device_refused(&error))?;
    let scene = Scene::of_devices(&bridge.handle);
    let state = scene
        .device_state(&DeviceKey::local(&id))
        .ok_or_else(|| no_such_device(&id))?;
    let occupants = state.occupants.iter().filter_map(|id| scene.find(*id));
    let result = DeviceDrainResult {
        device: scene.device(state),
        draining: occupants
            .filter(|lease| lease.held().is_some())
            .map(|lease| scene.lease(&lease))
            .collect(),
    };
    Ok(json(StatusCode::OK, &result))
}

/// Does what `command` says and answers the device as it is then.
async fn done(bridge: &Bridge, id: &str, command: Command) -> Answer {
    bridge
        .handle
        .device(command)
        .await
        .map_err(|error| device_refused(&error))?;
    let scene = Scene::of_devices(&bridge.handle);
    let state = scene.device_state(&DeviceKey::local(id));
    let state = state.ok_or_else(|| Refusal::from(no_such_device(id)))?;
    Ok(json(StatusCode::OK, &scene.device(state)))
}
