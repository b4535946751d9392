//! The body of a request, and what becomes of what is left of it when the request has been answered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::body::BodyError;

/// How much of a body that nobody wants is taken in.
const MAX_UNWANTED: u64 = 64 << 20;
/// Time for all of that.
const UNWANTED_WITHIN: Duration = Duration::from_secs(10);

type Received = UnsyncBoxBody<Bytes, BodyError>;

/// The body of a request.
pub(super) struct Inbound(Option<Present>);

/// A body that there is.
struct Present {
    /// Until it is left to others.
    inner: Option<Received>,
    shared: Arc<Shared>,
}

/// Tells what becomes of a body; none: there is no body.
#[derive(Debug, Clone)]
pub(super) struct Rest(Option<Arc<Shared>>);

/// What is known of a body.
#[derive(Debug)]
struct Shared {
    /// How much of it was read.
    bytes: AtomicU64,
    ended: AtomicBool,
    /// What its reader did not read, once the reader is gone.
    left: Mutex<Option<Received>>,
}

// === impl Inbound ===

impl Inbound {
    /// A body, and what tells whether it was read to its end. `framed`: the request says that it has one, even if
    /// nothing is in it.
    pub(super) fn new<B>(body: B, framed: bool) -> (Self, Rest)
    where
        B: http_body::Body<Data = Bytes, Error: Into<BodyError>> + Send + 'static,
    {
        if body.is_end_stream() && !framed {
            return (Self(None), Rest(None));
        }
        let shared =
            Arc::new(Shared { bytes: AtomicU64::new(0), ended: AtomicBool::new(false), left: Mutex::new(None) });
        let inner = Some(body.map_err(Into::into).boxed_unsync());
        (Self(Some(Present { inner, shared: Arc::clone(&shared) })), Rest(Some(shared)))
    }

    /// Whether there is no body at all.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn inner(&self) -> Option<&Received> {
        self.0.as_ref().and_then(|present| present.inner.as_ref())
    }
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(Present { inner: Some(inner), shared }) = &mut self.0 else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            shared.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        // Readers stop once the announced length is there, without waiting for the end.
        if matches!(polled, Poll::Ready(None)) || matches!(polled, Poll::Ready(Some(Ok(_)))) && inner.is_end_stream() {
            shared.ended.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        if !self.shared.ended.load(Ordering::Relaxed) {
            *self.shared.left.lock() = self.inner.take();
        }
    }
}

// === impl Rest ===

impl Rest {
    /// Whether something of the body has not been read.
    pub(super) fn is_left(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| !shared.ended.load(Ordering::Relaxed))
    }

    /// How many bytes of the body have been read.
    pub(super) fn received(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.bytes.load(Ordering::Relaxed))
    }

    /// Lets go of what is left: over HTTP/2 the stream can end without it, and what has come of it takes room until then.
    pub(super) fn forget(&self) {
        let left = self.0.as_ref().and_then(|shared| shared.left.lock().take());
        drop(left);
    }

    /// Takes in what is left while the answer goes out, as far as it is not too much, and throws it away. Some clients
    /// send all of a body before they look at the answer (the Azure SDKs, before they know that they need a token); a
    /// connection that is closed on what was not read is reset, and the answer lost on its way (RFC 9112, 9.6).
    pub(super) async fn take_in(self) {
        let Some(mut left) = self.0.and_then(|shared| shared.left.lock().take()) else { return };
        let reading = async {
            let mut taken = 0;
            while taken <= MAX_UNWANTED
                && let Some(Ok(frame)) = left.frame().await
            {
                taken += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
        };
        let _ = timeout(UNWANTED_WITHIN, reading).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{Full, StreamBody};
    use tokio::time::Instant;

    use super::*;

    /// Pieces of 1 MiB without end, and how many were taken.
    fn endless() -> (impl http_body::Body<Data = Bytes, Error: Into<BodyError>> + Send + 'static, Arc<Mutex<u64>>) {
        let count = Arc::new(Mutex::new(0));
        let (piece, counted) = (Bytes::from(vec![0; 1 << 20]), Arc::clone(&count));
        let pieces = stream::repeat_with(move || {
            *counted.lock() += 1;
            Ok::<_, std::io::Error>(Frame::data(piece.clone()))
        });
        (StreamBody::new(pieces), count)
    }

    #[tokio::test]
    async fn what_is_left_is_known() {
        let (body, rest) = Inbound::new(Full::new(Bytes::from_static(b"content")), false);
        assert!(rest.is_left());
        drop(body);
        assert!(rest.is_left());
        let (body, rest) = Inbound::new(Full::new(Bytes::from_static(b"content")), false);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "content");
        assert!(!rest.is_left());
        let (body, rest) = Inbound::new(Full::new(Bytes::new()), false);
        assert!(body.is_empty() && !rest.is_left());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_taken_in_but_not_for_ever() {
        let (body, count) = endless();
        let (body, rest) = Inbound::new(body, false);
        drop(body);
        rest.take_in().await;
        assert_eq!(*count.lock(), 65);
        let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
        let (body, rest) = Inbound::new(silent, false);
        drop(body);
        let began = Instant::now();
        rest.take_in().await;
        assert_eq!(began.elapsed(), UNWANTED_WITHIN);
    }

    #[tokio::test]
    async fn it_is_left_to_a_reader_that_goes_on() {
        let (body, rest) = Inbound::new(Full::new(Bytes::from_static(b"content")), false);
        rest.take_in().await;
        assert_eq!(body.collect().await.unwrap().to_bytes(), "content");
    }
}
