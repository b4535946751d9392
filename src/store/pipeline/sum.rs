//! The hash of what is written: over the bytes from the start on, as far as there is no gap.
//!
//! What is written where the hash stands is hashed from memory. What lies further on is let go of, and read back from the
//! file when the hash gets there, as is what was in the file before.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Shared;
use super::queue::{Queue, State};
use crate::oci::Hasher;
use crate::store::StoreError;
use crate::store::layout::FILLS;
use crate::store::work::Placed;

/// Less than this is hashed by the job that wrote it: handing it over would take longer.
const HAND_OVER: u64 = 64 << 10;
/// More than this is not, also where that job hashes what it has written: what is read back would hold up the writing.
const ALONG: u64 = 2 << 20;
/// What is read back from the file at a time.
const READ: u64 = 256 << 10;

/// Where the hash is.
pub(super) enum Sum {
    /// Of all bytes before [`Queue::hash_end`].
    Idle(Box<Hasher>),
    /// A job has it.
    Running,
    /// What was written could not be read back; the error is there until somebody has it. None also if the job panicked.
    Lost(Option<StoreError>),
}

/// What is hashed next.
enum Next {
    /// These bytes, which are in memory.
    Chunks(Vec<Bytes>),
    /// These of the file.
    Read(Range<u64>),
}

// === impl Queue ===

impl Queue {
    /// What was written is hashed from memory if the hash stands where it begins, and else let go of; that comes back.
    pub(super) fn give_to_hash(&mut self, written: Vec<Placed>) -> Vec<Bytes> {
        let mut let_go = Vec::new();
        for chunk in written {
            let range = chunk.range();
            if range.start == self.hash_end {
                self.hash_end = range.end;
                self.to_hash.push(chunk.bytes);
            } else {
                self.waiting -= chunk.bytes.len();
                let_go.push(chunk.bytes);
            }
        }
        let_go
    }

    /// How many bytes can be hashed.
    fn hashable(&self) -> u64 {
        let in_memory: u64 = self.to_hash.iter().map(|chunk| chunk.len() as u64).sum();
        in_memory + (self.present.end_of_run(self.hash_end) - self.hash_end)
    }

    fn next_to_hash(&mut self) -> Option<Next> {
        if matches!(self.state, State::Aborted | State::Gone) {
            return None;
        }
        if !self.to_hash.is_empty() {
            return Some(Next::Chunks(std::mem::take(&mut self.to_hash)));
        }
        let from = self.hash_end;
        self.hash_end = self.present.end_of_run(from).min(from + READ);
        (from < self.hash_end).then_some(Next::Read(from..self.hash_end))
    }
}

// === impl Shared ===

impl Shared {
    /// Sees to it that what can be hashed is hashed.
    pub(super) fn hash(self: &Arc<Self>) {
        let mut queue = self.queue.lock();
        let bytes = queue.hashable();
        if bytes == 0 {
            return;
        }
        match std::mem::replace(&mut queue.sum, Sum::Running) {
            Sum::Idle(hasher) => {
                drop(queue);
                let along = if self.inner.writer_hashes.load(Ordering::Relaxed) { ALONG } else { HAND_OVER };
                if bytes < along {
                    self.sum_up(hasher);
                } else {
                    let shared = self.clone();
                    drop(self.inner.jobs.spawn_blocking(move || shared.sum_up(hasher)));
                }
            }
            other => queue.sum = other,
        }
    }

    /// The hashing job: hashes until there is nothing more to hash.
    fn sum_up(&self, hasher: Box<Hasher>) {
        let mut job = SumJob { shared: self, hasher: Some(hasher), error: None };
        let (mut done, mut buffer) = (0, Vec::new());
        loop {
            let next = {
                let mut queue = self.queue.lock();
                queue.waiting -= done;
                let next = queue.next_to_hash();
                if next.is_none() {
                    queue.sum = job.hasher.take().map_or(Sum::Lost(None), Sum::Idle);
                }
                next
            };
            self.changed.notify_waiters();
            let (Some(next), Some(hasher)) = (next, &mut job.hasher) else { return };
            match next {
                Next::Chunks(chunks) => {
                    done = chunks.iter().map(Bytes::len).sum();
                    for chunk in chunks {
                        hasher.update(&chunk);
                    }
                }
                Next::Read(range) => {
                    done = 0;
                    buffer.resize(usize::try_from(range.end - range.start).unwrap_or_default(), 0);
                    if let Err(error) = self.inner.disk.read_exact_at(&self.file, &mut buffer, range.start) {
                        job.error = Some(StoreError::io("read a file in", Path::new(FILLS), error));
                        return;
                    }
                    hasher.update(&buffer);
                }
            }
        }
    }
}

/// A running hashing job. Should it panic, the writer fails instead of waiting for ever.
struct SumJob<'s> {
    shared: &'s Shared,
    hasher: Option<Box<Hasher>>,
    error: Option<StoreError>,
}

impl Drop for SumJob<'_> {
    fn drop(&mut self) {
        if self.hasher.is_some() {
            self.shared.queue.lock().sum = Sum::Lost(self.error.take());
            self.shared.changed.notify_waiters();
        }
    }
}
