//! Live policy: what a rule costs to compile, a plan to make, a save to go live, and a grant meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gpu_broker::{
    Handle, ReloadOptions, ReloadOutcome, ReloadStart, Reloader, SourceFile, Trigger, WatchTiming,
};
use gpu_lease::{
    Answer, At, Books, BootMs, Command, Fence, Holder, LeaseId, Policy, Request, WallMs,
};
use gpu_manager_benches::percentile_us;
use gpu_policy::compile;
use gpu_store::{MemoryStore, StoreId};
use gpu_watch::{Change, Config, Event, Watch};

use crate::setting::{CROWD, FULL, devices, pairs, redb, request, runtime, start};

const RULES: [usize; 3] = [10, 100, 1000];
/// How long a save has to be quiet; what is measured is what comes on top.
const DEBOUNCE: Duration = Duration::from_millis(20);
const SAVES: usize = 60;
const NO_OPS: usize = 300;
const COMPILES: usize = 5;
/// Seconds with a reload and as many without, in turn.
const SECONDS: usize = 15;

pub(crate) fn bench() {
    println!(
        "\nlive policy{:>52} {:>10} {:>10}",
        "p50 us", "p99 us", "worst us"
    );
    RULES.into_iter().for_each(compiling);
    for inputs in [1, 64, CROWD] {
        planning(inputs);
    }
    doing_nothing();
    RULES.into_iter().for_each(going_live);
    granting_meanwhile();
}

/// A policy of so many rules that are about everybody and refuse nobody.
fn text(rules: usize, seed: usize) -> String {
    text_of_round(rules, seed, 0)
}

/// The same with expressions of their own in each round.
fn text_of_round(rules: usize, seed: usize, round: usize) -> String {
    let mut text = format!("[queue]\nmax_waiting = {}\n", 10_000 + seed);
    for class in 0..10 {
        text.push_str(&format!("[[class]]\nname = 'c{class}'\n"));
    }
    for n in 0..rules {
        text.push_str(&format!(
            "[[rule]]\nname = 'r{n}'\ndeny = 'too big'\nwhen = \"request.class == 'c{}' && holder.user != 'u{round}-{n}' && request.memory > GiB({})\"\n",
            n % 10,
            1000 + n
        ));
    }
    text
}

fn policy(rules: usize, seed: usize) -> Policy {
    let file = SourceFile::new("default.toml", text(rules, seed));
    compile(&[file], &[]).expect("a good policy")
}

/// Rules that were never seen, and the same again: what did not change is not compiled anew.
fn compiling(rules: usize) {
    for (what, turns) in [("new", 1), ("known", 0)] {
        let times = sample(COMPILES, |n| {
            let round = if turns == 1 { rules * 10 + n } else { 0 };
            let file = SourceFile::new("default.toml", text_of_round(rules, n, round));
            drop(compile(&[file], &[]).expect("a good policy"));
        });
        row(&format!("compile {rules} {what} rules"), &times);
        let each = percentile_us(&times, 50) / rules as f64;
        println!("{:<52} {each:>10.1}", format!("  a {what} rule of {rules}"));
    }
}

/// A plan over a thousand leases and a thousand rules, of leases that look like so many.
fn planning(inputs: usize) {
    let live = Arc::new(policy(10, 0));
    let mut books = Books::new(live, Fence(1));
    books.apply(NOW, Command::Inventory(devices()));
    for n in 0..CROWD {
        let request = Box::new(of_user(n % inputs));
        let id = LeaseId::from_bits(n as u64 + 1);
        let outcome = books.apply(NOW, Command::Acquire { id, request });
        assert!(
            matches!(outcome.answer, Answer::Acquire(Ok(_))),
            "there is room"
        );
    }
    // Each plan is of a policy that has not seen any of these requests.
    let mut policies: Vec<Policy> = (0..COMPILES).map(|n| policy(1000, n + 1)).collect();
    let times = sample(COMPILES, |_| {
        let policy = policies.pop().expect("one each");
        assert!(
            books.plan(NOW, &policy).held.is_empty(),
            "nobody is refused"
        );
    });
    row(
        &format!("plan 1,000 leases x 1,000 rules, {inputs} different"),
        &times,
    );
}

fn of_user(n: usize) -> Request {
    let request = request(FULL);
    Request {
        class: format!("c{}", n % 10),
        holder: Holder {
            user: format!("user-{n}"),
            ..request.holder
        },
        labels: BTreeMap::new(),
        ..request
    }
}

/// A reload of files that say what is live.
fn doing_nothing() {
    let started = start(Arc::new(MemoryStore::new(StoreId::from_bits(1))));
    let reloader = reloader(&started.handle, || {
        vec![SourceFile::new("default.toml", text(100, 0))]
    });
    reload(&reloader);
    let times = sample(NO_OPS, |_| {
        let outcome = &reload(&reloader).outcome;
        assert!(matches!(outcome, ReloadOutcome::Unchanged), "{outcome:?}");
    });
    row("reload 100 rules that are live", &times);
}

/// From the rename of a file until decisions are made by it.
fn going_live(rules: usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    save(dir.path(), rules, 0);
    let (store, _kept) = redb();
    let started = start(store);
    let reloader = reloader(&started.handle, Vec::new);
    let watched = Config {
        reload_delay: DEBOUNCE,
        ..Config::new([dir.path().to_owned()])
    };
    let sink = move |event| {
        if let Event::Changed(change) = event {
            offer(&reloader, change);
        }
    };
    let watch = Watch::start(&watched, None, sink).expect("a watch");
    let generation = || started.handle.snapshot().counters.generation;
    until(|| generation() > 1);
    let mut times = Vec::new();
    for n in 1..=SAVES {
        let before = generation();
        let began = save(dir.path(), rules, n);
        until(|| generation() > before);
        times.push(began.elapsed().saturating_sub(DEBOUNCE));
    }
    drop(watch);
    times.sort_unstable();
    row(
        &format!("rename to live, debounce apart, {rules} rules"),
        &times,
    );
}

/// Saves as editors do; answers the moment of the rename.
fn save(dir: &Path, rules: usize, seed: usize) -> Instant {
    let draft = dir.join("draft~");
    fs::write(&draft, text(rules, seed)).expect("room on the disk");
    let now = Instant::now();
    fs::rename(draft, dir.join("default.toml")).expect("both are in one directory");
    now
}

/// Pairs of acquire and release in seconds with a reload and without, in turn.
fn granting_meanwhile() {
    let (store, _dir) = redb();
    let started = start(store);
    let runtime = runtime(2);
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for n in 0..SECONDS {
        idle.extend(pairs(&runtime, &started.handle, 1, Duration::from_secs(1)).pairs);
        let handle = started.handle.clone();
        let reloading = thread::spawn(move || {
            thread::sleep(Duration::from_millis(500));
            let files = move || vec![SourceFile::new("default.toml", text(100, n))];
            drop(reload(&reloader(&handle, files)));
        });
        busy.extend(pairs(&runtime, &started.handle, 1, Duration::from_secs(1)).pairs);
        reloading.join().expect("a reload ends in order");
    }
    idle.sort_unstable();
    busy.sort_unstable();
    row("acquire and release, no reload", &idle);
    row(
        "acquire and release, one reload of 100 rules a second",
        &busy,
    );
}

fn reloader(
    handle: &Handle,
    read: impl Fn() -> Vec<SourceFile> + Send + Sync + 'static,
) -> Reloader {
    let read = Box::new(move || Ok(read()));
    let start = ReloadStart {
        watching: true,
        dev: true,
        ..ReloadStart::default()
    };
    Reloader::new(handle.clone(), read, Vec::new(), start)
}

fn reload(reloader: &Reloader) -> Arc<gpu_broker::ReloadResult> {
    reloader.reload(Trigger::Api, "bench", &ReloadOptions::default())
}

fn offer(reloader: &Reloader, change: Change) {
    let files = change.set.files.iter();
    let files =
        files.map(|file| SourceFile::new(file.path.display().to_string(), file.bytes.clone()));
    drop(reloader.offer(files.collect(), WatchTiming::default()));
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        thread::sleep(Duration::from_micros(100));
    }
}

/// How long each of so many took, shortest first.
fn sample(times: usize, mut run: impl FnMut(usize)) -> Vec<Duration> {
    let one = |n| {
        let began = Instant::now();
        run(n);
        began.elapsed()
    };
    let mut times: Vec<Duration> = (0..times).map(one).collect();
    times.sort_unstable();
    times
}

fn row(name: &str, sorted: &[Duration]) {
    println!(
        "{name:<52} {:>10.1} {:>10.1} {:>10.1}",
        percentile_us(sorted, 50),
        percentile_us(sorted, 99),
        percentile_us(sorted, 100)
    );
}

const NOW: At = At {
    boot: BootMs(1_000_000),
    wall: WallMs(1_767_225_600_000),
};
