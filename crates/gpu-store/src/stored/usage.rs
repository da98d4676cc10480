//! Usage as it is written; its hour, user, tenant and device are the key of its row.

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Usage {
    held_ms: u64,
    byte_ms: u128,
}

impl From<crate::Usage> for Usage {
    fn from(usage: crate::Usage) -> Self {
        Self {
            held_ms: usage.held_ms,
            byte_ms: usage.byte_ms,
        }
    }
}

impl From<Usage> for crate::Usage {
    fn from(usage: Usage) -> Self {
        Self {
            held_ms: usage.held_ms,
            byte_ms: usage.byte_ms,
        }
    }
}
