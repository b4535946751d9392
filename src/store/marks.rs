//! Suspect before write: what a write upstream may change is marked on the disk before the write is forwarded, and
//! stays marked until upstream was asked again. `suspicion` is what a look-up sees of it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::layout;
use super::suspicion::{Found, Mark, Repository, Scope, Withdrawn};
use super::{Inner, Store, StoreError};
use crate::oci::{RepoName, Tag, UpstreamName};

/// How long a write whose answer was lost may still happen upstream: nothing that is heard meanwhile is kept. Where the
/// process has died, it counts from the next start on.
pub const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// A write upstream that has not ended, and what it may change. While this is held, no answer of upstream's counts for
/// that: nobody knows whether the write was done before or after it. Dropping it says that nobody will find out how it
/// ended: this process goes on as after [`Suspicion::end`], but to the next one the write is still under way.
#[must_use = "dropping it gives the write up"]
pub struct Suspicion {
    inner: Arc<Inner>,
    repository: Arc<Repository>,
    up: UpstreamName,
    repo: RepoName,
    scope: Scope,
    /// None after the end.
    number: Option<u64>,
    runtime: Handle,
}

/// What a mark's file says.
#[derive(Debug, Serialize, Deserialize)]
struct MarkRecord {
    /// Of the whole repository it is also the name by which a check says that it ended it.
    since: SystemTime,
    /// The write had not ended. If it is still so after a start, upstream may take it yet.
    open: bool,
}

// === impl Store ===

impl Store {
    /// Marks tags as suspect, before a write that may change them is forwarded. When this returns, that outlives a crash
    /// and a power cut; and no answer to a question that was put before is kept any more.
    ///
    /// # Errors
    /// The write must not be forwarded: a crash could leave an old tag that passes for a fresh one. That the disk is
    /// full is no error: the tags are forgotten instead.
    pub async fn suspect_tags(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tags: &[Tag],
    ) -> Result<Suspicion, StoreError> {
        let mut tags = tags.to_vec();
        tags.sort_unstable();
        tags.dedup();
        self.suspect(up, repo, Scope::Tags(tags)).await
    }

    /// The same for every tag of the repository, as a delete may take referrers along; and proofs of content that were
    /// asked for before are not kept any more either.
    ///
    /// # Errors
    /// As [`Store::suspect_tags`].
    pub async fn suspect_repository(&self, up: &UpstreamName, repo: &RepoName) -> Result<Suspicion, StoreError> {
        self.suspect(up, repo, Scope::Repository).await
    }

    async fn suspect(&self, up: &UpstreamName, repo: &RepoName, scope: Scope) -> Result<Suspicion, StoreError> {
        let (up, repo, runtime) = (up.clone(), repo.clone(), Handle::current());
        let work = move |inner: &Arc<Inner>| {
            let repository = inner.repository(&up, &repo)?;
            let number = Some(repository.begin(scope.clone()));
            let suspicion = Suspicion { inner: inner.clone(), repository, up, repo, scope, number, runtime };
            match inner.with_room_for_record(|| suspicion.put_down()) {
                Err(StoreError::NoSpace) => suspicion.forget_instead()?,
                other => other?,
            }
            Ok(suspicion)
        };
        self.blocking(work).await
    }
}

// === impl Suspicion ===

impl Suspicion {
    /// The write has ended: acknowledged, or nobody knows how. Everything that it may have changed stays suspect until
    /// an answer to a later question is kept. Returns the time to keep under what the caller learned by the write itself
    /// ([`Store::set_tag`]); none, if another write of the same overlapped this one, because then nobody knows which of
    /// them upstream took last.
    pub fn end(mut self) -> Option<SystemTime> {
        let time = self.finish();
        self.close();
        time
    }

    /// The write has ended, and what it did is known and in the store: nothing, because upstream refused it, or what
    /// [`Store::forget_manifest`] has undone. What was not suspect before is not suspect any more, unless another write
    /// overlapped this one.
    pub async fn withdraw(mut self) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        let work = move || {
            let gate = self.repository.gate();
            let withdrawn = match self.number {
                Some(number) => self.repository.withdraw(number),
                None => Withdrawn::Nothing,
            };
            let outcome = match withdrawn {
                Withdrawn::Nothing => Ok(()),
                Withdrawn::Tags(tags) => {
                    tags.iter().try_for_each(|tag| self.inner.remove_mark(&layout::suspect(&self.up, &self.repo, tag)))
                }
                Withdrawn::Repository(mark) => self.inner.keep_mark_of_all(&self.up, &self.repo, mark, false),
            };
            drop(gate);
            self.number = None;
            self.close();
            outcome
        };
        let done = inner.jobs.spawn_blocking(work).await.unwrap_or(Err(StoreError::Stopped));
        done.map_err(|error| error.within(inner.disk.path()))
    }

    fn finish(&mut self) -> Option<SystemTime> {
        self.repository.end(self.number.take()?)
    }

    /// Lets the files say that the write has ended. A crash before that costs questions.
    fn close(&self) {
        let (inner, repository) = (self.inner.clone(), self.repository.clone());
        let (up, repo, scope) = (self.up.clone(), self.repo.clone(), self.scope.clone());
        let work = move || inner.close_marks(&repository, &up, &repo, &scope);
        // This may be an async worker.
        drop(self.inner.jobs.spawn_blocking_on(work, &self.runtime));
    }

    /// Writes the marks' files. A tag that the store does not know needs one too: after a crash it is asked for anyway, but
    /// the answer must not be kept while upstream may still take the write. Blocks.
    fn put_down(&self) -> Result<(), StoreError> {
        let Self { inner, repository, up, repo, .. } = self;
        // Whoever had the gate before has written its ref by now; whoever comes after finds the mark in memory.
        let _gate = repository.gate();
        match &self.scope {
            Scope::Tags(tags) => {
                for tag in tags {
                    if let Some(Mark { name: since, kept: false, .. }) = repository.mark(tag) {
                        let record = MarkRecord { since, open: true };
                        inner.records.write_through(
                            &inner.disk,
                            &inner.group,
                            &layout::suspect(up, repo, tag),
                            &record,
                        )?;
                        repository.set_kept(tag, true);
                    }
                }
            }
            Scope::Repository => {
                if let Some((mark, open)) = repository.mark_of_all() {
                    inner.keep_mark_of_all(up, repo, Some(mark), open)?;
                    repository.set_all_kept(true);
                }
            }
        }
        Ok(())
    }

    /// A full disk takes no marks, but gives up what they would stand for. Blocks.
    pub(super) fn forget_instead(&self) -> Result<(), StoreError> {
        let Self { inner, repository, up, repo, .. } = self;
        tracing::warn!(
            upstream = %up, repository = %repo,
            "no space to mark tags as suspect before a write: they are forgotten instead"
        );
        let gate = repository.gate();
        inner.forget_tags(up, repo, |tag, _| self.scope.covers(tag))?;
        drop(gate);
        inner.sync_group()
    }
}

impl Drop for Suspicion {
    fn drop(&mut self) {
        self.finish();
    }
}

impl std::fmt::Debug for Suspicion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suspicion").field("upstream", &self.up).field("repository", &self.repo).finish_non_exhaustive()
    }
}

// === impl Inner ===

impl Inner {
    /// Since when a tag is suspect; none: it is not. Blocks.
    pub(super) fn suspected_since(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
    ) -> Result<Option<SystemTime>, StoreError> {
        let judgement = self.repository(up, repo)?.judge(tag);
        Ok(judgement.since(|mark| self.is_confirmed(up, repo, tag, mark)))
    }

    /// What is suspect in a repository, read from its files at the first look. Its gate must not be held. Blocks.
    pub(super) fn repository(&self, up: &UpstreamName, repo: &RepoName) -> Result<Arc<Repository>, StoreError> {
        loop {
            let repository = if let Some(repository) = self.suspicions.get(up, repo) {
                repository
            } else {
                let drops = self.suspicions.drops();
                let found = self.read_marks(up, repo)?;
                let Some(repository) = self.suspicions.insert(up, repo, drops, found, self.settles_at) else {
                    continue;
                };
                repository
            };
            for scope in repository.take_settled() {
                // Else each start would make it suspect again.
                self.close_marks(&repository, up, repo, &scope);
            }
            return Ok(repository);
        }
    }

    /// Lets the files say what is so after a write has ended: of a tag that the store does not know nothing can be wrong.
    /// If they cannot, a start costs questions. Blocks.
    fn close_marks(&self, repository: &Repository, up: &UpstreamName, repo: &RepoName, scope: &Scope) {
        let _gate = repository.gate();
        let closed = match scope {
            Scope::Tags(tags) => tags.iter().try_for_each(|tag| self.close_mark(repository, up, repo, tag)),
            Scope::Repository => self.close_mark_of_all(repository, up, repo),
        };
        if let Err(error) = closed {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(upstream = %up, repository = %repo, error, "the end of a write could not be put down");
        }
    }

    fn close_mark(
        &self,
        repository: &Repository,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
    ) -> Result<(), StoreError> {
        let kept = repository.mark(tag).is_some_and(|mark| mark.kept);
        if kept && !repository.is_written(tag) && !self.exists(&layout::tag(up, repo, tag))? {
            self.remove_mark(&layout::suspect(up, repo, tag))?;
            repository.set_kept(tag, false);
        }
        Ok(())
    }

    fn close_mark_of_all(&self, repository: &Repository, up: &UpstreamName, repo: &RepoName) -> Result<(), StoreError> {
        let Some((mark, open)) = repository.mark_of_all().filter(|(mark, _)| mark.kept) else { return Ok(()) };
        if open || self.exists(&layout::tags(up, repo))? {
            return self.keep_mark_of_all(up, repo, Some(mark), open);
        }
        self.keep_mark_of_all(up, repo, None, open)?;
        repository.set_all_kept(false);
        Ok(())
    }

    fn read_marks(&self, up: &UpstreamName, repo: &RepoName) -> Result<Found, StoreError> {
        let now = self.timeline.moment();
        // Since when, and whether a write was under way when the program ended: upstream may do that yet.
        let read = |path: &Path| match self.records.read(&self.disk, path) {
            Some(MarkRecord { since, open: false }) => (since, false),
            // Damaged: what it said is not known, so it says the worst.
            Some(MarkRecord { open: true, .. }) | None => (now, true),
        };
        let directory = layout::suspects(up, repo);
        let (mut found, mut open) = (Found::default(), Vec::new());
        match self.disk.list(&directory) {
            Ok(listing) => {
                for entry in listing {
                    let entry = entry.map_err(|e| StoreError::io("list", &directory, e))?;
                    let Some(tag) = layout::tag_of_file(&entry.name) else { continue };
                    let (since, is_open) = read(&directory.join(&entry.name));
                    if is_open {
                        open.push(tag.clone());
                    }
                    found.tags.insert(tag, Mark::new(since, true));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("list", &directory, error)),
        }
        if !open.is_empty() {
            found.open.push(Scope::Tags(open));
        }
        let path = layout::suspect_repository(up, repo);
        if self.exists(&path)? {
            let (since, is_open) = read(&path);
            found.all = Some(Mark::new(since, true));
            found.open.extend(is_open.then_some(Scope::Repository));
        }
        Ok(found)
    }

    /// An answer to a question about this tag that was put then is in its file: that ends the tag's mark. Blocks.
    pub(super) fn confirm(
        &self,
        repository: &Repository,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
        asked_at: SystemTime,
    ) -> Result<(), StoreError> {
        let Some(mark) = repository.mark(tag) else { return Ok(()) };
        // The mark must not be gone after a power cut when what ended it is. If that cannot be had, it stays: asking once
        // more costs less.
        if mark.kept && !self.group.run(&self.disk) {
            return Ok(());
        }
        let _gate = repository.gate();
        let kept = repository.mark(tag).is_some_and(|mark| mark.kept);
        if repository.confirm(tag, asked_at) && kept {
            return self.remove_mark(&layout::suspect(up, repo, tag));
        }
        Ok(())
    }

    fn remove_mark(&self, path: &Path) -> Result<(), StoreError> {
        self.remove_record(path)?;
        self.remove_empty_above(path);
        Ok(())
    }

    fn keep_mark_of_all(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        mark: Option<Mark>,
        open: bool,
    ) -> Result<(), StoreError> {
        let path = layout::suspect_repository(up, repo);
        match mark {
            Some(Mark { name: since, .. }) => {
                self.records.write_through(&self.disk, &self.group, &path, &MarkRecord { since, open })
            }
            None => self.remove_mark(&path),
        }
    }

    /// Whether something stands at `path`.
    pub(super) fn exists(&self, path: &Path) -> Result<bool, StoreError> {
        match self.disk.metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(StoreError::io("look at", path, error)),
        }
    }
}
