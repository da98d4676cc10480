//! `run`: a command under a lease.
//!
//! The child exists before the lease: a launcher, in its own process group, that blocks until it is told the
//! environment and then becomes the command. So the lease names the process that will use the devices, and
//! outlives this one if this one dies.

mod child;
mod launcher;
mod nested;
mod program;
mod supervise;
mod terminal;

use std::ffi::OsStr;
use std::path::Path;

use gpu_api::{AcquireRequest, HolderKind, Span};

use crate::cli::Done;
use crate::cli::args::RunArgs;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::grant;
use crate::cli::output::note;
use crate::cli::patience::Patience;
use crate::cli::run::child::Child;
use crate::cli::run::launcher::Launcher;
use crate::cli::run::supervise::Supervisor;
use crate::cli::run::terminal::Terminal;
use crate::cli::show;
use crate::cli::signals::Signals;

pub(crate) use launcher::launch;

/// Waits for a lease, runs the command under it, and exits as the command does.
pub(crate) async fn run(context: &Context, args: RunArgs) -> Done {
    program::find(&args.command[0])?;
    match nested::outer_lease() {
        Some(outer) => Err(nested::enter(context, &outer, &args).await.of_supervisor()),
        None => supervised(context, args)
            .await
            .map_err(Failure::of_supervisor),
    }
}

async fn supervised(context: &Context, args: RunArgs) -> Done {
    let mut patience = Patience::new(args.want.wait_timeout.unwrap_or(Span::MAX));
    patience.reach(context).await?;
    let context = &context.on_socket().await;
    if !context.client.endpoint().has_verified_peer() {
        note(
            "over TCP the broker cannot tell whose process this is: the lease lives by heartbeats alone",
        );
    }
    let mut signals = Signals::new()?;
    let launcher = Launcher::spawn(&args.command)?;
    let request = request(context, &args, launcher.pid(), &mut patience).await?;
    let granted = grant::obtain(context, &request, &mut signals, &mut patience).await?;
    note(&format!(
        "{} holds {}",
        granted.lease.id,
        show::holdings(&granted.lease)
    ));
    let child = Child::watch(launcher.pid())?;
    let terminal = Terminal::of_stdin();
    if let Some(terminal) = &terminal {
        terminal.give_to(child.pid());
    }
    if let Err(failure) = launcher.start(&granted.lease.env) {
        grant::give_back(context, &granted.lease.id, granted.lease.secret.as_deref()).await?;
        return Err(failure);
    }
    Supervisor::new(context, child, granted, signals, terminal, args.on_lost)
        .run()
        .await
}

async fn request(
    context: &Context,
    args: &RunArgs,
    child: rustix::process::Pid,
    patience: &mut Patience,
) -> Result<AcquireRequest, Failure> {
    let pid = child.as_raw_pid().unsigned_abs();
    let name = Path::new(&args.command[0])
        .file_name()
        .and_then(OsStr::to_str);
    let mut holder = grant::holder(context, &args.want, name, Some(pid));
    holder.supervised = holder.kind == HolderKind::Process;
    let mut request = grant::request(context, &args.want, holder, patience).await?;
    let wait = patience.left();
    request.wait = Some(wait.unwrap_or_default());
    request.queue = wait.is_some();
    Ok(request)
}
