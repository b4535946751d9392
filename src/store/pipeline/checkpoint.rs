//! When it is put down what of a file is there, and what becomes of a fill that is given up.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Shared;
use super::queue::Queue;
use super::sum::Sum;
use crate::store::partial::{Map, PartialMark};
use crate::store::ranges::ByteRanges;
use crate::store::work::Work;

/// From one checkpoint to the next at least.
const EVERY: Duration = Duration::from_secs(1);
/// Where next to nothing has come since the last one, the next is so much later: a link that stands still for long is likely
/// to be gone for good, or the machine.
const LITTLE_LATER: Duration = Duration::from_secs(9);
/// Less than this is not worth a sync where a fill is given up.
const LEAST_LEFT: u64 = 64 << 10;
/// Syncs take at most this part of the time, as a divisor.
const SHARE: u32 = 20;

/// When what is there is put down for the next time. A job beside the one that writes does that: where the disk is slow, it
/// waits.
pub(super) struct Checkpoints {
    map: Arc<Map>,
    next: Mutex<Next>,
}

struct Next {
    /// Not before this.
    at: Instant,
    /// How many bytes were there the last time.
    total: u64,
    is_running: bool,
}

// === impl Checkpoints ===

impl Checkpoints {
    pub(super) fn of(work: &Work, present: &ByteRanges) -> Option<Self> {
        let map = work.map()?.clone();
        let next = Next { at: Instant::now() + EVERY, total: present.total(), is_running: false };
        Some(Self { map, next: Mutex::new(next) })
    }

    /// The fill was given up: who comes for it from here on waits for what it leaves.
    pub(super) fn end(&self) {
        self.map.ends();
    }

    /// What is to be known by who chooses what to remove.
    pub(super) fn remember(&self, mark: &PartialMark) {
        self.map.remember(mark);
    }
}

// === impl Shared ===

impl Shared {
    /// Has put down what is there, if that is due, and much.
    pub(super) fn checkpoint_if_due(self: &Arc<Self>) {
        let Some(Checkpoints { next, .. }) = &self.checkpoints else { return };
        let total = self.queue.lock().present.total();
        let mut next = next.lock();
        let (least, new) = (self.inner.partials.least(), total.saturating_sub(next.total));
        let from = if new >= least { next.at } else { next.at + LITTLE_LATER };
        if next.is_running || new == 0 || total < least || Instant::now() < from {
            return;
        }
        (next.is_running, next.total) = (true, total);
        drop(next);
        let shared = self.clone();
        drop(self.inner.jobs.spawn_blocking(move || shared.checkpoint()));
    }

    /// Puts down what is there. Blocks.
    pub(super) fn checkpoint(&self) {
        let Some(Checkpoints { map, next }) = &self.checkpoints else { return };
        let began = Instant::now();
        if let Err(error) = map.checkpoint(&self.file, || self.there()) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "it could not be put down how far a download is");
        }
        let pause = EVERY.max(SHARE * began.elapsed());
        let mut next = next.lock();
        (next.is_running, next.at) = (false, Instant::now() + pause);
    }

    fn there(&self) -> (ByteRanges, PartialMark) {
        let present = self.queue.lock().present.clone();
        (present, self.mark.lock().clone())
    }

    /// Whether what is there can be gone on with.
    pub(super) fn can_stay(&self, queue: &Queue) -> bool {
        let is_right = !queue.is_wrong && !matches!(queue.sum, Sum::Lost(_));
        // Of a blob that is read in parts it may be little.
        let least = self.inner.partials.least().min(LEAST_LEFT);
        self.checkpoints.is_some() && is_right && queue.present.total() >= least
    }

    /// The fill was given up: what is there stays for another time, or goes. Blocks.
    pub(super) fn give_up(&self, mut work: Box<Work>) {
        work.set_stays(false);
        if !self.can_stay(&self.queue.lock()) {
            return drop(work);
        }
        let (present, mark) = self.there();
        if let Err(error) = work.park(present, mark) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "an unfinished download could not be kept");
        }
        self.inner.forget_surplus_partials();
    }
}
