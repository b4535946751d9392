//! One log line and one count per request, at the end of its body.
//!
//! hyper stops polling a body once `Content-Length` bytes are out, so the end is the body's `Drop`; the counters are
//! raised as the last byte is handed over, that a scrape after a complete answer finds it counted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{Method, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tracing::Span;

use super::access::Peer;
use super::inbound::Rest;
use super::respond::{Body, BodyError, Reason};
use super::route::{AcrItem, Endpoint, Form, Ping, Route};
use super::token_route::TokenRoute;
use crate::metrics::{Kind, Metrics, Outcome, Source};
use crate::oci::{Reference, RepoName, UpstreamName};

/// The target of the one event of every request.
pub const REQUEST_LOG: &str = module_path!();
/// What nginx logs where the client left before the answer's head; it is never sent.
const CLIENT_LEFT: u16 = 499;
/// Longest path, and longest host, of a request that means nothing here, as it goes to the log.
const MAX_TARGET: usize = 256;
/// Label and field where a request means no upstream.
const NONE: &str = "none";

/// How a pull was answered: the extension that a handler puts into its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// For the `result` label and the log.
    pub outcome: Outcome,
    /// For the `source` label.
    pub source: Source,
}

/// The record of a request, from its head to the end of its answer; dropping it writes it.
#[derive(Debug)]
pub(super) struct Record {
    metrics: Arc<Metrics>,
    span: Span,
    started: Instant,
    peer: Peer,
    method: Method,
    form: Option<Form>,
    kind: Kind,
    upstream: Option<UpstreamName>,
    repo: Option<RepoName>,
    reference: Option<Reference>,
    /// Host and path of a request that means nothing here: nobody could tell otherwise what was asked.
    asked: Option<String>,
    status: Option<StatusCode>,
    served: Option<Served>,
    reason: Option<Reason>,
    /// What came of the request's own body.
    brought: Option<Rest>,
    /// Bytes of the body handed to hyper.
    sent: u64,
    end: End,
    counted: bool,
}

/// How the body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Not yet, or the client left: normal for readers of ranges, and no error of ours.
    Open,
    /// It was handed over whole.
    Whole,
    /// It was broken off from this side.
    Broken,
}

/// A body that keeps the record of its request.
struct Recorded {
    inner: Body,
    record: Record,
    /// What is still to be handed over, if the body knows.
    length: Option<u64>,
}

// === impl Record ===

impl Record {
    pub(super) fn new(metrics: &Arc<Metrics>, peer: Peer, method: Method) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            span: Span::current(),
            started: Instant::now(),
            peer,
            method,
            form: None,
            kind: Kind::Other,
            upstream: None,
            repo: None,
            reference: None,
            asked: None,
            status: None,
            served: None,
            reason: None,
            brought: None,
            sent: 0,
            end: End::Open,
            counted: false,
        }
    }

    /// The request has a body.
    pub(super) fn brings(&mut self, body: &Rest) {
        self.brought = Some(body.clone());
    }

    pub(super) fn ping(&mut self, ping: &Ping) {
        self.form = Some(ping.form);
        self.upstream.clone_from(&ping.upstream);
    }

    /// What is asked for there is not kept: it may hold credentials.
    pub(super) fn token(&mut self, route: &TokenRoute) {
        self.form = Some(route.form);
        self.upstream.clone_from(&route.upstream);
    }

    pub(super) fn route(&mut self, route: &Route) {
        self.form = Some(route.form);
        self.kind = route.endpoint.kind();
        self.upstream = Some(route.upstream.clone());
        self.repo = route.repo().cloned();
        self.reference = match &route.endpoint {
            Endpoint::Manifest(_, reference) => Some(reference.clone()),
            Endpoint::Blob(_, digest) | Endpoint::Referrers(_, digest) => Some(Reference::Digest(*digest)),
            // The state of an upload is as good as the right to go on with it.
            Endpoint::Catalog | Endpoint::Tags(_) | Endpoint::Uploads(_) | Endpoint::Upload(..) => None,
            Endpoint::Acr(acr) => match &acr.item {
                AcrItem::Tag(tag) => Some(Reference::Tag(tag.clone())),
                AcrItem::Manifest(digest) => Some(Reference::Digest(*digest)),
                AcrItem::Catalog | AcrItem::Repository | AcrItem::Tags | AcrItem::Manifests => None,
            },
        };
    }

    /// A request that has no route. The query is left out: it may hold a signature.
    pub(super) fn unrouted(&mut self, host: Option<&str>, path: &str) {
        let short = |text: &str| text.chars().take(MAX_TARGET).collect::<String>();
        self.asked = Some(short(host.unwrap_or_default()) + &short(path));
    }

    /// Follows the response to the end of its body.
    pub(super) fn follow(mut self, mut response: Response<Body>) -> Response<Body> {
        self.status = Some(response.status());
        self.served = response.extensions_mut().remove();
        self.reason = response.extensions_mut().remove();
        let head_only = self.method == Method::HEAD
            || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        response.map(|inner| {
            let length = inner.size_hint().exact();
            if head_only || inner.is_end_stream() {
                self.finish();
            }
            Recorded { inner, record: self, length }.boxed_unsync()
        })
    }

    /// The body is whole.
    fn finish(&mut self) {
        self.end = End::Whole;
        self.count();
    }

    fn outcome(&self) -> Outcome {
        let failed = self.status.is_none_or(|status| status.is_client_error() || status.is_server_error());
        if failed || self.end == End::Broken {
            Outcome::Error
        } else {
            // What no handler spoke of is no content: a token, or the API's name.
            self.served.map_or(Outcome::Bypass, |served| served.outcome)
        }
    }

    fn count(&mut self) {
        if self.counted {
            return;
        }
        self.counted = true;
        let upstream = self.upstream.as_ref().map_or(NONE, UpstreamName::as_str);
        self.metrics.request(upstream, self.kind, self.outcome());
        if let Some(served) = self.served {
            self.metrics.served_bytes.with_label_values(&[upstream, served.source.as_str()]).inc_by(self.sent);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // A panic unwinds through here on its way to the guard that makes it a 500.
        let status = match self.status {
            Some(status) => status.as_u16(),
            None if std::thread::panicking() => StatusCode::INTERNAL_SERVER_ERROR.as_u16(),
            None => CLIENT_LEFT,
        };
        self.count();
        tracing::info!(
            parent: &self.span,
            method = self.method.as_str(),
            form = self.form.map(Form::as_str),
            upstream = self.upstream.as_ref().map(UpstreamName::as_str),
            repository = self.repo.as_ref().map(RepoName::as_str),
            reference = self.reference.as_ref().map(tracing::field::display),
            asked = self.asked.as_deref(),
            kind = self.kind.as_str(),
            result = self.outcome().as_str(),
            status,
            bytes = self.sent,
            received = self.brought.as_ref().map(Rest::received).filter(|bytes| *bytes > 0),
            end = self.end.as_str(),
            error = self.reason.as_ref().map(|reason| &*reason.0),
            duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            peer = %self.peer,
            "request"
        );
    }
}

// === impl End ===

impl End {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "client left",
            Self::Whole => "whole",
            Self::Broken => "broken off",
        }
    }
}

// === impl Recorded ===

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.record.sent += frame.data_ref().map_or(0, |data| data.remaining() as u64);
                if this.length == Some(this.record.sent) {
                    this.record.finish();
                }
            }
            Poll::Ready(Some(Err(error))) => {
                this.record.end = End::Broken;
                let _entered = this.record.span.enter();
                tracing::warn!(source = super::respond::causes(&**error), "the answer was broken off");
            }
            Poll::Ready(None) => this.record.finish(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
