//! `history` and `usage`: what was, told by the broker, or by its store where it is not there.

use std::collections::VecDeque;

use gpu_api::{Event, HistoryQuery, UsageReport, UsageSum};
use gpu_client::ClientError;
use jiff::Timestamp;

use crate::cli::Done;
use crate::cli::args::{HistoryArgs, UsageArgs};
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{Paint, Tone, clean, clock, note, print, print_json};
use crate::cli::show;
use crate::cli::table::{Align, Cell, Table};
use crate::cli::target;
use crate::offline;

/// Prints the latest events that are asked for, oldest first.
pub(crate) async fn history(context: &Context, args: HistoryArgs) -> Done {
    let context = &context.of_state_dir(args.stored.state_dir.as_deref());
    let mut query = HistoryQuery {
        lease: args.lease,
        device: args.device,
        user: args.user,
        since: args.since,
        ..HistoryQuery::default()
    };
    let mut latest = Latest::of(args.limit);
    match all(context, &mut query, &mut latest).await {
        Ok(Some(unknown)) if latest.events.is_empty() => return Err(unknown),
        Ok(_) => {}
        Err(error) => {
            let stored = |dir: Option<&_>| offline::history(dir, &query, target::stored_device);
            let dir = args.stored.state_dir.as_deref();
            let events = show::stored(context, dir, error, stored)??;
            latest = Latest::of(args.limit);
            latest.extend(events);
        }
    }
    let events: Vec<Event> = latest.events.into();
    if args.stored.output.json {
        print(&lines(&events)?)?;
    } else if events.is_empty() {
        print("no events\n")?;
    } else {
        print(&table(&events, context.now()).render(context.paint))?;
    }
    if latest.is_cut {
        note(&format!(
            "these are the latest {}; `--limit 0` shows all that are kept",
            events.len()
        ));
    }
    Ok(exit::OK)
}

/// Prints who held what for how long.
pub(crate) async fn usage(context: &Context, args: UsageArgs) -> Done {
    let context = &context.of_state_dir(args.stored.state_dir.as_deref());
    let query = gpu_api::UsageQuery {
        by: args.by,
        since: args.since,
    };
    let report = match context.client.usage(&query).await {
        Ok(report) => report,
        Err(error) => {
            let stored = |dir: Option<&_>| offline::usage(dir, &query);
            show::stored(context, args.stored.state_dir.as_deref(), error, stored)?
        }
    };
    match args.stored.output.json {
        true => print_json(&report)?,
        false => print(&render(&report, context.now(), context.paint))?,
    }
    Ok(exit::OK)
}

/// Follows the pages to the end of the history. Answers why the device of `query` is none that there is: one
/// that is not there any more is known by its whole id, and there may be events of it.
async fn all(
    context: &Context,
    query: &mut HistoryQuery,
    latest: &mut Latest,
) -> Result<Option<Failure>, ClientError> {
    let mut unknown = None;
    if let Some(device) = &query.device {
        match target::resolve(&context.client.devices().await?, device) {
            Ok(id) => query.device = id.parse().ok(),
            Err(failure) => unknown = Some(failure),
        }
    }
    loop {
        let page = context.client.history(query).await?;
        latest.extend(page.events);
        let Some(next) = page.next else {
            return Ok(unknown);
        };
        query.after = next.parse().ok();
    }
}

/// The last so many of what goes by.
struct Latest {
    limit: usize,
    events: VecDeque<Event>,
    is_cut: bool,
}

impl Latest {
    /// All of them where `limit` is 0.
    fn of(limit: usize) -> Self {
        Self {
            limit: if limit == 0 { usize::MAX } else { limit },
            events: VecDeque::new(),
            is_cut: false,
        }
    }

    fn extend(&mut self, events: Vec<Event>) {
        for event in events {
            if self.events.len() == self.limit {
                self.events.pop_front();
                self.is_cut = true;
            }
            self.events.push_back(event);
        }
    }
}

/// One line of JSON for each, as `events` has it.
fn lines(events: &[Event]) -> Result<String, Failure> {
    let mut text = String::new();
    for event in events {
        let line = serde_json::to_string(event).map_err(|error| Failure::own(error.to_string()))?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

fn table(events: &[Event], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        ("TIME", Align::Left),
        ("EVENT", Align::Left),
        ("LEASE", Align::Left),
        ("USER", Align::Left),
        ("WHAT", Align::Left),
    ]);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for event in events {
        table.row([
            Cell::tone(clock(&event.at, now), Tone::Dim),
            Cell::tone(event.name.clone(), Tone::Bold),
            or_dash(&event.lease).into(),
            or_dash(&event.user).into(),
            what(event).into(),
        ]);
    }
    table
}

/// The first line of it, and who did it.
fn what(event: &Event) -> String {
    let mut lines = event.text.lines();
    let first = lines.next().unwrap_or_default();
    let more = if lines.next().is_some() { " ..." } else { "" };
    let by = event.by.as_ref().map(|by| format!(" (by {by})"));
    format!("{first}{more}{}", by.unwrap_or_default())
}

/// A name of a row.
type NameOf = fn(&UsageSum) -> &Option<String>;

fn render(report: &UsageReport, now: Timestamp, paint: Paint) -> String {
    let since = clean(&clock(&report.since, now));
    if report.rows.is_empty() {
        return format!("nothing was held since {since}\n");
    }
    let (by, rows) = (report.by, report.rows.iter());
    let names: [(bool, &'static str, NameOf); 3] = [
        (by.user, "USER", |row| &row.user),
        (by.tenant, "TENANT", |row| &row.tenant),
        (by.device, "DEVICE", |row| &row.device),
    ];
    let asked: Vec<_> = names.iter().filter(|(is_asked, ..)| *is_asked).collect();
    let mut columns: Vec<_> = asked
        .iter()
        .map(|(_, name, _)| (*name, Align::Left))
        .collect();
    columns.extend([("DEVICE HOURS", Align::Right), ("GIB HOURS", Align::Right)]);
    let mut table = Table::new(&columns);
    for row in rows {
        let names = asked.iter().map(|(.., name)| name(row).clone());
        let names = names.map(|name| name.unwrap_or_else(|| "-".to_owned()));
        table.cells(
            names
                .chain(amounts(row.held_ms, row.byte_hours))
                .map(Cell::from),
        );
    }
    if report.rows.len() > 1 {
        table.cells(total(report, asked.len()));
    }
    format!("held since {since}\n{}", table.render(paint))
}

/// The last row, with `names` cells before the numbers.
fn total(report: &UsageReport, names: usize) -> impl Iterator<Item = Cell> {
    let sum = |of: fn(&UsageSum) -> u64| report.rows.iter().map(of).fold(0, u64::saturating_add);
    let (held_ms, byte_hours) = (sum(|row| row.held_ms), sum(|row| row.byte_hours));
    let names = (0..names).map(|n| if n == 0 { "total" } else { "" }.to_owned());
    let cells = names.chain(amounts(held_ms, byte_hours));
    cells.map(|text| Cell::tone(text, Tone::Bold))
}

fn amounts(held_ms: u64, byte_hours: u64) -> [String; 2] {
    const GIB: u64 = 1 << 30;
    const HOUR_MS: u64 = 3_600_000;
    [in_units(held_ms, HOUR_MS), in_units(byte_hours, GIB)]
}

/// `number` in units of `one`, to the nearest hundredth; of little, to the nearest hundred-thousandth.
fn in_units(number: u64, one: u64) -> String {
    let digits = if number < one / 10 { 5 } else { 2 };
    let parts = 10_u128.pow(digits);
    let count = (u128::from(number) * parts + u128::from(one) / 2) / u128::from(one);
    match number {
        0 => "0.00".to_owned(),
        _ => format!(
            "{}.{:0width$}",
            count / parts,
            count % parts,
            width = digits as usize
        ),
    }
}

#[cfg(test)]
mod tests {
    use gpu_api::UsageBy;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-31T18:00:00Z".parse().expect("a timestamp")
    }

    fn sum(user: &str, device: &str, held_ms: u64) -> UsageSum {
        UsageSum {
            user: Some(user.to_owned()),
            device: Some(device.to_owned()),
            held_ms,
            byte_hours: held_ms * (24 << 30) / 3_600_000,
            ..UsageSum::default()
        }
    }

    #[test]
    fn usage_is_a_table_with_a_total() {
        let mut report = UsageReport {
            since: "2026-01-01T18:00:00.000Z".to_owned(),
            until: "2026-01-31T18:00:00.000Z".to_owned(),
            by: "user,device".parse::<UsageBy>().expect("a list"),
            rows: vec![sum("ann", "GPU-1", 5_400_000), sum("bo", "GPU-2", 36_000)],
        };
        assert_eq!(
            render(&report, now(), Paint::off()),
            "held since 2026-01-01 18:00:00Z\n\
             USER   DEVICE  DEVICE HOURS  GIB HOURS\n\
             ann    GPU-1           1.50      36.00\n\
             bo     GPU-2        0.01000       0.24\n\
             total                  1.51      36.24\n"
        );
        report.rows.clear();
        assert_eq!(
            render(&report, now(), Paint::off()),
            "nothing was held since 2026-01-01 18:00:00Z\n"
        );
    }

    #[test]
    fn the_history_is_a_table_of_the_latest() {
        let event = |n: u64, text: &str| Event {
            id: format!("00000000000000aa-{n}-0"),
            at: format!("2026-01-31T17:00:0{n}.000Z"),
            name: "lease_ended".to_owned(),
            lease: Some(format!("l-00000000000{n}")),
            user: (n == 2).then(|| "ann".to_owned()),
            device: None,
            other_devices: Vec::new(),
            by: (n == 3).then(|| "root".to_owned()),
            text: text.to_owned(),
            generation: 1,
        };
        let mut latest = Latest::of(2);
        latest.extend(vec![
            event(1, "one"),
            event(2, "two"),
            event(3, "three\nmore"),
        ]);
        assert!(latest.is_cut);
        let events: Vec<_> = latest.events.into();
        assert_eq!(
            table(&events, now()).render(Paint::off()),
            "TIME       EVENT        LEASE           USER  WHAT\n\
             17:00:02Z  lease_ended  l-000000000002  ann   two\n\
             17:00:03Z  lease_ended  l-000000000003  -     three ... (by root)\n"
        );
        let mut all = Latest::of(0);
        all.extend(events);
        assert!(all.events.len() == 2 && !all.is_cut);
    }
}
