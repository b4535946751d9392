//! The lists of the classes, each from the newest to the oldest use and sorted at any time, and how a blob gets its place.

use super::{Class, NONE, Node, Order, UNPLACED};

/// Nodes that are passed on the way to the place of one; further places are found by sorting.
const REACH: usize = 512;
/// The share of all blobs, as a divisor, that may be without a place before they are sorted.
pub(super) const MANY: usize = 8;

#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) newest: u32,
    pub(super) oldest: u32,
    /// Of all in it.
    pub(super) bytes: u64,
    pub(super) len: usize,
}

// === impl List ===

impl List {
    pub(super) const EMPTY: Self = Self { newest: NONE, oldest: NONE, bytes: 0, len: 0 };
}

// === impl Order ===

impl Order {
    pub(super) fn oldest_of(&self, list: &List) -> impl Iterator<Item = &Node> {
        let start = (list.oldest != NONE).then_some(list.oldest);
        let next = |&at: &u32| Some(self.node(at).newer).filter(|&next| next != NONE);
        std::iter::successors(start, next).map(|at| self.node(at))
    }

    /// Puts everything in its place.
    pub(in crate::store) fn place(&mut self) {
        self.place_from(1);
    }

    /// The same, if so many have none. Sorting a million blobs takes a third of a second, and what has no place does no
    /// harm: it goes behind the others.
    pub(in crate::store) fn place_from(&mut self, count: usize) {
        if self.lists[Class::Unplaced as usize].len >= count {
            self.sort();
        }
    }

    /// The same, if it is so much that it pays.
    pub(super) fn place_many(&mut self) {
        self.place_from(self.len() / MANY + 1);
    }

    /// Puts the lists in the order of use. What was used in the same second stays in the order in which it is, behind what
    /// had no place.
    pub(super) fn sort(&mut self) {
        let mut all = Vec::with_capacity(self.table.len());
        for class in [Class::Unplaced].into_iter().chain(Class::ALL.into_iter().filter(|c| *c != Class::Unplaced)) {
            let mut at = self.lists[class as usize].oldest;
            while at != NONE {
                let node = self.node(at);
                all.push((node.used, at));
                at = node.newer;
            }
        }
        all.sort_by_key(|(used, _)| *used);
        self.lists = [List::EMPTY; Class::ALL.len()];
        for (_, at) in all {
            self.node_mut(at).set(UNPLACED, false);
            self.link_newest(at);
        }
    }

    pub(super) fn unlink(&mut self, at: u32) {
        let Node { newer, older, .. } = *self.node(at);
        let (list, len) = (self.node(at).list(), self.node(at).len());
        match newer {
            NONE => self.lists[list].newest = older,
            newer => self.node_mut(newer).older = older,
        }
        match older {
            NONE => self.lists[list].oldest = newer,
            older => self.node_mut(older).newer = newer,
        }
        self.lists[list].bytes -= len;
        self.lists[list].len -= 1;
    }

    /// Links it into the list of its class by its age, or into that of those without a place if the way is long.
    pub(super) fn link(&mut self, at: u32) {
        let node = *self.node(at);
        let mut older = self.lists[node.list()].newest;
        if matches!(node.class(), Class::Bulk | Class::Small | Class::Tagged) {
            let mut steps = 0;
            while older != NONE && self.node(older).used > node.used {
                steps += 1;
                if steps > REACH {
                    self.node_mut(at).set(UNPLACED, true);
                    return self.link_newest(at);
                }
                older = self.node(older).older;
            }
        }
        self.link_after(at, older);
    }

    pub(super) fn link_newest(&mut self, at: u32) {
        self.link_after(at, self.lists[self.node(at).list()].newest);
    }

    /// Links it into its list as the next newer one of `older`; of none, as the oldest.
    fn link_after(&mut self, at: u32, older: u32) {
        let (list, len) = (self.node(at).list(), self.node(at).len());
        let newer = match older {
            NONE => std::mem::replace(&mut self.lists[list].oldest, at),
            older => std::mem::replace(&mut self.node_mut(older).newer, at),
        };
        match newer {
            NONE => self.lists[list].newest = at,
            newer => self.node_mut(newer).older = at,
        }
        let node = self.node_mut(at);
        (node.newer, node.older) = (newer, older);
        self.lists[list].bytes += len;
        self.lists[list].len += 1;
    }
}
