//! Writes to upstream, and what they mean for what is known: while one is on its way no answer about the repository is
//! kept, one that was begun before it ended is dropped, and the tags that it may move are suspect.
//!
//! Every answer carries when it was asked for ([`Asked`]). A write raises the repository's generation when it begins
//! and when it ends, so that an answer from before is told from one after it, and a request after it joins no flight
//! from before. Suspicion is durable: it outlives a kill between upstream's answer and ours.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Cache, CacheError, Repository, Target};
use crate::clock::Timeline;
use crate::oci::Tag;
use crate::store::{SETTLES_WITHIN, Suspicion};

/// Repositories whose generations are remembered; when there are more, all answers from before count as old.
const CAPACITY: usize = 10_000;

/// The generations of repositories.
pub(super) struct Generations {
    timeline: Arc<Timeline>,
    /// Held for look-ups only, never over an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Raised by every write; never goes back.
    clock: u64,
    /// What was asked before this is old, whatever it is about.
    floor: u64,
    repositories: HashMap<Repository, Raised>,
}

/// When a repository was last written to.
#[derive(Debug, Clone, Copy, Default)]
struct Raised {
    written: u64,
    /// Writes on their way.
    writing: u32,
}

/// When upstream was asked something.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// For the store, which puts answers into the order of their questions; that outlives restarts.
    pub(super) at: SystemTime,
    /// By the clock that does not jump.
    pub(super) instant: Instant,
    clock: u64,
}

/// A write on its way to upstream: what it may change is suspect. Dropped without a word about how it ended, its outcome
/// is unknown: it may still happen, so nothing that is heard for a while is kept, and the suspicion stays.
#[must_use = "the write is on its way as long as this lives"]
pub struct WriteGuard {
    /// None once it is known how it ended.
    suspicion: Option<Suspicion>,
    counted: Option<Counted>,
    /// What is known by the write counts from here: something may be deleted while it is on its way.
    begun: Asked,
}

/// A write is counted as long as this lives.
struct Counted {
    cache: Arc<Cache>,
    repository: Repository,
}

// === impl Generations ===

impl Generations {
    /// Of no repository yet.
    pub(super) fn new(timeline: Arc<Timeline>) -> Self {
        Self { timeline, state: Mutex::default() }
    }

    /// Upstream is about to be asked.
    pub(super) fn asking(&self) -> Asked {
        Asked { at: self.timeline.moment(), instant: Instant::now(), clock: self.state.lock().clock }
    }

    /// The generation of a repository, as part of what tells questions apart.
    pub(super) fn of(&self, repository: &Repository) -> u64 {
        let state = self.state.lock();
        state.repositories.get(repository).map_or(state.floor, |raised| raised.written)
    }

    /// Whether what was asked then still holds.
    pub(super) fn holds(&self, repository: &Repository, asked: &Asked) -> bool {
        let state = self.state.lock();
        let raised = state.repositories.get(repository).copied().unwrap_or_default();
        asked.clock >= state.floor && asked.clock >= raised.written && raised.writing == 0
    }

    /// Something was written a moment ago that moves no tag.
    pub(super) fn pass(&self, repository: &Repository) {
        self.begin(repository);
        self.end(repository);
    }

    fn begin(&self, repository: &Repository) {
        let mut state = self.state.lock();
        if state.repositories.len() >= CAPACITY && !state.repositories.contains_key(repository) {
            state.floor = state.clock + 1;
            state.repositories.retain(|_, raised| raised.writing > 0);
        }
        state.raise(repository, |count| count.saturating_add(1));
    }

    fn end(&self, repository: &Repository) {
        self.state.lock().raise(repository, |count| count.saturating_sub(1));
    }
}

// === impl State ===

impl State {
    fn raise(&mut self, repository: &Repository, count: fn(u32) -> u32) {
        self.clock += 1;
        let raised = self.repositories.entry(repository.clone()).or_default();
        raised.written = self.clock;
        raised.writing = count(raised.writing);
    }
}

// === impl Cache ===

impl Cache {
    /// Upstream is about to be asked something.
    pub fn asking(&self) -> Asked {
        self.generations.asking()
    }

    /// A write to `target` is about to be forwarded that may change what `tags` mean (none of them for a blob, or a
    /// manifest by digest). When this returns they are suspect, also after a crash; an error means that the write must
    /// not be forwarded.
    pub async fn writing(self: &Arc<Self>, target: &Target, tags: &[Tag]) -> Result<WriteGuard, CacheError> {
        let counted = self.count_write(target);
        let suspicion = self.store.suspect_tags(&target.upstream, &target.repo, tags).await?;
        Ok(WriteGuard { counted: Some(counted), suspicion: Some(suspicion), begun: self.generations.asking() })
    }

    /// A delete in `target` is about to be forwarded: of a manifest, which takes its tags and its referrers along, of a
    /// blob, or of the repository. Every tag is suspect when this returns. (To remove a tag alone is a write to it.)
    pub async fn deleting(self: &Arc<Self>, target: &Target) -> Result<WriteGuard, CacheError> {
        let counted = self.count_write(target);
        let suspicion = self.store.suspect_repository(&target.upstream, &target.repo).await?;
        Ok(WriteGuard { counted: Some(counted), suspicion: Some(suspicion), begun: self.generations.asking() })
    }

    /// First: what is asked from here on is not kept before the write has ended.
    fn count_write(self: &Arc<Self>, target: &Target) -> Counted {
        let repository = target.repository();
        self.generations.begin(&repository);
        Counted { cache: Arc::clone(self), repository }
    }
}

// === impl WriteGuard ===

impl WriteGuard {
    /// Upstream surely did nothing, or what it did was undone here too: what was not suspect before is not any more.
    pub async fn refused(mut self) {
        let (Some(suspicion), Some(counted)) = (self.suspicion.take(), self.counted.take()) else { return };
        if let Err(error) = suspicion.withdraw().await {
            let Repository { upstream, repo } = &counted.repository;
            tracing::warn!(
                %upstream, repository = %repo, error = &error as &dyn std::error::Error,
                "tags stay suspect until upstream is asked about them"
            );
        }
    }

    /// When it began.
    pub(super) const fn begun(&self) -> &Asked {
        &self.begun
    }

    /// Upstream has done it. What is known by that may be kept under the time that this returns; none, if another write
    /// was on its way too, so that nobody knows which of them upstream took last.
    pub(super) fn done(mut self) -> Option<SystemTime> {
        self.suspicion.take().and_then(Suspicion::end)
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        let (Some(suspicion), Some(counted)) = (self.suspicion.take(), self.counted.take()) else { return };
        let cache = Arc::clone(&counted.cache);
        let stop = cache.stop.clone();
        cache.tasks.spawn(async move {
            if stop.run_until_cancelled(tokio::time::sleep(SETTLES_WITHIN)).await.is_some() {
                suspicion.end();
            }
            // Else ocistern stops: the marks go on saying that the write is under way, from the next start on.
            drop(counted);
        });
    }
}

impl fmt::Debug for WriteGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WriteGuard").field(&self.counted.as_ref().map(|counted| &counted.repository)).finish()
    }
}

// === impl Counted ===

impl Drop for Counted {
    fn drop(&mut self) {
        self.cache.generations.end(&self.repository);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::twin::system;

    fn generations() -> Generations {
        Generations::new(Arc::new(Timeline::new(system())))
    }

    fn repository(name: &str) -> Repository {
        Repository { upstream: "up".parse().unwrap(), repo: name.parse().unwrap() }
    }

    #[tokio::test]
    async fn what_was_asked_before_or_during_a_write_does_not_hold() {
        let (generations, app, other) = (generations(), repository("app"), repository("other"));
        let before = generations.asking();
        assert!(generations.holds(&app, &before));
        let generation = generations.of(&app);
        generations.begin(&app);
        assert!(!generations.holds(&app, &before), "begun under an older generation");
        let during = generations.asking();
        assert!(!generations.holds(&app, &during), "upstream may answer either way");
        let meanwhile = generations.of(&app);
        generations.end(&app);
        assert!(!generations.holds(&app, &during) && generations.holds(&app, &generations.asking()));
        assert!(generations.holds(&other, &before), "another repository is not concerned");
        assert_eq!(3, std::collections::HashSet::from([generation, meanwhile, generations.of(&app)]).len());
    }

    #[tokio::test]
    async fn the_last_of_several_writes_counts() {
        let (generations, app) = (generations(), repository("app"));
        generations.begin(&app);
        generations.begin(&app);
        generations.end(&app);
        assert!(!generations.holds(&app, &generations.asking()), "the other write is still on its way");
        generations.end(&app);
        assert!(generations.holds(&app, &generations.asking()));
    }

    #[tokio::test]
    async fn the_memory_is_bounded_and_forgets_to_the_safe_side() {
        let generations = generations();
        let (first, asked) = (repository("first"), generations.asking());
        generations.begin(&repository("busy"));
        for n in 0..=CAPACITY {
            let name = repository(&format!("r{n}"));
            generations.begin(&name);
            generations.end(&name);
            assert!(generations.state.lock().repositories.len() <= CAPACITY);
        }
        assert!(!generations.holds(&first, &asked), "too long ago to tell");
        assert!(generations.holds(&first, &generations.asking()));
        assert!(!generations.holds(&repository("busy"), &generations.asking()), "a running write is not forgotten");
    }
}
