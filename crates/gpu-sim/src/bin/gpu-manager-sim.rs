//! The evidence by simulation, as commands that anybody can run again.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use gpu_sim::{Stats, tell};

/// Runs the real broker under simulated clocks, disks and hosts.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tells the lives of many seeds, and checks what must hold after every step of them.
    Run {
        /// The seeds, `A..B` without B.
        #[arg(long, default_value = "0..1000", value_parser = seeds)]
        seeds: (u64, u64),
        /// How long each life is.
        #[arg(long, default_value_t = 2000)]
        steps: u64,
    },
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let parsed = text
        .split_once("..")
        .and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    parsed
        .filter(|(from, to)| from < to)
        .ok_or_else(|| "seeds are `A..B`, with A below B".to_owned())
}

fn main() -> ExitCode {
    let Command::Run {
        seeds: (from, to),
        steps,
    } = Arguments::parse().command;
    let began = Instant::now();
    let mut all = Stats::default();
    for seed in from..to {
        match tell(seed, steps, false) {
            Ok(story) => all += &story.stats,
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{all}");
    println!("{:.0} steps/s, {seconds:.1} s", all.steps as f64 / seconds);
    ExitCode::SUCCESS
}
