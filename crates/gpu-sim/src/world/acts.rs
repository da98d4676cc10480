//! What clients and operators do, and what they make of the answers.

use gpu_broker::{AcquireError, Clock, LeaseCommandError};
use gpu_lease::{
    Command, Cordon, DeviceKey, DrainNotice, Emergency, Lease, LeaseError, LeaseId, Ms, Phase,
    ReclaimStage, Targets,
};

use super::client::{Call, Client, Line, Reply, Sent, State, is_fair, is_over_as};
use super::oracle::{KEPT, require};
use super::rows::Watch;
use super::{Checked, World, some_key};
use crate::dice::Dice;

impl World {
    /// Some client does something.
    pub(super) fn act(&mut self, dice: &mut Dice) -> Checked {
        let who = dice.below(self.clients.len() as u64) as usize;
        match &self.clients[who].state {
            State::Idle => self.ask(dice, who),
            State::Asking { .. } => {
                if dice.chance(6) {
                    self.vanish(who);
                }
                Ok(())
            }
            State::Waiting { id, line } => {
                let (id, on_line) = (*id, line.is_some());
                self.wait_on(dice, who, id, on_line)
            }
            State::Holding { id } => {
                let id = *id;
                self.hold_on(dice, who, id)
            }
        }
    }

    fn ask(&mut self, dice: &mut Dice, who: usize) -> Checked {
        let client = &mut self.clients[who];
        let again = client.unsure && client.has_key() && dice.chance(80);
        let request = match client.request.take().filter(|_| again) {
            Some(request) => request,
            None => client.think(dice, &self.machine),
        };
        client.unsure = false;
        client.request = Some(request.clone());
        let id = LeaseId::from_bits(dice.bits());
        self.told.entry(id).or_default().asked = self.clock.now().boot;
        let handle = self.handle().clone();
        let line = Line::open(&handle, id);
        let mut call = Call::acquire(&handle, id, request);
        is_taken(&mut call)?;
        self.clients[who].state = State::Asking { id, call, line };
        Ok(())
    }

    /// The connection goes, and whoever held it forgets about it.
    fn vanish(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let state = std::mem::replace(&mut client.state, State::Idle);
        let id = match &state {
            State::Asking { id, .. } | State::Waiting { id, line: Some(_) } => *id,
            State::Idle | State::Waiting { .. } | State::Holding { .. } => return,
        };
        client.unsure = true;
        drop(state);
        self.watch.lock().oracle.let_go.insert(id);
        self.gone.push(id);
    }

    fn wait_on(&mut self, dice: &mut Dice, who: usize, id: LeaseId, on_line: bool) -> Checked {
        match dice.below(100) {
            0..5 if on_line => self.vanish(who),
            0..60 if !on_line => self.send(who, Sent::Renew(id))?,
            60..66 => self.send(who, Sent::Release(id))?,
            _ => {
                if let Some(lease) = self.handle().find(id) {
                    return self.news(who, &lease);
                }
                if !on_line {
                    self.clients[who].state = State::Idle;
                }
            }
        }
        Ok(())
    }

    fn hold_on(&mut self, dice: &mut Dice, who: usize, id: LeaseId) -> Checked {
        match dice.below(100) {
            0..55 => self.send(who, Sent::Renew(id))?,
            55..60 => self.send(who, Sent::Ready(id))?,
            60..72 => self.send(who, Sent::Release(id))?,
            72..92 => self.load(dice, who, id),
            92..97 => {
                // It dies and says nothing.
                let client = &mut self.clients[who];
                if let Some(process) = client.process.take() {
                    self.machine.exit(&process);
                }
                client.state = State::Idle;
            }
            _ => {
                if let Some(lease) = self.handle().find(id) {
                    return self.news(who, &lease);
                }
            }
        }
        Ok(())
    }

    /// The holder's process takes the memory that it was granted, or some of it.
    fn load(&mut self, dice: &mut Dice, who: usize, id: LeaseId) {
        let Some(process) = self.clients[who].process.clone() else {
            return;
        };
        let Some(lease) = self.handle().find(id) else {
            return;
        };
        for part in lease.held().iter().flat_map(|grant| &grant.allocations) {
            let share = dice.pick(&[0, 50, 100, 100]);
            let bytes = part.memory / 100 * share;
            match dice.chance(15) {
                true => self
                    .machine
                    .load_by_child(dice, &process, &part.device, bytes),
                false => self.machine.load(&process, &part.device, bytes),
            }
        }
    }

    pub(super) fn send(&mut self, who: usize, sent: Sent) -> Checked {
        if self.clients[who].calls.len() >= 3 {
            return Ok(());
        }
        let command = match sent {
            Sent::Renew(id) => Command::Renew { id },
            Sent::Ready(id) => Command::Ready { id },
            Sent::Release(id) => Command::Release { id },
        };
        if let Sent::Release(id) = sent {
            self.watch.lock().oracle.let_go.insert(id);
        }
        let mut call = Call::lease(self.handle(), command);
        is_taken(&mut call)?;
        self.clients[who].calls.push((sent, call));
        Ok(())
    }

    /// Everybody hears what there is to hear.
    pub(super) fn listen(&mut self) -> Checked {
        for who in 0..self.clients.len() {
            self.listen_to_acquire(who)?;
            self.listen_on_line(who)?;
            self.listen_to_calls(who)?;
        }
        self.listen_to_operators()
    }

    fn listen_to_acquire(&mut self, who: usize) -> Checked {
        let State::Asking { id, call, .. } = &mut self.clients[who].state else {
            return Ok(());
        };
        let (id, reply) = (*id, call.poll());
        let Some(Reply::Acquire(answer)) = reply else {
            return Ok(());
        };
        let State::Asking { line, .. } = self.leave(who) else {
            return Ok(());
        };
        match answer {
            Ok(lease) => self.was_taken(who, id, &lease, line),
            Err(error) => {
                line.hang_up_politely();
                self.clients[who].unsure = matches!(error, AcquireError::Unavailable(_));
                require(is_fair(&error, self.failed), || {
                    format!("{id} was refused: {error}")
                })
            }
        }
    }

    /// The request became this lease, or was one already.
    fn was_taken(&mut self, who: usize, id: LeaseId, lease: &Lease, line: Line) -> Checked {
        self.heard(lease)?;
        if lease.id != id {
            self.stats.replays += 1;
        }
        if let Some(idempotency) = &lease.request.idempotency {
            let first = *self.keys.entry(idempotency.key.clone()).or_insert(lease.id);
            let forgotten = self.handle().find(first).is_none();
            require(first == lease.id || forgotten, || {
                format!("the same key is {first} and {}", lease.id)
            })?;
            self.keys.insert(idempotency.key.clone(), lease.id);
        }
        let on_line = lease.waiting().is_some() && !lease.request.queue && lease.id == id;
        self.clients[who].state = State::Waiting {
            id: lease.id,
            line: None,
        };
        match on_line {
            true => {
                self.clients[who].state = State::Waiting {
                    id,
                    line: Some(line),
                };
            }
            false => line.hang_up_politely(),
        }
        self.news(who, lease)
    }

    fn listen_on_line(&mut self, who: usize) -> Checked {
        let State::Waiting {
            line: Some(line), ..
        } = &mut self.clients[who].state
        else {
            return Ok(());
        };
        match line.hear() {
            Some(lease) => self.news(who, &lease),
            None => Ok(()),
        }
    }

    /// What a client makes of its lease as it is now.
    fn news(&mut self, who: usize, lease: &Lease) -> Checked {
        self.heard(lease)?;
        if lease.held().is_some() {
            if let State::Waiting { line, .. } = self.leave(who)
                && let Some(line) = line
            {
                line.hang_up_politely();
            }
            self.clients[who].state = State::Holding { id: lease.id };
        } else if lease.end_reason().is_some()
            && let State::Waiting {
                line: Some(line), ..
            } = self.leave(who)
        {
            line.hang_up_politely();
        }
        Ok(())
    }

    fn listen_to_calls(&mut self, who: usize) -> Checked {
        let calls = std::mem::take(&mut self.clients[who].calls);
        for (sent, mut call) in calls {
            match call.poll() {
                None => self.clients[who].calls.push((sent, call)),
                Some(Reply::Lease(answer)) => match answer {
                    Ok(lease) => self.was_done(who, sent, &lease)?,
                    Err(LeaseCommandError::Refused(error)) => self.was_refused(who, sent, error)?,
                    Err(LeaseCommandError::Unavailable(why)) => {
                        require(self.failed, || format!("{sent:?} is not answered: {why}"))?;
                    }
                },
                Some(_) => return Err("another answer than to a command about a lease".to_owned()),
            }
        }
        Ok(())
    }

    fn was_done(&mut self, who: usize, sent: Sent, lease: &Lease) -> Checked {
        self.heard(lease)?;
        let now = self.clock.now().boot;
        match sent {
            Sent::Renew(id) if lease.held().is_some() => {
                let until = now + lease.request.ttl;
                self.watch.lock().oracle.promise(id, until);
                if self.clients[who].state.is_about(id) {
                    return self.news(who, lease);
                }
            }
            Sent::Release(id) => {
                let over = lease.held().is_none() && lease.waiting().is_none();
                require(over, || format!("{id} was released and is {lease:?}"))?;
                self.lose(who, id);
            }
            Sent::Renew(_) | Sent::Ready(_) => {}
        }
        Ok(())
    }

    /// Who hears that a lease is over believes it, if it is so: by what is durable, and for readers.
    fn was_refused(&mut self, who: usize, sent: Sent, error: LeaseError) -> Checked {
        let id = sent.id();
        let seen = self.handle().find(id);
        let watch = self.watch.lock();
        let row = watch.rows.leases.get(&id);
        let fair = is_over_as(error, row) && is_over_as(error, seen.as_deref());
        require(fair, || {
            format!("{sent:?} was refused ({error}) for {row:?}\n  readers see {seen:?}")
        })?;
        drop(watch);
        if !matches!(error, LeaseError::NotGranted) {
            self.lose(who, id);
        }
        Ok(())
    }

    /// Every answer about a lease: it is durable, and nothing that was said before is untrue.
    pub(super) fn heard(&mut self, lease: &Lease) -> Checked {
        let id = lease.id;
        if lease.is_durable() {
            let watch = self.watch.lock();
            let row = watch.rows.leases.get(&id);
            let stored = row.is_some_and(|row| row.revision >= lease.revision);
            // Answered, and forgotten by the same turn.
            let old = matches!(&lease.phase, Phase::Ended(ending)
                if ending.at.boot + KEPT <= self.clock.now().boot);
            require(stored || old, || {
                format!("answered and not durable: {lease:?}\n  {row:?}")
            })?;
        }
        let told = self.told.entry(id).or_default();
        let fence = lease.grant().map(|grant| grant.fence);
        let same = told.fence.is_none() || fence.is_none() || told.fence == fence;
        require(same, || {
            format!("{id} was told {:?} and hears of {fence:?}", told.fence)
        })?;
        let over = lease.end_reason().is_some();
        // Answers of one turn may be heard in any order.
        let later = told.over.is_some_and(|revision| revision <= lease.revision);
        require(over || !later, || format!("{id} was over and is {lease:?}"))?;
        told.fence = told.fence.or(fence);
        if over {
            told.over = told.over.or(Some(lease.revision));
        }
        Ok(())
    }

    /// This lease is over, and the client goes on without it if it still has it.
    fn lose(&mut self, who: usize, lease: LeaseId) {
        if self.clients[who].state.is_about(lease) {
            self.clients[who].state = State::Idle;
        }
    }

    /// The client has nothing any more; what it had is answered.
    fn leave(&mut self, who: usize) -> State {
        std::mem::replace(&mut self.clients[who].state, State::Idle)
    }

    pub(super) fn operate(&mut self, dice: &mut Dice) -> Checked {
        let device = some_key(dice, &self.machine);
        let by = "root".to_owned();
        let notice = DrainNotice {
            grace: dice.maybe(70, &[Ms(0), Ms(3_000), Ms(30_000)]),
            reason: "maintenance".to_owned(),
            by: by.clone(),
        };
        let some_lease = self.some_lease(dice);
        let call = match (dice.below(10), some_lease) {
            (0..2, _) => {
                let until = dice.maybe(70, &[Ms(2_000), Ms(30_000)]);
                let until = until.map(|length| self.clock.now().after(length));
                let reason = "hot".to_owned();
                let cordon = Cordon { reason, by, until };
                self.order_device(Command::Cordon { device, cordon })
            }
            (2..5, _) => self.order_device(Command::Uncordon { device, by }),
            (5, _) => self.order_device(Command::DrainDevice { device, notice }),
            (6, _) => {
                self.vouch_for(std::slice::from_ref(&device));
                self.order_device(Command::ClearQuarantine { device, by })
            }
            (7, Some(id)) => self.order_lease(Command::DrainLease { id, notice }),
            (_, Some(id)) => {
                let reason = "needed elsewhere".to_owned();
                self.order_lease(Command::Revoke { id, reason, by })
            }
            (_, None) => return Ok(()),
        };
        self.operate_by(Vec::new(), call)
    }

    fn order_device(&self, command: Command) -> Call {
        self.watch.lock().oracle.acts.order(&command);
        Call::device(self.handle(), command)
    }

    fn order_lease(&self, command: Command) -> Call {
        self.watch.lock().oracle.acts.order(&command);
        Call::lease(self.handle(), command)
    }

    /// `concerned` are over when it is answered.
    pub(super) fn operate_by(&mut self, concerned: Vec<LeaseId>, mut call: Call) -> Checked {
        self.turbulent = true;
        is_taken(&mut call)?;
        self.operators.push((concerned, call));
        Ok(())
    }

    fn some_lease(&mut self, dice: &mut Dice) -> Option<LeaseId> {
        let ids: Vec<LeaseId> = self
            .clients
            .iter()
            .filter_map(|client| match client.state {
                State::Holding { id } | State::Waiting { id, .. } => Some(id),
                State::Idle | State::Asking { .. } => None,
            })
            .collect();
        (!ids.is_empty()).then(|| dice.pick(&ids))
    }

    /// An administrator says that what is quarantined on these devices is gone.
    pub(super) fn vouch_for(&mut self, devices: &[DeviceKey]) {
        let Watch { rows, oracle, .. } = &mut *self.watch.lock();
        let is_there = |lease: &&Lease| match &lease.phase {
            Phase::Reclaiming(grant, reclaim) if reclaim.stage == ReclaimStage::Quarantined => {
                devices.iter().any(|device| grant.on(device).is_some())
            }
            Phase::Waiting(_) | Phase::Held(_) | Phase::Reclaiming(..) | Phase::Ended(_) => false,
        };
        let there = rows.leases.values().filter(is_there);
        oracle.vouched.extend(there.map(|lease| lease.id));
    }

    pub(super) fn emergency(&mut self, dice: &mut Dice) -> Checked {
        self.stats.emergencies += 1;
        let targets = match dice.below(4) {
            0 => Targets::All,
            1 => Targets::Devices(vec![some_key(dice, &self.machine)]),
            2 => match self.some_lease(dice) {
                Some(id) => Targets::Leases(vec![id]),
                None => Targets::Stuck,
            },
            _ => Targets::Stuck,
        };
        let emergency = Emergency {
            targets,
            reason: "fire".to_owned(),
            by: "root".to_owned(),
            kill: dice.chance(50),
            cordon: dice.chance(10),
            force_unsafe: dice.chance(20),
        };
        let concerned = self.concerned(&emergency.targets);
        if emergency.force_unsafe {
            let Watch { oracle, .. } = &mut *self.watch.lock();
            oracle.vouched.extend(&concerned);
        }
        let order = Command::Emergency(emergency.clone());
        self.watch.lock().oracle.acts.order(&order);
        let call = Call::emergency(self.handle(), emergency);
        self.operate_by(concerned, call)
    }

    /// What an emergency is about, as far as it is stored.
    fn concerned(&self, targets: &Targets) -> Vec<LeaseId> {
        let watch = self.watch.lock();
        let is_concerned = |lease: &&Lease| match targets {
            Targets::All => !matches!(lease.phase, Phase::Ended(_)),
            Targets::Devices(keys) => {
                let grant = lease.occupying();
                grant.is_some_and(|grant| keys.iter().any(|key| grant.on(key).is_some()))
            }
            Targets::Leases(ids) => ids.contains(&lease.id),
            Targets::Stuck => matches!(lease.phase, Phase::Reclaiming(..)),
        };
        let leases = watch.rows.leases.values().filter(is_concerned);
        leases.map(|lease| lease.id).collect()
    }

    fn listen_to_operators(&mut self) -> Checked {
        let calls = std::mem::take(&mut self.operators);
        for (concerned, mut call) in calls {
            match call.poll() {
                None => self.operators.push((concerned, call)),
                Some(Reply::Emergency(Ok(ended))) => {
                    self.all_ended(&ended)?;
                    self.all_ended(&concerned)?;
                }
                Some(Reply::Lease(Ok(lease))) => self.heard(&lease)?,
                Some(reply) => require(self.failed || !reply.is_unavailable(), || {
                    "an operator is not answered".to_owned()
                })?,
            }
        }
        Ok(())
    }

    /// A turn that went well answers everybody who asked before it.
    pub(super) fn all_are_answered(&self) -> Checked {
        let asks = |client: &&Client| {
            matches!(client.state, State::Asking { .. }) || !client.calls.is_empty()
        };
        let left = self.clients.iter().find(asks).map(|client| client.name);
        let left = left.or(self.operators.first().map(|_| "an operator"));
        require(left.is_none(), || format!("{left:?} is never answered"))
    }

    /// What an emergency names is over, for readers too: its fence is no longer current.
    fn all_ended(&mut self, ended: &[LeaseId]) -> Checked {
        for id in ended {
            let lease = self.handle().find(*id);
            let over = lease
                .as_ref()
                .is_none_or(|lease| lease.end_reason().is_some());
            require(over, || {
                format!("an emergency ended {id}, and it is {lease:?}")
            })?;
            if let Some(lease) = lease {
                self.heard(&lease)?;
            }
        }
        Ok(())
    }
}

/// So few ask at once that there is room for everybody, and a broker that runs takes it.
fn is_taken(call: &mut Call) -> Checked {
    require(call.poll().is_none(), || {
        "a broker that runs did not take a message".to_owned()
    })
}

/// The broker is gone, and with it every connection.
pub(super) fn lose_connections(clients: &mut [Client]) {
    for client in clients {
        client.calls.clear();
        if matches!(
            client.state,
            State::Asking { .. } | State::Waiting { line: Some(_), .. }
        ) {
            client.unsure = true;
            client.state = State::Idle;
        }
    }
}
