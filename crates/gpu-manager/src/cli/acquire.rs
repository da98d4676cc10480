//! `acquire`, `renew`, `release`: leases by hand.

use std::fmt::Write;

use gpu_api::Lease;
use gpu_client::{Gone, IdempotencyKey, Pulse};

use crate::cli::Done;
use crate::cli::args::{AcquireArgs, ENV_SECRET, LeaseArgs, ReleaseArgs};
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::grant::{self, Granted};
use crate::cli::output::{note, print, print_json};
use crate::cli::patience::Patience;
use crate::cli::show;
use crate::cli::signals::Signals;

/// Asks for a lease; `--hold` keeps it until a signal comes or it ends.
pub(crate) async fn acquire(context: &Context, args: AcquireArgs) -> Done {
    let mut patience = Patience::new(args.want.wait_timeout.unwrap_or_default());
    patience.reach(context).await?;
    // Only a process that stays can vouch for its lease by living; what comes after this one does so by renewals.
    let held_by = args.hold.then(std::process::id);
    let context = &match args.hold {
        true => context.on_socket().await,
        false => context.clone(),
    };
    let holder = grant::holder(context, &args.want, None, held_by);
    let mut request = grant::request(context, &args.want, holder, &mut patience).await?;
    request.wait = patience.left().or(request.wait);
    if !request.queue && !args.hold {
        let lease = context
            .client
            .acquire(&request, &IdempotencyKey::random())
            .await?;
        return show_grant(&lease, args.output.json);
    }
    let mut signals = Signals::new()?;
    let granted = grant::obtain(context, &request, &mut signals, &mut patience).await?;
    show_grant(&granted.lease, args.output.json)?;
    match args.hold {
        true => hold(context, granted, signals).await,
        false => Ok(exit::OK),
    }
}

/// One heartbeat.
pub(crate) async fn renew(context: &Context, args: LeaseArgs) -> Done {
    let lease = context
        .client
        .renew(&args.id, args.secret.as_deref())
        .await?;
    if args.output.json {
        print_json(&lease)?;
        return Ok(exit::OK);
    }
    print(&show::lease_line(&lease, context.now()))?;
    Ok(exit::OK)
}

/// Gives one lease back.
pub(crate) async fn release(context: &Context, args: ReleaseArgs) -> Done {
    let from_environment = || {
        std::env::var(gpu_api::ENV_LEASE)
            .ok()
            .filter(|id| !id.is_empty())
    };
    let id = args
        .id
        .map(String::from)
        .or_else(from_environment)
        .ok_or_else(|| {
            Failure::usage("no lease is named")
                .hint("`gpu-manager leases` lists them; GPU_MANAGER_LEASE names one too")
        })?;
    let lease = context.client.release(&id, args.secret.as_deref()).await?;
    if args.output.json {
        print_json(&lease)?;
        return Ok(exit::OK);
    }
    print(&show::lease_line(&lease, context.now()))?;
    Ok(exit::OK)
}

/// JSON for programs, else lines that a shell can evaluate, with a summary for people beside them.
fn show_grant(lease: &Lease, json: bool) -> Done {
    if json {
        print_json(lease)?;
        return Ok(exit::OK);
    }
    note(&format!("{} holds {}", lease.id, show::holdings(lease)));
    print(&exports(lease))?;
    Ok(exit::OK)
}

fn exports(lease: &Lease) -> String {
    let secret = lease.secret.as_ref().map(|secret| (ENV_SECRET, secret));
    let named = lease.env.iter().map(|(name, value)| (name.as_str(), value));
    named
        .chain(secret)
        .fold(String::new(), |mut lines, (name, value)| {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "export {name}={}", quoted(value));
            lines
        })
}

/// `value` as one word of a shell.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/@%+=".contains(c);
    match !value.is_empty() && value.chars().all(plain) {
        true => value.to_owned(),
        false => format!("'{}'", value.replace('\'', "'\\''")),
    }
}

async fn hold(context: &Context, granted: Granted, mut signals: Signals) -> Done {
    let Granted {
        lease,
        mut heartbeat,
    } = granted;
    loop {
        let pulse = tokio::select! {
            pulse = heartbeat.next() => pulse,
            _ = signals.next() => {
                grant::give_back(context, &lease.id, lease.secret.as_deref()).await?;
                return Ok(exit::OK);
            }
        };
        match pulse {
            Some(Pulse::Lease(news)) => {
                if let Some(drain) = &news.drain {
                    note(&show::drain_line(drain));
                }
            }
            Some(Pulse::Away(error)) => note(&error.to_string()),
            Some(Pulse::Gone(Gone::Ended(lease))) => {
                return Err(Failure::refused(format!(
                    "{} ended: {}",
                    lease.id,
                    show::end_reason(lease.end_reason)
                )));
            }
            Some(Pulse::Gone(Gone::Unknown)) | None => {
                return Err(Failure::refused(format!(
                    "the broker does not know {} any more",
                    lease.id
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_safe_to_evaluate() {
        assert_eq!(quoted("GPU-1,GPU-2"), "GPU-1,GPU-2");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's $HOME"), "'it'\\''s $HOME'");
    }
}
