//! Making a file as small as its rows.

use std::fs;
use std::path::Path;

use super::RedbStore;
use super::open::{OpenError, check_format, is_there, open_locked};

/// What compacting a file did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Its size before, in bytes.
    pub before_bytes: u64,
    /// Its size after, in bytes.
    pub after_bytes: u64,
}

impl RedbStore {
    /// Makes the file `path`, which no broker has open, as small as its rows. It is sound at every moment:
    /// whenever the process ends, what was committed is there.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::InUse`] while a broker lives, [`OpenError::Compact`] if the disk fails.
    pub fn compact(path: &Path) -> Result<Compacted, OpenError> {
        if !is_there(path)? {
            return Err(OpenError::Missing {
                path: path.to_owned(),
            });
        }
        let before_bytes = size(path)?;
        let mut database = open_locked(path)?;
        check_format(&database, path)?;
        let failed = |detail: String| OpenError::Compact {
            path: path.to_owned(),
            detail,
        };
        database
            .compact()
            .map_err(|error| failed(error.to_string()))?;
        database
            .close()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Compacted {
            before_bytes,
            after_bytes: size(path)?,
        })
    }
}

fn size(path: &Path) -> Result<u64, OpenError> {
    let found = fs::metadata(path).map_err(|source| OpenError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    Ok(found.len())
}
