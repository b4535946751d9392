//! The writing job: what waits is written, told, and given to the hash.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::queue::State;
use crate::config::Durability;
use crate::store::StoreError;
use crate::store::work::{Placed, Work};

/// Where the job that writes hashes, too, it does so after each of these: they are still in the processor's caches.
const BATCH: usize = 256 << 10;
/// The disk is told to write a file in parts of at least this size.
const SEND_OUT: u64 = 16 << 20;

// === impl Shared ===

impl Shared {
    /// The writing job: writes what waits until nothing does.
    pub(super) fn run(self: Arc<Self>, work: Box<Work>) {
        let mut job = Job { shared: &self, work: Some(work) };
        loop {
            let mut chunks = {
                let mut queue = self.queue.lock();
                let Some(work) = job.work.take() else { return };
                if matches!(queue.state, State::Aborted) {
                    queue.state = State::Gone;
                    drop(queue);
                    return self.give_up(work);
                }
                if queue.to_write.is_empty() {
                    queue.state = State::Idle(work);
                    drop(queue);
                    return self.changed.notify_waiters();
                }
                job.work = Some(work);
                queue.take_to_write(self.inner.writer_hashes.load(Ordering::Relaxed).then_some(BATCH))
            };
            let Some(work) = job.work.as_mut() else { return };
            let (unwritten, outcome) = work.write(&self.inner, &mut chunks);
            self.wrote(chunks);
            self.send_out(work);
            self.checkpoint_if_due();
            self.hash();
            if let Err(error) = outcome {
                let work = job.work.take();
                return job.fail(error, work, unwritten);
            }
        }
    }

    /// Tells that these are in the file.
    fn wrote(&self, chunks: Vec<Placed>) {
        let told = self.follower.get().map(|follower| (follower, chunks.clone()));
        let mut queue = self.queue.lock();
        for chunk in &chunks {
            queue.present.insert(chunk.range());
        }
        let written = queue.present.end_of_run(0);
        let let_go = queue.give_to_hash(chunks);
        drop(queue);
        if !let_go.is_empty() {
            drop(let_go);
            self.changed.notify_waiters();
        }
        self.progress.send_if_modified(|progress| std::mem::replace(progress, written) != written);
        if let Some((follower, chunks)) = told {
            follower(&chunks);
        }
    }

    /// Has the disk begin with what was written since the last time, if that is much, and nothing holds it up.
    fn send_out(self: &Arc<Self>, work: &mut Work) {
        if self.inner.durability != Durability::Strict || self.sending_out.load(Ordering::Acquire) {
            return;
        }
        let Some(range) = work.take_unsent(SEND_OUT) else { return };
        self.sending_out.store(true, Ordering::Release);
        let shared = self.clone();
        drop(self.inner.jobs.spawn_blocking(move || {
            shared.inner.disk.begin_sync(&shared.file, range);
            shared.sending_out.store(false, Ordering::Release);
        }));
    }
}

/// A running writing job. Should it panic, the writer fails instead of waiting for ever.
struct Job<'s> {
    shared: &'s Shared,
    work: Option<Box<Work>>,
}

impl Job<'_> {
    fn fail(&mut self, error: StoreError, work: Option<Box<Work>>, mut unwritten: Vec<Placed>) {
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
