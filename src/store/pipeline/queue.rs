//! What a pipeline has accepted and not done yet, and where its file is.

use std::sync::Arc;

use bytes::Bytes;

use super::Shared;
use super::sum::Sum;
use crate::oci::Hasher;
use crate::store::StoreError;
use crate::store::ranges::ByteRanges;
use crate::store::work::{Placed, Work};

/// Bytes that may be held in memory for a blob: not written, or not hashed yet.
const WAITING: usize = 2 << 20;

/// What waits, and what is there.
pub(super) struct Queue {
    pub(super) to_write: Vec<Placed>,
    /// Written, and readable: what comes before `hash_end`.
    pub(super) to_hash: Vec<Bytes>,
    /// Where what is in the hash, in the job that hashes, or waits for it ends.
    pub(super) hash_end: u64,
    /// Bytes that are held in memory.
    pub(super) waiting: usize,
    /// All that was accepted so far, or was there from the start.
    pub(super) accepted: ByteRanges,
    /// What of it is in the file.
    pub(super) present: ByteRanges,
    /// What was accepted is not what was asked for, or it is given up for good.
    pub(super) is_wrong: bool,
    pub(super) state: State,
    pub(super) sum: Sum,
}

/// Where the file is.
pub(super) enum State {
    /// No job runs.
    Idle(Box<Work>),
    /// A job has it.
    Running,
    /// A job has it, and is to give it up.
    Aborted,
    /// Writing failed. The error is there until somebody has it; what was written is there unless the job panicked, and
    /// what was accepted and is not in the file.
    Failed(Option<StoreError>, Option<Box<Work>>, Vec<Placed>),
    /// It was published or dropped.
    Gone,
}

/// What a writer leaves that failed.
pub(super) struct Left {
    pub(super) work: Box<Work>,
    /// Of so many bytes from the start of the file.
    pub(super) hasher: Hasher,
    pub(super) hashed: u64,
    pub(super) unwritten: Vec<Placed>,
}

// === impl Shared ===

impl Shared {
    /// Takes a chunk, if there is room for it, and sees to it that a job writes what is new of it.
    pub(super) fn accept(self: &Arc<Self>, at: u64, chunk: &Bytes) -> Result<bool, StoreError> {
        let mut queue = self.queue.lock();
        queue.check()?;
        let end = at.saturating_add(chunk.len() as u64);
        if let Some(expected) = self.length.filter(|expected| end > *expected) {
            queue.is_wrong = true;
            return Err(StoreError::LengthMismatch { expected, actual: end });
        }
        let gaps = queue.accepted.gaps(at..end);
        if gaps.is_empty() {
            return Ok(true);
        }
        if queue.waiting >= WAITING {
            return Ok(false);
        }
        queue.accepted.insert(at..end);
        for gap in gaps {
            let [from, to] = [gap.start, gap.end].map(|place| usize::try_from(place - at).unwrap_or(chunk.len()));
            let bytes = chunk.slice(from..to);
            queue.waiting += bytes.len();
            queue.to_write.push(Placed { at: gap.start, bytes });
        }
        match std::mem::replace(&mut queue.state, State::Running) {
            State::Idle(work) => {
                let shared = self.clone();
                drop(self.inner.jobs.spawn_blocking(move || shared.run(work)));
            }
            other => queue.state = other,
        }
        Ok(true)
    }

    /// How many bytes are in the file, once that is all that was accepted; none while some are still being written.
    pub(super) fn flushed(&self) -> Option<Result<u64, StoreError>> {
        let mut queue = self.queue.lock();
        if let Err(error) = queue.check() {
            return Some(Err(error));
        }
        matches!(queue.state, State::Idle(_)).then(|| Ok(queue.present.end_of_run(0)))
    }

    /// How much there is without a gap, and its hash; none while something is still being written or hashed.
    pub(super) fn settled(&self) -> Option<Result<(u64, Hasher), StoreError>> {
        let mut queue = self.queue.lock();
        if let Err(error) = queue.check() {
            return Some(Err(error));
        }
        let (State::Idle(_), Sum::Idle(hasher)) = (&queue.state, &queue.sum) else { return None };
        Some(Ok((queue.hash_end, Hasher::clone(hasher))))
    }

    /// What a failed writer leaves, if anything; none while it is still being hashed.
    #[expect(clippy::option_option, reason = "not yet, nothing, and something are three things")]
    pub(super) fn left(&self) -> Option<Option<Left>> {
        let mut queue = self.queue.lock();
        if matches!(queue.sum, Sum::Running) {
            return None;
        }
        let state = std::mem::replace(&mut queue.state, State::Gone);
        match (state, std::mem::replace(&mut queue.sum, Sum::Lost(None))) {
            (State::Failed(_, Some(work), unwritten), Sum::Idle(hasher)) => {
                Some(Some(Left { work, hasher: *hasher, hashed: queue.hash_end, unwritten }))
            }
            (state, sum) => {
                (queue.state, queue.sum) = (state, sum);
                Some(None)
            }
        }
    }
}

// === impl Queue, State ===

impl Queue {
    /// What is written next: all that waits, or about so much of it, but something in any case.
    pub(super) fn take_to_write(&mut self, most: Option<usize>) -> Vec<Placed> {
        let Some(most) = most else { return std::mem::take(&mut self.to_write) };
        let mut total = 0;
        let is_within = |chunk: &Placed| {
            total += chunk.bytes.len();
            total <= most
        };
        let count = self.to_write.iter().map(is_within).take_while(|within| *within).count().max(1);
        let rest = self.to_write.split_off(count.min(self.to_write.len()));
        std::mem::replace(&mut self.to_write, rest)
    }

    /// An error once writing or hashing has failed.
    pub(super) fn check(&mut self) -> Result<(), StoreError> {
        self.state.check()?;
        match &mut self.sum {
            Sum::Lost(error) => Err(error.take().unwrap_or(StoreError::Stopped)),
            Sum::Idle(_) | Sum::Running => Ok(()),
        }
    }
}

impl State {
    /// An error once writing has failed. That there is no space is said each time: the caller acts on it.
    fn check(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Idle(_) | Self::Running => Ok(()),
            Self::Failed(Some(StoreError::NoSpace), ..) => Err(StoreError::NoSpace),
            Self::Failed(Some(StoreError::NoRoomInTime), ..) => Err(StoreError::NoRoomInTime),
            Self::Failed(error, ..) => Err(error.take().unwrap_or(StoreError::Stopped)),
            Self::Aborted | Self::Gone => Err(StoreError::Stopped),
        }
    }
}
