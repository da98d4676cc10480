//! The thread between the probe and the books: discovers, locks, reads, again and again.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use gpu_bridge::Warnings;
use gpu_broker::Handle;
use gpu_device::{DeviceLocks, Inventory, LockError, Probe};

/// Readings are taken this seldom while nobody holds or waits for anything.
const IDLE_POLL: Duration = Duration::from_secs(30);
/// An inventory that is known to be wrong is made again after this long; while it stays wrong, after ever
/// longer rests, for looking may wake every card.
const REDISCOVER_FIRST: Duration = Duration::from_secs(1);
const REDISCOVER_REST_MAX: Duration = Duration::from_secs(30);

/// Asks the device thread for a reading now. Asking twice before it looks is asking once.
#[derive(Clone)]
pub(super) struct ReadNow(SyncSender<()>);

/// What the device thread works with.
pub(super) struct Devices {
    pub(super) probe: Probe,
    pub(super) handle: Handle,
    pub(super) poll: Duration,
    pub(super) wanted: Receiver<()>,
    pub(super) notes: Warnings,
}

/// Why a rest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// It is time for a reading.
    Enough,
    /// Nobody asks for readings any more.
    Over,
}

pub(super) fn read_now() -> (ReadNow, Receiver<()>) {
    let (sender, wanted) = sync_channel(1);
    (ReadNow(sender), wanted)
}

impl ReadNow {
    pub(super) fn ask(&self) {
        // Full: it was asked already. Closed: there is nobody to read.
        let _ = self.0.try_send(());
    }
}

impl Devices {
    /// Starts the thread. It ends with the process; `refused` hears of a device that another broker has.
    pub(super) fn start(
        self,
        lock_dir: &Path,
        refused: impl FnOnce(LockError) + Send + 'static,
    ) -> io::Result<()> {
        let mut locks = DeviceLocks::new(lock_dir);
        let run = move || {
            if let Err(error) = self.run(&mut locks) {
                refused(error);
            }
        };
        thread::Builder::new()
            .name("devices".into())
            .spawn(run)
            .map(drop)
    }

    fn run(&self, locks: &mut DeviceLocks) -> Result<(), LockError> {
        self.discover(locks)?;
        let mut discovered = Instant::now();
        let mut patience = REDISCOVER_FIRST;
        loop {
            self.read();
            if self.probe.health().rediscover && discovered.elapsed() >= patience {
                patience = next_patience(patience, discovered.elapsed());
                self.discover(locks)?;
                discovered = Instant::now();
            }
            if self.rest() == Rest::Over {
                return Ok(());
            }
        }
    }

    fn discover(&self, locks: &mut DeviceLocks) -> Result<(), LockError> {
        match self.probe.inventory() {
            Ok(inventory) => {
                locks.take(&inventory.devices)?;
                self.tell(inventory);
            }
            Err(error) => {
                tracing::error!(%error, "devices are not known yet; nothing is granted");
                *self.notes.lock() = vec![error.to_string()];
            }
        }
        Ok(())
    }

    fn tell(&self, inventory: Inventory) {
        for device in &inventory.devices {
            let memory = gpu_lease::Bytes(device.memory_total);
            tracing::info!(id = %device.key, %memory, leasable = device.leasable, "device {}", device.name);
        }
        if inventory.devices.is_empty() {
            tracing::warn!("no device was found");
        }
        let notes: Vec<String> = inventory.notes.iter().map(ToString::to_string).collect();
        for note in &notes {
            tracing::info!("{note}");
        }
        *self.notes.lock() = notes;
        self.handle.inventory(inventory.devices);
    }

    fn read(&self) {
        match self.probe.read() {
            Ok(readings) if readings.is_empty() => {}
            Ok(readings) => self.handle.telemetry(readings),
            Err(error) => tracing::debug!(%error, "no readings"),
        }
    }

    /// Rests until somebody asks, or until the next reading is due. While nobody holds or waits for anything
    /// that is late, but somebody who comes meanwhile is not left unread: the books are looked at, not a driver.
    fn rest(&self) -> Rest {
        let began = Instant::now();
        loop {
            match self.wanted.recv_timeout(self.poll) {
                Ok(()) => return Rest::Enough,
                Err(RecvTimeoutError::Disconnected) => return Rest::Over,
                Err(RecvTimeoutError::Timeout) => {
                    if !self.is_idle() || began.elapsed() >= IDLE_POLL {
                        return Rest::Enough;
                    }
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        let snapshot = self.handle.snapshot();
        let unused = |device: &gpu_lease::DeviceState| device.occupants.is_empty();
        !snapshot.devices.is_empty()
            && snapshot.devices.iter().all(unused)
            && snapshot.waiting.is_empty()
    }
}

/// How long the next discovery is put off, after one that was needed `since` the last.
fn next_patience(patience: Duration, since: Duration) -> Duration {
    match since > REDISCOVER_REST_MAX * 2 {
        true => REDISCOVER_FIRST,
        false => (patience * 2).min(REDISCOVER_REST_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discoveries_are_put_off_longer_while_they_are_needed_again_and_again() {
        let secs = Duration::from_secs;
        for (patience, since, next) in [
            (secs(1), secs(1), secs(2)),
            (secs(2), secs(2), secs(4)),
            (secs(16), secs(20), secs(30)),
            (secs(30), secs(31), secs(30)),
            (secs(30), secs(3600), secs(1)),
        ] {
            assert_eq!(
                next_patience(patience, since),
                next,
                "{patience:?} after {since:?}"
            );
        }
    }
}
