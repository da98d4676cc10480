//! `release --emergency`: what is stuck is freed, and what is really free is said.

use gpu_api::{Bytes, DeviceFree, EmergencyRequest, EmergencyResult, Lease, Text};

use crate::cli::Done;
use crate::cli::args::ReleaseArgs;
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{clean, print, print_json};
use crate::cli::{ask, show, target};

/// Ends leases of others.
pub(crate) async fn release(context: &Context, args: ReleaseArgs) -> Done {
    let request = request(context, &args).await?;
    if request.all {
        match consent(&args, ask::somebody()) {
            Consent::Given => {}
            Consent::Missing(failure) => return Err(failure),
            Consent::Ask => {
                if !agrees(context).await? {
                    return Err(Failure::refused("nothing was released"));
                }
            }
        }
    }
    let result = context.client.emergency_release(&request).await?;
    match args.output.json {
        true => print_json(&result)?,
        false => print(&render(&result))?,
    }
    Ok(exit::OK)
}

async fn request(context: &Context, args: &ReleaseArgs) -> Result<EmergencyRequest, Failure> {
    let devices = match args.device.is_empty() {
        true => Vec::new(),
        false => target::device_ids(context, &args.device).await?,
    };
    let devices: Result<Vec<Text<128>>, _> = devices.into_iter().map(Text::try_from).collect();
    let leases: Vec<Text<64>> = args.lease.iter().chain(&args.id).cloned().collect();
    let selected = args.stuck || !args.device.is_empty() || !leases.is_empty();
    Ok(EmergencyRequest {
        all: !selected,
        stuck: args.stuck,
        devices: devices.map_err(|error| Failure::usage(error.to_string()))?,
        leases,
        reason: args.reason.clone(),
        kill: args.kill,
        cordon: args.cordon,
        force_unsafe: args.force_unsafe,
    })
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
async fn agrees(context: &Context) -> Result<bool, Failure> {
    let leases: Vec<Lease> = context.client.all_leases(true).await?;
    if leases.is_empty() {
        print("no lease is held and nobody waits\n")?;
        return Ok(false);
    }
    print(&show::lease_table(&leases, context.now()).render(context.paint))?;
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
mod tests {
    use clap::Parser;
    use gpu_api::DeviceProcess;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn args(line: &str) -> ReleaseArgs {
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
