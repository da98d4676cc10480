//! A disk in memory that loses its power: what was not synced is there afterwards, or not, sector by sector.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;

/// What a disk writes at once, or not at all.
const SECTOR_BYTES: usize = 512;

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct CrashDisk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    /// As programs see it.
    bytes: Vec<u8>,
    /// What was last synced of every sector that was written since.
    unsynced: BTreeMap<usize, [u8; SECTOR_BYTES]>,
    /// How long the file was when it was last synced.
    synced_len: usize,
    /// Writes, syncs and changes of the length so far.
    operations: u64,
    /// The operation at which everything stops to work.
    fails_at: Option<u64>,
    /// How many syncs lied: they said that all is well and kept nothing.
    lies: Option<Lies>,
}

/// A disk that does not do what it says, which the checks of a store must notice.
#[derive(Clone, Copy, Debug)]
struct Lies {
    every: u64,
    syncs: u64,
}

impl CrashDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many writes, syncs and changes of the length there were.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// How many sectors were written since they were last synced.
    pub fn unsynced(&self) -> usize {
        self.0.lock().unsynced.len()
    }

    /// Works for so many operations more; each later one fails, until it is said again.
    pub fn fail_after(&self, operations: Option<u64>) {
        let mut platter = self.0.lock();
        platter.fails_at = operations.map(|operations| platter.operations + operations);
    }

    /// Whether an operation has failed since [`Self::fail_after`].
    pub fn has_failed(&self) -> bool {
        let platter = self.0.lock();
        platter.fails_at.is_some_and(|at| platter.operations > at)
    }

    /// From here on, one sync of so many keeps nothing and says that all is well.
    pub fn lie_every(&self, syncs: u64) {
        self.0.lock().lies = Some(Lies {
            every: syncs,
            syncs: 0,
        });
    }

    /// The disk as it is when the power is back: of each sector that was not synced, `keeps` says whether
    /// its last write got there. So it does for the length of the file.
    #[must_use]
    pub fn after_power_cut(&self, keeps: &mut dyn FnMut() -> bool) -> Self {
        let platter = self.0.lock();
        let mut bytes = platter.bytes.clone();
        for (sector, synced) in &platter.unsynced {
            if !keeps() {
                put(&mut bytes, sector * SECTOR_BYTES, synced);
            }
        }
        if bytes.len() != platter.synced_len && !keeps() {
            bytes.resize(platter.synced_len, 0);
        }
        Self(Arc::new(Mutex::new(Platter {
            synced_len: bytes.len(),
            bytes,
            ..Platter::default()
        })))
    }

    /// A number for everything that is on the disk.
    pub fn fingerprint(&self) -> u64 {
        // FNV-1a.
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        self.0.lock().bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold)
    }

    /// The disk as the next process of the same host finds it: everything that was written. A kill syncs nothing,
    /// so a power cut that follows can still take what was not synced.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        let platter = self.0.lock();
        Self(Arc::new(Mutex::new(Platter {
            bytes: platter.bytes.clone(),
            unsynced: platter.unsynced.clone(),
            synced_len: platter.synced_len,
            lies: platter.lies,
            ..Platter::default()
        })))
    }
}

impl Platter {
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fails_at.is_some_and(|at| self.operations > at) {
            true => Err(io::Error::other("the disk lost its power")),
            false => Ok(()),
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let sectors = offset / SECTOR_BYTES..(offset + data.len()).div_ceil(SECTOR_BYTES);
        for sector in sectors {
            let bytes = &self.bytes;
            let synced = || sector_of(bytes, sector);
            self.unsynced.entry(sector).or_insert_with(synced);
        }
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    fn sync(&mut self) {
        if let Some(lies) = &mut self.lies {
            lies.syncs += 1;
            if lies.syncs.is_multiple_of(lies.every) {
                return;
            }
        }
        self.unsynced.clear();
        self.synced_len = self.bytes.len();
    }
}

/// A sector; what is beyond the end of the file reads as zeros.
fn sector_of(bytes: &[u8], sector: usize) -> [u8; SECTOR_BYTES] {
    let mut copy = [0; SECTOR_BYTES];
    let rest = bytes.get(sector * SECTOR_BYTES..).unwrap_or_default();
    let len = rest.len().min(SECTOR_BYTES);
    copy[..len].copy_from_slice(&rest[..len]);
    copy
}

/// As much of `data` as is within the file.
fn put(bytes: &mut [u8], offset: usize, data: &[u8]) {
    let room = bytes.get_mut(offset..).unwrap_or_default();
    let len = room.len().min(data.len());
    room[..len].copy_from_slice(&data[..len]);
}

impl StorageBackend for CrashDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let platter = self.0.lock();
        let found = platter.bytes.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut platter = self.0.lock();
        platter.operate()?;
        platter.bytes.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.operate()?;
        platter.sync();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let mut platter = self.0.lock();
        platter.operate()?;
        if start + data.len() > platter.bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        platter.write(start, data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use redb::StorageBackend;

    use super::CrashDisk;

    #[test]
    fn only_what_was_synced_is_sure_to_be_there_after_a_power_cut() {
        let disk = CrashDisk::new();
        disk.set_len(1024).expect("it works");
        disk.write(0, &[1; 1024]).expect("it works");
        disk.sync_data().expect("it works");
        disk.write(500, &[2; 24]).expect("it works");

        let read = |disk: &CrashDisk, offset| {
            let mut byte = [0];
            disk.read(offset, &mut byte).expect("it works");
            byte[0]
        };
        let lost = disk.after_power_cut(&mut || false);
        assert_eq!((read(&lost, 500), read(&lost, 520)), (1, 1));
        let mut first = true;
        let torn = disk.after_power_cut(&mut || std::mem::take(&mut first));
        assert_eq!((read(&torn, 500), read(&torn, 520)), (2, 1));
        let kept = disk.after_kill();
        assert_eq!((read(&kept, 500), read(&kept, 520)), (2, 2));
        let lost = kept.after_power_cut(&mut || false);
        assert_eq!((read(&lost, 500), read(&lost, 520)), (1, 1));
    }

    #[test]
    fn a_disk_without_power_refuses() {
        let disk = CrashDisk::new();
        disk.fail_after(Some(1));
        disk.set_len(512).expect("one operation works");
        assert!(!disk.has_failed());
        assert!(disk.write(0, &[1]).is_err());
        assert!(disk.sync_data().is_err());
        assert!(disk.has_failed());
    }
}
