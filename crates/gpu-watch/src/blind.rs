//! Where the file system does not tell of every change, so that only the poll sees it.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statfs, statx};

use crate::links::Points;
use crate::listing::Listing;

/// More paths than this are not named in a warning.
const NAMED_MAX: usize = 8;

/// Kinds of file systems, by `f_type`, whose content changes without an event: on another host, in another
/// program, in the kernel.
const SILENT: [(u32, &str); 10] = [
    (0x0000_517b, "SMB"),
    (0x0000_6969, "NFS"),
    (0x0000_9fa0, "proc"),
    (0x00c3_6400, "Ceph"),
    (0x0102_1997, "9P"),
    (0x0bd0_0bd0, "Lustre"),
    (0x6265_6572, "sysfs"),
    (0x6573_5546, "FUSE"),
    (0xfe53_4d42, "SMB"),
    (0xff53_4d42, "CIFS"),
];

/// Paths that only the poll sees, each with the reason as the end of a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blind(Vec<(PathBuf, String)>);

impl Blind {
    /// Those among the directories of `points` and the files of `listing`.
    pub(crate) fn of(points: &Points, listing: &Listing) -> Self {
        let directories = points.directories().filter_map(|path| {
            let kind = silent(path)?;
            Some((path.clone(), format!("is on {kind}")))
        });
        let files = listing.content.iter().map(|(path, _)| path);
        let files = files.filter(|path| is_mount(path));
        let files = files.map(|path| (path.clone(), "is mounted by itself".to_owned()));
        Self(directories.chain(files).collect())
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter().map(|(path, _)| path)
    }

    /// In words, if there is anything to say.
    pub(crate) fn warning(&self) -> Option<String> {
        let name = |(path, reason): &(PathBuf, String)| format!("`{}` {reason}", path.display());
        let named: Vec<String> = self.0.iter().take(NAMED_MAX).map(name).collect();
        let more = match self.0.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        (!named.is_empty()).then(|| format!("{}{more}", named.join(", ")))
    }
}

/// The name of the file system at `path`, if it is one that does not tell of every change.
fn silent(path: &Path) -> Option<&'static str> {
    let found = u32::try_from(statfs(path).ok()?.f_type).ok()?;
    let (_, name) = SILENT.iter().find(|(kind, _)| *kind == found)?;
    Some(name)
}

/// Whether the file at `path` is where something is mounted: what is written to it elsewhere is no event of
/// the directory that it seems to be in.
fn is_mount(path: &Path) -> bool {
    statx(CWD, path, AtFlags::empty(), StatxFlags::empty()).is_ok_and(|found| {
        let mount = StatxAttributes::MOUNT_ROOT;
        found.stx_attributes_mask.contains(mount) && found.stx_attributes.contains(mount)
    })
}
