//! What is chosen to go: it is taken out of the order until it is removed or released, so that nobody chooses it twice.

use super::{CLAIMED, Class, Node, Order, SMALL, Short, TAGGED};

/// A blob that was chosen to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Claim {
    pub(in crate::store) short: Short,
    pub(in crate::store) len: u64,
    /// When it was used last. Used since: it is not to go any more.
    pub(in crate::store) used: u32,
    /// Short enough for a manifest, or known as one.
    pub(in crate::store) may_be_manifest: bool,
}

// === impl Order ===

impl Order {
    /// Takes out what should go first as of `now`, until it is `missing` bytes or `limit` blobs, passing over those that
    /// are `busy`. It goes nowhere until it is removed or released.
    pub(in crate::store) fn claim(
        &mut self,
        now: u32,
        missing: u64,
        limit: usize,
        busy: impl Fn(&Short) -> bool,
    ) -> Vec<Claim> {
        self.place_many();
        let mut claims = self.claim_placed(now, missing, limit, &busy);
        let bytes: u64 = claims.iter().map(|claim| claim.len).sum();
        if bytes < missing && claims.len() < limit && self.lists[Class::Unplaced as usize].len > 0 {
            self.sort();
            claims.extend(self.claim_placed(now, missing - bytes, limit - claims.len(), &busy));
        }
        claims
    }

    fn claim_placed(&mut self, now: u32, missing: u64, limit: usize, busy: &impl Fn(&Short) -> bool) -> Vec<Claim> {
        let mut bytes = 0;
        let mut chosen = Vec::new();
        for (short, len) in self.victims(now) {
            if bytes >= missing || chosen.len() >= limit {
                break;
            }
            if !busy(&short) {
                bytes += len;
                chosen.push(short);
            }
        }
        chosen.into_iter().filter_map(|short| self.take_out(&short)).collect()
    }

    /// Takes out at most `limit` of the blobs that may go, are not `busy` and were not used since `since`.
    pub(in crate::store) fn claim_unused(
        &mut self,
        since: u32,
        limit: usize,
        busy: impl Fn(&Short) -> bool,
    ) -> Vec<Claim> {
        let lists = Class::VICTIMS.iter().map(|class| &self.lists[*class as usize]);
        let unused = lists.flat_map(|list| self.oldest_of(list).take_while(|node| node.used < since));
        // What has no place is few, and not worth a sort of all.
        let unplaced = self.oldest_of(&self.lists[Class::Unplaced as usize]).filter(|node| node.used < since);
        let unused = unused.chain(unplaced);
        let chosen: Vec<Short> = unused.map(Node::short).filter(|short| !busy(short)).take(limit).collect();
        chosen.into_iter().filter_map(|short| self.take_out(&short)).collect()
    }

    fn take_out(&mut self, short: &Short) -> Option<Claim> {
        let at = self.find(short)?;
        let node = *self.node(at);
        self.flag(at, CLAIMED, true);
        let may_be_manifest = node.len() < SMALL || node.flags & TAGGED != 0;
        Some(Claim { short: *short, len: node.len(), used: node.used, may_be_manifest })
    }

    /// Whether what was claimed is still to go.
    pub(in crate::store) fn holds(&self, claim: &Claim) -> bool {
        self.find(&claim.short).is_some_and(|at| {
            let node = self.node(at);
            node.class() == Class::Claimed && node.used == claim.used
        })
    }

    /// What was claimed stays, in its place.
    pub(in crate::store) fn release(&mut self, short: &Short) {
        if let Some(at) = self.find(short) {
            self.flag(at, CLAIMED, false);
        }
    }

    /// What was known to be used last at some time was used at `used`, if that is later.
    pub(in crate::store) fn postpone(&mut self, short: &Short, used: u32) {
        if let Some(at) = self.find(short)
            && self.node(at).used < used
        {
            self.unlink(at);
            self.node_mut(at).used = used;
            self.put_down(at);
            self.link(at);
        }
    }
}
