//! Every path of the API: the constants are route patterns, the functions fill in an id.

/// POST acquires, GET lists.
pub const LEASES: &str = "/v1/leases";
/// GET one lease, DELETE releases it.
pub const LEASE: &str = "/v1/leases/{id}";
/// POST: heartbeat.
pub const LEASE_RENEW: &str = "/v1/leases/{id}/renew";
/// POST: end of the load phase.
pub const LEASE_READY: &str = "/v1/leases/{id}/ready";
/// POST: release, for a page that is closing.
pub const LEASE_RELEASE: &str = "/v1/leases/{id}/release";
/// POST, admin: ask the holder to stop by a deadline.
pub const LEASE_DRAIN: &str = "/v1/leases/{id}/drain";
/// POST, admin: end the lease.
pub const LEASE_REVOKE: &str = "/v1/leases/{id}/revoke";
/// POST: whether a fence is still current.
pub const FENCES_CHECK: &str = "/v1/fences/check";
/// POST, admin: end what is stuck, or everything.
pub const EMERGENCY_RELEASE: &str = "/v1/emergency-release";
/// GET: the devices.
pub const DEVICES: &str = "/v1/devices";
/// POST, admin: no new grants on a device.
pub const DEVICE_CORDON: &str = "/v1/devices/{id}/cordon";
/// POST, admin: grants again.
pub const DEVICE_UNCORDON: &str = "/v1/devices/{id}/uncordon";
/// POST, admin: drain every lease of a device.
pub const DEVICE_DRAIN: &str = "/v1/devices/{id}/drain";
/// POST, admin: believe that quarantined memory is free.
pub const DEVICE_CLEAR_QUARANTINE: &str = "/v1/devices/{id}/clear-quarantine";
/// POST triggers a reload, GET says how watching stands, PUT switches it.
pub const HOT_RELOAD: &str = "/v1/hot-reload";
/// GET: the policy in force; PUT, admin: writes its files and loads them.
pub const POLICY: &str = "/v1/policy";
/// POST: compile without loading.
pub const POLICY_CHECK: &str = "/v1/policy/check";
/// POST: what would become of a request.
pub const POLICY_EXPLAIN: &str = "/v1/policy/explain";
/// PUT, admin: settings above the files, for a while.
pub const POLICY_OVERRIDES: &str = "/v1/policy/overrides";
/// POST: what loading would mean for what is held and what waits.
pub const POLICY_PLAN: &str = "/v1/policy/plan";
/// POST, admin: back to an earlier policy.
pub const POLICY_ROLLBACK: &str = "/v1/policy/rollback";
/// GET: who waits, and why.
pub const QUEUE: &str = "/v1/queue";
/// GET: what happens, as server-sent events.
pub const EVENTS: &str = "/v1/events";
/// GET: what happened, a page at a time.
pub const HISTORY: &str = "/v1/history";
/// GET: who held what for how long.
pub const USAGE: &str = "/v1/usage";
/// GET: the broker at a glance.
pub const STATUS: &str = "/v1/status";
/// GET: the process answers.
pub const HEALTHZ: &str = "/healthz";
/// GET: the broker grants.
pub const READYZ: &str = "/readyz";
/// Another name of [`READYZ`].
pub const HEALTH: &str = "/health";
/// GET: Prometheus text.
pub const METRICS: &str = "/metrics";
/// GET: this API as OpenAPI 3.1.
pub const OPENAPI: &str = "/openapi.json";

/// `pattern` with its `{id}` replaced by `id`, escaped for a path.
///
/// ```
/// use gpu_api::paths;
/// assert_eq!(paths::with_id(paths::LEASE_RENEW, "l-0"), "/v1/leases/l-0/renew");
/// assert_eq!(paths::with_id(paths::DEVICE_DRAIN, "a/b"), "/v1/devices/a%2Fb/drain");
/// ```
pub fn with_id(pattern: &str, id: &str) -> String {
    pattern.replace("{id}", &escape(id))
}

/// `text` with every byte that is not unreserved in a URI as `%XX`; fits a path segment and a query value.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
