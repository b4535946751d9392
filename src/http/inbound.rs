//! The body of a request, and whether something of it is left when the request has been answered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use super::respond::{Body, BodyError};

/// The body of a request.
pub(super) struct Inbound {
    /// None: it has no body.
    inner: Option<Body>,
    ended: Arc<AtomicBool>,
}

/// Tells afterwards what became of a body.
pub(super) struct Rest(Arc<AtomicBool>);

// === impl Inbound ===

impl Inbound {
    /// A body, and what tells whether it was read to its end. `framed`: the request says that it has one, even if
    /// nothing is in it.
    pub(super) fn new<B>(body: B, framed: bool) -> (Self, Rest)
    where
        B: http_body::Body<Data = Bytes, Error: Into<BodyError>> + Send + 'static,
    {
        let none = body.is_end_stream() && !framed;
        let ended = Arc::new(AtomicBool::new(none));
        let inner = (!none).then(|| body.map_err(Into::into).boxed_unsync());
        (Self { inner, ended: Arc::clone(&ended) }, Rest(ended))
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
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        // Readers stop once the announced length is there, without waiting for the end.
        if matches!(polled, Poll::Ready(None)) || matches!(polled, Poll::Ready(Some(Ok(_)))) && inner.is_end_stream() {
            self.ended.store(true, Ordering::Relaxed);
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
        !self.0.load(Ordering::Relaxed)
    }
}
