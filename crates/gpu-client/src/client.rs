//! One method for every path of the API.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gpu_api::{
    AcquireRequest, CordonRequest, Device, DeviceDrainResult, DeviceList, DrainRequest,
    EmergencyRequest, EmergencyResult, ExplainRequest, Explanation, FenceAnswer, FenceCheck,
    Health, History, HistoryQuery, Lease, LeaseList, OverridesRequest, Policy, PolicyCheck,
    PolicyCheckRequest, PolicyPlan, PolicyPlanRequest, PolicyPut, PolicyRollbackRequest, Problem,
    Queue, ReloadRequest, ReloadResult, ReloadState, ReloadSwitch, Span, Status, UsageQuery,
    UsageReport, paths,
};
use hyper::Method;
use hyper::header::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connection::{Answer, Call, Connections, READ_PATIENCE};
use crate::endpoint::{Endpoint, ParseEndpointError};
use crate::error::ClientError;
use crate::events::EventStream;

/// How long a broker that lives may take for what is more work than a look, such as to compile a policy.
const PATIENCE: Duration = Duration::from_secs(30);
const KEY_BYTES: usize = 16;
const IF_MATCH_HEADER: &str = "if-match";

/// A client of one broker. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    connections: Arc<Connections>,
}

/// The text cannot be sent as a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token holds characters that a header cannot carry")]
pub struct TokenError;

/// Makes a repeated acquire answer the lease of the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(HeaderValue);

impl IdempotencyKey {
    /// A key that nobody else has: 128 random bits.
    pub fn random() -> Self {
        let mut bits = [0_u8; KEY_BYTES];
        getrandom::fill(&mut bits).expect("the kernel has random bytes once it has started");
        let text: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(HeaderValue::from_str(&text).expect("hexadecimal digits are plain text"))
    }

    /// The caller's own key: 1 to 128 visible ASCII characters.
    pub fn from_text(text: &str) -> Option<Self> {
        let fits = (1..=gpu_api::IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len());
        (fits && text.bytes().all(|byte| byte.is_ascii_graphic()))
            .then(|| HeaderValue::from_str(text).ok().map(Self))
            .flatten()
    }
}

impl Client {
    /// A client of the broker at `endpoint`; connects with its first call.
    ///
    /// # Errors
    /// [`TokenError`] for a token that no header can carry.
    pub fn new(endpoint: Endpoint, token: Option<&str>) -> Result<Self, TokenError> {
        let bearer =
            |token: &str| HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| TokenError);
        let mut token = token.map(bearer).transpose()?;
        if let Some(token) = &mut token {
            token.set_sensitive(true);
        }
        Ok(Self {
            connections: Arc::new(Connections::new(endpoint, token)),
        })
    }

    /// A client of the broker at `url`, else of the one that [`Endpoint::find`] finds.
    ///
    /// # Errors
    /// A `url` that is no address, or a token that no header can carry; both as text for people.
    pub fn discover(url: Option<&str>, token: Option<&str>) -> Result<Self, DiscoverError> {
        let endpoint = match url {
            Some(url) => url.parse()?,
            None => Endpoint::find(),
        };
        Ok(Self::new(endpoint, token)?)
    }

    /// Where the broker is.
    pub fn endpoint(&self) -> &Endpoint {
        self.connections.endpoint()
    }

    /// Asks for a lease. Without `queue` the answer is a grant, after `wait` at most; with it the lease may
    /// be waiting.
    ///
    /// # Errors
    /// Every method: see [`ClientError`].
    pub async fn acquire(
        &self,
        request: &AcquireRequest,
        key: &IdempotencyKey,
    ) -> Result<Lease, ClientError> {
        let mut call = post(paths::LEASES.to_owned(), request);
        // A policy's default wait is the broker's to know: one that does not say waits as long as it takes.
        let wait = match request.queue {
            true => Span::default(),
            false => request.wait.unwrap_or(Span::MAX),
        };
        if wait > Span::default() {
            call = long(call, wait.as_duration());
        }
        call.headers
            .push((gpu_api::IDEMPOTENCY_KEY_HEADER, key.0.clone()));
        self.call(call).await
    }

    /// One lease.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lease(&self, id: &str) -> Result<Lease, ClientError> {
        self.call(get(paths::with_id(paths::LEASE, id))).await
    }

    /// One lease as soon as its revision is above `after`, or as it is when `wait` is over.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lease_after(
        &self,
        id: &str,
        after: u64,
        wait: Span,
    ) -> Result<Lease, ClientError> {
        let path = paths::with_id(paths::LEASE, id);
        let mut call = get(format!("{path}?after={after}&wait={}ms", wait.as_ms()));
        call.patience = READ_PATIENCE.saturating_add(wait.as_duration());
        self.call(call).await
    }

    /// A page of leases, oldest first; `after` is the `next` of the page before.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leases(&self, live: bool, after: Option<&str>) -> Result<LeaseList, ClientError> {
        let after = after
            .map(|after| format!("&after={}", paths::escape(after)))
            .unwrap_or_default();
        self.call(get(format!("{}?live={live}{after}", paths::LEASES)))
            .await
    }

    /// Every lease, all pages together.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn all_leases(&self, live: bool) -> Result<Vec<Lease>, ClientError> {
        let mut page = self.leases(live, None).await?;
        let mut leases = page.leases;
        while let Some(next) = page.next {
            page = self.leases(live, Some(&next)).await?;
            leases.append(&mut page.leases);
        }
        Ok(leases)
    }

    /// A heartbeat.
    ///
    /// # Errors
    /// See [`ClientError`]; `ended` after the end.
    pub async fn renew(&self, id: &str, secret: Option<&str>) -> Result<Lease, ClientError> {
        self.call(with_secret(
            bare_post(paths::with_id(paths::LEASE_RENEW, id)),
            secret,
        ))
        .await
    }

    /// The end of the load phase.
    ///
    /// # Errors
    /// See [`ClientError`]; `ended` after the end.
    pub async fn ready(&self, id: &str, secret: Option<&str>) -> Result<Lease, ClientError> {
        self.call(with_secret(
            bare_post(paths::with_id(paths::LEASE_READY, id)),
            secret,
        ))
        .await
    }

    /// Gives the lease back, or cancels its wait. Also good when it has ended.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn release(&self, id: &str, secret: Option<&str>) -> Result<Lease, ClientError> {
        let call = Call {
            method: Method::DELETE,
            ..bare_post(paths::with_id(paths::LEASE, id))
        };
        self.call(with_secret(call, secret)).await
    }

    /// Whether `check.fence` is current.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn check_fence(&self, check: &FenceCheck) -> Result<FenceAnswer, ClientError> {
        self.call(post(paths::FENCES_CHECK.to_owned(), check)).await
    }

    /// Asks the holder of a lease to stop. Admin.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn drain_lease(
        &self,
        id: &str,
        request: &DrainRequest,
    ) -> Result<Lease, ClientError> {
        self.call(once(post(paths::with_id(paths::LEASE_DRAIN, id), request)))
            .await
    }

    /// Ends a lease. Admin.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke(&self, id: &str, request: &DrainRequest) -> Result<Lease, ClientError> {
        self.call(post(paths::with_id(paths::LEASE_REVOKE, id), request))
            .await
    }

    /// Ends what is stuck, or everything. Admin.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn emergency_release(
        &self,
        request: &EmergencyRequest,
    ) -> Result<EmergencyResult, ClientError> {
        // Its caller has a way out: no other sign than its answer counts.
        self.call(Call {
            patience: PATIENCE,
            ..once(post(paths::EMERGENCY_RELEASE.to_owned(), request))
        })
        .await
    }

    /// The devices, by index.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn devices(&self) -> Result<Vec<Device>, ClientError> {
        let list: DeviceList = self.call(get(paths::DEVICES.to_owned())).await?;
        Ok(list.devices)
    }

    /// No new grants on a device. Admin.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn cordon(
        &self,
        device: &str,
        request: &CordonRequest,
    ) -> Result<Device, ClientError> {
        self.call(post(paths::with_id(paths::DEVICE_CORDON, device), request))
            .await
    }

    /// Grants on a device again. Admin.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn uncordon(
        &self,
        device: &str,
        request: &CordonRequest,
    ) -> Result<Device, ClientError> {
        self.call(post(
            paths::with_id(paths::DEVICE_UNCORDON, device),
            request,
        ))
        .await
    }

    /// Asks every holder on a device to stop. Admin.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn drain_device(
        &self,
        device: &str,
        request: &DrainRequest,
    ) -> Result<DeviceDrainResult, ClientError> {
        self.call(once(post(
            paths::with_id(paths::DEVICE_DRAIN, device),
            request,
        )))
        .await
    }

    /// Believes that quarantined memory of a device is free. Admin.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn clear_quarantine(
        &self,
        device: &str,
        request: &CordonRequest,
    ) -> Result<Device, ClientError> {
        self.call(post(
            paths::with_id(paths::DEVICE_CLEAR_QUARANTINE, device),
            request,
        ))
        .await
    }

    /// Reloads the policy now, and waits for the result. Admin.
    ///
    /// # Errors
    /// See [`ClientError`]; files that do not compile are a result, not an error.
    pub async fn reload(&self, request: &ReloadRequest) -> Result<ReloadResult, ClientError> {
        self.reload_if(request, &LoadOptions::default()).await
    }

    /// [`Self::reload`] under conditions. Admin.
    ///
    /// # Errors
    /// See [`ClientError`]; whatever becomes of the files is a result, not an error.
    pub async fn reload_if(
        &self,
        request: &ReloadRequest,
        options: &LoadOptions,
    ) -> Result<ReloadResult, ClientError> {
        self.load(Method::POST, paths::HOT_RELOAD, request, options)
            .await
    }

    /// How the policy watch stands.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn reload_state(&self) -> Result<ReloadState, ClientError> {
        self.call(get(paths::HOT_RELOAD.to_owned())).await
    }

    /// Switches the policy watch. Admin.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn switch_reload(&self, enabled: bool) -> Result<ReloadState, ClientError> {
        let call = post(paths::HOT_RELOAD.to_owned(), &ReloadSwitch { enabled });
        self.call(Call {
            method: Method::PUT,
            ..call
        })
        .await
    }

    /// The policy in force.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn policy(&self) -> Result<Policy, ClientError> {
        self.call(get(paths::POLICY.to_owned())).await
    }

    /// Compiles without loading.
    ///
    /// # Errors
    /// See [`ClientError`]; texts that do not compile are a result, not an error.
    pub async fn check_policy(
        &self,
        request: &PolicyCheckRequest,
    ) -> Result<PolicyCheck, ClientError> {
        let call = post(paths::POLICY_CHECK.to_owned(), request);
        self.call(long(call, Duration::ZERO)).await
    }

    /// What loading would mean for what is held and what waits; nothing changes.
    ///
    /// # Errors
    /// See [`ClientError`]; texts that do not compile are a result, not an error.
    pub async fn plan_policy(
        &self,
        request: &PolicyPlanRequest,
    ) -> Result<PolicyPlan, ClientError> {
        let call = post(paths::POLICY_PLAN.to_owned(), request);
        self.call(long(call, Duration::ZERO)).await
    }

    /// What would become of a request; nothing changes.
    ///
    /// # Errors
    /// See [`ClientError`]; a request that would be refused is an explanation, not an error.
    pub async fn explain_policy(
        &self,
        request: &ExplainRequest,
    ) -> Result<Explanation, ClientError> {
        let call = post(paths::POLICY_EXPLAIN.to_owned(), request);
        self.call(long(call, Duration::ZERO)).await
    }

    /// Writes the policy files and loads them. Admin.
    ///
    /// # Errors
    /// See [`ClientError`]; whatever becomes of the files is a result, not an error.
    pub async fn put_policy(
        &self,
        request: &PolicyPut,
        options: &LoadOptions,
    ) -> Result<ReloadResult, ClientError> {
        self.load(Method::PUT, paths::POLICY, request, options)
            .await
    }

    /// Goes back to an earlier policy. Admin.
    ///
    /// # Errors
    /// See [`ClientError`]; a plan that has to be confirmed is a result, not an error.
    pub async fn rollback_policy(
        &self,
        request: &PolicyRollbackRequest,
        options: &LoadOptions,
    ) -> Result<ReloadResult, ClientError> {
        self.load(Method::POST, paths::POLICY_ROLLBACK, request, options)
            .await
    }

    /// Replaces the settings above the files, for a while. Admin.
    ///
    /// # Errors
    /// See [`ClientError`]; settings that do not compile are a result, not an error.
    pub async fn set_overrides(
        &self,
        request: &OverridesRequest,
        options: &LoadOptions,
    ) -> Result<ReloadResult, ClientError> {
        self.load(Method::PUT, paths::POLICY_OVERRIDES, request, options)
            .await
    }

    /// Who waits, and why.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn queue(&self) -> Result<Queue, ClientError> {
        self.call(get(paths::QUEUE.to_owned())).await
    }

    /// A page of what happened.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn history(&self, query: &HistoryQuery) -> Result<History, ClientError> {
        let limit = query.limit.map(|limit| limit.to_string());
        let query = [
            ("lease", query.lease.as_ref().map(ToString::to_string)),
            ("device", query.device.as_ref().map(ToString::to_string)),
            ("user", query.user.as_ref().map(ToString::to_string)),
            ("since", query.since.clone().map(String::from)),
            ("after", query.after.as_ref().map(ToString::to_string)),
            ("limit", limit),
        ];
        self.call(get(with_query(paths::HISTORY, query))).await
    }

    /// Who held what for how long.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn usage(&self, query: &UsageQuery) -> Result<UsageReport, ClientError> {
        let query = [
            ("by", query.by.map(String::from)),
            ("since", query.since.clone().map(String::from)),
        ];
        self.call(get(with_query(paths::USAGE, query))).await
    }

    /// The broker at a glance.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ClientError::NotABroker`] if another program answers.
    pub async fn status(&self) -> Result<Status, ClientError> {
        let status: Status = self.call(get(paths::STATUS.to_owned())).await?;
        match status.service == gpu_api::SERVICE {
            true => Ok(status),
            false => Err(self
                .connections
                .not_a_broker(format!("it calls itself `{}`", status.service))),
        }
    }

    /// Whether the broker grants.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ready_to_grant(&self) -> Result<Health, ClientError> {
        self.call(get(paths::READYZ.to_owned())).await
    }

    /// What happens from here on, or from behind the event of the id `after`.
    pub fn events(&self, after: Option<String>) -> EventStream {
        EventStream::new(Arc::clone(&self.connections), after)
    }

    /// Loads a policy. It is not sent again once the broker may have seen it.
    async fn load(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        options: &LoadOptions,
    ) -> Result<ReloadResult, ClientError> {
        let query = options
            .timeout
            .map(|span| format!("?timeout={}ms", span.as_ms()));
        let call = post(format!("{path}{}", query.unwrap_or_default()), body);
        let call = once(Call { method, ..call });
        let result = options.timeout.map_or(PATIENCE, Span::as_duration);
        let mut call = long(call, result);
        // A hash that no header can carry is no hash, and the broker says so of an empty one.
        if let Some(live) = &options.if_match {
            let tag = match live.as_str() {
                "*" => Ok(HeaderValue::from_static("*")),
                live => HeaderValue::from_str(&format!("\"{live}\"")),
            };
            let tag = tag.unwrap_or_else(|_| HeaderValue::from_static("\"\""));
            call.headers.push((IF_MATCH_HEADER, tag));
        }
        let answer = self.connections.exchange(&call).await?;
        read_result(&self.connections, &answer)
    }

    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let answer = self.connections.exchange(&call).await?;
        read_answer(&self.connections, &answer)
    }
}

/// Under which conditions a policy is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Only if the policy in force has this hash; `*` is any, whatever is on disk.
    pub if_match: Option<String>,
    /// How long the broker waits for the result before it answers that it goes on; its own choice if absent.
    pub timeout: Option<Span>,
}

/// Why no client can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoverError {
    /// The address is none.
    #[error(transparent)]
    Endpoint(#[from] ParseEndpointError),
    /// The token is none.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// `answer` as a `T`, or as the error that it is.
pub(crate) fn read_answer<T: DeserializeOwned>(
    connections: &Connections,
    answer: &Answer,
) -> Result<T, ClientError> {
    if answer.status.is_success() {
        return serde_json::from_slice(&answer.body).map_err(|error| {
            connections.not_a_broker(format!("its answer is not understood ({error})"))
        });
    }
    match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(problem) => Err(ClientError::Problem(Box::new(problem))),
        Err(_) => {
            Err(connections
                .not_a_broker(format!("it answers `{}` without a reason", answer.status)))
        }
    }
}

/// `answer` as the result of a reload, whose status says what came of it, or as the error that it is.
fn read_result(connections: &Connections, answer: &Answer) -> Result<ReloadResult, ClientError> {
    match serde_json::from_slice::<ReloadResult>(&answer.body) {
        Ok(result) if result.outcome.status() == answer.status.as_u16() => Ok(result),
        _ => read_answer(connections, answer),
    }
}

pub(crate) fn get(path: String) -> Call {
    Call {
        method: Method::GET,
        path,
        headers: Vec::new(),
        body: Bytes::new(),
        repeatable: true,
        patience: READ_PATIENCE,
        watched: false,
    }
}

/// `path` with what of `query` is there.
fn with_query<const N: usize>(path: &str, query: [(&str, Option<String>); N]) -> String {
    let given = query.into_iter();
    let given = given.filter_map(|(name, value)| Some((name, paths::escape(&value?))));
    let given: Vec<String> = given
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    match given.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", given.join("&")),
    }
}

fn bare_post(path: String) -> Call {
    Call {
        method: Method::POST,
        ..get(path)
    }
}

fn post(path: String, body: &impl Serialize) -> Call {
    let body = serde_json::to_vec(body).expect("requests are plain data with text as keys");
    Call {
        body: body.into(),
        ..bare_post(path)
    }
}

/// `call`, which may rightly take `more` than what a broker does at once.
fn long(call: Call, more: Duration) -> Call {
    Call {
        patience: PATIENCE.saturating_add(more),
        watched: true,
        ..call
    }
}

/// `call`, which is not sent again once the broker may have seen it.
fn once(call: Call) -> Call {
    Call {
        repeatable: false,
        ..call
    }
}

fn with_secret(mut call: Call, secret: Option<&str>) -> Call {
    // A secret that no header can carry is wrong, and the broker says so better than an error here.
    if let Some(value) = secret.and_then(|secret| HeaderValue::from_str(secret).ok()) {
        call.headers.push((gpu_api::LEASE_SECRET_HEADER, value));
    }
    call
}
