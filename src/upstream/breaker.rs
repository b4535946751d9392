//! A circuit breaker: an upstream that cannot be reached is left alone for a while, so that it costs nothing.
//!
//! Closed → (enough failures in a row) → open → (time is up) → half-open, one probe → closed or open for longer.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::time::Instant;

/// Failed connections in a row after which an upstream is left alone.
const THRESHOLD: u32 = 5;
/// How long at first.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// How long at most.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// One upstream's breaker.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: State,
    /// 1 while it is closed; set under the lock, so that it is never older than the state. None: its upstream is not, or no
    /// longer, the one that is asked under its name, and has nothing to say there.
    up: Option<IntGauge>,
}

/// Leave to ask. Dropped without a verdict it proves nothing, but gives a probe's place free.
#[derive(Debug)]
#[must_use]
pub(crate) struct Permit<'a> {
    breaker: &'a Breaker,
    probe: bool,
    open: bool,
}

#[derive(Debug)]
enum State {
    /// Asked as usual.
    Closed { failures: u32 },
    /// Not asked before `until`.
    Open { until: Instant, pause: Duration },
    /// One request finds out.
    HalfOpen { pause: Duration },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

// === impl Breaker ===

impl Breaker {
    /// From now on `up` tells what it is.
    pub(crate) fn tell_by(&self, up: IntGauge) {
        let mut inner = self.0.lock();
        inner.up = Some(up);
        inner.tell();
    }

    /// It tells nothing any more, whatever comes of requests that still run.
    pub(crate) fn hush(&self) {
        self.0.lock().up = None;
    }

    /// Whether requests are held back, or the next one finds out.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.0.lock().state, State::Closed { .. })
    }

    /// For how long requests are held back; none: they are not. Zero: the next one finds out.
    pub(crate) fn held_back(&self) -> Option<Duration> {
        match self.0.lock().state {
            State::Closed { .. } => None,
            State::Open { until, .. } => Some(until.saturating_duration_since(Instant::now())),
            State::HalfOpen { .. } => Some(Duration::ZERO),
        }
    }

    /// Leave to ask, or how long to wait for it.
    pub(crate) fn permit(&self) -> Result<Permit<'_>, Duration> {
        let mut inner = self.0.lock();
        let probe = match inner.state {
            State::Closed { .. } => false,
            State::Open { until, pause } => {
                let left = until.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    return Err(left);
                }
                inner.state = State::HalfOpen { pause };
                true
            }
            State::HalfOpen { .. } => return Err(Duration::from_secs(1)),
        };
        Ok(Permit { breaker: self, probe, open: true })
    }
}

// === impl Inner ===

impl Inner {
    /// A probe under way proves nothing yet.
    fn tell(&self) {
        if let Some(up) = &self.up {
            up.set(matches!(self.state, State::Closed { .. }).into());
        }
    }
}

// === impl Permit ===

impl Permit<'_> {
    /// Upstream answered, whatever it said.
    pub(crate) fn reached(mut self) {
        self.open = false;
        let mut inner = self.breaker.0.lock();
        inner.state = State::default();
        inner.tell();
    }

    /// It could not be reached, or did not answer.
    pub(crate) fn failed(mut self) {
        self.open = false;
        let mut inner = self.breaker.0.lock();
        let pause = match inner.state {
            State::Closed { failures } if failures + 1 < THRESHOLD => {
                inner.state = State::Closed { failures: failures + 1 };
                return;
            }
            State::Closed { .. } => FIRST_PAUSE,
            State::HalfOpen { pause } if self.probe => (pause * 2).min(LONGEST_PAUSE),
            // A request from before it opened: nothing new.
            State::Open { .. } | State::HalfOpen { .. } => return,
        };
        inner.state = State::Open { until: Instant::now() + pause, pause };
        inner.tell();
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.open || !self.probe {
            return;
        }
        let mut inner = self.breaker.0.lock();
        if let State::HalfOpen { pause } = inner.state {
            inner.state = State::Open { until: Instant::now(), pause };
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn told() -> (Breaker, IntGauge) {
        let (breaker, up) = (Breaker::default(), IntGauge::new("up", "up").unwrap());
        breaker.tell_by(up.clone());
        (breaker, up)
    }

    fn fail(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            breaker.permit().expect("closed").failed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn opens_after_failures_in_a_row_and_probes_once() {
        let (breaker, up) = told();
        fail(&breaker, THRESHOLD - 1);
        breaker.permit().unwrap().reached();
        assert_eq!(up.get(), 1);
        fail(&breaker, THRESHOLD);
        assert_eq!((breaker.permit().unwrap_err(), up.get()), (FIRST_PAUSE, 0));
        assert_eq!(breaker.held_back(), Some(FIRST_PAUSE));
        advance(FIRST_PAUSE).await;
        assert_eq!(breaker.held_back(), Some(Duration::ZERO));
        let probe = breaker.permit().expect("time is up");
        assert_eq!(up.get(), 0, "nobody knows yet");
        assert!(breaker.permit().is_err(), "one probe at a time");
        probe.failed();
        assert_eq!(breaker.permit().unwrap_err(), FIRST_PAUSE * 2, "the pause grows");
        advance(FIRST_PAUSE * 2).await;
        breaker.permit().unwrap().reached();
        assert_eq!(up.get(), 1);
        fail(&breaker, THRESHOLD - 1);
        assert!(breaker.permit().is_ok(), "counting starts anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_makes_room_for_the_next() {
        let breaker = Breaker::default();
        let early = breaker.permit().unwrap();
        fail(&breaker, THRESHOLD);
        early.failed();
        assert_eq!(breaker.permit().unwrap_err(), FIRST_PAUSE, "an old request does not prolong the pause");
        advance(FIRST_PAUSE).await;
        drop(breaker.permit().unwrap());
        assert!(breaker.permit().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn it_tells_what_it_is_when_it_comes_into_use_and_nothing_after() {
        let (breaker, up) = (Breaker::default(), IntGauge::new("up", "up").unwrap());
        up.set(1);
        fail(&breaker, THRESHOLD);
        assert_eq!(up.get(), 1);
        breaker.tell_by(up.clone());
        assert_eq!(up.get(), 0);
        breaker.hush();
        advance(FIRST_PAUSE).await;
        breaker.permit().unwrap().reached();
        assert_eq!(up.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_has_a_limit() {
        let breaker = Breaker::default();
        fail(&breaker, THRESHOLD);
        for _ in 0..10 {
            advance(breaker.permit().unwrap_err()).await;
            breaker.permit().unwrap().failed();
        }
        assert_eq!(breaker.permit().unwrap_err(), LONGEST_PAUSE);
    }
}
