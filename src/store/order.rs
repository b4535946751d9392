//! Which blobs are in the store, how long they are, and in which order they were used: in memory, at most 48 bytes a
//! blob.
//!
//! A blob is known by the first 16 bytes of its digest; the whole digest is in the index and in the file's name. Each
//! class has a list from the newest to the oldest use. What goes first is what was idle longest, and of what was idle
//! about as long, the class that frees most for least: so an image that nobody asked for goes whole, its layers first and
//! the manifest that its tag names last, before a part of one that is in use (`images`).

use std::cmp::Reverse;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

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

/// What a blob is to the order of eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Content.
    Bulk,
    /// Short content: configurations, and manifests that no tag names.
    Small,
    /// A manifest that a tag names.
    Tagged,
    /// It never goes.
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
    /// By [`Class`].
    lists: [List; Class::ALL.len()],
    /// What never goes, known or not.
    pinned: HashSet<Short>,
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
    const ALL: [Self; 4] = [Self::Bulk, Self::Small, Self::Tagged, Self::Pinned];
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
            flags if flags & TAGGED != 0 => Class::Tagged,
            _ if self.len() < SMALL => Class::Small,
            _ => Class::Bulk,
        }
    }

    fn list(&self) -> usize {
        self.class() as usize
    }

    fn with_len(mut self, len: u64) -> Self {
        self.set_len(len);
        self
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
        Self {
            table: HashTable::new(),
            chunks: Vec::new(),
            free: NONE,
            lists: [list; Class::ALL.len()],
            pinned: HashSet::new(),
            hasher: RandomState::new(),
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
    /// `touch` it becomes the most recently used one; without, a known blob keeps its place, and a new one goes to the
    /// old end until [`Order::sort`].
    pub(super) fn put(&mut self, short: Short, len: u64, used: u32, touch: bool) -> Option<u64> {
        let known = self.find(&short);
        let at = known.unwrap_or_else(|| self.add(short));
        let before = known.map(|at| self.node(at).len());
        let resized = Node { len_low: 0, len_high: 0, ..*self.node(at) }.with_len(len);
        // One that changes its class is put down as used: its place in the other list is not known.
        let touch = touch || (known.is_some() && resized.class() != self.node(at).class());
        if known.is_some() && touch {
            self.unlink(at);
        }
        let node = self.node_mut(at);
        node.set_len(len);
        node.used = node.used.max(used);
        node.set(SEEN, true);
        if touch {
            node.set(TOUCHED, true);
        }
        match (known, touch) {
            (Some(_), false) => {}
            (_, true) => self.link_newest(at),
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

    fn flag(&mut self, at: u32, flag: u16, on: bool) {
        if (self.node(at).flags & flag != 0) != on {
            self.unlink(at);
            // Touched: `take_touched` relies on what stands at the newest end being so.
            self.node_mut(at).set(flag, on);
            self.node_mut(at).set(TOUCHED, true);
            self.link_newest(at);
        }
    }

    /// What may go, from what should go first to what should go last, as of `now`. The cost of a step does not depend on
    /// how many blobs there are.
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

    /// Nothing was used later than `now`.
    pub(super) fn bound(&mut self, now: u32) {
        for node in self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut()) {
            node.used = node.used.min(now);
        }
    }

    /// Everything was used so many seconds earlier.
    #[cfg(test)]
    pub(super) fn age_all(&mut self, seconds: u32) {
        for node in self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut()) {
            node.used = node.used.saturating_sub(seconds);
        }
    }

    /// At most `limit` of the blobs that may go and were not used since `since`.
    pub(super) fn unused_since(&self, since: u32, limit: usize) -> Vec<Short> {
        let lists = Class::VICTIMS.iter().map(|class| &self.lists[*class as usize]);
        let unused = lists.flat_map(|list| self.oldest_of(list).take_while(|node| node.used < since));
        unused.map(Node::short).take(limit).collect()
    }

    fn oldest_of(&self, list: &List) -> impl Iterator<Item = &Node> {
        let start = (list.oldest != NONE).then_some(list.oldest);
        let next = |&at: &u32| Some(self.node(at).newer).filter(|&next| next != NONE);
        std::iter::successors(start, next).map(|at| self.node(at))
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
        self.lists = [List { newest: NONE, oldest: NONE }; Class::ALL.len()];
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
        let pinned = if self.pinned.contains(&short) { PINNED } else { 0 };
        let flags = USED | pinned | if short.wide { WIDE } else { 0 };
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

/// How long something was idle, so coarsely that the parts of an image, which are used one after the other, and images
/// of about the same age count as equal.
fn age(now: u32, used: u32) -> u32 {
    u32::BITS - (now.saturating_sub(used) >> SAME_AGE).leading_zeros()
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
        assert_eq!(victims(&order, 63), [3, 1, 2, 4, 0].map(short));
        order.put(short(3), 7, 10, false);
        assert_eq!(victims(&order, 63), [1, 2, 4, 0, 3].map(short), "another length, another class");
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
        assert_eq!(order.unused_since(30, 9), [2, 1].map(short));
        assert_eq!(order.unused_since(60, 2).len(), 2);
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

    #[derive(Debug, Clone)]
    enum Step {
        Put(u32, u64, bool),
        Remove(u32),
        Tag(u32, bool),
        Pin(u32, bool),
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
            1 => Just(Step::Take),
            1 => Just(Step::Sort),
        ]
    }

    /// A blob of the model.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Entry {
        n: u32,
        len: u64,
        used: u32,
        tagged: bool,
        touched: bool,
    }

    /// One vector, oldest first, from which the lists of the classes are filtered.
    #[derive(Default)]
    struct Model {
        entries: Vec<Entry>,
        pinned: HashSet<u32>,
    }

    impl Model {
        fn class(&self, entry: &Entry) -> Class {
            match entry {
                _ if self.pinned.contains(&entry.n) => Class::Pinned,
                Entry { tagged: true, .. } => Class::Tagged,
                Entry { len: ..SMALL, .. } => Class::Small,
                _ => Class::Bulk,
            }
        }

        fn of(&self, class: Class) -> Vec<Entry> {
            self.entries.iter().filter(|entry| self.class(entry) == class).copied().collect()
        }

        fn take(&mut self, n: u32) -> Option<Entry> {
            let at = self.entries.iter().position(|entry| entry.n == n)?;
            Some(self.entries.remove(at))
        }

        fn put(&mut self, n: u32, len: u64, used: u32, touch: bool) -> Option<u64> {
            let Some(at) = self.entries.iter().position(|entry| entry.n == n) else {
                let entry = Entry { n, len, used, tagged: false, touched: touch };
                let at = if touch { self.entries.len() } else { 0 };
                self.entries.insert(at, entry);
                return None;
            };
            let old = self.entries[at];
            let mut new = Entry { len, used: used.max(old.used), ..old };
            if touch || self.class(&new) != self.class(&old) {
                self.entries.remove(at);
                new.touched = true;
                self.entries.push(new);
            } else {
                self.entries[at] = new;
            }
            Some(old.len)
        }

        /// Changes what makes its class.
        fn reclass(&mut self, n: u32, change: impl FnOnce(&mut Self, &mut Entry) -> bool) {
            if let Some(at) = self.entries.iter().position(|entry| entry.n == n) {
                let mut entry = self.entries[at];
                if change(self, &mut entry) {
                    self.entries.remove(at);
                    entry.touched = true;
                    self.entries.push(entry);
                }
            } else {
                change(self, &mut Entry { n, len: 0, used: 0, tagged: false, touched: false });
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        /// The lists against a vector that is searched.
        #[test]
        fn behaves_like_a_vector(steps in proptest::collection::vec(step(), 1..80)) {
            let mut order = Order::new();
            let mut model = Model::default();
            for (now, step) in (1..).zip(steps) {
                match step {
                    Step::Put(n, len, touch) => {
                        prop_assert_eq!(order.put(short(n), len, now, touch), model.put(n, len, now, touch));
                    }
                    Step::Remove(n) => {
                        prop_assert_eq!(order.remove(&short(n)), model.take(n).map(|entry| entry.len));
                    }
                    Step::Tag(n, on) => {
                        order.set_tagged(&short(n), on);
                        if model.entries.iter().any(|entry| entry.n == n) {
                            model.reclass(n, |_, entry| std::mem::replace(&mut entry.tagged, on) != on);
                        }
                    }
                    Step::Pin(n, on) => {
                        let mut pinned = model.pinned.clone();
                        if on { pinned.insert(n) } else { pinned.remove(&n) };
                        order.set_pinned(pinned.iter().copied().map(short).collect());
                        model.reclass(n, |model, _| std::mem::replace(&mut model.pinned, pinned.clone()) != pinned);
                    }
                    Step::Take => {
                        let mut taken: Vec<_> = order.take_touched().into_iter().map(|(s, _)| s).collect();
                        let mut expected: Vec<_> =
                            model.entries.iter().filter(|entry| entry.touched).map(|entry| short(entry.n)).collect();
                        taken.sort();
                        expected.sort();
                        prop_assert_eq!(taken, expected);
                        for entry in &mut model.entries {
                            entry.touched = false;
                        }
                    }
                    Step::Sort => {
                        order.sort();
                        model.entries.sort_by_key(|entry| (entry.touched, entry.used));
                    }
                }
                for class in Class::ALL {
                    let list: Vec<_> =
                        order.oldest_of(&order.lists[class as usize]).map(|node| (node.short(), node.len())).collect();
                    let expected: Vec<_> = model.of(class).iter().map(|entry| (short(entry.n), entry.len)).collect();
                    prop_assert_eq!(list, expected, "{:?}", class);
                }
                prop_assert_eq!(order.len(), model.entries.len());
            }
        }
    }
}
