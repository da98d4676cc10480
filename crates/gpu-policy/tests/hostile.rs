//! Text that was made to break the loader: it must end in an error, soon, and never in a panic.

use std::time::{Duration, Instant};

use gpu_policy::{FILE_BYTES_MAX, SourceFile, compile, parse_select};

/// Generous for an unoptimised build on a busy machine; what is meant is "not quadratic".
const COMPILE_TIME_MAX: Duration = Duration::from_secs(20);

/// The first error of a `default.toml` with `text`.
fn refused(text: impl Into<Vec<u8>>) -> gpu_policy::Diagnostic {
    let started = Instant::now();
    let result = compile(&[SourceFile::new("default.toml", text)], &[]);
    assert!(
        started.elapsed() < COMPILE_TIME_MAX,
        "took {:?}",
        started.elapsed()
    );
    let errors = result.expect_err("hostile text");
    assert!(errors.to_string().len() < 100_000);
    errors.items()[0].clone()
}

#[test]
fn nesting_a_million_deep() {
    let depth = 1_000_000;
    for text in [
        format!("x = {}", "[".repeat(depth)),
        format!("x = {}", "{a=".repeat(depth / 3)),
        format!("x = {}", "[{a=".repeat(depth / 4)),
        format!("{}a", "[".repeat(depth)),
        format!("{}x = 1", "a.".repeat(depth / 2)),
        format!("[{}x]", "'a'. ".repeat(depth / 5)),
        format!("[[{}x]]", "\"a\".".repeat(depth / 4)),
    ] {
        let error = refused(text);
        assert!(error.column > 1, "{error}");
    }
}

#[test]
fn as_much_as_fits_into_a_file() {
    let fill = |line: &str| line.repeat(FILE_BYTES_MAX / line.len());
    for text in [
        fill("x"),
        fill("=\n"),
        fill("\"\n"),
        fill("[a]\n"),
        fill("[[class]]\n"),
        fill("[[class]]\nname = 'x'\n"),
        fill("x = \"\"\"\n"),
        fill("\r"),
        fill("\0"),
        fill("\u{feff}"),
        fill("x='y',"),
        format!(
            "x = '{}'",
            fill("é").get(..FILE_BYTES_MAX / 2).unwrap_or_default()
        ),
    ] {
        refused(text);
    }
}

#[test]
fn a_file_over_the_limit_is_refused_unread() {
    let error = refused(vec![b'#'; FILE_BYTES_MAX + 1]);
    assert_eq!(error.message, "the file is larger than 1 MiB");
}

#[test]
fn nothing_reaches_the_terminal_that_it_would_act_on() {
    let error = refused("\"\u{1b}[2J\" = 1\n[queue]\norder = '\u{9b}31m'\n");
    assert!(!error.to_string().contains('\u{1b}'), "{error:?}");
    let error = refused("[queue]\norder = '\u{9b}31m'\n");
    assert!(!error.to_string().contains('\u{9b}'), "{error:?}");
}

#[test]
fn twenty_thousand_mutations_of_good_policies() {
    let seed = std::env::var("GPU_POLICY_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    println!("seed {seed}: run again with GPU_POLICY_SEED={seed}");
    let good = [
        include_str!("../../../policies/default.toml"),
        "schema = 1\n[defaults]\nclass = \"n\"\ntimezone = \"UTC\"\n[[class]]\nname = \"n\"\nhours = \"18:00-09:00\"\n\
         [[device]]\nname = \"*4090*\"\nreserve = \"1GiB\"\nlabels = [\"fast\"]\n",
        "placement.strategy = \"spread\"\nqueue = { order = \"fifo\", aging = \"1h30m\" }\n[reload]\ngrace = '2m'\n",
    ];
    let mut random = Random(seed);
    for round in 0..20_000 {
        let mut bytes = good[random.below(good.len())].as_bytes().to_vec();
        for _ in 0..=random.below(4) {
            random.mutate(&mut bytes);
        }
        let _ = parse_select(&String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
        if let Err(errors) = compile(&[SourceFile::new("default.toml", bytes)], &[]) {
            assert!(!errors.items().is_empty(), "seed {seed} round {round}");
            assert!(
                errors.to_string().starts_with("error: "),
                "seed {seed} round {round}"
            );
        }
    }
}

/// xorshift64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("below a usize")
    }

    /// Deletes, repeats, flips or inserts at a random place.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        const PIECES: [&str; 12] = [
            "\"",
            "'''",
            "[[",
            "]]",
            "=",
            "\n",
            "\0",
            "\u{feff}",
            "9999999999999999999",
            "-1",
            ".",
            "\r\n[queue]\n",
        ];
        let at = self.below(bytes.len());
        let end = (at + self.below(20)).min(bytes.len());
        match self.below(5) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            2 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            3 => bytes.truncate(at),
            _ => {
                let piece = PIECES[self.below(PIECES.len())];
                bytes.splice(at..at, piece.bytes());
            }
        }
    }
}
