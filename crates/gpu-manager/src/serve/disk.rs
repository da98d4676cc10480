//! The policy files on disk: read, written as a set, and which of them are outside of their directories.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use gpu_bridge::{PolicyFiles, PolicyFilesError};
use gpu_broker::SourceFile;
use gpu_watch::{FileSet, WatchedFile};
use parking_lot::{Mutex, RwLock};

use crate::file::fill;

/// What stands for the files where there are none: everything built in.
const BUILT_IN: &str = "# no policy directory was found\n";
/// Of a file that is not there yet.
const DRAFT_MODE: u32 = 0o600;
/// A name with what is put around it while it is written fits a directory entry.
const NAME_BYTES_MAX: usize = 200;

/// The policy files.
pub(super) struct Disk {
    /// Which are read; changes when the configuration does. `None` where there is no policy directory.
    watched: RwLock<Option<gpu_watch::Config>>,
    /// Names under which a link led outside when they were read, ever: what they said then is remembered
    /// by the reloads of then.
    outside: RwLock<BTreeSet<String>>,
    writing: Mutex<()>,
}

impl Disk {
    pub(super) fn new(watched: Option<gpu_watch::Config>) -> Self {
        Self {
            watched: RwLock::new(watched),
            outside: RwLock::default(),
            writing: Mutex::default(),
        }
    }

    /// What is watched.
    pub(super) fn watched(&self) -> Option<gpu_watch::Config> {
        self.watched.read().clone()
    }

    /// Other files are read from here on.
    pub(super) fn watch_instead(&self, watched: Option<gpu_watch::Config>) {
        *self.watched.write() = watched;
    }

    /// The files as they are now.
    pub(super) fn read(&self) -> Result<Vec<SourceFile>, String> {
        match self.watched() {
            Some(watch) => gpu_watch::read_set(&watch)
                .map(|set| self.sources(&set))
                .map_err(|error| error.to_string()),
            None => Ok(built_in()),
        }
    }

    /// `set` as the broker takes it.
    pub(super) fn sources(&self, set: &FileSet) -> Vec<SourceFile> {
        let roots: Vec<PathBuf> = self.watched().map_or_else(Vec::new, |watch| {
            watch.roots.iter().filter_map(|root| inside(root)).collect()
        });
        let strays = set
            .files
            .iter()
            .filter(|file| is_outside(&file.path, &roots));
        let strays = strays.map(|file| name(&file.path));
        self.outside.write().extend(strays);
        set.files.iter().map(source).collect()
    }

    /// The one directory whose files may be written.
    fn directory(&self) -> Result<(gpu_watch::Config, PathBuf), PolicyFilesError> {
        let read_only = |why: &str| Err(PolicyFilesError::ReadOnly(why.to_owned()));
        let Some(watch) = self.watched() else {
            return read_only("there is no policy directory");
        };
        match watch.roots.as_slice() {
            [root] if root.is_dir() => {
                let root = root.clone();
                Ok((watch, root))
            }
            [_] => read_only("they are no directory"),
            _ => read_only("they are from several places"),
        }
    }
}

impl PolicyFiles for Disk {
    fn quotes(&self, name: &str) -> bool {
        !self.outside.read().contains(name)
    }

    fn place(&self, files: Vec<SourceFile>) -> Result<Vec<SourceFile>, PolicyFilesError> {
        let (watch, root) = self.directory()?;
        let mut placed = Vec::with_capacity(files.len());
        let mut names = BTreeSet::new();
        for file in files {
            let plain = plain_name(&file.name, &root).map_err(|why| refused(&file.name, why))?;
            let path = root.join(&plain);
            if !watch.takes(&path).map_err(failed)? {
                return Err(refused(&file.name, "the watch does not include this name"));
            }
            must_be_no_link(&path)?;
            if !names.insert(plain.clone()) {
                return Err(refused(&file.name, "it is there twice"));
            }
            placed.push((plain, SourceFile::new(name(&path), file.bytes)));
        }
        placed.sort_by_cached_key(|(plain, _)| (*plain != watch.first, plain.clone()));
        Ok(placed.into_iter().map(|(_, file)| file).collect())
    }

    fn write(&self, files: &[SourceFile]) -> Result<Vec<SourceFile>, PolicyFilesError> {
        let _one = self.writing.lock();
        let (watch, root) = self.directory()?;
        let before = gpu_watch::read_set(&watch).map_err(failed)?;
        let before: Vec<SourceFile> = before.files.iter().map(source).collect();
        let gone = before
            .iter()
            .filter(|old| files.iter().all(|new| new.name != old.name));
        let gone: Vec<&Path> = gone.map(|old| Path::new(&old.name)).collect();
        for path in &gone {
            must_be_no_link(path)?;
        }
        let other = files.iter().filter(|file| !before.contains(file));
        let other: Vec<&SourceFile> = other.collect();
        if let Err(error) = replace(&root, &other, &gone) {
            // Whatever had its name already goes back.
            let old: Vec<&SourceFile> = before.iter().collect();
            let new = other.iter().map(|file| Path::new(&file.name));
            let new: Vec<&Path> = new
                .filter(|path| before.iter().all(|old| Path::new(&old.name) != *path))
                .collect();
            if let Err(error) = replace(&root, &old, &new) {
                tracing::error!("policy files are half written: {error}");
            }
            return Err(not_written(&root, &error));
        }
        Ok(before)
    }
}

/// What is read where there is no policy directory.
pub(super) fn built_in() -> Vec<SourceFile> {
    vec![SourceFile::new("default.toml", BUILT_IN)]
}

/// Writes `files` beside their names, gives them their names, then takes `gone` away: a reader sees a whole
/// file or none, and nothing is lost if the host goes down.
fn replace(root: &Path, files: &[&SourceFile], gone: &[&Path]) -> io::Result<()> {
    let mut drafts = Vec::with_capacity(files.len());
    let written = files.iter().try_for_each(|file| {
        let path = Path::new(&file.name);
        let draft = draft_of(path)?;
        drafts.push((draft.clone(), path));
        write_draft(&draft, path, &file.bytes)
    });
    let named = written.and_then(|()| {
        let mut drafts = drafts.iter();
        drafts.try_for_each(|(draft, path)| fs::rename(draft, path))
    });
    if named.is_err() {
        for (draft, _) in &drafts {
            drop(fs::remove_file(draft));
        }
    }
    named?;
    for path in gone {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    File::open(root)?.sync_all()
}

/// A name in the same directory that no set includes: hidden, and never used before.
fn draft_of(path: &Path) -> io::Result<PathBuf> {
    let unique = getrandom::u64().map_err(io::Error::other)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{unique:016x}.new")))
}

fn write_draft(draft: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(DRAFT_MODE);
    fill(&file.open(draft)?, path, bytes)
}

/// The name of `path` within `root`, which may be left out.
fn plain_name(path: &str, root: &Path) -> Result<String, &'static str> {
    let path = Path::new(path)
        .strip_prefix(root)
        .unwrap_or(Path::new(path));
    let name = path.to_str().unwrap_or_default();
    match name {
        "" | "." | ".." => Err("this is no file name"),
        _ if name.contains('/') => Err("only files of the policy directory itself can be written"),
        _ if name.chars().any(char::is_control) => Err("a file name has no control characters"),
        _ if name.len() > NAME_BYTES_MAX => Err("the name is too long"),
        _ => Ok(name.to_owned()),
    }
}

/// What a link leads to belongs to somebody else.
fn must_be_no_link(path: &Path) -> Result<(), PolicyFilesError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => Err(PolicyFilesError::ReadOnly(format!(
            "`{}` is a link or no file",
            path.display()
        ))),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn refused(name: &str, why: &str) -> PolicyFilesError {
    const SHOWN_CHARS_MAX: usize = 80;
    let chars = name.chars().take(SHOWN_CHARS_MAX);
    PolicyFilesError::Name {
        name: chars.flat_map(char::escape_debug).collect(),
        why: why.to_owned(),
    }
}

fn failed(error: impl ToString) -> PolicyFilesError {
    PolicyFilesError::Failed(error.to_string())
}

fn not_written(root: &Path, error: &io::Error) -> PolicyFilesError {
    let text = format!("`{}`: {error}", root.display());
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            PolicyFilesError::ReadOnly(text)
        }
        _ => PolicyFilesError::Failed(text),
    }
}

/// Where files of `root` may really be.
fn inside(root: &Path) -> Option<PathBuf> {
    let found = root.canonicalize();
    found
        .or_else(|_| root.parent().unwrap_or(root).canonicalize())
        .ok()
}

fn is_outside(path: &Path, roots: &[PathBuf]) -> bool {
    let real = path.canonicalize();
    real.is_ok_and(|real| !roots.iter().any(|root| real.starts_with(root)))
}

fn source(file: &WatchedFile) -> SourceFile {
    SourceFile::new(name(&file.path), file.bytes.clone())
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::*;

    fn disk(root: &Path) -> Disk {
        Disk::new(Some(gpu_watch::Config::new([root.to_owned()])))
    }

    fn file(name: &str, text: &str) -> SourceFile {
        SourceFile::new(name, text)
    }

    fn listed(root: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(root).expect("a directory");
        let mut files: Vec<_> = entries
            .map(|entry| {
                let path = entry.expect("an entry").path();
                let name = path
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned();
                (name, fs::read_to_string(path).expect("text"))
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn a_set_replaces_the_set_before_and_can_be_put_back() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        for (name, text) in [
            ("default.toml", "a"),
            ("20-old.toml", "b"),
            ("notes.md", "c"),
        ] {
            fs::write(root.join(name), text).expect("room");
        }
        fs::set_permissions(root.join("default.toml"), Permissions::from_mode(0o640))
            .expect("our file");
        let disk = disk(root);
        let whole = root.join("10-new.toml").display().to_string();
        let placed = disk
            .place(vec![file(&whole, "x"), file("default.toml", "y")])
            .expect("good names");
        assert_eq!(
            placed[0].name,
            root.join("default.toml").display().to_string(),
            "the first file is first"
        );
        let before = disk.write(&placed).expect("room");
        let told = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let pairs = pairs.iter();
            pairs
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        assert_eq!(
            listed(root),
            told(&[
                ("10-new.toml", "x"),
                ("default.toml", "y"),
                ("notes.md", "c")
            ])
        );
        let mode = fs::metadata(root.join("default.toml")).expect("it is there");
        assert_eq!(mode.permissions().mode() & 0o777, 0o640);
        assert_eq!(disk.read().expect("readable"), placed);
        disk.write(&before).expect("room");
        assert_eq!(
            listed(root),
            told(&[
                ("20-old.toml", "b"),
                ("default.toml", "a"),
                ("notes.md", "c")
            ])
        );
    }

    #[test]
    fn a_file_stays_with_its_owner() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("default.toml");
        fs::write(&path, "a").expect("room");
        // Only the superuser can give files away; for anybody else it is the same owner.
        let _ = chown(&path, Some(12), Some(34));
        let owner = |path: &Path| {
            let found = fs::metadata(path).expect("it is there");
            (found.uid(), found.gid())
        };
        let before = owner(&path);
        let disk = disk(root.path());
        let placed = disk.place(vec![file("default.toml", "b")]);
        disk.write(&placed.expect("a good name")).expect("room");
        assert_eq!(fs::read_to_string(&path).expect("text"), "b");
        assert_eq!(owner(&path), before);
    }

    #[test]
    fn names_that_are_no_plain_files_of_the_set_are_refused() {
        let root = tempfile::tempdir().expect("a directory");
        let disk = disk(root.path());
        for name in [
            "",
            "..",
            "../x.toml",
            "/etc/passwd",
            "sub/x.toml",
            "x.md",
            ".hidden.toml",
            "a\nb.toml",
            &"x".repeat(300),
        ] {
            let refused = disk.place(vec![file(name, "")]);
            assert!(
                matches!(refused, Err(PolicyFilesError::Name { .. })),
                "{name:?}: {refused:?}"
            );
        }
        let twice = disk.place(vec![file("a.toml", ""), file("a.toml", "")]);
        assert!(matches!(twice, Err(PolicyFilesError::Name { .. })));
    }

    #[test]
    fn what_belongs_to_others_is_not_written_and_not_quoted() {
        let elsewhere = tempfile::tempdir().expect("a directory");
        let secret = elsewhere.path().join("secret");
        fs::write(&secret, "root:x").expect("room");
        let root = tempfile::tempdir().expect("a directory");
        symlink(&secret, root.path().join("default.toml")).expect("a link");
        fs::write(root.path().join("own.toml"), "").expect("room");
        let one = disk(root.path());
        let read = one.read().expect("readable");
        assert!(!one.quotes(&read[0].name), "a link leads outside");
        assert!(one.quotes(&read[1].name));
        let refused = one.place(vec![file("default.toml", "")]);
        assert!(
            matches!(refused, Err(PolicyFilesError::ReadOnly(_))),
            "{refused:?}"
        );
        fs::remove_file(root.path().join("default.toml")).expect("the link");
        fs::write(root.path().join("default.toml"), "").expect("room");
        let again = one.read().expect("readable");
        assert!(!one.quotes(&again[0].name), "what it said is remembered");
        fs::remove_file(root.path().join("default.toml")).expect("our file");
        symlink(&secret, root.path().join("default.toml")).expect("a link");
        let removed = one.place(vec![file("own.toml", "")]).expect("a good name");
        let refused = one.write(&removed);
        assert!(
            matches!(refused, Err(PolicyFilesError::ReadOnly(_))),
            "{refused:?}"
        );
        let roots = [root.path().to_owned(), elsewhere.path().to_owned()];
        for roots in [None, Some(gpu_watch::Config::new(roots))] {
            let refused = Disk::new(roots).place(vec![]);
            assert!(
                matches!(refused, Err(PolicyFilesError::ReadOnly(_))),
                "{refused:?}"
            );
        }
    }
}
