//! The scrub: all that is stored is hashed again in the background, slowly, from time to time. Its position outlives a
//! restart; it gives way to downloads and keeps to its hours.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::layout::STATE;
use super::rehash::{Before, Checked, IN_A_ROW, Pace};
use super::{Inner, Store, StoreError};
use crate::clock::{Clock, timestamp};
use crate::config::Scrub;
use crate::metrics::Metrics;
use crate::oci::Digest;

/// From the start on, others have the disk for so long: the scan, the first pulls.
const SETTLE: Duration = Duration::from_mins(5);
/// How often the position is put down. What is lost is hashed once more.
const KEEP_EVERY: Duration = Duration::from_mins(1);
/// How soon after a download it goes on.
const GIVE_WAY: Duration = Duration::from_secs(1);
/// How long it gives way in one pass: where something is always being downloaded, it would never get anywhere.
const GIVE_WAY_AT_MOST: Duration = Duration::from_hours(24);
/// Longest wait without a look at the clock, which may be set.
const LOOK: Duration = Duration::from_mins(10);
/// Blobs that are asked of the index at a time.
const BLOBS: usize = 64;

/// How far it is; `state/scrub`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    /// The last blob of the running pass that was hashed; none: no pass is running.
    after: Option<Digest>,
    /// When the last whole pass ended.
    last_pass: Option<Timestamp>,
    /// Blobs that the running pass could not look at.
    #[serde(default)]
    passed_over: u64,
    /// A part of the running pass went by an index in which not all was: what has come into it since may lie behind.
    #[serde(default)]
    is_partial: bool,
}

/// How far a pass has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// To its end.
    Whole,
    /// There is no index that could say what comes next, or not all is in it yet.
    Unknown,
    /// So many blobs in a row cannot be read that it waits.
    Unreadable,
}

/// Waits for its hours, for downloads to end, and for its rate.
struct Turn {
    plan: Scrub,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    pace: Pace,
    /// How long it has given way to downloads in this pass.
    given: Duration,
    /// How often the index had been begun anew when the pass began.
    renewals: u64,
}

// === impl Store ===

impl Store {
    /// Scrubs until `stop`.
    pub async fn scrub(&self, plan: Scrub, stop: &CancellationToken) {
        let clock = self.0.timeline.clock().clone();
        let Ok(mut position) = self.blocking(|inner| Ok(inner.scrub_position())).await else { return };
        let metrics = self.0.metrics.clone();
        metrics.scrub_last_pass.set(position.last_pass.map_or(0, Timestamp::as_second));
        let mut turn = Turn {
            pace: Pace::new(Some(plan.rate)),
            clock,
            metrics,
            plan,
            given: Duration::ZERO,
            renewals: self.0.hints.renewals(),
        };
        if stop.run_until_cancelled(sleep(SETTLE)).await.is_none() {
            return;
        }
        loop {
            let wait = turn.until_due(&position);
            if !wait.is_zero() {
                if stop.run_until_cancelled(sleep(wait.min(LOOK))).await.is_none() {
                    return;
                }
                continue;
            }
            let passed = stop.run_until_cancelled(self.scrub_pass(&mut position, &mut turn)).await;
            let ended = match passed {
                Some(Ok(Came::Whole)) => {
                    let now = timestamp(turn.clock.now());
                    let passed_over = position.passed_over;
                    position = Position { last_pass: Some(now), ..Position::default() };
                    turn.given = Duration::ZERO;
                    turn.metrics.scrub_last_pass.set(now.as_second());
                    if passed_over == 0 {
                        tracing::info!("everything that is stored was hashed again");
                    } else {
                        tracing::warn!(
                            blobs = passed_over,
                            "what is stored was hashed again, but for blobs that could not be read"
                        );
                    }
                    false
                }
                Some(Ok(Came::Unknown)) => false,
                Some(Ok(Came::Unreadable)) => {
                    tracing::error!(
                        blobs = IN_A_ROW,
                        "the scrub waits: so many blobs in a row could not be read; see to the disk"
                    );
                    false
                }
                Some(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the scrub is interrupted");
                    matches!(error, StoreError::Stopped)
                }
                None => true,
            };
            self.keep_position(&position).await;
            // Never at once: a pass that ends at once, again and again, must not spin.
            if ended || stop.run_until_cancelled(sleep(LOOK)).await.is_none() {
                return;
            }
        }
    }

    /// Goes on where the pass is.
    async fn scrub_pass(&self, position: &mut Position, turn: &mut Turn) -> Result<Came, StoreError> {
        let mut kept = Instant::now();
        let mut in_a_row = 0;
        loop {
            let after = position.after;
            // Before it is asked: what it gets meanwhile may not be among what it says.
            position.is_partial |= !self.0.index_is_whole();
            let next = move |inner: &Arc<Inner>| Ok(inner.hints.digests_after(after.as_ref(), BLOBS));
            let next = self.blocking(next).await?;
            let renewals = self.0.hints.renewals();
            if std::mem::replace(&mut turn.renewals, renewals) != renewals {
                // What is not in a new index yet would be left out.
                *position = Position { last_pass: position.last_pass, ..Position::default() };
                return Ok(Came::Unknown);
            }
            let Some(next) = next else { return Ok(Came::Unknown) };
            if next.is_empty() {
                if !self.0.index_is_whole() {
                    return Ok(Came::Unknown);
                }
                if position.is_partial {
                    *position = Position { last_pass: position.last_pass, ..Position::default() };
                    return Ok(Came::Unknown);
                }
                let is_whole = after.is_some() || self.0.metrics.store_blobs.get() == 0;
                return Ok(if is_whole { Came::Whole } else { Came::Unknown });
            }
            for digest in next {
                turn.give_way().await;
                let is_known = match self.peek(&digest).await {
                    Ok(Some(blob)) => match self.check(&digest, &blob, turn).await {
                        Ok(Checked::Right) => true,
                        Ok(Checked::Wrong(_)) => {
                            tracing::error!(%digest, "the scrub found a stored blob to be wrong");
                            true
                        }
                        Ok(Checked::Unreadable(_)) => false,
                        Err(error) => passed_over(&digest, error)?,
                    },
                    Ok(None) => true,
                    Err(error) => match self.quarantine_if_no_file(&digest).await {
                        Ok(Some(_)) => true,
                        Ok(None) => passed_over(&digest, error)?,
                        Err(error) => passed_over(&digest, error)?,
                    },
                };
                in_a_row = if is_known { 0 } else { in_a_row + 1 };
                position.passed_over += u64::from(!is_known);
                position.after = Some(digest);
                if kept.elapsed() >= KEEP_EVERY {
                    self.keep_position(position).await;
                    kept = Instant::now();
                }
                if in_a_row >= IN_A_ROW {
                    return Ok(Came::Unreadable);
                }
            }
        }
    }

    async fn keep_position(&self, position: &Position) {
        let position = position.clone();
        let keep = move |inner: &Arc<Inner>| inner.records.write(&inner.disk, &inner.group, &path(), &position);
        if let Err(error) = self.blocking(keep).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the position of the scrub could not be put down");
        }
    }
}

// === impl Inner ===

impl Inner {
    fn scrub_position(&self) -> Position {
        self.records.read(&self.disk, &path()).unwrap_or_default()
    }
}

/// One blob cannot be looked at, or not be moved out of the way: the pass goes on, unless the store is closed. Never true:
/// nothing is known of it.
fn passed_over(digest: &Digest, error: StoreError) -> Result<bool, StoreError> {
    if matches!(error, StoreError::Stopped) {
        return Err(error);
    }
    tracing::warn!(%digest, error = &error as &dyn std::error::Error, "the scrub passes over a stored blob");
    Ok(false)
}

fn path() -> PathBuf {
    Path::new(STATE).join("scrub")
}

// === impl Turn ===

impl Turn {
    /// How long until a pass is to begin, or to go on.
    fn until_due(&self, position: &Position) -> Duration {
        let Some(last) = position.last_pass.filter(|_| position.after.is_none()) else { return Duration::ZERO };
        let since = timestamp(self.clock.now()).duration_since(last);
        // A time in the future, from a clock that was wrong, says nothing.
        if since < SignedDuration::ZERO {
            return Duration::ZERO;
        }
        self.plan.every.saturating_sub(since.unsigned_abs())
    }

    /// Waits while it is not its hours, or something is being downloaded; the latter not for ever.
    async fn give_way(&mut self) {
        loop {
            let closed = self.plan.hours.and_then(|hours| hours.opens_in(self.clock.local().time().into()));
            let wait = match closed {
                Some(wait) => wait.min(LOOK),
                None if self.metrics.fills_in_progress.get() > 0 && self.given < GIVE_WAY_AT_MOST => {
                    self.given += GIVE_WAY;
                    if self.given >= GIVE_WAY_AT_MOST {
                        tracing::info!("the scrub has given way to downloads for a day, and goes on beside them");
                    }
                    GIVE_WAY
                }
                None => return,
            };
            sleep(wait).await;
        }
    }
}

impl Before for Turn {
    async fn step(&mut self, bytes: u64) {
        self.pace.ready().await;
        // After it: what begins while the pace is kept goes before.
        self.give_way().await;
        self.pace.charge(bytes);
        self.metrics.scrubbed_bytes.inc_by(bytes);
    }
}
