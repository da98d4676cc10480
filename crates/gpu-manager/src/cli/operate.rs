//! `drain`, `revoke`, `cordon`, `uncordon`, `clear-quarantine`: what operators do to leases and devices.

use gpu_api::{CordonRequest, Device, DrainRequest, Lease, Span};
use serde::Serialize;

use crate::cli::Done;
use crate::cli::args::{CordonArgs, DrainArgs, RevokeArgs, UncordonArgs};
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{print, print_json, until};
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
            device_line(&result.device, context),
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
        format!("{}\n", device_line(&device, context))
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
        format!("{}\n", device_line(&device, context))
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
        format!("{}\n", device_line(&device, context))
    })
}

fn told(value: &impl Serialize, json: bool, line: impl FnOnce() -> String) -> Done {
    match json {
        true => print_json(value)?,
        false => print(&line())?,
    }
    Ok(exit::OK)
}

fn device_line(device: &Device, context: &Context) -> String {
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
                .map(|at| format!(", lifts {}", until(at, context.now())))
                .unwrap_or_default();
            format!(
                "is cordoned by {}{why}{end}; its {} leases go on",
                cordon.by,
                device.leases.len()
            )
        }
    };
    crate::cli::output::clean(&format!("GPU {} ({}) {state}", device.index, device.id))
}
