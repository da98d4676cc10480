//! A directory of policies, a watch on it, and processes of their own for tests that need one.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use gpu_watch::{BackendChoice, Change, Config, Counters, Event, FileSet, Watch, read_set};

/// How long anything that must happen may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Set in a process that runs one test apart.
const APART: &str = "GPU_WATCH_TEST_APART";

/// A directory `policies` in a directory of its own, and a watch on it.
pub(crate) struct Rig {
    temp: tempfile::TempDir,
    pub(crate) backend: BackendChoice,
    pub(crate) watching: Option<(Watch, Receiver<Event>)>,
}

impl Rig {
    pub(crate) fn new(backend: BackendChoice) -> Self {
        let temp = tempfile::tempdir().expect("a directory");
        fs::create_dir(temp.path().join("policies")).expect("a directory");
        let rig = Self {
            temp,
            backend,
            watching: None,
        };
        rig.write("default.toml", "first");
        rig
    }

    pub(crate) fn top(&self) -> &Path {
        self.temp.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.top().join("policies").join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).expect("a rename");
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("removed");
    }

    /// Files as a ConfigMap has them: links through `..data` to a directory that is swapped as a whole.
    pub(crate) fn lay_out_generations(&self, names: &[&str]) {
        self.remove("default.toml");
        self.swap_generation("0", names);
        for name in names {
            symlink(format!("..data/{name}"), self.path(name)).expect("a link");
        }
    }

    /// Makes `generation` the current one: each file of it says the file's first letter and `generation`.
    pub(crate) fn swap_generation(&self, generation: &str, names: &[&str]) {
        let directory = format!("..generation-{generation}");
        fs::create_dir(self.path(&directory)).expect("a directory");
        for name in names {
            self.write(
                &format!("{directory}/{name}"),
                &format!("{}{generation}", &name[..1]),
            );
        }
        symlink(&directory, self.path("..data_tmp")).expect("a link");
        self.rename("..data_tmp", "..data");
    }

    /// With events the poll is too slow to help; without them it is fast.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new([self.top().join("policies")]);
        config.backend = self.backend;
        config.reload_delay = Duration::from_millis(40);
        config.max_wait = Duration::from_millis(400);
        config.unsettled = Duration::from_secs(5);
        config.poll = match self.backend {
            BackendChoice::Auto => Duration::from_secs(600),
            BackendChoice::Poll => Duration::from_millis(25),
        };
        config
    }

    pub(crate) fn start(&mut self) {
        self.start_with(&self.config());
    }

    pub(crate) fn start_with(&mut self, config: &Config) {
        let (sink, events) = mpsc::channel();
        self.start_telling(config, events, move |event| drop(sink.send(event)));
    }

    /// Starts with a sink of the test's own, which passes on to `events` what it likes.
    pub(crate) fn start_telling(
        &mut self,
        config: &Config,
        events: Receiver<Event>,
        sink: impl FnMut(Event) + Send + 'static,
    ) {
        let known = read_set(config).ok();
        let watch = Watch::start(config, known.as_ref(), sink);
        self.watching = Some((watch.expect("a watch"), events));
        self.until(|counters| counters.looks > 0);
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watching.as_ref().expect("started").0
    }

    pub(crate) fn counters(&self) -> Counters {
        self.watch().status().counters
    }

    pub(crate) fn next(&self) -> Event {
        let (_, events) = self.watching.as_ref().expect("started");
        events
            .recv_timeout(PATIENCE)
            .expect("an event before the deadline")
    }

    /// The next change; anything before it must be no more than a touch.
    pub(crate) fn change(&self) -> Change {
        loop {
            match self.next() {
                Event::Changed(change) => return change,
                Event::Touched => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The set of the next change, as `name=text` words.
    pub(crate) fn changed(&self) -> String {
        words(&self.change().set)
    }

    pub(crate) fn trouble(&self) -> String {
        match self.next() {
            Event::Trouble(reason) => reason,
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Waits until the watch counted what `enough` asks for.
    pub(crate) fn until(&self, enough: impl Fn(&Counters) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.counters()) {
            assert!(Instant::now() < deadline, "{:?}", self.counters());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the watch has looked at what is there now.
    pub(crate) fn looked(&self) {
        let before = self.counters().looks;
        self.until(|counters| {
            counters.looks > before + 1
                || (counters.looks > before && self.backend == BackendChoice::Auto)
        });
    }
}

pub(crate) fn words(set: &FileSet) -> String {
    let word = |file: &gpu_watch::WatchedFile| {
        let name = file
            .path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        format!("{name}={}", String::from_utf8_lossy(&file.bytes))
    };
    set.files.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// This test program, about to run `test` alone, started by the command `wrapper`.
pub(crate) fn apart(test: &str, wrapper: &[&str]) -> Command {
    let this = env::current_exe().expect("this program");
    let mut words = wrapper.iter().map(AsRef::as_ref).chain([this.as_os_str()]);
    let mut command = Command::new(words.next().expect("this program at least"));
    command.args(words).args(["--exact", test, "--nocapture"]);
    command.env(APART, "1");
    command
}

/// Whether this is the process that [`apart`] started.
pub(crate) fn is_apart() -> bool {
    env::var_os(APART).is_some()
}

/// Runs `body`, which is all of `test`, in a process that `wrapper` gives a world of its own. Where that is
/// not allowed, the test says so and is over.
pub(crate) fn in_a_world_apart(test: &str, wrapper: &[&str], body: impl FnOnce()) {
    if is_apart() {
        return body();
    }
    let (program, arguments) = wrapper.split_first().expect("a command");
    match Command::new(program).args(arguments).arg("true").output() {
        Ok(probe) if probe.status.success() => {}
        refused => return eprintln!("skipped: `{}` gives {refused:?}", wrapper.join(" ")),
    }
    let output = apart(test, wrapper).output().expect("this program runs");
    let told = String::from_utf8_lossy(&output.stdout);
    let ran = output.status.success() && told.contains("1 passed");
    assert!(ran, "{told}{}", String::from_utf8_lossy(&output.stderr));
}
