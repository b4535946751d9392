//! What is told of running fills: `GET /api/v1/fills`, the dashboard, the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Cache;
use super::supply::Supply;

/// The weight of the last second in the rate that is told.
const FRESH: f64 = 0.3;

/// What a fill tells of itself.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    begun: OnceLock<Begun>,
    present: AtomicU64,
    rate: Mutex<Option<Rate>>,
}

/// Known when upstream's head has come.
struct Begun {
    supply: Arc<Supply>,
    length: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    at: Instant,
    present: u64,
    bytes_a_second: f64,
}

/// A running fill.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FillReport {
    /// Of the blob.
    pub digest: String,
    /// Which upstream is asked.
    pub upstream: String,
    /// In which repository.
    pub repository: String,
    /// Bytes of the blob, once they are known.
    pub size: Option<u64>,
    /// Bytes that have come.
    pub present: u64,
    /// Bytes a second that come now.
    pub rate: u64,
    /// Answers that are being sent from it.
    pub readers: usize,
    /// How often upstream was asked to go on.
    pub resumes: u64,
    /// The host that is asked now; none before upstream's head has come.
    pub endpoint: Option<String>,
}

// === impl Gauges ===

impl Gauges {
    /// Upstream's head has come, and so much was there already.
    pub(super) fn begin(&self, supply: &Arc<Supply>, length: Option<u64>, present: u64) {
        self.present.store(present, Ordering::Relaxed);
        let _ = self.begun.set(Begun { supply: Arc::clone(supply), length });
        self.tick(present);
    }

    /// So many bytes are there; called about once a second.
    pub(super) fn tick(&self, present: u64) {
        self.present.store(present, Ordering::Relaxed);
        let mut rate = self.rate.lock();
        let now = Instant::now();
        let Some(last) = *rate else {
            *rate = Some(Rate { at: now, present, bytes_a_second: 0.0 });
            return;
        };
        let elapsed = now.saturating_duration_since(last.at);
        if elapsed < Duration::from_millis(100) {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate to be looked at")]
        let fresh = present.saturating_sub(last.present) as f64 / elapsed.as_secs_f64();
        let bytes_a_second =
            if last.bytes_a_second == 0.0 { fresh } else { last.bytes_a_second.mul_add(1.0 - FRESH, fresh * FRESH) };
        *rate = Some(Rate { at: now, present, bytes_a_second });
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate to be looked at, never negative"
    )]
    fn rate(&self) -> u64 {
        self.rate.lock().map_or(0, |rate| rate.bytes_a_second as u64)
    }
}

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun").field("length", &self.length).finish_non_exhaustive()
    }
}

// === impl Cache ===

impl Cache {
    /// The fills that run now, in the order of their digests.
    pub fn fills(&self) -> Vec<FillReport> {
        let mut reports: Vec<FillReport> = self
            .fills
            .running()
            .into_iter()
            .map(|(digest, fill)| {
                let gauges = fill.gauges();
                let begun = gauges.begun.get();
                FillReport {
                    digest: digest.to_string(),
                    upstream: fill.target.upstream.to_string(),
                    repository: fill.target.repo.to_string(),
                    size: begun.and_then(|begun| begun.length.or(begun.supply.mark().length)),
                    present: gauges.present.load(Ordering::Relaxed),
                    rate: gauges.rate(),
                    readers: fill.demand().now().readers,
                    resumes: begun.map_or(0, |begun| begun.supply.resumes()),
                    endpoint: begun.map(|begun| begun.supply.endpoints.name()),
                }
            })
            .collect();
        reports.sort_by(|one, other| one.digest.cmp(&other.digest));
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_follows_what_comes() {
        let gauges = Gauges::default();
        gauges.tick(0);
        assert_eq!(gauges.rate(), 0);
        for second in 1..=20 {
            tokio::time::advance(Duration::from_secs(1)).await;
            gauges.tick(second * 1000);
        }
        assert_eq!(gauges.rate(), 1000);
        for _ in 0..20 {
            tokio::time::advance(Duration::from_secs(1)).await;
            gauges.tick(20_000);
        }
        assert!(gauges.rate() < 10, "it stands still");
    }
}
