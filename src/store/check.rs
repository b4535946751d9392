//! When upstream was last asked about a tag, with an answer: how old that is, which questions it has overtaken, and what
//! it says nothing about any more.
//!
//! It outlives the process in the index, and the clock may be set meanwhile. So only the age is counted by times; that a
//! check was made after a delete, or since upstream has its URL, is told by names.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::known::{KnownTag, TagKey};
use super::refs::TagRecord;
use super::suspicion::Repository;
use super::{Inner, Store, StoreError};
use crate::oci::{RepoName, Tag, UpstreamName};

/// One check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Check {
    /// When it was, by the clock on the wall.
    pub(super) at: SystemTime,
    /// The moment of the question.
    pub(super) moment: SystemTime,
    /// The name of the mark of the whole repository that it ended for this tag.
    pub(super) mark: Option<SystemTime>,
    /// Since when upstream had its URL again.
    pub(super) since: Option<SystemTime>,
}

// === impl Check ===

impl Check {
    /// As it stands in the index.
    pub(super) fn encode(&self) -> Vec<u8> {
        let times = [Some(self.at), Some(self.moment), self.mark, self.since];
        times.iter().flat_map(|time| time.map_or(0, nanos).to_le_bytes()).collect()
    }

    /// None if it is no check. Earlier versions wrote the time alone.
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (words, []) = value.as_chunks() else { return None };
        let word = |at: usize| words.get(at).map_or(0, |word| u64::from_le_bytes(*word));
        let named = |at: usize| Some(word(at)).filter(|nanos| *nanos != 0).map(time);
        let moment = if words.len() > 1 { word(1) } else { word(0) };
        matches!(words.len(), 1 | 4).then(|| Self {
            at: time(word(0)),
            moment: time(moment),
            mark: named(2),
            since: named(3),
        })
    }

    fn is_under(&self, mark: SystemTime) -> bool {
        self.mark.is_some_and(|own| nanos(own) == nanos(mark))
    }
}

/// Nanoseconds since 1970: by this time answers are put into the order of their questions, and those may be close
/// together. Times out of range go to its ends.
fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

/// What is known of a tag at one time.
#[derive(Debug)]
pub struct TagState {
    /// What it names.
    pub record: Option<Arc<TagRecord>>,
    /// When upstream was last asked about it, with an answer. Unknown after the index is lost; a time in the future, or
    /// from before the clock was set back, does not count.
    pub checked_at: Option<SystemTime>,
    /// Whether a write may have changed it since. What is suspect is not fresh whatever its policy says, and is not served
    /// when upstream cannot be asked. It ends when an answer to a later question is kept. An error: it is not known, and
    /// the tag must be treated as suspect.
    pub suspect: Result<bool, StoreError>,
}

// === impl Store ===

impl Store {
    /// What is known of a tag. What is said in favour of the record was said of it, or of one that it has replaced since.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn tag_state(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Result<TagState, StoreError> {
        let key = (up.clone(), repo.clone(), tag.clone());
        if let Some(state) = self.0.known_tag_state(&key) {
            return Ok(state);
        }
        let read = move |inner: &Arc<Inner>| {
            // In this order: the other way round, a record that was read before it was replaced would be trusted for what
            // is said of the one after it.
            let (up, repo, tag) = &key;
            let suspect = inner.suspected_since(up, repo, tag).map(|since| since.is_some());
            let read = || {
                let check = inner.check(up, repo, tag);
                Some(Arc::new(KnownTag { record: Arc::new(inner.tag_record(up, repo, tag)?), check }))
            };
            match inner.known.read_tag(key.clone(), read) {
                Some(known) => Ok(inner.tag_state(&known, suspect)),
                None => Ok(TagState { record: None, checked_at: inner.checked_at(up, repo, tag), suspect }),
            }
        };
        self.blocking(read).await
    }
}

// === impl Inner ===

impl Inner {
    /// The same from memory; none: it has to be read. Does not block.
    fn known_tag_state(&self, key: &TagKey) -> Option<TagState> {
        let (up, repo, tag) = key;
        // Before the record, as above.
        let judgement = self.suspicions.get(up, repo)?.judge(tag);
        let known = self.known.tag(key)?;
        let suspect = judgement.since(|mark| known.check.is_some_and(|check| check.is_under(mark))).is_some();
        // Another tag that named it may have moved away.
        self.books.set_tagged(&known.record.digest, true);
        Some(self.tag_state(&known, Ok(suspect)))
    }

    fn tag_state(&self, known: &KnownTag, suspect: Result<bool, StoreError>) -> TagState {
        let checked_at = known.check.and_then(|check| self.counts(check));
        TagState { record: Some(known.record.clone()), checked_at, suspect }
    }

    /// When upstream was last asked about the tag, with an answer. Unknown after the index is lost; a time in the future,
    /// or from before the clock was set back, does not count. Blocks.
    pub(super) fn checked_at(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Option<SystemTime> {
        self.counts(self.check(up, repo, tag)?)
    }

    /// When the check was, if that time counts.
    fn counts(&self, check: Check) -> Option<SystemTime> {
        // First: this is a look at the clock too.
        let doubted = self.timeline.doubts(check.moment);
        (!doubted && check.at <= self.timeline.now()).then_some(check.at)
    }

    /// Upstream, asked at the moment `asked_at`, said something about the tag. The repository's gate must be held.
    pub(super) fn note_check(
        &self,
        repository: &Repository,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
        asked_at: SystemTime,
    ) {
        let mark = repository.mark_of_all().map(|(mark, _)| mark.name);
        // Moments may be ahead of a clock that was set back.
        let at = asked_at.min(self.timeline.now());
        let check = Check { at, moment: asked_at, mark, since: self.since.load().get(up).copied() };
        self.set_check(up, repo, tag, Some(&check));
    }

    /// Nothing that was asked before now says anything about the tag.
    pub(super) fn note_forgotten(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) {
        let moment = self.timeline.moment();
        let check = Check { at: self.timeline.now(), moment, mark: None, since: self.since.load().get(up).copied() };
        self.set_check(up, repo, tag, Some(&check));
    }

    /// Remembers a check, or forgets the last one.
    pub(super) fn set_check(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag, check: Option<&Check>) {
        self.hints.set_check(up, repo, tag, check);
        self.known.forget_tag(up, repo, tag);
    }

    /// Whether a question about this tag that was put later than `asked_at` has been answered. Those of another process
    /// are none: it was another clock.
    pub(super) fn is_overtaken(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag, asked_at: SystemTime) -> bool {
        let overtakes = |check: Check| check.moment > asked_at && check.moment <= self.timeline.moment();
        self.check(up, repo, tag).is_some_and(overtakes)
    }

    /// Whether upstream was asked about the tag, with an answer, since its whole repository was marked so.
    pub(super) fn is_confirmed(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag, mark: SystemTime) -> bool {
        self.check(up, repo, tag).is_some_and(|check| check.is_under(mark))
    }

    /// The last check, if it was under upstream's present URL.
    fn check(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Option<Check> {
        let check = self.hints.check(up, repo, tag)?;
        (check.since.map(nanos) == self.since.load().get(up).copied().map(nanos)).then_some(check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for (mark, since) in [(None, None), (Some(at(3)), None), (None, Some(at(4))), (Some(at(3)), Some(at(4)))] {
            let check = Check { at: at(1), moment: at(2), mark, since };
            assert_eq!(Check::decode(&check.encode()), Some(check));
        }
        let old = Check { at: time(77), moment: time(77), mark: None, since: None };
        assert_eq!(Check::decode(&77_u64.to_le_bytes()), Some(old), "as it was written before");
        for broken in [&[][..], &[0; 7], &[0; 16], &[0; 24], &[0; 33]] {
            assert_eq!(Check::decode(broken), None);
        }
        let far = Check { at: at(1 << 40), ..old };
        assert!(Check::decode(&far.encode()).is_some_and(|check| check.at > at(1 << 33)), "no year has no form");
    }
}
