//! What happened, as one line of the event stream.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The name of the event that says: history before this point is gone, read everything anew.
pub const EVENT_RESET: &str = "reset";

/// The name of the event that says: the files of the page changed. In dev mode only, and never stored.
pub const EVENT_ASSETS_CHANGED: &str = "assets_changed";

/// One thing that happened; the data of one server-sent event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// `<store id>-<revision>-<n>`: what `Last-Event-ID` takes.
    pub id: String,
    /// When.
    pub at: String,
    /// What, as one word such as `lease_granted`.
    pub name: String,
    /// The lease concerned.
    pub lease: Option<String>,
    /// The user of the lease's holder.
    #[serde(default)]
    pub user: Option<String>,
    /// The device concerned; of a lease that holds several, the first.
    pub device: Option<String>,
    /// What else the lease holds.
    #[serde(default)]
    pub other_devices: Vec<String>,
    /// Who did it.
    pub by: Option<String>,
    /// For people.
    pub text: String,
    /// The policy in force.
    pub generation: u64,
}
