//! The HTTP client of one upstream: HTTP/1.1 and HTTP/2 over rustls, connections reused, proxies of the environment.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, InvalidMessage, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::{Service, ServiceExt};

use super::connect::{Dial, DialError};
use super::error::{Cause, Fault, NoTls, Phase};
use super::origin::{Origin, bare_host};
use super::upload::RequestBody;

/// Time for a usable connection: TCP, what a proxy on the way needs, and TLS.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept for the next request.
const POOL_IDLE: Duration = Duration::from_mins(1);
/// Connections that are kept per host.
const POOL_PER_HOST: usize = 32;
/// HTTP/2 window of one answer: 4 MiB fill a link of 300 Mbit/s at 100 ms.
const STREAM_WINDOW: u32 = 4 << 20;
/// HTTP/2 window of a connection: a blob that is slow to write must not hold up the others.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest head of an HTTP/2 answer; signed URLs are long.
const MAX_HEADER_LIST: u32 = 64 << 10;
/// HTTP/2 ping while an answer is awaited, and how long its echo may take.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Tls<T> = MaybeHttpsStream<T>;

/// The client of one upstream. Connections are shared by everything that is asked for it, and by nothing else: the
/// rules on where it may dial are its own.
#[derive(Clone)]
pub(crate) struct Client {
    http: legacy::Client<Connector, RequestBody>,
    connector: Connector,
    dial: Dial,
    proxies: Arc<Matcher>,
}

/// Makes connections: TCP, proxy, TLS, all within [`HANDSHAKE_TIMEOUT`].
#[derive(Clone)]
struct Connector(HttpsConnector<Route>);

/// Directly, or through the proxy that the environment names.
#[derive(Clone)]
struct Route {
    dial: Dial,
    proxies: Arc<Matcher>,
    /// TLS to the proxy itself; it must not negotiate HTTP/2.
    proxy_tls: Arc<ClientConfig>,
}

/// A connection to the destination or to a proxy that forwards plain http.
struct Link {
    io: Tls<TokioIo<TcpStream>>,
    forwarding: bool,
}

/// Trust in TLS certificates: the platform's roots, and what an upstream's `ca` adds.
pub(crate) struct Trust {
    platform: RootCertStore,
}

/// A client could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The `ca` file cannot be read or is not PEM.
    #[error("cannot read certificates from {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Cause,
    },
    /// The `ca` file has no certificate.
    #[error("there is no certificate in {path}")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A certificate cannot be used.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Whether an upstream could be set up with this `ca` file. Reads it.
pub fn check_ca(path: &Path) -> Result<(), TrustError> {
    Trust::none().config(Some(path)).map(|_| ())
}

// === impl TrustError ===

impl TrustError {
    /// Whether the file could not be read here, which may be otherwise for another user or on another machine.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. } if matches!(source.downcast_ref(), Some(pem::Error::Io(_))))
    }
}

// === impl Trust ===

impl Trust {
    /// Reads the platform's roots. A machine without any can still reach upstreams with a `ca` of their own.
    pub(crate) fn platform() -> Self {
        let mut platform = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of the platform's certificate authorities cannot be read");
        }
        let (added, ignored) = platform.add_parsable_certificates(found.certs);
        tracing::debug!(added, ignored, "certificate authorities of the platform");
        Self { platform }
    }

    /// Nothing but what an upstream's `ca` adds.
    pub(crate) fn none() -> Self {
        Self { platform: RootCertStore::empty() }
    }

    fn config(&self, ca: Option<&Path>) -> Result<ClientConfig, TrustError> {
        let mut roots = self.platform.clone();
        if let Some(path) = ca {
            let unreadable = |error| TrustError::Unreadable { path: path.to_owned(), source: Arc::new(error) };
            let certificates: Vec<_> =
                CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(unreadable)?;
            if certificates.is_empty() {
                return Err(TrustError::Empty { path: path.to_owned() });
            }
            for certificate in certificates {
                roots.add(certificate)?;
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

// === impl Client ===

impl Client {
    pub(crate) fn new(dial: Dial, trust: &Trust, ca: Option<&Path>, proxies: Arc<Matcher>) -> Result<Self, TrustError> {
        let tls = trust.config(ca)?;
        let route = Route { dial: dial.clone(), proxies: Arc::clone(&proxies), proxy_tls: Arc::new(tls.clone()) };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(route);
        let connector = Connector(connector);
        let http = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_PER_HOST)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(MAX_HEADER_LIST)
            .http2_keep_alive_interval(PING.0)
            .http2_keep_alive_timeout(PING.1)
            .build(connector.clone());
        Ok(Self { http, connector, dial, proxies })
    }

    /// Whether the upstream itself is asked by plain http.
    pub(crate) fn is_plain(&self) -> bool {
        self.dial.is_plain()
    }

    /// Sends one request and waits for the head of its answer. No redirects, no retries.
    pub(crate) async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<Incoming>, Fault> {
        if request.uri().scheme() == Some(&http::uri::Scheme::HTTP)
            && let Some(proxy) = intercept(&self.proxies, request.uri())
            && let Some(authorization) = proxy.basic_auth()
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        self.http.request(request).await.map_err(fault)
    }

    /// Connects as for a request, and sends none: the certificates that were shown, the server's own first; none over
    /// plain http.
    pub(crate) async fn connect(&self, uri: Uri) -> Result<Vec<CertificateDer<'static>>, Fault> {
        let stream = self.connector.clone().oneshot(uri).await.map_err(|error| {
            known(&*error, true).unwrap_or_else(|| Fault::Unreachable(Arc::new(io::Error::other(error))))
        })?;
        let Tls::Https(stream) = &stream else { return Ok(Vec::new()) };
        let shown = stream.inner().get_ref().1.peer_certificates().unwrap_or_default();
        Ok(shown.iter().map(|certificate| certificate.clone().into_owned()).collect())
    }

    /// The addresses that would be dialled directly.
    pub(crate) async fn addresses(&self) -> Result<Vec<SocketAddr>, Fault> {
        self.dial.addresses().await.map_err(|error| dialling(&error))
    }

    /// The proxy through which `uri` is asked, without what it is shown; none: directly.
    pub(crate) fn proxy(&self, uri: &Uri) -> Option<String> {
        if self.dial.is_pinned(uri) {
            return None;
        }
        let proxy = intercept(&self.proxies, uri)?;
        let origin = Origin::of(proxy.uri())?;
        Some(format!("{}://{}:{}", proxy.uri().scheme_str().unwrap_or("http"), origin.host, origin.port))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

// === impl Connector ===

impl Service<Uri> for Connector {
    type Response = Tls<Link>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Tls<Link>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move { timeout(HANDSHAKE_TIMEOUT, connecting).await.map_err(|_| DialError::Timeout)? })
    }
}

// === impl Route ===

impl Route {
    async fn connect(self, uri: Uri) -> Result<Link, BoxError> {
        let proxy = if self.dial.is_pinned(&uri) { None } else { intercept(&self.proxies, &uri) };
        let Some(proxy) = proxy else {
            let io = Tls::Http(self.dial.oneshot(uri).await?);
            return Ok(Link { io, forwarding: false });
        };
        self.dial.check_unresolved(&uri)?;
        let address = proxy.uri().clone();
        let origin = Origin::of(&address).ok_or(DialError::NoHost)?;
        if address.scheme_str().is_some_and(|scheme| scheme.starts_with("socks")) {
            return self.socks(&proxy, origin, uri).await;
        }
        let to_proxy = HttpsConnector::new(
            self.dial.to_proxy(origin),
            self.proxy_tls,
            false,
            Arc::new(hyper_rustls::DefaultServerNameResolver::default()),
        );
        if uri.scheme() == Some(&http::uri::Scheme::HTTP) {
            // Proxies commonly refuse CONNECT to other ports than 443: plain http is forwarded, not tunnelled.
            return Ok(Link { io: to_proxy.oneshot(address).await?, forwarding: true });
        }
        let mut tunnel = Tunnel::new(address, to_proxy);
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        Ok(Link { io: tunnel.oneshot(uri).await?, forwarding: false })
    }

    async fn socks(self, proxy: &Intercept, mut origin: Origin, uri: Uri) -> Result<Link, BoxError> {
        if !matches!(proxy.uri().scheme_str(), Some("socks5" | "socks5h")) {
            return Err(io::Error::other("of SOCKS proxies only version 5 is supported").into());
        }
        origin.port = proxy.uri().port_u16().unwrap_or(1080);
        let address: Uri = format!("http://{}:{}/", origin.host, origin.port).parse()?;
        let mut socks = SocksV5::new(address, self.dial.to_proxy(origin));
        if let Some((user, password)) = proxy.raw_auth() {
            socks = socks.with_auth(user.to_owned(), password.to_owned());
        }
        Ok(Link { io: Tls::Http(socks.oneshot(uri).await?), forwarding: false })
    }
}

impl Service<Uri> for Route {
    type Response = Link;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Link, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// The proxy for `uri`. This machine itself is never reached through one, whatever `NO_PROXY` says, as in Go.
fn intercept(proxies: &Matcher, uri: &Uri) -> Option<Intercept> {
    let host = bare_host(uri.host()?);
    let loopback = host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    if loopback { None } else { proxies.intercept(uri) }
}

// === impl Link ===

impl Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Link {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.forwarding)
    }
}

/// Finds what the client's opaque error is about.
fn fault(error: legacy::Error) -> Fault {
    let connecting = error.is_connect();
    known(&error, connecting).unwrap_or_else(|| {
        let cause: Cause = Arc::new(Chain(error));
        if connecting { Fault::Unreachable(cause) } else { Fault::Broken(cause) }
    })
}

/// What of an error's causes says by itself what happened.
fn known(error: &(dyn std::error::Error + 'static), connecting: bool) -> Option<Fault> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(dial) = current.downcast_ref::<DialError>() {
            return Some(dialling(dial));
        }
        // Of the handshake alone: when TLS breaks later, upstream may have got the request, and done what it says.
        if let Some(tls) = current.downcast_ref::<rustls::Error>().filter(|_| connecting) {
            return Some(Fault::Tls(match tls {
                rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Arc::new(NoTls),
                other => Arc::new(other.clone()),
            }));
        }
        // `io::Error::source` skips the error that it wraps.
        let wrapped = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => current.source(),
        };
    }
    None
}

fn dialling(error: &DialError) -> Fault {
    match error {
        DialError::Timeout => Fault::Timeout(Phase::Connect),
        DialError::OwnListener => Fault::OwnListener,
        DialError::Forbidden { host, class } => {
            Fault::Redirect(super::error::RedirectFault::Address { host: host.clone(), class: *class })
        }
        other => Fault::Unreachable(Arc::new(io::Error::other(other.to_string()))),
    }
}

/// Prints the causes too: the client's own text is only "client error (`SendRequest`)".
#[derive(Debug)]
struct Chain(legacy::Error);

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = String::new();
        let mut next = std::error::Error::source(&self.0);
        while let Some(error) = next {
            last = error.to_string();
            next = error.source();
        }
        if last.is_empty() { self.0.fmt(f) } else { f.write_str(&last) }
    }
}

impl std::error::Error for Chain {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
