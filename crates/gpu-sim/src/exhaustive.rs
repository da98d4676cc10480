//! Every life of a few clients on a few devices: not some of them, all.
//!
//! The real books, in every order in which requests, heartbeats, releases, broken connections, readings, ends of
//! processes, time, a crash with its recovery, a missed heartbeat and an emergency can come. States that
//! differ in names and numbers only, and therefore have the same future, are one state.

mod canon;
mod case;
mod judge;
mod model;
mod moment;
mod words;

use std::fmt;
use std::time::{Duration, Instant};

use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model};

pub use case::Case;
pub use judge::Rule;

use model::Lives;

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Report {
    /// The case.
    pub case: &'static str,
    /// States that were reached.
    pub unique: usize,
    /// Steps that were taken to reach them, also those that led where somebody had been.
    pub steps: usize,
    /// The most steps that it takes to reach a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Whether there is no state beside those that were reached.
    pub whole: bool,
    /// The first life in which something does not hold.
    pub broken: Option<Counterexample>,
    /// What was to happen in some life, and did not.
    pub missed: Vec<&'static str>,
}

/// A life in which something does not hold.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// What does not.
    pub rule: Rule,
    /// What of it.
    pub what: String,
    /// What happened, and what was so afterwards.
    pub steps: Vec<String>,
}

/// Walks through all lives of `case`, those of few steps first.
pub fn check(case: Case) -> Report {
    let started = Instant::now();
    let (name, steps_max) = (case.name, case.steps_max);
    let checker = builder(case).spawn_bfs().join();
    let mut discoveries = checker.discoveries();
    let broken = Rule::ALL
        .into_iter()
        .find_map(|rule| Some((rule, discoveries.remove(rule.name())?)))
        .map(|(rule, path)| words::counterexample(checker.model(), rule, path.into_actions()));
    let events = moment::events_of(&checker.model().case);
    let mut missed: Vec<&str> = events.map(|event| event.name).collect();
    missed.retain(|name| !discoveries.contains_key(name));
    Report {
        case: name,
        unique: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        took: started.elapsed(),
        whole: broken.is_none() && steps_max.is_none_or(|most| checker.state_count() < most),
        broken,
        missed,
    }
}

fn builder(case: Case) -> CheckerBuilder<Lives> {
    let (threads, steps_max) = (case.threads, case.steps_max);
    let builder = Lives::new(case).checker().threads(threads);
    let builder = builder.finish_when(HasDiscoveries::AnyFailures);
    match steps_max {
        Some(most) => builder.target_state_count(most),
        None => builder,
    }
}

impl Report {
    /// Whether everything holds, and in all lives together everything happened that was to happen.
    pub fn is_good(&self) -> bool {
        self.broken.is_none() && (self.missed.is_empty() || !self.whole)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unique, depth, .. } = self;
        let extent = if self.whole { "all" } else { "not all" };
        let took = self.took.as_secs_f64();
        writeln!(
            f,
            "{}: {extent} states, {unique} of them, up to {depth} steps deep, by {} steps in {took:.1} s",
            self.case, self.steps
        )?;
        if let Some(broken) = &self.broken {
            return write!(f, "{broken}");
        }
        for name in &self.missed {
            writeln!(f, "never happened: {name}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "does not hold: {}\n  {}", self.rule, self.what)?;
        for (place, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:4}. {step}", place + 1)?;
        }
        Ok(())
    }
}
