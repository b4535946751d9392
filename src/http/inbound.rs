//! The body of a request, and whether something of it is left when the request has been answered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use super::respond::{Body, BodyError};

/// The body of a request.
pub(super) struct Inbound {
    /// None: it has no body.
    inner: Option<Body>,
    read: Arc<Read>,
}

/// Tells what became of a body.
#[derive(Debug, Clone)]
pub(super) struct Rest(Arc<Read>);

/// What was read of a body.
#[derive(Debug, Default)]
struct Read {
    bytes: AtomicU64,
    ended: AtomicBool,
}

// === impl Inbound ===

impl Inbound {
    /// A body, and what tells whether it was read to its end. `framed`: the request says that it has one, even if
    /// nothing is in it.
    pub(super) fn new<B>(body: B, framed: bool) -> (Self, Rest)
    where
        B: http_body::Body<Data = Bytes, Error: Into<BodyError>> + Send + 'static,
    {
        let none = body.is_end_stream() && !framed;
        let read = Arc::new(Read { ended: AtomicBool::new(none), ..Read::default() });
        let inner = (!none).then(|| body.map_err(Into::into).boxed_unsync());
        (Self { inner, read: Arc::clone(&read) }, Rest(read))
    }

    /// Whether there is no body at all.
    pub(super) const fn is_empty(&self) -> bool {
        self.inner.is_none()
    }
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { inner: Some(inner), read } = &mut *self else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            read.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        // Readers stop once the announced length is there, without waiting for the end.
        if matches!(polled, Poll::Ready(None)) || matches!(polled, Poll::Ready(Some(Ok(_)))) && inner.is_end_stream() {
            read.ended.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

// === impl Rest ===

impl Rest {
    /// Whether something of the body has not been read.
    pub(super) fn is_left(&self) -> bool {
        !self.0.ended.load(Ordering::Relaxed)
    }

    /// How many bytes of the body have been read.
    pub(super) fn received(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}
