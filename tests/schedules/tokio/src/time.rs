//! Time as the explorer has it: whoever sleeps may wake at any moment, and the clock then says that the time has passed.
//!
//! An interval has its first tick, and then none but those that [`set_ticks`] gives to all of them: a task that nobody has
//! woken but its own clock would look alive to the explorer, and a lost wakeup could not be told from a late one.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::task::{Poll, Waker};
pub use std::time::Duration;

use shuttle::rand::{Rng as _, thread_rng};

/// How many periods a tick may take.
const LATEST: u32 = 15;

thread_local! {
    /// All tasks of a schedule share one thread.
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static TICKS: Cell<usize> = const { Cell::new(0) };
    static WAITING: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// A moment of this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

/// What ticks where there are ticks to be had.
#[derive(Debug)]
pub struct Interval {
    period: Duration,
    is_new: bool,
}

/// What becomes of ticks that nobody waited for; none are missed here.
#[derive(Debug, Clone, Copy)]
pub enum MissedTickBehavior {
    /// The next one is a period later.
    Delay,
}

/// The time that was given has passed.
#[derive(Debug)]
pub struct Elapsed;

/// Begins a schedule: the clock at 0, and no ticks.
pub fn begin() {
    NOW.set(Duration::ZERO);
    TICKS.set(0);
    WAITING.take();
}

/// There are so many ticks now.
pub fn set_ticks(ticks: usize) {
    TICKS.set(ticks);
    if ticks > 0 {
        WAITING.take().into_iter().for_each(Waker::wake);
    }
}

fn pass(duration: Duration) {
    NOW.set(NOW.get().saturating_add(duration));
}

/// Lets others run for as long as the explorer likes; then `duration` has passed.
pub async fn sleep(duration: Duration) {
    shuttle::future::yield_now().await;
    pass(duration);
}

/// The future's result: what it waits for comes in time here.
///
/// # Errors
/// None. The form is tokio's.
pub async fn timeout_at<F: Future>(_: Instant, future: F) -> Result<F::Output, Elapsed> {
    Ok(future.await)
}

/// An interval whose first tick is at once.
pub fn interval(period: Duration) -> Interval {
    Interval { period, is_new: true }
}

impl Interval {
    /// See [`MissedTickBehavior`].
    pub fn set_missed_tick_behavior(&mut self, _: MissedTickBehavior) {}

    /// The next tick.
    pub async fn tick(&mut self) -> Instant {
        if !std::mem::take(&mut self.is_new) {
            poll_fn(|context| {
                if TICKS.get() == 0 {
                    WAITING.with_borrow_mut(|waiting| waiting.push(context.waker().clone()));
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            // Its moment is the explorer's to choose.
            shuttle::future::yield_now().await;
            TICKS.set(TICKS.get().saturating_sub(1));
            // A busy machine is late.
            pass(self.period * thread_rng().gen_range(1..=LATEST));
        }
        Instant::now()
    }
}

impl Instant {
    /// What the clock says.
    pub fn now() -> Self {
        Self(NOW.get())
    }

    /// How long ago that was.
    pub fn elapsed(&self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// How long after `earlier`.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The same.
    pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
        self.duration_since(earlier)
    }

    /// So much earlier, if there was such a moment.
    pub fn checked_sub(&self, duration: Duration) -> Option<Self> {
        self.0.checked_sub(duration).map(Self)
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}
