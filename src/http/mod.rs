//! The HTTP edge: from a request to an answer, in one straight list.
//!
//! The layers around [`handle`] stand in an order that matters, the outermost first:
//!
//! 1. *sensitive headers*: before anything could print them;
//! 2. *request id* (`x-request-id`, the client's where it is sane): before the span that carries it;
//! 3. *span*: around everything that logs;
//! 4. *request id to the response*: inside the span, outside the panic guard, so that a 500 has it too;
//! 5. *panic guard*: a panic of a handler is a 500 with the specification's JSON, and the connection lives.
//!
//! The record of the request (one log line, the counters) is kept inside the guard by a value whose `Drop` writes it:
//! at the end of the body, on a panic, and when the client leaves before the answer.

pub mod access;
pub mod admin;
mod challenge;
mod endpoint;
mod explain;
mod htpasswd;
mod lists;
mod pull;
pub mod range;
mod record;
mod represent;
pub mod respond;
pub mod route;
mod seal;
pub mod token_route;

use std::any::Any;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, COOKIE, HOST, HeaderName, PROXY_AUTHORIZATION, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use tower::{Service, ServiceBuilder};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::TraceLayer;

use self::access::Peer;
use self::record::Record;
pub use self::record::Served;
use self::respond::{Body, BodyError, Failure};
use self::route::{Directory, Endpoint, Route, Routed};
use crate::cache::Cache;
use crate::config::{Config, Listener, ListenerTls};
use crate::metrics::Metrics;
use crate::oci::ErrorCode;

/// Field and value by which clients know a registry.
const API_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("docker-distribution-api-version"), HeaderValue::from_static("registry/2.0"));
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request head, all fields together; HTTP/2 announces it.
pub const MAX_HEAD: usize = 32 * 1024;
/// Longest request id that is taken over from a client.
const MAX_REQUEST_ID: usize = 64;

/// What requests are served with.
pub struct App {
    /// The configuration.
    pub config: Arc<Config>,
    /// The upstreams by the names that clients use.
    pub directory: Directory,
    /// What answers pulls.
    pub cache: Arc<Cache>,
    /// All metrics.
    pub metrics: Metrics,
}

/// The listener that a request came by.
#[derive(Debug, Clone)]
pub struct ListenerState {
    /// Its configuration.
    pub config: Listener,
}

// === the layers ===

/// Wraps a service that answers requests in the layers of this module, in their order.
pub fn layers<S, B>(
    inner: S,
) -> impl Service<
    Request<B>,
    Response = Response<impl http_body::Body<Data = Bytes, Error: Into<BodyError>> + Send + 'static>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send,
    B: http_body::Body,
{
    let span = TraceLayer::new_for_http().make_span_with(request_span::<B>);
    ServiceBuilder::new()
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE]))
        .map_request(drop_strange_request_id)
        .layer(SetRequestIdLayer::new(X_REQUEST_ID, RandomId))
        .layer(span.on_request(()).on_response(()).on_body_chunk(()).on_eos(()).on_failure(()))
        .layer(PropagateRequestIdLayer::new(X_REQUEST_ID))
        .layer(CatchPanicLayer::custom(panicked))
        .service(inner)
}

/// Makes up request ids.
#[derive(Debug, Clone, Copy)]
struct RandomId;

impl MakeRequestId for RandomId {
    fn make_request_id<B>(&mut self, _request: &Request<B>) -> Option<RequestId> {
        HeaderValue::try_from(format!("{:032x}", fastrand::u128(..))).ok().map(RequestId::new)
    }
}

/// An id that a client or a proxy before it chose is kept where it is short and plain, because it goes to the log.
fn drop_strange_request_id<B>(mut request: Request<B>) -> Request<B> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let strange = |id: &HeaderValue| id.len() > MAX_REQUEST_ID || !id.as_bytes().iter().all(plain);
    if request.headers().get(X_REQUEST_ID).is_some_and(strange) {
        request.headers_mut().remove(X_REQUEST_ID);
    }
    request
}

fn request_span<B>(request: &Request<B>) -> tracing::Span {
    let id = request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    tracing::info_span!("request", id)
}

fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response<Body> {
    let message = payload
        .downcast::<String>()
        .map(|text| *text)
        .or_else(|payload| payload.downcast::<&'static str>().map(|text| (*text).to_owned()));
    let message = message.unwrap_or_else(|_| "no message".to_owned());
    branded(Failure::internal(format!("a handler panicked: {message}")).into_response())
}

// === the request ===

/// Answers one request of a client.
pub async fn handle<B: http_body::Body>(
    app: &App,
    listener: &ListenerState,
    peer: Peer,
    request: Request<B>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut record = Record::new(&app.metrics, peer, parts.method.clone());
    // No request of this version has a body that is read. What is left of one must not be taken for the next request.
    let has_body = !body.is_end_stream() || parts.headers.contains_key(TRANSFER_ENCODING);
    let answered = answer(app, listener, peer, &parts, has_body, &mut record).await;
    let mut response = match answered.and_then(|response| with_an_end(response, &parts)) {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    };
    if has_body {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if parts.version >= Version::HTTP_2 {
        // A field of the connection has no place in HTTP/2 (RFC 9113, 8.2.2).
        response.headers_mut().remove(CONNECTION);
    }
    record.follow(branded(response))
}

/// To HTTP/1.0 an answer without a length ends with its connection: one that was broken off would look whole.
fn with_an_end(response: Response<Body>, parts: &Parts) -> Result<Response<Body>, Failure> {
    let has_end = http_body::Body::size_hint(response.body()).exact().is_some();
    if has_end || parts.version > Version::HTTP_10 || parts.method == Method::HEAD {
        return Ok(response);
    }
    let message = "upstream does not say how long this is, and by HTTP/1.0 a client could not tell a part of it from \
                   the whole; ask by HTTP/1.1 (nginx: proxy_http_version 1.1)";
    Err(Failure::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, ErrorCode::Unsupported, message).closing())
}

async fn answer(
    app: &App,
    listener: &ListenerState,
    peer: Peer,
    parts: &Parts,
    has_body: bool,
    record: &mut Record,
) -> Result<Response<Body>, Failure> {
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    check_head(parts)?;
    let host = host(parts)?;
    if !reads && !matches!(parts.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE) {
        return Err(Failure::method("the registry API has no such method").closing());
    }
    if reads && has_body {
        let message = "a GET or HEAD request has no body here; send it without one";
        return Err(Failure::bad_request(ErrorCode::Unsupported, message));
    }
    let routed = route::parse(&app.directory, &listener.config, host, parts.uri.path(), parts.uri.query());
    let route = match routed.inspect_err(|_| record.unrouted(host, parts.uri.path()))? {
        Routed::Resource(route) => route,
        Routed::Token(_) => return Err(Failure::method("x")),
        Routed::Ping(ping) => {
            record.ping(&ping);
            let failure = Failure::method("/v2/ can be read only");
            let response = if reads { Ok(respond::json(StatusCode::OK, "{}")) } else { Err(failure) };
            return response.map(|response| with_namespace(response, ping.namespace.as_deref()));
        }
    };
    record.route(&route);
    if !reads {
        let message = format!(
            "this version of ocistern only pulls; push to and delete from upstream {} itself, not through ocistern",
            route.upstream
        );
        return Err(Failure::method(message));
    }
    check_access(app, listener, peer, host, parts, &route)?;
    let namespace = route.namespace.clone();
    let response = dispatch(app, &route, parts).await?;
    Ok(with_namespace(response, namespace.as_deref()))
}

async fn dispatch(app: &App, route: &Route, parts: &Parts) -> Result<Response<Body>, Failure> {
    match &route.endpoint {
        Endpoint::Manifest(repo, reference) => pull::manifest(app, route, repo, reference, parts).await,
        Endpoint::Blob(repo, digest) => pull::blob(app, route, repo, digest, parts).await,
        Endpoint::Tags(repo) => lists::tags(app, route, repo, parts).await,
        Endpoint::Referrers(repo, digest) => lists::referrers(app, route, repo, digest, parts).await,
        Endpoint::Catalog => lists::catalog(app, route, parts).await,
        Endpoint::Uploads(_) | Endpoint::Upload(..) | Endpoint::Acr(_) => Err(Failure::new(
            StatusCode::NOT_FOUND,
            ErrorCode::BlobUploadUnknown,
            "there is no such upload: this version of ocistern only pulls",
        )),
    }
}

/// What the upstream gave to an account of ocistern's own is not for everybody who can connect.
fn check_access(
    app: &App,
    listener: &ListenerState,
    peer: Peer,
    host: Option<&str>,
    parts: &Parts,
    route: &Route,
) -> Result<(), Failure> {
    let own_account =
        app.config.upstreams.get(&route.upstream).is_some_and(|upstream| access::is_own_account(upstream));
    // Who came this far on a listener with `client_ca` has shown a certificate of it.
    let certified = matches!(&listener.config.tls, Some(ListenerTls { client_ca: Some(_), .. }));
    if !own_account || certified {
        return Ok(());
    }
    access::loopback_trust(&peer, &listener.config, host, &parts.headers).map_err(|reason| {
        let message = format!(
            "ocistern pulls {} by an account of its own, whose content is for clients on its machine only: {reason}; \
             connect from there, or by a listener with tls.client_ca",
            route.upstream
        );
        Failure::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
    })
}

/// Limits that hyper has not: it answers more than 100 fields and a head beyond its buffer by itself.
fn check_head(parts: &Parts) -> Result<(), Failure> {
    let fields: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let target = parts.uri.path().len() + parts.uri.query().map_or(0, str::len);
    if fields + target > MAX_HEAD {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let message = format!("the request's head is larger than {MAX_HEAD} bytes; send fewer or shorter fields");
        return Err(Failure::new(status, ErrorCode::Unsupported, message).closing());
    }
    Ok(())
}

/// The host that the client means: the authority of the target beats the field (RFC 9112, 3.2.2).
fn host(parts: &Parts) -> Result<Option<&str>, Failure> {
    let mut fields = parts.headers.get_all(HOST).iter();
    let field = fields.next();
    let missing = field.is_none() && parts.version == Version::HTTP_11;
    if missing || fields.next().is_some() {
        let message = "an HTTP/1.1 request has exactly one Host field";
        return Err(Failure::bad_request(ErrorCode::Unsupported, message).closing());
    }
    if let Some(authority) = parts.uri.authority() {
        // Without user and password, if a client put some there.
        let authority = authority.as_str();
        return Ok(Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host)));
    }
    let malformed = || Failure::bad_request(ErrorCode::Unsupported, "the Host field is no host").closing();
    field.map(|value| value.to_str().map_err(|_| malformed())).transpose()
}

fn branded(mut response: Response<Body>) -> Response<Body> {
    let (name, value) = API_VERSION;
    response.headers_mut().insert(name, value);
    response
}

fn with_namespace(mut response: Response<Body>, namespace: Option<&str>) -> Response<Body> {
    if let Some(value) = namespace.and_then(|namespace| HeaderValue::from_str(namespace).ok()) {
        response.headers_mut().insert(OCI_NAMESPACE, value);
    }
    response
}
