//! `events`: what happens, as it happens.

use std::time::Duration;

use gpu_api::{EVENT_RESET, Event};
use tokio::time::sleep;

use crate::cli::Done;
use crate::cli::args::EventsArgs;
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{Paint, Tone, clean, note, print};

const RECONNECT: Duration = Duration::from_secs(1);

/// Prints events until interrupted; a broker that goes away is waited for.
pub(crate) async fn events(context: &Context, args: EventsArgs) -> Done {
    let limit = args.count.unwrap_or(u64::MAX);
    let mut stream = context.client.events(args.after);
    let mut seen = 0;
    let mut connected = false;
    let mut away = false;
    while seen < limit {
        match stream.next().await {
            Ok(event) => {
                (connected, away) = (true, false);
                seen += 1;
                print(&render(&event, args.output.json, context.paint)?)?;
            }
            Err(error) if !connected && !error.is_away() => return Err(error.into()),
            Err(error) if !error.is_away() => return Err(error.into()),
            Err(error) => {
                // The first failure says whether there is a broker at all.
                if seen == 0
                    && !connected
                    && matches!(error, gpu_client::ClientError::Unreachable { .. })
                {
                    return Err(error.into());
                }
                connected = true;
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
    Ok(format!(
        "{at}  {name}  {}{}\n",
        clean(&event.text),
        clean(&by)
    ))
}
