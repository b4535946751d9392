//! How bytes get into a temporary file and its hash, in two stages: what a blob of known digest and one of unknown
//! digest have in common.
//!
//! Chunks are handed to a job on the blocking pool, which writes them; while it is at it, further ones collect, and the
//! job takes them all at once. What is written goes on to a second job, which hashes. So the caller rarely waits, a slow
//! link's bytes are visible at once, and a fast link's are written in large batches while those before them are hashed
//! on another core. What waits is bounded.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::disk::Disk;
use super::work::Work;
use super::writer::Remnant;
use super::{Inner, StoreError, StoredBlob};
use crate::config::Durability;
use crate::oci::{Algorithm, Digest, Hasher};

/// Bytes that may be held in memory for a blob: not written, or not hashed yet.
const WAITING: usize = 2 << 20;
/// Less than this is hashed by the job that wrote it: handing it over would take longer.
const HAND_OVER: usize = 64 << 10;
/// The disk is told to write a file in parts of at least this size.
const SEND_OUT: u64 = 16 << 20;

/// A temporary file that is being written and hashed. Dropping it removes the file.
pub(super) struct Pipeline {
    shared: Arc<Shared>,
    file: Arc<File>,
    progress: watch::Receiver<u64>,
    runtime: Handle,
}

struct Shared {
    inner: Arc<Inner>,
    /// What was announced; more is refused.
    length: Option<u64>,
    queue: Mutex<Queue>,
    /// A job has ended, or has done with some of what waited.
    changed: Notify,
    progress: watch::Sender<u64>,
    /// Told as the file grows, by the job that writes: whoever reads it need not wait for whoever writes it.
    follower: OnceLock<Follower>,
    sent_out: SentOut,
}

/// How much of the file the disk was told to write before all of it is synced, so that the end takes little time of its
/// own. That is done by a job beside the one that writes: where the disk is slow, it waits.
#[derive(Default)]
struct SentOut {
    end: AtomicU64,
    running: AtomicBool,
}

/// Who is told how many bytes are in the file.
type Follower = Box<dyn Fn(u64) + Send + Sync>;

struct Queue {
    to_write: Vec<Bytes>,
    /// Written, and readable.
    to_hash: Vec<Bytes>,
    /// Bytes that were accepted and are not hashed yet.
    waiting: usize,
    /// All that was accepted so far.
    accepted: u64,
    state: State,
    sum: Sum,
}

/// Where the file is.
enum State {
    /// No job runs.
    Idle(Box<Work>),
    /// A job has it.
    Running,
    /// A job has it, and is to drop it.
    Aborted,
    /// Writing failed. The error is there until somebody has it; what was written is there unless the job panicked, and
    /// what was accepted and is not in the file.
    Failed(Option<StoreError>, Option<Box<Work>>, Vec<Bytes>),
    /// It was published or dropped.
    Gone,
}

/// What a writer leaves that failed.
struct Left {
    work: Box<Work>,
    /// Of what is in the file.
    hasher: Hasher,
    unwritten: Vec<Bytes>,
}

/// Where the hash is.
enum Sum {
    /// Of all that was written.
    Idle(Box<Hasher>),
    /// A job has it.
    Running,
    /// Its job panicked.
    Lost,
}

// === impl Pipeline ===

impl Pipeline {
    /// Takes a file that was begun; `length` is what was announced.
    pub(super) fn start(inner: Arc<Inner>, work: Work, algorithm: Algorithm, length: Option<u64>) -> Self {
        let file = work.file().clone();
        let (sender, progress) = watch::channel(0);
        let queue = Queue {
            to_write: Vec::new(),
            to_hash: Vec::new(),
            waiting: 0,
            accepted: 0,
            state: State::Idle(Box::new(work)),
            sum: Sum::Idle(Box::new(Hasher::new(algorithm))),
        };
        let (queue, changed, follower) = (Mutex::new(queue), Notify::new(), OnceLock::new());
        let sent_out = SentOut::default();
        let shared = Shared { inner, length, queue, changed, progress: sender, follower, sent_out };
        Self { shared: Arc::new(shared), file, progress, runtime: Handle::current() }
    }

    /// The growing file.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Where it lies.
    pub(super) fn disk(&self) -> Arc<Disk> {
        self.shared.inner.disk.clone()
    }

    /// How many bytes are in the file.
    pub(super) fn written(&self) -> u64 {
        *self.progress.borrow()
    }

    /// Follows [`Pipeline::written`]; closed when the pipeline is gone.
    pub(super) fn progress(&self) -> watch::Receiver<u64> {
        self.progress.clone()
    }

    /// Has `follower` told, by the job that writes, how many bytes are in the file; once.
    pub(super) fn follow(&self, follower: impl Fn(u64) + Send + Sync + 'static) {
        let _ = self.shared.follower.set(Box::new(follower));
    }

    /// What was announced.
    pub(super) fn length(&self) -> Option<u64> {
        self.shared.length
    }

    /// Adds bytes. Returns when they are accepted, which is at once unless the disk is slower than the caller.
    pub(super) async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        loop {
            let changed = self.shared.changed.notified();
            if self.shared.accept(&chunk)? {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Waits until all that was accepted is in the file.
    pub(super) async fn flush(&mut self) -> Result<u64, StoreError> {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(outcome) = self.shared.flushed() {
                return outcome;
            }
            changed.await;
        }
    }

    /// Waits until all that was accepted is in the file and in the hash.
    pub(super) async fn settle(&mut self) -> Result<(u64, Hasher), StoreError> {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(outcome) = self.shared.settled() {
                return outcome;
            }
            changed.await;
        }
    }

    /// The same, and the length must be the one that was announced.
    pub(super) async fn settle_whole(&mut self) -> Result<Hasher, StoreError> {
        let (actual, hasher) = self.settle().await?;
        match self.shared.length {
            Some(expected) if expected != actual => Err(StoreError::LengthMismatch { expected, actual }),
            _ => Ok(hasher),
        }
    }

    /// Goes back to the first `length` bytes, of which `hasher` is the sum. All must be settled; whoever still reads what
    /// comes after them will meet other bytes there.
    pub(super) fn rewind(&mut self, length: u64, hasher: Hasher) -> Result<(), StoreError> {
        let mut queue = self.shared.queue.lock();
        queue.check()?;
        let Queue { state: State::Idle(work), sum: Sum::Idle(sum), accepted, .. } = &mut *queue else {
            return Err(StoreError::Stopped);
        };
        work.rewind(length);
        // What comes there now is new to the disk.
        self.shared.sent_out.end.fetch_min(length, Ordering::Relaxed);
        **sum = hasher;
        *accepted = length;
        drop(queue);
        self.shared.progress.send_replace(length);
        Ok(())
    }

    /// What was written before writing failed.
    pub(super) async fn into_remnant(self) -> Option<Remnant> {
        let Left { work, hasher, .. } = self.left().await?;
        // Removing the file's name may block.
        self.shared.inner.jobs.spawn_blocking(move || work.into_remnant(hasher)).await.ok()
    }

    /// What `hash` makes, on the blocking pool, of what was accepted before writing failed: the hash of what is in the
    /// file, how much that is, and what is not in it.
    pub(super) async fn into_hashers<T: Send + 'static>(
        self,
        hash: impl FnOnce(Hasher, u64, Vec<Bytes>) -> T + Send + 'static,
    ) -> Option<T> {
        let Left { work, hasher, unwritten } = self.left().await?;
        let hash = move || {
            let hashed = hash(hasher, work.written(), unwritten);
            drop(work);
            hashed
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

    /// Publishes what was written, all of which was settled and found to be right.
    pub(super) async fn publish(self, digest: Digest) -> Result<StoredBlob, StoreError> {
        let shared = self.shared.clone();
        let publish = move || {
            let state = std::mem::replace(&mut shared.queue.lock().state, State::Gone);
            match state {
                State::Idle(work) if !shared.inner.closed.load(Ordering::SeqCst) => {
                    work.publish(&shared.inner, &digest)
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
        let mut queue = self.shared.queue.lock();
        (queue.to_write, queue.to_hash) = (Vec::new(), Vec::new());
        match std::mem::replace(&mut queue.state, State::Gone) {
            State::Running => queue.state = State::Aborted,
            State::Idle(work) | State::Failed(_, Some(work), _) => {
                // Removing a file may block; this may be an async worker.
                drop(self.shared.inner.jobs.spawn_blocking_on(move || drop(work), &self.runtime));
            }
            _ => {}
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Takes a chunk, if there is room for it, and sees to it that a job writes it.
    fn accept(self: &Arc<Self>, chunk: &Bytes) -> Result<bool, StoreError> {
        let mut queue = self.queue.lock();
        queue.check()?;
        if chunk.is_empty() {
            return Ok(true);
        }
        let total = queue.accepted + chunk.len() as u64;
        if let Some(expected) = self.length.filter(|expected| total > *expected) {
            return Err(StoreError::LengthMismatch { expected, actual: total });
        }
        if queue.waiting >= WAITING {
            return Ok(false);
        }
        queue.accepted = total;
        queue.waiting += chunk.len();
        queue.to_write.push(chunk.clone());
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
    fn flushed(&self) -> Option<Result<u64, StoreError>> {
        let mut queue = self.queue.lock();
        if let Err(error) = queue.check() {
            return Some(Err(error));
        }
        let State::Idle(work) = &queue.state else { return None };
        Some(Ok(work.written()))
    }

    /// Length and hash of all that was accepted; none while it is still being written or hashed.
    fn settled(&self) -> Option<Result<(u64, Hasher), StoreError>> {
        let mut queue = self.queue.lock();
        if let Err(error) = queue.check() {
            return Some(Err(error));
        }
        let (State::Idle(work), Sum::Idle(hasher)) = (&queue.state, &queue.sum) else { return None };
        Some(Ok((work.written(), Hasher::clone(hasher))))
    }

    /// What a failed writer leaves, if anything; none while it is still being hashed.
    #[expect(clippy::option_option, reason = "not yet, nothing, and something are three things")]
    fn left(&self) -> Option<Option<Left>> {
        let mut queue = self.queue.lock();
        if matches!(queue.sum, Sum::Running) {
            return None;
        }
        match (std::mem::replace(&mut queue.state, State::Gone), std::mem::replace(&mut queue.sum, Sum::Lost)) {
            (State::Failed(_, Some(work), unwritten), Sum::Idle(hasher)) => {
                Some(Some(Left { work, hasher: *hasher, unwritten }))
            }
            (state, sum) => {
                (queue.state, queue.sum) = (state, sum);
                Some(None)
            }
        }
    }

    /// The writing job: writes what waits until nothing does.
    fn run(self: Arc<Self>, work: Box<Work>) {
        let mut job = Job { shared: &self, work: Some(work) };
        loop {
            let mut chunks = {
                let mut queue = self.queue.lock();
                let Some(work) = job.work.take() else { return };
                if matches!(queue.state, State::Aborted) {
                    queue.state = State::Gone;
                    drop(queue);
                    return drop(work);
                }
                if queue.to_write.is_empty() {
                    queue.state = State::Idle(work);
                    drop(queue);
                    return self.changed.notify_waiters();
                }
                job.work = Some(work);
                std::mem::take(&mut queue.to_write)
            };
            let Some(work) = job.work.as_mut() else { return };
            let (unwritten, outcome) = work.write(&self.inner, &mut chunks);
            if outcome.is_ok() {
                let written = work.written();
                self.progress.send_replace(written);
                if let Some(follower) = self.follower.get() {
                    follower(written);
                }
                self.send_out(work.file(), written);
            }
            self.hash(chunks);
            if let Err(error) = outcome {
                let work = job.work.take();
                return job.fail(error, work, unwritten);
            }
        }
    }

    /// Has the disk begin with what was written since the last time, if that is much, and nothing holds it up.
    fn send_out(self: &Arc<Self>, file: &Arc<File>, written: u64) {
        let SentOut { end, running } = &self.sent_out;
        let is_due = self.inner.durability == Durability::Strict && written >= end.load(Ordering::Relaxed) + SEND_OUT;
        if is_due && !running.swap(true, Ordering::AcqRel) {
            let (shared, file, from) = (self.clone(), file.clone(), end.swap(written, Ordering::Relaxed));
            drop(self.inner.jobs.spawn_blocking(move || {
                shared.inner.disk.begin_sync(&file, from..written);
                shared.sent_out.running.store(false, Ordering::Release);
            }));
        }
    }

    /// Sees to it that what was written is hashed.
    fn hash(self: &Arc<Self>, mut written: Vec<Bytes>) {
        let mut queue = self.queue.lock();
        queue.to_hash.append(&mut written);
        let bytes: usize = queue.to_hash.iter().map(Bytes::len).sum();
        match std::mem::replace(&mut queue.sum, Sum::Running) {
            Sum::Idle(hasher) => {
                drop(queue);
                if bytes < HAND_OVER {
                    self.sum_up(hasher);
                } else {
                    let shared = self.clone();
                    drop(self.inner.jobs.spawn_blocking(move || shared.sum_up(hasher)));
                }
            }
            other => queue.sum = other,
        }
    }

    /// The hashing job: hashes what was written until nothing is left.
    fn sum_up(&self, hasher: Box<Hasher>) {
        let mut job = SumJob { shared: self, hasher: Some(hasher) };
        let mut done = 0;
        loop {
            let chunks = {
                let mut queue = self.queue.lock();
                queue.waiting -= done;
                if queue.to_hash.is_empty() {
                    queue.sum = job.hasher.take().map_or(Sum::Lost, Sum::Idle);
                    drop(queue);
                    return self.changed.notify_waiters();
                }
                std::mem::take(&mut queue.to_hash)
            };
            self.changed.notify_waiters();
            done = 0;
            for chunk in chunks {
                if let Some(hasher) = &mut job.hasher {
                    hasher.update(&chunk);
                }
                done += chunk.len();
            }
        }
    }
}

/// A running hashing job. Should it panic, the writer fails instead of waiting for ever.
struct SumJob<'s> {
    shared: &'s Shared,
    hasher: Option<Box<Hasher>>,
}

impl Drop for SumJob<'_> {
    fn drop(&mut self) {
        if self.hasher.is_some() {
            self.shared.queue.lock().sum = Sum::Lost;
            self.shared.changed.notify_waiters();
        }
    }
}

/// A running writing job. Should it panic, the writer fails instead of waiting for ever.
struct Job<'s> {
    shared: &'s Shared,
    work: Option<Box<Work>>,
}

impl Job<'_> {
    fn fail(&mut self, error: StoreError, work: Option<Box<Work>>, mut unwritten: Vec<Bytes>) {
        let mut queue = self.shared.queue.lock();
        unwritten.append(&mut queue.to_write);
        let left = if matches!(queue.state, State::Aborted) {
            queue.state = State::Gone;
            work
        } else {
            queue.state = State::Failed(Some(error), work, unwritten);
            None
        };
        drop(queue);
        drop(left);
        self.shared.changed.notify_waiters();
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if self.work.take().is_some() {
            self.fail(StoreError::Stopped, None, Vec::new());
        }
    }
}

// === impl Queue, State ===

impl Queue {
    /// An error once writing or hashing has failed.
    fn check(&mut self) -> Result<(), StoreError> {
        self.state.check()?;
        if matches!(self.sum, Sum::Lost) { Err(StoreError::Stopped) } else { Ok(()) }
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
