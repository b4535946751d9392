//! The body of a request to an upstream: whole, or streamed, watched for stalls and stopped when nobody wants the rest.
//!
//! A streamed body is never held in memory: the client takes the next frame when it can send it. It ends cleanly only
//! if its source did, with the announced length; otherwise the request is broken off (HTTP/1.1: connection closed short;
//! HTTP/2: `RST_STREAM`), so that upstream cannot take a part for the whole.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::error::{Cause, Fault, Phase};

/// What a streamed body's source may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Longest time in which upstream takes nothing of a body.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the answer to a body that was sent whole: a registry may have to copy all of it before it says yes.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_mins(5);

/// The body of a request.
pub(crate) enum RequestBody {
    /// Can be sent again.
    Whole(Full<Bytes>),
    /// Cannot.
    Stream(Streamed),
}

/// A body on its way to upstream.
pub(crate) struct Streamed {
    inner: UnsyncBoxBody<Bytes, BoxError>,
    length: Option<u64>,
    sent: u64,
    watch: Arc<Watch>,
}

/// What is known of a streamed body while the HTTP client has it.
pub(crate) struct Watch(Mutex<State>);

/// Stops the body when it is dropped: nobody wants the rest.
#[derive(Debug)]
pub(crate) struct Stopper(Arc<Watch>);

struct State {
    stage: Stage,
    order: Order,
    waker: Option<Waker>,
}

/// Who has to do something for the body to go on.
#[derive(Debug, Clone)]
enum Stage {
    /// Upstream: it has had this since then.
    Given(Instant),
    /// The source: nothing is there to be sent.
    Awaited,
    /// Upstream: everything was sent by then, and it has to answer.
    Whole(Instant),
    /// Nobody: the source failed.
    Failed(Cause),
}

/// What the body is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Go on.
    Go,
    /// Give nothing more, but leave the connection open.
    Hold,
    /// Break off.
    Stop,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("nobody wants the rest")]
    Stopped,
    #[error("it has {actual} bytes where {expected} were announced")]
    Length { expected: u64, actual: u64 },
    #[error("{0}")]
    Source(#[source] Cause),
}

// === impl RequestBody ===

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Full::new(bytes))
    }

    /// Of `length` bytes, if that is known.
    pub(crate) fn stream(inner: UnsyncBoxBody<Bytes, BoxError>, length: Option<u64>) -> Self {
        let whole = length == Some(0);
        let now = Instant::now();
        let stage = if whole { Stage::Whole(now) } else { Stage::Given(now) };
        let watch = Arc::new(Watch(Mutex::new(State { stage, order: Order::Go, waker: None })));
        Self::Stream(Streamed { inner, length, sent: 0, watch })
    }

    /// Of a stream.
    pub(crate) fn watch(&self) -> Option<Arc<Watch>> {
        match self {
            Self::Whole(_) => None,
            Self::Stream(body) => Some(Arc::clone(&body.watch)),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Stream(body) => body.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            // Of unknown length: only the end itself tells.
            Self::Stream(body) => body.length == Some(body.sent),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Stream(body) => {
                body.length.map_or_else(SizeHint::default, |length| SizeHint::with_exact(length - body.sent))
            }
        }
    }
}

// === impl Streamed ===

impl Streamed {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        {
            let mut state = self.watch.0.lock();
            match state.order {
                Order::Go => {}
                Order::Hold => {
                    state.waker = Some(context.waker().clone());
                    return Poll::Pending;
                }
                Order::Stop => return Poll::Ready(Some(Err(Broken::Stopped.into()))),
            }
            if let Stage::Failed(cause) = &state.stage {
                return Poll::Ready(Some(Err(Broken::Source(Arc::clone(cause)).into())));
            }
        }
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
                let mut state = self.watch.0.lock();
                state.stage = Stage::Awaited;
                state.waker = Some(context.waker().clone());
                // It may have been stopped while its source was asked.
                if state.order == Order::Stop {
                    return Poll::Ready(Some(Err(Broken::Stopped.into())));
                }
                return Poll::Pending;
            };
            return Poll::Ready(match frame {
                Some(Ok(frame)) => {
                    // Trailers mean nothing to registries.
                    let Ok(data) = frame.into_data() else { continue };
                    if data.is_empty() {
                        continue;
                    }
                    let sent = self.sent.saturating_add(data.len() as u64);
                    match self.length {
                        Some(expected) if sent > expected => Some(Err(self.wrong_length(expected, sent))),
                        _ => {
                            self.sent = sent;
                            let now = Instant::now();
                            let whole = self.length == Some(sent);
                            self.enter(if whole { Stage::Whole(now) } else { Stage::Given(now) });
                            Some(Ok(Frame::data(data)))
                        }
                    }
                }
                Some(Err(error)) => Some(Err(self.fail(Arc::from(error)))),
                None => match self.length {
                    Some(expected) if self.sent < expected => Some(Err(self.wrong_length(expected, self.sent))),
                    _ => {
                        self.enter(Stage::Whole(Instant::now()));
                        None
                    }
                },
            });
        }
    }

    fn enter(&self, stage: Stage) {
        self.watch.0.lock().stage = stage;
    }

    fn wrong_length(&self, expected: u64, actual: u64) -> BoxError {
        self.fail(Arc::new(Broken::Length { expected, actual }))
    }

    fn fail(&self, cause: Cause) -> BoxError {
        self.enter(Stage::Failed(Arc::clone(&cause)));
        Broken::Source(cause).into()
    }
}

// === impl Watch ===

impl Watch {
    /// Whether everything was given to be sent. An answer that comes before is an early one.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.0.lock().stage, Stage::Whole(_))
    }

    /// Why the source failed, if it did.
    pub(crate) fn failure(&self) -> Option<Cause> {
        match &self.0.lock().stage {
            Stage::Failed(cause) => Some(Arc::clone(cause)),
            _ => None,
        }
    }

    /// Gives nothing more: upstream has answered. The connection stays, for the answer's own body.
    pub(crate) fn hold(&self) {
        let mut state = self.0.lock();
        if state.order == Order::Go {
            state.order = Order::Hold;
        }
    }

    /// Ends when upstream has been silent for too long. Time in which the source has nothing to send does not count:
    /// whoever reads the source from a client limits that.
    pub(crate) async fn silence(&self) -> Fault {
        loop {
            let stage = self.0.lock().stage.clone();
            let (until, phase) = match stage {
                Stage::Given(since) => (since + IDLE_TIMEOUT, Phase::Upload),
                Stage::Whole(since) => (since + ANSWER_TIMEOUT, Phase::Header),
                Stage::Awaited | Stage::Failed(_) => (Instant::now() + IDLE_TIMEOUT, Phase::Upload),
            };
            if until <= Instant::now() {
                return Fault::Timeout(phase);
            }
            sleep_until(until).await;
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("stage", &self.0.lock().stage).finish_non_exhaustive()
    }
}

// === impl Stopper ===

impl Stopper {
    pub(crate) fn new(watch: Arc<Watch>) -> Self {
        Self(watch)
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.0.0.lock();
            state.order = Order::Stop;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt, StreamBody};
    use tokio::time::advance;

    use super::*;

    fn streamed(pieces: &[&'static str], length: Option<u64>) -> (RequestBody, Arc<Watch>) {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
        let inner = StreamBody::new(futures_util::StreamExt::chain(stream::iter(pieces), stream::pending()));
        let body = RequestBody::stream(inner.boxed_unsync(), length);
        let watch = body.watch().unwrap();
        (body, watch)
    }

    /// Polls once; whether there was something.
    async fn poll(body: &mut RequestBody) -> bool {
        futures_util::poll!(body.frame()).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn only_upstreams_silence_counts() {
        let (mut body, watch) = streamed(&["hello", "", "world"], Some(11));
        let silent = async || {
            let begun = Instant::now();
            (format!("{:?}", watch.silence().await), begun.elapsed())
        };
        assert_eq!(silent().await, ("Timeout(Upload)".to_owned(), IDLE_TIMEOUT), "it takes nothing at all");
        assert!(poll(&mut body).await);
        advance(IDLE_TIMEOUT / 2).await;
        assert!(poll(&mut body).await, "an empty piece is none");
        assert_eq!(silent().await.1, IDLE_TIMEOUT, "from the last piece on");
        assert!(!poll(&mut body).await && !watch.is_whole());
        let waiting = tokio::time::timeout(IDLE_TIMEOUT * 100, watch.silence()).await;
        assert!(waiting.is_err(), "the source is awaited, not upstream");

        let (mut body, watch) = streamed(&["hello", "world"], Some(10));
        assert!(poll(&mut body).await && poll(&mut body).await && body.is_end_stream());
        assert!(watch.is_whole());
        let begun = Instant::now();
        assert!(matches!(watch.silence().await, Fault::Timeout(Phase::Header)));
        assert_eq!(begun.elapsed(), ANSWER_TIMEOUT);
    }

    #[tokio::test]
    async fn a_body_is_held_and_then_stopped() {
        let (mut body, watch) = streamed(&["hello", "world"], None);
        let stopper = Stopper::new(Arc::clone(&watch));
        assert!(poll(&mut body).await);
        watch.hold();
        assert!(!poll(&mut body).await, "nothing more, but no end either");
        let (frame, ()) = tokio::join!(body.frame(), async { drop(stopper) });
        assert_eq!(frame.unwrap().unwrap_err().to_string(), "nobody wants the rest", "and whoever waits is woken");
        assert!(watch.failure().is_none(), "that is not the source's fault");
    }

    #[tokio::test]
    async fn nothing_at_all_is_whole_at_once() {
        let (body, watch) = streamed(&[], Some(0));
        assert!(watch.is_whole() && body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
        assert_eq!(streamed(&[], None).0.size_hint().exact(), None);
    }
}
