//! The evidence by simulation, as commands that anybody can run again.

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fs, iter};

use clap::{Parser, Subcommand};
use gpu_sim::exhaustive::{Case, check};
use gpu_sim::{Stats, tell_all};

/// Lives that a soak tells before it looks at the clock.
const SOAK_LIVES: u64 = 200;

/// So many lives together see everything.
const SEEDS_THAT_REACH_ALL: u64 = 1000;

/// Runs the real broker under simulated clocks, disks and hosts.
#[derive(Debug, Parser)]
struct Arguments {
    /// Write the figures here too, as JSON; those of the same arguments are always the same.
    #[arg(long, global = true)]
    evidence: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tells the life of each seed, one in a hundred of them twice, and checks after every step what must hold.
    Run {
        /// The seeds: `A..B`, without B.
        #[arg(long, default_value = "0..10000", value_parser = seeds)]
        seeds: Range<u64>,
        /// How long each life is.
        #[arg(long, default_value_t = 2000)]
        steps: u64,
    },
    /// Tells the lives of ever new seeds for a while.
    Soak {
        /// For so long.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// The first seed.
        #[arg(long)]
        from: u64,
        /// How long each life is.
        #[arg(long, default_value_t = 5000)]
        steps: u64,
    },
    /// Walks through every life of two devices and three clients, with a crash, an expiry and an emergency.
    Exhaustive {
        /// Three devices, four clients and two crashes instead, and no more states than so many.
        #[arg(long)]
        large: Option<usize>,
    },
    /// Plants one bug after the other, and fails unless each is found.
    #[cfg(feature = "canaries")]
    Canaries {
        /// Lives that may be needed to find one.
        #[arg(long, default_value_t = 2000)]
        lives: u64,
    },
}

/// Figures by name, or what does not hold.
type Outcome = Result<Vec<(&'static str, u64)>, String>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Run { seeds, steps } => run(seeds, steps),
        Command::Soak {
            minutes,
            from,
            steps,
        } => soak(Duration::from_secs(minutes * 60), from, steps),
        Command::Exhaustive { large } => exhaustive(large.map_or_else(Case::full, Case::large)),
        #[cfg(feature = "canaries")]
        Command::Canaries { lives } => canaries::hunt(lives),
    };
    match outcome.and_then(|figures| keep(&figures, arguments.evidence)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let ends = text.split_once("..");
    let ends = ends.and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    ends.filter(|seeds: &Range<u64>| !seeds.is_empty())
        .ok_or_else(|| "seeds are `A..B`, with A below B".to_owned())
}

fn keep(figures: &[(&str, u64)], path: Option<PathBuf>) -> Result<(), String> {
    let Some(path) = path else {
        return Ok(());
    };
    let lines = figures.iter();
    let lines: Vec<_> = lines
        .map(|(name, number)| format!("  \"{name}\": {number}"))
        .collect();
    let written = fs::write(&path, format!("{{\n{}\n}}\n", lines.join(",\n")));
    written.map_err(|error| format!("cannot write `{}`: {error}", path.display()))
}

fn run(seeds: Range<u64>, steps: u64) -> Outcome {
    let began = Instant::now();
    let all = tell_all(seeds, steps).map_err(|failure| failure.to_string())?;
    show(&all, began);
    let missing = all.missing();
    match all.seeds < SEEDS_THAT_REACH_ALL || missing.is_empty() {
        true => Ok(all.numbers().into()),
        false => Err(format!("no life came to this: {missing:?}")),
    }
}

fn soak(length: Duration, from: u64, steps: u64) -> Outcome {
    let began = Instant::now();
    let mut all = Stats::default();
    let firsts = iter::successors(Some(from), |first| first.checked_add(SOAK_LIVES));
    for first in firsts.take_while(|_| began.elapsed() < length) {
        let seeds = first..first.saturating_add(SOAK_LIVES);
        all += &tell_all(seeds, steps).map_err(|failure| failure.to_string())?;
    }
    show(&all, began);
    Ok(all.numbers().into())
}

fn exhaustive(case: Case) -> Outcome {
    let report = check(case);
    println!("{report}");
    match report.is_good() {
        true => Ok(vec![("states", report.unique as u64)]),
        false => Err("the case is not sound".to_owned()),
    }
}

fn show(all: &Stats, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    let rate = all.steps as f64 / seconds;
    println!("{all}{rate:.0} steps/s, {seconds:.1} s");
}

#[cfg(feature = "canaries")]
mod canaries {
    use gpu_lease::canary::{Canary, plant};
    use gpu_sim::fails;

    use super::Outcome;

    /// Steps of each life.
    const STEPS: u64 = 2000;
    /// Bytes of what is shown of a failure.
    const SHOWN_BYTES: usize = 160;

    pub(super) fn hunt(lives: u64) -> Outcome {
        let all = Canary::ALL.into_iter();
        let missed: Vec<Canary> = all.filter(|canary| !is_found(*canary, lives)).collect();
        let found = Canary::ALL.len() - missed.len();
        println!("{found} of {} found", Canary::ALL.len());
        match missed.is_empty() {
            true => Ok(vec![("found", found as u64)]),
            false => Err(format!("not found: {missed:?}")),
        }
    }

    fn is_found(canary: Canary, lives: u64) -> bool {
        plant(Some(canary));
        let found = (0..lives).find_map(|seed| Some((seed, fails(seed, STEPS)?)));
        plant(None);
        // A seed that fails anyway proves nothing.
        let found = found.filter(|(seed, _)| fails(*seed, STEPS).is_none());
        match &found {
            Some((seed, what)) => {
                let shown = &what[..what.floor_char_boundary(SHOWN_BYTES)];
                println!("{canary:?}: found in seed {seed}: {shown}");
            }
            None => println!("{canary:?}: not found in {lives} lives"),
        }
        found.is_some()
    }
}
