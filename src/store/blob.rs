//! Reading blobs: the file is always opened by its computed path, and says by its stamp whether it must be verified.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use super::capacity::Hold;
use super::departed::Departure;
use super::layout::{self, QUARANTINE};
use super::open_files::OpenFile;
use super::order::Short;
use super::stamp::Stamp;
use super::{Inner, Store, StoreError};
use crate::oci::Digest;
use crate::sys::mapping::Mapping;

/// How many files `quarantine/` keeps for somebody to look at.
const QUARANTINED: usize = 16;
/// Which part of the capacity they may take together.
const QUARANTINE_SHARE: u64 = 20;

/// What became of a stored blob that is not what its digest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quarantined {
    /// It is in `quarantine/`, for somebody to look at.
    Kept,
    /// It is removed: it could not be kept.
    Removed,
    /// Another file has taken its place meanwhile.
    Gone,
}

/// The mapping of an open file, for all who send it; made when it is wanted first. None: there was no address space.
pub(super) type SharedMap = Arc<OnceLock<Option<Arc<Mapping>>>>;

/// Whether a file's content is known to match its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Nothing about the file has changed since it was verified.
    Verified,
    /// It must be hashed while it is read, with the tail held back until the digest matches.
    Unverified,
    /// The same, and the last read of it has failed: better it is fetched anew.
    Unreadable,
}

/// An open blob. While it is held the bytes stay in the store's account, also when the file is removed.
#[derive(Debug, Clone)]
pub struct StoredBlob {
    /// The open file; read it with `read_at`.
    pub file: Arc<File>,
    /// Its length.
    pub len: u64,
    /// Whether it must be verified.
    pub trust: Trust,
    /// What the file looked like when it was opened.
    pub(super) seen: Stamp,
    digest: Digest,
    map: SharedMap,
    /// Weak: a reader that outlives the store does not keep the root locked.
    store: Weak<Inner>,
    _hold: Arc<Hold>,
}

// === impl Trust ===

impl Trust {
    /// The word in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Unverified => "unverified",
            Self::Unreadable => "unreadable",
        }
    }
}

// === impl StoredBlob ===

impl StoredBlob {
    /// The whole file, mapped; none where address space is used up.
    pub(crate) fn mapping(&self) -> Option<Arc<Mapping>> {
        self.map.get_or_init(|| Mapping::new(self.file.clone(), 0..self.len).ok().map(Arc::new)).clone()
    }

    /// At most so many bytes from `at` on; none: it ends there.
    pub async fn read_at(&self, at: u64, most: usize) -> io::Result<Bytes> {
        let (file, left) = (self.file.clone(), usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX));
        let read = move || {
            let mut bytes = BytesMut::zeroed(most.min(left));
            let count = file.read_at(&mut bytes, at)?;
            bytes.truncate(count);
            Ok(bytes.freeze())
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// The file could not be read, although nothing about it has changed: it is verified when it is opened next. Does
    /// not block.
    pub fn distrust(&self) {
        if let Some(inner) = self.store.upgrade() {
            tracing::error!(digest = %self.digest, "a stored blob could not be read; it is verified when it is asked next");
            inner.hints.void_blob(&self.digest, self.len);
            inner.open.forget(&self.digest);
        }
    }
}

// === impl Store ===

impl Store {
    /// The blob, if its file is there; it counts as used now.
    ///
    /// # Errors
    /// What the file system said, except that there is no such file. What stands there and is no file goes to
    /// `quarantine/`, so that the next one finds nothing.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<StoredBlob>, StoreError> {
        if let Some(blob) = self.0.open_again(digest) {
            return Ok(Some(blob));
        }
        let digest = *digest;
        self.blocking(move |inner| inner.open_blob(&digest, true)).await
    }

    /// The same for upkeep, and for who carries it elsewhere: it does not count as a use.
    ///
    /// # Errors
    /// What the file system said, except that there is no such file. What is no file stays where it is.
    pub async fn peek(&self, digest: &Digest) -> Result<Option<StoredBlob>, StoreError> {
        let digest = *digest;
        self.blocking(move |inner| inner.open_blob(&digest, false)).await
    }

    /// The blob counts as used now, for a caller that has its content in memory. False if the store does not have it
    /// any more, as far as it knows: it was evicted, removed or quarantined. Does not block.
    pub fn touch(&self, digest: &Digest) -> bool {
        self.0.use_image_of(digest);
        self.0.books.touch(digest)
    }

    /// The whole content was read through `blob` and matched: it need not be verified again. Does nothing if the file
    /// has changed in between.
    pub async fn mark_verified(&self, digest: &Digest, blob: &StoredBlob) -> Result<(), StoreError> {
        let (digest, blob) = (*digest, blob.clone());
        let work = move |inner: &Arc<Inner>| {
            let path = layout::blob(&digest);
            let _names = inner.names.lock();
            if inner.disk.metadata(&path).is_ok_and(|now| Stamp::of(&now) == blob.seen) {
                inner.hints.set_blob(&digest, blob.len, Some((blob.seen, inner.epoch)));
                inner.unreadable.forget(&digest);
            }
            Ok(())
        };
        self.blocking(work).await
    }

    /// The content read through `blob` is not what the digest names: the file goes to `quarantine/`. Does nothing if
    /// another file has taken its place.
    pub async fn quarantine(&self, digest: &Digest, blob: &StoredBlob) -> Result<Quarantined, StoreError> {
        let (digest, inode) = (*digest, blob.seen.inode);
        self.blocking(move |inner| inner.quarantine_blob(&digest, inode)).await
    }
}

// === impl Inner ===

impl Inner {
    /// The blob by a file that was opened a moment ago. Does not block.
    fn open_again(self: &Arc<Self>, digest: &Digest) -> Option<StoredBlob> {
        let open = self.open.get(digest)?;
        let blob = self.stored_blob(digest, open.file.clone(), open.seen, Trust::Verified);
        let blob = StoredBlob { map: open.map.clone(), ..blob };
        // One that is not in the books may have just been removed: whether it has is found out below. So is what has become of
        // a file that has changed, which is closed there: that may take time, and this is an async worker.
        if !self.books.used(digest, open.seen.len) || !open.is_as_seen() {
            return None;
        }
        self.use_image_of(digest);
        Some(blob)
    }

    pub(super) fn open_blob(self: &Arc<Self>, digest: &Digest, is_use: bool) -> Result<Option<StoredBlob>, StoreError> {
        let path = layout::blob(digest);
        self.open.forget_changed(digest);
        let before = self.open.before(digest);
        let opened = self.disk.read(&path).or_else(|error| {
            if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) {
                self.open.clear();
                return self.disk.read(&path);
            }
            Err(error)
        });
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget_missing(digest);
                return Ok(None);
            }
            Err(error) => {
                if is_use {
                    // It would be in the way of the right one for ever.
                    self.quarantine_no_file(digest)?;
                }
                return Err(StoreError::io("open", &path, error));
            }
        };
        let metadata = file.metadata().map_err(|e| StoreError::io("look at", &path, e))?;
        let seen = Stamp::of(&metadata);
        let known = self.hints.blob(digest, self.epoch).and_then(|hint| hint.stamp);
        let trust = match known {
            Some(known) if known == seen => Trust::Verified,
            _ if self.unreadable.has(digest, seen) => Trust::Unreadable,
            _ => Trust::Unverified,
        };
        let blob = self.stored_blob(digest, Arc::new(file), seen, trust);
        if is_use {
            if !self.books.used(digest, seen.len) {
                // Who removes it holds this until it is off the books: else it would be put back there.
                let _names = self.names.lock();
                if has_name(&blob.file) {
                    self.books.used_first(digest, seen.len);
                }
            }
            self.use_image_of(digest);
            if trust == Trust::Verified {
                self.open.keep(before, digest, OpenFile { file: blob.file.clone(), seen, map: blob.map.clone() });
            }
        }
        // Looked at after it was held, so that a removal at the same moment is seen here or sees that.
        if !has_name(&blob.file) {
            self.unlinked(digest, seen.inode, seen.len);
            self.forget_missing(digest);
        }
        Ok(Some(blob))
    }

    /// Takes a blob that has no file off the books, unless one is published at this moment.
    fn forget_missing(&self, digest: &Digest) {
        let short = Short::from(digest);
        if self.books.knows(&short) {
            let _names = self.names.lock();
            let there = self.disk.metadata(&layout::blob(digest));
            if there.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                self.books.forget(&short);
            }
        }
    }

    /// A file of a blob lost its name (removed, replaced or put into quarantine).
    pub(super) fn unlinked(&self, digest: &Digest, inode: u64, len: u64) {
        self.open.forget(digest);
        self.books.unlinked(digest, inode, len);
    }

    /// A blob of this store around an open file.
    pub(super) fn stored_blob(
        self: &Arc<Self>,
        digest: &Digest,
        file: Arc<File>,
        seen: Stamp,
        trust: Trust,
    ) -> StoredBlob {
        let hold = Arc::new(self.books.hold(digest, seen.inode));
        let (len, digest, store) = (seen.len, *digest, Arc::downgrade(self));
        StoredBlob { file, len, trust, seen, digest, map: SharedMap::default(), store, _hold: hold }
    }

    /// The file of this inode under the blob's name goes to quarantine. Blocks.
    pub(super) fn quarantine_blob(&self, digest: &Digest, inode: u64) -> Result<Quarantined, StoreError> {
        let names = self.names.lock();
        let moved = self.set_aside(digest, |found| found.ino() == inode)?;
        drop(names);
        Ok(moved.map_or(Quarantined::Gone, |to| self.quarantined(digest, &to)))
    }

    /// The same for what is no regular file: a directory, or a link. None if there is no such thing.
    pub(super) fn quarantine_no_file(&self, digest: &Digest) -> Result<Option<Quarantined>, StoreError> {
        let names = self.names.lock();
        let moved = self.set_aside(digest, |found| !found.is_file())?;
        drop(names);
        Ok(moved.map(|to| self.quarantined(digest, &to)))
    }

    /// Moves what stands under a blob's name out of the way, if `is_it`; returns where it is now. What cannot be moved is
    /// removed: it must not be found again, or the blob would never be fetched anew. `names` must be held.
    pub(super) fn set_aside(
        &self,
        digest: &Digest,
        is_it: impl Fn(&Metadata) -> bool,
    ) -> Result<Option<PathBuf>, StoreError> {
        let path = layout::blob(digest);
        let found = match self.disk.metadata(&path) {
            Ok(found) if is_it(&found) => found,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // It is there, and as wrong as before.
            Err(error) => return Err(StoreError::io("look at", &path, error)),
        };
        let to =
            Path::new(QUARANTINE).join(format!("{}-{}-{}", digest.algorithm().as_str(), digest.hex(), found.ino()));
        self.hints.remove_blob(digest);
        // Whether it can be moved or not: nobody takes it for verified any more.
        self.open.forget(digest);
        let moved = self.disk.rename(&path, &to).or_else(|_| {
            self.disk.make_dirs(Path::new(QUARANTINE))?;
            self.disk.rename(&path, &to)
        });
        if let Err(error) = moved {
            tracing::warn!(%digest, %error, "a bad blob could not be quarantined and is removed");
            // Of directories only an empty one: nobody knows what is in another.
            if !(found.is_dir() && self.disk.remove_dir(&path)) {
                self.disk.unlink(&path).map_err(|e| StoreError::io("remove", &path, e))?;
            }
        }
        if found.is_file() {
            self.unlinked(digest, found.ino(), found.len());
        }
        self.books.forget(&Short::from(digest));
        Ok(Some(to))
    }

    /// Counts and tells what was set aside, and makes room for it among the evidence.
    pub(super) fn quarantined(&self, digest: &Digest, to: &Path) -> Quarantined {
        self.metrics.corrupt_blobs.inc();
        self.note_gone(digest, Departure::Quarantined);
        self.group.directories([layout::blob_dir(digest.algorithm()), QUARANTINE.into()]);
        self.bound_quarantine();
        if self.disk.metadata(to).is_ok() {
            tracing::warn!(%digest, path = %to.display(), "a stored blob does not match its digest and is quarantined");
            Quarantined::Kept
        } else {
            tracing::warn!(%digest, "a stored blob does not match its digest and is removed");
            Quarantined::Removed
        }
    }

    /// Evidence is kept, but rot on a whole disk must not fill it: the newest stays in any case, and beside it what fits
    /// into a share of the capacity, newer before older.
    fn bound_quarantine(&self) {
        let Ok(listing) = self.disk.list(Path::new(QUARANTINE)) else { return };
        let mut files: Vec<_> = listing
            .flatten()
            .filter_map(|entry| {
                let path = Path::new(QUARANTINE).join(entry.name);
                let metadata = self.disk.metadata(&path).ok()?;
                Some(((metadata.ctime(), metadata.ctime_nsec()), metadata.len(), entry.is_dir, path))
            })
            .collect();
        files.sort_by_key(|(changed, ..)| std::cmp::Reverse(*changed));
        let capacity = self.books.capacity();
        let (mut kept, mut bytes) = (0, 0_u64);
        for (_, len, is_dir, path) in &files {
            let limit = if kept == 0 { capacity } else { capacity / QUARANTINE_SHARE };
            if kept < QUARANTINED && bytes.saturating_add(*len) <= limit {
                kept += 1;
                bytes += len;
            } else if *is_dir {
                self.remove_tree(path);
            } else if let Err(error) = self.disk.unlink(path) {
                tracing::warn!(path = %path.display(), %error, "a quarantined file could not be removed");
            }
        }
    }
}

/// Whether the file has a name; also if that cannot be told.
fn has_name(file: &File) -> bool {
    file.metadata().map_or(true, |now| now.nlink() > 0)
}
