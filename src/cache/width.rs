//! Width: with how many requests at once the rest of one blob is downloaded.
//!
//! One is enough where it fills the link. Where several reach more (a long fat link, a store that throttles each
//! connection), a second one shows it: requests are doubled as long as that brings at least [`WORTH`] more, and taken
//! back where it does not (ADR 0020).

use std::time::Duration;

use tokio::time::Instant;

/// How long a rate is measured before it is believed. A new connection takes a while to come up to speed.
const WINDOW: Duration = Duration::from_secs(2);
/// What more requests must bring at least, as a factor of what fewer did.
const WORTH: f64 = 1.15;
/// When more is tried again after it did not pay.
const AGAIN: Duration = Duration::from_secs(30);
/// A second request is tried where at the rate of one at least so much time is left: it cuts the first one short, and what is
/// on its way of that by then is lost. Where the link, or this machine, does not hold the download up for long, each byte
/// comes once.
const LONG: Duration = Duration::from_mins(1);
/// More than two are tried where at least so much is left.
const SHORT: Duration = Duration::from_secs(3);

/// How wide one download is.
#[derive(Debug)]
pub(super) struct Width {
    now: usize,
    most: usize,
    /// When the window began, and what had come by then.
    since: Instant,
    came: u64,
    /// The rate of fewer requests, bytes a second, with which this window is compared, and how many they were.
    trial: Option<(usize, f64)>,
    /// Before that nothing is tried.
    rests_until: Instant,
}

// === impl Width ===

impl Width {
    /// One request, and at most so many later.
    pub(super) fn new(most: usize) -> Self {
        let now = Instant::now();
        Self { now: 1, most: most.max(1), since: now, came: 0, trial: None, rests_until: now }
    }

    /// How many requests there are to be.
    pub(super) fn get(&self) -> usize {
        self.now
    }

    /// So many bytes have come in all, `left` are to come, and `running` requests bring them. True where the number has
    /// changed.
    pub(super) fn measure(&mut self, came: u64, left: u64, running: usize) -> bool {
        let elapsed = self.since.elapsed();
        if elapsed < WINDOW {
            return false;
        }
        let bytes = came.saturating_sub(self.came);
        // A few megabytes a second in doubles lose nothing that matters.
        #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
        let (rate, left) = (bytes as f64 / elapsed.as_secs_f64(), left as f64);
        (self.since, self.came) = (Instant::now(), came);
        let before = self.now;
        if let Some((fewer, reached)) = self.trial.take()
            && rate < reached * WORTH
        {
            self.now = fewer;
            self.rests_until = Instant::now() + AGAIN;
        } else if self.now < self.most
            && running >= self.now
            && bytes > 0
            && Instant::now() >= self.rests_until
            && left > rate * if self.now == 1 { LONG } else { SHORT }.as_secs_f64()
        {
            self.trial = Some((self.now, rate));
            self.now = (2 * self.now).min(self.most);
        }
        self.now != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that gives each request `each` and all together `total` bytes a second; how many requests there are after so
    /// many seconds, and how many there were at most.
    async fn after(seconds: u64, each: u64, total: u64, most: usize) -> (usize, usize) {
        let mut width = Width::new(most);
        let (mut came, mut peak) = (0, 1);
        for _ in 0..seconds {
            tokio::time::advance(Duration::from_secs(1)).await;
            came += (each * width.get() as u64).min(total);
            width.measure(came, 1 << 40, width.get());
            peak = peak.max(width.get());
        }
        (width.get(), peak)
    }

    #[tokio::test(start_paused = true)]
    async fn throttled_connections_become_as_many_as_may_be() {
        assert_eq!(after(10, 2_500_000, 25_000_000, 8).await, (8, 8), "and within seconds");
        assert_eq!(after(60, 2_500_000, 25_000_000, 5).await.1, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_that_one_fills_is_tried_now_and_then() {
        let (now, peak) = after(28, 12_500_000, 12_500_000, 8).await;
        assert_eq!((now, peak), (1, 2), "a second one brought nothing");
        assert_eq!(after(300, 12_500_000, 12_500_000, 8).await.1, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_soon_or_stands_still_is_left_alone() {
        let mut width = Width::new(8);
        tokio::time::advance(WINDOW).await;
        assert!(!width.measure(20_000_000, 590_000_000, 1), "59 seconds more at this rate");
        tokio::time::advance(WINDOW).await;
        assert!(!width.measure(20_000_000, 1 << 40, 1), "nothing has come");
        tokio::time::advance(WINDOW).await;
        assert!(!width.measure(40_000_000, 1 << 40, 0), "nothing runs");
        tokio::time::advance(WINDOW).await;
        assert!(width.measure(60_000_000, 1 << 40, 1));
        assert_eq!(width.get(), 2);
    }
}
