//! `reload`, and `gpu-manager --hot-reload`.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use gpu_api::{Fate, ReloadOutcome, ReloadRequest, ReloadResult, ReloadState, WatchState};
use gpu_client::{ClientError, Endpoint};

use crate::cli::args::{BrokerArgs, JsonArgs, ReloadArgs, ServeArgs};
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{Paint, Tone, ago, clean, note, print, print_json, until};
use crate::cli::policy::render_diagnostics;
use crate::cli::{Done, in_runtime};
use crate::serve;

/// Reloads now, or says and switches how the policy watch stands.
pub(crate) async fn reload(context: &Context, args: ReloadArgs) -> Done {
    if !args.status && !args.enable && !args.disable {
        return trigger(context, args.output.json).await;
    }
    let state = match args.status {
        true => context.client.reload_state().await?,
        false => context.client.switch_reload(args.enable).await?,
    };
    match args.output.json {
        true => print_json(&state)?,
        false => print(&render_state(&state, context))?,
    }
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
        (false, Some(watch)) => print(&render_watch(watch, context))?,
        (false, None) => print("no policy files are watched: the policy is built in\n")?,
    }
    context.note_disk_state().await;
    Ok(exit::OK)
}

fn render_watch(watch: &WatchState, context: &Context) -> String {
    let mut lines = vec![format!("backend   {}", clean(&watch.backend))];
    lines.extend(
        watch
            .warning
            .iter()
            .map(|why| format!("warning   {}", clean(why))),
    );
    lines.extend(
        watch
            .paths
            .iter()
            .map(|path| format!("watched   {}", clean(path))),
    );
    lines.extend(
        watch
            .troubles
            .iter()
            .map(|what| format!("trouble   {}", clean(what))),
    );
    let seen = watch.last_event_at.as_ref().map(|at| {
        let path = watch.last_event_path.as_deref().unwrap_or("no path");
        format!("last      {} ago: {}", ago(at, context.now()), clean(path))
    });
    lines.push(seen.unwrap_or_else(|| "last      nothing yet".to_owned()));
    lines.push(format!(
        "counted   {} changes, {} ignored",
        watch.changed, watch.ignored
    ));
    lines.join("\n") + "\n"
}

async fn trigger(context: &Context, json: bool) -> Done {
    let result = context.client.reload(&ReloadRequest::default()).await?;
    match json {
        true => print_json(&result)?,
        false => print(&render_result(&result, context.paint))?,
    }
    Ok(code_of(result.outcome))
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

fn code_of(outcome: ReloadOutcome) -> u8 {
    match outcome {
        ReloadOutcome::Applied
        | ReloadOutcome::RolledBack
        | ReloadOutcome::Running
        | ReloadOutcome::Unchanged => exit::OK,
        ReloadOutcome::Failed | ReloadOutcome::Rejected | ReloadOutcome::Resting => exit::REFUSED,
        ReloadOutcome::Moved => exit::MOVED,
        ReloadOutcome::NeedsConfirmation => exit::NEEDS_CONFIRMATION,
    }
}

fn render_result(result: &ReloadResult, paint: Paint) -> String {
    let tone = match result.outcome {
        ReloadOutcome::Applied | ReloadOutcome::Unchanged => Tone::Good,
        ReloadOutcome::NeedsConfirmation
        | ReloadOutcome::Resting
        | ReloadOutcome::RolledBack
        | ReloadOutcome::Running => Tone::Warn,
        ReloadOutcome::Failed | ReloadOutcome::Moved | ReloadOutcome::Rejected => Tone::Bad,
    };
    let mut text = render_diagnostics(&result.diagnostics, paint);
    text.push_str(&format!("{}\n", paint.tone(&clean(&result.summary), tone)));
    for change in &result.changes {
        text.push_str(&format!("  {}\n", clean(change)));
    }
    for lease in &result.leases {
        let fate = match lease.fate {
            Fate::Drain => "drains",
            Fate::Force => "ended",
            Fate::Keep | Fate::Withdraw => "stays",
            Fate::Shorten => "ends sooner",
        };
        text.push_str(&format!(
            "  {} ({}) {fate}: {}\n",
            lease.lease,
            clean(&lease.holder),
            clean(&lease.reason)
        ));
    }
    for lease in &result.stale {
        text.push_str(&format!("  {lease} ended: its process is gone\n"));
    }
    text
}

fn render_state(state: &ReloadState, context: &Context) -> String {
    let switch = match state.enabled {
        true => context.paint.tone("on", Tone::Good),
        false => context.paint.tone("off", Tone::Warn),
    };
    let mut text = format!("policy watch  {switch} ({})\n", clean(&state.why));
    for path in &state.watching {
        text.push_str(&format!("  watches     {}\n", clean(path)));
    }
    if let Some(at) = &state.breaker.until {
        text.push_str(&format!(
            "  rests       files switched to and fro too often; goes on {}\n",
            until(at, context.now())
        ));
    }
    if let Some(last) = &state.last {
        text.push_str(&format!(
            "  last reload {} ago: {}\n",
            ago(&last.at, context.now()),
            clean(&last.summary)
        ));
        text.push_str(&render_diagnostics(&last.diagnostics, context.paint));
    }
    text
}
