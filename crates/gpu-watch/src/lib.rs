//! Turns a set of paths into the bytes of their files, read once after a change has settled.
//!
//! Owns the watching of directories, the poll behind it, the debounce and the reading of consistent file
//! sets. The content hash decides whether something changed; events of the file system are hints of when
//! to look. Must never know what is in the files or who wants them.

mod blind;
mod config;
mod debounce;
mod links;
mod listing;
mod notices;
mod read;
mod run;
mod shared;
mod watch;

pub use config::{BackendChoice, Config, ConfigError};
pub use listing::{ENTRIES_MAX, FILE_BYTES_MAX, FILES_MAX};
pub use read::{FileSet, ReadError, WatchedFile, read_set};
pub use shared::{Backend, Counters, EventKind, LastEvent, Status, WatchedPath};
pub use watch::{Change, Event, StartError, Watch};
