//! What every verb that talks to a broker has at hand.

use gpu_api::DiskState;
use gpu_client::{Client, Endpoint};
use jiff::Timestamp;

use crate::cli::args::BrokerArgs;
use crate::cli::exit::Failure;
use crate::cli::output::{Paint, note};

/// A broker to talk to and a terminal to write on.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The broker.
    pub(crate) client: Client,
    /// Whether output is painted.
    pub(crate) paint: Paint,
    token: Option<String>,
}

impl Context {
    /// Finds the broker; does not talk to it yet.
    pub(crate) fn new(broker: &BrokerArgs) -> Result<Self, Failure> {
        // A variable that is set to nothing says nothing.
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let token = given(&broker.token);
        let client = Client::discover(given(&broker.url).as_deref(), token.as_deref())
            .map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Self {
            client,
            paint: Paint::for_stdout(),
            token,
        })
    }

    /// The same broker by its Unix socket, where it knows whose processes it is told of. As it is if that
    /// broker is on another host, has no socket, or is not reached at all.
    pub(crate) async fn on_socket(&self) -> Self {
        if self.client.endpoint().has_verified_peer() {
            return self.clone();
        }
        let Ok(status) = self.client.status().await else {
            return self.clone();
        };
        for endpoint in status
            .listen
            .iter()
            .filter_map(|address| address.parse::<Endpoint>().ok())
        {
            let Ok(client) = Client::new(endpoint, self.token.as_deref()) else {
                continue;
            };
            // Through a tunnel the path may be another broker's on this host.
            let same = |other: gpu_api::Status| {
                (other.pid, other.started_at) == (status.pid, status.started_at.clone())
            };
            if client.endpoint().has_verified_peer() && client.status().await.is_ok_and(same) {
                return Self {
                    client,
                    ..self.clone()
                };
            }
        }
        self.clone()
    }

    /// Wall time, for `3m ago`.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Says so in one line if the policy on disk is not the one in force.
    pub(crate) async fn note_disk_state(&self) {
        let Ok(status) = self.client.status().await else {
            return;
        };
        if let Some(line) = disk_note(&status.policy) {
            note(&line);
        }
    }
}

/// What a person should know about the files of `policy`, in one line.
pub(crate) fn disk_note(policy: &gpu_api::PolicyStatus) -> Option<String> {
    let why = policy
        .error_state
        .as_ref()
        .map(|why| format!(": {why}"))
        .unwrap_or_default();
    let generation = policy.generation;
    match policy.disk {
        DiskState::Differs => Some(format!(
            "the policy on disk is not the one in force (generation {generation}){why}; `gpu-manager reload` loads it"
        )),
        DiskState::Failing => Some(format!(
            "the policy on disk does not compile, generation {generation} stays in force{why}"
        )),
        DiskState::Same | DiskState::Unknown => None,
    }
}
