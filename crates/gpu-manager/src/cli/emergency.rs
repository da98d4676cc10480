//! `release --emergency`: what is stuck is freed, and what is really free is said. Over the API of the broker;
//! on its store where none lives; and where one lives that does not answer, instead of it.

mod silent;
mod stored;

use std::time::{Duration, Instant};

use gpu_api::{Bytes, DeviceFree, EmergencyRequest, EmergencyResult, ErrorCode, Lease, Text};
use gpu_client::ClientError;
use tokio::time::{sleep, timeout};

use crate::cli::Done;
use crate::cli::args::ReleaseArgs;
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{clean, note, print, print_json};
use crate::cli::{ask, show, target};
use silent::{ASK_AGAIN, Found, Local, Silent, Who};

/// A broker that has the release to do for so long hangs.
const RELEASE_SECS_MAX: u64 = 10;

/// A broker that starts, or is started again by its supervisor, in the middle of it changes what is there;
/// not this often.
const STEPS_MAX: usize = 8;

/// Ends leases of others.
pub(crate) async fn release(context: &Context, args: ReleaseArgs) -> Done {
    let mut step = Step::Next(silent::find(context, &args).await?);
    let mut so_far = "nothing was changed";
    for _ in 0..STEPS_MAX {
        step = match step {
            Step::Next(Found::Answers(context, who)) => {
                online(&context, &args, who.as_ref()).await?
            }
            Step::Next(Found::Gone(dir)) => stored::release(context, &args, &dir).await?,
            Step::Next(Found::Silent(silent)) => {
                let found = take_over(context, &args, silent).await?;
                if matches!(found, Found::Gone(_)) {
                    so_far = "one was killed, and nothing was released on its store";
                }
                Step::Next(found)
            }
            Step::Done(result) => return report(&args, &result),
            Step::Declined => return Err(Failure::refused("nothing was released")),
        };
    }
    Err(Failure::new(
        exit::HUNG,
        format!("brokers come and go on this state directory; {so_far}"),
    )
    .hint("stop its supervisor first, such as `systemctl stop gpu-managerd`"))
}

/// How far a release is.
enum Step {
    /// It is done.
    Done(EmergencyResult),
    /// Somebody was asked, and said no.
    Declined,
    /// This is to be asked for it.
    Next(Found),
}

fn report(args: &ReleaseArgs, result: &EmergencyResult) -> Done {
    match args.output.json {
        true => print_json(result)?,
        false => print(&render(result))?,
    }
    Ok(exit::OK)
}

/// Asks the broker that answers.
async fn online(context: &Context, args: &ReleaseArgs, who: Option<&Who>) -> Result<Step, Failure> {
    let request = request(context, args).await?;
    let mut listed = async || Ok(context.client.all_leases(true).await?);
    if request.all && !consents(args, &mut listed, context).await? {
        return Ok(Step::Declined);
    }
    // Before it is asked: nobody could say afterwards whose process it was.
    let local = match who {
        Some(who) => Local::who_is(context, args, who).await,
        None => None,
    };
    let patience = Duration::from_secs(RELEASE_SECS_MAX);
    let give_up = Instant::now() + patience;
    match timeout(patience, insist(context, &request)).await {
        Ok(Ok(result)) => {
            if args.takeover {
                let at = context.client.endpoint();
                note(&format!(
                    "the broker answers at {at}: no takeover was needed"
                ));
            }
            return Ok(Step::Done(result));
        }
        Ok(Err(error)) if !is_silence(&error) => return Err(error.into()),
        // Its connections are served, and its loop is not: it may yet do it, or end of it.
        Ok(Err(_)) | Err(_) => {}
    }
    let Some(local) = local else {
        return Err(unknown_silent(context));
    };
    let left = give_up.saturating_duration_since(Instant::now());
    Ok(Step::Next(match local.ends_within(left) {
        true => Found::Gone(local.into_dir()),
        false => {
            let asked = context.client.endpoint().clone();
            Found::Silent(local.silent_in_release(asked, patience))
        }
    }))
}

/// One that stops, or has no room for it now, is asked again.
async fn insist(
    context: &Context,
    request: &EmergencyRequest,
) -> Result<EmergencyResult, ClientError> {
    loop {
        match context.client.emergency_release(request).await {
            Err(error) if may_yet_be_taken(&error) => sleep(ASK_AGAIN).await,
            other => return other,
        }
    }
}

fn may_yet_be_taken(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Some(ErrorCode::Overloaded | ErrorCode::ShuttingDown)
    )
}

/// A broker that did not do it and that no process of this host is known to be.
fn unknown_silent(context: &Context) -> Failure {
    let at = context.client.endpoint();
    let message = format!(
        "the broker at {at} took the release and did not answer it: it may still do it, or have done it"
    );
    Failure::new(exit::HUNG, message).hint(
        "on its host, `--takeover` kills it and releases on its store; `--state-dir DIR` says where that is",
    )
}

/// Kills a broker that lives and does not answer, if that is wanted and it does not answer elsewhere either; answers
/// what is to be asked then.
async fn take_over(
    context: &Context,
    args: &ReleaseArgs,
    silent: Silent,
) -> Result<Found, Failure> {
    if !args.takeover {
        return Err(silent.failure());
    }
    match consent(args, ask::somebody()) {
        Consent::Missing(failure) if selects_all(args) => return Err(failure),
        Consent::Ask | Consent::Given | Consent::Missing(_) => {}
    }
    match silent.answers_elsewhere(context).await {
        Some(found) => Ok(found),
        None => silent.kill().map(Found::Gone),
    }
}

fn is_silence(error: &ClientError) -> bool {
    match error {
        ClientError::Lost { .. }
        | ClientError::TimedOut { .. }
        | ClientError::Unreachable { .. } => true,
        ClientError::NotABroker { .. } | ClientError::Problem(_) => false,
    }
}

fn selects_all(args: &ReleaseArgs) -> bool {
    !args.stuck && args.device.is_empty() && args.lease.is_empty() && args.id.is_none()
}

async fn request(context: &Context, args: &ReleaseArgs) -> Result<EmergencyRequest, Failure> {
    let devices = match args.device.is_empty() {
        true => Vec::new(),
        false => devices(context, &args.device).await?,
    };
    let devices: Result<Vec<Text<128>>, _> = devices.into_iter().map(Text::try_from).collect();
    Ok(EmergencyRequest {
        all: selects_all(args),
        stuck: args.stuck,
        devices: devices.map_err(|error| Failure::usage(error.to_string()))?,
        leases: args.lease.iter().chain(&args.id).cloned().collect(),
        reason: args.reason.clone(),
        kill: args.kill,
        cordon: args.cordon,
        force_unsafe: args.force_unsafe,
    })
}

/// The ids of the devices that `texts` name. A broker that has not found one still knows what is held on it.
async fn devices(context: &Context, texts: &[String]) -> Result<Vec<String>, Failure> {
    let devices = context.client.devices().await?;
    let mut ids = Vec::new();
    for text in texts {
        ids.push(match target::resolve(&devices, text) {
            Err(_) if devices.is_empty() || is_held(context, text).await? => text.clone(),
            resolved => resolved?,
        });
    }
    Ok(ids)
}

/// Whether something is held on the device of this id.
async fn is_held(context: &Context, device: &str) -> Result<bool, Failure> {
    let leases = context.client.all_leases(true).await?;
    let mut parts = leases.iter().flat_map(|lease| &lease.allocations);
    Ok(parts.any(|part| part.device == device))
}

/// Whether everything may be ended: it was said, or `leases` are listed and somebody says so.
async fn consents(
    args: &ReleaseArgs,
    leases: &mut impl AsyncFnMut() -> Result<Vec<Lease>, Failure>,
    context: &Context,
) -> Result<bool, Failure> {
    match consent(args, ask::somebody()) {
        Consent::Given => Ok(true),
        Consent::Missing(failure) => Err(failure),
        Consent::Ask => agrees(context, &leases().await?),
    }
}

/// Whether everything may be ended.
#[derive(Debug, PartialEq, Eq)]
enum Consent {
    Ask,
    Given,
    Missing(Failure),
}

fn consent(args: &ReleaseArgs, terminal: bool) -> Consent {
    match (args.all, args.yes || args.reason.is_some(), terminal) {
        (true, true, _) => Consent::Given,
        (false, _, true) | (true, false, true) => Consent::Ask,
        (_, _, false) => Consent::Missing(
            Failure::usage("there is no terminal to ask on what to release")
                .hint("say `--all --yes`, `--all --reason TEXT`, `--device ID`, `--lease ID` or `--stuck`"),
        ),
    }
}

/// Lists what would end, and asks.
fn agrees(context: &Context, leases: &[Lease]) -> Result<bool, Failure> {
    if leases.is_empty() {
        print("no lease is held and nobody waits\n")?;
        return Ok(false);
    }
    print(&show::lease_table(leases, context.now()).render(context.paint))?;
    ask::agrees(&format!(
        "End {}?",
        count(leases.len(), "this lease", "leases")
    ))
}

fn render(result: &EmergencyResult) -> String {
    let ended = result.released.iter().map(|lease| {
        let devices = lease.devices.join(", ");
        format!("  {} ({}) {devices}\n", lease.id, lease.holder)
    });
    let cancelled = result
        .cancelled
        .iter()
        .map(|lease| format!("  {} ({}) waited\n", lease.id, lease.holder));
    let devices = result
        .devices
        .iter()
        .map(|device| format!("  {}\n", device_line(device)));
    let lines: String = ended
        .chain(cancelled)
        .chain(devices)
        .map(|line| clean_line(&line))
        .collect();
    format!("{}\n{lines}", clean(&result.summary))
}

fn clean_line(line: &str) -> String {
    format!("{}\n", clean(line.trim_end_matches('\n')))
}

/// `GPU 1 (GPU-..): 3.9 GiB of 24 GiB free; 20.1 GiB by pid 4242, not granted until gone`
fn device_line(device: &DeviceFree) -> String {
    let mut line = format!(
        "GPU {} ({}): {} of {} free",
        device.index,
        device.id,
        Bytes(device.free),
        Bytes(device.total)
    );
    for process in &device.processes {
        let size = process
            .memory
            .map_or("unknown memory".to_owned(), |memory| {
                Bytes(memory).to_string()
            });
        line.push_str(&format!("; {size} by pid {}", process.pid));
    }
    if device.reclaiming > 0 {
        line.push_str(&format!(
            "; {} not granted until proven free",
            Bytes(device.reclaiming)
        ));
    }
    if device.cordoned {
        line.push_str("; cordoned");
    }
    line
}

fn count(number: usize, one: &str, many: &str) -> String {
    match number {
        1 => one.to_owned(),
        number => format!("these {number} {many}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;
    use gpu_api::DeviceProcess;

    use super::*;
    use crate::cli::args::{Cli, Command};

    pub(in crate::cli) fn args(line: &str) -> ReleaseArgs {
        match Cli::try_parse_from(line.split(' ')).expect(line).command {
            Some(Command::Release(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_ends_only_with_consent() {
        let missing = |line: &str| matches!(consent(&args(line), false), Consent::Missing(_));
        assert!(missing("g release --emergency"));
        assert!(
            missing("g release --emergency --yes"),
            "what to release must be said"
        );
        assert!(missing("g release --emergency --all"));
        assert_eq!(
            consent(&args("g release --emergency --all --yes"), false),
            Consent::Given
        );
        assert_eq!(
            consent(&args("g release --emergency --all --reason fire"), false),
            Consent::Given
        );
        assert_eq!(consent(&args("g release --emergency"), true), Consent::Ask);
        assert_eq!(
            consent(&args("g release --emergency --all"), true),
            Consent::Ask
        );
    }

    #[test]
    fn what_is_really_free_is_said() {
        let device = DeviceFree {
            id: "GPU-1".to_owned(),
            index: 1,
            total: 24 << 30,
            free: 4 << 30,
            reclaiming: 20 << 30,
            processes: vec![DeviceProcess {
                pid: 4242,
                memory: Some(20 << 30),
                lease: None,
                command: None,
            }],
            cordoned: true,
        };
        assert_eq!(
            device_line(&device),
            "GPU 1 (GPU-1): 4 GiB of 24 GiB free; 20 GiB by pid 4242; 20 GiB not granted until proven free; cordoned"
        );
    }
}
