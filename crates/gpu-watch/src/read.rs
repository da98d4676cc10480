//! The bytes of a file set, read once, all of one moment.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::config::{Config, ConfigError, Scope};
use crate::listing::{FILE_BYTES_MAX, Listing, Stamp, unreachable_path};

/// How often a set that changes while it is read is read again at once.
const READ_TRIES_MAX: usize = 5;

/// How often, and how far apart, a caller without a watcher tries before it gives up.
const SETTLE_TRIES_MAX: usize = 20;
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// A file and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedFile {
    /// As configured and listed: absolute, links not resolved.
    pub path: PathBuf,
    /// All of it, at most [`crate::FILE_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

/// The files of all roots at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSet {
    /// In the order of the roots; within one, the first file and then by name.
    pub files: Vec<WatchedFile>,
    /// SHA-256 over paths and bytes, in hexadecimal.
    pub hash: String,
}

/// Why a file set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The files changed each time they were read.
    #[error("the files change all the time")]
    Moving,
    /// Files that cannot be part of a set, each with its reason.
    #[error("{}", .0.join("; "))]
    Trouble(Vec<String>),
}

/// Reads the set that `config` describes, without watching it.
///
/// # Errors
/// If anything in the way of a complete set is found: a set is never delivered without a file that is
/// there and cannot be read.
pub fn read_set(config: &Config) -> Result<FileSet, ReadError> {
    read_settled(&Scope::parse(config)?)
}

/// [`read_set`] of a scope.
pub(crate) fn read_settled(scope: &Scope) -> Result<FileSet, ReadError> {
    for _ in 0..SETTLE_TRIES_MAX {
        match read(scope).content {
            Ok(set) => return Ok(set),
            Err(Unready::Trouble(reasons)) => return Err(ReadError::Trouble(reasons)),
            Err(Unready::Moving) => thread::sleep(SETTLE_PAUSE),
        }
    }
    Err(ReadError::Moving)
}

/// What one look found.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) listing: Listing,
    pub(crate) content: Result<FileSet, Unready>,
}

/// Why a look found no set.
#[derive(Debug)]
pub(crate) enum Unready {
    /// The files changed meanwhile.
    Moving,
    /// Some files cannot be read.
    Trouble(Vec<String>),
}

/// Lists and reads. The listing is the same before and after the reading, or there is no set.
pub(crate) fn read(scope: &Scope) -> Look {
    let mut listing = Listing::of(scope);
    for _ in 0..READ_TRIES_MAX {
        let content = read_listed(&listing);
        let after = Listing::of(scope);
        if after.is_same_set(&listing) && !matches!(content, Err(Unready::Moving)) {
            return Look { listing, content };
        }
        listing = after;
    }
    let content = Err(Unready::Moving);
    Look { listing, content }
}

fn read_listed(listing: &Listing) -> Result<FileSet, Unready> {
    let mut troubles = listing.troubles.clone();
    let mut files = Vec::new();
    if troubles.is_empty() {
        for (path, stamp) in &listing.content {
            match read_file(path, stamp) {
                Ok(Some(bytes)) => files.push(WatchedFile {
                    path: path.clone(),
                    bytes,
                }),
                Ok(None) => return Err(Unready::Moving),
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(Unready::Moving),
                Err(error) => troubles.push(unreachable_path(path, &error)),
            }
        }
    }
    match troubles.is_empty() {
        true => Ok(FileSet {
            hash: hash(&files),
            files,
        }),
        false => Err(Unready::Trouble(troubles)),
    }
}

/// The content of the file that `stamp` was taken of; `None` if it was replaced or written to meanwhile.
fn read_file(path: &Path, stamp: &Stamp) -> io::Result<Option<Vec<u8>>> {
    // What was a regular file may be a FIFO by now: opening one must not block.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let unchanged = |file: &File| io::Result::Ok(Stamp::of(&file.metadata()?) == *stamp);
    if !unchanged(&file)? {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    (&file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::from(ErrorKind::FileTooLarge));
    }
    Ok(unchanged(&file)?.then_some(bytes))
}

fn hash(files: &[WatchedFile]) -> String {
    let mut hasher = Sha256::new();
    for WatchedFile { path, bytes } in files {
        for part in [path.as_os_str().as_bytes(), bytes] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
