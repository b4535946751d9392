//! Manifests in memory: what is asked for all the time is answered without a look at the disk.
//!
//! An entry is a stored manifest whose bytes were verified and whose link was read. It never outlives the file: every
//! hit asks the store whether it still has the digest, so eviction, removal and quarantine empty this memory too.

use std::sync::Arc;

use bytes::Bytes;
use foldhash::HashMap;
use parking_lot::Mutex;

use super::{Labels, Repository, Target};
use crate::oci::{Digest, Via};

/// Bytes of manifests that are kept in all.
const CAPACITY: usize = 16 * 1024 * 1024;
/// Larger manifests are read from the disk each time.
const LARGEST: usize = CAPACITY / 16;
/// What an entry costs besides its bytes.
const OVERHEAD: usize = 2048;

/// The memory.
#[derive(Default)]
pub(super) struct Hot {
    /// Held for look-ups only.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By digest, then by the names that have a link to it; those are few.
    entries: HashMap<Digest, Vec<(Repository, HotManifest)>>,
    bytes: usize,
}

/// A verified manifest under one name; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct HotManifest {
    pub(super) labels: Arc<Labels>,
    pub(super) bytes: Bytes,
    /// By whose right upstream gave it.
    pub(super) via: Via,
}

// === impl Hot ===

impl Hot {
    /// What is remembered of `digest` under this name.
    pub(super) fn get(&self, target: &Target, digest: &Digest) -> Option<HotManifest> {
        let state = self.state.lock();
        let names = state.entries.get(digest)?;
        names.iter().find(|(of, _)| target.is_in(of)).map(|(_, manifest)| manifest.clone())
    }

    /// Remembers. Where there is no room, any others go: what is hot is back at once.
    pub(super) fn insert(&self, target: &Target, digest: &Digest, manifest: HotManifest) {
        let cost = manifest.cost();
        if manifest.bytes.len() > LARGEST {
            return;
        }
        let mut state = self.state.lock();
        while state.bytes + cost > CAPACITY {
            let Some(victim) = state.entries.keys().next().copied() else { break };
            state.remove(&victim);
        }
        state.bytes += cost;
        let names = state.entries.entry(*digest).or_default();
        let before = if let Some((_, entry)) = names.iter_mut().find(|(of, _)| target.is_in(of)) {
            std::mem::replace(entry, manifest).cost()
        } else {
            names.push((target.repository(), manifest));
            0
        };
        state.bytes -= before;
    }

    /// Forgets `digest` under one name.
    pub(super) fn remove_from(&self, repository: &Repository, digest: &Digest) {
        let state = &mut *self.state.lock();
        if let Some(names) = state.entries.get_mut(digest) {
            let gone = names.extract_if(.., |(of, _)| of == repository);
            state.bytes -= gone.map(|(_, manifest)| manifest.cost()).sum::<usize>();
        }
    }

    /// Forgets everything under one name.
    pub(super) fn remove_all_from(&self, repository: &Repository) {
        let state = &mut *self.state.lock();
        for names in state.entries.values_mut() {
            let gone = names.extract_if(.., |(of, _)| of == repository);
            state.bytes -= gone.map(|(_, manifest)| manifest.cost()).sum::<usize>();
        }
    }

    /// Forgets `digest` under all names.
    pub(super) fn remove(&self, digest: &Digest) {
        self.state.lock().remove(digest);
    }
}

// === impl State ===

impl State {
    fn remove(&mut self, digest: &Digest) {
        let removed = self.entries.remove(digest).unwrap_or_default();
        self.bytes -= removed.iter().map(|(_, manifest)| manifest.cost()).sum::<usize>();
    }
}

// === impl HotManifest ===

impl HotManifest {
    pub(super) fn new(digest: &Digest, media_type: &str, bytes: Bytes, via: Via) -> Self {
        Self { labels: Arc::new(Labels::of_manifest(digest, media_type, bytes.len() as u64)), bytes, via }
    }

    fn cost(&self) -> usize {
        self.bytes.len() + self.labels.media_type().len() + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::upstream::Right;

    #[test]
    fn stays_within_its_capacity_and_forgets_by_digest() {
        let hot = Hot::default();
        let target = |repo: &str| Target {
            upstream: "up".parse().unwrap(),
            repo: repo.parse().unwrap(),
            right: Right::Anonymous,
        };
        let manifest = |size| {
            let (digest, bytes) = (Digest::of(Algorithm::Sha256, b""), Bytes::from(vec![0; size]));
            HotManifest::new(&digest, "text/x", bytes, Via::Anonymous)
        };
        let digest = |n: u32| Digest::of(Algorithm::Sha256, &n.to_le_bytes());
        for n in 0..100 {
            hot.insert(&target("a"), &digest(n), manifest(LARGEST));
            assert!(hot.state.lock().bytes <= CAPACITY);
            assert!(hot.get(&target("a"), &digest(n)).is_some(), "the newest is there");
        }
        hot.insert(&target("a"), &digest(1000), manifest(LARGEST + 1));
        assert!(hot.get(&target("a"), &digest(1000)).is_none(), "too large");
        for repo in ["a", "b", "b"] {
            hot.insert(&target(repo), &digest(7), manifest(10));
        }
        assert!(hot.get(&target("c"), &digest(7)).is_none(), "another name has no link");
        hot.insert(&target("d"), &digest(7), manifest(10));
        hot.insert(&target("d"), &digest(8), manifest(10));
        hot.remove_from(&target("b").repository(), &digest(7));
        assert!(hot.get(&target("a"), &digest(7)).is_some() && hot.get(&target("b"), &digest(7)).is_none());
        hot.remove_all_from(&target("d").repository());
        assert!(hot.get(&target("d"), &digest(7)).is_none() && hot.get(&target("d"), &digest(8)).is_none());
        for n in 0..1001 {
            hot.remove(&digest(n));
        }
        assert_eq!(hot.state.lock().bytes, 0, "the books balance");
    }
}
