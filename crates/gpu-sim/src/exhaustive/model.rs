//! What can happen next, and what it does to the books and to what clients know.

use std::collections::BTreeMap;
use std::mem;

use gpu_lease::{
    Answer, Books, Command, DeviceProcess, DrainNotice, Emergency, Fence, Lease, LeaseId, Phase,
    Reading, Targets,
};
use stateright::{Model, Property};

use super::case::{Case, Client, DRAIN, GRACE, PART, Scope, units};
use super::judge::{self, Rule};
use super::moment::{Known, Moment, at, events_of};

/// The client that an id was made by is in its lowest bits.
pub(super) const CLIENT_BITS: u32 = 4;
/// When lives begin, in units.
const BEGIN: u64 = 100;
const FIRST_FENCE: Fence = Fence(1);

/// All lives of a case.
pub(super) struct Lives {
    pub(super) case: Case,
}

/// One thing that happens. Clients and devices are named by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Abandon(usize),
    Ask(usize),
    Crash,
    /// An operator asks a client to go.
    Drain(usize),
    Emergency(Scope),
    /// What has come due is done.
    Expire,
    Find(Found),
    /// The processes of a client end, and whoever watches them says so.
    Exit(usize),
    /// A unit of time, and what is read at the end of it.
    Pass(Seen),
    /// The signal to a process of a client cannot be sent.
    Refuse(usize),
    Release(usize),
    Renew(usize),
    /// An operator vouches for what is quarantined on the first device.
    Vouch,
}

/// Which devices discovery sees after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    All,
    AllButOne,
}

/// What is read of the first device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    /// Nobody uses memory.
    Free,
    /// Somebody uses a part: the process that holds something there, if there is one.
    InUse,
}

impl Lives {
    pub(super) fn new(case: Case) -> Self {
        Self { case }
    }

    pub(super) fn client_of(&self, id: LeaseId) -> usize {
        (id.bits() & ((1 << CLIENT_BITS) - 1)) as usize
    }

    pub(super) fn client(&self, id: LeaseId) -> &Client {
        &self.case.clients[self.client_of(id)]
    }

    /// The moments after each of `steps`, if each of them can happen.
    pub(super) fn live(&self, steps: &[Step]) -> Option<Vec<Moment>> {
        let mut moment = self.begin();
        let mut moments = Vec::new();
        for &step in steps {
            let mut possible = Vec::new();
            self.actions(&moment, &mut possible);
            if !possible.contains(&step) {
                return None;
            }
            self.take(&mut moment, step);
            moments.push(moment.clone());
        }
        Some(moments)
    }

    /// Whether `rule` holds in `moment`.
    pub(super) fn holds(&self, rule: Rule, moment: &Moment) -> bool {
        match rule {
            Rule::Live => self.ends_well(moment),
            _ => !moment.breaks(rule),
        }
    }

    fn begin(&self) -> Moment {
        let mut moment = Moment {
            books: Books::new(self.case.policy.clone(), FIRST_FENCE),
            now: BEGIN,
            grace: 0,
            known: vec![Known::default(); self.case.clients.len()],
            asked: 0,
            highest: None,
            left: self.case.misfortune,
            broken: None,
        };
        self.find(&mut moment, Found::All);
        self.pass(&mut moment, Seen::Free);
        moment
    }

    /// Does `step`, and looks whether everything holds afterwards.
    fn take(&self, moment: &mut Moment, step: Step) {
        match step {
            Step::Abandon(client) => self.abandon(moment, client),
            Step::Ask(client) => self.ask(moment, client),
            Step::Crash => self.crash(moment),
            Step::Drain(client) => self.drain(moment, client),
            Step::Emergency(scope) => self.emergency(moment, scope),
            Step::Exit(client) => self.exit(moment, client),
            Step::Expire => drop(self.apply(moment, Command::Expire)),
            Step::Find(found) => self.find(moment, found),
            Step::Pass(seen) => self.pass(moment, seen),
            Step::Refuse(client) => self.refuse(moment, client),
            Step::Release(client) => self.release(moment, client),
            Step::Renew(client) => self.renew(moment, client),
            Step::Vouch => self.vouch(moment),
        }
        moment.expect(judge::standing(moment));
    }

    fn ask(&self, moment: &mut Moment, client: usize) {
        moment.asked += 1;
        let id = LeaseId::from_bits((moment.asked << CLIENT_BITS) | client as u64);
        let request = Box::new(self.case.clients[client].request.clone());
        moment.known[client] = Known {
            lease: Some(id),
            fence: None,
        };
        let answer = self.apply(moment, Command::Acquire { id, request });
        if let Answer::Acquire(Err(_)) = answer {
            moment.known[client] = Known::default();
        }
    }

    fn renew(&self, moment: &mut Moment, client: usize) {
        let Some(id) = moment.known[client].lease else {
            return;
        };
        let answer = self.apply(moment, Command::Renew { id });
        if let Answer::Lease(Err(_)) = answer {
            moment.known[client] = Known::default();
        }
    }

    fn release(&self, moment: &mut Moment, client: usize) {
        if let Some(id) = moment.known[client].lease {
            self.apply(moment, Command::Release { id });
        }
        moment.known[client] = Known::default();
    }

    /// The connection breaks. Nobody knows of the lease from here on.
    fn abandon(&self, moment: &mut Moment, client: usize) {
        let id = moment.known[client].lease;
        moment.known[client] = Known::default();
        if let Some(id) = id {
            self.apply(moment, Command::Abandon { id });
        }
    }

    /// What waits is waited for by another process.
    fn exit(&self, moment: &mut Moment, client: usize) {
        for (id, fence) in self.occupied_by(moment, client) {
            if moment.known[client].lease == Some(id) {
                moment.known[client] = Known::default();
            }
            self.apply(moment, Command::ProcessGone { id, fence });
        }
    }

    fn refuse(&self, moment: &mut Moment, client: usize) {
        for (id, fence, attempt) in self.signalled(moment, client) {
            let why = String::new();
            let command = Command::SignalRefused {
                id,
                fence,
                attempt,
                why,
            };
            self.apply(moment, command);
        }
    }

    fn signalled(&self, moment: &Moment, client: usize) -> Vec<(LeaseId, Fence, u32)> {
        let leases = moment
            .open()
            .filter(|lease| self.client_of(lease.id) == client);
        let signalled = |lease: &Lease| match &lease.phase {
            Phase::Reclaiming(grant, reclaim) if reclaim.signal => {
                Some((lease.id, grant.fence, reclaim.attempt))
            }
            _ => None,
        };
        leases.filter_map(signalled).collect()
    }

    fn vouch(&self, moment: &mut Moment) {
        let command = Command::ClearQuarantine {
            device: self.case.devices[0].key.clone(),
            by: String::new(),
        };
        self.apply(moment, command);
    }

    fn occupied_by(&self, moment: &Moment, client: usize) -> Vec<(LeaseId, Fence)> {
        let leases = moment.books.leases();
        leases
            .filter(|lease| self.client_of(lease.id) == client)
            .filter_map(|lease| Some((lease.id, lease.occupying()?.fence)))
            .collect()
    }

    fn drain(&self, moment: &mut Moment, client: usize) {
        let Some(id) = moment.known[client].lease else {
            return;
        };
        moment.left.drains -= 1;
        let notice = DrainNotice {
            grace: Some(units(DRAIN)),
            reason: String::new(),
            by: String::new(),
        };
        self.apply(moment, Command::DrainLease { id, notice });
    }

    fn emergency(&self, moment: &mut Moment, scope: Scope) {
        moment.left.emergencies -= 1;
        let emergency = Emergency {
            targets: match scope {
                Scope::All | Scope::AllBySignal => Targets::All,
                Scope::First => Targets::Devices(vec![self.case.devices[0].key.clone()]),
            },
            reason: String::new(),
            by: String::new(),
            kill: scope == Scope::AllBySignal,
            cordon: false,
            force_unsafe: false,
        };
        self.apply(moment, Command::Emergency(emergency));
    }

    /// The broker ends after it has stored and answered everything, and another one recovers. Whoever waits on a
    /// connection has lost it.
    fn crash(&self, moment: &mut Moment) {
        moment.left.crashes -= 1;
        let rows = moment.books.rows();
        let recovered = Books::from_rows(self.case.policy.clone(), rows);
        let before = mem::replace(&mut moment.books, recovered);
        moment.expect(judge::recovery(&before, &moment.books));
        for (client, known) in self.case.clients.iter().zip(&mut moment.known) {
            let waits = known.lease.and_then(|id| before.lease(id)?.waiting());
            if waits.is_some() && client.is_connected() {
                *known = Known::default();
            }
        }
        moment.grace = 0;
        if moment.open().next().is_some() {
            moment.grace = moment.now + GRACE;
            let until = at(moment.grace).boot;
            self.apply(moment, Command::Grace { until });
        }
    }

    fn find(&self, moment: &mut Moment, found: Found) {
        let missing = usize::from(found == Found::AllButOne);
        let seen = self.case.devices.len() - missing;
        let devices = self.case.devices[..seen].to_vec();
        self.apply(moment, Command::Inventory(devices));
    }

    fn pass(&self, moment: &mut Moment, seen: Seen) {
        if self.is_missed(moment) {
            moment.left.expiries -= 1;
        }
        moment.now += 1;
        if seen != Seen::Nothing {
            let reading = self.reading(moment, seen == Seen::InUse);
            self.apply(moment, Command::Telemetry(vec![reading]));
        }
    }

    fn reading(&self, moment: &Moment, in_use: bool) -> Reading {
        let device = &self.case.devices[0];
        let is_there = |lease: &&Lease| {
            let grant = lease.occupying();
            lease.process().is_some() && grant.is_some_and(|grant| grant.on(&device.key).is_some())
        };
        let holder = moment.books.leases().find(is_there);
        let process = DeviceProcess {
            pid: 1,
            memory: Some(PART),
            lease: holder.map(|lease| lease.id),
        };
        Reading {
            device: device.key.clone(),
            taken: moment.at().boot,
            memory_used: if in_use { PART } else { 0 },
            processes: in_use.then_some(process).into_iter().collect(),
            utilisation_percent: None,
            temperature_c: None,
            power_mw: None,
        }
    }

    /// Whether somebody who has not renewed by now is late one unit on.
    pub(super) fn is_missed(&self, moment: &Moment) -> bool {
        let then = moment.now + 1;
        let heartbeat = |lease: &Lease| match &lease.phase {
            Phase::Held(grant) if !grant.unresponsive => Some(grant.expires.boot),
            Phase::Waiting(wait) => wait.renew_by,
            Phase::Held(_) | Phase::Reclaiming(..) | Phase::Ended(_) => None,
        };
        let mut due = moment.open().filter_map(heartbeat);
        moment.grace <= then && due.any(|due| due <= at(then).boot)
    }

    /// Applies `command`, judges what it did, and tells clients what concerns them.
    pub(super) fn apply(&self, moment: &mut Moment, command: Command) -> Answer {
        let before: BTreeMap<LeaseId, Phase> = moment
            .open()
            .map(|lease| (lease.id, lease.phase.clone()))
            .collect();
        let outcome = moment.books.apply(moment.at(), command.clone());
        moment.expect(judge::change(self, moment, &before, &command, &outcome));
        for lease in &outcome.changes.leases {
            let fence = lease.grant().map(|grant| grant.fence);
            moment.highest = moment.highest.max(fence);
            self.tell(moment, lease);
        }
        outcome.answer
    }

    /// A client that waits hears of its grant, and one on a connection also that it waited for nothing.
    fn tell(&self, moment: &mut Moment, lease: &Lease) {
        let known = &mut moment.known[self.client_of(lease.id)];
        if known.lease != Some(lease.id) {
            return;
        }
        match &lease.phase {
            Phase::Held(grant) => known.fence = Some(grant.fence),
            Phase::Ended(_) if !lease.is_durable() => *known = Known::default(),
            Phase::Waiting(_) | Phase::Reclaiming(..) | Phase::Ended(_) => {}
        }
    }

    /// Whoever holds gives back, whoever waits keeps its place, all devices are there, and time passes.
    pub(super) fn see_everybody_off(&self, moment: &mut Moment) {
        let at = moment.at();
        if moment.books.devices().count() < self.case.devices.len() {
            let inventory = Command::Inventory(self.case.devices.clone());
            moment.books.apply(at, inventory);
        }
        let last_words = |lease: &Lease| match &lease.phase {
            Phase::Waiting(wait) => wait.renew_by.map(|_| Command::Renew { id: lease.id }),
            Phase::Held(_) => Some(Command::Release { id: lease.id }),
            Phase::Reclaiming(grant, _) => lease.process().map(|_| Command::ProcessGone {
                id: lease.id,
                fence: grant.fence,
            }),
            Phase::Ended(_) => None,
        };
        let mut said: Vec<Command> = moment.open().filter_map(last_words).collect();
        // Whatever is said to the books ends the waits that nobody renewed in time.
        said.sort_by_key(|command| !matches!(command, Command::Renew { .. }));
        for command in said {
            moment.books.apply(at, command);
        }
        moment.now += 1;
        let reading = self.reading(moment, false);
        for command in [Command::Telemetry(vec![reading]), Command::Expire] {
            moment.books.apply(moment.at(), command);
        }
    }

    fn steps_of(&self, moment: &Moment, client: usize, steps: &mut Vec<Step>) {
        let is_process = self.case.clients[client].request.holder.process().is_some();
        if is_process && !self.occupied_by(moment, client).is_empty() {
            steps.push(Step::Exit(client));
        }
        if !self.signalled(moment, client).is_empty() {
            steps.push(Step::Refuse(client));
        }
        let Some(id) = moment.known[client].lease else {
            steps.push(Step::Ask(client));
            return;
        };
        steps.push(Step::Release(client));
        let connected = self.case.clients[client].is_connected();
        let lease = moment.books.lease(id);
        let waits = lease.is_some_and(|lease| lease.waiting().is_some());
        if !(waits && connected) {
            steps.push(Step::Renew(client));
        }
        if moment.left.drains > 0 && lease.is_some_and(|lease| lease.held().is_some()) {
            steps.push(Step::Drain(client));
        }
        let unheard = lease
            .and_then(Lease::held)
            .is_some_and(|grant| !grant.renewed);
        if connected && (waits || unheard) {
            steps.push(Step::Abandon(client));
        }
    }

    fn steps_of_all(&self, moment: &Moment, steps: &mut Vec<Step>) {
        let known = moment.books.devices().count();
        let due = moment.books.next_deadline();
        if due.is_some_and(|due| due <= moment.at().boot) {
            steps.push(Step::Expire);
        } else if !self.is_missed(moment) || moment.left.expiries > 0 {
            steps.push(Step::Pass(Seen::Nothing));
            if known > 0 {
                steps.extend([Step::Pass(Seen::Free), Step::Pass(Seen::InUse)]);
            }
        }
        if moment.left.emergencies > 0 {
            steps.extend(self.case.scopes.iter().copied().map(Step::Emergency));
        }
        if moment.left.crashes > 0 {
            steps.push(Step::Crash);
        }
        if moment.is_quarantined() {
            steps.push(Step::Vouch);
        }
        if moment.books.is_recovering() {
            steps.push(Step::Find(Found::AllButOne));
        }
        if known < self.case.devices.len() {
            steps.push(Step::Find(Found::All));
        }
    }
}

impl Model for Lives {
    type State = Moment;
    type Action = Step;

    fn init_states(&self) -> Vec<Moment> {
        vec![self.begin()]
    }

    fn actions(&self, moment: &Moment, steps: &mut Vec<Step>) {
        if moment.broken.is_some() {
            return;
        }
        for client in 0..self.case.clients.len() {
            self.steps_of(moment, client, steps);
        }
        self.steps_of_all(moment, steps);
    }

    fn next_state(&self, moment: &Moment, step: Step) -> Option<Moment> {
        let mut next = moment.clone();
        self.take(&mut next, step);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let events = events_of(&self.case);
        let events = events.map(|event| Property::sometimes(event.name, event.happens));
        judge::properties().into_iter().chain(events).collect()
    }
}
