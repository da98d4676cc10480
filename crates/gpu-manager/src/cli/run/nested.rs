//! `run` inside `run`: the outer lease serves if it is big enough.

use std::os::unix::process::CommandExt;
use std::process::Command;

use gpu_api::{Allocation, Bytes, ErrorCode, Lease, select};

use crate::cli::args::{RunArgs, WantArgs};
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::note;
use crate::cli::run::program;
use crate::cli::{show, target};

/// The lease that this process runs under.
pub(crate) fn outer_lease() -> Option<String> {
    std::env::var(gpu_api::ENV_LEASE)
        .ok()
        .filter(|id| !id.is_empty())
}

/// Becomes the command under the outer lease; what it answers is why it could not.
pub(crate) async fn enter(context: &Context, outer: &str, args: &RunArgs) -> Failure {
    if let Err(failure) = check(context, outer, &args.want).await {
        return failure;
    }
    note(&format!("runs under the outer lease {outer}"));
    let error = Command::new(&args.command[0])
        .args(&args.command[1..])
        .exec();
    program::failure(&args.command[0], &error)
}

async fn check(context: &Context, outer: &str, want: &WantArgs) -> Result<(), Failure> {
    let lease = match context.client.lease(outer).await {
        Ok(lease) => lease,
        Err(error) if error.code() == Some(ErrorCode::NotFound) => {
            return Err(refused(outer, "the broker does not know it"));
        }
        Err(error) => return Err(error.into()),
    };
    let picked: Vec<String> = want
        .gpu
        .iter()
        .filter(|gpu| *gpu != "auto")
        .cloned()
        .collect();
    let ids = match (picked.is_empty(), &want.select) {
        (false, _) => target::device_ids(context, &picked).await?,
        (true, Some(expression)) => {
            select::ids(expression).map_err(|error| refused(outer, &error.to_string()))?
        }
        (true, None) => Vec::new(),
    };
    match shortfall(&lease, want, &ids) {
        None => Ok(()),
        Some(why) => Err(refused(outer, &why)),
    }
}

fn refused(outer: &str, why: &str) -> Failure {
    Failure::own(format!(
        "this runs under lease {outer} already, which cannot serve: {why}"
    ))
    .hint(format!(
        "ask for less, or for a lease of its own with `env -u {}`",
        gpu_api::ENV_LEASE
    ))
}

/// Why `lease` does not cover what is wanted. Who wants nothing in particular is content with any.
fn shortfall(lease: &Lease, want: &WantArgs, ids: &[String]) -> Option<String> {
    if !lease.is_granted() {
        return Some(format!(
            "it is over ({})",
            show::end_reason(lease.end_reason)
        ));
    }
    if let Some(class) = want.class.as_ref().filter(|class| ***class != *lease.class) {
        return Some(format!("its class is `{}`, not `{class}`", lease.class));
    }
    if want.gpus.is_none() && ids.is_empty() && want.gpu_memory.is_none() && !want.exclusive {
        return None;
    }
    let whole = want.exclusive || want.gpu_memory.is_none();
    let fits = |held: &&Allocation| {
        let picked = ids.is_empty() || ids.contains(&held.device);
        let enough = want
            .gpu_memory
            .is_none_or(|memory| held.exclusive || held.memory >= memory.0);
        picked && enough && (held.exclusive || !whole)
    };
    let fitting = lease.allocations.iter().filter(fits).count();
    let wanted = want
        .gpus
        .map_or(ids.len().max(1), |gpus| gpus.get() as usize);
    (fitting < wanted).then(|| {
        let each = want
            .gpu_memory
            .map_or("the whole".to_owned(), |memory: Bytes| memory.to_string());
        let devices = match wanted {
            1 => "a device".to_owned(),
            many => format!("each of {many} devices"),
        };
        format!(
            "it holds {}; {each} of {devices} is wanted",
            show::holdings(lease)
        )
    })
}

#[cfg(test)]
mod tests {
    use gpu_api::LeaseState;

    use super::*;
    use crate::cli::show::example;

    #[test]
    fn the_outer_lease_must_cover_what_is_wanted() {
        let lease = example::active("l-1");
        let want = |change: fn(&mut WantArgs)| {
            let mut want = WantArgs::default();
            change(&mut want);
            want
        };
        let memory = |gib: u64| Some(Bytes(gib << 30));
        let fits = |lease: &Lease, want: &WantArgs| shortfall(lease, want, &[]).is_none();

        assert!(fits(&lease, &WantArgs::default()));
        assert!(fits(
            &lease,
            &WantArgs {
                gpu_memory: memory(12),
                ..WantArgs::default()
            }
        ));
        assert!(!fits(
            &lease,
            &WantArgs {
                gpu_memory: memory(13),
                ..WantArgs::default()
            }
        ));
        assert!(!fits(&lease, &want(|want| want.exclusive = true)));
        assert!(!fits(
            &lease,
            &want(|want| want.class = "batch".parse().ok())
        ));
        assert!(!fits(&lease, &want(|want| want.gpus = 2.try_into().ok())));
        assert!(
            shortfall(
                &lease,
                &WantArgs {
                    gpu_memory: memory(1),
                    ..WantArgs::default()
                },
                &["sim-0".to_owned()]
            )
            .is_none()
        );
        assert!(
            shortfall(
                &lease,
                &WantArgs {
                    gpu_memory: memory(1),
                    ..WantArgs::default()
                },
                &["sim-1".to_owned()]
            )
            .is_some()
        );

        let over = Lease {
            state: LeaseState::Ended,
            ..lease.clone()
        };
        assert!(!fits(&over, &WantArgs::default()));

        let mut whole = lease;
        whole.allocations[0].exclusive = true;
        assert!(fits(&whole, &want(|want| want.exclusive = true)));
        assert!(fits(
            &whole,
            &WantArgs {
                gpu_memory: memory(12),
                ..WantArgs::default()
            }
        ));
    }
}
