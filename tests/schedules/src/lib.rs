//! Flights, progress and range coalescing under explored schedules.
//!
//! The files of `src/cache` that decide who waits for whom are compiled into this package as they are ([`cache`]), with
//! shuttle's channels, locks and tasks under them. What they stand on is played: an upstream that answers in parts, breaks
//! off, stalls, refuses ranges or is away ([`upstream`]), and a file that takes what comes when it likes, so much of it at a
//! time, and may fail ([`store`]). Each run draws one schedule; a task that nobody wakes again is a deadlock, which ends the run.

pub use ocistern::{config, metrics, oci, party, telemetry};

mod cache;
mod store;
mod upstream;

pub use cache::plays;

/// Lets others go on for so many steps.
async fn steps(steps: u32) {
    for _ in 0..steps {
        shuttle::future::yield_now().await;
    }
}
