//! Removing a blob: index, refs and links, file, in this order, so that nothing names what is not there whatever happens
//! in between. Before that it is found out whether the file can go at all; where it stays in the end, because somebody has
//! come for it or the disk says no, all the others are put back.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use serde_json::value::RawValue;

use crate::oci::Digest;
use crate::store::check::Check;
use crate::store::departed::Departure;
use crate::store::hints::BlobHint;
use crate::store::layout::{self, REFS};
use crate::store::order::{Claim, Short};
use crate::store::record::{Found, Records};
use crate::store::refs::TagRecord;
use crate::store::stamp::Stamp;
use crate::store::{Inner, StoreError};

/// Refs that are removed at a time.
const BATCH: usize = 256;

/// What led to a blob and was removed, to be put back if the blob stays.
#[derive(Debug)]
struct Unref {
    /// [`Inner::forgotten`] before.
    forgotten: u64,
    refs: Vec<Gone>,
}

/// A removed ref.
#[derive(Debug)]
struct Gone {
    path: PathBuf,
    /// What it said; none: it was none that can be read, and only known to the index.
    data: Option<Box<RawValue>>,
    /// When the tag was found to be up to date.
    check: Option<Check>,
}

// === impl Inner ===

impl Inner {
    /// Removes a blob with its refs and links; returns its length. Blocks.
    pub(in crate::store) fn remove(&self, digest: &Digest) -> Result<u64, StoreError> {
        let removed = self.remove_unless(digest, || false);
        self.gone(digest, removed, Departure::Removed).map(Option::unwrap_or_default)
    }

    /// The same, unless it is pinned, or somebody reads or writes it; none: it stays. Blocks.
    pub(in crate::store) fn remove_unused(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let stays = || self.books.is_busy(digest) || self.books.is_pinned(&Short::from(digest));
        self.gone(digest, self.remove_unless(digest, stays), Departure::Collected)
    }

    /// The same of one that was chosen to go, unless somebody uses it; none: it stays. Whoever has been given the blob, and
    /// links or tags it while having it, finds it and what was written so. Blocks.
    pub(super) fn remove_claimed(&self, digest: &Digest, claim: &Claim) -> Result<Option<u64>, StoreError> {
        self.gone(digest, self.remove_unless(digest, || !self.books.may_go(claim)), Departure::Evicted)
    }

    /// Remembers why a blob has gone, if it has.
    fn gone(
        &self,
        digest: &Digest,
        removed: Result<Option<u64>, StoreError>,
        why: Departure,
    ) -> Result<Option<u64>, StoreError> {
        if matches!(removed, Ok(Some(_))) {
            self.note_gone(digest, why);
        }
        removed
    }

    /// What makes it stay is looked at again under each lock, with which others write.
    pub(in crate::store) fn remove_unless(
        &self,
        digest: &Digest,
        stays: impl Fn() -> bool,
    ) -> Result<Option<u64>, StoreError> {
        if stays() {
            return Ok(None);
        }
        let path = layout::blob(digest);
        self.disk.can_unlink(&path).map_err(|e| StoreError::io("remove", &path, e))?;
        let hint = self.hints.blob(digest, self.epoch);
        let mut unref = Unref { forgotten: self.forgotten.load(Ordering::SeqCst), refs: Vec::new() };
        self.hints.remove_blob(digest);
        let refs_are_gone = self.remove_refs(digest, &stays, &mut unref);
        let names = self.names.lock();
        let file = self.disk.look(&path).ok();
        let found = file.as_ref().and_then(|file| file.metadata().ok());
        let len = found.as_ref().map_or(0, Metadata::len);
        // Also if nobody has it any more: what is left of its refs would lead nowhere.
        let gone = match refs_are_gone {
            Ok(true) if !stays() => self.disk.unlink(&path).map(Some).map_err(|e| StoreError::io("remove", &path, e)),
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        };
        if !matches!(gone, Ok(Some(_))) {
            if let Some(found) = &found {
                self.know_again(digest, found, hint);
            }
            drop(names);
            self.put_back(digest, unref);
            return gone.map(|_| None);
        }
        if let Some(found) = found {
            self.unlinked(digest, found.ino(), len);
        }
        self.books.forget(&Short::from(digest));
        drop(names);
        drop(file);
        self.group.directories([layout::blob_dir(digest.algorithm())]);
        Ok(Some(len))
    }

    /// The index has a blob again that stays, as it was, unless somebody else has put it in. `names` must be held.
    fn know_again(&self, digest: &Digest, found: &Metadata, hint: Option<BlobHint>) {
        if self.hints.blob(digest, self.epoch).is_none() {
            let stamp = hint.and_then(|hint| hint.stamp).filter(|stamp| *stamp == Stamp::of(found));
            self.hints.set_blob(digest, found.len(), stamp.map(|stamp| (stamp, self.epoch)));
            let short = Short::from(digest);
            let used = self.books.with_order(|order| order.used(&short));
            self.hints.set_used(used.map(|used| (short, used)));
        }
    }

    /// Removes the refs of a blob; false if it turns out to stay. An error: of one it cannot be said now what it names.
    fn remove_refs(&self, digest: &Digest, stays: &impl Fn() -> bool, unref: &mut Unref) -> Result<bool, StoreError> {
        let mut after = None::<Vec<u8>>;
        loop {
            let part = self.hints.refs(digest, after.as_deref(), BATCH);
            for path in part.found {
                if path.starts_with(REFS) && !self.remove_ref_unless(digest, &path, stays, &mut unref.refs)? {
                    return Ok(false);
                }
                self.hints.set_ref(digest, &path, false);
            }
            match part.next {
                Some(next) => after = Some(next),
                None => return Ok(true),
            }
        }
    }

    /// Removes a link of `digest`, or a tag that still names it, unless the blob stays; false then. What is removed is added
    /// to `gone`.
    fn remove_ref_unless(
        &self,
        digest: &Digest,
        path: &Path,
        stays: impl Fn() -> bool,
        gone: &mut Vec<Gone>,
    ) -> Result<bool, StoreError> {
        let _tags = self.tags.lock();
        if stays() {
            return Ok(false);
        }
        let mut check = None;
        if layout::is_tag(path) {
            // That it cannot be read is an error: it may name something else by now.
            if let Found::Record(record) = Records::look::<TagRecord>(&self.disk, path)?
                && record.digest != *digest
            {
                return Ok(true);
            }
            if let Some((up, repo, tag)) = layout::parse_tag(path) {
                check = self.hints.check(&up, &repo, &tag);
                self.set_check(&up, &repo, &tag, None);
                self.note_tag_gone((up, repo, tag), digest, Departure::Evicted);
            }
        }
        let data = self.records.read::<Box<RawValue>>(&self.disk, path);
        let unlinked = self.disk.unlink(path);
        self.known.forget(path);
        if let Err(error) = unlinked {
            tracing::warn!(path = %path.display(), %error, "a ref of an evicted blob could not be removed");
            return Ok(true);
        }
        gone.push(Gone { path: path.to_owned(), data, check });
        self.remove_empty_above(path);
        Ok(true)
    }

    /// Puts back what was removed of a blob that stays, unless somebody has written or removed it since.
    fn put_back(&self, digest: &Digest, Unref { forgotten, refs }: Unref) {
        let is_forgotten = || self.forgotten.load(Ordering::SeqCst) != forgotten;
        for Gone { path, data, check } in refs {
            let Some(data) = data else { continue };
            let _tags = self.tags.lock();
            if is_forgotten() || self.disk.metadata(&path).is_ok() {
                continue;
            }
            let written = self.records.write(&self.disk, &self.group, &path, &data);
            self.known.forget(&path);
            if let Err(error) = written {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(path = %path.display(), error, "a ref of a blob that stays could not be put back");
                continue;
            }
            if is_forgotten() {
                // Nobody knows whether that was before or after. A ref that is missing costs a question.
                if let Err(error) = self.remove_record(&path) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(path = %path.display(), error, "a ref that was put back could not be removed");
                }
                continue;
            }
            self.know_ref(digest, &path);
            if let Some((up, repo, tag)) = layout::parse_tag(&path) {
                self.books.set_tagged(digest, true);
                if let Some(check) = check.filter(|_| self.hints.check(&up, &repo, &tag).is_none()) {
                    self.set_check(&up, &repo, &tag, Some(&check));
                }
            }
        }
    }

    /// Empty directories above a file that was removed go too, up to the upstream's own. A writer that needs one at the
    /// same moment makes it again.
    pub(in crate::store) fn remove_empty_above(&self, path: &Path) {
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
