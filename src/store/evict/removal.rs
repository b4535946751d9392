//! Removing a blob: index, refs and links, file, in this order, so that nothing names what is not there whatever happens
//! in between.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

    /// The same of one that was chosen to go; none if somebody uses it. Blocks.
    pub(super) fn remove_claimed(&self, digest: &Digest, claim: &Claim) -> Result<Option<u64>, StoreError> {
        if !self.books.may_go(claim) {
            return Ok(None);
        }
        self.remove_unless(digest, || !self.books.may_go(claim))
    }

    fn remove_unless(&self, digest: &Digest, stays: impl Fn() -> bool) -> Result<Option<u64>, StoreError> {
        let path = layout::blob(digest);
        self.hints.remove_blob(digest);
        self.remove_refs(digest);
        let names = self.names.lock();
        if stays() {
            // It was asked for in between: its refs come back like those of any blob that has none.
            return Ok(None);
        }
        let file = self.disk.look(&path).ok();
        let found = file.as_ref().and_then(|file| file.metadata().ok());
        self.disk.unlink(&path).map_err(|e| StoreError::io("remove", &path, e))?;
        let len = found.as_ref().map_or(0, std::fs::Metadata::len);
        if let Some(found) = found {
            self.books.unlinked(digest, found.ino(), len);
        }
        self.books.forget(&Short::from(digest));
        drop(names);
        drop(file);
        self.group.directories([layout::blob_dir(digest.algorithm())]);
        Ok(Some(len))
    }

    fn remove_refs(&self, digest: &Digest) {
        let mut after = None::<Vec<u8>>;
        loop {
            let part = self.hints.refs(digest, after.as_deref(), BATCH);
            for path in part.found {
                if path.starts_with(REFS) {
                    self.remove_ref(digest, &path);
                }
                self.hints.set_ref(digest, &path, false);
            }
            match part.next {
                Some(next) => after = Some(next),
                None => return,
            }
        }
    }

    /// Removes a link of `digest`, or a tag that still names it.
    pub(in crate::store) fn remove_ref(&self, digest: &Digest, path: &Path) {
        let _tags = self.tags.lock();
        if layout::is_tag(path) {
            match self.records.read::<TagRecord>(&self.disk, path) {
                Some(record) if record.digest != *digest => return,
                _ => {}
            }
            if let Some((up, repo, tag)) = layout::parse_tag(path) {
                self.hints.set_check(&up, &repo, &tag, None);
            }
        }
        if let Err(error) = self.disk.unlink(path) {
            tracing::warn!(path = %path.display(), %error, "a ref of an evicted blob could not be removed");
            return;
        }
        self.remove_empty_above(path);
    }

    /// Empty directories above a file that was removed go too, up to the upstream's own. A writer that needs one at the
    /// same moment makes it again.
    pub(in crate::store) fn remove_empty_above(&self, path: &Path) {
        let mut above: Option<PathBuf> = path.parent().map(Path::to_owned);
        while let Some(directory) = above.filter(|d| d.components().count() > 2) {
            let parent = directory.parent().map(Path::to_owned);
            if !self.disk.remove_dir(&directory) {
                self.group.directories([directory]);
                return;
            }
            above = parent;
        }
    }
}
