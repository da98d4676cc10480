//! `policy plan`, `policy apply`, `policy rollback`: nothing is loaded that touches leases before somebody agreed.

use std::path::PathBuf;

use gpu_api::{
    PolicyPlan, PolicyPlanRequest, PolicyPut, PolicyRollbackRequest, PolicyText, ReloadOutcome,
    ReloadRequest, ReloadResult, Text, TextError,
};
use gpu_client::{ClientError, LoadOptions};

use super::files;
use crate::cli::args::{ApplyArgs, ConsentArgs};
use crate::cli::context::Context;
use crate::cli::exit::{self, Failure};
use crate::cli::output::{note, print, print_json};
use crate::cli::show::{diagnostic, plan as show};
use crate::cli::{Done, ask};

/// Says what loading would mean.
pub(crate) async fn plan(context: &Context, files: &[PathBuf], json: bool) -> Done {
    let plan = plan_of(context, texts(files)?.as_deref()).await?;
    match json {
        true => print_json(&plan)?,
        false => print(&show::render_plan(&plan, context.now(), context.paint))?,
    }
    Ok(if plan.ok { exit::OK } else { exit::REFUSED })
}

/// Plans, shows, asks if `somebody` is there to answer, and loads.
pub(crate) async fn apply(context: &Context, args: &ApplyArgs, somebody: bool) -> Done {
    let json = args.consent.output.json;
    let texts = texts(&args.files)?;
    let plan = plan_of(context, texts.as_deref()).await?;
    if !json {
        print(&show::render_plan(&plan, context.now(), context.paint))?;
    }
    if !plan.ok {
        if json {
            print_json(&plan)?;
        }
        return Ok(exit::REFUSED);
    }
    if texts.is_none() && plan.hash == plan.live {
        if json {
            print_json(&plan)?;
        }
        return Ok(exit::OK);
    }
    let agreed = args.consent.yes || args.expect_plan.is_some();
    consent(agreed, show::touches(&plan.leases), somebody).obtain("Load it?")?;
    let writes = texts.is_some();
    let result = carry_out(context, texts, &plan, args).await?;
    let code = tell(context, &result, json)?;
    if writes && result.outcome == ReloadOutcome::Moved {
        note(
            "`gpu-manager policy diff` shows what is on disk and not in force; `--overwrite` throws that away",
        );
    }
    Ok(code)
}

/// Goes back to an earlier policy.
pub(crate) async fn rollback(
    context: &Context,
    generation: Option<u64>,
    args: ConsentArgs,
    somebody: bool,
) -> Done {
    let options = LoadOptions::default();
    let send = async |expect_plan| {
        let request = PolicyRollbackRequest {
            generation,
            expect_plan,
        };
        context.client.rollback_policy(&request, &options).await
    };
    confirmed(context, args, somebody, send).await
}

/// Sends, and again with the hash of the plan once somebody agreed, if that is what it takes.
pub(super) async fn confirmed(
    context: &Context,
    args: ConsentArgs,
    somebody: bool,
    send: impl AsyncFn(Option<Text<128>>) -> Result<ReloadResult, ClientError>,
) -> Done {
    let first = send(None).await?;
    let (ReloadOutcome::NeedsConfirmation, Some(plan)) = (first.outcome, &first.plan) else {
        return tell(context, &first, args.output.json);
    };
    match consent(args.yes, true, somebody) {
        Consent::Missing => return tell(context, &first, args.output.json),
        Consent::Ask => {
            print(&show::render_outcome(&first, context.now(), context.paint))?;
            Consent::Ask.obtain("Do it?")?;
        }
        Consent::Given => {}
    }
    let result = send(Some(hash(plan)?)).await?;
    tell(context, &result, args.output.json)
}

/// Says what came of loading a policy.
pub(crate) fn tell(context: &Context, result: &ReloadResult, json: bool) -> Done {
    match json {
        true => print_json(result)?,
        false => print(&show::render_result(result, context.now(), context.paint))?,
    }
    Ok(exit::code_of_outcome(result.outcome))
}

/// What loading `texts` would mean, or else what the broker has on disk.
pub(super) async fn plan_of(
    context: &Context,
    texts: Option<&[PolicyText]>,
) -> Result<PolicyPlan, ClientError> {
    let request = PolicyPlanRequest {
        files: texts.map(<[_]>::to_vec),
    };
    let mut plan = context.client.plan_policy(&request).await?;
    diagnostic::quote(&mut plan.diagnostics, texts.unwrap_or_default());
    Ok(plan)
}

/// A hash that came from the broker, as it is sent back.
pub(super) fn hash(text: &str) -> Result<Text<128>, Failure> {
    text.parse().map_err(|error: TextError| {
        Failure::own(format!("the broker answers a hash that is none: {error}"))
    })
}

/// `None` for what the broker has on disk.
fn texts(files: &[PathBuf]) -> Result<Option<Vec<PolicyText>>, Failure> {
    match files {
        [] => Ok(None),
        files => files::read(files.to_vec()).map(Some),
    }
}

async fn carry_out(
    context: &Context,
    texts: Option<Vec<PolicyText>>,
    plan: &PolicyPlan,
    args: &ApplyArgs,
) -> Result<ReloadResult, Failure> {
    let live = match args.overwrite {
        true => "*",
        false => &plan.live,
    };
    let options = LoadOptions {
        if_match: Some(live.to_owned()),
        timeout: None,
    };
    let expected = args.expect_plan.clone();
    let expect_plan = Some(expected.map_or_else(|| hash(&plan.plan), Ok)?);
    let Some(texts) = texts else {
        let request = ReloadRequest {
            confirm: None,
            expect_plan,
        };
        return Ok(context.client.reload_if(&request, &options).await?);
    };
    let request = PolicyPut {
        files: Some(files::without_directories(texts)?),
        expect_plan,
    };
    Ok(context.client.put_policy(&request, &options).await?)
}

/// Whether a plan may be carried out.
#[derive(Debug, PartialEq, Eq)]
enum Consent {
    Ask,
    Given,
    Missing,
}

fn consent(agreed: bool, touches: bool, somebody: bool) -> Consent {
    match (agreed, touches, somebody) {
        (true, _, _) | (false, false, false) => Consent::Given,
        (false, _, true) => Consent::Ask,
        (false, true, false) => Consent::Missing,
    }
}

impl Consent {
    /// Asks if it has to be asked for.
    fn obtain(self, question: &str) -> Result<(), Failure> {
        match self {
            Self::Given => Ok(()),
            Self::Ask if ask::agrees(question)? => Ok(()),
            Self::Ask => Err(Failure::refused("nothing changed")),
            Self::Missing => Err(Failure::new(
                exit::NEEDS_CONFIRMATION,
                "held leases would be touched, and there is no terminal to ask on: nothing changed",
            )
            .hint("say `--expect-plan HASH` with the plan's hash, or `--yes`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_touches_leases_unasked() {
        let table = [
            // agreed, touches, somebody is there
            (true, true, false, Consent::Given),
            (true, true, true, Consent::Given),
            (false, true, true, Consent::Ask),
            (false, true, false, Consent::Missing),
            (false, false, true, Consent::Ask),
            (false, false, false, Consent::Given),
        ];
        for (agreed, touches, somebody, expected) in table {
            assert_eq!(
                consent(agreed, touches, somebody),
                expected,
                "agreed {agreed}, touches {touches}, somebody {somebody}"
            );
        }
    }
}
