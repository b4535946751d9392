//! Making room: bytes are promised before a fill starts, and the least recently used blobs go until they fit.
//!
//! A blob goes in the order index, refs and links, file: whatever happens in between, nothing names what is not there.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::capacity::{Reservation, seconds};
use super::error::is_full;
use super::fs::Space;
use super::layout::{self, REFS};
use super::order::Short;
use super::refs::TagRecord;
use super::{Inner, StoreError};
use crate::oci::{Algorithm, Digest};

/// How often room is made for one fill before it is given up: others may take it in between.
const ATTEMPTS: u32 = 3;
/// What is freed at least, where there is as much, when the file system is full although the books saw room.
const STEP: u64 = 1 << 20;
/// Blobs that are too old and are removed at a time: a clock that jumps must not empty the store before anybody sees it.
const EXPIRE_AT_ONCE: usize = 1_000;
/// Refs that are removed at a time.
const BATCH: usize = 256;

/// Says once why content is not kept, not at each request, and once that it is again.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    /// Bytes of the smallest content for which there was no room, since there is none.
    full: Mutex<Option<u64>>,
    too_large: AtomicBool,
}

// === impl Shortage ===

impl Shortage {
    /// There is no room for so many bytes. Whether that is news.
    fn begins(&self, bytes: u64) -> bool {
        let mut full = self.full.lock();
        let is_news = full.is_none();
        *full = Some(full.map_or(bytes, |least| least.min(bytes)));
        is_news
    }

    /// Content of so many bytes is kept.
    pub(super) fn kept(&self, bytes: u64) {
        let mut full = self.full.lock();
        // What is smaller says nothing: it would be news at every other request.
        if full.is_some_and(|least| bytes >= least) {
            *full = None;
            tracing::info!("the store has room again");
        }
    }

    fn too_large(&self, bytes: u64, capacity: u64) {
        if !self.too_large.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                bytes,
                capacity,
                "content that is larger than the whole store is passed on without being kept, this and any further; \
                 raise store.capacity to keep it"
            );
        }
    }
}

// === impl Inner ===

impl Inner {
    /// Promises `bytes` to a fill of `digest` (none: it is not known yet), evicting what must go for it. Blocks.
    pub(super) fn reserve(&self, digest: Option<&Digest>, bytes: u64) -> Result<Reservation, StoreError> {
        let capacity = self.books.capacity();
        if bytes > capacity {
            self.shortage.too_large(bytes, capacity);
            return Err(StoreError::TooLarge { length: bytes, capacity });
        }
        for _ in 0..ATTEMPTS {
            match self.books.reserve(digest, bytes, self.space()?) {
                Ok(reservation) => return Ok(reservation),
                Err(lack) if self.evict(lack.missing) => {}
                Err(_) => break,
            }
        }
        self.lacks_room(bytes);
        Err(StoreError::NoSpace)
    }

    /// Promises `more` bytes to a running fill. Blocks.
    pub(super) fn reserve_more(&self, reservation: &mut Reservation, more: u64) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            match reservation.grow(more, self.space()?) {
                Ok(()) => return Ok(()),
                Err(lack) if self.evict(lack.missing) => {}
                Err(_) => break,
            }
        }
        self.lacks_room(reservation.bytes() + more);
        Err(StoreError::NoSpace)
    }

    /// Nothing may go, and there is no room for so many bytes.
    fn lacks_room(&self, bytes: u64) {
        if self.shortage.begins(bytes) {
            let (capacity, keep_free) = (self.books.capacity(), self.books.floor());
            let free = self.disk.space().map(|space| space.free).unwrap_or_default();
            tracing::warn!(
                bytes,
                capacity,
                free,
                keep_free,
                "the store has no room and nothing that may go: content is passed on without being kept until there is; \
                 free space or inodes on the file system, raise store.capacity, or remove pins"
            );
        }
    }

    fn space(&self) -> Result<Space, StoreError> {
        self.disk.space().map_err(|e| StoreError::io("measure the file system of", self.disk.path(), e))
    }

    /// Runs a call that takes up to `bytes` of disk space; while there is none, older blobs make room. Blocks.
    pub(super) fn with_room<T>(&self, bytes: u64, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        for _ in 0..ATTEMPTS {
            match call() {
                // The books saw room, so the file system needs more than the content: blocks, inodes, its own records.
                Err(error) if is_full(&error) => {
                    if !self.evict(bytes.max(STEP)) && !self.evict(bytes) {
                        break;
                    }
                }
                other => return other,
            }
        }
        call().inspect_err(|error| {
            if is_full(error) {
                self.lacks_room(bytes);
            }
        })
    }

    /// Writes small files; if the disk is full, a blob makes room once. The work must hold no lock of this store. Blocks.
    pub(super) fn with_room_for_record<T>(&self, work: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
        match work() {
            Err(StoreError::NoSpace) if self.evict(STEP) || self.evict(1) => work(),
            Err(StoreError::NoSpace) => {
                self.lacks_room(1);
                Err(StoreError::NoSpace)
            }
            other => other,
        }
    }

    /// Removes least recently used blobs until `missing` bytes are freed. If all that may go would not be enough (the
    /// disk is full of other things), nothing is removed. Returns whether anything changed. Blocks.
    pub(super) fn evict(&self, missing: u64) -> bool {
        if !self.pins.are_settled() {
            return false;
        }
        let (freed, removed, changed) = self.remove_victims(&self.books.victims(missing));
        if freed > 0 {
            self.metrics.evicted_bytes.inc_by(freed);
            tracing::info!(bytes = freed, blobs = removed, "evicted the least recently used blobs");
        }
        changed
    }

    /// Removes what nobody has used for longer than the age limit, a part at a time. Blocks.
    pub(super) fn expire(&self) {
        let Some(max_age) = self.max_age.filter(|_| self.pins.are_settled()) else { return };
        let since =
            seconds(self.timeline.settled()).saturating_sub(u32::try_from(max_age.as_secs()).unwrap_or(u32::MAX));
        let (freed, removed, _) = self.remove_victims(&self.books.unused_since(since, EXPIRE_AT_ONCE));
        if removed > 0 {
            self.metrics.evicted_bytes.inc_by(freed);
            tracing::info!(bytes = freed, blobs = removed, ?max_age, "removed blobs that nobody has used for long");
        }
    }

    /// Removes these blobs. Returns the bytes that were freed, how many blobs went, and whether anything changed.
    fn remove_victims(&self, victims: &[Short]) -> (u64, usize, bool) {
        let mut whole: Vec<Option<Digest>> = victims.iter().map(|short| self.hints.whole(short)).collect();
        let all_seen = whole.iter().all(Option::is_some) || self.find_in_directories(victims, &mut whole);
        let (mut freed, mut removed, mut changed) = (0, 0, false);
        for (short, digest) in victims.iter().zip(whole) {
            let Some(digest) = digest else {
                // Neither index nor directory has it: it went by other ways. Where a directory cannot be read it may be
                // there, and stays in the books.
                if all_seen {
                    self.books.forget(short);
                    changed = true;
                }
                continue;
            };
            match self.remove_unused(&digest) {
                // Somebody has come for it since.
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    freed += bytes;
                    removed += 1;
                    changed = true;
                }
                Err(error) => {
                    tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a blob could not be evicted");
                }
            }
        }
        (freed, removed, changed)
    }

    /// Without an index the whole digests are only in the names of the files. False if a directory could not be read to
    /// its end: what was not found may be there.
    fn find_in_directories(&self, victims: &[Short], whole: &mut [Option<Digest>]) -> bool {
        let mut wanted: HashMap<Short, &mut Option<Digest>> =
            victims.iter().copied().zip(whole.iter_mut()).filter(|(_, found)| found.is_none()).collect();
        let mut all_seen = true;
        for algorithm in Algorithm::ALL {
            let listing = match self.disk.list(&layout::blob_dir(algorithm)) {
                Ok(listing) => listing,
                Err(error) => {
                    all_seen &= error.kind() == io::ErrorKind::NotFound;
                    continue;
                }
            };
            for entry in listing {
                let Ok(entry) = entry else {
                    all_seen = false;
                    break;
                };
                let Ok(digest) = Digest::from_parts(algorithm, &entry.name) else { continue };
                if let Some(found) = wanted.remove(&Short::from(&digest)) {
                    *found = Some(digest);
                }
                if wanted.is_empty() {
                    return true;
                }
            }
        }
        all_seen
    }

    /// Removes a blob with its refs and links; returns its length. Blocks.
    pub(super) fn remove(&self, digest: &Digest) -> Result<u64, StoreError> {
        self.remove_unless(digest, || false).map(Option::unwrap_or_default)
    }

    /// The same, unless somebody reads or writes it; none: it stays. Whoever has been given the blob, and links or tags it
    /// while having it, finds it and what was written so. Blocks.
    pub(super) fn remove_unused(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.remove_unless(digest, || self.books.is_busy(digest))
    }

    /// What makes it stay is looked at again under each lock, with which others write.
    fn remove_unless(&self, digest: &Digest, stays: impl Fn() -> bool) -> Result<Option<u64>, StoreError> {
        if stays() {
            return Ok(None);
        }
        let path = layout::blob(digest);
        self.hints.remove_blob(digest);
        let refs_are_gone = self.remove_refs(digest, &stays);
        let names = self.names.lock();
        let file = self.disk.look(&path).ok();
        let found = file.as_ref().and_then(|file| file.metadata().ok());
        let len = found.as_ref().map_or(0, std::fs::Metadata::len);
        // Also if nobody has it any more: what is left of its refs would lead nowhere.
        if !refs_are_gone || stays() {
            if found.is_some() && self.hints.blob(digest, self.epoch).is_none() {
                self.hints.set_blob(digest, len, None);
            }
            return Ok(None);
        }
        self.disk.unlink(&path).map_err(|e| StoreError::io("remove", &path, e))?;
        if let Some(found) = found {
            self.books.unlinked(digest, found.ino(), len);
        }
        self.books.forget(&Short::from(digest));
        drop(names);
        drop(file);
        self.group.directories([layout::blob_dir(digest.algorithm())]);
        Ok(Some(len))
    }

    /// Removes the refs of a blob; false if it turns out to stay.
    fn remove_refs(&self, digest: &Digest, stays: &impl Fn() -> bool) -> bool {
        let mut after = None::<Vec<u8>>;
        loop {
            let part = self.hints.refs(digest, after.as_deref(), BATCH);
            for path in part.found {
                if path.starts_with(REFS) && !self.remove_ref_unless(digest, &path, stays) {
                    return false;
                }
                self.hints.set_ref(digest, &path, false);
            }
            match part.next {
                Some(next) => after = Some(next),
                None => return true,
            }
        }
    }

    /// Removes a link of `digest`, or a tag that still names it.
    pub(super) fn remove_ref(&self, digest: &Digest, path: &Path) {
        self.remove_ref_unless(digest, path, || false);
    }

    /// The same, unless the blob stays; false then.
    fn remove_ref_unless(&self, digest: &Digest, path: &Path, stays: impl Fn() -> bool) -> bool {
        let _tags = self.tags.lock();
        if stays() {
            return false;
        }
        if layout::is_tag(path) {
            match self.records.read::<TagRecord>(&self.disk, path) {
                Some(record) if record.digest != *digest => return true,
                _ => {}
            }
            if let Some((up, repo, tag)) = layout::parse_tag(path) {
                self.hints.set_check(&up, &repo, &tag, None);
            }
        }
        if let Err(error) = self.disk.unlink(path) {
            tracing::warn!(path = %path.display(), %error, "a ref of an evicted blob could not be removed");
            return true;
        }
        self.remove_empty_above(path);
        true
    }

    /// Empty directories above a file that was removed go too, up to the upstream's own. A writer that needs one at the
    /// same moment makes it again.
    pub(super) fn remove_empty_above(&self, path: &Path) {
        let mut above = path.parent();
        // The last one that stays has lost an entry.
        while let Some(directory) = above {
            if directory.components().count() <= 2 || !self.disk.remove_dir(directory) {
                return self.group.directories([directory.to_owned()]);
            }
            above = directory.parent();
        }
    }
}
