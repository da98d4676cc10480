//! A whole life from a seed, and the shortest one that fails as it does.

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::{Stats, World};
use crate::dice::Dice;

/// Lines of the trace that a failure shows.
const SHOWN_LINES: usize = 60;
/// Bytes of each of these lines.
const SHOWN_BYTES: usize = 400;
/// So many words tell one sort of failure from another.
const KIND_WORDS: usize = 5;
/// One life of so many is told twice.
const TOLD_TWICE_EVERY: u64 = 100;
/// Lives that are tried to find a shorter one.
const TRIES_MAX: u32 = 600;

/// A life that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// What it came to.
    pub stats: Stats,
    /// What happened, if that was wanted.
    pub trace: Option<String>,
    /// The disk as it was left.
    pub disk: u64,
}

/// A life in which something did not hold.
#[derive(Clone, Debug)]
pub struct StoryFailure {
    /// The seed of the life.
    pub seed: u64,
    /// How many steps it took.
    pub steps: u64,
    /// What does not hold.
    pub what: String,
    /// The steps of the shortest life that was found to fail too, and its trace.
    pub shortest: Vec<u64>,
    /// What happens in it.
    pub trace: String,
}

/// The life of `seed`, `steps` long, and its healing.
///
/// # Errors
/// Something does not hold: the failure has the shortest life that shows it.
pub fn tell(seed: u64, steps: u64, traced: bool) -> Result<Story, Box<StoryFailure>> {
    let dice = &mut Dice::new(seed);
    let deeds: Vec<u64> = (0..steps).map(|_| dice.bits()).collect();
    live(seed, &deeds, traced).map_err(|wrong| {
        let deeds = shorten(
            seed,
            &deeds[..wrong.done.min(deeds.len())],
            &kind(&wrong.what),
        );
        let again = live(seed, &deeds, true).err();
        Box::new(StoryFailure {
            seed,
            steps: wrong.done as u64,
            what: wrong.what,
            shortest: deeds,
            trace: again.map_or_else(
                || "it does not fail again".to_owned(),
                |again| format!("{}{}", again.trace, again.what),
            ),
        })
    })
}

/// The same life, and once more, where it is its turn: the same seed gives the same trace and the same bytes.
fn tell_again(seed: u64, steps: u64) -> Result<Stats, Box<StoryFailure>> {
    let twice = seed.is_multiple_of(TOLD_TWICE_EVERY);
    let first = tell(seed, steps, twice)?;
    if !twice {
        return Ok(first.stats);
    }
    let again = tell(seed, steps, true)?;
    match again == first {
        true => Ok(Stats {
            twice: 1,
            ..first.stats
        }),
        false => Err(Box::new(StoryFailure {
            seed,
            steps,
            what: "it is another life when it is told again".to_owned(),
            shortest: Vec::new(),
            trace: difference(&first, &again),
        })),
    }
}

/// The first line in which two lives differ, or that only their disks do.
fn difference(first: &Story, again: &Story) -> String {
    let lines = |story: &Story| -> Vec<String> {
        let trace = story.trace.iter().flat_map(|trace| trace.lines());
        trace.map(str::to_owned).collect()
    };
    let (first_lines, again_lines) = (lines(first), lines(again));
    let mut pairs = first_lines.iter().zip(&again_lines);
    match pairs.find(|(one, other)| one != other) {
        Some((one, other)) => format!("{one}\n{other}"),
        None => format!("disk {:x}, and disk {:x}", first.disk, again.disk),
    }
}

/// What does not hold in the life of `seed`, if anything; nothing is looked for beyond that.
pub fn fails(seed: u64, steps: u64) -> Option<String> {
    let dice = &mut Dice::new(seed);
    let deeds: Vec<u64> = (0..steps).map(|_| dice.bits()).collect();
    live(seed, &deeds, false).err().map(|wrong| wrong.what)
}

/// The lives of all `seeds`, and of one in a hundred twice, on as many threads as the host has processors.
///
/// # Errors
/// Something does not hold in one of them.
pub fn tell_all(seeds: Range<u64>, steps: u64) -> Result<Stats, Box<StoryFailure>> {
    let next = AtomicU64::new(seeds.start);
    let failed = AtomicBool::new(false);
    let work = || -> Result<Stats, Box<StoryFailure>> {
        let mut all = Stats::default();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let stats = tell_again(seed, steps);
            failed.fetch_or(stats.is_err(), Ordering::Relaxed);
            all += &stats?;
        }
        Ok(all)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Stats::default();
        for worker in workers {
            all += &worker.join().expect("a life that panics is a failure")?;
        }
        Ok(all)
    })
}

/// What went wrong, after how many deeds, and what led to it.
struct Wrong {
    what: String,
    done: usize,
    trace: String,
}

fn live(seed: u64, deeds: &[u64], traced: bool) -> Result<Story, Wrong> {
    let mut done = 0;
    let mut world = None;
    let lived = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(seed, traced)?);
        for &bits in deeds {
            done += 1;
            world.step(bits)?;
        }
        done += 1;
        world.heal(seed)
    }));
    let lived = lived.unwrap_or_else(|panic| Err(format!("panic: {}", words(&*panic))));
    match (lived, world) {
        (Ok(()), Some(world)) => Ok(Story {
            disk: world.disk.fingerprint(),
            stats: world.stats,
            trace: world.trace,
        }),
        (lived, world) => Err(Wrong {
            what: lived.err().unwrap_or_default(),
            done,
            trace: world.and_then(|world| world.trace).unwrap_or_default(),
        }),
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

/// What failures that are the same have in common: the first words, without names and numbers.
fn kind(what: &str) -> String {
    let is_word = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
    let words = what.split_ascii_whitespace().filter(is_word);
    words.take(KIND_WORDS).collect::<Vec<_>>().join(" ")
}

/// Leaves out what is not needed to fail, in ever smaller pieces.
fn shorten(seed: u64, deeds: &[u64], kind: &str) -> Vec<u64> {
    let mut deeds = deeds.to_vec();
    let mut piece = deeds.len() / 2;
    let mut tries = 0;
    while piece > 0 && tries < TRIES_MAX {
        let mut start = 0;
        while start < deeds.len() && tries < TRIES_MAX {
            let mut fewer = deeds.clone();
            fewer.drain(start..(start + piece).min(deeds.len()));
            tries += 1;
            match live(seed, &fewer, false) {
                Err(wrong) if self::kind(&wrong.what) == kind => {
                    fewer.truncate(wrong.done);
                    deeds = fewer;
                }
                Ok(_) | Err(_) => start += piece,
            }
        }
        piece /= 2;
    }
    deeds
}

impl fmt::Display for StoryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {} failed after {} steps: {}",
            self.seed, self.steps, self.what
        )?;
        writeln!(f, "{} steps are enough:", self.shortest.len())?;
        let lines: Vec<&str> = self.trace.lines().collect();
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            writeln!(f, "  {}", &line[..line.floor_char_boundary(SHOWN_BYTES)])?;
        }
        Ok(())
    }
}

impl std::error::Error for StoryFailure {}
