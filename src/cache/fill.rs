//! A fill: the one download of a blob, by a task that no client owns.
//!
//! Ask upstream → write and hash → tell the readers how far it is → verify → release the tail → publish ([`super::legs`]).
//! Where upstream refuses who began it, another fill begins by the right of a reader who may have the blob. Where the store
//! cannot take the rest, the readers fetch it by themselves. What an earlier fill has left is taken up (ADR 0019).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::bypass::Rest;
use super::demand::Demand;
use super::download::Download;
use super::endpoints::Endpoints;
use super::first::missing_first;
use super::flight::Role;
use super::leg::Broken;
use super::legs::{Ended, Legs};
use super::lenders::{self, Lender, Lenders, Lent, Proven};
use super::progress::{self, Head, Reporter, Watcher};
use super::report::Gauges;
use super::supply::{Mark, Origin, Part, Supply};
use super::writes::Asked;
use super::{ANSWER_WITHIN, Cache, CacheError, Target, Wanted, blame};
use crate::oci::{Digest, UpstreamName, Via};
use crate::party::Party;
use crate::store::{BlobWriter, Link, Partial, PartialMark, StoreError, Trust};
use crate::telemetry;
use crate::upstream::{Errand, Interest, Right};

/// The running fills, one per digest across all names and clients.
#[derive(Default)]
pub(super) struct Fills {
    /// Held for look-ups only, never over an await.
    running: Mutex<HashMap<Digest, Fill>>,
}

/// A running fill, as a reader holds it.
#[derive(Clone)]
pub(super) struct Fill {
    /// In whose name upstream is asked.
    pub(super) target: Target,
    /// When it was.
    pub(super) asked: Asked,
    /// How far it is.
    pub(super) watcher: Watcher,
    /// For whom it is.
    errand: Errand,
    shared: Arc<Shared>,
}

/// What a fill and its readers tell each other.
#[derive(Default)]
struct Shared {
    /// By whose right upstream gives it; known when the head is.
    via: OnceLock<Via>,
    /// By whose right it may go on.
    lenders: Arc<Lenders>,
    /// Upstream has said no since to who began it.
    doubted: AtomicBool,
    /// The fill that goes on by another one's right, where who began this one was refused.
    successor: OnceLock<Fill>,
    /// What its readers want.
    demand: Arc<Demand>,
    /// What is told of it.
    gauges: Arc<Gauges>,
}

/// Which fill a reader is content with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Joining<'a> {
    /// Any that runs.
    Any,
    /// Any that runs and can go on by this one's right.
    With(&'a Lender),
    /// One of its own, which takes the place of the one that runs: a last resort, since it is a second download.
    None,
}

/// Takes the fill out of the table and off the gauge, however its task ends.
struct Landing {
    cache: Arc<Cache>,
    digest: Digest,
    shared: Arc<Shared>,
}

// === impl Fills ===

impl Fills {
    /// Those that run.
    pub(super) fn running(&self) -> Vec<(Digest, Fill)> {
        self.running.lock().iter().map(|(digest, fill)| (*digest, fill.clone())).collect()
    }

    /// Upstream, asked then, said no to `target`: of `digest`, or whatever it asks for. That such a caller began a fill is
    /// no answer any more to who comes now.
    pub(super) fn doubt(&self, target: &Target, digest: Option<&Digest>, asked: &Asked) {
        let repository = target.repository();
        for (filling, fill) in &*self.running.lock() {
            let concerned = digest.is_none_or(|digest| digest == filling) && fill.target.is_in(&repository);
            if concerned && is_alike(&fill.target.right, &target.right) && fill.asked.instant <= asked.instant {
                fill.shared.doubted.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// Whether what upstream says to one is a doubt in what it said to the other.
fn is_alike(one: &Right, other: &Right) -> bool {
    match (one, other) {
        (Right::Client(one), Right::Client(other)) => one.principal() == other.principal(),
        (one, other) => one == other,
    }
}

// === impl Fill ===

impl Fill {
    /// It is for this one too, until that is dropped.
    pub(super) fn wanted_by(&self, party: Party) -> Interest {
        self.errand.join(party)
    }

    /// Has it go on by this one's right where upstream refuses the one by which it runs, and its name linked to the blob
    /// when it is published.
    pub(super) fn lend(&self, lender: &Lender) -> Lent {
        self.shared.lenders.add(lender)
    }

    /// By whose right upstream gives it, when its head has come; none if it fails before that.
    pub(super) async fn via(&self) -> Option<Via> {
        self.watcher.clone().head().await.ok()?;
        self.shared.via.get().copied()
    }

    /// Whether upstream has said no since to who began it.
    pub(super) fn is_doubted(&self) -> bool {
        self.shared.doubted.load(Ordering::Relaxed)
    }

    /// The fill that took the place of this one, which has failed in the name of who began it.
    pub(super) fn successor(&self) -> Option<Self> {
        self.shared.successor.get().cloned()
    }

    /// What its readers want.
    pub(super) fn demand(&self) -> &Arc<Demand> {
        &self.shared.demand
    }

    /// What is told of it.
    pub(super) fn gauges(&self) -> &Gauges {
        &self.shared.gauges
    }

    fn is(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }
}

// === impl Cache ===

impl Cache {
    /// Joins the fill of `digest` for `party`, or starts one in the name of `target`, with the part that is wanted first.
    pub(super) fn fill(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        joining: Joining<'_>,
        (first, party): (Part, Party),
    ) -> Result<(Fill, Interest, Role), CacheError> {
        let origin = self.origin(target, digest, None)?;
        let mut running = self.fills.running.lock();
        // One that has failed is about to leave the table; whoever comes now is not answered by it.
        let alive = |fill: &&Fill| {
            !fill.watcher.has_failed() && !fill.shared.lenders.are_closed() && !fill.shared.demand.is_shut()
        };
        if let Some(fill) = running.get(digest).filter(alive) {
            let joined = match joining {
                Joining::Any => true,
                Joining::With(lender) => fill.lend(lender) != Lent::Failed,
                Joining::None => false,
            };
            if joined {
                return Ok((fill.clone(), fill.wanted_by(party), Role::Follower));
            }
        }
        // Before it looks for a place.
        let interest = origin.errand.join(party);
        let fill = self.begin_fill(&mut running, origin, Arc::default(), first);
        Ok((fill, interest, Role::Leader))
    }

    /// Puts a new fill into the table, and starts it.
    fn begin_fill(
        self: &Arc<Self>,
        running: &mut HashMap<Digest, Fill>,
        origin: Origin,
        lenders: Arc<Lenders>,
        first: Part,
    ) -> Fill {
        let (reporter, watcher) = progress::channel();
        let fill = Fill {
            target: origin.target.clone(),
            asked: self.generations.asking(),
            watcher,
            errand: origin.errand.clone(),
            shared: Arc::new(Shared { lenders, ..Shared::default() }),
        };
        running.insert(origin.digest, fill.clone());
        self.metrics.fills_in_progress.inc();
        let landing = Landing { cache: Arc::clone(self), digest: origin.digest, shared: Arc::clone(&fill.shared) };
        let task = FillTask { cache: Arc::clone(self), origin, reporter, fill: fill.clone(), first };
        let stop = self.stop.clone();
        let Target { upstream, repo, .. } = &task.origin.target;
        let trace = telemetry::fill(upstream.as_str(), repo.as_str(), &task.origin.digest);
        self.tasks.spawn(async move {
            // The landing comes last: until the blob is published a new request finds the fill, and after it the file.
            let _landing = landing;
            if stop.run_until_cancelled(telemetry::within(trace.clone(), task.run())).await.is_none() {
                tracing::debug!("a fill was given up because ocistern is stopping");
            }
            if let Some(trace) = trace {
                trace.filled(None);
            }
        });
        fill
    }
}

// === impl Landing ===

impl Drop for Landing {
    fn drop(&mut self) {
        let mut running = self.cache.fills.running.lock();
        // There may be another one in its place.
        if running.get(&self.digest).is_some_and(|fill| fill.is(&self.shared)) {
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
    /// What is wanted first.
    first: Part,
}

// === impl FillTask ===

impl FillTask {
    async fn run(self) {
        // Whoever asked for this fill saw no file; another fill may have published it and left the table since.
        let digest = &self.origin.digest;
        if self.cache.stored(digest).await.is_some_and(|stored| stored.trust == Trust::Verified) {
            return self.reporter.failed(CacheError::Arrived(Box::new(*digest)));
        }
        let Err(error) = self.attempt().await else { return };
        if let Some(trace) = telemetry::current() {
            trace.filled(Some(error.to_string()));
        }
        let Target { upstream, repo, .. } = &self.origin.target;
        match &error {
            // It is passed on all the same, and the store has said once that it has no room.
            CacheError::NoSpace => {
                tracing::debug!(%upstream, repository = %repo, %digest, "there is no room for a blob");
            }
            CacheError::Parked(_) => {
                tracing::info!(%upstream, repository = %repo, %digest, "nobody reads a blob; what has come of it is kept");
            }
            error => tracing::warn!(
                %upstream, repository = %repo, %digest, error = error as &dyn std::error::Error,
                "a blob could not be fetched"
            ),
        }
        self.reporter.failed(error);
    }

    async fn attempt(&self) -> Result<(), CacheError> {
        let Origin { target, digest, registry, .. } = &self.origin;
        let (asked, shared) = (self.fill.asked, &self.fill.shared);
        let left = self.cache.store.take_up(digest).await;
        let endpoints = Endpoints::new(registry, self.cache.may_tell_mirrors(target).await, &self.cache.aside);
        let supply = Supply::new(
            self.origin.clone(),
            endpoints,
            marked(left.as_ref(), registry.name()),
            Some(Arc::clone(&shared.lenders)),
        );
        let first = left.as_ref().map_or(self.first, |left| missing_first(self.first, left.present(), left.length()));
        let begun = Download::begin(Arc::clone(&supply), first, Instant::now() + ANSWER_WITHIN).await;
        let download = match begun {
            Ok(download) => download,
            Err(error) => {
                self.cache.heard(target, &asked, Err(&error)).await;
                // Before it is told: else who comes in between asks again.
                self.cache.note_missing(target, Wanted::Blob(*digest), &error, &asked);
                // Before another fill can look for it.
                drop(left);
                self.hand_over(&error);
                return Err(error);
            }
        };
        let (length, via) = (supply.mark().length, download.via());
        // A mirror's word says nothing about who may read upstream.
        let from_mirror = download.is_from_mirror();
        if !from_mirror {
            supply.endpoints.given(via);
        }
        let (mut writer, taken_up) = self.writer(left, length, from_mirror).await?;
        writer.remember(PartialMark {
            upstream: Some(registry.name().to_string()),
            etag: supply.mark().etag,
            repository: Some(target.repo.to_string()),
            public_in: (via == Via::Anonymous).then(|| target.repo.to_string()),
            is_doubted: false,
        });
        // Before the head: who sees that may look.
        let _ = shared.via.set(via);
        self.reporter.present(writer.present());
        writer.follow(self.reporter.growth(&self.cache.fronts));
        shared.gauges.begin(&supply, length, writer.present().total());
        self.reporter.head(Head { file: writer.file(), length });

        // Those that hold now do so to its end.
        let settings = self.cache.config.load_full();
        let legs = Legs::new(&settings, &supply, &shared.demand, &shared.gauges);
        let ended = legs.bring(&writer, download).await;
        let verified = match ended {
            Ok(Ended::Whole) => writer.verify().await.map_err(Broken::Store),
            Ok(Ended::Unread) => {
                // Nobody joins any more: see `Legs::is_abandoned`.
                writer.park().await;
                return Err(CacheError::Parked(Box::new(*digest)));
            }
            Err(broken) => Err(broken),
        };
        let bytes = match verified {
            Ok(bytes) => bytes,
            Err(Broken::Upstream(error)) => {
                // Who comes from here on begins another one, which goes on from what is put down before that is told.
                writer.ends();
                shared.demand.shut();
                writer.park().await;
                return Err(error);
            }
            Err(Broken::Store(error)) => return self.cut(writer, &supply, taken_up, error).await,
        };
        // The digest matches: the readers get the tail before the disk has confirmed anything.
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
        self.link((Proven { via, asked }, from_mirror), supply.is_withdrawn(), bytes).await;
        Ok(())
    }

    /// The file that the blob goes into: the one that an earlier fill has left, if there is one and it can be the same
    /// blob. Whether it is that.
    async fn writer(
        &self,
        left: Option<Partial>,
        length: Option<u64>,
        from_mirror: bool,
    ) -> Result<(BlobWriter, bool), CacheError> {
        let Origin { target, digest, .. } = &self.origin;
        if let Some(partial) = left {
            let present = partial.present().total();
            // A mirror's word makes nothing of it public that upstream has not given to everybody.
            let may_read = !from_mirror || is_public(partial.mark(), target);
            if may_read && Some(partial.length()) == length {
                let writer = partial.resume().await?;
                tracing::info!(%digest, present, length, "going on with what an earlier download has left");
                return Ok((writer, true));
            }
            // Less than is there, or nothing said, is no other blob but a page of somebody on the way.
            let is_another = length.is_some_and(|length| length >= present)
                && partial.mark().upstream.as_deref() == Some(target.upstream.as_str());
            if from_mirror || !is_another {
                // It stays for who comes next.
                drop(partial);
            } else {
                tracing::warn!(
                    %digest, present, length, again = partial.mark().is_doubted,
                    "what an earlier download has left has another length than upstream says now; beginning anew"
                );
                // This answer may be the wrong one of the two. What it brings cannot be gone on with while the other is
                // there, so the second one is believed.
                if partial.mark().is_doubted { partial.discard().await } else { partial.doubt() }
            }
        }
        Ok((self.cache.store.create(digest, length).await?, false))
    }

    /// Links the names under which upstream has said that it has the blob, which is published.
    async fn link(&self, (first, from_mirror): (Proven, bool), withdrawn: bool, bytes: u64) {
        let Origin { target, digest, .. } = &self.origin;
        let mut proven = self.fill.shared.lenders.publish();
        if withdrawn || self.fill.is_doubted() {
            // That upstream began to give it says nothing any more about who may have it.
            let via = if first.via == Via::Shared { Via::Shared } else { Via::Client };
            self.cache.keep_link(target, digest, Link::blob(via, bytes), &first.asked).await;
        } else if from_mirror {
            // Upstream's last word was that everybody may have what is in this repository. Nothing new is known of that.
            self.cache.keep_link(target, digest, Link::blob(first.via, bytes), &first.asked).await;
        } else {
            proven.push((target.clone(), first));
        }
        for (target, Proven { via, asked }) in &proven {
            self.cache.heard(target, asked, Ok(*via)).await;
        }
        for (target, Proven { via, asked }) in lenders::links(proven) {
            self.cache.keep_link(&target, digest, Link::blob(via, bytes), &asked).await;
        }
    }

    /// Upstream has given nothing to who began it, because of `error`: that answers nobody else. Another fill begins in the
    /// name of the next one who may have it, before this one fails, so that no stranger's comes in between.
    fn hand_over(&self, error: &CacheError) {
        let digest = &self.origin.digest;
        let mut running = self.cache.fills.running.lock();
        let Some((next, lenders)) = self.fill.shared.lenders.pass_on(&self.fill.target, error) else { return };
        if !running.get(digest).is_some_and(|fill| fill.is(&self.fill.shared)) {
            // Somebody has lost patience and fills it; they find that.
            return;
        }
        let Ok(origin) = self.cache.origin(&next, digest, None) else { return };
        let fill = self.cache.begin_fill(&mut running, origin, Arc::new(lenders), self.first);
        let _ = self.fill.shared.successor.set(fill);
    }

    /// The store does not take the blob. If that is the store's fault, what it has taken is served, and the readers
    /// fetch the rest.
    async fn cut(
        &self,
        writer: BlobWriter,
        supply: &Supply,
        taken_up: bool,
        error: StoreError,
    ) -> Result<(), CacheError> {
        let Origin { target, digest, .. } = &self.origin;
        if matches!(error, StoreError::DigestMismatch { .. }) {
            supply.distrust();
            if taken_up {
                // Which of the two was wrong nobody knows; what was left is gone now.
                return Err(CacheError::BadPart(Box::new(*digest)));
            }
        }
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
        self.reporter.cut(Rest::new(self.origin.clone(), supply.mark(), remnant));
        Ok(())
    }
}

/// Whether upstream gave what was left to everybody, in the repository in which it is asked for.
fn is_public(mark: &PartialMark, target: &Target) -> bool {
    let PartialMark { upstream, public_in, .. } = mark;
    upstream.as_deref() == Some(target.upstream.as_str()) && public_in.as_deref() == Some(target.repo.as_str())
}

/// What was known of a blob when its last fill ended. An entity tag counts for the upstream that gave it.
fn marked(left: Option<&Partial>, upstream: &UpstreamName) -> Mark {
    let Some(left) = left else { return Mark::default() };
    let PartialMark { upstream: of, etag, .. } = left.mark();
    let etag = etag.clone().filter(|_| of.as_deref() == Some(upstream.as_str()));
    Mark { length: None, etag }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::hot::HotManifest;
    use super::super::tests::{cache, party, target};
    use super::*;
    use crate::oci::{Algorithm, ManifestInfo, Reference, media};

    /// What a request meets that missed in the store just before another one's fill published and left the table.
    #[tokio::test]
    async fn a_fill_of_what_has_arrived_meanwhile_does_not_ask_upstream() {
        let (cache, _root) = cache();
        let digest = Digest::of(Algorithm::Sha256, b"content");
        let (fill, _interest, role) = cache.fill(&target(), &digest, Joining::Any, (Part::Whole, party())).unwrap();
        assert_eq!(role, Role::Leader);
        let refused = fill.watcher.clone().head().await.unwrap_err();
        assert!(matches!(refused, CacheError::Upstream(_)), "not there: upstream is asked: {refused}");
        cache.tasks.close();
        cache.tasks.wait().await;
        cache.tasks.reopen();

        let mut writer = cache.store.create(&digest, None).await.unwrap();
        writer.write(Bytes::from_static(b"content")).await.unwrap();
        writer.finish().await.unwrap();
        let (fill, _interest, role) = cache.fill(&target(), &digest, Joining::Any, (Part::Whole, party())).unwrap();
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
        assert!(cache.keep_manifest(&target(), &digest, link, bytes.clone(), &asked).await.is_some());
        assert!(cache.stored_manifest(&target(), &digest).await.is_some(), "and it is in memory");
        let (flight, role) = cache.start_fetch(&target(), &Reference::Digest(digest)).unwrap();
        assert_eq!(role, Role::Leader);
        assert_eq!(flight.result().await.unwrap().unwrap().bytes, bytes);

        cache.tasks.close();
        cache.tasks.wait().await;
        cache.tasks.reopen();

        // As after an account that pulls no more.
        let hot = HotManifest::new(&digest, media::OCI_INDEX, bytes, Via::Shared);
        cache.hot.insert(&target(), &digest, hot);
        let (flight, _) = cache.start_fetch(&target(), &Reference::Digest(digest)).unwrap();
        let refused = flight.result().await.unwrap().unwrap_err();
        assert!(matches!(refused, CacheError::Upstream(_)), "what does not cover the caller is no answer: {refused}");
    }
}
