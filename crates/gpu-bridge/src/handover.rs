//! The last step of an acquire: the answer reaches the client, or the lease is given up.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use gpu_broker::AbandonGuard;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::extract::MaybeLine;

/// A body that gives its lease up unless a client that is still there takes it.
pub(crate) struct HandOver {
    bytes: Option<Bytes>,
    guard: Option<AbandonGuard>,
    line: MaybeLine,
}

impl HandOver {
    /// `bytes` as a body; `guard` is disarmed once they are handed over.
    pub(crate) fn body(bytes: Vec<u8>, guard: Option<AbandonGuard>, line: MaybeLine) -> Body {
        Body::new(Self {
            bytes: Some(bytes.into()),
            guard,
            line,
        })
    }
}

impl HttpBody for HandOver {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(bytes) = self.bytes.take() else {
            return Poll::Ready(None);
        };
        match self.guard.take() {
            // Nobody reads this any more; dropping the guard gives the lease up.
            Some(guard) if self.line.is_gone() => drop(guard),
            Some(guard) => guard.disarm(),
            None => {}
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
