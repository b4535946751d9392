//! Which blobs are in the store, how long they are, and in which order they were used: in memory, at most 48 bytes a
//! blob.
//!
//! A blob is known by the first 16 bytes of its digest; the whole digest is in the index and in the file's name. Two
//! lists go from the newest to the oldest use, one of them for manifests that a tag names: those are the last to go.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::oci::{Algorithm, Digest};

/// Nodes that are allocated at a time, so that growing never copies nor doubles the memory.
const CHUNK: usize = 4096;
/// No node.
const NONE: u32 = u32::MAX;

const WIDE: u16 = 1;
const TAGGED: u16 = 2;
const TOUCHED: u16 = 4;
const SEEN: u16 = 8;
const USED: u16 = 16;

/// A digest cut to what memory can hold for every blob. Two blobs that share it would share an age, nothing worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Short {
    /// SHA-512, else SHA-256.
    wide: bool,
    prefix: [u8; 16],
}

/// One blob: 36 bytes, and 6 to 11 in the table.
#[derive(Debug, Clone, Copy)]
struct Node {
    prefix: [u8; 16],
    newer: u32,
    older: u32,
    len_low: u32,
    /// Seconds since 1970.
    used: u32,
    len_high: u16,
    flags: u16,
}

#[derive(Debug, Clone, Copy)]
struct List {
    newest: u32,
    oldest: u32,
}

/// The known blobs.
#[derive(Debug)]
pub(super) struct Order {
    table: HashTable<u32>,
    chunks: Vec<Box<[Node]>>,
    /// Head of the list of free nodes, linked by `older`.
    free: u32,
    /// Blobs, and manifests that a tag names.
    lists: [List; 2],
    hasher: RandomState,
}

// === impl Short ===

impl Short {
    /// The algorithm that it belongs to.
    pub(super) fn algorithm(&self) -> Algorithm {
        if self.wide { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The start of the digest's bytes.
    pub(super) fn prefix(&self) -> &[u8; 16] {
        &self.prefix
    }
}

impl From<&Digest> for Short {
    fn from(digest: &Digest) -> Self {
        let prefix = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        Self { wide: digest.algorithm() == Algorithm::Sha512, prefix }
    }
}

// === impl Node ===

impl Node {
    const EMPTY: Self = Self { prefix: [0; 16], newer: NONE, older: NONE, len_low: 0, used: 0, len_high: 0, flags: 0 };

    fn short(&self) -> Short {
        Short { wide: self.flags & WIDE != 0, prefix: self.prefix }
    }

    fn len(&self) -> u64 {
        (u64::from(self.len_high) << 32) | u64::from(self.len_low)
    }

    /// Lengths end at 2^48: no file system has longer files on the disks of this age.
    fn set_len(&mut self, len: u64) {
        self.len_low = u32::try_from(len & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        self.len_high = u16::try_from(len >> 32).unwrap_or(u16::MAX);
    }

    fn list(&self) -> usize {
        usize::from(self.flags & TAGGED != 0)
    }

    fn set(&mut self, flag: u16, on: bool) {
        if on { self.flags |= flag } else { self.flags &= !flag }
    }
}

// === impl Order ===

impl Order {
    /// Of no blobs.
    pub(super) fn new() -> Self {
        let list = List { newest: NONE, oldest: NONE };
        Self { table: HashTable::new(), chunks: Vec::new(), free: NONE, lists: [list; 2], hasher: RandomState::new() }
    }

    /// How many blobs are known.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether a blob is known.
    pub(super) fn contains(&self, short: &Short) -> bool {
        self.find(short).is_some()
    }

    /// The length of a blob, if it is known.
    pub(super) fn get(&self, short: &Short) -> Option<u64> {
        self.find(short).map(|at| self.node(at).len())
    }

    /// When a blob was used last, if it is known.
    pub(super) fn used(&self, short: &Short) -> Option<u32> {
        self.find(short).map(|at| self.node(at).used)
    }

    /// Adds a blob that was used at `used`, or corrects what is known of it; returns the length known before. With
    /// `touch` it becomes the most recently used one; without, a known blob keeps its place, and a new one goes to the
    /// old end until [`Order::sort`].
    pub(super) fn put(&mut self, short: Short, len: u64, used: u32, touch: bool) -> Option<u64> {
        let known = self.find(&short);
        let at = known.unwrap_or_else(|| self.add(short));
        let before = known.map(|at| self.node(at).len());
        let node = self.node_mut(at);
        node.set_len(len);
        node.used = node.used.max(used);
        node.set(SEEN, true);
        if touch {
            node.set(TOUCHED, true);
        }
        match (known, touch) {
            (Some(_), false) => {}
            (Some(_), true) => {
                self.unlink(at);
                self.link_newest(at);
            }
            (None, true) => self.link_newest(at),
            (None, false) => self.link_oldest(at),
        }
        before
    }

    /// Forgets a blob; returns its length.
    pub(super) fn remove(&mut self, short: &Short) -> Option<u64> {
        let at = self.find(short)?;
        self.unlink(at);
        let hash = self.hasher.hash_one(short);
        if let Ok(entry) = self.table.find_entry(hash, |&other| other == at) {
            entry.remove();
        }
        let len = self.node(at).len();
        let free = self.free;
        *self.node_mut(at) = Node { older: free, ..Node::EMPTY };
        self.free = at;
        Some(len)
    }

    /// Says whether a tag names this blob.
    pub(super) fn set_tagged(&mut self, short: &Short, tagged: bool) {
        if let Some(at) = self.find(short)
            && (self.node(at).list() == 1) != tagged
        {
            self.unlink(at);
            // Touched: `take_touched` relies on what stands at the newest end being so.
            self.node_mut(at).set(TAGGED, tagged);
            self.node_mut(at).set(TOUCHED, true);
            self.link_newest(at);
        }
    }

    /// The blobs from the one that should go first to the one that should go last.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = (Short, u64)> {
        self.lists.iter().flat_map(|list| {
            let start = (list.oldest != NONE).then_some(list.oldest);
            std::iter::successors(start, |&at| Some(self.node(at).newer).filter(|&next| next != NONE))
                .map(|at| (self.node(at).short(), self.node(at).len()))
        })
    }

    /// The blobs that were used since the last call, with the time.
    pub(super) fn take_touched(&mut self) -> Vec<(Short, u32)> {
        let mut touched = Vec::new();
        for list in 0..self.lists.len() {
            // Whatever was touched stands at the newest end, so the walk ends at the first that was not.
            let mut at = self.lists[list].newest;
            while at != NONE && self.node(at).flags & TOUCHED != 0 {
                let node = self.node_mut(at);
                node.set(TOUCHED, false);
                touched.push((node.short(), node.used));
                at = node.older;
            }
        }
        touched
    }

    /// Puts the lists in the order of use, after blobs were added out of it.
    pub(super) fn sort(&mut self) {
        let mut all: Vec<u32> = self.table.iter().copied().collect();
        all.sort_unstable_by_key(|&at| (self.node(at).flags & TOUCHED, self.node(at).used));
        self.lists = [List { newest: NONE, oldest: NONE }; 2];
        for at in all {
            self.link_newest(at);
        }
    }

    /// Forgets which blobs were seen, before a scan of the files.
    pub(super) fn clear_seen(&mut self) {
        for node in self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut()) {
            node.set(SEEN, false);
        }
    }

    /// The blobs that no scan has seen and nobody has used since [`Order::clear_seen`].
    pub(super) fn unseen(&self) -> Vec<Short> {
        let nodes = self.chunks.iter().flat_map(|chunk| chunk.iter());
        nodes.filter(|n| n.flags & (USED | SEEN | TOUCHED) == USED).map(Node::short).collect()
    }

    fn node(&self, at: u32) -> &Node {
        let at = at as usize;
        &self.chunks[at / CHUNK][at % CHUNK]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        let at = at as usize;
        &mut self.chunks[at / CHUNK][at % CHUNK]
    }

    fn find(&self, short: &Short) -> Option<u32> {
        self.table.find(self.hasher.hash_one(short), |&at| self.node(at).short() == *short).copied()
    }

    fn add(&mut self, short: Short) -> u32 {
        if self.free == NONE {
            let first = u32::try_from(self.chunks.len() * CHUNK).unwrap_or(NONE);
            let mut chunk = vec![Node::EMPTY; CHUNK].into_boxed_slice();
            for (node, next) in chunk.iter_mut().zip(first + 1..) {
                node.older = next;
            }
            if let Some(last) = chunk.last_mut() {
                last.older = NONE;
            }
            self.chunks.push(chunk);
            self.free = first;
        }
        let at = self.free;
        self.free = self.node(at).older;
        let flags = USED | if short.wide { WIDE } else { 0 };
        *self.node_mut(at) = Node { prefix: short.prefix, flags, ..Node::EMPTY };
        let Self { table, chunks, hasher, .. } = self;
        let hash = |at: &u32| hasher.hash_one(chunks[*at as usize / CHUNK][*at as usize % CHUNK].short());
        table.insert_unique(hasher.hash_one(short), at, hash);
        at
    }

    fn unlink(&mut self, at: u32) {
        let Node { newer, older, .. } = *self.node(at);
        let list = self.node(at).list();
        match newer {
            NONE => self.lists[list].newest = older,
            newer => self.node_mut(newer).older = older,
        }
        match older {
            NONE => self.lists[list].oldest = newer,
            older => self.node_mut(older).newer = newer,
        }
    }

    fn link_newest(&mut self, at: u32) {
        let list = self.node(at).list();
        let before = self.lists[list].newest;
        let node = self.node_mut(at);
        (node.newer, node.older) = (NONE, before);
        match before {
            NONE => self.lists[list].oldest = at,
            before => self.node_mut(before).newer = at,
        }
        self.lists[list].newest = at;
    }

    fn link_oldest(&mut self, at: u32) {
        let list = self.node(at).list();
        let before = self.lists[list].oldest;
        let node = self.node_mut(at);
        (node.newer, node.older) = (before, NONE);
        match before {
            NONE => self.lists[list].newest = at,
            before => self.node_mut(before).older = at,
        }
        self.lists[list].oldest = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn short(n: u32) -> Short {
        Short::from(&Digest::of(
            if n.is_multiple_of(5) { Algorithm::Sha512 } else { Algorithm::Sha256 },
            &n.to_le_bytes(),
        ))
    }

    #[test]
    fn a_blob_costs_at_most_48_bytes() {
        assert!(size_of::<Node>() <= 36, "{}", size_of::<Node>());
        // The table is at least 7/16 full after growing: 5 bytes a bucket are at most 11.5 an entry.
        let mut order = Order::new();
        for n in 0..20_000 {
            order.put(short(n), 1, n, true);
        }
        let bytes = order.table.allocation_size() + order.chunks.len() * CHUNK * size_of::<Node>();
        assert!(bytes / order.len() <= 48, "{} bytes a blob", bytes / order.len());
    }

    #[test]
    fn long_lengths_fit() {
        let mut order = Order::new();
        for len in [0, 1, u64::from(u32::MAX), 1 << 40, (1 << 48) - 1] {
            order.put(short(1), len, 0, true);
            assert_eq!(order.get(&short(1)), Some(len));
        }
    }

    #[test]
    fn manifests_of_tags_go_last() {
        let mut order = Order::new();
        for n in 0..4 {
            order.put(short(n), 1, n, true);
        }
        order.set_tagged(&short(0), true);
        let list: Vec<_> = order.oldest_first().map(|(s, _)| s).collect();
        assert_eq!(list, [1, 2, 3, 0].map(short));
        order.put(short(1), 1, 9, true);
        order.set_tagged(&short(0), false);
        let list: Vec<_> = order.oldest_first().map(|(s, _)| s).collect();
        assert_eq!(list, [2, 3, 1, 0].map(short));
    }

    #[test]
    fn blobs_found_later_are_sorted_by_their_age() {
        let mut order = Order::new();
        order.put(short(1), 1, 50, true);
        for (n, used) in [(2, 30), (3, 10), (4, 20)] {
            order.put(short(n), 1, used, false);
        }
        order.sort();
        let list: Vec<_> = order.oldest_first().map(|(s, _)| s).collect();
        assert_eq!(list, [3, 4, 2, 1].map(short));
        assert_eq!(order.take_touched(), [(short(1), 50)]);
    }

    #[test]
    fn what_a_scan_does_not_see_is_named() {
        let mut order = Order::new();
        for n in 0..4 {
            order.put(short(n), 1, n, false);
        }
        order.clear_seen();
        order.put(short(0), 1, 0, false);
        order.put(short(1), 1, 9, true);
        let mut unseen = order.unseen();
        unseen.sort();
        let mut expected = [2, 3].map(short);
        expected.sort();
        assert_eq!(unseen, expected);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u32, u64, bool),
        Remove(u32),
        Tag(u32, bool),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12u32, 0..100u64, any::<bool>()).prop_map(|(n, len, touch)| Step::Put(n, len, touch)),
            (0..12u32).prop_map(Step::Remove),
            (0..12u32, any::<bool>()).prop_map(|(n, on)| Step::Tag(n, on)),
            Just(Step::Take),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        /// The lists against vectors that are searched.
        #[test]
        fn behaves_like_two_vectors(steps in proptest::collection::vec(step(), 1..80)) {
            let mut order = Order::new();
            // Oldest first: number, length, touched; untagged and tagged.
            let mut model: [Vec<(u32, u64, bool)>; 2] = [Vec::new(), Vec::new()];
            let place = |model: &[Vec<(u32, u64, bool)>; 2], n: u32| {
                (0..2).find_map(|l| model[l].iter().position(|e| e.0 == n).map(|at| (l, at)))
            };
            for (now, step) in (1..).zip(steps) {
                match step {
                    Step::Put(n, len, touch) => {
                        let known = place(&model, n);
                        prop_assert_eq!(order.put(short(n), len, now, touch), known.map(|(l, at)| model[l][at].1));
                        match known {
                            Some((l, at)) if touch => {
                                model[l].remove(at);
                                model[l].push((n, len, true));
                            }
                            Some((l, at)) => model[l][at].1 = len,
                            None if touch => model[0].push((n, len, true)),
                            None => model[0].insert(0, (n, len, false)),
                        }
                    }
                    Step::Remove(n) => {
                        let known = place(&model, n);
                        prop_assert_eq!(order.remove(&short(n)), known.map(|(l, at)| model[l].remove(at).1));
                    }
                    Step::Tag(n, on) => {
                        order.set_tagged(&short(n), on);
                        if let Some((l, at)) = place(&model, n)
                            && (l == 1) != on
                        {
                            let (n, len, _) = model[l].remove(at);
                            model[usize::from(on)].push((n, len, true));
                        }
                    }
                    Step::Take => {
                        let taken: Vec<_> = order.take_touched().into_iter().map(|(s, _)| s).collect();
                        let mut expected = Vec::new();
                        for list in &mut model {
                            expected.extend(list.iter().rev().filter(|e| e.2).map(|e| short(e.0)));
                            for entry in list.iter_mut() {
                                entry.2 = false;
                            }
                        }
                        prop_assert_eq!(taken, expected);
                    }
                }
                let list: Vec<_> = order.oldest_first().collect();
                let expected: Vec<_> = model.iter().flatten().map(|e| (short(e.0), e.1)).collect();
                prop_assert_eq!(list, expected);
                prop_assert_eq!(order.len(), model[0].len() + model[1].len());
            }
        }
    }
}
