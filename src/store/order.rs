//! Which blobs are in the store, how long they are, and in which order they were used: in memory, at most 48 bytes a
//! blob.
//!
//! A blob is known by the first 16 bytes of its digest; the whole digest is in the index and in the file's name. Each
//! class has a list from the newest to the oldest use, which is sorted at any time: what was found by a scan, or would
//! take a long walk to its place, is in a list of its own until all of these are put in their places together. What goes
//! first is what was idle longest, and of what was idle about as long, the class that frees most for least: so an image
//! that nobody asked for goes whole, its layers first and the manifest that its tag names last, before a part of one that
//! is in use (`images`).

use std::cmp::Reverse;
use std::collections::HashSet;
use std::hash::BuildHasher;

use foldhash::quality::RandomState;
use hashbrown::HashTable;

mod claims;
mod lists;

pub(super) use claims::Claim;

use lists::List;

use crate::oci::{Algorithm, Digest};

/// Nodes that are allocated at a time, so that growing never copies nor doubles the memory.
const CHUNK: usize = 4096;
/// No node.
const NONE: u32 = u32::MAX;
/// Shorter blobs free next to nothing, and cost as many round trips as long ones.
const SMALL: u64 = 64 << 10;
/// Seconds of idleness, as a power of two, below which no difference is made.
const SAME_AGE: u32 = 6;
const WIDE: u16 = 1;
const TAGGED: u16 = 2;
const TOUCHED: u16 = 4;
const SEEN: u16 = 8;
const USED: u16 = 16;
const PINNED: u16 = 32;
const CLAIMED: u16 = 64;
const UNPLACED: u16 = 128;
const AGELESS: u16 = 256;

/// What a blob is to the order of eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Content.
    Bulk,
    /// Short content: configurations, and manifests that no tag names.
    Small,
    /// A manifest that a tag names.
    Tagged,
    /// What may go, and has no place in the order yet. This list has no order, and goes behind all others.
    Unplaced,
    /// It is being removed.
    Claimed,
    /// It never goes, so its list has no order.
    Pinned,
}

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

/// The known blobs.
#[derive(Debug)]
pub(super) struct Order {
    table: HashTable<u32>,
    chunks: Vec<Box<[Node]>>,
    /// Head of the list of free nodes, linked by `older`.
    free: u32,
    /// By [`Class`].
    lists: [List; Class::ALL.len()],
    /// What never goes, known or not.
    pinned: HashSet<Short>,
    /// Nodes that were put down as touched, some of which may be so no more.
    touched: Vec<u32>,
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

// === impl Class ===

impl Class {
    const ALL: [Self; 6] = [Self::Bulk, Self::Small, Self::Tagged, Self::Unplaced, Self::Claimed, Self::Pinned];
    /// Those that may go, in this order of what was idle as long.
    const VICTIMS: [Self; 3] = [Self::Bulk, Self::Small, Self::Tagged];
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

    fn class(&self) -> Class {
        match self.flags {
            flags if flags & PINNED != 0 => Class::Pinned,
            flags if flags & CLAIMED != 0 => Class::Claimed,
            flags if flags & UNPLACED != 0 => Class::Unplaced,
            flags if flags & TAGGED != 0 => Class::Tagged,
            _ if self.len() < SMALL => Class::Small,
            _ => Class::Bulk,
        }
    }

    fn list(&self) -> usize {
        self.class() as usize
    }

    fn set(&mut self, flag: u16, on: bool) {
        if on { self.flags |= flag } else { self.flags &= !flag }
    }
}

// === impl Order ===

impl Order {
    /// Of no blobs.
    pub(super) fn new() -> Self {
        Self {
            table: HashTable::new(),
            chunks: Vec::new(),
            free: NONE,
            lists: [List::EMPTY; Class::ALL.len()],
            pinned: HashSet::new(),
            touched: Vec::new(),
            hasher: RandomState::default(),
        }
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
    /// `touch` it was used just now; without, a new one gets its place by [`Order::place`].
    pub(super) fn put(&mut self, short: Short, len: u64, used: u32, touch: bool) -> Option<u64> {
        let known = self.find(&short);
        let at = known.unwrap_or_else(|| self.add(short));
        let before = known.map(|at| self.node(at).len());
        self.node_mut(at).set(SEEN, true);
        let ageless = self.node(at).flags & AGELESS != 0;
        if !touch && !ageless && before == Some(len) && used <= self.node(at).used {
            return before;
        }
        if known.is_some() {
            self.unlink(at);
        }
        let node = self.node_mut(at);
        node.set_len(len);
        node.used = if ageless && !touch { used } else { node.used.max(used) };
        node.set(AGELESS, false);
        if touch {
            self.note_use(at);
        } else if known.is_none() || ageless {
            node.set(UNPLACED, true);
        }
        self.link(at);
        before
    }

    /// A blob was used at `used`, without anybody having looked whether it is there. False if it is not known.
    pub(super) fn touch(&mut self, short: &Short, used: u32) -> bool {
        let Some(at) = self.find(short) else { return false };
        self.unlink(at);
        let node = self.node_mut(at);
        node.used = node.used.max(used);
        self.note_use(at);
        self.link(at);
        true
    }

    /// What is used has a place, and does not go any more if it was chosen: in the same second its time does not say so.
    fn note_use(&mut self, at: u32) {
        let node = self.node_mut(at);
        node.set(UNPLACED, false);
        node.set(AGELESS, false);
        node.set(CLAIMED, false);
        self.put_down(at);
    }

    /// The same of one of which it is not known when it was used: it counts as used at `now` until that is said.
    pub(super) fn put_ageless(&mut self, short: Short, len: u64, now: u32) -> Option<u64> {
        let known = self.find(&short).map(|at| *self.node(at));
        let used = known.map_or(now, |node| node.used);
        let before = self.put(short, len, used, false);
        if known.is_none_or(|node| node.flags & AGELESS != 0)
            && let Some(at) = self.find(&short)
        {
            self.node_mut(at).set(AGELESS, true);
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
        if let Some(at) = self.find(short) {
            self.flag(at, TAGGED, tagged);
        }
    }

    /// Says which blobs never go; of all others that is no longer so.
    pub(super) fn set_pinned(&mut self, pinned: HashSet<Short>) {
        let before = std::mem::replace(&mut self.pinned, pinned);
        let changed: Vec<Short> = before.symmetric_difference(&self.pinned).copied().collect();
        for short in changed {
            if let Some(at) = self.find(&short) {
                self.flag(at, PINNED, self.pinned.contains(&short));
            }
        }
        self.place();
    }

    /// Adds to what never goes.
    pub(super) fn pin(&mut self, more: impl IntoIterator<Item = Short>) {
        for short in more {
            self.pinned.insert(short);
            if let Some(at) = self.find(&short) {
                self.flag(at, PINNED, true);
            }
        }
    }

    /// Whether a blob never goes.
    pub(super) fn is_pinned(&self, short: &Short) -> bool {
        self.pinned.contains(short)
    }

    /// Changes what makes its class; its age stays.
    fn flag(&mut self, at: u32, flag: u16, on: bool) {
        if (self.node(at).flags & flag != 0) != on {
            self.unlink(at);
            self.node_mut(at).set(flag, on);
            self.link(at);
        }
    }

    /// Puts it down as touched.
    fn put_down(&mut self, at: u32) {
        if self.node(at).flags & TOUCHED == 0 {
            self.node_mut(at).set(TOUCHED, true);
            self.touched.push(at);
        }
    }

    /// Bytes of all that may go.
    pub(super) fn removable(&self) -> u64 {
        let lists = Class::VICTIMS.into_iter().chain([Class::Unplaced]);
        lists.map(|class| self.lists[class as usize].bytes).sum()
    }

    /// The length of a blob, if it is one that may go.
    pub(super) fn removable_len(&self, short: &Short) -> u64 {
        let node = self.find(short).map(|at| self.node(at));
        let free = |node: &&Node| !matches!(node.class(), Class::Claimed | Class::Pinned);
        node.filter(free).map_or(0, Node::len)
    }

    /// What may go and has its place, from what should go first to what should go last, as of `now`. The cost of a step
    /// does not depend on how many blobs there are.
    pub(super) fn victims(&self, now: u32) -> impl Iterator<Item = (Short, u64)> {
        let mut heads = Class::VICTIMS.map(|class| self.lists[class as usize].oldest);
        std::iter::from_fn(move || {
            let present = heads.iter().copied().enumerate().filter(|(_, at)| *at != NONE);
            let (class, at) = present.max_by_key(|(class, at)| (age(now, self.node(*at).used), Reverse(*class)))?;
            let node = self.node(at);
            heads[class] = node.newer;
            Some((node.short(), node.len()))
        })
    }

    /// Of what is said to have been used until `latest`, nothing was used later than `now`.
    pub(super) fn bound(&mut self, now: u32, latest: u32) {
        for node in self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut()) {
            if node.used <= latest {
                node.used = node.used.min(now);
            }
        }
    }

    /// How many have no place.
    #[cfg(test)]
    pub(super) fn unplaced(&self) -> usize {
        self.lists[Class::Unplaced as usize].len
    }

    /// What is said to have been used before `below` was used at `to`, as far as is known.
    pub(super) fn raise(&mut self, below: u32, to: u32) {
        let nodes = self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut()).zip(0..);
        let mut raised = Vec::new();
        for (node, at) in nodes {
            if node.flags & USED != 0 && node.used < below {
                node.used = to;
                raised.push(at);
            }
        }
        for at in raised {
            self.put_down(at);
        }
        self.sort();
    }

    /// Everything was used so many seconds earlier.
    #[cfg(test)]
    pub(super) fn age_all(&mut self, seconds: u32) {
        for node in self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut()) {
            node.used = node.used.saturating_sub(seconds);
        }
    }

    /// The blobs that were used since the last call, with the time.
    pub(super) fn take_touched(&mut self) -> Vec<(Short, u32)> {
        let mut touched = Vec::new();
        // One that is there twice, or whose node is another's by now, counts once or not at all.
        for at in std::mem::take(&mut self.touched) {
            let node = self.node_mut(at);
            if node.flags & TOUCHED != 0 {
                node.set(TOUCHED, false);
                touched.push((node.short(), node.used));
            }
        }
        touched
    }

    /// Forgets which blobs were seen, before a scan of the files.
    pub(super) fn clear_seen(&mut self) {
        for node in self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut()) {
            node.set(SEEN, false);
        }
    }

    /// The blobs that no scan has seen and nobody has opened or published since [`Order::clear_seen`]. One that was used
    /// otherwise, as a part of an image or from memory, may have no file.
    pub(super) fn unseen(&self) -> Vec<Short> {
        let nodes = self.chunks.iter().flat_map(|chunk| chunk.iter());
        nodes.filter(|n| n.flags & (USED | SEEN) == USED).map(Node::short).collect()
    }

    /// Whether that is so of this one.
    pub(super) fn is_unseen(&self, short: &Short) -> bool {
        self.find(short).is_some_and(|at| self.node(at).flags & SEEN == 0)
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
        let pinned = if self.pinned.contains(&short) { PINNED } else { 0 };
        let flags = USED | pinned | if short.wide { WIDE } else { 0 };
        *self.node_mut(at) = Node { prefix: short.prefix, flags, ..Node::EMPTY };
        let Self { table, chunks, hasher, .. } = self;
        let hash = |at: &u32| hasher.hash_one(chunks[*at as usize / CHUNK][*at as usize % CHUNK].short());
        table.insert_unique(hasher.hash_one(short), at, hash);
        at
    }
}

/// How long something was idle, so coarsely that the parts of an image, which are used one after the other, and images
/// of about the same age count as equal.
fn age(now: u32, used: u32) -> u32 {
    u32::BITS - (now.saturating_sub(used) >> SAME_AGE).leading_zeros()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::lists::MANY;
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

    /// All that may go, as of `now`.
    fn victims(order: &Order, now: u32) -> Vec<Short> {
        order.victims(now).map(|(short, _)| short).collect()
    }

    #[test]
    fn of_one_age_the_layers_go_first_and_manifests_of_tags_last() {
        let mut order = Order::new();
        for (n, len) in [(0, 500), (1, SMALL), (2, SMALL - 1), (3, 5 * SMALL), (4, 700)] {
            order.put(short(n), len, n, true);
        }
        order.set_tagged(&short(0), true);
        assert_eq!(victims(&order, 63), [1, 3, 2, 4, 0].map(short));
        order.put(short(1), SMALL, 9, true);
        order.set_tagged(&short(0), false);
        assert_eq!(victims(&order, 63), [3, 1, 0, 2, 4].map(short), "another class, the same age");
        order.put(short(3), 7, 10, false);
        assert_eq!(victims(&order, 63), [1, 0, 2, 4, 3].map(short), "another length, another class");
    }

    #[test]
    fn what_was_idle_longer_goes_first_whatever_it_is() {
        let mut order = Order::new();
        for (image, used) in [(0, 0), (10, 1_000), (20, 3_500)] {
            for (n, len) in [(0, 9 * SMALL), (1, 3_000), (2, 500)] {
                order.put(short(image + n), len, used, true);
            }
            order.set_tagged(&short(image + 2), true);
        }
        // Idle for 4,000, 3,000 and 500 seconds: the first two are of about the same age.
        assert_eq!(victims(&order, 4_000), [0, 10, 1, 11, 2, 12, 20, 21, 22].map(short));
        assert_eq!(victims(&order, 4_096), [0, 1, 2, 10, 11, 12, 20, 21, 22].map(short), "whole images");
    }

    #[test]
    fn what_is_pinned_never_goes_wherever_it_comes_from() {
        let mut order = Order::new();
        for n in 0..4 {
            order.put(short(n), SMALL, n, true);
        }
        order.set_pinned([1, 3, 7].map(short).into());
        assert_eq!(victims(&order, 9), [0, 2].map(short));
        order.put(short(7), 1, 0, false);
        order.put(short(1), 1, 9, true);
        order.set_tagged(&short(3), true);
        order.sort();
        assert_eq!(victims(&order, 9), [0, 2].map(short));
        order.pin([short(0)]);
        assert_eq!(victims(&order, 9), [2].map(short));
        assert!(order.is_pinned(&short(0)) && !order.is_pinned(&short(2)));
        order.set_pinned([short(7)].into());
        let mut free = victims(&order, 9);
        free.sort();
        let mut expected = [0, 1, 2, 3].map(short);
        expected.sort();
        assert_eq!(free, expected, "and goes again when it is not pinned any more");
    }

    #[test]
    fn what_was_not_used_for_long_is_named() {
        let mut order = Order::new();
        for n in 0..6 {
            order.put(short(n), if n % 2 == 0 { SMALL } else { 1 }, n * 10, true);
        }
        order.set_tagged(&short(1), true);
        order.pin([short(0)]);
        let mut unused = |since, limit, busy: &[u32]| {
            let claims = order.claim_unused(since, limit, |short_| busy.iter().any(|n| short(*n) == *short_));
            for claim in &claims {
                order.release(&claim.short);
            }
            claims.iter().map(|claim| claim.short).collect::<Vec<_>>()
        };
        assert_eq!(unused(30, 9, &[]), [2, 1].map(short));
        assert_eq!(unused(60, 2, &[]).len(), 2);
        assert_eq!(unused(30, 9, &[2]), [short(1)]);
    }

    #[test]
    fn blobs_found_later_are_sorted_by_their_age() {
        let mut order = Order::new();
        order.put(short(1), 1, 50, true);
        for (n, used) in [(2, 30), (3, 10), (4, 20)] {
            order.put(short(n), 1, used, false);
        }
        order.sort();
        assert_eq!(victims(&order, 50), [3, 4, 2, 1].map(short));
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        /// Whatever happens, each list from which something may go is in the order of use.
        #[test]
        fn every_list_is_sorted_by_use(steps in proptest::collection::vec(step(), 1..80)) {
            let mut order = Order::new();
            let mut pinned = HashSet::new();
            for (now, step) in (100..).zip(steps) {
                match step {
                    Step::Put(n, len, true) => drop(order.put(short(n), len, now, true)),
                    Step::Put(n, len, false) => drop(order.put(short(n), len, now * 7 % 100, false)),
                    Step::Remove(n) => drop(order.remove(&short(n))),
                    Step::Tag(n, on) => order.set_tagged(&short(n), on),
                    Step::Pin(n, on) => {
                        if on { pinned.insert(short(n)) } else { pinned.remove(&short(n)) };
                        order.set_pinned(pinned.clone());
                    }
                    Step::Claim(limit) => {
                        for claim in order.claim(now, u64::MAX, limit, |_| false) {
                            order.postpone(&claim.short, now - 50);
                            order.release(&claim.short);
                        }
                    }
                    Step::Take => drop(order.take_touched()),
                    Step::Sort => order.sort(),
                }
                for class in Class::VICTIMS {
                    let used: Vec<u32> =
                        order.oldest_of(&order.lists[class as usize]).map(|node| node.used).collect();
                    prop_assert!(used.is_sorted(), "{class:?}: {used:?}");
                }
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u32, u64, bool),
        Remove(u32),
        Tag(u32, bool),
        Pin(u32, bool),
        Claim(usize),
        Take,
        Sort,
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = prop_oneof![0..100_u64, SMALL..SMALL + 100];
        prop_oneof![
            4 => (0..12u32, len, any::<bool>()).prop_map(|(n, len, touch)| Step::Put(n, len, touch)),
            1 => (0..12u32).prop_map(Step::Remove),
            1 => (0..12u32, any::<bool>()).prop_map(|(n, on)| Step::Tag(n, on)),
            1 => (0..12u32, any::<bool>()).prop_map(|(n, on)| Step::Pin(n, on)),
            1 => (0..8_usize).prop_map(Step::Claim),
            1 => Just(Step::Take),
            1 => Just(Step::Sort),
        ]
    }

    /// A blob of the model.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Entry {
        len: u64,
        used: u32,
        tagged: bool,
        touched: bool,
        placed: bool,
    }

    /// One map, from which the lists of the classes are filtered and sorted.
    #[derive(Default)]
    struct Model {
        entries: BTreeMap<u32, Entry>,
        pinned: HashSet<u32>,
    }

    impl Model {
        fn class(&self, n: u32) -> Class {
            match self.entries[&n] {
                _ if self.pinned.contains(&n) => Class::Pinned,
                Entry { placed: false, .. } => Class::Unplaced,
                Entry { tagged: true, .. } => Class::Tagged,
                Entry { len: ..SMALL, .. } => Class::Small,
                Entry { .. } => Class::Bulk,
            }
        }

        /// By use.
        fn of(&self, class: Class) -> Vec<(u32, Short, u64)> {
            let of_class = self.entries.iter().filter(|(n, _)| self.class(**n) == class);
            let mut list: Vec<_> = of_class.map(|(n, entry)| (entry.used, short(*n), entry.len)).collect();
            list.sort();
            list
        }

        fn put(&mut self, n: u32, len: u64, used: u32, touch: bool) -> Option<u64> {
            let before = self.entries.get(&n).copied();
            let old = before.unwrap_or(Entry { len, used, tagged: false, touched: false, placed: false });
            let entry = Entry { len, used, touched: old.touched || touch, placed: old.placed || touch, ..old };
            self.entries.insert(n, entry);
            before.map(|before| before.len)
        }

        fn place(&mut self) {
            if !self.of(Class::Unplaced).is_empty() {
                self.entries.values_mut().for_each(|entry| entry.placed = true);
            }
        }

        /// How many of at most so many are claimed.
        fn claim(&mut self, limit: usize) -> usize {
            if self.of(Class::Unplaced).len() > self.entries.len() / MANY {
                self.place();
            }
            let count = |model: &Self| Class::VICTIMS.iter().map(|class| model.of(*class).len()).sum::<usize>();
            if count(self) < limit {
                self.place();
            }
            count(self).min(limit)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        /// The lists against a map that is sorted.
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec(step(), 1..80)) {
            let mut order = Order::new();
            let mut model = Model::default();
            for (now, step) in (1..).zip(steps) {
                match step {
                    Step::Put(n, len, touch) => {
                        prop_assert_eq!(order.put(short(n), len, now, touch), model.put(n, len, now, touch));
                    }
                    Step::Remove(n) => {
                        prop_assert_eq!(order.remove(&short(n)), model.entries.remove(&n).map(|entry| entry.len));
                    }
                    Step::Tag(n, on) => {
                        order.set_tagged(&short(n), on);
                        if let Some(entry) = model.entries.get_mut(&n) {
                            entry.tagged = on;
                        }
                    }
                    Step::Pin(n, on) => {
                        if on { model.pinned.insert(n) } else { model.pinned.remove(&n) };
                        order.set_pinned(model.pinned.iter().copied().map(short).collect());
                        model.place();
                    }
                    Step::Claim(limit) => {
                        let claims = order.claim(now, u64::MAX, limit, |_| false);
                        prop_assert_eq!(claims.len(), model.claim(limit));
                        for claim in &claims {
                            prop_assert!(order.holds(claim) && order.removable_len(&claim.short) == 0);
                            order.release(&claim.short);
                        }
                    }
                    Step::Take => {
                        let mut taken: Vec<_> = order.take_touched().into_iter().map(|(s, _)| s).collect();
                        let touched = model.entries.iter().filter(|(_, entry)| entry.touched);
                        let mut expected: Vec<_> = touched.map(|(n, _)| short(*n)).collect();
                        taken.sort();
                        expected.sort();
                        prop_assert_eq!(taken, expected);
                        model.entries.values_mut().for_each(|entry| entry.touched = false);
                    }
                    Step::Sort => {
                        order.sort();
                        model.entries.values_mut().for_each(|entry| entry.placed = true);
                    }
                }
                let mut removable = 0;
                for class in Class::ALL {
                    let list = order.oldest_of(&order.lists[class as usize]);
                    let mut list: Vec<_> = list.map(|node| (node.used, node.short(), node.len())).collect();
                    if !Class::VICTIMS.contains(&class) {
                        list.sort();
                    }
                    if !matches!(class, Class::Pinned | Class::Claimed) {
                        removable += list.iter().map(|(.., len)| len).sum::<u64>();
                    }
                    prop_assert_eq!(order.lists[class as usize].len, list.len());
                    prop_assert_eq!(list, model.of(class), "{:?}", class);
                }
                prop_assert_eq!((order.len(), order.removable()), (model.entries.len(), removable));
            }
        }
    }
}
