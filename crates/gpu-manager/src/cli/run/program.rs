//! Whether a command can be run, before anybody waits for a device for it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::cli::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND};

/// What a shell says of a command that cannot be run.
pub(crate) fn failure(program: &OsStr, error: &io::Error) -> Failure {
    let program = program.to_string_lossy();
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(NOT_FOUND, format!("`{program}` is not found")),
        _ => Failure::new(
            NOT_EXECUTABLE,
            format!("`{program}` cannot be executed: {error}"),
        ),
    }
}

/// Looks for `program` as a shell does.
pub(crate) fn find(program: &OsStr) -> Result<(), Failure> {
    look(program, std::env::var_os("PATH")).map_err(|error| failure(program, &error))
}

fn look(program: &OsStr, path: Option<OsString>) -> io::Result<()> {
    if program.as_bytes().contains(&b'/') {
        return executable(Path::new(program));
    }
    let mut worst = io::Error::from(io::ErrorKind::NotFound);
    let directories: Vec<PathBuf> = path.iter().flat_map(std::env::split_paths).collect();
    for directory in directories {
        match executable(&directory.join(program)) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => worst = error,
        }
    }
    Err(worst)
}

fn executable(path: &Path) -> io::Result<()> {
    match path.metadata()?.is_dir() {
        true => Err(io::ErrorKind::PermissionDenied.into()),
        false => Ok(access(path, Access::EXEC_OK)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_as_a_shell_does() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("data"), "").expect("a file");
        let path = || {
            Some(OsString::from(format!(
                "{}:/usr/bin:/bin",
                dir.path().display()
            )))
        };
        let code = |program: &str| {
            let program = OsStr::new(program);
            look(program, path())
                .err()
                .map(|error| failure(program, &error).code)
        };
        assert_eq!(code("sh"), None);
        assert_eq!(code("/bin/sh"), None);
        assert_eq!(code("no-such-program"), Some(NOT_FOUND));
        assert_eq!(code("/no/such/program"), Some(NOT_FOUND));
        assert_eq!(code("data"), Some(NOT_EXECUTABLE));
        assert_eq!(code("/"), Some(NOT_EXECUTABLE));
    }
}
