//! The words that scenarios are told in. Only this file knows how the books are called.
//!
//! A world has a clock in seconds, devices of which a reading is taken whenever the clock moves, and
//! jobs known by name. What a job is at is a short text, such as `active on gpu-0`.

mod job;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gpu_lease::{
    Answer, At, Books, BootMs, Changes, Command, Cordon, Deadline, Device, DeviceKey, DeviceKind,
    DeviceProcess, DeviceRule, DeviceState, DrainNotice, Effect, Emergency, Event, EventKind,
    Expect, Explanation, Fence, Grant, Lease, LeaseId, Ledger, Ms, Outcome, Phase, Plan, Planned,
    Policy, PolicySource, Reading, ReclaimStage, Refusal, Request, RuleHit, Rules, Sets, Signal,
    Standing, Switch, Switched, Targets, Telemetry, Tenant, Unexpected, Vendor, Verdict, WallMs,
};

pub(crate) use job::{Job, memory, whole};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The first fence of a world.
pub(crate) const FIRST_FENCE: u64 = 1_000;

/// A broker's books with everything around them.
pub(crate) struct World {
    books: Books,
    ledger: Ledger,
    /// The leases as the ledger was told of them.
    entered: BTreeMap<LeaseId, Lease>,
    now: At,
    asked: u64,
    names: BTreeMap<String, LeaseId>,
    /// What was last said of a job that the books do not know.
    refusals: BTreeMap<String, String>,
    cards: BTreeMap<String, Card>,
    polls: bool,
    policies: u64,
    signals: Vec<String>,
    reads: usize,
    events: Vec<Event>,
    last: Option<Outcome>,
}

/// The truth about a device, which readings tell.
#[derive(Clone)]
struct Card {
    device: Device,
    present: bool,
    foreign: u64,
    used_by: BTreeMap<String, Option<u64>>,
    /// What leases use without a process that is known to be theirs.
    unattributed: u64,
}

/// Rules of a scenario: classes that are denied or held, and device rules by device id.
#[derive(Clone, Debug, Default)]
pub(crate) struct TestRules {
    pub(crate) denied: BTreeSet<String>,
    pub(crate) held: BTreeSet<String>,
    /// Held classes are let go at this second of the world.
    pub(crate) held_until: Option<u64>,
    /// Classes that are denied from this second of the world on.
    pub(crate) denied_from: BTreeMap<String, u64>,
    /// A rule that fails on these classes and says deny.
    pub(crate) erring: BTreeSet<String>,
    pub(crate) devices: Vec<String>,
    /// Members of each tenant by user; a tenant without a list is for those who claim it, or for everybody
    /// if it is one of each user.
    pub(crate) tenants: Vec<(String, Option<Vec<String>>, bool)>,
    /// What is made of every request of a class.
    pub(crate) sets: BTreeMap<String, Sets>,
    /// A request waits while all hold this many devices, if anything is said.
    pub(crate) busy_at: Option<u32>,
    /// How well each device suits anybody.
    pub(crate) scores: BTreeMap<String, i64>,
    /// How often a verdict was asked for.
    pub(crate) asked: Arc<AtomicUsize>,
    /// How many new requests came.
    pub(crate) came: Arc<AtomicUsize>,
}

impl Rules for TestRules {
    fn admit(&self, request: &Request, standing: &Standing, now: WallMs) -> Verdict {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let class = &request.class;
        let secs = now.0 / 1000;
        if self.erring.contains(class) {
            return Verdict::Deny {
                rule: "fragile".into(),
                reason: "the rule failed".into(),
                erred: true,
            };
        }
        if self
            .busy_at
            .is_some_and(|busy| standing.held.devices >= busy)
        {
            return Verdict::Hold {
                rule: "busy".into(),
                reason: format!("{} devices are taken", standing.held.devices),
                until: None,
            };
        }
        let late = self
            .denied_from
            .get(class)
            .is_some_and(|from| secs >= *from);
        if self.denied.contains(class) || late {
            return Verdict::Deny {
                rule: "no such work".into(),
                reason: format!("class `{class}` is not for this host"),
                erred: false,
            };
        }
        let open = self.held_until.is_some_and(|until| secs >= until);
        if self.held.contains(class) && !open {
            return Verdict::Hold {
                rule: "hours".into(),
                reason: format!("class `{class}` runs at night"),
                until: self.next_change(now),
            };
        }
        Verdict::Allow
    }

    fn shape(&self, request: &Request, _standing: &Standing, _now: WallMs) -> Sets {
        self.sets.get(&request.class).cloned().unwrap_or_default()
    }

    fn count_errors(&self, _request: &Request, _standing: &Standing, _now: WallMs) {
        self.came.fetch_add(1, Ordering::Relaxed);
    }

    fn reads_standing(&self) -> bool {
        self.busy_at.is_some()
    }

    fn tenant(&self, request: &Request) -> Result<Option<usize>, Refusal> {
        let user = &request.holder.user;
        let matches = |(_, users, per_user): &(String, Option<Vec<String>>, bool)| match users {
            Some(users) => users.contains(user),
            None => *per_user,
        };
        let Some(claim) = &request.holder.tenant else {
            return Ok(self.tenants.iter().position(matches));
        };
        let is_mine = |tenant: &(String, Option<Vec<String>>, bool)| {
            tenant.0 == *claim && (tenant.1.is_none() || matches(tenant))
        };
        let place = self.tenants.iter().position(is_mine);
        place.map(Some).ok_or(Refusal {
            rule: format!("tenant {claim}"),
            reason: format!("{user} is not a member of it"),
        })
    }

    fn device_matches(&self, rule: usize, device: &Device) -> bool {
        self.devices[rule] == device.key.id.as_str()
    }

    /// A filter is a label.
    fn selects(&self, filter: &str, _device: &Device, labels: &[String]) -> bool {
        labels.iter().any(|label| label == filter)
    }

    fn scores(
        &self,
        _request: &Request,
        devices: &[&DeviceState],
        _standing: &Standing,
        _now: WallMs,
    ) -> Vec<i64> {
        let score = |state: &&DeviceState| self.scores[state.device.key.id.as_str()];
        devices.iter().map(score).collect()
    }

    fn hits(&self, request: &Request, _standing: &Standing, _now: WallMs) -> Vec<RuleHit> {
        let denied = self.denied.contains(&request.class);
        let hit = denied.then(|| RuleHit {
            rule: "no such work".into(),
            effect: "denies".into(),
        });
        hit.into_iter().collect()
    }

    fn next_change(&self, _now: WallMs) -> Option<WallMs> {
        self.held_until.map(|secs| WallMs(secs * 1000))
    }
}

/// A policy on the way to being loaded.
pub(crate) struct Edit {
    pub(crate) policy: Policy,
    pub(crate) rules: TestRules,
}

impl Edit {
    /// A class with this priority.
    pub(crate) fn class(&mut self, name: &str, priority: i64) {
        let class = gpu_lease::Class {
            priority,
            ..Default::default()
        };
        self.policy.classes.insert(name.into(), class);
    }

    /// Settings for one device.
    pub(crate) fn device(&mut self, id: &str, rule: DeviceRule) {
        self.policy.devices.push(rule);
        self.rules.devices.push(id.into());
    }

    /// A tenant for these users, or without any for those who claim it; what it may hold, says `limit`.
    pub(crate) fn tenant(&mut self, name: &str, users: &[&str], limit: impl FnOnce(&mut Tenant)) {
        let mut tenant = Tenant {
            name: name.into(),
            weight: 1,
            max_devices: None,
            max_memory: None,
            max_leases: None,
            per_user: false,
        };
        limit(&mut tenant);
        let members = users.iter().map(|user| user.to_string()).collect();
        let members = (!users.is_empty()).then_some(members);
        self.rules
            .tenants
            .push((name.into(), members, tenant.per_user));
        self.policy.tenants.push(tenant);
    }

    /// A label for one device.
    pub(crate) fn label(&mut self, id: &str, label: &str) {
        let labels = vec![label.into()];
        self.device(
            id,
            DeviceRule {
                labels,
                ..DeviceRule::default()
            },
        );
    }

    /// Refuses a class.
    pub(crate) fn deny(&mut self, class: &str) {
        self.rules.denied.insert(class.into());
    }
}

/// A policy with a plan of it that was made beside the books.
pub(crate) struct Draft {
    pub(crate) policy: Arc<Policy>,
    pub(crate) planned: Arc<Planned>,
}

/// Books with the built-in policy and no devices, just started.
pub(crate) fn world() -> World {
    world_by(|_| {})
}

/// The same with an edited policy.
pub(crate) fn world_by(edit: impl FnOnce(&mut Edit)) -> World {
    let policy = edited(1, edit);
    let books = Books::new(Arc::new(policy), Fence(FIRST_FENCE));
    World {
        ledger: Ledger::of(&books),
        entered: BTreeMap::new(),
        books,
        now: At::default(),
        asked: 0,
        names: BTreeMap::new(),
        refusals: BTreeMap::new(),
        cards: BTreeMap::new(),
        polls: true,
        policies: 1,
        signals: Vec::new(),
        reads: 0,
        events: Vec::new(),
        last: None,
    }
}

fn edited(number: u64, edit: impl FnOnce(&mut Edit)) -> Policy {
    let mut draft = Edit {
        policy: Policy::built_in(),
        rules: TestRules::default(),
    };
    edit(&mut draft);
    let Edit { mut policy, rules } = draft;
    policy.source = Arc::new(PolicySource {
        hash: format!("policy-{number}"),
        files: Vec::new(),
    });
    policy.rules = Arc::new(rules);
    policy
}

/// Devices and readings.
impl World {
    /// A device of so many GiB that is there, read and idle.
    pub(crate) fn device(&mut self, id: &str, gib: u64) -> &mut Self {
        self.add_device(id, gib, |_| {})
    }

    /// A device whose memory use cannot be read.
    pub(crate) fn unreadable(&mut self, id: &str, gib: u64) -> &mut Self {
        self.add_device(id, gib, |device| device.telemetry = Telemetry::Unsupported)
    }

    /// A device that may not be granted.
    pub(crate) fn unleasable(&mut self, id: &str, gib: u64) -> &mut Self {
        self.add_device(id, gib, |device| device.leasable = false)
    }

    fn add_device(&mut self, id: &str, gib: u64, edit: impl FnOnce(&mut Device)) -> &mut Self {
        let mut device = card(id, self.cards.len(), gib * GIB);
        edit(&mut device);
        let card = Card {
            device,
            present: true,
            foreign: 0,
            used_by: BTreeMap::new(),
            unattributed: 0,
        };
        self.cards.insert(id.into(), card);
        self.discover()
    }

    /// Tells the books which devices there are, and what is read of them.
    pub(crate) fn discover(&mut self) -> &mut Self {
        let present = self.cards.values().filter(|card| card.present);
        let devices = present.map(|card| card.device.clone()).collect();
        self.apply(Command::Inventory(devices));
        self.poll();
        self
    }

    /// The device falls off the bus.
    pub(crate) fn lose(&mut self, id: &str) -> &mut Self {
        self.card(id).present = false;
        self.discover()
    }

    /// The device is back.
    pub(crate) fn find_again(&mut self, id: &str) -> &mut Self {
        self.card(id).present = true;
        self.discover()
    }

    /// Processes without a lease use so many MiB.
    pub(crate) fn foreign_mib(&mut self, id: &str, mib: u64) -> &mut Self {
        self.card(id).foreign = mib * MIB;
        self.poll()
    }

    /// A process of `job` uses so many GiB.
    pub(crate) fn uses(&mut self, job: &str, id: &str, gib: u64) -> &mut Self {
        self.card(id).used_by.insert(job.into(), Some(gib * GIB));
        self.poll()
    }

    /// A process of `job` is there, and the driver does not say how much it uses.
    pub(crate) fn uses_unknown(&mut self, job: &str, id: &str) -> &mut Self {
        self.card(id).used_by.insert(job.into(), None);
        self.poll()
    }

    /// Leases use so many GiB by processes that nobody knows to be theirs.
    pub(crate) fn unattributed(&mut self, id: &str, gib: u64) -> &mut Self {
        self.card(id).unattributed = gib * GIB;
        self.poll()
    }

    /// No process of `job` is left on the device.
    pub(crate) fn leaves(&mut self, job: &str, id: &str) -> &mut Self {
        self.card(id).used_by.remove(job);
        self.poll()
    }

    /// From here on nothing is read unless it is said.
    pub(crate) fn without_polls(&mut self) -> &mut Self {
        self.polls = false;
        self
    }

    /// Reads every device now.
    pub(crate) fn read(&mut self) -> &mut Self {
        let cards = self.cards.values().filter(|card| card.present);
        let readable = cards.filter(|card| card.device.telemetry == Telemetry::Supported);
        let readings = readable.map(|card| self.reading(card)).collect();
        self.apply(Command::Telemetry(readings));
        self
    }

    fn poll(&mut self) -> &mut Self {
        match self.polls {
            true => self.read(),
            false => self,
        }
    }

    fn reading(&self, card: &Card) -> Reading {
        let known = card.used_by.values().flatten().sum::<u64>();
        let process = |(job, memory): (&String, &Option<u64>)| DeviceProcess {
            pid: 4_242,
            memory: *memory,
            lease: self.names.get(job).copied(),
        };
        Reading {
            device: card.device.key.clone(),
            taken: self.now.boot,
            memory_used: card.foreign.saturating_add(card.unattributed + known),
            processes: card.used_by.iter().map(process).collect(),
            utilisation_percent: None,
            temperature_c: None,
            power_mw: None,
        }
    }

    fn card(&mut self, id: &str) -> &mut Card {
        self.cards
            .get_mut(id)
            .expect("the scenario has that device")
    }

    fn state(&self, id: &str) -> &DeviceState {
        let mut states = self.books.devices();
        let state = states.find(|state| state.device.key.id.as_str() == id);
        state.expect("the books know that device")
    }
}

/// Time and the broker's own life.
impl World {
    /// It is so many seconds after the beginning; everything that fell due until then has happened.
    pub(crate) fn at(&mut self, secs: u64) -> &mut Self {
        self.at_ms(secs * 1000)
    }

    /// The same in milliseconds.
    pub(crate) fn at_ms(&mut self, ms: u64) -> &mut Self {
        while let Some(due) = self.books.next_deadline().filter(|due| due.0 <= ms) {
            self.clock(due.0.max(self.now.boot.0));
            self.poll();
            self.apply(Command::Expire);
            let next = self.books.next_deadline();
            let later = next.is_none_or(|next| next > self.now.boot);
            assert!(later, "{next:?} is still due at {:?}", self.now.boot);
        }
        self.clock(ms);
        self.poll();
        self.expire()
    }

    /// It is so many milliseconds after the beginning, and nobody has told the books.
    pub(crate) fn clock(&mut self, ms: u64) -> &mut Self {
        assert!(ms >= self.now.boot.0, "time does not go back");
        let passed = ms - self.now.boot.0;
        self.now.boot = BootMs(ms);
        self.now.wall = WallMs(self.now.wall.0 + passed);
        self
    }

    /// Tells the books that time passed.
    pub(crate) fn expire(&mut self) -> &mut Self {
        self.apply(Command::Expire);
        self
    }

    /// Nothing held ends by time until then.
    pub(crate) fn grace_until(&mut self, secs: u64) -> &mut Self {
        self.apply(Command::Grace {
            until: BootMs(secs * 1000),
        });
        self
    }

    /// The broker dies and starts again on what was stored; devices are not known yet.
    pub(crate) fn restart(&mut self) -> &mut Self {
        self.books = Books::from_rows(self.books.policy().clone(), self.books.rows());
        self.ledger = Ledger::of(&self.books);
        self.refusals.clear();
        self
    }

    /// The host boots: the clock of deadlines starts at zero, the day goes on.
    pub(crate) fn reboot(&mut self) -> &mut Self {
        self.restart();
        self.now.boot = BootMs(0);
        self.apply(Command::HostRebooted);
        self
    }

    /// When the books want to be told the time next.
    pub(crate) fn next_deadline_is(&mut self, secs: Option<u64>) -> &mut Self {
        let expected = secs.map(|secs| BootMs(secs * 1000));
        assert_eq!(self.books.next_deadline(), expected, "next deadline");
        self
    }
}

/// What jobs and operators do.
impl World {
    /// A job asks.
    pub(crate) fn ask(&mut self, job: Job) -> &mut Self {
        let name = job.name();
        self.asked += 1;
        let id = LeaseId::from_bits(self.asked);
        let request = Box::new(job.request());
        let said = match self.apply(Command::Acquire { id, request }) {
            Answer::Acquire(Ok(lease)) => Ok(lease.id),
            Answer::Acquire(Err(denial)) => Err(format!("refused: {denial}")),
            other => panic!("a request is answered by {other:?}"),
        };
        match said {
            Ok(id) => drop(self.names.insert(name, id)),
            Err(refusal) => drop(self.refusals.insert(name, refusal)),
        }
        self
    }

    pub(crate) fn renew(&mut self, job: &str) -> &mut Self {
        let id = self.id(job);
        self.on_lease(Command::Renew { id })
    }

    pub(crate) fn ready(&mut self, job: &str) -> &mut Self {
        let id = self.id(job);
        self.on_lease(Command::Ready { id })
    }

    pub(crate) fn release(&mut self, job: &str) -> &mut Self {
        let id = self.id(job);
        self.on_lease(Command::Release { id })
    }

    pub(crate) fn abandon(&mut self, job: &str) -> &mut Self {
        let id = self.id(job);
        self.apply(Command::Abandon { id });
        self
    }

    pub(crate) fn revoke(&mut self, job: &str) -> &mut Self {
        let id = self.id(job);
        self.on_lease(Command::Revoke {
            id,
            reason: "needed for the demo".into(),
            by: "ann".into(),
        })
    }

    /// An operator asks a job to go within so many seconds, or as long as the policy gives.
    pub(crate) fn drain(&mut self, job: &str, grace: Option<u64>) -> &mut Self {
        let id = self.id(job);
        let notice = notice(grace);
        self.on_lease(Command::DrainLease { id, notice })
    }

    pub(crate) fn drain_device(&mut self, id: &str, grace: Option<u64>) -> &mut Self {
        let notice = notice(grace);
        let device = DeviceKey::local(id);
        self.on_device(Command::DrainDevice { device, notice })
    }

    pub(crate) fn cordon(&mut self, id: &str, until: Option<u64>) -> &mut Self {
        let until = until.map(|secs| Deadline {
            boot: BootMs(secs * 1000),
            wall: WallMs(self.now.wall.0 + secs * 1000 - self.now.boot.0),
        });
        let cordon = Cordon {
            reason: "new driver".into(),
            by: "ann".into(),
            until,
        };
        let device = DeviceKey::local(id);
        self.on_device(Command::Cordon { device, cordon })
    }

    pub(crate) fn uncordon(&mut self, id: &str) -> &mut Self {
        let device = DeviceKey::local(id);
        let by = "ann".into();
        self.on_device(Command::Uncordon { device, by })
    }

    pub(crate) fn clear_quarantine(&mut self, id: &str) -> &mut Self {
        let device = DeviceKey::local(id);
        let by = "ann".into();
        self.on_device(Command::ClearQuarantine { device, by })
    }

    /// An emergency release of `targets`; how, says `edit`.
    pub(crate) fn emergency(
        &mut self,
        targets: Targets,
        edit: impl FnOnce(&mut Emergency),
    ) -> &mut Self {
        let mut emergency = Emergency {
            targets,
            reason: "fire".into(),
            by: "ann".into(),
            kill: false,
            cordon: false,
            force_unsafe: false,
        };
        edit(&mut emergency);
        self.apply(Command::Emergency(emergency));
        self
    }

    /// The process of a job is proven gone.
    pub(crate) fn process_gone(&mut self, job: &str) -> &mut Self {
        let (id, fence) = (self.id(job), self.fence_of(job));
        self.apply(Command::ProcessGone { id, fence });
        self
    }

    /// The process of a grant before the current one is proven gone.
    pub(crate) fn stale_process_gone(&mut self, job: &str) -> &mut Self {
        let (id, fence) = (self.id(job), Fence(self.fence_of(job).0 - 1));
        self.apply(Command::ProcessGone { id, fence });
        self
    }

    /// The signal of this attempt could not be sent.
    pub(crate) fn signal_refused(&mut self, job: &str, attempt: u32) -> &mut Self {
        let (id, fence) = (self.id(job), self.fence_of(job));
        let why = "pid 4242 is somebody else".into();
        self.apply(Command::SignalRefused {
            id,
            fence,
            attempt,
            why,
        });
        self
    }

    /// The live policy is replaced by the built-in one with these changes. The plan is what happens.
    pub(crate) fn switch(&mut self, edit: impl FnOnce(&mut Edit)) -> &mut Self {
        self.policies += 1;
        let policy = Arc::new(edited(self.policies, edit));
        let plan = self.books.plan(self.now, &policy);
        match self.apply(switch_to(policy)) {
            Answer::Policy(Ok(Some(switched))) => assert_eq!(switched.plan, plan),
            other => panic!("the switch is answered by {other:?}"),
        }
        self
    }

    /// A plan as somebody makes it beside the books, to be used later.
    pub(crate) fn draft(&mut self, edit: impl FnOnce(&mut Edit)) -> Draft {
        self.policies += 1;
        let policy = edited(self.policies, edit);
        let leases: Vec<&Lease> = self.books.leases().collect();
        let devices: Vec<DeviceState> = self.books.devices().cloned().collect();
        let live = self.books.policy();
        let planned = Planned {
            live: live.source.hash.clone(),
            to: policy.source.hash.clone(),
            revision: self.books.counters().revision,
            plan: gpu_lease::plan(live, &policy, &leases, &devices, self.now),
        };
        Draft {
            policy: Arc::new(policy),
            planned: Arc::new(planned),
        }
    }

    /// Switches to a policy that was planned before. What is done is what would be planned now.
    pub(crate) fn switch_by(&mut self, draft: Draft) -> Plan {
        let fresh = self.books.plan(self.now, &draft.policy);
        let mut switch = switch_to(draft.policy);
        if let Command::SetPolicy(switch) = &mut switch {
            switch.planned = Some(draft.planned);
        }
        match self.apply(switch) {
            Answer::Policy(Ok(Some(switched))) => assert_eq!(switched.plan, fresh),
            other => panic!("the switch is answered by {other:?}"),
        }
        fresh
    }

    /// Asks for a switch of which this must be true.
    pub(crate) fn switch_if(
        &mut self,
        expect: Expect,
        edit: impl FnOnce(&mut Edit),
    ) -> Result<Option<Switched>, Unexpected> {
        self.policies += 1;
        let mut switch = switch_to(Arc::new(edited(self.policies, edit)));
        if let Command::SetPolicy(switch) = &mut switch {
            switch.expect = expect;
        }
        match self.apply(switch) {
            Answer::Policy(answer) => answer.clone(),
            other => panic!("the switch is answered by {other:?}"),
        }
    }

    /// What would become of a job that asked now, or at another second of the day.
    pub(crate) fn explain(&mut self, job: Job, at: Option<u64>) -> Explanation {
        let (rows, revision) = (self.books.rows(), self.books.counters());
        let request = Box::new(job.request());
        let wall = at.map(|secs| WallMs(secs * 1000));
        let outcome = self
            .books
            .apply(self.now, Command::Explain { request, wall });
        assert_eq!((self.books.rows(), self.books.counters()), (rows, revision));
        assert_eq!(outcome.changes, Changes::default());
        assert!(outcome.events.is_empty() && outcome.effects.is_empty());
        match outcome.answer {
            Answer::Explain(explanation) => *explanation,
            other => panic!("a question is answered by {other:?}"),
        }
    }

    /// How each tenant stands: `lab holds 1 devices, 4 GiB; 0 wait`.
    pub(crate) fn tenants_are(&mut self, expected: &[&str]) -> &mut Self {
        let standings = self.books.tenants(self.now);
        let told: Vec<String> = standings
            .iter()
            .map(|one| {
                let (devices, gib) = (one.held.devices, one.held.memory / GIB);
                let (key, waiting) = (&one.key, one.waiting);
                format!("{key} holds {devices} devices, {gib} GiB; {waiting} wait")
            })
            .collect();
        assert_eq!(told, expected, "tenants");
        self
    }

    /// What a tenant had of late, in GiB-seconds, rounded down.
    pub(crate) fn had_of_late(&self, tenant: &str) -> u64 {
        let standings = self.books.tenants(self.now);
        let mut mine = standings.iter().filter(|one| one.key.to_string() == tenant);
        mine.next().expect("there is such a tenant").used / GIB
    }

    /// The live policy is loaded once more.
    pub(crate) fn switch_to_the_same(&mut self) -> &mut Self {
        let policy = self.books.policy().clone();
        let answer = self.apply(switch_to(policy));
        assert!(matches!(answer, Answer::Policy(Ok(None))), "{answer:?}");
        self
    }

    /// What switching to that policy would mean.
    pub(crate) fn plan(&self, edit: impl FnOnce(&mut Edit)) -> Plan {
        let policy = edited(self.policies + 1, edit);
        self.books.plan(self.now, &policy)
    }

    fn on_lease(&mut self, command: Command) -> &mut Self {
        let answer = self.apply(command);
        assert!(matches!(answer, Answer::Lease(_)), "{answer:?}");
        self
    }

    fn on_device(&mut self, command: Command) -> &mut Self {
        let answer = self.apply(command);
        assert!(matches!(answer, Answer::Device(_)), "{answer:?}");
        self
    }

    fn apply(&mut self, command: Command) -> &Answer {
        let quiet = matches!(command, Command::Telemetry(_));
        let mut outcome = self.books.apply(self.now, command);
        self.enter(&outcome.changes);
        for effect in &outcome.effects {
            self.note_effect(effect);
        }
        self.events.append(&mut outcome.events);
        for lease in &outcome.changes.leases {
            let name = &lease.request.holder.name;
            if !lease.is_durable() {
                self.refusals.insert(name.clone(), told(lease));
            }
        }
        if quiet && self.last.is_some() {
            return &Answer::Nothing;
        }
        &self.last.insert(outcome).answer
    }

    /// Whatever a scenario is about, nothing is granted twice in it.
    fn enter(&mut self, changes: &Changes) {
        let leases = changes.leases.iter();
        let before = |lease: &Lease| self.entered.get(&lease.id);
        let changed: Vec<_> = leases.clone().map(|lease| (before(lease), lease)).collect();
        if let Err(breach) = self.ledger.enter(&changed, &self.books) {
            panic!("{breach}");
        }
        let leases = leases.map(|lease| (lease.id, lease.clone()));
        self.entered.extend(leases);
    }

    fn note_effect(&mut self, effect: &Effect) {
        let name = |id: LeaseId| {
            let lease = self.books.lease(id);
            lease.map_or(id.to_string(), |lease| lease.request.holder.name.clone())
        };
        match effect {
            Effect::Read => self.reads += 1,
            Effect::Watch { .. } => {}
            Effect::Signal {
                id,
                attempt,
                signal,
                ..
            } => {
                let word = match signal {
                    Signal::Term => "TERM",
                    Signal::Kill => "KILL",
                };
                let text = format!("{word} {} #{attempt}", name(*id));
                self.signals.push(text);
            }
        }
    }
}

/// What must be.
impl World {
    /// A job is at exactly this.
    pub(crate) fn is(&mut self, job: &str, expected: &str) -> &mut Self {
        assert_eq!(self.told_of(job), expected, "{job}");
        self
    }

    /// Several jobs, each at exactly this.
    pub(crate) fn are(&mut self, expected: &[(&str, &str)]) -> &mut Self {
        let told: Vec<String> = expected.iter().map(|(job, _)| self.told_of(job)).collect();
        let told: Vec<(&str, &str)> = expected
            .iter()
            .zip(&told)
            .map(|((job, _), told)| (*job, told.as_str()))
            .collect();
        assert_eq!(told, expected);
        self
    }

    /// The sentence that a waiting job is told.
    pub(crate) fn waits_because(&mut self, job: &str, expected: &str) -> &mut Self {
        assert_eq!(self.why(job).to_string(), expected, "{job}");
        self
    }

    /// The word for programs.
    pub(crate) fn waits_by(&mut self, job: &str, code: &str) -> &mut Self {
        assert_eq!(self.why(job).code(), code, "{job}");
        self
    }

    /// The jobs that wait, in the order of service.
    pub(crate) fn queue_is(&mut self, expected: &[&str]) -> &mut Self {
        let waiting = self.books.waiting(self.now);
        let names: Vec<&str> = waiting
            .iter()
            .map(|(id, _)| self.books.lease(*id).expect("it waits"))
            .map(|lease| lease.request.holder.name.as_str())
            .collect();
        assert_eq!(names, expected, "queue");
        let places: Vec<u32> = waiting.iter().map(|(_, why)| why.position).collect();
        assert!(places.is_sorted(), "{places:?}");
        self
    }

    /// The signals since this was last asked, such as `TERM vllm #1`.
    pub(crate) fn signalled(&mut self, expected: &[&str]) -> &mut Self {
        assert_eq!(std::mem::take(&mut self.signals), expected, "signals");
        self
    }

    /// Whether readings were asked for since this was last asked.
    pub(crate) fn asked_to_read(&mut self, expected: bool) -> &mut Self {
        assert_eq!(std::mem::take(&mut self.reads) > 0, expected, "reads");
        self
    }

    /// The last events of a kind, as people read them, since the beginning.
    pub(crate) fn heard(&mut self, kind: EventKind, expected: &[&str]) -> &mut Self {
        let of_kind = self.events.iter().filter(|event| event.kind == kind);
        let texts: Vec<&str> = of_kind.map(|event| event.text.as_str()).collect();
        assert_eq!(texts, expected, "{kind:?}");
        self
    }

    /// How many events of a kind there were since the beginning.
    pub(crate) fn told(&self, kind: EventKind) -> usize {
        let of_kind = self.events.iter().filter(|event| event.kind == kind);
        of_kind.count()
    }

    /// How the last command on a lease or device was refused.
    pub(crate) fn was_refused(&mut self, expected: &str) -> &mut Self {
        let answer = &self.last.as_ref().expect("something happened").answer;
        let text = match answer {
            Answer::Lease(Err(error)) => error.to_string(),
            Answer::Device(Err(error)) => error.to_string(),
            other => panic!("it was answered {other:?}"),
        };
        assert_eq!(text, expected);
        self
    }

    /// GiB free on a device, rounded down.
    pub(crate) fn free(&mut self, id: &str, gib: u64) -> &mut Self {
        let free = self.state(id).free();
        assert_eq!(free / GIB, gib, "{free} bytes are free on {id}");
        self
    }

    /// MiB that are charged to nobody's lease.
    pub(crate) fn foreign_is_mib(&mut self, id: &str, mib: u64) -> &mut Self {
        assert_eq!(self.state(id).usage.foreign / MIB, mib, "foreign on {id}");
        self
    }

    pub(crate) fn overcommitted(&mut self, id: &str, expected: bool) -> &mut Self {
        assert_eq!(self.state(id).overcommitted(), expected, "{id}");
        self
    }

    pub(crate) fn cordoned(&mut self, id: &str, expected: Option<&str>) -> &mut Self {
        let reason = self.state(id).cordoned().map(String::as_str);
        assert_eq!(reason, expected, "{id}");
        self
    }

    /// Ids of the devices that the books know.
    pub(crate) fn devices_are(&mut self, expected: &[&str]) -> &mut Self {
        let ids: Vec<&str> = self
            .books
            .devices()
            .map(|d| d.device.key.id.as_str())
            .collect();
        assert_eq!(ids, expected);
        self
    }

    pub(crate) fn generation_is(&mut self, expected: u64) -> &mut Self {
        assert_eq!(self.books.counters().generation, expected, "generation");
        self
    }

    /// What the last emergency release named, by name.
    pub(crate) fn ended_are(&mut self, expected: &[&str]) -> &mut Self {
        let Some(Answer::Emergency(ids)) = self.last.as_ref().map(|last| &last.answer) else {
            panic!("the last command was no emergency release");
        };
        let name_of = |id| {
            let mut names = self.names.iter();
            let found = names.find(|(_, known)| **known == id);
            found.map_or("somebody", |(name, _)| name.as_str())
        };
        let names: Vec<&str> = ids.iter().map(|id| name_of(*id)).collect();
        assert_eq!(names, expected);
        self
    }

    /// The books by themselves.
    pub(crate) fn books(&self) -> &Books {
        &self.books
    }

    pub(crate) fn now(&self) -> At {
        self.now
    }

    /// What the last command did.
    pub(crate) fn last(&self) -> &Outcome {
        self.last.as_ref().expect("something happened")
    }

    pub(crate) fn lease(&self, job: &str) -> &Lease {
        self.books.lease(self.id(job)).expect("the books know it")
    }

    /// Why a job waits.
    pub(crate) fn why(&self, job: &str) -> gpu_lease::Why {
        let waiting = self.books.waiting(self.now);
        let id = self.id(job);
        let mine = waiting.into_iter().find(|(waiter, _)| *waiter == id);
        mine.unwrap_or_else(|| panic!("{job} is {}", self.told_of(job)))
            .1
    }

    pub(crate) fn fence_of(&self, job: &str) -> Fence {
        self.lease(job).grant().expect("it was granted").fence
    }

    fn id(&self, job: &str) -> LeaseId {
        let known = self.names.get(job).copied();
        known.unwrap_or(LeaseId::from_bits(u64::MAX))
    }

    fn told_of(&self, job: &str) -> String {
        let lease = self.names.get(job).and_then(|id| self.books.lease(*id));
        let refusal = || self.refusals.get(job).cloned();
        lease.map(told).or_else(refusal).unwrap_or("unknown".into())
    }
}

/// What a lease is at, in a few words.
fn told(lease: &Lease) -> String {
    match &lease.phase {
        Phase::Waiting(_) => "waiting".into(),
        Phase::Held(grant) => held(grant),
        Phase::Ended(ending) => format!("ended: {}", ending.reason),
        Phase::Reclaiming(_, reclaim) => {
            let stage = match &reclaim.stage {
                ReclaimStage::Verifying => "verifying".into(),
                ReclaimStage::Stuck(why) => format!("stuck: {why}"),
                ReclaimStage::Quarantined => "quarantined".into(),
            };
            format!("reclaiming after {}, {stage}", reclaim.reason)
        }
    }
}

fn held(grant: &Grant) -> String {
    let devices: Vec<&str> = grant
        .allocations
        .iter()
        .map(|part| part.device.id.as_str())
        .collect();
    let mut text = match grant.drain() {
        None => format!("active on {}", devices.join(" ")),
        Some((source, drain)) => {
            let by = Ms(drain.deadline.boot.0);
            let (devices, source) = (devices.join(" "), source.as_str());
            format!("draining on {devices} until {by} by {source}")
        }
    };
    if grant.loading {
        text.push_str(", loading");
    }
    if grant.unresponsive {
        text.push_str(", unresponsive");
    }
    text
}

fn notice(grace: Option<u64>) -> DrainNotice {
    DrainNotice {
        grace: grace.map(Ms::from_secs),
        reason: "maintenance".into(),
        by: "ann".into(),
    }
}

fn card(id: &str, index: usize, memory_total: u64) -> Device {
    Device {
        key: DeviceKey::local(id),
        name: format!("Card {id}"),
        index: u32::try_from(index).expect("a handful of devices"),
        vendor: Vendor::Nvidia,
        kind: DeviceKind::Discrete,
        pci_bus_id: None,
        nvml_uuid: None,
        driver: None,
        memory_total,
        telemetry: Telemetry::Supported,
        leasable: true,
        found_by: Vec::new(),
    }
}

fn switch_to(policy: Arc<Policy>) -> Command {
    Command::SetPolicy(Box::new(Switch {
        policy,
        changes: "an edit".into(),
        planned: None,
        expect: Expect::default(),
    }))
}
