//! Files of blobs that were opened a moment ago: what is pulled all the time is not opened for each request.
//!
//! An open file is looked at (fstat) before it is used again, so that one that was written to, replaced or removed is noticed
//! as it is when it is opened; and it goes from here before the books say that it is gone, lest its bytes stay on the disk.
//! It is no use of the blob, and keeps nothing from being evicted.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use super::blob::SharedMap;
use super::memory::{Before, Memory};
use super::stamp::Stamp;
use crate::oci::Digest;

/// Files that are kept open at most. Where the process has no descriptors left they are closed.
const OPEN: usize = 4096;
/// Which part of the process's descriptors they may take.
const SHARE: u64 = 8;

/// A verified file.
#[derive(Debug, Clone)]
pub(super) struct OpenFile {
    pub(super) file: Arc<File>,
    /// What it looked like when it was known to match its digest.
    pub(super) seen: Stamp,
    pub(super) map: SharedMap,
}

/// The open files, by their digests.
#[derive(Debug)]
pub(super) struct OpenFiles(Memory<Digest, OpenFile>);

// === impl OpenFile ===

impl OpenFile {
    /// Whether it looks as it did when it was verified: nobody has written to it, replaced or removed it since. Does not
    /// block.
    pub(super) fn is_as_seen(&self) -> bool {
        self.file.metadata().is_ok_and(|now| now.nlink() > 0 && Stamp::of(&now) == self.seen)
    }
}

// === impl OpenFiles ===

impl OpenFiles {
    /// Of as many as this process may well have open, which may be none.
    pub(super) fn new() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let share = limit.map_or(OPEN, |limit| usize::try_from(limit / SHARE).unwrap_or(OPEN));
        Self(Memory::new(share.min(OPEN)))
    }

    /// The file, which may have been changed since.
    pub(super) fn get(&self, digest: &Digest) -> Option<OpenFile> {
        self.0.get(digest)
    }

    /// To be taken before a file is opened that is to be kept.
    pub(super) fn before(&self, digest: &Digest) -> Before {
        self.0.before(digest)
    }

    /// Keeps a file that was opened then, and is verified.
    pub(super) fn keep(&self, before: Before, digest: &Digest, open: OpenFile) {
        self.0.keep(before, *digest, open);
    }

    /// The blob's file has gone, or is not known to be right any more.
    pub(super) fn forget(&self, digest: &Digest) {
        self.0.forget(digest);
    }

    /// The same if it has changed since it was verified. May block.
    pub(super) fn forget_changed(&self, digest: &Digest) {
        let open = self.0.get(digest);
        if open.as_ref().is_some_and(|open| !open.is_as_seen()) {
            self.0.forget(digest);
        }
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        self.0.clear();
    }

    /// Closes those that nobody has asked for since the last time.
    pub(super) fn sweep(&self) {
        self.0.sweep();
    }
}
