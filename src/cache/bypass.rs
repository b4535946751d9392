//! Bypass: bytes of a blob streamed from upstream without being kept, for want of room. The whole blob where there was
//! none from the start; what follows the mark where the store filled up in the middle of a fill.
//!
//! The promise about wrong bytes holds here too: what comes is hashed on the way, after what the file has, and the last
//! frame is handed out only when the digest matches.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use futures_util::stream::{self, Stream};
use tokio::time::Instant;

use super::body::BodyError;
use super::download::{Bound, Download, Entire};
use super::endpoints::Endpoints;
use super::entitle::When;
use super::supply::{Mark, Origin, Part, Supply};
use super::{Cache, CacheError, Target};
use crate::oci::{Digest, Hasher, Via};
use crate::party::Party;
use crate::store::Remnant;
use crate::upstream::{Priority, Right};

/// A blob on its way through.
pub struct Bypass {
    length: Option<u64>,
    passing: Box<Passing>,
}

/// What follows the bytes that a cut fill has in its file: each reader opens it for itself.
#[derive(Debug)]
pub(super) struct Rest {
    origin: Origin,
    /// What the fill knew of the blob.
    mark: Mark,
    remnant: Remnant,
}

/// The state of the stream.
pub(super) struct Passing {
    origin: Origin,
    download: Download,
    hasher: Option<Hasher>,
    /// Received but not handed out: it may be the last frame.
    held: Bytes,
    /// Where in the blob the next frame begins.
    at: u64,
}

// === impl Cache ===

impl Cache {
    /// Asks upstream for `digest` on behalf of one client, which is `party`'s.
    pub(super) async fn bypass(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        party: Party,
        deadline: Instant,
    ) -> Result<Bypass, CacheError> {
        let origin = self.origin(target, digest, Some(party))?;
        let endpoints = Endpoints::new(&origin.registry, self.may_tell_mirrors(target).await, &self.aside);
        let supply = Supply::new(origin.clone(), endpoints, Mark::default(), None);
        let mut download = Download::begin(Arc::clone(&supply), Part::Whole, deadline).await?;
        download.give_place_back();
        if !download.is_from_mirror() {
            supply.endpoints.given(download.via());
        }
        let (length, hasher) = (supply.mark().length, Hasher::new(digest.algorithm()));
        Ok(Bypass { length, passing: Box::new(Passing::new(origin, download, hasher, 0)) })
    }

    /// Whether mirrors may be told of what is asked for before upstream has answered: only where its last word is that
    /// everybody may have it.
    pub(super) async fn may_tell_mirrors(&self, target: &Target) -> bool {
        target.right == Right::Anonymous && self.passes(target, Via::Anonymous, When::Away).await
    }

    /// Where a blob is downloaded from, for `of` alone or (none) for those who join.
    pub(super) fn origin(&self, target: &Target, digest: &Digest, of: Option<Party>) -> Result<Origin, CacheError> {
        let registry = self.registry(&target.upstream)?;
        let errand = registry.errand(of);
        let (target, digest, metrics) = (target.clone(), *digest, self.metrics.clone());
        Ok(Origin { registry, target, digest, errand, metrics })
    }
}

// === impl Bypass ===

impl Bypass {
    /// Bytes of the blob, if upstream said so.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The bytes, one frame behind upstream.
    pub fn read(self) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
        stream::try_unfold(self.passing, |mut passing| async move {
            Ok(passing.next().await?.map(|(_, bytes)| (bytes, passing)))
        })
    }
}

impl fmt::Debug for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = &self.passing.origin.digest;
        f.debug_struct("Bypass").field("digest", digest).field("length", &self.length).finish_non_exhaustive()
    }
}

// === impl Rest ===

impl Rest {
    /// What follows `remnant` of a blob of which `mark` was the last that was known.
    pub(super) fn new(origin: Origin, mark: Mark, remnant: Remnant) -> Self {
        Self { origin, mark, remnant }
    }

    /// Where in the blob it begins: so many bytes are in the file. It is never empty.
    pub(super) fn at(&self) -> u64 {
        self.remnant.written
    }

    /// Asks upstream for it, on behalf of one reader and by its right.
    pub(super) async fn open(&self, reader: Option<&Origin>) -> Result<Passing, CacheError> {
        let origin = reader.unwrap_or(&self.origin).clone();
        let supply = Supply::new(origin.clone(), Endpoints::alone(&origin.registry), self.mark.clone(), None);
        // As of all that is passed on, it gives its place back: see `Download::give_place_back`.
        let part = (self.at(), Bound::new(None), Entire::default());
        let download = Download::resumed(supply, part, (Priority::Waiting, false)).await?;
        Ok(Passing::new(origin, download, self.remnant.hasher.clone(), self.at()))
    }
}

// === impl Passing ===

impl Passing {
    fn new(origin: Origin, download: Download, hasher: Hasher, at: u64) -> Self {
        Self { origin, download, hasher: Some(hasher), held: Bytes::new(), at }
    }

    /// The next bytes, and where in the blob they begin; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<(u64, Bytes)>, BodyError> {
        while let Some(mut hasher) = self.hasher.take() {
            let Some((at, mut data)) = self.download.next().await? else {
                let actual = hasher.finish();
                if actual != self.origin.digest {
                    let Origin { target, digest, .. } = &self.origin;
                    return Err(CacheError::wrong_content(&target.upstream, *digest, actual).into());
                }
                let last = std::mem::take(&mut self.held);
                return Ok(self.hand_out(last));
            };
            // An upstream that does not know ranges repeats what is here already.
            let known = (self.at + self.held.len() as u64).saturating_sub(at);
            data.advance(usize::try_from(known).unwrap_or(usize::MAX).min(data.len()));
            // At most a frame of some 100 KiB: too little to be worth a trip to the blocking pool.
            hasher.update(&data);
            self.hasher = Some(hasher);
            if data.is_empty() {
                continue;
            }
            let before = std::mem::replace(&mut self.held, data);
            if let Some(frame) = self.hand_out(before) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    fn hand_out(&mut self, bytes: Bytes) -> Option<(u64, Bytes)> {
        let at = self.at;
        self.at += bytes.len() as u64;
        (!bytes.is_empty()).then_some((at, bytes))
    }
}
