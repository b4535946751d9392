//! What a connection is doing, and how long it may: first byte, request head, idleness, slowest client.
//!
//! hyper times a request's head from the moment the connection could have one, so that its header time-out cuts idle
//! connections too, and it has none before the protocol is known, nor for a client that does not read. So one value
//! per connection is told of every read, write, request and frame, and says when to look again. The connection's
//! task asks it after every poll ([`super::supervise`]).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::Limits;

/// How often a connection that serves requests is looked at: a fraction of the window of the minimum rate.
const LOOKS_PER_WINDOW: u32 = 4;
/// The time that a connection has to close after it was asked to.
const CLOSING: Duration = Duration::from_secs(5);

/// HTTP/2: bytes of frames that may come while no request begins and no content moves, in either direction. More than the
/// window of a connection, which a client may fill before anybody reads of it.
const NOISE: u64 = 2 << 20;
/// After so many of them others have their turn: frames cost their reader more than their sender (CVE-2019-9512, -9515).
const TURN: u64 = 64 << 10;

/// The limits that hold for a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    pub(super) first_byte: Duration,
    pub(super) header: Duration,
    pub(super) idle: Duration,
    /// Bytes in a window.
    pub(super) window_bytes: u64,
    pub(super) window: Duration,
}

/// Who connects to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clients {
    /// Whoever reaches it.
    Anybody,
    /// The owner of the store only, who needs no slow reading to keep others away. `ocistern export` reads no further while it
    /// waits for its medium to take a whole volume, which is minutes for a slow stick: there is no minimum rate.
    Owner,
}

/// What a connection is doing; one per connection, shared by its IO, its requests and their bodies.
#[derive(Debug)]
pub(super) struct Activity {
    allowed: Allowed,
    /// Never held over an await point, and with no other lock.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    started: Instant,
    speaks: Speech,
    any_request: bool,
    /// When the head that is being read began (HTTP/1 only: HTTP/2 sends other frames between requests).
    head_since: Option<Instant>,
    requests: usize,
    idle_since: Instant,
    closing_since: Option<Instant>,
    /// Bodies of which a frame was taken and no further one asked for: the client is the slower side.
    waiting: usize,
    /// The last write or flush could not go on.
    blocked: bool,
    written: u64,
    /// Since when, without a break, bytes wait for the client, and what was written by then.
    slow_since: Option<(Instant, u64)>,
    /// HTTP/2: bytes that came since there was a use in it, and of them those since others had their turn.
    noise: u64,
    in_turn: u64,
}

/// What a client speaks, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    /// It has sent none.
    Nothing,
    Http1,
    Http2,
}

/// Whether a connection may be read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ear {
    /// Now.
    Open,
    /// After others.
    Later,
    /// Not any more: nothing comes but noise.
    Closed,
}

/// What is to be done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing before this time.
    Until(Instant),
    /// Ask it to close: it is idle.
    Retire,
    /// Drop it.
    Cut(Overdue),
}

/// Which time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Overdue {
    /// Nothing came.
    #[error("no byte of a request in time")]
    FirstByte,
    /// A request's head came too slowly.
    #[error("the head of a request was not complete in time")]
    Head,
    /// The client reads too slowly.
    #[error("the client took fewer bytes than the minimum rate asks for")]
    Rate,
    /// It was asked to close and did not.
    #[error("the connection did not close when it was asked to")]
    Closing,
}

/// A request in progress, until its body ends.
#[derive(Debug)]
pub(super) struct InFlight {
    activity: Arc<Activity>,
    waiting: bool,
}

/// A body that tells which side is the slower one.
#[derive(Debug)]
pub(super) struct Tracked<B> {
    inner: B,
    in_flight: InFlight,
}

/// The body of a request: what comes of it is of use.
#[derive(Debug)]
pub(super) struct Heard<B> {
    inner: B,
    activity: Arc<Activity>,
}

// === impl Allowed ===

impl Allowed {
    /// What these limits mean for such clients.
    pub(super) fn of(limits: &Limits, clients: Clients) -> Self {
        let mut slowest = limits.slowest();
        if clients == Clients::Owner {
            slowest.bytes = 0;
        }
        Self {
            first_byte: limits.first_byte,
            header: limits.header,
            idle: limits.idle,
            window_bytes: slowest.bytes,
            window: slowest.window,
        }
    }
}

// === impl Activity ===

impl Activity {
    pub(super) fn new(allowed: Allowed) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            started: now,
            speaks: Speech::Nothing,
            any_request: false,
            head_since: None,
            requests: 0,
            idle_since: now,
            closing_since: None,
            waiting: 0,
            blocked: false,
            written: 0,
            slow_since: None,
            noise: 0,
            in_turn: 0,
        };
        Arc::new(Self { allowed, state: Mutex::new(state) })
    }

    /// Whether more may be read.
    pub(super) fn ear(&self) -> Ear {
        let mut state = self.state.lock();
        if state.noise >= NOISE {
            return Ear::Closed;
        }
        if state.in_turn >= TURN {
            state.in_turn = 0;
            return Ear::Later;
        }
        Ear::Open
    }

    /// These bytes came.
    pub(super) fn read(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        // The beginning of every connection of HTTP/2 (RFC 9113, 3.4), and no method of HTTP/1.1.
        if state.speaks == Speech::Nothing {
            state.speaks = if bytes.starts_with(b"PRI ") { Speech::Http2 } else { Speech::Http1 };
        }
        let is_http2 = state.speaks == Speech::Http2;
        if is_http2 {
            state.noise += bytes.len() as u64;
            state.in_turn += bytes.len() as u64;
        }
        // Until its first request HTTP/2 has as long as the head of one by HTTP/1.1.
        let is_head = !is_http2 || !state.any_request;
        if state.requests == 0 && is_head && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// Bytes went out.
    pub(super) fn wrote(&self, count: usize) {
        let mut state = self.state.lock();
        state.blocked = false;
        state.written = state.written.saturating_add(count as u64);
    }

    /// Whether bytes wait that cannot go out.
    pub(super) fn blocked(&self, blocked: bool) {
        self.state.lock().blocked = blocked;
    }

    /// The connection was asked to close.
    pub(super) fn closing(&self) {
        self.state.lock().closing_since.get_or_insert_with(Instant::now);
    }

    /// A request's head is complete.
    pub(super) fn begin(self: &Arc<Self>, is_http2: bool) -> InFlight {
        let mut state = self.state.lock();
        state.requests += 1;
        state.any_request = true;
        if is_http2 {
            state.speaks = Speech::Http2;
        }
        state.head_since = None;
        (state.noise, state.in_turn) = (0, 0);
        drop(state);
        InFlight { activity: self.clone(), waiting: false }
    }

    /// Content of a request, or of its answer, has moved.
    fn moved(&self) {
        let mut state = self.state.lock();
        (state.noise, state.in_turn) = (0, 0);
    }

    pub(super) fn judge(&self, now: Instant) -> Verdict {
        let mut state = self.state.lock();
        if state.requests > 0 || state.blocked {
            return state.judge_rate(&self.allowed, now);
        }
        state.slow_since = None;
        let (deadline, verdict) = match *state {
            // Nothing runs any more: what is left is the closing itself.
            State { closing_since: Some(since), idle_since, .. } => {
                (since.max(idle_since) + CLOSING, Verdict::Cut(Overdue::Closing))
            }
            State { speaks: Speech::Nothing, started, .. } => {
                (started + self.allowed.first_byte, Verdict::Cut(Overdue::FirstByte))
            }
            State { head_since: Some(since), .. } => (since + self.allowed.header, Verdict::Cut(Overdue::Head)),
            State { idle_since, .. } => (idle_since + self.allowed.idle, Verdict::Retire),
        };
        if now < deadline { Verdict::Until(deadline) } else { verdict }
    }
}

impl State {
    fn judge_rate(&mut self, allowed: &Allowed, now: Instant) -> Verdict {
        let next_look = now + allowed.window / LOOKS_PER_WINDOW;
        if !self.blocked && self.waiting == 0 {
            self.slow_since = None;
            return Verdict::Until(next_look);
        }
        let (since, written) = *self.slow_since.get_or_insert((now, self.written));
        if now < since + allowed.window {
            return Verdict::Until(next_look.min(since + allowed.window));
        }
        if self.written - written < allowed.window_bytes {
            return Verdict::Cut(Overdue::Rate);
        }
        self.slow_since = Some((now, self.written));
        Verdict::Until(next_look)
    }
}

// === impl InFlight ===

impl InFlight {
    fn set_waiting(&mut self, waiting: bool) {
        if self.waiting == waiting {
            return;
        }
        self.waiting = waiting;
        let mut state = self.activity.state.lock();
        state.waiting = if waiting { state.waiting + 1 } else { state.waiting.saturating_sub(1) };
    }

    /// Follows the request to the end of its body.
    pub(super) fn follow<B>(self, inner: B) -> Tracked<B> {
        Tracked { inner, in_flight: self }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.set_waiting(false);
        let mut state = self.activity.state.lock();
        state.requests = state.requests.saturating_sub(1);
        state.idle_since = Instant::now();
    }
}

// === impl Heard ===

impl Activity {
    /// The body of a request, of which each piece counts.
    pub(super) fn hear<B>(self: &Arc<Self>, inner: B) -> Heard<B> {
        Heard { inner, activity: self.clone() }
    }
}

impl<B: Body + Unpin> Body for Heard<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && frame.data_ref().is_some_and(Buf::has_remaining)
        {
            self.activity.moved();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl Tracked ===

impl<B: Body + Unpin> Body for Tracked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        let is_frame = matches!(polled, Poll::Ready(Some(Ok(_))));
        if is_frame {
            this.in_flight.activity.moved();
        }
        this.in_flight.set_waiting(is_frame);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn activity() -> Arc<Activity> {
        Activity::new(Allowed {
            first_byte: seconds(10),
            header: seconds(15),
            idle: seconds(75),
            window_bytes: 60 * 1024,
            window: seconds(60),
        })
    }

    async fn after(activity: &Activity, count: u64) -> Verdict {
        tokio::time::advance(seconds(count)).await;
        activity.judge(Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_cut() {
        let activity = activity();
        assert_eq!(after(&activity, 9).await, Verdict::Until(Instant::now() + seconds(1)));
        assert_eq!(after(&activity, 1).await, Verdict::Cut(Overdue::FirstByte));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_however_it_trickles() {
        let activity = activity();
        for _ in 0..14 {
            activity.read(b"G");
            assert!(matches!(after(&activity, 1).await, Verdict::Until(_)));
        }
        activity.read(b"G");
        assert_eq!(after(&activity, 1).await, Verdict::Cut(Overdue::Head));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_retired_and_then_cut() {
        let activity = activity();
        activity.read(b"G");
        drop(activity.begin(false));
        assert!(matches!(after(&activity, 74).await, Verdict::Until(_)), "longer than a head may take");
        assert_eq!(after(&activity, 1).await, Verdict::Retire);
        activity.closing();
        assert!(matches!(after(&activity, 4).await, Verdict::Until(_)));
        assert_eq!(after(&activity, 1).await, Verdict::Cut(Overdue::Closing));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_its_time_while_the_client_is_not_the_slower_side() {
        let activity = activity();
        activity.read(b"G");
        let _request = activity.begin(false);
        for _ in 0..100 {
            assert!(matches!(after(&activity, 60).await, Verdict::Until(_)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_cut() {
        let activity = activity();
        activity.read(b"G");
        let mut request = activity.begin(true);
        request.set_waiting(true);
        assert!(matches!(after(&activity, 0).await, Verdict::Until(_)));
        activity.wrote(60 * 1024 - 1);
        assert_eq!(after(&activity, 60).await, Verdict::Cut(Overdue::Rate));
        drop(request);
        assert!(matches!(after(&activity, 0).await, Verdict::Until(_)), "the request is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_above_the_minimum_is_served() {
        let activity = activity();
        activity.read(b"G");
        let _request = activity.begin(false);
        for _ in 0..20 {
            activity.blocked(true);
            assert!(matches!(after(&activity, 0).await, Verdict::Until(_)));
            activity.wrote(60 * 1024);
            activity.blocked(true);
            assert!(matches!(after(&activity, 60).await, Verdict::Until(_)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_owner_may_stop_reading_for_as_long_as_a_medium_takes() {
        let limits = Limits::default();
        let time = limits.min_rate_window.as_secs() * 60;
        for clients in [Clients::Owner, Clients::Anybody] {
            let activity = Activity::new(Allowed::of(&limits, clients));
            activity.read(b"G");
            let mut request = activity.begin(false);
            request.set_waiting(true);
            activity.blocked(true);
            assert!(matches!(after(&activity, 0).await, Verdict::Until(_)));
            let verdict = after(&activity, time).await;
            assert_eq!(verdict == Verdict::Cut(Overdue::Rate), clients == Clients::Anybody, "{clients:?}: {verdict:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_bytes_of_an_answer_count_after_its_body_is_gone() {
        let activity = activity();
        activity.read(b"G");
        drop(activity.begin(false));
        activity.blocked(true);
        assert!(matches!(after(&activity, 0).await, Verdict::Until(_)));
        assert_eq!(after(&activity, 60).await, Verdict::Cut(Overdue::Rate));
    }

    #[test]
    fn who_sends_nothing_but_frames_waits_for_others_and_is_cut_off() {
        let activity = activity();
        activity.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let _request = activity.begin(true);
        let frames = vec![0; usize::try_from(TURN).unwrap()];
        let hear = |times: u64| {
            let mut later = 0;
            for _ in 0..times {
                later += u64::from(activity.ear() == Ear::Later);
                activity.read(&frames);
            }
            later
        };
        assert_eq!(hear(NOISE / TURN - 1), NOISE / TURN - 2, "each in its turn");
        activity.moved();
        assert_eq!(activity.ear(), Ear::Open, "what is of use takes as long as it takes");
        hear(NOISE / TURN);
        assert_eq!(activity.ear(), Ear::Closed);
    }

    #[test]
    fn what_comes_by_http1_is_content() {
        let activity = activity();
        activity.read(b"PUT ");
        let _request = activity.begin(false);
        activity.read(&vec![0; 2 * usize::try_from(NOISE).unwrap()]);
        assert_eq!(activity.ear(), Ear::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn before_the_first_request_http2_has_the_time_of_a_head() {
        let activity = activity();
        activity.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        for _ in 0..14 {
            assert!(matches!(after(&activity, 1).await, Verdict::Until(_)));
            activity.read(&[0; 17]);
        }
        assert_eq!(after(&activity, 1).await, Verdict::Cut(Overdue::Head));
    }

    #[tokio::test(start_paused = true)]
    async fn frames_of_http2_between_requests_are_no_head() {
        let activity = activity();
        activity.read(b"G");
        drop(activity.begin(true));
        activity.read(b"G");
        assert!(matches!(after(&activity, 20).await, Verdict::Until(_)));
    }
}
