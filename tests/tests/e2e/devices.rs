//! Cards: found, held back, lost, used by strangers, hung.

use std::time::{Duration, Instant};

use gpu_api::{DeviceKind, EndReason, Enforcement, Freshness, LeaseState, Request as _, paths};
use gpu_manager_tests::{Host, POLICY, Request, eventually, gib, problem};
use serde_json::json;
