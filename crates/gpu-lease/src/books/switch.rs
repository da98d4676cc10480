//! From one policy to another, over what is held.

use alloc::borrow::Cow;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use super::{Books, Turn, ids};
use crate::canary::{Canary, is_planted};
use crate::command::{Event, EventKind, Expect, Switch, Switched, Unexpected};
use crate::ids::LeaseId;
use crate::lease::{Deadline, Drain, DrainSource, EndReason, Lease, Phase};
use crate::plan::{Fate, LeaseFate, Plan, Planned, Planner};
use crate::policy::{Policy, ReloadScope};
use crate::tenancy::as_member;
use crate::time::At;

impl Books {
    /// What `policy` would mean now for what is held and what waits. Switching to it does just that.
    pub fn plan(&self, at: At, policy: &Policy) -> Plan {
        self.plan_after(at, policy, None)
    }

    /// The same, with what `planned` says of leases that did not change since it was made.
    fn plan_after(&self, at: At, policy: &Policy, planned: Option<&Planned>) -> Plan {
        if *policy == *self.policy {
            return Plan::default();
        }
        let planned = planned.filter(|planned| self.still_says(planned, policy));
        self.plan_of(at, &self.policy, policy, planned)
    }

    fn plan_of(&self, at: At, from: &Policy, to: &Policy, planned: Option<&Planned>) -> Plan {
        let leases: Vec<&Lease> = self.leases.values().collect();
        let devices = self.devices().collect();
        Planner::new(from, to, &leases, devices, at).plan(planned)
    }

    /// Whether a plan was made of this policy against the live one, and not by rules that look at books which have
    /// changed since.
    fn still_says(&self, planned: &Planned, policy: &Policy) -> bool {
        let looks = self.shares.is_read() || policy.rules.reads_standing();
        planned.live == self.policy.source.hash
            && planned.to == policy.source.hash
            && (!looks || planned.revision == self.counters.revision)
    }

    pub(super) fn switch(
        &mut self,
        turn: &mut Turn,
        switch: Switch,
    ) -> Result<Option<Switched>, Unexpected> {
        let Switch {
            policy,
            changes,
            planned,
            expect,
        } = switch;
        let plan = self.plan_after(turn.at, &policy, planned.as_deref());
        self.expected(&expect, &plan)?;
        if *policy == *self.policy {
            return Ok(None);
        }
        self.counters.generation += 1;
        let before = mem::replace(&mut self.policy, policy);
        self.remember_unseen(before);
        turn.switched = true;
        self.reindex_deadlines();
        self.resettle_devices();
        self.refilter();
        self.recount();
        let generation = self.counters.generation;
        turn.events.push(Event {
            kind: EventKind::PolicySwitched,
            lease: None,
            device: None,
            by: None,
            text: format!("policy generation {generation} is live: {changes} ({plan})"),
        });
        self.in_bulk(|books| {
            books.find_tenants(turn);
            if !is_planted(Canary::HalfAppliedPolicy) {
                books.carry_out(turn, &plan);
            }
        });
        Ok(Some(Switched { generation, plan }))
    }

    /// Writes down the tenants that the live policy finds for those who claim none.
    fn find_tenants(&mut self, turn: &mut Turn) {
        let open = self.leases.values();
        let open = open.filter(|lease| !matches!(lease.phase, Phase::Ended(_)));
        let moved = open.filter_map(|lease| {
            let membership = self.membership(lease);
            match as_member(&lease.request, &membership) {
                Cow::Owned(request) => Some((lease.id, request)),
                Cow::Borrowed(_) => None,
            }
        });
        for (id, request) in moved.collect::<Vec<_>>() {
            let lease = self.leases[&id].clone();
            self.put(turn, Lease { request, ..lease });
        }
    }

    /// Notes the leases that a switch could not judge for want of their devices.
    fn remember_unseen(&mut self, before: Arc<Policy>) {
        let unseen = self.leases.values().filter(|lease| self.is_unseen(lease));
        let unseen: BTreeSet<LeaseId> = ids(unseen).into_iter().collect();
        if !unseen.is_empty() {
            let (_, leases) = self.unseen.get_or_insert((before, BTreeSet::new()));
            leases.extend(unseen);
        }
    }

    pub(super) fn is_unseen(&self, lease: &Lease) -> bool {
        let parts = lease.held().map(|grant| grant.allocations.as_slice());
        let mut parts = parts.unwrap_or(&[]).iter();
        parts.any(|part| !self.is_known(&part.device))
    }

    /// Judges what no switch could before its devices were known: by the policy from before the first of
    /// those switches and the live one.
    ///
    /// It asks to go whom the live policy newly refuses, and withdraws what has no cause any more; deadlines
    /// that were told stay. What is left: a broker that restarts between the switch and the inventory has
    /// forgotten the policy from before, and what it could not judge waits for the next switch.
    pub(super) fn judge_unseen(&mut self, turn: &mut Turn) {
        let Some((from, noted)) = self.unseen.take() else {
            return;
        };
        let is_there = |id: &LeaseId| self.leases.get(id).is_some_and(|l| l.held().is_some());
        let (later, now): (BTreeSet<LeaseId>, BTreeSet<LeaseId>) = noted
            .into_iter()
            .filter(is_there)
            .partition(|id| self.is_unseen(&self.leases[id]));
        let mut plan = self.plan_of(turn.at, &from, &self.policy, None);
        plan.denied.clear();
        plan.held
            .retain(|fate| now.contains(&fate.id) && self.is_news(fate));
        // Holds were cut by the switches themselves.
        for fate in &mut plan.held {
            fate.shorten = None;
        }
        if !later.is_empty() {
            self.unseen = Some((from, later));
        }
        self.in_bulk(|books| books.carry_out(turn, &plan));
    }

    fn is_news(&self, fate: &LeaseFate) -> bool {
        let drains = self.leases[&fate.id].held().map(|grant| &grant.drains);
        let is_asked = drains.is_some_and(|drains| drains.contains_key(&DrainSource::Policy));
        match fate.fate {
            Fate::Withdraw => true,
            Fate::Drain(_) | Fate::Force => !is_asked,
            Fate::Keep | Fate::Shorten(_) => false,
        }
    }

    /// Refuses a switch of which something else is true than was expected.
    fn expected(&self, expect: &Expect, plan: &Plan) -> Result<(), Unexpected> {
        let live = &self.policy.source.hash;
        let fits = expect.live.as_ref().is_none_or(|wanted| wanted == live)
            && expect
                .within
                .as_ref()
                .is_none_or(|most| plan.is_within(most))
            && expect
                .exactly
                .as_ref()
                .is_none_or(|same| plan.is_like(same));
        match fits {
            true => Ok(()),
            false => Err(Unexpected {
                live: live.clone(),
                plan: plan.clone(),
            }),
        }
    }

    fn resettle_devices(&mut self) {
        let policy = self.policy.clone();
        for state in self.states_mut() {
            state.settings = policy.device_settings(&state.device);
        }
        self.recharge_all();
    }

    fn carry_out(&mut self, turn: &mut Turn, plan: &Plan) {
        for fate in &plan.held {
            self.meet(turn, fate);
        }
        for (id, _) in &plan.denied {
            if let Some(lease) = self.leases.get(id).cloned() {
                self.end(turn, lease, EndReason::Denied);
            }
        }
    }

    fn meet(&mut self, turn: &mut Turn, fate: &LeaseFate) {
        if let Some(until) = fate.shorten {
            self.shorten(turn, fate.id, until);
        }
        match fate.fate {
            Fate::Keep => {}
            Fate::Withdraw => self.withdraw(turn, fate.id, DrainSource::Policy),
            Fate::Shorten(until) => self.shorten(turn, fate.id, until),
            Fate::Drain(deadline) => self.drain_by_policy(turn, fate, deadline),
            Fate::Force => {
                let lease = self.leases[&fate.id].clone();
                let text = fate.because.words();
                self.end_by_force(turn, lease, EndReason::Policy, &text);
            }
        }
    }

    fn shorten(&mut self, turn: &mut Turn, id: LeaseId, until: Deadline) {
        let mut lease = self.leases[&id].clone();
        if let Phase::Held(grant) = &mut lease.phase {
            grant.hold_until = Some(until);
            self.put(turn, lease);
        }
    }

    fn drain_by_policy(&mut self, turn: &mut Turn, fate: &LeaseFate, deadline: Deadline) {
        let mut lease = self.leases[&fate.id].clone();
        let is_kept = fate.because.rule.is_empty() && self.policy.reload.scope != ReloadScope::All;
        let asked = lease
            .held()
            .and_then(|grant| grant.drains.get(&DrainSource::Policy));
        let reason = match asked {
            // A drain that only moved keeps its words.
            Some(asked) if is_kept => asked.reason.clone(),
            _ => fate.because.words(),
        };
        let drain = Drain {
            deadline,
            reason,
            by: format!("policy generation {}", self.counters.generation),
            since: asked.map_or(turn.at, |asked| asked.since),
        };
        if asked.is_none_or(|asked| (asked.deadline, &asked.reason) != (deadline, &drain.reason)) {
            self.add_drain(turn, &mut lease, DrainSource::Policy, drain);
        }
    }
}
