//! One inventory from what all sources found.
//!
//! What two sources say of the same PCI address, or of the same hardware UUID, is one device; of each
//! fact the most trusted source that knows it is believed. What no device can be is left out, with a
//! note.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use gpu_lease::{Device, DeviceKey, DeviceKind, Telemetry, Vendor};

use crate::pci::PciAddress;
use crate::source::{Discovery, Found, Kind, SourceName};

/// A device that claims more memory than this, in bytes, is not believed.
pub const MAX_MEMORY_BYTES: u64 = 1 << 50;
/// More devices than this of one source are not looked at.
const MAX_DEVICES_OF_SOURCE: usize = 256;
const MAX_NAME_CHARS: usize = 128;
const MAX_ID_CHARS: usize = 128;

/// What the merge depends on besides the findings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) allow_cpu_adapters: bool,
    /// NVML is switched off or has no driver here. If not, an NVIDIA card that only Vulkan sees is
    /// one whose state is unknown, perhaps a lost one under another name.
    pub(crate) nvml_absent: bool,
}

/// The outcome of a merge.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    pub(crate) devices: Vec<Device>,
    pub(crate) directory: Directory,
    pub(crate) notes: Vec<(SourceName, String)>,
}

/// Which device a reading of a source is about.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    targets: BTreeMap<(SourceName, String), Target>,
}

/// A device that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) key: DeviceKey,
    /// Bytes.
    pub(crate) memory_total: u64,
}

impl Directory {
    pub(crate) fn find(&self, source: SourceName, id: &str) -> Option<&Target> {
        self.targets.get(&(source, id.to_owned()))
    }

    pub(crate) fn reads_from(&self, source: SourceName) -> bool {
        self.targets.keys().any(|(name, _)| *name == source)
    }
}

/// Merges. The order of the devices is stable: by PCI address, then the others by id, then the
/// declared ones in their order.
pub(crate) fn merge(known: &BTreeMap<SourceName, Discovery>, rules: Rules) -> Merged {
    let mut cards = Vec::<Card>::new();
    for (source, discovery) in known {
        for found in discovery.found.iter().take(MAX_DEVICES_OF_SOURCE) {
            match cards.iter_mut().find(|card| card.is(*source, found)) {
                Some(card) => card.views.push((*source, found)),
                None => cards.push(Card::new(*source, found)),
            }
        }
    }
    cards.sort_by_cached_key(Card::place);

    let mut merged = Merged::default();
    let mut taken = BTreeSet::new();
    for card in &cards {
        match card.id() {
            Some(id) if taken.insert(id.clone()) => merged.admit(card, &id, rules),
            id => merged.refuse(card, id),
        }
    }
    merged
}

impl Merged {
    fn admit(&mut self, card: &Card<'_>, id: &str, rules: Rules) {
        let key = DeviceKey::local(id);
        let memory_total = card.memory_total();
        let refusal = card.refusal(memory_total, rules);
        let reader = card.reader().filter(|_| memory_total > 0);
        if let Some((source, found)) = reader {
            let target = Target {
                key: key.clone(),
                memory_total,
            };
            let place = (source, found.id.clone());
            self.directory.targets.insert(place, target);
        }
        self.devices.push(Device {
            key,
            name: card.name(),
            index: u32::try_from(self.devices.len()).unwrap_or(u32::MAX),
            vendor: card.vendor(),
            kind: card.kind(),
            pci_bus_id: card.pci.map(|address| address.to_string()),
            nvml_uuid: card.nvml_uuid(),
            driver: card.first(|found| found.driver.as_deref()).map(clean),
            memory_total,
            telemetry: match reader {
                Some(_) => Telemetry::Supported,
                None => Telemetry::Unsupported,
            },
            leasable: refusal.is_none(),
            found_by: card.found_by(),
        });
        if let Some(reason) = refusal {
            self.notes
                .push((card.source(), format!("`{id}` is not leased: {reason}")));
        }
    }

    fn refuse(&mut self, card: &Card<'_>, id: Option<String>) {
        let note = match id {
            Some(id) => format!("left out `{}`: the id `{id}` is taken", card.name()),
            None => format!("left out `{}`: it has no usable id", card.name()),
        };
        self.notes.push((card.source(), note));
    }
}

/// One device and how each source sees it, most trusted first.
struct Card<'a> {
    pci: Option<PciAddress>,
    uuid: Option<&'a str>,
    views: Vec<(SourceName, &'a Found)>,
}

impl<'a> Card<'a> {
    fn new(source: SourceName, found: &'a Found) -> Self {
        Self {
            pci: pci(found),
            uuid: found.uuid.as_deref(),
            views: vec![(source, found)],
        }
    }

    /// Declared devices are never merged into real ones.
    fn is(&self, source: SourceName, found: &Found) -> bool {
        let same_pci = self.pci.is_some() && self.pci == pci(found);
        let same_uuid = self.uuid.is_some() && self.uuid == found.uuid.as_deref();
        source != SourceName::Declared && (same_pci || same_uuid)
    }

    fn source(&self) -> SourceName {
        self.views[0].0
    }

    /// Declared devices all have the same place, so that sorting keeps their order.
    fn place(&self) -> (bool, Reverse<bool>, Option<PciAddress>, Option<String>) {
        let declared = self.source() == SourceName::Declared;
        let id = self.id().filter(|_| !declared);
        (declared, Reverse(self.pci.is_some()), self.pci, id)
    }

    fn first<T>(&self, fact: impl Fn(&'a Found) -> Option<T>) -> Option<T> {
        self.views.iter().find_map(|(_, found)| fact(found))
    }

    fn view(&self, source: SourceName) -> Option<&'a Found> {
        let mut views = self.views.iter();
        views
            .find(|(name, _)| *name == source)
            .map(|(_, found)| *found)
    }

    fn id(&self) -> Option<String> {
        let id = match self.source() {
            SourceName::Declared => self.views[0].1.id.clone(),
            _ => self
                .nvml_uuid()
                .or_else(|| self.pci.map(|address| format!("pci-{address}")))
                .unwrap_or_else(|| self.vulkan_id()),
        };
        is_id(&id).then_some(id)
    }

    fn nvml_uuid(&self) -> Option<String> {
        let uuid = &self.view(SourceName::Nvml)?.id;
        is_id(uuid).then(|| uuid.clone())
    }

    fn vulkan_id(&self) -> String {
        let id = &self.views[0].1.id;
        match self.uuid.filter(|uuid| uuid.len() == 32 && uuid.is_ascii()) {
            Some(uuid) => format!(
                "vk-{}-{}-{}-{}-{}",
                &uuid[..8],
                &uuid[8..12],
                &uuid[12..16],
                &uuid[16..20],
                &uuid[20..]
            ),
            None => format!("vk-{id}"),
        }
    }

    fn name(&self) -> String {
        let name = self.first(|found| found.name.as_deref()).map(clean);
        name.filter(|name| !name.is_empty())
            .unwrap_or_else(|| format!("{:?} GPU", self.vendor()))
    }

    fn vendor(&self) -> Vendor {
        match self.first(|found| found.vendor) {
            Some(0x1002) => Vendor::Amd,
            Some(0x8086) => Vendor::Intel,
            Some(0x10de) => Vendor::Nvidia,
            _ => Vendor::Other,
        }
    }

    /// Vulkan knows best: to NVML every card is a card.
    fn kind(&self) -> DeviceKind {
        let by_vulkan = self.view(SourceName::Wgpu).and_then(|found| found.kind);
        match by_vulkan.or_else(|| self.first(|found| found.kind)) {
            Some(Kind::Cpu) => DeviceKind::Cpu,
            Some(Kind::Integrated) => DeviceKind::Integrated,
            Some(Kind::Simulated) => DeviceKind::Simulated,
            Some(Kind::Virtual) => DeviceKind::Virtual,
            Some(Kind::Discrete) | None => DeviceKind::Discrete,
        }
    }

    /// The first total that can be true; zero where there is none. What amdgpu counts on a chip that
    /// shares the host's memory is only the part set aside at boot.
    fn memory_total(&self) -> u64 {
        let believed = |total: &u64| (1..=MAX_MEMORY_BYTES).contains(total);
        let totals = self.trusted_for_memory();
        totals
            .filter_map(|(_, found)| found.memory_total)
            .find(believed)
            .unwrap_or(0)
    }

    /// The source that reads the memory in use.
    fn reader(&self) -> Option<(SourceName, &'a Found)> {
        self.trusted_for_memory().find(|(_, found)| found.readable)
    }

    fn trusted_for_memory(&self) -> impl Iterator<Item = (SourceName, &'a Found)> {
        let shared = self.kind() == DeviceKind::Integrated;
        let views = self.views.iter().copied();
        views.filter(move |(source, _)| !(shared && *source == SourceName::Amdgpu))
    }

    /// Why it must not be leased.
    fn refusal(&self, memory_total: u64, rules: Rules) -> Option<String> {
        let only_vulkan_sees_it =
            self.vendor() == Vendor::Nvidia && self.view(SourceName::Nvml).is_none();
        if let Some(reason) = self.first(|found| found.unusable.as_deref()) {
            Some(clean(reason))
        } else if memory_total == 0 {
            Some("it does not say how much memory it has".to_owned())
        } else if self.kind() == DeviceKind::Cpu && !rules.allow_cpu_adapters {
            Some("it is a CPU adapter, see `allow_cpu_adapters`".to_owned())
        } else if only_vulkan_sees_it && !rules.nvml_absent {
            Some("NVML does not answer for it".to_owned())
        } else {
            None
        }
    }

    fn found_by(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .views
            .iter()
            .map(|(name, _)| name.to_string())
            .collect();
        names.dedup();
        names
    }
}

fn pci(found: &Found) -> Option<PciAddress> {
    PciAddress::parse(found.pci_bus_id.as_deref()?)
}

fn is_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    (1..=MAX_ID_CHARS).contains(&text.len()) && text.chars().all(allowed)
}

/// Text of a driver as it may be shown: short, on one line, without control characters.
fn clean(text: &str) -> String {
    let shown = text.trim().chars().filter(|c| !c.is_control());
    shown.take(MAX_NAME_CHARS).collect()
}

#[cfg(test)]
mod tests;
