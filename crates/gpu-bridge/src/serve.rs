//! The accept loop: HTTP/1.1 only, every connection bounded in number, time and size.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use gpu_api::{ErrorCode, Problem};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use crate::app::{App, Bridge};
use crate::identity::{Peer, UnixUser};
use crate::line::{Line, Steady};
use crate::routes;

/// Connections of one listener that are open at once; more wait to be accepted. The socket has its own, so
/// that an operator gets through when the port is busy.
pub const CONNECTIONS_PER_LISTENER_MAX: usize = 512;
/// When the socket has those, so many more of admins: a crowd of other users does not keep an operator out.
pub const CONNECTIONS_OF_ADMINS_MAX: usize = 8;
/// Such a connection is for one request, which has this long.
const ADMIN_CONNECTION_SECS_MAX: u64 = 15;
/// Largest request line and headers together.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Most headers of one request.
pub const HEADERS_MAX: usize = 64;
/// After the shutdown began, requests in flight have this long.
const SHUTDOWN_SECS_MAX: u64 = 5;
/// A rest after a failed accept, which is out of descriptors most of the time.
const ACCEPT_REST_MS: u64 = 50;
/// hyper's smallest buffer; it holds the headers and pieces of bodies.
const BUFFER_BYTES_MAX: usize = 4 * HEADER_BYTES_MAX;

/// Where to listen. The caller has bound both, and knows who may reach the socket.
#[derive(Debug, Default)]
pub struct Listeners {
    /// A port; only a loopback address may serve in dev mode.
    pub tcp: Option<TcpListener>,
    /// A Unix socket.
    pub unix: Option<UnixListener>,
}

/// Answers requests until `shutdown` is over and those in flight are answered, or five seconds more.
///
/// Waiters are told when the broker begins to stop ([`gpu_broker::Broker::begin_stop`]), which should come
/// first.
///
/// # Errors
/// A listener has no address.
pub async fn serve(
    listeners: Listeners,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let tcp = listeners
        .tcp
        .as_ref()
        .map(TcpListener::local_addr)
        .transpose()?;
    let unix = listeners
        .unix
        .as_ref()
        .map(socket_path)
        .transpose()?
        .flatten();
    let addresses = tcp.iter().map(|address| format!("http://{address}"));
    let paths = unix.iter().map(|path| format!("unix:{path}"));
    let bridge = Arc::new(Bridge::new(
        app,
        tcp.as_slice(),
        addresses.chain(paths).collect(),
    ));
    let (closing, _) = watch::channel(false);
    let hub = |bridge: &Arc<Bridge>, for_admins| Hub {
        bridge: bridge.clone(),
        router: routes::router(bridge.clone()),
        slots: Arc::new(Semaphore::new(CONNECTIONS_PER_LISTENER_MAX)),
        for_admins: Arc::new(Semaphore::new(for_admins)),
        closing: closing.subscribe(),
    };
    let mut loops = JoinSet::new();
    if let Some(listener) = listeners.tcp {
        // Who connects to a port is known only when the request is read.
        loops.spawn(hub(&bridge, 0).accept(listener));
    }
    if let Some(listener) = listeners.unix {
        loops.spawn(hub(&bridge, CONNECTIONS_OF_ADMINS_MAX).accept(listener));
    }
    shutdown.await;
    closing.send_replace(true);
    loops.join_all().await;
    Ok(())
}

/// Where connections come from.
trait Source: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static;

    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Caught)>> + Send;
}

/// What is known of the other end before anything is looked up.
enum Caught {
    Tcp(SocketAddr),
    Unix { uid: u32, gid: u32 },
}

impl Source for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Caught)> {
        let (stream, address) = self.accept().await?;
        // A connection that is gone already says so when it is read.
        drop(stream.set_nodelay(true));
        Ok((stream, Caught::Tcp(address)))
    }
}

impl Source for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Caught)> {
        let (stream, _) = self.accept().await?;
        let credentials = stream.peer_cred()?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        Ok((stream, Caught::Unix { uid, gid }))
    }
}

/// What every connection of one listener shares.
struct Hub {
    bridge: Arc<Bridge>,
    router: Router,
    slots: Arc<Semaphore>,
    for_admins: Arc<Semaphore>,
    closing: watch::Receiver<bool>,
}

/// Room for one connection.
struct Seat {
    _permit: OwnedSemaphorePermit,
    /// There was no other.
    for_admins: bool,
}

impl Hub {
    async fn accept(mut self, source: impl Source) {
        let mut connections = JoinSet::new();
        loop {
            let seats = (self.slots.clone(), self.for_admins.clone());
            let caught = tokio::select! {
                _ = self.closing.wait_for(|closing| *closing) => break,
                Some(_) = connections.join_next() => continue,
                caught = take(&source, seats) => caught,
            };
            match caught {
                Ok((stream, caught, seat)) => {
                    connections.spawn(self.connection(stream, caught, seat));
                }
                Err(error) => {
                    tracing::warn!("a connection cannot be accepted: {error}");
                    sleep(Duration::from_millis(ACCEPT_REST_MS)).await;
                }
            }
        }
        let rest = async { while connections.join_next().await.is_some() {} };
        let patience = Duration::from_secs(SHUTDOWN_SECS_MAX);
        if timeout(patience, rest).await.is_err() {
            tracing::warn!("{} connections are cut off", connections.len());
        }
    }

    fn connection<S>(
        &self,
        stream: S,
        caught: Caught,
        seat: Seat,
    ) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static,
    {
        let (bridge, router, closing) = (
            self.bridge.clone(),
            self.router.clone(),
            self.closing.clone(),
        );
        async move {
            let conversation = converse(bridge, router, stream, (caught, seat.for_admins), closing);
            let ended = match seat.for_admins {
                false => conversation.await,
                true => timeout(Duration::from_secs(ADMIN_CONNECTION_SECS_MAX), conversation)
                    .await
                    .unwrap_or_else(|_| Err("it took too long for a place of admins".into())),
            };
            if let Err(error) = ended {
                tracing::debug!("a connection ended: {error}");
            }
            drop(seat);
        }
    }
}

/// The next connection, once there is room for it.
async fn take<S: Source>(
    source: &S,
    (slots, for_admins): (Arc<Semaphore>, Arc<Semaphore>),
) -> io::Result<(S::Stream, Caught, Seat)> {
    let (permit, for_admins) = tokio::select! {
        biased;
        permit = slots.clone().acquire_owned() => (permit, false),
        permit = for_admins.acquire_owned() => (permit, true),
    };
    let mut seat = Seat {
        _permit: permit.map_err(io::Error::other)?,
        for_admins,
    };
    let (stream, caught) = source.next().await?;
    // Somebody may have gone while nobody came.
    if for_admins && let Ok(permit) = slots.try_acquire_owned() {
        seat = Seat {
            _permit: permit,
            for_admins: false,
        };
    }
    Ok((stream, caught, seat))
}

/// Answers the requests of one connection until either end has had enough.
async fn converse<S>(
    bridge: Arc<Bridge>,
    router: Router,
    mut stream: S,
    (caught, for_admins): (Caught, bool),
    mut closing: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static,
{
    let line = Arc::new(Line::of(&stream)?);
    let peer = known(caught, &bridge).await?;
    if for_admins && !peer.is_admin() {
        // What it has to say is not even read: that could take a while.
        return Ok(stream.write_all(&full()).await?);
    }
    let limits = bridge.config.limits;
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(line.clone());
        router.clone().oneshot(request)
    });
    let stream = TokioIo::new(Steady::new(stream, limits.write_stall));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(!for_admins)
        .header_read_timeout(limits.header_read)
        .max_header_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

/// The whole answer to a connection for which there is no room.
fn full() -> Vec<u8> {
    let detail = format!("{CONNECTIONS_PER_LISTENER_MAX} connections are open");
    let problem = Problem::new(ErrorCode::Overloaded, detail).with_retry_after_ms(1000);
    let body = serde_json::to_vec(&problem).expect("problems are plain data with text as keys");
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

/// The other end with its name; the user database may be slow, so it is asked beside the loop.
async fn known(caught: Caught, bridge: &Arc<Bridge>) -> io::Result<Peer> {
    let (uid, gid) = match caught {
        Caught::Tcp(address) => return Ok(Peer::Tcp(address)),
        Caught::Unix { uid, gid } => (uid, gid),
    };
    let bridge = bridge.clone();
    let look_up = move || UnixUser::look_up(uid, gid, &bridge.config.admin_group);
    let user = tokio::task::spawn_blocking(look_up)
        .await
        .map_err(io::Error::other)?;
    Ok(Peer::Unix(Arc::new(user)))
}

fn socket_path(listener: &UnixListener) -> io::Result<Option<String>> {
    let address = listener.local_addr()?;
    Ok(address.as_pathname().map(|path| path.display().to_string()))
}
