//! One exchange at a time over kept connections.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use gpu_api::paths;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use crate::endpoint::Endpoint;
use crate::error::ClientError;

/// Below the patience of every call: nobody there is not the same as somebody who does not answer.
const CONNECT_TIMEOUT_SECS: u64 = 4;
/// How long the broker may take to say what it knows. A person waits for it, and a broker that hangs should be
/// known soon.
pub(crate) const READ_PATIENCE: Duration = Duration::from_secs(5);
/// A broker that is at work for so long is asked whether it lives; after each answer it is asked half as often,
const PING_AFTER: Duration = Duration::from_secs(2);
/// down to this: it closes a connection that is idle for 15 s.
const PING_EVERY_MAX: Duration = Duration::from_secs(10);
/// One that does not even answer that hangs.
const PING_PATIENCE: Duration = READ_PATIENCE.saturating_sub(PING_AFTER);
const IDLE_CONNECTIONS_MAX: usize = 8;
const ANSWER_BYTES_MAX: usize = 64 << 20;

type Sender = SendRequest<Full<Bytes>>;

/// What is sent; cheap to send again.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, HeaderValue)>,
    /// JSON, or empty for none.
    pub(crate) body: Bytes,
    /// Doing it twice is the same as doing it once.
    pub(crate) repeatable: bool,
    /// How long the broker may take to answer.
    pub(crate) patience: Duration,
    /// It may rightly take long: meanwhile the broker is asked whether it lives.
    pub(crate) watched: bool,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// The kept connections to one broker.
#[derive(Debug)]
pub(crate) struct Connections {
    endpoint: Endpoint,
    token: Option<HeaderValue>,
    idle: Mutex<Vec<Sender>>,
}

impl Connections {
    pub(crate) fn new(endpoint: Endpoint, token: Option<HeaderValue>) -> Self {
        Self {
            endpoint,
            token,
            idle: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends `call` and reads the whole answer, in `call.patience` at most. A broker that hangs is not waited for
    /// that long, if the call is watched.
    pub(crate) async fn exchange(&self, call: &Call) -> Result<Answer, ClientError> {
        if !call.watched {
            return self.ask_within(call.patience, call).await;
        }
        // One that hangs already is known before there is anything that it could do late.
        self.ask_within(READ_PATIENCE, &ping()).await?;
        tokio::select! {
            // The call goes first where one connection is all there is.
            biased;
            answer = self.ask_within(call.patience, call) => answer,
            () = self.falls_silent() => Err(self.timed_out(READ_PATIENCE)),
        }
    }

    async fn ask_within(&self, patience: Duration, call: &Call) -> Result<Answer, ClientError> {
        let answer = timeout(patience, self.ask(call)).await;
        answer.unwrap_or_else(|_| Err(self.timed_out(patience)))
    }

    async fn ask(&self, call: &Call) -> Result<Answer, ClientError> {
        let (response, sender) = self.send(call).await?;
        let answer = self.read(response).await?;
        self.keep(sender);
        Ok(answer)
    }

    /// Ends when the broker does not say any more that it lives. One that is gone says so where it is asked, and one
    /// that has no room for the question may be well: it is asked when it has.
    async fn falls_silent(&self) {
        loop {
            if let Some(mut line) = self.line().await {
                line.falls_silent().await;
                if !line.is_lost() {
                    return;
                }
            }
            sleep(PING_AFTER).await;
        }
    }

    /// A connection that the broker has answered on: only there is silence a proof. On a new one it may just not
    /// have been accepted yet.
    async fn line(&self) -> Option<Line<'_>> {
        let known = self.take_idle();
        let is_known = known.is_some();
        let sender = match known {
            Some(sender) => sender,
            None => self.connect().await.ok()?,
        };
        let mut line = Line {
            connections: self,
            sender: Some(sender),
        };
        match is_known || timeout(PING_EVERY_MAX, line.ping()).await == Ok(true) {
            true => Some(line),
            false => {
                line.sender = None;
                None
            }
        }
    }

    /// Sends `call` and answers its head; the body is still to be read. The connection is kept by nobody
    /// until the sender is given back.
    pub(crate) async fn send(
        &self,
        call: &Call,
    ) -> Result<(Response<Incoming>, Sender), ClientError> {
        if let Some(mut sender) = self.take_idle() {
            match sender.try_send_request(self.request(call)).await {
                Ok(response) => return Ok((response, sender)),
                // The broker closes idle connections: what was never sent, or may be done twice, goes again.
                Err(error) if error.message().is_some() || call.repeatable => {}
                Err(error) => return Err(self.lost(error.into_error())),
            }
        }
        let mut sender = self.connect().await?;
        let response = sender
            .send_request(self.request(call))
            .await
            .map_err(|error| self.lost(error))?;
        Ok((response, sender))
    }

    /// Nothing was heard of it for so long.
    pub(crate) fn timed_out(&self, after: Duration) -> ClientError {
        ClientError::TimedOut {
            endpoint: self.endpoint.clone(),
            after,
        }
    }

    pub(crate) fn lost(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Lost {
            endpoint: self.endpoint.clone(),
            source: source.into(),
        }
    }

    pub(crate) fn not_a_broker(&self, detail: impl Into<String>) -> ClientError {
        ClientError::NotABroker {
            endpoint: self.endpoint.clone(),
            detail: detail.into(),
        }
    }

    pub(crate) async fn read(&self, response: Response<Incoming>) -> Result<Answer, ClientError> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| self.lost(error))?;
        Ok(Answer {
            status: head.status,
            body: body.to_bytes(),
        })
    }

    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock();
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock();
        if !sender.is_closed() && idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(sender);
        }
    }

    fn request(&self, call: &Call) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        // Paths are built from constants and escaped ids.
        *request.uri_mut() = call.path.parse().expect("an escaped path is a valid URI");
        let authority =
            HeaderValue::from_str(&self.endpoint.authority()).expect("a parsed host is plain text");
        let headers = request.headers_mut();
        headers.insert(header::HOST, authority);
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("gpu-client/", env!("CARGO_PKG_VERSION"))),
        );
        if !call.body.is_empty() {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
        }
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        for (name, value) in &call.headers {
            headers.insert(*name, value.clone());
        }
        request
    }

    async fn connect(&self) -> Result<Sender, ClientError> {
        let unreachable = |source| ClientError::Unreachable {
            endpoint: self.endpoint.clone(),
            source,
        };
        let connecting = async {
            match &self.endpoint {
                Endpoint::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    handshake(stream).await
                }
                Endpoint::Unix(path) => handshake(UnixStream::connect(path).await?).await,
            }
        };
        match timeout(Duration::from_secs(CONNECT_TIMEOUT_SECS), connecting).await {
            Ok(connected) => connected.map_err(unreachable),
            Err(_) => Err(unreachable(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// A connection on which the broker is asked whether it lives; given back when that is not of interest any more.
struct Line<'a> {
    connections: &'a Connections,
    /// None once it is lost.
    sender: Option<Sender>,
}

impl Line<'_> {
    /// Ends when the broker is silent, or the connection is lost.
    async fn falls_silent(&mut self) {
        let mut pause = PING_AFTER;
        loop {
            sleep(pause).await;
            match timeout(PING_PATIENCE, self.ping()).await {
                Ok(true) => pause = (pause * 2).min(PING_EVERY_MAX),
                Ok(false) => {
                    self.sender = None;
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// Whether there is an answer, whatever it says.
    async fn ping(&mut self) -> bool {
        let Some(sender) = &mut self.sender else {
            return false;
        };
        let request = self.connections.request(&ping());
        match sender.send_request(request).await {
            // Unread, it would keep the connection from its next request.
            Ok(response) => {
                self.connections.read(response).await.is_ok() && sender.ready().await.is_ok()
            }
            Err(_) => false,
        }
    }

    fn is_lost(&self) -> bool {
        self.sender.is_none()
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // One with a question that is not answered yet is no good to anybody.
        if let Some(sender) = self.sender.take().filter(Sender::is_ready) {
            self.connections.keep(sender);
        }
    }
}

/// The question whether a broker lives.
fn ping() -> Call {
    Call {
        method: Method::GET,
        path: paths::HEALTHZ.to_owned(),
        headers: Vec::new(),
        body: Bytes::new(),
        repeatable: true,
        patience: READ_PATIENCE,
        watched: false,
    }
}

async fn handshake<S>(stream: S) -> io::Result<Sender>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Whoever holds the sender learns of an error from its own request.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
