//! Manifests: by digest from the store for ever, by tag as long as they are fresh, else after asking upstream.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::time::timeout;

use super::freshness::{Freshness, REVALIDATION_PATIENCE, judge};
use super::{ANSWER_WITHIN, Cache, CacheError, CacheStatus, Found, Target, Wanted, out_of_time};
use crate::cache::fetch::{Checked, Described, Fetched};
use crate::cache::flight::Role;
use crate::cache::hot::HotManifest;
use crate::config::TagPolicy;
use crate::oci::{Digest, Reference, Tag};
use crate::store::{LinkKind, TagRecord, Trust};

/// A manifest to answer with.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type, exactly as upstream gave it.
    pub media_type: Arc<str>,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes; none for a HEAD that upstream answered.
    pub bytes: Option<Bytes>,
    /// How it was found.
    pub status: CacheStatus,
}

/// Whether the bytes are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// GET.
    Bytes,
    /// HEAD: what is not in the store is asked upstream by HEAD, which is free of charge on Docker Hub.
    Description,
}

// === impl Cache ===

impl Cache {
    /// The manifest `reference` in `target`.
    pub async fn manifest(
        self: &Arc<Self>,
        target: &Target,
        reference: &Reference,
        want: Want,
    ) -> Result<Manifest, CacheError> {
        let answer = async {
            match reference {
                Reference::Digest(digest) => self.manifest_by_digest(target, digest, want).await,
                Reference::Tag(tag) => self.manifest_by_tag(target, tag, want).await,
            }
        };
        timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(|_| Err(out_of_time(target)))
    }

    async fn manifest_by_digest(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        want: Want,
    ) -> Result<Manifest, CacheError> {
        if let Some(manifest) = self.stored_manifest(target, digest).await? {
            return Ok(manifest);
        }
        if self.manifest_bytes(digest).await.is_some() {
            // Stored under another name: upstream must confirm it under this one.
            let reference = Reference::Digest(*digest);
            self.check_missing(target, Wanted::Manifest(reference.clone()))?;
            let proof = self.describe_upstream(target, &reference).await;
            let proof = proof.inspect_err(|error| self.note_missing(target, Wanted::Manifest(reference), error))?;
            // Where upstream's HEAD is unusable, its GET has left a link that says more.
            if self.linked(target, digest, LinkKind::Manifest).await?.is_none() {
                self.keep_manifest_link(target, &proof).await;
            }
            self.keep_seen_tags(target, digest).await;
            if let Some(manifest) = self.stored_manifest(target, digest).await? {
                return Ok(manifest);
            }
        }
        self.ask(target, &Reference::Digest(*digest), want).await
    }

    async fn manifest_by_tag(self: &Arc<Self>, target: &Target, tag: &Tag, want: Want) -> Result<Manifest, CacheError> {
        let policy = self.tag_policy(target, tag);
        let record = self.tag_record(target, tag).await;
        let known = match &record {
            Some(record) => self.stored_manifest(target, &record.digest).await?,
            None => None,
        };
        let checked_at = match policy {
            TagPolicy::For(_) => self.store.checked_at(&target.upstream, &target.repo, tag).await,
            _ => None,
        };
        match (judge(policy, checked_at, SystemTime::now()), known, record) {
            (Freshness::Fresh | Freshness::Sealed, Some(known), _) => Ok(known),
            (Freshness::Sealed, None, _) => Err(CacheError::Sealed { upstream: target.upstream.clone() }),
            (Freshness::Expired, Some(known), Some(record)) => self.revalidate(target, tag, known, record, want).await,
            _ => self.ask(target, &Reference::Tag(tag.clone()), want).await,
        }
    }

    /// Asks upstream whether a known tag moved, for at most [`REVALIDATION_PATIENCE`].
    async fn revalidate(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        known: Manifest,
        record: TagRecord,
        want: Want,
    ) -> Result<Manifest, CacheError> {
        let stale = |known: Manifest| Manifest { status: Found::Stale.into(), ..known };
        let key = (target.clone(), tag.clone());
        if self.failed_checks.get(&key).is_some() {
            return Ok(stale(known));
        }
        let (flight, role) = self.start_check(target, tag, record)?;
        let moved_to = match timeout(REVALIDATION_PATIENCE, flight.result()).await {
            Err(_) | Ok(None) => return Ok(stale(known)),
            Ok(Some(Ok(Checked::Current))) => return Ok(known),
            Ok(Some(Ok(Checked::Back(digest)))) => {
                // Stored a moment ago; if it has been evicted since, this is a miss like any other.
                return match self.stored_manifest(target, &digest).await? {
                    Some(manifest) => Ok(manifest),
                    None => self.ask(target, &Reference::Tag(tag.clone()), want).await,
                };
            }
            Ok(Some(Ok(Checked::Moved(described)))) => described,
            Ok(Some(Ok(Checked::Fetched(fetched)))) => return Ok(fetched.into_manifest(role, want)),
            Ok(Some(Err(error))) if !error.is_upstreams_word() => return Ok(stale(known)),
            Ok(Some(Err(error))) => return Err(error),
        };
        if want == Want::Description {
            return Ok(moved_to.into_manifest());
        }
        let (flight, role) = self.start_fetch(target, &Reference::Tag(tag.clone()))?;
        match flight.result().await.unwrap_or(Err(CacheError::Stopped)) {
            Ok(fetched) => Ok(fetched.into_manifest(role, want)),
            Err(error) if !error.is_upstreams_word() => Ok(stale(known)),
            Err(error) => Err(error),
        }
    }

    /// Asks upstream for what is not in the store.
    async fn ask(self: &Arc<Self>, target: &Target, reference: &Reference, want: Want) -> Result<Manifest, CacheError> {
        self.check_missing(target, Wanted::Manifest(reference.clone()))?;
        let answer = match want {
            Want::Description => self.describe_upstream(target, reference).await.map(Described::into_manifest),
            Want::Bytes => {
                let (flight, role) = self.start_fetch(target, reference)?;
                let fetched = flight.result().await.unwrap_or(Err(CacheError::Stopped));
                fetched.map(|fetched| fetched.into_manifest(role, want))
            }
        };
        answer.inspect_err(|error| self.note_missing(target, Wanted::Manifest(reference.clone()), error))
    }

    /// The stored manifest, if this name has a link to it: from memory, else from the disk.
    pub(super) async fn stored_manifest(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
    ) -> Result<Option<Manifest>, CacheError> {
        if let Some(hot) = self.hot.get(target, digest) {
            if !self.store.touch(digest) {
                self.hot.remove(digest);
            } else if self.covers(target, hot.via)? {
                return Ok(Some(hit(digest, hot)));
            }
        }
        let Some(link) = self.linked(target, digest, LinkKind::Manifest).await? else { return Ok(None) };
        let Some(bytes) = self.manifest_bytes(digest).await else { return Ok(None) };
        // A link that does not say was not written by a manifest's answer.
        let Some(media_type) = link.media_type else { return Ok(None) };
        let hot = HotManifest { media_type: media_type.into(), bytes, via: link.via };
        self.hot.insert(target, digest, hot.clone());
        Ok(Some(hit(digest, hot)))
    }

    /// The stored bytes of a manifest, hashed again where the stamp is void. Damaged ones are quarantined and absent.
    async fn manifest_bytes(self: &Arc<Self>, digest: &Digest) -> Option<Bytes> {
        let stored = self.stored(digest).await?;
        if stored.len > self.config.max_manifest {
            return None;
        }
        let stored = if stored.trust == Trust::Unverified {
            let (mut watcher, stored) = self.verify(digest, stored);
            watcher.verdict().await.ok()?;
            stored
        } else {
            stored
        };
        let length = usize::try_from(stored.len).ok()?;
        let read = tokio::task::spawn_blocking(move || super::body::read_at(&stored.file, 0, length)).await;
        match read {
            Ok(Ok(bytes)) if bytes.len() == length => Some(bytes),
            _ => {
                tracing::warn!(%digest, "a stored manifest cannot be read");
                None
            }
        }
    }

    async fn tag_record(&self, target: &Target, tag: &Tag) -> Option<TagRecord> {
        match self.store.tag(&target.upstream, &target.repo, tag).await {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(
                    upstream = %target.upstream, repository = %target.repo, %tag,
                    error = &error as &dyn std::error::Error, "a stored tag cannot be read"
                );
                None
            }
        }
    }

    fn tag_policy(&self, target: &Target, tag: &Tag) -> TagPolicy {
        self.config
            .upstreams
            .get(&target.upstream)
            .map_or(TagPolicy::Always, |upstream| upstream.policy(&target.repo, tag))
    }
}

fn hit(digest: &Digest, stored: HotManifest) -> Manifest {
    Manifest {
        digest: *digest,
        media_type: stored.media_type,
        size: stored.bytes.len() as u64,
        bytes: Some(stored.bytes),
        status: Found::Hit.into(),
    }
}

// === impl Fetched ===

impl Fetched {
    fn into_manifest(self: Arc<Self>, role: Role, want: Want) -> Manifest {
        let found = match (self.kept, role) {
            (false, _) => Found::Bypass,
            (true, Role::Leader) => Found::Miss,
            (true, Role::Follower) => Found::Collapsed,
        };
        Manifest {
            digest: self.digest,
            media_type: self.media_type.as_str().into(),
            size: self.bytes.len() as u64,
            bytes: (want == Want::Bytes).then(|| self.bytes.clone()),
            status: found.into(),
        }
    }
}

// === impl Described ===

impl Described {
    fn into_manifest(self) -> Manifest {
        Manifest {
            digest: self.digest,
            media_type: self.media_type.into(),
            size: self.size,
            bytes: None,
            status: Found::Passed.into(),
        }
    }
}
