//! One broker per set of physical devices on a host, whatever its state directory: a locked file per
//! device. The lock is the kernel's, so that it ends with its process; the file only tells whose it is.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gpu_lease::{Device, DeviceId, DeviceKind};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// Where every broker of a host looks.
pub const LOCK_DIR: &str = "/run/lock/gpu-manager";

/// The devices that are this process's alone among all brokers of the host.
#[derive(Debug)]
pub struct DeviceLocks {
    dir: PathBuf,
    held: BTreeMap<DeviceId, File>,
}

/// A device cannot be locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another broker has it.
    #[error("device `{device}` is leased out by another broker of this host ({owner})")]
    Taken {
        /// The device.
        device: DeviceId,
        /// Who has it, as far as the file tells.
        owner: String,
    },
    /// The file cannot be used.
    #[error("lock file `{path}` cannot be used: {source}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DeviceLocks {
    /// No locks yet; files are made in `dir`, normally [`LOCK_DIR`].
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            held: BTreeMap::new(),
        }
    }

    /// Locks every physical device of `devices` that is not locked yet. Simulated devices and software
    /// renderers are nobody's.
    ///
    /// # Errors
    /// The first device that cannot be locked; the others may be.
    pub fn take(&mut self, devices: &[Device]) -> Result<(), LockError> {
        let physical = devices.iter().filter(|device| is_physical(device.kind));
        for device in physical {
            let id = &device.key.id;
            if !self.held.contains_key(id) {
                self.held.insert(id.clone(), self.lock(id)?);
            }
        }
        Ok(())
    }

    fn lock(&self, device: &DeviceId) -> Result<File, LockError> {
        let path = self.dir.join(format!("{}.lock", file_name(device)));
        let unusable = |source: io::Error| LockError::Unusable {
            path: path.clone(),
            source,
        };
        let mut file = open_shared(&self.dir, &path).map_err(unusable)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                sign(&mut file).map_err(unusable)?;
                Ok(file)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Taken {
                device: device.clone(),
                owner: owner(&mut file),
            }),
            Err(error) => Err(unusable(error.into())),
        }
    }
}

fn is_physical(kind: DeviceKind) -> bool {
    match kind {
        DeviceKind::Discrete | DeviceKind::Integrated | DeviceKind::Virtual => true,
        DeviceKind::Cpu | DeviceKind::Simulated => false,
    }
}

/// Brokers of different users meet in one directory, so it and its files are open to all, like /tmp.
fn open_shared(dir: &Path, path: &Path) -> io::Result<File> {
    if !dir.exists() {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o1777))?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    // Only its maker may; for everybody else it is done already.
    drop(file.set_permissions(Permissions::from_mode(0o666)));
    Ok(file)
}

fn sign(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "pid {}", std::process::id())
}

fn owner(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(64).read_to_string(&mut text) {
        Ok(read) if read > 0 => text,
        _ => "it does not say who".to_owned(),
    }
}

/// An id is any text; a file name is not.
fn file_name(device: &DeviceId) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    device
        .as_str()
        .chars()
        .map(|c| if safe(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpu_lease::{DeviceKey, Telemetry, Vendor};

    fn device(id: &str, kind: DeviceKind) -> Device {
        Device {
            key: DeviceKey::local(id),
            name: "A card".into(),
            index: 0,
            vendor: Vendor::Nvidia,
            kind,
            pci_bus_id: None,
            nvml_uuid: None,
            driver: None,
            memory_total: 1 << 30,
            telemetry: Telemetry::Unsupported,
            leasable: true,
            found_by: Vec::new(),
        }
    }

    #[test]
    fn a_card_is_one_brokers_and_a_simulated_one_is_nobodys() {
        let dir = tempfile::tempdir().expect("a directory");
        let card = [device("GPU-1", DeviceKind::Discrete)];
        let declared = [device("sim-0", DeviceKind::Simulated)];
        let mut first = DeviceLocks::new(dir.path());
        let mut second = DeviceLocks::new(dir.path());
        first.take(&card).expect("nobody has it");
        first.take(&card).expect("it is ours already");
        let refused = second
            .take(&card)
            .expect_err("the first has it")
            .to_string();
        assert!(
            refused.contains(&format!("pid {}", std::process::id())),
            "{refused}"
        );
        first.take(&declared).expect("it is nobody's");
        second.take(&declared).expect("it is nobody's");
        drop(first);
        second.take(&card).expect("its owner is gone");
    }
}
