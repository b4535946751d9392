//! Bypass: a blob streamed from upstream without being kept, when the store has no room for it.
//!
//! The promise about wrong bytes holds here too: what comes is hashed on the way, and the last frame is handed out only
//! when the digest matches.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::body::BodyError;
use super::fill::content_length;
use super::{Cache, CacheError, Target};
use crate::oci::{Digest, Hasher, UpstreamName};
use crate::upstream::{Ask, UpstreamBody};

/// A blob on its way through.
pub struct Bypass {
    length: Option<u64>,
    upstream: UpstreamName,
    digest: Digest,
    body: UpstreamBody,
}

/// The state of the stream.
struct Passing {
    upstream: UpstreamName,
    digest: Digest,
    body: UpstreamBody,
    hasher: Option<Hasher>,
    /// Received but not handed out: it may be the last frame.
    held: Bytes,
}

// === impl Cache ===

impl Cache {
    /// Asks upstream for `digest` on behalf of one client.
    pub(super) async fn bypass(
        self: &Arc<Self>,
        target: &Target,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Bypass, CacheError> {
        let registry = Arc::clone(self.registry(&target.upstream)?);
        let answer = registry.fetch(Ask::blob(Method::GET, &target.repo, digest, deadline)).await?;
        if answer.status != StatusCode::OK {
            let reason = "a status other than 200 to a whole blob";
            return Err(CacheError::BadAnswer { upstream: target.upstream.clone(), reason });
        }
        Ok(Bypass {
            length: content_length(&answer.headers),
            upstream: target.upstream.clone(),
            digest: *digest,
            body: answer.body,
        })
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
        let hasher = Some(Hasher::new(self.digest.algorithm()));
        let passing =
            Passing { upstream: self.upstream, digest: self.digest, body: self.body, hasher, held: Bytes::new() };
        stream::try_unfold(
            passing,
            |mut passing| async move { Ok(passing.next().await?.map(|bytes| (bytes, passing))) },
        )
    }
}

impl fmt::Debug for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bypass").field("digest", &self.digest).field("length", &self.length).finish_non_exhaustive()
    }
}

// === impl Passing ===

impl Passing {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        while let Some(mut hasher) = self.hasher.take() {
            let Some(frame) = self.body.frame().await else {
                let actual = hasher.finish();
                if actual != self.digest {
                    return Err(CacheError::wrong_content(&self.upstream, self.digest, actual).into());
                }
                let last = std::mem::take(&mut self.held);
                return Ok(Some(last).filter(|last| !last.is_empty()));
            };
            let Ok(data) = frame.map_err(CacheError::from)?.into_data() else {
                self.hasher = Some(hasher);
                continue;
            };
            // At most a frame of some 100 KiB: too little to be worth a trip to the blocking pool.
            hasher.update(&data);
            self.hasher = Some(hasher);
            if data.is_empty() {
                continue;
            }
            let before = std::mem::replace(&mut self.held, data);
            if !before.is_empty() {
                return Ok(Some(before));
            }
        }
        Ok(None)
    }
}
