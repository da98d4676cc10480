//! `policy override`: settings above the files, for a while.

use std::collections::BTreeMap;

use gpu_api::{OverridesRequest, PolicyOverride, Settings, Span, Text};
use gpu_client::LoadOptions;
use jiff::Timestamp;

use super::load;
use crate::cli::args::{ConsentArgs, OverrideCommand};
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{Paint, print, print_json, until};
use crate::cli::table::{Align, Table};
use crate::cli::{Done, ask};

/// Sets, clears or lists.
pub(super) async fn overrides(context: &Context, command: OverrideCommand) -> Done {
    match command {
        OverrideCommand::Clear(consent) => send(context, Settings::default(), None, consent).await,
        OverrideCommand::List(output) => list(context, output.json).await,
        OverrideCommand::Set {
            settings,
            lifetime,
            consent,
        } => send(context, unique(settings)?, Some(lifetime), consent).await,
    }
}

async fn send(
    context: &Context,
    set: Settings,
    expires_in: Option<Span>,
    consent: ConsentArgs,
) -> Done {
    let options = LoadOptions::default();
    let send = async |expect_plan| {
        let request = OverridesRequest {
            set: set.clone(),
            expires_in,
            expect_plan,
        };
        context.client.set_overrides(&request, &options).await
    };
    let somebody = ask::somebody() && !consent.output.json;
    load::confirmed(context, consent, somebody, send).await
}

async fn list(context: &Context, json: bool) -> Done {
    let policy = context.client.policy().await?;
    match json {
        true => print_json(&policy.overrides)?,
        false => print(&render(&policy.overrides, context.now(), context.paint))?,
    }
    context.note_disk_state().await;
    Ok(exit::OK)
}

fn unique(settings: Vec<(Text<256>, Text<1024>)>) -> Result<Settings, Failure> {
    let mut map = BTreeMap::new();
    for (name, value) in settings {
        if map.insert(name.clone(), value).is_some() {
            return Err(Failure::usage(format!("`{name}` is set twice")));
        }
    }
    map.try_into().map_err(Failure::usage)
}

/// A row for each setting, the lowest layer first.
fn render(overrides: &[PolicyOverride], now: Timestamp, paint: Paint) -> String {
    if overrides.is_empty() {
        return "nothing is set above the files\n".to_owned();
    }
    let mut table = Table::new(&[
        ("SETTING", Align::Left),
        ("VALUE", Align::Left),
        ("FROM", Align::Left),
        ("BY", Align::Left),
        ("LIFTS", Align::Left),
    ]);
    for setting in overrides {
        let lifts = setting.until.as_ref().map(|at| until(at, now));
        table.row([
            setting.setting.as_str().into(),
            setting.value.as_str().into(),
            setting.origin.as_str().into(),
            setting.by.as_deref().unwrap_or("-").into(),
            lifts.unwrap_or_else(|| "never".to_owned()).into(),
        ]);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::example;

    #[test]
    fn overrides_are_a_table() {
        let overrides = [
            PolicyOverride {
                setting: "placement.reserve".to_owned(),
                value: "2GiB".to_owned(),
                origin: "--set".to_owned(),
                by: None,
                until: None,
            },
            PolicyOverride {
                setting: "queue.order".to_owned(),
                value: "fifo".to_owned(),
                origin: "override".to_owned(),
                by: Some("ann".to_owned()),
                until: Some("2026-01-01T14:00:00Z".to_owned()),
            },
        ];
        assert_eq!(
            render(&overrides, example::now(), Paint::off()),
            "SETTING            VALUE  FROM      BY   LIFTS\n\
             placement.reserve  2GiB   --set     -    never\n\
             queue.order        fifo   override  ann  in 2h\n"
        );
        assert_eq!(
            render(&[], example::now(), Paint::off()),
            "nothing is set above the files\n"
        );
    }

    #[test]
    fn a_setting_is_set_once() {
        let setting = |name: &str| (name.parse().expect("short"), "1".parse().expect("short"));
        assert!(unique(vec![setting("a.b"), setting("a.c")]).is_ok());
        assert!(unique(vec![setting("a.b"), setting("a.b")]).is_err());
    }
}
