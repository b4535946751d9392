//! The admin interface: metrics, health, status, and work on the store.
//!
//! Over TCP, reads are open to callers on this machine that use a loopback name; all else shows the token of
//! `admin.token_file`. Over the admin socket everything is open to root and to the user that ocistern runs as.

mod api;
mod body;
mod carry;
mod dashboard;
mod errors;
mod explain;
mod figures;
mod history;
mod human;
mod missed;
mod names;
mod openapi;
mod pins;
mod status;
mod upstreams;
mod warm;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::api::{Api, Fills, Images, Live};
use self::api::{Parameters, Resource, written};
pub use self::body::LARGEST_BODY;
pub use self::carry::{BlobKept, Import, LayoutIndex};
use self::dashboard::Asset;
pub use self::errors::{ErrorList, FoldedError};
pub use self::explain::{Explanation, TagReport, Verdict};
use self::figures::Figures;
pub use self::figures::{Results, Traffic};
use self::history::History;
pub use self::history::{Forecast, HistoryPoint, HistoryReport};
pub use self::human::bytes;
pub use self::missed::{Coverage, ImageCoverage};
pub use self::pins::{PinName, PinNames, Pinning, Pins};
pub use self::status::{Status, StoreStatus};
pub use self::upstreams::{EndpointReport, ErrorReport, RateLimitReport, UpstreamList, UpstreamReport};
pub use self::warm::{WarmImage, WarmReport, WarmRequest, WarmState};
use super::access::{Peer, is_loopback_host, is_relayed};
use super::body::{Body, BodyError};
use super::respond::{Failure, json};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::oci::ErrorCode;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// Longest token file that is read.
const MAX_TOKEN: usize = 4096;

/// Whether requests are served: the latch behind `/readyz`. Upstreams do not count: what is stored is served without.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicU8>);

/// The stages of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The store is opened, listeners are not all there.
    Starting,
    /// Requests are served.
    Ready,
    /// The stop has begun.
    Stopping,
    /// Nothing is served: a command works on the store.
    Stopped,
}

/// What the admin interface shows.
#[derive(Debug)]
pub struct Admin {
    config: ArcSwap<Config>,
    metrics: Metrics,
    readiness: Readiness,
    api: Api,
    history: History,
    started: Instant,
    listeners: OnceLock<Vec<String>>,
    /// The user that this process runs as.
    user: u32,
}

// === impl Readiness ===

impl Readiness {
    /// Enters a stage.
    pub fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Release);
    }

    /// The current stage.
    pub fn get(&self) -> Stage {
        match self.0.load(Ordering::Acquire) {
            0 => Stage::Starting,
            1 => Stage::Ready,
            2 => Stage::Stopping,
            _ => Stage::Stopped,
        }
    }
}

impl Stage {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

// === impl Admin ===

impl Admin {
    /// The admin interface of a program that starts now, as this user.
    pub fn new(config: Arc<Config>, metrics: Metrics, readiness: Readiness, user: u32, api: Api) -> Self {
        let (history, started) = (History::default(), Instant::now());
        let config = config.into();
        Self { config, metrics, readiness, api, history, started, listeners: OnceLock::new(), user }
    }

    /// From now on this configuration holds.
    pub fn take_over(&self, config: Arc<Config>) {
        self.config.store(config);
    }

    /// Tells where clients are served; once.
    pub fn set_listeners(&self, listeners: Vec<String>) {
        // A second call would be a mistake without consequences.
        let _ = self.listeners.set(listeners);
    }

    /// Answers one request.
    pub async fn handle<B>(&self, peer: Peer, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: Into<BodyError>,
    {
        // Who waits with a request at hand would need a body that several threads may look at.
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        let answer = async {
            self.check(peer, &request).await?;
            let (path, method) = (request.uri().path(), request.method());
            let resource = Resource::parse(path);
            if let Some(resource) = resource.filter(|resource| carry::takes_body(*resource, method)) {
                let asked = Parameters::of(resource, method, request.uri())?;
                // As large as the answers of all others would have to be with it.
                return Box::pin(self.api.brought(resource, &asked, body)).await;
            }
            let body = match resource.filter(|resource| resource.takes_body(method)) {
                Some(_) => Box::pin(body::read(request.headers(), body)).await?,
                None => Bytes::new(),
            };
            self.answer(&request, body).await
        };
        guarded(answer.await.unwrap_or_else(Failure::into_response))
    }

    /// Keeps the history until `stop`.
    pub async fn keep_history(&self, stop: &CancellationToken) {
        self.history.keep(&self.metrics, self.api.clock(), stop).await;
    }

    async fn answer(&self, request: &Request<()>, body: Bytes) -> Result<Response<Body>, Failure> {
        let (path, method) = (request.uri().path(), request.method());
        if let Some(resource) = Resource::parse(path) {
            let asked = Parameters::of(resource, method, request.uri())?.with_body(body);
            return self.resource(resource, method, &asked).await;
        }
        let asset = Asset::at(path);
        let is_known = asset.is_some() || matches!(path, "/metrics" | "/healthz" | "/readyz");
        if is_known && !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Failure::method("this can be read only").closing());
        }
        if let Some(asset) = asset {
            return Ok(asset.response());
        }
        Ok(match path {
            "/metrics" => {
                self.metrics.ready.set((self.readiness.get() == Stage::Ready).into());
                text(StatusCode::OK, "text/plain; version=0.0.4", self.metrics.expose())
            }
            "/healthz" => text(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/readyz" => {
                let stage = self.readiness.get();
                let ready = stage == Stage::Ready;
                let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                text(status, "text/plain", format!("{}\n", stage.as_str()))
            }
            _ => {
                let resources = Resource::ALL.map(Resource::name).join(", ");
                let message = format!(
                    "there is the dashboard at /, /metrics, /healthz, /readyz, and under /api/v1/: {resources}"
                );
                return Err(Failure::new(StatusCode::NOT_FOUND, ErrorCode::Unsupported, message));
            }
        })
    }

    async fn resource(
        &self,
        resource: Resource,
        method: &Method,
        asked: &Parameters,
    ) -> Result<Response<Body>, Failure> {
        let (live, config) = (self.api.live(), self.config.load_full());
        let now = || self.api.clock().now();
        match resource {
            Resource::Status => written(&self.status()),
            Resource::Upstreams => written(&UpstreamList { upstreams: self.upstreams() }),
            Resource::History => written(&self.history.report(asked.step()?, &self.metrics, now())),
            Resource::Errors => written(&errors::list(live.map(|live| &**live.upstreams.troubles()))),
            Resource::Explain => {
                let name = explain::Name::parse(asked.required("image")?, &config)?;
                let (health, fills) = (self.upstreams(), self.api.fills());
                let health = health.into_iter().find(|report| report.name == name.upstream.as_str());
                let upstream = config.upstreams.get(&name.upstream);
                let (Some(health), Some(upstream)) = (health, upstream) else {
                    return Err(Failure::internal(format!("the upstream {} is not set up", name.upstream)));
                };
                written(&explain::explain(&name, upstream, self.api.store(), health, fills).await?)
            }
            Resource::OpenApi => Ok(json(StatusCode::OK, openapi::DOCUMENT)),
            _ => self.api.answer(resource, method, asked, &config).await,
        }
    }

    fn upstreams(&self) -> Vec<UpstreamReport> {
        let upstreams = self.api.live().map(|live| &*live.upstreams);
        upstreams::list(&self.config.load(), upstreams, &Figures::now(&self.metrics))
    }

    fn status(&self) -> Status {
        let metrics = &self.metrics;
        let last_pass = Some(metrics.scrub_last_pass.get()).filter(|at| *at > 0);
        let traffic = Figures::now(metrics).total();
        Status {
            saved_bytes: traffic.saved_bytes(),
            traffic,
            forecast: self.history.forecast(metrics, self.api.store().room(), self.api.clock().now()),
            fills: self.api.fills(),
            upstreams: self.upstreams(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            stage: self.readiness.get().as_str().to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            listeners: self.listeners.get().cloned().unwrap_or_default(),
            store: StoreStatus {
                root: self.config.load().root.clone(),
                bytes: metrics.store_bytes.get(),
                capacity_bytes: metrics.store_capacity_bytes.get(),
                blobs: metrics.store_blobs.get(),
                evicted_bytes: metrics.evicted_bytes.get(),
                corrupt_blobs: metrics.corrupt_blobs.get(),
                fills_in_progress: metrics.fills_in_progress.get(),
                scrubbed_bytes: metrics.scrubbed_bytes.get(),
                scrub_last_pass: last_pass.and_then(|at| Timestamp::from_second(at).ok()),
            },
        }
    }

    /// Who may ask: see the module.
    async fn check<B>(&self, peer: Peer, request: &Request<B>) -> Result<(), Failure> {
        if self.is_trusted(peer, request) || self.is_the_page(peer, request) {
            return Ok(());
        }
        let file = self.config.load().admin.token_file.clone();
        let Some(file) = file.filter(|_| matches!(peer, Peer::Tcp(_))) else {
            return Err(refusal());
        };
        // Read each time, so that it can be changed.
        let content = tokio::fs::read(&file).await.map_err(|error| {
            tracing::warn!(%error, file = %file.display(), "admin.token_file cannot be read: nobody is let in by it");
            refusal()
        })?;
        let wanted = content.split(|b| *b == b'\n').next().unwrap_or_default().trim_ascii();
        let shown = request.headers().get(AUTHORIZATION).and_then(bearer);
        if wanted.is_empty() || wanted.len() > MAX_TOKEN || !shown.is_some_and(|shown| same(shown, wanted)) {
            return Err(refusal());
        }
        Ok(())
    }

    /// Whether it is the dashboard, which holds no data, and it may be of use: figures are open from here, or the caller may
    /// have the token. What a browser adds counts for nothing here: it names an `Origin` where it fetches the page's own
    /// modules, and a link on another site may lead to the page.
    fn is_the_page<B>(&self, peer: Peer, request: &Request<B>) -> bool {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_of_use = self.config.load().admin.token_file.is_some() || is_from_here(peer, request);
        is_read && matches!(peer, Peer::Tcp(_)) && is_of_use && Asset::at(request.uri().path()).is_some()
    }

    fn is_trusted<B>(&self, peer: Peer, request: &Request<B>) -> bool {
        match peer {
            Peer::Unix(user) => user.is_some_and(|user| user == 0 || user == self.user),
            Peer::Tcp(_) => {
                let read = matches!(*request.method(), Method::GET | Method::HEAD);
                let own = !is_relayed(request.headers()) && !is_of_another_page(request.headers());
                read && own && is_from_here(peer, request)
            }
        }
    }
}

/// Whether the connection comes from this machine, and the caller calls it by a loopback name.
fn is_from_here<B>(peer: Peer, request: &Request<B>) -> bool {
    let field = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().authority().map(http::uri::Authority::as_str).or_else(field);
    peer.is_local() && host.is_some_and(is_loopback_host)
}

/// The same for everybody who may not, whatever they asked for and whatever is configured: it tells nothing.
fn refusal() -> Failure {
    let message = "this is not for everybody: the project's docs/admin-api.md says who may ask";
    let failure = Failure::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    failure.with_header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ocistern\""))
}

/// Whether a browser says that another site's page asks. It could not read the answer, but would learn by its time and
/// size; and what is asked for may cost something.
fn is_of_another_page(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none")
}

/// Every answer is for who asked, now; nothing of it is a page unless it says so.
fn guarded(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Compares without telling by its time how much is the same: the hashes are compared whole, and an attacker cannot
/// choose what they begin with.
fn same(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (Sha256::digest(one), Sha256::digest(other));
    one.iter().zip(other.iter()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use http_body_util::{BodyExt, Empty};

    use super::*;
    use crate::store::{Store, StoreOptions};

    const LOCAL: &str = "127.0.0.1:40000";
    const REMOTE: &str = "192.0.2.7:40000";

    fn admin(token_file: Option<&Path>) -> Admin {
        // What is open stays open.
        admin_on(tempfile::tempdir().unwrap().path(), token_file)
    }

    fn admin_on(root: &Path, token_file: Option<&Path>) -> Admin {
        let options = StoreOptions {
            root: root.to_owned(),
            capacity: crate::config::Capacity::Bytes(1 << 30),
            durability: crate::config::Durability::Strict,
            keep: crate::store::Keep::default(),
            origins: Vec::new(),
            clock: crate::clock::twin::system(),
        };
        let api = Api::new(Store::open(options, Metrics::new().unwrap()).unwrap(), None);
        let mut config = Config::from_toml("root = \"/var/cache/x\"").unwrap();
        config.admin.token_file = token_file.map(ToOwned::to_owned);
        let readiness = Readiness::default();
        Admin::new(Arc::new(config), Metrics::new().unwrap(), readiness, 1000, api)
    }

    fn request(method: &Method, path: &str, host: &str, authorization: Option<&str>) -> Request<Empty<Bytes>> {
        let mut builder = Request::builder().method(method).uri(path).header(HOST, host);
        if let Some(value) = authorization {
            builder = builder.header(AUTHORIZATION, value);
        }
        builder.body(Empty::new()).unwrap()
    }

    async fn body(response: Response<Body>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn who_may_ask() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "s3cret\nsecond line\n").unwrap();
        let tcp = |address: &str| Peer::Tcp(address.parse().unwrap());
        let (none, with) = (admin(None), admin(Some(&file)));
        let good = Some("Bearer s3cret");
        let (get, post) = (&Method::GET, &Method::POST);
        for (what, admin, peer, method, host, authorization, status) in [
            ("loopback by address", &none, tcp(LOCAL), get, "127.0.0.1:5080", None, 200),
            ("loopback by name", &none, tcp(LOCAL), get, "localhost:5080", None, 200),
            ("loopback by HEAD", &none, tcp(LOCAL), &Method::HEAD, "localhost", None, 200),
            ("loopback by a rebound name", &none, tcp(LOCAL), get, "evil.example:5080", None, 401),
            ("loopback by a rebound name", &with, tcp(LOCAL), get, "evil.example:5080", None, 401),
            ("loopback, a write without token", &with, tcp(LOCAL), post, "localhost", None, 401),
            ("loopback, a write", &with, tcp(LOCAL), post, "localhost", good, 405),
            ("elsewhere, no token configured", &none, tcp(REMOTE), get, "localhost", good, 401),
            ("elsewhere, without token", &with, tcp(REMOTE), get, "localhost", None, 401),
            ("elsewhere, wrong token", &with, tcp(REMOTE), get, "cache", Some("Bearer s3creT"), 401),
            ("elsewhere, part of the token", &with, tcp(REMOTE), get, "cache", Some("Bearer s3cre"), 401),
            ("elsewhere, empty token", &with, tcp(REMOTE), get, "cache", Some("Bearer "), 401),
            ("elsewhere, the second line", &with, tcp(REMOTE), get, "cache", Some("Bearer second line"), 401),
            ("elsewhere, Basic", &with, tcp(REMOTE), get, "cache", Some("Basic s3cret"), 401),
            ("elsewhere, with token", &with, tcp(REMOTE), get, "cache", good, 200),
            ("elsewhere, other case", &with, tcp(REMOTE), get, "cache", Some("bearer s3cret"), 200),
            ("socket, own user", &none, Peer::Unix(Some(1000)), get, "x", None, 200),
            ("socket, root", &none, Peer::Unix(Some(0)), get, "x", None, 200),
            ("socket, another user", &with, Peer::Unix(Some(1001)), get, "x", good, 401),
            ("socket, unknown user", &with, Peer::Unix(None), get, "x", good, 401),
        ] {
            let response = admin.handle(peer, request(method, "/healthz", host, authorization)).await;
            assert_eq!(response.status().as_u16(), status, "{what}");
        }
        for header in ["origin", "forwarded", "x-forwarded-for", "x-forwarded-host"] {
            let mut relayed = request(get, "/healthz", "localhost", None);
            relayed.headers_mut().insert(header, HeaderValue::from_static("x"));
            let response = with.handle(tcp(LOCAL), relayed).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{header}: somebody else is behind it");
        }
        std::fs::write(&file, "\n").unwrap();
        let response = with.handle(tcp(REMOTE), request(get, "/healthz", "cache", Some("Bearer "))).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "an empty file opens nothing");
    }

    /// Whoever may not ask learns nothing, not even what there is or whether there is a token.
    #[tokio::test]
    async fn a_refusal_is_the_same_for_everybody_and_everything() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "s3cret\n").unwrap();
        let (none, with, broken) = (admin(None), admin(Some(&file)), admin(Some(directory.path())));
        let remote = Peer::Tcp(REMOTE.parse().unwrap());
        let mut seen = std::collections::BTreeSet::new();
        for admin in [&none, &with, &broken] {
            for peer in [remote, Peer::Unix(Some(1001))] {
                for method in [&Method::GET, &Method::POST, &Method::DELETE, &Method::PUT] {
                    for path in ["/metrics", "/healthz", "/api/v1/status", "/api/v1/nothing", "/api/v1/gc?x=y", "/v2/"]
                    {
                        let response = admin.handle(peer, request(method, path, "cache", Some("Bearer wrong"))).await;
                        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
                        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer realm=\"ocistern\"");
                        let names: Vec<_> = response.headers().keys().map(|name| name.as_str().to_owned()).collect();
                        seen.insert((names, body(response).await));
                    }
                }
            }
        }
        assert_eq!(seen.len(), 1, "{seen:?}");
    }

    /// The page holds nothing; where a token opens the figures, it must be there for it to be typed in.
    #[tokio::test]
    async fn the_page_is_there_for_who_may_have_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "s3cret\n").unwrap();
        let (none, with) = (admin(None), admin(Some(&file)));
        let tcp = |address: &str| Peer::Tcp(address.parse().unwrap());
        for (what, admin, peer, method, host, status) in [
            ("here", &none, tcp(LOCAL), &Method::GET, "localhost", 200),
            ("here by a rebound name", &none, tcp(LOCAL), &Method::GET, "evil.example", 401),
            ("elsewhere without a token", &none, tcp(REMOTE), &Method::GET, "cache", 401),
            ("elsewhere", &with, tcp(REMOTE), &Method::GET, "cache", 200),
            ("elsewhere by HEAD", &with, tcp(REMOTE), &Method::HEAD, "cache", 200),
            ("a change", &with, tcp(REMOTE), &Method::POST, "cache", 401),
            ("another user on the socket", &with, Peer::Unix(Some(1001)), &Method::GET, "cache", 401),
        ] {
            for path in ["/", "/dashboard/main.js", "/dashboard/style.css", "/favicon.svg"] {
                let response = admin.handle(peer, request(method, path, host, None)).await;
                assert_eq!(response.status().as_u16(), status, "{what}: {path}");
                if status == 200 {
                    let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
                    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
                    assert!(policy.contains("frame-ancestors 'none'; base-uri 'none'; form-action 'none'"), "{policy}");
                    assert_eq!(response.headers()[REFERRER_POLICY], "no-referrer");
                    assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
                }
            }
            let data = admin.handle(peer, request(&Method::GET, "/api/v1/status", host, None)).await;
            assert_eq!(data.status() == 200, peer == tcp(LOCAL) && host == "localhost", "{what}: figures");
        }
        let mut module = request(&Method::GET, "/dashboard/api.js", "localhost", None);
        module.headers_mut().insert("origin", HeaderValue::from_static("http://localhost:5080"));
        assert_eq!(none.handle(tcp(LOCAL), module).await.status(), StatusCode::OK, "as Chromium asks for modules");
        let mut linked = request(&Method::GET, "/", "localhost", None);
        linked.headers_mut().insert(SEC_FETCH_SITE, HeaderValue::from_static("cross-site"));
        assert_eq!(none.handle(tcp(LOCAL), linked).await.status(), StatusCode::OK, "a link from another page");
    }

    #[tokio::test]
    async fn answers_are_no_pages_and_not_for_those_of_others() {
        let admin = admin(None);
        let local = Peer::Tcp(LOCAL.parse().unwrap());
        let response = admin.handle(local, request(&Method::GET, "/api/v1/status", "localhost", None)).await;
        assert_eq!(response.headers()[CONTENT_SECURITY_POLICY], "default-src 'none'; frame-ancestors 'none'");
        assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        for (site, status) in [("cross-site", 401), ("same-site", 401), ("same-origin", 200), ("none", 200)] {
            let mut asked = request(&Method::GET, "/api/v1/status", "localhost", None);
            asked.headers_mut().insert(SEC_FETCH_SITE, HeaderValue::from_static(site));
            assert_eq!(admin.handle(local, asked).await.status().as_u16(), status, "{site}");
        }
    }

    #[tokio::test]
    async fn what_there_is() {
        let admin = admin(None);
        let ask = async |path: &str| {
            let peer = Peer::Tcp(LOCAL.parse().unwrap());
            let response = admin.handle(peer, request(&Method::GET, path, "localhost", None)).await;
            (response.status().as_u16(), body(response).await)
        };
        assert_eq!(ask("/healthz").await, (200, "ok\n".to_owned()));
        assert_eq!(ask("/readyz").await, (503, "starting\n".to_owned()));
        admin.readiness.set(Stage::Ready);
        assert_eq!(ask("/readyz").await, (200, "ready\n".to_owned()));
        admin.readiness.set(Stage::Stopping);
        assert_eq!(ask("/readyz").await, (503, "stopping\n".to_owned()));
        assert!(ask("/metrics").await.1.contains("ocistern_store_bytes 0"));
        admin.set_listeners(vec!["127.0.0.1:5000".to_owned()]);
        admin.metrics.store_blobs.set(3);
        let (status, text) = ask("/api/v1/status").await;
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, 200);
        assert_eq!(parsed["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(parsed["listeners"][0], "127.0.0.1:5000");
        assert_eq!(parsed["store"]["blobs"], 3);
        assert_eq!((ask("/x").await.0, ask("/metrics/").await.0, ask("/api/v1/blobs").await.0), (404, 404, 404));
    }

    #[tokio::test]
    async fn changes_are_for_the_socket_and_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "s3cret\n").unwrap();
        let admin = admin_on(&directory.path().join("root"), Some(&file));
        let (socket, local) = (Peer::Unix(Some(1000)), Peer::Tcp(LOCAL.parse().unwrap()));
        let (get, post, delete) = (&Method::GET, &Method::POST, &Method::DELETE);
        let token = Some("Bearer s3cret");
        for (what, peer, method, path, authorization, status) in [
            ("a read from this machine", local, get, "/api/v1/images", None, 200),
            ("a read of all sizes", local, get, "/api/v1/usage", None, 200),
            ("a pattern", local, get, "/api/v1/images?pattern=docker.io%2F%2A%2A", None, 200),
            ("no pattern", local, get, "/api/v1/images?pattern=alpine", None, 400),
            ("a name as it was pulled", local, get, "/api/v1/images?pattern=localhost:5000/alpine:3", None, 200),
            ("another one", local, get, "/api/v1/images?pattern=localhost:5001/alpine:3", None, 400),
            ("its removal", socket, delete, "/api/v1/images?name=localhost:5000/alpine:3&dry_run=true", None, 200),
            ("its verification", socket, post, "/api/v1/verify?pattern=localhost:5000/alpine:3", None, 200),
            ("its pin", socket, post, "/api/v1/pins?name=localhost:5000/alpine:3", None, 200),
            ("a pin of another one", socket, post, "/api/v1/pins?name=localhost:5001/alpine:3", None, 400),
            ("a change from this machine", local, post, "/api/v1/gc", None, 401),
            ("another", local, post, "/api/v1/verify", None, 401),
            ("a removal from this machine", local, delete, "/api/v1/images?name=a%2Fb", None, 401),
            ("a change with the token", local, post, "/api/v1/gc", token, 200),
            ("a removal with the token", local, delete, "/api/v1/images?name=a%2Fb", token, 200),
            ("a change by the socket", socket, post, "/api/v1/verify?repair=true&rate=1000000", None, 200),
            ("a removal of nothing", socket, delete, "/api/v1/images", None, 400),
            ("a misspelt dry run", socket, delete, "/api/v1/images?name=a%2Fb&dryrun=true", None, 400),
            ("half a dry run", socket, delete, "/api/v1/images?name=a%2Fb&dry_run=yes", None, 400),
            ("no rate", socket, post, "/api/v1/verify?rate=0", None, 400),
            ("a figure that is none", socket, post, "/api/v1/gc?dry_run=true&evict_bytes=1GiB", None, 400),
            ("another method", socket, post, "/api/v1/images", None, 405),
            ("a change by reading", socket, get, "/api/v1/gc", None, 405),
        ] {
            let response = admin.handle(peer, request(method, path, "localhost", authorization)).await;
            assert_eq!(response.status().as_u16(), status, "{what}");
            let parsed: serde_json::Value = serde_json::from_str(&body(response).await).unwrap();
            assert_eq!(parsed["errors"].is_array(), status >= 400, "{what}: {parsed}");
        }
    }
}
