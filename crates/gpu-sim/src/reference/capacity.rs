//! The capacity formula as the design prints it, and devices coming and going.

use gpu_lease::{
    At, Cordon, Device, DeviceKey, DeviceSettings, DrainNotice, DrainSource, Effect, EndReason,
    Lease, Ms, Phase, Reading, ReclaimStage, Telemetry, Usage,
};

use super::{Card, LOST_AFTER, Reference, is_on, occupied, policy};

/// Three polls of a second each.
const STALE_AFTER: Ms = Ms(3000);

impl Reference {
    /// What the policy says of a device.
    pub fn settings(&self, device: &Device) -> DeviceSettings {
        policy::device_settings(&self.policy, device)
    }

    /// Total minus reserve.
    pub fn grantable(&self, card: &Card) -> u64 {
        let reserve = self.settings(&card.device).reserve;
        card.device.memory_total.saturating_sub(reserve)
    }

    /// Total minus reserve minus the charge of every lease minus foreign use.
    pub fn free(&self, card: &Card) -> u64 {
        let usage = self.usage(card);
        let left = i128::from(self.grantable(card))
            - i128::from(usage.charged)
            - i128::from(usage.foreign);
        u64::try_from(left.max(0)).expect("what is free is less than the total")
    }

    /// What is taken of a device.
    pub fn usage(&self, card: &Card) -> Usage {
        let mut usage = Usage::default();
        let used = card.reading.as_ref().map_or(0, |r| r.memory_used);
        let mut foreign = i128::from(used);
        for lease in self.occupants(card) {
            let granted = granted_on(lease, card);
            let observed = observed(lease, card);
            foreign -= i128::from(observed.unwrap_or(granted));
            usage.granted += granted;
            usage.charged += charge(lease, card);
            usage.exclusive |= is_alone(lease, card);
            match &lease.phase {
                Phase::Held(grant) => usage.loading += u32::from(grant.loading),
                _ => usage.reclaiming += charge(lease, card),
            }
        }
        usage.foreign = u64::try_from(foreign.max(0)).expect("not more than was used");
        usage
    }

    /// The leases that hold something of a device, by id.
    pub fn occupants(&self, card: &Card) -> Vec<&Lease> {
        let here = |lease: &&Lease| is_on(lease, &card.device.key);
        let mut all: Vec<&Lease> = self.leases.iter().filter(here).collect();
        all.sort_by_key(|lease| lease.id);
        all
    }

    /// Whether the numbers are too old to grant by.
    pub(super) fn is_stale(&self, card: &Card, at: At) -> bool {
        if card.device.telemetry == Telemetry::Unsupported {
            return false;
        }
        match &card.reading {
            None => true,
            Some(reading) => {
                let too_old = reading.taken + STALE_AFTER < at.boot;
                let too_early = card.read_after.is_some_and(|after| reading.taken <= after);
                too_old || too_early
            }
        }
    }

    /// Why it takes no new leases: the operator's word before the file's.
    pub(super) fn cordon_of(&self, card: &Card) -> Option<String> {
        let by_operator = self.cordons.iter().find(|(key, _)| *key == card.device.key);
        match by_operator {
            Some((_, cordon)) => Some(cordon.reason.clone()),
            None => self.settings(&card.device).cordon,
        }
    }

    pub(super) fn inventory(&mut self, at: At, found: Vec<Device>, effects: &mut Vec<Effect>) {
        let mut cards = self.cards.take().unwrap_or_default();
        for card in &mut cards {
            let is_there = found.iter().any(|device| device.key == card.device.key);
            if !is_there && card.lost_since.is_none() {
                card.lost_since = Some(at);
                card.reading = None;
                once(effects, Effect::Read);
            }
        }
        for device in found {
            match cards.iter_mut().find(|c| c.device.key == device.key) {
                Some(card) if card.lost_since.is_none() => card.device = device,
                Some(card) => *card = Card::new(device),
                None => cards.push(Card::new(device)),
            }
        }
        cards.sort_by(|a, b| a.device.key.cmp(&b.device.key));
        self.cards = Some(cards);
    }

    pub(super) fn telemetry(&mut self, readings: Vec<Reading>) {
        for reading in readings {
            for card in self.cards.iter_mut().flatten() {
                if card.device.key == reading.device {
                    card.reading = Some(reading.clone());
                }
            }
        }
    }

    pub(super) fn cordon(&mut self, device: &DeviceKey, cordon: Cordon) {
        self.cordons.retain(|(key, _)| key != device);
        self.cordons.push((device.clone(), cordon));
        self.cordons.sort_by(|a, b| a.0.cmp(&b.0));
    }

    pub(super) fn uncordon(&mut self, device: &DeviceKey) {
        self.cordons.retain(|(key, _)| key != device);
        for lease in &mut self.leases {
            if is_on(lease, device)
                && let Phase::Held(grant) = &mut lease.phase
            {
                grant.drains.remove(&DrainSource::Device);
            }
        }
    }

    pub(super) fn drain_device(&mut self, at: At, device: &DeviceKey, notice: &DrainNotice) {
        let cordon = Cordon {
            reason: notice.reason.clone(),
            by: notice.by.clone(),
            until: None,
        };
        self.cordon(device, cordon);
        for id in self.ids(|lease| is_on(lease, device)) {
            self.ask_to_go(at, id, DrainSource::Device, notice);
        }
    }

    pub(super) fn clear_quarantine(&mut self, at: At, device: &DeviceKey) {
        let quarantined = |lease: &Lease| match &lease.phase {
            Phase::Reclaiming(_, reclaim) => reclaim.stage == ReclaimStage::Quarantined,
            _ => false,
        };
        for id in self.ids(|lease| is_on(lease, device) && quarantined(lease)) {
            self.end(at, id, EndReason::Released);
        }
    }

    /// Cordons lift by themselves; devices that stay away are given up.
    pub(super) fn expire_devices(&mut self, at: At, effects: &mut Vec<Effect>) {
        for (device, cordon) in self.cordons.clone() {
            if cordon.until.is_some_and(|until| until.boot <= at.boot) {
                self.uncordon(&device);
            }
        }
        if at.boot < self.grace_until || self.cards.is_none() {
            return;
        }
        let given_up = |card: &Card| {
            let since = card.lost_since.map(|since| since.boot + LOST_AFTER);
            since.is_some_and(|gone| gone <= at.boot)
        };
        let cards = self.cards.take();
        let (gone, there) = cards
            .into_iter()
            .flatten()
            .partition::<Vec<Card>, _>(given_up);
        self.cards = Some(there);
        let is_on_any = |lease: &Lease| gone.iter().any(|card| is_on(lease, &card.device.key));
        for id in self.ids(is_on_any) {
            self.lose(at, id, effects);
        }
    }

    /// What is held elsewhere as well has to be taken back there.
    fn lose(&mut self, at: At, id: gpu_lease::LeaseId, effects: &mut Vec<Effect>) {
        let lease = self.find(id).expect("it was just listed").clone();
        let parts = occupied(&lease).map(|grant| grant.allocations.clone());
        let mut parts = parts.into_iter().flatten();
        let elsewhere = parts.any(|part| self.card(&part.device).is_some());
        match lease.phase {
            _ if !elsewhere => self.end(at, id, EndReason::DeviceLost),
            Phase::Held(_) => self.end_by_force(at, id, EndReason::DeviceLost, effects),
            _ => {}
        }
    }

    /// An exclusive device tells what is left on it only by a later reading.
    pub(super) fn wait_for_reading(&mut self, at: At, lease: &Lease) {
        for card in self.cards.iter_mut().flatten() {
            let alone = is_on(lease, &card.device.key) && is_alone(lease, card);
            if alone && card.device.telemetry == Telemetry::Supported {
                card.read_after = Some(at.boot);
            }
        }
    }
}

impl Card {
    fn new(device: Device) -> Self {
        Self {
            device,
            reading: None,
            lost_since: None,
            read_after: None,
        }
    }
}

pub(super) fn granted_on(lease: &Lease, card: &Card) -> u64 {
    let parts = occupied(lease).into_iter().flat_map(|g| &g.allocations);
    let mine = parts.filter(|part| part.device == card.device.key);
    mine.map(|part| part.memory).sum()
}

pub(super) fn is_alone(lease: &Lease, card: &Card) -> bool {
    let mut parts = occupied(lease).into_iter().flat_map(|g| &g.allocations);
    parts.any(|part| part.device == card.device.key && part.exclusive)
}

/// The larger of granted and observed.
pub(super) fn charge(lease: &Lease, card: &Card) -> u64 {
    granted_on(lease, card).max(observed(lease, card).unwrap_or(0))
}

/// `None` if no process there belongs to the lease.
fn observed(lease: &Lease, card: &Card) -> Option<u64> {
    let mut sum = None;
    for process in card.reading.iter().flat_map(|r| &r.processes) {
        if process.lease == Some(lease.id) {
            sum = Some(sum.unwrap_or(0) + process.memory.unwrap_or(0));
        }
    }
    sum
}

pub(super) fn once(effects: &mut Vec<Effect>, effect: Effect) {
    if !effects.contains(&effect) {
        effects.push(effect);
    }
}
