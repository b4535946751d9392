//! Images: a manifest that is asked for means that all it is made of is in use, also where the clients have the layers
//! already and do not ask for them; and a part that comes or is asked for is a use of the image under which it was named
//! last, also where the client does not ask for the manifest any more. So what nobody asks for grows old as a whole, and
//! goes as a whole (`order`).

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
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
/// Half of the parts of which it is remembered which image named them last.
const NAMED: usize = 1 << 15;
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

/// When images were last put down as used, and what they are made of.
#[derive(Debug, Default)]
pub(super) struct Uses {
    recent: Mutex<HashMap<Short, Instant>>,
    images: Mutex<Named>,
}

/// By which image a part was named last: of the parts that were named last of all.
#[derive(Debug, Default)]
struct Named {
    young: HashMap<Short, Arc<Digest>>,
    /// What was young before that was full.
    old: HashMap<Short, Arc<Digest>>,
}

// === impl Uses ===

impl Uses {
    /// Whether it is time to put an image down as used; from now on it is not.
    fn is_due(&self, digest: &Digest) -> bool {
        let mut known = self.recent.lock();
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

    /// The image is made of these parts.
    fn name(&self, image: &Digest, parts: &[Digest]) {
        let shared = Arc::new(*image);
        let mut images = self.images.lock();
        for part in parts.iter().filter(|part| *part != image) {
            if images.young.len() >= NAMED {
                images.old = std::mem::take(&mut images.young);
            }
            images.young.insert(Short::from(part), shared.clone());
        }
    }

    /// The image that named this part last, if that is remembered.
    pub(super) fn image_of(&self, part: &Digest) -> Option<Digest> {
        let (images, short) = (self.images.lock(), Short::from(part));
        images.young.get(&short).or_else(|| images.old.get(&short)).map(|image| **image)
    }
}

#[cfg(test)]
impl Uses {
    /// Everything was put down so many seconds earlier.
    pub(super) fn age_all(&self, seconds: u32) {
        let age = Duration::from_secs(seconds.into());
        self.recent.lock().retain(|_, at| {
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
        self.0.use_image(digest);
    }
}

// === impl Inner ===

impl Inner {
    fn use_image(self: &Arc<Self>, digest: &Digest) {
        if !self.uses.is_due(digest) || self.jobs.is_closed() {
            return;
        }
        let (inner, digest) = (self.clone(), *digest);
        drop(self.jobs.spawn_blocking(move || {
            let parts = inner.parts_of(&digest);
            inner.uses.name(&digest, &parts);
            inner.books.touch_all(&parts);
            inner.pin_parts(&digest, &parts);
            // A platform's image is a part of its index.
            inner.use_image_of(&digest);
        }));
    }

    /// The blob is used: so is the image of which it is a part, as far as that is remembered. Does not block.
    pub(super) fn use_image_of(self: &Arc<Self>, part: &Digest) {
        if let Some(image) = self.uses.image_of(part) {
            self.use_image(&image);
        }
    }

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
