//! How many bytes a second come from an upstream, or from all of them: `max_rate` and `schedule`.
//!
//! Bytes are taken first and paid for afterwards: whoever has received some waits, before it receives more, until time has
//! paid for them and for all that others took before. So everybody goes on in turn, and what is not received is held back
//! by TCP at upstream.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::MaxRate;

/// What may come at once after a silence: so much of a second's bytes.
const BURST: Duration = Duration::from_millis(100);
/// How often whoever waits looks whether the limit is still the same, and the clock whether its hours are.
const LOOK: Duration = Duration::from_secs(1);
/// Timers are not finer.
const SHORTEST: Duration = Duration::from_millis(1);
/// Bytes are counted in so many parts, or each look at a slow limit would lose a part of one.
const PARTS: u128 = 1_000_000_000;

/// One limit, shared by all bodies that it is for.
#[derive(Debug)]
pub(crate) struct Throttle {
    clock: Arc<dyn Clock>,
    /// Held for a little arithmetic, and once a second a look at the clock.
    state: Mutex<State>,
}

/// What a body has to wait for: that so many bytes are paid for. Counted from the throttle's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Debt(u128);

#[derive(Debug)]
struct State {
    limit: MaxRate,
    /// What holds now, by the hour.
    rate: Option<u64>,
    /// When the hours were looked at.
    looked: Instant,
    /// Parts of bytes that came, and that time has paid for: never more than came.
    taken: u128,
    paid: u128,
    /// Until when it has paid.
    at: Instant,
}

// === impl Throttle ===

impl Throttle {
    pub(crate) fn new(limit: MaxRate, clock: Arc<dyn Clock>) -> Arc<Self> {
        let now = Instant::now();
        let mut state = State { limit, rate: None, looked: now, taken: 0, paid: 0, at: now };
        state.look(&*clock, now);
        Arc::new(Self { clock, state: Mutex::new(state) })
    }

    /// From now on this holds; who waits notices it within a second.
    pub(crate) fn set(&self, limit: MaxRate) {
        let (mut state, now) = (self.state.lock(), Instant::now());
        state.pay(now);
        state.limit = limit;
        state.look(&*self.clock, now);
    }

    /// So many bytes came. None: there is nothing to wait for.
    pub(crate) fn take(&self, bytes: u64) -> Option<Debt> {
        let mut state = self.state.lock();
        state.settle(&*self.clock);
        state.rate?;
        state.taken += u128::from(bytes) * PARTS;
        Some(Debt(state.taken))
    }

    /// How long to wait before asking again; none: it is paid.
    pub(crate) fn wait(&self, debt: Debt) -> Option<Duration> {
        let mut state = self.state.lock();
        state.settle(&*self.clock);
        let rate = u128::from(state.rate?);
        let open = debt.0.saturating_sub(state.paid + rate * BURST.as_nanos());
        if open == 0 {
            return None;
        }
        let nanos = open.div_ceil(rate);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).clamp(SHORTEST, LOOK))
    }
}

// === impl State ===

impl State {
    fn settle(&mut self, clock: &dyn Clock) {
        let now = Instant::now();
        self.pay(now);
        if now.saturating_duration_since(self.looked) >= LOOK {
            self.look(clock, now);
        }
    }

    /// Pays by what has held until `now`.
    fn pay(&mut self, now: Instant) {
        let nanos = now.saturating_duration_since(self.at).as_nanos();
        self.at = now;
        self.paid = match self.rate {
            Some(rate) => self.taken.min(self.paid + nanos * u128::from(rate)),
            None => self.taken,
        };
    }

    fn look(&mut self, clock: &dyn Clock, now: Instant) {
        self.looked = now;
        let free = |hours: crate::config::Hours| hours.opens_in(clock.local().time().into()).is_none();
        self.rate = self.limit.rate.filter(|_| !self.limit.schedule.is_some_and(free));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::clock::twin::{Twin, system};
    use crate::config::Config;

    fn rate(bytes: u64) -> MaxRate {
        MaxRate { rate: Some(bytes), schedule: None }
    }

    async fn pay(throttle: &Throttle, debt: Option<Debt>) {
        while let Some(wait) = debt.and_then(|debt| throttle.wait(debt)) {
            sleep(wait).await;
        }
    }

    /// Receives `frames` of so many bytes each.
    async fn receive(throttle: &Throttle, frames: u32, bytes: u64) {
        for _ in 0..frames {
            pay(throttle, throttle.take(bytes)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_come_at_the_rate_however_many_ask() {
        let throttle = Throttle::new(rate(1000), system());
        let begun = Instant::now();
        tokio::join!(receive(&throttle, 100, 100), receive(&throttle, 10, 1000), receive(&throttle, 1000, 10));
        let took = begun.elapsed().as_millis();
        assert!((29_900..30_100).contains(&took), "30000 bytes in {took} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_saves_up_a_tenth_of_a_second_at_most() {
        let throttle = Throttle::new(rate(1000), system());
        advance(Duration::from_hours(1)).await;
        assert_eq!(throttle.take(100).and_then(|debt| throttle.wait(debt)), None);
        let debt = throttle.take(500).unwrap();
        assert_eq!(throttle.wait(debt), Some(Duration::from_millis(500)));
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_goes_on_in_turn() {
        let throttle = Throttle::new(rate(1000), system());
        let large = throttle.take(10_000);
        let begun = Instant::now();
        let first = async {
            pay(&throttle, large).await;
            begun.elapsed().as_secs()
        };
        let second = async {
            receive(&throttle, 1, 1000).await;
            begun.elapsed().as_secs()
        };
        assert_eq!(tokio::join!(first, second), (9, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_changes_for_who_waits_too() {
        let throttle = Throttle::new(MaxRate::default(), system());
        assert_eq!(throttle.take(u64::MAX), None);
        throttle.set(rate(1));
        let debt = throttle.take(1 << 40);
        let begun = Instant::now();
        tokio::join!(pay(&throttle, debt), async {
            sleep(Duration::from_mins(1)).await;
            throttle.set(rate(1 << 40));
        });
        assert_eq!(begun.elapsed().as_secs(), 61, "what was owed is paid at the new rate");
        let debt = throttle.take(1 << 60);
        let begun = Instant::now();
        tokio::join!(pay(&throttle, debt), async {
            sleep(Duration::from_mins(1)).await;
            throttle.set(MaxRate::default());
        });
        assert!(begun.elapsed() <= Duration::from_secs(61), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_hours_without_a_limit() {
        let config = Config::from_toml("[limits]\nmax_rate = \"1KiB\"\nschedule = \"22:00-06:00\"").unwrap();
        let clock = Twin::new();
        let at = |text: &str| clock.set(text.parse::<jiff::Timestamp>().unwrap().into());
        at("2026-11-23T12:00:00Z");
        let throttle = Throttle::new(config.limits.max_rate, clock.clone());
        let debt = throttle.take(1 << 40);
        assert!(throttle.wait(debt.unwrap()).is_some());
        at("2026-11-23T21:59:30Z");
        let begun = Instant::now();
        pay(&throttle, debt).await;
        assert!((30..=31).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert_eq!(throttle.take(1 << 40), None);
        at("2026-11-24T06:00:00Z");
        advance(LOOK).await;
        assert!(throttle.take(1 << 40).is_some_and(|debt| throttle.wait(debt).is_some()));
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_the_burst(
            bytes in 1_u64..1 << 30,
            frames in proptest::collection::vec((1_u64..1 << 20, 0_u64..2000), 1..40),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let throttle = Throttle::new(rate(bytes), system());
                let begun = Instant::now();
                let (mut came, mut idled, mut count) = (0, 0, 0);
                for (frame, idle) in frames {
                    sleep(Duration::from_millis(idle)).await;
                    pay(&throttle, throttle.take(frame)).await;
                    (came, idled, count) = (came + u128::from(frame), idled + idle, count + 1);
                    let nanos = begun.elapsed().as_nanos();
                    let paid = (nanos + BURST.as_nanos()) * u128::from(bytes) / PARTS;
                    assert!(came <= paid + 1, "{came} bytes in {nanos} ns");
                    // Nor much less: a timer that is late by a millisecond is late for all that follows at most once more.
                    let due = came * PARTS / u128::from(bytes) + u128::from(idled + 2 * count) * 1_000_000;
                    assert!(nanos <= due, "{came} bytes in {nanos} ns");
                }
            });
        }
    }
}
