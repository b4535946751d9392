//! Tags and links in memory: what is pulled all the time is answered without a look at the disk.

use std::path::Path;
use std::sync::Arc;

use super::check::Check;
use super::layout;
use super::memory::Memory;
use super::refs::{Link, TagRecord};
use crate::oci::{Digest, RepoName, Tag, UpstreamName};

/// Tags, and links, that are remembered; each takes half a kilobyte, and at most two.
const REMEMBERED: usize = 8192;
/// Longest text in one that is remembered: what others have made up may be megabytes long.
const LONGEST: usize = 1024;

/// Which tag.
pub(super) type TagKey = (UpstreamName, RepoName, Tag);
/// Which link.
type LinkKey = (UpstreamName, RepoName, Digest);

/// A tag of which the record's file is there, and the last check of it, which was read before the record.
#[derive(Debug)]
pub(super) struct KnownTag {
    pub(super) record: Arc<TagRecord>,
    pub(super) check: Option<Check>,
}

/// What is remembered. Who writes or removes such a file, or the check of a tag, has to tell.
#[derive(Debug)]
pub(super) struct Known {
    tags: Memory<TagKey, Arc<KnownTag>>,
    links: Memory<LinkKey, Arc<Link>>,
}

// === impl Known ===

impl Default for Known {
    fn default() -> Self {
        Self { tags: Memory::new(REMEMBERED), links: Memory::new(REMEMBERED) }
    }
}

impl Known {
    /// What is remembered of a tag.
    pub(super) fn tag(&self, key: &TagKey) -> Option<Arc<KnownTag>> {
        self.tags.get(key)
    }

    /// Reads a tag, and remembers what was read.
    pub(super) fn read_tag(&self, key: TagKey, read: impl FnOnce() -> Option<Arc<KnownTag>>) -> Option<Arc<KnownTag>> {
        let before = self.tags.before(&key);
        let tag = read()?;
        let TagRecord { media_type, etag, .. } = &*tag.record;
        if is_short([Some(media_type), etag.as_ref()]) {
            self.tags.keep(before, key, tag.clone());
        }
        Some(tag)
    }

    /// What is remembered of a link.
    pub(super) fn link(&self, key: &LinkKey) -> Option<Arc<Link>> {
        self.links.get(key)
    }

    /// Reads a link, and remembers what was read.
    pub(super) fn read_link(&self, key: LinkKey, read: impl FnOnce() -> Option<Arc<Link>>) -> Option<Arc<Link>> {
        let before = self.links.before(&key);
        let link = read()?;
        if is_short([link.media_type.as_ref(), link.artifact_type.as_ref()]) {
            self.links.keep(before, key, link.clone());
        }
        Some(link)
    }

    /// The file or the check of a tag has been changed.
    pub(super) fn forget_tag(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) {
        self.tags.forget(&(up.clone(), repo.clone(), tag.clone()));
    }

    /// The file of a link has been changed.
    pub(super) fn forget_link(&self, up: &UpstreamName, repo: &RepoName, digest: &Digest) {
        self.links.forget(&(up.clone(), repo.clone(), *digest));
    }

    /// Any may have been removed, also of those whose files were gone before.
    pub(super) fn clear(&self) {
        self.tags.clear();
        self.links.clear();
    }

    /// Forgets what nobody has asked for since the last time.
    pub(super) fn sweep(&self) {
        self.tags.sweep();
        self.links.sweep();
    }

    /// The file at this path has been changed, if it is one of a tag or link.
    pub(super) fn forget(&self, path: &Path) {
        if layout::is_tag(path) {
            match layout::parse_tag(path) {
                Some(key) => self.tags.forget(&key),
                // Of an upstream whose name is too long for a directory the path does not say it.
                None => self.tags.clear(),
            }
        } else if layout::parse_link(path).is_some() {
            match layout::parse_whole_link(path) {
                Some(key) => self.links.forget(&key),
                None => self.links.clear(),
            }
        }
    }
}

fn is_short(texts: [Option<&String>; 2]) -> bool {
    texts.into_iter().flatten().map(String::len).sum::<usize>() <= LONGEST
}
