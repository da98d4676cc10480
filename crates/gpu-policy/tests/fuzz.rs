//! The loader under policy sets that were valid once: it neither panics, nor takes long, nor much memory.
//!
//! `GPU_POLICY_FUZZ_CASES` says how many, `GPU_POLICY_SEED` where to begin; `scripts/fuzz-policy.sh` runs a
//! million of them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gpu_policy::{Layers, Override, SourceFile, compile_with_warnings, diff_sources, parse_select};
use rustix::time::{ClockId, clock_gettime};

const CASES: u64 = 3000;
const TIME_MAX: Duration = Duration::from_millis(50);
const TRIES_MAX: usize = 3;
const MEMORY_BYTES_MAX: usize = 64 << 20;

/// A debug build on a busy machine is not what is measured: there only hangs are found.
const TIME_MAX_DEBUG: Duration = Duration::from_secs(5);

const SEEDS: &[&[&str]] = &[
    &[include_str!("../../../policies/default.toml")],
    &[include_str!("../../../policies/workstation/default.toml")],
    &[include_str!("../../../policies/shared-lab/default.toml")],
    &[include_str!("../../../policies/model-serving/default.toml")],
    &[include_str!(
        "../../../policies/strict-production/default.toml"
    )],
    &[
        "schema = 1\nplacement.strategy = \"score\"\nplacement.score = \"\"\"\n  device.free \\\n  - 3\"\"\"\n",
        "[[class]]\nname = 'a'\n[[rule]]\nname = 'r'\nwhen = '''\nrequest.labels['x'] == 'y' && ['a', 'b'].exists(x, x == holder.name)'''\n\
         on_error = 'skip'\n[rule.set]\nclass = 'a'\npriority = -3\nselect = \"'fast' in device.labels\"\n",
        "[[class]]\nname = 'a'\nreplace = true\nmax_hold = '1h'\n[[tenant]]\nname = 't'\nmatch = \"has(holder.tenant)\"\nper = 'user'\n",
    ],
    &[
        "[[device]]\nmatch = \"device.name.contains('40') ? true : device.memory > GiB(3.5)\"\ndrain = \"old \\u00e9\"\n\
         [[device]]\nname = '*[ab]{c,d}?'\nlabels = ['x', 'y']\nload_slots = 3\n",
        "queue = { order = \"fair-share\", half_life = \"1h\" }\nreload.confirm = 'never'\n",
    ],
];

/// Words of the grammars, in places where they do not belong.
const TOKENS: &[&str] = &[
    "[[rule]]\n",
    "[[tenant]]\n",
    "[[device]]\n",
    "[[class]]\n",
    "[reload]\n",
    "name = 'r'\n",
    "when = ",
    "set = {",
    "replace = true\n",
    "'''",
    "\"\"\"",
    "\\\n",
    "\\u00e9",
    "\\U0001F600",
    "\r\n",
    "\u{feff}",
    "\0",
    "\u{202e}",
    "request",
    ".memory",
    "device.free",
    "now.hour",
    "books.user.",
    "&&",
    "||",
    "? 1 : ",
    "((((((((",
    "[[[[[[[[",
    "!!!!!!!!",
    "-----",
    ".all(x, ",
    ".map(y, ",
    "in [",
    "'",
    "9223372036854775807",
    "1e308",
    "0x7f",
    "u",
    "==",
    "< ",
    "+ 'a'",
    "* 99999999999",
    "/ 0",
    "% 0",
    "size(",
    "has(",
    "GiB(",
    "matches('(a+)+$')",
    "true",
    "null",
    "b'x'",
    "{'a': 1}",
];

/// System's, with a count of what is held and the most that was.
struct Counting;

static HELD_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(
    unsafe_code,
    reason = "an allocator cannot be written without; it hands on to the system's"
)]
// SAFETY: every call goes to `System` with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD_BYTES.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK_BYTES.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps the promises that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises that `System` asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The worst of all cases.
#[derive(Debug, Default)]
struct Worst {
    time: Duration,
    memory: usize,
    good: u64,
}

fn variable<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(otherwise)
}

#[test]
fn mutated_policy_sets() {
    let cases = variable("GPU_POLICY_FUZZ_CASES", CASES);
    let seed: u64 = variable("GPU_POLICY_SEED", 1);
    println!("seed {seed}: run again with GPU_POLICY_SEED={seed} GPU_POLICY_FUZZ_CASES={cases}");
    let mut worst = Worst::default();
    for case in 0..cases {
        // Each case has its own sequence, so that one can be run alone.
        let mut random = Random::new(seed.wrapping_mul(1 << 32).wrapping_add(case));
        run(
            &random.set(),
            &mut worst,
            &format_args!("seed {seed} case {case}"),
        );
    }
    println!("{cases} cases, {} of them valid", worst.good);
    println!(
        "longest {:?}, most memory {} KiB",
        worst.time,
        worst.memory >> 10
    );
}

fn run(set: &[Vec<u8>], worst: &mut Worst, what: &dyn Debug) {
    let name = |at: usize| {
        if at == 0 {
            "default.toml".to_owned()
        } else {
            format!("{at}.toml")
        }
    };
    let files: Vec<SourceFile> = set
        .iter()
        .enumerate()
        .map(|(at, bytes)| SourceFile::new(name(at), bytes.as_slice()))
        .collect();
    let overrides: Vec<Override> = Override::parse("--set", "placement.reserve=1g")
        .into_iter()
        .collect();
    let before = HELD_BYTES.load(Ordering::Relaxed);
    PEAK_BYTES.store(before, Ordering::Relaxed);
    let limit = if cfg!(debug_assertions) {
        TIME_MAX_DEBUG
    } else {
        TIME_MAX
    };
    let (result, mut took) = timed(|| compile_with_warnings(&files, &overrides));
    let memory = PEAK_BYTES.load(Ordering::Relaxed).saturating_sub(before);
    // The machine pauses now and then: what is slow is slow every time.
    for _ in 0..TRIES_MAX {
        if took >= limit {
            took = took.min(timed(|| compile_with_warnings(&files, &overrides)).1);
        }
    }
    worst.time = worst.time.max(took);
    worst.memory = worst.memory.max(memory);
    assert!(took < limit, "{what:?} took {took:?}: {}", shown(set));
    assert!(
        memory < MEMORY_BYTES_MAX,
        "{what:?} took {memory} bytes: {}",
        shown(set)
    );
    match result {
        Ok(compiled) => {
            worst.good += 1;
            let again = compile_with_warnings(&files, &overrides).expect("the same bytes");
            assert_eq!(again.policy, compiled.policy, "{what:?}");
            let files = &compiled.policy.source.files;
            let layers = Layers {
                files,
                overrides: &overrides,
            };
            assert_eq!(diff_sources(layers, layers), [], "{what:?}");
        }
        Err(errors) => {
            assert!(errors.total() > 0, "{what:?}");
            assert!(errors.to_string().starts_with("error: "), "{what:?}");
        }
    }
}

/// What `work` answers and how long it took: by the clock of the wall or of the processor, whichever says less.
/// One counts what other programs did, the other what other tests did.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let (started, used) = (Instant::now(), cpu_time());
    let result = work();
    (
        result,
        started.elapsed().min(cpu_time().saturating_sub(used)),
    )
}

/// What all threads of this process used of the processors.
fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(used.tv_sec).expect("not negative");
    Duration::new(
        seconds,
        u32::try_from(used.tv_nsec).expect("below a second"),
    )
}

fn shown(set: &[Vec<u8>]) -> String {
    let texts = set
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    texts.collect::<Vec<_>>().join("\n---\n")
}

#[test]
fn mutated_selections() {
    let cases = variable("GPU_POLICY_FUZZ_CASES", CASES);
    for case in 0..cases {
        let mut random = Random::new(case);
        let mut bytes = b"device.memory > GiB(20) && 'fast' in device.labels".to_vec();
        for _ in 0..=random.below(5) {
            random.mutate(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let started = Instant::now();
        let _ = parse_select(&text);
        assert!(started.elapsed() < TIME_MAX_DEBUG, "case {case}: {text}");
    }
}

/// splitmix64
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("below a usize")
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// A valid set after some mutations.
    fn set(&mut self) -> Vec<Vec<u8>> {
        let seed = self.pick(SEEDS);
        let mut set: Vec<Vec<u8>> = seed.iter().map(|text| text.as_bytes().to_vec()).collect();
        if self.below(10) == 0 {
            let other = self.pick(SEEDS);
            let more = self.pick(other);
            set.push(more.as_bytes().to_vec());
        }
        let file = self.below(set.len());
        for _ in 0..self.below(6) {
            self.mutate(&mut set[file]);
        }
        set
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        match self.below(8) {
            0 => self.byte(bytes),
            1 => self.token(bytes),
            2 => self.key(bytes),
            3 => self.value(bytes),
            4 => self.line(bytes),
            5 => self.repeat(bytes),
            6 => bytes.truncate(self.below(bytes.len())),
            _ => {
                self.token(bytes);
                self.byte(bytes);
            }
        }
    }

    /// Deletes, flips or inserts.
    fn byte(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let end = (at + self.below(20)).min(bytes.len());
        match self.below(3) {
            0 => drop(bytes.drain(at..end)),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            _ => bytes.insert(at, u8::try_from(self.below(256)).expect("a byte")),
        }
    }

    fn token(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        bytes.splice(at..at, self.pick(TOKENS).bytes());
    }

    /// Gives one line the key of another.
    fn key(&mut self, bytes: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        let (from, to) = (self.below(lines.len()), self.below(lines.len()));
        if let (Some((key, _)), Some((_, value))) =
            (lines[from].split_once('='), lines[to].split_once('='))
        {
            lines[to] = format!("{key}={value}");
        }
        *bytes = lines.join("\n").into_bytes();
    }

    /// Gives one line a value of another, or of a token.
    fn value(&mut self, bytes: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        let (from, to) = (self.below(lines.len()), self.below(lines.len()));
        let token = self.pick(TOKENS);
        let value = match lines[from].split_once('=') {
            Some((_, value)) if self.below(2) == 0 => value.to_owned(),
            _ => format!(" \"{token}\""),
        };
        if let Some((key, _)) = lines[to].split_once('=') {
            lines[to] = format!("{key}={value}");
        }
        *bytes = lines.join("\n").into_bytes();
    }

    /// Deletes, doubles or moves a line.
    fn line(&mut self, bytes: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut lines: Vec<&str> = text.split('\n').collect();
        let (from, to) = (self.below(lines.len()), self.below(lines.len()));
        let line = lines[from];
        match self.below(3) {
            0 => drop(lines.remove(from)),
            1 => lines.insert(to, line),
            _ => {
                lines.remove(from);
                lines.insert(to.min(lines.len()), line);
            }
        }
        *bytes = lines.join("\n").into_bytes();
    }

    /// Repeats a part, sometimes often.
    fn repeat(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let end = (at + 1 + self.below(40)).min(bytes.len());
        let times = self.pick(&[1, 2, 50, 2000]);
        let part = bytes.get(at..end).unwrap_or_default().repeat(times);
        bytes.splice(at..at, part);
    }
}
