//! A request as the core takes it: every default filled in, everything that it names looked up.

use gpu_api as wire;
use gpu_api::{ErrorCode, Problem};
use gpu_broker::{parse_select, register_process};
use gpu_lease::{Amount, Holder, HolderKind, Idempotency, Ms, Policy, Request, Select};
use sha2::{Digest, Sha256};

use crate::identity::Caller;
use crate::secrets::hex;

/// What `asked` means to the books, under the defaults of `policy`.
///
/// # Errors
/// It names what is not there, or what the caller may not name.
pub(crate) fn request(
    asked: &wire::AcquireRequest,
    idempotency: Option<Idempotency>,
    caller: &Caller,
    policy: &Policy,
) -> Result<Request, Problem> {
    refuse_what_is_not_there(asked)?;
    let defaults = &policy.defaults;
    let or_default = |span: Option<wire::Span>, default: Ms| span.map_or(default, ms);
    Ok(Request {
        holder: holder(&asked.holder, caller)?,
        class: asked
            .class
            .as_ref()
            .map_or_else(|| defaults.class.clone(), ToString::to_string),
        devices: asked.devices.get(),
        amount: amount(asked.demand()),
        select: select(asked.select.as_deref())?,
        ttl: or_default(asked.ttl.map(wire::Ttl::span), defaults.ttl),
        wait: or_default(asked.wait, defaults.wait),
        max_hold: asked.max_hold.map(ms),
        drain_grace: asked.drain_grace.map(ms),
        load: asked.load,
        queue: asked.queue,
        idempotency,
        labels: asked
            .labels
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    })
}

/// A caller's key for `asked`, with the hash of what was asked: spelling and order of the JSON do not count.
pub(crate) fn idempotency(key: &str, caller: &Caller, asked: &wire::AcquireRequest) -> Idempotency {
    let canonical = serde_json::to_vec(asked).expect("requests are plain data with text as keys");
    Idempotency {
        key: (caller.name().to_owned(), key.to_owned()),
        body_hash: hex(&Sha256::digest(canonical)),
    }
}

fn refuse_what_is_not_there(asked: &wire::AcquireRequest) -> Result<(), Problem> {
    if asked.compute.is_some() {
        return Err(invalid("`compute`: shares of compute cannot be leased"));
    }
    match &asked.drain_hook {
        Some(hook) => Err(invalid(format!(
            "`drain_hook`: the policy defines no hook `{hook}`"
        ))),
        None => Ok(()),
    }
}

fn holder(asked: &wire::HolderRequest, caller: &Caller) -> Result<Holder, Problem> {
    let name = asked.name.as_ref().map(ToString::to_string);
    Ok(Holder {
        name: name.unwrap_or_else(|| caller.name().to_owned()),
        kind: holder_kind(asked, caller)?,
        tenant: asked.tenant.as_ref().map(ToString::to_string),
        user: caller.name().to_owned(),
        tenant_found: false,
        pid: asked.pid,
    })
}

fn holder_kind(asked: &wire::HolderRequest, caller: &Caller) -> Result<HolderKind, Problem> {
    match (asked.kind, asked.pid) {
        (wire::HolderKind::Page, _) => Ok(HolderKind::Page),
        (wire::HolderKind::Remote, _) => Ok(HolderKind::Remote),
        (wire::HolderKind::Process, Some(pid)) => process(pid, asked.supervised, caller),
        (wire::HolderKind::Process, None) => Err(invalid(
            "`holder.pid` is needed where `holder.kind` is `process`",
        )),
    }
}

/// The process must be the verified caller's own; only then may the broker ever signal it.
fn process(pid: u32, supervised: bool, caller: &Caller) -> Result<HolderKind, Problem> {
    // A token says who may do what, not on which host its bearer's processes run.
    let Some(uid) = caller.uid else {
        return Err(Problem::new(
            ErrorCode::Forbidden,
            "`holder.pid`: nobody can tell whose process this is",
        )
        .with_hint("ask on the Unix socket, or leave `holder.kind` at `remote`"));
    };
    register_process(pid, uid, caller.admin, supervised)
        .map(HolderKind::Process)
        .map_err(|error| invalid(format!("`holder.pid`: {error}")))
}

fn amount(demand: wire::Demand) -> Amount {
    match demand {
        wire::Demand::Memory(bytes) => Amount::Memory(bytes.get()),
        wire::Demand::Whole => Amount::Exclusive,
    }
}

fn select(expression: Option<&str>) -> Result<Select, Problem> {
    let parse = |text| {
        parse_select(text).map_err(|error| {
            let detail = format!("`select`, column {}: {}", error.column, error.message);
            Problem {
                hint: error.hint,
                ..invalid(detail)
            }
        })
    };
    expression.map_or(Ok(Select::default()), parse)
}

fn ms(span: wire::Span) -> Ms {
    Ms(span.as_ms())
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::InvalidRequest, detail)
}
