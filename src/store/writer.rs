//! Writing a blob: a temporary file that readers may read while it grows, published under its digest when it is whole
//! and right, and gone if it is not. `pipeline` does the work.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::capacity::Reservation;
use super::partial::PartialMark;
use super::pipeline::{Begun, Pipeline};
use super::ranges::ByteRanges;
use super::work::{Placed, Work};
use super::{Store, StoreError, StoredBlob};
use crate::oci::{Digest, Hasher};

/// A blob that is being written. Dropping it without [`BlobWriter::finish`] leaves what was written to who takes it up, if
/// its length is known and that is much, and else removes it.
pub struct BlobWriter {
    pipeline: Pipeline,
    digest: Digest,
}

/// What a writer that failed has written. The file has no name any more, but can be read by whoever has it open; while
/// this is held its bytes stay in the store's account.
pub struct Remnant {
    /// So many bytes are in the file from its start on without a gap.
    pub written: u64,
    /// The hash of these bytes, to go on with.
    pub hasher: Hasher,
    pub(super) _reservation: Reservation,
}

// === impl Store ===

impl Store {
    /// Begins to write a blob: promises its bytes, evicting older blobs if needed, and makes the temporary file.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::NoRoomInTime`] and [`StoreError::TooLarge`]: the content can be passed on
    /// but not kept.
    pub async fn create(&self, digest: &Digest, length: Option<u64>) -> Result<BlobWriter, StoreError> {
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Stopped);
        }
        // The name of the map may be about to become free.
        self.0.partials.settle(digest).await;
        let work = Work::begin(self, Some(*digest), length).await?;
        let begun = Begun { length, ..Begun::default() };
        let pipeline = Pipeline::start(self.0.clone(), work, digest.algorithm(), begun);
        Ok(BlobWriter::new(pipeline, *digest))
    }
}

// === impl BlobWriter ===

impl BlobWriter {
    /// Shorter blobs are not kept where they are not whole.
    pub const KEPT_FROM: u64 = super::partial::LEAST;

    pub(super) fn new(pipeline: Pipeline, digest: Digest) -> Self {
        Self { pipeline, digest }
    }

    /// The growing file; what is [present](BlobWriter::present) can be read with `read_at`.
    pub fn file(&self) -> Arc<File> {
        self.pipeline.file()
    }

    /// How many bytes it will have, if that was announced.
    pub fn length(&self) -> Option<u64> {
        self.pipeline.length()
    }

    /// What is in the file now.
    pub fn present(&self) -> ByteRanges {
        self.pipeline.present()
    }

    /// Has `follower` told of all bytes when they have reached the file. It is called by the job that writes, and must not
    /// block. It is not told of what was there before.
    pub fn follow(&self, follower: impl Fn(&[Placed]) + Send + Sync + 'static) {
        self.pipeline.follow(follower);
    }

    /// What the fill wants to be remembered if it does not end: it is there for who takes it up.
    pub fn remember(&self, mark: PartialMark) {
        self.pipeline.remember(mark);
    }

    /// Adds bytes behind those of the last call, or behind those that were there from the start when there was none.
    /// Returns when they are accepted, which is at once unless the disk is slower than the caller.
    ///
    /// # Errors
    /// That these bytes or earlier ones could not be written, or are more than was announced. Nothing can be added after an
    /// error.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.pipeline.write(chunk).await
    }

    /// Adds bytes that belong at `at`; any number of callers may do so at once. What was accepted before of these bytes
    /// stays as it is: somebody may have read it.
    ///
    /// # Errors
    /// As of [`BlobWriter::write`].
    pub async fn write_at(&self, at: u64, chunk: Bytes) -> Result<(), StoreError> {
        self.pipeline.write_at(at, chunk).await
    }

    /// Waits until all bytes are in the file, and compares length and digest with what was asked for. After success
    /// the last bytes may be shown to clients; they do not have to wait for the disk. Returns how many bytes there are.
    pub async fn verify(&mut self) -> Result<u64, StoreError> {
        let (length, hasher) = self.pipeline.settle_whole().await?;
        compare(self.digest, hasher.finish()).inspect_err(|_| self.pipeline.is_wrong())?;
        Ok(length)
    }

    /// What was written before writing failed, for readers to go on from. None if it did not fail, or in a way that
    /// leaves nothing to rely on.
    pub async fn into_remnant(self) -> Option<Remnant> {
        self.pipeline.into_remnant().await
    }

    /// Publishes the blob. When this returns, `strict` durability has it on the disk under its name.
    ///
    /// # Errors
    /// [`StoreError::LengthMismatch`], [`StoreError::DigestMismatch`], or what the file system said; in each case
    /// nothing is left of it. That equal content was published by somebody else is no error.
    pub async fn finish(mut self) -> Result<StoredBlob, StoreError> {
        self.verify().await?;
        self.pipeline.publish(self.digest).await
    }

    /// Waits until something that was accepted could not be written, or not be hashed: without it, who adds nothing more
    /// would not know. Who adds something, or verifies, may be told instead.
    pub async fn failed(&self) -> StoreError {
        self.pipeline.failed().await
    }

    /// To be called about once a second, also while nothing comes: has what is there put down for another time. Does not
    /// block.
    pub fn tick(&self) {
        self.pipeline.tick();
    }

    /// It is at its end soon, and leaves something: who comes from here on to take that up waits for it. Does not block.
    pub fn ends(&self) {
        self.pipeline.ends();
    }

    /// Ends it where it is. What can be gone on with later is there to be taken up when this returns.
    pub async fn park(self) {
        self.pipeline.park().await;
    }

    /// Puts down what is there, as the writing job does from time to time.
    #[cfg(test)]
    pub(super) async fn checkpoint(&self) {
        self.pipeline.checkpoint().await;
    }

    /// Gives it up: nothing of it stays.
    pub fn discard(self) {
        self.pipeline.is_wrong();
    }
}

/// Whether content is what it should be.
pub(super) fn compare(expected: Digest, actual: Digest) -> Result<(), StoreError> {
    if expected == actual {
        return Ok(());
    }
    Err(StoreError::DigestMismatch { expected: Box::new(expected), actual: Box::new(actual) })
}

impl std::fmt::Debug for Remnant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remnant").field("written", &self.written).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobWriter")
            .field("digest", &self.digest)
            .field("length", &self.pipeline.length())
            .field("present", &self.present().total())
            .finish_non_exhaustive()
    }
}
