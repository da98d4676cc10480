//! How a bench measures and what it prints: rounds of all cases in turn, a row for each case.
//!
//! Nothing here is asserted. A machine that does something else at the same time slows every case of a
//! round alike, so cases are compared within one run, and each row shows how far its rounds differ.

use std::time::Duration;

/// Every case is measured this often, all of them once before any of them again.
pub const ROUNDS: usize = 3;

/// Something to measure.
pub struct Case {
    /// For the row.
    pub name: String,
    /// Does it again and again for about so long.
    pub run: Box<dyn FnMut(Duration) -> Sample>,
}

/// What came of one case in one round.
pub struct Sample {
    /// How long it took altogether.
    pub took: Duration,
    /// How long each pair of calls took, in any order.
    pub pairs: Vec<Duration>,
}

impl Case {
    /// A case of this name.
    pub fn new(name: impl Into<String>, run: impl FnMut(Duration) -> Sample + 'static) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }
}

/// Measures `cases` for `time` a round each, and prints them as a table: the median of the rounds, but of
/// pairs a second also the least and the most, and the worst pair of all rounds.
pub fn compare(title: &str, time: Duration, mut cases: Vec<Case>) {
    let mut rounds: Vec<Vec<Figures>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (case, figures) in cases.iter_mut().zip(&mut rounds) {
            figures.push(Figures::of((case.run)(time)));
        }
    }
    println!("\n{title}");
    println!(
        "{:<52} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "", "pairs/s", "least", "most", "p50 us", "p99 us", "worst us"
    );
    for (case, figures) in cases.iter().zip(rounds) {
        print_row(&case.name, &figures);
    }
}

fn print_row(name: &str, rounds: &[Figures]) {
    let pairs = spread(rounds, |round| round.pairs_per_sec);
    let middle = spread(rounds, |round| round.p50_us);
    let late = spread(rounds, |round| round.p99_us);
    let worst = spread(rounds, |round| round.worst_us);
    println!(
        "{name:<52} {:>10.0} {:>10.0} {:>10.0} {:>10.1} {:>10.1} {:>10.0}",
        pairs.median, pairs.least, pairs.most, middle.median, late.median, worst.most
    );
}

/// One round of one case.
struct Figures {
    pairs_per_sec: f64,
    p50_us: f64,
    p99_us: f64,
    worst_us: f64,
}

impl Figures {
    fn of(sample: Sample) -> Self {
        let mut pairs = sample.pairs;
        pairs.sort_unstable();
        Self {
            pairs_per_sec: pairs.len() as f64 / sample.took.as_secs_f64(),
            p50_us: percentile_us(&pairs, 50),
            p99_us: percentile_us(&pairs, 99),
            worst_us: percentile_us(&pairs, 100),
        }
    }
}

/// The value that so many percent of `sorted` are not above, in microseconds.
pub fn percentile_us(sorted: &[Duration], percent: usize) -> f64 {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted
        .get(place)
        .map_or(0.0, |pair| pair.as_secs_f64() * 1e6)
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

fn spread(rounds: &[Figures], of: impl Fn(&Figures) -> f64) -> Spread {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    Spread {
        least: values[0],
        median: values[values.len() / 2],
        most: values[values.len() - 1],
    }
}
