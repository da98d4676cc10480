//! Opening and creating store files. Whatever is not certainly a store of ours is refused and left as it is.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageBackend, StorageError};

#[cfg(feature = "crash-disk")]
use super::compact::compact;
use super::compact::compact_if_it_pays;
use super::held_back::HeldBack;
use super::tables::{FORMAT, META, META_FORMAT};
use super::{RedbStore, StoreSnapshot, write};
use crate::event::StoreId;
use crate::store::StorageFault;

/// Only the owner reads what clients sent.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// All rows that are ever looked up again fit in less.
const CACHE_BYTES: usize = 4 << 20;

/// A command that takes a snapshot locks the file for a moment; a start at that moment tries again.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_RETRY_MS: u64 = 50;

/// Why a store file was not opened. The file is as it was, to the byte; but where the disk failed
/// ([`Self::Unreadable`], [`Self::Compact`]) it may be half repaired, as a crash leaves it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not what redb wrote.
    #[error("the store `{}` is damaged: {detail}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// It could not be made smaller.
    #[error("cannot compact the store `{}`: {detail}", path.display())]
    Compact {
        /// The file.
        path: PathBuf,
        /// Why not.
        detail: String,
    },
    /// It could not be made.
    #[error("cannot create the store `{}`: {source}", path.display())]
    Create {
        /// The file, or the directory for it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file without a byte in it, which no store ever is.
    #[error("the store `{}` is an empty file", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A file of something else.
    #[error("`{}` is not a store of gpu-manager: {detail}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How it is known.
        detail: String,
    },
    /// Another process has it open.
    #[error("the store `{}` is in use by another broker", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// There is none to take a snapshot of.
    #[error("there is no store `{}`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A later version wrote it.
    #[error(
        "the store `{}` has format {found}, and this version knows formats up to {FORMAT}",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A directory, a device, a pipe.
    #[error("the store `{}` is not a regular file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// The system does not let us.
    #[error("cannot open the store `{}`: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl OpenError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } | Self::Empty { .. } => {
                "`gpu-manager store check` says what can still be read; restore a copy, or move the file away to start with no leases; holders that still run are then unknown"
            }
            Self::Compact { .. } => "nothing is lost; look at the disk and try again",
            Self::Create { source, .. } => fault_hint(source)
                .unwrap_or("name a directory that this user may write: --state-dir DIR"),
            Self::Foreign { .. } | Self::NotAFile { .. } => {
                "name another directory: --state-dir DIR"
            }
            Self::InUse { .. } => {
                "stop the other broker, or name another directory: --state-dir DIR"
            }
            Self::Missing { .. } => "a broker makes it when it first starts",
            Self::Newer { .. } => "start the version that wrote it, or a later one",
            Self::Unreadable { source, .. } => {
                fault_hint(source).unwrap_or("run as the user that owns the file")
            }
        }
    }
}

/// What to do about an error of the disk; nothing for one of rights or names.
fn fault_hint(error: &io::Error) -> Option<&'static str> {
    match StorageFault::of(error) {
        StorageFault::Other => None,
        fault @ (StorageFault::Full | StorageFault::Io | StorageFault::ReadOnly) => {
            Some(fault.hint())
        }
    }
}

impl RedbStore {
    /// The store in the file `path`. If nothing is there, a new one is made, named `new_store_id`; so are
    /// missing directories. Reads the whole file once, to be sure that it is sound, and makes a file small that
    /// is many times as large as its rows.
    ///
    /// # Errors
    /// [`OpenError`], always when the file exists and is not a sound store of this version.
    pub fn open(path: &Path, new_store_id: StoreId) -> Result<Self, OpenError> {
        if !is_there(path)? {
            create(path, new_store_id)?;
        }
        let mut database = open_locked(path)?;
        let compacted = compact_if_it_pays(&mut database, path)?;
        Ok(Self {
            database,
            two_phase: false,
            compacted,
        })
    }

    /// The store on a disk of a test; a new one is made, named `new_store_id`, where the disk is empty.
    ///
    /// # Errors
    /// As for [`Self::open`].
    #[cfg(feature = "crash-disk")]
    pub fn open_on(disk: crate::CrashDisk, new_store_id: StoreId) -> Result<Self, OpenError> {
        let path = Path::new(TEST_DISK);
        let is_new = disk.len().is_ok_and(|len| len == 0);
        let database = match is_new {
            true => create_on(disk, new_store_id),
            false => open_sound(disk, path),
        };
        Ok(Self {
            database: database?,
            two_phase: false,
            compacted: None,
        })
    }

    /// The same, made as small as its rows before it is given out, as [`Self::open`] does with a large file.
    ///
    /// # Errors
    /// As for [`Self::open`].
    #[cfg(feature = "crash-disk")]
    pub fn open_compacted_on(
        disk: crate::CrashDisk,
        new_store_id: StoreId,
    ) -> Result<Self, OpenError> {
        let mut store = Self::open_on(disk, new_store_id)?;
        compact(&mut store.database, Path::new(TEST_DISK))?;
        Ok(store)
    }

    /// What is in the file `path` now, for a command that finds no broker. Needs no right to write, and
    /// reads what a broker left behind that did not end in order.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::InUse`] while a broker lives.
    pub fn open_read_only(path: &Path) -> Result<StoreSnapshot, OpenError> {
        if !is_there(path)? {
            return Err(OpenError::Missing {
                path: path.to_owned(),
            });
        }
        let bytes = read_locked(path)?;
        let database = open_copy(&bytes).map_err(|error| refusal(path, error))?;
        check_format(&database, path)?;
        Ok(StoreSnapshot { database })
    }
}

/// What an error calls it.
#[cfg(feature = "crash-disk")]
const TEST_DISK: &str = "a disk of a test";

#[cfg(feature = "crash-disk")]
fn create_on(disk: crate::CrashDisk, store_id: StoreId) -> Result<Database, OpenError> {
    let path = Path::new(TEST_DISK);
    let created = builder().create_with_backend(disk);
    let database = created.map_err(|error| refusal(path, error))?;
    let made = write::create_tables(&database, store_id);
    made.map_err(|error| OpenError::Corrupt {
        path: path.to_owned(),
        detail: error.to_string(),
    })?;
    Ok(database)
}

pub(super) fn is_there(path: &Path) -> Result<bool, OpenError> {
    let path = path.to_owned();
    match fs::metadata(&path) {
        Ok(found) if !found.is_file() => Err(OpenError::NotAFile { path }),
        Ok(found) if found.len() == 0 => Err(OpenError::Empty { path }),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(OpenError::Unreadable { path, source }),
    }
}

/// A store appears under its name whole or not at all: a file that was cut short while it was made
/// would otherwise look like one that lost its rows.
fn create(path: &Path, store_id: StoreId) -> Result<(), OpenError> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| OpenError::Create { path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
        .map_err(failed(directory))?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{store_id}.new"));
    let draft = PathBuf::from(draft);
    let published = write_draft(&draft, store_id).and_then(|()| publish(&draft, path));
    let cleared = fs::remove_file(&draft);
    published.and(cleared).map_err(failed(path))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed(directory))
}

fn write_draft(draft: &Path, store_id: StoreId) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(draft)?;
    let other = |error: redb::Error| match error {
        redb::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    };
    let backend = FileBackend::new(file).map_err(|error| other(error.into()))?;
    let database = builder()
        .create_with_backend(backend)
        .map_err(|error| other(error.into()))?;
    write::create_tables(&database, store_id).map_err(other)?;
    database.close().map_err(|error| other(error.into()))
}

/// A link, unlike a rename, never replaces the store that somebody else made in the meantime.
fn publish(draft: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// The sound store of this version in `path`, for this process alone.
pub(super) fn open_locked(path: &Path) -> Result<Database, OpenError> {
    for _ in 1..LOCK_ATTEMPTS {
        match open_file(path) {
            Err(OpenError::InUse { .. }) => thread::sleep(Duration::from_millis(LOCK_RETRY_MS)),
            opened => return opened,
        }
    }
    open_file(path)
}

fn open_file(path: &Path) -> Result<Database, OpenError> {
    let file = || -> Result<FileBackend, DatabaseError> {
        FileBackend::new(OpenOptions::new().read(true).write(true).open(path)?)
    };
    open_sound(file().map_err(|error| refusal(path, error))?, path)
}

/// What is refused is not written to.
fn open_sound(file: impl StorageBackend, path: &Path) -> Result<Database, OpenError> {
    let held_back = HeldBack::new(file).map_err(|error| refusal(path, error.into()))?;
    let database = builder()
        .set_check_integrity_on_open(true)
        .create_with_backend(held_back.clone())
        .map_err(|error| refusal(path, error))?;
    check_format(&database, path)?;
    let written = held_back.let_through();
    written.map_err(|source| OpenError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    Ok(database)
}

/// The bytes of the file `path`, which no broker has open.
pub(super) fn read_locked(path: &Path) -> Result<Vec<u8>, OpenError> {
    let unreadable = |source| OpenError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    match file.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::InUse {
                path: path.to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(unreadable(source)),
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// A file that a broker did not close needs repair before it can be read. That is done on a copy: the
/// file itself may be another user's.
fn open_copy(bytes: &[u8]) -> Result<Database, DatabaseError> {
    let memory = InMemoryBackend::new();
    memory.set_len(bytes.len() as u64)?;
    memory.write(0, bytes)?;
    builder()
        .set_check_integrity_on_open(true)
        .create_with_backend(memory)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn refusal(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenError::InUse { path }
        }
        DatabaseError::UpgradeRequired(version) => OpenError::Foreign {
            path,
            detail: format!("a redb file of version {version}"),
        },
        DatabaseError::Storage(StorageError::Io(source)) => match source.kind() {
            io::ErrorKind::InvalidData => OpenError::Foreign {
                path,
                detail: "not a redb file".to_owned(),
            },
            io::ErrorKind::UnexpectedEof => OpenError::Corrupt {
                path,
                detail: "it is cut short".to_owned(),
            },
            _ => OpenError::Unreadable { path, source },
        },
        other => OpenError::Corrupt {
            path,
            detail: other.to_string(),
        },
    }
}

pub(super) fn check_format(database: &Database, path: &Path) -> Result<(), OpenError> {
    let path = path.to_owned();
    match format(database) {
        Ok(Some(FORMAT)) => Ok(()),
        Ok(Some(found)) if found > FORMAT => Err(OpenError::Newer { path, found }),
        Ok(_) | Err(redb::Error::TableDoesNotExist(_) | redb::Error::TableTypeMismatch { .. }) => {
            Err(OpenError::Foreign {
                path,
                detail: "a redb file of another program".to_owned(),
            })
        }
        Err(error) => Err(OpenError::Corrupt {
            path,
            detail: error.to_string(),
        }),
    }
}

fn format(database: &Database) -> Result<Option<u32>, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    let row = meta.get(META_FORMAT)?;
    Ok(row.and_then(|row| serde_json::from_slice(row.value()).ok()))
}
