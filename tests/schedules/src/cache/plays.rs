//! The plays: what acts at the same time, and what must hold however it goes.
//!
//! A play is a function that runs once, as the main task of one schedule; `tests/schedules.rs` runs it under many.

pub mod cast;
pub mod fills;
pub mod flights;
pub mod progress;

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::steps;

/// What was met in all schedules of a play: a play that never comes to what it is there for shows nothing.
#[derive(Debug, Default)]
pub struct Met(AtomicUsize);

impl Met {
    fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// What comes of it, unless whoever wants it leaves after so many steps: then it is dropped, wherever it is. Only who may
/// leave has a clock of its own: it would be woken by that, whoever forgets to wake it.
async fn within<T>(left: Option<u32>, work: impl Future<Output = T>) -> Option<T> {
    let Some(left) = left else { return Some(work.await) };
    tokio::select! {
        come = work => Some(come),
        () = steps(left) => None,
    }
}
