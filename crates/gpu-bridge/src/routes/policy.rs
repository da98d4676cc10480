//! The policy in force, and what another one would be; writing its files, taking it back, settings over it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{ETAG, HeaderValue, IF_MATCH};
use axum::http::{HeaderMap, StatusCode};
use gpu_api::{
    BODY_BYTES_MAX, Diagnostic, ErrorCode, ExplainRequest, OverridesRequest, POLICY_FILES_MAX,
    PolicyCheckRequest, PolicyPlanRequest, PolicyPut, PolicyRollbackRequest, PolicyText, Problem,
    ReloadOutcome, ReloadQuery, ReloadResult,
};
use gpu_broker::{OVERRIDE_TTL_MAX, Planning, ReloadOptions, Reloader, SourceFile};
use gpu_lease::Ms;

use super::reload::{NoQuery, blocking, load, load_disk, loaded, names, options, takes_any};
use super::{Answer, Shared, json};
use crate::app::Bridge;
use crate::convert::{
    Held, Reloads, explained_at, explanation, override_refused, policy, policy_check,
    policy_files_refused, policy_plan, request, rollback_refused, unavailable, unquote,
};
use crate::extract::{Admin, Json, OptionalJson, Query, bad_request};
use crate::identity::Caller;
use crate::problem::Refusal;

/// What a caller expects who writes policy files.
struct Writing {
    by: String,
    options: ReloadOptions,
    /// Also over what somebody else has put on disk and nobody has loaded.
    over_pending: bool,
}

pub(super) async fn live(State(bridge): State<Shared>, Query(query): Query<NoQuery>) -> Answer {
    let NoQuery {} = query;
    let shown = policy(&Reloads::of(&bridge), &bridge.config.overrides);
    let mut response = json(StatusCode::OK, &shown);
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", shown.hash)) {
        response.headers_mut().insert(ETAG, tag);
    }
    Ok(response)
}

/// 200 also when there are errors: they are the answer.
pub(super) async fn check(
    State(bridge): State<Shared>,
    Json(asked): Json<PolicyCheckRequest, BODY_BYTES_MAX>,
) -> Answer {
    let (on_disk, mut check) = look(&bridge, asked.files, |reloader, files| {
        let names = files.iter().map(|file| file.name.clone()).collect();
        policy_check(names, reloader.check(files))
    })
    .await?;
    hide(&bridge, on_disk, &mut check.diagnostics);
    Ok(json(StatusCode::OK, &check))
}

/// 200 also when there are errors: they are the answer.
pub(super) async fn plan(
    State(bridge): State<Shared>,
    OptionalJson(asked): OptionalJson<PolicyPlanRequest, BODY_BYTES_MAX>,
) -> Answer {
    let (on_disk, (names, planned)) = look(&bridge, asked.files, |reloader, files| {
        let names = files.iter().map(|file| file.name.clone()).collect();
        (names, reloader.plan(files))
    })
    .await?;
    let mut plan = policy_plan(names, planned, &bridge.scene());
    hide(&bridge, on_disk, &mut plan.diagnostics);
    Ok(json(StatusCode::OK, &plan))
}

pub(super) async fn explain(
    State(bridge): State<Shared>,
    caller: Caller,
    Json(asked): Json<ExplainRequest>,
) -> Answer {
    let _room = bridge.policy_look()?;
    let scene = bridge.scene();
    let live = &scene.snapshot.policy;
    let request = request(&asked.request, None, &caller, live)?;
    let wall = asked.at.as_ref();
    let wall = wall
        .map(|at| explained_at(at, live, scene.now))
        .transpose()?;
    let explained = bridge.handle.explain(request, wall).await;
    let explained = explained.map_err(unavailable)?;
    let at = wall.unwrap_or(scene.now.wall);
    let shown = explanation(&explained, at, &bridge.scene());
    Ok(json(StatusCode::OK, &shown))
}

/// Without files, what is on disk is loaded.
pub(super) async fn write(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    Query(query): Query<ReloadQuery>,
    headers: HeaderMap,
    Json(asked): Json<PolicyPut, BODY_BYTES_MAX>,
) -> Answer {
    if !bridge.config.dev && !headers.contains_key(IF_MATCH) {
        return Err(bad_request(
            "`If-Match` is missing: send the hash of the policy that the files were made from, as in `GET /v1/policy`",
        ));
    }
    let options = options(&bridge, &headers, asked.expect_plan)?;
    let over_pending = takes_any(&headers);
    let by = caller.name().to_owned();
    let files = asked.files.map(texts).transpose()?;
    load(&bridge, &query, caller.name(), move |bridge, id| {
        let options = ReloadOptions { id, ..options };
        match files {
            Some(files) => {
                let writing = Writing {
                    by,
                    options,
                    over_pending,
                };
                writing.write(bridge, files)
            }
            None => load_disk(bridge, &by, options),
        }
    })
    .await
}

pub(super) async fn roll_back(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    Query(query): Query<ReloadQuery>,
    headers: HeaderMap,
    OptionalJson(asked): OptionalJson<PolicyRollbackRequest>,
) -> Answer {
    let options = options(&bridge, &headers, asked.expect_plan)?;
    let by = caller.name().to_owned();
    load(&bridge, &query, caller.name(), move |bridge, id| {
        let options = ReloadOptions { id, ..options };
        let result = bridge.reloader.rollback(&by, asked.generation, &options);
        let result = result.map_err(|error| rollback_refused(&error))?;
        loaded(bridge, &result)
    })
    .await
}

pub(super) async fn set_overrides(
    State(bridge): State<Shared>,
    Admin(caller): Admin,
    Query(query): Query<ReloadQuery>,
    headers: HeaderMap,
    Json(asked): Json<OverridesRequest>,
) -> Answer {
    let lifetime = asked.lifetime();
    let lifetime = lifetime.map_err(|why| Problem::new(ErrorCode::InvalidRequest, why))?;
    // Nothing lasts for ever, not even nothing.
    let ttl = lifetime.map_or(OVERRIDE_TTL_MAX, |span| Ms(span.as_ms()));
    let settings = asked.set.iter();
    let settings: Vec<_> = settings
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let options = options(&bridge, &headers, asked.expect_plan)?;
    let by = caller.name().to_owned();
    load(&bridge, &query, caller.name(), move |bridge, id| {
        let options = ReloadOptions { id, ..options };
        let result = bridge.reloader.set_overrides(&settings, ttl, &by, &options);
        let result = result.map_err(|error| override_refused(&error))?;
        loaded(bridge, &result)
    })
    .await
}

impl Writing {
    /// Plans first, and writes nothing that would not be taken.
    fn write(mut self, bridge: &Bridge, files: Vec<SourceFile>) -> Result<ReloadResult, Problem> {
        bridge.reads_files()?;
        let _one = bridge.policy_writes.lock();
        let on_disk = &bridge.policy_files;
        let placed = on_disk.place(files);
        let placed = placed.map_err(|error| policy_files_refused(&error))?;
        if let Some(refused) = self.refused(bridge, &placed) {
            let id = self.options.id.unwrap_or_default().to_string();
            return Ok(ReloadResult { id, ..refused });
        }
        let before = on_disk
            .write(&placed)
            .map_err(|error| policy_files_refused(&error))?;
        let result = bridge.reloader.apply_files(placed, &self.by, &self.options);
        if !result.outcome.is_good()
            && let Err(error) = on_disk.write(&before)
        {
            tracing::error!("policy files that were not taken are still on disk: {error}");
        }
        loaded(bridge, &result)
    }

    /// What becomes of `files` if they are not to be written.
    fn refused(&mut self, bridge: &Bridge, files: &[SourceFile]) -> Option<ReloadResult> {
        let reloads = Reloads::of(bridge);
        let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        match bridge.reloader.plan(files) {
            Err(found) => {
                let plan = policy_plan(names, Err(found), &reloads.scene);
                Some(ReloadResult {
                    summary: format!("{}, and are not written", plan.summary),
                    files: plan.files,
                    diagnostics: plan.diagnostics,
                    ..reloads.blank(ReloadOutcome::Failed, &self.by)
                })
            }
            Ok(planning) => {
                let Some(held) = self.held(bridge, &planning) else {
                    let expected = self.options.expect_plan.take();
                    self.options.expect_plan = expected.map(|_beginning| planning.plan_hash);
                    return None;
                };
                Some(reloads.held(&planning, held, names, &self.by))
            }
        }
    }

    /// Why a plan is not what the caller expects, or has to be confirmed first.
    fn held(&self, bridge: &Bridge, planning: &Planning) -> Option<Held> {
        let held = |outcome, why: String| Some(Held { outcome, why });
        let options = &self.options;
        if options
            .expect_live
            .as_ref()
            .is_some_and(|live| *live != planning.live)
        {
            let why = "not written: another policy is live than the files were made from";
            return held(ReloadOutcome::Moved, why.to_owned());
        }
        if !self.over_pending && !is_live(bridge) {
            let why = "not written: what is on disk is not what is live and would be lost; load it or undo it first (`If-Match: *` writes over it)";
            return held(ReloadOutcome::Moved, why.to_owned());
        }
        if options
            .expect_plan
            .as_ref()
            .is_some_and(|plan| !names(plan, &planning.plan_hash))
        {
            let why = format!("not written: the plan is another: {}", planning.plan);
            return held(ReloadOutcome::Moved, why);
        }
        if planning.confirm_needed && options.expect_plan.is_none() {
            let why = format!(
                "not written before `expect_plan` names what it means: {}",
                planning.plan
            );
            return held(ReloadOutcome::NeedsConfirmation, why);
        }
        None
    }
}

/// Whether the files on disk are those of the live policy.
fn is_live(bridge: &Bridge) -> bool {
    let policy = &bridge.handle.snapshot().policy;
    let Ok(on_disk) = bridge.reloader.read() else {
        return false;
    };
    let on_disk = on_disk.iter();
    let live = policy.source.files.iter();
    on_disk
        .map(|file| (file.name.as_str(), file.bytes.as_slice()))
        .eq(live.map(|(name, text)| (name.as_str(), text.as_bytes())))
}

/// Looks at what the caller sent, or else at what is on disk, which is said with the answer.
async fn look<T: Send + 'static>(
    bridge: &Shared,
    sent: Option<Vec<PolicyText>>,
    work: impl FnOnce(&Reloader, &[SourceFile]) -> T + Send + 'static,
) -> Result<(bool, T), Refusal> {
    let room = bridge.policy_look()?;
    let texts = sent.map(texts).transpose()?;
    let on_disk = texts.is_none();
    if on_disk {
        bridge.reads_files()?;
    }
    let looked = blocking(bridge, move |reloader| {
        let _room = room;
        let files = texts.map_or_else(|| reloader.read().map_err(unreadable), Ok)?;
        Ok::<_, Problem>(work(reloader, &files))
    });
    Ok((on_disk, looked.await??))
}

fn hide(bridge: &Arc<Bridge>, on_disk: bool, diagnostics: &mut [Diagnostic]) {
    if on_disk {
        unquote(diagnostics, &*bridge.policy_files);
    }
}

fn texts(texts: Vec<PolicyText>) -> Result<Vec<SourceFile>, Problem> {
    if texts.len() > POLICY_FILES_MAX {
        let detail = format!(
            "`files`: {} are too many: the most is {POLICY_FILES_MAX}",
            texts.len()
        );
        return Err(Problem::new(ErrorCode::InvalidRequest, detail));
    }
    let file = |file: PolicyText| SourceFile::new(file.name.into_string(), file.text);
    Ok(texts.into_iter().map(file).collect())
}

fn unreadable(why: String) -> Problem {
    Problem::new(
        ErrorCode::InvalidRequest,
        format!("the policy files cannot be read: {why}"),
    )
}
