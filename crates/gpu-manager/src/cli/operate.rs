//! `drain`, `revoke`, `cordon`, `uncordon`, `clear-quarantine`: what operators do to leases and devices.

use gpu_api::{CordonRequest, Device, DrainRequest, Lease, Span};
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::Done;
use crate::cli::args::{CordonArgs, DrainArgs, RevokeArgs, UncordonArgs};
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{clean, count, print, print_json, until};
use crate::cli::{show, target};

/// Asks for a lease, or all of a device, to be given back.
pub(crate) async fn drain(context: &Context, args: DrainArgs) -> Done {
    let request = DrainRequest {
        grace: args.grace,
        reason: args.reason,
    };
    let device = match (args.lease, args.device) {
        (Some(lease), _) => {
            let lease = context.client.drain_lease(&lease, &request).await?;
            return told(&lease, args.output.json, || {
                show::lease_line(&lease, context.now())
            });
        }
        (None, Some(device)) => target::device_id(context, &device).await?,
        (None, None) => return Err(Failure::usage("neither a lease nor a device is named")),
    };
    let result = context.client.drain_device(&device, &request).await?;
    told(&result, args.output.json, || {
        let lines = result
            .draining
            .iter()
            .map(|lease| format!("  {}", show::lease_line(lease, context.now())));
        format!(
            "{}\n{}",
            device_line(&result.device, context.now()),
            lines.collect::<String>()
        )
    })
}

/// Ends a lease by force.
pub(crate) async fn revoke(context: &Context, args: RevokeArgs) -> Done {
    let request = DrainRequest {
        grace: None::<Span>,
        reason: args.reason,
    };
    let lease: Lease = context.client.revoke(&args.lease, &request).await?;
    told(&lease, args.output.json, || {
        show::lease_line(&lease, context.now())
    })
}

/// No new grants on a device.
pub(crate) async fn cordon(context: &Context, args: CordonArgs) -> Done {
    let id = target::device_id(context, &args.device).await?;
    let request = CordonRequest {
        reason: args.reason,
        until: args.until,
    };
    let device = context.client.cordon(&id, &request).await?;
    told(&device, args.output.json, || {
        format!("{}\n", device_line(&device, context.now()))
    })
}

/// Grants on a device again.
pub(crate) async fn uncordon(context: &Context, args: UncordonArgs) -> Done {
    let id = target::device_id(context, &args.device).await?;
    let request = CordonRequest {
        reason: args.reason,
        until: None,
    };
    let device = context.client.uncordon(&id, &request).await?;
    told(&device, args.output.json, || {
        format!("{}\n", device_line(&device, context.now()))
    })
}

/// Believes that quarantined memory of a device is free.
pub(crate) async fn clear_quarantine(context: &Context, args: UncordonArgs) -> Done {
    let id = target::device_id(context, &args.device).await?;
    let request = CordonRequest {
        reason: args.reason,
        until: None,
    };
    let device = context.client.clear_quarantine(&id, &request).await?;
    told(&device, args.output.json, || {
        format!("{}\n", device_line(&device, context.now()))
    })
}

fn told(value: &impl Serialize, json: bool, line: impl FnOnce() -> String) -> Done {
    match json {
        true => print_json(value)?,
        false => print(&line())?,
    }
    Ok(exit::OK)
}

/// What becomes of what is held there.
fn held(device: &Device) -> String {
    let verb = |one: &'static str, many: &'static str| match device.leases.len() {
        1 => one,
        _ => many,
    };
    match (device.leases.len(), &device.drain) {
        (0, _) => "nothing is held there".to_owned(),
        (held, None) => format!(
            "{} {} on",
            count(held, "lease", "leases"),
            verb("goes", "go")
        ),
        (held, Some(_)) => {
            format!(
                "{} {} asked to stop",
                count(held, "lease", "leases"),
                verb("is", "are")
            )
        }
    }
}

fn device_line(device: &Device, now: Timestamp) -> String {
    let state = match &device.cordon {
        None => "takes new grants".to_owned(),
        Some(cordon) => {
            let why = cordon
                .reason
                .as_ref()
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            let end = cordon
                .until
                .as_ref()
                .map(|at| format!(", lifts {}", until(at, now)))
                .unwrap_or_default();
            format!("is cordoned by {}{why}{end}; {}", cordon.by, held(device))
        }
    };
    clean(&format!("GPU {} ({}) {state}", device.index, device.id))
}

#[cfg(test)]
mod tests {
    use gpu_api::{Cordon, DeviceDrain, DeviceLease};

    use super::*;
    use crate::cli::show::example;

    #[test]
    fn a_cordon_says_what_becomes_of_what_is_held() {
        let lease = |id: &str| DeviceLease {
            id: id.to_owned(),
            ..example::device_lease()
        };
        let cordoned = |leases: Vec<DeviceLease>, drain: Option<DeviceDrain>| Device {
            cordon: Some(Cordon {
                by: "ann".to_owned(),
                reason: Some("new fan".to_owned()),
                ..example::cordon()
            }),
            leases,
            drain,
            ..example::device(0, "GPU-1")
        };
        let line = |device: &Device| device_line(device, example::now());
        assert_eq!(
            line(&cordoned(vec![], None)),
            "GPU 0 (GPU-1) is cordoned by ann: new fan; nothing is held there"
        );
        assert_eq!(
            line(&cordoned(vec![lease("l-1")], None)),
            "GPU 0 (GPU-1) is cordoned by ann: new fan; 1 lease goes on"
        );
        assert_eq!(
            line(&cordoned(
                vec![lease("l-1"), lease("l-2")],
                Some(example::device_drain())
            )),
            "GPU 0 (GPU-1) is cordoned by ann: new fan; 2 leases are asked to stop"
        );
    }
}
