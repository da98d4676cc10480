//! `events`: what happens, as it happens.

use std::time::Duration;

use gpu_api::{EVENT_RESET, Event};
use gpu_client::ClientError;
use tokio::time::sleep;

use crate::cli::Done;
use crate::cli::args::EventsArgs;
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{Paint, Tone, clean, note, print};

const RECONNECT: Duration = Duration::from_secs(1);

/// Prints events until interrupted; a broker that goes away is waited for.
pub(crate) async fn events(context: &Context, args: EventsArgs) -> Done {
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut stream = context.client.events(args.after);
    let mut reached = false;
    let mut away = false;
    while left > 0 {
        match stream.next().await {
            Ok(event) => {
                (reached, away) = (true, false);
                left -= 1;
                print(&render(&event, args.output.json, context.paint)?)?;
            }
            Err(error) => {
                reached |= !matches!(error, ClientError::Unreachable { .. });
                if !reached || !error.is_away() {
                    return Err(error.into());
                }
                if !away {
                    note(&format!("{error}; trying again"));
                    away = true;
                }
                sleep(RECONNECT).await;
            }
        }
    }
    Ok(exit::OK)
}

fn render(event: &Event, json: bool, paint: Paint) -> Result<String, Failure> {
    if json {
        let line = serde_json::to_string(event).map_err(|error| Failure::own(error.to_string()))?;
        return Ok(format!("{line}\n"));
    }
    let tone = if event.name == EVENT_RESET {
        Tone::Warn
    } else {
        Tone::Bold
    };
    let by = event
        .by
        .as_ref()
        .map(|by| format!(" (by {by})"))
        .unwrap_or_default();
    let at = paint.tone(&clean(&event.at), Tone::Dim);
    let name = paint.tone(&format!("{:<24}", clean(&event.name)), tone);
    let lease = clean(event.lease.as_deref().unwrap_or("-"));
    let mut lines = event.text.lines().map(clean);
    let first = lines.next().unwrap_or_default();
    let more: String = lines.map(|line| format!("    {line}\n")).collect();
    let by = clean(&by);
    Ok(format!("{at}  {name}  {lease:<14}  {first}{by}\n{more}"))
}
