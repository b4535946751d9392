//! What is kept of upstream's answers, in the order blob → link → tag. Nothing here fails a pull: what cannot be kept
//! costs a question next time.

use std::time::SystemTime;

use bytes::Bytes;

use super::fetch::Described;
use super::{Cache, Target};
use crate::oci::{Digest, Tag, Via};
use crate::store::{Access, Link, LinkKind, TagRecord};

// === impl Cache ===

impl Cache {
    /// Records that upstream served `digest` in `target` when it was asked at `asked_at`, unless something was deleted
    /// there since. A failure costs a question next time, nothing else.
    pub(super) async fn keep_link(&self, target: &Target, digest: &Digest, link: Link, asked_at: SystemTime) {
        let Target { upstream, repo, .. } = target;
        let access = if link.via == Via::Anonymous { Access::Public } else { Access::Private };
        let kept = async {
            self.store.set_link(upstream, repo, digest, &link, asked_at).await?;
            self.store.set_access(upstream, repo, access).await
        };
        if let Err(error) = kept.await {
            tracing::warn!(
                %upstream, repository = %repo, %digest, error = &error as &dyn std::error::Error,
                "a link could not be kept"
            );
        }
    }

    /// Publishes a manifest and its link. False if the store has no room or failed: the answer is served all the same.
    pub(super) async fn keep_manifest(
        &self,
        target: &Target,
        digest: &Digest,
        link: Link,
        bytes: Bytes,
        asked_at: SystemTime,
    ) -> bool {
        let publish = async {
            let mut writer = self.store.create(digest, Some(link.size)).await?;
            writer.write(bytes).await?;
            writer.finish().await
        };
        if let Err(error) = publish.await {
            tracing::warn!(
                upstream = %target.upstream, repository = %target.repo, %digest,
                error = &error as &dyn std::error::Error, "a manifest was served but could not be kept"
            );
            return false;
        }
        self.keep_link(target, digest, link, asked_at).await;
        true
    }

    /// Upstream's HEAD has said what a tag means. If the manifest is in the store, the tag is known from here on; else
    /// as soon as the client that asked has fetched what it named (containerd and dockerd do it in these two steps).
    pub(super) async fn see_tag(&self, target: Target, tag: Tag, described: Described) {
        let digest = described.digest;
        let stored = self.stored(&digest).await.is_some();
        if stored && !matches!(self.linked(&target, &digest, LinkKind::Manifest).await, Ok(Some(_))) {
            self.keep_manifest_link(&target, &described).await;
        }
        self.seen_tags.insert((target.clone(), tag), described);
        if stored {
            self.keep_seen_tags(&target, &digest).await;
        }
    }

    /// Keeps the tags that were seen to mean a manifest which is in the store now.
    pub(super) async fn keep_seen_tags(&self, target: &Target, digest: &Digest) {
        for ((_, tag), seen) in self.seen_tags.take(|(of, _), seen| of == target && seen.digest == *digest) {
            let Described { digest, media_type, size, etag, asked_at, .. } = seen;
            self.keep_tag(target, &tag, &TagRecord { digest, media_type, size, etag }, asked_at).await;
        }
    }

    /// Links a manifest that is stored already, from what upstream's HEAD said of it under this name.
    pub(super) async fn keep_manifest_link(&self, target: &Target, proof: &Described) {
        let link = Link {
            kind: LinkKind::Manifest,
            via: proof.via,
            media_type: Some(proof.media_type.clone()),
            size: proof.size,
            subject: None,
            artifact_type: None,
        };
        self.keep_link(target, &proof.digest, link, proof.asked_at).await;
    }

    /// Keeps what upstream said about a tag when it was asked at `asked_at`, unless a later question was answered
    /// before.
    pub(super) async fn keep_tag(&self, target: &Target, tag: &Tag, record: &TagRecord, asked_at: SystemTime) {
        match self.store.set_tag(&target.upstream, &target.repo, tag, record, asked_at).await {
            Ok(true) => {}
            Ok(false) => tracing::debug!(
                upstream = %target.upstream, repository = %target.repo, %tag, digest = %record.digest,
                "an answer about a tag was overtaken by a later one"
            ),
            Err(error) => tracing::warn!(
                upstream = %target.upstream, repository = %target.repo, %tag,
                error = &error as &dyn std::error::Error, "a tag could not be kept"
            ),
        }
    }

    pub(super) async fn forget_tag(&self, target: &Target, tag: &Tag, asked_at: SystemTime) {
        if let Err(error) = self.store.remove_tag(&target.upstream, &target.repo, tag, asked_at).await {
            tracing::warn!(
                upstream = %target.upstream, repository = %target.repo, %tag,
                error = &error as &dyn std::error::Error, "a tag that upstream no longer has could not be removed"
            );
        }
    }
}
