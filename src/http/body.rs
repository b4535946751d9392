//! The body of every answer: bytes at hand or a stream, and the record of its request, which it takes to its end.
//!
//! One type, not a box within a box: most answers are a piece of memory, of which nothing need be allocated.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;

use super::record::{Record, Served};

/// What breaks a body off after its head was sent: the connection or stream is reset, never ended cleanly.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// The body of every answer.
pub struct Body {
    source: Source,
    /// How the pull was answered, for the record; none where no handler spoke of content.
    served: Option<Served>,
    /// Boxed: the body is moved about before it is sent, and this is large.
    record: Option<Box<Record>>,
}

/// Where its bytes are.
enum Source {
    /// What is still to be handed over, in one piece.
    Bytes(Bytes),
    Stream(UnsyncBoxBody<Bytes, BodyError>),
}

// === impl Body ===

impl Body {
    /// A body with nothing in it.
    pub const fn empty() -> Self {
        Self { source: Source::Bytes(Bytes::new()), served: None, record: None }
    }

    /// A body with these bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { source: Source::Bytes(bytes.into()), ..Self::empty() }
    }

    /// A body that comes in pieces.
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self { source: Source::Stream(body.boxed_unsync()), ..Self::empty() }
    }

    /// The same answer without its bytes, as to a HEAD.
    pub(super) fn emptied(self) -> Self {
        Self { source: Source::Bytes(Bytes::new()), ..self }
    }

    /// Says how the pull was answered.
    pub(super) const fn set_served(&mut self, served: Served) {
        self.served = Some(served);
    }

    /// How the pull was answered.
    pub(super) const fn served(&self) -> Option<Served> {
        self.served
    }

    /// With the record that is kept until it has been sent.
    pub(super) fn recorded(self, record: Box<Record>) -> Self {
        Self { record: Some(record), ..self }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            Source::Bytes(bytes) => bytes as &dyn fmt::Debug,
            Source::Stream(stream) => stream,
        };
        f.debug_struct("Body").field("source", source).field("served", &self.served).finish_non_exhaustive()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = match &mut this.source {
            Source::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Stream(stream) => {
                // Whatever is said of where the bytes come from is said of this request.
                let _entered = this.record.as_ref().map(|record| record.enter());
                Pin::new(stream).poll_frame(cx)
            }
        };
        if let Some(record) = &mut this.record {
            record.hands_over(&polled);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Bytes(bytes) => bytes.is_empty(),
            Source::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Stream(stream) => stream.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use http_body::Body as _;
    use tracing::Span;

    use super::super::access::Peer;
    use super::*;
    use crate::clock::twin::system;
    use crate::metrics::{Metrics, Requests};
    use crate::troubles::Troubles;

    /// Without content; notes in which span it is asked for some.
    struct Watching(std::sync::Arc<parking_lot::Mutex<Vec<Option<&'static str>>>>);

    impl http_body::Body for Watching {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            self.0.lock().push(Span::current().metadata().map(tracing::Metadata::name));
            Poll::Ready(None)
        }
    }

    #[test]
    fn what_a_body_says_while_it_comes_is_said_of_its_request() {
        let seen = std::sync::Arc::default();
        tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            let requests = Requests::new(&Metrics::new().unwrap(), []).into();
            let troubles = Troubles::new(system()).into();
            let (parts, ()) = http::Request::new(()).into_parts();
            let record =
                tracing::info_span!("request").in_scope(|| Record::new(&requests, &troubles, Peer::Unix(None), &parts));
            let body = Body::stream(Watching(std::sync::Arc::clone(&seen)));
            let mut response = record.follow(Response::new(body));
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(Pin::new(response.body_mut()).poll_frame(&mut cx).is_ready());
            assert_eq!(Span::current().metadata().map(tracing::Metadata::name), None, "it is left again");
        });
        assert_eq!(*seen.lock(), [Some("request")]);
    }
}
