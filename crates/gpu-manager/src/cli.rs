//! The command line: from arguments to an exit code.

mod acquire;
pub(crate) mod args;
mod ask;
mod context;
mod emergency;
mod events;
pub(crate) mod exit;
mod grant;
mod operate;
mod output;
mod patience;
mod policy;
mod records;
mod reload;
mod run;
mod show;
mod signals;
mod store;
mod table;
mod target;
mod token;

use std::future::Future;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::{probe, serve};
use args::{Cli, Command};
use context::Context;
use exit::Failure;

/// Reads the arguments of the process and does what they say.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// What comes of a verb: its exit code.
type Done = Result<u8, Failure>;

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let Some(command) = cli.command else {
        return match cli.hot_reload {
            true => reload::hot(&cli.broker),
            false => Ok(help()),
        };
    };
    match command {
        Command::Completion { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "gpu-manager",
                &mut std::io::stdout(),
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Launch { command } => Ok(run::launch(&command)),
        Command::Probe { args } => Ok(probe::run(&args)),
        Command::Serve(args) => Ok(serve::run(args)),
        Command::Store { command } => store::store(command).map(ExitCode::from),
        command => {
            let context = Context::new(&cli.broker)?;
            in_runtime(talk(context, command)).map(ExitCode::from)
        }
    }
}

/// The verbs that talk to a broker.
async fn talk(context: Context, command: Command) -> Done {
    match command {
        Command::Acquire(args) => acquire::acquire(&context, args).await,
        Command::ClearQuarantine(args) => operate::clear_quarantine(&context, args).await,
        Command::Cordon(args) => operate::cordon(&context, args).await,
        Command::Devices(args) => show::devices(&context, args).await,
        Command::Drain(args) => operate::drain(&context, args).await,
        Command::Events(args) => events::events(&context, args).await,
        Command::History(args) => records::history(&context, args).await,
        Command::Leases(args) => show::leases(&context, args).await,
        Command::Policy { command } => policy::policy(&context, command).await,
        Command::Queue(args) => show::queue(&context, args).await,
        Command::Release(args) if args.emergency => emergency::release(&context, args).await,
        Command::Release(args) => acquire::release(&context, args).await,
        Command::Reload(args) => reload::reload(&context, args).await,
        Command::Renew(args) => acquire::renew(&context, args).await,
        Command::Revoke(args) => operate::revoke(&context, args).await,
        Command::Run(args) => run::run(&context, args).await,
        Command::Status(args) => show::status(&context, args).await,
        Command::Token { command } => token::token(&context, command).await,
        Command::Uncordon(args) => operate::uncordon(&context, args).await,
        Command::Usage(args) => records::usage(&context, args).await,
        Command::Watches(args) => reload::watches(&context, args).await,
        Command::Why(args) => show::why(&context, args).await,
        Command::Completion { .. }
        | Command::Launch { .. }
        | Command::Probe { .. }
        | Command::Serve(_)
        | Command::Store { .. } => {
            unreachable!("dispatched before there is a runtime")
        }
    }
}

/// Runs `future` on the calling thread, which job control needs to be the one that signals reach.
fn in_runtime<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::own(format!("failed to start the runtime: {error}")))?;
    let result = runtime.block_on(future);
    // A thread that waits for a child that goes on must not keep this process.
    runtime.shutdown_background();
    result
}

fn help() -> ExitCode {
    // Nothing can be done about a terminal that is gone.
    let _ = Cli::command().print_help();
    ExitCode::from(exit::USAGE)
}

/// What clap has to say: help and versions are good, a mistake is not, and `run` says so with 125.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    let is_run = || {
        std::env::args()
            .skip(1)
            .find(|arg| !arg.starts_with('-'))
            .is_some_and(|arg| arg == "run")
    };
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if is_run() => ExitCode::from(exit::OWN_FAILURE),
        _ => ExitCode::from(exit::USAGE),
    }
}
