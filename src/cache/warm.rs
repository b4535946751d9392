//! Bringing an image into the store before anybody asks for it: the manifest, what is chosen of an index, configs and layers,
//! and what refers to them.
//!
//! All of it goes the way of a pull, so what a client asks for meanwhile is downloaded once, what broke off is gone on with, and
//! what is there costs no request. An image counts as warm when all of it is published, verified, and linked under its name.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::supply::Part;
use super::{BlobSource, Cache, CacheError, Found, Manifest, Target, Want};
use crate::oci::{BlobPart, Digest, Parts, Platforms, Reference, RepoName, Tag, UpstreamName};
use crate::party::Party;
use crate::store::LinkKind;
use crate::upstream::Spent;

/// How deep indexes may name indexes.
const MAX_DEPTH: usize = 4;
/// Most pages of a list of referrers.
const MAX_PAGES: usize = 64;
/// How often a part is looked at again that has changed under our hands, or could not be asked for in time.
const TRIES: usize = 5;
/// What cosign puts behind the digest of what it signs, in the name of a tag.
const COSIGN: [&str; 3] = ["sig", "att", "sbom"];

/// What all images of a request have in common.
#[derive(Debug)]
pub struct Warming {
    /// What of an index is brought.
    platforms: Platforms,
    /// Whether signatures and the like are.
    referrers: bool,
    /// Requests at once, of all images together.
    places: Semaphore,
    /// For whom it is.
    party: Party,
}

/// What came of an image that is all there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warmed {
    /// Manifests and blobs of it.
    pub parts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that had to be downloaded.
    pub fetched_parts: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// What was left out, and is to be had elsewhere or not at all.
    pub left_out: Vec<String>,
    /// Upstream could not be asked whether the tag still means this.
    pub stale: bool,
}

/// Why an image is not all there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WarmError {
    /// A part of it could not be brought.
    #[error("{what}: {error}")]
    Part {
        /// Which.
        what: String,
        /// Why.
        #[source]
        error: CacheError,
    },
    /// Upstream would have to be asked for a manifest, and what is left of its rate limit is the clients'.
    #[error("{what}: {spent}")]
    Spent {
        /// Which.
        what: String,
        /// For how long.
        #[source]
        spent: Spent,
    },
    /// The index has none of the platforms.
    #[error("the index has none of the platforms that are wanted; it has {}", .0.join(", "))]
    NoPlatform(Vec<String>),
    /// What upstream calls a manifest names nothing that could be brought.
    #[error("{0} is of a kind of which the parts are not known")]
    Unreadable(Digest),
    /// Indexes in indexes.
    #[error("its indexes name one another more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// One image on its way.
struct Image<'a> {
    cache: &'a Arc<Cache>,
    warming: &'a Warming,
    target: Target,
    /// Of its parts, each once.
    seen: Mutex<HashSet<Digest>>,
    warmed: Mutex<Warmed>,
}

/// A future of a recursion.
type Bringing<'a> = Pin<Box<dyn Future<Output = Result<(), WarmError>> + Send + 'a>>;

// === impl Warming ===

impl Warming {
    /// By so many requests at once.
    pub fn new(platforms: Platforms, referrers: bool, jobs: usize, party: Party) -> Self {
        Self { platforms, referrers, places: Semaphore::new(jobs.max(1)), party }
    }
}

// === impl Cache ===

impl Cache {
    /// Brings an image, by the right of ocistern's own account or by everybody's.
    pub async fn warm(
        self: &Arc<Self>,
        warming: &Warming,
        (upstream, repo): (&UpstreamName, &RepoName),
        reference: &Reference,
    ) -> Result<Warmed, WarmError> {
        let registry = self.registry(upstream).map_err(|error| of_part(reference, error))?;
        let target = Target { upstream: upstream.clone(), repo: repo.clone(), right: registry.own_right() };
        let image = Image { cache: self, warming, target, seen: Mutex::default(), warmed: Mutex::default() };
        image.manifest(reference, Follow::Image(0)).await?;
        Ok(image.warmed.into_inner())
    }
}

/// What else of a manifest is brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// What refers to it, too; so deep in indexes.
    Image(usize),
    /// Its parts alone, all of them: it is a signature or the like itself.
    Referrer(usize),
}

// === impl Image ===

impl Image<'_> {
    /// The manifest and all that belongs to it.
    fn manifest<'a>(&'a self, reference: &'a Reference, follow: Follow) -> Bringing<'a> {
        Box::pin(async move {
            let manifest = self.ask(reference).await?;
            if !self.seen.lock().insert(manifest.digest) {
                return Ok(());
            }
            self.count(manifest.size, manifest.status.found == Found::Hit || manifest.status.found == Found::Stale);
            let parts = manifest.bytes.as_deref().and_then(Parts::of).ok_or(WarmError::Unreadable(manifest.digest))?;
            self.left_out(&parts);
            let (depth, platforms) = match follow {
                Follow::Image(depth) => (depth, &self.warming.platforms),
                Follow::Referrer(depth) => (depth, &Platforms::All),
            };
            let chosen = parts.chosen(platforms).map_err(WarmError::NoPlatform)?;
            if depth >= MAX_DEPTH && !chosen.is_empty() {
                return Err(WarmError::TooDeep);
            }
            let below = match follow {
                Follow::Image(depth) => Follow::Image(depth + 1),
                Follow::Referrer(depth) => Follow::Referrer(depth + 1),
            };
            let blobs = parts.blobs.iter().filter(|part| !part.foreign).map(|part| self.blob(part));
            let manifests = chosen.iter().map(|part| -> Bringing<'_> {
                Box::pin(async move { self.manifest(&Reference::Digest(part.digest), below).await })
            });
            let is_image = matches!(follow, Follow::Image(_)) && self.warming.referrers;
            let referrers = is_image.then(|| -> Bringing<'_> { Box::pin(self.referrers(manifest.digest)) });
            all(blobs.chain(manifests).chain(referrers).collect()).await
        })
    }

    /// The manifest itself, as a pull has it.
    async fn ask(&self, reference: &Reference) -> Result<Manifest, WarmError> {
        self.spare(reference).await?;
        let asking = || self.cache.manifest(&self.target, reference, Want::Bytes);
        let manifest = self.again(asking).await.map_err(|error| of_part(reference, error))?;
        if manifest.status.found == Found::Bypass {
            return Err(of_part(reference, CacheError::NoSpace));
        }
        if manifest.status.found == Found::Stale {
            self.warmed.lock().stale = true;
        }
        Ok(manifest)
    }

    /// Fails where upstream would be asked for the manifest, which counts, and too little of its limit is left. Those that
    /// are asked at once all see what was left before them, so up to `jobs` more may be spent.
    async fn spare(&self, reference: &Reference) -> Result<(), WarmError> {
        let upstream = &self.target.upstream;
        let reserve = self.cache.config.load().upstreams.get(upstream).map_or(0, |upstream| upstream.reserve);
        let registry = self.cache.registry(upstream).map_err(|error| of_part(reference, error))?;
        let Err(spent) = registry.spare(reserve) else { return Ok(()) };
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            // What it means is known, or told by a HEAD, which is free on Docker Hub.
            Reference::Tag(_) => {
                let asking = || self.cache.manifest(&self.target, reference, Want::Description);
                self.again(asking).await.map_err(|error| of_part(reference, error))?.digest
            }
        };
        match self.cache.stored_manifest(&self.target, &digest).await {
            Some(_) => Ok(()),
            None => Err(WarmError::Spent { what: reference.to_string(), spent }),
        }
    }

    fn blob<'a>(&'a self, part: &'a BlobPart) -> Bringing<'a> {
        Box::pin(async move {
            if !self.seen.lock().insert(part.digest) {
                return Ok(());
            }
            let bring = || self.bring(&part.digest);
            let (bytes, was_there) = self.again(bring).await.map_err(|error| of_part(&part.digest, error))?;
            self.count(bytes, was_there);
            Ok(())
        })
    }

    /// The blob, published and linked; its bytes, and whether it was that already.
    async fn bring(&self, digest: &Digest) -> Result<(u64, bool), CacheError> {
        let Image { cache, target, warming, .. } = self;
        let blob = cache.blob(target, digest, Part::Whole, warming.party).await?;
        let was_there = blob.status.found == Found::Hit;
        let BlobSource::Content(content) = blob.source else { return Err(CacheError::NoSpace) };
        let bytes = content.settled().await?;
        if was_there {
            return Ok((bytes, true));
        }
        // What was verified and could not be kept is of no use here.
        let is_linked = cache.linked(target, digest, LinkKind::Blob).await.is_some();
        if is_linked && cache.stored(digest).await.is_some() { Ok((bytes, false)) } else { Err(CacheError::NoSpace) }
    }

    /// What refers to a manifest: by the API or the tag that stands in for it, and by cosign's tags.
    async fn referrers(&self, subject: Digest) -> Result<(), WarmError> {
        let what = format!("what refers to {subject}");
        let mut found = Vec::new();
        let mut query = String::new();
        for _ in 0..MAX_PAGES {
            let asking = || self.cache.referrers(&self.target, &subject, &query);
            let list = match self.again(asking).await {
                Ok(list) => list,
                // What came from upstream before it was sealed has come with what refers to it, or a list of that.
                Err(error) if error.is_sealed() => break,
                Err(error) => return Err(WarmError::Part { what, error }),
            };
            let parts = Parts::of(&list.body).ok_or(WarmError::Unreadable(subject))?;
            found.extend(parts.manifests.into_iter().map(|part| Reference::Digest(part.digest)));
            match list.link.as_deref().and_then(next_page) {
                Some(next) if next != query => query = next,
                _ => break,
            }
        }
        for suffix in COSIGN {
            found.extend(self.cosign_tag(&subject, suffix).await?);
        }
        all(found.iter().map(|reference| self.manifest(reference, Follow::Referrer(0))).collect()).await
    }

    /// Such a tag, if there is one. Asked for by HEAD, which is free of charge on Docker Hub, since most images have none.
    async fn cosign_tag(&self, subject: &Digest, suffix: &str) -> Result<Option<Reference>, WarmError> {
        let Ok(tag) = format!("{}.{suffix}", Tag::referrers_fallback(subject)).parse::<Tag>() else { return Ok(None) };
        let reference = Reference::Tag(tag);
        let asking = || self.cache.manifest(&self.target, &reference, Want::Description);
        match self.again(asking).await {
            Ok(_) => Ok(Some(reference)),
            // It was not there when upstream was last asked, or never asked for; a pull is told the same.
            Err(error) if error.is_missing() || error.is_sealed() => Ok(None),
            Err(error) => Err(of_part(&reference, error)),
        }
    }

    /// Asks in its turn, and again where the answer says nothing about what was asked for.
    async fn again<T, F: Future<Output = Result<T, CacheError>>>(&self, ask: impl Fn() -> F) -> Result<T, CacheError> {
        let mut turn = 0;
        loop {
            let Ok(_place) = self.warming.places.acquire().await else { return Err(CacheError::Stopped) };
            turn += 1;
            match Box::pin(ask()).await {
                // Clients come first; their downloads end.
                Err(CacheError::NoPlace { .. }) => {}
                Err(
                    CacheError::Timeout { .. }
                    | CacheError::Parked(_)
                    | CacheError::Arrived(_)
                    | CacheError::BadPart(_)
                    | CacheError::Damaged(_),
                ) if turn < TRIES => {}
                answer => return answer,
            }
        }
    }

    fn count(&self, bytes: u64, was_there: bool) {
        let mut warmed = self.warmed.lock();
        warmed.parts += 1;
        warmed.bytes += bytes;
        if !was_there {
            warmed.fetched_parts += 1;
            warmed.fetched_bytes += bytes;
        }
    }

    fn left_out(&self, parts: &Parts) {
        let foreign = parts.blobs.iter().filter(|part| part.foreign);
        let foreign = foreign.map(|part| format!("{} is to be had elsewhere, not from the registry", part.digest));
        let unknown = parts.unknown.iter().map(|digest| format!("{digest:?} is no digest that is known here"));
        self.warmed.lock().left_out.extend(foreign.chain(unknown));
    }
}

/// All of them, also where one fails: what has come need not come again. The first failure.
async fn all(parts: Vec<Bringing<'_>>) -> Result<(), WarmError> {
    let at_once = parts.len().max(1);
    let mut running = stream::iter(parts).buffer_unordered(at_once);
    let mut outcome = Ok(());
    while let Some(ended) = running.next().await {
        outcome = outcome.and(ended);
    }
    outcome
}

fn of_part(what: &impl ToString, error: CacheError) -> WarmError {
    WarmError::Part { what: what.to_string(), error }
}

/// The query of the next page, of a `Link` field: `</v2/NAME/referrers/DIGEST?QUERY>; rel="next"`.
fn next_page(link: &str) -> Option<String> {
    let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let (_, query) = url.split_once('?')?;
    parameters.replace('"', "").contains("rel=next").then(|| query.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_known_by_its_query() {
        assert_eq!(next_page("</v2/a/referrers/sha256:0?n=1&last=x>; rel=\"next\""), Some("n=1&last=x".to_owned()));
        assert_eq!(next_page("<https://r.example/v2/a?last=x>;rel=next"), Some("last=x".to_owned()));
        for other in ["", "</v2/a>; rel=\"next\"", "</v2/a?x>; rel=\"prev\"", "junk"] {
            assert_eq!(next_page(other), None, "{other}");
        }
    }
}
