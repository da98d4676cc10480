//! Which directories to watch so that no change of a path is missed: the parent of every link, directory
//! and file on the way to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::config::{Role, Scope};
use crate::listing::{Listing, Stamp};

const LINKS_MAX: usize = 40;

/// Directories by their real path, and what in them matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Points(BTreeMap<PathBuf, Point>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Point {
    /// Entries that the way to a file goes through.
    names: BTreeSet<OsString>,
    /// Roots, by index, whose files are here.
    roots: BTreeSet<usize>,
}

impl Points {
    /// The directories on the ways to the roots of `scope` and to the files of `listing`.
    pub(crate) fn of(scope: &Scope, listing: &Listing) -> Self {
        let mut points = Self::default();
        for (index, root) in scope.roots.iter().enumerate() {
            if let Some(directory) = points.follow(root.directory()) {
                points.0.entry(directory).or_default().roots.insert(index);
            }
        }
        for path in listing.content.iter().map(|(path, _)| path) {
            points.follow(path);
        }
        points
    }

    pub(crate) fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.keys()
    }

    /// Whether `path` is one of the directories themselves.
    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.0.contains_key(path)
    }

    /// Whether a change of `path` can be a change of the set.
    pub(crate) fn concerns(&self, scope: &Scope, path: &Path) -> bool {
        if self.contains(path) {
            return true;
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return false;
        };
        let Some(point) = self.0.get(directory) else {
            return false;
        };
        let listed = |root: &usize| scope.role(&scope.roots[*root], name) != Role::Foreign;
        point.names.contains(name) || point.roots.iter().any(listed)
    }

    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        follow(path, |step| self.note(step.directory, step.name))
    }

    fn note(&mut self, directory: &Path, name: &OsStr) {
        let point = self.0.entry(directory.to_owned()).or_default();
        point.names.insert(name.to_owned());
    }
}

/// The stamps of the links on the way to `path`: a link that is replaced has another, wherever it points.
pub(crate) fn link_stamps(path: &Path) -> Vec<Stamp> {
    let mut stamps = Vec::new();
    follow(path, |step| stamps.extend(step.link));
    stamps
}

/// A name on the way to a path that can be replaced by another.
struct Step<'a> {
    directory: &'a Path,
    name: &'a OsStr,
    /// Of the link, if it is one.
    link: Option<Stamp>,
}

/// Walks to `path` as the kernel does, and notes each link and the end; the real path if that is a directory.
fn follow(path: &Path, mut note: impl FnMut(Step<'_>)) -> Option<PathBuf> {
    let mut at = PathBuf::from("/");
    let mut rest: VecDeque<OsString> = steps(path).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let mut note = |link| {
            note(Step {
                directory: &at,
                name: &name,
                link,
            })
        };
        let Ok(metadata) = fs::symlink_metadata(&next) else {
            note(None);
            return None;
        };
        if metadata.is_symlink() {
            note(Some(Stamp::of(&metadata)));
            links += 1;
            let target = fs::read_link(&next).ok().filter(|_| links <= LINKS_MAX)?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            rest = steps(&target).chain(rest).collect();
        } else if rest.is_empty() || !metadata.is_dir() {
            note(None);
            return metadata.is_dir().then_some(next);
        } else {
            at = next;
        }
    }
    Some(at)
}

/// The names on the way, without the root.
fn steps(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::CurDir | Component::Prefix(_) | Component::RootDir => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::Config;

    #[test]
    fn every_link_on_the_way_has_its_parent_watched() {
        let temp = tempfile::tempdir().expect("a directory");
        let top = temp.path().canonicalize().expect("a real path");
        fs::create_dir_all(top.join("set/..t1")).expect("a directory");
        fs::write(top.join("set/..t1/default.toml"), "x").expect("a file");
        symlink("..t1", top.join("set/..data")).expect("a link");
        symlink("..data/default.toml", top.join("set/default.toml")).expect("a link");
        symlink("set", top.join("policies")).expect("a link");

        let scope = Scope::parse(&Config::new([top.join("policies")])).expect("a scope");
        let points = Points::of(&scope, &Listing::of(&scope));
        let directories: Vec<_> = points.directories().cloned().collect();
        assert_eq!(
            directories,
            [top.clone(), top.join("set"), top.join("set/..t1")]
        );

        for (path, concerns) in [
            ("policies", true),
            ("set", true),
            ("other", false),
            ("set/default.toml", true),
            ("set/..data", true),
            ("set/..t2", false),
            ("set/new.toml", true),
            ("set/.new.toml.swp", false),
            ("set/4913", false),
            ("set/..t1/default.toml", true),
            ("set/..t1/other.toml", false),
        ] {
            assert_eq!(points.concerns(&scope, &top.join(path)), concerns, "{path}");
        }
    }

    #[test]
    fn a_loop_of_links_ends_and_a_missing_root_is_awaited_where_it_would_be() {
        let temp = tempfile::tempdir().expect("a directory");
        let top = temp.path().canonicalize().expect("a real path");
        symlink("b", top.join("a")).expect("a link");
        symlink("a", top.join("b")).expect("a link");
        let scope = Scope::parse(&Config::new([top.join("a"), top.join("later/policies")]))
            .expect("a scope");
        let points = Points::of(&scope, &Listing::of(&scope));
        for name in ["a", "b", "later"] {
            assert!(points.concerns(&scope, &top.join(name)), "{name}");
        }
    }
}
