//! Behaviour of an upstream client against scripted servers on loopback.

mod clouds;
mod faults;
mod grants;
mod limits;
mod mirrors;
mod redirects;
mod relay;
mod rights;
mod tls;
mod tokens;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::Trust;
use super::*;
use crate::clock::twin::system;
use crate::config::{BaseUrl, Credentials, TagPolicy, Transfer, Upstream};
use crate::oci::{Algorithm, Digest, RepoName};

/// A request as it arrived.
#[derive(Debug, Clone)]
struct Seen {
    method: Method,
    /// Path and query, byte for byte.
    target: String,
    headers: HeaderMap,
    body: String,
}

type Script = dyn Fn(&Seen, usize) -> Response<Full<Bytes>> + Send + Sync;

/// A scripted server. The script gets the request and how many came before it.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Where requests went whose bodies broke off.
    broken: Mutex<mpsc::UnboundedReceiver<String>>,
    _accepting: JoinSet<()>,
}

impl Server {
    async fn start(script: impl Fn(&Seen, usize) -> Response<Full<Bytes>> + Send + Sync + 'static) -> Self {
        Self::on("127.0.0.1:0", None, script).await
    }

    async fn on(
        address: &str,
        tls: Option<tokio_rustls::TlsAcceptor>,
        script: impl Fn(&Seen, usize) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, script): (_, Arc<Script>) = (Arc::clone(&seen), Arc::new(script));
        let (breaks, broken) = mpsc::unbounded_channel();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, script, tls, breaks) = (Arc::clone(&log), Arc::clone(&script), tls.clone(), breaks.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        serve(request, Arc::clone(&log), Arc::clone(&script), breaks.clone())
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    if let Some(tls) = tls {
                        let Ok(stream) = tls.accept(stream).await else { return };
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    } else {
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        Self { address, seen, broken: Mutex::new(broken), _accepting: accepting }
    }

    /// Every request to a path that starts so.
    fn requests(&self, prefix: &str) -> Vec<Seen> {
        self.seen.lock().iter().filter(|seen| seen.target.starts_with(prefix)).cloned().collect()
    }

    fn count(&self, prefix: &str) -> usize {
        self.requests(prefix).len()
    }

    /// Waits for a body to break off.
    async fn break_off(&self) -> String {
        std::future::poll_fn(|context| self.broken.lock().poll_recv(context)).await.unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

async fn serve(
    request: Request<Incoming>,
    log: Arc<Mutex<Vec<Seen>>>,
    script: Arc<Script>,
    breaks: mpsc::UnboundedSender<String>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().unwrap().to_string();
    let body = body.collect().await.inspect_err(|_| breaks.send(target.clone()).unwrap_or_default())?;
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    let seen = Seen { method: head.method, target, headers: head.headers, body };
    let before = {
        let mut log = log.lock();
        log.push(seen.clone());
        log.len() - 1
    };
    Ok(script(&seen, before))
}

/// A server that reads each connection's request head and then writes exactly `replies[n]` on the n-th connection
/// (the last one for all that follow), closing after it unless `stall`.
async fn raw_server(replies: Vec<&'static str>, stall: bool) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = Vec::new();
        for number in 0.. {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            read_head(&mut stream).await;
            let reply = replies.get(number).or(replies.last()).copied().unwrap_or_default();
            let _ = stream.write_all(reply.as_bytes()).await;
            if stall {
                open.push(stream);
            }
        }
    });
    (address, tasks)
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn reply(status: u16, headers: &[(&'static str, &str)], body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_owned())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        response.headers_mut().append(HeaderName::from_static(name), value);
    }
    response
}

fn redirect_to(location: &str) -> Response<Full<Bytes>> {
    reply(307, &[("location", location)], "moved")
}

fn authorization(seen: &Seen) -> Option<&str> {
    seen.headers.get("authorization").map(|value| value.to_str().unwrap())
}

/// The settings of an upstream at `host:port` over plain http, anonymous.
fn settings(address: SocketAddr) -> Upstream {
    Upstream {
        name: "test".parse().unwrap(),
        url: BaseUrl { https: false, host: address.ip().to_string(), port: address.port(), prefix: String::new() },
        credentials: Credentials::Auto,
        tags: TagPolicy::Always,
        rules: Vec::new(),
        library: false,
        ca: None,
        token_hosts: Vec::new(),
        connect: Vec::new(),
        push: config::PushBy::Client,
        public_for: Duration::from_mins(10),
        access_ttl: Duration::from_mins(1),
        access_stale: Duration::ZERO,
        reserve: 0,
        relay_credentials: false,
        mirrors: Vec::new(),
        transfer: Transfer::default(),
        sealed: false,
    }
}

fn registry(upstream: Upstream) -> Registry {
    registry_with(upstream, &Metrics::new().unwrap(), Matcher::builder().build(), &OwnAddresses::default())
}

fn registry_with(upstream: Upstream, metrics: &Metrics, proxies: Matcher, own: &OwnAddresses) -> Registry {
    let (clock, trust, proxies) = (system(), Trust::none(), Arc::new(proxies));
    let total = Throttle::new(config::MaxRate::default(), system());
    let troubles = Arc::new(Troubles::new(system()));
    let common =
        Common { metrics, clock: &clock, troubles: &troubles, trust: &trust, proxies: &proxies, own, total: &total };
    let registry = Registry::new(Arc::new(upstream), None, common).unwrap();
    registry.come_into_use();
    registry
}

/// Settings with the account `me` and the password `canary-password`; keep the file while it is used.
fn with_account(mut upstream: Upstream) -> (Upstream, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "canary-password\n").unwrap();
    upstream.credentials = Credentials::Static { username: "me".into(), password_file: file.path().to_owned() };
    (upstream, file)
}

/// A caller with a name and password; the number is what tells callers apart.
fn caller(number: u8, username: &str, password: &str) -> Right {
    let principal = Principal::new([number; 16]);
    Right::Client(Lent::basic(principal, principal, username.into(), password.into()))
}

/// A caller with a token of upstream.
fn bearer(number: u8, token: &str) -> Right {
    let principal = Principal::new([number; 16]);
    Right::Client(Lent::token(principal, principal, token.into()))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn repo() -> RepoName {
    "library/alpine".parse().unwrap()
}

fn manifest() -> Ask {
    Ask::manifest(Method::GET, &repo(), &"latest".parse().unwrap(), soon())
}

fn blob(method: Method) -> Ask {
    Ask::blob(method, &repo(), &Digest::of(Algorithm::Sha256, b"hello"), soon())
}

async fn text(answer: Answer) -> String {
    String::from_utf8_lossy(&answer.body.collect().await.unwrap().to_bytes()).into_owned()
}
