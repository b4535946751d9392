//! One log line and one count per request, at the end of its body.
//!
//! hyper stops polling a body once `Content-Length` bytes are out, so the end is the body's `Drop`; the counters are
//! raised as the last byte is handed over, that a scrape after a complete answer finds it counted.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body::{Body as _, Frame};
use tokio::time::Instant;
use tracing::Span;
use tracing::span::Entered;

use super::access::Peer;
use super::body::{Body, BodyError};
use super::inbound::Rest;
use super::respond::Reason;
use super::route::{AcrItem, Endpoint, Form, Ping, Route};
use super::token_route::TokenRoute;
use crate::metrics::{Answered, Cause, Kind, Outcome, Requests, Source};
use crate::oci::{ErrorCode, Reference, RepoName, UpstreamName};
use crate::telemetry::{self, Trace};
use crate::troubles::{Met, Trouble, Troubles};

/// The target of the one event of every request.
pub const REQUEST_LOG: &str = module_path!();
/// What nginx logs where the client left before the answer's head; it is never sent.
const CLIENT_LEFT: u16 = 499;
/// Longest path, and longest host, of a request that means nothing here, as it goes to the log.
const MAX_TARGET: usize = 256;
/// The code of an answer that ended before its content did.
const BROKEN_OFF: &str = "BROKEN_OFF";

/// How a pull was answered, as the body of its answer says.
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
    requests: Arc<Requests>,
    troubles: Arc<Troubles>,
    /// Whether the caller has shown a credential.
    shown: bool,
    span: Span,
    /// Where traces are sent.
    trace: Option<Trace>,
    started: Instant,
    peer: Peer,
    method: Method,
    meant: Meant,
    status: Option<StatusCode>,
    served: Option<Served>,
    reason: Option<Reason>,
    /// What came of the request's own body.
    brought: Option<Rest>,
    /// Bytes of the body handed to hyper.
    sent: u64,
    /// How many there are in all, if the body knows.
    length: Option<u64>,
    end: End,
    /// What the answer is, where its status says error and nothing is wrong.
    step: Option<Step>,
    /// From the head of the request to the end of the answer, once it has been counted.
    took: Option<Duration>,
}

/// What a request means.
#[derive(Debug)]
enum Meant {
    /// It was not looked at.
    Unknown,
    /// Nothing here. Its host and path: nobody could tell otherwise what was asked.
    Nothing(String),
    /// The interface itself, or a token.
    Api { form: Form, upstream: Option<UpstreamName> },
    /// A resource of an upstream.
    Resource(Arc<Route>),
}

/// Answers from 400 on that are a step of what clients do, and no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It asks for a credential, and the request showed none: the first half of what most clients do.
    Challenge,
    /// Whether something is there was asked (HEAD), and it is not: what each push asks of its layers first.
    Absent,
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

// === impl Record ===

impl Record {
    /// Boxed: it goes through many hands.
    pub(super) fn new(requests: &Arc<Requests>, troubles: &Arc<Troubles>, peer: Peer, parts: &Parts) -> Box<Self> {
        Box::new(Self {
            requests: Arc::clone(requests),
            troubles: Arc::clone(troubles),
            shown: parts.headers.contains_key(AUTHORIZATION),
            span: Span::current(),
            trace: telemetry::current(),
            started: Instant::now(),
            peer,
            method: parts.method.clone(),
            meant: Meant::Unknown,
            status: None,
            served: None,
            reason: None,
            brought: None,
            sent: 0,
            length: None,
            end: End::Open,
            step: None,
            took: None,
        })
    }

    /// The request has a body.
    pub(super) fn brings(&mut self, body: &Rest) {
        self.brought = Some(body.clone());
    }

    pub(super) fn ping(&mut self, ping: &Ping) {
        self.meant = Meant::Api { form: ping.form, upstream: ping.upstream.clone() };
    }

    /// What is asked for there is not kept: it may hold credentials.
    pub(super) fn token(&mut self, route: &TokenRoute) {
        self.meant = Meant::Api { form: route.form, upstream: route.upstream.clone() };
    }

    pub(super) fn route(&mut self, route: &Arc<Route>) {
        self.meant = Meant::Resource(Arc::clone(route));
    }

    /// A request that has no route. The query is left out: it may hold a signature.
    pub(super) fn unrouted(&mut self, host: Option<&str>, path: &str) {
        let short = |text: &str| text.chars().take(MAX_TARGET).collect::<String>();
        self.meant = Meant::Nothing(short(host.unwrap_or_default()) + &short(path));
    }

    /// Follows the response to the end of its body.
    pub(super) fn follow(mut self: Box<Self>, mut response: Response<Body>) -> Response<Body> {
        self.status = Some(response.status());
        self.served = response.body().served();
        self.reason = response.extensions_mut().remove();
        self.step = self.step_of(&response);
        if let Some(Reason { message, code }) = self.reason.as_ref().filter(|_| self.step.is_none()) {
            self.note(code, Some(response.status()), message);
        }
        self.length = response.body().size_hint().exact();
        self.requests.begun(self.kind(), self.outcome(), self.started.elapsed());
        let head_only = self.method == Method::HEAD
            || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if head_only || response.body().is_end_stream() {
            self.finish();
        }
        response.map(|body| body.recorded(self))
    }

    /// What the answer is, if no error.
    fn step_of(&self, response: &Response<Body>) -> Option<Step> {
        match response.status() {
            StatusCode::UNAUTHORIZED if !self.shown && response.headers().contains_key(WWW_AUTHENTICATE) => {
                Some(Step::Challenge)
            }
            StatusCode::NOT_FOUND if self.method == Method::HEAD => {
                // Another code says that ocistern has no such upstream, which somebody has to mend.
                let absent = [ErrorCode::ManifestUnknown, ErrorCode::BlobUnknown].map(ErrorCode::as_str);
                let of_content = matches!(self.meant.kind(), Kind::Manifest | Kind::Blob);
                let is_absent = self.reason.as_ref().is_some_and(|reason| absent.contains(&reason.code));
                (of_content && is_absent).then_some(Step::Absent)
            }
            _ => None,
        }
    }

    /// Enters the request's span.
    pub(super) fn enter(&self) -> Entered<'_> {
        self.span.enter()
    }

    /// The body was asked for a frame, and this is what came of it.
    pub(super) fn hands_over(&mut self, polled: &Poll<Option<Result<Frame<Bytes>, BodyError>>>) {
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.length == Some(self.sent) {
                    self.finish();
                }
            }
            Poll::Ready(Some(Err(error))) => {
                self.end = End::Broken;
                let causes = super::respond::causes(&**error);
                let what = "the answer was broken off, which clients notice and ask again: ";
                self.note(BROKEN_OFF, None, &format!("{what}{causes}"));
                let _entered = self.enter();
                tracing::warn!(source = causes, "the answer was broken off");
            }
            Poll::Ready(None) => self.finish(),
            Poll::Pending => {}
        }
    }

    fn note(&self, code: &'static str, status: Option<StatusCode>, message: &str) {
        self.troubles.note(Trouble {
            met: Met::Answer,
            upstream: self.meant.upstream().map(UpstreamName::as_str),
            repository: self.meant.route().and_then(Route::repo).map(RepoName::as_str),
            code,
            status: status.as_ref().map(StatusCode::as_u16),
            message,
        });
    }

    /// The body is whole.
    fn finish(&mut self) {
        self.end = End::Whole;
        self.count();
    }

    fn kind(&self) -> Kind {
        // Who is asked for a credential has been told nothing of the resource, and what is not there is no pull that missed.
        if self.step.is_some() { Kind::Other } else { self.meant.kind() }
    }

    fn outcome(&self) -> Outcome {
        if self.cause().is_some() {
            Outcome::Error
        } else {
            // What no handler spoke of is no content: a token, a challenge, or the API's name.
            self.served.map_or(Outcome::Bypass, |served| served.outcome)
        }
    }

    /// Why the answer is an error, if it is one.
    fn cause(&self) -> Option<Cause> {
        match self.status {
            _ if self.end == End::Broken => Some(Cause::Broken),
            None if std::thread::panicking() => Some(Cause::Internal),
            None => Some(Cause::Left),
            Some(_) if self.step.is_some() => None,
            Some(status) if status.as_u16() >= 400 => Some(Cause::of_status(status.as_u16())),
            Some(_) => None,
        }
    }

    /// Ends the request's span.
    fn tell(&self, trace: &Trace) {
        let cause = self.cause();
        trace.answered(
            &self.method,
            &telemetry::Answer {
                status: self.status,
                route: self.meant.route().and_then(|route| route.endpoint.template()),
                upstream: self.meant.upstream().map(UpstreamName::as_str),
                repository: self.meant.route().and_then(Route::repo).map(RepoName::as_str),
                result: self.outcome().as_str(),
                cause: cause.map(Cause::as_str),
                failed: matches!(cause, Some(Cause::Upstream | Cause::Internal | Cause::Broken)),
                sent: self.sent,
            },
        );
    }

    /// Counts the request, once, and tells how long it took.
    fn count(&mut self) -> Duration {
        if let Some(took) = self.took {
            return took;
        }
        let took = self.started.elapsed();
        self.took = Some(took);
        self.requests.ended(&Answered {
            upstream: self.meant.upstream().map(UpstreamName::as_str),
            kind: self.kind(),
            outcome: self.outcome(),
            source: self.served.map(|served| served.source),
            sent: self.sent,
            took,
            cause: self.cause(),
            challenge: self.step == Some(Step::Challenge),
        });
        took
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
        let took = self.count();
        if let Some(trace) = &self.trace {
            self.tell(trace);
        }
        tracing::info!(
            parent: &self.span,
            method = self.method.as_str(),
            form = self.meant.form().map(Form::as_str),
            upstream = self.meant.upstream().map(UpstreamName::as_str),
            repository = self.meant.route().and_then(Route::repo).map(RepoName::as_str),
            reference = self.meant.route().and_then(reference).map(tracing::field::display),
            asked = if let Meant::Nothing(asked) = &self.meant { Some(asked.as_str()) } else { None },
            kind = self.kind().as_str(),
            result = self.outcome().as_str(),
            status,
            bytes = self.sent,
            received = self.brought.as_ref().map(Rest::received).filter(|bytes| *bytes > 0),
            end = self.end.as_str(),
            // Where nothing was wrong, a reason would be read as if something were.
            error = self.reason.as_ref().filter(|_| self.step.is_none()).map(|reason| &*reason.message),
            duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            peer = %self.peer,
            "request"
        );
    }
}

// === impl Meant ===

impl Meant {
    fn route(&self) -> Option<&Route> {
        if let Self::Resource(route) = self { Some(route) } else { None }
    }

    fn form(&self) -> Option<Form> {
        match self {
            Self::Unknown | Self::Nothing(_) => None,
            Self::Api { form, .. } => Some(*form),
            Self::Resource(route) => Some(route.form),
        }
    }

    fn upstream(&self) -> Option<&UpstreamName> {
        match self {
            Self::Unknown | Self::Nothing(_) => None,
            Self::Api { upstream, .. } => upstream.as_ref(),
            Self::Resource(route) => Some(&route.upstream),
        }
    }

    fn kind(&self) -> Kind {
        self.route().map_or(Kind::Other, |route| route.endpoint.kind())
    }
}

/// What of a repository is asked for, as the log has it. The state of an upload is as good as the right to go on with it.
fn reference(route: &Route) -> Option<Reference> {
    match &route.endpoint {
        Endpoint::Manifest(_, reference) => Some(reference.clone()),
        Endpoint::Blob(_, digest) | Endpoint::Referrers(_, digest) => Some(Reference::Digest(*digest)),
        Endpoint::Catalog | Endpoint::Tags(_) | Endpoint::Uploads(_) | Endpoint::Upload(..) => None,
        Endpoint::Acr(acr) => match &acr.item {
            AcrItem::Tag(tag) => Some(Reference::Tag(tag.clone())),
            AcrItem::Manifest(digest) => Some(Reference::Digest(*digest)),
            AcrItem::Catalog | AcrItem::Repository | AcrItem::Tags | AcrItem::Manifests => None,
        },
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
