//! What has gone lately, and why: so that "why was this a miss" has an answer. In memory, of bounded number, and nothing
//! depends on it.

use std::collections::VecDeque;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Inner;
use super::order::Short;
use crate::clock::timestamp;
use crate::oci::{Digest, RepoName, Tag, UpstreamName};

/// How many blobs are remembered.
const BLOBS: usize = 2048;
/// How many tags: their names are longer.
const TAGS: usize = 256;

/// Why something has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Departure {
    /// To make room, or because nobody had used it for `store.max_age`.
    Evicted,
    /// By an operator's word.
    Removed,
    /// Nothing led to it any more.
    Collected,
    /// It was not what its digest names.
    Quarantined,
}

/// That something has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    /// Why.
    pub why: Departure,
    /// When.
    pub at: Timestamp,
}

/// What is remembered; the last one is at the end.
#[derive(Debug, Default)]
pub(super) struct Departures(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    blobs: VecDeque<(Short, Departed)>,
    tags: VecDeque<(TagName, Digest, Departed)>,
}

type TagName = (UpstreamName, RepoName, Tag);

// === impl Departure ===

impl Departure {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Evicted => "evicted",
            Self::Removed => "removed",
            Self::Collected => "collected",
            Self::Quarantined => "quarantined",
        }
    }
}

// === impl Departures ===

impl Departures {
    /// When and why a blob went last.
    pub(super) fn blob(&self, digest: &Digest) -> Option<Departed> {
        let short = Short::from(digest);
        let remembered = self.0.lock();
        remembered.blobs.iter().rev().find(|(gone, _)| *gone == short).map(|(_, departed)| *departed)
    }

    /// When and why a tag went last, and what it named then.
    pub(super) fn tag(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Option<(Digest, Departed)> {
        let remembered = self.0.lock();
        let is_it = |(gone_up, gone_repo, gone): &TagName| gone == tag && gone_repo == repo && gone_up == up;
        remembered.tags.iter().rev().find(|(name, ..)| is_it(name)).map(|(_, digest, departed)| (*digest, *departed))
    }
}

// === impl Inner ===

impl Inner {
    /// A blob has gone.
    pub(super) fn note_gone(&self, digest: &Digest, why: Departure) {
        let departed = Departed { why, at: timestamp(self.timeline.now()) };
        let mut remembered = self.departures.0.lock();
        if remembered.blobs.len() >= BLOBS {
            remembered.blobs.pop_front();
        }
        remembered.blobs.push_back((Short::from(digest), departed));
    }

    /// A tag that named this has gone, or is about to: one that is there after all is not looked up here.
    pub(super) fn note_tag_gone(&self, name: TagName, digest: &Digest, why: Departure) {
        let departed = Departed { why, at: timestamp(self.timeline.now()) };
        let mut remembered = self.departures.0.lock();
        if remembered.tags.len() >= TAGS {
            remembered.tags.pop_front();
        }
        remembered.tags.push_back((name, *digest, departed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn the_last_departure_counts_and_memory_is_bounded() {
        let departures = Departures::default();
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let at = |second| Departed { why: Departure::Evicted, at: Timestamp::from_second(second).unwrap() };
        let mut remembered = departures.0.lock();
        remembered.blobs.push_back((Short::from(&digest), at(1)));
        remembered.blobs.push_back((Short::from(&digest), at(2)));
        drop(remembered);
        assert_eq!(departures.blob(&digest), Some(at(2)));
        assert_eq!(departures.blob(&Digest::of(Algorithm::Sha512, b"x")), None);
    }
}
