//! A small file system of a test's own, which can be full, or take no writes.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, mounted for as long as the value lives. Mounting needs root.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many MiB on `path`; nothing, and a word why, where this process is not root.
    pub fn mount(path: &Path, mib: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a file system for this");
            return None;
        }
        fs::create_dir_all(path).expect("the directory is ours");
        let options = format!("size={mib}m,mode=700");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(path));
        Some(Self {
            path: path.to_owned(),
        })
    }

    /// Uses up what is left of it.
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("it takes files");
        for size in [64 * 1024, 1] {
            while ballast.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    /// Gives that back.
    pub fn clear(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    /// Takes no more writes. Nobody may have a file open for writing.
    pub fn make_read_only(&self) {
        self.remount("remount,ro");
    }

    /// Takes writes again.
    pub fn make_writable(&self) {
        self.remount("remount,rw");
    }

    fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", options]).arg(&self.path));
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    /// Also while somebody still has a file of it open.
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.path)
            .status();
    }
}

fn run(command: &mut Command) {
    let status = command.status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "{command:?}: {status:?}"
    );
}
