//! Writing a blob: a temporary file that readers may read while it grows, published under its digest when it is whole
//! and right, and gone if it is not.
//!
//! Chunks are handed to a job on the blocking pool, which writes and hashes them; while it is at it, further ones
//! collect, and the job takes them all at once. So the caller rarely waits, a slow link's bytes are visible at once,
//! and a fast link's are written in large batches. What waits is bounded.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::blob::Trust;
use super::capacity::Reservation;
use super::disk::{self, Disk};
use super::layout::{self, FILLS};
use super::stamp::Stamp;
use super::temporary::Temporary;
use super::{Inner, Store, StoreError, StoredBlob};
use crate::config::Durability;
use crate::oci::{Digest, Hasher};

/// Bytes that may wait for the disk.
const WAITING: usize = 1 << 20;
/// What is promised to a fill of unknown length at a time.
const STEP: u64 = 8 << 20;
/// Shorter files do not get their disk blocks in advance.
const ALLOCATE: u64 = 64 << 10;

/// A blob that is being written. Dropping it without [`BlobWriter::finish`] removes what was written.
pub struct BlobWriter {
    shared: Arc<Shared>,
    file: Arc<File>,
    progress: watch::Receiver<u64>,
    runtime: Handle,
}

struct Shared {
    inner: Arc<Inner>,
    digest: Digest,
    length: Option<u64>,
    queue: Mutex<Queue>,
    /// A job has ended or taken what waited.
    changed: Notify,
    progress: watch::Sender<u64>,
}

struct Queue {
    chunks: Vec<Bytes>,
    waiting: usize,
    /// All that was accepted so far.
    accepted: u64,
    state: State,
}

/// Where the file is.
enum State {
    /// No job runs.
    Idle(Box<Work>),
    /// A job has it.
    Running,
    /// A job has it, and is to drop it.
    Aborted,
    /// Writing failed. The error is there until somebody has it; what was written is there unless the job panicked.
    Failed(Option<StoreError>, Option<Box<Work>>),
    /// It was published or dropped.
    Gone,
}

/// What a writer that failed has written. The file has no name any more, but can be read by whoever has it open; while
/// this is held its bytes stay in the store's account.
pub struct Remnant {
    /// Bytes in the file.
    pub written: u64,
    /// The hash of these bytes, to go on with.
    pub hasher: Hasher,
    _reservation: Reservation,
}

struct Work {
    temporary: Temporary<Arc<Disk>>,
    reservation: Reservation,
    hasher: Hasher,
    written: u64,
}

// === impl Store ===

impl Store {
    /// Begins to write a blob: promises its bytes, evicting older blobs if needed, and makes the temporary file.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and [`StoreError::TooLarge`]: the content can be passed on but not kept.
    pub async fn create(&self, digest: &Digest, length: Option<u64>) -> Result<BlobWriter, StoreError> {
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Stopped);
        }
        let digest = *digest;
        let work = self.blocking(move |inner| Work::begin(inner, &digest, length)).await?;
        let file = work.temporary.file().clone();
        let (sender, progress) = watch::channel(0);
        let queue = Queue { chunks: Vec::new(), waiting: 0, accepted: 0, state: State::Idle(Box::new(work)) };
        let shared = Shared {
            inner: self.0.clone(),
            digest,
            length,
            queue: Mutex::new(queue),
            changed: Notify::new(),
            progress: sender,
        };
        Ok(BlobWriter { shared: Arc::new(shared), file, progress, runtime: Handle::current() })
    }
}

// === impl BlobWriter ===

impl BlobWriter {
    /// The growing file; what lies before [`BlobWriter::written`] can be read with `read_at`.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// How many bytes are in the file.
    pub fn written(&self) -> u64 {
        *self.progress.borrow()
    }

    /// Follows [`BlobWriter::written`]. When the writer is gone the channel is closed, whether it finished or not.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.clone()
    }

    /// Adds bytes. Returns when they are accepted, which is at once unless the disk is slower than the caller;
    /// [`BlobWriter::progress`] says when they can be read.
    ///
    /// # Errors
    /// That this chunk or an earlier one could not be written, or is more than was announced. Nothing can be added
    /// after an error.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        loop {
            let changed = self.shared.changed.notified();
            if self.shared.accept(&chunk)? {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Waits until all bytes are in the file, and compares length and digest with what was asked for. After success
    /// the last bytes may be shown to clients; they do not have to wait for the disk.
    pub async fn verify(&mut self) -> Result<(), StoreError> {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(outcome) = self.shared.verified() {
                return outcome;
            }
            changed.await;
        }
    }

    /// What was written before writing failed, for readers to go on from. None if it did not fail, or in a way that
    /// leaves nothing to rely on.
    pub async fn into_remnant(self) -> Option<Remnant> {
        let shared = self.shared.clone();
        let take = move || {
            let state = std::mem::replace(&mut shared.queue.lock().state, State::Gone);
            match state {
                State::Failed(_, Some(work)) => Some(work.into_remnant()),
                _ => None,
            }
        };
        self.shared.inner.jobs.spawn_blocking(take).await.ok().flatten()
    }

    /// Publishes the blob. When this returns, `strict` durability has it on the disk under its name.
    ///
    /// # Errors
    /// [`StoreError::LengthMismatch`], [`StoreError::DigestMismatch`], or what the file system said; in each case
    /// nothing is left of it. That equal content was published by somebody else is no error.
    pub async fn finish(mut self) -> Result<StoredBlob, StoreError> {
        self.verify().await?;
        let shared = self.shared.clone();
        let publish = move || {
            let state = std::mem::replace(&mut shared.queue.lock().state, State::Gone);
            match state {
                State::Idle(work) if !shared.inner.closed.load(Ordering::SeqCst) => {
                    work.publish(&shared.inner, &shared.digest)
                }
                _ => Err(StoreError::Stopped),
            }
        };
        // Tracked: closing waits for it also when the caller is cancelled.
        self.shared.inner.jobs.spawn_blocking(publish).await.unwrap_or(Err(StoreError::Stopped))
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.chunks = Vec::new();
        match std::mem::replace(&mut queue.state, State::Gone) {
            State::Running => queue.state = State::Aborted,
            State::Idle(work) | State::Failed(_, Some(work)) => {
                // Removing a file may block; this may be an async worker.
                drop(self.shared.inner.jobs.spawn_blocking_on(move || drop(work), &self.runtime));
            }
            _ => {}
        }
    }
}

impl std::fmt::Debug for Remnant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remnant").field("written", &self.written).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobWriter")
            .field("digest", &self.shared.digest)
            .field("length", &self.shared.length)
            .field("written", &self.written())
            .finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    /// Takes a chunk, if there is room for it, and sees to it that a job writes it.
    fn accept(self: &Arc<Self>, chunk: &Bytes) -> Result<bool, StoreError> {
        let mut queue = self.queue.lock();
        queue.state.check()?;
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
        queue.chunks.push(chunk.clone());
        match std::mem::replace(&mut queue.state, State::Running) {
            State::Idle(work) => {
                let shared = self.clone();
                drop(self.inner.jobs.spawn_blocking(move || shared.run(work)));
            }
            other => queue.state = other,
        }
        Ok(true)
    }

    /// Whether all that was accepted is right; none while it is still being written.
    fn verified(&self) -> Option<Result<(), StoreError>> {
        let mut queue = self.queue.lock();
        if let Err(error) = queue.state.check() {
            return Some(Err(error));
        }
        let State::Idle(work) = &queue.state else { return None };
        let actual = work.written;
        if let Some(expected) = self.length.filter(|expected| *expected != actual) {
            return Some(Err(StoreError::LengthMismatch { expected, actual }));
        }
        let (expected, actual) = (self.digest, work.hasher.clone().finish());
        Some(if expected == actual { Ok(()) } else { Err(mismatch(expected, actual)) })
    }

    /// The job: writes what waits until nothing does.
    fn run(self: Arc<Self>, work: Box<Work>) {
        let mut job = Job { shared: &self, work: Some(work) };
        loop {
            let chunks = {
                let mut queue = self.queue.lock();
                let Some(work) = job.work.take() else { return };
                if matches!(queue.state, State::Aborted) {
                    queue.state = State::Gone;
                    drop(queue);
                    return drop(work);
                }
                if queue.chunks.is_empty() {
                    queue.state = State::Idle(work);
                    drop(queue);
                    return self.changed.notify_waiters();
                }
                job.work = Some(work);
                queue.waiting = 0;
                std::mem::take(&mut queue.chunks)
            };
            self.changed.notify_waiters();
            let Some(work) = job.work.as_mut() else { return };
            match work.write(&self.inner, &chunks) {
                Ok(()) => drop(self.progress.send_replace(work.written)),
                Err(error) => {
                    let work = job.work.take();
                    return job.fail(error, work);
                }
            }
        }
    }
}

/// A running job. Should it panic, the writer fails instead of waiting for ever.
struct Job<'s> {
    shared: &'s Shared,
    work: Option<Box<Work>>,
}

impl Job<'_> {
    fn fail(&mut self, error: StoreError, work: Option<Box<Work>>) {
        let mut queue = self.shared.queue.lock();
        queue.chunks = Vec::new();
        let left = if matches!(queue.state, State::Aborted) {
            queue.state = State::Gone;
            work
        } else {
            queue.state = State::Failed(Some(error), work);
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
            self.fail(StoreError::Stopped, None);
        }
    }
}

fn mismatch(expected: Digest, actual: Digest) -> StoreError {
    StoreError::DigestMismatch { expected: Box::new(expected), actual: Box::new(actual) }
}

// === impl State ===

impl State {
    /// An error once writing has failed. That there is no space is said each time: the caller acts on it.
    fn check(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Idle(_) | Self::Running => Ok(()),
            Self::Failed(Some(StoreError::NoSpace), _) => Err(StoreError::NoSpace),
            Self::Failed(error, _) => Err(error.take().unwrap_or(StoreError::Stopped)),
            Self::Aborted | Self::Gone => Err(StoreError::Stopped),
        }
    }
}

// === impl Work ===

impl Work {
    fn begin(inner: &Arc<Inner>, digest: &Digest, length: Option<u64>) -> Result<Self, StoreError> {
        let mut reservation = inner.reserve(digest, length.unwrap_or(0))?;
        let hint: String = digest.hex().chars().take(16).collect();
        let directory = Path::new(FILLS);
        let create = || match Temporary::create(inner.disk.clone(), &hint) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                inner.disk.make_dirs(directory)?;
                Temporary::create(inner.disk.clone(), &hint)
            }
            other => other,
        };
        // Failing to make a file means that inodes are used up: one blob less is enough.
        let temporary = inner.with_room(1, create).map_err(|e| StoreError::io("make a file in", directory, e))?;
        if let Some(length) = length.filter(|length| *length >= ALLOCATE) {
            let allocate = || disk::allocate(temporary.file(), length);
            if inner.with_room(length, allocate).map_err(|e| StoreError::io("allocate a file in", directory, e))? {
                reservation.allocated(length);
            }
        }
        Ok(Self { temporary, reservation, hasher: Hasher::new(digest.algorithm()), written: 0 })
    }

    fn write(&mut self, inner: &Inner, chunks: &[Bytes]) -> Result<(), StoreError> {
        let bytes: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if self.written + bytes > self.reservation.bytes() {
            let more = self.written + bytes - self.reservation.bytes();
            // A large step first; near the limit what is needed now must do.
            if inner.reserve_more(&mut self.reservation, more.max(STEP)).is_err() {
                inner.reserve_more(&mut self.reservation, more)?;
            }
        }
        for chunk in chunks {
            let write = || self.temporary.file().write_all_at(chunk, self.written);
            inner.with_room(chunk.len() as u64, write).map_err(|e| StoreError::io("write to", Path::new(FILLS), e))?;
            self.hasher.update(chunk);
            self.written += chunk.len() as u64;
            self.reservation.allocated(chunk.len() as u64);
        }
        Ok(())
    }

    /// Ends the writing where it failed: a chunk is counted and hashed only when all of it is in the file.
    fn into_remnant(self) -> Remnant {
        let Self { temporary, mut reservation, hasher, written } = self;
        drop(temporary);
        reservation.keep_only(written);
        Remnant { written, hasher, _reservation: reservation }
    }

    /// Gives the file its name. Its content was verified.
    fn publish(self, inner: &Arc<Inner>, digest: &Digest) -> Result<StoredBlob, StoreError> {
        let Self { temporary, reservation, written, .. } = self;
        let (path, directory) = (layout::blob(digest), layout::blob_dir(digest.algorithm()));
        if inner.durability == Durability::Strict {
            temporary.sync().map_err(|e| StoreError::io("sync", &path, e))?;
        }
        let file = temporary.file().clone();
        let names = inner.names.lock();
        if let Some(existing) = inner.verified_file(digest, written) {
            let (file, stamp) = existing;
            let blob = inner.stored_blob(digest, file, stamp, Trust::Verified);
            drop(names);
            inner.sync_names(digest);
            return Ok(blob);
        }
        let replaced = inner.disk.metadata(&path).ok();
        match temporary.publish(&path) {
            Ok(()) => {}
            Err((temporary, error)) if error.kind() == io::ErrorKind::NotFound => {
                let made = inner.disk.make_dirs(&directory).map_err(|e| StoreError::io("make", &directory, e))?;
                temporary.publish(&path).map_err(|(_, e)| StoreError::io("publish", &path, e))?;
                inner.group.directories(made);
            }
            Err((_, error)) => return Err(StoreError::io("publish", &path, error)),
        }
        if let Some(replaced) = replaced {
            inner.books.unlinked(digest, replaced.ino(), replaced.len());
        }
        // Renaming changes the times, so the stamp is taken now.
        let stamp = file.metadata().map(|m| Stamp::of(&m)).map_err(|e| StoreError::io("look at", &path, e))?;
        reservation.stored(written);
        let blob = inner.stored_blob(digest, file, stamp, Trust::Verified);
        // Under the lock: the last stamp must be that of the last file.
        inner.hints.set_blob(digest, written, Some((stamp, inner.epoch)));
        drop(names);
        inner.sync_names(digest);
        Ok(blob)
    }
}

// === impl Inner ===

impl Inner {
    /// With strict durability, waits until what has a name beside `digest` keeps it.
    fn sync_names(&self, digest: &Digest) {
        if self.durability == Durability::Strict
            && let Err(error) = self.disk.sync_dir(&layout::blob_dir(digest.algorithm()))
        {
            // The name may or may not survive; the content is whole and right in either case.
            tracing::warn!(%digest, %error, "a directory could not be synced");
        }
    }

    /// The file that is already there under this digest, if it is known to be right.
    fn verified_file(&self, digest: &Digest, len: u64) -> Option<(Arc<File>, Stamp)> {
        let known = self.hints.blob(digest, self.epoch)?.stamp?;
        let file = self.disk.read(&layout::blob(digest)).ok()?;
        let stamp = Stamp::of(&file.metadata().ok()?);
        (stamp == known && stamp.len == len).then(|| (Arc::new(file), stamp))
    }
}
