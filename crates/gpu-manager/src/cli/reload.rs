//! `reload`, `watches`, and `gpu-manager --hot-reload`.

mod menu;
mod state;
mod watch;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use gpu_api::{ReloadOutcome, ReloadRequest, Text};
use gpu_client::{ClientError, Endpoint};

use crate::cli::args::{BrokerArgs, JsonArgs, ReloadArgs, ServeArgs};
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{clean, note, print, print_json};
use crate::cli::{Done, in_runtime, policy};
use crate::serve;

/// Reloads now, confirms, asks what to do, or says and switches how the policy watch stands.
pub(crate) async fn reload(context: &Context, args: ReloadArgs) -> Done {
    let json = args.output.json;
    if let Some(hash) = &args.confirm {
        return confirm(context, hash, json).await;
    }
    if args.interactive {
        return menu::run(context).await;
    }
    if args.history {
        return history(context, json).await;
    }
    let state = match (args.status, args.enable || args.disable) {
        (true, _) => context.client.reload_state().await?,
        (false, true) => context.client.switch_reload(args.enable).await?,
        (false, false) => return trigger(context, json).await,
    };
    match json {
        true => print_json(&state)?,
        false => {
            let safe = context.started_safe().await;
            print(&state::render(&state, safe, context.now(), context.paint))?;
        }
    }
    context.note_safe_start().await;
    Ok(exit::OK)
}

/// Reloads the broker that answers; starts one if there is none, none is installed, and a person is there.
pub(crate) fn hot(broker: &BrokerArgs) -> Result<ExitCode, Failure> {
    let context = Context::new(broker)?;
    let endpoint = context.client.endpoint().clone();
    match in_runtime(reload_running(context)) {
        Ok(Some(code)) => return Ok(ExitCode::from(code)),
        Ok(None) => {}
        Err(failure) => return Err(failure),
    }
    if let Some(failure) = must_not_start(broker, &endpoint) {
        return Err(failure);
    }
    note("no broker answers: starting one here, with hot reload on (Ctrl-C ends it)");
    match serve::run(ServeArgs::for_hot_reload()) {
        code if code == ExitCode::SUCCESS => Ok(ExitCode::from(exit::STARTED)),
        code => Ok(code),
    }
}

/// Says how the policy files are watched.
pub(crate) async fn watches(context: &Context, args: JsonArgs) -> Done {
    let state = context.client.reload_state().await?;
    match (args.json, &state.watch) {
        (true, watch) => print_json(watch)?,
        (false, Some(watch)) => print(&watch::render(watch, context.now(), context.paint))?,
        (false, None) if context.started_safe().await => print("no policy files are watched\n")?,
        (false, None) => print("no policy files are watched: the policy is built in\n")?,
    }
    context.note_disk_state().await;
    Ok(exit::OK)
}

async fn trigger(context: &Context, json: bool) -> Done {
    let result = context.client.reload(&ReloadRequest::default()).await?;
    policy::tell(context, &result, json)
}

/// Loads the plan that waits and whose hash begins with `hash`.
async fn confirm(context: &Context, hash: &Text<128>, json: bool) -> Done {
    let request = ReloadRequest {
        confirm: Some(hash.clone()),
        expect_plan: None,
    };
    let result = context.client.reload(&request).await?;
    let is_it = |plan: &String| plan.starts_with(&**hash);
    if result.outcome == ReloadOutcome::NeedsConfirmation && !result.plan.iter().any(is_it) {
        note(&format!(
            "`{}` is not the plan of now: the files changed or leases came since it was shown",
            clean(hash)
        ));
    }
    policy::tell(context, &result, json)
}

async fn history(context: &Context, json: bool) -> Done {
    let state = context.client.reload_state().await?;
    match json {
        true => print_json(&state.history)?,
        false => print(&state::render_history(
            &state.history,
            context.now(),
            context.paint,
        ))?,
    }
    context.note_disk_state().await;
    Ok(exit::OK)
}

/// Reloads, unless nobody listens.
async fn reload_running(context: Context) -> Result<Option<u8>, Failure> {
    match context.client.status().await {
        Err(ClientError::Unreachable { .. }) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(status) => {
            note(&format!(
                "reloading the broker at {} (pid {})",
                context.client.endpoint(),
                status.pid
            ));
            trigger(&context, false).await.map(Some)
        }
    }
}

/// Why no broker is started from here: somebody else is responsible for one, or nobody would see it.
fn must_not_start(broker: &BrokerArgs, endpoint: &Endpoint) -> Option<Failure> {
    let none = |why: String| {
        Failure::new(
            exit::NO_BROKER,
            format!("no broker answers at {endpoint}, and none is started: {why}"),
        )
    };
    if broker.url.as_ref().is_some_and(|url| !url.is_empty()) {
        return Some(none("its address was given".to_owned()));
    }
    if let Some(socket) = Endpoint::sockets().into_iter().find(|path| path.exists()) {
        let why = format!("`{}` says that there was one", socket.display());
        return Some(
            none(why).hint("see what became of it; if nothing should run there, remove the socket"),
        );
    }
    if let Some(unit) = installed_unit() {
        return Some(
            none(format!("`{unit}` is installed"))
                .hint("start it with `systemctl start gpu-managerd`"),
        );
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Some(
            none("this is no terminal".to_owned())
                .hint("start one with `gpu-manager serve --hot-reload`"),
        );
    }
    None
}

fn installed_unit() -> Option<&'static str> {
    const UNITS: [&str; 3] = [
        "/etc/systemd/system/gpu-managerd.service",
        "/usr/lib/systemd/system/gpu-managerd.service",
        "/lib/systemd/system/gpu-managerd.service",
    ];
    UNITS.into_iter().find(|unit| Path::new(unit).exists())
}
