//! Manifests: by digest from the store for ever, by tag as long as they are fresh, else after asking upstream.

use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::time::timeout;

use super::entitle::{Held, When};
use super::freshness::{CONFIRMATION_PATIENCE, Freshness, REVALIDATION_PATIENCE, judge};
use super::{ANSWER_WITHIN, Cache, CacheError, CacheStatus, Found, Labels, Target, Wanted, out_of_time};
use crate::cache::fetch::{Checked, Described, Fetched};
use crate::cache::flight::Role;
use crate::cache::hot::HotManifest;
use crate::config::TagPolicy;
use crate::oci::{Digest, Reference, Tag, Via};
use crate::store::{LinkKind, StoreError, TagRecord, TagState, Trust};

/// A manifest to answer with.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// Its names and its media type, exactly as upstream gave it, as header fields.
    pub labels: Arc<Labels>,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes; none for a HEAD that upstream answered.
    pub bytes: Option<Bytes>,
    /// How it was found.
    pub status: CacheStatus,
}

/// What is wanted of a manifest, or of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// GET.
    Bytes,
    /// HEAD: what is not in the store is asked upstream by HEAD, which is free of charge on Docker Hub.
    Description,
    /// HEAD that upstream answers, for callers who act on it, such as clients that push what is not there; where it
    /// cannot be asked, as [`Want::Description`].
    Confirmed,
    /// HEAD that upstream answers, or nobody.
    Required,
}

/// A manifest in the store, of which it is not known yet whether the caller may have it.
pub(super) struct Known {
    pub(super) manifest: Manifest,
    pub(super) via: Via,
}

/// What the store knows of a tag.
pub(super) struct KnownState {
    pub(super) record: Option<Arc<TagRecord>>,
    pub(super) checked_at: Option<SystemTime>,
    /// A write may have changed it.
    pub(super) suspect: bool,
}

/// A tag of which the manifest is there.
struct KnownTag {
    known: Known,
    record: Arc<TagRecord>,
    /// A write may have changed it.
    suspect: bool,
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
            self.admit(target)?;
            let is_sealed = match reference {
                Reference::Tag(tag) => self.tag_policy(target, tag) == TagPolicy::Sealed,
                Reference::Digest(_) => false,
            };
            if is_sealed && want == Want::Required {
                return Err(CacheError::Sealed { upstream: target.upstream.clone() });
            }
            // That upstream is not asked about a sealed tag says nothing about the rest of the repository.
            if !is_sealed && matches!(want, Want::Confirmed | Want::Required) {
                let asking = self.describe_upstream(target, reference);
                if let Some(answer) = Box::pin(self.confirmed(target, want, asking)).await {
                    return answer.map(Described::into_manifest);
                }
            }
            match reference {
                Reference::Digest(digest) => self.manifest_by_digest(target, digest, want).await,
                Reference::Tag(tag) => self.manifest_by_tag(target, tag, want).await,
            }
        };
        let answer = timeout(ANSWER_WITHIN, pin!(answer)).await.unwrap_or_else(|_| Err(out_of_time(target)));
        match (answer, reference) {
            (Ok(manifest), _) => Ok(manifest),
            (Err(error), Reference::Digest(_)) => Err(self.told_by_digest(target, error)),
            (Err(error), Reference::Tag(_)) => Err(self.told(target, error)),
        }
    }

    /// Upstream's answer to a question that must be put to it; none if it cannot be asked and what is known will do.
    pub(super) async fn confirmed<T>(
        &self,
        target: &Target,
        want: Want,
        asking: impl Future<Output = Result<T, CacheError>>,
    ) -> Option<Result<T, CacheError>> {
        if want == Want::Required {
            return Some(asking.await);
        }
        if self.unanswered.get(target).is_some() {
            return None;
        }
        match timeout(CONFIRMATION_PATIENCE, asking).await {
            Ok(Err(error)) if !error.is_upstreams_word() => {}
            Ok(answer) => return Some(answer),
            Err(_) => {}
        }
        self.unanswered.insert(target.clone(), ());
        None
    }

    async fn manifest_by_digest(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        want: Want,
    ) -> Result<Manifest, CacheError> {
        let reference = Reference::Digest(*digest);
        // It may be stored under another name only: upstream must confirm it under this one.
        let mut known = self.stored_manifest(target, digest).await;
        let (size, via) = match &known {
            Some(known) => (known.manifest.size, Some(known.via)),
            None => match self.manifest_bytes(digest).await {
                Some(bytes) => (bytes.len() as u64, None),
                None => return Box::pin(self.ask(target, &reference, want)).await,
            },
        };
        self.entitled(target, &Wanted::Manifest(reference.clone()), Held { digest, size, via }).await?;
        if known.is_none() {
            known = self.stored_manifest(target, digest).await;
        }
        match known {
            Some(known) => Ok(known.manifest),
            None => Box::pin(self.ask(target, &reference, want)).await,
        }
    }

    async fn manifest_by_tag(self: &Arc<Self>, target: &Target, tag: &Tag, want: Want) -> Result<Manifest, CacheError> {
        let policy = self.tag_policy(target, tag);
        let KnownState { record, checked_at, suspect } = self.tag_state(target, tag).await;
        let known = match &record {
            Some(record) => self.stored_manifest(target, &record.digest).await,
            None => None,
        };
        let (Some(known), Some(record)) = (known, record) else {
            return match policy {
                TagPolicy::Sealed => Err(CacheError::Sealed { upstream: target.upstream.clone() }),
                _ => Box::pin(self.ask(target, &Reference::Tag(tag.clone()), want)).await,
            };
        };
        match judge(policy, checked_at, self.store.timeline().now(), suspect) {
            Freshness::Fresh if self.passes(target, known.via, When::Now).await => Ok(known.manifest),
            // It is not to be asked about again: whether the caller may have it is a question about what it means.
            Freshness::Fresh if policy == TagPolicy::Immutable => {
                let Manifest { digest, size, .. } = &known.manifest;
                let wanted = Wanted::Manifest(Reference::Digest(*digest));
                self.entitled(target, &wanted, Held { digest, size: *size, via: Some(known.via) }).await?;
                Ok(known.manifest)
            }
            Freshness::Sealed if !suspect && self.passes(target, known.via, When::Away).await => Ok(known.manifest),
            Freshness::Sealed => Err(CacheError::Sealed { upstream: target.upstream.clone() }),
            // Whether the tag moved and whether the caller may have it are one question.
            Freshness::Fresh | Freshness::Expired => {
                Box::pin(self.revalidate(target, tag, want, KnownTag { known, record, suspect })).await
            }
        }
    }

    /// Asks upstream whether a known tag moved. Where the caller may have what is known, it is served as stale after
    /// [`REVALIDATION_PATIENCE`], and where upstream cannot be asked; but not if a write may have changed it.
    async fn revalidate(
        self: &Arc<Self>,
        target: &Target,
        tag: &Tag,
        want: Want,
        KnownTag { known, record, suspect }: KnownTag,
    ) -> Result<Manifest, CacheError> {
        let may_be_stale = !suspect && self.passes(target, known.via, When::Away).await;
        let known = known.manifest;
        let stale = |known: Manifest| Manifest { status: Found::Stale.into(), ..known };
        if may_be_stale && self.failed_checks.get(&(target.clone(), tag.clone())).is_some() {
            return Ok(stale(known));
        }
        self.check_missing(target, Wanted::Manifest(Reference::Tag(tag.clone())))?;
        let (flight, role) = self.start_check(target, tag, record)?;
        let checked = if may_be_stale {
            match timeout(REVALIDATION_PATIENCE, flight.result()).await {
                Ok(Some(checked)) => checked,
                Err(_) | Ok(None) => return Ok(stale(known)),
            }
        } else {
            flight.result().await.unwrap_or(Err(CacheError::Stopped))
        };
        let moved_to = match checked {
            Ok(Checked::Current) => return Ok(known),
            Ok(Checked::Back(digest)) => {
                // Stored a moment ago; if it has been evicted since, this is a miss like any other.
                return match self.stored_manifest(target, &digest).await {
                    Some(back) => Ok(back.manifest),
                    None => self.ask(target, &Reference::Tag(tag.clone()), want).await,
                };
            }
            Ok(Checked::Moved(described)) => described,
            Ok(Checked::Fetched(fetched)) => return Ok(fetched.into_manifest(role, want)),
            Err(error) if may_be_stale && !error.is_upstreams_word() => return Ok(stale(known)),
            Err(error) => return Err(error),
        };
        if want != Want::Bytes {
            return Ok(moved_to.into_manifest());
        }
        let (flight, role) = self.start_fetch(target, &Reference::Tag(tag.clone()))?;
        match flight.result().await.unwrap_or(Err(CacheError::Stopped)) {
            Ok(fetched) => Ok(fetched.into_manifest(role, want)),
            Err(error) if may_be_stale && !error.is_upstreams_word() => Ok(stale(known)),
            Err(error) => Err(error),
        }
    }

    /// What is known of a tag, all of it at one time. What cannot be read is suspect.
    pub(super) async fn tag_state(&self, target: &Target, tag: &Tag) -> KnownState {
        let warn = |error: StoreError| {
            tracing::warn!(
                upstream = %target.upstream, repository = %target.repo, %tag,
                error = &error as &dyn std::error::Error, "whether a tag is suspect cannot be read; it counts as that"
            );
            true
        };
        match self.store.tag_state(&target.upstream, &target.repo, tag).await {
            Ok(TagState { record, checked_at, suspect }) => {
                KnownState { record, checked_at, suspect: suspect.unwrap_or_else(warn) }
            }
            Err(error) => KnownState { record: None, checked_at: None, suspect: warn(error) },
        }
    }

    /// Asks upstream for what is not in the store.
    async fn ask(self: &Arc<Self>, target: &Target, reference: &Reference, want: Want) -> Result<Manifest, CacheError> {
        self.check_missing(target, Wanted::Manifest(reference.clone()))?;
        match want {
            Want::Description | Want::Confirmed | Want::Required => {
                self.describe_upstream(target, reference).await.map(Described::into_manifest)
            }
            Want::Bytes => {
                let (flight, role) = self.start_fetch(target, reference)?;
                let fetched = flight.result().await.unwrap_or(Err(CacheError::Stopped));
                fetched.map(|fetched| fetched.into_manifest(role, want))
            }
        }
    }

    /// The stored manifest, if this name has a link to it, whoever asks: from memory, else from the disk.
    pub(super) async fn stored_manifest(self: &Arc<Self>, target: &Target, digest: &Digest) -> Option<Known> {
        if let Some(hot) = self.hot.get(target, digest) {
            if self.store.touch(digest) {
                self.store.use_image(digest);
                return Some(Known::new(digest, hot));
            }
            self.hot.remove(digest);
        }
        let read = self.generations.asking();
        let link = self.linked(target, digest, LinkKind::Manifest).await?;
        let bytes = self.manifest_bytes(digest).await?;
        // A link that does not say was not written by a manifest's answer.
        let hot = HotManifest::new(digest, link.media_type.as_deref()?, bytes, link.via);
        self.heat(target, digest, hot.clone(), &read);
        self.store.use_image(digest);
        Some(Known::new(digest, hot))
    }

    /// The stored bytes of a manifest, hashed again where the stamp is void. Damaged ones are quarantined and absent; so are
    /// those that cannot be read, until they can or a new copy has taken their place.
    async fn manifest_bytes(self: &Arc<Self>, digest: &Digest) -> Option<Bytes> {
        let stored = self.stored(digest).await?;
        if stored.len > self.config.load().max_manifest {
            return None;
        }
        let stored = if stored.trust == Trust::Verified {
            stored
        } else {
            let (mut watcher, stored) = self.verify(digest, stored);
            watcher.verdict().await.ok()?;
            stored
        };
        let length = usize::try_from(stored.len).ok()?;
        let read = super::body::reader(length);
        let read = tokio::task::spawn_blocking(move || read(&stored.file, 0)).await;
        match read {
            Ok(Ok(bytes)) if bytes.len() == length => Some(bytes),
            _ => {
                tracing::warn!(%digest, "a stored manifest cannot be read");
                None
            }
        }
    }

    pub(super) fn tag_policy(&self, target: &Target, tag: &Tag) -> TagPolicy {
        self.config
            .load()
            .upstreams
            .get(&target.upstream)
            .map_or(TagPolicy::Always, |upstream| upstream.policy(&target.repo, tag))
    }
}

// === impl Manifest ===

impl Manifest {
    /// Its media type.
    pub fn media_type(&self) -> &str {
        self.labels.media_type()
    }
}

// === impl Known ===

impl Known {
    fn new(digest: &Digest, stored: HotManifest) -> Self {
        let manifest = Manifest {
            digest: *digest,
            labels: stored.labels,
            size: stored.bytes.len() as u64,
            bytes: Some(stored.bytes),
            status: Found::Hit.into(),
        };
        Self { manifest, via: stored.via }
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
            labels: Arc::new(Labels::of_manifest(&self.digest, &self.media_type, self.bytes.len() as u64)),
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
            labels: Arc::new(Labels::of_manifest(&self.digest, &self.media_type, self.size)),
            size: self.size,
            bytes: None,
            status: Found::Passed.into(),
        }
    }
}
