//! HTTP by hand: exactly the bytes that a test wants to send, well-behaved or not.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use gpu_api::{Lease, Problem};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::patience::SOON;

/// Where a broker listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port.
    Tcp(SocketAddr),
    /// A socket.
    Unix(PathBuf),
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status; 0 if the connection was closed without an answer.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without the framing of chunks.
    pub body: Vec<u8>,
}

/// What came of a request to a broker that may be killed meanwhile.
#[derive(Clone, Debug)]
pub enum Attempt {
    /// A whole answer.
    Answered(Answer),
    /// It may have arrived; nobody can say whether it was done.
    Lost,
    /// Nobody listened.
    Unsent,
}

/// An open connection.
#[derive(Debug)]
pub enum Conversation {
    /// Over a port.
    Tcp(TcpStream),
    /// Over a socket.
    Unix(UnixStream),
}

impl Request {
    /// A request without a body.
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// GET.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// POST of JSON.
    pub fn post(path: &str, body: &Value) -> Self {
        Self::new("POST", path).json(body.to_string())
    }

    /// With a body that claims to be JSON.
    #[must_use]
    pub fn json(self, body: impl Into<Vec<u8>>) -> Self {
        let typed = self.header("content-type", "application/json");
        typed.body(body)
    }

    /// With a body that claims nothing.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// With one more header; one of the name `host` takes the place of the usual one.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name == "host") {
            head.push_str("host: localhost\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("connection: close\r\n\r\n");
        [head.as_bytes(), &self.body].concat()
    }

    /// Sends it and waits for the answer.
    ///
    /// # Panics
    /// If the broker is silent for [`SOON`].
    pub fn send(&self, address: &Address) -> Answer {
        let mut conversation = Conversation::open(address);
        conversation.say(&self.bytes());
        conversation.answer()
    }

    /// Sends it to a broker that may be killed meanwhile.
    ///
    /// # Panics
    /// If the broker lives and is silent for [`SOON`].
    pub fn attempt(&self, address: &Address) -> Attempt {
        let Ok(mut conversation) = Conversation::try_open(address) else {
            return Attempt::Unsent;
        };
        conversation.say(&self.bytes());
        match Answer::parse(&conversation.rest()) {
            Some(answer) if answer.is_whole() => Attempt::Answered(answer),
            _ => Attempt::Lost,
        }
    }

    /// Sends it beside the test, which joins the thread for the answer.
    pub fn send_beside(self, address: &Address) -> JoinHandle<Answer> {
        let address = address.clone();
        thread::spawn(move || self.send(&address))
    }
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON of a type.
    ///
    /// # Panics
    /// If it is none.
    pub fn read<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.status, self.text()))
    }

    /// The body as a lease.
    pub fn lease(&self) -> Lease {
        self.read()
    }

    /// The body as a problem, which says so of itself.
    ///
    /// # Panics
    /// If it is none.
    pub fn problem(&self) -> Problem {
        let kind = self.header("content-type");
        assert_eq!(
            kind,
            Some("application/problem+json"),
            "{}: {}",
            self.status,
            self.text()
        );
        self.read()
    }

    /// Whether nothing of the body is missing.
    fn is_whole(&self) -> bool {
        let length = self.header("content-length");
        length.is_some_and(|length| length == self.body.len().to_string())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let mut answer = Self {
            status,
            headers: lines.filter_map(header).collect(),
            body: bytes[end + 4..].to_vec(),
        };
        if answer.header("transfer-encoding").is_some() {
            answer.body = without_chunks(&answer.body);
        }
        Some(answer)
    }
}

impl Conversation {
    /// Connects.
    ///
    /// # Panics
    /// If nobody listens.
    pub fn open(address: &Address) -> Self {
        Self::try_open(address).expect("the broker listens")
    }

    fn try_open(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(SOON))?;
                Ok(Self::Tcp(stream))
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(SOON))?;
                Ok(Self::Unix(stream))
            }
        }
    }

    /// Sends bytes. A broker that has had enough of them may have closed already.
    pub fn say(&mut self, bytes: &[u8]) {
        let _ = match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        };
    }

    /// Says that nothing more will be sent. A broker that has heard enough may have closed already.
    pub fn half_close(&self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Ends it with a reset instead of a goodbye.
    pub fn reset(self) {
        if let Self::Tcp(stream) = &self {
            let now = Some(std::time::Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(stream, now).expect("a socket");
        }
    }

    /// Whatever comes until the broker closes, as an answer.
    ///
    /// # Panics
    /// If nothing comes and nothing ends for [`SOON`].
    pub fn answer(&mut self) -> Answer {
        let nothing = || Answer {
            status: 0,
            headers: Vec::new(),
            body: Vec::new(),
        };
        Answer::parse(&self.rest()).unwrap_or_else(nothing)
    }

    fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut piece = [0; 16 * 1024];
        loop {
            let read = match self {
                Self::Tcp(stream) => stream.read(&mut piece),
                Self::Unix(stream) => stream.read(&mut piece),
            };
            match read {
                Ok(0) => return bytes,
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    let so_far = String::from_utf8_lossy(&bytes);
                    panic!("the broker hangs; so far it said `{so_far}`");
                }
                // A reset: what came before it counts.
                Err(_) => return bytes,
            }
        }
    }
}

fn without_chunks(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = String::from_utf8_lossy(&bytes[..end]);
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let rest = &bytes[end + 2..];
        if size == 0 || rest.len() < size + 2 {
            return body;
        }
        body.extend_from_slice(&rest[..size]);
        bytes = &rest[size + 2..];
    }
    body
}
