//! Public or private: what upstream said last when a caller without any credential asked for a repository.
//!
//! In memory with the time of the question, so that it can grow old; on the disk for the time when upstream cannot be
//! asked, also after a restart. Only what upstream gives to everybody, and what it refuses to everybody, says anything:
//! an answer to a caller's credential never does.

use std::time::{Duration, SystemTime};

use foldhash::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::writes::Asked;
use super::{Cache, Repository};
use crate::store::{Access, AccessRecord};

/// Repositories that are remembered; of others the disk tells.
const CAPACITY: usize = 10_000;

/// What is known of repositories.
#[derive(Default)]
pub(super) struct Verdicts {
    /// Held for look-ups only, never over an await.
    known: Mutex<HashMap<Repository, Verdict>>,
}

/// What upstream said last to a caller without a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) access: Access,
    /// When it was asked; none: longer ago than the clock can tell.
    asked: Option<Instant>,
    /// Whether upstream was asked since the start; else the disk tells, which has it only of what is kept.
    heard: bool,
}

// === impl Verdict ===

impl Verdict {
    /// Whether it is public, and upstream was asked less than `public_for` ago.
    pub(super) fn is_fresh_public(&self, public_for: Duration) -> bool {
        self.access == Access::Public && self.asked.is_some_and(|asked| asked.elapsed() < public_for)
    }

    /// As it stands on the disk: it was learned then, and perhaps confirmed since. A time in the future
    /// says nothing.
    fn stored(record: &AccessRecord, now: SystemTime) -> Self {
        let age = now.duration_since(record.since).ok();
        Self { access: record.access, asked: age.and_then(|age| Instant::now().checked_sub(age)), heard: false }
    }
}

// === impl Verdicts ===

impl Verdicts {
    /// The verdict, if it is in memory.
    pub(super) fn get(&self, repository: &Repository) -> Option<Verdict> {
        self.known.lock().get(repository).copied()
    }

    /// The verdict that an answer may depend on which must not tell what is kept.
    pub(super) fn heard(&self, repository: &Repository) -> Option<Verdict> {
        self.get(repository).filter(|verdict| verdict.heard)
    }

    /// Remembers what upstream said when it was asked at `asked`, unless a later question was answered already. True if
    /// it is news.
    fn learn(&self, repository: &Repository, access: Access, asked: Instant) -> bool {
        self.put(repository, Verdict { access, asked: Some(asked), heard: true })
    }

    /// It is public by the operator's word: upstream has not been heard.
    fn open(&self, repository: &Repository) {
        self.put(repository, Verdict { access: Access::Public, asked: Some(Instant::now()), heard: false });
    }

    fn put(&self, repository: &Repository, verdict: Verdict) -> bool {
        let mut known = self.known.lock();
        let before = known.get(repository).copied();
        if before.is_some_and(|before| before.asked > verdict.asked) {
            return false;
        }
        if before.is_none() && known.len() >= CAPACITY {
            // It only ever saves a question, and the disk has the last word of what is kept.
            known.clear();
        }
        known.insert(repository.clone(), verdict);
        before.is_none_or(|before| before.access != verdict.access)
    }
}

// === impl Cache ===

impl Cache {
    /// The last verdict: from memory, else from the disk.
    pub(super) async fn verdict(&self, repository: &Repository) -> Option<Verdict> {
        if let Some(verdict) = self.verdicts.get(repository) {
            return Some(verdict);
        }
        let Repository { upstream, repo } = repository;
        match self.store.access(upstream, repo).await {
            Ok(record) => {
                let verdict = Verdict::stored(&record?, self.store.timeline().now());
                self.verdicts.put(repository, verdict);
                // Somebody may have learned better meanwhile.
                self.verdicts.get(repository).or(Some(verdict))
            }
            Err(error) => {
                tracing::warn!(
                    %upstream, repository = %repo, error = &error as &dyn std::error::Error,
                    "whether a repository is public cannot be read; it counts as private"
                );
                None
            }
        }
    }

    /// Upstream gave something of the repository to a caller without a credential, or refused it. On the disk this
    /// changes what is known of a repository of which something is kept; names that strangers make up leave no trace.
    pub(super) async fn learn_access(&self, repository: &Repository, access: Access, asked: &Asked) {
        if !self.verdicts.learn(repository, access, asked.instant) {
            return;
        }
        let Repository { upstream, repo } = repository;
        if matches!(self.store.access(upstream, repo).await, Ok(Some(record)) if record.access != access) {
            tracing::info!(%upstream, repository = %repo, access = access.as_str(), "upstream changed who may read");
            self.keep_access(repository).await;
        }
    }

    /// The operator has brought something of the repository that is for everybody.
    pub(super) fn open_to_all(&self, repository: &Repository) {
        self.verdicts.open(repository);
    }

    /// Writes the verdict down, where there is one, because something of the repository is kept.
    pub(super) async fn keep_access(&self, repository: &Repository) {
        let Repository { upstream, repo } = repository;
        while let Some(verdict) = self.verdicts.get(repository) {
            if let Err(error) = self.store.set_access(upstream, repo, verdict.access).await {
                tracing::warn!(
                    %upstream, repository = %repo, error = &error as &dyn std::error::Error,
                    "whether a repository is public could not be kept"
                );
                return;
            }
            // Who learned another one meanwhile may have written it before this one came to the disk.
            if self.verdicts.get(repository).is_none_or(|now| now.access == verdict.access) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> Repository {
        Repository { upstream: "up".parse().unwrap(), repo: "app".parse().unwrap() }
    }

    #[tokio::test(start_paused = true)]
    async fn public_grows_old_and_the_later_question_decides() {
        let (verdicts, app, ten_minutes) = (Verdicts::default(), repository(), Duration::from_mins(10));
        assert_eq!(verdicts.get(&app), None);
        let early = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let later = Instant::now();
        assert!(verdicts.learn(&app, Access::Private, later), "news");
        assert!(!verdicts.learn(&app, Access::Public, early), "asked before, answered after: nothing");
        assert_eq!(verdicts.get(&app).unwrap().access, Access::Private);
        assert!(!verdicts.get(&app).unwrap().is_fresh_public(ten_minutes));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(verdicts.learn(&app, Access::Public, Instant::now()));
        assert!(!verdicts.learn(&app, Access::Public, Instant::now()), "no news");
        tokio::time::advance(Duration::from_millis(599_999)).await;
        assert!(verdicts.get(&app).unwrap().is_fresh_public(ten_minutes));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!verdicts.get(&app).unwrap().is_fresh_public(ten_minutes), "ten minutes are over");
        assert_eq!(verdicts.get(&app).unwrap().access, Access::Public, "but it was the last word");
    }

    #[tokio::test]
    async fn a_stored_verdict_is_as_old_as_it_says() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        let at = |since| Verdict::stored(&AccessRecord { access: Access::Public, since }, now);
        assert!(at(now - Duration::from_secs(1)).is_fresh_public(Duration::from_mins(1)));
        assert!(!at(now - Duration::from_mins(2)).is_fresh_public(Duration::from_mins(1)));
        assert!(!at(SystemTime::UNIX_EPOCH).is_fresh_public(Duration::from_mins(1)));
        assert!(!at(now + Duration::from_hours(1)).is_fresh_public(Duration::from_mins(1)), "the clock was set back");
    }

    #[tokio::test]
    async fn the_memory_is_bounded() {
        let verdicts = Verdicts::default();
        for n in 0..=CAPACITY {
            let name = Repository { repo: format!("r{n}").parse().unwrap(), ..repository() };
            verdicts.learn(&name, Access::Public, Instant::now());
            assert!(verdicts.known.lock().len() <= CAPACITY);
            assert!(verdicts.get(&name).is_some());
        }
    }
}
