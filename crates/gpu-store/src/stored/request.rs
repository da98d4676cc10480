//! What was asked for, as it is written.

use std::collections::BTreeMap;

use gpu_lease::Ms;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    holder: Holder,
    class: String,
    devices: u32,
    amount: Amount,
    select: Select,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    filters: Vec<String>,
    ttl_ms: u64,
    wait_ms: u64,
    max_hold_ms: Option<u64>,
    drain_grace_ms: Option<u64>,
    load: bool,
    queue: bool,
    idempotency: Option<Idempotency>,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Holder {
    name: String,
    kind: HolderKind,
    tenant: Option<String>,
    /// Absent where it was claimed, and in rows of earlier versions.
    #[serde(default, skip_serializing_if = "is_claimed")]
    tenant_found: bool,
    user: String,
    pid: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum HolderKind {
    Page,
    Process(Process),
    Remote,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Process {
    pid: u32,
    start_ticks: u64,
    boot_id: String,
    uid: u32,
    supervised: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Amount {
    Exclusive,
    Memory(u64),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Select {
    Any,
    Ids(Vec<String>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Idempotency {
    caller: String,
    key: String,
    body_hash: String,
}

impl From<&gpu_lease::Request> for Request {
    fn from(request: &gpu_lease::Request) -> Self {
        Self {
            holder: Holder::from(&request.holder),
            class: request.class.clone(),
            devices: request.devices,
            amount: Amount::from(request.amount),
            select: Select::from(&request.select),
            filters: request.select.filters.clone(),
            ttl_ms: request.ttl.0,
            wait_ms: request.wait.0,
            max_hold_ms: request.max_hold.map(|length| length.0),
            drain_grace_ms: request.drain_grace.map(|length| length.0),
            load: request.load,
            queue: request.queue,
            idempotency: request.idempotency.as_ref().map(Idempotency::from),
            labels: request.labels.clone(),
        }
    }
}

impl From<Request> for gpu_lease::Request {
    fn from(request: Request) -> Self {
        Self {
            holder: request.holder.into(),
            class: request.class,
            devices: request.devices,
            amount: request.amount.into(),
            select: gpu_lease::Select {
                filters: request.filters,
                ids: request.select.into(),
            },
            ttl: Ms(request.ttl_ms),
            wait: Ms(request.wait_ms),
            max_hold: request.max_hold_ms.map(Ms),
            drain_grace: request.drain_grace_ms.map(Ms),
            load: request.load,
            queue: request.queue,
            idempotency: request.idempotency.map(Into::into),
            labels: request.labels,
        }
    }
}

/// Takes a reference because `serde` does.
fn is_claimed(tenant_found: &bool) -> bool {
    !tenant_found
}

impl From<&gpu_lease::Holder> for Holder {
    fn from(holder: &gpu_lease::Holder) -> Self {
        Self {
            name: holder.name.clone(),
            kind: HolderKind::from(&holder.kind),
            tenant: holder.tenant.clone(),
            tenant_found: holder.tenant_found,
            user: holder.user.clone(),
            pid: holder.pid,
        }
    }
}

impl From<Holder> for gpu_lease::Holder {
    fn from(holder: Holder) -> Self {
        Self {
            name: holder.name,
            kind: holder.kind.into(),
            tenant: holder.tenant,
            tenant_found: holder.tenant_found,
            user: holder.user,
            pid: holder.pid,
        }
    }
}

impl From<&gpu_lease::HolderKind> for HolderKind {
    fn from(kind: &gpu_lease::HolderKind) -> Self {
        match kind {
            gpu_lease::HolderKind::Page => Self::Page,
            gpu_lease::HolderKind::Process(process) => Self::Process(Process::from(process)),
            gpu_lease::HolderKind::Remote => Self::Remote,
        }
    }
}

impl From<HolderKind> for gpu_lease::HolderKind {
    fn from(kind: HolderKind) -> Self {
        match kind {
            HolderKind::Page => Self::Page,
            HolderKind::Process(process) => Self::Process(process.into()),
            HolderKind::Remote => Self::Remote,
        }
    }
}

impl From<&gpu_lease::Process> for Process {
    fn from(process: &gpu_lease::Process) -> Self {
        Self {
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id: process.boot_id.clone(),
            uid: process.uid,
            supervised: process.supervised,
        }
    }
}

impl From<Process> for gpu_lease::Process {
    fn from(process: Process) -> Self {
        Self {
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id: process.boot_id,
            uid: process.uid,
            supervised: process.supervised,
        }
    }
}

impl From<gpu_lease::Amount> for Amount {
    fn from(amount: gpu_lease::Amount) -> Self {
        match amount {
            gpu_lease::Amount::Exclusive => Self::Exclusive,
            gpu_lease::Amount::Memory(bytes) => Self::Memory(bytes),
        }
    }
}

impl From<Amount> for gpu_lease::Amount {
    fn from(amount: Amount) -> Self {
        match amount {
            Amount::Exclusive => Self::Exclusive,
            Amount::Memory(bytes) => Self::Memory(bytes),
        }
    }
}

impl From<&gpu_lease::Select> for Select {
    fn from(select: &gpu_lease::Select) -> Self {
        match &select.ids {
            None => Self::Any,
            Some(ids) => Self::Ids(ids.iter().map(|id| id.as_str().to_owned()).collect()),
        }
    }
}

impl From<Select> for Option<Vec<gpu_lease::DeviceId>> {
    fn from(select: Select) -> Self {
        match select {
            Select::Any => None,
            Select::Ids(ids) => Some(ids.iter().map(|id| gpu_lease::DeviceId::new(id)).collect()),
        }
    }
}

impl From<&gpu_lease::Idempotency> for Idempotency {
    fn from(idempotency: &gpu_lease::Idempotency) -> Self {
        let (caller, key) = idempotency.key.clone();
        Self {
            caller,
            key,
            body_hash: idempotency.body_hash.clone(),
        }
    }
}

impl From<Idempotency> for gpu_lease::Idempotency {
    fn from(idempotency: Idempotency) -> Self {
        Self {
            key: (idempotency.caller, idempotency.key),
            body_hash: idempotency.body_hash,
        }
    }
}
