//! What is free on the file system while much is removed: some say only seconds later what was given back.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How long a file system may take to count what was removed as free. What others write meanwhile is not seen.
const LAG: Duration = Duration::from_secs(5);
/// How far two measurements lie apart of which more is known than the last.
const APART: Duration = Duration::from_millis(250);

/// The estimate.
#[derive(Debug, Default)]
pub(super) struct Estimate {
    measured: VecDeque<Measured>,
    /// All that was removed.
    freed: u64,
}

#[derive(Debug)]
struct Measured {
    at: Instant,
    free: u64,
    /// What had been removed by then,
    freed: u64,
    /// and written.
    allocated: u64,
}

// === impl Estimate ===

impl Estimate {
    /// So many bytes were removed.
    pub(super) fn freed(&mut self, bytes: u64) {
        self.freed += bytes;
    }

    /// What is free, if the file system says `free` now and fills had taken `allocated` bytes in all, looked at before:
    /// what was free a while ago, what was removed since and has not been taken again. The most that any measurement of the
    /// last seconds comes to, as more must not go than needed.
    pub(super) fn free(&mut self, free: u64, allocated: u64) -> u64 {
        let now = Instant::now();
        while self.measured.front().is_some_and(|first| now.duration_since(first.at) > LAG) {
            self.measured.pop_front();
        }
        if self.measured.back().is_none_or(|last| now.duration_since(last.at) >= APART) {
            self.measured.push_back(Measured { at: now, free, freed: self.freed, allocated });
        }
        let comes_to = |then: &Measured| {
            (then.free + self.freed - then.freed).saturating_sub(allocated.saturating_sub(then.allocated))
        };
        self.measured.iter().map(comes_to).max().unwrap_or(0).max(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_removed_is_given_out_once_and_believed_for_a_while() {
        let mut estimate = Estimate::default();
        assert_eq!(estimate.free(1_000, 0), 1_000);
        estimate.freed(300);
        assert_eq!(estimate.free(1_000, 0), 1_300, "the file system does not say so yet");
        assert_eq!(estimate.free(1_000, 200), 1_100, "but some of it was taken again");
        assert_eq!(estimate.free(1_050, 300), 1_050);
        tokio::time::advance(Duration::from_secs(3)).await;
        estimate.freed(500);
        assert_eq!(estimate.free(900, 300), 1_500, "others have written, or the file system is late");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(estimate.free(900, 300), 900, "others have written: the first measurement is too old");
    }
}
