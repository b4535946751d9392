//! How bytes get into a temporary file and its hash, in two stages: what a blob of known digest and one of unknown
//! digest have in common.
//!
//! Chunks, each with its place in the file, are handed to a job on the blocking pool, which writes them; while it is at it,
//! further ones collect, and the job takes them all at once. What is written goes on to a second job, which hashes
//! (`sum`). So the caller rarely waits, a slow link's bytes are visible at once, and a fast link's are written in large
//! batches while those before them are hashed on another core. Where there is no core to spare the first job hashes what it
//! has written, in batches that are still in the processor's caches then. What waits is bounded.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

mod checkpoint;
mod queue;
mod sum;
mod write;

use checkpoint::Checkpoints;
use queue::{Left, Queue, State};
use sum::Sum;

use super::disk::Disk;
use super::partial::PartialMark;
use super::ranges::ByteRanges;
use super::work::{Placed, Work};
use super::writer::Remnant;
use super::{Inner, StoreError, StoredBlob};
use crate::oci::{Algorithm, Digest, Hasher};

/// A temporary file that is being written and hashed. Dropping it removes the file, unless it can be gone on with.
pub(super) struct Pipeline {
    shared: Arc<Shared>,
    progress: watch::Receiver<u64>,
    runtime: Handle,
    /// Where [`Pipeline::write`] goes on.
    cursor: u64,
}

/// What is known of a file when it is given to a pipeline.
#[derive(Default)]
pub(super) struct Begun {
    /// What was announced.
    pub(super) length: Option<u64>,
    /// What is in the file.
    pub(super) present: ByteRanges,
    pub(super) mark: PartialMark,
}

struct Shared {
    inner: Arc<Inner>,
    file: Arc<File>,
    /// What was announced; more is refused.
    length: Option<u64>,
    queue: Mutex<Queue>,
    /// A job has ended, or has done with some of what waited.
    changed: Notify,
    /// How many bytes are in the file from its start on without a gap.
    progress: watch::Sender<u64>,
    /// Told of what reaches the file, by the job that writes: whoever reads it need not wait for whoever writes it.
    follower: OnceLock<Follower>,
    /// The disk is being told to begin with what was written, so that the end takes little time of its own. That is done by
    /// a job beside the one that writes: where the disk is slow, it waits.
    sending_out: AtomicBool,
    mark: Mutex<PartialMark>,
    checkpoints: Option<Checkpoints>,
}

/// Up to so many processors have enough to do with clients, upstream and the kernel: a second job for each download would
/// be one more to take turns with (docs/performance.md, "The cold path").
const FEW_PROCESSORS: usize = 2;

/// Who is told which bytes have reached the file.
type Follower = Box<dyn Fn(&[Placed]) + Send + Sync>;

/// Whether what is written is hashed by the job that writes it.
pub(super) fn is_for_one_job() -> bool {
    available_parallelism().is_ok_and(|processors| processors.get() <= FEW_PROCESSORS)
}

// === impl Pipeline ===

impl Pipeline {
    /// Takes a file that was begun.
    pub(super) fn start(inner: Arc<Inner>, work: Work, algorithm: Algorithm, begun: Begun) -> Self {
        let Begun { length, present, mark } = begun;
        let file = work.file().clone();
        let checkpoints = Checkpoints::of(&work, &present);
        let cursor = present.end_of_run(0);
        let (sender, progress) = watch::channel(cursor);
        let queue = Queue {
            to_write: Vec::new(),
            to_hash: Vec::new(),
            hash_end: 0,
            waiting: 0,
            accepted: present.clone(),
            present,
            is_wrong: false,
            state: State::Idle(Box::new(work)),
            sum: Sum::Idle(Box::new(Hasher::new(algorithm))),
        };
        let shared = Arc::new(Shared {
            inner,
            file,
            length,
            queue: Mutex::new(queue),
            changed: Notify::new(),
            progress: sender,
            follower: OnceLock::new(),
            sending_out: AtomicBool::new(false),
            mark: Mutex::new(mark),
            checkpoints,
        });
        // What is there is hashed while the rest comes.
        shared.hash();
        Self { shared, progress, runtime: Handle::current(), cursor }
    }

    /// The growing file.
    pub(super) fn file(&self) -> Arc<File> {
        self.shared.file.clone()
    }

    /// Where it lies.
    pub(super) fn disk(&self) -> Arc<Disk> {
        self.shared.inner.disk.clone()
    }

    /// How many bytes are in the file from its start on without a gap.
    pub(super) fn written(&self) -> u64 {
        *self.progress.borrow()
    }

    /// Follows [`Pipeline::written`]; closed when the pipeline is gone.
    pub(super) fn progress(&self) -> watch::Receiver<u64> {
        self.progress.clone()
    }

    /// What is in the file.
    pub(super) fn present(&self) -> ByteRanges {
        self.shared.queue.lock().present.clone()
    }

    /// Has `follower` told, by the job that writes, what has reached the file; once.
    pub(super) fn follow(&self, follower: impl Fn(&[Placed]) + Send + Sync + 'static) {
        let _ = self.shared.follower.set(Box::new(follower));
    }

    /// What is to be known by who goes on with it.
    pub(super) fn remember(&self, mark: PartialMark) {
        if let Some(checkpoints) = &self.shared.checkpoints {
            checkpoints.remember(&mark);
        }
        *self.shared.mark.lock() = mark;
    }

    /// Has put down what is there, if that is due.
    pub(super) fn tick(&self) {
        self.shared.checkpoint_if_due();
    }

    /// What was announced.
    pub(super) fn length(&self) -> Option<u64> {
        self.shared.length
    }

    /// Adds bytes behind those before. Returns when they are accepted, which is at once unless the disk is slower than the
    /// caller.
    pub(super) async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let length = chunk.len() as u64;
        self.write_at(self.cursor, chunk).await?;
        self.cursor += length;
        Ok(())
    }

    /// Adds bytes in this place, except those that were accepted before. Returns as [`Pipeline::write`].
    pub(super) async fn write_at(&self, at: u64, chunk: Bytes) -> Result<(), StoreError> {
        loop {
            let changed = self.shared.changed.notified();
            if self.shared.accept(at, &chunk)? {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Waits until writing or hashing has failed.
    pub(super) async fn failed(&self) -> StoreError {
        loop {
            let changed = self.shared.changed.notified();
            if let Err(error) = self.shared.queue.lock().check() {
                return error;
            }
            changed.await;
        }
    }

    /// It is at its end soon.
    pub(super) fn ends(&self) {
        if let Some(checkpoints) = &self.shared.checkpoints {
            checkpoints.end();
        }
    }

    /// Waits until all that was accepted is in the file; so much of it is there without a gap.
    pub(super) async fn flush(&mut self) -> Result<u64, StoreError> {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(outcome) = self.shared.flushed() {
                return outcome;
            }
            changed.await;
        }
    }

    /// Waits until all that was accepted is in the file, and as far as there is no gap in the hash: so much is.
    pub(super) async fn settle(&mut self) -> Result<(u64, Hasher), StoreError> {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(outcome) = self.shared.settled() {
                return outcome;
            }
            changed.await;
        }
    }

    /// The same, and all must be there: as much as was announced, without a gap.
    pub(super) async fn settle_whole(&mut self) -> Result<(u64, Hasher), StoreError> {
        let (length, hasher) = self.settle().await?;
        let present = self.present();
        match self.shared.length.unwrap_or(present.end()) {
            expected if expected == length => Ok((length, hasher)),
            expected => {
                self.is_wrong();
                Err(StoreError::LengthMismatch { expected, actual: present.total() })
            }
        }
    }

    /// Goes back to the first `length` bytes, of which `hasher` is the sum. All must be settled; whoever still reads what
    /// comes after them will meet other bytes there.
    pub(super) fn rewind(&mut self, length: u64, hasher: Hasher) -> Result<(), StoreError> {
        let mut queue = self.shared.queue.lock();
        queue.check()?;
        let Queue { state: State::Idle(work), sum: Sum::Idle(sum), accepted, present, hash_end, .. } = &mut *queue
        else {
            return Err(StoreError::Stopped);
        };
        work.rewind(length);
        **sum = hasher;
        *hash_end = length;
        for ranges in [accepted, present] {
            ranges.remove(&(length..u64::MAX));
        }
        drop(queue);
        self.cursor = length;
        self.shared.progress.send_replace(length);
        Ok(())
    }

    /// What was written before writing failed.
    pub(super) async fn into_remnant(self) -> Option<Remnant> {
        let Left { work, hasher, hashed, .. } = self.left().await?;
        // Removing the file's name may block.
        self.shared.inner.jobs.spawn_blocking(move || work.into_remnant(hashed, hasher)).await.ok()
    }

    /// What `hash` makes, on the blocking pool, of what was accepted before writing failed, all of it in order: the hash of
    /// what is in the file, how much that is, and what is not in it.
    pub(super) async fn into_hashers<T: Send + 'static>(
        self,
        hash: impl FnOnce(Hasher, u64, Vec<Bytes>) -> T + Send + 'static,
    ) -> Option<T> {
        let Left { work, hasher, hashed, unwritten } = self.left().await?;
        let hash = move || {
            let done = hash(hasher, hashed, unwritten.into_iter().map(|chunk| chunk.bytes).collect());
            drop(work);
            done
        };
        self.shared.inner.jobs.spawn_blocking(hash).await.ok()
    }

    /// What a failed writer leaves, if anything, once it is hashed.
    async fn left(&self) -> Option<Left> {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(left) = self.shared.left() {
                return left;
            }
            changed.await;
        }
    }

    /// Nothing of it stays.
    pub(super) fn is_wrong(&self) {
        self.shared.queue.lock().is_wrong = true;
    }

    /// Puts down what is there, as it is done from time to time.
    #[cfg(test)]
    pub(super) async fn checkpoint(&self) {
        let shared = self.shared.clone();
        self.shared.inner.jobs.spawn_blocking(move || shared.checkpoint()).await.unwrap();
    }

    /// Publishes what was written, all of which was settled and found to be right.
    pub(super) async fn publish(self, digest: Digest) -> Result<StoredBlob, StoreError> {
        let shared = self.shared.clone();
        let publish = move || {
            let (state, length) = {
                let mut queue = shared.queue.lock();
                (std::mem::replace(&mut queue.state, State::Gone), queue.present.end())
            };
            match state {
                State::Idle(work) if !shared.inner.closed.load(Ordering::SeqCst) => {
                    work.publish(&shared.inner, &digest, length)
                }
                State::Idle(work) => {
                    shared.give_up(work);
                    Err(StoreError::Stopped)
                }
                _ => Err(StoreError::Stopped),
            }
        };
        // Tracked: closing waits for it also when the caller is cancelled.
        self.shared.inner.jobs.spawn_blocking(publish).await.unwrap_or(Err(StoreError::Stopped))
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        drop(self.end());
    }
}

impl Pipeline {
    /// Ends the writing where it is; returns when what can be gone on with is left for that.
    pub(super) async fn park(mut self) {
        self.ends();
        // What was accepted reaches the file first. Where that fails, nothing stays.
        let _ = self.flush().await;
        if let Some(job) = self.end() {
            // It fails where the process ends: then the next start finds what was put down last.
            let _ = job.await;
        }
    }

    /// Nobody writes any more: the job that sees to what is there, if there is one.
    fn end(&mut self) -> Option<JoinHandle<()>> {
        let Self { shared, runtime, .. } = self;
        let mut queue = shared.queue.lock();
        (queue.to_write, queue.to_hash) = (Vec::new(), Vec::new());
        let state = std::mem::replace(&mut queue.state, State::Gone);
        if matches!(state, State::Running) {
            queue.state = State::Aborted;
        }
        let can_stay = shared.can_stay(&queue);
        let ends = matches!(state, State::Running | State::Idle(_) | State::Failed(_, Some(_), _));
        // Should a job never run, since the process ends, what it was given is dropped here.
        drop(queue);
        if let Some(checkpoints) = shared.checkpoints.as_ref().filter(|_| ends) {
            checkpoints.end();
        }
        match state {
            State::Idle(mut work) => {
                // Then the next start finds what was put down last.
                work.set_stays(can_stay);
                let shared = shared.clone();
                // Removing a file, and syncing it even more, may block; this may be an async worker.
                Some(self.shared.inner.jobs.spawn_blocking_on(move || shared.give_up(work), runtime))
            }
            State::Failed(_, Some(work), _) => Some(shared.inner.jobs.spawn_blocking_on(move || drop(work), runtime)),
            _ => None,
        }
    }
}
