//! Where a broker is: an address as text, and the places that are tried when nobody says.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The address of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `http://host:port`.
    Tcp {
        /// A name or an address; an IPv6 address without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// `unix:/path`.
    Unix(PathBuf),
}

/// Why a text is no address of a broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseEndpointError {
    /// The host is missing.
    #[error("`{0}` names no host: expected `http://HOST:PORT`")]
    Host(String),
    /// More than an address.
    #[error("`{0}` has a path: expected `http://HOST:PORT` and nothing behind it")]
    Path(String),
    /// The port is no number.
    #[error("`{0}` has no valid port: expected `http://HOST:PORT`")]
    Port(String),
    /// Neither of the two schemes.
    #[error("`{0}` is no address of a broker: expected `http://HOST:PORT` or `unix:/PATH`")]
    Scheme(String),
    /// The socket's path is relative.
    #[error("`{0}` is relative: expected `unix:/PATH`")]
    Relative(String),
    /// TLS.
    #[error(
        "`{0}` asks for TLS, which this client does not speak: use an ssh tunnel or the Unix socket"
    )]
    Tls(String),
}

/// Where a broker of this host puts its socket, beneath the run-time directory of the system or the user.
const SOCKET: &str = "gpu-manager/gpu-manager.sock";
const DEFAULT_PORT: u16 = 8080;

impl Endpoint {
    /// The address without a socket: `http://127.0.0.1:8080`.
    pub fn loopback() -> Self {
        Self::Tcp {
            host: "127.0.0.1".to_owned(),
            port: DEFAULT_PORT,
        }
    }

    /// The sockets that a broker of this host may listen on, the system's first.
    pub fn sockets() -> Vec<PathBuf> {
        let user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        [Some(PathBuf::from("/run")), user]
            .into_iter()
            .flatten()
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(SOCKET))
            .collect()
    }

    /// The first socket of [`Endpoint::sockets`] that somebody listens on, else [`Endpoint::loopback`].
    pub fn find() -> Self {
        match Self::sockets()
            .into_iter()
            .find(|path| is_listened_on(path))
        {
            Some(path) => Self::Unix(path),
            None => Self::loopback(),
        }
    }

    /// What to say in the Host header.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Whether the broker can tell who is asking without a token.
    pub fn has_verified_peer(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path, text);
        }
        if text.starts_with("https:") {
            return Err(ParseEndpointError::Tls(text.to_owned()));
        }
        match text.strip_prefix("http://") {
            Some(rest) => tcp(rest, text),
            None => Err(ParseEndpointError::Scheme(text.to_owned())),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { .. } => write!(f, "http://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Whether a process listens there, also one that hangs and has a full queue: nothing waits for it here.
fn is_listened_on(path: &Path) -> bool {
    let nonblocking = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, nonblocking, None);
    let (Ok(socket), Ok(address)) = (socket, SocketAddrUnix::new(path)) else {
        return false;
    };
    matches!(connect(&socket, &address), Ok(()) | Err(Errno::AGAIN))
}

fn unix(path: &str, text: &str) -> Result<Endpoint, ParseEndpointError> {
    let path = path.strip_prefix("//").unwrap_or(path);
    match Path::new(path).is_absolute() {
        true => Ok(Endpoint::Unix(path.into())),
        false => Err(ParseEndpointError::Relative(text.to_owned())),
    }
}

fn tcp(rest: &str, text: &str) -> Result<Endpoint, ParseEndpointError> {
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(ParseEndpointError::Path(text.to_owned()));
    }
    let (host, port) = match authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, port.strip_prefix(':').or(Some(""))),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(known) {
        return Err(ParseEndpointError::Host(text.to_owned()));
    }
    let port = match port {
        None => 80,
        Some(port) => port
            .parse()
            .map_err(|_| ParseEndpointError::Port(text.to_owned()))?,
    };
    Ok(Endpoint::Tcp {
        host: host.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use rustix::net::{bind, listen};

    use super::*;

    #[test]
    fn a_listener_that_takes_nobody_any_more_is_still_one() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let path = dir.path().join("broker.sock");
        assert!(!is_listened_on(&path), "nothing is there");
        let address = SocketAddrUnix::new(&path).expect("a short path");
        let socket = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
                .expect("sockets can be made")
        };
        let listener = socket();
        bind(&listener, &address).expect("the directory is ours");
        assert!(!is_listened_on(&path), "nobody listens yet");
        listen(&listener, 0).expect("it is bound");
        let mut queue = Vec::new();
        loop {
            let client = socket();
            if connect(&client, &address) == Err(Errno::AGAIN) {
                break;
            }
            queue.push(client);
        }
        assert!(is_listened_on(&path));
        drop(listener);
        assert!(!is_listened_on(&path), "left behind");
    }

    #[test]
    fn addresses_are_read_and_written() {
        let table = [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://gpu-box:9000/", "http://gpu-box:9000"),
            ("http://gpu-box", "http://gpu-box:80"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("unix:///run/a.sock", "unix:/run/a.sock"),
        ];
        for (text, shown) in table {
            assert_eq!(
                text.parse::<Endpoint>().map(|e| e.to_string()),
                Ok(shown.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "127.0.0.1:8080",
            "http://",
            "http://:80",
            "http://a:port",
            "http://a:99999",
            "http://a:80/v1",
            "http://user@a:80",
            "http://a b:80",
            "https://a:80",
            "unix:a.sock",
            "unix:",
            "http://[::1]x",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
