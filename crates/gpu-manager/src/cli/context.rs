//! What every verb that talks to a broker has at hand.

use std::path::Path;

use gpu_api::{DiskState, PolicyStatus};
use gpu_client::{Client, Endpoint};
use jiff::Timestamp;

use crate::cli::args::BrokerArgs;
use crate::cli::exit::Failure;
use crate::cli::output::{Paint, clean, note};
use crate::offline;

const SHORT_HASH_CHARS: usize = 12;

/// A broker to talk to and a terminal to write on.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The broker.
    pub(crate) client: Client,
    /// Whether output is painted.
    pub(crate) paint: Paint,
    /// Whether somebody said where the broker is: then no other will do.
    pub(crate) is_stated: bool,
    token: Option<String>,
}

impl Context {
    /// Finds the broker; does not talk to it yet.
    pub(crate) fn new(broker: &BrokerArgs) -> Result<Self, Failure> {
        // A variable that is set to nothing says nothing.
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let token = given(&broker.token);
        let url = given(&broker.url);
        let client = Client::discover(url.as_deref(), token.as_deref())
            .map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Self {
            client,
            paint: Paint::for_stdout(),
            is_stated: url.is_some(),
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

    /// The broker at another address.
    pub(crate) fn at(&self, endpoint: Endpoint) -> Option<Self> {
        let client = Client::new(endpoint, self.token.as_deref()).ok()?;
        Some(Self {
            client,
            ..self.clone()
        })
    }

    /// The broker that has the state directory of a caller who names that and no address; else as it is.
    pub(crate) fn of_state_dir(&self, dir: Option<&Path>) -> Self {
        let endpoint = dir
            .filter(|_| !self.is_stated)
            .and_then(offline::endpoint_of);
        let of_dir = endpoint.and_then(|endpoint| self.at(endpoint));
        of_dir.unwrap_or_else(|| self.clone())
    }

    /// Wall time, for `3m ago`.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Says so in a line if the broker started safe, or else if the policy on disk is not the one in force.
    pub(crate) async fn note_disk_state(&self) {
        let Ok(status) = self.client.status().await else {
            return;
        };
        match &status.safe_start {
            Some(why) => note(&safe_note(why)),
            None => {
                if let Some(line) = disk_note(&status.policy) {
                    note(&line);
                }
            }
        }
    }

    /// Says so in a line if the broker started safe.
    pub(crate) async fn note_safe_start(&self) {
        let status = self.client.status().await.ok();
        if let Some(why) = status.and_then(|status| status.safe_start) {
            note(&safe_note(&why));
        }
    }

    /// Whether the broker started safe: what it does not know then is no news of this host.
    pub(crate) async fn started_safe(&self) -> bool {
        let status = self.client.status().await;
        status.is_ok_and(|status| status.safe_start.is_some())
    }
}

fn safe_note(why: &str) -> String {
    let (safe, why) = (gpu_bridge::SAFE_START, clean(why));
    format!("{safe} ({why}); `gpu-manager status` says what to do")
}

/// What a person should know and can do about the files of `policy`, in one line.
pub(crate) fn disk_note(policy: &PolicyStatus) -> Option<String> {
    let why = policy
        .error_state
        .as_ref()
        .map(|why| format!(": {why}"))
        .unwrap_or_default();
    let generation = policy.generation;
    match (policy.disk, &policy.pending) {
        (DiskState::Pending, Some(plan)) | (DiskState::Differs, Some(plan)) => Some(format!(
            "policy needs confirmation: gpu-manager reload --confirm {}{why}",
            short_hash(plan)
        )),
        (DiskState::Differs | DiskState::Pending, _) => Some(format!(
            "the policy on disk is not the one in force (generation {generation}){why}; `gpu-manager reload` loads it"
        )),
        (DiskState::Failing, _) => Some(format!(
            "the policy on disk does not compile, generation {generation} stays in force{why}; `gpu-manager policy check` says what is wrong"
        )),
        (DiskState::Same | DiskState::Unknown, _) => None,
    }
}

/// The beginning of a hash, enough to tell it from others and to name it by.
pub(crate) fn short_hash(hash: &str) -> String {
    clean(hash.get(..SHORT_HASH_CHARS).unwrap_or(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_what_to_do() {
        let note = |disk, pending: Option<&str>| {
            disk_note(&PolicyStatus {
                generation: 4,
                hash: "ab".repeat(32),
                dirs: vec!["policies".to_owned()],
                watched: true,
                disk,
                error_state: Some("it is bad".to_owned()),
                pending: pending.map(ToOwned::to_owned),
            })
        };
        let plan = "1a2b3c".repeat(10);
        for (disk, pending, part) in [
            (
                DiskState::Pending,
                Some(plan.as_str()),
                "policy needs confirmation: gpu-manager reload --confirm 1a2b3c1a2b3c: it is bad",
            ),
            (
                DiskState::Differs,
                None,
                "(generation 4): it is bad; `gpu-manager reload` loads it",
            ),
            (
                DiskState::Failing,
                None,
                "generation 4 stays in force: it is bad",
            ),
        ] {
            let line = note(disk, pending).expect(part);
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(note(DiskState::Same, None), None);
    }
}
