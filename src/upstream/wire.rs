//! One HTTP exchange with an upstream, its token hosts or its redirect targets: fixed headers, deadline, metrics.

use std::sync::Arc;
use std::time::SystemTime;

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::client::Client;
use super::error::{Fault, Phase, ProtocolFault};
use super::origin::Url;
use super::read::{self, Asked};
use super::upload::{RequestBody, Watch};
use crate::clock::Clock;
use crate::metrics::{Exchanges, Kind, Metrics};
use crate::oci::UpstreamName;
use crate::telemetry;

/// How ocistern calls itself.
const AGENT: &str = concat!("ocistern/", env!("CARGO_PKG_VERSION"));
/// What a caller's headers cannot decide.
const OURS: [HeaderName; 13] = [
    ACCEPT_ENCODING,
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    COOKIE,
    EXPECT,
    HOST,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    USER_AGENT,
];

/// Sends requests for one upstream.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    client: Client,
    upstream: UpstreamName,
    exchanges: Arc<Exchanges>,
    clock: Arc<dyn Clock>,
}

/// A request to send.
pub(crate) struct Outgoing<'a> {
    /// For metrics.
    pub(crate) kind: Kind,
    pub(crate) method: Method,
    pub(crate) url: &'a Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RequestBody,
}

// === impl Wire ===

impl Wire {
    pub(crate) fn new(client: Client, upstream: UpstreamName, metrics: &Metrics, clock: Arc<dyn Clock>) -> Self {
        let exchanges = Arc::new(Exchanges::new(metrics, upstream.as_str()));
        Self { client, upstream, exchanges, clock }
    }

    /// What makes the connections.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What the time is.
    pub(crate) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// One request and the head of its answer, whatever it says, until `deadline`, or until upstream does not take more
    /// of a body that streams.
    pub(crate) async fn send(&self, outgoing: Outgoing<'_>, deadline: Instant) -> Result<Response<Incoming>, Fault> {
        let Outgoing { kind, method, url, headers, body } = outgoing;
        let watch = body.watch();
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = url.to_uri().map_err(|_| Fault::Protocol(ProtocolFault::Target))?;
        *request.headers_mut() = headers;
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        // Compressed bytes would match no digest.
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let trace = telemetry::exchange(self.upstream.as_str(), &mut request);
        let begun = Instant::now();
        let sent = timeout_at(deadline, self.exchange(request, watch.as_deref())).await;
        let result = sent.unwrap_or(Err(Fault::Timeout(Phase::Header)));
        let status = result.as_ref().ok().map(Response::status);
        match status {
            Some(status) => self.exchanges.answered(kind, status, begun.elapsed()),
            None => self.exchanges.failed(kind),
        }
        if let Some(trace) = trace {
            trace.exchanged(status);
        }
        let status = status.as_ref().map_or("error", http::StatusCode::as_str);
        tracing::debug!(upstream = %self.upstream, ?url, status, "asked upstream");
        result
    }

    /// What an unsuccessful answer means; see [`read::fault`].
    pub(crate) async fn fault<S: AsRef<str>>(
        &self,
        response: Response<Incoming>,
        deadline: Instant,
        trusted: bool,
        secrets: &[S],
    ) -> Fault {
        let asked = match (trusted, self.client.is_plain()) {
            (true, true) => Asked::Plainly,
            (true, false) => Asked::Securely,
            (false, _) => Asked::Stranger,
        };
        read::fault(response, deadline, asked, secrets, self.now()).await
    }

    async fn exchange(
        &self,
        request: Request<RequestBody>,
        watch: Option<&Watch>,
    ) -> Result<Response<Incoming>, Fault> {
        let Some(watch) = watch else { return self.client.send(request).await };
        let result = tokio::select! {
            result = self.client.send(request) => result,
            fault = watch.silence() => Err(fault),
        };
        // To the HTTP client it is an error of the connection that it has broken off itself.
        result.map_err(|fault| watch.failure().map_or(fault, Fault::Interrupted))
    }
}

/// A caller's headers without those that concern the connection, the host or credentials.
pub(crate) fn pass_on(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in &OURS {
        headers.remove(name);
    }
    headers
}
