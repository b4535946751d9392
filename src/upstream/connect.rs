//! TCP to an upstream, its token hosts and its redirect targets: resolve, check the address, dial, tune the socket.
//!
//! The check is made on the resolved address at the moment of dialling, so a name that resolves to something else the
//! second time (DNS rebinding) gains nothing.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tower::Service;

use super::address::AddressClass;
use super::origin::{Origin, bare_host};

/// Time for name resolution and the TCP handshake, all addresses together.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Head start of one address before the next is tried beside it (RFC 8305, "Happy Eyeballs").
const STAGGER: Duration = Duration::from_millis(250);
/// Silence after which the kernel asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Time between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time that sent bytes may stay unacknowledged: a reused connection whose peer is gone must fail early enough to be
/// replaced within one request's deadline.
const USER_TIMEOUT_MS: u32 = 10_000;

/// Names of one upstream that are resolved at once. The C library blocks a thread for as long as the name servers are
/// silent, whether anybody still waits or not, and the threads are those that read the store: without a limit, a herd
/// for an upstream whose name does not resolve would hold up what is stored.
const LOOKUPS: usize = 4;

/// The addresses on which ocistern itself listens; known only after binding.
pub(crate) type OwnAddresses = Arc<RwLock<Vec<SocketAddr>>>;

/// Dials for one upstream.
#[derive(Clone)]
pub(crate) struct Dial(Arc<Rules>);

struct Rules {
    /// The upstream's own.
    origin: Origin,
    /// Dialled instead of what the system resolves for the upstream's host.
    connect: Vec<String>,
    own: OwnAddresses,
    resolver: Resolver,
    /// Class of the address at which the upstream was last reached.
    class: AtomicU8,
}

/// Resolves names, a few at a time.
#[derive(Clone)]
struct Resolver(Arc<Semaphore>);

/// Why there is no TCP connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Resolution or the TCP handshake took too long, or TLS did.
    #[error("no connection in time")]
    Timeout,
    /// The name does not resolve.
    #[error("{host} does not resolve: {source}")]
    Resolve {
        host: String,
        #[source]
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("{address}: {source}")]
    Tcp {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// ocistern itself listens there.
    #[error("that is ocistern's own listener")]
    OwnListener,
    /// The upstream may not send us there.
    #[error("{host} is a {} address", .class.as_str())]
    Forbidden { host: String, class: AddressClass },
    /// Not a URI to dial.
    #[error("there is no host to connect to")]
    NoHost,
}

type Dialling = Pin<Box<dyn Future<Output = Result<TokioIo<TcpStream>, DialError>> + Send>>;

// === impl Dial ===

impl Dial {
    pub(crate) fn new(origin: Origin, connect: Vec<String>, own: OwnAddresses) -> Self {
        Self::with(origin, connect, own, Resolver(Arc::new(Semaphore::new(LOOKUPS))))
    }

    /// Whether the upstream is asked by plain http.
    pub(crate) fn is_plain(&self) -> bool {
        !self.0.origin.https
    }

    /// Dials without any rule but the one on ocistern's own listeners: for the proxy that the environment names.
    pub(crate) fn to_proxy(&self, proxy: Origin) -> Self {
        Self::with(proxy, Vec::new(), Arc::clone(&self.0.own), self.0.resolver.clone())
    }

    fn with(origin: Origin, connect: Vec<String>, own: OwnAddresses, resolver: Resolver) -> Self {
        let class = origin.address().map_or(AddressClass::Public, AddressClass::of);
        Self(Arc::new(Rules { origin, connect, own, resolver, class: AtomicU8::new(class as u8) }))
    }

    /// Whether `connect` decides where this is dialled; then no proxy is asked.
    pub(crate) fn is_pinned(&self, uri: &Uri) -> bool {
        !self.0.connect.is_empty() && uri.host().is_some_and(|host| host.eq_ignore_ascii_case(&self.0.origin.host))
    }

    /// Checks a destination that a proxy will resolve: only what is an address already can be judged.
    pub(crate) fn check_unresolved(&self, uri: &Uri) -> Result<(), DialError> {
        let target = Origin::of(uri).ok_or(DialError::NoHost)?;
        match target.address() {
            Some(address) => self.0.check(&target, address),
            None => Ok(()),
        }
    }

    /// The addresses that would be dialled for the upstream itself.
    pub(crate) async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        let resolving = self.0.resolve(&self.0.origin);
        timeout(CONNECT_TIMEOUT, resolving).await.unwrap_or(Err(DialError::Timeout))
    }

    async fn dial(self, uri: Uri) -> Result<TokioIo<TcpStream>, DialError> {
        let target = Origin::of(&uri).ok_or(DialError::NoHost)?;
        match timeout(CONNECT_TIMEOUT, self.0.dial(&target)).await {
            Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(DialError::Timeout),
        }
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = DialError;
    type Future = Dialling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Dialling {
        Box::pin(self.clone().dial(uri))
    }
}

// === impl Rules ===

impl Rules {
    async fn dial(&self, target: &Origin) -> Result<TcpStream, DialError> {
        let addresses = self.resolve(target).await?;
        for address in &addresses {
            self.check(target, address.ip())?;
            if self.is_own(*address) {
                return Err(DialError::OwnListener);
            }
        }
        let stream = race(&target.host, addresses).await?;
        let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else {
            return Err(DialError::Tcp {
                address: ([0, 0, 0, 0], 0).into(),
                source: io::ErrorKind::NotConnected.into(),
            });
        };
        // From one of this machine's addresses to the same one: a wildcard listener of ours may be behind it.
        if peer.ip() == local.ip()
            && self.own.read().iter().any(|own| own.ip().is_unspecified() && own.port() == peer.port())
        {
            return Err(DialError::OwnListener);
        }
        if *target == self.origin {
            self.class.store(AddressClass::of(peer.ip()) as u8, Ordering::Relaxed);
        }
        tune(&stream);
        Ok(stream)
    }

    async fn resolve(&self, target: &Origin) -> Result<Vec<SocketAddr>, DialError> {
        if target.host != self.origin.host || self.connect.is_empty() {
            return self.resolver.lookup(bare_host(&target.host), target.port).await;
        }
        let mut addresses = Vec::new();
        let mut failure = DialError::NoHost;
        for pinned in &self.connect {
            let found = match pinned.rsplit_once(':') {
                Some((host, port)) => match port.parse() {
                    // The written port is for the registry itself; a token service beside it keeps its own.
                    Ok(port) => {
                        let port = if *target == self.origin { port } else { target.port };
                        self.resolver.lookup(bare_host(host), port).await
                    }
                    Err(_) => Err(DialError::NoHost),
                },
                None => self.resolver.lookup(bare_host(pinned), target.port).await,
            };
            match found {
                Ok(found) => addresses.extend(found),
                Err(error) => failure = error,
            }
        }
        if addresses.is_empty() { Err(failure) } else { Ok(addresses) }
    }

    /// Refuses what the upstream may not send us to. The upstream itself is where the operator says it is.
    fn check(&self, target: &Origin, address: IpAddr) -> Result<(), DialError> {
        let class = AddressClass::of(address);
        if *target == self.origin || self.class().may_lead_to(class) {
            Ok(())
        } else {
            Err(DialError::Forbidden { host: target.authority(), class })
        }
    }

    fn class(&self) -> AddressClass {
        let stored = self.class.load(Ordering::Relaxed);
        [AddressClass::Private, AddressClass::Loopback, AddressClass::LinkLocal]
            .into_iter()
            .find(|class| *class as u8 == stored)
            .unwrap_or(AddressClass::Public)
    }

    fn is_own(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.own.read().iter().any(|own| {
            let wildcard = own.ip().is_unspecified() && (ip.is_loopback() || ip.is_unspecified());
            own.port() == address.port() && (own.ip().to_canonical() == ip || wildcard)
        })
    }
}

// === impl Resolver ===

impl Resolver {
    async fn lookup(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        let failed = |source| DialError::Resolve { host: host.to_owned(), source };
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let name = host.to_owned();
        let found = self.run(move || (name.as_str(), port).to_socket_addrs()).await.map_err(failed)?;
        let addresses: Vec<_> = found.map_err(failed)?.collect();
        if addresses.is_empty() { Err(failed(io::ErrorKind::NotFound.into())) } else { Ok(addresses) }
    }

    /// Runs `work` on a thread that may block; its place is taken until it ends, also if nobody waits for it any more.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let place = Arc::clone(&self.0).acquire_owned().await.map_err(io::Error::other)?;
        let working = spawn_blocking(move || {
            let _place = place;
            work()
        });
        working.await.map_err(io::Error::other)
    }
}

/// The first address that accepts, each with a head start before the next.
async fn race(host: &str, addresses: Vec<SocketAddr>) -> Result<TcpStream, DialError> {
    let mut failure = DialError::Resolve { host: host.to_owned(), source: io::ErrorKind::NotFound.into() };
    let mut running = FuturesUnordered::new();
    let mut waiting = addresses.into_iter();
    loop {
        let more = waiting.next().map(|address| {
            running.push(async move {
                TcpStream::connect(address).await.map_err(|source| DialError::Tcp { address, source })
            });
        });
        tokio::select! {
            finished = running.next() => match finished {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = sleep(STAGGER), if more.is_some() => {}
        }
    }
}

/// A socket option that cannot be set costs only comfort.
fn tune(stream: &TcpStream) {
    use rustix::net::sockopt;
    let fd = stream.as_fd();
    let results = [
        sockopt::set_tcp_nodelay(fd, true),
        sockopt::set_socket_keepalive(fd, true),
        sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE),
        sockopt::set_tcp_keepintvl(fd, KEEPALIVE_INTERVAL),
        sockopt::set_tcp_user_timeout(fd, USER_TIMEOUT_MS),
    ];
    if let Some(error) = results.into_iter().find_map(Result::err) {
        tracing::debug!(%error, "a TCP option could not be set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(url: (&str, u16), connect: &[&str], own: &[&str]) -> Dial {
        let origin = Origin { https: false, host: url.0.into(), port: url.1 };
        let own = own.iter().map(|a| a.parse().unwrap()).collect();
        Dial::new(origin, connect.iter().map(|&s| s.to_owned()).collect(), Arc::new(RwLock::new(own)))
    }

    async fn outcome(dial: Dial, uri: &str) -> Result<(), DialError> {
        dial.dial(uri.parse().unwrap()).await.map(drop)
    }

    #[tokio::test]
    async fn own_listeners_are_not_dialled() {
        for (own, uri) in [
            ("127.0.0.1:5000", "http://127.0.0.1:5000/"),
            ("0.0.0.0:5000", "http://127.0.0.1:5000/"),
            ("0.0.0.0:5000", "http://[::ffff:127.0.0.1]:5000/"),
            ("[::]:5000", "http://[::1]:5000/"),
        ] {
            let origin = Origin::of(&uri.parse().unwrap()).unwrap();
            let result = outcome(dial((&origin.host, 5000), &[], &[own]), uri).await;
            assert!(matches!(result, Err(DialError::OwnListener)), "{uri} with {own}: {result:?}");
        }
    }

    #[tokio::test]
    async fn a_wildcard_listener_is_found_behind_any_local_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.9:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let uri = format!("http://127.0.0.9:{port}/");
        let own = format!("0.0.0.0:{port}");
        assert!(matches!(outcome(dial(("127.0.0.9", port), &[], &[&own]), &uri).await, Err(DialError::OwnListener)));
        assert!(outcome(dial(("127.0.0.9", port), &[], &[]), &uri).await.is_ok());
    }

    #[tokio::test]
    async fn a_public_upstream_leads_nowhere_inside() {
        for uri in [
            "http://127.0.0.1:1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://10.0.0.1/",
            "http://[::1]/",
            "http://0.0.0.0:1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://localhost:1/",
        ] {
            let result = outcome(dial(("192.0.2.1", 80), &[], &[]), uri).await;
            assert!(
                matches!(result, Err(DialError::Forbidden { .. } | DialError::Resolve { .. })),
                "{uri}: {result:?}"
            );
        }
        let pinned: Uri = "http://169.254.169.254/".parse().unwrap();
        assert!(dial(("192.0.2.1", 80), &[], &[]).check_unresolved(&pinned).is_err(), "nor through a proxy");
    }

    #[tokio::test]
    async fn lookups_that_nobody_waits_for_keep_their_places() {
        let resolver = Resolver(Arc::new(Semaphore::new(LOOKUPS)));
        let (entered, entries) = std::sync::mpsc::channel();
        let mut releases = Vec::new();
        for _ in 0..LOOKUPS {
            let (release, gate) = std::sync::mpsc::channel::<()>();
            releases.push(release);
            let entered = entered.clone();
            let mut lookup = Box::pin(resolver.run(move || {
                entered.send(()).unwrap();
                let _ = gate.recv();
            }));
            assert!(futures_util::poll!(lookup.as_mut()).is_pending());
            drop(lookup);
        }
        for _ in 0..LOOKUPS {
            entries.recv().unwrap();
        }
        let mut next = Box::pin(resolver.run(|| 7));
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        assert_eq!(resolver.0.available_permits(), 0, "the threads are still blocked");
        drop(releases);
        assert_eq!(next.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn pinned_addresses_replace_resolution_and_fall_back() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap().to_string();
        // The name cannot resolve, and nobody listens at the first address.
        let dial = dial(("registry.invalid", 443), &["127.0.0.1:1", &good], &[]);
        assert!(dial.is_pinned(&"https://Registry.invalid/v2/".parse().unwrap()));
        outcome(dial, "http://registry.invalid:443/").await.expect("the second address accepts");
    }
}
