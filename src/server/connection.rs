//! From accepted sockets to answered requests: the accept loop, and one task per connection.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::{Layer as _, Service as _};

use super::activity::{Activity, Allowed, Clients, Heard};
use super::listener::Socket;
use super::permits::Permits;
use super::sending::Sending;
use super::stream::{Plain, Stream, Watched};
use super::supervise::{self, Ended};
use super::tls::Tls;
use crate::config::Limits;
use crate::http::MAX_HEAD;
use crate::http::access::Peer;
use crate::http::around::{around, sensitive};
use crate::http::body::Body;
use crate::http::connection::{Connection, Security};
use crate::metrics::Connections;
use crate::sendfile::Outlet;

/// hyper's buffer for a request head. Larger than the limit, so that what is a little too long gets an answer that
/// says so; what does not fit is answered by hyper, without a body.
const HEAD_BUFFER: usize = 2 * MAX_HEAD;
/// HTTP/2: requests at once on a connection.
pub(super) const STREAMS: u32 = 128;
/// HTTP/2: streams that were reset before they were accepted, and that this side reset for a client's error; beyond
/// them the connection is closed (CVE-2023-44487 and its kin).
const PENDING_RESETS: usize = 20;
const LOCAL_RESETS: usize = 256;
/// HTTP/2: what a client may send ahead, on a stream and in all: what a push gets through in one round trip (10 MB/s
/// where that takes 100 ms), and what a client that is not read from holds in memory.
const RECEIVE_WINDOW: u32 = 1024 * 1024;
/// HTTP/2: what may wait in memory for a client, per stream.
const SEND_BUFFER: usize = 256 * 1024;
/// HTTP/2: when a connection is probed by PING, and when an answer is overdue.
const PING_AFTER: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);
/// Waits after failures to accept, the first and the longest: without files or memory the next try fails too.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What answers the requests of a listener.
pub(super) trait Handler: Clone + Send + Sync + 'static {
    /// Answers one request.
    fn handle(
        &self,
        connection: Connection,
        request: Request<Heard<Incoming>>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// How a listener serves its connections.
pub(super) struct Serving<H> {
    handler: H,
    speech: ArcSwap<Speech>,
    permits: Permits,
    clients: Clients,
    /// For connections that are still to come.
    allowed: Mutex<Allowed>,
    builder: auto::Builder<Tracked>,
    run: Run,
}

/// What connections of a listener speak, until it is another thing.
struct Speech {
    /// None: plain HTTP.
    tls: Option<Arc<Tls>>,
    security: Security,
    /// Connections that speak it finish what they are doing, and end.
    over: CancellationToken,
}

/// What the requests of a connection share.
struct Connected<H> {
    handler: H,
    connection: Connection,
    activity: Arc<Activity>,
}

/// The stages of the end of all connections, and their tasks.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    /// No further connection is accepted, and those there are finish what they are doing.
    pub(super) drain: CancellationToken,
    /// Connections are dropped.
    pub(super) abort: CancellationToken,
    /// Tasks of accept loops, connections and streams.
    pub(super) tasks: TaskTracker,
}

/// Spawns what hyper spawns (the streams of HTTP/2) where the stop can wait for it.
#[derive(Debug, Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Tracked {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

// === impl Serving ===

impl<H: Handler> Serving<H> {
    pub(super) fn new(
        handler: H,
        tls: Option<Arc<Tls>>,
        permits: Permits,
        (clients, limits): (Clients, &Limits),
        run: Run,
    ) -> Arc<Self> {
        let mut builder = auto::Builder::new(Tracked(run.tasks.clone()));
        builder
            .http1()
            .timer(TokioTimer::new())
            // Activity times heads: this one would cut idle connections.
            .header_read_timeout(None)
            .max_buf_size(HEAD_BUFFER);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(LOCAL_RESETS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .initial_stream_window_size(RECEIVE_WINDOW)
            .initial_connection_window_size(RECEIVE_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PONG_WITHIN);
        let allowed = Mutex::new(Allowed::of(limits, clients));
        let speech = ArcSwap::from_pointee(Speech::new(tls, &run));
        Arc::new(Self { handler, speech, permits, clients, allowed, builder, run })
    }

    pub(super) const fn handler(&self) -> &H {
        &self.handler
    }

    pub(super) fn is_tls(&self) -> bool {
        self.speech.load().tls.is_some()
    }

    /// Connections that come from here on speak this. The others end as soon as what they are doing is done: they were let in by
    /// what does not hold any more.
    pub(super) fn set_tls(&self, tls: Option<Arc<Tls>>) {
        let before = self.speech.swap(Arc::new(Speech::new(tls, &self.run)));
        before.over.cancel();
    }

    /// For connections that come from here on these limits hold.
    pub(super) fn set_limits(&self, limits: &Limits) {
        *self.allowed.lock() = Allowed::of(limits, self.clients);
    }

    /// Accepts connections until the drain begins.
    pub(super) async fn accept(self: Arc<Self>, socket: Socket, connections: Connections) {
        let accepting = async {
            let mut pause = BACK_OFF.0;
            while let Some(place) = self.permits.place().await {
                let (stream, peer) = match socket.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) if is_of_one_connection(&error) => continue,
                    Err(error) => {
                        tracing::warn!(%error, listener = %socket, "no connection can be accepted; trying again");
                        sleep(pause).await;
                        pause = (pause * 2).min(BACK_OFF.1);
                        continue;
                    }
                };
                pause = BACK_OFF.0;
                let Some(address_place) = self.permits.admit(&peer) else {
                    tracing::debug!(%peer, "refused: this address has too many connections already");
                    connections.refused();
                    continue;
                };
                let (serving, open) = (self.clone(), connections.accepted());
                self.run.tasks.spawn(async move {
                    let _places = (place, address_place, open);
                    serving.serve(stream, peer).await;
                });
            }
        };
        self.run.drain.run_until_cancelled(accepting).await;
    }

    async fn serve(&self, stream: Plain, peer: Peer) {
        let outlet = Outlet::default();
        let (speech, allowed) = (self.speech.load_full(), *self.allowed.lock());
        let stream = match &speech.tls {
            None => Stream::Plain(Sending::new(stream, outlet.clone())),
            Some(tls) => {
                let shaking = async { tls.acceptor(&self.run.tasks).await.accept(stream).await };
                let shaking = timeout(allowed.first_byte, shaking);
                match self.run.drain.run_until_cancelled(shaking).await {
                    Some(Ok(Ok(stream))) => Stream::Tls(Box::new(stream)),
                    Some(Ok(Err(error))) => return tracing::debug!(%peer, %error, "the TLS handshake failed"),
                    Some(Err(_)) => return tracing::debug!(%peer, "the TLS handshake took too long"),
                    None => return,
                }
            }
        };
        let activity = Activity::new(allowed);
        let io = TokioIo::new(Watched::new(stream, activity.clone()));
        let (security, outlet) = (speech.security, speech.tls.is_none().then_some(outlet));
        let connection = Connection { peer, outlet, security };
        let connected = Arc::new(Connected { handler: self.handler.clone(), connection, activity: activity.clone() });
        let stack = sensitive().layer(tower::service_fn(move |request: Request<Incoming>| {
            let in_flight = connected.activity.begin(request.version() == Version::HTTP_2);
            let connected = connected.clone();
            let request = request.map(|body| connected.activity.hear(body));
            async move {
                let answer = |request| connected.handler.handle(connected.connection.clone(), request);
                let response = around(request, answer).await;
                Ok::<_, Infallible>(response.map(|body| in_flight.follow(body)))
            }
        }));
        // The stack is always ready: a call need not wait for it.
        let service = hyper::service::service_fn(move |request| stack.clone().call(request));
        let connection = self.builder.serve_connection(io, service);
        match supervise::run(connection, activity, &speech.over, &self.run.abort).await {
            Ok(()) => {}
            Err(Ended::Overdue(overdue)) => tracing::debug!(%peer, "connection closed: {overdue}"),
            Err(Ended::Stopped) => tracing::warn!(%peer, "connection closed: the time for running answers is over"),
            Err(Ended::Connection(error)) => {
                tracing::debug!(%peer, reason = crate::http::respond::causes(&*error), "connection ended");
            }
        }
    }
}

// === impl Speech ===

impl Speech {
    fn new(tls: Option<Arc<Tls>>, run: &Run) -> Self {
        let security = tls.as_ref().map_or(Security::Plain, |tls| tls.security());
        Self { tls, security, over: run.drain.child_token() }
    }
}

/// A failure of one connection only, that is gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | NetworkUnreachable)
}
