//! Patience: for how long a download that brings nothing is tried again, and with which pauses (RFC 9110, 10.2.3 for
//! `Retry-After`).
//!
//! All requests for one blob share it: as long as any of them brings bytes, none is given up.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Tries in a row without a byte that are made in any case, however short the patience is.
const TRIES: u32 = 3;
/// The pause before the second try in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause that is not upstream's own wish.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Fewer bytes than this are no progress: an upstream that gives a few with each request could be asked for ever.
pub(super) const PROGRESS: u64 = 64 << 10;

/// The patience with one blob.
#[derive(Debug)]
pub(super) struct Patience {
    /// How long nothing may come.
    budget: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When there was progress.
    progress: Instant,
    /// Bytes that have come since.
    came: u64,
}

// === impl Patience ===

impl Patience {
    /// Begins now.
    pub(super) fn new(budget: Duration) -> Self {
        Self { budget, state: Mutex::new(State { progress: Instant::now(), came: 0 }) }
    }

    /// So many bytes have come that were not there before.
    pub(super) fn came(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.came += bytes;
        if state.came >= PROGRESS {
            *state = State { progress: Instant::now(), came: 0 };
        }
    }

    /// Somebody begins to wait, and nobody did before: that nothing came meanwhile is no matter.
    pub(super) fn renew(&self) {
        *self.state.lock() = State { progress: Instant::now(), came: 0 };
    }

    /// The pause before the next try, after `fruitless` in a row (the last one included) that brought nothing; none: it is
    /// given up. `asked` is what upstream wants to be waited for.
    pub(super) fn pause(&self, fruitless: u32, asked: Option<Duration>) -> Option<Duration> {
        let left = self.budget.saturating_sub(self.state.lock().progress.elapsed());
        if fruitless > TRIES && left.is_zero() {
            return None;
        }
        let asked = asked.unwrap_or_default();
        if fruitless <= 1 && asked.is_zero() {
            return Some(Duration::ZERO);
        }
        let doubled = FIRST_PAUSE * 2_u32.saturating_pow(fruitless.saturating_sub(2).min(16));
        let pause = doubled.min(LONGEST_PAUSE).mul_f64(0.5 + fastrand::f64() / 2.0).max(asked);
        // One last try when the patience ends, not long after it.
        Some(if left.is_zero() { pause.min(LONGEST_PAUSE) } else { pause.min(left) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_tries_are_made_in_any_case() {
        let patience = Patience::new(Duration::ZERO);
        assert_eq!(patience.pause(1, None), Some(Duration::ZERO), "most breaks are gone at once");
        for fruitless in 2..=TRIES {
            assert!(patience.pause(fruitless, None).is_some_and(|pause| pause <= FIRST_PAUSE * 2), "{fruitless}");
        }
        assert_eq!(patience.pause(TRIES + 1, None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_with_the_budget() {
        let budget = Duration::from_mins(15);
        let patience = Patience::new(budget);
        let begun = Instant::now();
        let mut fruitless = 0;
        let mut last = Duration::ZERO;
        while let Some(pause) = patience.pause(fruitless + 1, None) {
            fruitless += 1;
            assert!(pause <= LONGEST_PAUSE);
            last = last.max(pause);
            tokio::time::advance(pause).await;
            assert!(fruitless < 200, "it ends");
        }
        assert!(begun.elapsed() >= budget && begun.elapsed() < budget + LONGEST_PAUSE);
        assert!(fruitless >= 30 && last >= LONGEST_PAUSE / 2, "{fruitless} tries, {last:?} at most");
        patience.came(PROGRESS - 1);
        assert_eq!(patience.pause(fruitless + 1, None), None, "so little does not count");
        patience.came(1);
        assert!(patience.pause(fruitless + 1, None).is_some(), "progress begins it anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_upstream_asks_for_is_granted_within_the_budget() {
        let patience = Patience::new(Duration::from_mins(2));
        let minute = Duration::from_mins(1);
        assert_eq!(patience.pause(1, Some(minute)), Some(minute));
        assert_eq!(patience.pause(1, Some(minute * 60)), Some(minute * 2), "no longer than there is patience");
    }
}
