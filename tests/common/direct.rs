//! The cache without HTTP in front: asked by whatever right a test gives it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use ocistern::cache::{Blob, BlobPart, BlobSource, Cache, CacheError, Found, List, Manifest, Target, Want};
use ocistern::clock::SystemClock;
use ocistern::config::{Capacity, Config, Durability};
use ocistern::metrics::Metrics;
use ocistern::oci::{Digest, Reference};
use ocistern::party::Party;
use ocistern::store::{Keep, Store, StoreOptions};
use ocistern::upstream::{Lent, Principal, Right, Upstreams};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::content::sha256;
use super::upstream::Upstream;

/// A cache over one upstream called `up`, and the directory of its store.
pub struct Direct {
    pub cache: Arc<Cache>,
    pub store: Store,
    root: TempDir,
    toml: String,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    /// Bytes, or a description of them by their digest, and how they were found.
    Content(Digest, Found),
    /// Refused, with what is said.
    Refused(String),
    /// Not there, with what is said.
    Missing(String),
    /// Upstream cannot be asked.
    Away,
    /// Something else.
    Wrong(String),
}

// === impl Direct ===

impl Direct {
    /// With these lines in the upstream's table.
    pub async fn start(upstream: &Upstream, keys: &str) -> Self {
        let toml = format!(
            "builtin_upstreams = false\n[[listener]]\naddress = \"127.0.0.1:0\"\ndefault_upstream = \"up\"\n\
             [upstream.up]\nurl = {:?}\n{keys}\n",
            upstream.url()
        );
        Self::open(tempfile::tempdir().unwrap(), toml).await
    }

    async fn open(root: TempDir, toml: String) -> Self {
        let config = Config::from_toml(&toml).unwrap_or_else(|error| panic!("{error}\n{toml}"));
        let metrics = Metrics::new().unwrap();
        let options = StoreOptions {
            root: root.path().to_owned(),
            capacity: Capacity::Default,
            durability: Durability::Fast,
            keep: Keep::default(),
            origins: Vec::new(),
            clock: Arc::new(SystemClock),
        };
        let opened = metrics.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(options, opened)).await.unwrap().unwrap();
        let upstreams = Arc::new(Upstreams::new(&config, metrics.clone(), Arc::new(SystemClock)).unwrap());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let cache = Cache::new(store.clone(), upstreams, &config, metrics, tasks.clone(), stop.clone());
        Self { cache, store, root, toml, tasks, stop }
    }

    /// Stops, and starts on the same store: what was in memory is gone.
    pub async fn restart(self) -> Self {
        self.restart_with(()).await
    }

    /// The same; what was `running` is dropped when it is told to stop.
    pub async fn restart_with<T>(self, running: T) -> Self {
        self.stop.cancel();
        drop(running);
        self.tasks.close();
        self.tasks.wait().await;
        self.store.close().await;
        let Self { cache, store, root, toml, .. } = self;
        drop((cache, store));
        Self::open(root, toml).await
    }

    /// Starts on a copy of the store as it is now: what a kill leaves.
    pub async fn after_a_kill(&self) -> Self {
        let copy = tempfile::tempdir().unwrap();
        copy_tree(self.root.path(), copy.path());
        Self::open(copy, self.toml.clone()).await
    }

    /// Waits until nothing is under way.
    pub async fn settle(&self) {
        self.tasks.close();
        super::patiently("the cache's tasks end", self.tasks.wait()).await;
        self.tasks.reopen();
    }

    pub async fn get(&self, right: &Right, repo: &str, reference: &str) -> Came {
        self.manifest(right, repo, reference, Want::Bytes).await
    }

    pub async fn manifest(&self, right: &Right, repo: &str, reference: &str, want: Want) -> Came {
        let reference: Reference = reference.parse().unwrap();
        match self.cache.manifest(&target(right, repo), &reference, want).await {
            Ok(Manifest { digest, bytes, status, .. }) => {
                if let Some(bytes) = bytes {
                    assert_eq!(sha256(&bytes), digest, "other bytes than the digest says");
                }
                Came::Content(digest, status.found)
            }
            Err(error) => error.into(),
        }
    }

    pub async fn blob(&self, right: &Right, repo: &str, digest: &Digest) -> Came {
        match self.cache.blob(&target(right, repo), digest, BlobPart::Whole, party()).await {
            Ok(blob) => read(blob).await,
            Err(error) => error.into(),
        }
    }

    pub async fn head_blob(&self, right: &Right, repo: &str, digest: &Digest, want: Want) -> Came {
        match self.cache.describe_blob(&target(right, repo), digest, want).await {
            Ok(blob) => Came::Content(*digest, blob.status.found),
            Err(error) => error.into(),
        }
    }

    pub async fn tags(&self, right: &Right, repo: &str) -> Came {
        self.cache.tags(&target(right, repo), "").await.into()
    }

    pub async fn referrers(&self, right: &Right, repo: &str, subject: &Digest) -> Came {
        self.cache.referrers(&target(right, repo), subject, "").await.into()
    }
}

/// All files below `from`.
fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy_tree(&entry.path(), &to);
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

pub fn target(right: &Right, repo: &str) -> Target {
    Target { upstream: "up".parse().unwrap(), repo: repo.parse().unwrap(), right: right.clone() }
}

/// The right of an account, whose password is `CANARY-` and its name.
pub fn account(user: &str) -> Right {
    let password = format!("CANARY-{user}");
    let hash = sha256(format!("{user}:{password}").as_bytes());
    let mut principal = [0; 16];
    principal.copy_from_slice(&hash.as_bytes()[..16]);
    let principal = Principal::new(principal);
    Right::Client(Lent::basic(principal, principal, user.to_owned(), password))
}

/// As who all of these count: nothing is scarce where they ask.
pub fn party() -> Party {
    Party::on_socket(None)
}

/// A request that runs beside the test.
pub struct Apart<T>(JoinSet<T>);

/// Starts a request beside the test.
pub fn apart<F>(request: F) -> Apart<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let mut set = JoinSet::new();
    set.spawn(request);
    Apart(set)
}

impl<T: 'static> Apart<T> {
    /// What it came to.
    pub async fn done(mut self) -> T {
        super::patiently("the request beside the test", self.0.join_next()).await.unwrap().unwrap()
    }
}

/// All bytes of a blob.
pub async fn read(blob: Blob) -> Came {
    let found = blob.status.found;
    let bytes: Result<Vec<Bytes>, _> = match blob.source {
        BlobSource::Content(content) => content.read(None, None).try_collect().await,
        BlobSource::Bypass(bypass) => bypass.read().try_collect().await,
        BlobSource::Described { .. } => return Came::Wrong("a description where bytes were asked for".to_owned()),
    };
    match bytes {
        Ok(bytes) => Came::Content(sha256(&bytes.concat()), found),
        Err(error) => Came::Wrong(error.to_string()),
    }
}

impl From<Result<List, CacheError>> for Came {
    fn from(list: Result<List, CacheError>) -> Self {
        match list {
            Ok(list) => Self::Content(sha256(&list.body), list.status.found),
            Err(error) => error.into(),
        }
    }
}

impl From<CacheError> for Came {
    fn from(error: CacheError) -> Self {
        if error.is_refusal() {
            Self::Refused(error.to_string())
        } else if error.is_missing() {
            Self::Missing(error.to_string())
        } else if error.is_unavailable() {
            Self::Away
        } else {
            Self::Wrong(error.to_string())
        }
    }
}

// === impl Came ===

impl Came {
    /// How it was found; fails unless it is this content.
    #[track_caller]
    pub fn found(&self, digest: &Digest) -> Found {
        match self {
            Self::Content(came, found) if came == digest => *found,
            other => panic!("{digest} was due, and this came: {other:?}"),
        }
    }

    #[track_caller]
    pub fn assert_hit(&self, digest: &Digest) {
        assert_eq!(self.found(digest), Found::Hit);
    }

    #[track_caller]
    pub fn assert_refused(&self) {
        assert!(matches!(self, Self::Refused(_)), "a refusal was due, and this came: {self:?}");
    }
}
