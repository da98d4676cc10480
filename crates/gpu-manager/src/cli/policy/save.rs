//! A policy file is replaced whole, by one person at a time, and only if nobody else did meanwhile.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::file::fill;

/// Why a file is not edited or saved.
#[derive(Debug)]
pub(super) enum SaveError {
    /// Somebody else saved it since it was read.
    Changed(PathBuf),
    /// The system refuses.
    Io {
        /// What was tried, such as `read`.
        verb: &'static str,
        /// Of which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else edits policy files there.
    Locked(PathBuf),
}

/// Keeps others from editing in a directory until it is dropped.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "the lock lasts as long as it is open")] File);

/// A file beside the one that is edited, which is not read as a policy and goes when this is dropped.
#[derive(Debug)]
pub(super) struct Draft(PathBuf);

impl Lock {
    /// Locks `directory`, or says at once that it is locked.
    pub(super) fn take(directory: &Path) -> Result<Self, SaveError> {
        let file = File::open(directory).map_err(failed("open", directory))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(SaveError::Locked(directory.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed("lock", directory)(source)),
        }
    }
}

impl Draft {
    /// A private copy of `bytes` beside `target`.
    pub(super) fn of(target: &Path, bytes: &[u8]) -> Result<Self, SaveError> {
        let path = beside(target, "edit.toml");
        let mut file = create(&path)?;
        let draft = Self(path);
        file.write_all(bytes).map_err(failed("write", &draft.0))?;
        Ok(draft)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Leaves it where it is.
    pub(super) fn keep(self) -> PathBuf {
        let path = self.0.clone();
        mem::forget(self);
        path
    }

    /// What it says now; an editor may have replaced it.
    pub(super) fn read(&self) -> Result<Vec<u8>, SaveError> {
        fs::read(&self.0).map_err(failed("read", &self.0))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // If it is gone already, all the better.
        let _ = fs::remove_file(&self.0);
    }
}

/// All of `path`; `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, SaveError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path)(source)),
    }
}

/// Makes `bytes` the content of `target` if it is still `expected`; whoever reads it sees the one or the other.
/// Mode and owner stay.
pub(super) fn replace(
    target: &Path,
    expected: Option<&[u8]>,
    bytes: &[u8],
) -> Result<(), SaveError> {
    if read(target)?.as_deref() != expected {
        return Err(SaveError::Changed(target.to_owned()));
    }
    let path = beside(target, "new");
    let file = create(&path)?;
    let new = Draft(path);
    fill(&file, target, bytes).map_err(failed("write", &new.0))?;
    fs::rename(&new.0, target).map_err(failed("replace", target))?;
    let directory = target.parent().unwrap_or(Path::new("/"));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync", directory))
}

/// `/dir/.default.4242.new` for `/dir/default.toml`: a name with a dot is no policy file.
fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_stem().unwrap_or_default());
    name.push(format!(".{}.{suffix}", std::process::id()));
    target.with_file_name(name)
}

fn create(path: &Path) -> Result<File, SaveError> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    options.open(path).map_err(failed("create", path))
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SaveError {
    let path = path.to_owned();
    move |source| SaveError::Io { verb, path, source }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::file::{MODE_MASK, NEW_MODE};

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        let name = |entry: io::Result<fs::DirEntry>| {
            let name = entry.expect("an entry").file_name();
            name.into_string().expect("plain text")
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("default.toml");
        fs::write(&target, "old").expect("writes");
        fs::set_permissions(&target, Permissions::from_mode(0o640)).expect("its own file");
        let inode = fs::metadata(&target).expect("there").ino();
        replace(&target, Some(b"old"), b"new").expect("saved");
        let metadata = fs::metadata(&target).expect("there");
        assert_eq!(fs::read(&target).expect("there"), b"new");
        assert_eq!(metadata.mode() & MODE_MASK, 0o640);
        assert_ne!(metadata.ino(), inode, "never half of it can be read");
        assert_eq!(names(directory.path()), ["default.toml"]);
    }

    #[test]
    fn what_somebody_else_saved_meanwhile_is_not_lost() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("default.toml");
        fs::write(&target, "theirs").expect("writes");
        let error = replace(&target, Some(b"old"), b"mine").expect_err("changed");
        assert!(matches!(error, SaveError::Changed(_)), "{error:?}");
        let error = replace(&target, None, b"mine").expect_err("there by now");
        assert!(matches!(error, SaveError::Changed(_)), "{error:?}");
        assert_eq!(fs::read(&target).expect("there"), b"theirs");
    }

    #[test]
    fn a_new_file_can_be_read_by_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let target = directory.path().join("50-night.toml");
        replace(&target, None, b"new").expect("saved");
        let mode = fs::metadata(&target).expect("there").mode();
        assert_eq!(mode & MODE_MASK, NEW_MODE);
    }

    #[test]
    fn two_do_not_edit_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Lock::take(directory.path()).expect("free");
        let second = Lock::take(directory.path()).expect_err("taken");
        assert!(matches!(second, SaveError::Locked(_)), "{second:?}");
        drop(first);
        Lock::take(directory.path()).expect("free again");
    }

    #[test]
    fn a_draft_is_no_policy_file_and_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let draft = Draft::of(&directory.path().join("default.toml"), b"text").expect("a draft");
        assert_eq!(draft.read().expect("there"), b"text");
        assert!(names(directory.path())[0].starts_with('.'));
        let set = gpu_watch::read_set(&gpu_watch::Config::new([directory.path().to_owned()]));
        assert!(set.expect("readable").files.is_empty());
        drop(draft);
        assert!(names(directory.path()).is_empty());
    }
}
