//! How an answer was found: the `Cache-Status` header (RFC 9211), the log and the metrics say the same.

use crate::metrics::Outcome;

/// How an answer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStatus {
    /// Whether it was in the store.
    pub found: Found,
    /// The bytes are not verified yet: a range of a blob whose fill, or whose check, still runs.
    pub unverified: bool,
}

/// Where the answer was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// In the store, and fresh.
    Hit,
    /// In the store; upstream could not be asked, or not in time, whether it is still current.
    Stale,
    /// Upstream, and it is kept.
    Miss,
    /// Upstream, by a request that another client's request had started.
    Collapsed,
    /// Upstream, and nothing is kept since the question is one that upstream alone answers (a HEAD, a list).
    Passed,
    /// Upstream, and it is not kept for want of room.
    Bypass,
}

// === impl CacheStatus ===

impl CacheStatus {
    /// The header's value.
    pub const fn as_header(self) -> &'static str {
        match (self.found, self.unverified) {
            (Found::Hit, false) => "ocistern; hit",
            (Found::Hit, true) => "ocistern; hit; detail=unverified",
            (Found::Stale, _) => "ocistern; hit; detail=stale",
            (Found::Miss, false) => "ocistern; fwd=miss; stored",
            (Found::Miss, true) => "ocistern; fwd=miss; stored; detail=unverified",
            (Found::Collapsed, false) => "ocistern; fwd=miss; collapsed",
            (Found::Collapsed, true) => "ocistern; fwd=miss; collapsed; detail=unverified",
            (Found::Passed, _) => "ocistern; fwd=miss",
            (Found::Bypass, _) => "ocistern; fwd=bypass",
        }
    }

    /// What the metrics and the log call it.
    pub const fn outcome(self) -> Outcome {
        match self.found {
            Found::Hit => Outcome::Hit,
            Found::Stale => Outcome::Stale,
            Found::Miss | Found::Passed => Outcome::Miss,
            Found::Collapsed => Outcome::Collapsed,
            Found::Bypass => Outcome::Bypass,
        }
    }
}

impl From<Found> for CacheStatus {
    fn from(found: Found) -> Self {
        Self { found, unverified: false }
    }
}
