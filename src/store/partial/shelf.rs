//! What fills have left, by digest and by age. Both are kept in step here and nowhere else: a removal looks for the oldest, and
//! there may be many of them.

use std::collections::{BTreeSet, HashMap};

use super::table::Parked;
use crate::oci::Digest;

/// What nobody goes on with for now.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    parked: HashMap<Digest, Box<Parked>>,
    /// When each was touched, the oldest first.
    by_age: BTreeSet<(u32, Digest)>,
}

// === impl Shelf ===

impl Shelf {
    pub(super) fn len(&self) -> usize {
        self.parked.len()
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<&Parked> {
        self.parked.get(digest).map(|parked| &**parked)
    }

    /// All, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Digest, &Parked)> {
        self.parked.iter().map(|(digest, parked)| (digest, &**parked))
    }

    /// Puts it there, in the place of one of the same digest.
    pub(super) fn put(&mut self, digest: Digest, parked: Box<Parked>) {
        let touched = parked.left.touched;
        if let Some(before) = self.parked.insert(digest, parked) {
            self.by_age.remove(&(before.left.touched, digest));
        }
        self.by_age.insert((touched, digest));
    }

    pub(super) fn take(&mut self, digest: &Digest) -> Option<Box<Parked>> {
        let parked = self.parked.remove(digest)?;
        self.by_age.remove(&(parked.left.touched, *digest));
        Some(parked)
    }

    /// Which was touched before all others, and when.
    pub(super) fn oldest(&self) -> Option<(u32, Digest)> {
        self.by_age.first().copied()
    }

    /// What was touched later than now counts as touched now.
    pub(super) fn bound(&mut self, now: u32) {
        while let Some((_, digest)) = self.by_age.last().copied().filter(|(touched, _)| *touched > now) {
            self.by_age.pop_last();
            self.by_age.insert((now, digest));
            if let Some(parked) = self.parked.get_mut(&digest) {
                parked.left.touched = now;
            }
        }
    }
}
