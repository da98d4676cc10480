//! Which files there are, without reading them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::config::{Role, Root, Scope};
use crate::links::link_stamps;

/// A directory with more entries than this is refused.
pub const ENTRIES_MAX: usize = 10_000;

/// A set of more files than this is refused.
pub const FILES_MAX: usize = 256;

/// A file larger than this many bytes is refused.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

const TROUBLES_MAX: usize = 16;

/// What tells that a file was replaced or written, as far as the file system says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether the content cannot be another, the permissions aside.
    pub(crate) fn same_content(&self, other: &Self) -> bool {
        let content = |stamp: &Self| (stamp.device, stamp.inode, stamp.size, stamp.modified);
        content(self) == content(other)
    }
}

/// The files of a scope at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The files of the set, in order.
    pub(crate) content: Vec<(PathBuf, Stamp)>,
    /// The links on the ways to them. Whoever swaps a whole directory replaces one.
    links: Vec<Stamp>,
    /// The files whose changes are told.
    pub(crate) log_only: BTreeMap<PathBuf, Stamp>,
    /// Why this is not all there should be.
    pub(crate) troubles: Vec<String>,
}

impl Listing {
    pub(crate) fn of(scope: &Scope) -> Self {
        let mut listing = Self::default();
        for root in &scope.roots {
            listing.add_root(scope, root);
        }
        if listing.content.len() > FILES_MAX {
            listing.trouble(format!("there are more than {FILES_MAX} files"));
        }
        listing
    }

    /// Whether both were taken of the same files of the set, unchanged.
    pub(crate) fn is_same_set(&self, other: &Self) -> bool {
        self.content == other.content
            && self.links == other.links
            && self.troubles == other.troubles
    }

    fn add_root(&mut self, scope: &Scope, root: &Root) {
        let path = root.directory();
        match (root, fs::metadata(path)) {
            (_, Err(error)) => self.trouble(unreachable_path(path, &error)),
            (_, Ok(metadata)) if metadata.is_dir() => self.add_directory(scope, root),
            (Root::Glob { .. }, Ok(_)) => {
                self.trouble(format!("`{}` is not a directory", path.display()))
            }
            (Root::Path(_), Ok(_)) if scope.excludes(path) => {}
            (Root::Path(_), Ok(_)) => self.add_file(path.to_owned(), Role::Content),
        }
    }

    fn add_directory(&mut self, scope: &Scope, root: &Root) {
        let directory = root.directory();
        let mut names = match names(directory) {
            Ok(names) => names,
            Err(error) => return self.trouble(unreachable_path(directory, &error)),
        };
        if names.len() > ENTRIES_MAX {
            return self.trouble(format!(
                "`{}` has more than {ENTRIES_MAX} entries",
                directory.display()
            ));
        }
        names.sort_by_cached_key(|name| (*name != scope.first, name.clone()));
        for name in names {
            match scope.role(root, &name) {
                Role::Foreign => {}
                role => self.add_file(directory.join(name), role),
            }
        }
    }

    fn add_file(&mut self, path: PathBuf, role: Role) {
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error)
                if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() =>
            {
                return; // It went between two system calls, as files do.
            }
            Err(_) if role == Role::LogOnly => return, // Nothing of it is read.
            Err(error) => return self.trouble(unreachable_path(&path, &error)),
        };
        let stamp = Stamp::of(&metadata);
        match role {
            Role::LogOnly => drop(self.log_only.insert(path, stamp)),
            _ => match refusal(&path, &metadata) {
                Some(reason) => self.trouble(reason),
                None if self.content.iter().any(|(known, _)| *known == path) => {}
                None => {
                    self.links.extend(link_stamps(&path));
                    self.content.push((path, stamp));
                }
            },
        }
    }

    fn trouble(&mut self, reason: String) {
        if self.troubles.len() < TROUBLES_MAX {
            self.troubles.push(reason);
        }
    }
}

/// Why a file that is there cannot be part of the set.
fn refusal(path: &Path, metadata: &Metadata) -> Option<String> {
    let kind = metadata.file_type();
    let path = path.display();
    if kind.is_file() {
        let limit = FILE_BYTES_MAX >> 20;
        return (metadata.len() > FILE_BYTES_MAX)
            .then(|| format!("`{path}` is larger than {limit} MiB"));
    }
    let found = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Some(format!("`{path}` is {found}, not a regular file"))
}

/// In words, why there is nothing at `path`.
pub(crate) fn unreachable_path(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    let link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    match error.kind() {
        ErrorKind::NotFound if link => format!("`{shown}` is a link to nothing"),
        ErrorKind::NotFound => format!("`{shown}` does not exist"),
        ErrorKind::PermissionDenied => format!("`{shown}` may not be read: permission denied"),
        _ => format!("`{shown}` cannot be read: {error}"),
    }
}

/// The names in a directory, one more than allowed at most.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(directory)?.take(ENTRIES_MAX + 1);
    entries.map(|entry| Ok(entry?.file_name())).collect()
}
