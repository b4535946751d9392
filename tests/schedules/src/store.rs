//! The file that a blob goes into, as the explorer has it: which bytes are there, and that each came once and was right.
//!
//! As in the store's pipeline, who writes hands its bytes over, and waits where too much waits already; one job puts them
//! into the file, and tells the follower. Unlike there, the job is a task, takes what waits in any order, and nothing is hashed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use shuttle::rand::{Rng as _, thread_rng};
use tokio::sync::Notify;

pub use ocistern::store::{ByteRanges, Placed, StoreError};

use crate::steps;
use crate::upstream::is_content;

/// Pieces that may wait to be written.
const QUEUE: usize = 2;

/// As in the store: a file that is published.
#[derive(Debug, Clone)]
pub struct StoredBlob;

type Follower = Arc<dyn Fn(&[Placed]) + Send + Sync>;

/// A file, whoever writes it.
pub struct Disk {
    pub length: u64,
    /// Whether no byte may come twice.
    once: bool,
    state: Mutex<Bytewise>,
}

struct Bytewise {
    /// Handed over, by whoever wrote it.
    accepted: ByteRanges,
    present: ByteRanges,
    /// It takes so many more.
    room: u64,
}

/// The writer of a file. Dropping it ends the job, and what waited for that is lost.
pub struct BlobWriter {
    job: Arc<Job>,
    /// Whoever looks for what is left waits for it from here on.
    ends: Arc<AtomicBool>,
}

struct Job {
    disk: Arc<Disk>,
    state: Mutex<State>,
    /// Something was handed over, or written, or it has failed, or it ends.
    changed: Notify,
}

#[derive(Default)]
struct State {
    waiting: Vec<Placed>,
    /// Something is being written, or told.
    is_busy: bool,
    follower: Option<Follower>,
    has_failed: bool,
    is_closed: bool,
}

// === impl Disk ===

impl Disk {
    /// An empty file for a blob of this length, which takes so many bytes. `once` says whether none may come twice: where
    /// upstream gives the whole for a part, some do.
    pub fn new(length: u64, room: u64, once: bool) -> Arc<Self> {
        let state = Bytewise { accepted: ByteRanges::default(), present: ByteRanges::default(), room };
        Arc::new(Self { length, once, state: Mutex::new(state) })
    }

    /// These bytes are in the file now.
    pub fn put(&self, range: &Range<u64>) {
        self.state.lock().present.insert(range.clone());
    }

    /// Whether these bytes can be read.
    pub fn has(&self, range: &Range<u64>) -> bool {
        self.state.lock().present.contains(range)
    }

    pub fn present(&self) -> ByteRanges {
        self.state.lock().present.clone()
    }
}

// === impl Job ===

impl Job {
    async fn run(self: Arc<Self>) {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut state = self.state.lock();
                if state.is_closed || state.has_failed {
                    return;
                }
                // Writes of different places overtake each other.
                let next = (!state.waiting.is_empty()).then(|| thread_rng().gen_range(0..state.waiting.len()));
                state.is_busy = next.is_some();
                next.map(|next| state.waiting.swap_remove(next))
            };
            let Some(piece) = next else {
                changed.await;
                continue;
            };
            // Now and then the disk is slow.
            let most = if thread_rng().gen_bool(0.2) { 60 } else { 3 };
            steps(thread_rng().gen_range(0..most)).await;
            let follower = self.write(&piece.range());
            if let Some(follower) = follower {
                follower(&[piece]);
            }
            self.state.lock().is_busy = false;
            self.changed.notify_waiters();
        }
    }

    /// Who is to be told; none where nobody is, or it has failed.
    fn write(&self, range: &Range<u64>) -> Option<Follower> {
        let (mut state, mut disk) = (self.state.lock(), self.disk.state.lock());
        let bytes = range.end - range.start;
        if bytes > disk.room {
            state.has_failed = true;
            return None;
        }
        disk.room -= bytes;
        disk.present.insert(range.clone());
        state.follower.clone()
    }

    /// Waits until this is so, or it has failed.
    async fn until(&self, holds: impl Fn(&State) -> bool) -> Result<(), StoreError> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.lock();
                if state.has_failed {
                    return Err(StoreError::NoSpace);
                }
                if holds(&state) {
                    return Ok(());
                }
            }
            changed.await;
        }
    }
}

fn is_idle(state: &State) -> bool {
    state.waiting.is_empty() && !state.is_busy
}

// === impl BlobWriter ===

impl BlobWriter {
    /// As in the store: less than that is not put aside.
    pub const KEPT_FROM: u64 = 1 << 20;

    /// Begins to write, or goes on.
    pub fn new(disk: &Arc<Disk>, ends: Arc<AtomicBool>) -> Self {
        {
            // What was handed over to an earlier writer and not written is lost.
            let mut state = disk.state.lock();
            state.accepted = state.present.clone();
        }
        let job = Arc::new(Job { disk: Arc::clone(disk), state: Mutex::default(), changed: Notify::new() });
        tokio::spawn(Arc::clone(&job).run());
        Self { job, ends }
    }

    pub fn follow(&self, follower: impl Fn(&[Placed]) + Send + Sync + 'static) {
        self.job.state.lock().follower = Some(Arc::new(follower));
    }

    pub fn length(&self) -> Option<u64> {
        Some(self.job.disk.length)
    }

    pub fn present(&self) -> ByteRanges {
        self.job.disk.present()
    }

    /// # Panics
    /// Where bytes come twice, are not what belongs there, or lie beyond the end.
    pub async fn write_at(&self, at: u64, chunk: Bytes) -> Result<(), StoreError> {
        let Job { disk, state, changed } = &*self.job;
        let range = at..at + chunk.len() as u64;
        assert!(is_content(at, &chunk), "what is at {range:?} belongs elsewhere");
        assert!(range.end <= disk.length, "{range:?} is behind the end");
        self.job.until(|state| state.waiting.len() < QUEUE).await?;
        {
            let mut disk = disk.state.lock();
            let before = disk.accepted.total();
            disk.accepted.insert(range.clone());
            let new = disk.accepted.total() - before;
            assert!(!self.job.disk.once || new == range.end - range.start, "some of {range:?} has come before");
        }
        state.lock().waiting.push(Placed { at, bytes: chunk });
        changed.notify_waiters();
        Ok(())
    }

    /// Waits until all of it is in the file.
    ///
    /// # Panics
    /// Where not all of it has come.
    pub async fn verify(&mut self) -> Result<u64, StoreError> {
        self.job.until(is_idle).await?;
        let length = self.job.disk.length;
        assert!(self.job.disk.has(&(0..length)), "verified before all had come");
        Ok(length)
    }

    /// Waits until it has failed.
    pub async fn failed(&self) -> StoreError {
        // That it is there is no end of waiting.
        match self.job.until(|_| false).await {
            Ok(()) => unreachable!("it was not asked to hold"),
            Err(error) => error,
        }
    }

    pub fn tick(&self) {}

    /// From here on who looks for what is left waits for it.
    pub fn ends(&self) {
        self.ends.store(true, Ordering::SeqCst);
    }

    /// What was handed over is in the file, and stays.
    pub async fn park(self) {
        let _ = self.job.until(is_idle).await;
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        self.job.state.lock().is_closed = true;
        self.job.changed.notify_waiters();
    }
}
