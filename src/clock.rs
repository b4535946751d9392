//! What the time is: the clock on the wall, which may jump, behind a trait; and what may be relied on although it does.
//!
//! Time-outs and lives in memory go by tokio's clock, which does not jump, and need nothing of this. The clock on the
//! wall is for what outlives the process or leaves it: files, tokens, dates in headers (ADR 0015).

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// A clock on the wall: it may be wrong, and it may be set.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time.
    fn now(&self) -> SystemTime;

    /// The time as people here read it.
    fn local(&self) -> Zoned {
        timestamp(self.now()).to_zoned(TimeZone::system())
    }
}

/// The system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// A clock that goes back by more than this was set; time services nudge it by less.
const NUDGE: Duration = Duration::from_secs(1);
/// A clock that has run ahead of tokio's by more than this between two looks was set, or the machine slept.
const LEAP: Duration = Duration::from_mins(1);
/// How long a clock must go on to say so until it is believed that everything is that much older.
const BELIEVED_AFTER: Duration = Duration::from_hours(1);
/// Seconds since 1970 at the beginning of 2025: a clock that says less was never set.
pub const NEVER_SET: u32 = 1_735_689_600;
/// How many leaps are told apart; of more, the oldest are believed together.
const LEAPS: usize = 64;

/// What this process has seen of its clock. It tells which of two things was first although the clock was set between
/// them, and does not let a jump make everything old at once.
#[derive(Debug)]
pub struct Timeline {
    clock: Arc<dyn Clock>,
    /// Held for a look at the clock only.
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// What the clock said at the last look, and what tokio's did.
    wall: SystemTime,
    instant: Instant,
    /// The last moment that was given out.
    last: SystemTime,
    /// The last one before the clock was set back.
    doubted: Option<SystemTime>,
    /// By how much it has leapt forward, and from when each leap is believed; the oldest first.
    leaps: VecDeque<(Instant, Duration)>,
    /// Since when it has not jumped.
    steady: Instant,
}

/// A time for what begins and ends within this process and leaves it meanwhile: right as the clock was at the start, it
/// goes by tokio's from there.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    start: SystemTime,
    since: Instant,
}

// === impl SystemClock ===

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place where the system is asked")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

// === impl Timeline ===

impl Timeline {
    /// From now on.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (wall, instant) = (clock.now(), Instant::now());
        let seen = Seen { wall, instant, last: UNIX_EPOCH, doubted: None, leaps: VecDeque::new(), steady: instant };
        Self { clock, seen: Mutex::new(seen) }
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// What the clock says; times before 1970 have no form on the disk.
    pub fn now(&self) -> SystemTime {
        self.clock.now().max(UNIX_EPOCH)
    }

    /// A time later than all that were given out before, also where the clock was set back. It tells what was first, and
    /// not how long ago that was.
    pub fn moment(&self) -> SystemTime {
        let mut seen = self.look();
        seen.last = seen.wall.max(seen.last + Duration::from_nanos(1));
        seen.last
    }

    /// Whether it cannot be known how long ago this moment was, because the clock was set back since.
    pub fn doubts(&self, moment: SystemTime) -> bool {
        let seen = self.look();
        seen.doubted.is_some_and(|doubted| moment <= doubted || moment > seen.last)
    }

    /// The time by which ages are counted that something is removed for. While it is not sure that a leap was none by
    /// mistake, it is as though there had been none.
    pub fn settled(&self) -> SystemTime {
        let seen = self.look();
        let leapt = seen.leaps.iter().map(|(_, leap)| *leap).sum();
        seen.wall.checked_sub(leapt).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH)
    }

    /// Whether the clock was set at all, and has run for so long without a jump that what an earlier run put down as later
    /// than now was wrong, and not this clock.
    pub fn is_believed(&self) -> bool {
        let seen = self.look();
        let is_set = seen.wall >= UNIX_EPOCH + Duration::from_secs(NEVER_SET.into());
        is_set && seen.instant.saturating_duration_since(seen.steady) >= BELIEVED_AFTER
    }

    /// Looks at the clock. Whoever does that often enough notices each jump: one that is made up for before the next look
    /// is none.
    fn look(&self) -> MutexGuard<'_, Seen> {
        let mut seen = self.seen.lock();
        // Under the lock, or an older look would pass for a clock that was set back.
        let (wall, instant) = (self.now(), Instant::now());
        let expected = seen.wall + instant.saturating_duration_since(seen.instant);
        while seen.leaps.front().is_some_and(|(believed_from, _)| instant >= *believed_from) {
            seen.leaps.pop_front();
        }
        if wall + NUDGE < seen.wall {
            seen.doubted = Some(seen.last);
            seen.steady = instant;
            seen.take_back(expected.duration_since(wall).unwrap_or_default());
        } else if let Ok(leap) = wall.duration_since(expected)
            && leap > LEAP
        {
            seen.steady = instant;
            seen.leaps.push_back((instant + BELIEVED_AFTER, leap));
            if seen.leaps.len() > LEAPS
                && let Some((_, oldest)) = seen.leaps.pop_front()
                && let Some((_, next)) = seen.leaps.front_mut()
            {
                *next += oldest;
            }
        }
        (seen.wall, seen.instant) = (wall, instant);
        seen
    }
}

// === impl Seen ===

impl Seen {
    /// The clock was set back by so much: the last leaps were none.
    fn take_back(&mut self, mut back: Duration) {
        while let Some((_, leap)) = self.leaps.back_mut()
            && !back.is_zero()
        {
            let taken = back.min(*leap);
            (*leap, back) = (leap.saturating_sub(taken), back.saturating_sub(taken));
            if leap.is_zero() {
                self.leaps.pop_back();
            }
        }
    }
}

// === impl Steady ===

impl Steady {
    /// From now on.
    pub fn new(clock: &dyn Clock) -> Self {
        Self { start: clock.now(), since: Instant::now() }
    }

    /// The time.
    pub fn now(&self) -> SystemTime {
        self.start + self.since.elapsed()
    }
}

/// Times out of range go to its ends.
pub fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(if time < UNIX_EPOCH { Timestamp::MIN } else { Timestamp::MAX })
}

#[cfg(test)]
pub(crate) mod twin {
    //! A clock that tests set.

    use super::*;

    /// Goes with tokio's clock from the time to which it was set.
    #[derive(Debug)]
    pub(crate) struct Twin(Mutex<(SystemTime, Instant)>);

    impl Twin {
        /// At the time of the system, as files have it.
        pub(crate) fn new() -> Arc<Self> {
            Arc::new(Self(Mutex::new((SystemClock.now(), Instant::now()))))
        }

        pub(crate) fn set(&self, time: SystemTime) {
            *self.0.lock() = (time, Instant::now());
        }

        pub(crate) fn forward(&self, by: Duration) {
            self.set(self.now() + by);
        }

        pub(crate) fn back(&self, by: Duration) {
            self.set(self.now() - by);
        }
    }

    impl Clock for Twin {
        fn now(&self) -> SystemTime {
            let (time, since) = *self.0.lock();
            time + since.elapsed()
        }

        fn local(&self) -> Zoned {
            timestamp(self.now()).to_zoned(TimeZone::UTC)
        }
    }

    /// What the system's clock says.
    pub(crate) fn wall() -> SystemTime {
        SystemClock.now()
    }

    /// The system's clock, for tests in which it does not matter.
    pub(crate) fn system() -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
}

#[cfg(test)]
mod tests {
    use super::twin::Twin;
    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[tokio::test(start_paused = true)]
    async fn moments_never_go_back() {
        let clock = Twin::new();
        let timeline = Timeline::new(clock.clone());
        let mut last = timeline.moment();
        for jump in [Twin::forward, Twin::back, Twin::back, Twin::forward] {
            jump(&clock, DAY);
            for _ in 0..3 {
                let moment = timeline.moment();
                assert!(moment > last);
                last = moment;
            }
        }
        clock.forward(4 * DAY);
        assert_eq!(timeline.moment(), clock.now(), "it is the time wherever that is later");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_clock_that_is_set_back_raises_doubts() {
        let clock = Twin::new();
        let timeline = Timeline::new(clock.clone());
        let first = timeline.moment();
        clock.forward(DAY);
        clock.back(NUDGE);
        assert!(!timeline.doubts(first));
        clock.back(2 * NUDGE);
        assert!(timeline.doubts(first));
        let second = timeline.moment();
        assert!(!timeline.doubts(second) && timeline.doubts(first), "only of what was before");
        assert!(timeline.doubts(second + DAY), "and of what another process says");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leap_is_believed_after_an_hour() {
        let clock = Twin::new();
        let timeline = Timeline::new(clock.clone());
        let begin = clock.now();
        tokio::time::advance(DAY).await;
        assert_eq!(timeline.settled(), begin + DAY, "time that passes is no leap");
        clock.forward(DAY);
        assert_eq!(timeline.settled(), begin + DAY);
        tokio::time::advance(BELIEVED_AFTER / 2).await;
        assert_eq!(timeline.settled(), begin + DAY + BELIEVED_AFTER / 2);
        tokio::time::advance(BELIEVED_AFTER / 2).await;
        assert_eq!(timeline.settled(), clock.now());
        clock.forward(DAY);
        timeline.settled();
        clock.back(DAY);
        assert_eq!(timeline.settled(), clock.now(), "taken back, there was none");
    }

    /// A laptop that sleeps each half hour: each leap is believed an hour after it, however many follow.
    #[tokio::test(start_paused = true)]
    async fn each_leap_is_believed_in_its_time() {
        let clock = Twin::new();
        let timeline = Timeline::new(clock.clone());
        let begin = clock.now();
        for _ in 0..200 {
            clock.forward(DAY);
            timeline.settled();
            tokio::time::advance(BELIEVED_AFTER / 2).await;
        }
        assert!(timeline.settled() >= begin + 190 * DAY, "{:?}", timeline.settled().duration_since(begin));
        assert!(timeline.settled() <= clock.now() - DAY, "the last one is not believed yet");
        assert!(!timeline.is_believed());
        tokio::time::advance(BELIEVED_AFTER).await;
        assert!(timeline.settled() == clock.now() && timeline.is_believed());
    }

    #[test]
    fn times_out_of_range_have_their_place() {
        assert!(timestamp(UNIX_EPOCH + Duration::from_secs(1 << 40)) > timestamp(SystemClock.now()));
        assert_eq!(timestamp(UNIX_EPOCH), Timestamp::UNIX_EPOCH);
    }
}
