//! Images: a manifest that is asked for means that all it is made of is in use, also where the clients have the layers
//! already and do not ask for them. So what nobody asks for grows old as a whole, and goes as a whole (`order`).

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::layout;
use super::order::Short;
use super::record::is_no_file;
use super::{Inner, Store, StoreError};
use crate::oci::{Digest, ManifestInfo};

/// Longest manifest that is read for what it is made of.
pub(super) const MANIFEST: u64 = 16 << 20;
/// How long until the parts of an image that is asked for all the time are put down as used once more: the order of
/// eviction does not tell shorter times apart.
const AGAIN: Duration = Duration::from_mins(1);
/// How many images are remembered as put down a moment ago.
const REMEMBERED: usize = 1 << 16;
/// An index may name indexes; nobody nests them deeper.
const DEPTH: u32 = 4;
/// Parts of one image that are followed.
const PARTS: usize = 1 << 16;

/// What a manifest says, as far as it can be read.
enum Reading {
    /// There is none.
    Missing,
    /// There is one, and it is not what its digest names.
    Damaged,
    /// It is what its digest names; nothing, if that is no manifest.
    Right(Option<ManifestInfo>),
}

/// When images were last put down as used.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<HashMap<Short, Instant>>);

// === impl Uses ===

impl Uses {
    /// Whether it is time to put an image down as used; from now on it is not.
    fn is_due(&self, digest: &Digest) -> bool {
        let mut known = self.0.lock();
        let recent = |at: Instant| at.elapsed() < AGAIN;
        if known.get(&Short::from(digest)).is_some_and(|at| recent(*at)) {
            return false;
        }
        if known.len() >= REMEMBERED {
            known.retain(|_, at| recent(*at));
            if known.len() >= REMEMBERED {
                known.clear();
            }
        }
        known.insert(Short::from(digest), Instant::now());
        true
    }
}

#[cfg(test)]
impl Uses {
    /// Everything was put down so many seconds earlier.
    pub(super) fn age_all(&self, seconds: u32) {
        let age = Duration::from_secs(seconds.into());
        self.0.lock().retain(|_, at| {
            at.checked_sub(age).is_some_and(|earlier| {
                *at = earlier;
                true
            })
        });
    }
}

// === impl Store ===

impl Store {
    /// The manifest was asked for: everything of its image that is here counts as used, and if it is pinned, is pinned
    /// too. Returns at once; the work is done in the background, at most once a minute for an image.
    pub fn use_image(&self, digest: &Digest) {
        if !self.0.uses.is_due(digest) || self.0.jobs.is_closed() {
            return;
        }
        let (inner, digest) = (self.0.clone(), *digest);
        drop(self.0.jobs.spawn_blocking(move || {
            let parts = inner.parts_of(&digest);
            inner.books.touch_all(&parts);
            inner.pin_parts(&digest, &parts);
        }));
    }
}

// === impl Inner ===

impl Inner {
    /// All that an image is made of, as far as the manifests are here, in the order in which it should go: a manifest
    /// comes behind what it names. Blocks.
    pub(super) fn parts_of(&self, digest: &Digest) -> Vec<Digest> {
        let (mut parts, mut seen) = (Vec::new(), HashSet::new());
        self.collect(digest, true, DEPTH, &mut seen, &mut parts);
        parts
    }

    fn collect(
        &self,
        digest: &Digest,
        is_manifest: bool,
        depth: u32,
        seen: &mut HashSet<Digest>,
        parts: &mut Vec<Digest>,
    ) {
        if parts.len() >= PARTS || !seen.insert(*digest) {
            return;
        }
        if is_manifest
            && let Some(depth) = depth.checked_sub(1)
            && let Some(ManifestInfo { children, is_index, .. }) = self.manifest_info(digest)
        {
            for child in &children {
                self.collect(child, is_index, depth, seen, parts);
            }
        }
        parts.push(*digest);
    }

    /// The same for who must not take a part for one that is not named: the manifests are verified. None if one of them
    /// is damaged, so that its parts are not known. Blocks.
    ///
    /// # Errors
    /// A manifest cannot be read at this moment.
    pub(super) fn certain_parts_of(&self, digest: &Digest) -> Result<Option<HashSet<Digest>>, StoreError> {
        let mut parts = HashSet::from([*digest]);
        let mut next = vec![(*digest, DEPTH)];
        while let Some((digest, depth)) = next.pop() {
            let info = match self.read_manifest(&digest)? {
                Reading::Missing => continue,
                Reading::Damaged => return Ok(None),
                Reading::Right(info) => info.unwrap_or_default(),
            };
            for child in info.children {
                if parts.len() < PARTS && parts.insert(child) && info.is_index && depth > 1 {
                    next.push((child, depth - 1));
                }
            }
        }
        Ok(Some(parts))
    }

    fn read_manifest(&self, digest: &Digest) -> Result<Reading, StoreError> {
        let path = layout::blob(digest);
        match self.disk.read_all(&path, MANIFEST) {
            Ok(bytes) if Digest::of(digest.algorithm(), &bytes) != *digest => Ok(Reading::Damaged),
            Ok(bytes) => Ok(Reading::Right(ManifestInfo::check(None, &bytes).ok())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Reading::Missing),
            Err(error) if is_no_file(&error) => Ok(Reading::Damaged),
            Err(error) => Err(StoreError::io("read", &path, error)),
        }
    }

    /// What a stored manifest says. It is not verified here: nothing but the order of eviction depends on it. Blocks.
    pub(super) fn manifest_info(&self, digest: &Digest) -> Option<ManifestInfo> {
        let bytes = self.disk.read_all(&layout::blob(digest), MANIFEST).ok()?;
        ManifestInfo::check(None, &bytes).ok()
    }
}
