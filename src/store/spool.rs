//! Spooling an upload: its digest is known when it ends, or never. A temporary file like that of a blob, hashed while it
//! is written, that can be read for as long as it grows and is published when the digest is known.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use super::disk::Disk;
use super::layout::FILLS;
use super::pipeline::{Begun, Pipeline};
use super::work::Work;
use super::writer::compare;
use super::{Store, StoreError, StoredBlob};
use crate::oci::{Algorithm, Digest, Hasher};

/// What is read at a time to hash the file anew.
const READ: usize = 256 << 10;

/// Content that is being written and has no digest yet. Dropping it without [`Spool::finish`] removes what was written.
pub struct Spool {
    pipeline: Pipeline,
    /// Of the readers since it was last rewound.
    overtaken: Arc<AtomicBool>,
}

/// Reads a spool while it grows, until it is rewound.
#[derive(Debug, Clone)]
pub struct SpoolReader {
    file: Arc<File>,
    /// The spool was rewound: what comes next may be written over what was there.
    overtaken: Arc<AtomicBool>,
}

// === impl Store ===

impl Store {
    /// Begins to write content whose digest is not known, of this length if it is announced. Room is promised in steps
    /// while it comes: the length is only a client's word, for which nothing is evicted.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::NoRoomInTime`] and [`StoreError::TooLarge`]: the content can be passed on
    /// but not kept.
    pub async fn spool(&self, length: Option<u64>) -> Result<Spool, StoreError> {
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Stopped);
        }
        let capacity = self.0.books.capacity();
        if let Some(length) = length.filter(|length| *length > capacity) {
            return Err(StoreError::TooLarge { length, capacity });
        }
        let work = Work::begin(self, None, None).await?;
        let begun = Begun { length, ..Begun::default() };
        let pipeline = Pipeline::start(self.0.clone(), work, Algorithm::Sha256, begun);
        Ok(Spool { pipeline, overtaken: Arc::default() })
    }
}

// === impl Spool ===

impl Spool {
    /// The growing file; what lies before [`Spool::written`] can be read.
    pub fn reader(&self) -> SpoolReader {
        SpoolReader { file: self.pipeline.file(), overtaken: Arc::clone(&self.overtaken) }
    }

    /// How many bytes are in the file; [`Spool::flush`] waits until it is all of them.
    pub fn written(&self) -> u64 {
        self.pipeline.written()
    }

    /// Follows [`Spool::written`]. When the spool is gone the channel is closed, whether it finished or not.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.pipeline.progress()
    }

    /// Adds bytes. Returns when they are accepted, which is at once unless the disk is slower than the caller.
    ///
    /// # Errors
    /// That this chunk or an earlier one could not be written, or is more than was announced. Nothing can be added
    /// after an error, and nothing that was written can be relied on for a replay.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.pipeline.write(chunk).await
    }

    /// Waits until all that was accepted can be read from the file; returns how much that is.
    pub async fn flush(&mut self) -> Result<u64, StoreError> {
        self.pipeline.flush().await
    }

    /// Forgets all but the first `length` bytes. Readers from before fail from here on. Until this returns, or where it
    /// is dropped before, nothing has changed.
    ///
    /// # Errors
    /// That writing or reading failed: nothing that was written can be relied on.
    pub async fn rewind(&mut self, length: u64) -> Result<(), StoreError> {
        let (written, _) = self.pipeline.settle().await?;
        if written <= length {
            return Ok(());
        }
        // Nothing is written meanwhile, and these bytes are never written again.
        let (disk, file) = (self.pipeline.disk(), self.pipeline.file());
        let hash = tokio::task::spawn_blocking(move || hash_file(&disk, &file, Algorithm::Sha256, length));
        let hasher = hash.await.map_err(|_| StoreError::Stopped)?;
        let hasher = hasher.map_err(|e| StoreError::io("read a file in", Path::new(FILLS), e))?;
        // Before the first byte is written anew.
        std::mem::take(&mut self.overtaken).store(true, Ordering::SeqCst);
        self.pipeline.rewind(length, hasher)
    }

    /// The digest of all that was accepted so far, once it is in the file.
    pub async fn digest_so_far(&mut self, algorithm: Algorithm) -> Result<Digest, StoreError> {
        let (written, hasher) = self.pipeline.settle().await?;
        self.digest(algorithm, written, hasher).await
    }

    /// Publishes the content under its digest. When this returns, `strict` durability has it on the disk under its name.
    ///
    /// # Errors
    /// [`StoreError::LengthMismatch`], [`StoreError::DigestMismatch`], or what the file system said; in each case
    /// nothing is left of it.
    pub async fn finish(mut self, digest: &Digest) -> Result<StoredBlob, StoreError> {
        let (written, hasher) = self.pipeline.settle_whole().await?;
        compare(*digest, self.digest(digest.algorithm(), written, hasher).await?)?;
        self.pipeline.publish(*digest).await
    }

    /// After an error: what goes on hashing everything that was accepted, by every algorithm of which that can still be
    /// told. The file is removed, and its room given back.
    pub async fn into_hashers(self: Box<Self>) -> Vec<Hasher> {
        let (disk, file) = (self.pipeline.disk(), self.pipeline.file());
        let hash = move |sha256, written, unwritten: Vec<Bytes>| {
            let others = Algorithm::ALL.into_iter().filter(|algorithm| *algorithm != Algorithm::Sha256);
            let others = others.filter_map(|algorithm| hash_file(&disk, &file, algorithm, written).ok());
            let mut hashers: Vec<Hasher> = others.chain([sha256]).collect();
            for hasher in &mut hashers {
                for chunk in &unwritten {
                    hasher.update(chunk);
                }
            }
            hashers
        };
        self.pipeline.into_hashers(hash).await.unwrap_or_default()
    }

    /// SHA-256 comes from the pipeline; others, which are rare, from reading the file once more.
    async fn digest(&self, algorithm: Algorithm, written: u64, hasher: Hasher) -> Result<Digest, StoreError> {
        if algorithm == Algorithm::Sha256 {
            return Ok(hasher.finish());
        }
        let (disk, file) = (self.pipeline.disk(), self.pipeline.file());
        let hash = move || hash_file(&disk, &file, algorithm, written).map(Hasher::finish);
        let hash = tokio::task::spawn_blocking(hash);
        let digest = hash.await.map_err(|_| StoreError::Stopped)?;
        digest.map_err(|e| StoreError::io("read a file in", Path::new(FILLS), e))
    }
}

// === impl SpoolReader ===

impl SpoolReader {
    /// What `read` reads from the file; an error if the spool was rewound by then, as it may have read anything.
    pub fn read<T>(&self, read: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let bytes = read(&self.file)?;
        // Afterwards: what was written over it was written after this was set.
        if self.overtaken.load(Ordering::SeqCst) {
            return Err(io::Error::other("what was to be read has been taken back"));
        }
        Ok(bytes)
    }
}

impl From<File> for SpoolReader {
    /// Reads a file that is never rewound.
    fn from(file: File) -> Self {
        Self { file: Arc::new(file), overtaken: Arc::default() }
    }
}

fn hash_file(disk: &Disk, file: &File, algorithm: Algorithm, length: u64) -> io::Result<Hasher> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; READ];
    let mut at = 0;
    while at < length {
        let part = usize::try_from(length - at).unwrap_or(READ).min(READ);
        let part = &mut buffer[..part];
        disk.read_exact_at(file, part, at)?;
        hasher.update(part);
        at += part.len() as u64;
    }
    Ok(hasher)
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool")
            .field("length", &self.pipeline.length())
            .field("written", &self.written())
            .finish_non_exhaustive()
    }
}
