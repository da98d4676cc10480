//! The other end of a connection: whether it is still there, and how long it may keep a writer waiting.
//!
//! hyper notices a closed connection by reading, which it does not do while bytes of a later request wait
//! in its buffer. Somebody who waits for a lease is asked for here, from the kernel, whatever was sent.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};

/// A second look at the socket of a connection.
#[derive(Debug)]
pub(crate) struct Line(OwnedFd);

impl Line {
    pub(crate) fn of(stream: &impl AsFd) -> io::Result<Self> {
        stream.as_fd().try_clone_to_owned().map(Self)
    }

    /// Whether the other end has closed its side; a client that half-closes is taken at its word.
    pub(crate) fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::RDHUP)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(gone)
    }

    /// Waits until the other end closes its side.
    pub(crate) async fn hung_up(&self) {
        let Ok(socket) = self.watched() else {
            return pending().await;
        };
        while let Ok(ready) = socket.ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                return;
            }
            // Bytes that nobody reads yet: forgotten, so that what comes next is news again.
            let unread = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            drop(socket.try_io(Interest::READABLE, unread));
        }
        pending().await
    }

    /// The socket as one that can be waited on. Only its readiness is asked for, so its family does not matter.
    fn watched(&self) -> io::Result<UnixStream> {
        let socket = std::os::unix::net::UnixStream::from(self.0.try_clone()?);
        UnixStream::from_std(socket)
    }
}

/// A stream whose writes fail once the other end has taken nothing for a while.
pub(crate) struct Steady<S> {
    stream: S,
    stall_max: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Steady<S> {
    pub(crate) fn new(stream: S, stall_max: Duration) -> Self {
        Self {
            stream,
            stall_max,
            stalled: None,
        }
    }

    /// `write`, unless it has made no progress for too long.
    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if write.is_ready() {
            self.stalled = None;
            return write;
        }
        let stall_max = self.stall_max;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(stall_max)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Steady<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Steady<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.judge(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_hang_up_is_noticed_behind_bytes_that_nobody_read() {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        let line = Line::of(&near).expect("a descriptor");
        far.write_all(b"bytes of a later request")
            .await
            .expect("room");
        assert!(!line.is_gone());
        let quiet = timeout(Duration::from_millis(50), line.hung_up()).await;
        assert!(quiet.is_err(), "it is still there");
        drop(far);
        timeout(DEADLINE, line.hung_up()).await.expect("noticed");
        assert!(line.is_gone());
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_ends_the_connection() {
        let (near, _far) = UnixStream::pair().expect("a pair");
        let mut near = Steady::new(near, Duration::from_millis(50));
        let writes = async {
            loop {
                if let Err(error) = near.write_all(&[0; 65_536]).await {
                    return error.kind();
                }
            }
        };
        let kind = timeout(DEADLINE, writes).await.expect("it gives up");
        assert_eq!(kind, io::ErrorKind::TimedOut);
    }
}
