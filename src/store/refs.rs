//! Refs: tags, links (which repository a digest was served in) and access, each a small record.
//!
//! What an answer of upstream's says is kept only if the question was put late enough: later than the last answer, and
//! later than whatever was written upstream since (`suspicion`).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::layout;
use super::pins::ToKeep;
use super::{Inner, Store, StoreError};
use crate::oci::{Digest, RepoName, Tag, UpstreamName, Via};

/// What a tag named when upstream was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// Its media type, exactly as upstream said.
    pub media_type: String,
    /// Its length.
    pub size: u64,
    /// Upstream's entity tag, for conditional requests.
    pub etag: Option<String>,
}

/// As what upstream served a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// As a manifest.
    Manifest,
    /// As a blob.
    Blob,
}

/// Proof that upstream served a digest in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// As what.
    pub kind: LinkKind,
    /// By whose right.
    pub via: Via,
    /// A manifest's media type, exactly as upstream said.
    pub media_type: Option<String>,
    /// Its length.
    pub size: u64,
    /// What the manifest refers to.
    pub subject: Option<Digest>,
    /// What kind of artifact it is.
    pub artifact_type: Option<String>,
}

/// Who may read a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Upstream gives it to everybody.
    Public,
    /// Upstream asked for a credential.
    Private,
}

/// Who may read a repository, and since when that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRecord {
    /// Who.
    pub access: Access,
    /// Since when.
    pub since: SystemTime,
}

// === impl LinkKind ===

impl LinkKind {
    /// The word in files and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
        }
    }
}

// === impl Link ===

impl Link {
    /// The link of a blob of `size` bytes.
    pub const fn blob(via: Via, size: u64) -> Self {
        Self { kind: LinkKind::Blob, via, media_type: None, size, subject: None, artifact_type: None }
    }
}

// === impl Access ===

impl Access {
    /// The word in files and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
        }
    }
}

// === impl Store ===

impl Store {
    /// Remembers what the tag names, as upstream said when it was asked at `asked_at`; that is when the tag was last
    /// found to be up to date, and it is not suspect any more. False, and nothing is done, if a later question was
    /// answered already (answers overtake each other), if the tag became suspect or was forgotten since, or while a write
    /// that may change it is under way. The file is written only if what it says differs.
    pub async fn set_tag(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
        record: &TagRecord,
        asked_at: SystemTime,
    ) -> Result<bool, StoreError> {
        let path = layout::tag(up, repo, tag);
        let (up, repo, tag, record) = (up.clone(), repo.clone(), tag.clone(), record.clone());
        let write = move |inner: &Arc<Inner>| {
            // The link of what a known tag names from now on may still be waiting for its sync. A power cut would leave
            // a tag that leads nowhere, where one that leads to the older manifest was there before.
            let old = inner.records.read::<TagRecord>(&inner.disk, &path).map(|old| old.digest);
            if old.is_some_and(|old| old != record.digest) {
                inner.group.run(&inner.disk);
            }
            let kept = if old == Some(record.digest) { None } else { inner.kept_if(&up, &repo, &tag, &record.digest) };
            let repository = inner.repository(&up, &repo)?;
            let gate = repository.gate();
            let tags = inner.tags.lock();
            if repository.refuses_tag(&tag, asked_at) || inner.is_overtaken(&up, &repo, &tag, asked_at) {
                return Ok(false);
            }
            let before = inner.records.read::<TagRecord>(&inner.disk, &path);
            if before.as_ref() != Some(&record) {
                let written = inner.records.write(&inner.disk, &inner.group, &path, &record);
                inner.known.forget_tag(&up, &repo, &tag);
                written?;
            }
            let before = before.map(|before| before.digest);
            if let Some(before) = before.filter(|before| *before != record.digest) {
                inner.hints.set_ref(&before, &path, false);
                // Another tag may name it too: that one's next use says so again.
                inner.books.set_tagged(&before, false);
            }
            inner.know_ref(&record.digest, &path);
            inner.books.set_tagged(&record.digest, true);
            if before != Some(record.digest) && inner.pins.keeps(&up, &repo, &tag) {
                // Written or pinned in between: what it keeps is found out in the background, and nothing goes before.
                let kept = kept.unwrap_or_else(|| ToKeep::at_least(&record.digest));
                inner.follow_pinned_tag(Some(kept), before.is_some());
            }
            // Under such a mark the time alone makes a tag good; it must not outlive what it is the time of.
            if repository.mark_of_all().is_none() || inner.group.run(&inner.disk) {
                inner.note_check(&repository, &up, &repo, &tag, asked_at);
            }
            drop((tags, gate));
            inner.confirm(&repository, &up, &repo, &tag, asked_at)?;
            Ok(true)
        };
        self.blocking(move |inner| inner.with_room_for_record(|| write(inner))).await
    }

    /// Forgets a tag that upstream no longer had when it was asked at `asked_at`. False, and nothing is done, where
    /// [`Store::set_tag`] would do nothing.
    pub async fn remove_tag(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
        asked_at: SystemTime,
    ) -> Result<bool, StoreError> {
        self.remove_tag_if(up, repo, tag, asked_at, |_, _| true).await
    }

    /// Forgets what a tag named, where upstream said when it was asked at `asked_at` that it names `digest`, and that cannot be
    /// kept: else, once upstream is away, a client would get what was so before what it has got. What is pinned stays: what an
    /// operator relies on must not go because a disk is full. False as of [`Store::set_tag`], and where there is nothing to
    /// forget.
    pub async fn outdate_tag(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
        digest: &Digest,
        asked_at: SystemTime,
    ) -> Result<bool, StoreError> {
        let (of, digest) = ((up.clone(), repo.clone(), tag.clone()), *digest);
        let is_outdated = move |inner: &Inner, before: Option<&TagRecord>| {
            let (up, repo, tag) = &of;
            before.is_some_and(|before| before.digest != digest) && !inner.pins.keeps(up, repo, tag)
        };
        self.remove_tag_if(up, repo, tag, asked_at, is_outdated).await
    }

    async fn remove_tag_if(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        tag: &Tag,
        asked_at: SystemTime,
        wanted: impl FnOnce(&Inner, Option<&TagRecord>) -> bool + Send + 'static,
    ) -> Result<bool, StoreError> {
        let path = layout::tag(up, repo, tag);
        let (up, repo, tag) = (up.clone(), repo.clone(), tag.clone());
        let remove = move |inner: &Arc<Inner>| {
            let repository = inner.repository(&up, &repo)?;
            let gate = repository.gate();
            let tags = inner.tags.lock();
            if repository.refuses_tag(&tag, asked_at) || inner.is_overtaken(&up, &repo, &tag, asked_at) {
                return Ok(false);
            }
            let before = inner.records.read::<TagRecord>(&inner.disk, &path);
            if !wanted(inner, before.as_ref()) {
                return Ok(false);
            }
            if let Some(before) = before {
                inner.hints.set_ref(&before.digest, &path, false);
                inner.books.set_tagged(&before.digest, false);
                if inner.pins.keeps(&up, &repo, &tag) {
                    inner.follow_pinned_tag(None, true);
                }
            }
            // Kept: an answer to an earlier question must not bring the tag back.
            inner.note_check(&repository, &up, &repo, &tag, asked_at);
            inner.remove_record(&path)?;
            drop((tags, gate));
            inner.confirm(&repository, &up, &repo, &tag, asked_at)?;
            Ok(true)
        };
        self.blocking(remove).await
    }

    /// The proof that upstream served `digest` in `repo`.
    pub async fn link(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<Arc<Link>>, StoreError> {
        let key = (up.clone(), repo.clone(), *digest);
        if let Some(link) = self.0.known.link(&key) {
            return Ok(Some(link));
        }
        let path = layout::link(up, repo, digest);
        self.blocking(move |inner| {
            Ok(inner.known.read_link(key, || inner.records.read::<Link>(&inner.disk, &path).map(Arc::new)))
        })
        .await
    }

    /// Remembers that upstream served `digest` in `repo` when it was asked at `asked_at`. False, and nothing is done, if
    /// something may have been deleted in `repo` since. Written only if it differs.
    pub async fn set_link(
        &self,
        up: &UpstreamName,
        repo: &RepoName,
        digest: &Digest,
        link: &Link,
        asked_at: SystemTime,
    ) -> Result<bool, StoreError> {
        let path = layout::link(up, repo, digest);
        let (up, repo, digest, link) = (up.clone(), repo.clone(), *digest, link.clone());
        let write = move |inner: &Arc<Inner>| {
            let repository = inner.repository(&up, &repo)?;
            let _gate = repository.gate();
            // Against eviction, as for a tag.
            let _tags = inner.tags.lock();
            if repository.refuses_link(asked_at) {
                return Ok(false);
            }
            if inner.records.read::<Link>(&inner.disk, &path).as_ref() != Some(&link) {
                let written = inner.records.write(&inner.disk, &inner.group, &path, &link);
                inner.known.forget_link(&up, &repo, &digest);
                written?;
            }
            inner.know_ref(&digest, &path);
            Ok(true)
        };
        self.blocking(move |inner| inner.with_room_for_record(|| write(inner))).await
    }

    /// Forgets that upstream served `digest` in `repo`.
    pub async fn remove_link(&self, up: &UpstreamName, repo: &RepoName, digest: &Digest) -> Result<(), StoreError> {
        let (path, digest) = (layout::link(up, repo, digest), *digest);
        let remove = move |inner: &Arc<Inner>| {
            inner.hints.set_ref(&digest, &path, false);
            inner.remove_record(&path)
        };
        self.blocking(remove).await
    }

    /// Whether anything of this upstream was ever stored.
    pub async fn has_refs_of(&self, up: &UpstreamName) -> Result<bool, StoreError> {
        let path = layout::upstream(up);
        self.blocking(move |inner| inner.exists(&path)).await
    }

    /// Who may read a repository, if that was ever found out; since when may be in the future, by a clock that was wrong.
    pub async fn access(&self, up: &UpstreamName, repo: &RepoName) -> Result<Option<AccessRecord>, StoreError> {
        let path = layout::access(up, repo);
        self.blocking(move |inner| Ok(inner.records.read(&inner.disk, &path))).await
    }

    /// Remembers who may read a repository; since when is kept if that is what was known, and no time in the future.
    pub async fn set_access(&self, up: &UpstreamName, repo: &RepoName, access: Access) -> Result<(), StoreError> {
        let path = layout::access(up, repo);
        let write = move |inner: &Arc<Inner>| {
            let before = inner.records.read::<AccessRecord>(&inner.disk, &path);
            if before.is_some_and(|before| before.access == access && before.since <= inner.timeline.now()) {
                return Ok(());
            }
            let record = AccessRecord { access, since: inner.timeline.now() };
            inner.records.write(&inner.disk, &inner.group, &path, &record)
        };
        self.blocking(move |inner| inner.with_room_for_record(|| write(inner))).await
    }
}

// === impl Inner ===

impl Inner {
    /// What the tag names, as far as is known. Blocks.
    pub(super) fn tag_record(&self, up: &UpstreamName, repo: &RepoName, tag: &Tag) -> Option<TagRecord> {
        let record: Option<TagRecord> = self.records.read(&self.disk, &layout::tag(up, repo, tag));
        if let Some(record) = &record {
            self.books.set_tagged(&record.digest, true);
        }
        record
    }

    /// Makes sure that the index knows of a file that names a blob, so that it goes when the blob goes.
    pub(super) fn know_ref(&self, digest: &Digest, path: &Path) {
        if !self.hints.has_ref(digest, path) {
            self.hints.set_ref(digest, path, true);
        }
    }

    pub(super) fn remove_record(&self, path: &Path) -> Result<(), StoreError> {
        if layout::is_tag(path) || layout::parse_link(path).is_some() {
            // Before it goes: who puts refs back looks at this afterwards.
            self.forgotten.fetch_add(1, Ordering::SeqCst);
        }
        let unlinked = self.disk.unlink(path);
        self.known.forget(path);
        if unlinked.map_err(|e| StoreError::io("remove", path, e))?
            && let Some(parent) = path.parent()
        {
            self.group.directories([parent.to_owned()]);
        }
        Ok(())
    }
}
