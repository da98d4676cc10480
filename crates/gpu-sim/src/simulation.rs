//! The books and the reference side by side, through one life after the other.

use std::fmt;
use std::fmt::Write;
use std::sync::Arc;

use gpu_lease::{
    Answer, At, Books, BootMs, Command, Device, DeviceState, Effect, Fence, Lease, Ms, Outcome,
    Plan, Planned, Policy, Reading, Switch, WallMs, plan,
};

use crate::agreement;
use crate::checkers::Checkers;
use crate::coverage::{Coverage, name};
use crate::dice::Dice;
use crate::reference::Reference;
use crate::scene::{BY_THE_CLOCK, POLICIES, Scene, Transition, policy};

/// Transitions of one life.
const LIFE_STEPS: u64 = 150;
/// The dearer checks are made after every so many transitions.
const DEAR_EVERY_STEPS: u64 = 8;
/// Lines of the trace that a failure shows.
const SHOWN_LINES: usize = 12;
/// Bytes of each of these lines.
const SHOWN_BYTES: usize = 600;

/// One life of a broker's books.
#[derive(Debug)]
pub struct Simulation {
    at: At,
    scene: Scene,
    books: Books,
    reference: Reference,
    checkers: Checkers,
    coverage: Coverage,
    steps: u64,
    grace_until: BootMs,
    /// A plan that somebody made a while ago.
    draft: Option<(Arc<Policy>, Arc<Planned>)>,
    trace: Option<String>,
}

/// What a run of many lives came to.
#[derive(Debug)]
pub struct Run {
    /// Transitions made.
    pub steps: u64,
    /// What was reached.
    pub coverage: Coverage,
    /// One line for each transition, if a trace was wanted.
    pub trace: Option<String>,
}

/// Something did not hold.
#[derive(Debug)]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// How many transitions there were before.
    pub steps: u64,
    /// What does not hold.
    pub what: String,
    /// The end of the trace, if there is one.
    pub trace: Option<String>,
}

/// Lives of random commands until there were `steps` transitions.
///
/// # Errors
/// The books and the reference differ, or an invariant does not hold.
pub fn run(seed: u64, steps: u64, traced: bool) -> Result<Run, Failure> {
    let dice = &mut Dice::new(seed);
    let mut run = Run {
        steps: 0,
        coverage: Coverage::default(),
        trace: traced.then(String::new),
    };
    while run.steps < steps {
        let mut life = Simulation::new(dice.bits(), traced);
        let length = LIFE_STEPS.min(steps - run.steps);
        let lived = life.live(length, dice);
        run.take(life);
        if let Err(what) = lived {
            return Err(Failure {
                seed,
                steps: run.steps,
                what,
                trace: run.trace,
            });
        }
    }
    Ok(run)
}

impl Simulation {
    /// A broker that just started for the first time.
    pub fn new(seed: u64, traced: bool) -> Self {
        let dice = &mut Dice::new(seed);
        let first = Arc::new(policy(dice.below(4)));
        let fence = Fence(1 << 20);
        Self {
            at: At {
                boot: BootMs(dice.below(1_000_000)),
                wall: WallMs(1_790_000_000_000 + dice.below(100_000)),
            },
            scene: Scene::new(dice),
            books: Books::new(first.clone(), fence),
            reference: Reference::new(first, fence),
            checkers: Checkers::default(),
            coverage: Coverage::default(),
            steps: 0,
            grace_until: BootMs(0),
            draft: None,
            trace: traced.then(String::new),
        }
    }

    /// Lets `bits` decide what happens next.
    ///
    /// # Errors
    /// Something does not hold.
    pub fn step(&mut self, bits: u64) -> Result<(), String> {
        let dice = &mut Dice::new(bits);
        if self.steps == 0 {
            for command in self.scene.opening(dice, self.at) {
                self.perform(command)?;
            }
        }
        self.at = self.scene.later(dice, self.at, &self.books);
        let overdue = self
            .books
            .next_deadline()
            .is_some_and(|due| due <= self.at.boot);
        if overdue && dice.chance(70) {
            self.perform(Command::Expire)?;
        }
        if dice.chance(4) {
            self.draft = self.drawn_up(policy(dice.below(POLICIES)));
        }
        match self.scene.next(dice, self.at, &self.books) {
            Transition::Command(Command::SetPolicy(switch)) => {
                let switch = self.with_draft(dice, *switch);
                self.perform(Command::SetPolicy(Box::new(switch)))
            }
            Transition::Command(command) => self.perform(command),
            Transition::Restart => self.restart(),
        }
    }

    fn live(&mut self, steps: u64, dice: &mut Dice) -> Result<(), String> {
        while self.steps < steps {
            self.step(dice.bits())?;
        }
        Ok(())
    }

    /// A plan made beside the books, to be used later; none where the clock alone can change it.
    fn drawn_up(&self, policy: Policy) -> Option<(Arc<Policy>, Arc<Planned>)> {
        let live = self.books.policy();
        let by_the_clock = |policy: &Policy| {
            policy
                .source
                .files
                .iter()
                .any(|(name, _)| name == BY_THE_CLOCK)
        };
        if by_the_clock(&policy) || by_the_clock(live) {
            return None;
        }
        let leases: Vec<&Lease> = self.books.leases().collect();
        let devices: Vec<DeviceState> = self.books.devices().cloned().collect();
        let planned = Planned {
            live: live.source.hash.clone(),
            to: policy.source.hash.clone(),
            revision: self.books.counters().revision,
            plan: plan(live, &policy, &leases, &devices, self.at),
        };
        Some((policy.into(), planned.into()))
    }

    fn with_draft(&mut self, dice: &mut Dice, switch: Switch) -> Switch {
        match self.draft.take().filter(|_| dice.chance(60)) {
            Some((policy, planned)) => {
                let is_late = planned.revision < self.books.counters().revision;
                let fits = planned.live == self.books.policy().source.hash;
                if is_late && fits {
                    self.coverage.saw("switch by an earlier plan");
                }
                Switch {
                    policy,
                    planned: Some(planned),
                    ..switch
                }
            }
            None => switch,
        }
    }

    fn perform(&mut self, command: Command) -> Result<(), String> {
        self.steps += 1;
        self.plans_agree(&command)?;
        let before = matches!(command, Command::Explain { .. }).then(|| self.books.rows());
        let outcome = self.books.apply(self.at, command.clone());
        if before.is_some_and(|rows| rows != self.books.rows()) {
            return Err("an explanation changed something".to_string());
        }
        let standings = self.books.tenants(self.at).into_iter();
        self.reference.used = standings.map(|one| (one.key, one.used)).collect();
        let did = self.reference.apply(self.at, command.clone());
        self.note(&command, &outcome);
        agreement::of_outcomes(&outcome, &did)?;
        agreement::of_states(&self.books, &self.reference)?;
        agreement::of_tenants(self.at, &self.books, &self.reference)?;
        self.checkers
            .check(self.at, &command, &outcome, &self.books)?;
        if let Command::Grace { until } = command {
            self.grace_until = self.grace_until.max(until);
        }
        if self.steps.is_multiple_of(DEAR_EVERY_STEPS) {
            self.look_closely()?;
        }
        Ok(())
    }

    /// A plan says what a switch then does.
    fn plans_agree(&self, command: &Command) -> Result<(), String> {
        let Command::SetPolicy(switch) = command else {
            return Ok(());
        };
        let plan = self.books.plan(self.at, &switch.policy);
        let theirs = self.reference.plan(self.at, &switch.policy);
        if plan != theirs {
            return Err(format!("plan differs\n  {plan:?}\n  {theirs:?}"));
        }
        let leases: Vec<&Lease> = self.books.leases().collect();
        let devices: Vec<DeviceState> = self.books.devices().cloned().collect();
        let live = self.books.policy();
        let beside = gpu_lease::plan(live, &switch.policy, &leases, &devices, self.at);
        if plan != beside {
            return Err(format!("made beside the books\n  {plan:?}\n  {beside:?}"));
        }
        let outcome = self.books.clone().apply(self.at, command.clone());
        let fine = match &outcome.answer {
            Answer::Policy(Ok(Some(switched))) => switched.plan == plan,
            Answer::Policy(Ok(None)) => plan == Plan::default() && outcome.changes.policy.is_none(),
            Answer::Policy(Err(unexpected)) => {
                unexpected.plan == plan && outcome.changes.policy.is_none()
            }
            _ => false,
        };
        match fine {
            true => Ok(()),
            false => Err(format!("planned {plan:?}\n  did {outcome:?}")),
        }
    }

    fn look_closely(&mut self) -> Result<(), String> {
        agreement::of_reasons(self.at, &self.books, &self.reference)?;
        for (_, why) in self.books.waiting(self.at) {
            self.coverage.note_waiting(&why);
        }
        if !self.checkers.rows().eq(self.books.leases()) {
            return Err("a store that hears of changes alone has other rows".to_string());
        }
        self.rows_are_everything()
    }

    /// Books made from rows and told of the devices again decide as those that wrote them.
    fn rows_are_everything(&mut self) -> Result<(), String> {
        let rows = self.books.rows();
        let mut again = Books::from_rows(self.books.policy().clone(), rows.clone());
        if again.rows() != rows {
            return Err(format!("rows differ\n  {rows:?}\n  {:?}", again.rows()));
        }
        if !self.is_all_in_rows() {
            return Ok(());
        }
        self.coverage.saw("rebuilt from rows");
        let grace = Command::Grace {
            until: self.grace_until,
        };
        let devices: Vec<Device> = self.books.devices().map(|s| s.device.clone()).collect();
        let readings: Vec<Reading> = self
            .books
            .devices()
            .filter_map(|s| s.reading.clone())
            .collect();
        // Nobody is served before everything is told.
        let mut closed = devices.clone();
        for device in &mut closed {
            device.leasable = false;
        }
        let told = [Command::Inventory(closed), Command::Telemetry(readings)];
        let opened = Command::Inventory(devices);
        for command in [grace].into_iter().chain(told).chain([opened]) {
            again.apply(self.at, command);
        }
        same_behaviour(self.at, &self.books, &again)
    }

    /// Whether the books know nothing beside rows, devices and readings, and everybody is served.
    fn is_all_in_rows(&self) -> bool {
        let mut settled = self.books.clone();
        let silent = settled.apply(self.at, Command::Grace { until: BootMs(0) });
        let nothing_due = silent.changes.leases.is_empty();
        let known = |state: &gpu_lease::DeviceState| {
            let told = match (&state.reading, state.read_after) {
                (Some(reading), Some(after)) => reading.taken > after,
                (_, after) => after.is_none(),
            };
            told && state.lost_since.is_none()
        };
        // While the devices are closed, rules that look at all memory would see too little of it.
        !self.books.is_recovering()
            && !self.books.policy().rules.reads_standing()
            && nothing_due
            && self.books.devices().all(known)
            && self.books.leases().all(gpu_lease::Lease::is_durable)
    }

    fn restart(&mut self) -> Result<(), String> {
        self.steps += 1;
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{} restart", self.at.boot.0);
        }
        self.coverage.saw("restart");
        self.books = Books::from_rows(self.books.policy().clone(), self.books.rows());
        self.reference.restart();
        self.checkers.restart();
        self.grace_until = BootMs(0);
        agreement::of_states(&self.books, &self.reference)
    }

    fn note(&mut self, command: &Command, outcome: &Outcome) {
        self.coverage.note(command, outcome);
        if let Some(trace) = &mut self.trace {
            let at = self.at.boot.0;
            let word = name(command);
            // Writing to a string cannot fail.
            let _ = writeln!(trace, "{at} {word} {command:?} => {outcome:?}");
        }
    }
}

impl Run {
    fn take(&mut self, life: Simulation) {
        self.steps += life.steps;
        self.coverage.merge(&life.coverage);
        if let (Some(all), Some(trace)) = (&mut self.trace, &life.trace) {
            all.push_str(trace);
            all.push_str("the end of a life\n");
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seed, steps) = (self.seed, self.steps);
        writeln!(
            f,
            "after {steps} steps of GPU_SIM_SEED={seed}: {}",
            self.what
        )?;
        let lines: Vec<&str> = self.trace.iter().flat_map(|trace| trace.lines()).collect();
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            let end = line.floor_char_boundary(SHOWN_BYTES);
            writeln!(f, "  {}", &line[..end])?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// The same devices, deadlines, reasons, plans and effects, now and a while later.
fn same_behaviour(at: At, books: &Books, again: &Books) -> Result<(), String> {
    let mut pair = [books.clone(), again.clone()];
    for length in [Ms(0), Ms(1_000), Ms(30_000)] {
        let then = At {
            boot: at.boot + length,
            wall: WallMs(at.wall.0 + length.0),
        };
        let [a, b] = &mut pair;
        for books in [&mut *a, &mut *b] {
            books.apply(then, Command::Expire);
        }
        let other = policy(7);
        let same = a.leases().zip(b.leases()).all(|(a, b)| a.phase == b.phase)
            && a.next_deadline() == b.next_deadline()
            && a.waiting(then) == b.waiting(then)
            && a.plan(then, &other) == b.plan(then, &other)
            && a.tenants(then) == b.tenants(then)
            && sorted(a.standing_effects()) == sorted(b.standing_effects())
            && a.devices()
                .map(|s| (s.usage, s.free()))
                .eq(b.devices().map(|s| (s.usage, s.free())));
        if !same {
            return Err(format!(
                "{length} later the rebuilt books differ\n  {a:?}\n  {b:?}"
            ));
        }
    }
    Ok(())
}

fn sorted(effects: Vec<Effect>) -> Vec<String> {
    let mut texts: Vec<String> = effects.iter().map(|effect| format!("{effect:?}")).collect();
    texts.sort();
    texts
}
