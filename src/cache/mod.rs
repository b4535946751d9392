//! The cache: what joins the store and the upstreams. Look-up, single flight, fills, freshness.
//!
//! A request asks for a manifest, a blob or a list of a [`Target`]; the answer says how it was found. Nothing here
//! knows HTTP requests or responses of clients.

mod blob;
mod body;
mod bypass;
mod download;
mod error;
mod fetch;
mod fill;
mod flight;
mod freshness;
mod hot;
mod keep;
mod lists;
mod manifest;
mod progress;
mod recent;
mod status;
mod verify;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Upstream};
use crate::metrics::Metrics;
use crate::oci::{Digest, Reference, RepoName, Tag, UpstreamName, Via};
use crate::store::{Link, LinkKind, ListKind, Store, StoreError};
use crate::upstream::{Registry, Right, Upstreams};

pub use blob::{Blob, BlobSource};
pub use body::{BodyError, Content};
pub use bypass::Bypass;
pub use error::{CacheError, WrongContent};
pub use lists::List;
pub use manifest::{Manifest, Want};
pub use status::{CacheStatus, Found};

/// Headers or an error go out within this time, all waits and retries included: containerd gives up after 30 s.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How long "upstream does not have it" is remembered.
const MISSING_FOR: Duration = Duration::from_secs(1);
/// How long a tag that a client saw by HEAD waits for its manifest to be fetched by digest.
const SEEN_TAG_FOR: Duration = Duration::from_mins(10);
/// Entries of each of the memories above.
const MEMORY: usize = 10_000;

/// A repository of an upstream, and by whose right it is asked for. What is kept in the store belongs to the repository
/// alone; flights and memories of answers are per right.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Whose.
    pub upstream: UpstreamName,
    /// Its name there.
    pub repo: RepoName,
    /// By whose right.
    pub right: Right,
}

/// The cache.
pub struct Cache {
    store: Store,
    upstreams: Arc<Upstreams>,
    config: Settings,
    metrics: Metrics,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Manifests in memory.
    hot: hot::Hot,
    /// Downloads of blobs.
    fills: fill::Fills,
    /// Checks of stored files.
    checks: verify::Checks,
    /// GETs of manifests.
    fetches: flight::Flights<(Target, Reference), Result<Arc<fetch::Fetched>, CacheError>>,
    /// HEADs of manifests that are not in the store.
    descriptions: flight::Flights<(Target, Reference), Result<fetch::Described, CacheError>>,
    /// HEADs that prove that a name has a blob.
    proofs: flight::Flights<(Target, Digest), Result<blob::Proof, CacheError>>,
    /// Lists of tags and referrers.
    lists: flight::Flights<(Target, ListKind, String), Result<List, CacheError>>,
    /// Revalidations of tags.
    tag_checks: flight::Flights<(Target, Tag), Result<fetch::Checked, CacheError>>,
    /// Revalidations that failed a moment ago.
    failed_checks: recent::Recent<(Target, Tag), ()>,
    /// What upstream did not have a moment ago.
    missing: recent::Recent<(Target, Wanted), ()>,
    /// Tags as upstream's HEAD described them, whose manifests are not in the store yet.
    seen_tags: recent::Recent<(Target, Tag), fetch::Described>,
    /// Upstreams that cannot be asked for manifests by HEAD.
    heads_unusable: Mutex<HashSet<UpstreamName>>,
}

/// What upstream is asked for. A digest that is no manifest may be a blob.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wanted {
    Manifest(Reference),
    Blob(Digest),
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("store", &self.store).finish_non_exhaustive()
    }
}

/// The part of the configuration that the cache reads.
struct Settings {
    max_manifest: u64,
    upstreams: HashMap<UpstreamName, Arc<Upstream>>,
}

// === impl Cache ===

impl Cache {
    /// A cache over `store` and `upstreams`, whose tasks run on `tasks` until `stop`.
    pub fn new(
        store: Store,
        upstreams: Arc<Upstreams>,
        config: &Config,
        metrics: Metrics,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let settings = Settings {
            max_manifest: config.store.max_manifest,
            upstreams: config.upstreams.iter().map(|(name, upstream)| (name.clone(), Arc::clone(upstream))).collect(),
        };
        Arc::new(Self {
            store,
            upstreams,
            config: settings,
            metrics,
            tasks,
            stop,
            hot: hot::Hot::default(),
            fills: fill::Fills::default(),
            checks: verify::Checks::default(),
            fetches: flight::Flights::new(),
            descriptions: flight::Flights::new(),
            proofs: flight::Flights::new(),
            lists: flight::Flights::new(),
            tag_checks: flight::Flights::new(),
            failed_checks: recent::Recent::new(freshness::AFTER_FAILED_CHECK, MEMORY),
            missing: recent::Recent::new(MISSING_FOR, MEMORY),
            seen_tags: recent::Recent::new(SEEN_TAG_FOR, MEMORY),
            heads_unusable: Mutex::default(),
        })
    }

    fn registry(&self, upstream: &UpstreamName) -> Result<&Arc<Registry>, CacheError> {
        self.upstreams.get(upstream).ok_or_else(|| CacheError::NoUpstream(upstream.clone()))
    }

    /// Whether what upstream gave `via` may be served to a caller that was let through to this upstream: what it gives
    /// to everybody always, what it gave to ocistern's own account only while that account is still the one that pulls.
    fn covers(&self, target: &Target, via: Via) -> Result<bool, CacheError> {
        Ok(via == Via::Anonymous || via == self.registry(&target.upstream)?.via())
    }

    /// The link of `digest` in `target`, if it covers the caller and is of the kind that is asked for. A manifest may
    /// be asked for as a blob, not the other way round: the media type of a blob is not known.
    async fn linked(&self, target: &Target, digest: &Digest, kind: LinkKind) -> Result<Option<Link>, CacheError> {
        let link = match self.store.link(&target.upstream, &target.repo, digest).await {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a stored link cannot be read");
                None
            }
        };
        match link {
            Some(link) if (link.kind == kind || kind == LinkKind::Blob) && self.covers(target, link.via)? => {
                Ok(Some(link))
            }
            _ => Ok(None),
        }
    }

    /// Fails if upstream said a moment ago that it does not have `what`.
    fn check_missing(&self, target: &Target, what: Wanted) -> Result<(), CacheError> {
        match self.missing.get(&(target.clone(), what)) {
            Some(()) => Err(CacheError::RecentlyMissing { upstream: target.upstream.clone() }),
            None => Ok(()),
        }
    }

    /// Remembers an error that says that upstream does not have `what`.
    fn note_missing(&self, target: &Target, what: Wanted, error: &CacheError) {
        if matches!(error, CacheError::Upstream(_)) && error.is_missing() {
            self.missing.insert((target.clone(), what), ());
        }
    }
}

/// The time for an answer's head ran out.
fn out_of_time(target: &Target) -> CacheError {
    CacheError::Timeout { upstream: target.upstream.clone() }
}

/// A failure of the writer: wrong content is upstream's fault, everything else the store's.
fn blame(error: StoreError, upstream: &UpstreamName) -> CacheError {
    match error {
        StoreError::DigestMismatch { expected, actual } => CacheError::wrong_content(upstream, *expected, *actual),
        StoreError::LengthMismatch { .. } => {
            CacheError::BadAnswer { upstream: upstream.clone(), reason: "a body of another length than it announced" }
        }
        error => error.into(),
    }
}
