//! NVIDIA cards through NVML, loaded from a configured path.
//!
//! NVML is initialised once and shut down in balance. Handles are not kept: a card is asked for by its
//! place each time and says who it is, so that a card that vanished is never taken for another.
//! "Unknown error" does not mean that a card is dead: the library is initialised anew and asked again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use nvml_wrapper::Nvml as Library;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use crate::source::{
    Discovery, Found, Kind, RawProcess, RawReading, Readings, Source, SourceError, SourceName,
    Standing,
};

const VENDOR: u32 = 0x10de;
/// How long a failed initialisation is remembered before readings try again.
const RETRY_INITIALISATION: Duration = Duration::from_secs(10);
/// More cards than this are not looked at.
const MAX_CARDS: u32 = 256;

/// The library, perhaps initialised.
pub(crate) struct Nvml {
    path: PathBuf,
    handle: Option<Library>,
    /// When it could last not be initialised, and why.
    failed: Option<(Instant, String)>,
}

impl Nvml {
    /// `path` is a name that the dynamic linker finds, or a path.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            handle: None,
            failed: None,
        }
    }

    fn opened(&mut self) -> Result<&Library, NvmlError> {
        if self.handle.is_none() {
            let opened = Library::builder().lib_path(self.path.as_os_str()).init();
            let failure = opened.as_ref().err();
            self.failed = failure.map(|error| (Instant::now(), why(error)));
            self.handle = Some(opened?);
        }
        self.handle.as_ref().ok_or(NvmlError::Uninitialized)
    }

    /// What a failure to initialise means: no such driver here, or one that is in trouble.
    fn without_library(&self, error: &NvmlError) -> Result<Discovery, SourceError> {
        let note = match error {
            NvmlError::LibloadingError(error) => {
                let library = self.path.display();
                match error.to_string() {
                    text if text.contains("No such file") => {
                        format!("library `{library}` not found")
                    }
                    text => format!("library `{library}` cannot be loaded: {text}"),
                }
            }
            NvmlError::DriverNotLoaded => "the NVIDIA driver is not loaded".to_owned(),
            error => return Err(trouble(error)),
        };
        Ok(Discovery {
            standing: Standing::Absent,
            notes: vec![note],
            ..Discovery::default()
        })
    }

    fn failed_lately(&self) -> Option<SourceError> {
        let failed = self.failed.as_ref();
        let lately = failed.filter(|(at, _)| at.elapsed() < RETRY_INITIALISATION);
        lately.map(|(_, why)| SourceError(why.clone()))
    }

    /// Asks every card. A library that says "unknown error" is let go, to be initialised anew.
    fn each_card<T>(
        &mut self,
        ask: impl Fn(&Library, &Device<'_>, &str) -> Result<T, NvmlError>,
    ) -> Result<Vec<Card<T>>, SourceError> {
        let library = self.opened().map_err(|error| trouble(&error))?;
        let asked = library
            .device_count()
            .map(|count| ask_each(library, count, ask));
        let confused = match &asked {
            Ok(cards) => cards.iter().any(Card::is_confused),
            Err(_) => true,
        };
        if confused {
            self.handle = None;
        }
        asked.map_err(|error| trouble(&error))
    }
}

impl Source for Nvml {
    fn name(&self) -> SourceName {
        SourceName::Nvml
    }

    fn discover(&mut self) -> Result<Discovery, SourceError> {
        if let Err(error) = self.opened() {
            return self.without_library(&error);
        }
        let mut discovery = Discovery::default();
        for card in self.each_card(found)? {
            match card.said {
                Ok(found) => discovery.found.push(found),
                Err(error) => {
                    discovery.notes.push(card.place.note(&error));
                    if !is_gone(&error) {
                        discovery.standing = Standing::Partial;
                    }
                }
            }
        }
        Ok(discovery)
    }

    fn read(&mut self) -> Result<Readings, SourceError> {
        if let Some(error) = self.failed_lately() {
            return Err(error);
        }
        let mut answer = Readings {
            present: Some(Vec::new()),
            ..Readings::default()
        };
        for card in self.each_card(|_, card, uuid| read(card, uuid))? {
            match (&card.said, card.place.uuid.clone()) {
                (Err(error), _) if is_gone(error) => {}
                (_, Some(uuid)) => answer
                    .present
                    .iter_mut()
                    .for_each(|ids| ids.push(uuid.clone())),
                (_, None) => answer.present = None,
            }
            match card.said {
                Ok(reading) => answer.readings.extend(reading),
                Err(error) => answer.notes.push(card.place.note(&error)),
            }
        }
        Ok(answer)
    }
}

/// What one card said.
struct Card<T> {
    place: Place,
    said: Result<T, NvmlError>,
}

impl<T> Card<T> {
    fn is_confused(&self) -> bool {
        matches!(self.said, Err(NvmlError::Unknown))
    }
}

struct Place {
    index: u32,
    /// Unknown where the card did not even say this.
    uuid: Option<String>,
}

impl Place {
    fn note(&self, error: &NvmlError) -> String {
        match &self.uuid {
            Some(uuid) => format!("card {} (`{uuid}`): {error}", self.index),
            None => format!("card {}: {error}", self.index),
        }
    }
}

fn ask_each<T>(
    library: &Library,
    count: u32,
    ask: impl Fn(&Library, &Device<'_>, &str) -> Result<T, NvmlError>,
) -> Vec<Card<T>> {
    let ask_one = |index| {
        let mut place = Place { index, uuid: None };
        let said = library.device_by_index(index).and_then(|device| {
            let uuid = &*place.uuid.insert(device.uuid()?);
            ask(library, &device, uuid)
        });
        Card { place, said }
    };
    (0..count.min(MAX_CARDS)).map(ask_one).collect()
}

fn found(library: &Library, card: &Device<'_>, uuid: &str) -> Result<Found, NvmlError> {
    let memory = supported(card.memory_info())?;
    let mig = supported(card.mig_mode())?.is_some_and(|mode| mode.current == 1);
    Ok(Found {
        id: uuid.to_owned(),
        pci_bus_id: Some(card.pci_info()?.bus_id),
        uuid: Some(uuid.trim_start_matches("GPU-").replace('-', "")),
        name: Some(card.name()?),
        vendor: Some(VENDOR),
        kind: Some(Kind::Discrete),
        driver: Some(format!("nvidia {}", library.sys_driver_version()?)),
        memory_total: memory
            .as_ref()
            .map(|memory| memory.total.saturating_sub(memory.reserved)),
        readable: memory.is_some(),
        unusable: mig.then(|| "MIG is on, and its instances are not leased".to_owned()),
    })
}

/// `None` for a card that cannot say how much memory is in use.
fn read(card: &Device<'_>, uuid: &str) -> Result<Option<RawReading>, NvmlError> {
    let Some(memory) = supported(card.memory_info())? else {
        return Ok(None);
    };
    Ok(Some(RawReading {
        id: uuid.to_owned(),
        memory_used: memory.used,
        processes: processes(card)?,
        utilisation_percent: card.utilization_rates().ok().map(|rates| rates.gpu),
        temperature_c: card.temperature(TemperatureSensor::Gpu).ok(),
        power_mw: card.power_usage().ok(),
    }))
}

/// Compute and graphics processes. One that is both is listed twice, with the same memory.
fn processes(card: &Device<'_>) -> Result<Vec<RawProcess>, NvmlError> {
    let compute = supported(card.running_compute_processes())?.unwrap_or_default();
    let graphics = supported(card.running_graphics_processes())?.unwrap_or_default();
    let mut by_pid = BTreeMap::<u32, Option<u64>>::new();
    for process in compute.into_iter().chain(graphics) {
        let held = by_pid.entry(process.pid).or_default();
        *held = (*held).max(memory_of(&process));
    }
    let listed = by_pid.into_iter();
    Ok(listed
        .map(|(pid, memory)| RawProcess { pid, memory })
        .collect())
}

fn memory_of(process: &ProcessInfo) -> Option<u64> {
    match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

/// What this card or this driver cannot tell is no error.
fn supported<T>(result: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_gone(error: &NvmlError) -> bool {
    matches!(error, NvmlError::GpuLost | NvmlError::ResetRequired)
}

fn trouble(error: &NvmlError) -> SourceError {
    SourceError(why(error))
}

fn why(error: &NvmlError) -> String {
    match error {
        NvmlError::LibRmVersionMismatch => {
            "driver and library have different versions: reboot, or load the driver anew".to_owned()
        }
        error => error.to_string(),
    }
}
