//! The reading verbs: devices, leases, queue, status, why.

mod device;
pub(crate) mod diagnostic;
#[cfg(test)]
pub(crate) mod example;
mod lease;
mod named;
pub(crate) mod plan;
mod status;
mod waiting;

use std::path::Path;

use gpu_api::{DeviceList, Lease, LeaseList};
use gpu_client::ClientError;

use crate::cli::Done;
use crate::cli::args::{JsonArgs, LeasesArgs, StoredArgs, WhyArgs};
use crate::cli::context::{Context, disk_note};
use crate::cli::exit::{self, Failure};
use crate::cli::output::{ago, note, print, print_json};
use crate::offline;

pub(crate) use lease::{drain_line, end_reason, holdings, lease_line, lease_table};
pub(crate) use waiting::blocker_line;

/// Lists the devices.
pub(crate) async fn devices(context: &Context, args: JsonArgs) -> Done {
    let devices = context.client.devices().await?;
    match args.json {
        true => print_json(&DeviceList { devices })?,
        false if devices.is_empty() && context.started_safe().await => {
            print("no devices are known\n")?;
        }
        false => print(&device::render(&devices, context.now(), context.paint))?,
    }
    context.note_disk_state().await;
    Ok(exit::OK)
}

/// Lists the leases; without a broker, those in its store.
pub(crate) async fn leases(context: &Context, args: LeasesArgs) -> Done {
    let context = &context.of_state_dir(args.stored.state_dir.as_deref());
    let mut leases = match context.client.all_leases(!args.all).await {
        Ok(leases) => {
            context.note_disk_state().await;
            leases
        }
        Err(error) => {
            let dir = args.stored.state_dir.as_deref();
            let stored = stored(context, dir, error, offline::read)?;
            stored
                .leases
                .into_iter()
                .filter(|lease| args.all || !is_history(lease))
                .collect()
        }
    };
    leases.sort_by(|a, b| a.created_at.cmp(&b.created_at));
    if args.stored.output.json {
        print_json(&LeaseList { leases, next: None })?;
    } else if leases.is_empty() {
        print("no leases\n")?;
    } else {
        let names = named::holders(&leases);
        named::name_holders(&mut leases, &names);
        print(&lease_table(&leases, context.now()).render(context.paint))?;
    }
    Ok(exit::OK)
}

/// Lists who waits.
pub(crate) async fn queue(context: &Context, args: JsonArgs) -> Done {
    let mut queue = context.client.queue().await?;
    if args.json {
        print_json(&queue)?;
    } else {
        let names = named::holders(&queue.waiters);
        named::name_holders(&mut queue.waiters, &names);
        print(&waiting::render_queue(&queue, context.now(), context.paint))?;
    }
    context.note_disk_state().await;
    Ok(exit::OK)
}

/// Shows the broker; without one, what its store says.
pub(crate) async fn status(context: &Context, args: StoredArgs) -> Done {
    let context = &context.of_state_dir(args.state_dir.as_deref());
    match context.client.status().await {
        Ok(status) if args.output.json => print_json(&status)?,
        Ok(status) => {
            print(&status::render(&status, context.now(), context.paint))?;
            // A broker that started safe has said above that it reads no policy file.
            let line = disk_note(&status.policy).filter(|_| status.safe_start.is_none());
            if let Some(line) = line {
                note(&line);
            }
        }
        Err(error) => {
            let dir = args.state_dir.as_deref();
            let stored = stored(context, dir, error, offline::read)?;
            match args.output.json {
                true => print_json(&status::stored_json(&stored))?,
                false => print(&status::render_stored(&stored, context.paint))?,
            }
        }
    }
    Ok(exit::OK)
}

/// Explains one lease.
pub(crate) async fn why(context: &Context, args: WhyArgs) -> Done {
    let mut lease = match named::is_id(&args.lease) {
        true => context.client.lease(&args.lease).await?,
        false => named::find(context.client.all_leases(false).await?, &args.lease)?,
    };
    if args.output.json {
        print_json(&lease)?;
    } else {
        name_mentioned(context, &mut lease).await?;
        print(&waiting::explain(&lease, context.now(), context.paint))?;
    }
    context.note_disk_state().await;
    Ok(exit::OK)
}

/// Puts the holder's name to every lease that the reason of `lease` to wait mentions.
pub(crate) async fn name_mentioned(
    context: &Context,
    lease: &mut Lease,
) -> Result<(), ClientError> {
    if named::mentions_leases(lease) {
        let names = named::holders(&context.client.all_leases(true).await?);
        named::name_holders(std::slice::from_mut(lease), &names);
    }
    Ok(())
}

/// What a broker that is not there left in its store, said to be that; or else why there is nothing to show. Who
/// gave an address and no state directory means that broker and no other: the store of the usual place may be another's.
pub(crate) fn stored<T>(
    context: &Context,
    state_dir: Option<&Path>,
    error: ClientError,
    read: impl FnOnce(Option<&Path>) -> Result<Option<T>, String>,
) -> Result<T, Failure> {
    if !matches!(error, ClientError::Unreachable { .. }) {
        return Err(error.into());
    }
    if context.is_stated && state_dir.is_none() {
        return Err(Failure::from(error)
            .and("no store was read: its address does not say where that is")
            .hint(
                "start it, or read its store: on the host of that broker, `--state-dir DIR` says where its state is",
            ));
    }
    let path = offline::store_path(state_dir);
    let path = path.display();
    match read(state_dir) {
        Ok(Some(stored)) => {
            note(&format!(
                "{error}; this is what `{path}` says, as it was left"
            ));
            Ok(stored)
        }
        Ok(None) => {
            Err(no_store(context, error).and(&format!("there is no store `{path}` either")))
        }
        Err(why) => Err(Failure::new(exit::NO_BROKER, format!("{error}; {why}"))),
    }
}

/// Neither a broker nor a store is where it was looked for.
fn no_store(context: &Context, error: ClientError) -> Failure {
    let address = match context.is_stated {
        // That was said, and does not help.
        true => "",
        false => ", say where it is with GPU_MANAGER_URL (`http://HOST:PORT` or `unix:/PATH`)",
    };
    Failure::from(error).hint(format!(
        "start one with `gpu-manager serve`{address}, or say where its state is with `--state-dir DIR`"
    ))
}

fn is_history(lease: &Lease) -> bool {
    lease.state == gpu_api::LeaseState::Ended
}

/// `3m` since the lease was granted, or asked for.
fn age(lease: &Lease, now: jiff::Timestamp) -> String {
    ago(lease.granted_at.as_ref().unwrap_or(&lease.created_at), now)
}
