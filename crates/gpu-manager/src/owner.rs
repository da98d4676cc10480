//! Who has a state directory: a file that names the broker's process, so that one that hangs can be named, and
//! ended without hitting another that has its pid by now.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gpu_broker::{ProcessHandle, register_process};
use gpu_client::Endpoint;
use gpu_lease::Process;
use rustix::fs::{Mode, OFlags, open};

/// Within the state directory. The pid alone is in the first line.
pub(crate) const OWNER_FILE: &str = "broker.pid";
/// A broker listens in two places.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// The broker of a state directory, as it said itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) pid: u32,
    start_ticks: u64,
    boot_id: String,
    /// Where it listens: `http://` and `unix:` addresses.
    pub(crate) listen: Vec<String>,
}

/// The file for as long as this lives.
#[derive(Debug)]
pub(crate) struct OwnerFile {
    path: PathBuf,
    owner: Owner,
}

impl OwnerFile {
    /// Says that this process has the store in `dir`. A start does not fail for want of it.
    pub(crate) fn write(dir: &Path, listen: Vec<String>) -> Option<Self> {
        let path = dir.join(OWNER_FILE);
        let written = Owner::this(listen).and_then(|owner| {
            let draft = path.with_extension("pid.new");
            fs::write(&draft, owner.text())?;
            fs::rename(draft, &path)?;
            Ok(owner)
        });
        match written {
            Ok(owner) => Some(Self { path, owner }),
            Err(error) => {
                tracing::warn!(%error, "`{}` cannot be written", path.display());
                None
            }
        }
    }

    /// Removes it, unless another broker has the directory by now.
    pub(crate) fn remove(self) {
        let is_ours = |text: &String| Owner::parse(text).as_ref() == Some(&self.owner);
        if fs::read_to_string(&self.path).is_ok_and(|text| is_ours(&text))
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "`{}` is left behind", self.path.display());
        }
    }
}

impl Owner {
    fn this(listen: Vec<String>) -> io::Result<Self> {
        let this = register_process(std::process::id(), 0, true, false);
        let this = this.map_err(io::Error::other)?;
        Ok(Self {
            pid: this.pid,
            start_ticks: this.start_ticks,
            boot_id: this.boot_id,
            listen,
        })
    }

    /// The broker that has the state directory `dir`, if it lives, with a handle on it. A file that names a process
    /// of another user than its own names no broker: who may write there could name anybody.
    ///
    /// # Errors
    /// The file cannot be read, or is a link, or the kernel would not say.
    pub(crate) fn alive(dir: &Path) -> io::Result<Option<(Self, ProcessHandle)>> {
        let (text, uid) = match read(&dir.join(OWNER_FILE)) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(owner) = Self::parse(&text) else {
            return Ok(None);
        };
        let handle = ProcessHandle::of(&owner.process())?;
        let handle = handle.filter(|_| register_process(owner.pid, uid, false, false).is_ok());
        Ok(handle.map(|handle| (owner, handle)))
    }

    /// Whether its process has the store `path` locked at this moment, as the kernel says: nobody else can make a file
    /// say that. `None` if this user may not look.
    pub(crate) fn has_locked(&self, path: &Path) -> Option<bool> {
        let store = fs::metadata(path).ok().map(|store| identity(&store));
        let proc = PathBuf::from(format!("/proc/{}", self.pid));
        let open = match fs::read_dir(proc.join("fd")) {
            Ok(open) => open,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(false),
            Err(_) => return None,
        };
        let is_store = |fd: &fs::DirEntry| {
            let file = fs::metadata(fd.path()).ok();
            file.map(|file| identity(&file)) == store
        };
        let is_locked = |fd: fs::DirEntry| {
            let info = fs::read_to_string(proc.join("fdinfo").join(fd.file_name()));
            info.is_ok_and(|info| says_write_locked(&info))
        };
        let mut open = open.flatten().filter(|_| store.is_some());
        Some(open.any(|fd| is_store(&fd) && is_locked(fd)))
    }

    /// Where it is asked. Only places of this host: the file is written by whoever has the directory, and a token
    /// goes nowhere else because of it.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        let said = self.listen.iter().filter_map(|at| at.parse().ok());
        said.filter(is_local)
    }

    /// Its process, for a message: `pid 42, which is stopped`.
    pub(crate) fn named(&self) -> String {
        let pid = self.pid;
        match state_of(pid) {
            Some('T' | 't') => format!("pid {pid}, which is stopped"),
            Some('D') => format!("pid {pid}, which hangs in the kernel"),
            _ => format!("pid {pid}"),
        }
    }

    /// How somebody who stopped it lets it go on.
    pub(crate) fn resumed_by(&self) -> Option<String> {
        matches!(state_of(self.pid), Some('T' | 't')).then(|| format!("kill -CONT {}", self.pid))
    }

    fn process(&self) -> Process {
        Process {
            pid: self.pid,
            start_ticks: self.start_ticks,
            boot_id: self.boot_id.clone(),
            uid: 0,
            supervised: false,
        }
    }

    fn text(&self) -> String {
        let listen = self.listen.iter();
        let listen: String = listen.map(|at| format!("listen {at}\n")).collect();
        let (pid, ticks, boot) = (self.pid, self.start_ticks, &self.boot_id);
        format!("{pid}\nstart_ticks {ticks}\nboot_id {boot}\n{listen}")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut owner = Self {
            pid: lines.next()?.parse().ok()?,
            start_ticks: lines.next()?.strip_prefix("start_ticks ")?.parse().ok()?,
            boot_id: lines.next()?.strip_prefix("boot_id ")?.to_owned(),
            listen: Vec::new(),
        };
        let listen = lines.filter_map(|line| line.strip_prefix("listen "));
        owner.listen.extend(listen.map(ToOwned::to_owned));
        Some(owner)
    }
}

/// The text of a file, and the user whose it is.
fn read(path: &Path) -> io::Result<(String, u32)> {
    // What is put there instead of a file is not followed, and not waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    let uid = file.metadata()?.uid();
    let mut text = String::new();
    file.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    Ok((text, uid))
}

/// Whether that is an address of this host alone.
fn is_local(endpoint: &Endpoint) -> bool {
    match endpoint {
        Endpoint::Unix(_) => true,
        Endpoint::Tcp { host, .. } => {
            let address: Option<std::net::IpAddr> = host.parse().ok();
            host == "localhost" || address.is_some_and(|address| address.is_loopback())
        }
    }
}

/// What a file is, whatever it is called.
fn identity(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Whether `/proc/PID/fdinfo/FD` tells of a lock that lets nobody else in: `lock: 1: FLOCK  ADVISORY  WRITE 42 ...`.
fn says_write_locked(info: &str) -> bool {
    let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
    locks.any(|lock| lock.split_ascii_whitespace().any(|word| word == "WRITE"))
}

/// The letter that `ps` shows.
fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_the_pid_by_chance_is_not_the_broker() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        assert!(matches!(Owner::alive(dir.path()), Ok(None)), "no file");
        let listen = vec!["unix:/run/x.sock".to_owned()];
        let file = OwnerFile::write(dir.path(), listen).expect("the directory is ours");
        let (owner, _) = Owner::alive(dir.path())
            .expect("a file")
            .expect("this process lives");
        assert_eq!(owner, file.owner);
        assert_eq!(Owner::parse(&owner.text()), Some(owner.clone()));

        let later = Owner {
            start_ticks: owner.start_ticks + 1,
            ..owner
        };
        fs::write(dir.path().join(OWNER_FILE), later.text()).expect("the directory is ours");
        assert!(matches!(Owner::alive(dir.path()), Ok(None)));
        file.remove();
        assert!(dir.path().join(OWNER_FILE).exists(), "it is another's");
        fs::write(dir.path().join(OWNER_FILE), "1\n").expect("the directory is ours");
        assert!(matches!(Owner::alive(dir.path()), Ok(None)), "half a file");
    }

    #[test]
    fn only_who_has_the_store_locked_has_it() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let path = dir.path().join("store");
        let owner = Owner::this(Vec::new()).expect("there is a /proc");
        let has = || owner.has_locked(&path);
        assert_eq!(has(), Some(false), "there is none");
        let store = File::create(&path).expect("the directory is ours");
        assert_eq!(has(), Some(false), "to have it open is not enough");
        store.lock_shared().expect("nobody has it");
        assert_eq!(has(), Some(false), "who reads it lets others in");
        store.lock().expect("nobody else has it");
        assert_eq!(has(), Some(true));
        fs::rename(&path, dir.path().join("elsewhere")).expect("the directory is ours");
        fs::write(&path, "").expect("the directory is ours");
        assert_eq!(has(), Some(false), "another file has the name");
    }

    #[test]
    fn nobody_is_asked_on_another_host() {
        let listen = [
            "http://192.0.2.1:80",
            "http://127.0.0.1:8080",
            "unix:/run/x.sock",
            "?",
        ];
        let owner = Owner::this(listen.map(str::to_owned).to_vec()).expect("there is a /proc");
        let asked: Vec<String> = owner.endpoints().map(|at| at.to_string()).collect();
        assert_eq!(asked, ["http://127.0.0.1:8080", "unix:/run/x.sock"]);
    }

    #[test]
    fn a_file_of_another_user_or_a_link_names_no_broker() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let path = dir.path().join(OWNER_FILE);
        let elsewhere = tempfile::tempdir().expect("a directory can be made");
        OwnerFile::write(elsewhere.path(), Vec::new()).expect("the directory is ours");
        std::os::unix::fs::symlink(elsewhere.path().join(OWNER_FILE), &path).expect("it is ours");
        assert!(Owner::alive(dir.path()).is_err(), "a link");
        fs::remove_file(&path).expect("the directory is ours");

        OwnerFile::write(dir.path(), Vec::new()).expect("the directory is ours");
        assert!(matches!(Owner::alive(dir.path()), Ok(Some(_))));
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give a file to another user");
            return;
        }
        std::os::unix::fs::chown(&path, Some(65534), None).expect("this is root");
        assert!(
            matches!(Owner::alive(dir.path()), Ok(None)),
            "nobody cannot say that a process of root is the broker"
        );
    }
}
