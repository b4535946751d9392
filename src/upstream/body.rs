//! The body of an upstream's answer: watched for stalls, counted, and checked against its Content-Length.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::error::{Fault, Phase, ProtocolFault, UpstreamError};
use super::throttle::{Debt, Throttle};
use crate::metrics::Received;
use crate::oci::UpstreamName;

/// Waiting over which the least rate is measured, in seconds.
const RATE_WINDOW: u64 = 60;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What all bodies of one upstream have in common.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) upstream: UpstreamName,
    /// Bytes that have come.
    pub(crate) received: Received,
    /// Longest silence within a body. There is no limit on the whole: blobs may take hours.
    pub(crate) stall: Duration,
    /// Least bytes a second that a body brings while it is waited for; below it, the connection is taken for a broken one,
    /// and the blob goes on by another.
    pub(crate) min_rate: u64,
    /// What limits this upstream, and all together.
    pub(crate) throttles: [Arc<Throttle>; 2],
}

/// What is owed to each of the throttles.
type Debts = [Option<Debt>; 2];

/// A body on its way from upstream. It ends cleanly only after all announced bytes; otherwise it ends in an error.
pub struct UpstreamBody {
    intake: Arc<Intake>,
    /// None after the end or an error: the connection is given back or closed at once.
    inner: Option<UnsyncBoxBody<Bytes, BoxError>>,
    /// Content-Length.
    expected: Option<u64>,
    received: u64,
    /// Runs from when upstream had nothing to give; a consumer that takes its time does not count.
    silence: Option<Pin<Box<Sleep>>>,
    /// Since when upstream has had nothing to give.
    waiting: Option<Instant>,
    /// How long it was waited for, and what has come, in this window of the rate.
    waited: Duration,
    came: u64,
    /// Whether it keeps to the throttles, or is only counted there.
    paced: bool,
    /// What has come and is not paid for.
    debts: Debts,
    pause: Option<Pin<Box<Sleep>>>,
}

// === impl Intake ===

impl Intake {
    fn take(&self, bytes: u64) -> Debts {
        self.throttles.each_ref().map(|throttle| throttle.take(bytes))
    }

    /// How long to wait until these are paid, or to ask again; none: they are.
    fn wait(&self, debts: Debts) -> Option<Duration> {
        let waits = self.throttles.iter().zip(debts).map(|(throttle, debt)| throttle.wait(debt?));
        waits.flatten().max()
    }
}

// === impl UpstreamBody ===

impl UpstreamBody {
    pub(crate) fn new<B>(intake: &Arc<Intake>, inner: B, expected: Option<u64>) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let inner = Some(inner.map_err(Into::into).boxed_unsync());
        Self { inner, expected, ..Self::empty(intake) }
    }

    /// Nothing: of HEAD and 304.
    pub(crate) fn empty(intake: &Arc<Intake>) -> Self {
        Self {
            intake: Arc::clone(intake),
            inner: None,
            expected: None,
            received: 0,
            silence: None,
            waiting: None,
            waited: Duration::ZERO,
            came: 0,
            paced: false,
            debts: Debts::default(),
            pause: None,
        }
    }

    /// It comes no faster than the limits on bytes a second allow. What is not paced counts there too; but it is small, and
    /// is not held up by blobs.
    pub(crate) fn paced(self) -> Self {
        Self { paced: true, ..self }
    }

    #[cfg(test)]
    pub(crate) fn is_paced(&self) -> bool {
        self.paced
    }

    /// Bytes that have come so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    fn fail(&mut self, fault: Fault) -> UpstreamError {
        self.inner = None;
        fault.of(&self.intake.upstream)
    }

    /// The length as announced and as it came, if they can no longer become equal.
    fn length_fault(&self, ended: bool) -> Option<Fault> {
        let expected = self.expected?;
        let wrong = self.received > expected || (ended && self.received < expected);
        wrong.then_some(Fault::Protocol(ProtocolFault::Length { expected, actual: self.received }))
    }

    /// Whether upstream is too slow, now that `length` bytes came.
    fn is_too_slow(&mut self, length: u64) -> bool {
        self.waited += self.waiting.take().map(|since| since.elapsed()).unwrap_or_default();
        self.came += length;
        if self.waited.as_secs() < RATE_WINDOW {
            return false;
        }
        let too_slow = self.came < self.intake.min_rate.saturating_mul(RATE_WINDOW);
        (self.waited, self.came) = (Duration::ZERO, 0);
        too_slow
    }

    /// Until what has come is paid for. Meanwhile upstream is not waited for, so that no silence and no rate is held
    /// against it.
    fn poll_debts(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.debts != Debts::default() {
            let Some(wait) = self.intake.wait(self.debts) else {
                self.debts = Debts::default();
                break;
            };
            let until = Instant::now() + wait;
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep_until(until)));
            pause.as_mut().reset(until);
            ready!(pause.as_mut().poll(context));
        }
        Poll::Ready(())
    }

    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let stall = self.intake.stall;
        let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(stall)));
        if self.waiting.is_none() {
            let now = Instant::now();
            self.waiting = Some(now);
            silence.as_mut().reset(now + stall);
        }
        silence.as_mut().poll(context)
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let this = &mut *self;
        ready!(this.poll_debts(context));
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let frame = match Pin::new(inner).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                ready!(this.poll_silence(context));
                return Poll::Ready(Some(Err(this.fail(Fault::Timeout(Phase::Body)))));
            }
        };
        match frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Buf::remaining) as u64;
                this.received += length;
                this.intake.received.count(length);
                let is_whole = this.expected == Some(this.received);
                let debts = this.intake.take(length);
                if this.paced && !is_whole {
                    this.debts = debts;
                }
                let too_slow = this.is_too_slow(length) && !is_whole;
                let fault = this.length_fault(false).or(too_slow.then_some(Fault::Timeout(Phase::Body)));
                Poll::Ready(Some(fault.map_or(Ok(frame), |fault| Err(this.fail(fault)))))
            }
            Some(Err(error)) => {
                // The client reports an early end as its own error; the numbers say more.
                let fault = this.length_fault(true).unwrap_or_else(|| Fault::Broken(Arc::from(error)));
                Poll::Ready(Some(Err(this.fail(fault))))
            }
            None => {
                this.inner = None;
                Poll::Ready(this.length_fault(true).map(|fault| Err(this.fail(fault))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.inner, self.expected) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Some(expected)) => SizeHint::with_exact(expected.saturating_sub(self.received)),
            (Some(inner), None) => inner.size_hint(),
        }
    }
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBody")
            .field("expected", &self.expected)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;
    use crate::clock::twin::system;
    use crate::config::MaxRate;
    use crate::metrics::Metrics;

    const STALL: Duration = Duration::from_secs(7);

    type Item = Result<Frame<Bytes>, BoxError>;

    fn intake(stall: Duration, min_rate: u64) -> Arc<Intake> {
        let received = Received::new(&Metrics::new().unwrap(), "reg");
        let throttles = [(); 2].map(|()| Throttle::new(MaxRate::default(), system()));
        Arc::new(Intake { upstream: "reg".parse().unwrap(), received, stall, min_rate, throttles })
    }

    fn body(parts: Vec<Item>, then_stall: bool, expected: Option<u64>) -> (UpstreamBody, Arc<Intake>) {
        use futures_util::StreamExt;
        let intake = intake(STALL, 1024);
        let tail = if then_stall { stream::pending().left_stream() } else { stream::empty().right_stream() };
        let inner = StreamBody::new(stream::iter(parts).chain(tail));
        (UpstreamBody::new(&intake, inner, expected), intake)
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    async fn outcome(body: UpstreamBody) -> Result<Bytes, Fault> {
        body.collect().await.map(http_body_util::Collected::to_bytes).map_err(|error| error.fault)
    }

    #[tokio::test]
    async fn complete_bodies_end_cleanly_and_are_counted() {
        let (exact, intake) = body(vec![Ok(data("ab")), Ok(data("c"))], false, Some(3));
        assert_eq!(outcome(exact).await.unwrap(), "abc");
        assert_eq!(intake.received.total(), 3);
        assert_eq!(outcome(body(vec![Ok(data("ab"))], false, None).0).await.unwrap(), "ab");
        assert!(outcome(body(vec![], false, Some(0)).0).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn short_and_long_bodies_are_errors() {
        let length = |expected, actual| format!("{:?}", Fault::Protocol(ProtocolFault::Length { expected, actual }));
        let short = outcome(body(vec![Ok(data("ab"))], false, Some(3)).0).await.unwrap_err();
        assert_eq!(format!("{short:?}"), length(3, 2));
        let long = outcome(body(vec![Ok(data("ab")), Ok(data("cd"))], false, Some(3)).0).await.unwrap_err();
        assert_eq!(format!("{long:?}"), length(3, 4));
        let broken = outcome(body(vec![Ok(data("ab")), Err("reset".into())], false, None).0).await.unwrap_err();
        assert!(matches!(broken, Fault::Broken(_)), "{broken}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_body_but_a_slow_consumer_does_not() {
        let (mut stalled, _) = body(vec![Ok(data("ab"))], true, Some(3));
        assert!(stalled.frame().await.unwrap().is_ok());
        tokio::time::advance(STALL * 10).await;
        let begun = Instant::now();
        let error = stalled.frame().await.unwrap().unwrap_err();
        assert!(matches!(error.fault, Fault::Timeout(Phase::Body)), "{error}");
        assert_eq!(begun.elapsed().as_secs(), STALL.as_secs(), "the consumer's own pause is not counted");
        assert!(stalled.frame().await.is_none(), "after an error the body is over");
    }

    /// `bytes` every `pause` until `total` have come, where at least `min_rate` must.
    async fn dripped(bytes: &'static str, pause: u64, total: u64, min_rate: u64) -> (Result<Bytes, Fault>, u64) {
        let parts = stream::unfold(0, move |sent| async move {
            if sent >= total {
                return None;
            }
            sleep(Duration::from_secs(pause)).await;
            Some((Ok::<_, BoxError>(data(bytes)), sent + bytes.len() as u64))
        });
        let body = UpstreamBody::new(&intake(Duration::from_secs(30), min_rate), StreamBody::new(parts), Some(total));
        let begun = Instant::now();
        (outcome(body).await, begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn drops_are_no_body() {
        let (result, seconds) = dripped("ab", 20, 2000, 1024).await;
        let fault = result.unwrap_err();
        assert!(matches!(fault, Fault::Timeout(Phase::Body)) && fault.is_retryable(), "{fault}");
        assert_eq!(seconds, RATE_WINDOW);
        let (slow, seconds) = dripped(Box::leak("x".repeat(30 << 10).into_boxed_str()), 29, 300 << 10, 1024).await;
        assert_eq!(slow.unwrap().len(), 300 << 10, "above the least rate it may take {seconds} s");
        let (last, _) = dripped("ab", 20, 6, 1024).await;
        assert_eq!(last.unwrap(), "ababab", "what is whole is not too slow");
        let (any, _) = dripped("ab", 20, 20, 0).await;
        assert_eq!(any.unwrap().len(), 20, "0 switches it off");
        let (less, _) = dripped("ab", 1, 200, 2).await;
        assert_eq!(less.unwrap().len(), 200, "as slow as is allowed");
    }

    /// Longer than both the stall and the window of the least rate, by a limit below that rate.
    #[tokio::test(start_paused = true)]
    async fn who_waits_for_its_turn_is_not_called_slow() {
        let slow = MaxRate { rate: Some(10), schedule: None };
        for which in 0..2 {
            let intake = intake(STALL, 1024);
            intake.throttles[which].set(slow);
            let inner = StreamBody::new(stream::iter((0..60).map(|_| Ok::<_, BoxError>(data("0123456789")))));
            let begun = Instant::now();
            let bytes = outcome(UpstreamBody::new(&intake, inner, Some(600)).paced()).await.unwrap();
            assert_eq!((bytes.len(), begun.elapsed().as_secs()), (600, 58), "all but the last frame is paid for");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_paced_counts_and_does_not_wait() {
        let intake = intake(STALL, 1024);
        intake.throttles[1].set(MaxRate { rate: Some(10), schedule: None });
        let begun = Instant::now();
        let inner = StreamBody::new(stream::iter([Ok::<_, BoxError>(data("0123456789")), Ok(data("0123456789"))]));
        outcome(UpstreamBody::new(&intake, inner, None)).await.unwrap();
        assert!(begun.elapsed().is_zero());
        let inner = StreamBody::new(stream::iter([Ok::<_, BoxError>(data("0123456789")), Ok(data("0"))]));
        outcome(UpstreamBody::new(&intake, inner, Some(11)).paced()).await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 2);
    }
}
