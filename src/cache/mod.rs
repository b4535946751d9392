//! The cache: what joins the store and the upstreams. Look-up, single flight, fills, freshness.
//!
//! A request asks for a manifest, a blob or a list of a [`Target`]; the answer says how it was found. Nothing here
//! knows HTTP requests or responses of clients.

mod blob;
mod body;
mod bypass;
mod demand;
mod download;
mod endpoints;
mod entitle;
mod error;
mod fetch;
mod fill;
mod first;
mod flight;
mod freshness;
mod front;
mod hot;
mod keep;
mod labels;
mod leg;
mod legs;
mod lenders;
mod lists;
mod manifest;
mod missed;
mod patience;
mod plan;
mod progress;
mod published;
mod push;
mod recent;
mod report;
mod rights;
mod status;
mod supply;
#[cfg(test)]
mod tests;
mod upkeep;
mod upload;
mod verdict;
mod verify;
mod view;
mod warm;
mod width;
mod write;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::HashMap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Abandon, Config, RangeFill, Slowest, UnverifiedRanges, Upstream};
use crate::metrics::Metrics;
use crate::oci::{Digest, Reference, RepoName, Tag, UpstreamName};
use crate::store::{Link, LinkKind, ListKind, Store, StoreError};
use crate::upstream::{Registry, Right, Upstreams};

pub use blob::{Blob, BlobSource};
pub use body::{BodyError, Content};
pub use bypass::Bypass;
pub use error::{CacheError, WrongContent};
pub use freshness::is_fresh;
pub use labels::Labels;
pub(crate) use labels::{API_VERSION, CACHE_STATUS, DOCKER_CONTENT_DIGEST, X_REQUEST_ID};
pub use lists::List;
pub use manifest::{Manifest, Want};
pub use published::PublishedManifest;
pub use push::{Doomed, LARGEST_MANIFEST, Put};
pub use report::FillReport;
pub use status::{CacheStatus, Found};
pub use supply::Part as BlobPart;
pub use upload::{Begun, ClientBody, ClientFault, Opening, Part, Upload, UploadId};
pub use warm::{WarmError, Warmed, Warming};
pub use write::{Said, WriteError};
pub use writes::{Asked, WriteGuard};

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

/// A repository of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Repository {
    upstream: UpstreamName,
    repo: RepoName,
}

/// A question to upstream, as requests share it: by the same right, and begun under the same generation of the
/// repository, so that nobody who comes after a write is told what was so before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question<T> {
    target: Target,
    what: T,
    generation: u64,
}

/// The cache.
pub struct Cache {
    store: Store,
    upstreams: Arc<Upstreams>,
    config: ArcSwap<Settings>,
    metrics: Metrics,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Manifests in memory.
    hot: hot::Hot,
    /// Downloads of blobs.
    fills: fill::Fills,
    /// What has come last of them.
    fronts: Arc<front::Fronts>,
    /// Mirrors that have brought something wrong a while ago.
    aside: endpoints::Aside,
    /// Checks of stored files.
    checks: verify::Checks,
    /// GETs of manifests.
    fetches: flight::Flights<Question<Reference>, Result<Arc<fetch::Fetched>, CacheError>>,
    /// HEADs of manifests that are not in the store, or that must be confirmed.
    descriptions: flight::Flights<Question<Reference>, Result<fetch::Described, CacheError>>,
    /// HEADs that prove that a name has a blob.
    proofs: flight::Flights<Question<Digest>, Result<blob::Proof, CacheError>>,
    /// Lists of tags and referrers.
    lists: flight::Flights<Question<(ListKind, String)>, Result<List, CacheError>>,
    /// Revalidations of tags.
    tag_checks: flight::Flights<Question<Tag>, Result<fetch::Checked, CacheError>>,
    /// Revalidations that failed a moment ago.
    failed_checks: recent::Recent<(Target, Tag), ()>,
    /// Whose right upstream could not be asked about a moment ago.
    unanswered: recent::Recent<Target, ()>,
    /// What upstream did not have a moment ago.
    missing: recent::Recent<(Target, Wanted), ()>,
    /// Tags as upstream's HEAD described them, whose manifests are not in the store yet.
    seen_tags: recent::Recent<(Repository, Tag), fetch::Described>,
    /// What upstream gives to everybody.
    verdicts: verdict::Verdicts,
    /// What upstream gives to callers.
    rights: rights::Rights,
    /// Writes on their way, and when the last ones were.
    generations: writes::Generations,
    /// Uploads on their way through.
    uploads: upload::Uploads,
    /// Who may write where.
    writers: upload::Writers,
    /// Permits to keep an answer.
    keeping: Arc<Semaphore>,
    /// That the disk is slow was said a moment ago.
    slow_disk: recent::Recent<(), ()>,
    /// Makes numbers of those who ask, which mean nothing elsewhere.
    askers: foldhash::fast::RandomState,
    /// Whether upstreams can be asked for manifests by HEAD.
    heads: recent::Recent<UpstreamName, fetch::Heads>,
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
#[derive(Debug)]
struct Settings {
    max_manifest: u64,
    slowest: Slowest,
    range_fill: RangeFill,
    unverified_ranges: UnverifiedRanges,
    abandon: Abandon,
    upstreams: HashMap<UpstreamName, Arc<Upstream>>,
}

// === impl Settings ===

impl Settings {
    fn of(config: &Config) -> Self {
        Self {
            max_manifest: config.store.max_manifest,
            slowest: config.limits.slowest(),
            range_fill: config.store.range_fill,
            unverified_ranges: config.store.unverified_ranges,
            abandon: config.store.abandon,
            upstreams: config.upstreams.iter().map(|(name, upstream)| (name.clone(), Arc::clone(upstream))).collect(),
        }
    }
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
        let timeline = Arc::clone(store.timeline());
        Arc::new(Self {
            store,
            upstreams,
            config: ArcSwap::from_pointee(Settings::of(config)),
            metrics,
            tasks,
            stop,
            hot: hot::Hot::default(),
            fills: fill::Fills::default(),
            fronts: Arc::default(),
            aside: Arc::new(recent::Recent::new(endpoints::ASIDE_FOR, MEMORY)),
            checks: verify::Checks::default(),
            fetches: flight::Flights::new(),
            descriptions: flight::Flights::new(),
            proofs: flight::Flights::new(),
            lists: flight::Flights::new(),
            tag_checks: flight::Flights::new(),
            failed_checks: recent::Recent::new(freshness::AFTER_FAILED_CHECK, MEMORY),
            unanswered: recent::Recent::new(freshness::AFTER_FAILED_CHECK, MEMORY),
            missing: recent::Recent::new(MISSING_FOR, MEMORY),
            seen_tags: recent::Recent::new(SEEN_TAG_FOR, MEMORY),
            verdicts: verdict::Verdicts::default(),
            rights: rights::Rights::default(),
            generations: writes::Generations::new(timeline),
            uploads: upload::Uploads::default(),
            writers: upload::Writers::default(),
            keeping: Arc::new(Semaphore::new(keep::AT_ONCE)),
            slow_disk: recent::Recent::new(Duration::from_mins(1), 1),
            askers: foldhash::fast::RandomState::default(),
            heads: recent::Recent::new(fetch::HEADS_FOR, MEMORY),
        })
    }

    /// From now on these settings hold; what is running may end by those before.
    pub fn take_over(&self, config: &Config) {
        self.config.store(Arc::new(Settings::of(config)));
    }

    fn registry(&self, upstream: &UpstreamName) -> Result<Arc<Registry>, CacheError> {
        self.upstreams.get(upstream).ok_or_else(|| CacheError::NoUpstream(upstream.clone()))
    }

    /// The link of `digest` in `target`, if it is of the kind that is asked for, whoever asks. A manifest may be asked
    /// for as a blob, not the other way round: the media type of a blob is not known.
    async fn linked(&self, target: &Target, digest: &Digest, kind: LinkKind) -> Option<Arc<Link>> {
        let link = match self.store.link(&target.upstream, &target.repo, digest).await {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a stored link cannot be read");
                None
            }
        };
        link.filter(|link| link.kind == kind || kind == LinkKind::Blob)
    }

    /// A question about `target`, as requests share it.
    fn question<T>(&self, target: &Target, what: T) -> Question<T> {
        Question { target: target.clone(), what, generation: self.generations.of(&target.repository()) }
    }

    /// Fails if upstream said a moment ago that it does not have `what`.
    fn check_missing(&self, target: &Target, what: Wanted) -> Result<(), CacheError> {
        match self.missing.get(&(target.clone(), what)) {
            Some(()) => Err(CacheError::RecentlyMissing { upstream: target.upstream.clone() }),
            None => Ok(()),
        }
    }

    /// Remembers an error that says that upstream, asked then, does not have `what`.
    fn note_missing(&self, target: &Target, what: Wanted, error: &CacheError, asked: &Asked) {
        if !matches!(error, CacheError::Upstream(_)) || !error.is_missing() {
            return;
        }
        if let Wanted::Blob(digest) = &what {
            self.fills.doubt(target, Some(digest), asked);
        }
        if self.generations.holds(&target.repository(), asked) {
            self.missing.insert((target.clone(), what), ());
        }
    }

    /// Upstream, asked then, refused `target`: what it was asked before, and gives still, is no answer to who comes now.
    fn doubt_what_is_under_way(&self, target: &Target, asked: &Asked) {
        self.fills.doubt(target, None, asked);
        self.fetches.detach(|question| question.target == *target);
        self.descriptions.detach(|question| question.target == *target);
        self.proofs.detach(|question| question.target == *target);
        self.tag_checks.detach(|question| question.target == *target);
    }
}

// === impl Target ===

impl Target {
    /// The repository, whoever asks.
    fn repository(&self) -> Repository {
        Repository { upstream: self.upstream.clone(), repo: self.repo.clone() }
    }

    /// Whether it is the same repository, whoever asks.
    fn is_in(&self, repository: &Repository) -> bool {
        self.upstream == repository.upstream && self.repo == repository.repo
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
