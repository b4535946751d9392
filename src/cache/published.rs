//! What a write that upstream has acknowledged means here: the next pull of what was pushed is a hit, and what was
//! deleted is not served any more.

use bytes::Bytes;

use super::writes::{Asked, WriteGuard};
use super::{Cache, Repository, Target, Wanted};
use crate::oci::{Digest, ManifestInfo, Tag};
use crate::store::{Link, LinkKind, StoreError, TagRecord};

/// A manifest that upstream has taken.
#[derive(Debug, Clone)]
pub struct PublishedManifest {
    /// What it hashes to.
    pub digest: Digest,
    /// As the client named it.
    pub media_type: String,
    /// As they went to upstream.
    pub bytes: Bytes,
}

// === impl Cache ===

impl Cache {
    /// Upstream has taken a manifest, under these tags. What cannot be kept is asked for when it is pulled.
    pub async fn published_manifest(
        &self,
        guard: WriteGuard,
        target: &Target,
        tags: &[Tag],
        manifest: PublishedManifest,
    ) {
        let PublishedManifest { digest, media_type, bytes } = manifest;
        let size = bytes.len() as u64;
        // It is held to the same rules as one that is pulled.
        let info = (Digest::of(digest.algorithm(), &bytes) == digest && size <= self.config.load().max_manifest)
            .then(|| ManifestInfo::check(Some(&media_type), &bytes).ok())
            .flatten();
        let stored = match info {
            Some(info) => {
                let link = Link {
                    kind: LinkKind::Manifest,
                    via: target.right.via(),
                    media_type: Some(media_type.clone()),
                    size,
                    subject: info.subject,
                    artifact_type: info.artifact_type,
                };
                self.keep_manifest(target, &digest, link, bytes, guard.begun()).await
            }
            None => None,
        };
        let repository = target.repository();
        self.forget_answers(&repository).await;
        let Some(known_at) = guard.done().filter(|_| stored.is_some()) else { return };
        let record = TagRecord { digest, media_type, size, etag: None };
        for tag in tags {
            if let Err(error) = self.store.set_tag(&target.upstream, &target.repo, tag, &record, known_at).await {
                warn(&repository, &error, "a tag that was pushed could not be kept");
            }
        }
    }

    /// Upstream, asked at `begun`, has taken a blob of `size` bytes, and it is in the store.
    pub async fn published_blob(&self, target: &Target, digest: &Digest, size: u64, begun: &Asked) {
        self.forget_missing_blob(target, digest);
        self.keep_link(target, digest, Link::blob(target.right.via(), size), begun).await;
    }

    /// Upstream has taken a blob: nobody is told any more that it does not have it.
    pub fn forget_missing_blob(&self, target: &Target, digest: &Digest) {
        let repository = target.repository();
        self.generations.pass(&repository);
        self.missing.forget(|(of, what)| *what == Wanted::Blob(*digest) && of.is_in(&repository));
        self.rights.forget_refusals(&repository);
    }

    /// Upstream has deleted a manifest, and with it its tags, and what refers to it. All tags of the repository stay
    /// suspect: one that moved to this manifest unnoticed is gone too.
    pub async fn deleted_manifest(&self, guard: WriteGuard, target: &Target, digest: &Digest) {
        let Target { upstream, repo, .. } = target;
        let repository = target.repository();
        if let Err(error) = self.store.forget_manifest(upstream, repo, digest).await {
            warn(&repository, &error, "a manifest that was deleted could not be forgotten");
        }
        self.hot.remove_all_from(&repository);
        self.forget_answers(&repository).await;
        guard.done();
    }

    /// Upstream has removed a tag.
    pub async fn deleted_tag(&self, guard: WriteGuard, target: &Target, tag: &Tag) {
        let repository = target.repository();
        self.forget_answers(&repository).await;
        let Some(known_at) = guard.done() else { return };
        if let Err(error) = self.store.remove_tag(&target.upstream, &target.repo, tag, known_at).await {
            warn(&repository, &error, "a tag that was deleted could not be forgotten");
        }
    }

    /// Upstream has deleted a blob.
    pub async fn deleted_blob(&self, guard: WriteGuard, target: &Target, digest: &Digest) {
        let repository = target.repository();
        if let Err(error) = self.store.forget_blob(&target.upstream, &target.repo, digest).await {
            warn(&repository, &error, "a blob that was deleted could not be forgotten");
        }
        self.hot.remove_from(&repository, digest);
        guard.done();
    }

    /// Upstream has deleted a repository.
    pub async fn deleted_repository(&self, guard: WriteGuard, target: &Target) {
        let repository = target.repository();
        if let Err(error) = self.store.forget_repository(&target.upstream, &target.repo).await {
            warn(&repository, &error, "a repository that was deleted could not be forgotten");
        }
        self.hot.remove_all_from(&repository);
        self.forget_answers(&repository).await;
        guard.done();
    }

    /// Upstream has brought something back that was deleted: any tag, and any content.
    pub(super) async fn restored(&self, guard: WriteGuard, target: &Target) {
        self.forget_answers(&target.repository()).await;
        guard.done();
    }

    /// Forgets answers that a write has overtaken: what was not there, what tags were seen to mean, lists.
    async fn forget_answers(&self, repository: &Repository) {
        self.missing.forget(|(of, _)| of.is_in(repository));
        self.seen_tags.forget(|(of, _)| of == repository);
        self.rights.forget_refusals(repository);
        if let Err(error) = self.store.forget_lists(&repository.upstream, &repository.repo).await {
            warn(repository, &error, "the lists of a repository that was written to could not be forgotten");
        }
    }
}

fn warn(repository: &Repository, error: &StoreError, what: &'static str) {
    let Repository { upstream, repo } = repository;
    tracing::warn!(%upstream, repository = %repo, error = error as &dyn std::error::Error, "{what}");
}
