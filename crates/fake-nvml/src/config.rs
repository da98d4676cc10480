//! The file as typed data. The format is documented at the top of the crate.

use std::ffi::c_uint;

use serde::{Deserialize, Deserializer};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    driver_version: String,
    nvml_version: String,
    pub(crate) cuda_version: u32,
    pub(crate) init_fault: Option<Fault>,
    pub(crate) fault: Option<Fault>,
    pub(crate) slow_ms: u64,
    #[serde(rename = "device")]
    pub(crate) devices: Vec<Card>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Card {
    name: String,
    uuid: Option<String>,
    pub(crate) serial: Option<String>,
    pci_bus_id: Option<String>,
    #[serde(deserialize_with = "bytes")]
    pub(crate) memory_total: u64,
    #[serde(deserialize_with = "bytes")]
    pub(crate) memory_reserved: u64,
    #[serde(deserialize_with = "some_bytes")]
    memory_used: Option<u64>,
    pub(crate) utilisation_percent: Option<c_uint>,
    pub(crate) temperature_c: Option<c_uint>,
    pub(crate) power_mw: Option<c_uint>,
    pub(crate) power_limit_mw: Option<c_uint>,
    pub(crate) fan_percent: Option<c_uint>,
    pub(crate) graphics_clock_mhz: Option<c_uint>,
    pub(crate) memory_clock_mhz: Option<c_uint>,
    pub(crate) mig: Option<bool>,
    pub(crate) fault: Option<Fault>,
    pub(crate) slow_ms: u64,
    #[serde(rename = "process")]
    processes: Vec<Process>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    #[serde(default, deserialize_with = "some_bytes")]
    pub(crate) memory: Option<u64>,
    #[serde(default)]
    kind: ProcessKind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProcessKind {
    #[default]
    Compute,
    Graphics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    Hang,
    Crash,
    Lost,
    ResetRequired,
    Unknown,
    DriverMismatch,
    DriverNotLoaded,
    NotFound,
    NoPermission,
    NotSupported,
    TakeMemory,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver_version: "570.86.10".to_owned(),
            nvml_version: "12.570.86.10".to_owned(),
            cuda_version: 12080,
            init_fault: None,
            fault: None,
            slow_ms: 0,
            devices: Vec::new(),
        }
    }
}

impl Default for Card {
    fn default() -> Self {
        Self {
            name: "GPU".to_owned(),
            uuid: None,
            serial: None,
            pci_bus_id: None,
            memory_total: 24 << 30,
            memory_reserved: 0,
            memory_used: None,
            utilisation_percent: None,
            temperature_c: None,
            power_mw: None,
            power_limit_mw: None,
            fan_percent: None,
            graphics_clock_mhz: None,
            memory_clock_mhz: None,
            mig: None,
            fault: None,
            slow_ms: 0,
            processes: Vec::new(),
        }
    }
}

impl Config {
    pub(crate) fn driver_version(&self) -> String {
        format!("{}-fake", self.driver_version)
    }

    pub(crate) fn nvml_version(&self) -> String {
        format!("{}-fake", self.nvml_version)
    }
}

impl Card {
    pub(crate) fn name(&self) -> String {
        format!("Fake {}", self.name)
    }

    pub(crate) fn uuid(&self, place: usize) -> String {
        let made_up = || format!("GPU-fa4e0000-0000-4000-8000-{place:012x}");
        self.uuid.clone().unwrap_or_else(made_up)
    }

    pub(crate) fn pci_bus_id(&self, place: usize) -> PciBusId {
        let given = self.pci_bus_id.as_deref().and_then(PciBusId::parse);
        given.unwrap_or(PciBusId {
            domain: 0,
            bus: 0x10 + place as c_uint,
            device: 0,
        })
    }

    pub(crate) fn memory_used(&self) -> u64 {
        let held = self.processes.iter().filter_map(|process| process.memory);
        let sum = || held.fold(0, u64::saturating_add);
        self.memory_used.unwrap_or_else(sum)
    }

    pub(crate) fn processes(&self, kind: ProcessKind) -> impl Iterator<Item = &Process> {
        self.processes
            .iter()
            .filter(move |process| process.kind == kind)
    }
}

/// Domain, bus and device; NVML knows no other function than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PciBusId {
    pub(crate) domain: c_uint,
    pub(crate) bus: c_uint,
    pub(crate) device: c_uint,
}

impl PciBusId {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (rest, _function) = text.rsplit_once('.')?;
        let numbers: Result<Vec<c_uint>, _> = rest
            .split(':')
            .map(|hex| c_uint::from_str_radix(hex, 16))
            .collect();
        match numbers.ok()?[..] {
            [domain, bus, device] => Some(Self {
                domain,
                bus,
                device,
            }),
            _ => None,
        }
    }

    pub(crate) fn text(self) -> String {
        format!("{:08X}:{:02X}:{:02X}.0", self.domain, self.bus, self.device)
    }

    pub(crate) fn legacy_text(self) -> String {
        format!("{:04X}:{:02X}:{:02X}.0", self.domain, self.bus, self.device)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Bytes(u64),
    Text(String),
}

const UNITS: [(&str, u64); 4] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("", 1),
];

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Amount::deserialize(deserializer)? {
        Amount::Bytes(bytes) => Ok(bytes),
        Amount::Text(text) => bytes_in(&text).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is no amount of memory such as `24GiB`"))
        }),
    }
}

fn some_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    bytes(deserializer).map(Some)
}

fn bytes_in(text: &str) -> Option<u64> {
    let (unit, factor) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
    number.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        for (text, bytes) in [
            ("24GiB", Some(24 << 30)),
            ("400 MiB", Some(400 << 20)),
            ("17", Some(17)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551615GiB", None),
            ("-1GiB", None),
            ("much", None),
        ] {
            assert_eq!(bytes_in(text), bytes, "{text}");
        }
    }

    #[test]
    fn a_typo_is_an_error() {
        let read = toml::from_str::<Config>("[[device]]\nmemory_totl = 1");
        let error = read.expect_err("there is no such key");
        assert!(error.message().contains("memory_totl"), "{error}");
    }

    #[test]
    fn used_memory_is_that_of_the_processes_unless_said() {
        let text = "[[device]]\n[[device.process]]\npid = 1\nmemory = '1GiB'\n\
                    [[device.process]]\npid = 2\nmemory = 5\nkind = 'graphics'";
        let config: Config = toml::from_str(text).expect("valid");
        let card = &config.devices[0];
        assert_eq!(card.memory_used(), (1 << 30) + 5);
        assert_eq!(card.processes(ProcessKind::Graphics).count(), 1);
    }

    #[test]
    fn bus_ids_are_read_in_both_widths() {
        for text in ["0000:65:00.0", "00000000:65:00.0"] {
            let id = PciBusId::parse(text).expect("a bus id");
            assert_eq!(id.text(), "00000000:65:00.0");
            assert_eq!(id.legacy_text(), "0000:65:00.0");
        }
        assert_eq!(PciBusId::parse("65:00"), None);
    }
}
