//! What parts of a warm answer cost by themselves, without sockets: routes, look-ups, the index, bodies, and the whole edge.
//!
//! `cargo bench --bench micro` (`-- edge` for those with this word). Whole requests beside other caches: `bench/run`.
#![allow(clippy::unwrap_used, reason = "a benchmark whose stand cannot be built has nothing to say")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use ocistern::cache::Cache;
use ocistern::clock::{Clock, Steady, SystemClock};
use ocistern::config::Config;
use ocistern::http::access::Peer;
use ocistern::http::body::Body;
use ocistern::http::connection::{Connection, Security};
use ocistern::http::route::{self, Directory};
use ocistern::http::{App, ListenerState, Locations, Seal, handle};
use ocistern::metrics::{Metrics, Requests};
use ocistern::oci::{Algorithm, Digest, RepoName, Tag, UpstreamName, Via};
use ocistern::store::{Access, Keep, Link, LinkKind, Store, StoreOptions, TagRecord};
use ocistern::upstream::Upstreams;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Links in the store: more than memory has room for, so that a look-up of all in turn reads each.
const LINKS: usize = 20_000;

/// A warm cache of an upstream that nobody can reach, with `app:1` and blobs in it.
struct Stand {
    runtime: Runtime,
    app: App,
    listener: ListenerState,
    store: Store,
    manifest: Digest,
    small: Digest,
    large: Digest,
    _root: TempDir,
}

// === impl Stand ===

impl Stand {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let root = tempfile::tempdir().unwrap();
        let config = Arc::new(config(root.path()));
        let (metrics, clock) = (Metrics::new().unwrap(), Arc::new(SystemClock) as Arc<dyn Clock>);
        let entered = runtime.enter();
        let store = Store::open(
            StoreOptions {
                root: root.path().join("store"),
                capacity: config.store.capacity,
                durability: config.store.durability,
                keep: Keep::default(),
                origins: vec![],
                clock: Arc::clone(&clock),
            },
            metrics.clone(),
        )
        .unwrap();
        let upstreams = Arc::new(Upstreams::new(&config, metrics.clone(), Arc::clone(&clock)).unwrap());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let cache = Cache::new(store.clone(), Arc::clone(&upstreams), &config, metrics.clone(), tasks.clone(), stop);
        drop(entered);
        let (manifest, small, large) = runtime.block_on(async {
            let manifest = publish(&store, &[b'm'; 1024]).await;
            let small = publish(&store, &[b's'; 4096]).await;
            let large = publish(&store, &vec![b'l'; 4 << 20]).await;
            let now = store.timeline().moment();
            let media_type = Some(MEDIA_TYPE.to_owned());
            link(&store, &manifest, Link { media_type, kind: LinkKind::Manifest, ..blob(1024) }, now).await;
            link(&store, &small, blob(4096), now).await;
            link(&store, &large, blob(4 << 20), now).await;
            let record = TagRecord { digest: manifest, media_type: MEDIA_TYPE.to_owned(), size: 1024, etag: None };
            assert!(store.set_tag(&up(), &app(), &tag(), &record, now).await.unwrap());
            store.set_access(&up(), &app(), Access::Public).await.unwrap();
            (manifest, small, large)
        });
        let listener = ListenerState::new(config.listeners[0].clone());
        let app = App {
            directory: Directory::new(&config),
            config,
            cache,
            upstreams,
            seal: Seal::new(&[1; 32]).into(),
            locations: Locations::new([2; 32]).into(),
            requests: Requests::new(&metrics, ["up"]).into(),
            clock,
            steady: Steady::new(&SystemClock),
            tasks,
        };
        Self { runtime, app, listener, store, manifest, small, large, _root: root }
    }

    async fn ask(&self, target: &str) -> Response<Body> {
        let request = Request::builder().uri(target).header("host", "127.0.0.1:5000").header("accept", MEDIA_TYPE);
        let request = request.header("user-agent", "docker/28.0.0").body(Empty::<Bytes>::new()).unwrap();
        let connection =
            Connection { peer: Peer::Tcp("127.0.0.1:40000".parse().unwrap()), outlet: None, security: Security::Plain };
        handle(&self.app, &self.listener, connection, request).await
    }

    /// Asks, and reads the answer to its end.
    async fn pull(&self, target: &str) -> usize {
        let response = self.ask(target).await;
        assert_eq!(response.status(), 200, "{target}");
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        bytes
    }
}

fn config(root: &Path) -> Config {
    let text = format!(
        "root = '{}'\nbuiltin_upstreams = false\n[[listener]]\naddress = \"127.0.0.1:0\"\ndefault_upstream = \"up\"\n\
         [upstream.up]\nurl = \"http://127.0.0.1:1\"\ntags = \"1h\"\npublic_for = \"1h\"\n",
        root.display()
    );
    Config::from_toml(&text).unwrap()
}

fn up() -> UpstreamName {
    "up".parse().unwrap()
}

fn app() -> RepoName {
    "app".parse().unwrap()
}

fn tag() -> Tag {
    "1".parse().unwrap()
}

fn blob(size: u64) -> Link {
    Link { kind: LinkKind::Blob, via: Via::Anonymous, media_type: None, size, subject: None, artifact_type: None }
}

async fn publish(store: &Store, bytes: &[u8]) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let mut writer = store.create(&digest, Some(bytes.len() as u64)).await.unwrap();
    writer.write(Bytes::copy_from_slice(bytes)).await.unwrap();
    writer.finish().await.unwrap();
    digest
}

async fn link(store: &Store, digest: &Digest, link: Link, asked_at: SystemTime) {
    assert!(store.set_link(&up(), &app(), digest, &link, asked_at).await.unwrap());
}

// === benchmarks ===

fn routes(criterion: &mut Criterion) {
    let root = tempfile::tempdir().unwrap();
    let config = config(root.path());
    let (directory, listener) = (Directory::new(&config), &config.listeners[0]);
    let digest = Digest::of(Algorithm::Sha256, b"x");
    let mut group = criterion.benchmark_group("route");
    for (name, path, query) in [
        ("tag", "/v2/library/debian/manifests/bookworm-slim".to_owned(), None),
        ("blob", format!("/v2/library/debian/blobs/{digest}"), None),
        ("prefix", format!("/v2/up/library/debian/blobs/{digest}"), None),
        ("namespace", format!("/v2/library/debian/blobs/{digest}"), Some("ns=up")),
    ] {
        let parse = |path: &str| route::parse(&directory, listener, Some("127.0.0.1:5000"), path, query).unwrap();
        group.bench_function(name, |bencher| bencher.iter(|| parse(black_box(&path))));
    }
    group.finish();
}

fn look_ups(criterion: &mut Criterion) {
    let stand = Stand::new();
    let Stand { runtime, store, manifest, small, .. } = &stand;
    let (up, app, tag) = (up(), app(), tag());
    let mut group = criterion.benchmark_group("look-up");
    group.bench_function("tag, in memory", |bencher| {
        bencher.iter(|| runtime.block_on(store.tag_state(&up, &app, &tag)).unwrap().record.unwrap());
    });
    group.bench_function("link, in memory", |bencher| {
        bencher.iter(|| runtime.block_on(store.link(&up, &app, manifest)).unwrap().unwrap());
    });
    group.bench_function("blob, open file", |bencher| {
        bencher.iter(|| runtime.block_on(store.blob(small)).unwrap().unwrap());
    });
    group.finish();
}

/// What is not in memory: the link's file, for a name that nobody has asked for lately.
fn index(criterion: &mut Criterion) {
    let stand = Stand::new();
    let Stand { runtime, store, .. } = &stand;
    let (up, app) = (up(), app());
    let digests: Vec<_> = (0..LINKS).map(|n| Digest::of(Algorithm::Sha256, &n.to_le_bytes())).collect();
    runtime.block_on(async {
        let now = store.timeline().moment();
        for digest in &digests {
            link(store, digest, blob(1), now).await;
        }
    });
    let mut turn = digests.iter().cycle();
    let mut group = criterion.benchmark_group("index");
    group.bench_function("link, on the disk", |bencher| {
        bencher.iter_batched(
            || turn.next().unwrap(),
            |digest| runtime.block_on(store.link(&up, &app, digest)).unwrap().unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("blob that is not there", |bencher| {
        bencher.iter_batched(
            || turn.next().unwrap(),
            |digest| assert!(runtime.block_on(store.blob(digest)).unwrap().is_none()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn edge(criterion: &mut Criterion) {
    let stand = Stand::new();
    let blob = |digest: &Digest| format!("/v2/app/blobs/{digest}");
    let mut group = criterion.benchmark_group("edge");
    for (name, target) in [
        ("manifest by tag", "/v2/app/manifests/1".to_owned()),
        ("manifest by digest", format!("/v2/app/manifests/{}", stand.manifest)),
        ("blob of 4 KiB", blob(&stand.small)),
    ] {
        group.bench_function(name, |bencher| bencher.iter(|| stand.runtime.block_on(stand.pull(black_box(&target)))));
    }
    group.finish();
    let mut group = criterion.benchmark_group("body");
    let target = blob(&stand.large);
    group.throughput(Throughput::Bytes(4 << 20));
    group.bench_function("blob of 4 MiB, read", |bencher| {
        bencher.iter(|| assert_eq!(stand.runtime.block_on(stand.pull(black_box(&target))), 4 << 20));
    });
    group.finish();
}

criterion_group!(benches, routes, look_ups, index, edge);
criterion_main!(benches);
