//! The port and the socket that the broker listens on, and who has them if it cannot.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gpu_bridge::Listeners;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::config::Config;
use super::trouble::Trouble;

/// Opens the port and the socket.
pub(super) async fn open(config: &Config) -> Result<Listeners, Trouble> {
    let tcp = match TcpListener::bind(config.listen).await {
        Ok(tcp) => tcp,
        Err(error) => return Err(unbound(config.listen, &error)),
    };
    let unix = match &config.socket {
        Some(path) => listen_on_socket(path).await?,
        None => None,
    };
    Ok(Listeners {
        tcp: Some(tcp),
        unix,
    })
}

/// What it listens on, as a client would write it.
pub(super) fn addresses(config: &Config, tcp: SocketAddr) -> Vec<String> {
    let socket = config.socket.iter();
    let socket = socket.map(|path| format!("unix:{}", path.display()));
    socket.chain([format!("http://{tcp}")]).collect()
}

fn unbound(address: SocketAddr, error: &io::Error) -> Trouble {
    let said = |who: &str| {
        format!(
            "cannot listen on {address}: {error}{who}\nhint: choose another with `--listen ADDR:PORT`"
        )
    };
    match error.kind() {
        ErrorKind::AddrInUse => {
            Trouble::in_use(said(&listener_of(address.port()).unwrap_or_default()))
        }
        _ => Trouble::from(said("")),
    }
}

/// Who listens on a port, for the message: the process that has its socket open.
fn listener_of(port: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let wanted = format!(":{port:04X}");
    let row = table
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let inode = row.into_iter().find_map(|fields| {
        let listening = fields.get(3) == Some(&"0A") && fields.get(1)?.ends_with(&wanted);
        listening
            .then(|| fields.get(9).map(ToString::to_string))
            .flatten()
    })?;
    let link = PathBuf::from(format!("socket:[{inode}]"));
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let owner = pids.into_iter().find(|entry| {
        let fds = fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        fds.into_iter()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == link))
    })?;
    let name = fs::read_to_string(owner.path().join("comm")).ok()?;
    Some(format!(
        " by `{}` (pid {})",
        name.trim(),
        owner.file_name().display()
    ))
}

/// The socket is for everybody of the host: who connects is told apart by its credentials.
async fn listen_on_socket(path: &Path) -> Result<Option<UnixListener>, Trouble> {
    let shown = path.display();
    let left_behind = match UnixStream::connect(path).await {
        Ok(_) => {
            return Err(Trouble::in_use(format!(
                "another broker listens on `{shown}`\nhint: ask it with `gpu-manager status`, or choose another with `--socket PATH`"
            )));
        }
        Err(error) => error.kind() == ErrorKind::ConnectionRefused && is_socket(path),
    };
    let unusable = |error: io::Error| {
        format!(
            "socket `{shown}` cannot be used: {error}\nhint: choose another with `--socket PATH`"
        )
    };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(unusable)?;
    }
    if left_behind {
        fs::remove_file(path).map_err(unusable)?;
    }
    let listener = UnixListener::bind(path).map_err(unusable)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(unusable)?;
    Ok(Some(listener))
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// Removes the socket of a broker that has stopped, so that nobody takes it for one that lives.
pub(super) fn remove_socket(path: &Path) {
    if is_socket(path)
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(%error, "socket `{}` is left behind", path.display());
    }
}
