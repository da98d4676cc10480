//! A store file that nothing is written to before it is known to be sound and ours.
//!
//! Opening a file for writing repairs it where it was not closed in order, and closing it may shorten it. Until
//! [`HeldBack::let_through`] all of that is kept in memory, in order, and is what is read; a file that is refused
//! is then as it was.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use redb::{BackendError, StorageBackend};

/// The file, shared with whoever says when it may be written.
#[derive(Debug)]
pub(super) struct HeldBack<F>(Arc<Inner<F>>);

#[derive(Debug)]
struct Inner<F> {
    file: F,
    /// Nothing is held back any more.
    through: AtomicBool,
    held: RwLock<Held>,
}

/// What was done to the file and is not in it: little, as a repair writes few pages.
#[derive(Debug)]
struct Held {
    /// How long the file is.
    in_file: u64,
    /// How long it is with all of that.
    len: u64,
    /// In order.
    done: Vec<Done>,
}

#[derive(Debug)]
enum Done {
    Sync,
    SetLen(u64),
    Write(u64, Vec<u8>),
}

impl<F> Clone for HeldBack<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<F: StorageBackend> HeldBack<F> {
    pub(super) fn new(file: F) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self(Arc::new(Inner {
            file,
            through: AtomicBool::new(false),
            held: RwLock::new(Held {
                in_file: len,
                len,
                done: Vec::new(),
            }),
        })))
    }

    /// Does to the file what was held back, in the same order and with the same syncs, so that an end in between
    /// leaves what redb knows how to repair. From here on nothing is held back.
    ///
    /// # Errors
    /// The disk fails; what is in the file then is what a crash leaves.
    pub(super) fn let_through(&self) -> io::Result<()> {
        let mut held = self.0.held.write();
        let file = &self.0.file;
        for done in std::mem::take(&mut held.done) {
            match done {
                Done::Sync => file.sync_data()?,
                Done::SetLen(len) => file.set_len(len)?,
                Done::Write(offset, data) => file.write(offset, &data)?,
            }
        }
        self.0.through.store(true, Ordering::Release);
        Ok(())
    }

    fn is_through(&self) -> bool {
        self.0.through.load(Ordering::Acquire)
    }

    fn hold(&self, done: Done) {
        let mut held = self.0.held.write();
        held.len = match &done {
            Done::Sync => held.len,
            Done::SetLen(len) => *len,
            Done::Write(offset, data) => held.len.max(offset + data.len() as u64),
        };
        held.done.push(done);
    }
}

impl Held {
    fn read(&self, file: &impl StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.fill(0);
        let in_file = self.in_file.saturating_sub(offset).min(out.len() as u64);
        if in_file > 0 {
            file.read(offset, &mut out[..bytes(in_file)])?;
        }
        for done in &self.done {
            match done {
                Done::Sync => {}
                Done::SetLen(len) => {
                    let kept = len.saturating_sub(offset).min(out.len() as u64);
                    out[bytes(kept)..].fill(0);
                }
                Done::Write(at, data) => lay_over(out, offset, *at, data),
            }
        }
        Ok(())
    }
}

/// Puts the part of `data`, which is at `at`, into `out` that belongs there.
fn lay_over(out: &mut [u8], offset: u64, at: u64, data: &[u8]) {
    let from = at.max(offset);
    let to = (at + data.len() as u64).min(offset + out.len() as u64);
    if from < to {
        let source = &data[bytes(from - at)..bytes(to - at)];
        out[bytes(from - offset)..bytes(to - offset)].copy_from_slice(source);
    }
}

/// A part of a buffer, which is no longer than memory.
fn bytes(count: u64) -> usize {
    usize::try_from(count).expect("it is within a buffer")
}

impl<F: StorageBackend> StorageBackend for HeldBack<F> {
    fn len(&self) -> io::Result<u64> {
        match self.is_through() {
            true => self.0.file.len(),
            false => Ok(self.0.held.read().len),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.is_through() {
            true => self.0.file.read(offset, out),
            false => self.0.held.read().read(&self.0.file, offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.is_through() {
            true => return self.0.file.set_len(len),
            false => self.hold(Done::SetLen(len)),
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.is_through() {
            true => return self.0.file.sync_data(),
            false => self.hold(Done::Sync),
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.is_through() {
            true => return self.0.file.write(offset, data),
            false => self.hold(Done::Write(offset, data.to_vec())),
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.0.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;

    use super::HeldBack;

    /// What is read is what was done, before and after it is let through, and the file has none of it before.
    #[test]
    fn what_is_held_back_is_read_and_not_written() {
        let (file, plain) = (file(), file());
        let held_back = HeldBack::new(file).expect("memory has a length");
        let both: [&dyn StorageBackend; 2] = [&held_back, &plain];
        for disk in both {
            disk.write(90, &[1; 20]).expect("it is within");
            disk.sync_data().expect("memory syncs");
            disk.set_len(100).expect("it can be cut");
            disk.set_len(300).expect("it can grow");
            disk.write(250, &[2; 50]).expect("it is within");
            disk.write(0, &[3; 5]).expect("it is within");
        }
        for (offset, len) in [(0, 300), (80, 40), (95, 10), (99, 2), (240, 60), (290, 10)] {
            assert_eq!(read(&held_back, offset, len), read(&plain, offset, len));
        }
        assert!(held_back.read(290, &mut [0; 11]).is_err(), "beyond the end");
        assert_eq!(held_back.0.file.len().expect("memory has a length"), 200);
        assert_eq!(read(&held_back.0.file, 0, 200), [9; 200]);

        held_back.let_through().expect("memory does not fail");
        assert_eq!(held_back.len().expect("memory has a length"), 300);
        assert_eq!(read(&held_back.0.file, 0, 300), read(&plain, 0, 300));
        held_back.write(0, &[4]).expect("it is within");
        assert_eq!(read(&held_back.0.file, 0, 1), [4], "nothing is held back");
    }

    fn file() -> InMemoryBackend {
        let file = InMemoryBackend::new();
        file.set_len(200).expect("memory grows");
        file.write(0, &[9; 200]).expect("it is within");
        file
    }

    fn read(disk: &dyn StorageBackend, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        disk.read(offset, &mut bytes).expect("it is within");
        bytes
    }
}
