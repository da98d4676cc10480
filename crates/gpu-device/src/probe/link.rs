//! Asking children: start, deadline, burial, rest.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::worker::{LinkError, Worker};
use super::{Limits, ProbeCommand, ProbeState};
use crate::child::ENUMERATE_FLAG;
use crate::source::{Discovery, SourceName};
use crate::wire::{Answer, Ask, Said, Settings, What};

/// The child that serves for as long as it answers.
#[derive(Debug)]
pub(super) struct Link {
    command: ProbeCommand,
    limits: Limits,
    settings: Settings,
    number: u64,
    worker: Option<Worker>,
    grave: Grave,
    rest: Rest,
}

impl Link {
    pub(super) fn new(command: ProbeCommand, limits: Limits, settings: Settings) -> Self {
        Self {
            command,
            limits,
            settings,
            number: 0,
            worker: None,
            grave: Grave::default(),
            rest: Rest::default(),
        }
    }

    pub(super) fn state(&self) -> ProbeState {
        match (&self.worker, self.rest.failures) {
            (Some(_), _) => ProbeState::Ok,
            (None, 0) => ProbeState::Idle,
            (None, _) => ProbeState::Restarting,
        }
    }

    /// Asks, and starts the child before if there is none. A child that does not answer well is killed.
    pub(super) fn ask<T: DeserializeOwned>(
        &mut self,
        what: What,
    ) -> Result<Vec<Said<T>>, LinkError> {
        self.number += 1;
        let ask = Ask {
            number: self.number,
            what,
        };
        match self.try_ask(ask) {
            Ok(answer) => {
                self.rest.end();
                Ok(answer)
            }
            Err(error @ LinkError::Resting { .. }) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "the device probe failed");
                if let Some(worker) = self.worker.take() {
                    self.grave.bury(worker);
                }
                self.rest.start(&error, self.limits);
                Err(error)
            }
        }
    }

    fn try_ask<T: DeserializeOwned>(&mut self, ask: Ask) -> Result<Vec<Said<T>>, LinkError> {
        let deadline = match (&self.worker, ask.what) {
            (Some(_), What::Read) => self.limits.read,
            _ => self.limits.discover,
        };
        if self.worker.is_none() {
            self.rest.check()?;
            self.grave.check()?;
            let worker = Worker::start(&self.command, None)?;
            self.worker.insert(worker).tell(&self.settings)?;
        }
        let worker = self.worker.as_mut().ok_or(LinkError::Confused)?;
        worker.tell(&ask)?;
        let answer: Answer<T> = worker.answer(deadline)?;
        match answer.number == ask.number {
            true => Ok(answer.sources),
            false => Err(LinkError::Confused),
        }
    }
}

/// Children that live for one answer: Vulkan's adapters.
#[derive(Debug)]
pub(super) struct Enumerator {
    command: ProbeCommand,
    deadline: Duration,
    grave: Grave,
}

impl Enumerator {
    pub(super) fn new(command: ProbeCommand, limits: Limits) -> Self {
        Self {
            command,
            deadline: limits.discover,
            grave: Grave::default(),
        }
    }

    pub(super) fn enumerate(&mut self) -> Result<Vec<Said<Discovery>>, LinkError> {
        self.grave.check()?;
        let mut worker = Worker::start(&self.command, Some(ENUMERATE_FLAG))?;
        let answer = worker.answer::<Answer<Discovery>>(self.deadline);
        self.grave.bury(worker);
        let mut said = answer?.sources;
        said.retain(|said| said.source == SourceName::Wgpu);
        Ok(said)
    }
}

/// A child that was killed and may not be gone yet: the kernel cannot end a process that waits in a
/// driver. No other is started meanwhile, or they would pile up.
#[derive(Debug, Default)]
struct Grave {
    dying: Option<Worker>,
}

impl Grave {
    fn bury(&mut self, mut worker: Worker) {
        let gone = worker.kill();
        self.dying = (!gone).then_some(worker);
    }

    fn check(&mut self) -> Result<(), LinkError> {
        self.dying.take_if(|worker| worker.is_gone());
        match &self.dying {
            Some(worker) => Err(LinkError::Undead { pid: worker.pid() }),
            None => Ok(()),
        }
    }
}

/// The pause after failures, twice as long after each.
#[derive(Debug, Default)]
struct Rest {
    failures: u32,
    until: Option<Instant>,
    cause: String,
}

impl Rest {
    fn start(&mut self, cause: &LinkError, limits: Limits) {
        self.until = Some(Instant::now() + length(self.failures, limits));
        self.failures += 1;
        self.cause = cause.to_string();
    }

    fn end(&mut self) {
        *self = Self::default();
    }

    fn check(&self) -> Result<(), LinkError> {
        let now = Instant::now();
        match self.until.filter(|until| now < *until) {
            None => Ok(()),
            Some(until) => Err(LinkError::Resting {
                left_ms: (until - now).as_millis(),
                cause: self.cause.clone(),
            }),
        }
    }
}

/// How long a rest is after so many before it.
fn length(failures: u32, limits: Limits) -> Duration {
    let doubled = limits.first_rest * 2_u32.saturating_pow(failures.min(16));
    doubled.min(limits.longest_rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rest_is_twice_as_long_as_the_one_before_up_to_a_bound() {
        let limits = Limits::default();
        let lengths = [0, 1, 2, 5, 6, 7, 1000].map(|failures| length(failures, limits).as_secs());
        assert_eq!(lengths, [1, 2, 4, 32, 60, 60, 60]);
    }
}
