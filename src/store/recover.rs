//! After a start: the files are compared with the index while the store already works.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::capacity::seconds;
use super::disk::Disk;
use super::fs::{Entry, Listing};
use super::layout::{self, REFS};
use super::order::{Order, Short};
use super::refs::TagRecord;
use super::{Inner, Store, StoreError};
use crate::oci::{Algorithm, Digest};

/// Entries of the index that are read at a time.
const INDEX_STEP: usize = 2_000;
/// Files that are looked at in one go.
const FILE_STEP: usize = 500;
/// Pause after each go: about 5,000 files a second, so that clients do not notice.
const PAUSE: Duration = Duration::from_millis(100);
/// When a scan that was not complete is made again, and at most after how long.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_AT_MOST: Duration = Duration::from_hours(1);
/// A ref younger than this may be ahead of its blob.
const YOUNG: Duration = Duration::from_hours(1);

/// Files below a directory, in a walk that holds one open directory a level.
pub(super) struct Walk {
    levels: Vec<(PathBuf, Listing)>,
}

// === impl Store ===

impl Store {
    /// Brings the books up to date with the index and the files, now and whenever the index was begun anew.
    pub(super) async fn recover(&self, stop: &CancellationToken) {
        let mut pause = AGAIN;
        loop {
            match stop.run_until_cancelled(self.recover_once()).await {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the scan of the store is not complete");
                    if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                        return;
                    }
                    pause = AGAIN_AT_MOST.min(2 * pause);
                    continue;
                }
                None => return,
            }
            pause = AGAIN;
            if stop.run_until_cancelled(self.0.hints.renewed()).await.is_none() {
                return;
            }
        }
    }

    /// One whole scan. Cancelling it leaves the books as far as they are.
    pub(super) async fn recover_once(&self) -> Result<(), StoreError> {
        let renewals = self.0.hints.renewals();
        self.load_index().await?;
        // The capacity may be lower than it was.
        let trim = |inner: &Arc<Inner>| {
            inner.trim(true);
            Ok(())
        };
        self.blocking(trim).await?;
        self.scan_blobs().await?;
        self.0.scanned.store(renewals, Ordering::Release);
        self.scan_refs().await
    }

    /// What the index knows comes into the books.
    pub(super) async fn load_index(&self) -> Result<(), StoreError> {
        // While it opens, however long that takes, the books have what was published since the start, and that may go.
        let wait = |inner: &Arc<Inner>| {
            inner.hints.wait_open();
            Ok(())
        };
        self.blocking(wait).await?;
        // What is there first is not what should go first: until all of it is there nothing is evicted.
        self.0.evictor.set_loading(true);
        let loaded = self.read_index().await;
        self.0.evictor.set_loading(false);
        loaded
    }

    async fn read_index(&self) -> Result<(), StoreError> {
        let mut tagged = self.load_tagged().await?;
        let mut after = None::<Vec<u8>>;
        loop {
            let from = after.take();
            let step = move |inner: &Arc<Inner>| {
                let part = inner.hints.blobs(from.as_deref(), inner.epoch, INDEX_STEP);
                for (digest, hint, used) in part.found {
                    let short = Short::from(&digest);
                    match used {
                        Some(used) => inner.books.found(short, hint.len, used),
                        // Published in the last seconds before a kill, or a lost age: the scan sees how old the file is.
                        None => inner.books.found_ageless(short, hint.len),
                    }
                    if tagged.contains(&short) {
                        inner.books.set_tagged(&digest, true);
                    }
                }
                if part.next.is_none() {
                    inner.books.with_order(Order::place);
                }
                Ok((part.next, tagged))
            };
            (after, tagged) = self.blocking(step).await?;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// The manifests that tags name, as far as the index knows.
    async fn load_tagged(&self) -> Result<HashSet<Short>, StoreError> {
        let (mut tagged, mut after) = (HashSet::new(), None::<Vec<u8>>);
        loop {
            let from = after.take();
            let step = move |inner: &Arc<Inner>| {
                let part = inner.hints.all_refs(from.as_deref(), INDEX_STEP);
                let tags = part.found.iter().filter(|(_, path)| layout::is_tag(path));
                tagged.extend(tags.map(|(digest, _)| Short::from(digest)));
                Ok((tagged, part.next))
            };
            (tagged, after) = self.blocking(step).await?;
            if after.is_none() {
                return Ok(tagged);
            }
        }
    }

    async fn scan_blobs(&self) -> Result<(), StoreError> {
        self.0.books.with_order(Order::clear_seen);
        let mut failed = None;
        for algorithm in Algorithm::ALL {
            let directory = layout::blob_dir(algorithm);
            let open = move |inner: &Arc<Inner>| {
                inner.disk.list(&directory).map_err(|e| StoreError::io("list", &directory, e))
            };
            let mut listing = self.blocking(open).await?;
            loop {
                let step = move |inner: &Arc<Inner>| {
                    let (mut seen, mut failed) = (0, None);
                    for entry in listing.by_ref().take(FILE_STEP) {
                        failed = entry.and_then(|entry| inner.scan_blob(algorithm, &entry)).err().or(failed);
                        seen += 1;
                    }
                    Ok((listing, seen, failed))
                };
                let (seen, error);
                (listing, seen, error) = self.blocking(step).await?;
                failed = failed.or(error);
                if seen < FILE_STEP {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        if let Some(error) = failed {
            // Whatever was not seen may be there.
            self.0.books.with_order(Order::place);
            return Err(StoreError::io("scan", Path::new("blobs"), error));
        }
        let finish = |inner: &Arc<Inner>| {
            for short in inner.books.with_order(|order| order.unseen()) {
                inner.forget_if_gone(&short);
            }
            inner.books.with_order(Order::place);
            Ok(())
        };
        self.blocking(finish).await
    }

    async fn scan_refs(&self) -> Result<(), StoreError> {
        let mut walk = self.blocking(|inner| Walk::new(&inner.disk, REFS.into())).await?;
        // What can be listed is looked at before the first failure is told.
        let mut failed = None;
        loop {
            let step = move |inner: &Arc<Inner>| {
                for _ in 0..FILE_STEP {
                    match walk.next(&inner.disk) {
                        Some(Ok(path)) => inner.scan_ref(&path),
                        Some(Err(error)) => drop(failed.get_or_insert(error)),
                        None => {
                            inner.books.with_order(Order::place);
                            return Ok((None, failed));
                        }
                    }
                }
                Ok((Some(walk), failed))
            };
            let next;
            (next, failed) = self.blocking(step).await?;
            match next {
                Some(next) => walk = next,
                None => return failed.map_or(Ok(()), Err),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

// === impl Inner ===

impl Inner {
    /// Whether a blob that the index does not know is not there.
    pub(super) fn index_is_whole(&self) -> bool {
        self.scanned.load(Ordering::Acquire) == self.hints.renewals()
    }

    /// Puts what stands under this name into the books, if it is a blob.
    pub(super) fn scan_blob(&self, algorithm: Algorithm, entry: &Entry) -> io::Result<()> {
        let Ok(digest) = Digest::from_parts(algorithm, &entry.name) else { return Ok(()) };
        match self.know_blob(&digest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    /// Puts a blob whose file is there into the books, and into the index if that does not know it.
    pub(super) fn know_blob(&self, digest: &Digest) -> io::Result<()> {
        // A removal between the look and the books would be undone in these.
        let _names = self.names.lock();
        let metadata = self.disk.metadata(&layout::blob(digest))?;
        if !metadata.is_file() {
            return Ok(());
        }
        let used = metadata.modified().map_or(0, seconds);
        let short = Short::from(digest);
        self.books.found(short, metadata.len(), used);
        if self.hints.used(&short).is_none() {
            // Else the next start would know of no age.
            self.hints.set_used([(short, used)]);
        }
        if self.hints.blob(digest, self.epoch).is_none_or(|hint| hint.len != metadata.len()) {
            self.hints.set_blob(digest, metadata.len(), None);
        }
        Ok(())
    }

    /// A blob that the scan did not see is gone, unless it was published behind the scan's back.
    pub(super) fn forget_if_gone(&self, short: &Short) {
        // Held by who publishes one: it is in the books when this is let go of.
        let _names = self.names.lock();
        match self.hints.whole(short) {
            None => {
                if self.books.with_order(|order| order.is_unseen(short)) {
                    self.books.forget(short);
                }
            }
            Some(digest) => {
                let there = self.disk.metadata(&layout::blob(&digest));
                if there.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                    self.hints.remove_blob(&digest);
                    self.books.forget(short);
                }
            }
        }
    }

    /// Lets the index know of a tag or link, and removes it if its blob went while there was no index.
    fn scan_ref(&self, path: &Path) {
        let tagged = layout::parse_tag(path).is_some();
        let digest = if tagged {
            self.records.read::<TagRecord>(&self.disk, path).map(|record| record.digest)
        } else {
            layout::parse_link(path)
        };
        let Some(digest) = digest else { return };
        let blob = self.disk.metadata(&layout::blob(&digest));
        if blob.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) && self.is_old(path) {
            match self.remove_broken_ref(&digest, path) {
                // Its blob has come meanwhile.
                Ok(false) if self.named_by(path).is_ok_and(|named| named == Some(digest)) => {}
                Ok(_) => return,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(path = %path.display(), error, "a ref without its blob could not be removed");
                    return;
                }
            }
        }
        self.know_ref(&digest, path);
        if tagged {
            self.books.set_tagged(&digest, true);
        }
    }

    /// Removes a link of `digest`, or a tag that still names it, unless the blob is there. False if it stays.
    ///
    /// # Errors
    /// It cannot be looked at, or not be removed.
    pub(super) fn remove_broken_ref(&self, digest: &Digest, path: &Path) -> Result<bool, StoreError> {
        // Under the lock with which refs are written: who finds the same record there leaves it, and relies on it.
        let _tags = self.tags.lock();
        if self.exists(&layout::blob(digest))? {
            return Ok(false);
        }
        if let Some((up, repo, tag)) = layout::parse_tag(path) {
            // It may have moved since.
            if self.named_by(path)?.is_some_and(|named| named != *digest) {
                return Ok(false);
            }
            self.set_check(&up, &repo, &tag, None);
        }
        self.remove_record(path)?;
        self.remove_empty_above(path);
        self.hints.set_ref(digest, path, false);
        Ok(true)
    }

    fn is_old(&self, path: &Path) -> bool {
        let modified = self.disk.metadata(path).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|at| self.timeline.settled().duration_since(at).is_ok_and(|age| age > YOUNG))
    }
}

// === impl Walk ===

impl Walk {
    pub(super) fn new(disk: &Disk, path: PathBuf) -> Result<Self, StoreError> {
        let listing = disk.list(&path).map_err(|e| StoreError::io("list", &path, e))?;
        Ok(Self { levels: vec![(path, listing)] })
    }

    /// The next file, or a directory that cannot be listed (to its end): what is in it is not known, and nobody may take
    /// it for empty. The walk goes on behind it.
    pub(super) fn next(&mut self, disk: &Disk) -> Option<Result<PathBuf, StoreError>> {
        loop {
            let (path, listing) = self.levels.last_mut()?;
            match listing.next() {
                Some(Ok(entry)) if entry.is_dir => {
                    // Trees that were set aside belong to nobody.
                    if entry.name.contains("~aside-") {
                        continue;
                    }
                    let below = path.join(&entry.name);
                    match disk.list(&below) {
                        Ok(listing) => self.levels.push((below, listing)),
                        // Emptied and removed in between.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Some(Err(StoreError::io("list", &below, error))),
                    }
                }
                Some(Ok(entry)) => return Some(Ok(path.join(entry.name))),
                Some(Err(error)) => {
                    let error = StoreError::io("list", path, error);
                    self.levels.pop();
                    return Some(Err(error));
                }
                None => drop(self.levels.pop()),
            }
        }
    }
}
