//! Removing a blob: index, refs and links, file, in this order, so that nothing names what is not there whatever happens
//! in between.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::oci::Digest;
use crate::store::layout::{self, REFS};
use crate::store::order::{Claim, Short};
use crate::store::refs::TagRecord;
use crate::store::{Inner, StoreError};

/// Refs that are removed at a time.
const BATCH: usize = 256;

// === impl Inner ===

impl Inner {
    /// Removes a blob with its refs and links; returns its length. Blocks.
    pub(in crate::store) fn remove(&self, digest: &Digest) -> Result<u64, StoreError> {
        self.remove_unless(digest, || false).map(Option::unwrap_or_default)
    }

    /// The same, unless it is pinned, or somebody reads or writes it; none: it stays. Blocks.
    pub(in crate::store) fn remove_unused(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.remove_unless(digest, || self.books.is_busy(digest) || self.books.is_pinned(&Short::from(digest)))
    }

    /// The same of one that was chosen to go, unless somebody uses it; none: it stays. Whoever has been given the blob, and
    /// links or tags it while having it, finds it and what was written so. Blocks.
    pub(super) fn remove_claimed(&self, digest: &Digest, claim: &Claim) -> Result<Option<u64>, StoreError> {
        self.remove_unless(digest, || !self.books.may_go(claim))
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
