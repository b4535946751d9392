//! Blobs that cannot be removed: said once, and tried again after a while, each time a longer one.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// After which time what failed is tried again, at first and at most.
const FIRST: Duration = Duration::from_secs(10);
const AT_MOST: Duration = Duration::from_mins(10);
/// How long nothing must have failed before it is said that it is over.
const LASTS: Duration = Duration::from_mins(2);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What has failed is left alone until then.
    until: Option<Instant>,
    /// How long that was, or was the last time.
    pause: Duration,
    /// So much failed that all else is left alone too.
    is_all: bool,
    /// When something failed, and that was said.
    said: Option<Instant>,
}

// === impl Trouble ===

impl Trouble {
    /// A blob could not be removed. Whether that is news.
    pub(super) fn begins(&self) -> bool {
        let mut state = self.state.lock();
        state.rest();
        state.said.replace(Instant::now()).is_none()
    }

    /// Nothing could be removed of very many.
    pub(super) fn is_of_all(&self) {
        let mut state = self.state.lock();
        state.rest();
        state.is_all = true;
    }

    /// Whether nothing at all is tried at present.
    pub(super) fn rests(&self) -> bool {
        let state = self.state.lock();
        state.is_all && state.until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether the time has come to try again; said once.
    pub(super) fn is_due(&self) -> bool {
        let mut state = self.state.lock();
        let is_due = state.until.is_some_and(|until| until <= Instant::now());
        if is_due {
            (state.until, state.is_all) = (None, false);
        }
        is_due
    }

    /// Something was removed, and nothing failed. Whether that is the end of it.
    pub(super) fn is_over(&self) -> bool {
        let mut state = self.state.lock();
        let is_over = state.until.is_none() && state.said.is_some_and(|at| at.elapsed() >= LASTS);
        if is_over {
            *state = State::default();
        }
        is_over
    }
}

// === impl State ===

impl State {
    fn rest(&mut self) {
        if self.until.is_none() {
            self.pause = AT_MOST.min(2 * self.pause).max(FIRST);
            self.until = Some(Instant::now() + self.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_said_once_and_tried_again_after_ever_longer_pauses() {
        let trouble = Trouble::default();
        assert!(!trouble.is_over() && !trouble.is_due() && !trouble.rests());
        assert!(trouble.begins());
        for pause in [10, 20, 40, 80, 160, 320, 600, 600] {
            assert!(!trouble.begins(), "it goes on");
            trouble.is_of_all();
            tokio::time::advance(Duration::from_secs(pause - 1)).await;
            assert!(trouble.rests() && !trouble.is_due() && !trouble.is_over());
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(trouble.is_due() && !trouble.is_due() && !trouble.rests());
        }
        assert!(trouble.is_over() && !trouble.is_over());
        assert!(trouble.begins(), "news again");
        tokio::time::advance(FIRST).await;
        assert!(trouble.is_due());
        assert!(!trouble.is_over(), "to and fro");
    }
}
