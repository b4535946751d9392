//! Misses at sealed upstreams: counted, and noted for who carries images over the gap.

use std::hash::BuildHasher as _;

use super::{Cache, CacheError, Target};
use crate::metrics::Kind;
use crate::party::Party;
use crate::store::Sought;
use crate::upstream::Fault;

// === impl CacheError ===

impl CacheError {
    /// Whether it says that something is not here, and that upstream is not to be asked.
    pub fn is_sealed(&self) -> bool {
        match self {
            Self::Sealed { .. } => true,
            Self::Upstream(error) => matches!(error.fault, Fault::Sealed),
            _ => false,
        }
    }
}

// === impl Cache ===

impl Cache {
    /// Somebody was told that something is not here, and that its upstream is sealed; `sought`: what of the repository
    /// somebody can bring.
    pub fn note_sealed(&self, target: &Target, kind: Kind, sought: Option<Sought>, party: Party) {
        let Target { upstream, repo, .. } = target;
        self.metrics.sealed_misses.with_label_values(&[upstream.as_str(), kind.as_str()]).inc();
        if let Some(sought) = sought {
            self.store.note_missed(upstream, repo, sought, self.askers.hash_one(party));
        }
    }
}
