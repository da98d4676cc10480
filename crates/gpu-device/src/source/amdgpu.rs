//! AMD cards through the files that the amdgpu driver keeps in sysfs.
//!
//! Cheap, and needs no library. It lists no processes, and a suspended card is not woken: it holds
//! nothing.

use std::fs;
use std::path::{Path, PathBuf};

use crate::source::{Discovery, Found, RawReading, Readings, Source, SourceError, SourceName};

const VENDOR: u32 = 0x1002;

/// The cards below one mount of sysfs.
pub(crate) struct Amdgpu {
    devices: PathBuf,
}

impl Amdgpu {
    /// `sysfs` is where sysfs is mounted, usually `/sys`.
    pub(crate) fn new(sysfs: &Path) -> Self {
        Self {
            devices: sysfs.join("bus/pci/devices"),
        }
    }

    /// The directories of the cards that have memory of their own, with their bus ids.
    fn cards(&self) -> Vec<(String, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.devices) else {
            return Vec::new();
        };
        let mut cards: Vec<_> = entries
            .flatten()
            .filter(|entry| entry.path().join("mem_info_vram_total").exists())
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .collect();
        cards.sort();
        cards
    }
}

impl Source for Amdgpu {
    fn name(&self) -> SourceName {
        SourceName::Amdgpu
    }

    fn discover(&mut self) -> Result<Discovery, SourceError> {
        let found = self.cards().into_iter().map(|(id, card)| Found {
            pci_bus_id: Some(id.clone()),
            name: text(&card, "product_name"),
            vendor: Some(VENDOR),
            driver: Some("amdgpu".to_owned()),
            memory_total: number(&card, "mem_info_vram_total"),
            readable: true,
            id,
            ..Found::default()
        });
        Ok(Discovery {
            found: found.collect(),
            ..Discovery::default()
        })
    }

    fn read(&mut self) -> Result<Readings, SourceError> {
        let cards = self.cards();
        let mut answer = Readings {
            present: Some(cards.iter().map(|(id, _)| id.clone()).collect()),
            ..Readings::default()
        };
        for (id, card) in cards {
            match read(&id, &card) {
                Some(reading) => answer.readings.push(reading),
                None => answer
                    .notes
                    .push(format!("cannot read the memory in use on `{id}`")),
            }
        }
        Ok(answer)
    }
}

fn read(id: &str, card: &Path) -> Option<RawReading> {
    let id = id.to_owned();
    if text(card, "power/runtime_status").as_deref() == Some("suspended") {
        return Some(RawReading {
            id,
            ..RawReading::default()
        });
    }
    Some(RawReading {
        id,
        memory_used: number(card, "mem_info_vram_used")?,
        utilisation_percent: number(card, "gpu_busy_percent").and_then(|n| n.try_into().ok()),
        ..RawReading::default()
    })
}

fn number(card: &Path, file: &str) -> Option<u64> {
    text(card, file)?.parse().ok()
}

fn text(card: &Path, file: &str) -> Option<String> {
    let text = fs::read_to_string(card.join(file)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: &str = "bus/pci/devices/0000:0a:00.0";

    fn sysfs(files: &[(&str, &str)]) -> (tempfile::TempDir, Amdgpu) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(CARD).join("power")).unwrap();
        fs::create_dir_all(root.path().join("bus/pci/devices/0000:00:1f.0")).unwrap();
        for (file, content) in files {
            fs::write(root.path().join(CARD).join(file), content).unwrap();
        }
        let source = Amdgpu::new(root.path());
        (root, source)
    }

    #[test]
    fn a_card_is_found_and_read() {
        let (_root, mut source) = sysfs(&[
            ("mem_info_vram_total", "17163091968\n"),
            ("mem_info_vram_used", "1073741824\n"),
            ("gpu_busy_percent", "37\n"),
            ("product_name", "Radeon RX 7800 XT\n"),
        ]);

        let found = source.discover().unwrap().found;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pci_bus_id.as_deref(), Some("0000:0a:00.0"));
        assert_eq!(found[0].name.as_deref(), Some("Radeon RX 7800 XT"));
        assert_eq!(found[0].memory_total, Some(17_163_091_968));

        let read = source.read().unwrap();
        assert_eq!(read.readings[0].memory_used, 1 << 30);
        assert_eq!(read.readings[0].utilisation_percent, Some(37));
    }

    #[test]
    fn a_suspended_card_is_not_woken() {
        let (_root, mut source) = sysfs(&[
            ("mem_info_vram_total", "17163091968\n"),
            ("mem_info_vram_used", "not read\n"),
            ("power/runtime_status", "suspended\n"),
        ]);
        assert_eq!(source.read().unwrap().readings[0].memory_used, 0);
    }

    #[test]
    fn an_unreadable_card_is_there_without_a_reading() {
        let (_root, mut source) = sysfs(&[
            ("mem_info_vram_total", "17163091968\n"),
            ("mem_info_vram_used", "-1\n"),
        ]);
        let read = source.read().unwrap();
        assert_eq!(read.readings, []);
        assert_eq!(read.present, Some(vec!["0000:0a:00.0".to_owned()]));
        assert_eq!(read.notes.len(), 1);
    }

    #[test]
    fn no_sysfs_is_no_card() {
        let mut source = Amdgpu::new(Path::new("/nonexistent"));
        assert_eq!(source.discover().unwrap().found, []);
    }
}
