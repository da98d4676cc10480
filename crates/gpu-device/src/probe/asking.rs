//! What is known of the devices, and how it is learned.

use std::collections::{BTreeMap, BTreeSet};

use gpu_lease::{BootMs, Device, Reading};

use super::link::{Enumerator, Link};
use super::{Limits, LinkError, Note, ProbeCommand, ProbeState};
use crate::config::Config;
use crate::merge::{Directory, Rules, merge};
use crate::reading::believe;
use crate::source::{Discovery, Readings, SourceName, Standing, declared};
use crate::wire::{Said, Settings, What};

/// What one thread at a time works with.
#[derive(Debug)]
pub(super) struct Asking {
    link: Link,
    enumerator: Enumerator,
    /// What each source last found.
    known: BTreeMap<SourceName, Discovery>,
    directory: Directory,
}

/// What came of one question for readings.
#[derive(Default)]
pub(super) struct Round {
    pub(super) readings: Vec<Reading>,
    /// Drivers that have devices and failed.
    pub(super) errors: Vec<Note>,
    pub(super) notes: Vec<Note>,
    /// A device has come or gone.
    pub(super) changed: bool,
}

impl Asking {
    pub(super) fn new(command: ProbeCommand, limits: Limits, settings: Settings) -> Self {
        Self {
            enumerator: Enumerator::new(command.clone(), limits),
            link: Link::new(command, limits, settings),
            known: BTreeMap::new(),
            directory: Directory::default(),
        }
    }

    pub(super) fn state(&self) -> ProbeState {
        self.link.state()
    }

    pub(super) fn knows_nothing(&self) -> bool {
        self.known.is_empty()
    }

    /// Asks every source and learns what they say. Answers how NVML stands, if it said so, and which
    /// sources did not answer.
    pub(super) fn discover(&mut self, config: &Config) -> (Option<Standing>, Vec<Note>) {
        let (said, mut failures) = self.ask_all(config);
        let mut nvml = None;
        for Said { source, result } in said {
            match result {
                Ok(discovery) if self.has_lost_its_driver(source, &discovery) => {
                    failures.push(Note::new(source, discovery.notes.join("; ")));
                }
                Ok(discovery) => {
                    if source == SourceName::Nvml {
                        nvml = Some(discovery.standing);
                    }
                    self.learn(source, discovery);
                }
                Err(text) => failures.push(Note::new(source, text)),
            }
        }
        (nvml, failures)
    }

    fn ask_all(&mut self, config: &Config) -> (Vec<Said<Discovery>>, Vec<Note>) {
        let (mut said, mut failures) = (Vec::new(), Vec::new());
        match self.link.ask(What::Discover) {
            Ok(answers) => said.extend(answers),
            Err(error) => failures.push(Note::of_probe(&error)),
        }
        if config.wgpu {
            match self.enumerator.enumerate() {
                Ok(adapters) => said.extend(adapters),
                Err(error) => failures.push(Note::new(SourceName::Wgpu, error.to_string())),
            }
        }
        if !config.simulated.is_empty() {
            said.push(Said {
                source: SourceName::Declared,
                result: Ok(declared(&config.simulated)),
            });
        }
        (said, failures)
    }

    /// A driver that had devices and is not there: it is being replaced, or was taken away under them. What is
    /// certain is only that they cannot be read.
    fn has_lost_its_driver(&self, source: SourceName, discovery: &Discovery) -> bool {
        let before = self.known.get(&source);
        discovery.standing == Standing::Absent
            && before.is_some_and(|before| !before.found.is_empty())
    }

    /// A partial answer adds to what was known; any other replaces it.
    fn learn(&mut self, source: SourceName, mut discovery: Discovery) {
        let before = self.known.remove(&source).unwrap_or_default();
        if discovery.standing == Standing::Partial {
            let listed: BTreeSet<_> = discovery.found.iter().map(|it| it.id.clone()).collect();
            let kept = before.found.into_iter();
            discovery
                .found
                .extend(kept.filter(|found| !listed.contains(&found.id)));
        }
        self.known.insert(source, discovery);
    }

    /// The devices of all that is known, and the remarks of the sources and of the merge.
    pub(super) fn merge(&mut self, rules: Rules) -> (Vec<Device>, Vec<Note>) {
        let merged = merge(&self.known, rules);
        self.directory = merged.directory;
        let said = self.known.iter().flat_map(|(source, discovery)| {
            let notes = discovery.notes.iter();
            notes.map(|text| (*source, text.clone()))
        });
        let notes = said.chain(merged.notes).map(Note::from).collect();
        (merged.devices, notes)
    }

    /// Also true while every card of a driver is lost: one may come back.
    pub(super) fn can_read(&self) -> bool {
        let nvml = self.known.get(&SourceName::Nvml);
        let amdgpu = self.known.get(&SourceName::Amdgpu);
        nvml.is_some_and(|nvml| nvml.standing != Standing::Absent)
            || amdgpu.is_some_and(|amdgpu| !amdgpu.found.is_empty())
    }

    /// Asks for readings, which are stamped with `taken`.
    pub(super) fn read(&mut self, taken: BootMs) -> Result<Round, LinkError> {
        let mut round = Round::default();
        for Said { source, result } in self.link.ask::<Readings>(What::Read)? {
            match result {
                Ok(answer) => self.believe_source(source, answer, taken, &mut round),
                Err(text) if self.directory.reads_from(source) => {
                    round.errors.push(Note::new(source, text));
                }
                Err(_) => {}
            }
        }
        Ok(round)
    }

    fn believe_source(
        &self,
        source: SourceName,
        answer: Readings,
        taken: BootMs,
        round: &mut Round,
    ) {
        round.changed |= self.has_changed(source, answer.present.as_deref());
        let notes = answer.notes.into_iter();
        round
            .notes
            .extend(notes.map(|text| Note::new(source, text)));
        for raw in answer.readings {
            let Some(target) = self.directory.find(source, &raw.id) else {
                continue;
            };
            match believe(raw, target, taken) {
                Ok(reading) => round.readings.push(reading),
                Err(text) => round.notes.push(Note::new(source, text)),
            }
        }
    }

    fn has_changed(&self, source: SourceName, present: Option<&[String]>) -> bool {
        let Some(present) = present else {
            return false;
        };
        let known = self.known.get(&source).into_iter();
        let known: BTreeSet<_> = known
            .flat_map(|discovery| &discovery.found)
            .map(|found| found.id.as_str())
            .collect();
        known != present.iter().map(String::as_str).collect()
    }
}
