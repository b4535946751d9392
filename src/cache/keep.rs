//! What is kept of upstream's answers, in the order blob → link → tag. Nothing here fails a pull: what cannot be kept
//! costs a question next time.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::fetch::Described;
use super::hot::HotManifest;
use super::writes::Asked;
use super::{Cache, Target};
use crate::oci::{Digest, Tag, Via};
use crate::store::{Link, LinkKind, StoreError, StoredBlob, TagRecord};

/// How long an answer waits until it is kept. A disk that is slower does not fail who has come for what upstream gave: there
/// is time left until clients give up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many answers are being kept at once: each may hold a thread for as long as the disk takes.
pub(super) const AT_ONCE: usize = 64;

// === impl Cache ===

impl Cache {
    /// Does `work`, which keeps something, to its end on a task of its own, and says what came of it; false where that
    /// takes too long.
    pub(super) async fn keep_in_time(&self, work: impl Future<Output = bool> + Send + 'static) -> bool {
        let in_time = async {
            let permit = Arc::clone(&self.keeping).acquire_owned().await.ok()?;
            let (sender, kept) = oneshot::channel();
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                let _permit = permit;
                if let Some(kept) = stop.run_until_cancelled(work).await {
                    // Nobody may be waiting any more.
                    let _ = sender.send(kept);
                }
            });
            kept.await.ok()
        };
        if let Ok(kept) = timeout(PATIENCE, in_time).await {
            return kept.unwrap_or(false);
        }
        if self.slow_disk.get(&()).is_none() {
            self.slow_disk.insert((), ());
            tracing::warn!(
                "the store's disk takes more than {} s to keep what upstream answers, which is passed on meanwhile (said once a minute)",
                PATIENCE.as_secs()
            );
        }
        false
    }

    /// Records that upstream, asked then, served `digest` in `target`, unless something was deleted there since; what was
    /// known of it before is not lost. False if it is not recorded, which costs a question next time and nothing else.
    pub(super) async fn keep_link(&self, target: &Target, digest: &Digest, link: Link, asked: &Asked) -> bool {
        let Target { upstream, repo, .. } = target;
        let before = self.linked(target, digest, LinkKind::Blob).await;
        let link = before.as_ref().map_or_else(|| link.clone(), |before| merged(before, &link));
        match self.store.set_link(upstream, repo, digest, &link, asked.at).await {
            Ok(true) => {
                let repository = target.repository();
                if before.as_deref() != Some(&link) {
                    // It says by whose right, too.
                    self.hot.remove_from(&repository, digest);
                }
                self.keep_access(&repository).await;
                true
            }
            Ok(false) => {
                tracing::debug!(%upstream, repository = %repo, %digest, "an answer was overtaken by a delete");
                false
            }
            Err(error) => {
                unkept(target, digest, &error, "a link could not be kept");
                false
            }
        }
    }

    /// Publishes a manifest and its link. None if the store has no room or failed: the answer is served all the same. Hold it
    /// until the tag is kept: what is held is not evicted, so no tag leads to what is gone.
    pub(super) async fn keep_manifest(
        &self,
        target: &Target,
        digest: &Digest,
        link: Link,
        bytes: Bytes,
        asked: &Asked,
    ) -> Option<StoredBlob> {
        let publish = async {
            let mut writer = self.store.create(digest, Some(link.size)).await?;
            writer.write(bytes).await?;
            writer.finish().await
        };
        let stored = publish
            .await
            .inspect_err(|error| unkept(target, digest, error, "a manifest was served but could not be kept"))
            .ok()?;
        // Its layers may be here by another image already; and of a pinned one the layers are still to come.
        self.store.use_image(digest);
        self.keep_link(target, digest, link, asked).await;
        Some(stored)
    }

    /// Upstream's HEAD has said what a tag means. If the manifest is in the store, the tag is known from here on; else
    /// as soon as the client that asked has fetched what it named (containerd and dockerd do it in these two steps).
    pub(super) async fn see_tag(&self, target: Target, tag: Tag, described: Described) {
        let digest = described.digest;
        let stored = self.stored(&digest).await.is_some();
        if stored {
            self.keep_manifest_link(&target, &described).await;
        }
        self.seen_tags.insert((target.repository(), tag), described);
        if stored {
            self.keep_seen_tags(&target, &digest).await;
        }
    }

    /// Keeps the tags that were seen to mean a manifest which is in the store now.
    pub(super) async fn keep_seen_tags(&self, target: &Target, digest: &Digest) {
        for ((_, tag), seen) in self.seen_tags.take(|(of, _), seen| target.is_in(of) && seen.digest == *digest) {
            let Described { digest, media_type, size, etag, asked, .. } = seen;
            self.keep_tag(target, &tag, &TagRecord { digest, media_type, size, etag }, &asked).await;
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
        self.keep_link(target, &proof.digest, link, &proof.asked).await;
    }

    /// The same, where the link may say less than that; nothing is said to more callers than everybody.
    pub(super) async fn raise_manifest_link(&self, target: &Target, proof: &Described) {
        if self.hot.get(target, &proof.digest).is_none_or(|hot| hot.via != Via::Anonymous) {
            self.keep_manifest_link(target, proof).await;
        }
    }

    /// Puts a manifest, read or fetched at that time, into memory, unless a write was on its way.
    pub(super) fn heat(&self, target: &Target, digest: &Digest, manifest: HotManifest, asked: &Asked) {
        self.hot.insert(target, digest, manifest);
        // After the insertion: whoever forgets it raises the generation first.
        let repository = target.repository();
        if !self.generations.holds(&repository, asked) {
            self.hot.remove_from(&repository, digest);
        }
    }

    /// Keeps what upstream said about a tag when it was asked then, unless a later question was answered before, or the
    /// repository was written to since.
    pub(super) async fn keep_tag(&self, target: &Target, tag: &Tag, record: &TagRecord, asked: &Asked) {
        let overtaken = || {
            tracing::debug!(
                upstream = %target.upstream, repository = %target.repo, %tag, digest = %record.digest,
                "an answer about a tag was overtaken by a later one"
            );
        };
        if !self.generations.holds(&target.repository(), asked) {
            return overtaken();
        }
        match self.store.set_tag(&target.upstream, &target.repo, tag, record, asked.at).await {
            Ok(true) => {}
            Ok(false) => overtaken(),
            Err(error) => {
                unkept(target, tag, &error, "a tag could not be kept");
                self.outdate_tag(target, tag, &record.digest, asked).await;
            }
        }
    }

    /// Upstream, asked then, said that a tag means `digest`, which is served and could not be kept: what it meant before is
    /// not served any more, should upstream be away next time.
    pub(super) async fn outdate_tag(&self, target: &Target, tag: &Tag, digest: &Digest, asked: &Asked) {
        if !self.generations.holds(&target.repository(), asked) {
            return;
        }
        let Target { upstream, repo, .. } = target;
        match self.store.outdate_tag(upstream, repo, tag, digest, asked.at).await {
            Ok(true) => tracing::info!(
                %upstream, repository = %repo, %tag, %digest,
                "a tag has moved to what could not be kept; what it named before is forgotten"
            ),
            Ok(false) => {}
            Err(error) => unkept(target, tag, &error, "a tag that has moved could not be forgotten"),
        }
    }

    /// Upstream, asked then, did not have the tag. That counts from a caller who may read the repository: some
    /// registries say to strangers that there is nothing.
    pub(super) async fn forget_tag(&self, target: &Target, tag: &Tag, asked: &Asked) {
        if !self.may_read(target).await || !self.generations.holds(&target.repository(), asked) {
            return;
        }
        if let Err(error) = self.store.remove_tag(&target.upstream, &target.repo, tag, asked.at).await {
            tracing::warn!(
                upstream = %target.upstream, repository = %target.repo, %tag,
                error = &error as &dyn std::error::Error, "a tag that upstream no longer has could not be removed"
            );
        }
    }
}

/// Says why something is not kept; that there is no room the store has said once.
fn unkept(target: &Target, reference: &dyn Display, error: &StoreError, what: &'static str) {
    let Target { upstream, repo, .. } = target;
    if error.is_full() {
        tracing::debug!(%upstream, repository = %repo, %reference, "{what}: there is no room");
    } else {
        let error: &dyn std::error::Error = error;
        tracing::warn!(%upstream, repository = %repo, %reference, error, "{what}");
    }
}

/// What two answers prove together: a manifest stays one though it was fetched as a blob, and what upstream gave to more
/// callers counts. A caller's own proof does not replace that of ocistern's account, nor anything that of everybody.
fn merged(before: &Link, now: &Link) -> Link {
    let (more, less) =
        if before.kind == LinkKind::Manifest && now.kind == LinkKind::Blob { (before, now) } else { (now, before) };
    let reach = |via: Via| match via {
        Via::Client => 0,
        Via::Shared => 1,
        Via::Anonymous => 2,
    };
    Link {
        kind: more.kind,
        via: if reach(before.via) > reach(now.via) { before.via } else { now.via },
        media_type: more.media_type.clone().or_else(|| less.media_type.clone()),
        size: more.size,
        subject: more.subject.or(less.subject),
        artifact_type: more.artifact_type.clone().or_else(|| less.artifact_type.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::cache;
    use super::*;
    use crate::oci::Algorithm;

    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_holds_nobody_up() {
        let (cache, _root) = cache();
        assert!(cache.keep_in_time(async { true }).await);
        assert!(!cache.keep_in_time(async { false }).await);
        let begun = tokio::time::Instant::now();
        let kept = Arc::new(tokio::sync::Notify::new());
        for n in 0..AT_ONCE {
            let disk = Arc::clone(&kept);
            let work = async move {
                disk.notified().await;
                true
            };
            assert!(!cache.keep_in_time(work).await, "nobody waits for the disk: {n}");
        }
        assert_eq!(begun.elapsed(), PATIENCE * u32::try_from(AT_ONCE).unwrap());
        assert!(!cache.keep_in_time(async { panic!("as many as may be are at it") }).await);
        kept.notify_waiters();
        assert!(cache.keep_in_time(async { true }).await, "the disk goes on, and so does what was begun");
    }

    #[test]
    fn proofs_add_up() {
        let subject = Some(Digest::of(Algorithm::Sha256, b"subject"));
        let manifest = |via, subject| Link {
            kind: LinkKind::Manifest,
            via,
            media_type: Some("text/x".to_owned()),
            size: 7,
            subject,
            artifact_type: None,
        };
        let full = manifest(Via::Client, subject);
        assert_eq!(merged(&full, &Link::blob(Via::Client, 7)), full, "a manifest stays a manifest");
        assert_eq!(merged(&Link::blob(Via::Client, 7), &full), full);
        assert_eq!(merged(&full, &manifest(Via::Client, None)), full, "a HEAD knows no subject");
        for (before, now, both) in [
            (Via::Client, Via::Anonymous, Via::Anonymous),
            (Via::Anonymous, Via::Client, Via::Anonymous),
            (Via::Shared, Via::Client, Via::Shared),
            (Via::Client, Via::Shared, Via::Shared),
            (Via::Anonymous, Via::Shared, Via::Anonymous),
        ] {
            assert_eq!(merged(&manifest(before, None), &manifest(now, None)).via, both, "{before:?}, then {now:?}");
        }
    }
}
