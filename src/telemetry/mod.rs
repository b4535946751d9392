//! Traces by OpenTelemetry: a span for each request of a client, beneath it one for each request to an upstream and one for each fill
//! that it begins.
//!
//! Off unless `log.otlp` names a receiver: then each function here returns at once, for one look at a word of memory. What is beneath
//! what follows from OpenTelemetry's own context, which is attached to a thread while a future is polled. Names and attributes are
//! those of its semantic conventions, where there are some. Queries, states of uploads and header fields are in no attribute: they may
//! be secrets. This module is a leaf: it uses nothing of the crate.

mod export;

use std::error::Error;
use std::fmt;
use std::sync::OnceLock;

use http::uri::Authority;
use http::{Method, Request, StatusCode, Version};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{FutureExt as _, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;

pub use self::export::{Exporting, StartError, start};

/// What makes spans, once there is a receiver for them. Of the whole process, as OpenTelemetry's context is.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();
/// Longest text of a client that becomes an attribute.
const MAX_TEXT: usize = 256;
/// What stands before the state of an upload, which is as good as the right to go on with it.
const UPLOADS: &str = "/blobs/uploads/";

/// A span, and what is beneath it. It ends when it is told how, or when all that have it have dropped it.
#[derive(Debug, Clone)]
pub struct Trace(Context);

/// How a request was answered.
#[derive(Debug)]
pub struct Answer<'a> {
    /// None: the client left before there was one.
    pub status: Option<StatusCode>,
    /// Which of the interface's resources was asked for, with what varies left out.
    pub route: Option<&'static str>,
    /// The upstream that was meant.
    pub upstream: Option<&'a str>,
    /// The repository.
    pub repository: Option<&'a str>,
    /// The `result` label.
    pub result: &'static str,
    /// The `cause` label of an error.
    pub cause: Option<&'static str>,
    /// Whether somebody has to look after it.
    pub failed: bool,
    /// Bytes of the body.
    pub sent: u64,
}

// === of a client's request ===

/// The span of a client's request, beneath the one that the client says it is beneath (`traceparent`).
pub fn request<B>(request: &Request<B>) -> Option<Trace> {
    let tracer = TRACER.get()?;
    let parent =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(request.headers()));
    let method = method(request.method());
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.path", path(request.uri().path())),
        KeyValue::new("network.protocol.version", version(request.version())),
    ];
    let field = || request.headers().get(http::header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    if let Some(authority) = request.uri().authority().cloned().or_else(field) {
        attributes.push(KeyValue::new("server.address", short(authority.host())));
        attributes.extend(authority.port_u16().map(|port| KeyValue::new("server.port", i64::from(port))));
    }
    let span = tracer.span_builder(method).with_kind(SpanKind::Server).with_attributes(attributes);
    Some(Trace(parent.with_span(span.start_with_context(tracer, &parent))))
}

/// The span that what is done now is beneath.
pub fn current() -> Option<Trace> {
    TRACER.get()?;
    let context = Context::current();
    context.has_active_span().then_some(Trace(context))
}

/// The future, with what it does beneath the span that is current now.
pub fn carried<F: Future>(future: F) -> impl Future<Output = F::Output> {
    within(current(), future)
}

/// The future, with what it does beneath this span.
pub fn within<F: Future>(trace: Option<Trace>, future: F) -> impl Future<Output = F::Output> {
    future.with_context(trace.map_or_else(Context::new, |trace| trace.0))
}

// === of what is asked and fetched beneath it ===

/// The span of a request to an upstream, or to where it leads; none where nothing is current. Its fields get what
/// tells the other side of it.
pub fn exchange<B>(upstream: &str, request: &mut Request<B>) -> Option<Trace> {
    let (tracer, parent) = (TRACER.get()?, current()?.0);
    let (method, uri) = (method(request.method()), request.uri());
    let (scheme, host) = (uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default());
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    let authority = uri.authority().map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default());
    let span = tracer.span_builder(method).with_kind(SpanKind::Client).with_attributes([
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.full", format!("{scheme}://{}{}", authority.unwrap_or_default(), path(uri.path()))),
        KeyValue::new("server.address", host.to_owned()),
        KeyValue::new("server.port", i64::from(port)),
        KeyValue::new("ocistern.upstream", upstream.to_owned()),
    ]);
    let context = parent.with_span(span.start_with_context(tracer, &parent));
    TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(request.headers_mut()));
    Some(Trace(context))
}

/// The span of a fill, which may outlive the request that began it.
pub fn fill(upstream: &str, repository: &str, digest: &impl fmt::Display) -> Option<Trace> {
    let (tracer, parent) = (TRACER.get()?, current()?.0);
    let span = tracer.span_builder("fill").with_kind(SpanKind::Internal).with_attributes([
        KeyValue::new("ocistern.upstream", upstream.to_owned()),
        KeyValue::new("ocistern.repository", repository.to_owned()),
        KeyValue::new("oci.digest", digest.to_string()),
    ]);
    Some(Trace(parent.with_span(span.start_with_context(tracer, &parent))))
}

// === impl Trace ===

impl Trace {
    /// The request was answered so: its span ends.
    pub fn answered(&self, method: &Method, answer: &Answer<'_>) {
        let span = self.0.span();
        if let Some(route) = answer.route {
            span.set_attribute(KeyValue::new("http.route", route));
            span.update_name(format!("{} {route}", self::method(method)));
        }
        let texts = [("ocistern.upstream", answer.upstream), ("ocistern.repository", answer.repository)];
        for (key, text) in texts {
            if let Some(text) = text {
                span.set_attribute(KeyValue::new(key, text.to_owned()));
            }
        }
        span.set_attribute(KeyValue::new("ocistern.result", answer.result));
        span.set_attribute(KeyValue::new("http.response.body.size", i64::try_from(answer.sent).unwrap_or(i64::MAX)));
        if let Some(status) = answer.status {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        }
        if let Some(cause) = answer.cause.filter(|_| answer.failed) {
            span.set_attribute(KeyValue::new("error.type", cause));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Upstream answered so, or did not: the span of the exchange ends.
    pub fn exchanged(&self, status: Option<StatusCode>) {
        let span = self.0.span();
        if let Some(status) = status {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        }
        // To a client's span each 4xx is an error, too; a challenge is how a token is asked for.
        let ordinary = status.is_some_and(|status| status.as_u16() < 400 || status == StatusCode::UNAUTHORIZED);
        if !ordinary {
            let kind = status.map_or_else(|| "no answer".to_owned(), |status| status.as_str().to_owned());
            span.set_attribute(KeyValue::new("error.type", kind));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// The fill ended; an error says why it brought nothing.
    pub fn filled(&self, error: Option<String>) {
        let span = self.0.span();
        if let Some(error) = error {
            span.set_attribute(KeyValue::new("error.type", "fill"));
            span.set_status(Status::error(error));
        }
        span.end();
    }
}

// === texts ===

/// A client may invent methods.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

const fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// A path without the state of an upload.
fn path(path: &str) -> String {
    match path.split_once(UPLOADS) {
        Some((before, state)) if !state.is_empty() => short(before) + UPLOADS + "…",
        _ => short(path),
    }
}

/// An error and its causes, in one line.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_attribute_holds_what_is_a_right() {
        for (from, to) in [
            ("/v2/app/manifests/1", "/v2/app/manifests/1"),
            ("/v2/app/blobs/uploads/", "/v2/app/blobs/uploads/"),
            ("/v2/app/blobs/uploads/canary", "/v2/app/blobs/uploads/…"),
            ("/ghcr.io/v2/app/blobs/uploads/canary/more", "/ghcr.io/v2/app/blobs/uploads/…"),
        ] {
            assert_eq!(path(from), to);
        }
        assert_eq!(path(&"é".repeat(300)).chars().count(), MAX_TEXT);
        assert_eq!(method(&Method::from_bytes(b"CANARY").unwrap()), "_OTHER");
    }

    #[test]
    fn without_a_receiver_nothing_is_made() {
        assert!(request(&Request::new(())).is_none());
        let mut request = Request::new(());
        assert!(exchange("up", &mut request).is_none() && request.headers().is_empty());
        assert!(fill("up", "app", &"sha256:x").is_none() && current().is_none());
    }
}
