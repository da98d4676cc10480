//! Core types to wire types and back, as plain functions: nothing is decided here.

mod denial;
mod device;
mod emergency;
mod event;
mod lease;
mod policy;
mod reload;
mod request;
mod time;

pub(crate) use denial::{
    acquire_refused, device_refused, lease_refused, no_such_device, no_such_lease, over,
    unavailable,
};
pub(crate) use emergency::{EmergencyReport, targets};
pub(crate) use event::{event, reset};
pub(crate) use lease::state;
pub(crate) use policy::{diagnostics, policy};
pub(crate) use reload::{disk, error_state, reload_result, reload_state};
pub(crate) use request::{idempotency, request};
pub(crate) use time::{deadline, rfc3339};

use std::sync::Arc;

use gpu_broker::{Handle, Snapshot};
use gpu_lease::At;

/// What is looked at when something of the core is shown: one moment, and everything that was published.
pub(crate) struct Scene<'a> {
    pub(crate) handle: &'a Handle,
    pub(crate) now: At,
    pub(crate) snapshot: Arc<Snapshot>,
}

impl<'a> Scene<'a> {
    pub(crate) fn of(handle: &'a Handle) -> Self {
        Self {
            handle,
            now: handle.now(),
            snapshot: handle.snapshot(),
        }
    }
}
