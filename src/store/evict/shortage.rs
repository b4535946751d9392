//! Says once why content is not kept, not at each request, and once that it is again, when that has lasted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long content must have been kept before it is said that there is room again: at the edge it goes to and fro.
const LASTS: Duration = Duration::from_mins(2);

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Reason {
    /// All that may go would not be enough.
    NothingMayGo,
    /// It was being made, and took too long.
    NotInTime,
}

/// What was said of it.
#[derive(Debug, Default)]
pub(in crate::store) struct Shortage {
    state: Mutex<Option<Lacking>>,
    too_large: AtomicBool,
}

#[derive(Debug)]
struct Lacking {
    /// Bytes of the smallest content for which there was no room.
    least: u64,
    /// When that was the last time.
    last: Instant,
    said: Vec<Reason>,
}

// === impl Shortage ===

impl Shortage {
    /// There is no room for so many bytes. Whether that is news.
    pub(super) fn begins(&self, bytes: u64, reason: Reason) -> bool {
        let mut state = self.state.lock();
        let now = Instant::now();
        let lacking = state.get_or_insert_with(|| Lacking { least: bytes, last: now, said: Vec::new() });
        lacking.least = lacking.least.min(bytes);
        lacking.last = now;
        let is_news = !lacking.said.contains(&reason);
        if is_news {
            lacking.said.push(reason);
        }
        is_news
    }

    /// Content of so many bytes is kept.
    pub(in crate::store) fn kept(&self, bytes: u64) {
        if self.is_over(bytes) {
            tracing::info!("the store has room again");
        }
    }

    fn is_over(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        // What is smaller says nothing.
        let is_over = state.as_ref().is_some_and(|lacking| bytes >= lacking.least && lacking.last.elapsed() >= LASTS);
        if is_over {
            *state = None;
        }
        is_over
    }

    pub(super) fn too_large(&self, bytes: u64, capacity: u64) {
        if !self.too_large.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                bytes,
                capacity,
                "content that is larger than the whole store is passed on without being kept, this and any further; \
                 raise store.capacity to keep it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_said_once_and_again_only_when_it_was_over_for_long() {
        let shortage = Shortage::default();
        assert!(!shortage.is_over(9), "there was none");
        assert!(shortage.begins(10, Reason::NothingMayGo));
        for _ in 0..100 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!shortage.is_over(10), "to and fro");
            assert!(!shortage.begins(12, Reason::NothingMayGo));
        }
        assert!(shortage.begins(12, Reason::NotInTime), "another reason is news");
        tokio::time::advance(LASTS).await;
        assert!(!shortage.is_over(9), "smaller content says nothing");
        assert!(shortage.is_over(10) && !shortage.is_over(10));
        assert!(shortage.begins(10, Reason::NothingMayGo));
    }
}
