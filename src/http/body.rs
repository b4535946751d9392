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
    content: Content,
    /// How the pull was answered, for the record; none where no handler spoke of content.
    served: Option<Served>,
    /// Boxed: the body is moved about before it is sent, and this is large.
    record: Option<Box<Record>>,
}

enum Content {
    /// What is still to be handed over, in one piece.
    Bytes(Bytes),
    Stream(UnsyncBoxBody<Bytes, BodyError>),
}

// === impl Body ===

impl Body {
    /// A body with nothing in it.
    pub const fn empty() -> Self {
        Self { content: Content::Bytes(Bytes::new()), served: None, record: None }
    }

    /// A body with these bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self { content: Content::Bytes(bytes.into()), ..Self::empty() }
    }

    /// A body that comes in pieces.
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self { content: Content::Stream(body.boxed_unsync()), ..Self::empty() }
    }

    /// The same answer without its bytes, as to a HEAD.
    pub(super) fn emptied(self) -> Self {
        Self { content: Content::Bytes(Bytes::new()), ..self }
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
        let content = match &self.content {
            Content::Bytes(bytes) => bytes as &dyn fmt::Debug,
            Content::Stream(stream) => stream,
        };
        f.debug_struct("Body").field("content", content).field("served", &self.served).finish_non_exhaustive()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = match &mut this.content {
            Content::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Stream(stream) => Pin::new(stream).poll_frame(cx),
        };
        if let Some(record) = &mut this.record {
            record.hands_over(&polled);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Bytes(bytes) => bytes.is_empty(),
            Content::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream(stream) => stream.size_hint(),
        }
    }
}
