//! A fill: the one download of a blob, by a task that no client owns.
//!
//! Ask upstream → write and hash → tell the readers how far it is → verify → release the tail → publish. A body that
//! breaks is continued by Range from the mark; the readers see a pause (ADR 0002). Where the store cannot take the rest,
//! the readers fetch it by themselves.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::blob::Proof;
use super::bypass::Rest;
use super::download::{Download, Mark, Origin};
use super::flight::Role;
use super::progress::{self, Head, Reporter, Watcher};
use super::writes::Asked;
use super::{ANSWER_WITHIN, Cache, CacheError, Target, blame};
use crate::oci::{Digest, Via};
use crate::store::{BlobWriter, Link, StoreError, Trust};

/// The running fills, one per digest across all names and clients.
#[derive(Default)]
pub(super) struct Fills {
    /// Held for look-ups only, never over an await.
    running: Mutex<HashMap<Digest, Fill>>,
}

/// Names under which upstream has said that it has the blob too; none once they were turned into links.
pub(super) type Proven = Mutex<Option<Vec<(Target, Via, Asked)>>>;

/// A running fill, as a reader holds it.
#[derive(Clone)]
pub(super) struct Fill {
    /// In whose name upstream is asked.
    pub(super) target: Target,
    /// When it was.
    pub(super) asked: Asked,
    /// How far it is.
    pub(super) watcher: Watcher,
    /// By whose right upstream gives it; known when the head is.
    via: Arc<OnceLock<Via>>,
    proven: Arc<Proven>,
}

/// Takes the fill out of the table and off the gauge, however its task ends.
struct Landing {
    cache: Arc<Cache>,
    digest: Digest,
    proven: Arc<Proven>,
}

// === impl Fill ===

impl Fill {
    /// Has `target` linked to the blob when it is published. False if that has happened already.
    pub(super) fn also_for(&self, target: &Target, proof: &Proof) -> bool {
        let mut proven = self.proven.lock();
        let Some(proven) = proven.as_mut() else { return false };
        proven.push((target.clone(), proof.via, proof.asked));
        true
    }

    /// By whose right upstream gives it, when its head has come; none if it fails before that.
    pub(super) async fn via(&self) -> Option<Via> {
        self.watcher.clone().head().await.ok()?;
        self.via.get().copied()
    }
}

// === impl Cache ===

impl Cache {
    /// Joins the fill of `digest`, or starts one in the name of `target`.
    pub(super) fn fill(self: &Arc<Self>, target: &Target, digest: &Digest) -> Result<(Fill, Role), CacheError> {
        let origin = self.origin(target, digest)?;
        let mut running = self.fills.running.lock();
        // One that has failed is about to leave the table; whoever comes now is not answered by it.
        if let Some(fill) = running.get(digest).filter(|fill| !fill.watcher.has_failed()) {
            return Ok((fill.clone(), Role::Follower));
        }
        let (reporter, watcher) = progress::channel();
        let fill = Fill {
            target: target.clone(),
            asked: self.generations.asking(),
            watcher,
            via: Arc::default(),
            proven: Arc::new(Mutex::new(Some(Vec::new()))),
        };
        running.insert(*digest, fill.clone());
        drop(running);
        self.metrics.fills_in_progress.inc();
        let landing = Landing { cache: Arc::clone(self), digest: *digest, proven: Arc::clone(&fill.proven) };
        let task = FillTask { cache: Arc::clone(self), origin, reporter, fill: fill.clone() };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            // The landing comes last: until the blob is published a new request finds the fill, and after it the file.
            let _landing = landing;
            if stop.run_until_cancelled(task.run()).await.is_none() {
                tracing::debug!("a fill was given up because ocistern is stopping");
            }
        });
        Ok((fill, Role::Leader))
    }
}

// === impl Landing ===

impl Drop for Landing {
    fn drop(&mut self) {
        let mut running = self.cache.fills.running.lock();
        // There may be another one in its place.
        if running.get(&self.digest).is_some_and(|fill| Arc::ptr_eq(&fill.proven, &self.proven)) {
            running.remove(&self.digest);
        }
        drop(running);
        self.cache.metrics.fills_in_progress.dec();
    }
}

/// All that the task of a fill needs.
struct FillTask {
    cache: Arc<Cache>,
    origin: Origin,
    reporter: Reporter,
    fill: Fill,
}

/// Why receiving ended.
enum Broken {
    /// Upstream broke the body off, or it is not what was asked for.
    Upstream(CacheError),
    /// The store does not take it.
    Store(StoreError),
}

// === impl FillTask ===

impl FillTask {
    async fn run(self) {
        // Whoever asked for this fill saw no file; another fill may have published it and left the table since.
        let digest = &self.origin.digest;
        if self.cache.stored(digest).await.is_some_and(|stored| stored.trust == Trust::Verified) {
            return self.reporter.failed(CacheError::Arrived(Box::new(*digest)));
        }
        if let Err(error) = self.attempt().await {
            let Origin { target: Target { upstream, repo, .. }, digest, .. } = &self.origin;
            tracing::warn!(
                %upstream, repository = %repo, %digest, error = &error as &dyn std::error::Error,
                "a blob could not be fetched"
            );
            self.reporter.failed(error);
        }
    }

    async fn attempt(&self) -> Result<(), CacheError> {
        let Origin { target, digest, .. } = &self.origin;
        let asked = self.fill.asked;
        let download = Download::whole(self.origin.clone(), Instant::now() + ANSWER_WITHIN).await;
        let mut download = match download {
            Ok(download) => download.with_lenders(Arc::clone(&self.fill.proven)),
            Err(error) => {
                self.cache.heard(target, &asked, Err(&error)).await;
                return Err(error);
            }
        };
        let (length, via) = (download.length(), download.via());
        let mut writer = self.cache.store.create(digest, length).await?;
        // Before the head: who sees that may look.
        let _ = self.fill.via.set(via);
        self.reporter.head(Head { file: writer.file(), length });

        match self.receive(&mut writer, &mut download).await {
            Ok(()) => {}
            Err(Broken::Upstream(error)) => return Err(error),
            Err(Broken::Store(error)) => return self.cut(writer, download.mark(), error).await,
        }
        // The digest matches: the readers get the tail before the disk has confirmed anything.
        let bytes = writer.written();
        self.reporter.verified(bytes);
        match writer.finish().await {
            Ok(stored) => self.reporter.guarded(stored),
            Err(error) => {
                tracing::warn!(
                    %digest, error = &error as &dyn std::error::Error, "a blob was served but could not be kept"
                );
                return Ok(());
            }
        }
        let also = self.fill.proven.lock().take().unwrap_or_default();
        for (target, via, asked) in std::iter::once((target.clone(), via, asked)).chain(also) {
            self.cache.heard(&target, &asked, Ok(via)).await;
            self.cache.keep_link(&target, digest, Link::blob(via, bytes), &asked).await;
        }
        Ok(())
    }

    /// Receives and verifies the whole body, and tells the readers as the bytes reach the file. The writer gathers what
    /// comes while it writes and hashes, so receiving goes on meanwhile.
    async fn receive(&self, writer: &mut BlobWriter, download: &mut Download) -> Result<(), Broken> {
        let mut progress = writer.progress();
        loop {
            let data = {
                let mut next = pin!(download.next());
                loop {
                    tokio::select! {
                        data = &mut next => break data,
                        Ok(()) = progress.changed() => self.reporter.grown(*progress.borrow_and_update()),
                    }
                }
            };
            match data.map_err(Broken::Upstream)? {
                Some(data) => writer.write(data).await.map_err(Broken::Store)?,
                None => return writer.verify().await.map_err(Broken::Store),
            }
        }
    }

    /// The store does not take the blob. If that is the store's fault, what it has taken is served, and the readers
    /// fetch the rest.
    async fn cut(&self, writer: BlobWriter, mark: Mark, error: StoreError) -> Result<(), CacheError> {
        let Origin { target, digest, .. } = &self.origin;
        let ours = !matches!(
            error,
            StoreError::DigestMismatch { .. } | StoreError::LengthMismatch { .. } | StoreError::Stopped
        );
        let remnant = if ours { writer.into_remnant().await } else { None };
        let Some(remnant) = remnant else { return Err(blame(error, &target.upstream)) };
        tracing::warn!(
            %digest, at = remnant.written, error = &error as &dyn std::error::Error,
            "the store cannot take the rest of a blob; who reads it gets the rest from upstream"
        );
        self.reporter.cut(Rest::new(self.origin.clone(), mark, remnant));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::super::hot::HotManifest;
    use super::*;
    use crate::config::{Capacity, Config, Durability};
    use crate::metrics::Metrics;
    use crate::oci::{Algorithm, ManifestInfo, Reference, media};
    use crate::store::{Keep, Store, StoreOptions};
    use crate::upstream::{Right, Upstreams};

    /// A cache over an empty store, whose only upstream refuses connections, and the directory of the store.
    fn cache() -> (Arc<Cache>, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let config = "builtin_upstreams = false\n[upstream.reg]\nurl = \"http://127.0.0.1:9\"\n\
                      [[listener]]\naddress = \"127.0.0.1:0\"\ndefault_upstream = \"reg\"\n";
        let config = Config::from_toml(config).unwrap();
        let metrics = Metrics::new().unwrap();
        let options = StoreOptions {
            root: root.path().to_owned(),
            capacity: Capacity::Default,
            durability: Durability::Fast,
            keep: Keep::default(),
            origins: Vec::new(),
        };
        let store = Store::open(options, metrics.clone()).unwrap();
        let upstreams = Arc::new(Upstreams::new(&config, metrics.clone()).unwrap());
        (Cache::new(store, upstreams, &config, metrics, TaskTracker::new(), CancellationToken::new()), root)
    }

    fn target() -> Target {
        Target { upstream: "reg".parse().unwrap(), repo: "app".parse().unwrap(), right: Right::Anonymous }
    }

    /// What a request meets that missed in the store just before another one's fill published and left the table.
    #[tokio::test]
    async fn a_fill_of_what_has_arrived_meanwhile_does_not_ask_upstream() {
        let (cache, _root) = cache();
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let (fill, role) = cache.fill(&target(), &digest).unwrap();
        assert_eq!(role, Role::Leader);
        let refused = fill.watcher.clone().head().await.unwrap_err();
        assert!(matches!(refused, CacheError::Upstream(_)), "not there: upstream is asked: {refused}");
        cache.tasks.close();
        cache.tasks.wait().await;
        cache.tasks.reopen();

        let mut writer = cache.store.create(&digest, None).await.unwrap();
        writer.write(Bytes::from_static(b"content")).await.unwrap();
        writer.finish().await.unwrap();
        let (fill, role) = cache.fill(&target(), &digest).unwrap();
        assert_eq!(role, Role::Leader);
        let arrived = fill.watcher.clone().head().await.unwrap_err();
        assert!(matches!(arrived, CacheError::Arrived(_)), "{arrived}");
    }

    #[tokio::test]
    async fn a_fetch_of_a_manifest_that_has_arrived_meanwhile_does_not_ask_upstream() {
        let (cache, _root) = cache();
        let bytes = Bytes::from(format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media::OCI_INDEX));
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let info = ManifestInfo::check(None, &bytes).unwrap();
        let link = Link {
            kind: crate::store::LinkKind::Manifest,
            via: Via::Anonymous,
            media_type: info.media_type,
            size: bytes.len() as u64,
            subject: None,
            artifact_type: None,
        };
        let asked = cache.generations.asking();
        cache.heard(&target(), &asked, Ok(Via::Anonymous)).await;
        assert!(cache.keep_manifest(&target(), &digest, link, bytes.clone(), &asked).await);
        assert!(cache.stored_manifest(&target(), &digest).await.is_some(), "and it is in memory");
        let (flight, role) = cache.start_fetch(&target(), &Reference::Digest(digest)).unwrap();
        assert_eq!(role, Role::Leader);
        assert_eq!(flight.result().await.unwrap().unwrap().bytes, bytes);

        cache.tasks.close();
        cache.tasks.wait().await;
        cache.tasks.reopen();

        // As after an account that pulls no more.
        let hot = HotManifest { media_type: media::OCI_INDEX.into(), bytes, via: Via::Shared };
        cache.hot.insert(&target(), &digest, hot);
        let (flight, _) = cache.start_fetch(&target(), &Reference::Digest(digest)).unwrap();
        let refused = flight.result().await.unwrap().unwrap_err();
        assert!(matches!(refused, CacheError::Upstream(_)), "what does not cover the caller is no answer: {refused}");
    }
}
