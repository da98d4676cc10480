//! HTTP in front of the broker: listener, guard, routes, events, page.
//!
//! Owns the accept loop, who is asking, what a request may say, and how the types of the wire and of the
//! core are made from each other. Must never know how rows are stored, nor how a request is decided: a
//! handler reads its input, makes one call and converts the answer.

mod app;
mod convert;
mod extract;
mod guard;
mod handover;
mod identity;
mod line;
mod metrics;
mod openapi;
mod problem;
mod routes;
mod secrets;
mod serve;
mod shown;

pub use app::{
    App, Assets, Config, EVENT_STREAMS_MAX, Limits, POLICY_LOOKS_MAX, PolicyFiles,
    PolicyFilesError, RECORD_LOOKS_MAX, RELOADS_IN_LINE_MAX, SAFE_START, SAFE_START_HINT,
    WAITING_REQUESTS_MAX, Warnings, WatchReport,
};
pub use convert::{
    UsageTable, event_filter, history, policy_check, rfc3339, stored_emergency, stored_leases,
};
pub use guard::{Authority, Origin, ParseOriginError};
pub use identity::{Peer, UnixUser};
pub use openapi::openapi_json;
pub use routes::service;
pub use secrets::{LEASE_KEY_FILE, SecretError, Secrets, TOKEN_FILE};
pub use serve::{
    CONNECTIONS_OF_ADMINS_MAX, CONNECTIONS_PER_LISTENER_MAX, HEADER_BYTES_MAX, HEADERS_MAX,
    Listeners, serve,
};
