//! Waiting without guessing: for a condition with a bound, and under a clock that runs faster.

use std::future::Future;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use ocistern::clock::{Clock, SystemClock};
use parking_lot::Mutex;
use tokio::time::{Instant, interval, timeout};

/// How long a test waits for something that must come, on the (perhaps warped) clock of tokio.
const PATIENCE: Duration = Duration::from_mins(5);

/// Waits for `condition`, asking every few milliseconds: the only polling in these tests, for what announces itself
/// by no event (files, metrics).
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let poll = async {
        let mut tick = interval(Duration::from_millis(10));
        loop {
            tick.tick().await;
            if condition().await {
                return;
            }
        }
    };
    assert!(timeout(PATIENCE, poll).await.is_ok(), "waited in vain: {what}");
}

/// Waits for `future`, and fails the test with `what` where it never ends.
pub async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(value) = timeout(PATIENCE, future).await else { panic!("waited in vain: {what}") };
    value
}

/// Lets so much time pass at once, on a current-thread runtime on which nothing is under way: all that is due meanwhile
/// happens at its end.
pub async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Makes tokio's clock run `FACTOR` times faster until it is dropped, on a current-thread runtime.
///
/// Plain `tokio::time::pause` is not usable with real sockets: it jumps to the next timer whenever the runtime is
/// idle, also while the kernel or a blocking thread is still at work. A task on the blocking pool holds that jumping
/// off (tokio does not advance by itself while one runs), and beats a pulse on which the clock is advanced a step.
/// A pulse that was missed is not made up for, so a starved machine slows this clock down and does not tear it.
#[derive(Debug)]
pub struct Warp {
    _stop: mpsc::Sender<()>,
    _driver: tokio::task::JoinSet<()>,
}

/// Keeps tokio's clock from moving until it is dropped, on a current-thread runtime: what is bound to happen within a
/// second happens within it, however slow the machine is. See [`Warp`] for how.
#[derive(Debug)]
pub struct Frozen {
    _stop: mpsc::Sender<()>,
}

/// Stops the clock.
pub fn freeze() -> Frozen {
    let (stop, stopped) = mpsc::channel::<()>();
    tokio::time::pause();
    tokio::task::spawn_blocking(move || stopped.recv().is_ok());
    Frozen { _stop: stop }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        tokio::time::resume();
    }
}

/// See [`Warp`].
const FACTOR: u32 = 25;
const PULSE: Duration = Duration::from_millis(2);

/// Starts a [`Warp`].
pub fn warp() -> Warp {
    let (stop, stopped) = mpsc::channel::<()>();
    let (beat, mut beats) = tokio::sync::mpsc::channel::<()>(1);
    tokio::time::pause();
    tokio::task::spawn_blocking(move || {
        while stopped.recv_timeout(PULSE) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Full: the last pulse was not used yet. Closed: the driver has gone.
            if let Err(tokio::sync::mpsc::error::TrySendError::Closed(())) = beat.try_send(()) {
                return;
            }
        }
    });
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(async move {
        while beats.recv().await.is_some() {
            tokio::time::advance(PULSE * FACTOR).await;
        }
    });
    Warp { _stop: stop, _driver: driver }
}

/// What the system's clock says.
pub fn wall() -> SystemTime {
    SystemClock.now()
}

/// A clock on the wall that a test sets; it goes with tokio's from there.
#[derive(Debug)]
pub struct Twin(Mutex<(SystemTime, Instant)>);

impl Twin {
    /// At the time of the system.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((SystemClock.now(), Instant::now()))))
    }

    pub fn set(&self, time: SystemTime) {
        *self.0.lock() = (time, Instant::now());
    }
}

impl Clock for Twin {
    fn now(&self) -> SystemTime {
        let (time, since) = *self.0.lock();
        time + since.elapsed()
    }
}
