//! How a policy file is written, whoever does it.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

/// The mode of a file that is new.
pub(crate) const NEW_MODE: u32 = 0o644;
/// The permission bits of a mode.
pub(crate) const MODE_MASK: u32 = 0o7777;

/// Writes `bytes` into `file`, which is to take the name `target`: with the mode and the owner of the file that
/// has it now.
///
/// # Errors
/// It cannot be written, or given to that owner.
pub(crate) fn fill(mut file: &File, target: &Path, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    let mode = match fs::metadata(target) {
        Ok(old) => {
            let new = file.metadata()?;
            if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
                fchown(file, Some(old.uid()), Some(old.gid()))?;
            }
            old.mode() & MODE_MASK
        }
        Err(error) if error.kind() == ErrorKind::NotFound => NEW_MODE,
        Err(error) => return Err(error),
    };
    // After the owner: a change of owner takes bits of the mode away.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}
