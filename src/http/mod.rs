//! The HTTP edge: from a request to an answer, in one straight list.
//!
//! What is around [`handle`], the id, the span and the panic guard, is in [`around`].
//!
//! The record of the request (one log line, the counters) is kept inside the guard by a value whose `Drop` writes it:
//! at the end of the body, on a panic, and when the client leaves before the answer.

pub mod access;
mod acr;
pub mod admin;
pub mod around;
mod asked;
pub mod body;
mod caller;
mod challenge;
pub mod connection;
mod credential;
mod endpoint;
mod explain;
mod form;
pub mod fuzzing;
mod htpasswd;
mod inbound;
mod lists;
pub mod location;
mod need;
pub mod part;
mod ping;
mod pull;
mod push;
pub mod range;
mod record;
mod relayed;
mod represent;
pub mod respond;
pub mod route;
mod routes;
mod seal;
#[cfg(test)]
mod tests;
pub mod token_route;
mod tokens;
mod uploads;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use tokio_util::task::TaskTracker;

use self::asked::Asked;
use self::body::{Body, BodyError};
use self::caller::Caller;
use self::connection::Connection;
pub use self::htpasswd::{Htpasswd, HtpasswdError};
use self::inbound::Inbound;
pub use self::location::Locations;
use self::record::Record;
pub use self::record::{REQUEST_LOG, Served};
use self::respond::Failure;
use self::route::{Directory, Endpoint, Route, Routed};
use self::routes::Routes;
pub use self::seal::Seal;
use crate::cache::{API_VERSION, Cache};
use crate::clock::{Clock, Steady};
use crate::config::{Config, Listener};
use crate::metrics::Requests;
use crate::oci::ErrorCode;
use crate::upstream::Upstreams;

const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
/// Longest request head, all fields together; HTTP/2 announces it.
pub const MAX_HEAD: usize = 32 * 1024;

/// What requests are served with.
#[derive(Clone)]
pub struct App {
    /// The configuration.
    pub config: Arc<Config>,
    /// The upstreams by the names that clients use.
    pub directory: Directory,
    /// What answers pulls.
    pub cache: Arc<Cache>,
    /// What is asked for tokens, and where pushes go.
    pub upstreams: Arc<Upstreams>,
    /// The keys of the tokens that are given out.
    pub seal: Arc<Seal>,
    /// The addresses of uploads.
    pub locations: Arc<Locations>,
    /// What counts them.
    pub requests: Arc<Requests>,
    /// What the time is.
    pub clock: Arc<dyn Clock>,
    /// The time for what ends with this process.
    pub steady: Steady,
    /// What goes on behind an answer.
    pub tasks: TaskTracker,
}

/// The listener that a request came by.
#[derive(Debug, Clone)]
pub struct ListenerState {
    /// Its configuration.
    pub config: Listener,
    /// Who may use ocistern's own accounts by name and password.
    pub htpasswd: Option<Arc<Htpasswd>>,
    /// What its clients asked for lately.
    routes: Arc<Routes>,
}

/// A request whose caller and resource are known.
#[derive(Clone, Copy)]
struct Visit<'a> {
    asked: Asked<'a>,
    route: &'a Route,
    caller: &'a Caller,
}

// === impl App ===

impl App {
    /// The same by another configuration, of whose upstreams `requests` are counted.
    #[must_use]
    pub fn with(self, config: Arc<Config>, requests: Arc<Requests>) -> Self {
        Self { directory: Directory::new(&config), config, requests, ..self }
    }
}

// === impl ListenerState ===

impl ListenerState {
    /// The state of a listener with this configuration.
    pub fn new(config: Listener) -> Self {
        let htpasswd = config.htpasswd.clone().map(Htpasswd::new);
        Self { config, htpasswd, routes: Arc::default() }
    }

    /// The same listener by another configuration. What its clients asked for may mean something else now.
    #[must_use]
    pub fn with(&self, config: Listener) -> Self {
        let htpasswd = self.htpasswd.clone().filter(|_| self.config.htpasswd == config.htpasswd);
        let htpasswd = htpasswd.or_else(|| config.htpasswd.clone().map(Htpasswd::new));
        Self { config, htpasswd, routes: Arc::default() }
    }
}

// === the request ===

/// Answers one request of a client.
pub async fn handle<B>(
    app: &App,
    listener: &ListenerState,
    connection: Connection,
    request: Request<B>,
) -> Response<Body>
where
    B: http_body::Body<Data = Bytes, Error: Into<BodyError>> + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let mut record = Record::new(&app.requests, app.upstreams.troubles(), connection.peer, &parts);
    let (body, rest) = Inbound::new(body, parts.headers.contains_key(TRANSFER_ENCODING));
    record.brings(&rest);
    let answered = answer(app, listener, &connection, &parts, body, &mut record).await;
    let mut response = match answered.and_then(|response| with_an_end(response, &parts)) {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    };
    if parts.method == Method::HEAD {
        response = without_body(response);
    }
    if rest.is_left() {
        // What is left of a body must not be taken for the next request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        // Over HTTP/2 the stream ends, and nothing else. Who waits to be told to go on has sent nothing and is not told.
        if parts.version >= Version::HTTP_2 {
            rest.forget();
        } else if !parts.headers.contains_key(EXPECT) {
            app.tasks.spawn(rest.take_in());
        }
    }
    if parts.version >= Version::HTTP_2 {
        // A field of the connection has no place in HTTP/2 (RFC 9113, 8.2.2).
        response.headers_mut().remove(CONNECTION);
    }
    record.follow(branded(response))
}

/// The answer to a HEAD says how long its body would be. HTTP/1.1 leaves the body out by itself, HTTP/2 would send it.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = http_body::Body::size_hint(response.body()).exact().filter(|length| *length > 0) {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    response.map(Body::emptied)
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
    connection: &Connection,
    parts: &Parts,
    body: Inbound,
    record: &mut Record,
) -> Result<Response<Body>, Failure> {
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    check_head(parts)?;
    let host = host(parts)?;
    if !reads && !matches!(parts.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE) {
        return Err(Failure::method("the registry API has no such method").closing());
    }
    if reads && !body.is_empty() {
        let message = "a GET or HEAD request has no body here; send it without one";
        return Err(Failure::bad_request(ErrorCode::Unsupported, message));
    }
    let Connection { peer, outlet, security } = connection;
    let asked = Asked { app, listener, peer: *peer, outlet: outlet.as_ref(), security: *security, host, parts };
    let target = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let route = if let Some(route) = listener.routes.get(host, target) {
        route
    } else {
        let (path, query) = (parts.uri.path(), parts.uri.query());
        let routed = route::parse(&app.directory, &listener.config, host, path, query);
        match routed.inspect_err(|_| record.unrouted(host, path))? {
            Routed::Ping(ping) => {
                record.ping(&ping);
                let answer = Box::pin(ping::answer(&asked, &ping)).await;
                return with_namespace(answer, ping.namespace.as_deref());
            }
            Routed::Token(route) => {
                record.token(&route);
                return Box::pin(tokens::answer(&asked, &route, body)).await;
            }
            Routed::Resource(route) => listener.routes.keep(host, target, route),
        }
    };
    record.route(&route);
    with_namespace(resource(asked, &route, body).await, route.namespace.as_deref())
}

async fn resource(asked: Asked<'_>, route: &Route, body: Inbound) -> Result<Response<Body>, Failure> {
    let caller = caller::identify(&asked, route).await?;
    let visit = Visit { asked, route, caller: &caller };
    let reads = matches!(asked.parts.method, Method::GET | Method::HEAD);
    // What most requests do not do is in a place of its own: else each would have, and move, the room for it.
    if reads { visit.read(body).await } else { Box::pin(visit.write(body)).await }
}

// === impl Visit ===

impl Visit<'_> {
    async fn read(&self, body: Inbound) -> Result<Response<Body>, Failure> {
        match &self.route.endpoint {
            Endpoint::Manifest(repo, reference) => pull::manifest(self, repo, reference).await,
            Endpoint::Blob(repo, digest) => pull::blob(self, repo, digest).await,
            Endpoint::Tags(repo) => Box::pin(lists::tags(self, repo)).await,
            Endpoint::Referrers(repo, digest) => Box::pin(lists::referrers(self, repo, digest)).await,
            Endpoint::Catalog => Box::pin(lists::catalog(self)).await,
            Endpoint::Acr(resource) => Box::pin(acr::read(self, resource)).await,
            Endpoint::Upload(repo, state) => Box::pin(uploads::go_on(self, repo, state, body)).await,
            Endpoint::Uploads(_) => Err(push::not_taken(&self.route.endpoint)),
        }
    }
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
    response.headers_mut().entry(API_VERSION.0).or_insert(API_VERSION.1);
    response
}

/// With the field that says whose it is, where the client said so itself (distribution-spec, "Registry Proxying").
fn with_namespace(answer: Result<Response<Body>, Failure>, namespace: Option<&str>) -> Result<Response<Body>, Failure> {
    let Some(value) = namespace.and_then(|namespace| HeaderValue::from_str(namespace).ok()) else { return answer };
    match answer {
        Ok(mut response) => {
            response.headers_mut().insert(OCI_NAMESPACE, value);
            Ok(response)
        }
        Err(failure) => Err(failure.with_header(OCI_NAMESPACE, value)),
    }
}
