//! What happens to devices: found and lost, read, cordoned and drained.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Books, Turn, ids};
use crate::canary::{Canary, is_planted};
use crate::capacity::{DeviceState, Share};
use crate::command::{Cordon, DrainNotice, Effect, Event, EventKind, UnknownDevice};
use crate::device::{Device, Reading, Telemetry};
use crate::ids::{DeviceKey, LeaseId};
use crate::lease::{Deadline, DrainSource, EndReason, Grant, Lease, Phase, ReclaimStage};
use crate::size::Bytes;
use crate::time::{At, BootMs, Ms};

/// How long leases of a lost device are kept in case it comes back.
pub(super) const LOST_GRACE_MS: Ms = Ms::from_secs(60);

impl Books {
    /// Takes the devices that discovery sees. What was seen before and is not there is lost;
    /// what was never seen by this broker is only not seen yet.
    pub(super) fn inventory(&mut self, turn: &mut Turn, found: Vec<Device>) {
        let mut known = self.devices.take().unwrap_or_default();
        let seen: BTreeSet<DeviceKey> = found.iter().map(|device| device.key.clone()).collect();
        for device in found {
            let key = device.key.clone();
            let state = self.found(turn, known.remove(&key), device);
            known.insert(key, state);
        }
        for (key, state) in known.iter_mut().filter(|(key, _)| !seen.contains(key)) {
            lose(turn, key, state);
        }
        self.devices = Some(known);
        self.refilter();
        self.reoccupy();
        if is_planted(Canary::RecoveryDropsUnknownDevice) {
            for id in ids(self.leases.values().filter(|lease| self.is_unseen(lease))) {
                self.lose_lease(turn, id);
            }
        }
        self.judge_unseen(turn);
    }

    fn found(&self, turn: &mut Turn, known: Option<DeviceState>, device: Device) -> DeviceState {
        let settings = self.policy.device_settings(&device);
        let Some(mut state) = known.filter(|state| state.lost_since.is_none()) else {
            let memory = Bytes(device.memory_total);
            let text = format!("{} with {memory} is found", device.name);
            turn.device_event(EventKind::DeviceFound, &device.key, text);
            let cordon = self.cordons.get(&device.key).cloned();
            return DeviceState::new(device, settings, cordon);
        };
        state.device = device;
        state.settings = settings;
        state
    }

    /// Puts every lease back on its devices, after the set of devices changed.
    fn reoccupy(&mut self) {
        let Some(known) = &mut self.devices else {
            return;
        };
        for lease in self.leases.values() {
            let parts = lease.occupying().into_iter();
            for part in parts.flat_map(|grant| &grant.allocations) {
                if let Some(state) = known.get_mut(&part.device) {
                    state.occupants.insert(lease.id);
                }
            }
        }
        self.recharge_all();
    }

    /// Computes what policy and leases mean for every device.
    pub(super) fn recharge_all(&mut self) {
        let keys: Vec<DeviceKey> = self
            .devices()
            .map(|state| state.device.key.clone())
            .collect();
        for key in keys {
            self.charge(&key);
        }
    }

    pub(super) fn telemetry(&mut self, turn: &mut Turn, readings: Vec<Reading>) {
        for reading in readings {
            let key = reading.device.clone();
            let Some(state) = self.state_mut(&key) else {
                continue;
            };
            let was_over = state.overcommitted();
            state.take_reading(reading);
            self.charge(&key);
            self.note_overcommitment(turn, &key, was_over);
        }
    }

    fn note_overcommitment(&mut self, turn: &mut Turn, key: &DeviceKey, was_over: bool) {
        let Some(state) = self.state_mut(key) else {
            return;
        };
        if state.overcommitted() && !was_over {
            let used = Bytes(state.usage.charged.saturating_add(state.usage.foreign));
            let text = format!("{used} are taken of {}", Bytes(state.grantable()));
            turn.device_event(EventKind::DeviceOvercommitted, key, text);
        }
    }

    pub(super) fn cordon(
        &mut self,
        turn: &mut Turn,
        device: &DeviceKey,
        cordon: Cordon,
    ) -> Result<(), UnknownDevice> {
        self.require(device)?;
        self.set_cordon(turn, device, Some(cordon));
        Ok(())
    }

    pub(super) fn uncordon(
        &mut self,
        turn: &mut Turn,
        device: &DeviceKey,
        by: &str,
    ) -> Result<(), UnknownDevice> {
        self.require(device)?;
        self.lift_cordon(turn, device);
        turn.by(by);
        Ok(())
    }

    pub(super) fn drain_device(
        &mut self,
        turn: &mut Turn,
        device: &DeviceKey,
        notice: &DrainNotice,
    ) -> Result<(), UnknownDevice> {
        let occupants = self.require(device)?.occupants.clone();
        let cordon = Cordon {
            reason: notice.reason.clone(),
            by: notice.by.clone(),
            until: None,
        };
        self.set_cordon(turn, device, Some(cordon));
        for id in occupants {
            let lease = self.leases[&id].clone();
            if lease.held().is_some() {
                self.ask_to_go(turn, lease, DrainSource::Device, notice);
            }
        }
        Ok(())
    }

    pub(super) fn clear_quarantine(
        &mut self,
        turn: &mut Turn,
        device: &DeviceKey,
        by: &str,
    ) -> Result<(), UnknownDevice> {
        self.require(device)?;
        let here = |lease: &&Lease| {
            lease
                .grant()
                .is_some_and(|grant| grant.on(device).is_some())
        };
        let quarantined = |lease: &&Lease| matches!(&lease.phase, Phase::Reclaiming(_, reclaim) if reclaim.stage == ReclaimStage::Quarantined);
        for id in ids(self.stuck().filter(here).filter(quarantined)) {
            self.clear_quarantined(turn, id, by);
        }
        Ok(())
    }

    pub(super) fn set_cordon(
        &mut self,
        turn: &mut Turn,
        device: &DeviceKey,
        cordon: Option<Cordon>,
    ) {
        let before = match &cordon {
            Some(cordon) => self.cordons.insert(device.clone(), cordon.clone()),
            None => self.cordons.remove(device),
        };
        if before == cordon {
            return;
        }
        if let Some(state) = self.state_mut(device) {
            state.cordon.clone_from(&cordon);
        }
        match &cordon {
            Some(cordon) => {
                let text = format!("takes no new leases: {}", cordon.reason);
                turn.device_event(EventKind::DeviceCordoned, device, text);
                turn.by(&cordon.by);
            }
            None => turn.device_event(
                EventKind::DeviceUncordoned,
                device,
                "takes leases again".into(),
            ),
        }
        turn.cordons.insert(device.clone(), cordon);
    }

    /// By the leases, not by the device: one whose device is not seen yet may stay as well.
    fn lift_cordon(&mut self, turn: &mut Turn, device: &DeviceKey) {
        let here = |lease: &&Lease| lease.held().is_some_and(|grant| grant.on(device).is_some());
        for id in ids(self.leases.values().filter(here)) {
            self.withdraw(turn, id, DrainSource::Device);
        }
        self.set_cordon(turn, device, None);
    }

    /// A cordon of an earlier boot ends at the same civil time.
    pub(super) fn rebase_cordon(&mut self, turn: &mut Turn, device: &DeviceKey) {
        let Some(mut cordon) = self.cordons.get(device).cloned() else {
            return;
        };
        let Some(until) = cordon.until else {
            return;
        };
        let left = Ms(until.wall.0.saturating_sub(turn.at.wall.0));
        cordon.until = Some(Deadline {
            boot: turn.at.boot + left,
            wall: until.wall,
        });
        self.cordons.insert(device.clone(), cordon.clone());
        turn.cordons.insert(device.clone(), Some(cordon));
    }

    pub(super) fn next_device_deadline(&self) -> Option<BootMs> {
        let cordons = self
            .cordons
            .values()
            .filter_map(|cordon| Some(cordon.until?.boot));
        let lost = self
            .devices()
            .filter_map(|state| Some(state.lost_since?.boot + LOST_GRACE_MS));
        let lost = lost.map(|due| due.max(self.grace_until));
        cordons.chain(lost).min()
    }

    pub(super) fn expire_devices(&mut self, turn: &mut Turn) {
        let now = turn.at.boot;
        let over = |until: Option<Deadline>| until.is_some_and(|until| until.boot <= now);
        let cordons = self.cordons.iter().filter(|(_, cordon)| over(cordon.until));
        for device in cordons.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.lift_cordon(turn, &device);
        }
        if now < self.grace_until {
            return;
        }
        let is_given_up = |state: &DeviceState| {
            state
                .lost_since
                .is_some_and(|since| since.boot + LOST_GRACE_MS <= now)
        };
        let given_up: Vec<DeviceState> = self
            .devices
            .iter_mut()
            .flat_map(|devices| devices.extract_if(.., |_, state| is_given_up(state)))
            .map(|(_, state)| state)
            .collect();
        for id in given_up.into_iter().flat_map(|state| state.occupants) {
            self.lose_lease(turn, id);
        }
    }

    /// A device of the lease does not come back: there is nothing left to reclaim of it.
    fn lose_lease(&mut self, turn: &mut Turn, id: LeaseId) {
        let lease = self.leases[&id].clone();
        if lease.occupying().is_none() {
            // It was on another lost device as well.
            return;
        }
        if !self.is_elsewhere(&lease) {
            self.end(turn, lease, EndReason::DeviceLost);
        } else if lease.held().is_some() {
            self.end_by_force(turn, lease, EndReason::DeviceLost, "a device of it is lost");
        }
    }

    /// Whether anything that `lease` holds is on a device that is there.
    fn is_elsewhere(&self, lease: &Lease) -> bool {
        let parts = lease.occupying().map(|grant| grant.allocations.as_slice());
        let mut parts = parts.unwrap_or(&[]).iter();
        parts.any(|part| self.require(&part.device).is_ok())
    }

    pub(super) fn occupy(&mut self, lease: &Lease) {
        let Some(grant) = lease.occupying() else {
            return;
        };
        for part in &grant.allocations {
            if let Some(state) = self.state_mut(&part.device) {
                state.occupants.insert(lease.id);
            }
        }
    }

    pub(super) fn vacate(&mut self, lease: &Lease) {
        let Some(grant) = lease.occupying() else {
            return;
        };
        for part in &grant.allocations {
            if let Some(state) = self.state_mut(&part.device) {
                state.occupants.remove(&lease.id);
            }
        }
    }

    /// Computes what is taken of a device anew.
    pub(super) fn charge(&mut self, key: &DeviceKey) {
        let Some(state) = self.device(key) else {
            return;
        };
        let leases = state.occupants.iter().map(|id| &self.leases[id]);
        let shares: Vec<Share> = leases.filter_map(|lease| share_of(state, lease)).collect();
        if let Some(state) = self.state_mut(key) {
            state.charge(shares.into_iter());
        }
    }

    /// An exclusive device is granted again only after a reading that tells what was left behind.
    pub(super) fn await_reading(&mut self, grant: &Grant, at: At) {
        for part in grant.allocations.iter().filter(|part| part.exclusive) {
            if let Some(state) = self.state_mut(&part.device)
                && state.device.telemetry == Telemetry::Supported
            {
                state.read_after = Some(at.boot);
            }
        }
    }

    fn require(&self, device: &DeviceKey) -> Result<&DeviceState, UnknownDevice> {
        let known = self.device(device);
        known.ok_or_else(|| UnknownDevice(device.clone()))
    }

    pub(super) fn is_known(&self, device: &DeviceKey) -> bool {
        self.require(device).is_ok()
    }

    pub(super) fn state_mut(&mut self, device: &DeviceKey) -> Option<&mut DeviceState> {
        self.devices.as_mut()?.get_mut(device)
    }

    pub(super) fn states_mut(&mut self) -> impl Iterator<Item = &mut DeviceState> {
        self.devices.iter_mut().flat_map(BTreeMap::values_mut)
    }
}

impl Turn {
    pub(super) fn device_event(&mut self, kind: EventKind, device: &DeviceKey, text: String) {
        self.events.push(Event {
            kind,
            lease: None,
            device: Some(device.clone()),
            by: None,
            text: format!("{device} {text}"),
        });
    }
}

fn lose(turn: &mut Turn, key: &DeviceKey, state: &mut DeviceState) {
    if state.lost_since.is_some() {
        return;
    }
    state.lost_since = Some(turn.at);
    state.reading = None;
    turn.effect_once(Effect::Read);
    let text = format!("is lost; its leases end in {LOST_GRACE_MS} unless it comes back");
    turn.device_event(EventKind::DeviceLost, key, text);
}

fn share_of(state: &DeviceState, lease: &Lease) -> Option<Share> {
    let grant = lease.occupying()?;
    let part = grant.on(&state.device.key)?;
    Some(Share {
        granted: part.memory,
        observed: state.observed(lease.id),
        exclusive: part.exclusive,
        loading: grant.loading && lease.held().is_some(),
        reclaiming: lease.held().is_none(),
    })
}
